//! Errors of oblivious transfer.

use thiserror::Error;

use crate::arith::bits::BitsError;

/// What can be wrong with a message or an argument of an oblivious transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OtError {
    /// A message has the wrong size.
    #[error("{what} takes {expected} bytes, not {found}")]
    Length {
        /// Which message.
        what: &'static str,
        /// Bytes that it must have.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A message carries bytes that are not a usable group element.
    #[error("{what} number {index} is not a valid group element")]
    Point {
        /// Which message.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// Choice bits are not `ceil(count / 8)` bytes with zero padding.
    #[error("the choice bits are malformed: {0}")]
    Choices(#[from] BitsError),
    /// Wrong number of base OT keys.
    #[error("an OT extension needs {expected} base OTs, not {found}")]
    BaseCount {
        /// Needed.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// The correlation offset cannot serve as a garbling offset.
    #[error("the offset delta must have its lowest bit set")]
    Delta,
    /// More OTs than a stream or the address space has room for.
    #[error("too many OTs: set up a new extension")]
    Exhausted,
}
