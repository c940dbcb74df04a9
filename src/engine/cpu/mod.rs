//! The CPU backend.

#[allow(dead_code)]
pub(crate) mod plain_ntt;
#[allow(dead_code)]
mod simd;
