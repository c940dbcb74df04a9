//! Libraries called directly on the same data in the same rounds, by their names.

pub mod gemm;
pub mod ntt;
