//! What training makes small: the distance from the labels, from the teacher's outputs and from its hidden states.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{batch::Task, ops::with};

/// Logarithms of the softmax of every row.
fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Cross entropy with the labels, or the mean square error of the values.
///
/// # Errors
/// What the tensor library reports.
pub fn from_targets(output: &Tensor, targets: &[f32], task: Task) -> Result<Tensor> {
    match task {
        Task::Classification => {
            let labels: Vec<u32> = targets.iter().map(|&t| t as u32).collect();
            let labels = Tensor::from_vec(labels, (targets.len(), 1), &Device::Cpu)?;
            log_softmax(output)?.gather(&labels, 1)?.mean_all()?.neg()
        }
        Task::Regression => {
            let targets = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu)?;
            (output - targets)?.sqr()?.mean_all()
        }
    }
}

/// Cross entropy with the teacher's probabilities, or the mean square distance from its values.
///
/// # Errors
/// What the tensor library reports.
pub fn from_teacher(output: &Tensor, teacher: &Tensor, task: Task) -> Result<Tensor> {
    match task {
        Task::Classification => {
            let probabilities = log_softmax(teacher)?.exp()?;
            (log_softmax(output)? * probabilities)?.sum(D::Minus1)?.mean_all()?.neg()
        }
        Task::Regression => (output - teacher)?.sqr()?.mean_all(),
    }
}

/// `sum_c w_c mean_rows (x_c - y_c)^2`, without a gradient of y.
struct Distance {
    weights: Arc<Vec<f32>>,
}

impl Distance {
    fn weighted(&self, x: &[f32], y: &[f32]) -> f64 {
        let d = self.weights.len();
        let row = |(x, y): (&[f32], &[f32])| -> f64 {
            (0..d).map(|c| f64::from(self.weights[c] * (x[c] - y[c]) * (x[c] - y[c]))).sum()
        };
        let rows: Vec<f64> = x.par_chunks(d).zip(y.par_chunks(d)).map(row).collect();
        rows.iter().sum::<f64>() / rows.len().max(1) as f64
    }
}

impl CustomOp2 for Distance {
    fn name(&self) -> &'static str {
        "distance"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<(CpuStorage, Shape)> {
        let (Some((x0, x1)), Some((y0, y1))) = (lx.contiguous_offsets(), ly.contiguous_offsets()) else {
            candle_core::bail!("hidden states are not contiguous")
        };
        let value = self.weighted(&x.as_slice::<f32>()?[x0..x1], &y.as_slice::<f32>()?[y0..y1]);
        Ok((CpuStorage::F32(vec![value as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = self.weights.len();
        let rows = x.elem_count() / d.max(1);
        let scale = 2.0 * grad.to_scalar::<f32>()? / rows.max(1) as f32;
        let mut out = vec![0.0f32; x.elem_count()];
        with([x, y], |[x, y]| {
            out.par_chunks_mut(d).zip(x.par_chunks(d).zip(y.par_chunks(d))).for_each(|(out, (x, y))| {
                for c in 0..d {
                    out[c] = scale * self.weights[c] * (x[c] - y[c]);
                }
            });
        })?;
        Ok((Some(Tensor::from_vec(out, x.dims(), x.device())?), None))
    }
}

/// Mean over the features of the mean square distance from the teacher's hidden states, in units of each feature's variance in
/// the batch, so that a few large features do not count for all; the variance is at least a hundredth of the features' mean.
///
/// # Errors
/// What the tensor library reports.
pub fn from_hidden(x: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (rows, d) = teacher.dims2()?;
    let weights = with([teacher], |[y]| {
        let n = rows.max(1) as f64;
        let (mut sum, mut square) = (vec![0.0f64; d], vec![0.0f64; d]);
        for row in y.chunks_exact(d) {
            for c in 0..d {
                sum[c] += f64::from(row[c]);
                square[c] += f64::from(row[c] * row[c]);
            }
        }
        let variance: Vec<f64> = (0..d).map(|c| (square[c] / n - (sum[c] / n).powi(2)).max(0.0)).collect();
        let least = variance.iter().sum::<f64>() / d as f64 / 100.0 + 1e-9;
        variance.iter().map(|v| (1.0 / (v.max(least) * d as f64)) as f32).collect()
    })?;
    x.apply_op2(teacher, Distance { weights: Arc::new(weights) })
}

#[cfg(test)]
mod tests {
    use super::{
        super::ops::tests::{check_gradient, noise},
        *,
    };

    #[test]
    fn gradients_are_the_differences() {
        let (x, y) = (noise(&[4, 3], 1), noise(&[4, 3], 2));
        check_gradient(&[&x], || from_hidden(&x, &y.as_detached_tensor()).unwrap(), 1e-2);
        for task in [Task::Classification, Task::Regression] {
            check_gradient(&[&x], || from_teacher(&x, &y.as_detached_tensor(), task).unwrap(), 1e-2);
        }
        check_gradient(&[&x], || from_targets(&x, &[0.0, 2.0, 1.0, 1.0], Task::Classification).unwrap(), 1e-2);
    }

    #[test]
    fn values_by_hand() {
        let row = |x: &[f32]| Tensor::from_slice(x, (1, x.len()), &Device::Cpu).unwrap();
        let value = |t: Tensor| t.to_scalar::<f32>().unwrap();
        // ln(1 + e^-2).
        let loss = value(from_targets(&row(&[1.0, -1.0]), &[0.0], Task::Classification).unwrap());
        assert!((loss - 0.126_928).abs() < 1e-5, "{loss}");
        assert_eq!(value(from_targets(&row(&[1.5]), &[1.0], Task::Regression).unwrap()), 0.25);
        let same = row(&[1.0, 2.0, 3.0]);
        assert_eq!(value(from_hidden(&same, &same).unwrap()), 0.0);
    }
}
