//! Garbled circuits: Boolean circuits, the gadgets of the non-linear layers, half-gates.
//!
//! * [`circuit`]: circuits and their plain evaluation; [`builder`]: how they are made;
//! * [`arith`]: integer arithmetic and shifters as gates; `pieces`: piecewise functions;
//! * [`gadget`]: the functions of [`crate::arith::fixed`] on additive shares;
//! * [`half_gates`]: garbling and evaluating many instances of one circuit side by side.

pub mod arith;
pub mod builder;
pub mod circuit;
pub mod gadget;
pub mod half_gates;
mod io;
mod lanes;
mod pieces;

pub use builder::{Bit, CircuitBuilder, Word};
pub use circuit::{Circuit, CircuitError};
pub use gadget::{Gadget, GadgetError};
