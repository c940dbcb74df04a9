//! Errors of the protocol.

use thiserror::Error;

use crate::{arith::codec::CodecError, engine::EngineError, model::SpecError};

/// What can go wrong while two parties run the protocol. No variant holds a secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer sent something else than this state expects.
    #[error("{lane}: expected {expected}, the peer sent {found}; the two sides run different versions or settings")]
    Unexpected {
        /// Which state machine.
        lane: &'static str,
        /// What it waits for.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// A field of a message does not fit the graph.
    #[error("the peer's message does not fit this inference: {detail}")]
    Mismatch {
        /// Which field, expected and found.
        detail: String,
    },
    /// A message that cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The homomorphic part failed.
    #[error(transparent)]
    He(#[from] crate::he::HeError),
    /// The oblivious transfers failed.
    #[error("oblivious transfer: {0}")]
    Ot(#[from] crate::mpc::ot::OtError),
    /// Products of shares failed.
    #[error("products of shares: {0}")]
    Shared(#[from] crate::mpc::shared::SharedError),
    /// A layer cannot be evaluated on shares.
    #[error("{node} cannot be evaluated on shares ({source}); use --nonlinear garbled")]
    OnShares {
        /// Which one.
        node: String,
        /// Why.
        source: crate::mpc::shared::SharedError,
    },
    /// The garbled circuits failed.
    #[error("garbled circuit: {0}")]
    Garble(String),
    /// The model's numeric description is out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Garbled tables could not be stored or read back.
    #[error("{0}")]
    Spool(String),
    /// A correlation was about to be used a second time.
    #[error("this correlation was used before; make a new one with the offline phase")]
    Spent,
    /// A correlation that cannot outlive its connection was to be kept.
    #[error(
        "correlations of fhgs products or of linear layers online need the client's HE key when they are used and cannot be \
         kept; run both phases in one connection, or take masked products and linear layers offline"
    )]
    NotKept,
    /// A correlation is asked for before its offline phase has finished, or with other parameters.
    #[error("the correlation does not hold {what}; run the offline phase for this model and bucket again")]
    Missing {
        /// What is missing.
        what: String,
    },
    /// The other lane of the same party failed first.
    #[error("stopped because another part of this inference failed")]
    Stopped,
    /// No randomness from the operating system.
    #[error("the operating system gives no random bytes: {0}")]
    Entropy(String),
}

/// Result of protocol code.
pub type Result<T> = std::result::Result<T, ProtocolError>;
