//! The exact integer meaning of the non-linear functions.
//!
//! Every function here maps fixed-point integers to fixed-point integers. The plaintext oracle evaluates them as written;
//! the garbled gadgets compute the same bits. Tables are made with `libm`, whose results do not depend on the platform,
//! so that both parties of a protocol derive identical circuits.
//!
//! Notation: `f` fraction bits mean that the integer `v` stands for `v / 2^f`. Rounding is half up: `(v + 2^(s-1)) >> s`.

use serde::{Deserialize, Serialize};

/// `(x + 2^(shift-1)) >> shift`: division by `2^shift` rounded half up; the identity for `shift = 0`.
#[inline]
pub const fn round_shift(x: i128, shift: u32) -> i128 {
    if shift == 0 { x } else { (x + (1 << (shift - 1))) >> shift }
}

/// What is added to `x` before bits are dropped, so that dropping them rounds half up: `2^(shift-1)`, or 0.
#[inline]
pub const fn rounding_offset(shift: u32) -> u64 {
    if shift == 0 { 0 } else { 1 << (shift - 1) }
}

/// Smooth activations that are `max(x, 0) - g(|x|)` with `g` even-handed and vanishing outside a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * Phi(x)`, the exact GELU.
    Gelu,
    /// GELU by `tanh` (Hugging Face `gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The real function.
    pub fn real(self, x: f64) -> f64 {
        match self {
            Self::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + libm::tanh(inner))
            }
            Self::Relu => x.max(0.0),
        }
    }
}

/// An activation in fixed point: `max(x', 0) >> shift` minus a table of `|x'|`, where `x' = x + rounding_offset(shift)`.
///
/// The table has one entry a cell of `|x'|` in `[0, 2^range_log2)`, the value of `g` at the middle of the cell; outside it
/// `g` is 0. `|x'|` of a negative number is its ones' complement, which mirrors the cells exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationTable {
    /// Which function.
    pub activation: Activation,
    /// Fraction bits of the input.
    pub in_frac: u32,
    /// Fraction bits of the output, at most `in_frac`.
    pub out_frac: u32,
    /// The table covers `|x| < 2^range_log2`.
    pub range_log2: u32,
    /// `log2` of the number of cells.
    pub table_bits: u32,
}

impl ActivationTable {
    /// Bits dropped from the linear part.
    pub const fn shift(&self) -> u32 {
        self.in_frac - self.out_frac
    }

    /// Bits of `|x'|` below the table index.
    pub const fn index_shift(&self) -> u32 {
        self.in_frac + self.range_log2 - self.table_bits
    }

    /// `g` at the middle of each cell, in output units; empty for ReLU.
    pub fn table(&self) -> Vec<u64> {
        if self.activation == Activation::Relu {
            return Vec::new();
        }
        let cells = 1u64 << self.table_bits;
        let cell = libm::exp2(self.range_log2 as f64 - self.table_bits as f64);
        (0..cells)
            .map(|i| {
                let a = (i as f64 + 0.5) * cell;
                let g = -self.activation.real(-a);
                libm::round(g * libm::exp2(self.out_frac as f64)).max(0.0) as u64
            })
            .collect()
    }

    /// The function on integers. `table` is [`Self::table`].
    pub fn eval(&self, table: &[u64], x: i128) -> i128 {
        let x = x + rounding_offset(self.shift()) as i128;
        let magnitude = if x < 0 { !x } else { x };
        let linear = if x < 0 { 0 } else { x >> self.shift() };
        let index = magnitude >> self.index_shift();
        linear - table.get(usize::try_from(index).unwrap_or(usize::MAX)).map_or(0, |&g| g as i128)
    }
}

/// `2^-x` of the distance to the row maximum: the numerators of softmax (scores are scaled by `log2 e` beforehand).
///
/// `s' = round_shift(s, shift)` has `frac_bits` fraction bits; with `D = max(s') - s'`, `k = D >> frac_bits` and
/// `i = D mod 2^frac_bits` the result is `table[i] >> k`, which is 0 from `k = out_frac + 1` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpTable {
    /// Fraction bits of the scores.
    pub in_frac: u32,
    /// Fraction bits kept of a score; `log2` of the table's length.
    pub frac_bits: u32,
    /// Fraction bits of the result.
    pub out_frac: u32,
}

impl ExpTable {
    /// Bits dropped from a score.
    pub const fn shift(&self) -> u32 {
        self.in_frac - self.frac_bits
    }

    /// `round(2^out_frac * 2^(-i / 2^frac_bits))`; the first entry is exactly `2^out_frac`.
    pub fn table(&self) -> Vec<u64> {
        let steps = 1u64 << self.frac_bits;
        (0..steps).map(|i| libm::round(libm::exp2(self.out_frac as f64 - i as f64 / steps as f64)) as u64).collect()
    }

