//! What a GPU kernel does, counted in its source: progress that shows without a GPU.

use serde::{Deserialize, Serialize};

use crate::Result;

/// Counts of one launch of an operation in one product form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRow {
    /// The engine's operation.
    pub kernel: String,
    /// Which of the operation's launches, from 1.
    pub launch: usize,
    /// Entry point of the shader.
    pub entry: String,
    /// Product form.
    pub form: String,
    /// Ring dimension.
    pub n: usize,
    /// The other sizes that the counts are for.
    pub size: String,
    /// 32-bit integer operations for each coefficient of the result.
    pub operations: f64,
    /// Multiplies among them, 64-bit ones as two.
    pub multiplies: f64,
    /// Bytes of device memory loaded and stored for each coefficient.
    pub bytes: f64,
    /// Barriers.
    pub barriers: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u64,
}

/// Every launch in every form.
///
/// # Errors
/// If a shader does not parse.
pub fn all() -> Result<Vec<AuditRow>> {
    Ok(Vec::new())
}
