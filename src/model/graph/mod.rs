//! The fixed-point graph of one bucket: edges with a ring and fraction bits, nodes with an exact integer meaning.
//!
//! The oracle executes the graph in the clear; the protocol executes it on shares. What each node means:
//!
//! | node | meaning on integers | communication online |
//! |---|---|---|
//! | `Linear` | `sum_k x_k W_k + bias`, exact | none |
//! | `Product` | matrix product per head, exact; the client's mask offsets are added | one round |
//! | `SquareSum`, `RowScale` | sums of squares, products with a row's scalar, exact | one round |
//! | `RowSum`, `ShiftLeft` | sum of a row, product with a power of two, exact | none |
//! | `Garbled` | a function of [`crate::arith::fixed`], exact | one round |

//!
//! [`GraphOptions`] choose between graphs of one model: merged boundaries have no truncation, prime rings are for slots, and
//! with a private lookup the client's tokens become vectors inside the graph. `build.rs` makes the nodes, `widths.rs` the
//! numbers of fraction bits, `rings.rs` the rings.

mod build;
mod rings;
mod widths;

use crate::arith::{
    ShareModulus,
    fixed::{ActivationTable, ExpTable, PowerTable, TanhTable},
};

use super::{Boundary, GraphOptions, Lookup, MergeSet, ModelSpec, Rings, SpecError};

/// Widest ring of a product of two shared values whose operands are not split into digits, at the `matmul-8192` parameters
/// (see `ARCHITECTURE.md`, width rules).
pub const PRODUCT_RING_LIMIT: u32 = 48;

/// Widest ring of a product next to a merged boundary: over [`PRODUCT_RING_LIMIT`], operands are split into digits.
pub const MERGED_RING_LIMIT: u32 = 62;

/// Bits of a prime ring up to which fraction bits of attention give way: what slots carry at the `matmul-8192` parameters.
pub const PRIME_RING_AIM: u32 = 38;

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
    /// The embedding block's tables of words and token types, centred; its bias is a row a position.
    Tokens,
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
    /// `sum_k inputs_k * W_k + bias * 2^bias_shift`, `W_k` consecutive row blocks of the named matrix. All inputs have one
    /// ring and one number of fraction bits; the output's ring is at most as wide, or the same prime.
    Linear {
        /// The server's matrix.
        weights: WeightId,
        /// Inputs, concatenated along features.
        inputs: Vec<EdgeId>,
        /// Only the first row of every input takes part.
        first_row: bool,
        /// What the bias lacks: the inputs may have more fraction bits than it was rounded for.
        bias_shift: u32,
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
    /// `x * 2^bits`, in the same ring: the same numbers at more fraction bits.
    ShiftLeft {
        /// Operand.
        input: EdgeId,
        /// Fraction bits gained.
        bits: u32,
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
            Self::SquareSum { input }
            | Self::RowSum { input }
            | Self::ShiftLeft { input, .. }
            | Self::Garbled { input, .. } => vec![*input],
        }
    }

    /// Whether each party computes its share alone, online.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Linear { .. } | Self::RowSum { .. } | Self::ShiftLeft { .. })
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
    /// The client's tokens: embedded, `tokens x hidden`, or with [`Lookup::Private`] one-hot, `tokens x (vocabulary + types)`.
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

        if !(1..=512).contains(&tokens) {
            return Err(SpecError::Range { what: "tokens", value: tokens as i64, range: "1 to 512" });
        }
        build::Builder::new(spec, tokens, *options).build()
    }

    /// The boundaries that can be merged together, tried in the order of [`Boundary::ALL`]: one is taken if this model has it
    /// and the graph of `tokens` with it and those before has rings that are wide enough.
    ///
    /// # Errors
    /// [`SpecError`] if there is no graph without any.
    pub fn largest_merge(spec: &ModelSpec, tokens: usize, rings: Rings, lookup: Lookup) -> Result<MergeSet, SpecError> {
        let options = |merge| GraphOptions { merge, rings, lookup };
        Self::build(spec, tokens, &options(MergeSet::NONE))?;
        let mut merge = MergeSet::NONE;
        for boundary in Boundary::ALL.into_iter().filter(|b| b.is_in(spec)) {
            if Self::build(spec, tokens, &options(merge.with(boundary))).is_ok() {
                merge = merge.with(boundary);
            }
        }
        Ok(merge)
    }

    /// The boundaries of this model that can be merged beside those of `options`, each with the graph that has it: what a
    /// planner compares with the graph of `options`.
    pub fn merge_candidates(spec: &ModelSpec, tokens: usize, options: &GraphOptions) -> Vec<(Boundary, Self)> {
        let candidates = Boundary::ALL.into_iter().filter(|&b| b.is_in(spec) && !options.merge.contains(b));
        let with = |b| GraphOptions { merge: options.merge.with(b), ..*options };
        candidates.filter_map(|b| Some((b, Self::build(spec, tokens, &with(b)).ok()?))).collect()
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
mod tests;
