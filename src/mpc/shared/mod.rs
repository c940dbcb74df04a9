//! Arithmetic on additive shares: products by correlated OT and plain ring matrix products.

mod error;
pub mod gilboa;
pub mod matmul;

pub use error::SharedError;
pub use gilboa::ProductShape;
pub use matmul::{RingElement, matmul, matmul_transposed};
