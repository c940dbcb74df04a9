//! From the checkpoint's real numbers to the server's integer matrices.
//!
//! Between the garbled layers of the graph, everything linear is folded into as few matrices as possible:
//!
//! * hidden states are the normalised rows before gain and bias, so a LayerNorm's gain and bias go into the maps after it
//!   (a public embedding block is complete, so that the first layer has gain 1 and bias 0);
//! * `log2(e)/sqrt(d_head)` goes into the query, so that softmax is a power of two;
//! * the centring `I - 11^T/d` of a LayerNorm goes into the maps before it, and into the residual, which is the second row
//!   block of the same matrix: `diag(gain) (I - 11^T/d)`.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Checkpoint, DenseActivation, Linear, Lookup, ModelError, ModelSpec, Norm, WeightId,
    graph::ceil_log2,
    lookup::lookup_spec,
    spec::{DenseSpec, LayerSpec, Precision},
};

/// Weights are below `2^WEIGHT_BITS` in magnitude.
pub const WEIGHT_BITS: u32 = 15;

/// A linear map in fixed point, the server's secret.
#[derive(Clone, PartialEq, Eq)]
pub struct WeightMatrix {
    /// Rows: input features of all blocks.
    pub inputs: usize,
    /// Columns: output features.
    pub outputs: usize,
    /// Fraction bits of the weights.
    pub frac: u32,
    /// `inputs x outputs`, row-major, below `2^WEIGHT_BITS` in magnitude.
    pub weights: Vec<i32>,
    /// One number an output, or a row of them for each row of the input, with the fraction bits of a truncated input and
    /// `frac` more; of [`WeightId::Tokens`] with `frac`.
    pub bias: Vec<i64>,
}

impl WeightMatrix {
    /// What is added to row `i` of the output; `None` if the bias has too few rows.
    pub fn bias_row(&self, i: usize) -> Option<&[i64]> {
        if self.bias.len() == self.outputs {
            return Some(&self.bias);
        }
        self.bias.get(i.checked_mul(self.outputs)?..)?.get(..self.outputs)
    }

    /// Largest sum of magnitudes of a column: what the largest input can be multiplied by.
    pub fn column_sum(&self) -> i64 {
        let mut sums = vec![0i64; self.outputs];
        for row in self.weights.chunks(self.outputs.max(1)) {
            for (sum, &w) in sums.iter_mut().zip(row) {
                *sum += w.unsigned_abs() as i64;
            }
        }
        sums.into_iter().max().unwrap_or(0)
    }
}

/// All matrices of a model.
pub struct ServerWeights {
    matrices: BTreeMap<WeightId, Arc<WeightMatrix>>,
}

impl ServerWeights {
    /// The matrix of a name that occurs in the model's graph; `None` for any other.
    pub fn get(&self, id: WeightId) -> Option<&WeightMatrix> {
        self.matrices.get(&id).map(|m| &**m)
    }

    /// From matrices made elsewhere. Their shapes are checked where they are used.
    pub fn from_matrices(matrices: BTreeMap<WeightId, WeightMatrix>) -> Self {
        Self { matrices: matrices.into_iter().map(|(id, m)| (id, Arc::new(m))).collect() }
    }

    /// All matrices in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (WeightId, &WeightMatrix)> {
        self.matrices.iter().map(|(&id, m)| (id, &**m))
    }

    /// Rounds the folded maps to the fraction bits of `spec`.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] if a weight has more than [`WEIGHT_BITS`] bits at these fraction bits.
    pub(crate) fn new(folded: &BTreeMap<WeightId, RealMatrix>, spec: &ModelSpec) -> Result<Self, ModelError> {
        Ok(Self { matrices: round_all(folded, spec, Lookup::Public)? })
    }

    /// These matrices with those of [`super::lookup::fold_lookup`] in the place of their namesakes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn with_lookup(
        &self,
        folded: &BTreeMap<WeightId, RealMatrix>,
        spec: &ModelSpec,
    ) -> Result<Self, ModelError> {
        let mut matrices = self.matrices.clone();
        matrices.extend(round_all(folded, spec, Lookup::Private)?);
        Ok(Self { matrices })
    }
}

