//! Magnitudes that no input can exceed, proven from the rounded weights.
//!
//! Every row that leaves a LayerNorm has `|y|_2 <= sqrt(d)`, up to the relative error of the table of inverse roots and the
//! rounding of `y`. Cauchy and Schwarz give the linear outputs, `|w . y| <= |w|_2 sqrt(d)`; a context is a convex
//! combination of values, because softmax's weights are not negative and sum to at most 1 up to the reciprocal's error;
//! every supported activation has `|a(x)| <= |x|`. Norms of whole rows use bounds on operator norms: for a positive
//! semidefinite `G`, `lambda_max(G) <= trace(G^p)^(1/p)`.

use super::{
    Checkpoint, DenseActivation, Graph, GraphOptions, ModelError, ModelSpec, Pooling, SpecError, WeightId,
    graph::BUCKETS,
    matmul::{matmul, transpose},
    quantize::{RealMatrix, Rounded},
};
use crate::arith::fixed::error;

/// The affine form `gain * n + bias` of a layer's input, `|n|_2 <= norm`, each feature rounded by at most `slack`.
struct Rows<'a> {
    norm: f64,
    slack: f64,
    /// `None` for plain normalised rows.
    affine: Option<(&'a [f32], &'a [f32])>,
}

impl Rows<'_> {
    fn gain(&self, i: usize) -> f64 {
        self.affine.map_or(1.0, |(gain, _)| gain[i] as f64)
    }

    fn bias(&self, i: usize) -> f64 {
        self.affine.map_or(0.0, |(_, bias)| bias[i] as f64)
    }

    /// Rows `from ..` of `map` as a map of `n`, with the constant part, without `map`'s bias.
    fn through(&self, map: &RealMatrix, from: usize) -> (RealMatrix, Vec<f64>) {
        let inputs = map.inputs - from;
        let mut weight = Vec::with_capacity(inputs * map.outputs);
        let mut constant = vec![0.0; map.outputs];
        for i in 0..inputs {
            weight.extend(map.row(from + i).iter().map(|w| w * self.gain(i)));
            constant.iter_mut().zip(map.row(from + i)).for_each(|(c, w)| *c += w * self.bias(i));
        }
        (RealMatrix { inputs, outputs: map.outputs, weight, bias: vec![0.0; map.outputs] }, constant)
    }
}

/// The worst-case description, and the fields that had to be cut because no ring of the protocol is as wide.
///
/// # Errors
/// [`ModelError::Spec`] if the shapes are outside what the engine supports.
pub(crate) fn worst_case(
    c: &Checkpoint,
    rounded: &Rounded,
    mut spec: ModelSpec,
) -> Result<(ModelSpec, Vec<String>), ModelError> {
    let d = spec.hidden;
    let p = spec.precision.clone();
    // The inverse root is high by at most its stated error and its rounding.
    let normalised = libm::sqrt(d as f64) * (1.0 + error(p.row_error_ppm) + libm::exp2(-10.0));
    let slack = libm::exp2(-(p.hidden_frac as f64 + 1.0));
    let rows = |affine| Rows { norm: normalised + slack * libm::sqrt(d as f64), slack, affine };

    let e = &c.embedding;
    let embedding =
        e.gain.iter().zip(&e.bias).map(|(g, b)| (*g as f64).abs() * libm::sqrt(d as f64) + (*b as f64).abs());
    spec.embedding_log2 = log2(embedding.fold(0.0, f64::max));

    let mut x = rows(Some((&e.gain[..], &e.bias[..])));
    for i in 0..spec.layers.len() {
        encoder_layer(rounded, &mut spec, i, &x)?;
        x = rows(None);
    }
    head(rounded, &mut spec, &x)?;
    clamp(spec, c.config.positions)
}

fn get(rounded: &Rounded, id: WeightId) -> Result<&RealMatrix, ModelError> {
    rounded.maps.get(&id).ok_or_else(|| ModelError::Unsupported { what: format!("{id:?} is absent") })
}

