//! The exact integer meaning of the non-linear functions.
