//! Residue arithmetic in a form that compilers vectorise: no 128-bit products, no branches.
//!
//! Everything here takes canonical residues of moduli below `2^30` unless it says otherwise. Wrapping forms are used
//! throughout so that words that are not canonical give wrong residues, never a panic.

use crate::arith::Modulus;

/// `a` or `a - m`, whichever is in `[0, m)`, for `a` in `[0, 2m)`.
#[inline(always)]
pub(super) fn reduce_once(a: u32, m: u32) -> u32 {
    // A negative difference wraps to a large word, so the minimum selects without a branch.
    a.min(a.wrapping_sub(m))
}

/// `a * w mod p` in `[0, 2p)` for any word `a` and a constant `w < p` with its Shoup companion `floor(w * 2^32 / p)`.
#[inline(always)]
pub(super) fn mul_shoup_lazy(a: u32, w: u32, shoup: u32, p: u32) -> u32 {
    let q = ((a as u64 * shoup as u64) >> 32) as u32;
    a.wrapping_mul(w).wrapping_sub(q.wrapping_mul(p))
}

/// `a + b mod p`.
#[inline(always)]
pub(super) fn add(a: u32, b: u32, p: u32) -> u32 {
    reduce_once(a.wrapping_add(b), p)
}

/// `a - b mod p`.
#[inline(always)]
pub(super) fn sub(a: u32, b: u32, p: u32) -> u32 {
    let difference = a.wrapping_sub(b);
    difference.min(difference.wrapping_add(p))
}

/// Reduction of 64-bit words modulo one limb by Shoup products with the constants 1 and `2^32`.
#[derive(Clone, Copy)]
pub(super) struct Reducer {
    p: u32,
    /// `floor(2^32 / p)`, the companion of 1.
    one_shoup: u32,
    /// `2^32 mod p`.
    high: u32,
    /// The companion of `high`.
    high_shoup: u32,
}

impl Reducer {
    /// Constants of `modulus`.
    pub(super) fn new(modulus: Modulus) -> Self {
        let high = modulus.reduce(1 << 32);
        Self { p: modulus.value(), one_shoup: modulus.shoup(1), high, high_shoup: modulus.shoup(high) }
    }

    /// Any 64-bit word to `[0, p)`.
    #[inline(always)]
    pub(super) fn wide(self, x: u64) -> u32 {
        let low = mul_shoup_lazy(x as u32, 1, self.one_shoup, self.p);
        let high = mul_shoup_lazy((x >> 32) as u32, self.high, self.high_shoup, self.p);
        // Two residues below 2p: 4p < 2^32.
        reduce_once(reduce_once(low.wrapping_add(high), self.p << 1), self.p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_reduce_to_the_remainder(x: u64, bits in 14u32..=30, a: u32, b: u32) {
            let p = ntt_primes(bits, 8, 1).unwrap()[0];
            let m = Modulus::new(p).unwrap();
            let r = Reducer::new(m);
            for x in [x, !(x & 0xffff), x & 0xffff, u64::MAX / p as u64 * p as u64 - (x & 1)] {
                prop_assert_eq!(r.wide(x) as u64, x % p as u64);
            }
            for (a, b) in [(a % p, b % p), (p - 1, b % p), (a % p, p - 1), (0, b % p), (p - 1, p - 1)] {
                prop_assert_eq!(add(a, b, p), m.add(a, b));
                prop_assert_eq!(sub(a, b, p), m.sub(a, b));
            }
        }
    }
}
