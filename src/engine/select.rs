//! Which backend to compute on: chosen by looking, and always with a reason that can be printed.
//!
//! A software adapter (a Vulkan driver that computes on the CPU, such as llvmpipe) never silently counts as a GPU: `auto` and
//! `gpu` take one only when it is named, `dual` takes one where there is nothing else and says so.

use std::{fmt, str::FromStr, sync::Arc};

use super::{
    Backend, DualBackend, EngineError, FallbackBackend, Result,
    cpu::CpuBackend,
    doctor,
    gpu::{AdapterSummary, GpuBackend, GpuOptions, adapters},
};

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// A real GPU if there is one that opens, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error.
    Gpu,
    /// Both, every result compared; slow.
    Dual,
}

impl BackendChoice {
    /// Every choice, in the order of the help text.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Cpu, Self::Gpu, Self::Dual];

    /// `auto`, `cpu`, `gpu` or `dual`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Dual => "dual",
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|choice| choice.name() == text);
        found.ok_or_else(|| format!("no backend {text:?}: choose auto, cpu, gpu or dual"))
    }
}

/// What happens when the GPU is lost, runs out of memory, or refuses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGpuLoss {
    /// The operation is an error.
    #[default]
    Fail,
    /// The CPU finishes the work: [`super::FallbackBackend`].
    Cpu,
}

impl OnGpuLoss {
    /// Every choice, in the order of the help text.
    pub const ALL: [Self; 2] = [Self::Fail, Self::Cpu];

    /// `fail` or `cpu`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for OnGpuLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OnGpuLoss {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|choice| choice.name() == text);
        found.ok_or_else(|| format!("{text:?} is not something to do when the GPU is lost: choose fail or cpu"))
    }
}

/// What [`open_with`] opens.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Which backend.
    pub choice: BackendChoice,
    /// An adapter's index or a part of its name, upper and lower case alike; see [`adapters`].
    pub adapter: Option<String>,
    /// Threads of the CPU backend; `None` is all of them.
    pub threads: Option<usize>,
    /// Most bytes of device memory that a GPU backend may hold; `None` leaves it to the driver.
    pub vram_bytes: Option<u64>,
    /// What happens when the GPU fails. Without effect where the CPU is chosen.
    pub on_gpu_loss: OnGpuLoss,
}

/// A backend and one sentence on why it was chosen.
pub struct Opened {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// For printing, without a full stop: `no GPU adapter found: ...; using the CPU`.
    pub reason: String,
}

/// Opens the backend that `choice` stands for. `adapter` is an index or a part of a name of [`adapters`] (upper and lower case
/// alike); `threads` is the CPU backend's, all of them by default.
///
/// # Errors
/// [`EngineError::NoAdapter`] when `gpu` or `dual` finds none, or none fits `adapter`; whatever opening the device reports.
/// `auto` without `adapter` never fails.
pub fn open(choice: BackendChoice, adapter: Option<&str>, threads: Option<usize>) -> Result<Opened> {
    open_with(&OpenOptions { choice, adapter: adapter.map(str::to_owned), threads, ..OpenOptions::default() })
}

/// As [`open`], with all options.
///
/// # Errors
/// As [`open`].
pub fn open_with(options: &OpenOptions) -> Result<Opened> {
    let (choice, adapter, threads) = (options.choice, options.adapter.as_deref(), options.threads);
    let found = if choice == BackendChoice::Cpu { Vec::new() } else { adapters() };
    let hint = || doctor::Facts::gather().advice(&found).into_iter().next();
    let (index, reason) = match choose(choice, adapter, &found, hint)? {
        Plan::Cpu(reason) => return Ok(Opened { backend: Arc::new(CpuBackend::new(threads)), reason }),
        Plan::Gpu(index, reason) => (index, reason),
    };
    let cpu = || CpuBackend::new(threads);
    let gpu = GpuOptions { vram_bytes: options.vram_bytes, ..GpuOptions::default() };
    match (choice, GpuBackend::open(index, &gpu)) {
        (BackendChoice::Dual, Ok(gpu)) => {
            Ok(Opened { backend: guarded(DualBackend::new(gpu, cpu()), cpu, options.on_gpu_loss), reason })
        }
        (_, Ok(gpu)) => Ok(Opened { backend: guarded(gpu, cpu, options.on_gpu_loss), reason }),
        (BackendChoice::Auto, Err(e)) if adapter.is_none() => {
            let reason = format!("the GPU does not open ({e}); using the CPU");
            Ok(Opened { backend: Arc::new(CpuBackend::new(threads)), reason })
        }
        (_, Err(e)) => Err(e),
    }
}

