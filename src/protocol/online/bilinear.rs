//! The bilinear maps of the graph on ring elements, used by both parties on their shares.
//!
//! Results are congruent in the ring of the node's output; callers reduce them.

use super::super::{ProtocolError, Result};
use crate::{
    arith::ShareModulus,
    engine::cpu::{matmul, matmul_transposed},
    model::{Graph, NodeId, Op},
};

/// `left (x) right` for the node's bilinear map: a matrix product per head, a sum of squares (with `left = right` for the
/// square itself), or a scaling of rows. Operands and result are laid out as the node's edges.
pub fn bilinear(graph: &Graph, node: NodeId, left: &[u64], right: &[u64]) -> Result<Vec<u64>> {
    match &graph.node(node).op {
        Op::Product { left: l, right: r, heads, transpose_right, .. } => {
            let (a, b) = (graph.edge(*l), graph.edge(*r));
            let ring = graph.edge(graph.node(node).output).ring;
            if *transpose_right {
                scores(left, right, (a.rows, b.rows, a.cols), *heads, ring)
            } else {
                context(left, right, (a.rows, b.rows, b.cols), *heads, ring)
            }
        }
        Op::SquareSum { input } => {
            let cols = graph.edge(*input).cols;
            let dot =
                |(a, b): (&[u64], &[u64])| a.iter().zip(b).fold(0u64, |s, (&x, &y)| s.wrapping_add(x.wrapping_mul(y)));
            Ok(left.chunks_exact(cols).zip(right.chunks_exact(cols)).map(dot).collect())
        }
        Op::RowScale { input, heads, .. } => {
            let edge = graph.edge(*input);
            let (rows, cols, width) = (edge.rows, edge.cols, edge.cols / heads);
            let mut out = vec![0u64; rows * cols];
            for (i, (row, x)) in out.chunks_exact_mut(cols).zip(left.chunks_exact(cols)).enumerate() {
                for h in 0..*heads {
                    let scale = right[h * rows + i];
                    let span = h * width..(h + 1) * width;
                    for (o, &x) in row[span.clone()].iter_mut().zip(&x[span]) {
                        *o = x.wrapping_mul(scale);
                    }
                }
            }
            Ok(out)
        }
        _ => Err(ProtocolError::Mismatch { detail: format!("{} is not a product", graph.node(node).name) }),
    }
}

/// Columns `[h*width, (h+1)*width)` of a row-major matrix.
fn head_columns(x: &[u64], cols: usize, h: usize, width: usize) -> Vec<u64> {
    x.chunks_exact(cols).flat_map(|row| row[h * width..(h + 1) * width].iter().copied()).collect()
}

/// `rows_l x (heads*k)` and `rows_r x (heads*k)` to `(heads*rows_l) x rows_r`.
fn scores(
    left: &[u64],
    right: &[u64],
    (rows_l, rows_r, cols): (usize, usize, usize),
    heads: usize,
    ring: ShareModulus,
) -> Result<Vec<u64>> {
    let k = cols / heads;
    let mut out = Vec::with_capacity(heads * rows_l * rows_r);
    for h in 0..heads {
        let a = head_columns(left, cols, h, k);
        let b = head_columns(right, cols, h, k);
        out.extend(matmul_transposed(&a, &b, rows_l, k, rows_r, ring)?);
    }
    Ok(out)
}

/// `(heads*m) x t` and `t x (heads*k)` to `m x (heads*k)`.
fn context(
    left: &[u64],
    right: &[u64],
    (rows_l, t, cols): (usize, usize, usize),
    heads: usize,
    ring: ShareModulus,
) -> Result<Vec<u64>> {
    let (m, k) = (rows_l / heads, cols / heads);
    let mut out = vec![0; m * cols];
    for h in 0..heads {
        let b = head_columns(right, cols, h, k);
        let c = matmul(&left[h * m * t..(h + 1) * m * t], &b, m, t, k, ring)?;
        for (row, part) in out.chunks_exact_mut(cols).zip(c.chunks_exact(k)) {
            row[h * k..(h + 1) * k].copy_from_slice(part);
        }
    }
    Ok(out)
}
