//! The compute engine: a small device trait, its backends and the scheduler above them.
//!
//! [`Engine`] is a device that was chosen, and [`Poly`] a batch of polynomials on it whose type says the domain. Below them is
//! [`Backend`], every operation on untyped buffers: [`cpu::CpuBackend`] and [`gpu::GpuBackend`] compute, [`DualBackend`] runs
//! two and compares, [`FallbackBackend`] goes on with the second when the first one's device fails.
//!
//! Products of 16 pairs of polynomials in one launch, each modulo a `q` of 90 bits:
//!
//! ```
//! use heliostat::engine::{Engine, Ntt, Poly};
//!
//! # fn main() -> Result<(), heliostat::engine::EngineError> {
//! let engine = Engine::cpu(); // or Engine::builder(): a GPU where there is one
//! let ring = engine.ring(1024, 30, 3)?;
//! let (a, b) = (vec![3; 16 * 1024], vec![-2; 16 * 1024]);
//! let a: Poly<Ntt> = Poly::from_signed(&engine, &ring, 3, &a)?.forward()?;
//! let b: Poly<Ntt> = Poly::from_signed(&engine, &ring, 3, &b)?.forward()?;
//! let products = a.mul(&b)?.inverse()?.to_integers()?;
//! // Coefficient i sums i + 1 products as they are and 1023 - i with the sign of X^1024 = -1.
//! assert!((0..1024).all(|i| products[i] == (-6 * (2 * i as i64 - 1022)).into()));
//! # Ok(())
//! # }
//! ```

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
