//! The fixed-point graph of one bucket: edges with a ring and fraction bits, nodes with an exact integer meaning.
//!
//! The oracle executes the graph in the clear; the protocol executes it on shares. What each node means:
//!
//! | node | meaning on integers | communication online |
//! |---|---|---|
//! | `Linear` | `sum_k x_k W_k + bias`, exact | none |
//! | `Product` | matrix product per head, exact; the client's mask offsets are added | one round |
//! | `SquareSum`, `RowScale` | sums of squares, products with a row's scalar, exact | one round |
//! | `RowSum` | sum of a row, exact | none |
//! | `Garbled` | a function of [`crate::arith::fixed`], exact | one round |

use crate::arith::{
    ShareModulus,
    fixed::{ActivationTable, ExpTable, PowerTable, RowPower, TanhTable},
};

use super::{DenseActivation, GraphOptions, LayerSpec, ModelSpec, Pooling, SpecError};

/// Widest ring of a product of two shared values at the `matmul-8192` parameters (see `ARCHITECTURE.md`, width rules).
pub const PRODUCT_RING_LIMIT: u32 = 48;

/// Widest ring of any other edge.
pub const RING_LIMIT: u32 = 64;

/// Largest magnitude of an integer weight: the public bound of the noise ledger.
pub const WEIGHT_LIMIT: u64 = (1 << super::WEIGHT_BITS) - 1;

/// Public sequence lengths, `[CLS]` and `[SEP]` included.
pub const BUCKETS: [usize; 7] = [8, 16, 32, 64, 128, 256, 512];

/// Index of an edge in [`Graph::edges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(pub usize);

/// Index of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// A matrix of fixed-point numbers, row-major, shared between the parties.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// `layer.name`, for reports.
    pub name: String,
    /// Rows. Attention scores have one row a head and token, head-major.
    pub rows: usize,
    /// Columns. Heads are contiguous column ranges where rows are tokens.
    pub cols: usize,
    /// Ring of the shares.
    pub ring: ShareModulus,
    /// Fraction bits.
    pub frac: u32,
}

impl Edge {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names a weight matrix of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightId {
    /// Query projection of a layer, `log2(e)/sqrt(d_head)` included.
    Query(usize),
    /// Key projection.
    Key(usize),
    /// Value projection.
    Value(usize),
    /// `[W_o; diag(gain)]`, centred: rows of the context, then rows of the layer's input.
    AttentionOutput(usize),
    /// First feed-forward matrix.
    Up(usize),
    /// `[W_2; diag(gain)]`, centred: rows of the activation, then rows of its layer's middle state.
    Down(usize),
    /// A dense layer of the head.
    Dense(usize),
}

/// A function evaluated by a garbled circuit.
#[derive(Clone, Debug, PartialEq)]
pub enum Function {
    /// [`crate::arith::fixed::round_shift`], elementwise.
    Truncate {
        /// Bits dropped.
        shift: u32,
    },
    /// An activation, elementwise.
    Activation(ActivationTable),
    /// Softmax numerators, row by row.
    Exp(ExpTable),
    /// Reciprocal or inverse square root, elementwise.
    Power {
        /// Positions, widths and error.
        table: PowerTable,
        /// The numerator.
        numerator: f64,
        /// Fraction bits of the input.
        in_frac: u32,
        /// Fraction bits of the output.
        out_frac: u32,
    },
    /// `tanh`, elementwise.
    Tanh(TanhTable),
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `sum_k inputs_k * W_k + bias`, `W_k` consecutive row blocks of the named matrix. All inputs have one ring and one
    /// number of fraction bits; the output's ring is at most as wide.
    Linear {
        /// The server's matrix.
        weights: WeightId,
        /// Inputs, concatenated along features.
        inputs: Vec<EdgeId>,
        /// Only the first row of every input takes part.
        first_row: bool,
    },
    /// Per head: `left_h * right_h`, or `left_h * right_h^T`.
    ///
    /// Transposed (scores): left and right are `tokens x (heads*k)`, output `(heads*tokens) x tokens`. Not transposed
    /// (context, pooling): left is `(heads*m) x tokens`, right `tokens x (heads*k)`, output `m x (heads*k)`.
    Product {
        /// Left operand.
        left: EdgeId,
        /// Right operand, of the same ring.
        right: EdgeId,
        /// Heads.
        heads: usize,
        /// Whether the right operand is transposed.
        transpose_right: bool,
        /// What the client adds to the columns of padding tokens.
        mask: Option<i64>,
    },
    /// `rows x 1`: the sum of squares of each row.
    SquareSum {
        /// Operand.
        input: EdgeId,
    },
    /// `x[i, h*k + c] * scale[h*rows + i]`, in the output's ring.
    RowScale {
        /// `rows x (heads*k)`, of a ring at least as wide as the output's.
        input: EdgeId,
        /// `(heads*rows) x 1`, of the output's ring.
        scale: EdgeId,
        /// Heads.
        heads: usize,
    },
    /// `rows x 1`: the sum of each row.
    RowSum {
        /// Operand.
        input: EdgeId,
    },
    /// A garbled function.
    Garbled {
        /// The function.
        function: Function,
        /// Operand.
        input: EdgeId,
    },
}

impl Op {
    /// The edges read.
    pub fn inputs(&self) -> Vec<EdgeId> {
        match self {
            Self::Linear { inputs, .. } => inputs.clone(),
            Self::Product { left, right, .. } => vec![*left, *right],
            Self::RowScale { input, scale, .. } => vec![*input, *scale],
            Self::SquareSum { input } | Self::RowSum { input } | Self::Garbled { input, .. } => vec![*input],
        }
    }

