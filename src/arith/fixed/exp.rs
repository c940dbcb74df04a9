//! The numerators of softmax: powers of two of scores, relative to the row's maximum.

use serde::{Deserialize, Serialize};

use super::{Piecewise, error, piecewise::Fit, remembered, round_shift};

/// `2^(s - m)` of every score `s` of a row, with `m` the whole part of the row's maximum (scores are scaled by `log2 e`
/// beforehand).
///
/// `s' = round_shift(s, shift)` has `frac_bits` fraction bits. With `i = s' >> frac_bits`, `r = s' mod 2^frac_bits` and
/// `k = max(i) - i` the result is `mantissa(r) >> k`, which is 0 from `k = out_frac + 1` on. The mantissa, in `[1, 2)`, is
/// the line `1 + r` less pieces of the rest. So the largest numerator of a row is in `[1, 2)`: only whole parts are
/// compared and subtracted, and the quotient of softmax does not see the difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpTable {
    /// Fraction bits of the scores.
    pub in_frac: u32,
    /// Fraction bits kept of a score, at most `out_frac`.
    pub frac_bits: u32,
    /// Fraction bits of the result.
    pub out_frac: u32,
    /// Largest relative error of a mantissa, in millionths; that of the kept fraction bits comes on top.
    pub error_ppm: u32,
}

impl ExpTable {
    /// Bits dropped from a score.
    pub const fn shift(&self) -> u32 {
        self.in_frac - self.frac_bits
    }

    /// `1 + r - 2^r` in output units, by position `r * 2^frac_bits`; 0 at 0.
    pub fn pieces(&self) -> Piecewise {
        remembered(format!("{self:?}"), || self.fit())
    }

    fn fit(&self) -> Piecewise {
        let (scale, unit) = (libm::exp2(self.out_frac as f64), libm::exp2(-(self.frac_bits as f64)));
        let allowed = (error(self.error_ppm) * scale).max(0.5);
        let line = |r: f64| r * unit * scale;
        let real = |r: f64| scale + line(r) - scale * libm::exp2(r * unit);
        Fit {
            bits: self.frac_bits,
            low: &|r| (real(r) - allowed * libm::exp2(r * unit)).max(0.0),
            high: &|r| (real(r) + allowed * libm::exp2(r * unit)).min(line(r)),
            truncated: false,
            grid: libm::floor(libm::log2(allowed / 4.0)).max(0.0) as u32,
            slopes: (0, 0),
            class_cost: 0,
        }
        .run()
    }

    /// The mantissas of all fractions, `2^out_frac` times `[1, 2)`; the first is exactly 1.
    pub fn table(&self) -> Vec<u64> {
        let pieces = self.pieces();
        let line = |r: u64| (1u64 << self.out_frac) + (r << (self.out_frac - self.frac_bits));
        (0..1 << self.frac_bits).map(|r| line(r).wrapping_add_signed(-pieces.eval(r))).collect()
    }

    /// How much larger the numerators of a row are than powers of two of the distance to its maximum: `2^r` in `[1, 2)`.
    pub fn row_factor(&self, scores: &[i128]) -> f64 {
        let most = scores.iter().map(|&s| round_shift(s, self.shift())).max().unwrap_or(0);
        libm::exp2((most & ((1 << self.frac_bits) - 1)) as f64 / libm::exp2(self.frac_bits as f64))
    }

    /// One row of scores to one row of numerators; `table` is [`Self::table`].
    pub fn eval_row(&self, table: &[u64], scores: &[i128]) -> Vec<i128> {
        let short: Vec<i128> = scores.iter().map(|&s| round_shift(s, self.shift())).collect();
        let most = short.iter().map(|s| s >> self.frac_bits).max().unwrap_or(0);
        let numerator = |&s: &i128| {
            let k = most - (s >> self.frac_bits);
            if k > self.out_frac as i128 {
                return 0;
            }
            let r = (s & ((1 << self.frac_bits) - 1)) as usize;
            (table.get(r).copied().unwrap_or(0) >> k as u32) as i128
        };
        short.iter().map(numerator).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mantissas_are_within_their_error() {
        for (frac_bits, out_frac, ppm) in [(8, 12, 5_000), (8, 11, 3_000), (5, 11, 10_000), (10, 14, 1_000)] {
            let f = ExpTable { in_frac: 18, frac_bits, out_frac, error_ppm: ppm };
            let table = f.table();
            assert_eq!(table[0], 1 << out_frac);
            for (r, &m) in table.iter().enumerate() {
                let real = libm::exp2(r as f64 / table.len() as f64);
                let relative = m as f64 / libm::exp2(out_frac as f64) / real - 1.0;
                assert!(relative.abs() <= error(ppm) + 1e-9, "{r}: {relative}");
                assert!((1 << out_frac..2 << out_frac).contains(&m));
            }
        }
    }

    #[test]
    fn exp_of_a_row() {
        let f = ExpTable { in_frac: 18, frac_bits: 7, out_frac: 12, error_ppm: 2_000 };
        let scores: Vec<i128> = [3.0, 2.0, -1.5, -40.0, 3.0].iter().map(|s: &f64| (s * 262144.0) as i128).collect();
        let e = f.eval_row(&f.table(), &scores);
        assert_eq!((e[0], e[1], e[3], e[4]), (4096, 2048, 0, 4096));
        assert!((e[2] as f64 / 4096.0 - 2f64.powf(-4.5)).abs() < 1.2 / 4096.0);
        // The whole part of the maximum counts, so that the largest is in [1, 2).
        let e = f.eval_row(&f.table(), &[(7.75 * 262144.0) as i128, 7 << 18]);
        assert!((f.row_factor(&[(7.75 * 262144.0) as i128, 7 << 18]) - 2f64.powf(0.75)).abs() < 1e-12);
        assert!(e[1] == 4096 && (e[0] as f64 / 4096.0 / 2f64.powf(0.75) - 1.0).abs() < 0.0021);
        assert!(f.eval_row(&f.table(), &[]).is_empty());
    }
}
