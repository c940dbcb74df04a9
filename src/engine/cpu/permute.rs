//! Operations that move coefficients: automorphisms, one level of output packing, expansion of sparse polynomials, gathering.

use rayon::prelude::*;

use super::{
    gemm::small,
    residue::{add, sub},
    simd,
};
use crate::engine::{ExpandShape, GatherItem, RnsRing, Shape};

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

/// `out += f(X^g)` on rows of N coefficients, row `r` modulo limb `r`.
pub(super) fn add_automorphism(ring: &RnsRing, x: &[u32], g: usize, out: &mut [u32]) {
    let n = ring.n();
    for ((out, x), modulus) in out.chunks_mut(n).zip(x.chunks(n)).zip(ring.moduli()) {
        let p = modulus.value();
        let mut to = 0;
        for &c in x {
            let at = &mut out[to & (n - 1)];
            *at = if to < n { add(*at, c, p) } else { sub(*at, c, p) };
            to = (to + g) & (2 * n - 1);
        }
    }
}

/// `f(X) -> f(X^g)` on every row of N values in the NTT domain.
pub(super) fn automorphism_ntt(ring: &RnsRing, x: &[u32], g: usize) -> Vec<u32> {
    let n = ring.n();
    let sources = ntt_sources(n, g);
    let mut out = vec![0; x.len()];
    out.par_chunks_mut(n).zip(x.par_chunks(n)).for_each(|(out, x)| by_sources(&sources, x, out));
    out
}

/// Where each value of `f(X^g)` stands in `f`, NTT domain: index `i` holds the value at `psi^(2 brv(i) + 1)`.
pub(super) fn ntt_sources(n: usize, g: usize) -> Vec<u32> {
    let log_n = n.trailing_zeros();
    let brv = |i: usize| i.reverse_bits() >> (usize::BITS - log_n);
    (0..n).map(|i| brv((((2 * brv(i) + 1) * g) & (2 * n - 1)) >> 1) as u32).collect()
}

/// `out[i] = x[sources[i]]`.
pub(super) fn by_sources(sources: &[u32], x: &[u32], out: &mut [u32]) {
    for (out, &source) in out.iter_mut().zip(sources) {
        *out = x[source as usize];
    }
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

/// Weight polynomials of `coefficient` packing, coefficient domain; layouts as in
/// [`crate::engine::Backend::expand_matrix`], sizes checked.
pub(super) fn expand_matrix(ring: &RnsRing, weights: &[u32], shape: &ExpandShape) -> Vec<u32> {
    let (n, limbs) = (ring.n(), shape.limbs);
    let mut out = vec![0; shape.outputs.len() * shape.inputs.len() * limbs * n];
    out.par_chunks_mut(limbs * n).enumerate().for_each(|(poly, out)| {
        let group = shape.outputs.start + poly / shape.inputs.len();
        let first = (shape.inputs.start + poly % shape.inputs.len()) * shape.block;
        for j in 0..shape.block.min(shape.inner.saturating_sub(first)) {
            let columns = group * shape.columns..shape.cols.min((group + 1) * shape.columns);
            for (o, column) in columns.enumerate() {
                let weight = small(weights, (first + j) * shape.cols + column);
                for (limb, modulus) in ring.moduli()[..limbs].iter().enumerate() {
                    out[limb * n + o * shape.block + j] = modulus.from_i64(weight as i64);
                }
            }
        }
    });
    out
}

/// Items of `sources` in a new order, absent ones zero; sizes checked.
pub(super) fn gather(sources: &[&[u32]], item_words: usize, items: &[GatherItem]) -> Vec<u32> {
    let mut out = vec![0; items.len() * item_words];
    if item_words > 0 {
        out.par_chunks_mut(item_words).zip(items).for_each(|(out, item)| {
            if let Some((source, index)) = *item {
                out.copy_from_slice(&sources[source][index * item_words..][..item_words]);
            }
        });
    }
    out
}
