//! Reciprocals and inverse square roots of row values.

use serde::{Deserialize, Serialize};

use super::{Piecewise, error, piecewise::Fit, remembered};

/// Which power of a row value is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowPower {
    /// `c / x`.
    Reciprocal,
    /// `c / sqrt(x)`.
    InverseSqrt,
}

/// A reciprocal or an inverse square root of a positive integer by normalisation and pieces of the mantissa.
///
/// With `p = clamp(floor(log2 x), min_log2, max_log2)` and `m` the `mantissa_bits` bits of `x` below position `p`, let
/// `z = max_log2 - p`. Reciprocal: `(T(m) << z) >> drop`. Inverse square root:
/// `(T((z mod 2) * 2^mantissa_bits + m) << (z / 2)) >> drop`. An `x` outside `[2^min_log2, 2^(max_log2+1))` gives a defined
/// but meaningless result (0 and negative numbers, as the bits of their residue, included).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerTable {
    /// The function.
    pub power: RowPower,
    /// Lowest position of the leading one.
    pub min_log2: u32,
    /// Highest position of the leading one.
    pub max_log2: u32,
    /// Largest relative error of `T`, in millionths.
    pub error_ppm: u32,
    /// Mantissa bits.
    pub mantissa_bits: u32,
    /// Bits of `T`.
    pub entry_bits: u32,
    /// Low bits dropped at the end.
    pub drop: u32,
}

impl PowerTable {
    /// Chooses `drop` so that `result / 2^out_frac = numerator * (x / 2^in_frac)^-power`, and widths that the error
    /// allows: a mantissa bit more than its `log2`, `T` two bits more than that, or as many as the smallest result has.
    /// `None` for positions, widths or an error out of range.
    ///
    /// `T` is scaled to the largest power of two that fits; the factor left over goes into it.
    pub fn new(
        power: RowPower,
        numerator: f64,
        in_frac: u32,
        out_frac: u32,
        min_log2: u32,
        max_log2: u32,
        error_ppm: u32,
    ) -> Option<Self> {
        let mantissa_bits = libm::ceil(-libm::log2(error(error_ppm.max(1)))).max(2.0) as u32 + 1;
        let scale = Self::scale(power, numerator, in_frac, out_frac, max_log2);
        // Largest entry: mantissa 1 (and, for the square root, the odd half's extra sqrt 2).
        let largest = scale * if power == RowPower::InverseSqrt { std::f64::consts::SQRT_2 } else { 1.0 };
        let largest_bits = libm::floor(libm::log2(largest)) as i32 + 1;
        let entry_bits = u32::try_from(largest_bits).unwrap_or(0).max(mantissa_bits + 2);
        let drop = u32::try_from(entry_bits as i32 - largest_bits).ok()?;
        (min_log2 <= max_log2 && max_log2 < 64 && drop < 64 && entry_bits < 48 && mantissa_bits <= 20).then_some(Self {
            power,
            min_log2,
            max_log2,
            error_ppm,
            mantissa_bits,
            entry_bits,
            drop,
        })
    }

    /// The real factor in front of `2^(z * power)` for mantissa 1, before `drop`.
    fn scale(power: RowPower, numerator: f64, in_frac: u32, out_frac: u32, max_log2: u32) -> f64 {
        let exponent = match power {
            RowPower::Reciprocal => in_frac as f64 - max_log2 as f64,
            RowPower::InverseSqrt => (in_frac as f64 - max_log2 as f64) / 2.0,
        };
        numerator * libm::exp2(out_frac as f64 + exponent)
    }

    /// `T`, by position: the mantissa's bits, above them the parity of `z` for the inverse square root.
    pub fn pieces(&self, numerator: f64, in_frac: u32, out_frac: u32) -> Piecewise {
        let key = format!("{self:?} {:x} {in_frac} {out_frac}", numerator.to_bits());
        remembered(key, || self.fit(numerator, in_frac, out_frac))
    }

