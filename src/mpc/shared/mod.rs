//! Arithmetic on additive shares: products by correlated OT, and non-linear functions by COT and table lookup.
//!
//! | file | subject |
//! |---|---|
//! | `gilboa` | products of scalars with vectors |
//! | `product` | the same on random COTs |
//! | `party` | a party, and the resumable task in which it runs |
//! | `function` | [`SharedFunction`]: what can be computed, its cost, its simulator |
//! | `cot` | products of a bit with a ring element, one flight |
//! | `lookup` | tables by 1-of-2^k OT, two flights |
//! | `logic` | conjunctions, comparison, selection |
//! | `range` | sign, and whether a value lies in a range |
//! | `interpolate` | functions by lookup of lines |
//! | `activation` | GELU, ReLU |
//! | `exp` | the numerators of softmax, row maximum included |
//! | `power` | reciprocal and inverse square root |
//! | `tanh` | the hyperbolic tangent |
//! | `truncate` | known-sign truncation and change of ring |
//! | `fields`, `meter`, `coins` | packed ring elements, costs, the simulator's randomness |

mod activation;
mod coins;
mod cot;
mod error;
mod exp;
mod fields;
mod function;
pub mod gilboa;
mod interpolate;
mod logic;
mod lookup;
mod meter;
mod party;
mod power;
pub mod product;
mod range;
mod tanh;
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
