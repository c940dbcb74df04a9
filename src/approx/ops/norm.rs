//! Bias, residual and normalisation in one pass, and what stands in for the normalisation.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Primitive,
    activation::{add_up, block_rows},
    dispatch, slice, with,
};

/// Rows of the parameters: the bias of the map before, gain and bias of LayerNorm, factor and summand of the affine map.
pub const ROWS: usize = 5;

/// `(1 - blend) LayerNorm(x) + blend (x * factor + summand)` for `x = z + bias + residual` of `rows x d`; the parameters are
/// `5 x d`.
pub struct AddNorm {
    /// 0 is LayerNorm alone, 1 the affine map alone.
    pub blend: f32,
    /// Added to the variance.
    pub epsilon: f32,
}

impl AddNorm {
    /// What it is built of.
    pub fn primitives(&self) -> &'static [Primitive] {
        const ALL: [Primitive; 3] = [Primitive::Add, Primitive::Multiply, Primitive::InverseRoot];
        if self.blend == 1.0 { &ALL[..2] } else { &ALL }
    }

    /// `x`, its mean and inverse deviation.
    #[inline(always)]
    fn row(&self, x: &mut [f32], z: &[f32], residual: &[f32], bias: &[f32]) -> (f32, f32) {
        let d = x.len();
        // Sums in lanes, which vectorise.
        let mut sums = [0.0f32; 16];
        for c in 0..d {
            x[c] = z[c] + residual[c] + bias[c];
            sums[c % 16] += x[c];
        }
        if self.blend == 1.0 {
            return (0.0, 1.0);
        }
        let mean = sums.iter().sum::<f32>() / d as f32;
        let mut squares = [0.0f32; 16];
        for c in 0..d {
            squares[c % 16] += (x[c] - mean) * (x[c] - mean);
        }
        let variance = squares.iter().sum::<f32>() / d as f32;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

struct Parameters<'a> {
    bias: &'a [f32],
    gain: &'a [f32],
    shift: &'a [f32],
    factor: &'a [f32],
    summand: &'a [f32],
}

impl<'a> Parameters<'a> {
    fn new(p: &'a [f32]) -> Self {
        let d = p.len() / ROWS;
        let row = |i: usize| &p[i * d..(i + 1) * d];
        Self { bias: row(0), gain: row(1), shift: row(2), factor: row(3), summand: row(4) }
    }
}

impl CustomOp3 for AddNorm {
    fn name(&self) -> &'static str {
        "add-norm"
    }

    fn cpu_fwd(
        &self,
        z: &CpuStorage,
        lz: &Layout,
        residual: &CpuStorage,
        lr: &Layout,
        p: &CpuStorage,
        lp: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (z, residual, p) = (slice(z, lz)?, slice(residual, lr)?, Parameters::new(slice(p, lp)?));
        let d = p.bias.len();
        let mut out = vec![0.0; z.len()];
        let (keep, blend) = (1.0 - self.blend, self.blend);
        let block = 8 * d;
        out.par_chunks_mut(block).zip(z.par_chunks(block)).zip(residual.par_chunks(block)).for_each(|((out, z), r)| {
            dispatch(
                #[inline(always)]
                || {
                    for ((y, z), r) in out.chunks_exact_mut(d).zip(z.chunks_exact(d)).zip(r.chunks_exact(d)) {
                        let (mean, scale) = self.row(y, z, r, p.bias);
                        for c in 0..d {
                            let normal = (y[c] - mean) * scale * p.gain[c] + p.shift[c];
                            y[c] = keep * normal + blend * (y[c] * p.factor[c] + p.summand[c]);
                        }
                    }
                },
            );
        });
        Ok((CpuStorage::F32(out), lz.shape().clone()))
    }

    fn bwd(
        &self,
        z: &Tensor,
        residual: &Tensor,
        p: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (out, p_grad) = with([z, residual, p, grad], |[z, residual, p, grad]| {
            let p = Parameters::new(p);
            let d = p.bias.len();
            let (keep, blend) = (1.0 - self.blend, self.blend);
            let mut out = vec![0.0f32; z.len()];
            let block = block_rows(z.len() / d) * d;
            let parts = out.par_chunks_mut(block).zip(z.par_chunks(block)).zip(residual.par_chunks(block));
            let parts = parts.zip(grad.par_chunks(block)).map(|(((out, z), r), g)| {
                let mut sums = vec![0.0f32; ROWS * d];
                let mut x = vec![0.0f32; d];
                dispatch(
                    #[inline(always)]
                    || {
                        let (s0, rest) = sums.split_at_mut(d);
                        let (s1, rest) = rest.split_at_mut(d);
                        let (s2, rest) = rest.split_at_mut(d);
                        let (s3, s4) = rest.split_at_mut(d);
                        let rows = out.chunks_exact_mut(d).zip(z.chunks_exact(d));
                        for ((y, z), (r, g)) in rows.zip(r.chunks_exact(d).zip(g.chunks_exact(d))) {
                            let (mean, scale) = self.row(&mut x, z, r, p.bias);
                            let (mut a, mut b) = ([0.0f32; 16], [0.0f32; 16]);
                            for c in 0..d {
                                let normal = (x[c] - mean) * scale;
                                let inner = g[c] * p.gain[c];
                                a[c % 16] += inner;
                                b[c % 16] += inner * normal;
                                s1[c] += keep * g[c] * normal;
                                s2[c] += keep * g[c];
                                s3[c] += blend * g[c] * x[c];
                                s4[c] += blend * g[c];
                            }
                            let (a, b) = (a.iter().sum::<f32>() / d as f32, b.iter().sum::<f32>() / d as f32);
                            for c in 0..d {
                                let normal = (x[c] - mean) * scale;
                                let through = scale * (g[c] * p.gain[c] - a - normal * b);
                                y[c] = keep * through + blend * g[c] * p.factor[c];
                                s0[c] += y[c];
                            }
                        }
                    },
                );
                sums
            });
            let parts: Vec<Vec<f32>> = parts.collect();
            let sums = add_up(parts, ROWS * d);
            (out, sums)
        })?;
        let x_grad = Tensor::from_vec(out, z.dims(), z.device())?;
        let p_grad = Tensor::from_vec(p_grad, p.dims(), z.device())?;
        Ok((Some(x_grad.clone()), Some(x_grad), Some(p_grad)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn gradients_are_the_differences() {
        for blend in [0.0, 0.3, 1.0] {
            let (z, r, p) = (noise(&[3, 8], 5), noise(&[3, 8], 6), noise(&[ROWS, 8], 7));
            let op = || AddNorm { blend, epsilon: 1e-12 };
            check_gradient(&[&z, &r, &p], || z.apply_op3(&r, &p, op()).unwrap(), 2e-2);
        }
    }

    #[test]
    fn the_affine_map_alone_is_one_product_and_one_sum() {
        let (z, r, p) = (noise(&[2, 4], 5), noise(&[2, 4], 6), noise(&[ROWS, 4], 7));
        let op = AddNorm { blend: 1.0, epsilon: 1e-12 };
        assert_eq!(op.primitives(), [Primitive::Add, Primitive::Multiply]);
        let y = z.apply_op3(&r, &p, op).unwrap().to_vec2::<f32>().unwrap();
        let [z, r, p] = [&z, &r, &p].map(|t| t.to_vec2::<f32>().unwrap());
        for i in 0..2 {
            for c in 0..4 {
                let x = z[i][c] + r[i][c] + p[0][c];
                assert!((y[i][c] - (x * p[3][c] + p[4][c])).abs() < 1e-6);
            }
        }
    }
}
