//! Garbled circuits: Boolean circuits, the gadgets of the non-linear layers, half-gates.
//!
//! * [`circuit`]: circuits, their builder, plain evaluation;
//! * [`arith`]: integer arithmetic, tables and shifters as gates;
//! * [`gadget`]: the functions of [`crate::arith::fixed`] on additive shares;
//! * [`half_gates`]: garbling and evaluating many instances of one circuit side by side.

pub mod arith;
pub mod circuit;
pub mod gadget;
pub mod half_gates;
mod lanes;

pub use circuit::{Bit, Circuit, CircuitBuilder, CircuitError};
pub use gadget::{Gadget, GadgetError};
