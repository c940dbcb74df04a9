//! The row order of product nodes, shared by both parties' OT lanes.

use zeroize::Zeroizing;

use crate::{
    model::{Graph, NodeId, Op},
    mpc::prg::CrHash,
    protocol::SessionId,
};

/// Where row `r` of a scaling (one a head and matrix row, as the scale edge orders them) starts in the matrix.
pub(super) fn scaled_row_start(graph: &Graph, node: NodeId, r: usize) -> usize {
    match &graph.node(node).op {
        Op::RowScale { input, heads, .. } => {
            let edge = graph.edge(*input);
            (r % edge.rows) * edge.cols + (r / edge.rows) * (edge.cols / heads)
        }
        _ => r,
    }
}

/// The rows `range` of a scaling's matrix, contiguous, `width` elements each, in the ring of the products.
pub(super) fn gather_rows(
    graph: &Graph,
    node: NodeId,
    matrix: &[u64],
    range: std::ops::Range<usize>,
    width: usize,
) -> Zeroizing<Vec<u64>> {
    let ring = graph.edge(graph.node(node).output).ring;
    Zeroizing::new(
        range
            .flat_map(|r| {
                let start = scaled_row_start(graph, node, r);
                matrix[start..start + width].iter().map(|&x| ring.reduce(x))
            })
            .collect(),
    )
}

/// Adds the pieces of rows `range` to where they belong in the product.
pub(super) fn scatter_rows(
    graph: &Graph,
    node: NodeId,
    range: std::ops::Range<usize>,
    width: usize,
    piece: &[u64],
    sum: &mut [u64],
) {
    for (r, row) in range.zip(piece.chunks_exact(width)) {
        let start = scaled_row_start(graph, node, r);
        sum[start..start + width].iter_mut().zip(row).for_each(|(s, &p)| *s = s.wrapping_add(p));
    }
}

/// Adds twice the pieces of elements `range` to the sums of their rows: the cross term of a sum of squares.
pub(super) fn add_squares(range: std::ops::Range<usize>, cols: usize, piece: &[u64], sum: &mut [u64]) {
    for (element, &p) in range.zip(piece) {
        let s = &mut sum[element / cols];
        *s = s.wrapping_add(p.wrapping_mul(2));
    }
}

/// The hash of a product message: public, and of this session, node, chunk and direction alone.
pub(super) fn product_hash(session: &SessionId, node: NodeId, chunk: usize, reverse: bool) -> CrHash {
    let seed = crate::mpc::block::Block::from_bytes(*session);
    CrHash::derive(seed, 1 << 63 | (node.0 as u64) << 32 | (chunk as u64) << 1 | reverse as u64)
}
