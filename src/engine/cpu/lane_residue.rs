//! Arithmetic modulo one prime below `2^30` on vectors: what every kernel that multiplies is made of.

use bytemuck::{cast_slice, cast_slice_mut};

use super::lanes::{Lanes, WithLanes, with_widest};
use crate::arith::Modulus;

/// One modulus on the vectors of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct LaneModulus<L: Lanes> {
    pub lanes: L,
    pub p: L::Vector,
    pub two_p: L::Vector,
    /// `floor(2^32 / p)`, the Shoup companion of 1.
    one_shoup: L::Vector,
    /// `2^32 mod p`.
    high: Factor<L>,
}

/// A constant and its Shoup companion `floor(w * 2^32 / p)`.
pub(super) type Factor<L> = (<L as Lanes>::Vector, <L as Lanes>::Vector);

impl<L: Lanes> LaneModulus<L> {
    #[inline(always)]
    pub(super) fn new(lanes: L, modulus: Modulus) -> Self {
        let p = modulus.value();
        let high = modulus.reduce(1 << 32);
        Self {
            lanes,
            p: lanes.splat(p),
            two_p: lanes.splat(2 * p),
            one_shoup: lanes.splat(modulus.shoup(1)),
            high: (lanes.splat(high), lanes.splat(modulus.shoup(high))),
        }
    }

    /// `w` in every lane.
    #[inline(always)]
    pub(super) fn factor(self, modulus: Modulus, w: u32) -> Factor<L> {
        (self.lanes.splat(w), self.lanes.splat(modulus.shoup(w)))
    }

    /// From `[0, 2m)` to `[0, m)`: a negative difference wraps to a large word.
    #[inline(always)]
    pub(super) fn reduce_once(self, x: L::Vector, m: L::Vector) -> L::Vector {
        self.lanes.min(x, self.lanes.sub(x, m))
    }

    /// `a + b` of canonical residues.
    #[inline(always)]
    pub(super) fn add(self, a: L::Vector, b: L::Vector) -> L::Vector {
        self.reduce_once(self.lanes.add(a, b), self.p)
    }

    /// `a - b` of canonical residues.
    #[inline(always)]
    pub(super) fn sub(self, a: L::Vector, b: L::Vector) -> L::Vector {
        let difference = self.lanes.sub(a, b);
        self.lanes.min(difference, self.lanes.add(difference, self.p))
    }

    /// `a w` in `[0, 2p)` for any words `a`, one factor for all.
    #[inline(always)]
    pub(super) fn mul_lazy(self, a: L::Vector, (w, shoup): Factor<L>) -> L::Vector {
        let q = self.lanes.mul_high_by_pairs(a, shoup);
        self.lanes.sub(self.lanes.mul_low(a, w), self.lanes.mul_low(q, self.p))
    }

    /// [`Self::mul_lazy`] with a factor a lane.
    #[inline(always)]
    pub(super) fn mul_lazy_each(self, a: L::Vector, (w, shoup): Factor<L>) -> L::Vector {
        let q = self.lanes.mul_high(a, shoup);
        self.lanes.sub(self.lanes.mul_low(a, w), self.lanes.mul_low(q, self.p))
    }

    /// `a w`, canonical, for any words `a`.
    #[inline(always)]
    pub(super) fn mul_factor(self, a: L::Vector, factor: Factor<L>) -> L::Vector {
        self.reduce_once(self.mul_lazy(a, factor), self.p)
    }

    /// Any words, reduced.
    #[inline(always)]
    pub(super) fn word(self, x: L::Vector) -> L::Vector {
        self.reduce_once(self.word_lazy(x), self.p)
    }

    #[inline(always)]
    fn word_lazy(self, x: L::Vector) -> L::Vector {
        let q = self.lanes.mul_high_by_pairs(x, self.one_shoup);
        self.lanes.sub(x, self.lanes.mul_low(q, self.p))
    }

    /// Any 64-bit integers, given by their words, reduced.
    #[inline(always)]
    pub(super) fn wide(self, low: L::Vector, high: L::Vector) -> L::Vector {
        // Two residues below 2p: 4p < 2^32.
        let sum = self.lanes.add(self.word_lazy(low), self.mul_lazy(high, self.high));
        self.reduce_once(self.reduce_once(sum, self.two_p), self.p)
    }

