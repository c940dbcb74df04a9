//! What a GPU kernel does, counted in its source: progress that shows without a GPU.

use heliostat::engine::gpu::{self, KernelAudit};
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
    let row = |audit: &KernelAudit| {
        let cost = &audit.cost;
        let per_coefficient = audit.invocations as f64 / audit.coefficients as f64;
        AuditRow {
            kernel: audit.operation.into(),
            launch: audit.launch,
            entry: audit.entry.into(),
            form: audit.form.into(),
            n: audit.n as usize,
            size: audit.shape.into(),
            operations: audit.operations_per_coefficient(),
            multiplies: (cost.multiplies + 2 * cost.wide_multiplies) as f64 * per_coefficient,
            bytes: audit.bytes_per_coefficient(),
            barriers: cost.barriers,
            workgroup_bytes: audit.workgroup_bytes,
        }
    };
    Ok(gpu::audit()?.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transform_is_counted_in_both_forms() {
        let rows = all().unwrap();
        for form in ["u64", "split16"] {
            let of_form = |row: &&AuditRow| row.form == form && row.kernel == "ntt_forward" && row.n == 8192;
            let rows: Vec<_> = rows.iter().filter(of_form).collect();
            assert!(
                !rows.is_empty() && rows.iter().all(|row| row.operations > row.multiplies && row.bytes >= 8.0),
                "{form}"
            );
        }
    }
}
