//! A BERT encoder that can be trained: its parameters and its forward pass, exact, approximated or in between.

use std::{collections::BTreeSet, sync::Arc};

use candle_core::{Device, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::{
    batch::Batch,
    ops::{AddNorm, Attention, BiasAct, Linear, Penalty, Pool, PositionRows, Primitive, Watch, Weighting},
};
use crate::{
    arith::fixed::Activation,
    model::{self, Checkpoint, DenseActivation, Norm, Pooling, Table},
};

/// What a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Tables of positions and types. The word table is not trained.
    Tables,
    /// Queries, keys, values and the map behind them, of a layer.
    Attention,
    /// The feed-forward.
    FeedForward,
    /// Bias before a normalisation and its parameters; the number of the normalisation, 0 behind the embeddings.
    Norm(usize),
    /// The head.
    Head,
}

/// A parameter.
pub struct Parameter {
    /// Unique within the model.
    pub name: String,
    /// Its numbers.
    pub var: Var,
    /// What it belongs to.
    pub part: Part,
}

/// Which operations the encoder uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Form {
    /// The feed-forward's activation.
    pub activation: FormActivation,
    /// Whether attention uses the estimator.
    pub estimator: bool,
    /// Share of the affine map in each normalisation: that of the embeddings, then two a layer.
    pub blend: Vec<f32>,
}

/// An activation's name in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormActivation {
    /// GELU.
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// ReLU.
    Relu,
}

impl FormActivation {
    fn activation(self) -> Activation {
        match self {
            Self::Gelu => Activation::Gelu,
            Self::GeluTanh => Activation::GeluTanh,
            Self::Relu => Activation::Relu,
        }
    }
}

impl From<Activation> for FormActivation {
    fn from(a: Activation) -> Self {
        match a {
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu => Self::Relu,
        }
    }
}

/// A layer's parameters, by their index.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    /// `3d x d`: queries, keys, values.
    pub qkv: usize,
    /// `3d`.
    pub qkv_bias: usize,
    /// `d x d`.
    pub mix: usize,
    /// `5 x d`, see [`super::ops::AddNorm`].
    pub attention_norm: usize,
    /// `ffn x d`.
    pub up: usize,
    /// `ffn`.
    pub up_bias: usize,
    /// `d x ffn`.
    pub down: usize,
    /// `5 x d`.
    pub output_norm: usize,
}

/// A dense layer of the head.
#[derive(Clone, Copy)]
pub(super) struct Dense {
    pub weight: usize,
    pub bias: usize,
    pub tanh: bool,
}

/// The model.
pub struct Bert {
    /// All that is trained.
    pub parameters: Vec<Parameter>,
    /// Which operations it uses.
    pub form: Form,
    /// The perceptrons of the estimator, one a layer: `h` hidden weights, `h` hidden biases, `h` output weights, output bias.
    pub estimators: Vec<Tensor>,
    /// `vocabulary x d`.
    pub word: Tensor,
    pub(super) positions: usize,
    pub(super) types: usize,
    pub(super) embedding_norm: usize,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Vec<Dense>,
    pub(super) heads: usize,
    pub(super) epsilon: f32,
    pub(super) pooling: Pooling,
}

/// How a pass is to be made.
pub struct Pass<'a> {
    /// Which parts get gradients.
    pub trained: &'a dyn Fn(Part) -> bool,
    /// What scores and sums outside their ranges cost, one a layer, or nothing.
    pub penalties: &'a [Penalty],
    /// One a layer, or nothing.
    pub watches: &'a [Arc<Watch>],
}

impl Pass<'static> {
    /// Without gradients.
    pub const PLAIN: Self = Self { trained: &|_| false, penalties: &[], watches: &[] };
}

/// What a pass gives.
pub struct Outcome {
    /// One row a text: logits or values.
    pub output: Tensor,
    /// The pooled row of each text.
    pub pooled: Tensor,
    /// Input of each normalisation without the bias: map's output and residual.
    pub before: Vec<(Tensor, Tensor)>,
    /// Output of each normalisation, `tokens x d`.
    pub hidden: Vec<Tensor>,
    /// What the pass was built of, from the word table's rows to the output.
    pub primitives: BTreeSet<Primitive>,
}

/// Rows of a normalisation's parameters.
fn norm_rows(bias: &[f32], norm: &Norm, affine: bool) -> Vec<f32> {
    let d = norm.gain.len();
    let exact = [norm.gain.clone(), norm.bias.clone()].concat();
    let neutral = [vec![1.0; d], vec![0.0; d]].concat();
    // An affine one has its factor and summand in the places of gain and bias.
    let (a, b) = if affine { (neutral, exact) } else { (exact, neutral) };
    [bias.to_vec(), a, b].concat()
}

