//! The hybrid key switch: decompose, inner product, mod-down.

use rayon::prelude::*;

use super::{
    inner_product::{self, Term},
    mod_switch::DropLimb,
    ntt::CpuNtt,
    residue::{Reducer, reduce_once},
    simd,
};
use crate::{arith::Modulus, engine::RnsRing};

/// `x` is `[polys][limbs][N]`, the result `[polys][2][limbs][N]`; see [`crate::engine::Backend::key_switch`]. Sizes checked.
pub(super) fn key_switch(ring: &RnsRing, ntts: &[Box<dyn CpuNtt>], x: &[u32], polys: usize, key: &[u32]) -> Vec<u32> {
    let (n, limbs) = (ring.n(), ring.moduli().len() - 1);
    let mut out = vec![0; polys * 2 * limbs * n];
    out.par_chunks_mut(2 * limbs * n).zip(x.par_chunks(limbs * n)).for_each(|(out, x)| {
        // [limbs + 1][2][N], the inner products in the coefficient domain.
        let mut wide = vec![0; (limbs + 1) * 2 * n];
        wide.par_chunks_mut(2 * n).enumerate().for_each_init(
            || vec![0; limbs * n],
            |digits, (limb, wide)| digit_products(ring, ntts, limb, x, key, digits, wide),
        );
        let (data, special) = wide.split_at_mut(limbs * 2 * n);
        mod_down(ring, data, special, out);
    });
    out
}

/// `wide[part] = sum_i digit_i * key[i][part]` modulo limb `limb`, coefficient domain. `digits` is scratch, `[limbs][N]`.
fn digit_products(
    ring: &RnsRing,
    ntts: &[Box<dyn CpuNtt>],
    limb: usize,
    x: &[u32],
    key: &[u32],
    digits: &mut [u32],
    wide: &mut [u32],
) {
    let (n, all) = (ring.n(), ring.moduli().len());
    let to = ring.moduli()[limb];
    for ((digit, x), &from) in digits.chunks_mut(n).zip(x.chunks(n)).zip(ring.moduli()) {
        change_modulus(from, to, x, digit);
        ntts[limb].forward(digit);
    }
    let key_row = |i: usize, part: usize| &key[((i * 2 + part) * all + limb) * n..][..n];
    let terms: Vec<Term<'_>> = digits
        .chunks(n)
        .enumerate()
        .map(|(i, factor)| Term { factor, parts: [key_row(i, 0), key_row(i, 1)] })
        .collect();
    let (c0, c1) = wide.split_at_mut(n);
    inner_product::pair(to, [&mut *c0, &mut *c1], &terms);
    ntts[limb].inverse(c0);
    ntts[limb].inverse(c1);
}

/// Integers in `[0, from)` reduced modulo `to`.
fn change_modulus(from: Modulus, to: Modulus, x: &[u32], out: &mut [u32]) {
    if from.value() <= to.value() {
        out.copy_from_slice(x);
    } else if from.value() < 2 * to.value() {
        // Always so within one octave.
        simd::dispatch(
            #[inline(always)]
            || {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = reduce_once(x, to.value());
                }
            },
        );
    } else {
        let reducer = Reducer::new(to);
        simd::dispatch(
            #[inline(always)]
            || {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = reducer.word(x);
                }
            },
        );
    }
}

/// Divides `data` (`[limbs][2][N]`) by the special prime, whose residues are `special` (`[2][N]`), into `[2][limbs][N]`.
fn mod_down(ring: &RnsRing, data: &[u32], special: &[u32], out: &mut [u32]) {
    let (n, limbs) = (ring.n(), ring.moduli().len() - 1);
    out.par_chunks_mut(n).enumerate().with_min_len(4).for_each(|(row, out)| {
        let (part, limb) = (row / limbs, row % limbs);
        out.copy_from_slice(&data[(2 * limb + part) * n..][..n]);
        DropLimb::new(ring.moduli()[limbs], ring.moduli()[limb]).apply(&special[part * n..][..n], out);
    });
}
