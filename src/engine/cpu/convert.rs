//! Base conversion between sets of limbs, in the fixed point that [`crate::engine::Backend::base_convert`] defines.

use std::ops::Range;

use rayon::prelude::*;

use super::pool::{Pool, Words};
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
        let (n, to) = (out.len(), self.to);
        for (c, out) in out.iter_mut().enumerate() {
            let (mut sum, mut fractions) = (0, 1u64 << 31);
            for (i, term) in self.terms.iter().enumerate() {
                let y = term.from.mul(x[i * n + c], term.inverse);
                fractions += (y as u64 * term.fraction as u64) >> term.shift;
                sum = to.add(sum, to.mul(to.reduce(y as u64), term.rest));
            }
            *out = to.sub(sum, to.mul(to.reduce(fractions >> 32), self.product));
        }
    }
}