    fn fit(&self, numerator: f64, in_frac: u32, out_frac: u32) -> Piecewise {
        let scale = Self::scale(self.power, numerator, in_frac, out_frac, self.max_log2) * libm::exp2(self.drop as f64);
        let cells = libm::exp2(self.mantissa_bits as f64);
        let limit = libm::exp2(self.entry_bits as f64) - 1.0;
        let real = |x: f64| match self.power {
            RowPower::Reciprocal => scale / (1.0 + x / cells),
            RowPower::InverseSqrt if x < cells => scale / libm::sqrt(1.0 + x / cells),
            RowPower::InverseSqrt => scale * std::f64::consts::SQRT_2 / libm::sqrt(x / cells),
        };
        let allowed = error(self.error_ppm);
        let (steepest, parity) = match self.power {
            RowPower::Reciprocal => (scale / cells, 0),
            RowPower::InverseSqrt => (scale / cells * std::f64::consts::FRAC_1_SQRT_2, 1),
        };
        Fit {
            bits: self.mantissa_bits + parity,
            low: &|x| real(x) - real(x) * allowed,
            high: &|x| (real(x) + real(x) * allowed).min(limit),
            truncated: true,
            grid: libm::floor(libm::log2(scale / 2.0 * allowed / 4.0)).max(0.0) as u32,
            slopes: (libm::ceil(libm::log2(steepest)) as i32, 5),
            class_cost: self.mantissa_bits as usize,
        }
        .run()
    }

    /// Bits of the largest possible result.
    pub const fn result_bits(&self) -> u32 {
        let z = self.max_log2 - self.min_log2;
        let shift = match self.power {
            RowPower::Reciprocal => z,
            RowPower::InverseSqrt => z / 2,
        };
        (self.entry_bits + shift).saturating_sub(self.drop)
    }

    /// The function on the residue `x` (its low `max_log2 + 1` bits count); `pieces` are [`Self::pieces`].
    pub fn eval(&self, pieces: &Piecewise, x: u64) -> u64 {
        let x = x & (u64::MAX >> (63 - self.max_log2));
        let p = (63 - (x | 1).leading_zeros()).max(self.min_log2);
        let m = (((x as u128) << self.mantissa_bits) >> p) as u64 & ((1 << self.mantissa_bits) - 1);
        let z = self.max_log2 - p;
        let (position, shift) = match self.power {
            RowPower::Reciprocal => (m, z),
            RowPower::InverseSqrt => (m | u64::from(z & 1) << self.mantissa_bits, z / 2),
        };
        ((u128::from(pieces.eval(position).max(0) as u64) << shift) >> self.drop) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reciprocal_and_inverse_root_are_close() {
        let (in_frac, out_frac) = (12, 17);
        for ppm in [4000, 2000, 1000] {
            let allowed = error(ppm);
            let r = PowerTable::new(RowPower::Reciprocal, 1.0, in_frac, out_frac, 12, 19, ppm).unwrap();
            let t = r.pieces(1.0, in_frac, out_frac);
            for x in (4096..128 * 4096).step_by(131) {
                let y = r.eval(&t, x) as f64 / 131072.0;
                let real = 4096.0 / x as f64;
                assert!((y - real).abs() <= real * allowed + 1.1 / 131072.0, "{x}: {y} {real}");
            }
            let s = PowerTable::new(RowPower::InverseSqrt, 128f64.sqrt(), 24, 18, 4, 43, ppm).unwrap();
            let t = s.pieces(128f64.sqrt(), 24, 18);
            for k in 4..43 {
                for part in 0..64 {
                    let x = (1u64 << k) + ((part << k) >> 6) + part % 3;
                    let y = s.eval(&t, x) as f64 / 262144.0;
                    let real = (128.0 / (x as f64 / 16777216.0)).sqrt();
                    assert!((y - real).abs() <= real * allowed + 1.1 / 262144.0, "{x}: {y} {real}");
                    assert!(s.eval(&t, x) < 1 << s.result_bits());
                }
            }
            // Defined everywhere.
            assert_eq!(s.eval(&t, 0), s.eval(&t, 0));
            s.eval(&t, u64::MAX);
        }
        assert!(PowerTable::new(RowPower::Reciprocal, 1.0, 12, 17, 20, 19, 1000).is_none());
        assert!(PowerTable::new(RowPower::Reciprocal, 1.0, 12, 17, 12, 64, 1000).is_none());
    }
}
