//! Arithmetic on additive shares: products by correlated OT and plain ring matrix products.

mod error;
pub mod gilboa;

pub use error::SharedError;
pub use gilboa::ProductShape;
