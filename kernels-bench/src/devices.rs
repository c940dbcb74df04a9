//! Where the cases run: one CPU thread, all CPU threads, a GPU.

use std::{error::Error, sync::Arc};

use heliostat::engine::{
    Backend, EngineError,
    cpu::{CpuBackend, NttLibrary},
    gpu::{AdapterSummary, GpuBackend, GpuOptions, ProductForm, adapters},
};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A backend with the threads that it and its caller may use.
pub struct Device {
    backend: Arc<dyn Backend>,
    /// The same backend if it is a GPU, whose operations are queued.
    gpu: Option<Arc<GpuBackend>>,
    /// The work of a CPU backend, and the host's part of composed operations.
    pool: ThreadPool,
}

impl Device {
    fn cpu(library: NttLibrary, threads: usize) -> Result<Self, Box<dyn Error>> {
        let backend = Arc::new(CpuBackend::with_ntt(library, None));
        Ok(Self { backend, gpu: None, pool: pool(threads)? })
    }

    fn gpu(adapter: usize, form: ProductForm, threads: usize) -> Result<Self, Box<dyn Error>> {
        let options = GpuOptions { form: Some(form), ..GpuOptions::default() };
        let gpu = Arc::new(GpuBackend::open(adapter, &options)?);
        Ok(Self { backend: gpu.clone(), gpu: Some(gpu), pool: pool(threads)? })
    }

    /// The operations.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The operations, for owners.
    pub fn shared(&self) -> Arc<dyn Backend> {
        self.backend.clone()
    }

    /// `cpu`, `gpu` or `gpu (software)`.
    pub fn label(&self) -> &'static str {
        let info = self.backend.info();
        if info.software { "gpu (software)" } else { info.kind }
    }

    /// NTT library or product form.
    pub fn form(&self) -> &'static str {
        self.backend.info().form
    }

    /// CPU threads of [`Device::install`].
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `f` on the device's threads.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> Result<R, Box<dyn Error>> + Send) -> Result<R, Box<dyn Error>> {
        // Errors of this program are for reading; a string crosses threads.
        Ok(self.pool.install(|| f().map_err(|error| error.to_string()))?)
    }

    /// Returns when everything asked so far is done.
    pub fn wait(&self) -> Result<(), EngineError> {
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.wait())
    }
}

fn pool(threads: usize) -> Result<ThreadPool, rayon::ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(threads).build()
}

/// Every device to measure, and one sentence about the GPU. `quick` leaves out other NTT libraries and product forms.
pub fn all(adapter: Option<&str>, quick: bool) -> Result<(Vec<Device>, String), Box<dyn Error>> {
    let mut devices = vec![Device::cpu(NttLibrary::default(), 1)?];
    if !quick {
        for &library in NttLibrary::ALL.iter().filter(|&&library| library != NttLibrary::default()) {
            devices.push(Device::cpu(library, 1)?);
        }
    }
    let threads = std::thread::available_parallelism()?.get();
    if threads > 1 {
        devices.push(Device::cpu(NttLibrary::default(), threads)?);
    }
    let found = adapters();
    let note = match choose(&found, adapter)? {
        None => no_gpu(&found),
        Some(adapter) => {
            let mut forms = vec![ProductForm::Split16];
            if adapter.int64 {
                forms.insert(0, ProductForm::U64);
            }
            if quick {
                forms.truncate(1);
            }
            for form in forms {
                devices.push(Device::gpu(adapter.index, form, threads)?);
            }
            let software = if adapter.software { ", software: not a GPU" } else { "" };
            format!("{} ({}, {}{software})", adapter.name, adapter.api, adapter.driver)
        }
    };
    Ok((devices, note))
}

/// The adapter that was asked for, else the best hardware one.
fn choose<'a>(found: &'a [AdapterSummary], asked: Option<&str>) -> Result<Option<&'a AdapterSummary>, String> {
    let Some(asked) = asked else {
        let rank = |kind: &str| ["discrete", "virtual", "integrated"].iter().position(|k| *k == kind).unwrap_or(3);
        return Ok(found.iter().filter(|adapter| !adapter.software).min_by_key(|adapter| rank(adapter.kind)));
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
