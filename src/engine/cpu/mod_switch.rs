//! Dropping limbs with exact rounding.

use rayon::prelude::*;

use super::{
    lane_residue::LaneModulus,
    lanes::{Lanes, WithLanes, with_widest},
    pool::{Pool, Words},
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

/// Dropping limb `dropped` on the residues modulo `kept`.
pub(super) struct DropLimb {
    dropped: Modulus,
    kept: Modulus,
    /// `p^-1 mod m`, `p` dropped and `m` kept.
    inverse: u32,
}

impl DropLimb {
    pub(super) fn new(dropped: Modulus, kept: Modulus) -> Self {
        Self { dropped, kept, inverse: kept.inv(kept.reduce(dropped.value() as u64)) }
    }

    /// `kept = (kept - [rest]_p) / p mod m`, with `[rest]_p` centred in `(-p/2, p/2)`; coefficient domain.
    pub(super) fn apply(&self, rest: &[u32], kept: &mut [u32]) {
        with_widest(kept.len(), Drop { limb: self, rest, kept });
    }
}

struct Drop<'a> {
    limb: &'a DropLimb,
    rest: &'a [u32],
    kept: &'a mut [u32],
}

impl WithLanes for Drop<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let DropLimb { dropped, kept, inverse } = *self.limb;
        let m = LaneModulus::new(lanes, kept);
        let half = (dropped.value() - 1) / 2;
        let (p, shift) = (lanes.splat(dropped.value()), lanes.splat(half));
        // m + (p-1)/2 mod m: undoes `half` and keeps differences positive.
        let offset = lanes.splat(kept.value() + kept.reduce(half as u64));
        let inverse = m.factor(kept, inverse);
        let rest = bytemuck::cast_slice::<_, L::Words>(self.rest);
        for (kept, rest) in bytemuck::cast_slice_mut::<_, L::Words>(self.kept).iter_mut().zip(rest) {
            // [rest]_p = shifted - half, so that both signs are reduced modulo m alike.
            let shifted = m.reduce_once(lanes.add(lanes.load(rest), shift), p);
            let difference = lanes.sub(lanes.add(lanes.load(kept), offset), m.word(shifted));
            lanes.store(kept, m.mul_factor(difference, inverse));
        }
    }
}
