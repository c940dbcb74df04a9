//! The compute engine: a small device trait, its backends and the scheduler above them.

mod backend;
mod check;
pub mod cpu;
pub mod doctor;
mod dual;
mod error;
pub mod gpu;
mod ops;
mod ring;
pub mod schedule;
pub mod select;

pub use backend::{
    Backend, BackendInfo, Buffer, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, MemoryUse, OpCount,
    Result, RingGemmShape, RingOperand, Rotation, Shape, small_words,
};
pub use dual::DualBackend;
pub use error::EngineError;
pub use ops::{Op, OpCounter};
pub use ring::RnsRing;
pub use select::{BackendChoice, Opened};
