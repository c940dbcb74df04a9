//! The public numeric description of a model: shapes, fraction bits and magnitudes, but no weights.
//!
//! A [`ModelSpec`] travels in the manifest; both parties build the same [`super::Graph`] from it. Magnitudes are
//! `ceil(log2 max|value|)` over all inputs that the server admits: proven from the weights by default, narrowed by
//! calibration.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Lookup;
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
    /// There is no graph with these options.
    #[error("there is no graph with {what}; choose other options")]
    Options {
        /// What is asked for in vain.
        what: String,
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

/// Fraction bits and errors that hold for the whole graph. Fields that a file does not have take their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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
    /// Fraction bits of a score that its power of two sees; at most `exp_frac` count.
    pub score_frac: u32,
    /// Largest relative error of a power of two, in millionths.
    pub exp_error_ppm: u32,
    /// Largest error of the activation, in millionths.
    pub activation_error_ppm: u32,
    /// The activation's pieces cover `|x| < 2^range`.
    pub activation_range_log2: u32,
    /// Largest relative error of a reciprocal and of an inverse square root, in millionths.
    pub row_error_ppm: u32,
    /// Largest error of tanh, in millionths.
    pub tanh_error_ppm: u32,
}

/// Weights below 12 fraction bits are the largest part of the error. The others are small beside it: an AND gate or two an
/// element halve them.
impl Default for Precision {
    fn default() -> Self {
        Self {
            hidden_frac: 10,
            weight_frac: 12,
            query_key_frac: 9,
            value_frac: 10,
            exp_frac: 11,
            score_frac: 8,
            exp_error_ppm: 5_000,
            activation_error_ppm: 6_000,
            activation_range_log2: 2,
            row_error_ppm: 1_500,
            tanh_error_ppm: 3_000,
        }
    }
}

/// The embedding block inside the graph ([`Lookup::Private`]): shapes, magnitudes, and the fraction bits of the first
/// layer's weights, into which the embedding's LayerNorm is folded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupSpec {
    /// Token ids.
    pub vocabulary: usize,
    /// Token types.
    pub types: usize,
    /// Fraction bits of the tables.
    pub table_frac: u32,
    /// Magnitude of the centred sum of word, type and position.
    pub sum_log2: i32,
    /// Magnitude of the sum of squares of one such row.
    pub squares_log2: i32,
    /// Lower bound of the same.
    pub squares_min_log2: i32,
    /// Fraction bits of the first layer's query, key and value weights.
    pub qkv_weight_frac: u32,
    /// Fraction bits of the first layer's attention output weights.
    pub attention_weight_frac: u32,
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
    /// The embedding block, if the graph can have it.
    #[serde(default)]
    pub lookup: Option<LookupSpec>,
}

impl ModelSpec {
    /// Fraction bits of a layer's query, key and value weights and of its attention output's.
    pub fn layer_weight_fracs(&self, layer: usize, lookup: Lookup) -> (u32, u32) {
        match (&self.lookup, self.layers.get(layer)) {
            (Some(l), _) if layer == 0 && lookup == Lookup::Private => (l.qkv_weight_frac, l.attention_weight_frac),
            (_, Some(l)) => (l.qkv_weight_frac, l.attention_weight_frac),
            (_, None) => (1, 1),
        }
    }

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
        if let Some(l) = &self.lookup {
            check("vocabulary", l.vocabulary as i64, 1, 1 << 20, "1 to 1048576")?;
            check("token types", l.types as i64, 1, 16, "1 to 16")?;
            magnitude("lookup sum_log2", l.sum_log2)?;
            magnitude("lookup squares_log2", l.squares_log2)?;
            check("lookup squares_min_log2", l.squares_min_log2 as i64, -60, 40, "-60 to 40")?;
            frac("lookup table_frac", l.table_frac)?;
            frac("lookup qkv_weight_frac", l.qkv_weight_frac)?;
            frac("lookup attention_weight_frac", l.attention_weight_frac)?;
        }
        let p = &self.precision;
        frac("hidden_frac", p.hidden_frac)?;
        check("weight_frac", p.weight_frac as i64, 1, 14, "1 to 14")?;
        frac("query_key_frac", p.query_key_frac)?;
        frac("value_frac", p.value_frac)?;
        check("exp_frac", p.exp_frac as i64, 6, 16, "6 to 16")?;
        check("score_frac", p.score_frac as i64, 1, 12, "1 to 12")?;
        let ppm = |what, value: u32| check(what, value as i64, 100, 100_000, "100 to 100000");
        ppm("exp_error_ppm", p.exp_error_ppm)?;
        ppm("activation_error_ppm", p.activation_error_ppm)?;
        ppm("row_error_ppm", p.row_error_ppm)?;
        ppm("tanh_error_ppm", p.tanh_error_ppm)?;
        check("activation_range_log2", p.activation_range_log2 as i64, 1, 4, "1 to 4")?;
        let spare = (2 * p.query_key_frac) as i64 - p.score_frac as i64;
        check("score fraction bits less score_frac", spare, 0, 40, "0 to 40")
    }
}
