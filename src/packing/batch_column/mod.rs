//! Batch-column packing: a column of up to N rows is one ciphertext.
//!
//! Rows of one or many inferences fill the N coefficients; ciphertext `f` holds column `f`, row `i` at `X^i`. Then
//! `out_o = sum_f W[f, o] ct_f` with the weights as integers: one product of a matrix of small integers with a matrix of
//! residues ([`crate::engine::Backend::modular_gemm`]) of `inner` times `2 L N`, without a transform of weights, a rotation or a
//! key switch. More than N rows are that many more ciphertexts.
//!
//! The cost hardly depends on how many of the N rows are used, so that it is the packing for many inferences at once: masks of
//! an offline phase do not depend on inputs, and `N / rows` inferences can always be prepared together.
//!
//! Source: the tokens-first packing of Primer (Zheng, Lou, Jiang, DAC 2023) taken to its limit, one feature a ciphertext.

mod multiply;
mod plan;

pub(super) use multiply::{Columns, Weights};
pub use plan::BatchColumnPacking;
