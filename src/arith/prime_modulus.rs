//! Arithmetic modulo an odd prime of up to 62 bits, without branches on residues.

use serde::{Deserialize, Serialize};

use super::primes::is_prime64;

/// An odd prime `p < 2^62` with the constants of Barrett reduction. Residues are `u64` in `[0, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct PrimeModulus {
    p: u64,
    /// Bits of `p`.
    bits: u32,
    /// `floor((2^64 - 1) / p)`.
    word: u64,
    /// `floor(2^(2 bits) / p)`.
    product: u64,
}

impl PrimeModulus {
    /// Largest number of bits.
    pub const MAX_BITS: u32 = 62;

    /// Wraps an odd prime below `2^62`; `None` for any other number.
    pub fn new(p: u64) -> Option<Self> {
        if p < 3 || p >> Self::MAX_BITS != 0 || !is_prime64(p) {
            return None;
        }
        let bits = 64 - p.leading_zeros();
        Some(Self { p, bits, word: u64::MAX / p, product: ((1u128 << (2 * bits)) / p as u128) as u64 })
    }

    /// The prime.
    #[inline]
    pub const fn value(self) -> u64 {
        self.p
    }

    /// Bits of a residue.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// `x` in `[0, 2p)` to `[0, p)`.
    #[inline]
    const fn once(self, x: u64) -> u64 {
        let r = x.wrapping_sub(self.p);
        r.wrapping_add(self.p & ((r as i64) >> 63) as u64)
    }

    /// Reduces any unsigned 64-bit word.
    #[inline]
    pub const fn reduce(self, x: u64) -> u64 {
        // floor((2^64-1)/p) errs by less than one quotient, and the estimate by one more.
        let q = ((x as u128 * self.word as u128) >> 64) as u64;
        self.once(self.once(x.wrapping_sub(q.wrapping_mul(self.p))))
    }

    /// The residue of a signed integer.
    #[inline]
    pub const fn from_signed(self, x: i64) -> u64 {
        let r = self.reduce(x.unsigned_abs());
        r ^ ((r ^ self.sub(0, r)) & (x >> 63) as u64)
    }

    /// The representative in `[-(p-1)/2, (p-1)/2]` of a residue.
    #[inline]
    pub const fn to_signed(self, x: u64) -> i64 {
        let above = ((self.p / 2).wrapping_sub(x) as i64) >> 63;
        (x as i64).wrapping_sub(self.p as i64 & above)
    }

    /// `x + y mod p`.
    #[inline]
    pub const fn add(self, x: u64, y: u64) -> u64 {
        self.once(x.wrapping_add(y))
    }

    /// `x - y mod p`.
    #[inline]
    pub const fn sub(self, x: u64, y: u64) -> u64 {
        let r = x.wrapping_sub(y);
        r.wrapping_add(self.p & ((r as i64) >> 63) as u64)
    }

    /// `x * y mod p`.
    #[inline]
    pub const fn mul(self, x: u64, y: u64) -> u64 {
        let x = x as u128 * y as u128;
        let q = ((x >> (self.bits - 1)) * self.product as u128) >> (self.bits + 1);
        // Barrett's estimate is at most two below the quotient (Handbook of Applied Cryptography, 14.43).
        let r = (x as u64).wrapping_sub((q as u64).wrapping_mul(self.p));
        self.once(self.once(r))
    }

    /// `x^e mod p`; time depends on `e` alone.
    pub const fn pow(self, x: u64, mut e: u64) -> u64 {
        let (mut base, mut acc) = (x, 1);
        while e > 0 {
            if e & 1 == 1 {
                acc = self.mul(acc, base);
            }
            base = self.mul(base, base);
            e >>= 1;
        }
        acc
    }

    /// `x^-1 mod p` (Fermat); 0 for 0.
    pub const fn inv(self, x: u64) -> u64 {
        self.pow(x, self.p - 2)
    }
}

impl From<PrimeModulus> for u64 {
    fn from(p: PrimeModulus) -> Self {
        p.p
    }
}

impl TryFrom<u64> for PrimeModulus {
    type Error = &'static str;

    fn try_from(p: u64) -> Result<Self, Self::Error> {
        Self::new(p).ok_or("a prime modulus must be an odd prime below 2^62")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::slot_prime;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_division(x: u64, y: u64, pick in 0usize..7) {
            let p = [3, 65537, 2_147_483_647, (1 << 61) - 1, slot_prime(31, 8192).unwrap(), slot_prime(38, 8192).unwrap(),
                slot_prime(62, 4096).unwrap()][pick];
            let m = PrimeModulus::new(p).unwrap();
            for x in [x, 0, 1, p - 1, p, p + 1, 2 * p - 1, u64::MAX, u64::MAX / p * p] {
                prop_assert_eq!(m.reduce(x), x % p);
                let signed = (x as i64 as i128).rem_euclid(p as i128) as u64;
                prop_assert_eq!(m.from_signed(x as i64), signed);
                prop_assert_eq!((m.to_signed(x % p) as i128).rem_euclid(p as i128), (x % p) as i128);
                prop_assert!(m.to_signed(x % p).unsigned_abs() <= p / 2);
                for y in [y % p, 0, 1, p - 1] {
                    let x = x % p;
                    prop_assert_eq!(m.add(x, y) as u128, (x as u128 + y as u128) % p as u128);
                    prop_assert_eq!(m.sub(x, y) as u128, (x as u128 + p as u128 - y as u128) % p as u128);
                    prop_assert_eq!(m.mul(x, y) as u128, x as u128 * y as u128 % p as u128);
                    if y != 0 { prop_assert_eq!(m.mul(y, m.inv(y)), 1); }
                }
            }
        }
    }
}
