//! Encoding: `N/2` complex or real slots to a polynomial with integer coefficients, at a scale.

use super::{
    super::{HeError, Result},
    fft::{Complex, Fft},
    real::DoubleDouble,
};

/// The canonical embedding of one ring dimension (Cheon, Kim, Kim, Song, ASIACRYPT 2017): slot `j` of a polynomial is its value
/// at `exp(i pi 5^j / N)`, so that `X -> X^(5^s)` rotates slots by `s` to the left and `X -> X^-1` conjugates them.
///
/// Encoding rounds every coefficient, which moves a slot by at most `N/2` units and, with the roundings taken as independent,
/// by `sqrt(N/12)` in the mean square; a unit is `1 / scale`. The transform's own error is below `2^-45` of the largest slot in
/// doubles, and `2^-90` in pairs of doubles.
pub struct CkksEncoder {
    n: usize,
    double: Fft<f64>,
    wide: Fft<DoubleDouble>,
}

/// Largest coefficient of [`CkksEncoder::encode`]; sums of a few stay within an `i64`.
const LIMIT: f64 = (1u64 << 62) as f64;

impl CkksEncoder {
    /// Tables for dimension `n`, a power of two from 8.
    pub fn new(n: usize) -> Self {
        Self { n, double: Fft::new(n), wide: Fft::new(n) }
    }

    /// Slots of a ciphertext, `N/2`.
    pub fn slots(&self) -> usize {
        self.n / 2
    }

    /// Coefficients of complex slots, missing ones zero, times `scale`.
    ///
    /// # Errors
    /// If there are more slots than `N/2`, or a coefficient reaches `2^62`.
    pub fn encode_complex(&self, slots: &[Complex<f64>], scale: f64) -> Result<Vec<i64>> {
        if slots.len() > self.slots() {
            return Err(HeError::shape("encode", format!("{} slots where there are {}", slots.len(), self.slots())));
        }
        let factor = scale / self.slots() as f64;
        let coefficients = self.double.coefficients(slots);
        let scaled = coefficients.iter().map(|&c| {
            let c = c * factor;
            // NaN fails the comparison too.
            if c.abs() < LIMIT { Ok((c + 0.5f64.copysign(c)) as i64) } else { Err(HeError::Unencodable { scale }) }
        });
        scaled.collect()
    }

    /// [`Self::encode_complex`] of real slots.
    pub fn encode(&self, slots: &[f64], scale: f64) -> Result<Vec<i64>> {
        let complex: Vec<_> = slots.iter().map(|&x| [x, 0.0]).collect();
        self.encode_complex(&complex, scale)
    }

    /// Slots of a polynomial with coefficients below `2^119` in magnitude.
    pub fn decode_complex(&self, coefficients: &[i128], scale: f64) -> Vec<Complex<f64>> {
        let real: Vec<f64> = coefficients.iter().map(|&c| c as f64 / scale).collect();
        self.double.slots(&real)
    }

    /// The real parts of [`Self::decode_complex`].
    pub fn decode(&self, coefficients: &[i128], scale: f64) -> Vec<f64> {
        self.decode_complex(coefficients, scale).into_iter().map(|[re, _]| re).collect()
    }

    /// The real parts of the slots of integers below `2^100`, at scale 1, to about 100 bits: for masked values, whose message is
    /// a small part of them.
    pub fn decode_wide(&self, coefficients: &[i128]) -> Vec<DoubleDouble> {
        let wide: Vec<_> = coefficients.iter().map(|&c| DoubleDouble::from_integer(c)).collect();
        self.wide.slots(&wide).into_iter().map(|[re, _]| re).collect()
    }

    /// Coefficients of real slots at scale 1, to about 100 bits.
    pub fn encode_wide(&self, slots: &[DoubleDouble]) -> Vec<i128> {
        let zero = DoubleDouble::new(0.0);
        let complex: Vec<_> = slots.iter().map(|&x| [x, zero]).collect();
        let factor = DoubleDouble::new(1.0 / self.slots() as f64);
        self.wide.coefficients(&complex).into_iter().map(|c| (c * factor).round()).collect()
    }
}

