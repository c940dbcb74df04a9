//! The approximated model: a BERT encoder of additions, multiplications and ReLU, and its evaluation in floating point.
//!
//! GELU is ReLU; LayerNorm is `x gamma + beta`, without centring or scaling; softmax is
//! `S(x)_i = e_i T(sum_j e_j)`, `e_i = ReLU((x_i/2 + 1)^3)`, `x = q k / sqrt(d)`, where columns of padding have `e = 0` and `T` is a
//! perceptron `1 -> h -> 1` with ReLU (THE-X, Chen et al., Findings of ACL 2022).

use super::{Result, ThexError};

/// `x W + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// Rows of the weights.
    pub inputs: usize,
    /// Columns of the weights.
    pub outputs: usize,
    /// `[inputs][outputs]`: the transpose of what checkpoints hold.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// `x gamma + beta`, column by column.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineNorm {
    /// Factors.
    pub gamma: Vec<f32>,
    /// Terms.
    pub beta: Vec<f32>,
}

/// The perceptron `T(s) = sum_k output_k ReLU(hidden_k s + bias_k) + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimator {
    /// Weights of the hidden units.
    pub hidden: Vec<f32>,
    /// Their biases.
    pub hidden_bias: Vec<f32>,
    /// Weights of the output.
    pub output: Vec<f32>,
    /// Its bias.
    pub output_bias: f32,
}

/// One encoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApproxLayer {
    /// Query projection.
    pub query: Dense,
    /// Key projection.
    pub key: Dense,
    /// Value projection.
    pub value: Dense,
    /// The estimator of the reciprocal.
    pub estimator: Estimator,
    /// Least and largest sum of a row's numerators that it was made for.
    pub sum_range: [f64; 2],
    /// The map after attention.
    pub attention_output: Dense,
    /// The affine map in place of the LayerNorm after attention, over the residual sum.
    pub attention_norm: AffineNorm,
    /// First map of the feed-forward network, followed by ReLU.
    pub intermediate: Dense,
    /// Its second map.
    pub output: Dense,
    /// The affine map in place of the last LayerNorm, over the residual sum.
    pub output_norm: AffineNorm,
}

/// Which rows the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first.
    First,
    /// The mean of those that are not padding.
    Mean,
}

/// An approximated model after its embedding tables.
#[derive(Clone, Debug, PartialEq)]
pub struct ApproxModel {
    /// Attention heads.
    pub heads: usize,
    /// In place of the LayerNorm of the embeddings.
    pub embedding_norm: AffineNorm,
    /// Encoder layers.
    pub layers: Vec<ApproxLayer>,
    /// Rows of the head.
    pub pooling: Pooling,
    /// The head.
    pub head: Dense,
    /// Largest `|x|` of a score that the approximation was made for.
    pub score_limit: f64,
    /// Largest magnitude of any other activation that it was made for: the ledger of encrypted values counts with it.
    pub activation_limit: f64,
}

/// The public sizes of a model, which both parties know.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Width of a hidden state.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Hidden units of the estimator, the most of any layer.
    pub estimator: usize,
    /// Layers.
    pub layers: usize,
    /// [`ApproxLayer::sum_range`] of every layer.
    pub sum_ranges: Vec<[f64; 2]>,
    /// Outputs of the head.
    pub outputs: usize,
    /// Rows of the head.
    pub pooling: Pooling,
    /// As in [`ApproxModel`].
    pub score_limit: f64,
    /// As in [`ApproxModel`].
    pub activation_limit: f64,
}

/// What a floating-point evaluation gives.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatRun {
    /// Outputs of the head.
    pub outputs: Vec<f64>,
    /// Largest `|x|` of a score that counts.
    pub largest_score: f64,
    /// Largest magnitude of an activation.
    pub largest_activation: f64,
}

