//! Operations that move coefficients: automorphisms, one level of output packing, expansion of sparse polynomials, gathering.

use rayon::prelude::*;

use super::{
    gemm::small,
    lanes::{Lanes, WithLanes, with_widest},
    pool::{Pool, Words},
    residue::{add, sub},
    simd,
};
use crate::{
    arith::Modulus,
    engine::{ExpandShape, GatherItem, RnsRing, Shape},
};

/// `f(X) -> f(X^g)` on every row of N coefficients; `g` odd below 2N.
pub(super) fn automorphism(ring: &RnsRing, pool: &Pool, x: &[u32], limbs: usize, g: usize) -> Words {
    let n = ring.n();
    let inverse = odd_inverse(g);
    let mut out = pool.take(x.len());
    out.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(row, (out, x))| {
        substitute(x, inverse, ring.moduli()[row % limbs].value(), out, |_, c| c);
    });
    out
}

/// `out += f(X^g)` on rows of N coefficients, row `r` modulo limb `r`.
pub(super) fn add_automorphism(ring: &RnsRing, x: &[u32], g: usize, out: &mut [u32]) {
    let n = ring.n();
    let inverse = odd_inverse(g);
    for ((out, x), modulus) in out.chunks_mut(n).zip(x.chunks(n)).zip(ring.moduli()) {
        let p = modulus.value();
        substitute(x, inverse, p, out, |out, c| add(out, c, p));
    }
}

/// `out[j] = f(out[j], c)`, `c` the coefficient of `X^j` in `x(X^g)` and `inverse` that of `g` modulo 2N.
fn substitute(x: &[u32], inverse: usize, p: u32, out: &mut [u32], f: impl Fn(u32, u32) -> u32) {
    let n = x.len();
    for (j, out) in out.iter_mut().enumerate() {
        let from = j.wrapping_mul(inverse) & (2 * n - 1);
        let c = x[from & (n - 1)];
        // Coefficient j comes from X^from with from in [N, 2N) where that is -X^(from - N) already.
        *out = f(*out, if from < n { c } else { sub(0, c, p) });
    }
}

/// The inverse of an odd number modulo every power of two that a word holds (Newton's iteration).
fn odd_inverse(g: usize) -> usize {
    (0..6).fold(g, |inverse, _| inverse.wrapping_mul(2usize.wrapping_sub(g.wrapping_mul(inverse))))
}

/// `f(X) -> f(X^g)` on every row of N values in the NTT domain.
pub(super) fn automorphism_ntt(ring: &RnsRing, pool: &Pool, x: &[u32], g: usize) -> Words {
    let n = ring.n();
    let sources = ntt_sources(n, g);
    let mut out = pool.take(x.len());
    out.par_chunks_mut(n).zip(x.par_chunks(n)).for_each(|(out, x)| by_sources(&sources, x, out));
    out
}

/// Where each value of `f(X^g)` stands in `f`, NTT domain: index `i` holds the value at `psi^(2 brv(i) + 1)`.
///
/// The values of an aligned block of `2^b` indices stand in one aligned block too: their exponents `2 brv(i) + 1` agree in
/// all but the `b` highest bits, and so do their products with `g`. Within the block the order depends on these `b` bits of
/// the first product only, so that it comes from a table.
pub(super) fn ntt_sources(n: usize, g: usize) -> Vec<u32> {
    /// Indices of a block.
    const BLOCK: usize = 8;
    let (log_n, high) = (n.trailing_zeros(), n / BLOCK);
    let brv = |i: usize, bits: u32| i.reverse_bits() >> (usize::BITS - bits);
    let log_block = BLOCK.trailing_zeros();
    let orders: [[u32; BLOCK]; BLOCK] = std::array::from_fn(|first| {
        std::array::from_fn(|i| brv((first + brv(i, log_block) * g) % BLOCK, log_block) as u32)
    });
    let mut sources = vec![0; n];
    for (block, sources) in sources.chunks_exact_mut(BLOCK).enumerate() {
        let exponent = (((2 * brv(block * BLOCK, log_n) + 1) * g) & (2 * n - 1)) >> 1;
        let base = (brv(exponent, log_n) & !(BLOCK - 1)) as u32;
        for (source, order) in sources.iter_mut().zip(orders[exponent / high]) {
            *source = base + order;
        }
    }
    sources
}

