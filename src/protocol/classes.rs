//! Packings of single linear layers, where they differ from that of an inference: by classes of layers of one shape, which both
//! parties number alike.

use super::PackingKind;
use crate::{
    arith::codec::CodecError,
    model::{Graph, NodeId, Op},
};

/// Shape of a linear layer: what all layers of a class have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearShape {
    /// Rows of one inference.
    pub rows: usize,
    /// Features of every summed input.
    pub inner: Vec<usize>,
    /// Columns of the output.
    pub cols: usize,
}

impl LinearShape {
    /// Features of all inputs.
    pub fn features(&self) -> usize {
        self.inner.iter().sum()
    }
}

/// Linear layers of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearClass {
    /// The shape.
    pub shape: LinearShape,
    /// The layers, in execution order.
    pub nodes: Vec<NodeId>,
}

impl LinearClass {
    /// The classes of a graph, in the order in which their first layers run.
    pub fn all(graph: &Graph) -> Vec<Self> {
        let mut classes: Vec<Self> = Vec::new();
        for (id, node) in graph.iter() {
            let Op::Linear { inputs, .. } = &node.op else { continue };
            let out = graph.edge(node.output);
            let inner = inputs.iter().map(|&e| graph.edge(e).cols).collect();
            let shape = LinearShape { rows: out.rows, inner, cols: out.cols };
            match classes.iter_mut().find(|class| class.shape == shape) {
                Some(class) => class.nodes.push(id),
                None => classes.push(Self { shape, nodes: vec![id] }),
            }
        }
        classes
    }
}

/// Packings of classes that have one of their own; 4 bits a class, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClassPackings(u64);

impl ClassPackings {
    /// Every class as the inference has it.
    pub const NONE: Self = Self(0);

    /// Classes that can have a packing of their own.
    pub const CLASSES: usize = 16;

    /// Bytes of the wire form.
    pub const BYTES: usize = 8;

    /// The packing of a class's own.
    pub fn get(self, class: usize) -> Option<PackingKind> {
        let code = if class < Self::CLASSES { self.0 >> (4 * class) & 15 } else { 0 };
        PackingKind::ALL.get(code.checked_sub(1)? as usize).copied()
    }

    /// With a packing for a class; later classes than [`Self::CLASSES`] keep that of the inference.
    pub fn with(self, class: usize, packing: PackingKind) -> Self {
        if class >= Self::CLASSES {
            return self;
        }
        Self(self.0 & !(15 << (4 * class)) | (packing as u64 + 1) << (4 * class))
    }

    /// With that of the inference for a class.
    pub fn without(self, class: usize) -> Self {
        if class < Self::CLASSES { Self(self.0 & !(15 << (4 * class))) } else { self }
    }

    /// Wire form.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_le_bytes()
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// Packings that are not there.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Result<Self, CodecError> {
        let classes = Self(u64::from_le_bytes(bytes));
        let known = |class: usize| (classes.0 >> (4 * class) & 15) as usize <= PackingKind::ALL.len();
        let invalid = CodecError::Invalid { what: "the packings of single layers" };
        if (0..Self::CLASSES).all(known) { Ok(classes) } else { Err(invalid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packings_of_classes_come_back_and_others_are_refused() {
        let mut all = ClassPackings::NONE;
        for (class, packing) in PackingKind::ALL.into_iter().cycle().take(ClassPackings::CLASSES).enumerate() {
            assert_eq!(all.get(class), None);
            all = all.with(class, PackingKind::BatchColumn).with(class, packing);
            assert_eq!(all.get(class), Some(packing));
        }
        assert_eq!(all.get(ClassPackings::CLASSES), None);
        assert_eq!(all.with(ClassPackings::CLASSES, PackingKind::Coefficient), all);
        assert_eq!((all.without(1).get(1), all.without(1).get(2)), (None, all.get(2)));
        assert_eq!(all.without(ClassPackings::CLASSES), all);
        assert_eq!(ClassPackings::from_bytes(all.to_bytes()).unwrap(), all);
        assert!(ClassPackings::from_bytes([6, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(ClassPackings::from_bytes([0, 0, 0, 0, 0, 0, 0, 0xf0]).is_err());
    }
}
