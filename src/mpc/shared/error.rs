//! Errors of arithmetic on shares.

use thiserror::Error;

use crate::arith::ShareModulus;
use crate::arith::bits::BitsError;
use crate::mpc::ot::OtError;

/// What can be wrong with the operands or the messages of an operation on shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SharedError {
    /// The shares' ring is not one that functions of shares are computed in.
    #[error("{0:?} is not a ring for computing on shares: use 2^1 to 2^64, or garbled circuits")]
    Modulus(ShareModulus),
    /// An operand does not have the size that the shape says.
    #[error("{what}: {expected} elements are needed, not {found}")]
    Length {
        /// Which operand.
        what: &'static str,
        /// Elements that it must have.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// A message does not have the size that the shape says.
    #[error("a message of this shape takes {expected} bytes, not {found}")]
    MessageLength {
        /// Bytes that it must have.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A packed array is malformed.
    #[error("a packed operand is malformed: {0}")]
    Packing(#[from] BitsError),
    /// The sizes do not fit the address space.
    #[error("{rows} rows of {width} elements are too many for one call: split it by rows")]
    TooLarge {
        /// Rows asked for.
        rows: usize,
        /// Elements of a row.
        width: usize,
    },
    /// A layout of fields does not fit a word.
    #[error("the elements of an oblivious transfer take {bits} bits: use 1 to 64")]
    Width {
        /// Bits asked for.
        bits: u32,
    },
    /// A parameter is outside what this function can be computed for on shares.
    #[error("{what}: {value} is out of range for computing on shares; use garbled circuits or other rings")]
    Range {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// The elements are not whole rows.
    #[error("{found} elements are not rows of {columns}")]
    Rows {
        /// Elements of a row.
        columns: usize,
        /// Elements found.
        found: usize,
    },
    /// A task was made for the other party.
    #[error("this computation belongs to the other party")]
    Role,
    /// A task was resumed after its end.
    #[error("this computation on shares is over: start another one")]
    Finished,
    /// The oblivious transfers failed, usually because a pool was too small.
    #[error("oblivious transfer: {0}")]
    Ot(#[from] OtError),
    /// A contradiction in this crate.
    #[error("{what} is missing: this is a bug")]
    Internal {
        /// What.
        what: &'static str,
    },
}