impl Dense {
    fn check(&self, name: &str, inputs: usize) -> Result<()> {
        let fits = self.inputs == inputs
            && Some(self.weight.len()) == self.inputs.checked_mul(self.outputs)
            && self.bias.len() == self.outputs
            && self.outputs > 0
            && self.weight.iter().chain(&self.bias).all(|w| w.is_finite());
        if fits {
            return Ok(());
        }
        let detail = format!(
            "{name}: {} x {} where {inputs} inputs are needed, or values that are not numbers",
            self.inputs, self.outputs
        );
        Err(ThexError::Model(detail))
    }

    /// `[rows][outputs]` of `[rows][inputs]`.
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let mut out = Vec::with_capacity(x.len() / self.inputs * self.outputs);
        for row in x.chunks(self.inputs) {
            let first = out.len();
            out.extend(self.bias.iter().map(|&b| f64::from(b)));
            for (x, weights) in row.iter().zip(self.weight.chunks(self.outputs)) {
                out[first..].iter_mut().zip(weights).for_each(|(out, &w)| *out += x * f64::from(w));
            }
        }
        out
    }
}

impl AffineNorm {
    fn check(&self, name: &str, width: usize) -> Result<()> {
        if self.gamma.len() == width && self.beta.len() == width {
            return Ok(());
        }
        Err(ThexError::Model(format!(
            "{name}: {} and {} elements where {width} are needed",
            self.gamma.len(),
            self.beta.len()
        )))
    }

    fn apply(&self, x: &mut [f64]) {
        for row in x.chunks_mut(self.gamma.len()) {
            for ((x, &gamma), &beta) in row.iter_mut().zip(&self.gamma).zip(&self.beta) {
                *x = *x * f64::from(gamma) + f64::from(beta);
            }
        }
    }
}

impl Estimator {
    /// `T(s)`.
    pub fn apply(&self, s: f64) -> f64 {
        let units = self.hidden.iter().zip(&self.hidden_bias).zip(&self.output);
        let unit = |((&w, &b), &v): ((&f32, &f32), &f32)| f64::from(v) * (f64::from(w) * s + f64::from(b)).max(0.0);
        units.map(unit).sum::<f64>() + f64::from(self.output_bias)
    }
}

/// `(x/2 + 1)^3`.
pub fn cube(x: f64) -> f64 {
    (x / 2.0 + 1.0).powi(3)
}

