//! Checkpoint import, tokenizer, fixed-point graph, plaintext oracle and calibration.

mod bounds;
mod calibrate;
mod checkpoint;
mod client;
mod config;
mod embedding;
mod error;
mod float;
mod graph;
mod lookup;
mod manifest;
mod matmul;
mod options;
mod oracle;
mod quantize;
mod server;
mod simulator;
mod spec;
mod synth;
mod tensors;
mod tokenizer;

pub use calibrate::{
    CALIBRATION_FILE, Calibration, Calibrator, EdgeReport, HEADROOM_BITS, LEAST_SQUARES_HEADROOM_BITS, random_samples,
};
pub use checkpoint::{Checkpoint, EncoderLayer, Estimator, HeadLayer, OutputKind};
pub use client::{ClientModel, Label, Outputs, Prediction};
pub use config::{Approximation, Config};
pub use embedding::{Embedding, EmbeddingBlock, EmbeddingShape, Table, TableType, pool_weights};
pub use error::ModelError;
pub use graph::{
    BUCKETS, Edge, EdgeId, Function, Graph, MERGED_RING_LIMIT, Node, NodeId, Op, PRIME_RING_AIM, PRODUCT_RING_LIMIT,
    RING_LIMIT, Stage, WEIGHT_LIMIT, WeightId,
};
pub use manifest::Manifest;
pub use options::{Boundary, GraphOptions, Lookup, MergeSet, Rings};
pub use oracle::{Evaluator, Exact, Execution, Inputs, NonLinear, OracleError, Overflow, execute, execute_with};
pub use quantize::{ServerWeights, WEIGHT_BITS, WeightMatrix};
pub use server::{Model, OracleRun, Provenance};
pub use simulator::{Simulator, shared_function};
pub use spec::{DenseActivation, DenseSpec, LayerSpec, LookupSpec, ModelSpec, Pooling, Precision, SpecError};
pub use synth::{Shape, Synthetic, synthesise};
pub use tensors::{Linear, Norm};
pub use tokenizer::{Encoded, Tokenizer, TokenizerFiles, bucket};
