//! Attention of all heads over the texts of a batch, by softmax or by the softmax estimator.
//!
//! The estimator is `u_j T(sum_j u_j)` with `u = ReLU((s / 2 + 1)^3)`, where `T` is a perceptron of one hidden layer that
//! stands for the reciprocal (Chen et al., THE-X, Findings of ACL 2022; the numerator without the score in front). A batch has
//! no padding, so that masked columns weigh nothing.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Primitive, Spans,
    activation::column_sums,
    dispatch, exp, slice,
    small::{multiply_add, multiply_add_transposed, transpose},
    with,
};

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighting {
    /// `exp(s_j) / sum`.
    Softmax,
    /// The estimator; its perceptron is the operation's third argument.
    Estimator(Penalty),
}

/// What scores and sums outside their ranges cost: `strength` times the mean square of their distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalty {
    /// 0 for none.
    pub strength: f32,
    /// Range of the scores.
    pub score: Bounds,
    /// Range of the sums, whose distance is that of their logarithms.
    pub sum: Bounds,
}

impl Penalty {
    /// Nothing costs anything.
    pub const NONE: Self = Self { strength: 0.0, score: Bounds::EMPTY, sum: Bounds::EMPTY };
}

/// A closed range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Smallest value.
    pub low: f32,
    /// Largest value.
    pub high: f32,
}

impl Bounds {
    /// No value yet.
    pub const EMPTY: Self = Self { low: f32::INFINITY, high: f32::NEG_INFINITY };

    /// The range of both.
    pub fn join(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// The range with `x`.
    pub fn with(self, x: f32) -> Self {
        self.join(Self { low: x, high: x })
    }

    /// How far `x` is outside; negative below.
    #[inline(always)]
    fn excess(self, x: f32) -> f32 {
        (x - self.high).max(0.0) + (x - self.low).min(0.0)
    }
}

/// What an attention saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Scores.
    pub score: Bounds,
    /// Sums of numerators, of the estimator.
    pub sum: Bounds,
    /// Every sum, of the estimator.
    pub sums: Vec<f32>,
}

/// Collects what an attention sees.
#[derive(Debug)]
pub struct Watch(Mutex<Seen>);

impl Default for Watch {
    fn default() -> Self {
        Self(Mutex::new(Seen { score: Bounds::EMPTY, sum: Bounds::EMPTY, sums: Vec::new() }))
    }
}

impl Watch {
    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, score: Bounds, sums: &[f32]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.score = seen.score.join(score);
        seen.sum = sums.iter().fold(seen.sum, |range, &sum| range.with(sum));
        seen.sums.extend_from_slice(sums);
    }
}

/// Contexts `rows x d` of queries, keys and values side by side before their biases (`rows x 3d`), the biases (`3d`), and the
/// estimator: `h` hidden weights, `h` hidden biases, `h` output weights, the output bias. The estimator gets no gradient.
pub struct Attention {
    /// The batch's texts.
    pub spans: Arc<Spans>,
    /// Number of heads.
    pub heads: usize,
    /// How scores become weights.
    pub weighting: Weighting,
    /// Who looks on.
    pub watch: Option<Arc<Watch>>,
}

/// `T(sum)` and its slope.
#[inline(always)]
pub fn perceptron(t: &[f32], sum: f32) -> (f32, f32) {
    let h = t.len() / 3;
    let (w, b, o) = (&t[..h], &t[h..2 * h], &t[2 * h..3 * h]);
    let (mut value, mut slope) = (t[3 * h], 0.0);
    for m in 0..h {
        let x = w[m] * sum + b[m];
        let on = if x > 0.0 { o[m] } else { 0.0 };
        value += on * x;
        slope += on * w[m];
    }
    (value, slope)
}

/// One head of one text.
struct Head {
    rows: usize,
    /// Features of the head.
    k: usize,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    scores: Vec<f32>,
    weights: Vec<f32>,
    turned: Vec<f32>,
}

impl Head {
    fn new(rows: usize, k: usize) -> Self {
        let (narrow, square) = (vec![0.0; rows * k], vec![0.0; rows * rows]);
        Self {
            rows,
            k,
            query: narrow.clone(),
            key: narrow.clone(),
            value: narrow.clone(),
            scores: square.clone(),
            weights: square,
            turned: narrow,
        }
    }

