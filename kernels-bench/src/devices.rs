//! Where the cases run: one CPU thread, all CPU threads, a GPU.

use std::sync::Arc;

use heliostat::engine::{
    Backend, EngineError,
    cpu::{CpuBackend, NttLibrary},
    gpu::{AdapterSummary, GpuBackend, GpuOptions, ProductForm, adapters},
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Result, args::Arguments};

/// A backend with the threads that it and its caller may use.
pub struct Device {
    backend: Arc<dyn Backend>,
    /// The same backend if it is a GPU, whose operations are queued.
    gpu: Option<Arc<GpuBackend>>,
    /// The work of a CPU backend, and the host's part of composed operations.
    pool: ThreadPool,
    label: Label,
}

/// What a row says of where it was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// `cpu`, `gpu`, `gpu (software)`, or `library` for a library called directly.
    pub backend: &'static str,
    /// NTT library or product form.
    pub form: String,
    /// CPU threads; beside a GPU, those of the host's part.
    pub threads: usize,
    /// Adapter or processor.
    pub adapter: String,
}

impl Label {
    /// A library called directly on so many threads.
    pub fn library(name: &str, threads: usize) -> Self {
        Self { backend: "library", form: name.into(), threads, adapter: String::new() }
    }
}

impl Device {
    /// A CPU backend with so many threads.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn cpu(library: NttLibrary, threads: usize) -> Result<Self> {
        let backend: Arc<dyn Backend> = Arc::new(CpuBackend::with_ntt(library, None));
        let adapter = backend.info().adapter;
        // Up to the processor's name: the threads of a row are its own.
        let adapter = adapter.rsplit_once(", ").map_or(adapter.as_str(), |(name, _)| name).to_owned();
        let label = Label { backend: "cpu", form: library.name().into(), threads, adapter };
        Ok(Self { backend, gpu: None, pool: pool(threads)?, label })
    }

    fn gpu(adapter: usize, form: ProductForm, threads: usize, vram_bytes: Option<u64>) -> Result<Self> {
        let options = GpuOptions { form: Some(form), vram_bytes, ..GpuOptions::default() };
        let gpu = Arc::new(GpuBackend::open(adapter, &options)?);
        let info = gpu.info();
        let backend = if info.software { "gpu (software)" } else { "gpu" };
        let label = Label { backend, form: info.form.into(), threads, adapter: info.adapter };
        Ok(Self { backend: gpu.clone(), gpu: Some(gpu), pool: pool(threads)?, label })
    }

    /// The operations.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The operations, for owners.
    pub fn shared(&self) -> Arc<dyn Backend> {
        self.backend.clone()
    }

    /// The backend if it is a GPU.
    pub fn as_gpu(&self) -> Option<&GpuBackend> {
        self.gpu.as_deref()
    }

    /// What rows say of it.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Whether it is a GPU in hardware.
    pub fn is_real_gpu(&self) -> bool {
        self.label.backend == "gpu"
    }

    /// Runs `f` on the device's threads.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.pool.install(f)
    }

    /// Returns when everything asked so far is done.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn wait(&self) -> Result<(), EngineError> {
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.wait())
    }
}

fn pool(threads: usize) -> Result<ThreadPool> {
    Ok(ThreadPoolBuilder::new().num_threads(threads).build()?)
}

/// Every device of a run.
pub struct Devices {
    /// Those that run every case: one CPU thread, all of them, a GPU in each of its product forms.
    pub main: Vec<Device>,
    /// One sentence about the GPU.
    pub gpu_note: String,
}

impl Devices {
    /// Finds them.
    ///
    /// # Errors
    /// If no adapter fits the one that was asked for, or it does not open.
    pub fn open(arguments: &Arguments) -> Result<Self> {
        let threads = match arguments.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let mut main = vec![Device::cpu(NttLibrary::default(), 1)?];
        if threads > 1 {
            main.push(Device::cpu(NttLibrary::default(), threads)?);
        }
        let found = adapters();
        let gpu_note = match choose(&found, arguments.adapter.as_deref(), arguments.quick)? {
            None => no_gpu(&found),
            Some(adapter) => {
                let mut forms = vec![ProductForm::Split16];
                if adapter.int64 {
                    forms.insert(0, ProductForm::U64);
                }
                if arguments.quick {
                    forms.truncate(1);
                }
                for form in forms {
                    main.push(Device::gpu(adapter.index, form, threads, arguments.vram)?);
                }
                let software = if adapter.software { "; a SOFTWARE adapter, not a GPU" } else { "" };
                format!("{} ({}, {}{software})", adapter.name, adapter.api, adapter.driver)
            }
        };
        Ok(Self { main, gpu_note })
    }

    /// Whether one of them is a GPU in hardware.
    pub fn has_real_gpu(&self) -> bool {
        self.main.iter().any(Device::is_real_gpu)
    }

    /// Whether one of them is a software adapter.
    pub fn has_software_gpu(&self) -> bool {
        self.main.iter().any(|device| device.as_gpu().is_some() && !device.is_real_gpu())
    }
}

/// The adapter that was asked for, else the best hardware one, else, if `software` will do, a software one.
fn choose<'a>(
    found: &'a [AdapterSummary],
    asked: Option<&str>,
    software: bool,
) -> Result<Option<&'a AdapterSummary>, String> {
    let Some(asked) = asked else {
        let rank = |kind: &str| ["discrete", "virtual", "integrated"].iter().position(|k| *k == kind).unwrap_or(3);
        let best = found.iter().filter(|adapter| !adapter.software).min_by_key(|adapter| rank(adapter.kind));
        return Ok(best.or_else(|| found.iter().find(|_| software)));
    };
    let index = asked.parse::<usize>().ok();
    let fits = |adapter: &&AdapterSummary| match index {
        Some(index) => adapter.index == index,
        None => adapter.name.to_lowercase().contains(&asked.to_lowercase()),
    };
    let names: Vec<_> = found.iter().map(|adapter| format!("{} {}", adapter.index, adapter.name)).collect();
    let missing = || format!("no adapter '{asked}' among [{}]", names.join(", "));
    found.iter().find(fits).map(Some).ok_or_else(missing)
}

fn no_gpu(found: &[AdapterSummary]) -> String {
    let software: Vec<_> = found.iter().map(|adapter| adapter.name.as_str()).collect();
    match software.as_slice() {
        [] => "none: no Vulkan, Metal or DX12 adapter, so there are no GPU rows".into(),
        names => format!("none: only software ({}), which --adapter would measure; no GPU rows", names.join(", ")),
    }
}
