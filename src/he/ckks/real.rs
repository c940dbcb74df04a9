//! Real arithmetic of the canonical embedding: doubles, and pairs of doubles where messages have more than 53 bits.

use std::ops::{Add, Mul, Neg, Sub};

/// A real number that a transform can compute with.
pub trait Real:
    Copy + Send + Sync + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Neg<Output = Self>
{
    /// Zero.
    const ZERO: Self;

    /// The nearest number to a pair of doubles.
    fn from_pair(x: DoubleDouble) -> Self;
}

impl Real for f64 {
    const ZERO: Self = 0.0;

    fn from_pair(x: DoubleDouble) -> Self {
        x.high
    }
}

/// An unevaluated sum of two doubles, about 104 bits (Dekker, Numerische Mathematik 18, 1971; Knuth, TAOCP 2, 4.2.2).
///
/// Sums and products have relative errors below `2^-100`. Magnitudes must stay below `2^990` (splitting would overflow), and no
/// operation has a branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DoubleDouble {
    high: f64,
    low: f64,
}

impl DoubleDouble {
    /// A double.
    pub const fn new(x: f64) -> Self {
        Self { high: x, low: 0.0 }
    }

    /// An integer of magnitude below `2^104`, exactly.
    pub fn from_integer(x: i128) -> Self {
        // The first conversion rounds to 53 bits; what is left has at most 51 and is exact.
        let high = x as f64;
        let low = (x - high as i128) as f64;
        Self::normalised(high, low)
    }

    /// The nearest integer of a number of magnitude below `2^120`.
    pub fn round(self) -> i128 {
        let high = self.high.round_ties_even();
        let rest = (self.high - high) + self.low;
        high as i128 + rest.round_ties_even() as i128
    }

    /// The nearest double.
    pub fn to_f64(self) -> f64 {
        self.high
    }

    fn normalised(a: f64, b: f64) -> Self {
        let high = a + b;
        Self { high, low: b - (high - a) }
    }

    /// Square root of a positive number: one step of Newton from the double's.
    pub(super) fn sqrt(self) -> Self {
        let x = self.high.sqrt();
        let correction = (self - Self::new(x) * Self::new(x)).high / (2.0 * x);
        Self::normalised(x, correction)
    }

    /// The quotient, for tables.
    pub(super) fn div(self, other: Self) -> Self {
        let first = self.high / other.high;
        let rest = self - other * Self::new(first);
        let second = rest.high / other.high;
        let rest = rest - other * Self::new(second);
        Self::normalised(first, second) + Self::new(rest.high / other.high)
    }
}

/// `a + b` and its rounding error.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// `a b` and its rounding error, by splitting into halves (Veltkamp): the same on machines with and without fused products.
#[inline(always)]
fn two_product(a: f64, b: f64) -> (f64, f64) {
    const SPLIT: f64 = 134_217_729.0;
    let halves = |x: f64| {
        let wide = SPLIT * x;
        let high = wide - (wide - x);
        (high, x - high)
    };
    let product = a * b;
    let ((a1, a0), (b1, b0)) = (halves(a), halves(b));
    (product, ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0)
}

impl Add for DoubleDouble {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let (high, low) = two_sum(self.high, other.high);
        let (second, rest) = two_sum(self.low, other.low);
        let first = Self::normalised(high, low + second);
        Self::normalised(first.high, first.low + rest)
    }
}

impl Sub for DoubleDouble {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for DoubleDouble {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        Self { high: -self.high, low: -self.low }
    }
}

impl Mul for DoubleDouble {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let (high, low) = two_product(self.high, other.high);
        Self::normalised(high, low + (self.high * other.low + self.low * other.high))
    }
}

impl Real for DoubleDouble {
    const ZERO: Self = Self::new(0.0);

    fn from_pair(x: DoubleDouble) -> Self {
        x
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_are_exact(a: i128, b: i64, c: i64) {
            let a = a >> 25;
            prop_assert_eq!(DoubleDouble::from_integer(a).round(), a);
            let (x, y) = (DoubleDouble::from_integer(b.into()), DoubleDouble::from_integer((c >> 24).into()));
            prop_assert_eq!((x * y).round(), i128::from(b) * i128::from(c >> 24));
            prop_assert_eq!((x - y).round(), i128::from(b) - i128::from(c >> 24));
            let sum = DoubleDouble::from_integer(a >> 2) + x;
            prop_assert_eq!(sum.round(), (a >> 2) + i128::from(b));
        }

        #[test]
        fn roots_and_quotients_invert(x in 1e-3..1e6f64, y in 1e-3..1e3f64) {
            let pair = DoubleDouble::new(x) + DoubleDouble::new(x * 1e-20);
            let back = pair.sqrt() * pair.sqrt() - pair;
            prop_assert!((back.to_f64() / x).abs() < 2f64.powi(-98));
            let divisor = DoubleDouble::new(y);
            prop_assert!(((pair.div(divisor) * divisor - pair).to_f64() / x).abs() < 2f64.powi(-98));
        }
    }
}
