//! What a GPU kernel does, counted in its source: progress that shows without a GPU.

use serde::{Deserialize, Serialize};

/// Counts of one kernel in one product form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Name of the kernel.
    pub kernel: String,
    /// Product form.
    pub form: String,
    /// Integer operations.
    pub operations: u64,
    /// Integer multiplies among them.
    pub multiplies: u64,
    /// Bytes of device memory read and written.
    pub bytes: u64,
    /// Workgroup barriers.
    pub barriers: u64,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u64,
    /// What the counts are for.
    pub per: String,
}

/// Every kernel in every form.
pub fn all() -> Vec<AuditRow> {
    Vec::new()
}
