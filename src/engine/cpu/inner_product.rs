//! Sums of products with one reduction: what matrix products and key switches spend their time on.

use bytemuck::{cast_slice, cast_slice_mut};

use super::{
    lane_residue::LaneModulus,
    lanes::{Lanes, WithLanes, with_widest},
};
use crate::arith::Modulus;

/// One term of [`pair`]: a common factor and the two that it multiplies, rows of N residues.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    /// The common factor.
    pub factor: &'a [u32],
    /// What it multiplies, for each of the two sums.
    pub parts: [&'a [u32]; 2],
}

/// Terms between two reductions: as many products below `2^60` as 64 bits hold.
const EXACT: usize = 16;

/// `out[part][c] = sum over terms of factor[c] * parts[part][c] mod p`.
pub(super) fn pair(modulus: Modulus, out: [&mut [u32]; 2], terms: &[Term<'_>]) {
    if terms.is_empty() {
        return out.into_iter().for_each(|out| out.fill(0));
    }
    with_widest(out[0].len(), Pair { modulus, out, terms });
}

struct Pair<'a> {
    modulus: Modulus,
    out: [&'a mut [u32]; 2],
    terms: &'a [Term<'a>],
}

impl WithLanes for Pair<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let m = LaneModulus::new(lanes, self.modulus);
        let [out0, out1] = self.out.map(cast_slice_mut::<u32, L::Words>);
        for (chunk, terms) in self.terms.chunks(EXACT).enumerate() {
            let terms: Vec<[&[L::Words]; 3]> =
                terms.iter().map(|t| [t.factor, t.parts[0], t.parts[1]].map(cast_slice)).collect();
            for (c, (out0, out1)) in out0.iter_mut().zip(out1.iter_mut()).enumerate() {
                // Per part, the sums at even and at odd places.
                let mut sums = [[lanes.splat(0); 2]; 2];
                for [factor, part0, part1] in &terms {
                    let even = lanes.load(&factor[c]);
                    let odd = lanes.odd(even);
                    let parts = [lanes.load(&part0[c]), lanes.load(&part1[c])];
                    for part in 0..2 {
                        sums[part] = [
                            lanes.add_wide(sums[part][0], lanes.mul_even(even, parts[part])),
                            lanes.add_wide(sums[part][1], lanes.mul_even(odd, lanes.odd(parts[part]))),
                        ];
                    }
                }
                let [[even0, odd0], [even1, odd1]] = sums;
                let sum0 = m.wide(lanes.join_low(even0, odd0), lanes.join_high(even0, odd0));
                let sum1 = m.wide(lanes.join_low(even1, odd1), lanes.join_high(even1, odd1));
                if chunk == 0 {
                    lanes.store(out0, sum0);
                    lanes.store(out1, sum1);
                } else {
                    lanes.store(out0, m.add(lanes.load(out0), sum0));
                    lanes.store(out1, m.add(lanes.load(out1), sum1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;

    #[test]
    fn sums_of_the_largest_products_do_not_overflow() {
        let m = Modulus::new(ntt_primes(30, 8, 1).unwrap()[0]).unwrap();
        let p = m.value();
        for count in [0, 1, 15, 16, 17, 33] {
            let rows: Vec<[Vec<u32>; 3]> = (0..count)
                .map(|t| [0, 1, 2].map(|k| (0..32).map(|c| p - 1 - (t * k * c) as u32).collect::<Vec<u32>>()))
                .collect();
            let terms: Vec<Term<'_>> =
                rows.iter().map(|[f, a, b]| Term { factor: f, parts: [a.as_slice(), b.as_slice()] }).collect();
            let (mut out0, mut out1) = (vec![1; 32], vec![1; 32]);
            pair(m, [&mut out0, &mut out1], &terms);
            for c in 0..32 {
                let sum = |k: usize| rows.iter().fold(0, |sum, row| m.add(sum, m.mul(row[0][c], row[k][c])));
                assert_eq!((out0[c], out1[c]), (sum(1), sum(2)), "{count} terms");
            }
        }
    }
}
