//! Errors of the compute engine.

use thiserror::Error;

/// What can go wrong on a device. Every variant names the operation and, where it matters, the sizes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No adapter fits the request.
    #[error("no usable GPU adapter: {reason}")]
    NoAdapter {
        /// What was found and what is missing.
        reason: String,
    },
    /// The adapter lacks a limit or feature that a kernel needs.
    #[error("{operation}: the adapter {adapter} lacks {what}; use --backend cpu")]
    Unsupported {
        /// The operation that needed it.
        operation: &'static str,
        /// Adapter name.
        adapter: String,
        /// The missing limit or feature.
        what: String,
    },
    /// Device memory ran out.
    #[error(
        "{operation}: out of device memory while asking for {bytes} bytes with {live} in use{}",
        match budget {
            Some(budget) => format!(" of the budget of {budget}; raise --vram, use a smaller batch or --backend cpu"),
            None => "; use a smaller batch or --backend cpu".to_owned(),
        }
    )]
    OutOfMemory {
        /// The operation that allocated.
        operation: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that cannot be freed because they are in use.
        live: u64,
        /// Most bytes that the backend may hold, where it was given a budget.
        budget: Option<u64>,
    },
    /// The device disappeared.
    #[error("{operation}: the GPU device was lost ({reason}); restart, or use --backend cpu")]
    DeviceLost {
        /// The operation under way.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The driver or the shader compiler refused something.
    #[error("{operation}: the device reported a validation error: {reason}")]
    Validation {
        /// The operation under way.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// A buffer's length does not fit the shape it is used with, or it belongs to another backend.
    #[error("{operation}: {detail}")]
    Shape {
        /// The operation under way.
        operation: &'static str,
        /// Expected and found.
        detail: String,
    },
    /// `DualBackend` found a difference.
    #[error("{operation}: GPU and CPU differ at word {index}: GPU {gpu}, CPU {cpu} ({detail})")]
    Mismatch {
        /// The operation under way.
        operation: &'static str,
        /// First differing word.
        index: usize,
        /// GPU value.
        gpu: u32,
        /// CPU value.
        cpu: u32,
        /// Shape of the operation.
        detail: String,
    },
    /// No ring with such a dimension and moduli.
    #[error("no RNS ring with N = {n} and moduli {moduli:?}: {reason}")]
    Ring {
        /// Ring dimension.
        n: usize,
        /// Moduli asked for.
        moduli: Vec<u32>,
        /// Why not.
        reason: &'static str,
    },
}
