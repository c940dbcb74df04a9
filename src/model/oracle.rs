//! The oracle: a graph executed in the clear, exactly as the protocol computes it on shares.
//!
//! Every node's true integer result is computed without wrapping, compared with the signed range of the edge's ring, and
//! only then reduced. An edge that overflows is counted: the protocol would wrap in the same way, so equality of both says
//! nothing about such a run.

use rayon::prelude::*;
use thiserror::Error;

use crate::arith::{
    ShareModulus,
    fixed::{ActivationTable, ExpTable, PowerTable, TanhTable, round_shift, rounding_offset},
};

use super::{Edge, EdgeId, Function, Graph, Node, Op, ServerWeights, WeightId, WeightMatrix, matmul::matmul};

/// Why a graph cannot be executed on these inputs.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OracleError {
    /// An input or a matrix has another shape than the graph's.
    #[error("{name} has {found} elements where the graph has {expected}")]
    Shape {
        /// Edge or matrix.
        name: String,
        /// Elements found.
        found: usize,
        /// Elements expected.
        expected: usize,
    },
    /// A matrix of the graph is not among the weights.
    #[error("the weights of {0:?} are absent")]
    Weights(WeightId),
    /// The evaluator cannot compute a non-linear node.
    #[error("{node}: {reason}")]
    NonLinear {
        /// The node's name.
        node: String,
        /// What is in the way.
        reason: String,
    },
}

/// A non-linear node to be evaluated.
#[derive(Clone, Copy, Debug)]
pub struct NonLinear<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its function.
    pub function: &'a Function,
    /// The edge read.
    pub input: &'a Edge,
    /// The edge written.
    pub output: &'a Edge,
}

/// Computes the [`Op::Garbled`] nodes of a graph: what the garbled circuits compute ([`Exact`]), or a model of another
/// protocol for them.
pub trait Evaluator {
    /// The node's true outputs before reduction into the output's ring, `rows x cols` of the output edge, for the signed
    /// values `x` of the input edge; and how many inputs the function does not cover.
    ///
    /// # Errors
    /// [`OracleError::NonLinear`] for a function that this evaluator does not have.
    fn evaluate(&mut self, node: NonLinear<'_>, x: &[i64]) -> Result<(Vec<i128>, u64), OracleError>;
}

/// The functions of [`crate::arith::fixed`] as written: what the garbled circuits compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exact;

impl Evaluator for Exact {
    fn evaluate(&mut self, node: NonLinear<'_>, x: &[i64]) -> Result<(Vec<i128>, u64), OracleError> {
        Ok(garbled(node.function, node.input, x))
    }
}

/// What the client feeds into a graph, in signed integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Tokens with padding: embedded, `tokens x hidden`, or one-hot where the graph looks them up.
    pub embedding: Vec<i64>,
    /// Pooling weights, `1 x tokens`, where the graph has them.
    pub pool: Option<Vec<i64>>,
    /// Number of real tokens; columns from here on are masked.
    pub len: usize,
}

/// Values of one edge that its ring, or the table of the function that reads it, cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// The edge.
    pub edge: EdgeId,
    /// Number of such values.
    pub count: u64,
}

/// The result of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Signed values of every edge, `rows x cols`.
    pub values: Vec<Vec<i64>>,
    /// Edges with overflows; empty in a sound run.
    pub overflows: Vec<Overflow>,
}

impl Execution {
    /// The values of an edge.
    pub fn edge(&self, id: EdgeId) -> &[i64] {
        self.values.get(id.0).map_or(&[], |v| v)
    }

    /// The residues of an edge in its ring, as the parties' shares sum to.
    pub fn residues(&self, graph: &Graph, id: EdgeId) -> Vec<u64> {
        let ring = graph.edge(id).ring;
        self.edge(id).iter().map(|&x| ring.from_signed(x)).collect()
    }

    /// Number of overflows on all edges.
    pub fn overflow_count(&self) -> u64 {
        self.overflows.iter().map(|o| o.count).sum()
    }
}

/// Executes a graph.
///
/// # Errors
/// [`OracleError`] if the inputs or weights do not have the graph's shapes.
pub fn execute(graph: &Graph, weights: &ServerWeights, inputs: &Inputs) -> Result<Execution, OracleError> {
    execute_with(graph, weights, inputs, &mut Exact)
}

