//! Errors of a session: what a user reads when an inference fails.

use thiserror::Error;

use super::StoreError;
use crate::{he::HeError, net::NetError, protocol::ProtocolError};

/// Why a session failed. Every message is one sentence, and none holds a secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The store of correlations.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server does not do what was asked.
    #[error("the server refuses: {reason}")]
    Refused {
        /// Its sentence.
        reason: String,
    },
    /// An inference was begun whose linear layers are prepared together with others', and were not, or not so many.
    #[error("no linear layers are left that were prepared together in these settings; prepare more first")]
    NotJoint,
    /// Another message than the one that was due.
    #[error("the peer sent an unexpected message while {doing}; the two sides run different versions")]
    Unexpected {
        /// What this side was doing.
        doing: &'static str,
    },
    /// The manifest's digest is not the one asked for, or its bytes do not have it.
    #[error("the server's model has the digest {found}, not {expected}; check the server, or leave --model-digest out")]
    Digest {
        /// Wanted.
        expected: String,
        /// Offered.
        found: String,
    },
    /// The manifest is damaged or too large.
    #[error("the manifest that the server sent is not valid: {reason}")]
    Manifest {
        /// What is wrong.
        reason: String,
    },
    /// A machine without a board was blocked: a defect of this crate.
    #[error("the {lane} lane waits for nothing; please report this")]
    Stuck {
        /// Lane.
        lane: &'static str,
    },
    /// A worker thread could not be started or died.
    #[error("a worker thread failed: {0}")]
    Thread(String),
    /// No randomness.
    #[error("the operating system gives no random bytes: {0}")]
    Entropy(String),
}

impl From<HeError> for SessionError {
    fn from(e: HeError) -> Self {
        Self::Protocol(e.into())
    }
}

impl From<crate::arith::codec::CodecError> for SessionError {
    fn from(e: crate::arith::codec::CodecError) -> Self {
        Self::Protocol(e.into())
    }
}

impl From<crate::model::SpecError> for SessionError {
    fn from(e: crate::model::SpecError) -> Self {
        Self::Protocol(e.into())
    }
}

impl SessionError {
    /// Whether this only says that another lane or the peer failed first; the first cause is worth more.
    pub(super) fn is_consequence(&self) -> bool {
        matches!(self, Self::Protocol(ProtocolError::Stopped) | Self::Net(NetError::Aborted { .. }))
    }
}