/// `backend`, with the CPU behind it where that is asked for.
fn guarded<B: Backend + 'static>(backend: B, cpu: impl Fn() -> CpuBackend, what: OnGpuLoss) -> Arc<dyn Backend> {
    match what {
        OnGpuLoss::Fail => Arc::new(backend),
        OnGpuLoss::Cpu => Arc::new(FallbackBackend::new(backend, cpu())),
    }
}

/// What [`open`] will do.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Cpu(String),
    /// The adapter's index. For `dual`, checked by the CPU.
    Gpu(usize, String),
}

fn choose(
    choice: BackendChoice,
    named: Option<&str>,
    adapters: &[AdapterSummary],
    hint: impl FnOnce() -> Option<String>,
) -> Result<Plan> {
    let use_of = if choice == BackendChoice::Dual { ", every result checked by the CPU" } else { "" };
    let describe = |adapter: &AdapterSummary, why: &str| {
        let AdapterSummary { name, kind, api, driver, form, .. } = adapter;
        let plan = format!("{name} ({kind}, {api}, {driver}, {form} products): {why}{use_of}");
        Plan::Gpu(adapter.index, plan)
    };
    if choice == BackendChoice::Cpu {
        return Ok(Plan::Cpu("the CPU, as asked".into()));
    }
    if let Some(named) = named {
        return match find(named, adapters) {
            Some(adapter) if adapter.software => Ok(describe(adapter, "a software adapter, as named")),
            Some(adapter) => Ok(describe(adapter, "as named")),
            None => {
                let reason = format!("none is called {named:?}; there is {}", list(adapters));
                Err(EngineError::NoAdapter { reason })
            }
        };
    }
    // The first of the best kind.
    let best = adapters.iter().filter(|a| !a.software).min_by_key(|a| rank(a));
    let software = adapters.iter().find(|a| a.software);
    match (best, choice) {
        (Some(adapter), _) => Ok(describe(adapter, &format!("the first {} GPU", adapter.kind))),
        (None, BackendChoice::Dual) if software.is_some() => {
            // `software` is some, by the guard.
            Ok(software.map_or(Plan::Cpu(String::new()), |a| describe(a, "a software adapter, there is no GPU")))
        }
        (None, _) => {
            let found = match software {
                Some(a) => format!("only the software adapter {}, which counts when named with --adapter", a.name),
                None => "no Vulkan, Metal or DX12 driver shows one".to_owned(),
            };
            let hint = hint().map(|hint| format!(". {hint}")).unwrap_or_default();
            match choice {
                BackendChoice::Auto => Ok(Plan::Cpu(format!("no GPU adapter found: {found}; using the CPU{hint}"))),
                _ => Err(EngineError::NoAdapter { reason: format!("{found}{hint}") }),
            }
        }
    }
}

fn find<'a>(named: &str, adapters: &'a [AdapterSummary]) -> Option<&'a AdapterSummary> {
    if let Ok(index) = named.parse::<usize>() {
        return adapters.iter().find(|a| a.index == index);
    }
    adapters.iter().find(|a| a.name.to_lowercase().contains(&named.to_lowercase()))
}

fn rank(adapter: &AdapterSummary) -> usize {
    ["discrete", "integrated", "virtual"].iter().position(|kind| *kind == adapter.kind).unwrap_or(3)
}