/// Executes a graph whose non-linear nodes `evaluator` computes.
///
/// # Errors
/// [`OracleError`] if the inputs or weights do not have the graph's shapes, or what the evaluator reports.
pub fn execute_with(
    graph: &Graph,
    weights: &ServerWeights,
    inputs: &Inputs,
    evaluator: &mut dyn Evaluator,
) -> Result<Execution, OracleError> {
    let mut run = Run {
        graph,
        weights,
        evaluator,
        len: inputs.len,
        values: vec![Vec::new(); graph.edges.len()],
        overflows: vec![0; graph.edges.len()],
    };
    run.input(graph.embedding, &inputs.embedding)?;
    match (graph.pool, &inputs.pool) {
        (Some(edge), Some(pool)) => run.input(edge, pool)?,
        (Some(edge), None) => run.input(edge, &[])?,
        (None, _) => {}
    }
    for (_, node) in graph.iter() {
        run.node(node)?;
    }
    let overflows = run
        .overflows
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(i, &count)| Overflow { edge: EdgeId(i), count })
        .collect();
    Ok(Execution { values: run.values, overflows })
}

struct Run<'a> {
    graph: &'a Graph,
    weights: &'a ServerWeights,
    evaluator: &'a mut dyn Evaluator,
    len: usize,
    values: Vec<Vec<i64>>,
    overflows: Vec<u64>,
}

