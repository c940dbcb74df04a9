//! What a run found: the types of `kernels.json`, and its forms for reading.

pub mod charts;
pub mod files;
pub mod html;
mod machine;
pub mod svg;
pub mod table;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::machine::{Machine, commit};
use crate::{Result, audit::AuditRow, bars::Bar, ceilings::Ceilings};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the harness.
    pub version: String,
    /// Commit of the sources.
    pub commit: String,
    /// Where it ran.
    pub machine: Machine,
    /// Limits of each device.
    pub ceilings: Vec<Ceilings>,
    /// What it found.
    pub results: Vec<Row>,
    /// What was set as a bar.
    #[serde(default)]
    pub bars: Vec<Bar>,
    /// What the kernels do, by their source.
    #[serde(default)]
    pub audit: Vec<AuditRow>,
}

/// One kernel at one size on one device. Times are of the whole batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the operation.
    pub kernel: String,
    /// Ring dimension; 0 where there is no ring.
    pub n: usize,
    /// Limbs of the data.
    pub limbs: usize,
    /// Polynomials, or what the kernel says.
    pub batch: usize,
    /// Sizes of the kernel's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// `cpu`, `gpu`, `gpu (software)`, or `library` for a library called directly.
    pub backend: String,
    /// NTT library, product form or the library's name.
    pub form: String,
    /// CPU threads; beside a GPU, those of the host's part.
    pub threads: usize,
    /// Adapter or processor; empty for libraries.
    #[serde(default)]
    pub adapter: String,
    /// Samples taken.
    pub runs: usize,
    /// Median in nanoseconds.
    pub median_ns: f64,
    /// Third quartile less the first, in nanoseconds.
    pub iqr_ns: f64,
    /// Whether the result was the expected one.
    pub verified: bool,
    /// The device's least time for the work over the median; `null` where its limits are not known.
    pub limit_fraction: Option<f64>,
}

impl Row {
    /// What two reports must agree on to speak of the same measurement; the adapter may differ.
    pub fn key(&self) -> (&str, usize, usize, usize, Option<&str>, &str, &str, usize) {
        let size = self.size.as_deref();
        (&self.kernel, self.n, self.limbs, self.batch, size, &self.backend, &self.form, self.threads)
    }

    /// Where it ran in a few words: `cpu, 2 threads`, `gpu u64`, `library tfhe-ntt`.
    pub fn place(&self) -> String {
        let threads = if self.threads == 1 { "1 thread".into() } else { format!("{} threads", self.threads) };
        match self.backend.as_str() {
            "cpu" => format!("cpu, {threads}"),
            "library" => format!("{}, {threads}", self.form),
            gpu => format!("{gpu}, {}", self.form),
        }
    }
}

impl Report {
    /// Reads `kernels.json`.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        Ok(serde_json::from_slice(&bytes)
            .map_err(|e| format!("{} is no report of this harness: {e}", path.display()))?)
    }
}
