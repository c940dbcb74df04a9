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
}

/// What the client feeds into a graph, in signed integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Embedded tokens with padding, `tokens x hidden`.
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
    let mut run = Run {
        graph,
        weights,
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
            Op::Linear { weights, inputs, first_row } => {
                let map = self.weights.get(*weights).ok_or(OracleError::Weights(*weights))?;
                let rows = if *first_row { 1 } else { inputs.first().map_or(0, |&e| self.graph.edge(e).rows) };
                let x = self.concatenate(inputs, rows);
                let name = format!("{weights:?}");
                check(&name, map.inputs * rows, x.len())?;
                check(&name, map.outputs * rows, self.graph.edge(node.output).len())?;
                self.store(node.output, linear(&x, map, rows));
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
                let sum = |row: &[i64]| row.iter().map(|&x| x as i128 * x as i128).sum::<i128>();
                let z: Vec<i128> = x.chunks(edge.cols.max(1)).map(sum).collect();
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
                let (edge, x) = self.operand(*input);
                let (z, outside) = garbled(function, edge, x);
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

fn linear(x: &[i64], map: &WeightMatrix, rows: usize) -> Vec<i128> {
    let (k, n) = (map.inputs, map.outputs);
    let mut z: Vec<i128> = if magnitude(x) * i128::from(map.column_sum()) < EXACT {
        let x: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        matmul::<f64, i32>(&x, &map.weights, rows, k, n).into_iter().map(|x| x as i128).collect()
    } else {
        let w: Vec<i64> = map.weights.iter().map(|&w| w as i64).collect();
        plain_product(x, &w, rows, k, n)
    };
    for row in z.chunks_mut(n.max(1)) {
        row.iter_mut().zip(&map.bias).for_each(|(x, &b)| *x += b as i128);
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
            let tables = table.tables(*numerator, *in_frac, *out_frac);
            let z = x.iter().map(|&x| table.eval(&tables, x as u64) as i128).collect();
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
    let table = f.table();
    x.iter().map(|&x| f.eval(&table, x as i128)).collect()
}

fn exponential(f: &ExpTable, x: &[i64], cols: usize) -> Vec<i128> {
    let table = f.table();
    let row = |row: &[i64]| f.eval_row(&table, &row.iter().map(|&x| x as i128).collect::<Vec<_>>());
    x.chunks(cols.max(1)).flat_map(row).collect()
}

fn tanh(f: &TanhTable, x: &[i64]) -> Vec<i128> {
    let table = f.table();
    x.iter().map(|&x| f.eval(&table, x as i128)).collect()
}
