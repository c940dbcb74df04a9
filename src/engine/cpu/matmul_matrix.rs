//! The product of ciphertexts and weight polynomials that are made on the way: expansion, transform and product of a few
//! hundred values at a time, which never leave the caches.
//!
//! Weight polynomials have degrees below `m K`, so that all but the last `log2 (m K)` stages of their transforms copy
//! ([`Twiddles::forward_low`]), and any aligned range of values can be had without the others.

use rayon::prelude::*;

use super::{
    inner_product::{self, Term},
    permute::{residues, weight_polynomial},
    plain_ntt::Twiddles,
    pool::{Pool, Words},
    simd,
};
use crate::engine::{ExpandShape, MatmulShape, RnsRing};

/// Transformed weights of one output that are held at a time, in words: what the first-level cache has.
const HELD: usize = 1 << 13;

/// Values of a task at least.
const LEAST: usize = 256;

/// The product as one of expanded weights.
pub(super) fn product(shape: &ExpandShape) -> MatmulShape {
    MatmulShape { groups: 1, inputs: shape.inputs.len(), outputs: shape.outputs.len(), limbs: shape.limbs }
}

/// Whether there are some, and the polynomials are short, but not too short for vectors.
pub(super) fn fits(ring: &RnsRing, shape: &ExpandShape) -> bool {
    let degree = shape.block.saturating_mul(shape.columns);
    let some = !shape.outputs.is_empty() && !shape.inputs.is_empty();
    some && degree.is_power_of_two() && (Twiddles::SHORTEST..ring.n()).contains(&degree)
}

/// Values `first ..` of one limb of all outputs, both parts of each.
struct Task<'a> {
    limb: usize,
    first: usize,
    out: Vec<&'a mut [u32]>,
}

/// As [`crate::engine::Backend::matmul_matrix`], where [`fits`] and sizes have been checked.
pub(super) fn matmul_matrix(
    ring: &RnsRing,
    pool: &Pool,
    tables: &[&Twiddles],
    ct: &[u32],
    weights: &[u32],
    shape: &ExpandShape,
) -> Words {
    let MatmulShape { inputs, outputs, limbs, .. } = product(shape);
    let (n, degree) = (ring.n(), shape.block * shape.columns);
    let polys = outputs * inputs;
    // [limbs][outputs][inputs][degree].
    let mut low = pool.take(limbs * polys * degree);
    let mut integers = vec![0i16; polys * degree];
    integers.par_chunks_mut(degree).enumerate().for_each(|(poly, out)| weight_polynomial(weights, shape, poly, out));
    low.par_chunks_mut(polys * degree).zip(ring.moduli()).for_each(|(out, &modulus)| {
        simd::dispatch(
            #[inline(always)]
            || residues(modulus, &integers, out),
        );
    });

    let width = (HELD / inputs.max(1)).max(1).next_power_of_two().max(LEAST).max(degree).min(n);
    let parts = n / width;
    let mut out = pool.take(outputs * 2 * limbs * n);
    let task =
        |index: usize| Task { limb: index / parts, first: index % parts * width, out: Vec::with_capacity(2 * outputs) };
    let mut tasks: Vec<Task<'_>> = (0..limbs * parts).map(task).collect();
    for (index, slice) in out.chunks_mut(width).enumerate() {
        tasks[index % (limbs * parts)].out.push(slice);
    }
    tasks.into_par_iter().for_each_init(
        || vec![0; inputs * width],
        |plain, Task { limb, first, mut out }| {
            let low = &low[limb * polys * degree..][..polys * degree];
            for (low, out) in low.chunks(inputs * degree).zip(out.chunks_mut(2)) {
                for (low, plain) in low.chunks(degree).zip(plain.chunks_mut(width)) {
                    tables[limb].forward_low(low, first, plain);
                }
                let term = |(input, factor)| {
                    let part = |part: usize| &ct[((input * 2 + part) * limbs + limb) * n + first..][..width];
                    Term { factor, parts: [part(0), part(1)] }
                };
                let terms: Vec<Term<'_>> = plain.chunks(width).enumerate().map(term).collect();
                if let [c0, c1] = out {
                    inner_product::pair(ring.moduli()[limb], [&mut **c0, &mut **c1], &terms);
                }
            }
        },
    );
    out
}