impl Run<'_> {
    fn input(&mut self, id: EdgeId, values: &[i64]) -> Result<(), OracleError> {
        let edge = self.graph.edge(id);
        check(&edge.name, values.len(), edge.len())?;
        self.store(id, values.to_vec());
        Ok(())
    }

    /// Counts what the ring cannot hold and wraps it.
    fn store<T: Copy + Into<i128>>(&mut self, id: EdgeId, values: Vec<T>) {
        let ring = self.graph.edge(id).ring;
        let mut count = 0;
        self.values[id.0] = values
            .into_iter()
            .map(|x| {
                let x: i128 = x.into();
                count += u64::from(!ring.holds(x));
                ring.to_signed(ring.from_signed(x as i64))
            })
            .collect();
        self.overflows[id.0] += count;
    }

    fn operand(&self, id: EdgeId) -> (&Edge, &[i64]) {
        (self.graph.edge(id), &self.values[id.0])
    }

    fn node(&mut self, node: &Node) -> Result<(), OracleError> {
        match &node.op {
            Op::Linear { weights, inputs, first_row, bias_shift } => {
                let map = self.weights.get(*weights).ok_or(OracleError::Weights(*weights))?;
                let rows = if *first_row { 1 } else { inputs.first().map_or(0, |&e| self.graph.edge(e).rows) };
                let x = self.concatenate(inputs, rows);
                let name = format!("{weights:?}");
                check(&name, map.weights.len(), map.inputs * map.outputs)?;
                if map.bias_row(rows.saturating_sub(1)).is_none() {
                    check(&name, map.bias.len(), map.outputs * rows)?;
                }
                check(&name, map.inputs * rows, x.len())?;
                check(&name, map.outputs * rows, self.graph.edge(node.output).len())?;
                self.store(node.output, linear(&x, map, rows, *bias_shift));
            }
            Op::Product { left, right, heads, transpose_right, mask } => {
                let mut z = self.product(*left, *right, *heads, *transpose_right);
                if let Some(offset) = mask {
                    let cols = self.graph.edge(node.output).cols;
                    for row in z.chunks_mut(cols.max(1)) {
                        row.iter_mut().skip(self.len).for_each(|x| *x += *offset as i128);
                    }
                }
                self.store(node.output, z);
            }
            Op::SquareSum { input } => {
                let (edge, x) = self.operand(*input);
                // Only garbage is larger, and its squares could leave 128 bits: it wraps and is counted.
                let outside = x.iter().filter(|x| x.unsigned_abs() >= 1 << 56).count() as u64;
                let square = |sum: i128, &x: &i64| sum.wrapping_add((x as i128).wrapping_mul(x as i128));
                let z: Vec<i128> = x.chunks(edge.cols.max(1)).map(|row| row.iter().fold(0, square)).collect();
                self.overflows[input.0] += outside;
                self.store(node.output, z);
            }
            Op::ShiftLeft { input, bits } => {
                let (_, x) = self.operand(*input);
                // Only garbage is shifted out of 128 bits.
                let z: Vec<i128> = x.iter().map(|&x| i128::from(x) << (*bits).min(63)).collect();
                self.store(node.output, z);
            }
            Op::RowSum { input } => {
                let (edge, x) = self.operand(*input);
                let z: Vec<i128> = x.chunks(edge.cols.max(1)).map(|row| row.iter().map(|&x| x as i128).sum()).collect();
                self.store(node.output, z);
            }
            Op::RowScale { input, scale, heads } => {
                let ((edge, x), (_, scale)) = (self.operand(*input), self.operand(*scale));
                let width = edge.cols / heads;
                let z: Vec<i128> = (0..x.len())
                    .map(|at| {
                        let (i, head) = (at / edge.cols, at % edge.cols / width);
                        x[at] as i128 * scale[head * edge.rows + i] as i128
                    })
                    .collect();
                self.store(node.output, z);
            }
            Op::Garbled { function, input } => {
                let (edge, output) = (self.graph.edge(*input), self.graph.edge(node.output));
                let nonlinear = NonLinear { name: &node.name, function, input: edge, output };
                let (z, outside) = self.evaluator.evaluate(nonlinear, &self.values[input.0])?;
                check(&node.name, z.len(), output.len())?;
                self.overflows[input.0] += outside;
                self.store(node.output, z);
            }
        }
        Ok(())
    }

    /// The first `rows` rows of all inputs side by side.
    fn concatenate(&self, inputs: &[EdgeId], rows: usize) -> Vec<i64> {
        let mut x = Vec::new();
        for i in 0..rows {
            for &id in inputs {
                let (edge, values) = self.operand(id);
                x.extend_from_slice(&values[i * edge.cols..(i + 1) * edge.cols]);
            }
        }
        x
    }

    fn product(&self, left: EdgeId, right: EdgeId, heads: usize, transpose_right: bool) -> Vec<i128> {
        let ((le, l), (re, r)) = (self.operand(left), self.operand(right));
        let k = re.cols / heads;
        let per_head = |h: usize| -> Vec<i128> {
            let cut = |x: &[i64], rows: usize, cols: usize| -> Vec<i64> {
                (0..rows).flat_map(|i| x[i * cols + h * k..i * cols + (h + 1) * k].iter().copied()).collect()
            };
            let right = cut(r, re.rows, re.cols);
            if transpose_right {
                let right = super::matmul::transpose(&right, re.rows, k);
                exact_product(&cut(l, le.rows, le.cols), &right, le.rows, k, re.rows)
            } else {
                let m = le.rows / heads;
                exact_product(&l[h * m * le.cols..(h + 1) * m * le.cols], &right, m, re.rows, k)
            }
        };
        let parts: Vec<Vec<i128>> = (0..heads).into_par_iter().map(per_head).collect();
        if transpose_right {
            return parts.concat();
        }
        let m = le.rows / heads;
        (0..m).flat_map(|i| parts.iter().flat_map(move |p| p[i * k..(i + 1) * k].iter().copied())).collect()
    }
}

fn check(name: &str, found: usize, expected: usize) -> Result<(), OracleError> {
    if found == expected { Ok(()) } else { Err(OracleError::Shape { name: name.into(), found, expected }) }
}

/// Integers up to here are exact in `f64`.
const EXACT: i128 = 1 << 53;

fn magnitude(x: &[i64]) -> i128 {
    x.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0) as i128
}

fn linear(x: &[i64], map: &WeightMatrix, rows: usize, bias_shift: u32) -> Vec<i128> {
    let (k, n) = (map.inputs, map.outputs);
    let mut z: Vec<i128> = if 16 * x.iter().filter(|&&x| x != 0).count() < x.len() {
        sparse_product(x, &map.weights, rows, k, n)
    } else if magnitude(x) * i128::from(map.column_sum()) < EXACT {
        let x: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        matmul::<f64, i32>(&x, &map.weights, rows, k, n).into_iter().map(|x| x as i128).collect()
    } else {
        let w: Vec<i64> = map.weights.iter().map(|&w| w as i64).collect();
        plain_product(x, &w, rows, k, n)
    };
    for (i, row) in z.chunks_mut(n.max(1)).enumerate() {
        let bias = map.bias_row(i).unwrap_or_default();
        row.iter_mut().zip(bias).for_each(|(x, &b)| *x += (b as i128) << bias_shift.min(63));
    }
    z
}

