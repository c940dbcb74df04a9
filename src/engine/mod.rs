//! The compute engine: a small device trait, its backends and the scheduler above them.

mod backend;
mod check;
pub mod cpu;
pub mod doctor;
mod dual;
mod embed;
mod error;
mod fallback;
pub mod gpu;
mod ops;
mod poly;
mod ring;
pub mod schedule;
pub mod select;

pub use backend::{
    Backend, BackendInfo, Buffer, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, MemoryUse, OpCount,
    Result, RingGemmShape, RingOperand, Rotation, Shape, small_words,
};
pub use dual::DualBackend;
pub use embed::{Engine, EngineBuilder};
pub use error::EngineError;
pub use fallback::{FallbackBackend, FallbackLimits};
pub use num_bigint::BigInt;
pub use ops::{Op, OpCounter};
pub use poly::{Coeff, Domain, Ntt, Poly};
pub use ring::RnsRing;
pub use select::{BackendChoice, OnGpuLoss, OpenOptions, Opened};
