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
    /// A pool holds fewer COTs than are wanted.
    #[error("{wanted} correlated OTs are wanted and {left} are left: make more first")]
    PoolEmpty {
        /// Asked for.
        wanted: usize,
        /// In the pool.
        left: usize,
    },
    /// Pools of different offsets cannot be joined.
    #[error("pools of correlated OTs under different offsets cannot be joined")]
    OtherDelta,
    /// A shape of 1-of-N OTs that is not supported.
    #[error("1-of-2^k OTs take k from 1 to 8 and entries of 1 to 64 bits, not k = {k} and {bits} bits")]
    PadShape {
        /// Binary logarithm of the number of entries.
        k: u32,
        /// Bits of an entry.
        bits: u32,
    },
}
