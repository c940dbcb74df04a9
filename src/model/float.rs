//! The checkpoint in floating point: what the fixed-point model is measured against.

use rayon::prelude::*;

use super::{
    Checkpoint, DenseActivation, EncoderLayer, Estimator, Linear, ModelError, Norm, Pooling,
    matmul::{matmul, transpose},
};

impl Checkpoint {
    /// The head's outputs in `f64`, without padding and before any normalisation: one row, or one a token.
    ///
    /// # Errors
    /// [`ModelError::Input`] if a token id, a type or a position has no row in the tables.
    pub fn forward(&self, ids: &[u32], types: &[u32]) -> Result<Vec<Vec<f64>>, ModelError> {
        let (n, d) = (ids.len(), self.config.hidden);
        let mut x = self.embedding.embed_real(ids, types)?;
        for layer in &self.layers {
            x = self.layer(layer, &x, n);
        }
        let mut rows: Vec<Vec<f64>> = match self.pooling {
            Pooling::Tokens => x.chunks(d).map(<[f64]>::to_vec).collect(),
            Pooling::First => vec![x.iter().take(d).copied().collect()],
            Pooling::Mean => {
                let sum = |c: usize| x.iter().skip(c).step_by(d).sum::<f64>() / n.max(1) as f64;
                vec![(0..d).map(sum).collect()]
            }
        };
        for layer in &self.head {
            for row in &mut rows {
                let z = apply(&layer.linear, row, 1);
                *row = match layer.activation {
                    DenseActivation::Tanh => z.into_iter().map(libm::tanh).collect(),
                    DenseActivation::Identity => z,
                };
            }
        }
        Ok(rows)
    }

    fn layer(&self, l: &EncoderLayer, x: &[f64], n: usize) -> Vec<f64> {
        let c = &self.config;
        let (d, k) = (c.hidden, c.hidden / c.heads);
        let (q, key, v) = (apply(&l.query, x, n), apply(&l.key, x, n), apply(&l.value, x, n));
        let head = |h: usize| -> Vec<f64> {
            let cut = |m: &[f64]| -> Vec<f64> {
                (0..n).flat_map(|i| m[i * d + h * k..i * d + (h + 1) * k].iter().copied()).collect()
            };
            let mut scores = matmul::<f64, f64>(&cut(&q), &transpose(&cut(&key), n, k), n, k, n);
            let scale = 1.0 / (k as f64).sqrt();
            for row in scores.chunks_mut(n) {
                match &l.estimator {
                    Some(estimator) => estimate_softmax(row, scale, estimator),
                    None => softmax(row, scale),
                }
            }
            matmul::<f64, f64>(&scores, &cut(&v), n, n, k)
        };
        let heads: Vec<Vec<f64>> = (0..c.heads).into_par_iter().map(head).collect();
        let context: Vec<f64> =
            (0..n).flat_map(|i| heads.iter().flat_map(move |h| h[i * k..(i + 1) * k].iter().copied())).collect();
        let mut middle = apply(&l.attention_output, &context, n);
        let add_norm = match l.estimator {
            Some(_) => add_affine,
            None => add_norm,
        };
        add_norm(&mut middle, x, &l.attention_norm, c.epsilon);
        let mut up = apply(&l.up, &middle, n);
        up.par_iter_mut().for_each(|x| *x = c.activation.real(*x));
        let mut out = apply(&l.down, &up, n);
        add_norm(&mut out, &middle, &l.output_norm, c.epsilon);
        out
    }
}

fn apply(map: &Linear, x: &[f64], rows: usize) -> Vec<f64> {
    let mut z = matmul::<f64, f32>(x, &map.weight, rows, map.inputs, map.outputs);
    for row in z.chunks_mut(map.outputs) {
        row.iter_mut().zip(&map.bias).for_each(|(z, &b)| *z += b as f64);
    }
    z
}

/// `exp(scale * x_i) / sum`, in place.
pub(crate) fn softmax(row: &mut [f64], scale: f64) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|x| *x = libm::exp((*x - max) * scale));
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

/// `u_i T(sum u)` of `u = ReLU((s / 2 + 1)^3)` for scores `s = scale * x`, in place.
fn estimate_softmax(row: &mut [f64], scale: f64, estimator: &Estimator) {
    row.iter_mut().for_each(|x| *x = (*x * scale / 2.0 + 1.0).max(0.0).powi(3));
    let reciprocal = estimator.value(row.iter().sum());
    row.iter_mut().for_each(|x| *x *= reciprocal);
}

/// The affine map of the sum with the residual that an approximated model has in LayerNorm's place, in place.
fn add_affine(x: &mut [f64], residual: &[f64], norm: &Norm, _: f64) {
    let d = norm.gain.len();
    for (row, residual) in x.chunks_mut(d).zip(residual.chunks(d)) {
        for c in 0..d {
            row[c] = (row[c] + residual[c]) * f64::from(norm.gain[c]) + f64::from(norm.bias[c]);
        }
    }
}

/// LayerNorm of the sum with the residual, in place.
fn add_norm(x: &mut [f64], residual: &[f64], norm: &Norm, epsilon: f64) {
    let d = norm.gain.len();
    for (row, residual) in x.chunks_mut(d).zip(residual.chunks(d)) {
        row.iter_mut().zip(residual).for_each(|(x, r)| *x += r);
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d as f64;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for (x, (&gain, &bias)) in row.iter_mut().zip(norm.gain.iter().zip(&norm.bias)) {
            *x = (*x - mean) * scale * gain as f64 + bias as f64;
        }
    }
}