fn round_all(
    folded: &BTreeMap<WeightId, RealMatrix>,
    spec: &ModelSpec,
    lookup: Lookup,
) -> Result<BTreeMap<WeightId, Arc<WeightMatrix>>, ModelError> {
    let layer = |i: usize| spec.layers.get(i).map(|_| spec.layer_weight_fracs(i, lookup));
    let frac = |id: WeightId| match id {
        WeightId::Tokens => spec.lookup.as_ref().map(|l| l.table_frac),
        WeightId::Query(i) | WeightId::Key(i) | WeightId::Value(i) => layer(i).map(|l| l.0),
        WeightId::AttentionOutput(i) => layer(i).map(|l| l.1),
        WeightId::Up(i) => spec.layers.get(i).map(|l| l.up_weight_frac),
        WeightId::Down(i) => spec.layers.get(i).map(|l| l.down_weight_frac),
        WeightId::Dense(i) => spec.dense.get(i).map(|l| l.weight_frac),
    };
    let mut matrices = BTreeMap::new();
    for (&id, real) in folded {
        let frac = frac(id).ok_or_else(|| too_large(id))?;
        let in_frac = if id == WeightId::Tokens { 0 } else { spec.precision.hidden_frac };
        matrices.insert(id, Arc::new(real.round(frac, in_frac).ok_or_else(|| too_large(id))?));
    }
    Ok(matrices)
}

fn too_large(id: WeightId) -> ModelError {
    ModelError::Unsupported { what: format!("the weights of {id:?} are too large for {WEIGHT_BITS}-bit integers") }
}

/// A linear map in real numbers, `inputs x outputs`, row-major.
#[derive(Clone)]
pub(crate) struct RealMatrix {
    pub inputs: usize,
    pub outputs: usize,
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
}

impl RealMatrix {
    fn new(linear: &Linear) -> Self {
        Self {
            inputs: linear.inputs,
            outputs: linear.outputs,
            weight: linear.weight.iter().map(|&x| x as f64).collect(),
            bias: linear.bias.iter().map(|&x| x as f64).collect(),
        }
    }

    pub fn row(&self, i: usize) -> &[f64] {
        &self.weight[i * self.outputs..(i + 1) * self.outputs]
    }

    fn identity(d: usize) -> Self {
        let weight = (0..d * d).map(|i| if i / d == i % d { 1.0 } else { 0.0 }).collect();
        Self { inputs: d, outputs: d, weight, bias: vec![0.0; d] }
    }

    /// The map of `x` where this is the map of `gain * x + bias`.
    fn after_norm(mut self, norm: Option<&Norm>) -> Self {
        let Some(norm) = norm else { return self };
        for i in 0..self.inputs {
            let (gain, shift) = (norm.gain[i] as f64, norm.bias[i] as f64);
            for j in 0..self.outputs {
                let w = &mut self.weight[i * self.outputs + j];
                self.bias[j] += shift * *w;
                *w *= gain;
            }
        }
        self
    }

    fn scaled(mut self, factor: f64) -> Self {
        self.weight.iter_mut().chain(&mut self.bias).for_each(|x| *x *= factor);
        self
    }