    /// One row of scores to one row of numerators.
    pub fn eval_row(&self, table: &[u64], scores: &[i128]) -> Vec<i128> {
        let short: Vec<i128> = scores.iter().map(|&s| round_shift(s, self.shift())).collect();
        let max = short.iter().copied().max().unwrap_or(0);
        short
            .iter()
            .map(|&s| {
                let d = max - s;
                let k = d >> self.frac_bits;
                if k > self.out_frac as i128 {
                    return 0;
                }
                let i = (d & ((1 << self.frac_bits) - 1)) as usize;
                (table.get(i).copied().unwrap_or(0) >> k as u32) as i128
            })
            .collect()
    }
}

/// Which power of a row value is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowPower {
    /// `c / x`.
    Reciprocal,
    /// `c / sqrt(x)`.
    InverseSqrt,
}

/// A reciprocal or an inverse square root of a positive integer by normalisation and one table.
///
/// With `p = clamp(floor(log2 x), min_log2, max_log2)` and `m` the `table_bits` bits of `x` below position `p`, let
/// `z = max_log2 - p`. Reciprocal: `(T[m] << z) >> drop`. Inverse square root: `(T_(z mod 2)[m] << (z / 2)) >> drop`.
/// An `x` outside `[2^min_log2, 2^(max_log2+1))` gives a defined but meaningless result (0 and negative numbers, as the
/// bits of their residue, included).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerTable {
    /// The function.
    pub power: RowPower,
    /// Lowest position of the leading one.
    pub min_log2: u32,
    /// Highest position of the leading one.
    pub max_log2: u32,
    /// Mantissa bits.
    pub table_bits: u32,
    /// Bits of a table entry.
    pub entry_bits: u32,
    /// Low bits dropped at the end.
    pub drop: u32,
}

