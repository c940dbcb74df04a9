//! Base conversion between sets of limbs, in the fixed point that [`crate::engine::Backend::base_convert`] defines.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    lane_residue::LaneModulus,
    lanes::{Lanes, WithLanes, with_widest},
    pool::{Pool, Words},
};
use crate::{arith::Modulus, engine::RnsRing};

/// `x`, `[polys][from.len()][N]`, to `[polys][to.len()][N]`; sizes checked.
pub(super) fn base_convert(ring: &RnsRing, pool: &Pool, x: &[u32], from: Range<usize>, to: Range<usize>) -> Words {
    let (n, moduli) = (ring.n(), ring.moduli());
    let mut out = pool.take(x.len() / from.len() * to.len());
    let targets: Vec<Conversion> =
        to.clone().map(|limb| Conversion::new(&moduli[from.clone()], moduli[limb])).collect();
    out.par_chunks_mut(to.len() * n).zip(x.par_chunks(from.len() * n)).for_each(|(out, x)| {
        for (target, out) in targets.iter().zip(out.chunks_mut(n)) {
            target.apply(x, out);
        }
    });
    out
}

/// Constants of a conversion from the limbs `q_i`, with product `Q`, to one limb `p`.
pub(super) struct Conversion {
    to: Modulus,
    terms: Vec<Term>,
    /// `Q mod p`.
    product: u32,
}

struct Term {
    from: Modulus,
    /// `(Q/q_i)^-1 mod q_i`.
    inverse: u32,
    /// `Q/q_i mod p`.
    rest: u32,
    /// `floor(2^(k + 31) / q_i)`, `k` the bits of `q_i`.
    fraction: u32,
    /// `k - 1`.
    shift: u32,
}

impl Conversion {
    pub(super) fn new(from: &[Modulus], to: Modulus) -> Self {
        let product_but = |skip: usize, m: Modulus| {
            let others = from.iter().enumerate().filter(|&(j, _)| j != skip);
            others.fold(m.reduce(1), |product, (_, q)| m.mul(product, m.reduce(q.value() as u64)))
        };
        let terms = from.iter().enumerate().map(|(i, &q)| {
            let bits = 32 - q.value().leading_zeros();
            Term {
                from: q,
                inverse: q.inv(product_but(i, q)),
                rest: product_but(i, to),
                fraction: ((1u64 << (bits + 31)) / q.value() as u64) as u32,
                shift: bits - 1,
            }
        });
        Self { to, terms: terms.collect(), product: product_but(usize::MAX, to) }
    }

    /// `x`, `[from limbs][N]`, to the residues `out`.
    pub(super) fn apply(&self, x: &[u32], out: &mut [u32]) {
        with_widest(out.len(), Apply { conversion: self, x, out });
    }
}

struct Apply<'a> {
    conversion: &'a Conversion,
    x: &'a [u32],
    out: &'a mut [u32],
}

impl WithLanes for Apply<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let Conversion { to, ref terms, product } = *self.conversion;
        let (n, m) = (self.out.len() / L::WIDTH, LaneModulus::new(lanes, to));
        let terms: Vec<_> = terms
            .iter()
            .map(
                #[inline(always)]
                |term| {
                    let from = LaneModulus::new(lanes, term.from);
                    let (inverse, rest) = (from.factor(term.from, term.inverse), m.factor(to, term.rest));
                    (from, inverse, rest, lanes.splat(term.fraction), term.shift)
                },
            )
            .collect();
        let product = m.factor(to, product);
        // 2^31 in every 64-bit word.
        let half = lanes.odd(lanes.splat(1 << 31));
        let x = bytemuck::cast_slice::<_, L::Words>(self.x);
        for (c, out) in bytemuck::cast_slice_mut::<_, L::Words>(self.out).iter_mut().enumerate() {
            let (mut sum, mut even, mut odd) = (lanes.splat(0), half, half);
            for (i, &(from, inverse, rest, fraction, shift)) in terms.iter().enumerate() {
                let y = from.mul_factor(lanes.load(&x[i * n + c]), inverse);
                even = lanes.add_wide(even, lanes.shift_wide(lanes.mul_even(y, fraction), shift));
                odd = lanes.add_wide(odd, lanes.shift_wide(lanes.mul_even(lanes.odd(y), fraction), shift));
                sum = m.reduce_once(lanes.add(sum, m.mul_lazy(y, rest)), m.two_p);
            }
            let overflow = m.mul_factor(lanes.join_high(even, odd), product);
            lanes.store(out, m.sub(m.reduce_once(sum, m.p), overflow));
        }
    }
}
