//! Operations that move coefficients: automorphisms, one level of output packing, expansion of sparse polynomials.

use rayon::prelude::*;

use super::{
    residue::{add, sub},
    simd,
};
use crate::engine::{RnsRing, Shape};

/// `f(X) -> f(X^g)` on every row of N coefficients; `g` odd below 2N.
pub(super) fn automorphism(ring: &RnsRing, x: &[u32], limbs: usize, g: usize) -> Vec<u32> {
    let n = ring.n();
    let mut out = vec![0; x.len()];
    out.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(row, (out, x))| {
        let p = ring.moduli()[row % limbs].value();
        let mut to = 0;
        for &c in x {
            // X^(to) with to in [N, 2N) is -X^(to - N).
            out[to & (n - 1)] = if to < n { c } else { sub(0, c, p) };
            to = (to + g) & (2 * n - 1);
        }
    });
    out
}

/// `(E + X^shift O, E - X^shift O)` with `E` the first and `O` the second half of the batch; `shift < N`.
pub(super) fn pack_step(ring: &RnsRing, x: &[u32], shape: Shape, shift: usize) -> (Vec<u32>, Vec<u32>) {
    let n = ring.n();
    let (even, odd) = x.split_at(x.len() / 2);
    let (mut sum, mut difference) = (vec![0; even.len()], vec![0; even.len()]);
    let outs = sum.par_chunks_mut(n).zip(difference.par_chunks_mut(n));
    let ins = even.par_chunks(n).zip(odd.par_chunks(n));
    outs.zip(ins).enumerate().with_min_len(2).for_each(|(row, ((sum, difference), (even, odd)))| {
        let p = ring.moduli()[row % shape.limbs].value();
        let (sum_low, sum_high) = sum.split_at_mut(shift);
        let (difference_low, difference_high) = difference.split_at_mut(shift);
        let (even_low, even_high) = even.split_at(shift);
        // The top `shift` coefficients of O wrap round with the opposite sign.
        let (odd_high, odd_low) = odd.split_at(n - shift);
        simd::dispatch(
            #[inline(always)]
            || butterfly(sum_high, difference_high, even_high, odd_high, p),
        );
        simd::dispatch(
            #[inline(always)]
            || butterfly(difference_low, sum_low, even_low, odd_low, p),
        );
    });
    (sum, difference)
}

#[inline(always)]
fn butterfly(sum: &mut [u32], difference: &mut [u32], a: &[u32], b: &[u32], p: u32) {
    for (((sum, difference), &a), &b) in sum.iter_mut().zip(difference).zip(a).zip(b) {
        *sum = add(a, b, p);
        *difference = sub(a, b, p);
    }
}

/// Signed integers at `positions` to residues, `[values.len() / positions.len()][limbs][N]`.
pub(super) fn expand(ring: &RnsRing, limbs: usize, values: &[i64], positions: &[u32]) -> Vec<u32> {
    let n = ring.n();
    let mut out = vec![0; values.len() / positions.len() * limbs * n];
    out.par_chunks_mut(limbs * n).zip(values.par_chunks(positions.len())).for_each(|(out, values)| {
        for (out, modulus) in out.chunks_mut(n).zip(ring.moduli()) {
            for (&value, &at) in values.iter().zip(positions) {
                out[at as usize] = modulus.from_i64(value);
            }
        }
    });
    out
}