    /// Whether each party computes its share alone, online.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Linear { .. } | Self::RowSum { .. })
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `layer.name`, for reports.
    pub name: String,
    /// Encoder layer, if it belongs to one.
    pub layer: Option<usize>,
    /// What it computes.
    pub op: Op,
    /// The edge written.
    pub output: EdgeId,
}

/// One step of the online phase: local nodes, then nodes that communicate, all in the same flight.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Stage {
    /// Nodes without communication, in order; they depend on earlier stages and on each other.
    pub local: Vec<NodeId>,
    /// Nodes with communication; they do not depend on each other.
    pub interactive: Vec<NodeId>,
}

/// The graph of one bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Tokens of the bucket.
    pub tokens: usize,
    /// What it was built with.
    pub options: GraphOptions,
    /// Edges.
    pub edges: Vec<Edge>,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// The client's embedded tokens, `tokens x hidden`.
    pub embedding: EdgeId,
    /// The client's pooling weights m/len, `1 x tokens`.
    pub pool: Option<EdgeId>,
    /// What is opened to the client.
    pub output: EdgeId,
    /// The online schedule.
    pub stages: Vec<Stage>,
}

impl Graph {
    /// Builds the graph of a bucket of `tokens` (one of [`BUCKETS`], or any count from 1 to 512).
    ///
    /// # Errors
    /// [`SpecError`] for numbers out of range, for rings that would be too wide, and for options that this model or this
    /// release has no graph for.
    pub fn build(spec: &ModelSpec, tokens: usize, options: &GraphOptions) -> Result<Self, SpecError> {
        spec.validate()?;
        if *options != GraphOptions::default() {
            return Err(SpecError::Options { what: "merged boundaries, prime rings and private lookup".into() });
        }
        if !(1..=512).contains(&tokens) {
            return Err(SpecError::Range { what: "tokens", value: tokens as i64, range: "1 to 512" });
        }
        Builder { spec, tokens, options: *options, edges: Vec::new(), nodes: Vec::new(), layer: None }.build()
    }

    /// An edge.
    pub fn edge(&self, id: EdgeId) -> &Edge {
        &self.edges[id.0]
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Nodes with their ids, in execution order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i), n))
    }
}

/// Smallest `b` with `n <= 2^b`.
pub(crate) fn ceil_log2(n: usize) -> u32 {
    n.next_power_of_two().trailing_zeros()
}

/// Bits of a signed ring for values of magnitude `2^log2` at `frac` fraction bits, one bit of room for rounding.
fn signed_bits(log2: i32, frac: u32) -> u32 {
    (log2 + frac as i32 + 2).max(2) as u32
}

