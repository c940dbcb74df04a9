//! Heliostat: a GPU-accelerated homomorphic-encryption compute engine for private Transformer inference.

pub mod arith;
pub mod engine;
pub mod he;
pub mod model;
pub mod mpc;
pub mod net;
pub mod packing;
pub mod protocol;
pub mod report;
