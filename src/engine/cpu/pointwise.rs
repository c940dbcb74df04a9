//! Residue-wise sums, differences and products.

use rayon::prelude::*;

use super::{
    lane_residue::{mul_add_rows, mul_rows, scale_row},
    pool::{Pool, Words},
    residue, simd,
};
use crate::{arith::Modulus, engine::RnsRing};

/// Rows below which a task is not split: a row of additions takes about a microsecond.
const ROWS_A_TASK: usize = 4;

/// `a + b` on batches `[polys][limbs][N]`.
pub(super) fn add(ring: &RnsRing, pool: &Pool, limbs: usize, a: &[u32], b: &[u32]) -> Words {
    zip_rows(ring, pool, limbs, a, b, |m, out, a, b| {
        let p = m.value();
        simd::dispatch(
            #[inline(always)]
            || zip_words(out, a, b, |a, b| residue::add(a, b, p)),
        );
    })
}

/// `a - b` on batches `[polys][limbs][N]`.
pub(super) fn sub(ring: &RnsRing, pool: &Pool, limbs: usize, a: &[u32], b: &[u32]) -> Words {
    zip_rows(ring, pool, limbs, a, b, |m, out, a, b| {
        let p = m.value();
        simd::dispatch(
            #[inline(always)]
            || zip_words(out, a, b, |a, b| residue::sub(a, b, p)),
        );
    })
}

/// `a * b` on batches `[polys][limbs][N]`.
pub(super) fn mul(ring: &RnsRing, pool: &Pool, limbs: usize, a: &[u32], b: &[u32]) -> Words {
    zip_rows(ring, pool, limbs, a, b, mul_rows)
}

/// `acc + a * b` on batches `[polys][limbs][N]`.
pub(super) fn mul_accumulate(ring: &RnsRing, pool: &Pool, limbs: usize, acc: &[u32], a: &[u32], b: &[u32]) -> Words {
    let n = ring.n();
    let mut out = pool.take(a.len());
    let rows = out.par_chunks_mut(n).zip(acc.par_chunks(n)).zip(a.par_chunks(n)).zip(b.par_chunks(n));
    rows.enumerate()
        .with_min_len(ROWS_A_TASK)
        .for_each(|(row, (((out, acc), a), b))| mul_add_rows(ring.moduli()[row % limbs], out, acc, a, b));
    out
}

/// `x * scalars[limb]` on a batch `[polys][limbs][N]`, `limbs = scalars.len()`.
pub(super) fn mul_scalar(ring: &RnsRing, pool: &Pool, x: &[u32], scalars: &[u32]) -> Words {
    let n = ring.n();
    let mut out = pool.take(x.len());
    let rows = out.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().with_min_len(ROWS_A_TASK);
    rows.for_each(|(row, (out, x))| {
        let limb = row % scalars.len();
        out.copy_from_slice(x);
        scale_row(ring.moduli()[limb], scalars[limb], out);
    });
    out
}

/// `f(modulus, out, a, b)` on every row of N residues.
fn zip_rows(
    ring: &RnsRing,
    pool: &Pool,
    limbs: usize,
    a: &[u32],
    b: &[u32],
    f: impl Fn(Modulus, &mut [u32], &[u32], &[u32]) + Sync,
) -> Words {
    let n = ring.n();
    let mut out = pool.take(a.len());
    let rows = out.par_chunks_mut(n).zip(a.par_chunks(n)).zip(b.par_chunks(n));
    rows.enumerate()
        .with_min_len(ROWS_A_TASK)
        .for_each(|(row, ((out, a), b))| f(ring.moduli()[row % limbs], out, a, b));
    out
}

#[inline(always)]
fn zip_words(out: &mut [u32], a: &[u32], b: &[u32], f: impl Fn(u32, u32) -> u32) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = f(a, b);
    }
}
