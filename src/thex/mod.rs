//! THE-X: an approximated model under encryption, with the client computing ReLU (Chen et al., Findings of ACL 2022).
//!
//! The server evaluates everything that is made of additions and multiplications on the client's CKKS ciphertexts; the client
//! decrypts the inputs of each ReLU, computes it and encrypts the result, which also gives it all its levels back.
//!
//! **What this hides, and what not.** The server sees ciphertexts only. The client, by design of the published system, sees
//! intermediate values of the model: cubes of attention scores, inputs of the estimator's hidden units and inputs of each ReLU
//! of the feed-forward networks. It can learn about the server's weights from them, and from the errors of what it decrypts,
//! which are not flooded. [`ClientAidedRun::seen`] lists them. Queries, keys, values and hidden states also pass through the client
//! where they need a refreshment, but masked ([`MASK_BITS`]).
//!
//! Values decrypted by the client stay with the client (see [`crate::he::ckks`] on why).

mod client;
mod error;
#[cfg(feature = "protocol")]
mod import;
mod layout;
mod linear;
mod message;
mod model;
mod refresh;
mod run;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Answer, Seen, ThexClient};
pub use error::{Result, ThexError};
pub use layout::Layout;
pub use message::{Batch, HEADER, Message, NEEDED_LIMBS, Step};
pub use model::{AffineNorm, ApproxLayer, ApproxModel, Dense, Estimator, FloatRun, ModelShape, Pooling, cube};
pub use refresh::MASK_BITS;
pub use run::{ClientAided, ClientAidedRun};
pub use server::ThexServer;