    /// Each output less the mean of all outputs.
    pub fn centred(mut self) -> Self {
        for row in self.weight.chunks_mut(self.outputs).chain(self.bias.chunks_mut(self.outputs)) {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        self
    }

    /// The map of the concatenation of both inputs to the sum of both outputs.
    fn stacked(mut self, other: Self) -> Self {
        self.inputs += other.inputs;
        self.weight.extend(other.weight);
        self.bias.iter_mut().zip(other.bias).for_each(|(x, y)| *x += y);
        self
    }

    /// Most fraction bits up to `most` at which every weight fits.
    pub fn weight_frac(&self, most: u32) -> Option<u32> {
        let largest = self.weight.iter().fold(0f64, |m, w| m.max(w.abs()));
        let limit = (1u64 << WEIGHT_BITS) as f64 - 0.5;
        (1..=most).rev().find(|&f| largest * libm::exp2(f as f64) < limit)
    }

    fn round(&self, frac: u32, in_frac: u32) -> Option<WeightMatrix> {
        let limit = 1i64 << WEIGHT_BITS;
        let scale = libm::exp2(frac as f64);
        let bias_scale = libm::exp2((frac + in_frac) as f64);
        let weights: Vec<i32> = self.weight.iter().map(|w| libm::round(w * scale) as i32).collect();
        // A bias beyond 2^60 would be beyond every ring; magnitudes are checked by the bounds.
        let fits = weights.iter().all(|&w| (w as i64).abs() < limit)
            && self.bias.iter().all(|b| (b * bias_scale).abs() < libm::exp2(60.0));
        let bias = self.bias.iter().map(|b| libm::round(b * bias_scale) as i64).collect();
        fits.then_some(WeightMatrix { inputs: self.inputs, outputs: self.outputs, frac, weights, bias })
    }

    /// What [`Self::round`] keeps.
    fn rounded(&self, frac: u32) -> Self {
        let (up, down) = (libm::exp2(frac as f64), libm::exp2(-(frac as f64)));
        let weight = self.weight.iter().map(|w| libm::round(w * up) * down).collect();
        Self { inputs: self.inputs, outputs: self.outputs, weight, bias: self.bias.clone() }
    }
}

/// All linear maps of the graph in real numbers.
pub(crate) fn fold(c: &Checkpoint) -> BTreeMap<WeightId, RealMatrix> {
    let d = c.config.hidden;
    let mut maps = BTreeMap::new();
    let mut before: Option<&Norm> = None;
    for (i, l) in c.layers.iter().enumerate() {
        let residual = |norm| RealMatrix::identity(d).after_norm(norm);
        maps.extend(fold_attention(c, i, before));
        let middle = Some(&l.attention_norm);
        maps.insert(WeightId::Up(i), RealMatrix::new(&l.up).after_norm(middle));
        maps.insert(WeightId::Down(i), RealMatrix::new(&l.down).stacked(residual(middle)).centred());
        before = Some(&l.output_norm);
    }
    for (i, layer) in c.head.iter().enumerate() {
        let norm = if i == 0 { before } else { None };
        maps.insert(WeightId::Dense(i), RealMatrix::new(&layer.linear).after_norm(norm));
    }
    if c.head.is_empty() {
        maps.insert(WeightId::Dense(0), RealMatrix::identity(d).after_norm(before));
    }
    maps
}

/// The maps of a layer's attention, whose input is a row before the gain and bias of `before`.
pub(crate) fn fold_attention(c: &Checkpoint, i: usize, before: Option<&Norm>) -> Vec<(WeightId, RealMatrix)> {
    let Some(l) = c.layers.get(i) else { return Vec::new() };
    let d = c.config.hidden;
    let query_scale = std::f64::consts::LOG2_E / libm::sqrt((d / c.config.heads) as f64);
    let project = |linear: &Linear| RealMatrix::new(linear).after_norm(before);
    let residual = RealMatrix::identity(d).after_norm(before);
    vec![
        (WeightId::Query(i), project(&l.query).scaled(query_scale)),
        (WeightId::Key(i), project(&l.key)),
        (WeightId::Value(i), project(&l.value)),
        (WeightId::AttentionOutput(i), RealMatrix::new(&l.attention_output).stacked(residual).centred()),
    ]
}

/// The folded maps as they will be computed with: rounded, at the fraction bits that the model's numbers allow.
pub(crate) struct Rounded {
    /// Rounded maps.
    pub maps: BTreeMap<WeightId, RealMatrix>,
    /// Fraction bits of every map.
    pub frac: BTreeMap<WeightId, u32>,
}

impl Rounded {
    /// Chooses fraction bits (query, key and value share theirs) and rounds.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for weights over `2^14`.
    pub fn new(folded: &BTreeMap<WeightId, RealMatrix>, precision: &Precision) -> Result<Self, ModelError> {
        let mut frac = BTreeMap::new();
        for (&id, map) in folded {
            frac.insert(id, map.weight_frac(precision.weight_frac).ok_or_else(|| too_large(id))?);
        }
        for i in 0.. {
            let ids = [WeightId::Query(i), WeightId::Key(i), WeightId::Value(i)];
            let Some(shared) = ids.iter().filter_map(|id| frac.get(id).copied()).min() else { break };
            frac.extend(ids.map(|id| (id, shared)));
        }
        let maps = folded.iter().map(|(id, map)| (*id, map.rounded(frac[id]))).collect();
        Ok(Self { maps, frac })
    }

