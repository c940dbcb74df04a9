//! The feed-forward's activation behind its bias.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Primitive, dispatch, exp, slice, with};
use crate::arith::fixed::Activation;

/// `f(z + b)` for `z` of `rows x features` and `b` of `features`.
pub struct BiasAct {
    /// f.
    pub activation: Activation,
}

impl BiasAct {
    /// What it is built of.
    pub fn primitives(&self) -> [Primitive; 2] {
        match self.activation {
            Activation::Relu => [Primitive::Add, Primitive::Relu],
            Activation::Gelu | Activation::GeluTanh => [Primitive::Add, Primitive::Gelu],
        }
    }
}

/// `erf` of `|x|` to 1.5e-7, and `exp(-x^2)` (Abramowitz and Stegun 7.1.26).
#[inline(always)]
fn erf_of_magnitude(x: f32) -> (f32, f32) {
    let x = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let e = exp(-x * x);
    (1.0 - p * e, e)
}

/// The function and its slope.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let (erf, e) = erf_of_magnitude(x * std::f32::consts::FRAC_1_SQRT_2);
    let cdf = 0.5 * (1.0 + erf.copysign(x));
    const DENSITY: f32 = 0.398_942_3;
    (x * cdf, cdf + x * DENSITY * e)
}

/// The same by tanh.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6;
    let inner = ROOT * (x + 0.044_715 * x * x * x);
    let tanh = 1.0 - 2.0 / (1.0 + exp(2.0 * inner));
    let slope = ROOT * (1.0 + 3.0 * 0.044_715 * x * x);
    (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope)
}

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 })
}

/// `out = f(z + b, out)` for all rows.
fn rows(out: &mut [f32], z: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Copy + Sync) {
    let n = b.len().max(1);
    out.par_chunks_mut(8 * n).zip(z.par_chunks(8 * n)).for_each(|(out, z)| {
        dispatch(
            #[inline(always)]
            || {
                for (out, z) in out.chunks_exact_mut(n).zip(z.chunks_exact(n)) {
                    for c in 0..n {
                        out[c] = f(z[c] + b[c], out[c]);
                    }
                }
            },
        );
    });
}

/// Sums of the columns, added in an order that does not depend on the number of threads.
pub(super) fn column_sums(x: &[f32], n: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = x
        .par_chunks(block_rows(x.len() / n.max(1)) * n.max(1))
        .map(|x| {
            let mut sums = vec![0.0f32; n];
            for row in x.chunks_exact(n) {
                sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            }
            sums
        })
        .collect();
    add_up(parts, n)
}

/// Rows of a block where sums over rows are taken block by block.
pub(super) fn block_rows(rows: usize) -> usize {
    rows.div_ceil(16).max(1)
}

/// The sum of vectors of `n` numbers, in their order.
pub(super) fn add_up(parts: Vec<Vec<f32>>, n: usize) -> Vec<f32> {
    parts.into_iter().fold(vec![0.0; n], |mut sum, part| {
        sum.iter_mut().zip(&part).for_each(|(s, x)| *s += x);
        sum
    })
}

impl CustomOp2 for BiasAct {
    fn name(&self) -> &'static str {
        "bias-activation"
    }

    fn cpu_fwd(&self, z: &CpuStorage, lz: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (z, b) = (slice(z, lz)?, slice(b, lb)?);
        let mut out = vec![0.0; z.len()];
        match self.activation {
            Activation::Relu => rows(
                &mut out,
                z,
                b,
                #[inline(always)]
                |x, _| relu(x).0,
            ),
            Activation::Gelu => rows(
                &mut out,
                z,
                b,
                #[inline(always)]
                |x, _| gelu(x).0,
            ),
            Activation::GeluTanh => rows(
                &mut out,
                z,
                b,
                #[inline(always)]
                |x, _| gelu_tanh(x).0,
            ),
        }
        Ok((CpuStorage::F32(out), lz.shape().clone()))
    }

    fn bwd(&self, z: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out, sums) = with([z, b, grad], |[z, b, grad]| {
            let mut out = grad.to_vec();
            match self.activation {
                Activation::Relu => rows(
                    &mut out,
                    z,
                    b,
                    #[inline(always)]
                    |x, g| g * relu(x).1,
                ),
                Activation::Gelu => rows(
                    &mut out,
                    z,
                    b,
                    #[inline(always)]
                    |x, g| g * gelu(x).1,
                ),
                Activation::GeluTanh => rows(
                    &mut out,
                    z,
                    b,
                    #[inline(always)]
                    |x, g| g * gelu_tanh(x).1,
                ),
            }
            let sums = column_sums(&out, b.len());
            (out, sums)
        })?;
        let b_grad = Tensor::from_vec(sums, b.dims(), z.device())?;
        Ok((Some(Tensor::from_vec(out, z.dims(), z.device())?), Some(b_grad)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn values_and_gradients() {
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            for i in -80..80 {
                let x = i as f32 / 10.0;
                let y = match activation {
                    Activation::Gelu => gelu(x).0,
                    Activation::GeluTanh => gelu_tanh(x).0,
                    Activation::Relu => relu(x).0,
                };
                assert!((f64::from(y) - activation.real(x.into())).abs() < 2e-6, "{activation:?} {x}");
            }
            let (z, b) = (noise(&[20, 3], 3), noise(&[3], 4));
            if activation != Activation::Relu {
                check_gradient(&[&z, &b], || z.apply_op2(&b, BiasAct { activation }).unwrap(), 1e-2);
            }
        }
        assert_eq!((relu(-1.0), relu(2.0)), ((0.0, 0.0), (2.0, 1.0)));
    }
}