impl ApproxModel {
    /// The public sizes.
    ///
    /// # Errors
    /// If tensors do not fit each other.
    pub fn shape(&self) -> Result<ModelShape> {
        let hidden = self.embedding_norm.gamma.len();
        let fail = |detail: &str| Err(ThexError::Model(detail.into()));
        if self.heads == 0 || hidden == 0 || !hidden.is_multiple_of(self.heads) || self.layers.is_empty() {
            return fail("a model needs layers, and heads that divide the hidden width");
        }
        if !(self.score_limit > 0.0
            && self.activation_limit > 0.0
            && self.score_limit < 1000.0
            && self.activation_limit < 1e6)
        {
            return fail("the limits of scores (below 1000) and activations (below a million) must be positive");
        }
        self.embedding_norm.check("the embedding's norm", hidden)?;
        let intermediate = self.layers[0].intermediate.outputs;
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, dense) in [("query", &layer.query), ("key", &layer.key), ("value", &layer.value)] {
                dense.check(&format!("layer {i}, {name}"), hidden)?;
                if dense.outputs != hidden {
                    return fail("query, key and value must have the hidden width");
                }
            }
            layer.attention_output.check(&format!("layer {i}, attention output"), hidden)?;
            layer.intermediate.check(&format!("layer {i}, intermediate"), hidden)?;
            layer.output.check(&format!("layer {i}, output"), intermediate)?;
            if layer.attention_output.outputs != hidden
                || layer.output.outputs != hidden
                || layer.intermediate.outputs != intermediate
            {
                return fail("layers must have the same widths");
            }
            layer.attention_norm.check(&format!("layer {i}, attention norm"), hidden)?;
            layer.output_norm.check(&format!("layer {i}, output norm"), hidden)?;
            let Estimator { hidden: units, hidden_bias, output, .. } = &layer.estimator;
            if units.is_empty() || hidden_bias.len() != units.len() || output.len() != units.len() {
                return Err(ThexError::Model(format!("layer {i}: the estimator's tensors have different lengths")));
            }
        }
        self.head.check("the head", hidden)?;
        Ok(ModelShape {
            hidden,
            heads: self.heads,
            head_dim: hidden / self.heads,
            intermediate,
            estimator: self.layers.iter().map(|layer| layer.estimator.hidden.len()).max().unwrap_or(0),
            layers: self.layers.len(),
            sum_ranges: self.layers.iter().map(|layer| layer.sum_range).collect(),
            outputs: self.head.outputs,
            pooling: self.pooling,
            score_limit: self.score_limit,
            activation_limit: self.activation_limit,
        })
    }

    /// Evaluates `rows`, `[tokens][hidden]`, the sums of the embeddings before their norm. What encrypted evaluation is measured
    /// against.
    ///
    /// # Errors
    /// If tensors do not fit, or there are no rows.
    pub fn forward(&self, rows: &[f32]) -> Result<FloatRun> {
        let ModelShape { hidden, head_dim, .. } = self.shape()?;
        let tokens = rows.len() / hidden;
        if tokens == 0 || rows.len() != tokens * hidden {
            return Err(ThexError::Sequence(format!("{} values are not rows of {hidden}", rows.len())));
        }
        let mut run = FloatRun { outputs: Vec::new(), largest_score: 0.0, largest_activation: 0.0 };
        let largest = |x: &[f64]| x.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let mut x: Vec<f64> = rows.iter().map(|&x| x.into()).collect();
        self.embedding_norm.apply(&mut x);
        for layer in &self.layers {
            let (q, k, v) = (layer.query.apply(&x), layer.key.apply(&x), layer.value.apply(&x));
            let mut context = vec![0.0; tokens * hidden];
            for head in 0..self.heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                let row = |m: &[f64], i: usize| m[i * hidden..][..hidden][columns.clone()].to_vec();
                for i in 0..tokens {
                    let query = row(&q, i);
                    let score = |j: usize| {
                        query.iter().zip(row(&k, j)).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                    };
                    let scores: Vec<f64> = (0..tokens).map(score).collect();
                    run.largest_score = run.largest_score.max(largest(&scores));
                    let e: Vec<f64> = scores.iter().map(|&x| cube(x).max(0.0)).collect();
                    let factor = layer.estimator.apply(e.iter().sum());
                    for (j, e) in e.iter().enumerate() {
                        let out = &mut context[i * hidden..][..hidden][columns.clone()];
                        out.iter_mut().zip(row(&v, j)).for_each(|(out, v)| *out += e * factor * v);
                    }
                }
            }
            let mut attended = layer.attention_output.apply(&context);
            attended.iter_mut().zip(&x).for_each(|(a, x)| *a += x);
            layer.attention_norm.apply(&mut attended);
            let wide: Vec<f64> = layer.intermediate.apply(&attended).iter().map(|x| x.max(0.0)).collect();
            let mut next = layer.output.apply(&wide);
            next.iter_mut().zip(&attended).for_each(|(n, a)| *n += a);
            layer.output_norm.apply(&mut next);
            for values in [&x, &q, &k, &v, &context, &attended, &wide, &next] {
                run.largest_activation = run.largest_activation.max(largest(values));
            }
            x = next;
        }
        let pooled: Vec<f64> = match self.pooling {
            Pooling::First => x[..hidden].to_vec(),
            Pooling::Mean => {
                (0..hidden).map(|c| (0..tokens).map(|i| x[i * hidden + c]).sum::<f64>() / tokens as f64).collect()
            }
        };
        run.outputs = self.head.apply(&pooled);
        Ok(run)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::arith::sample::SecureRng;
    use rand_core::Rng;

    /// A random model whose activations stay of the order of one.
    pub(crate) fn random(
        (hidden, heads, intermediate, layers, outputs): (usize, usize, usize, usize, usize),
        units: usize,
        tokens: usize,
        pooling: Pooling,
        rng: &mut SecureRng,
    ) -> ApproxModel {
        fn draw(rng: &mut SecureRng, count: usize, magnitude: f64) -> Vec<f32> {
            (0..count).map(|_| ((rng.next_u32() as f64 / 2f64.powi(31) - 1.0) * magnitude) as f32).collect()
        }
        fn dense(rng: &mut SecureRng, inputs: usize, outputs: usize) -> Dense {
            let weight = draw(rng, inputs * outputs, (3.0 / inputs as f64).sqrt());
            Dense { inputs, outputs, weight, bias: draw(rng, outputs, 0.2) }
        }
        let norm = |rng: &mut SecureRng| {
            let gamma = draw(rng, hidden, 0.3).iter().map(|x| x + 0.7).collect();
            AffineNorm { gamma, beta: draw(rng, hidden, 0.2) }
        };
        let layer = |rng: &mut SecureRng| ApproxLayer {
            query: dense(rng, hidden, hidden),
            key: dense(rng, hidden, hidden),
            value: dense(rng, hidden, hidden),
            // Of the order of 1/s around s = 1.4 tokens, where the sums are.
            estimator: Estimator {
                hidden: draw(rng, units, 1.0 / tokens as f64),
                hidden_bias: draw(rng, units, 1.0).iter().map(|b| b.abs()).collect(),
                output: draw(rng, units, 0.5 / (tokens * units) as f64),
                output_bias: 0.7 / tokens as f32,
            },
            attention_output: dense(rng, hidden, hidden),
            attention_norm: norm(rng),
            intermediate: dense(rng, hidden, intermediate),
            output: dense(rng, intermediate, hidden),
            output_norm: norm(rng),
            sum_range: [0.0, 1e6],
        };
        ApproxModel {
            heads,
            embedding_norm: norm(rng),
            layers: (0..layers).map(|_| layer(rng)).collect(),
            pooling,
            head: dense(rng, hidden, outputs),
            score_limit: 8.0,
            activation_limit: 64.0,
        }
    }

    #[test]
    fn one_token_by_hand() {
        let mut rng = SecureRng::from_seed([1; 32]);
        let mut model = random((2, 1, 2, 1, 1), 1, 1, Pooling::First, &mut rng);
        let identity = || Dense { inputs: 2, outputs: 2, weight: vec![1.0, 0.0, 0.0, 1.0], bias: vec![0.0; 2] };
        let norm = || AffineNorm { gamma: vec![1.0; 2], beta: vec![0.0; 2] };
        let layer = &mut model.layers[0];
        (layer.query, layer.key, layer.value) = (identity(), identity(), identity());
        (layer.attention_output, layer.intermediate, layer.output) = (identity(), identity(), identity());
        (layer.attention_norm, layer.output_norm, model.embedding_norm) = (norm(), norm(), norm());
        // T(s) = 1 - s/4.
        layer.estimator =
            Estimator { hidden: vec![1.0], hidden_bias: vec![0.0], output: vec![-0.25], output_bias: 1.0 };
        model.head = Dense { inputs: 2, outputs: 1, weight: vec![1.0, 1.0], bias: vec![0.5] };
        let run = model.forward(&[0.5, -1.0]).unwrap();
        // x = 1.25 / sqrt 2, e = (x/2 + 1)^3, weight e T(e); then a = x (1 + w), and ReLU keeps the first column only.
        let score = 1.25 / 2f64.sqrt();
        let e = cube(score);
        let w = 1.0 + e * (1.0 - e / 4.0);
        assert!((run.outputs[0] - (0.5 * w * 2.0 - w + 0.5)).abs() < 1e-9 && (run.largest_score - score).abs() < 1e-12);
        assert!(model.forward(&[0.5]).is_err() && model.forward(&[]).is_err());
        model.layers[0].estimator.output.clear();
        assert!(matches!(model.shape(), Err(ThexError::Model(_))));
    }
}
