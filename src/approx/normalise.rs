//! The first guess of affine maps in the places of LayerNorm, and of a head without the pooler.

use candle_core::{Device, Result, Tensor};

use super::{
    batch::Batch,
    bert::{Bert, Pass},
    ops::with,
    solve::{normal_equations, solve},
};

/// Puts into normalisation `n` the affine map that is nearest to `targets` (`tokens x d`) in the mean square, feature by feature,
/// and makes it the only one used.
///
/// # Errors
/// What the tensor library reports.
pub fn fit(model: &mut Bert, n: usize, batch: &Batch, targets: &Tensor) -> Result<()> {
    let outcome = model.forward(batch, &Pass::PLAIN)?;
    let (z, residual) = &outcome.before[n];
    let var = model.norm(n).clone();
    let fitted = with([z, residual, targets, var.as_tensor()], |[z, residual, y, p]| {
        let d = p.len() / 5;
        let mut sums = vec![[0.0f64; 4]; d];
        for (i, ((z, r), &y)) in z.iter().zip(residual).zip(y).enumerate() {
            let c = i % d;
            let (x, y) = (f64::from(z + r + p[c]), f64::from(y));
            for (s, v) in sums[c].iter_mut().zip([x, y, x * x, x * y]) {
                *s += v;
            }
        }
        let rows = (z.len() / d).max(1) as f64;
        let mut fitted = p.to_vec();
        for (c, [x, y, xx, xy]) in sums.into_iter().map(|s| s.map(|v| v / rows)).enumerate() {
            let variance = xx - x * x;
            let factor = if variance > 1e-12 { (xy - x * y) / variance } else { 0.0 };
            fitted[3 * d + c] = factor as f32;
            fitted[4 * d + c] = (y - factor * x) as f32;
        }
        fitted
    })?;
    var.set(&Tensor::from_vec(fitted, var.dims(), &Device::Cpu)?)?;
    model.form.blend[n] = 1.0;
    Ok(())
}

/// Moves the centring and scaling of the embeddings' LayerNorm into the word table: every word's row, with the mean position and
/// the first type, gets mean 0 and the table's mean deviation. What remains for the affine map is how positions and types
/// change mean and deviation.
///
/// # Errors
/// What the tensor library reports.
pub fn absorb(model: &mut Bert) -> Result<()> {
    let d = model.hidden();
    let positions = model.parameters[model.positions].var.as_tensor();
    let tokens = positions.dims2()?.0.min(64);
    let place = with([positions, model.parameters[model.types].var.as_tensor()], |[p, t]| {
        let mean = |c: usize| (0..tokens).map(|i| p[i * d + c]).sum::<f32>() / tokens as f32;
        (0..d).map(|c| mean(c) + t[c]).collect::<Vec<f32>>()
    })?;
    let absorbed = with([&model.word], |[word]| {
        let moments = |row: &[f32]| {
            let x: Vec<f64> = row.iter().zip(&place).map(|(w, p)| f64::from(w + p)).collect();
            let mean = x.iter().sum::<f64>() / d as f64;
            (mean, (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d as f64).sqrt())
        };
        let all: Vec<(f64, f64)> = word.chunks_exact(d).map(moments).collect();
        let deviation = all.iter().map(|m| m.1).sum::<f64>() / all.len().max(1) as f64;
        let mut out = Vec::with_capacity(word.len());
        for (row, (mean, own)) in word.chunks_exact(d).zip(all) {
            let scale = deviation / own.max(1e-6);
            let value = |(w, p): (&f32, &f32)| ((f64::from(w + p) - mean) * scale - f64::from(*p)) as f32;
            out.extend(row.iter().zip(&place).map(value));
        }
        out
    })?;
    model.word = Tensor::from_vec(absorbed, model.word.dims(), &Device::Cpu)?;
    Ok(())
}

/// One linear map from the pooled row to what the whole head gives, by least squares over the batches: weights
/// (`outputs x d`) and biases.
///
/// # Errors
/// What the tensor library reports.
pub fn straighten_head(model: &Bert, batches: impl Iterator<Item = Result<Batch>>) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for batch in batches {
        let outcome = model.forward(&batch?, &Pass::PLAIN)?;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        rows.extend(outcome.pooled.to_vec2::<f32>()?.iter().map(|x| [wide(x), vec![1.0]].concat()));
        targets.extend(outcome.output.to_vec2::<f32>()?.iter().map(|x| wide(x)));
    }
    let outputs = targets.first().map_or(0, Vec::len);
    let (a, b, n) = normal_equations(&rows, &targets, 1e-4);
    let x = solve(a, b, n);
    let d = n.saturating_sub(1);
    let weight = (0..outputs * d).map(|i| x[i % d * outputs + i / d] as f32).collect();
    Ok((weight, (0..outputs).map(|o| x[d * outputs + o] as f32).collect()))
}
