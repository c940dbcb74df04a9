//! The table on the terminal and `kernels.json`.

use std::{
    error::Error,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Serialize;

use crate::stats::Timing;

/// Everything a figure must stand beside.
#[derive(Serialize)]
pub struct Machine {
    cpu: String,
    instructions: Vec<&'static str>,
    threads: usize,
    os: &'static str,
    gpu: String,
    profile: &'static str,
    commit: String,
    /// Load average over one minute at the start: above 0, the machine was not idle.
    load: String,
}

impl Machine {
    /// This machine; `gpu` says which adapter is measured, or why none is.
    pub fn here(gpu: String) -> Self {
        let first_word = |text: String| text.split_whitespace().next().unwrap_or_default().to_owned();
        Self {
            cpu: cpu_model(),
            instructions: instruction_sets(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            os: std::env::consts::OS,
            gpu,
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
            commit: commit().unwrap_or_else(|| "unknown".into()),
            load: fs::read_to_string("/proc/loadavg").map(first_word).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets = self.instructions.join(" ");
        writeln!(f, "CPU      {} ({sets}), {} threads, {}, load {}", self.cpu, self.threads, self.os, self.load)?;
        writeln!(f, "GPU      {}", self.gpu)?;
        write!(f, "commit   {}, {} profile", self.commit, self.profile)
    }
}

/// What was done.
#[derive(Clone, Serialize)]
pub struct Work {
    /// Name of the operation.
    pub kernel: &'static str,
    /// Ring dimension.
    pub n: usize,
    /// Limbs of the data.
    pub limbs: usize,
    /// Polynomials, or products.
    pub batch: usize,
    /// Sizes of a matrix product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
}

/// One kernel at one size on one device. Times are of the whole batch.
#[derive(Serialize)]
pub struct Row {
    #[serde(flatten)]
    work: Work,
    /// `cpu`, `gpu`, `gpu (software)`, or `library` for a library called directly.
    backend: &'static str,
    /// NTT library or product form.
    form: &'static str,
    /// CPU threads; beside a GPU, those of the host's part.
    threads: usize,
    runs: usize,
    median_ns: f64,
    iqr_ns: f64,
    /// Whether the result was the expected one, word by word.
    pub verified: bool,
}

impl Row {
    /// A measured operation.
    pub fn new(
        work: Work,
        backend: &'static str,
        form: &'static str,
        threads: usize,
        timing: Timing,
        verified: bool,
    ) -> Self {
        let Timing { runs, median_ns, iqr_ns } = timing;
        Self { work, backend, form, threads, runs, median_ns, iqr_ns, verified }
    }
}

/// A run.
#[derive(Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What it found.
    pub results: Vec<Row>,
}

impl Report {
    /// Writes `kernels.json` into `folder`, which is made if absent; its path.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
        let path = folder.join("kernels.json");
        let context = |error| format!("cannot write {}: {error}", path.display());
        fs::create_dir_all(folder).map_err(context)?;
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n").map_err(context)?;
        Ok(path)
    }
}

/// Heads the table. Its last column is the speed against the first row of a case: `tfhe-ntt` called directly on one thread
/// for transforms, the CPU backend on one thread for the rest.
pub fn print_header() {
    println!(
        "| kernel | N | limbs | batch | size | backend | form | threads | median us | IQR us | runs | speed | result |"
    );
    println!("|---|---:|---:|---:|---|---|---|---:|---:|---:|---:|---:|---|");
}

/// The rows of one case.
pub fn print_rows(rows: &[Row]) {
    let base = rows.first().map_or(f64::NAN, |row| row.median_ns);
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {:.1} | {} | {:.2} | {} |",
            row.work.kernel,
            row.work.n,
            row.work.limbs,
            row.work.batch,
            row.work.size.as_deref().unwrap_or("-"),
            row.backend,
            row.form,
            row.threads,
            row.median_ns / 1e3,
            row.iqr_ns / 1e3,
            row.runs,
            base / row.median_ns,
            if row.verified { "right" } else { "WRONG" },
        );
    }
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512ifma", is_x86_feature_detected!("avx512ifma")),
        ("vaes", is_x86_feature_detected!("vaes")),
    ];
    known.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// The commit of the sources, marked when they were changed since.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { commit + " with changes" })
}
