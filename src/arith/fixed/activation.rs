//! Activations: GELU, ReLU, tanh.

use serde::{Deserialize, Serialize};

use super::{Piecewise, error, piecewise::Fit, remembered, rounding_offset};

/// Steps of a fit's constants: a power of two of at most an eighth of the error.
fn grid(error: f64) -> u32 {
    libm::floor(libm::log2(error / 8.0)).max(0.0) as u32
}

/// Number of slopes that are powers of two.
const SLOPES: u32 = 4;

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

/// An activation in fixed point: `max(x', 0) >> shift` less pieces of `|x'|`, where `x' = x + rounding_offset(shift)`.
///
/// The pieces approximate `g` on `[0, 2^range_log2)`; outside it `g` is 0. `|x'|` of a negative number is its ones'
/// complement, which mirrors positions exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationTable {
    /// Which function.
    pub activation: Activation,
    /// Fraction bits of the input.
    pub in_frac: u32,
    /// Fraction bits of the output, at most `in_frac`.
    pub out_frac: u32,
    /// The pieces cover `|x| < 2^range_log2`.
    pub range_log2: u32,
    /// Largest error inside that range, in millionths, the output's rounding included as far as it allows.
    pub error_ppm: u32,
}

impl ActivationTable {
    /// Bits dropped from the linear part.
    pub const fn shift(&self) -> u32 {
        self.in_frac - self.out_frac
    }

    /// `g` in output units, by position `|x'|`; `None` for ReLU.
    pub fn pieces(&self) -> Option<Piecewise> {
        (self.activation != Activation::Relu).then(|| remembered(format!("{self:?}"), || self.fit()))
    }

    fn fit(&self) -> Piecewise {
        let (scale, unit) = (libm::exp2(self.out_frac as f64), libm::exp2(-(self.in_frac as f64)));
        let g = |a: f64| -self.activation.real(-a * unit) * scale;
        // The linear part is rounded, and the rounding offset moves the position.
        let allowed = error(self.error_ppm) * scale;
        let allowed = (allowed - 0.75).max(allowed / 4.0);
        let fit = Fit {
            bits: self.in_frac + self.range_log2,
            low: &|a| g(a) - allowed,
            high: &|a| g(a) + allowed,
            truncated: false,
            grid: grid(allowed),
            // g is a half steep at 0, and nowhere steeper.
            slopes: (-1 - self.shift() as i32, SLOPES),
            class_cost: 0,
        };
        fit.run()
    }

    /// The function on integers. `pieces` are [`Self::pieces`].
    pub fn eval(&self, pieces: Option<&Piecewise>, x: i128) -> i128 {
        let x = x + rounding_offset(self.shift()) as i128;
        let magnitude = if x < 0 { !x } else { x };
        let linear = if x < 0 { 0 } else { x >> self.shift() };
        match pieces {
            Some(g) if magnitude >> (self.in_frac + self.range_log2) == 0 => {
                linear - i128::from(g.eval(magnitude as u64))
            }
            _ => linear,
        }
    }
}

/// `tanh` by pieces of `|x|` on `[0, 2^range_log2)`, 1 outside; the sign is put back. `|x|` of a negative number is its
/// ones' complement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TanhTable {
    /// Fraction bits of the input.
    pub in_frac: u32,
    /// Fraction bits of the output.
    pub out_frac: u32,
    /// The pieces cover `|x| < 2^range_log2`.
    pub range_log2: u32,
    /// Largest error in millionths, the output's rounding included as far as it allows.
    pub error_ppm: u32,
}

impl TanhTable {
    /// The value outside the range.
    pub const fn limit(&self) -> i64 {
        1 << self.out_frac
    }

    /// `tanh` in output units, by position `|x|`.
    pub fn pieces(&self) -> Piecewise {
        remembered(format!("{self:?}"), || self.fit())
    }

    fn fit(&self) -> Piecewise {
        let (scale, unit) = (libm::exp2(self.out_frac as f64), libm::exp2(-(self.in_frac as f64)));
        let allowed = (error(self.error_ppm) * scale).max(0.5);
        Fit {
            bits: self.in_frac + self.range_log2,
            low: &|a| libm::tanh(a * unit) * scale - allowed,
            high: &|a| (libm::tanh(a * unit) * scale + allowed).min(scale),
            truncated: false,
            grid: grid(allowed),
            slopes: (self.out_frac as i32 - self.in_frac as i32, SLOPES + 1),
            class_cost: 0,
        }
        .run()
    }

    /// The function on integers.
    pub fn eval(&self, pieces: &Piecewise, x: i128) -> i128 {
        let magnitude = if x < 0 { !x } else { x };
        let inside = magnitude >> (self.in_frac + self.range_log2) == 0;
        let t = i128::from(if inside { pieces.eval(magnitude as u64) } else { self.limit() });
        if x < 0 { -t } else { t }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gelu(activation: Activation, in_frac: u32, out_frac: u32, error_ppm: u32) -> ActivationTable {
        ActivationTable { activation, in_frac, out_frac, range_log2: 2, error_ppm }
    }

    #[test]
    fn gelu_is_within_its_stated_error() {
        for activation in [Activation::Gelu, Activation::GeluTanh] {
            for (ppm, out_frac) in [(15_000, 10), (6_000, 12), (6_000, 10), (3_000, 12), (1_000, 12)] {
                let f = gelu(activation, 22, out_frac, ppm);
                let pieces = f.pieces();
                let mut worst = 0f64;
                for k in -20000..20000i64 {
                    let x = k * 997;
                    let y = f.eval(pieces.as_ref(), x as i128) as f64 / libm::exp2(out_frac as f64);
                    worst = worst.max((y - activation.real(x as f64 / (1 << 22) as f64)).abs());
                }
                assert!(worst <= error(ppm), "{ppm}: {worst}");
                assert!(worst > error(ppm) / 2.0, "{ppm}: the error is not used: {worst}");
            }
        }
    }

    #[test]
    fn relu_rounds() {
        let f = gelu(Activation::Relu, 4, 2, 6000);
        for (x, y) in [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (-1, 0), (-2, 0), (-300, 0), (400, 100)] {
            assert_eq!(f.eval(f.pieces().as_ref(), x), y, "{x}");
        }
    }

    #[test]
    fn tanh_is_odd_up_to_the_mirror_and_saturates() {
        for ppm in [1_000, 3_000, 20_000] {
            let f = TanhTable { in_frac: 22, out_frac: 12, range_log2: 2, error_ppm: ppm };
            let pieces = f.pieces();
            for k in -20000..20000i128 {
                let x = k * 1009;
                let y = f.eval(&pieces, x) as f64 / 4096.0;
                assert!((y - libm::tanh(x as f64 / (1 << 22) as f64)).abs() <= error(ppm), "{x}: {y}");
                assert_eq!(f.eval(&pieces, !x), -f.eval(&pieces, x));
            }
        }
    }
}