fn turned(map: &model::Linear) -> Vec<f32> {
    let (i, o) = (map.inputs, map.outputs);
    (0..i * o).map(|at| map.weight[at % i * o + at / i]).collect()
}

fn table(table: &Table) -> Result<Tensor> {
    let values: Vec<f32> = (0..table.rows()).filter_map(|i| table.row(i)).flatten().collect();
    Tensor::from_vec(values, (table.rows(), table.cols()), &Device::Cpu)
}

impl Bert {
    /// From a checkpoint.
    ///
    /// # Errors
    /// What the tensor library reports.
    pub fn new(c: &Checkpoint) -> Result<Self> {
        let (d, f) = (c.config.hidden, c.config.ffn);
        let approximation = c.config.approximation.as_ref();
        let affine = approximation.is_some();
        let mut parameters = Vec::new();
        let mut add = |name: String, values: Vec<f32>, shape: &[usize], part: Part| -> Result<usize> {
            parameters.push(Parameter { name, var: Var::from_vec(values, shape, &Device::Cpu)?, part });
            Ok(parameters.len() - 1)
        };
        let e = &c.embedding;
        let rows = |t: &Table| (0..t.rows()).filter_map(|i| t.row(i)).flatten().collect::<Vec<f32>>();
        let positions = add("positions".into(), rows(&e.position), &[e.position.rows(), d], Part::Tables)?;
        let types = add("types".into(), rows(&e.token_type), &[e.token_type.rows(), d], Part::Tables)?;
        let norm = Norm { gain: e.gain.clone(), bias: e.bias.clone() };
        let embedding_norm = add("norm.0".into(), norm_rows(&vec![0.0; d], &norm, affine), &[5, d], Part::Norm(0))?;
        let mut layers = Vec::new();
        let mut estimators = Vec::new();
        for (i, l) in c.layers.iter().enumerate() {
            let name = |part: &str| format!("layer.{i}.{part}");
            let qkv = [turned(&l.query), turned(&l.key), turned(&l.value)].concat();
            let qkv_bias = [&*l.query.bias, &*l.key.bias, &*l.value.bias].concat();
            let first = norm_rows(&l.attention_output.bias, &l.attention_norm, affine);
            let second = norm_rows(&l.down.bias, &l.output_norm, affine);
            layers.push(Layer {
                qkv: add(name("qkv"), qkv, &[3 * d, d], Part::Attention)?,
                qkv_bias: add(name("qkv_bias"), qkv_bias, &[3 * d], Part::Attention)?,
                mix: add(name("mix"), turned(&l.attention_output), &[d, d], Part::Attention)?,
                attention_norm: add(name("attention_norm"), first, &[5, d], Part::Norm(2 * i + 1))?,
                up: add(name("up"), turned(&l.up), &[f, d], Part::FeedForward)?,
                up_bias: add(name("up_bias"), l.up.bias.clone(), &[f], Part::FeedForward)?,
                down: add(name("down"), turned(&l.down), &[d, f], Part::FeedForward)?,
                output_norm: add(name("output_norm"), second, &[5, d], Part::Norm(2 * i + 2))?,
            });
            let perceptron = l.estimator.as_ref().map_or_else(|| vec![0.0], super::estimator::flatten);
            let n = perceptron.len();
            estimators.push(Tensor::from_vec(perceptron, n, &Device::Cpu)?);
        }
        let mut head = Vec::new();
        for (i, l) in c.head.iter().enumerate() {
            head.push(Dense {
                weight: add(
                    format!("head.{i}.weight"),
                    turned(&l.linear),
                    &[l.linear.outputs, l.linear.inputs],
                    Part::Head,
                )?,
                bias: add(format!("head.{i}.bias"), l.linear.bias.clone(), &[l.linear.outputs], Part::Head)?,
                tanh: l.activation == DenseActivation::Tanh,
            });
        }
        let blend = vec![if affine { 1.0 } else { 0.0 }; 2 * c.layers.len() + 1];
        Ok(Self {
            parameters,
            form: Form { activation: c.config.activation.into(), estimator: affine, blend },
            estimators,
            word: table(&e.word)?,
            positions,
            types,
            embedding_norm,
            layers,
            head,
            heads: c.config.heads,
            epsilon: c.config.epsilon as f32,
            pooling: c.pooling,
        })
    }

