//! The precision ledger: a bound on the slots of a ciphertext and on their error, which follows it through every step.
//!
//! A coefficient's noise of variance `v` moves a slot by a sum of N terms on the unit circle: deviation `sqrt(N v)` units. A
//! bound is [`TAIL`] deviations of each step; bounds of different steps add up, so that no independence of the steps is assumed.

use super::super::{HeError, ParameterSet, Result, TAIL};
use crate::arith::sample::ERROR_VARIANCE;

/// What is known about the slots of a batch of ciphertexts, the same for all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ledger {
    /// Units (1 modulo q) of the number 1.
    pub scale: f64,
    /// Bound on the magnitude of a slot.
    pub magnitude: f64,
    /// Bound on the error of a slot.
    pub error: f64,
}

/// The bound on a slot, in units, of coefficients with variance `variance`.
fn slot(n: usize, variance: f64) -> f64 {
    TAIL * (n as f64 * variance).sqrt()
}

/// Variance of a coefficient of `c0 + c1 s` after both parts are rounded.
fn rounding(n: usize) -> f64 {
    (1.0 + 2.0 * n as f64 / 3.0) / 12.0
}

impl Ledger {
    /// A fresh symmetric encryption: its error, and the rounding of the encoding.
    pub fn fresh(n: usize, scale: f64, magnitude: f64) -> Self {
        Self { scale, magnitude, error: slot(n, ERROR_VARIANCE + 1.0 / 12.0) / scale }
    }

    /// A sum or difference.
    ///
    /// # Errors
    /// If the scales differ by more than one in `2^24`; what they differ by less is counted as an error.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        let ratio = (other.scale / self.scale - 1.0).abs();
        if ratio > 2f64.powi(-24) {
            return Err(HeError::ScaleMismatch { left: self.scale, right: other.scale });
        }
        let error = self.error + other.error + ratio * other.magnitude;
        Ok(Self { scale: self.scale, magnitude: self.magnitude + other.magnitude, error })
    }

    /// A sum of products with plaintexts at `scale`, whose magnitudes add up to `sum` at most over the `terms` terms.
    pub fn times_plain(&self, n: usize, scale: f64, sum: f64, terms: usize) -> Self {
        let encoding = terms as f64 * slot(n, 1.0 / 12.0) / scale;
        Self {
            scale: self.scale * scale,
            magnitude: self.magnitude * sum,
            error: self.error * (sum + encoding) + self.magnitude * encoding,
        }
    }

    /// A sum of `terms` products of two ciphertexts.
    pub fn times(&self, other: &Self, terms: usize) -> Self {
        let error = self.magnitude * other.error + other.magnitude * self.error + self.error * other.error;
        Self {
            scale: self.scale * other.scale,
            magnitude: self.magnitude * other.magnitude * terms as f64,
            error: error * terms as f64,
        }
    }

    /// After dividing by `prime` and rounding.
    pub fn rescaled(&self, n: usize, prime: f64) -> Self {
        let scale = self.scale / prime;
        Self { scale, error: self.error + slot(n, rounding(n)) / scale, ..*self }
    }

    /// After a key switch of a ciphertext of `limbs` limbs.
    pub fn key_switched(&self, params: &ParameterSet, limbs: usize) -> Self {
        let n = params.n();
        let product = |moduli: &[crate::arith::Modulus]| moduli.iter().map(|p| p.value() as f64).product::<f64>();
        let special = product(params.specials());
        let digits = params.ring().moduli()[..limbs].chunks(params.digit_limbs());
        // Digits are uniform and centred, see `key_switch.rs`.
        let digits: f64 = digits.map(|digit| (product(digit) / special).powi(2) / 12.0).sum();
        let variance = digits * n as f64 * ERROR_VARIANCE + rounding(n) * params.specials().len() as f64;
        Self { error: self.error + slot(n, variance) / self.scale, ..*self }
    }

    /// After adding an encryption of zero under the public key.
    pub fn rerandomised(&self, n: usize) -> Self {
        let variance = ERROR_VARIANCE * (4.0 / 3.0 * n as f64 + 1.0);
        Self { error: self.error + slot(n, variance) / self.scale, ..*self }
    }

    /// The same ciphertext with another bound on its slots, which the caller knows from elsewhere.
    pub fn bounded(&self, magnitude: f64) -> Self {
        Self { magnitude, ..*self }
    }

    /// Fails unless message and error fit the first `limbs` primes, a coefficient being no larger than the largest slot.
    pub(super) fn check(&self, operation: &'static str, params: &ParameterSet, limbs: usize) -> Result<()> {
        let moduli = &params.ring().moduli()[..limbs.min(params.key_limbs())];
        let available = moduli.iter().map(|p| (p.value() as f64).log2()).sum::<f64>() - 1.0;
        let needed = ((self.magnitude + self.error) * self.scale).log2();
        if limbs > 0 && needed < available {
            return Ok(());
        }
        Err(HeError::DepthExhausted { operation, limbs, available: available.max(0.0), needed })
    }
}
