//! What can be wrong with a model folder, a manifest or an input text.

use std::path::PathBuf;

use thiserror::Error;

use super::SpecError;

/// Why a model cannot be loaded or a text cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error("cannot read or write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that a model folder needs is not there.
    #[error("{} has no {file}; a model folder holds config.json, model.safetensors and tokenizer.json or vocab.txt", dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// The weights are only there in a form that can run code when it is read.
    #[error("{} has its weights only in {file}; convert it to model.safetensors (save_pretrained with safe_serialization)", dir.display())]
    Pickle {
        /// The folder.
        dir: PathBuf,
        /// The file that was found.
        file: &'static str,
    },
    /// A configuration or checkpoint file cannot be parsed.
    #[error("{file} cannot be read: {reason}")]
    Malformed {
        /// The file, relative to the model folder.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The model is one that this program does not run.
    #[error("this model is not supported: {what}")]
    Unsupported {
        /// The field and its value.
        what: String,
    },
    /// A tensor is absent or not what the configuration says.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer's files do not make a tokenizer.
    #[error("the tokenizer cannot be used: {reason}")]
    Tokenizer {
        /// What is wrong.
        reason: String,
    },
    /// The model has no graph with these numbers.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A calibration file does not belong to the model or is damaged.
    #[error("calibration file {}: {reason}", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The bytes of a manifest are not one.
    #[error("the model's manifest is damaged or of another version: {reason}")]
    Manifest {
        /// What is wrong.
        reason: String,
    },
    /// A text cannot be run by this model.
    #[error("the text cannot be run: {reason}")]
    Input {
        /// What is wrong.
        reason: String,
    },
}