fn exact_product(a: &[i64], b: &[i64], m: usize, k: usize, n: usize) -> Vec<i128> {
    let bound = (magnitude(a) * magnitude(b)).saturating_mul(k as i128);
    if bound < EXACT {
        let a: Vec<f64> = a.iter().map(|&x| x as f64).collect();
        let b: Vec<f64> = b.iter().map(|&x| x as f64).collect();
        matmul::<f64, f64>(&a, &b, m, k, n).into_iter().map(|x| x as i128).collect()
    } else if bound < i64::MAX as i128 {
        matmul::<i64, i64>(a, b, m, k, n).into_iter().map(|x| x as i128).collect()
    } else {
        plain_product(a, b, m, k, n)
    }
}

/// Of one-hot rows and the like.
fn sparse_product(x: &[i64], w: &[i32], rows: usize, k: usize, n: usize) -> Vec<i128> {
    let mut z = vec![0i128; rows * n];
    for (x, z) in x.chunks(k.max(1)).zip(z.chunks_mut(n.max(1))) {
        for (&x, w) in x.iter().zip(w.chunks(n.max(1))).filter(|(x, _)| **x != 0) {
            z.iter_mut().zip(w).for_each(|(z, &w)| *z += i128::from(x) * i128::from(w));
        }
    }
    z
}

/// Without any assumption on magnitudes.
fn plain_product(a: &[i64], b: &[i64], m: usize, k: usize, n: usize) -> Vec<i128> {
    let a: Vec<i128> = a.iter().map(|&x| x as i128).collect();
    matmul::<i128, i64>(&a, b, m, k, n)
}

/// A garbled function, and how many inputs it does not cover: those whose sum with the rounding offset leaves the ring, and
/// row values outside the table's positions.
fn garbled(function: &Function, edge: &Edge, x: &[i64]) -> (Vec<i128>, u64) {
    match function {
        Function::Truncate { shift } => {
            (x.iter().map(|&x| round_shift(x as i128, *shift)).collect(), rounded_out(edge.ring, x, *shift))
        }
        Function::Activation(f) => (activation(f, x), rounded_out(edge.ring, x, f.shift())),
        Function::Exp(f) => (exponential(f, x, edge.cols), rounded_out(edge.ring, x, f.shift())),
        Function::Power { table, numerator, in_frac, out_frac } => {
            let pieces = table.pieces(*numerator, *in_frac, *out_frac);
            let z = x.iter().map(|&x| table.eval(&pieces, x as u64) as i128).collect();
            (z, x.iter().filter(|&&x| !covered(table, x)).count() as u64)
        }
        Function::Tanh(f) => (tanh(f, x), 0),
    }
}

fn rounded_out(ring: ShareModulus, x: &[i64], shift: u32) -> u64 {
    let offset = rounding_offset(shift) as i128;
    x.iter().filter(|&&x| !ring.holds(x as i128 + offset)).count() as u64
}

fn covered(table: &PowerTable, x: i64) -> bool {
    x > 0 && (table.min_log2..=table.max_log2).contains(&x.ilog2())
}

fn activation(f: &ActivationTable, x: &[i64]) -> Vec<i128> {
    let pieces = f.pieces();
    x.iter().map(|&x| f.eval(pieces.as_ref(), x as i128)).collect()
}

fn exponential(f: &ExpTable, x: &[i64], cols: usize) -> Vec<i128> {
    let table = f.table();
    let row = |row: &[i64]| f.eval_row(&table, &row.iter().map(|&x| x as i128).collect::<Vec<_>>());
    x.chunks(cols.max(1)).flat_map(row).collect()
}

