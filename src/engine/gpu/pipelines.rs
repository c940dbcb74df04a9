//! Kernels compiled for a device: built at their first use, kept for the next.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use wgpu::naga;

use super::{
    context::{Context, lock},
    faults::Event,
    shaders::{SOURCES, Variant},
};
use crate::engine::{EngineError, backend::Result};

/// A compiled kernel with the layout of its bindings.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// The kernels of a device.
pub(super) struct Pipelines {
    built: Mutex<HashMap<Variant, (Stamp, Arc<Pipeline>)>>,
    /// Where the sources are read from, instead of the built-in ones.
    folder: Option<PathBuf>,
}

/// When each source was written, and its length; empty for the built-in ones.
type Stamp = Vec<Option<(SystemTime, u64)>>;

impl Pipelines {
    /// None built yet.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { built: Mutex::default(), folder }
    }

    fn stamp(&self) -> Stamp {
        let Some(folder) = &self.folder else { return Stamp::new() };
        let stamp = |path: &str| {
            let found = std::fs::metadata(folder.join(path)).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        SOURCES.iter().map(|(path, _)| stamp(path)).collect()
    }
}

impl Context {
    /// The kernel, built if this is its first use or its sources have changed. A kernel that cannot be built is tried again
    /// at its next use; until then it is that error, and no older build is used in its place.
    pub fn pipeline(&self, operation: &'static str, variant: &Variant) -> Result<Arc<Pipeline>> {
        let mut built = lock(&self.pipelines.built);
        let stamp = self.pipelines.stamp();
        if let Some((built_from, pipeline)) = built.get(variant)
            && *built_from == stamp
        {
            return Ok(Arc::clone(pipeline));
        }
        let wrong = |reason: String| EngineError::Validation { operation, reason };
        let mut source = match &self.pipelines.folder {
            None => variant.source(self.form, self.immediates).map_err(|e| wrong(e.to_string()))?,
            Some(folder) => self.source_in(folder, variant).map_err(wrong)?,
        };
        if self.faults.strikes(Event::Build) {
            source.push_str("fn injected fault");
        }
        let pipeline = Arc::new(self.scoped(operation, 0, || self.build(variant, source))?);
        built.insert(variant.clone(), (stamp, Arc::clone(&pipeline)));
        Ok(pipeline)
    }

    /// The kernel's source from `folder`, or what is wrong with it: file, line, and why.
    fn source_in(&self, folder: &Path, variant: &Variant) -> std::result::Result<String, String> {
        // A file that is not there matters only where it is included.
        let read = |&(path, _): &(&'static str, &str)| Some((path, std::fs::read_to_string(folder.join(path)).ok()?));
        let files: Vec<(&str, String)> = SOURCES.iter().filter_map(read).collect();
        let sources: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        let at = |path: &str| folder.join(path).display().to_string();
        let expanded = variant
            .expand(&sources, self.form, self.immediates)
            .map_err(|e| format!("{e} (sources in {})", folder.display()))?;
        let place = |location: Option<naga::SourceLocation>| {
            // A place of no length at the start stands for none.
            let location = location.filter(|l| l.length > 0);
            let origin = location.and_then(|l| expanded.origin(l.line_number as usize));
            origin.map_or_else(|| at(variant.kernel.file()), |(file, line)| format!("{}:{line}", at(file)))
        };
        let module = naga::front::wgsl::parse_str(&expanded.text)
            .map_err(|e| format!("{}: {}", place(e.location(&expanded.text)), e.message()))?;
        let capabilities = naga::valid::Capabilities::IMMEDIATES | naga::valid::Capabilities::SHADER_INT64;
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .validate(&module)
            .map_err(|e| format!("{}: {}", place(e.location(&expanded.text)), e.as_inner()))?;
        Ok(expanded.text)
    }

    fn build(&self, variant: &Variant, source: String) -> Pipeline {
        let entry = variant.kernel.entry();
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(entry), source: wgpu::ShaderSource::Wgsl(source.into()) };
        let module = if self.checked {
            self.device.create_shader_module(descriptor)
        } else {
            unchecked_module(&self.device, descriptor)
        };
        let buffer = |binding, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries: Vec<_> = variant
            .bindings()
            .iter()
            .map(|b| buffer(b.index, wgpu::BufferBindingType::Storage { read_only: !b.write }))
            .collect();
        if !self.immediates {
            entries.push(buffer(0, wgpu::BufferBindingType::Uniform));
        }
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(entry), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(entry),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: if self.immediates { 4 * variant.params() as u32 } else { 0 },
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }
}

/// Builds a module without bounds checks and loop counters, which cost about a third of the time on some drivers.
#[allow(unsafe_code)]
fn unchecked_module(device: &wgpu::Device, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
    // SAFETY: the source is built into the crate, never from outside (`shader_dir` forces the checked form). Every kernel compares its index with the
    // number of items before it touches memory; all other indices are functions of that index and of parameters that
    // `GpuBackend` has checked against the length of every bound range (`Slice`), but for the entries of `expand`'s position
    // table, which `GpuBackend::expand` makes itself. Loops are bounded by those parameters, divisors (limbs, tiles) are
    // positive, and workgroup memory is written before it is read. The law suite also runs the checked form.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}
