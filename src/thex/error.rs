//! Errors of client-aided evaluation.

use thiserror::Error;

use crate::he::HeError;

/// What can go wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ThexError {
    /// Homomorphic encryption failed.
    #[error(transparent)]
    He(#[from] HeError),
    /// A model that is not one of additions, multiplications and ReLU.
    #[error("the model cannot be evaluated under encryption ({reason}); run `heliostat approximate` on it first")]
    Unapproximated {
        /// What is not approximated.
        reason: String,
    },
    /// Tensors that do not fit each other.
    #[error("model: {0}")]
    Model(String),
    /// A value outside what the approximation was made for.
    #[error(
        "layer {layer}: {what} reaches {found:.2}, and the approximation holds up to {limit}; approximate the model with a wider \
         range, or calibrate on such texts"
    )]
    Range {
        /// Layer.
        layer: usize,
        /// Which value.
        what: &'static str,
        /// Magnitude found.
        found: f64,
        /// Largest magnitude allowed.
        limit: f64,
    },
    /// A sum that the estimator was not made for.
    #[error(
        "layer {layer}: a row's numerators sum to {found:.2}, and the estimator holds from {low} to {high}; approximate the model \
         with a wider range, or calibrate on such texts"
    )]
    SumRange {
        /// Layer.
        layer: usize,
        /// The sum.
        found: f64,
        /// Least sum allowed.
        low: f64,
        /// Largest sum allowed.
        high: f64,
    },
    /// Parameters with too few levels.
    #[error("client-aided evaluation needs {needed} limbs and {set} has {found}; use a parameter set with more")]
    Depth {
        /// Parameter set.
        set: &'static str,
        /// Limbs needed.
        needed: usize,
        /// Limbs of a fresh ciphertext.
        found: usize,
    },
    /// A sequence that does not fit the layout.
    #[error("{0}")]
    Sequence(String),
    /// A message that is not the one expected.
    #[error("message: {0}")]
    Message(String),
}

/// Result of client-aided evaluation.
pub type Result<T> = std::result::Result<T, ThexError>;