fn tanh(f: &TanhTable, x: &[i64]) -> Vec<i128> {
    let pieces = f.pieces();
    x.iter().map(|&x| f.eval(&pieces, x as i128)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        arith::fixed::Activation,
        model::{
            Boundary, DenseActivation, DenseSpec, GraphOptions, LayerSpec, Lookup, LookupSpec, MergeSet, ModelSpec,
            Pooling, Rings,
        },
    };

    fn spec(pooling: Pooling, magnitude: i32) -> ModelSpec {
        let layer = LayerSpec {
            query_log2: magnitude,
            key_log2: magnitude,
            value_log2: magnitude,
            score_log2: magnitude + 2,
            attention_log2: magnitude,
            attention_squares_log2: 2 * magnitude + 2,
            attention_squares_min_log2: -4,
            up_log2: magnitude,
            down_log2: magnitude,
            down_squares_log2: 2 * magnitude + 2,
            down_squares_min_log2: -4,
            qkv_weight_frac: 10,
            attention_weight_frac: 11,
            up_weight_frac: 12,
            down_weight_frac: 9,
        };
        let dense = |features, activation| DenseSpec { features, activation, weight_frac: 10, out_log2: magnitude };
        ModelSpec {
            hidden: 6,
            heads: 2,
            ffn: 10,
            activation: Activation::Gelu,
            embedding_log2: 3,
            layers: vec![layer.clone(), layer],
            pooling,
            dense: vec![dense(5, DenseActivation::Tanh), dense(3, DenseActivation::Identity)],
            precision: Default::default(),
            lookup: None,
        }
    }

    /// Integers below `limit` in magnitude, always the same.
    fn numbers(count: usize, limit: i64, seed: u64) -> Vec<i64> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 20) as i64 % limit * if state >> 63 == 0 { 1 } else { -1 }
            })
            .collect()
    }

    fn weights(graph: &Graph) -> ServerWeights {
        let mut matrices = BTreeMap::new();
        for (id, node) in graph.iter() {
            let Op::Linear { weights, inputs, .. } = &node.op else { continue };
            let k: usize = inputs.iter().map(|&e| graph.edge(e).cols).sum();
            let n = graph.edge(node.output).cols;
            let w = numbers(k * n, 3000, id.0 as u64).into_iter().map(|w| w as i32).collect();
            let rows = if *weights == WeightId::Tokens { graph.tokens } else { 1 };
            let bias = numbers(n * rows, 1 << if rows > 1 { 10 } else { 20 }, id.0 as u64 + 99);
            matrices.insert(*weights, WeightMatrix { inputs: k, outputs: n, frac: 10, weights: w, bias });
        }
        ServerWeights::from_matrices(matrices)
    }

    fn inputs(graph: &Graph, limit: i64) -> Inputs {
        let limit = if graph.options.lookup == Lookup::Private { 2 } else { limit };
        let pool = graph.pool.map(|e| numbers(graph.edge(e).len(), 1 << 14, 5));
        Inputs { embedding: numbers(graph.edge(graph.embedding).len(), limit, 4), pool, len: 5 }
    }

    /// Element by element from the table in `graph.rs`, reduced at the end: what wrapping arithmetic gives.
    fn by_definition(graph: &Graph, weights: &ServerWeights, inputs: &Inputs) -> Vec<Vec<i64>> {
        let mut v: Vec<Vec<i64>> = vec![Vec::new(); graph.edges.len()];
        let wrap = |id: EdgeId, x: i128| {
            let ring = graph.edge(id).ring;
            ring.to_signed(ring.from_signed(x as i64))
        };
        v[graph.embedding.0] = inputs.embedding.iter().map(|&x| wrap(graph.embedding, x as i128)).collect();
        if let (Some(e), Some(pool)) = (graph.pool, &inputs.pool) {
            v[e.0] = pool.clone();
        }
        for (_, node) in graph.iter() {
            let out = graph.edge(node.output);
            let at = |id: EdgeId, i: usize, j: usize| v[id.0][i * graph.edge(id).cols + j] as i128;
            let pieces = match &node.op {
                Op::Garbled { function: Function::Activation(f), .. } => f.pieces(),
                Op::Garbled { function: Function::Tanh(f), .. } => Some(f.pieces()),
                Op::Garbled { function: Function::Power { table, numerator, in_frac, out_frac }, .. } => {
                    Some(table.pieces(*numerator, *in_frac, *out_frac))
                }
                _ => None,
            };
            let cell = |i: usize, j: usize| -> i128 {
                match &node.op {
                    Op::Linear { weights: id, inputs, bias_shift, .. } => {
                        let map = weights.get(*id).unwrap();
                        let mut row = 0;
                        let bias = map.bias[if map.bias.len() > map.outputs { i * map.outputs + j } else { j }];
                        let mut sum = i128::from(bias) << bias_shift;
                        for &input in inputs {
                            for c in 0..graph.edge(input).cols {
                                sum += at(input, i, c) * map.weights[row * map.outputs + j] as i128;
                                row += 1;
                            }
                        }
                        sum
                    }
                    Op::Product { left, right, heads, transpose_right: true, mask } => {
                        let (n, k) = (graph.edge(*left).rows, graph.edge(*left).cols / heads);
                        let (h, i) = (i / n, i % n);
                        let dot: i128 = (0..k).map(|c| at(*left, i, h * k + c) * at(*right, j, h * k + c)).sum();
                        dot + if j >= inputs.len { mask.unwrap() as i128 } else { 0 }
                    }
                    Op::Product { left, right, heads, .. } => {
                        let (m, k) = (graph.edge(*left).rows / heads, graph.edge(*right).cols / heads);
                        (0..graph.edge(*left).cols).map(|c| at(*left, j / k * m + i, c) * at(*right, c, j)).sum()
                    }
                    Op::SquareSum { input } => (0..graph.edge(*input).cols).map(|c| at(*input, i, c).pow(2)).sum(),
                    Op::RowSum { input } => (0..graph.edge(*input).cols).map(|c| at(*input, i, c)).sum(),
                    Op::ShiftLeft { input, bits } => at(*input, i, j) << bits,
                    Op::RowScale { input, scale, heads } => {
                        let k = out.cols / heads;
                        at(*input, i, j) * at(*scale, j / k * out.rows + i, 0)
                    }
                    Op::Garbled { function, input } => match function {
                        Function::Truncate { shift } => round_shift(at(*input, i, j), *shift),
                        Function::Activation(f) => f.eval(pieces.as_ref(), at(*input, i, j)),
                        Function::Exp(f) => {
                            let row: Vec<i128> = (0..out.cols).map(|c| at(*input, i, c)).collect();
                            f.eval_row(&f.table(), &row)[j]
                        }
                        Function::Power { table, .. } => {
                            table.eval(pieces.as_ref().unwrap(), at(*input, i, j) as u64) as i128
                        }
                        Function::Tanh(f) => f.eval(pieces.as_ref().unwrap(), at(*input, i, j)),
                    },
                }
            };
            let values = (0..out.len()).map(|l| wrap(node.output, cell(l / out.cols, l % out.cols))).collect();
            v[node.output.0] = values;
        }
        v
    }

    fn check_definition(graph: &Graph) {
        let weights = weights(graph);
        let inputs = inputs(graph, 1 << 12);
        let run = execute(graph, &weights, &inputs).unwrap();
        assert_eq!(run.overflow_count(), 0, "{:?}", run.overflows);
        let expected = by_definition(graph, &weights, &inputs);
        for (i, edge) in graph.edges.iter().enumerate() {
            assert_eq!(run.values[i], expected[i], "{}", edge.name);
            assert_eq!(run.values[i].len(), edge.len());
        }
    }

    #[test]
    fn every_edge_is_what_the_definition_says() {
        for pooling in [Pooling::First, Pooling::Mean, Pooling::Tokens] {
            check_definition(&Graph::build(&spec(pooling, 7), 8, &GraphOptions::default()).unwrap());
        }
    }

    #[test]
    fn options_keep_the_definition() {
        let mut spec = spec(Pooling::Mean, 7);
        spec.dense.insert(1, spec.dense[1].clone());
        spec.lookup = Some(LookupSpec {
            vocabulary: 9,
            types: 2,
            table_frac: 9,
            sum_log2: 7,
            squares_log2: 14,
            squares_min_log2: -6,
            qkv_weight_frac: 9,
            attention_weight_frac: 10,
        });
        for rings in [Rings::Pow2, Rings::Prime] {
            for lookup in [Lookup::Public, Lookup::Private] {
                let mut merges = vec![Graph::largest_merge(&spec, 8, rings, lookup).unwrap()];
                merges.extend(Boundary::ALL.map(|b| MergeSet::NONE.with(b)));
                let graphs = merges
                    .into_iter()
                    .filter_map(|merge| Graph::build(&spec, 8, &GraphOptions { merge, rings, lookup }).ok());
                let graphs: Vec<Graph> = graphs.collect();
                assert!(graphs.len() >= if rings == Rings::Pow2 { 9 } else { 5 }, "{}", graphs.len());
                graphs.iter().for_each(check_definition);
            }
        }
    }

    #[test]
    fn overflows_are_counted_and_wrap() {
        // Rings for magnitudes that these weights exceed by far.
        for magnitude in [-4, -2, 0, 2] {
            let graph = Graph::build(&spec(Pooling::Mean, magnitude), 8, &GraphOptions::default()).unwrap();
            let weights = weights(&graph);
            let inputs = inputs(&graph, 1 << 14);
            let run = execute(&graph, &weights, &inputs).unwrap();
            assert!(run.overflow_count() > 0);
            let expected = by_definition(&graph, &weights, &inputs);
            assert_eq!(run.values, expected, "{magnitude}");
            for (i, edge) in graph.edges.iter().enumerate() {
                let id = EdgeId(i);
                assert!(run.residues(&graph, id).iter().all(|&x| x <= edge.ring.mask()));
            }
        }
    }

    #[test]
    fn rounding_at_the_top_of_a_ring_counts_as_overflow() {
        let graph = Graph::build(&spec(Pooling::First, 7), 8, &GraphOptions::default()).unwrap();
        let ring = ShareModulus::pow2(20).unwrap();
        let edge = Edge { ring, ..graph.edge(graph.embedding).clone() };
        let top = (1 << 19) - 1;
        let truncate = Function::Truncate { shift: 4 };
        assert_eq!(garbled(&truncate, &edge, &[top, top - 8, top - 7, -top - 1]).1, 2);
        let table = PowerTable::new(crate::arith::fixed::RowPower::InverseSqrt, 1.0, 8, 8, 4, 9, 2_000).unwrap();
        let power = Function::Power { table, numerator: 1.0, in_frac: 8, out_frac: 8 };
        assert_eq!(garbled(&power, &edge, &[0, -5, 15, 16, 1023, 1024]).1, 4);
    }

    #[test]
    fn an_evaluator_sees_every_nonlinear_node_once() {
        struct Counting(Vec<String>);
        impl Evaluator for Counting {
            fn evaluate(&mut self, node: NonLinear<'_>, x: &[i64]) -> Result<(Vec<i128>, u64), OracleError> {
                assert_eq!(x.len(), node.input.len());
                self.0.push(node.name.into());
                match node.function {
                    Function::Tanh(_) => Err(OracleError::NonLinear { node: node.name.into(), reason: "no".into() }),
                    _ => Exact.evaluate(node, x),
                }
            }
        }
        let graph = Graph::build(&spec(Pooling::Mean, 7), 8, &GraphOptions::default()).unwrap();
        let (weights, mut seen) = (weights(&graph), Counting(Vec::new()));
        let refused = execute_with(&graph, &weights, &inputs(&graph, 1 << 12), &mut seen).unwrap_err();
        let garbled = graph.nodes.iter().filter(|n| matches!(n.op, Op::Garbled { .. }));
        let names: Vec<_> = garbled.map(|n| n.name.clone()).collect();
        let tanh = names.iter().position(|n| n == seen.0.last().unwrap()).unwrap();
        assert_eq!(seen.0, names[..=tanh]);
        assert_eq!(refused.to_string(), format!("{}: no", names[tanh]));
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let graph = Graph::build(&spec(Pooling::Mean, 7), 8, &GraphOptions::default()).unwrap();
        let weights = weights(&graph);
        let good = inputs(&graph, 1000);
        let short = Inputs { embedding: vec![0; 3], ..good.clone() };
        assert!(matches!(execute(&graph, &weights, &short), Err(OracleError::Shape { .. })));
        let no_pool = Inputs { pool: None, ..good.clone() };
        assert!(matches!(execute(&graph, &weights, &no_pool), Err(OracleError::Shape { .. })));
        let none = ServerWeights::from_matrices(BTreeMap::new());
        assert!(matches!(execute(&graph, &none, &good), Err(OracleError::Weights(_))));
    }

    #[test]
    fn exact_paths_agree_at_their_limits() {
        for bits in [10, 20, 26, 31, 40, 62] {
            let (a, b) = (numbers(3 * 5, 1 << bits, 1), numbers(5 * 4, 1 << bits, 2));
            assert_eq!(exact_product(&a, &b, 3, 5, 4), plain_product(&a, &b, 3, 5, 4), "{bits}");
        }
    }
}