    /// Fills queries (times `1 / sqrt(k)`), keys, values and scores.
    #[inline(always)]
    fn load(&mut self, z: &[f32], bias: &[f32], head: usize) {
        let (k, d) = (self.k, bias.len() / 3);
        let scale = 1.0 / (k as f32).sqrt();
        let parts = [(&mut self.query, scale), (&mut self.key, 1.0), (&mut self.value, 1.0)];
        for (part, (out, scale)) in parts.into_iter().enumerate() {
            let at = part * d + head * k;
            let bias = &bias[at..at + k];
            for (out, row) in out.chunks_exact_mut(k).zip(z.chunks_exact(3 * d)) {
                let row = &row[at..at + k];
                for c in 0..k {
                    out[c] = (row[c] + bias[c]) * scale;
                }
            }
        }
        transpose(&mut self.turned, &self.key, self.rows, k);
        self.scores.fill(0.0);
        multiply_add(&mut self.scores, &self.query, &self.turned, self.rows, k, self.rows);
    }

    /// Fills the weights of softmax.
    #[inline(always)]
    fn softmax(&mut self) {
        let n = self.rows;
        for (w, s) in self.weights.chunks_exact_mut(n).zip(self.scores.chunks_exact(n)) {
            let max = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for j in 0..n {
                w[j] = exp(s[j] - max);
            }
            for j in 0..n {
                sum += w[j];
            }
            let scale = 1.0 / sum;
            for j in 0..n {
                w[j] *= scale;
            }
        }
    }

    /// Fills numerators of the estimator, and `sums` with those of the rows.
    #[inline(always)]
    fn numerators(&mut self, sums: &mut [f32]) {
        let n = self.rows;
        for ((w, s), sum) in self.weights.chunks_exact_mut(n).zip(self.scores.chunks_exact(n)).zip(sums) {
            for j in 0..n {
                let x = (0.5 * s[j] + 1.0).max(0.0);
                w[j] = x * x * x;
            }
            *sum = w.iter().sum();
        }
    }

    /// Adds the contexts to `rows x d` numbers.
    #[inline(always)]
    fn context(&mut self, out: &mut [f32], d: usize, head: usize) {
        let (n, k) = (self.rows, self.k);
        self.turned.fill(0.0);
        multiply_add(&mut self.turned, &self.weights, &self.value, n, n, k);
        for (out, row) in out.chunks_exact_mut(d).zip(self.turned.chunks_exact(k)) {
            out[head * k..(head + 1) * k].copy_from_slice(row);
        }
    }
}

