//! The ring that additive shares live in.

use serde::{Deserialize, Serialize};

/// The modulus of a ring of additive shares.
///
/// Every edge of the fixed-point graph names one. Values are held as `u64` in `[0, t)`; signed meanings are two's
/// complement, i.e. `[-t/2, t/2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareModulus {
    /// `t = 2^bits`, `1 <= bits <= 64`.
    PowerOfTwo(u32),
}

impl ShareModulus {
    /// The ring of integers modulo `2^bits`; `None` unless `1 <= bits <= 64`.
    pub const fn pow2(bits: u32) -> Option<Self> {
        if bits >= 1 && bits <= 64 { Some(Self::PowerOfTwo(bits)) } else { None }
    }

    /// Whether the value (which may come from outside) is one that this crate can compute in.
    pub const fn is_valid(self) -> bool {
        match self {
            Self::PowerOfTwo(bits) => bits >= 1 && bits <= 64,
        }
    }

    /// Bits of a residue.
    pub const fn bits(self) -> u32 {
        match self {
            Self::PowerOfTwo(bits) => bits,
        }
    }

    /// `t - 1`, the mask that reduces modulo a power of two.
    pub const fn mask(self) -> u64 {
        match self {
            Self::PowerOfTwo(bits) => u64::MAX >> (64 - bits),
        }
    }

    /// Reduces any 64-bit word (two's complement for negative values).
    #[inline]
    pub const fn reduce(self, x: u64) -> u64 {
        x & self.mask()
    }

    /// The residue of a signed integer.
    #[inline]
    pub const fn from_signed(self, x: i64) -> u64 {
        self.reduce(x as u64)
    }

    /// The representative in `[-t/2, t/2)` of a residue in `[0, t)`.
    #[inline]
    pub const fn to_signed(self, x: u64) -> i64 {
        match self {
            Self::PowerOfTwo(bits) => ((x << (64 - bits)) as i64) >> (64 - bits),
        }
    }

    /// `x + y mod t`.
    #[inline]
    pub const fn add(self, x: u64, y: u64) -> u64 {
        self.reduce(x.wrapping_add(y))
    }

    /// `x - y mod t`.
    #[inline]
    pub const fn sub(self, x: u64, y: u64) -> u64 {
        self.reduce(x.wrapping_sub(y))
    }

    /// `x * y mod t`.
    #[inline]
    pub const fn mul(self, x: u64, y: u64) -> u64 {
        self.reduce(x.wrapping_mul(y))
    }

    /// Whether the true integer `x` is representable as a signed residue.
    #[inline]
    pub const fn holds(self, x: i128) -> bool {
        let half = 1i128 << (self.bits() - 1);
        -half <= x && x < half
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
}
