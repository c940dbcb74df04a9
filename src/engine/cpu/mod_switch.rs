//! Dropping limbs with exact rounding.

use rayon::prelude::*;

use super::{
    pool::{Pool, Words},
    residue::{Reducer, mul_shoup, reduce_once},
    simd,
};
use crate::{
    arith::Modulus,
    engine::{RnsRing, Shape},
};

/// Drops limbs `target..shape.limbs`, last one first; sizes checked.
pub(super) fn mod_switch(ring: &RnsRing, pool: &Pool, x: &[u32], shape: Shape, target: usize) -> Words {
    let n = ring.n();
    let mut out = pool.take(shape.polys * target * n);
    out.par_chunks_mut(target * n).zip(x.par_chunks(shape.limbs * n)).for_each(|(out, x)| {
        let mut scratch = pool.take(x.len());
        scratch.copy_from_slice(x);
        let x = &mut *scratch;
        for dropped in (target..shape.limbs).rev() {
            let (kept, rest) = x.split_at_mut(dropped * n);
            kept.par_chunks_mut(n).enumerate().with_min_len(4).for_each(|(limb, kept)| {
                DropLimb::new(ring.moduli()[dropped], ring.moduli()[limb]).apply(&rest[..n], kept);
            });
        }
        out.copy_from_slice(&x[..target * n]);
    });
    out
}

/// Constants of dropping limb `p` (`dropped`) on the residues modulo `m` (`kept`).
pub(super) struct DropLimb {
    dropped: u32,
    /// `(p-1)/2`.
    half: u32,
    reducer: Reducer,
    kept: u32,
    /// `m + (p-1)/2 mod m`, the offset that undoes `half` and keeps differences positive.
    offset: u32,
    /// `p^-1 mod m` and its Shoup companion.
    inverse: (u32, u32),
}

impl DropLimb {
    pub(super) fn new(dropped: Modulus, kept: Modulus) -> Self {
        let half = (dropped.value() - 1) / 2;
        let inverse = kept.inv(kept.reduce(dropped.value() as u64));
        Self {
            dropped: dropped.value(),
            half,
            reducer: Reducer::new(kept),
            kept: kept.value(),
            offset: kept.value() + kept.reduce(half as u64),
            inverse: (inverse, kept.shoup(inverse)),
        }
    }

    /// `kept = (kept - [rest]_p) / p mod m`, with `[rest]_p` centred in `(-p/2, p/2)`; coefficient domain.
    pub(super) fn apply(&self, rest: &[u32], kept: &mut [u32]) {
        simd::dispatch(
            #[inline(always)]
            || {
                for (kept, &rest) in kept.iter_mut().zip(rest) {
                    // [rest]_p = shifted - half, so that both signs are reduced modulo m alike.
                    let shifted = reduce_once(rest.wrapping_add(self.half), self.dropped);
                    let difference = kept.wrapping_add(self.offset).wrapping_sub(self.reducer.word(shifted));
                    *kept = mul_shoup(difference, self.inverse.0, self.inverse.1, self.kept);
                }
            },
        );
    }
}