fn list(adapters: &[AdapterSummary]) -> String {
    if adapters.is_empty() {
        return "none at all".into();
    }
    adapters.iter().map(|a| format!("{}: {}", a.index, a.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, kind: &'static str) -> AdapterSummary {
        AdapterSummary {
            index,
            name: name.into(),
            kind,
            api: "Vulkan".into(),
            driver: "driver 1".into(),
            software: kind == "software",
            workgroup_memory: 1 << 15,
            workgroup_invocations: 1024,
            binding_bytes: 1 << 27,
            buffer_bytes: 1 << 31,
            subgroup: (32, 32),
            int64: true,
            subgroup_ops: true,
            timestamps: true,
            immediates: true,
            mappable: false,
            form: "u64",
        }
    }

    fn machine() -> [AdapterSummary; 3] {
        [adapter(0, "llvmpipe", "software"), adapter(1, "Small", "integrated"), adapter(2, "Big One", "discrete")]
    }

    fn plan(choice: BackendChoice, named: Option<&str>, adapters: &[AdapterSummary]) -> Result<Plan> {
        choose(choice, named, adapters, || Some("Install one.".into()))
    }

    #[test]
    fn auto_takes_the_best_real_gpu() {
        for choice in [BackendChoice::Auto, BackendChoice::Gpu, BackendChoice::Dual] {
            match plan(choice, None, &machine()).unwrap() {
                Plan::Gpu(2, reason) => {
                    assert!(reason.starts_with("Big One (discrete, Vulkan, driver 1, u64 products)"), "{reason}");
                    assert_eq!(reason.contains("checked by the CPU"), choice == BackendChoice::Dual);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_software_adapter_is_no_gpu_unless_named() {
        let only = &machine()[..1];
        match plan(BackendChoice::Auto, None, only).unwrap() {
            Plan::Cpu(reason) => assert_eq!(
                reason,
                "no GPU adapter found: only the software adapter llvmpipe, which counts when named with --adapter; \
                 using the CPU. Install one."
            ),
            other => panic!("{other:?}"),
        }
        assert!(matches!(plan(BackendChoice::Gpu, None, only), Err(EngineError::NoAdapter { .. })));
        for choice in [BackendChoice::Auto, BackendChoice::Gpu] {
            for named in ["0", "LLVM"] {
                match plan(choice, Some(named), only).unwrap() {
                    Plan::Gpu(0, reason) => assert!(reason.contains("a software adapter, as named"), "{reason}"),
                    other => panic!("{other:?}"),
                }
            }
        }
        match plan(BackendChoice::Dual, None, only).unwrap() {
            Plan::Gpu(0, reason) => assert!(reason.contains("a software adapter, there is no GPU"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_found_is_the_cpu_or_an_error() {
        assert!(matches!(plan(BackendChoice::Auto, None, &[]), Ok(Plan::Cpu(_))));
        assert_eq!(plan(BackendChoice::Cpu, None, &machine()).unwrap(), Plan::Cpu("the CPU, as asked".into()));
        for choice in [BackendChoice::Gpu, BackendChoice::Dual] {
            assert!(matches!(plan(choice, None, &[]), Err(EngineError::NoAdapter { .. })));
        }
        let unknown = plan(BackendChoice::Auto, Some("seven"), &machine()).unwrap_err();
        assert!(unknown.to_string().contains("2: Big One"), "{unknown}");
    }

    #[test]
    fn names_read_back() {
        for choice in BackendChoice::ALL {
            assert_eq!(choice.to_string().parse::<BackendChoice>(), Ok(choice));
        }
        assert!("vulkan".parse::<BackendChoice>().is_err());
        for what in OnGpuLoss::ALL {
            assert_eq!(what.to_string().parse::<OnGpuLoss>(), Ok(what));
        }
        assert!("retry".parse::<OnGpuLoss>().is_err());
    }

    #[test]
    fn the_cpu_always_opens() {
        let opened = open(BackendChoice::Cpu, None, Some(1)).unwrap();
        assert_eq!(opened.backend.info().kind, "cpu");
    }
}
