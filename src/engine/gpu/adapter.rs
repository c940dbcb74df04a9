//! Finding adapters, and opening one.

use serde::Serialize;

use super::ProductForm;
use crate::engine::{EngineError, backend::Result};

/// An adapter as `doctor` and the choice of a backend see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterSummary {
    /// Position in the enumeration, which `--adapter` takes.
    pub index: usize,
    /// Name that the driver gives.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub api: String,
    /// Driver and its version.
    pub driver: String,
    /// Whether it computes on the CPU.
    pub software: bool,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Invocations a workgroup.
    pub workgroup_invocations: u32,
    /// Largest range of a buffer that a kernel can see, in bytes.
    pub binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub buffer_bytes: u64,
    /// Smallest and largest subgroup.
    pub subgroup: (u32, u32),
    /// 64-bit integers in shaders.
    pub int64: bool,
    /// Subgroup operations.
    pub subgroup_ops: bool,
    /// Timestamps on the device.
    pub timestamps: bool,
    /// Immediates (push constants).
    pub immediates: bool,
    /// Device buffers that the host can map.
    pub mappable: bool,
    /// The product form that a backend on this adapter uses unless told otherwise.
    pub form: &'static str,
}

impl AdapterSummary {
    fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let features = adapter.features();
        let form =
            if features.contains(wgpu::Features::SHADER_INT64) { ProductForm::U64 } else { ProductForm::Split16 };
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        Self {
            index,
            name: info.name.clone(),
            kind,
            api: format!("{:?}", info.backend),
            driver: driver(&info),
            software: is_software(&info),
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            subgroup: (info.subgroup_min_size, info.subgroup_max_size),
            int64: features.contains(wgpu::Features::SHADER_INT64),
            subgroup_ops: features.contains(wgpu::Features::SUBGROUP),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            immediates: features.contains(wgpu::Features::IMMEDIATES),
            mappable: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            form: form.name(),
        }
    }
}

/// Every adapter of the native APIs (Vulkan, Metal, DX12), software ones too. Empty where there is no driver or loader.
pub fn adapters() -> Vec<AdapterSummary> {
    enumerate().iter().enumerate().map(|(i, adapter)| AdapterSummary::new(i, adapter)).collect()
}

/// The adapter at `index` of [`adapters`].
pub(super) fn adapter_at(index: usize) -> Result<wgpu::Adapter> {
    let mut all = enumerate();
    if index >= all.len() {
        let reason = format!("there is no adapter {index}, {} found", all.len());
        return Err(EngineError::NoAdapter { reason });
    }
    Ok(all.swap_remove(index))
}

pub(super) fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == wgpu::DeviceType::Cpu
}

/// Driver and version in one string.
pub(super) fn driver(info: &wgpu::AdapterInfo) -> String {
    format!("{} {}", info.driver, info.driver_info).trim().to_owned()
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        // Validation layers are for driver developers; `WGPU_VALIDATION=1` brings them back.
        flags: wgpu::InstanceFlags::empty().with_env(),
        // Where the driver tells how much memory is left, an allocation that would take nearly all of it fails as out of
        // memory, instead of making the system page or the device fail later.
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds {
            for_resource_creation: Some(95),
            for_device_loss: None,
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY))
}
