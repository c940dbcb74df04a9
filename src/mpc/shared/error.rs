//! Errors of arithmetic on shares.

use thiserror::Error;

use crate::arith::ShareModulus;
use crate::arith::bits::BitsError;

/// What can be wrong with the operands or the messages of an operation on shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SharedError {
    /// The shares' ring is not one that this crate can compute in.
    #[error("{0:?} is not a ring of shares: use 2^1 to 2^64")]
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
    #[error("a product message of this shape takes {expected} bytes, not {found}")]
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
}