impl Attention {
    /// What it is built of.
    pub fn primitives(&self) -> &'static [Primitive] {
        match self.weighting {
            Weighting::Softmax => &[Primitive::Add, Primitive::Multiply, Primitive::Exp, Primitive::Divide],
            Weighting::Estimator(_) => &[Primitive::Add, Primitive::Multiply, Primitive::Relu],
        }
    }

    fn forward(&self, out: &mut [f32], z: &[f32], bias: &[f32], t: &[f32], rows: usize) {
        let d = bias.len() / 3;
        let mut head = Head::new(rows, d / self.heads);
        let mut sums = vec![0.0; rows];
        let mut range = Bounds::EMPTY;
        let mut seen = Vec::new();
        for h in 0..self.heads {
            dispatch(
                #[inline(always)]
                || {
                    head.load(z, bias, h);
                    match self.weighting {
                        Weighting::Softmax => head.softmax(),
                        Weighting::Estimator(_) => {
                            head.numerators(&mut sums);
                            for (w, &sum) in head.weights.chunks_exact_mut(rows).zip(&sums) {
                                let (reciprocal, _) = perceptron(t, sum);
                                for w in w {
                                    *w *= reciprocal;
                                }
                            }
                        }
                    }
                    head.context(out, d, h);
                },
            );
            if self.watch.is_some() {
                range = head.scores.iter().fold(range, |range, &s| range.with(s));
                if self.weighting != Weighting::Softmax {
                    seen.extend_from_slice(&sums);
                }
            }
        }
        if let Some(watch) = &self.watch {
            watch.add(range, &seen);
        }
    }

    /// Gradient of `z` from that of the contexts.
    fn backward(&self, out: &mut [f32], grad: &[f32], z: &[f32], bias: &[f32], t: &[f32], rows: usize, all: usize) {
        let d = bias.len() / 3;
        let k = d / self.heads;
        let mut head = Head::new(rows, k);
        let mut sums = vec![0.0; rows];
        let (mut g, mut turned, mut part) = (vec![0.0f32; rows * k], vec![0.0f32; rows * k], vec![0.0f32; rows * k]);
        let mut inner = vec![0.0f32; rows * rows];
        let scale = 1.0 / (k as f32).sqrt();
        // The mean is over all scores of the batch that a text of its mean length would have.
        let pairs = 1.0 / (all as f32 * self.heads as f32);
        for h in 0..self.heads {
            dispatch(
                #[inline(always)]
                || {
                    head.load(z, bias, h);
                    for (g, grad) in g.chunks_exact_mut(k).zip(grad.chunks_exact(d)) {
                        g.copy_from_slice(&grad[h * k..(h + 1) * k]);
                    }
                    transpose(&mut turned, &head.value, rows, k);
                    inner.fill(0.0);
                    multiply_add(&mut inner, &g, &turned, rows, k, rows);
                    match self.weighting {
                        Weighting::Softmax => {
                            head.softmax();
                            for (x, w) in inner.chunks_exact_mut(rows).zip(head.weights.chunks_exact(rows)) {
                                let mut dot = 0.0;
                                for j in 0..rows {
                                    dot += x[j] * w[j];
                                }
                                for j in 0..rows {
                                    x[j] = w[j] * (x[j] - dot);
                                }
                            }
                        }
                        Weighting::Estimator(penalty) => {
                            head.numerators(&mut sums);
                            for i in 0..rows {
                                let (x, w) = (&mut inner[i * rows..][..rows], &mut head.weights[i * rows..][..rows]);
                                let s = &head.scores[i * rows..][..rows];
                                let (reciprocal, slope) = perceptron(t, sums[i]);
                                let mut dot = 0.0;
                                for j in 0..rows {
                                    dot += x[j] * w[j];
                                }
                                let mut through_sum = dot * slope;
                                if penalty.strength > 0.0 {
                                    let sum = sums[i].max(1e-3);
                                    let low = penalty.sum.low / sum;
                                    let high = sum / penalty.sum.high;
                                    let excess = high.max(1.0).ln() - low.max(1.0).ln();
                                    through_sum += 2.0 * penalty.strength * pairs * excess / sum;
                                }
                                for j in 0..rows {
                                    let u = (0.5 * s[j] + 1.0).max(0.0);
                                    x[j] = (x[j] * reciprocal + through_sum) * 1.5 * u * u;
                                    w[j] *= reciprocal;
                                }
                                if penalty.strength > 0.0 {
                                    let cost = 2.0 * penalty.strength * pairs / rows as f32;
                                    for j in 0..rows {
                                        x[j] += cost * penalty.score.excess(s[j]);
                                    }
                                }
                            }
                        }
                    }
                    // Values, then keys, then queries.
                    for (at, which) in [(2 * d, 2), (d, 1), (0, 0)] {
                        part.fill(0.0);
                        match which {
                            2 => multiply_add_transposed(&mut part, &head.weights, &g, rows, rows, k),
                            1 => multiply_add_transposed(&mut part, &inner, &head.query, rows, rows, k),
                            _ => multiply_add(&mut part, &inner, &head.key, rows, rows, k),
                        }
                        // The queries that keys meet are scaled already.
                        let scale = if which == 0 { scale } else { 1.0 };
                        for (out, part) in out.chunks_exact_mut(3 * d).zip(part.chunks_exact(k)) {
                            for (out, part) in out[at + h * k..][..k].iter_mut().zip(part) {
                                *out = part * scale;
                            }
                        }
                    }
                },
            );
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        z: &CpuStorage,
        lz: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
        t: &CpuStorage,
        lt: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (z, bias, t) = (slice(z, lz)?, slice(bias, lb)?, slice(t, lt)?);
        let d = bias.len() / 3;
        let mut out = vec![0.0f32; self.spans.rows() * d];
        let parts = self.spans.split(&mut out, d).into_iter().zip(self.spans.iter()).collect::<Vec<_>>();
        parts.into_par_iter().with_max_len(1).for_each(|(out, (start, rows))| {
            self.forward(out, &z[start * 3 * d..(start + rows) * 3 * d], bias, t, rows);
        });
        Ok((CpuStorage::F32(out), (self.spans.rows(), d).into()))
    }

    fn bwd(
        &self,
        z: &Tensor,
        bias: &Tensor,
        t: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let all = self.spans.rows();
        let (out, sums) = with([z, bias, t, grad], |[z, bias, t, grad]| {
            let d = bias.len() / 3;
            let mut out = vec![0.0f32; z.len()];
            let parts = self.spans.split(&mut out, 3 * d).into_iter().zip(self.spans.iter()).collect::<Vec<_>>();
            parts.into_par_iter().with_max_len(1).for_each(|(out, (start, rows))| {
                let z = &z[start * 3 * d..(start + rows) * 3 * d];
                self.backward(out, &grad[start * d..(start + rows) * d], z, bias, t, rows, all);
            });
            let sums = column_sums(&out, 3 * d);
            (out, sums)
        })?;
        let z_grad = Tensor::from_vec(out, z.dims(), z.device())?;
        Ok((Some(z_grad), Some(Tensor::from_vec(sums, bias.dims(), z.device())?), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::{super::tests::*, *};

    fn attention(weighting: Weighting) -> Attention {
        Attention { spans: Spans::new([3, 1, 5]), heads: 2, weighting, watch: None }
    }

    /// T(s) = 0.3 + 0.8 ReLU(1 - s / 20) - 0.1 ReLU(s - 1).
    fn perceptron() -> Var {
        Var::from_vec(vec![-0.05f32, 1.0, 1.0, -1.0, 0.8, -0.1, 0.3], 7, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_are_the_differences() {
        let (z, b, t) = (noise(&[9, 18], 11), noise(&[18], 12), perceptron());
        let free = Bounds { low: -100.0, high: 100.0 };
        for weighting in [Weighting::Softmax, Weighting::Estimator(Penalty { strength: 0.0, score: free, sum: free })] {
            check_gradient(&[&z, &b], || z.apply_op3(&b, &t, attention(weighting)).unwrap(), 2e-2);
        }
    }

    #[test]
    fn the_penalty_pulls_scores_and_sums_into_their_ranges() {
        let (z, b, t) = (noise(&[9, 18], 13), noise(&[18], 14), perceptron());
        let far = Bounds { low: -1e6, high: 1e6 };
        let any = Bounds { low: 1e-6, high: 1e6 };
        let outside = |strength: f32, score: Bounds, sum: Bounds| {
            let seen = |z: &Tensor| {
                let watch = Arc::new(Watch::default());
                let op = Attention { watch: Some(watch.clone()), ..attention(Weighting::Estimator(Penalty::NONE)) };
                z.apply_op3(&b, &t, op).unwrap();
                watch.seen()
            };
            let penalty = Penalty { strength, score, sum };
            // Without a gradient from behind only the penalty moves anything.
            let y = z.apply_op3(&b, &t, attention(Weighting::Estimator(penalty))).unwrap();
            let nothing = y.zeros_like().unwrap();
            let grads = (y * nothing).unwrap().sum_all().unwrap().backward().unwrap();
            // A step that is small beside the curvature of scores in queries and keys.
            let step = (grads.get(&z).unwrap() * 0.05).unwrap();
            let moved = (z.as_tensor() - step).unwrap();
            (seen(&z), seen(&moved))
        };
        let narrow = Bounds { low: -0.1, high: 0.1 };
        let (before, after) = outside(20.0, narrow, any);
        let shrinks = after.score.high < before.score.high && after.score.low > before.score.low;
        assert!(shrinks, "{:?} {:?}", before.score, after.score);
        let (before, after) = outside(20.0, far, Bounds { low: 0.5, high: 4.0 });
        assert!(after.sum.high < before.sum.high, "{:?} {:?}", before.sum, after.sum);
        let (before, after) = outside(0.0, narrow, Bounds { low: 0.5, high: 4.0 });
        assert_eq!((before.score, before.sum), (after.score, after.sum));
    }
}
