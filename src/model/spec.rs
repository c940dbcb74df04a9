//! The public numeric description of a model: shapes, fraction bits and magnitudes, but no weights.
//!
//! A [`ModelSpec`] travels in the manifest; both parties build the same [`super::Graph`] from it. Magnitudes are
//! `ceil(log2 max|value|)` over all inputs that the server admits: proven from the weights by default, narrowed by
//! calibration.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arith::fixed::Activation;

/// Why a numeric description cannot be built into a graph.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// A number is outside what the engine supports.
    #[error("model description: {what} is {value}, outside {range}")]
    Range {
        /// Field.
        what: &'static str,
        /// Its value.
        value: i64,
        /// What is admitted.
        range: &'static str,
    },
    /// An edge would need a wider ring than the protocol has.
    #[error("{edge} needs {bits} bits, more than the {limit} that its products allow; run `heliostat calibrate`")]
    Ring {
        /// Edge name.
        edge: String,
        /// Bits needed.
        bits: u32,
        /// Most bits.
        limit: u32,
    },
}

/// Which rows of the last hidden state feed the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token, `[CLS]`.
    First,
    /// The mean over the real tokens; the weights m/len are the client's private input.
    Mean,
    /// All tokens (token classification).
    Tokens,
}

/// What follows a dense layer of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseActivation {
    /// Nothing.
    Identity,
    /// `tanh`.
    Tanh,
}

/// One dense layer of the head. LayerNorm's gain and bias of the last encoder layer are folded into the first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenseSpec {
    /// Output features.
    pub features: usize,
    /// What follows.
    pub activation: DenseActivation,
    /// Fraction bits of the weights.
    pub weight_frac: u32,
    /// Magnitude of the outputs before the activation.
    pub out_log2: i32,
}

/// Magnitudes and fraction bits of one encoder layer.
///
/// Queries and keys are in the units in which `softmax_j = 2^(q.k_j) / sum`: `log2(e)/sqrt(d_head)` is folded into the
/// query's weights. Hidden states between layers are the normalised values before gain and bias, which are folded into
/// the next linear maps; the centring of LayerNorm is folded into the maps before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// Magnitude of queries.
    pub query_log2: i32,
    /// Magnitude of keys.
    pub key_log2: i32,
    /// Magnitude of values, hence of the attention's context.
    pub value_log2: i32,
    /// Magnitude of attention scores.
    pub score_log2: i32,
    /// Magnitude of the centred attention output plus residual.
    pub attention_log2: i32,
    /// Magnitude of the sum of squares of one such row.
    pub attention_squares_log2: i32,
    /// Lower bound of the same.
    pub attention_squares_min_log2: i32,
    /// Magnitude of the activation's input.
    pub up_log2: i32,
    /// Magnitude of the centred feed-forward output plus residual.
    pub down_log2: i32,
    /// Magnitude of the sum of squares of one such row.
    pub down_squares_log2: i32,
    /// Lower bound of the same.
    pub down_squares_min_log2: i32,
    /// Fraction bits of the query, key and value weights.
    pub qkv_weight_frac: u32,
    /// Fraction bits of the attention output's weights (and of the residual's).
    pub attention_weight_frac: u32,
    /// Fraction bits of the feed-forward's first weights.
    pub up_weight_frac: u32,
    /// Fraction bits of the feed-forward's second weights (and of the residual's).
    pub down_weight_frac: u32,
}

impl LayerSpec {
    /// Names and values of the upper magnitudes.
    pub(crate) fn magnitudes(&mut self) -> [(&'static str, &mut i32); 9] {
        [
            ("query_log2", &mut self.query_log2),
            ("key_log2", &mut self.key_log2),
            ("value_log2", &mut self.value_log2),
            ("score_log2", &mut self.score_log2),
            ("attention_log2", &mut self.attention_log2),
            ("attention_squares_log2", &mut self.attention_squares_log2),
            ("up_log2", &mut self.up_log2),
            ("down_log2", &mut self.down_log2),
            ("down_squares_log2", &mut self.down_squares_log2),
        ]
    }
}

/// Fraction bits and table sizes that hold for the whole graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precision {
    /// Fraction bits of hidden states, contexts and activations.
    pub hidden_frac: u32,
    /// Most fraction bits of a weight; matrices with large weights have fewer.
    pub weight_frac: u32,
    /// Fraction bits of queries and keys.
    pub query_key_frac: u32,
    /// Fraction bits of values.
    pub value_frac: u32,
    /// Fraction bits of softmax numerators.
    pub exp_frac: u32,
    /// `log2` of the length of the table of `2^-x`.
    pub exp_table_bits: u32,
    /// `log2` of the length of the activation's table.
    pub activation_table_bits: u32,
    /// The activation's table covers `|x| < 2^range`.
    pub activation_range_log2: u32,
    /// `log2` of the length of the tables of reciprocal and inverse square root.
    pub row_table_bits: u32,
    /// `log2` of the length of the table of tanh.
    pub tanh_table_bits: u32,
}