    /// `a b` of canonical residues.
    #[inline(always)]
    pub(super) fn mul(self, a: L::Vector, b: L::Vector) -> L::Vector {
        let (even, odd) = (self.lanes.mul_even(a, b), self.lanes.mul_even(self.lanes.odd(a), self.lanes.odd(b)));
        self.wide(self.lanes.join_low(even, odd), self.lanes.join_high(even, odd))
    }
}

/// `out = a b`.
pub(super) fn mul_rows(modulus: Modulus, out: &mut [u32], a: &[u32], b: &[u32]) {
    with_widest(out.len(), Mul { modulus, out, a, b, acc: None });
}

/// `out = acc + a b`.
pub(super) fn mul_add_rows(modulus: Modulus, out: &mut [u32], acc: &[u32], a: &[u32], b: &[u32]) {
    with_widest(out.len(), Mul { modulus, out, a, b, acc: Some(acc) });
}

struct Mul<'a> {
    modulus: Modulus,
    out: &'a mut [u32],
    a: &'a [u32],
    b: &'a [u32],
    acc: Option<&'a [u32]>,
}

impl WithLanes for Mul<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let m = LaneModulus::new(lanes, self.modulus);
        let (a, b) = (cast_slice::<_, L::Words>(self.a), cast_slice::<_, L::Words>(self.b));
        let rows = cast_slice_mut::<_, L::Words>(self.out).iter_mut().zip(a).zip(b);
        match self.acc.map(cast_slice::<_, L::Words>) {
            None => {
                for ((out, a), b) in rows {
                    lanes.store(out, m.mul(lanes.load(a), lanes.load(b)));
                }
            }
            Some(acc) => {
                for (((out, a), b), acc) in rows.zip(acc) {
                    lanes.store(out, m.add(lanes.load(acc), m.mul(lanes.load(a), lanes.load(b))));
                }
            }
        }
    }
}

/// `x = x w`.
pub(super) fn scale_row(modulus: Modulus, w: u32, x: &mut [u32]) {
    with_widest(x.len(), Scale { modulus, w, x });
}

struct Scale<'a> {
    modulus: Modulus,
    w: u32,
    x: &'a mut [u32],
}

impl WithLanes for Scale<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let m = LaneModulus::new(lanes, self.modulus);
        let factor = m.factor(self.modulus, self.w);
        for x in cast_slice_mut::<_, L::Words>(self.x) {
            lanes.store(x, m.mul_factor(lanes.load(x), factor));
        }
    }
}

/// `x mod p` for any words.
pub(super) fn reduce_row(modulus: Modulus, out: &mut [u32], x: &[u32]) {
    with_widest(out.len(), Reduce { modulus, out, x });
}

struct Reduce<'a> {
    modulus: Modulus,
    out: &'a mut [u32],
    x: &'a [u32],
}

impl WithLanes for Reduce<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let m = LaneModulus::new(lanes, self.modulus);
        for (out, x) in cast_slice_mut::<_, L::Words>(self.out).iter_mut().zip(cast_slice::<_, L::Words>(self.x)) {
            lanes.store(out, m.word(lanes.load(x)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_compute_modulo_the_prime(bits in 14u32..=30, words: [u32; 16], other: [u32; 16]) {
            let m = Modulus::new(ntt_primes(bits, 8, 1).unwrap()[0]).unwrap();
            let p = m.value();
            // Uniform residues, with the edges among them.
            let residues = |words: [u32; 16]| words.map(|w| [w % p, 0, p - 1, w % p][w as usize >> 16 & 3]);
            let (a, b) = (residues(words), residues(other));
            for len in [16, 8, 4] {
                let (a, b, words) = (&a[..len], &b[..len], &words[..len]);
                let mut out = vec![0; len];
                mul_rows(m, &mut out, a, b);
                prop_assert!(out.iter().zip(a.iter().zip(b)).all(|(&c, (&a, &b))| c == m.mul(a, b)));
                mul_add_rows(m, &mut out, b, a, a);
                prop_assert!(out.iter().zip(a.iter().zip(b)).all(|(&c, (&a, &b))| c == m.add(b, m.mul(a, a))));
                out.copy_from_slice(words);
                scale_row(m, b[0], &mut out);
                prop_assert!(out.iter().zip(words).all(|(&c, &w)| c == m.mul(w % p, b[0])));
                reduce_row(m, &mut out, words);
                prop_assert!(out.iter().zip(words).all(|(&c, &w)| c == w % p));
            }
        }
    }
}