/// Fraction bits and ring of the attention's second half, which depend on the number of tokens.
struct ContextWidths {
    value_frac: u32,
    exp_frac: u32,
    reciprocal_frac: u32,
    ring: ShareModulus,
}

/// Fraction bits and ring of a LayerNorm.
struct NormWidths {
    frac: u32,
    scale_frac: u32,
    squares_bits: u32,
    squares_min_bits: u32,
    ring: ShareModulus,
    /// Of the scaled rows: each party reduces its share of the rows, which costs nothing, and products cost less.
    scaled: ShareModulus,
}

struct Builder<'a> {
    spec: &'a ModelSpec,
    tokens: usize,
    options: GraphOptions,
    edges: Vec<Edge>,
    nodes: Vec<Node>,
    layer: Option<usize>,
}

impl Builder<'_> {
    fn build(mut self) -> Result<Graph, SpecError> {
        let (spec, n, d) = (self.spec, self.tokens, self.spec.hidden);
        let f = spec.precision.hidden_frac;
        let first_ring =
            self.layer_ring(&spec.layers[0])?.max(self.ring("embedding", signed_bits(spec.embedding_log2, f))?);
        let embedding = self.edge("embedding", n, d, first_ring, f);
        let mut hidden = embedding;
        for (i, layer) in spec.layers.iter().enumerate() {
            self.layer = Some(i);
            let next = match spec.layers.get(i + 1) {
                Some(next) => self.layer_ring(next)?,
                None => self.head_ring()?,
            };
            hidden = self.encoder_layer(i, layer, hidden, next)?;
        }
        self.layer = None;
        let (pool, output) = self.head(hidden)?;
        let stages = schedule(&self.nodes, self.edges.len());
        Ok(Graph {
            tokens: n,
            options: self.options,
            edges: self.edges,
            nodes: self.nodes,
            embedding,
            pool,
            output,
            stages,
        })
    }

    fn encoder_layer(&mut self, i: usize, l: &LayerSpec, x: EdgeId, next: ShareModulus) -> Result<EdgeId, SpecError> {
        let spec = self.spec;
        let (n, d, heads, p) = (self.tokens, spec.hidden, spec.heads, &spec.precision);
        let f = p.hidden_frac;
        let ring_in = self.edges[x.0].ring;
        let ring_mid = self.middle_ring(l)?;

        // Attention scores.
        let qkv_frac = f + l.qkv_weight_frac;
        let scores = self.score_ring(l)?;
        let context = self.context_widths(l)?;
        let project = |b: &mut Self, name, weights, log2, frac, ring| -> Result<EdgeId, SpecError> {
            let raw_ring = b.ring(name, signed_bits(log2, qkv_frac))?;
            let raw = b.linear(&format!("{name}_raw"), weights, vec![x], false, (n, d, raw_ring, qkv_frac));
            Ok(b.truncate(name, raw, ring, frac))
        };
        let q = project(self, "query", WeightId::Query(i), l.query_log2, p.query_key_frac, scores)?;
        let k = project(self, "key", WeightId::Key(i), l.key_log2, p.query_key_frac, scores)?;
        let v = project(self, "value", WeightId::Value(i), l.value_log2, context.value_frac, context.ring)?;
        let s = self.edge("scores", heads * n, n, scores, 2 * p.query_key_frac);
        let mask = Some(-(self.mask_distance(l) << (2 * p.query_key_frac)));
        self.push("scores", Op::Product { left: q, right: k, heads, transpose_right: true, mask }, s);

        // Softmax: numerators, their sums, the product with the values, then the division.
        let exp = ExpTable {
            in_frac: 2 * p.query_key_frac,
            frac_bits: p.score_frac.min(context.exp_frac),
            out_frac: context.exp_frac,
            error_ppm: p.exp_error_ppm,
        };
        let e = self.garbled("exp", s, Function::Exp(exp), context.ring, context.exp_frac);
        let sum = self.edge("exp_sum", heads * n, 1, context.ring, context.exp_frac);
        self.push("exp_sum", Op::RowSum { input: e }, sum);
        let power = self.power(
            RowPower::Reciprocal,
            1.0,
            (context.exp_frac, context.reciprocal_frac),
            // On shares the largest numerator may round to just below 1, and the sum with it.
            context.exp_frac.saturating_sub(1),
            context.exp_frac + ceil_log2(n),
        )?;
        let r = self.garbled("reciprocal", sum, power, context.ring, context.reciprocal_frac);
        let u = self.edge("weighted", n, d, context.ring, context.exp_frac + context.value_frac);
        self.push("weighted", Op::Product { left: e, right: v, heads, transpose_right: false, mask: None }, u);
        let c_raw = self.row_scale("context_raw", u, r, heads);
        let c = self.truncate("context", c_raw, ring_in, f);

        // Output projection with the residual, LayerNorm.
        let raw_frac = f + l.attention_weight_frac;
        let raw_ring = self.ring("attention_raw", signed_bits(l.attention_log2, raw_frac))?;
        let raw =
            self.linear("attention_raw", WeightId::AttentionOutput(i), vec![c, x], false, (n, d, raw_ring, raw_frac));
        let widths = self.norm_widths(
            "attention_norm",
            l.attention_log2,
            l.attention_squares_log2,
            l.attention_squares_min_log2,
        )?;
        let middle = self.layer_norm("attention_norm", raw, &widths, ring_mid)?;

        // Feed-forward with the residual, LayerNorm.
        let up_frac = f + l.up_weight_frac;
        let up_ring = self.ring("up", signed_bits(l.up_log2, up_frac))?;
        let up = self.linear("up", WeightId::Up(i), vec![middle], false, (n, spec.ffn, up_ring, up_frac));
        let table = ActivationTable {
            activation: spec.activation,
            in_frac: up_frac,
            out_frac: f,
            range_log2: p.activation_range_log2,
            error_ppm: p.activation_error_ppm,
        };
        let act = self.garbled("activation", up, Function::Activation(table), ring_mid, f);
        let raw_frac = f + l.down_weight_frac;
        let raw_ring = self.ring("down_raw", signed_bits(l.down_log2, raw_frac))?;
        let raw = self.linear("down_raw", WeightId::Down(i), vec![act, middle], false, (n, d, raw_ring, raw_frac));
        let widths = self.norm_widths("down_norm", l.down_log2, l.down_squares_log2, l.down_squares_min_log2)?;
        self.layer_norm("down_norm", raw, &widths, next)
    }

    /// Truncation, sum of squares, inverse root, scaling, truncation: rows of variance 1, before gain and bias.
    fn layer_norm(&mut self, name: &str, raw: EdgeId, w: &NormWidths, ring: ShareModulus) -> Result<EdgeId, SpecError> {
        let n = self.edges[raw.0].rows;
        let x = self.truncate(&format!("{name}_in"), raw, w.ring, w.frac);
        let ss = self.edge(&format!("{name}_squares"), n, 1, w.ring, 2 * w.frac);
        self.push(&format!("{name}_squares"), Op::SquareSum { input: x }, ss);
        let power = self.power(
            RowPower::InverseSqrt,
            (self.spec.hidden as f64).sqrt(),
            (2 * w.frac, w.scale_frac),
            w.squares_min_bits,
            w.squares_bits.max(w.squares_min_bits + 1) - 1,
        )?;
        let r = self.garbled(&format!("{name}_scale"), ss, power, w.scaled, w.scale_frac);
        let y = self.row_scale(&format!("{name}_raw"), x, r, 1);
        Ok(self.truncate(name, y, ring, self.spec.precision.hidden_frac))
    }

    /// Pooling, the dense layers; returns the client's pooling input and the edge that is opened.
    fn head(&mut self, hidden: EdgeId) -> Result<(Option<EdgeId>, EdgeId), SpecError> {
        let spec = self.spec;
        let f = spec.precision.hidden_frac;
        let n = self.tokens;
        let (mut pool, mut x, mut first_row) = (None, hidden, spec.pooling == Pooling::First);
        if spec.pooling == Pooling::Mean {
            let ring = self.edges[hidden.0].ring;
            let m = self.edge("pool_weights", 1, n, ring, POOL_FRAC);
            let u = self.edge("pool_raw", 1, spec.hidden, ring, f + POOL_FRAC);
            self.push(
                "pool_raw",
                Op::Product { left: m, right: hidden, heads: 1, transpose_right: false, mask: None },
                u,
            );
            let dense_ring = self.dense_ring(0)?;
            x = self.truncate("pool", u, dense_ring, f);
            pool = Some(m);
            first_row = false;
        }
        for (i, dense) in spec.dense.iter().enumerate() {
            let rows = if first_row { 1 } else { self.edges[x.0].rows };
            let frac = f + dense.weight_frac;
            let ring = self.dense_ring(i)?;
            let last = i + 1 == spec.dense.len();
            let name = format!("dense{i}");
            let raw = self.linear(
                &format!("{name}_raw"),
                WeightId::Dense(i),
                vec![x],
                first_row,
                (rows, dense.features, ring, frac),
            );
            first_row = false;
            let next_ring = if last { ring } else { self.dense_ring(i + 1)? };
            x = match dense.activation {
                DenseActivation::Tanh => {
                    let table = TanhTable {
                        in_frac: frac,
                        out_frac: f,
                        range_log2: 2,
                        error_ppm: spec.precision.tanh_error_ppm,
                    };
                    self.garbled(&name, raw, Function::Tanh(table), next_ring, f)
                }
                DenseActivation::Identity if last => raw,
                DenseActivation::Identity => self.truncate(&name, raw, next_ring, f),
            };
        }
        Ok((pool, x))
    }

    /// Ring of a dense layer's output, hence of its input.
    fn dense_ring(&self, i: usize) -> Result<ShareModulus, SpecError> {
        let f = self.spec.precision.hidden_frac;
        let dense = &self.spec.dense[i];
        let own = signed_bits(dense.out_log2, f + dense.weight_frac);
        // After an identity the inputs are as large as the layer before makes them.
        let input = match i.checked_sub(1).map(|before| &self.spec.dense[before]) {
            Some(before) if before.activation == DenseActivation::Identity => before.out_log2,
            _ => self.hidden_log2(),
        };
        self.ring("dense", own.max(signed_bits(input, f)))
    }

    /// Ring of the last hidden state.
    fn head_ring(&self) -> Result<ShareModulus, SpecError> {
        match self.spec.pooling {
            Pooling::First | Pooling::Tokens => self.dense_ring(0),
            Pooling::Mean => {
                let f = self.spec.precision.hidden_frac;
                self.product_ring("pool_raw", signed_bits(self.hidden_log2(), f + POOL_FRAC))
            }
        }
    }

    /// Magnitude of a normalised row: `|y| <= sqrt(d)`.
    fn hidden_log2(&self) -> i32 {
        (ceil_log2(self.spec.hidden) as i32 + 1) / 2
    }

    /// Ring of a layer's input and context: as wide as its widest linear output.
    fn layer_ring(&self, l: &LayerSpec) -> Result<ShareModulus, SpecError> {
        let f = self.spec.precision.hidden_frac;
        let qkv = l.query_log2.max(l.key_log2).max(l.value_log2);
        let bits = signed_bits(qkv, f + l.qkv_weight_frac)
            .max(signed_bits(l.attention_log2, f + l.attention_weight_frac))
            .max(signed_bits(self.hidden_log2().max(l.value_log2), f));
        self.ring("layer input", bits)
    }

    /// Ring of a layer's middle state and activation.
    fn middle_ring(&self, l: &LayerSpec) -> Result<ShareModulus, SpecError> {
        let f = self.spec.precision.hidden_frac;
        let bits = signed_bits(l.up_log2, f + l.up_weight_frac)
            .max(signed_bits(l.down_log2, f + l.down_weight_frac))
            .max(signed_bits(self.hidden_log2(), f));
        self.ring("middle", bits)
    }

    /// In whole units of the score: far enough below every real score that `2^-distance` is 0.
    fn mask_distance(&self, l: &LayerSpec) -> i64 {
        (2i64 << l.score_log2.max(0)) + self.spec.precision.exp_frac as i64 + 2
    }

    fn score_ring(&self, l: &LayerSpec) -> Result<ShareModulus, SpecError> {
        let highest = 1i64 << l.score_log2.max(0);
        // From the lowest masked score to the highest: differences within a row fit, as comparisons on shares need.
        let spread = 2 * highest + self.mask_distance(l);
        let score = ceil_log2(spread as usize + 1) + 2 * self.spec.precision.query_key_frac + 1;
        let operand = signed_bits(l.query_log2.max(l.key_log2), self.spec.precision.query_key_frac);
        self.product_ring("scores", score.max(operand))
    }

    /// The reciprocal needs `log2 n` more fraction bits for long rows; exponentials and values give way where the ring
    /// would be too wide.
    fn context_widths(&self, l: &LayerSpec) -> Result<ContextWidths, SpecError> {
        let p = &self.spec.precision;
        let (mut value_frac, mut exp_frac) = (p.value_frac, p.exp_frac);
        let mut reciprocal_frac = 11 + ceil_log2(self.tokens);
        let bits = |v: u32, e: u32, r: u32| {
            signed_bits(l.value_log2, v + e + r).max(e + ceil_log2(self.tokens) + 2).max(r + 3)
        };
        while bits(value_frac, exp_frac, reciprocal_frac) > PRODUCT_RING_LIMIT {
            if exp_frac > 11 {
                exp_frac -= 1;
            } else if value_frac > 8 {
                value_frac -= 1;
            } else if reciprocal_frac > 9 + ceil_log2(self.tokens) {
                reciprocal_frac -= 1;
            } else if value_frac > 4 {
                value_frac -= 1;
            } else {
                break;
            }
        }
        let ring = self.product_ring("context", bits(value_frac, exp_frac, reciprocal_frac))?;
        Ok(ContextWidths { value_frac, exp_frac, reciprocal_frac, ring })
    }

    /// Fraction bits give way where the sum of squares would need a wide ring.
    fn norm_widths(&self, name: &str, log2: i32, squares_log2: i32, min_log2: i32) -> Result<NormWidths, SpecError> {
        let f = self.spec.precision.hidden_frac;
        let mut frac = f;
        while frac > 10 && squares_log2 + 2 * frac as i32 > 44 {
            frac -= 1;
        }
        // The largest row deviates by 2^((squares - log2 d)/2); its scale keeps 11 bits.
        let deviation_log2 = (squares_log2 - ceil_log2(self.spec.hidden) as i32 + 2) / 2;
        let scale_frac = (11 + deviation_log2).max(11) as u32;
        let squares_bits = (squares_log2 + 2 * frac as i32).max(2) as u32;
        // The scale of the smallest row that the table covers.
        let scale_log2 = (ceil_log2(self.spec.hidden) as i32 - min_log2 + 1) / 2;
        let scaled_bits =
            signed_bits(self.hidden_log2(), frac + scale_frac).max(signed_bits(scale_log2, scale_frac)) + 1;
        let scaled = self.ring(name, scaled_bits)?;
        let ring = self.ring(name, (squares_bits + 1).max(scaled_bits).max(signed_bits(log2, frac)))?;
        let squares_min_bits = (min_log2 + 2 * frac as i32).clamp(0, squares_bits as i32 - 1) as u32;
        Ok(NormWidths { frac, scale_frac, squares_bits, squares_min_bits, ring, scaled })
    }

    fn power(
        &self,
        power: RowPower,
        numerator: f64,
        (in_frac, out_frac): (u32, u32),
        min_log2: u32,
        max_log2: u32,
    ) -> Result<Function, SpecError> {
        let error_ppm = self.spec.precision.row_error_ppm;
        let table = PowerTable::new(power, numerator, in_frac, out_frac, min_log2, max_log2, error_ppm).ok_or(
            SpecError::Range {
                what: "position of a row value's leading bit",
                value: max_log2 as i64,
                range: "0 to 63",
            },
        )?;
        Ok(Function::Power { table, numerator, in_frac, out_frac })
    }

    fn ring_limited(&self, name: &str, bits: u32, limit: u32) -> Result<ShareModulus, SpecError> {
        let edge = || match self.layer {
            Some(i) => format!("layer {i} {name}"),
            None => name.to_string(),
        };
        if bits > limit {
            return Err(SpecError::Ring { edge: edge(), bits, limit });
        }
        ShareModulus::pow2(bits).ok_or_else(|| SpecError::Ring { edge: edge(), bits, limit })
    }

    fn ring(&self, name: &str, bits: u32) -> Result<ShareModulus, SpecError> {
        self.ring_limited(name, bits, RING_LIMIT)
    }

    fn product_ring(&self, name: &str, bits: u32) -> Result<ShareModulus, SpecError> {
        self.ring_limited(name, bits, PRODUCT_RING_LIMIT)
    }

    fn qualified(&self, name: &str) -> String {
        match self.layer {
            Some(i) => format!("layer{i}.{name}"),
            None => name.to_string(),
        }
    }

    fn edge(&mut self, name: &str, rows: usize, cols: usize, ring: ShareModulus, frac: u32) -> EdgeId {
        let name = self.qualified(name);
        self.edges.push(Edge { name, rows, cols, ring, frac });
        EdgeId(self.edges.len() - 1)
    }

    fn push(&mut self, name: &str, op: Op, output: EdgeId) {
        let name = self.qualified(name);
        self.nodes.push(Node { name, layer: self.layer, op, output });
    }

    fn linear(
        &mut self,
        name: &str,
        weights: WeightId,
        inputs: Vec<EdgeId>,
        first_row: bool,
        (rows, cols, ring, frac): (usize, usize, ShareModulus, u32),
    ) -> EdgeId {
        let output = self.edge(name, rows, cols, ring, frac);
        self.push(name, Op::Linear { weights, inputs, first_row }, output);
        output
    }

    fn garbled(&mut self, name: &str, input: EdgeId, function: Function, ring: ShareModulus, frac: u32) -> EdgeId {
        let (rows, cols) = (self.edges[input.0].rows, self.edges[input.0].cols);
        let output = self.edge(name, rows, cols, ring, frac);
        self.push(name, Op::Garbled { function, input }, output);
        output
    }

    fn truncate(&mut self, name: &str, input: EdgeId, ring: ShareModulus, frac: u32) -> EdgeId {
        // Never a left shift: no edge gains fraction bits by truncation.
        let shift = self.edges[input.0].frac.saturating_sub(frac);
        self.garbled(name, input, Function::Truncate { shift }, ring, frac)
    }

    fn row_scale(&mut self, name: &str, input: EdgeId, scale: EdgeId, heads: usize) -> EdgeId {
        let e = &self.edges[input.0];
        let scale_edge = &self.edges[scale.0];
        let (rows, cols, ring, frac) = (e.rows, e.cols, scale_edge.ring, e.frac + scale_edge.frac);
        let output = self.edge(name, rows, cols, ring, frac);
        self.push(name, Op::RowScale { input, scale, heads }, output);
        output
    }
}

