//! Heliostat: a GPU-accelerated homomorphic-encryption compute engine for private Transformer inference.

pub mod arith;
pub mod engine;
