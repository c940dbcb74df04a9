//! Checkpoint import, tokenizer, fixed-point graph, plaintext oracle and calibration.

mod graph;
mod spec;

pub use graph::{
    BUCKETS, Edge, EdgeId, Function, Graph, Node, NodeId, Op, PRODUCT_RING_LIMIT, RING_LIMIT, Stage, WeightId,
};
pub use spec::{DenseActivation, DenseSpec, LayerSpec, ModelSpec, Pooling, Precision, SpecError};