fn encoder_layer(rounded: &Rounded, spec: &mut ModelSpec, i: usize, x: &Rows<'_>) -> Result<(), ModelError> {
    let (d, heads, p) = (spec.hidden, spec.heads, spec.precision.clone());
    let k = d / heads;
    let project = |id| -> Result<_, ModelError> {
        let map = get(rounded, id)?;
        let (w, mut b) = x.through(map, 0);
        b.iter_mut().zip(&map.bias).for_each(|(b, bias)| *b += bias);
        let bound = linear_bound(&w, &b, x.norm, &sums(map, 0), x.slack);
        Ok((w, b, bound))
    };
    let (qw, qb, q) = project(WeightId::Query(i))?;
    let (kw, kb, key) = project(WeightId::Key(i))?;
    let (vw, vb, v) = project(WeightId::Value(i))?;

    // Scores per head: n Wq Wk^T n' + n Wq bk + n' Wk bq + bq bk, and the rounding of queries and keys.
    let rounding = libm::exp2(-(p.query_key_frac as f64));
    let mut score = 0f64;
    for h in 0..heads {
        let columns = h * k..(h + 1) * k;
        let (qh, kh) = (slice_columns(&qw, columns.clone()), slice_columns(&kw, columns.clone()));
        let (qb, kb) = (&qb[columns.clone()], &kb[columns.clone()]);
        let cross = libm::sqrt(largest_eigenvalue(matmul::<f64, f64>(&gram(&qh, d, k), &gram(&kh, d, k), k, k, k), k));
        let linear = norm(&matmul::<f64, f64>(&qh, kb, d, k, 1)) + norm(&matmul::<f64, f64>(&kh, qb, d, k, 1));
        let constant: f64 = qb.iter().zip(kb).map(|(a, b)| a * b).sum();
        let proven = x.norm * (x.norm * cross + linear) + constant.abs();
        let crude: f64 = columns.clone().map(|j| q[j] * key[j]).sum();
        let slack: f64 = columns.map(|j| (q[j] + key[j] + 1.0) * (rounding + x.slack * 64.0)).sum();
        score = score.max(proven.min(crude) + slack);
    }

    // Attention output: convex combinations of values per head, then the residual.
    let map = get(rounded, WeightId::AttentionOutput(i))?;
    let (residual, mut constant) = x.through(map, d);
    constant.iter_mut().zip(&map.bias).for_each(|(c, b)| *c += b);
    constant.iter_mut().zip(matmul::<f64, f64>(&vb, &map.weight[..d * d], 1, d, d)).for_each(|(c, b)| *c += b);
    let value_rounding = libm::exp2(-(p.value_frac as f64 + 1.0)) + libm::exp2(-(p.hidden_frac as f64 + 1.0));
    // The weights of softmax sum to 1 within the reciprocal's stated error and its own and the numerators' rounding.
    let relative = 2.0 * error(p.row_error_ppm) + libm::exp2(-8.0);
    let mut columns: Vec<f64> = column_norms(&residual).iter().map(|r| r * x.norm).collect();
    let mut row = operator_norm(&residual) * x.norm;
    for h in 0..heads {
        let vh = slice_columns(&vw, h * k..(h + 1) * k);
        let oh = &map.weight[h * k * d..(h + 1) * k * d];
        let both = RealMatrix { inputs: d, outputs: d, weight: matmul::<f64, f64>(&vh, oh, d, k, d), bias: Vec::new() };
        columns.iter_mut().zip(column_norms(&both)).for_each(|(c, n)| *c += n * x.norm);
        let product = matmul::<f64, f64>(&gram(&vh, d, k), &gram(&transpose(oh, k, d), d, k), k, k, k);
        row += libm::sqrt(largest_eigenvalue(product, k)) * x.norm;
    }
    let context_slack: Vec<f64> = v.iter().map(|v| value_rounding + v * relative).collect();
    let mut slack = sums(map, d).iter().map(|s| s * x.slack).collect::<Vec<_>>();
    for (l, s) in context_slack.iter().enumerate() {
        slack.iter_mut().zip(map.row(l)).for_each(|(t, w)| *t += w.abs() * s);
    }
    for j in 0..d {
        columns[j] += constant[j].abs() + slack[j];
    }
    let row = (row + norm(&constant) + norm(&slack)).min(norm(&columns));

    let l = &mut spec.layers[i];
    l.query_log2 = log2(largest(&q));
    l.key_log2 = log2(largest(&key));
    l.value_log2 = log2(largest(&v) * (1.0 + relative));
    l.score_log2 = log2(score);
    l.attention_log2 = log2(largest(&columns).min(row));
    l.attention_squares_log2 = log2(row * row * (1.0 + relative));

    // Feed-forward.
    let y = Rows { norm: x_norm(spec), slack: x.slack, affine: None };
    let up = get(rounded, WeightId::Up(i))?;
    let u = linear_bound(up, &up.bias, y.norm, &sums(up, 0), y.slack);
    let cell = error(p.activation_error_ppm) + y.slack;
    let inside = (operator_norm(up) * y.norm + norm(&up.bias)).min(norm(&u));
    let activation = inside + libm::sqrt(up.outputs as f64) * (cell + y.slack * 64.0);
    let map = get(rounded, WeightId::Down(i))?;
    let (residual, _) = y.through(map, up.outputs);
    let down =
        RealMatrix { inputs: up.outputs, outputs: d, weight: map.weight[..up.outputs * d].to_vec(), bias: Vec::new() };
    let slack: Vec<f64> = sums(map, up.outputs).iter().map(|s| s * y.slack).collect();
    let columns: Vec<f64> = column_norms(&down)
        .iter()
        .zip(column_norms(&residual))
        .zip(map.bias.iter().zip(&slack))
        .map(|((w, r), (b, s))| w * activation + r * y.norm + b.abs() + s)
        .collect();
    let row = operator_norm(&down) * activation + operator_norm(&residual) * y.norm + norm(&map.bias) + norm(&slack);
    let row = row.min(norm(&columns));
    let l = &mut spec.layers[i];
    l.up_log2 = log2(largest(&u));
    l.down_log2 = log2(largest(&columns).min(row));
    l.down_squares_log2 = log2(row * row * (1.0 + relative));
    Ok(())
}