/// The Galois element that rotates slots by `steps` to the left: `5^steps mod 2N`.
pub fn rotation_element(n: usize, steps: usize) -> usize {
    let (mut power, mut base, mut steps) = (1, 5 % (2 * n), steps % (n / 2));
    while steps > 0 {
        if steps % 2 == 1 {
            power = power * base % (2 * n);
        }
        base = base * base % (2 * n);
        steps /= 2;
    }
    power
}

/// The Galois element that conjugates slots: `2N - 1`.
pub fn conjugation_element(n: usize) -> usize {
    2 * n - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_round_trips_within_its_bound() {
        let encoder = CkksEncoder::new(1024);
        let slots: Vec<_> = (0..512).map(|j| [(j as f64).sin() * 9.0, (j * j) as f64 * 1e-5]).collect();
        let scale = 2f64.powi(30);
        let coefficients = encoder.encode_complex(&slots, scale).unwrap();
        let wide: Vec<i128> = coefficients.iter().map(|&c| c.into()).collect();
        for (a, b) in encoder.decode_complex(&wide, scale).iter().zip(&slots) {
            let error = ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)).sqrt();
            assert!(error < 9.0 * (1024f64 / 12.0).sqrt() / scale, "{error}");
        }
        let pairs = encoder.decode_wide(&wide);
        assert_eq!(pairs.len(), 512);
        assert!(pairs.iter().zip(&slots).all(|(p, s)| (p.to_f64() / scale - s[0]).abs() < 1e-6));
        // Real slots of a real encoding come back to the unit.
        let real: Vec<f64> = slots.iter().map(|s| s[0]).collect();
        let coefficients: Vec<i128> = encoder.encode(&real, scale).unwrap().iter().map(|&c| c.into()).collect();
        assert_eq!(encoder.encode_wide(&encoder.decode_wide(&coefficients)), coefficients);
    }

    #[test]
    fn products_of_polynomials_multiply_slots_and_automorphisms_move_them() {
        let n = 64;
        let encoder = CkksEncoder::new(n);
        let slots: Vec<f64> = (0..32).map(|j| j as f64 - 7.5).collect();
        let m = encoder.encode(&slots, 2f64.powi(20)).unwrap();
        let map = |g: usize| {
            let mut out = vec![0i128; n];
            for (k, &m) in m.iter().enumerate() {
                let e = k * g % (2 * n);
                out[e % n] = if e < n { m.into() } else { -i128::from(m) };
            }
            encoder.decode(&out, 2f64.powi(20))
        };
        for steps in [0, 1, 5, 31] {
            let turned = map(rotation_element(n, steps));
            assert!((0..32).all(|j| (turned[j] - slots[(j + steps) % 32]).abs() < 1e-4), "{steps}");
        }
        assert!(map(conjugation_element(n)).iter().zip(&slots).all(|(a, b)| (a - b).abs() < 1e-4));
        let mut square = vec![0i128; n];
        for (i, &a) in m.iter().enumerate() {
            for (j, &b) in m.iter().enumerate() {
                let sign = if i + j < n { 1 } else { -1 };
                square[(i + j) % n] += sign * i128::from(a) * i128::from(b);
            }
        }
        let square = encoder.decode(&square, 2f64.powi(40));
        assert!(square.iter().zip(&slots).all(|(s, x)| (s - x * x).abs() < 1e-3));
    }

    #[test]
    fn what_cannot_be_encoded_is_refused() {
        let encoder = CkksEncoder::new(16);
        assert!(encoder.encode(&[0.0; 9], 1.0).is_err());
        assert!(encoder.encode(&[f64::NAN], 1.0).is_err());
        let e = encoder.encode(&[1e9], 2f64.powi(40)).unwrap_err().to_string();
        assert!(e.contains("scale"), "{e}");
    }
}