/// `out[i] = x[sources[i]]`, `sources` by [`ntt_sources`].
pub(super) fn by_sources(sources: &[u32], x: &[u32], out: &mut [u32]) {
    with_widest(out.len(), BySources { sources, x, out });
}

struct BySources<'a> {
    sources: &'a [u32],
    x: &'a [u32],
    out: &'a mut [u32],
}

impl WithLanes for BySources<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let x: &[L::Words] = bytemuck::cast_slice(self.x);
        let sources = self.sources.chunks_exact(L::WIDTH);
        for (out, sources) in bytemuck::cast_slice_mut::<u32, L::Words>(self.out).iter_mut().zip(sources) {
            // A vector comes from one vector: see `ntt_sources`.
            let from = lanes.load(&x[sources[0] as usize / L::WIDTH]);
            lanes.store(out, lanes.permute(from, lanes.repeat(sources, L::LOG_WIDTH)));
        }
    }
}

/// `(E + X^shift O, E - X^shift O)` with `E` the first and `O` the second half of the batch; `shift < N`.
pub(super) fn pack_step(ring: &RnsRing, pool: &Pool, x: &[u32], shape: Shape, shift: usize) -> (Words, Words) {
    let n = ring.n();
    let (even, odd) = x.split_at(x.len() / 2);
    let (mut sum, mut difference) = (pool.take(even.len()), pool.take(even.len()));
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
pub(super) fn expand(ring: &RnsRing, pool: &Pool, limbs: usize, values: &[i64], positions: &[u32]) -> Words {
    let n = ring.n();
    let all = positions.len() == n && positions.iter().zip(0..).all(|(&at, i)| at == i);
    let words = values.len() / positions.len() * limbs * n;
    let mut out = if all { pool.take(words) } else { pool.zeros(words) };
    out.par_chunks_mut(limbs * n).zip(values.par_chunks(positions.len())).for_each(|(out, values)| {
        for (out, &modulus) in out.chunks_mut(n).zip(ring.moduli()) {
            if all {
                simd::dispatch(
                    #[inline(always)]
                    || wide_residues(modulus, values, out),
                );
            } else {
                for (&value, &at) in values.iter().zip(positions) {
                    out[at as usize] = modulus.from_i64(value);
                }
            }
        }
    });
    out
}

/// Residues of 64-bit integers.
///
/// The quotient comes from floating point, as compilers vectorise that: it has a relative error of 2^-51 and at most 37 bits for
/// moduli from 26 bits up, so that it is at most one off.
#[inline(always)]
pub(super) fn wide_residues(modulus: Modulus, values: &[i64], out: &mut [u32]) {
    let p = i64::from(modulus.value());
    if p < 1 << 26 {
        out.iter_mut().zip(values).for_each(|(out, &x)| *out = modulus.from_i64(x));
        return;
    }
    if values.iter().fold(0, |bits, &x| bits | (x ^ x >> 63)) < 1 << 26 {
        for (out, &x) in out.iter_mut().zip(values) {
            // As in [`residues`].
            let x = x as u32;
            *out = x.min(x.wrapping_add(p as u32));
        }
        return;
    }
    let inverse = 1.0 / p as f64;
    for (out, &x) in out.iter_mut().zip(values) {
        let quotient = (x as f64 * inverse).floor() as i64;
        let r = x.wrapping_sub(quotient.wrapping_mul(p));
        let r = if r < 0 { r + p } else { r };
        *out = if r >= p { r - p } else { r } as u32;
    }
}

/// Weight polynomials of `coefficient` packing, coefficient domain; layouts as in
/// [`crate::engine::Backend::expand_matrix`], sizes checked.
pub(super) fn expand_matrix(ring: &RnsRing, pool: &Pool, weights: &[u32], shape: &ExpandShape) -> Words {
    let (n, limbs) = (ring.n(), shape.limbs);
    let mut out = pool.take(shape.outputs.len() * shape.inputs.len() * limbs * n);
    out.par_chunks_mut(limbs * n).enumerate().for_each_init(
        || vec![0i16; n],
        |integers, (poly, out)| {
            weight_polynomial(weights, shape, poly, integers);
            for (out, &modulus) in out.chunks_mut(n).zip(ring.moduli()) {
                simd::dispatch(
                    #[inline(always)]
                    || residues(modulus, integers, out),
                );
            }
        },
    );
    out
}

/// Coefficients of weight polynomial number `poly` of `[outputs][inputs]`, `m K` or more of them.
pub(super) fn weight_polynomial(weights: &[u32], shape: &ExpandShape, poly: usize, integers: &mut [i16]) {
    let group = shape.outputs.start + poly / shape.inputs.len();
    let first = (shape.inputs.start + poly % shape.inputs.len()) * shape.block;
    integers.fill(0);
    for j in 0..shape.block.min(shape.inner.saturating_sub(first)) {
        let columns = group * shape.columns..shape.cols.min((group + 1) * shape.columns);
        for (o, column) in columns.enumerate() {
            integers[o * shape.block + j] = small(weights, (first + j) * shape.cols + column);
        }
    }
}

/// Residues of 16-bit integers.
#[inline(always)]
pub(super) fn residues(modulus: Modulus, integers: &[i16], out: &mut [u32]) {
    let p = modulus.value();
    if p > 1 << 15 {
        for (out, &x) in out.iter_mut().zip(integers) {
            // A negative one is a large word, which the sum with p wraps past zero.
            let x = x as u32;
            *out = x.min(x.wrapping_add(p));
        }
    } else {
        for (out, &x) in out.iter_mut().zip(integers) {
            *out = modulus.from_i64(x as i64);
        }
    }
}

/// Items of `sources` in a new order, absent ones zero; sizes checked.
pub(super) fn gather(pool: &Pool, sources: &[&[u32]], item_words: usize, items: &[GatherItem]) -> Words {
    let mut out = pool.take(items.len() * item_words);
    if item_words > 0 {
        out.par_chunks_mut(item_words).zip(items).for_each(|(out, item)| match *item {
            Some((source, index)) => out.copy_from_slice(&sources[source][index * item_words..][..item_words]),
            None => out.fill(0),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wide_residues_are_residues(p in prop_oneof![Just((1u32 << 30) - 1), Just((1 << 26) + 15), Just(7681)], seed: i64, near in -3i64..3) {
            let modulus = Modulus::new(p).unwrap();
            let multiple = seed / p as i64 * p as i64;
            let values = [0, 1, -1, i64::MAX, i64::MIN, seed, -(seed >> 1), multiple.saturating_add(near), multiple >> 30];
            for shift in [0, 37] {
                let (values, mut out) = (values.map(|x| x >> shift), [0; 9]);
                simd::dispatch(
                    #[inline(always)]
                    || wide_residues(modulus, &values, &mut out),
                );
                prop_assert_eq!(out, values.map(|x| modulus.from_i64(x)));
            }
        }
    }

    #[test]
    fn ntt_sources_are_the_definition_and_stay_in_vectors() {
        for log_n in [3, 4, 5, 6, 10] {
            let n = 1 << log_n;
            let brv = |i: usize| i.reverse_bits() >> (usize::BITS - log_n);
            for g in (1..2 * n).step_by(2) {
                let sources = ntt_sources(n, g);
                for i in 0..n {
                    assert_eq!(sources[i] as usize, brv(((2 * brv(i) + 1) * g % (2 * n)) / 2), "N = {n}, g = {g}, {i}");
                }
                let x: Vec<u32> = (0..n as u32).map(|i| i * 7 + 1).collect();
                let mut out = vec![0; n];
                by_sources(&sources, &x, &mut out);
                assert!(out.iter().zip(&sources).all(|(&y, &from)| y == x[from as usize]), "N = {n}, g = {g}");
            }
        }
    }
}
