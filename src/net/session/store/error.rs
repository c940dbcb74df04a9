//! What can go wrong with a store of correlations.

use std::path::PathBuf;

use thiserror::Error;

use super::header::VERSION;
use crate::{arith::codec::CodecError, protocol::ProtocolError};

/// Why a store cannot be used. Every message is one sentence, and none holds a secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or a directory.
    #[error("cannot {doing} {}: {source}; check the store's directory and its free space", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A key that is not its owner's alone.
    #[error(
        "the key {} can be read by others than its owner (mode {mode:03o}): if nobody has copied it make it 600, else remove the \
         store",
        path.display()
    )]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A key file that is not one.
    #[error("{} is not the key of a store: it has {length} bytes, not 32; give --store another directory", path.display())]
    KeyLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// A directory without a key.
    #[error("{} is not a store of correlations: there is no key in it", dir.display())]
    NotAStore {
        /// The directory.
        dir: PathBuf,
    },
    /// A correlation of another release.
    #[error(
        "{} has format {found} and this release reads {VERSION}; `heliostat store prune --damaged` removes it",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// A file that was altered or cut, or is sealed with another key.
    #[error(
        "{} is damaged or sealed with another key ({what}); `heliostat store prune --damaged` removes it",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A correlation that was made for something else.
    #[error(
        "the correlation was made for another model, bucket, setting or peer; make a new one with `heliostat offline`"
    )]
    Bound,
    /// A correlation that is not there (any more).
    #[error("this correlation was used before; make a new one with `heliostat offline`")]
    Spent,
    /// Nothing in the store fits.
    #[error("no correlation in {} fits: {reason}; `heliostat offline` makes them", dir.display())]
    Nothing {
        /// The store.
        dir: PathBuf,
        /// What is there instead.
        reason: String,
    },
    /// A quota.
    #[error("the store {} is full: {what}; spend or prune correlations, or allow more", dir.display())]
    Full {
        /// The store.
        dir: PathBuf,
        /// Which quota.
        what: String,
    },
    /// No randomness.
    #[error("the operating system gives no random bytes: {0}")]
    Entropy(String),
    /// Tables, or a correlation that is not complete.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The inside of a box.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl StoreError {
    /// For `map_err`: what was being done to which path.
    pub(super) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_path_buf(), source }
    }
}
