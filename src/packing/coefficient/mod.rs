//! Coefficient packing: matrix products in `Z_t[X]/(X^N + 1)`, `t` a power of two.
//!
//! A matrix of `rows x inner` has stride `S`, a power of two with `rows * S <= N`, and block width `K`, a power of two up to
//! `S`. Block `b` of `K` features is one ciphertext: `x[i, bK + j]` at `X^(iS - j)`, where a negative exponent wraps with a
//! sign. A weight polynomial serves `m = S / K` output columns: `W[bK + j, gm + o]` at `X^(oK + j)`. Summed over the
//! blocks, the product has output `(i, gm + o)` at `X^(iS + oK)`. Up to `K` such output groups pack into one ciphertext
//! by key switches, group `t` of `h` landing `t K / h` higher.
//!
//! `K = S` needs the fewest input ciphertexts and the most key switches (`cols * rows / N * (K - 1)`); the number of
//! products, `inner * cols / S`, does not depend on `K`. [`CoefficientPacking::choose`] weighs them. Some levels of packing may be
//! done on the inputs instead (`split.rs`), which brings the key switches to about the square root.
//!
//! Source: the general form of the layouts of Cheetah (Huang et al., USENIX Security 2022) and BumbleBee (Lu et al.,
//! NDSS 2025).

mod general;
mod layout;
mod matmul;
mod operand;
mod plan;
mod product;
mod split;

pub use layout::InputLayout;
pub use matmul::{ClientMatrix, EncryptedMatrix};
pub use operand::{DeviceInput, Operand};
pub use plan::{CoefficientLayout, CoefficientPacking, CostWeights, MatmulSpec, OperandBound};
pub use product::Product;
