//! BFV on the engine: parameters, keys, encryption, evaluation, noise accounting, wire form; [`ckks`] has CKKS on the same keys.
//!
//! A ciphertext is `(c0, c1)` with `c0 + c1 s = round(q m / t) + noise`. The client holds a [`HeClient`], the server an
//! [`HeServer`] built from the client's [`PublicKey`] and [`GaloisKeys`]; both share a [`BfvContext`].
//!
//! What the server returns is re-randomised, flooded and cut by the three steps of [`HeServer::respond`]: no other path gives
//! a ciphertext a wire form on its way back.

pub mod ckks;
mod client;
mod context;
mod encode;
mod error;
mod keys;
#[cfg(test)]
mod ledger_tests;
mod noise;
mod params;
mod response;
mod server;
mod wire;

pub use client::{HeClient, SeededCiphertexts};
pub use context::{BfvContext, HeCounters};
pub use error::HeError;
pub use keys::{GaloisKeys, PublicKey, RelinearisationKey, SecretKey};
pub use noise::{FLOOD_BITS, NoiseBound, ResponsePlan, TAIL};
pub use params::{
    COLUMN_4096, COLUMN_8192, MATMUL_8192, MATMUL_16384, PARAMETER_SPECS, ParameterSet, ParameterSpec, standard_log_q,
};
pub use response::{Cut, Response};
pub(crate) use server::Domain;
pub use server::HeServer;

/// Result of an operation of homomorphic encryption.
pub type Result<T> = std::result::Result<T, HeError>;
