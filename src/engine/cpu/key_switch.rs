//! The hybrid key switch and batches of rotations: decompose, inner product, mod-down.

use rayon::prelude::*;

use super::{
    convert::Conversion,
    inner_product::{self, Term},
    lane_residue::reduce_row,
    mod_switch::DropLimb,
    ntt::CpuNtt,
    permute,
    pool::{Pool, Words},
};
use crate::{
    arith::Modulus,
    engine::{KeySwitchShape, RnsRing, Rotation},
};

/// A key switch of one ring: what its operations share.
pub(super) struct KeySwitch<'a> {
    pub ring: &'a RnsRing,
    pub ntts: &'a [Box<dyn CpuNtt>],
    pub shape: KeySwitchShape,
    pool: &'a Pool,
    /// Index into the ring's moduli of each row.
    rows: Vec<usize>,
}

impl<'a> KeySwitch<'a> {
    pub(super) fn new(ring: &'a RnsRing, ntts: &'a [Box<dyn CpuNtt>], shape: KeySwitchShape, pool: &'a Pool) -> Self {
        Self { ring, ntts, shape, pool, rows: shape.row_limbs(ring) }
    }

    /// `x` is `[polys][limbs][N]`, the result `[polys][2][limbs][N]`; see [`crate::engine::Backend::key_switch`].
    pub(super) fn run(&self, x: &[u32], key: &[u32]) -> Words {
        let (n, limbs, digits) = (self.ring.n(), self.shape.limbs, self.shape.digits());
        let mut out = self.pool.take(self.shape.polys * 2 * limbs * n);
        out.par_chunks_mut(2 * limbs * n).zip(x.par_chunks(limbs * n)).for_each(|(out, x)| {
            // [rows][2][N], the inner products in the coefficient domain.
            let mut wide = self.pool.take(self.rows.len() * 2 * n);
            wide.par_chunks_mut(2 * n).enumerate().for_each_init(
                || self.pool.take(digits * n),
                |decomposed, (row, wide)| {
                    self.decompose_row(row, x, decomposed);
                    self.inner_product(row, decomposed, key, wide);
                },
            );
            self.mod_down(&mut wide, out);
        });
        out
    }

    /// `x` is `[inputs][2][limbs][N]`, the result `[rotations][2][limbs][N]`; see [`crate::engine::Backend::rotate`].
    pub(super) fn rotate(&self, x: &[u32], keys: &[u32], rotations: &[Rotation]) -> Words {
        let (n, limbs, digits) = (self.ring.n(), self.shape.limbs, self.shape.digits());
        let ciphertext = 2 * limbs * n;
        let mut out = self.pool.take(rotations.len() * ciphertext);
        let mut order: Vec<usize> = (0..rotations.len()).collect();
        order.sort_by_key(|&r| rotations[r].input);
        let mut outs: Vec<_> = out.chunks_mut(ciphertext).map(Some).collect();
        // One decomposition, [rows][digits][N] in the NTT domain, at a time.
        for group in order.chunk_by(|&a, &b| rotations[a].input == rotations[b].input) {
            let x = &x[rotations[group[0]].input * ciphertext..][..ciphertext];
            let mut decomposed = self.pool.take(self.rows.len() * digits * n);
            decomposed
                .par_chunks_mut(digits * n)
                .enumerate()
                .for_each(|(row, out)| self.decompose_row(row, &x[limbs * n..], out));
            let tasks: Vec<_> = group.iter().filter_map(|&r| Some((rotations[r], outs[r].take()?))).collect();
            tasks.into_par_iter().for_each(|(Rotation { element, key, .. }, out)| {
                let key = &keys[key * self.shape.key_words(self.ring)..];
                let sources = permute::ntt_sources(n, element);
                let mut wide = self.pool.take(self.rows.len() * 2 * n);
                wide.par_chunks_mut(2 * n).enumerate().for_each_init(
                    || self.pool.take(digits * n),
                    |mapped, (row, wide)| {
                        let digits = decomposed[row * digits * n..][..digits * n].chunks(n);
                        mapped.chunks_mut(n).zip(digits).for_each(|(out, x)| permute::by_sources(&sources, x, out));
                        self.inner_product(row, mapped, key, wide);
                    },
                );
                self.mod_down(&mut wide, out);
                permute::add_automorphism(self.ring, &x[..limbs * n], element, &mut out[..limbs * n]);
            });
        }
        out
    }

    /// The digits of `x` (`[limbs][N]`, coefficient domain) modulo row `row`, `[digits][N]` in the NTT domain.
    fn decompose_row(&self, row: usize, x: &[u32], out: &mut [u32]) {
        let (n, limb) = (self.ring.n(), self.rows[row]);
        let (moduli, to) = (self.ring.moduli(), self.ring.moduli()[limb]);
        for (digit, out) in out.chunks_mut(n).enumerate() {
            let first = digit * self.shape.digit_limbs;
            let limbs = first..self.shape.limbs.min(first + self.shape.digit_limbs);
            if limbs.contains(&limb) {
                out.copy_from_slice(&x[limb * n..][..n]);
            } else if limbs.len() == 1 {
                change_modulus(moduli[first], to, &x[first * n..][..n], out);
            } else {
                Conversion::new(&moduli[limbs.clone()], to).apply(&x[limbs.start * n..limbs.end * n], out);
            }
            self.ntts[limb].forward(out);
        }
    }

    /// `wide[part] = sum_i digit_i * key[i][part]` modulo row `row`; `digits` in the NTT domain, `wide` in the coefficient
    /// domain.
    fn inner_product(&self, row: usize, digits: &[u32], key: &[u32], wide: &mut [u32]) {
        let (n, all, limb) = (self.ring.n(), self.ring.moduli().len(), self.rows[row]);
        let key_row = |i: usize, part: usize| &key[((i * 2 + part) * all + limb) * n..][..n];
        let terms: Vec<Term<'_>> = digits
            .chunks(n)
            .enumerate()
            .map(|(i, factor)| Term { factor, parts: [key_row(i, 0), key_row(i, 1)] })
            .collect();
        let (c0, c1) = wide.split_at_mut(n);
        inner_product::pair(self.ring.moduli()[limb], [&mut *c0, &mut *c1], &terms);
        self.ntts[limb].inverse(c0);
        self.ntts[limb].inverse(c1);
    }

    /// Drops the special primes of `wide` (`[rows][2][N]`, coefficient domain), last one first, into `[2][limbs][N]`.
    fn mod_down(&self, wide: &mut [u32], out: &mut [u32]) {
        let (n, limbs, moduli) = (self.ring.n(), self.shape.limbs, self.ring.moduli());
        for dropped in (limbs..self.rows.len()).rev() {
            let (kept, rest) = wide.split_at_mut(dropped * 2 * n);
            kept.par_chunks_mut(2 * n).enumerate().with_min_len(2).for_each(|(row, kept)| {
                DropLimb::new(moduli[self.rows[dropped]], moduli[self.rows[row]]).apply(&rest[..2 * n], kept);
            });
        }
        for (row, out) in out.chunks_mut(n).enumerate() {
            let (part, limb) = (row / limbs, row % limbs);
            out.copy_from_slice(&wide[(2 * limb + part) * n..][..n]);
        }
    }
}

/// Integers in `[0, from)` reduced modulo `to`.
fn change_modulus(from: Modulus, to: Modulus, x: &[u32], out: &mut [u32]) {
    if from.value() <= to.value() {
        out.copy_from_slice(x);
    } else {
        reduce_row(to, out, x);
    }
}
