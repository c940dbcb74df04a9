//! What can go wrong in training, one sentence each.

use std::path::PathBuf;

use thiserror::Error;

use crate::{model::ModelError, report::ReportError};

/// Why a run cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ApproxError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file of texts, or a file to be written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The tensor library.
    #[error("the tensor library failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The texts or labels.
    #[error("{0}")]
    Data(String),
    /// What is asked of this model.
    #[error("{0}")]
    Unsuitable(String),
    /// The folder of the run.
    #[error("{}: {reason}", path.display())]
    Run {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A loss or weight is no number any more.
    #[error("training diverged in stage {stage} at step {step}: choose a smaller --learning-rate")]
    Diverged {
        /// The stage.
        stage: &'static str,
        /// Its step.
        step: usize,
    },
}