impl PowerTable {
    /// Chooses `drop` so that `result / 2^out_frac = numerator * (x / 2^in_frac)^-power`, with entries of `entry_bits`
    /// bits, or more where the smallest result has more. `None` for positions or widths out of range.
    ///
    /// Entries are scaled to the largest power of two that fits; the factor left over goes into them.
    pub fn new(
        power: RowPower,
        numerator: f64,
        in_frac: u32,
        out_frac: u32,
        min_log2: u32,
        max_log2: u32,
        table_bits: u32,
        entry_bits: u32,
    ) -> Option<Self> {
        let scale = Self::scale(power, numerator, in_frac, out_frac, max_log2);
        // Largest entry: mantissa 1 (and, for the square root, the odd table's extra sqrt 2).
        let largest = scale * if power == RowPower::InverseSqrt { std::f64::consts::SQRT_2 } else { 1.0 };
        let largest_bits = libm::floor(libm::log2(largest)) as i32 + 1;
        let entry_bits = u32::try_from(largest_bits).unwrap_or(0).max(entry_bits);
        let drop = u32::try_from(entry_bits as i32 - largest_bits).ok()?;
        (min_log2 <= max_log2 && max_log2 < 64 && drop < 64 && entry_bits < 48).then_some(Self {
            power,
            min_log2,
            max_log2,
            table_bits,
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

    /// The tables: one for the reciprocal, the even and the odd one for the inverse square root.
    pub fn tables(&self, numerator: f64, in_frac: u32, out_frac: u32) -> Vec<Vec<u64>> {
        let scale = Self::scale(self.power, numerator, in_frac, out_frac, self.max_log2) * libm::exp2(self.drop as f64);
        let cells = 1u64 << self.table_bits;
        let limit = (1u64 << self.entry_bits) - 1;
        let entry = |i: u64, odd: bool| {
            let mantissa = 1.0 + (i as f64 + 0.5) / cells as f64;
            let real = match self.power {
                RowPower::Reciprocal => scale / mantissa,
                RowPower::InverseSqrt => {
                    scale * if odd { std::f64::consts::SQRT_2 } else { 1.0 } / libm::sqrt(mantissa)
                }
            };
            (libm::round(real) as u64).min(limit)
        };
        match self.power {
            RowPower::Reciprocal => vec![(0..cells).map(|i| entry(i, false)).collect()],
            RowPower::InverseSqrt => {
                vec![(0..cells).map(|i| entry(i, false)).collect(), (0..cells).map(|i| entry(i, true)).collect()]
            }
        }
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

    /// The function on the residue `x` (its low `max_log2 + 1` bits count).
    pub fn eval(&self, tables: &[Vec<u64>], x: u64) -> u64 {
        let x = x & (u64::MAX >> (63 - self.max_log2));
        let p = (63 - (x | 1).leading_zeros()).max(self.min_log2);
        let m = (((x as u128) << self.table_bits) >> p) as u64 & ((1 << self.table_bits) - 1);
        let z = self.max_log2 - p;
        let (table, shift) = match self.power {
            RowPower::Reciprocal => (0, z),
            RowPower::InverseSqrt => ((z & 1) as usize, z / 2),
        };
        let entry = tables.get(table).and_then(|t| t.get(m as usize)).copied().unwrap_or(0);
        (((entry as u128) << shift) >> self.drop) as u64
    }
}

/// `tanh` by a table of `|x|`: entry at the middle of each cell of `[0, 2^range_log2)`, the last one outside; the sign is
/// put back. `|x|` of a negative number is its ones' complement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TanhTable {
    /// Fraction bits of the input.
    pub in_frac: u32,
    /// Fraction bits of the output.
    pub out_frac: u32,
    /// The table covers `|x| < 2^range_log2`.
    pub range_log2: u32,
    /// `log2` of the number of cells.
    pub table_bits: u32,
}

impl TanhTable {
    /// Bits of `|x|` below the table index.
    pub const fn index_shift(&self) -> u32 {
        self.in_frac + self.range_log2 - self.table_bits
    }

    /// `round(2^out_frac * tanh)` at the middle of each cell.
    pub fn table(&self) -> Vec<u64> {
        let cells = 1u64 << self.table_bits;
        let cell = libm::exp2(self.range_log2 as f64 - self.table_bits as f64);
        (0..cells)
            .map(|i| libm::round(libm::tanh((i as f64 + 0.5) * cell) * libm::exp2(self.out_frac as f64)) as u64)
            .collect()
    }

    /// The function on integers.
    pub fn eval(&self, table: &[u64], x: i128) -> i128 {
        let magnitude = if x < 0 { !x } else { x };
        let index = usize::try_from(magnitude >> self.index_shift()).unwrap_or(usize::MAX).min(table.len() - 1);
        let t = table.get(index).copied().unwrap_or(0) as i128;
        if x < 0 { -t } else { t }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_within_its_stated_error() {
        for (bits, bound) in [(6, 0.0157), (7, 0.0079), (8, 0.0041)] {
            let f = ActivationTable {
                activation: Activation::Gelu,
                in_frac: 20,
                out_frac: 12,
                range_log2: 2,
                table_bits: bits,
            };
            let table = f.table();
            let mut worst = 0f64;
            for k in -9000..9000i64 {
                let x = k * 997;
                let y = f.eval(&table, x as i128) as f64 / 4096.0;
                worst = worst.max((y - Activation::Gelu.real(x as f64 / (1 << 20) as f64)).abs());
            }
            assert!(worst < bound, "{bits}: {worst}");
            assert!(worst > bound / 2.0, "the bound for {bits} bits is not tight: {worst}");
        }
    }

    #[test]
    fn relu_rounds() {
        let f = ActivationTable { activation: Activation::Relu, in_frac: 4, out_frac: 2, range_log2: 2, table_bits: 4 };
        let table = f.table();
        for (x, y) in [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (-1, 0), (-2, 0), (-300, 0), (400, 100)] {
            assert_eq!(f.eval(&table, x), y, "{x}");
        }
    }

    #[test]
    fn exp_of_a_row() {
        let f = ExpTable { in_frac: 18, frac_bits: 7, out_frac: 12 };
        let table = f.table();
        assert_eq!(table[0], 4096);
        let scores: Vec<i128> = [3.0, 2.0, -1.5, -40.0, 3.0].iter().map(|s: &f64| (s * 262144.0) as i128).collect();
        let e = f.eval_row(&table, &scores);
        assert_eq!((e[0], e[1], e[3], e[4]), (4096, 2048, 0, 4096));
        assert!((e[2] as f64 / 4096.0 - 2f64.powf(-4.5)).abs() < 1.0 / 4096.0);
    }

    #[test]
    fn reciprocal_and_inverse_root_are_close() {
        let (in_frac, out_frac) = (12, 17);
        let r = PowerTable::new(RowPower::Reciprocal, 1.0, in_frac, out_frac, 12, 19, 10, 13).unwrap();
        let t = r.tables(1.0, in_frac, out_frac);
        for x in (4096..128 * 4096).step_by(131) {
            let y = r.eval(&t, x) as f64 / 131072.0;
            let real = 4096.0 / x as f64;
            assert!((y - real).abs() <= real * 0.0009 + 1.1 / 131072.0, "{x}: {y} {real}");
        }
        let s = PowerTable::new(RowPower::InverseSqrt, 128f64.sqrt(), 24, 18, 4, 43, 10, 13).unwrap();
        let t = s.tables(128f64.sqrt(), 24, 18);
        for k in 4..43 {
            for x in [1u64 << k, (1 << k) + (1 << (k - 1)) + 3, (2 << k) - 1] {
                let y = s.eval(&t, x) as f64 / 262144.0;
                let real = (128.0 / (x as f64 / 16777216.0)).sqrt();
                assert!((y - real).abs() <= real * 0.0009 + 1.1 / 262144.0, "{x}: {y} {real}");
                assert!(s.eval(&t, x) < 1 << s.result_bits());
            }
        }
        // Defined everywhere.
        assert_eq!(s.eval(&t, 0), s.eval(&t, 0));
        s.eval(&t, u64::MAX);
    }

    #[test]
    fn tanh_is_odd_up_to_the_mirror_and_saturates() {
        let f = TanhTable { in_frac: 20, out_frac: 12, range_log2: 2, table_bits: 10 };
        let table = f.table();
        for k in -8000..8000i128 {
            let x = k * 1009;
            let y = f.eval(&table, x) as f64 / 4096.0;
            assert!((y - libm::tanh(x as f64 / (1 << 20) as f64)).abs() < 0.0025);
            assert_eq!(f.eval(&table, !x), -f.eval(&table, x));
        }
    }
}
