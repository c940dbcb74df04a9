//! Kernels compiled for a device: built at their first use, kept for the next.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{
    context::{Context, lock},
    faults::Event,
    shaders::Variant,
};
use crate::engine::{EngineError, backend::Result};

/// A compiled kernel with the layout of its bindings.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// The kernels of a device.
#[derive(Default)]
pub(super) struct Pipelines {
    built: Mutex<HashMap<Variant, Arc<Pipeline>>>,
}

impl Context {
    /// The kernel, built if this is its first use. A kernel that cannot be built is tried again at its next use.
    pub fn pipeline(&self, operation: &'static str, variant: &Variant) -> Result<Arc<Pipeline>> {
        let mut built = lock(&self.pipelines.built);
        if let Some(pipeline) = built.get(variant) {
            return Ok(Arc::clone(pipeline));
        }
        let mut source = variant
            .source(self.form, self.immediates)
            .map_err(|e| EngineError::Validation { operation, reason: e.to_string() })?;
        if self.faults.strikes(Event::Build) {
            source.push_str("fn injected fault");
        }
        let pipeline = Arc::new(self.scoped(operation, 0, || self.build(variant, source))?);
        built.insert(variant.clone(), Arc::clone(&pipeline));
        Ok(pipeline)
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
    // SAFETY: the source comes from the crate's own `shaders/`, never from outside. Every kernel compares its index with the
    // number of items before it touches memory; all other indices are functions of that index and of parameters that
    // `GpuBackend` has checked against the length of every bound range (`Slice`), but for the entries of `expand`'s position
    // table, which `GpuBackend::expand` makes itself. Loops are bounded by those parameters, divisors (limbs, tiles) are
    // positive, and workgroup memory is written before it is read. The law suite also runs the checked form.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}
