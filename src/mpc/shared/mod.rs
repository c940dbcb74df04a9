//! Arithmetic on additive shares: products by correlated OT, and non-linear functions by COT and table lookup.
//!
//! | file | subject |
//! |---|---|
//! | `gilboa` | products of scalars with vectors |
//! | `party` | a party, and the resumable task in which it runs |
//! | `function` | [`SharedFunction`]: what can be computed, its cost, its simulator |
//! | `cot` | products of a bit with a ring element, one flight |
//! | `truncate` | known-sign truncation and change of ring |
//! | `fields`, `meter`, `coins` | packed ring elements, costs, the simulator's randomness |

mod coins;
mod cot;
mod error;
mod fields;
mod function;
pub mod gilboa;
mod meter;
mod party;
#[cfg(test)]
mod tests;
mod truncate;

pub use coins::Coins;
pub use error::SharedError;
pub use function::SharedFunction;
pub use gilboa::ProductShape;
pub use meter::{Cost, Cots};
pub use party::{Party, Role, Step, Task};
pub use truncate::Truncate;