/// Bound on a plain normalised row.
fn x_norm(spec: &ModelSpec) -> f64 {
    let (d, p) = (spec.hidden as f64, &spec.precision);
    libm::sqrt(d) * (1.0 + error(p.row_error_ppm) + libm::exp2(-10.0) + libm::exp2(-(p.hidden_frac as f64 + 1.0)))
}

fn head(rounded: &Rounded, spec: &mut ModelSpec, x: &Rows<'_>) -> Result<(), ModelError> {
    // A mean of rows is no longer than the longest; the pooling weights are rounded to 16 bits.
    let pooled = if spec.pooling == Pooling::Mean { 1.0 + libm::exp2(-6.0) } else { 1.0 };
    let mut input = x.norm * pooled;
    for i in 0..spec.dense.len() {
        let map = get(rounded, WeightId::Dense(i))?;
        let bound: Vec<f64> = column_norms(map)
            .iter()
            .zip(&map.bias)
            .zip(sums(map, 0))
            .map(|((w, b), s)| w * input + b.abs() + s * 2.0 * x.slack)
            .collect();
        spec.dense[i].out_log2 = log2(largest(&bound));
        input = match spec.dense[i].activation {
            DenseActivation::Tanh => libm::sqrt(map.outputs as f64),
            DenseActivation::Identity => norm(&bound),
        };
    }
    Ok(())
}

/// Cuts magnitudes, largest first, until every bucket has a graph. The oracle counts what then overflows.
fn clamp(mut spec: ModelSpec, positions: usize) -> Result<(ModelSpec, Vec<String>), ModelError> {
    let mut cut = Vec::new();
    for limit in (1..=40).rev() {
        for (i, l) in spec.layers.iter_mut().enumerate() {
            for (name, value) in l.magnitudes() {
                if *value > limit {
                    *value = limit;
                    cut.push(format!("layer{i}.{name}"));
                }
            }
        }
        for (i, l) in spec.dense.iter_mut().enumerate() {
            if l.out_log2 > limit {
                l.out_log2 = limit;
                cut.push(format!("dense{i}.out_log2"));
            }
        }
        spec.embedding_log2 = spec.embedding_log2.min(limit);
        let build = |n| match Graph::build(&spec, n, &GraphOptions::default()) {
            Ok(_) => Ok(true),
            Err(SpecError::Ring { .. }) => Ok(false),
            Err(e) => Err(e),
        };
        let mut fits = true;
        for n in BUCKETS.into_iter().filter(|&n| n <= positions) {
            fits = fits && build(n)?;
        }
        if fits {
            cut.sort();
            cut.dedup();
            return Ok((spec, cut));
        }
    }
    Err(ModelError::Unsupported { what: "no ring is wide enough for this model".into() })
}