/// The least that keeps every label and a mean cosine of 0.9998 on MiniLM: the tables of the activation and of `2^-x` are the
/// costly part of the garbled circuits and the largest part of the error, weights below 12 fraction bits come next.
impl Default for Precision {
    fn default() -> Self {
        Self {
            hidden_frac: 10,
            weight_frac: 12,
            query_key_frac: 9,
            value_frac: 10,
            exp_frac: 11,
            exp_table_bits: 5,
            activation_table_bits: 6,
            activation_range_log2: 2,
            row_table_bits: 9,
            tanh_table_bits: 9,
        }
    }
}

/// The public numeric description of a BERT encoder with a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Hidden size d.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Feed-forward size.
    pub ffn: usize,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// Magnitude of the embedding block's output.
    pub embedding_log2: i32,
    /// Encoder layers.
    pub layers: Vec<LayerSpec>,
    /// Which rows feed the head.
    pub pooling: Pooling,
    /// The head, at least one dense layer.
    pub dense: Vec<DenseSpec>,
    /// Fraction bits and tables.
    pub precision: Precision,
}

impl ModelSpec {
    /// Checks every number against what the engine supports, so that a description from outside can be built into a
    /// graph without overflow or unbounded memory.
    pub fn validate(&self) -> Result<(), SpecError> {
        fn check(what: &'static str, value: i64, low: i64, high: i64, range: &'static str) -> Result<(), SpecError> {
            if (low..=high).contains(&value) { Ok(()) } else { Err(SpecError::Range { what, value, range }) }
        }
        check("hidden size", self.hidden as i64, 1, 8192, "1 to 8192")?;
        check("heads", self.heads as i64, 1, 256, "1 to 256")?;
        check("hidden size modulo heads", (self.hidden % self.heads) as i64, 0, 0, "0")?;
        check("feed-forward size", self.ffn as i64, 1, 32768, "1 to 32768")?;
        check("layers", self.layers.len() as i64, 1, 128, "1 to 128")?;
        check("dense layers of the head", self.dense.len() as i64, 1, 4, "1 to 4")?;
        let magnitude = |what, value: i32| check(what, value as i64, -20, 40, "-20 to 40");
        let frac = |what, value: u32| check(what, value as i64, 1, 20, "1 to 20");
        magnitude("embedding_log2", self.embedding_log2)?;
        for l in &self.layers {
            magnitude("query_log2", l.query_log2)?;
            magnitude("key_log2", l.key_log2)?;
            magnitude("value_log2", l.value_log2)?;
            magnitude("score_log2", l.score_log2)?;
            magnitude("attention_log2", l.attention_log2)?;
            magnitude("attention_squares_log2", l.attention_squares_log2)?;
            magnitude("up_log2", l.up_log2)?;
            magnitude("down_log2", l.down_log2)?;
            magnitude("down_squares_log2", l.down_squares_log2)?;
            let min = |what, value: i32| check(what, value as i64, -60, 40, "-60 to 40");
            min("attention_squares_min_log2", l.attention_squares_min_log2)?;
            min("down_squares_min_log2", l.down_squares_min_log2)?;
            frac("qkv_weight_frac", l.qkv_weight_frac)?;
            frac("attention_weight_frac", l.attention_weight_frac)?;
            frac("up_weight_frac", l.up_weight_frac)?;
            frac("down_weight_frac", l.down_weight_frac)?;
        }
        for dense in &self.dense {
            check("dense features", dense.features as i64, 1, 65536, "1 to 65536")?;
            frac("dense weight_frac", dense.weight_frac)?;
            magnitude("dense out_log2", dense.out_log2)?;
        }
        let p = &self.precision;
        frac("hidden_frac", p.hidden_frac)?;
        check("weight_frac", p.weight_frac as i64, 1, 14, "1 to 14")?;
        frac("query_key_frac", p.query_key_frac)?;
        frac("value_frac", p.value_frac)?;
        check("exp_frac", p.exp_frac as i64, 6, 16, "6 to 16")?;
        check("exp_table_bits", p.exp_table_bits as i64, 1, 12, "1 to 12")?;
        check("activation_table_bits", p.activation_table_bits as i64, 1, 12, "1 to 12")?;
        check("activation_range_log2", p.activation_range_log2 as i64, 1, 4, "1 to 4")?;
        check("row_table_bits", p.row_table_bits as i64, 4, 12, "4 to 12")?;
        check("tanh_table_bits", p.tanh_table_bits as i64, 4, 12, "4 to 12")?;
        let spare = (2 * p.query_key_frac) as i64 - p.exp_table_bits as i64;
        check("score fraction bits less exp_table_bits", spare, 0, 40, "0 to 40")
    }
}