    fn frac(&self, id: WeightId) -> u32 {
        self.frac.get(&id).copied().unwrap_or(1)
    }
}

/// A description with the model's shapes and fraction bits, all magnitudes 0.
pub(crate) fn shapes(c: &Checkpoint, rounded: &Rounded, precision: &Precision) -> ModelSpec {
    let layers = (0..c.layers.len())
        .map(|i| LayerSpec {
            query_log2: 0,
            key_log2: 0,
            value_log2: 0,
            score_log2: 0,
            attention_log2: 0,
            attention_squares_log2: 0,
            attention_squares_min_log2: least_squares(c.config.hidden),
            up_log2: 0,
            down_log2: 0,
            down_squares_log2: 0,
            down_squares_min_log2: least_squares(c.config.hidden),
            qkv_weight_frac: rounded.frac(WeightId::Query(i)),
            attention_weight_frac: rounded.frac(WeightId::AttentionOutput(i)),
            up_weight_frac: rounded.frac(WeightId::Up(i)),
            down_weight_frac: rounded.frac(WeightId::Down(i)),
        })
        .collect();
    let dense_spec = |i: usize, features, activation| DenseSpec {
        features,
        activation,
        weight_frac: rounded.frac(WeightId::Dense(i)),
        out_log2: 0,
    };
    let dense = match &c.head[..] {
        [] => vec![dense_spec(0, c.config.hidden, DenseActivation::Identity)],
        head => head.iter().enumerate().map(|(i, l)| dense_spec(i, l.linear.outputs, l.activation)).collect(),
    };
    ModelSpec {
        hidden: c.config.hidden,
        heads: c.config.heads,
        ffn: c.config.ffn,
        activation: c.config.activation,
        embedding_log2: 0,
        layers,
        pooling: c.pooling,
        dense,
        precision: precision.clone(),
        lookup: lookup_spec(c, precision),
    }
}

/// `log2` of the smallest sum of squares that a LayerNorm normalises without a calibration: variance `2^-12`. Nothing
/// better can be proven; a row below it comes out too short, never too long.
pub(crate) fn least_squares(hidden: usize) -> i32 {
    ceil_log2(hidden) as i32 - 12
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(inputs: usize, outputs: usize, weight: &[f64], bias: &[f64]) -> RealMatrix {
        RealMatrix { inputs, outputs, weight: weight.to_vec(), bias: bias.to_vec() }
    }

    fn apply(m: &RealMatrix, x: &[f64]) -> Vec<f64> {
        (0..m.outputs).map(|j| m.bias[j] + x.iter().enumerate().map(|(i, x)| x * m.row(i)[j]).sum::<f64>()).collect()
    }

    #[test]
    fn folding_is_the_composition() {
        let m = map(2, 3, &[1.0, 2.0, 3.0, -1.0, 0.5, 4.0], &[0.1, 0.2, 0.3]);
        let norm = Norm { gain: vec![2.0, -0.5], bias: vec![0.25, 1.0] };
        let x = [0.7, -0.3];
        let y = [0.7 * 2.0 + 0.25, 0.3 * 0.5 + 1.0];
        let close = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(apply(&m.clone().after_norm(Some(&norm)), &x), apply(&m, &y)));
        let direct = apply(&m, &x);
        let mean = direct.iter().sum::<f64>() / 3.0;
        assert!(close(apply(&m.clone().centred(), &x), direct.iter().map(|v| v - mean).collect()));
        let both = m.clone().stacked(m.clone().scaled(2.0));
        assert!(close(apply(&both, &[0.7, -0.3, 0.7, -0.3]), direct.iter().map(|v| 3.0 * v).collect()));
    }

    #[test]
    fn fraction_bits_give_way_to_large_weights() {
        assert_eq!(map(1, 1, &[7.9], &[0.0]).weight_frac(12), Some(12));
        assert_eq!(map(1, 1, &[-8.1], &[0.0]).weight_frac(12), Some(11));
        assert_eq!(map(1, 1, &[16380.0], &[0.0]).weight_frac(12), Some(1));
        assert_eq!(map(1, 1, &[16384.0], &[0.0]).weight_frac(12), None);
        let m = map(1, 2, &[7.99979, -0.25], &[1.5, 0.0]).round(12, 10).unwrap();
        assert_eq!((&m.weights[..], &m.bias[..]), (&[32767, -1024][..], &[3 << 21, 0][..]));
        assert_eq!(m.column_sum(), 32767);
        assert!(map(1, 1, &[8.1], &[0.0]).round(12, 12).is_none());
    }
}
