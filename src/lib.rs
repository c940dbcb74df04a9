//! Heliostat: a GPU-accelerated homomorphic-encryption compute engine for private Transformer inference.
//!
//! `arith`, `engine`, `he` and `packing` are always there and are all that a program needs which embeds the engine
//! (`default-features = false, features = ["engine"]`). The other modules are private inference on top of them, behind the
//! feature `protocol`; the feature `cli` adds the program.

pub mod arith;
pub mod engine;
pub mod he;
#[cfg(feature = "protocol")]
pub mod model;
#[cfg(feature = "protocol")]
pub mod mpc;
#[cfg(feature = "protocol")]
pub mod net;
pub mod packing;
#[cfg(feature = "protocol")]
pub mod protocol;
#[cfg(feature = "protocol")]
pub mod report;
