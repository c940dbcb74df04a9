//! Two-party computation on the CPU: garbled circuits, oblivious transfer, arithmetic on shares.

pub mod block;
pub mod garble;
pub mod ot;
pub mod prg;
pub mod shared;
