//! The server's integer weights, as the protocol reads them.

use super::{ProtocolError, Result};
use crate::{
    engine::cpu::matmul,
    model::{EdgeId, Graph, NodeId, Op, ServerWeights, WeightMatrix},
};

/// The matrix of a linear node, its shape checked against the graph.
pub(super) fn linear_weights<'a>(weights: &'a ServerWeights, graph: &Graph, node: NodeId) -> Result<&'a WeightMatrix> {
    let Op::Linear { weights: id, inputs, .. } = &graph.node(node).op else {
        return Err(ProtocolError::Mismatch { detail: format!("{} is not linear", graph.node(node).name) });
    };
    let view = weights.get(*id).ok_or_else(|| ProtocolError::Missing { what: format!("the weights {id:?}") })?;
    let rows: usize = inputs.iter().map(|&e| graph.edge(e).cols).sum();
    let cols = graph.edge(graph.node(node).output).cols;
    if (view.inputs, view.outputs) != (rows, cols) || view.weights.len() != rows * cols || view.bias.len() != cols {
        return Err(ProtocolError::Mismatch {
            detail: format!("{id:?} is {} x {}, the graph wants {rows} x {cols}", view.inputs, view.outputs),
        });
    }
    Ok(view)
}

/// `sum_k x_k W_k + bias` in the ring of the output (not reduced), on the server's shares.
pub(super) fn linear(
    weights: &ServerWeights,
    graph: &Graph,
    node: NodeId,
    parts: &[(EdgeId, &[u64])],
) -> Result<Vec<u64>> {
    let view = linear_weights(weights, graph, node)?;
    let edge = graph.edge(graph.node(node).output);
    let mut sum: Vec<u64> = (0..edge.rows).flat_map(|_| view.bias.iter().map(|&b| b as u64)).collect();
    let mut row = 0;
    for &(id, x) in parts {
        let inner = graph.edge(id).cols;
        // Only the first rows take part where the node says so.
        let x =
            x.get(..edge.rows * inner).ok_or_else(|| ProtocolError::Mismatch { detail: "rows of a share".into() })?;
        let block = &view.weights[row * view.outputs..(row + inner) * view.outputs];
        let product = matmul(x, block, edge.rows, inner, view.outputs, edge.ring)?;
        sum.iter_mut().zip(&product).for_each(|(s, &p)| *s = s.wrapping_add(p));
        row += inner;
    }
    Ok(sum)
}
