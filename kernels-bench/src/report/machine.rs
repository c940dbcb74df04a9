//! The machine that figures were measured on.

use std::{fmt, fs, process::Command};

use serde::{Deserialize, Serialize};

/// Everything a figure must stand beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Instruction sets that matter here.
    pub instructions: Vec<String>,
    /// Logical processors.
    pub threads: usize,
    /// Operating system.
    pub os: String,
    /// Adapter that was measured, or why none was.
    pub gpu: String,
    /// What was left out on some device, and why.
    #[serde(default)]
    pub not_run: Vec<String>,
    /// `release` or `dev`.
    pub profile: String,
    /// Load average over one minute at the start: above 0, the machine was not idle.
    pub load: String,
}

impl Machine {
    /// This machine; `gpu` says which adapter is measured, or why none is.
    pub fn here(gpu: String) -> Self {
        let first_word = |text: String| text.split_whitespace().next().unwrap_or_default().to_owned();
        Self {
            cpu: cpu_model(),
            instructions: instruction_sets().into_iter().map(str::to_owned).collect(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            os: std::env::consts::OS.into(),
            gpu,
            not_run: Vec::new(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" }.into(),
            load: fs::read_to_string("/proc/loadavg").map(first_word).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets = self.instructions.join(" ");
        let Self { cpu, threads, os, load, gpu, profile, .. } = self;
        writeln!(f, "CPU      {cpu} ({sets}), {threads} threads, {os}, load {load}, {profile} profile")?;
        write!(f, "GPU      {gpu}")
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
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("vaes", is_x86_feature_detected!("vaes")),
    ];
    known.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// The commit of the sources, marked when they were changed since.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changed| !changed.is_empty());
    commit.map_or("unknown".into(), |commit| if changed { commit + " with changes" } else { commit })
}