/// Fraction bits of the pooling weights m/len.
pub(crate) const POOL_FRAC: u32 = 16;

/// As soon as possible: a node runs in the first stage after those of its inputs, local nodes before interactive ones.
fn schedule(nodes: &[Node], edges: usize) -> Vec<Stage> {
    // The stage after which an edge exists: 0 for the client's inputs and what is local to them.
    let mut ready = vec![0usize; edges];
    let mut stages: Vec<Stage> = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let at = node.op.inputs().iter().map(|e| ready[e.0]).max().unwrap_or(0);
        if stages.len() <= at {
            stages.resize(at + 1, Stage::default());
        }
        if node.op.is_local() {
            stages[at].local.push(NodeId(i));
            ready[node.output.0] = at;
        } else {
            stages[at].interactive.push(NodeId(i));
            ready[node.output.0] = at + 1;
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arith::fixed::Activation, model::DenseSpec};

    pub(crate) fn tiny(pooling: Pooling) -> ModelSpec {
        let layer = LayerSpec {
            query_log2: 4,
            key_log2: 4,
            value_log2: 3,
            score_log2: 7,
            attention_log2: 5,
            attention_squares_log2: 10,
            attention_squares_min_log2: -2,
            up_log2: 5,
            down_log2: 8,
            down_squares_log2: 16,
            down_squares_min_log2: -2,
            qkv_weight_frac: 12,
            attention_weight_frac: 12,
            up_weight_frac: 12,
            down_weight_frac: 12,
        };
        ModelSpec {
            hidden: 128,
            heads: 2,
            ffn: 512,
            activation: Activation::Gelu,
            embedding_log2: 4,
            layers: vec![layer.clone(), layer],
            pooling,
            dense: vec![
                DenseSpec { features: 128, activation: DenseActivation::Tanh, weight_frac: 12, out_log2: 5 },
                DenseSpec { features: 2, activation: DenseActivation::Identity, weight_frac: 12, out_log2: 4 },
            ],
            precision: Default::default(),
        }
    }

    #[test]
    fn every_edge_is_written_once_and_before_it_is_read() {
        for pooling in [Pooling::First, Pooling::Mean, Pooling::Tokens] {
            for tokens in BUCKETS {
                let g = Graph::build(&tiny(pooling), tokens, &GraphOptions::default()).unwrap();
                let mut written: Vec<bool> = vec![false; g.edges.len()];
                written[g.embedding.0] = true;
                if let Some(pool) = g.pool {
                    written[pool.0] = true;
                }
                let order = g.stages.iter().flat_map(|s| s.local.iter().chain(&s.interactive));
                let mut count = 0;
                for &id in order {
                    let node = g.node(id);
                    assert!(node.op.inputs().iter().all(|e| written[e.0]), "{}", node.name);
                    assert!(!std::mem::replace(&mut written[node.output.0], true), "{}", node.name);
                    count += 1;
                }
                assert_eq!(count, g.nodes.len());
                assert!(written.iter().all(|w| *w));
            }
        }
    }

    #[test]
    fn rings_and_fractions_fit_together() {
        for tokens in BUCKETS {
            let g = Graph::build(&tiny(Pooling::Mean), tokens, &GraphOptions::default()).unwrap();
            for node in &g.nodes {
                let out = g.edge(node.output);
                match &node.op {
                    Op::Linear { inputs, .. } => {
                        let first = g.edge(inputs[0]);
                        assert!(inputs.iter().all(|e| g.edge(*e).ring == first.ring && g.edge(*e).frac == first.frac));
                        assert!(out.ring <= first.ring, "{}", node.name);
                    }
                    Op::Product { left, right, .. } => {
                        assert!(g.edge(*left).ring == out.ring && g.edge(*right).ring == out.ring);
                        assert!(out.ring.bits() <= PRODUCT_RING_LIMIT);
                        assert_eq!(out.frac, g.edge(*left).frac + g.edge(*right).frac);
                    }
                    Op::RowScale { input, scale, .. } => {
                        assert!(g.edge(*input).ring >= out.ring && g.edge(*scale).ring == out.ring);
                    }
                    Op::SquareSum { input } | Op::RowSum { input } => assert_eq!(g.edge(*input).ring, out.ring),
                    Op::Garbled { function: Function::Truncate { shift }, input } => {
                        assert_eq!(g.edge(*input).frac - shift, out.frac, "{}", node.name);
                    }
                    Op::Garbled { .. } => {}
                }
            }
        }
    }

    #[test]
    fn descriptions_out_of_range_are_refused() {
        let mut spec = tiny(Pooling::First);
        spec.heads = 3;
        assert!(Graph::build(&spec, 8, &GraphOptions::default()).is_err());
        let mut spec = tiny(Pooling::First);
        spec.layers[0].score_log2 = 40;
        assert!(matches!(Graph::build(&spec, 8, &GraphOptions::default()), Err(SpecError::Ring { .. })));
        assert!(Graph::build(&tiny(Pooling::First), 0, &GraphOptions::default()).is_err());
        assert!(Graph::build(&tiny(Pooling::First), 513, &GraphOptions::default()).is_err());
    }
}
