//! From an approximated checkpoint to the model that is evaluated.

use super::{AffineNorm, ApproxLayer, ApproxModel, Dense, Estimator, Pooling, Result, ThexError};
use crate::model::{self, Checkpoint, DenseActivation, Linear, Norm};

fn dense(map: &Linear) -> Dense {
    Dense { inputs: map.inputs, outputs: map.outputs, weight: map.weight.clone(), bias: map.bias.clone() }
}

fn norm(norm: &Norm) -> AffineNorm {
    AffineNorm { gamma: norm.gain.clone(), beta: norm.bias.clone() }
}

impl ApproxModel {
    /// The encoder and head of a checkpoint. Its rows are those of [`model::EmbeddingBlock::embed_real`], which the client has
    /// made with the embedding's affine map already, so the map here is the identity. Scores, and sums of numerators, may leave
    /// the ranges of training by the factor `margin`, at least 1.
    ///
    /// # Errors
    /// [`ThexError::Unapproximated`] if it holds anything but additions, multiplications and ReLU.
    pub fn from_checkpoint(checkpoint: &Checkpoint, activation_limit: f64, margin: f64) -> Result<Self> {
        let refuse = |reason: &str| ThexError::Unapproximated { reason: reason.into() };
        let Some(approximation) = &checkpoint.config.approximation else {
            return Err(refuse("it has softmax and LayerNorm"));
        };
        let pooling = match checkpoint.pooling {
            model::Pooling::First => Pooling::First,
            model::Pooling::Mean => Pooling::Mean,
            model::Pooling::Tokens => return Err(refuse("an output for every token is not supported")),
        };
        let hidden = checkpoint.config.hidden;
        let head = match &checkpoint.head[..] {
            [] => {
                let weight = (0..hidden * hidden).map(|i| if i % (hidden + 1) == 0 { 1.0 } else { 0.0 }).collect();
                Dense { inputs: hidden, outputs: hidden, weight, bias: vec![0.0; hidden] }
            }
            [one] if one.activation == DenseActivation::Identity => dense(&one.linear),
            _ => return Err(refuse("its head has a pooler with tanh")),
        };
        let layer = |(l, &[low, high]): (&model::EncoderLayer, &[f64; 2])| {
            let e = l.estimator.as_ref().ok_or_else(|| refuse("a layer has no estimator"))?;
            Ok(ApproxLayer {
                query: dense(&l.query),
                key: dense(&l.key),
                value: dense(&l.value),
                estimator: Estimator {
                    hidden: e.hidden.clone(),
                    hidden_bias: e.hidden_bias.clone(),
                    output: e.output.clone(),
                    output_bias: e.output_bias,
                },
                sum_range: [low / margin, high * margin],
                attention_output: dense(&l.attention_output),
                attention_norm: norm(&l.attention_norm),
                intermediate: dense(&l.up),
                output: dense(&l.down),
                output_norm: norm(&l.output_norm),
            })
        };
        let scores = approximation.score_range.iter().flatten().fold(0.0, |most: f64, x| most.max(x.abs()));
        Ok(Self {
            heads: checkpoint.config.heads,
            embedding_norm: AffineNorm { gamma: vec![1.0; hidden], beta: vec![0.0; hidden] },
            layers: checkpoint.layers.iter().zip(&approximation.sum_range).map(layer).collect::<Result<_>>()?,
            pooling,
            head,
            score_limit: scores * margin,
            activation_limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{arith::fixed::Activation, model::Approximation};

    /// A checkpoint with the form of an approximated one: both evaluations in floating point agree.
    #[test]
    fn the_model_is_that_of_the_checkpoint() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2");
        let mut checkpoint = Checkpoint::read(&dir).unwrap();
        let e = ApproxModel::from_checkpoint(&checkpoint, 64.0, 1.0).unwrap_err();
        assert!(matches!(e, ThexError::Unapproximated { .. }) && e.to_string().contains("approximate"), "{e}");

        let layers = checkpoint.layers.len();
        checkpoint.config.approximation =
            Some(Approximation { score_range: vec![[-2.0, 3.0]; layers], sum_range: vec![[1.0, 600.0]; layers] });
        checkpoint.config.activation = Activation::Relu;
        checkpoint.embedding.affine = true;
        for layer in &mut checkpoint.layers {
            let (hidden, output) = (vec![0.1, -0.2, 0.05], vec![0.01, 0.3, -0.02]);
            let hidden_bias = vec![0.1, 1.0, 0.0];
            layer.estimator = Some(model::Estimator { hidden, hidden_bias, output, output_bias: 0.02 });
            for norm in [&mut layer.attention_norm, &mut layer.output_norm] {
                norm.gain.iter_mut().for_each(|gain| *gain *= 0.1);
            }
        }
        assert!(ApproxModel::from_checkpoint(&checkpoint, 64.0, 1.0).is_err(), "the pooler has a tanh");
        checkpoint.head.remove(0);
        let approximated = ApproxModel::from_checkpoint(&checkpoint, 64.0, 2.0).unwrap();
        assert_eq!((approximated.score_limit, approximated.layers[0].sum_range), (6.0, [0.5, 1200.0]));
        let (ids, types) = ([101, 2023, 2003, 2204, 102], [0; 5]);
        let rows: Vec<f32> = checkpoint.embedding.embed_real(&ids, &types).unwrap().iter().map(|&x| x as f32).collect();
        let found = approximated.forward(&rows).unwrap().outputs;
        let expected = &checkpoint.forward(&ids, &types).unwrap()[0];
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} {expected}");
        }
    }
}