    /// Hidden size.
    pub fn hidden(&self) -> usize {
        self.word.dims().get(1).copied().unwrap_or(0)
    }

    /// Number of normalisations.
    pub fn norms(&self) -> usize {
        2 * self.layers.len() + 1
    }

    /// The parameters of a normalisation, `5 x d`.
    pub fn norm(&self, i: usize) -> &Var {
        let at = match i {
            0 => self.embedding_norm,
            i if i % 2 == 1 => self.layers[(i - 1) / 2].attention_norm,
            i => self.layers[(i - 1) / 2].output_norm,
        };
        &self.parameters[at].var
    }

    /// Puts one dense layer without activation in place of the head: `outputs x d` weights and `outputs` biases.
    ///
    /// # Errors
    /// What the tensor library reports.
    pub fn set_head(&mut self, weight: Vec<f32>, bias: Vec<f32>) -> Result<()> {
        self.parameters.retain(|p| p.part != Part::Head);
        let (at, outputs) = (self.parameters.len(), bias.len());
        let shape = [outputs, weight.len() / outputs.max(1)];
        let mut add = |name: &str, var: Var| {
            self.parameters.push(Parameter { name: name.into(), var, part: Part::Head });
        };
        add("head.0.weight", Var::from_vec(weight, &shape[..], &Device::Cpu)?);
        add("head.0.bias", Var::from_vec(bias, outputs, &Device::Cpu)?);
        self.head = vec![Dense { weight: at, bias: at + 1, tanh: false }];
        Ok(())
    }

    /// One pass over a batch.
    ///
    /// # Errors
    /// What the tensor library reports, and a token outside the tables.
    pub fn forward(&self, batch: &Batch, pass: &Pass<'_>) -> Result<Outcome> {
        let mut made = BTreeSet::new();
        let (mut before, mut hidden) = (Vec::new(), Vec::new());
        let get = |i: usize| {
            let p = &self.parameters[i];
            if (pass.trained)(p.part) { p.var.as_tensor().clone() } else { p.var.as_detached_tensor() }
        };
        let linear = |x: &Tensor, w: usize| {
            let w = get(w);
            let trained = w.is_variable();
            x.apply_op2(&w, Linear { trained })
        };
        made.extend(Linear::PRIMITIVES);
        let mut norm = |z: Tensor, residual: Tensor, p: usize, made: &mut BTreeSet<Primitive>| -> Result<Tensor> {
            let op = AddNorm { blend: self.form.blend[hidden.len()], epsilon: self.epsilon };
            made.extend(op.primitives());
            let y = z.apply_op3(&residual, &get(p), op)?;
            before.push((z, residual));
            hidden.push(y.clone());
            Ok(y)
        };

        let rows = PositionRows { spans: batch.spans.clone(), types: batch.types.clone() };
        let places = get(self.positions).apply_op2(&get(self.types), rows)?;
        let mut x = norm(places, self.word.index_select(&batch.ids, 0)?, self.embedding_norm, &mut made)?;
        for (i, l) in self.layers.iter().enumerate() {
            let none = Penalty::NONE;
            let weighting = match self.form.estimator {
                true => Weighting::Estimator(pass.penalties.get(i).copied().unwrap_or(none)),
                false => Weighting::Softmax,
            };
            let spans = batch.spans.clone();
            let attention = Attention { spans, heads: self.heads, weighting, watch: pass.watches.get(i).cloned() };
            made.extend(attention.primitives());
            let context = linear(&x, l.qkv)?.apply_op3(&get(l.qkv_bias), &self.estimators[i], attention)?;
            let middle = norm(linear(&context, l.mix)?, x, l.attention_norm, &mut made)?;
            let act = BiasAct { activation: self.form.activation.activation() };
            made.extend(act.primitives());
            let up = linear(&middle, l.up)?.apply_op2(&get(l.up_bias), act)?;
            x = norm(linear(&up, l.down)?, middle, l.output_norm, &mut made)?;
        }
        let pooled = x.apply_op1(Pool { spans: batch.spans.clone(), pooling: self.pooling })?;
        made.extend(Pool::PRIMITIVES);
        let mut output = pooled.clone();
        for dense in &self.head {
            output = linear(&output, dense.weight)?.broadcast_add(&get(dense.bias))?;
            if dense.tanh {
                output = output.tanh()?;
                made.insert(Primitive::Tanh);
            }
        }
        Ok(Outcome { output, pooled, before, hidden, primitives: made })
    }
}
