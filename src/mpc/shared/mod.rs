//! Arithmetic on additive shares: products by correlated OT.

mod error;
pub mod gilboa;

pub use error::SharedError;
pub use gilboa::ProductShape;
