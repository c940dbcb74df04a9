//! The ring that additive shares live in.

use serde::{Deserialize, Serialize};

use super::prime_modulus::PrimeModulus;

/// The modulus of a ring of additive shares.
///
/// Every edge of the fixed-point graph names one. Values are held as `u64` in `[0, t)`; signed meanings are two's
/// complement, i.e. `[-t/2, t/2)`, for a power of two, and `[-(t-1)/2, (t-1)/2]` for a prime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareModulus {
    /// `t = 2^bits`, `1 <= bits <= 64`.
    PowerOfTwo(u32),
    /// An odd prime below `2^62`: the ring of shares that slots hold.
    Prime(PrimeModulus),
}

impl ShareModulus {
    /// The ring of integers modulo `2^bits`; `None` unless `1 <= bits <= 64`.
    pub const fn pow2(bits: u32) -> Option<Self> {
        if bits >= 1 && bits <= 64 { Some(Self::PowerOfTwo(bits)) } else { None }
    }

    /// The integers modulo an odd prime below `2^62`; `None` for any other number.
    pub fn prime(p: u64) -> Option<Self> {
        PrimeModulus::new(p).map(Self::Prime)
    }

    /// The integers modulo the largest prime of `bits` bits that is 1 mod `2n`, which has `n` slots in a ring of dimension `n`
    /// (a power of two); `None` if there is none.
    pub fn slots(bits: u32, n: usize) -> Option<Self> {
        Self::prime(super::primes::slot_prime(bits, n)?)
    }

    /// Whether the value (which may come from outside) is one that this crate can compute in.
    pub const fn is_valid(self) -> bool {
        match self {
            Self::PowerOfTwo(bits) => bits >= 1 && bits <= 64,
            // Checked when it was made.
            Self::Prime(_) => true,
        }
    }

    /// Bits of a residue.
    pub const fn bits(self) -> u32 {
        match self {
            Self::PowerOfTwo(bits) => bits,
            Self::Prime(p) => p.bits(),
        }
    }

    /// `2^bits - 1`: the mask of a residue's bits, which reduces modulo a power of two.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// `t - 1`, the largest residue.
    pub const fn largest(self) -> u64 {
        match self {
            Self::PowerOfTwo(_) => self.mask(),
            Self::Prime(p) => p.value() - 1,
        }
    }

    /// Reduces any 64-bit word: modulo a power of two it may be two's complement, modulo a prime it is unsigned.
    #[inline]
    pub const fn reduce(self, x: u64) -> u64 {
        match self {
            Self::PowerOfTwo(_) => x & self.mask(),
            Self::Prime(p) => p.reduce(x),
        }
    }

    /// The residue of a signed integer.
    #[inline]
    pub const fn from_signed(self, x: i64) -> u64 {
        match self {
            Self::PowerOfTwo(_) => self.reduce(x as u64),
            Self::Prime(p) => p.from_signed(x),
        }
    }

    /// The representative in `[-t/2, t/2)` of a residue in `[0, t)`.
    #[inline]
    pub const fn to_signed(self, x: u64) -> i64 {
        match self {
            Self::PowerOfTwo(bits) => ((x << (64 - bits)) as i64) >> (64 - bits),
            Self::Prime(p) => p.to_signed(x),
        }
    }

    /// `x + y mod t` of residues.
    #[inline]
    pub const fn add(self, x: u64, y: u64) -> u64 {
        match self {
            Self::PowerOfTwo(_) => self.reduce(x.wrapping_add(y)),
            Self::Prime(p) => p.add(x, y),
        }
    }

    /// `x - y mod t` of residues.
    #[inline]
    pub const fn sub(self, x: u64, y: u64) -> u64 {
        match self {
            Self::PowerOfTwo(_) => self.reduce(x.wrapping_sub(y)),
            Self::Prime(p) => p.sub(x, y),
        }
    }

    /// `x * y mod t` of residues.
    #[inline]
    pub const fn mul(self, x: u64, y: u64) -> u64 {
        match self {
            Self::PowerOfTwo(_) => self.reduce(x.wrapping_mul(y)),
            Self::Prime(p) => p.mul(x, y),
        }
    }

    /// Whether the true integer `x` is representable as a signed residue.
    #[inline]
    pub const fn holds(self, x: i128) -> bool {
        match self {
            Self::PowerOfTwo(bits) => {
                let half = 1i128 << (bits - 1);
                -half <= x && x < half
            }
            Self::Prime(p) => {
                let half = (p.value() / 2) as i128;
                -half <= x && x <= half
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_round_trip_at_the_edges() {
        for bits in [1, 2, 31, 32, 33, 48, 63, 64] {
            let t = ShareModulus::pow2(bits).unwrap();
            let lo = (-1i128 << (bits - 1)) as i64;
            let hi = ((1i128 << (bits - 1)) - 1) as i64;
            for x in [lo, hi, 0, -1] {
                assert_eq!(t.to_signed(t.from_signed(x)), x, "{bits}");
                assert!(t.holds(x as i128));
            }
            assert!(!t.holds(hi as i128 + 1) && !t.holds(lo as i128 - 1));
        }
        assert!(ShareModulus::pow2(0).is_none() && ShareModulus::pow2(65).is_none());
    }

    #[test]
    fn a_prime_is_a_ring_of_shares() {
        let t = ShareModulus::slots(38, 8192).unwrap();
        let half = (t.largest() / 2) as i64;
        for x in [0, 1, -1, half, -half] {
            assert!(t.holds(x.into()) && t.to_signed(t.from_signed(x)) == x);
            assert_eq!(t.add(t.from_signed(x), t.from_signed(-x)), 0);
        }
        assert!(!t.holds(i128::from(half) + 1) && !t.holds(-i128::from(half) - 1));
        assert_eq!((t.bits(), t.largest() % 16384, t.mask()), (38, 0, (1 << 38) - 1));
        assert!(ShareModulus::prime(91).is_none() && ShareModulus::prime(2).is_none());
        assert!(ShareModulus::slots(13, 8192).is_none() && ShareModulus::slots(38, 100).is_none());
        // What comes from outside is checked.
        let text = serde_json::to_string(&t).unwrap();
        assert_eq!(serde_json::from_str::<ShareModulus>(&text).unwrap(), t);
        assert!(serde_json::from_str::<ShareModulus>("{\"prime\":91}").is_err());
    }
}
