//! The operands of the nodes that multiply two shared values, and the masks under which the server opens its shares of them.

use super::{ProtocolError, Result, SecretVec, ServerProduct, shares::uniform};
use crate::{
    arith::{ShareModulus, sample::SecureRng},
    model::{EdgeId, Graph, NodeId, Op},
};

/// An edge, and the ring in which its elements are multiplied: its own, or a narrower one to which both parties reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    pub edge: EdgeId,
    pub ring: ShareModulus,
}

/// The operands of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operands {
    pub left: Operand,
    /// `None` where the left operand is multiplied by itself.
    pub right: Option<Operand>,
}

impl Operands {
    /// Those of a node.
    ///
    /// # Errors
    /// [`ProtocolError::Mismatch`] if it multiplies nothing.
    pub fn of(graph: &Graph, node: NodeId) -> Result<Self> {
        let node = graph.node(node);
        let own = |edge: EdgeId| Operand { edge, ring: graph.edge(edge).ring };
        match node.op {
            Op::Product { left, right, .. } => Ok(Self { left: own(left), right: Some(own(right)) }),
            Op::SquareSum { input } => Ok(Self { left: own(input), right: None }),
            Op::RowScale { input, scale, .. } => {
                let ring = graph.edge(node.output).ring;
                Ok(Self { left: Operand { edge: input, ring }, right: Some(Operand { edge: scale, ring }) })
            }
            _ => Err(ProtocolError::Mismatch { detail: format!("{} is not a product", node.name) }),
        }
    }

    /// Fresh masks of the server's shares.
    pub fn masks(&self, graph: &Graph, rng: &mut SecureRng) -> ServerProduct {
        let mut draw = |x: Operand| SecretVec::new(uniform(x.ring, graph.edge(x.edge).len(), rng));
        let left_mask = draw(self.left);
        ServerProduct { left_mask, right_mask: self.right.map_or_else(|| SecretVec::new(Vec::new()), draw) }
    }
}