/// `|w_j| norm + |b_j|` of every output, and what the rounding of the inputs adds.
fn linear_bound(w: &RealMatrix, b: &[f64], row_norm: f64, sums: &[f64], slack: f64) -> Vec<f64> {
    column_norms(w).iter().zip(b).zip(sums).map(|((n, b), s)| n * row_norm + b.abs() + s * slack).collect()
}

fn log2(x: f64) -> i32 {
    libm::ceil(libm::log2(x.max(libm::exp2(-20.0)))) as i32
}

fn largest(x: &[f64]) -> f64 {
    x.iter().copied().fold(0.0, f64::max)
}

fn norm(x: &[f64]) -> f64 {
    libm::sqrt(x.iter().map(|x| x * x).sum())
}

fn column_norms(m: &RealMatrix) -> Vec<f64> {
    let mut squares = vec![0.0; m.outputs];
    for i in 0..m.inputs {
        squares.iter_mut().zip(m.row(i)).for_each(|(s, w)| *s += w * w);
    }
    squares.into_iter().map(libm::sqrt).collect()
}

/// Sum of magnitudes of rows `from ..` of every column.
fn sums(m: &RealMatrix, from: usize) -> Vec<f64> {
    let mut sums = vec![0.0; m.outputs];
    for i in from..m.inputs {
        sums.iter_mut().zip(m.row(i)).for_each(|(s, w)| *s += w.abs());
    }
    sums
}

fn slice_columns(m: &RealMatrix, columns: std::ops::Range<usize>) -> Vec<f64> {
    (0..m.inputs).flat_map(|i| m.row(i)[columns.clone()].iter().copied()).collect()
}

/// `A^T A` of an `m x n` matrix.
fn gram(a: &[f64], m: usize, n: usize) -> Vec<f64> {
    matmul::<f64, f64>(&transpose(a, m, n), a, n, m, n)
}

/// An upper bound on the largest eigenvalue of an `n x n` matrix whose eigenvalues are not negative (a product of two
/// positive semidefinite matrices): `trace(G^8)^(1/8)`.
fn largest_eigenvalue(g: Vec<f64>, n: usize) -> f64 {
    // Scaled so that the powers neither overflow nor vanish; rounding is covered by the last factor.
    let scale = (0..n).map(|i| g[i * n + i]).sum::<f64>().max(f64::MIN_POSITIVE);
    let mut power: Vec<f64> = g.iter().map(|x| x / scale).collect();
    for _ in 0..3 {
        power = matmul::<f64, f64>(&power, &power, n, n, n);
    }
    let trace: f64 = (0..n).map(|i| power[i * n + i]).sum();
    (scale * libm::pow(trace.max(0.0) + 1e-12, 0.125)).min(scale) * (1.0 + 1e-9)
}

fn operator_norm(m: &RealMatrix) -> f64 {
    let gram = if m.inputs < m.outputs {
        gram(&transpose(&m.weight, m.inputs, m.outputs), m.outputs, m.inputs)
    } else {
        gram(&m.weight, m.inputs, m.outputs)
    };
    libm::sqrt(largest_eigenvalue(gram, m.inputs.min(m.outputs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_norms_are_upper_bounds_and_not_loose() {
        // A diagonal matrix in disguise: rotation by 30 degrees, diag(3, 1, 0.5), in the first three coordinates of 6.
        let (c, s) = (libm::cos(0.5), libm::sin(0.5));
        let mut weight = vec![0.0; 18];
        for (i, j, w) in [(0, 0, 3.0 * c), (0, 1, 3.0 * s), (1, 0, -s), (1, 1, c), (2, 2, 0.5)] {
            weight[i * 3 + j] = w;
        }
        let m = RealMatrix { inputs: 6, outputs: 3, weight, bias: vec![0.0; 3] };
        let bound = operator_norm(&m);
        assert!((3.0..3.001).contains(&bound), "{bound}");
        let wide = RealMatrix { inputs: 3, outputs: 6, weight: transpose(&m.weight, 6, 3), bias: vec![0.0; 6] };
        assert!((operator_norm(&wide) - bound).abs() < 1e-9);
    }

    #[test]
    fn eigenvalue_bound_of_the_identity() {
        let identity: Vec<f64> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
        let bound = largest_eigenvalue(identity, 4);
        assert!((1.0..1.2).contains(&bound), "4^(1/8) = 1.19, got {bound}");
    }
}
