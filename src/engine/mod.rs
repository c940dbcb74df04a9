//! The compute engine: a small device trait, its backends and the scheduler above them.

mod backend;
mod error;
mod ring;

pub use backend::{Backend, BackendInfo, Buffer, MatmulShape, OpCount, Result, Shape};
pub use error::EngineError;
pub use ring::RnsRing;
