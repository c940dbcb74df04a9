//! Sums of products with one reduction: what matrix products and key switches spend their time on.

use super::{residue::Reducer, simd};
use crate::arith::Modulus;

/// One term of [`pair`]: a common factor and the two that it multiplies, rows of N residues.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    /// The common factor.
    pub factor: &'a [u32],
    /// What it multiplies, for each of the two sums.
    pub parts: [&'a [u32]; 2],
}

/// Coefficients summed at a time: the two accumulators stay in the first-level cache.
const BLOCK: usize = 512;

/// `out[part][c] = sum over terms of factor[c] * parts[part][c] mod p`.
pub(super) fn pair(modulus: Modulus, out: [&mut [u32]; 2], terms: &[Term<'_>]) {
    simd::dispatch(
        #[inline(always)]
        || pair_inlined(modulus, out, terms),
    );
}

#[inline(always)]
fn pair_inlined(modulus: Modulus, [out0, out1]: [&mut [u32]; 2], terms: &[Term<'_>]) {
    let reducer = Reducer::new(modulus);
    let p = modulus.value() as u64;
    // Sums stay below 8p^2 between chunks of at most four products: 12p^2 < 2^64.
    let cap = 8 * p * p;
    let mut acc0 = [0u64; BLOCK];
    let mut acc1 = [0u64; BLOCK];
    for (block, (out0, out1)) in out0.chunks_mut(BLOCK).zip(out1.chunks_mut(BLOCK)).enumerate() {
        let (from, len) = (block * BLOCK, out0.len());
        acc0.fill(0);
        acc1.fill(0);
        for chunk in terms.chunks(4) {
            match *chunk {
                [a, b, c, d] => accumulate([a, b, c, d], from, cap, &mut acc0[..len], &mut acc1[..len]),
                [a, b, c] => accumulate([a, b, c], from, cap, &mut acc0[..len], &mut acc1[..len]),
                [a, b] => accumulate([a, b], from, cap, &mut acc0[..len], &mut acc1[..len]),
                [a] => accumulate([a], from, cap, &mut acc0[..len], &mut acc1[..len]),
                _ => {}
            }
        }
        for (out, &acc) in out0.iter_mut().zip(&acc0) {
            *out = reducer.wide(acc);
        }
        for (out, &acc) in out1.iter_mut().zip(&acc1) {
            *out = reducer.wide(acc);
        }
    }
}

/// Adds `K` terms at coefficients `from..` to both accumulators and brings them below `cap`.
#[inline(always)]
fn accumulate<const K: usize>(terms: [Term<'_>; K], from: usize, cap: u64, acc0: &mut [u64], acc1: &mut [u64]) {
    let len = acc0.len();
    let acc1 = &mut acc1[..len];
    // Equal lengths known to the compiler before the loop: no bounds checks in it.
    let factors = terms.map(|t| &t.factor[from..][..len]);
    let parts0 = terms.map(|t| &t.parts[0][from..][..len]);
    let parts1 = terms.map(|t| &t.parts[1][from..][..len]);
    for c in 0..len {
        let (mut sum0, mut sum1) = (acc0[c], acc1[c]);
        for k in 0..K {
            let factor = factors[k][c] as u64;
            sum0 = sum0.wrapping_add(factor * parts0[k][c] as u64);
            sum1 = sum1.wrapping_add(factor * parts1[k][c] as u64);
        }
        acc0[c] = sum0.min(sum0.wrapping_sub(cap));
        acc1[c] = sum1.min(sum1.wrapping_sub(cap));
    }
}
