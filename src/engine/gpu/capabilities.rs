//! What a device offers, and how the backend will use it.

use super::{
    GpuOptions, ProductForm,
    faults::Lack,
    shaders::{MOST_PARAMS, WORKGROUP},
};
use crate::engine::{EngineError, backend::Result};

/// Storage buffers that a kernel may bind, the least that WebGPU promises.
const STORAGE_BUFFERS: u32 = 8;

/// An adapter, or a device that is open already, with what it has (an adapter) or has enabled (a device).
pub(super) struct Offer {
    pub info: wgpu::AdapterInfo,
    pub features: wgpu::Features,
    pub limits: wgpu::Limits,
}

/// What the backend takes of an offer.
pub(super) struct Plan {
    pub form: ProductForm,
    /// Features that must be enabled.
    pub features: wgpu::Features,
    /// Parameters as immediates.
    pub immediates: bool,
    /// log2 of the words that one workgroup of a transform holds.
    pub log_block: u32,
    /// Largest range of a buffer that a kernel can see, in bytes.
    pub binding_bytes: u64,
    /// Buffers that the host maps.
    pub zero_copy: bool,
    /// Timestamps around launches.
    pub timestamps: bool,
}

impl Offer {
    /// The adapter's, less what injected faults take away.
    pub fn of_adapter(adapter: &wgpu::Adapter, options: &GpuOptions) -> Self {
        Self { info: adapter.get_info(), features: adapter.features(), limits: adapter.limits() }.without(options)
    }

    /// The open device's, less what injected faults take away.
    pub fn of_device(device: &wgpu::Device, options: &GpuOptions) -> Self {
        Self { info: device.adapter_info(), features: device.features(), limits: device.limits() }.without(options)
    }

    fn without(mut self, options: &GpuOptions) -> Self {
        for lack in options.faults.lacks() {
            match lack {
                Lack::Int64 => self.features.remove(wgpu::Features::SHADER_INT64),
                Lack::Invocations(most) => {
                    let limit = &mut self.limits.max_compute_invocations_per_workgroup;
                    *limit = most.min(*limit);
                }
                Lack::WorkgroupMemory(most) => {
                    let limit = &mut self.limits.max_compute_workgroup_storage_size;
                    *limit = most.min(*limit);
                }
                Lack::Device => {}
            }
        }
        self
    }

    /// An error for what is lacking.
    pub fn unsupported(&self, what: String) -> EngineError {
        EngineError::Unsupported { operation: "open device", adapter: self.info.name.clone(), what }
    }

    /// How to use it under `options`.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] where it lacks what every kernel needs, or what the options ask for.
    pub fn plan(&self, options: &GpuOptions) -> Result<Plan> {
        let Self { features: available, limits, .. } = self;
        let int64 = wgpu::Features::SHADER_INT64;
        let default = if available.contains(int64) { ProductForm::U64 } else { ProductForm::Split16 };
        let form = options.form.unwrap_or(default);
        let mut features = wgpu::Features::empty();
        if form == ProductForm::U64 {
            features |= int64;
        }
        let immediates = options.immediates
            && available.contains(wgpu::Features::IMMEDIATES)
            && limits.max_immediate_size >= 4 * MOST_PARAMS;
        if immediates {
            features |= wgpu::Features::IMMEDIATES;
        }
        let mappable = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        let shares_memory = matches!(self.info.device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu);
        let zero_copy = options.zero_copy.unwrap_or(shares_memory && available.contains(mappable));
        if zero_copy {
            features |= mappable;
        }
        let timestamps = options.timestamps && available.contains(wgpu::Features::TIMESTAMP_QUERY);
        if timestamps {
            features |= wgpu::Features::TIMESTAMP_QUERY;
        }
        if !available.contains(features) {
            return Err(self.unsupported(format!("the feature {:?}", features - *available)));
        }
        let invocations = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        if invocations < WORKGROUP {
            return Err(self.unsupported(format!("workgroups of {WORKGROUP} invocations (its limit is {invocations})")));
        }
        let buffers = limits.max_storage_buffers_per_shader_stage;
        if buffers < STORAGE_BUFFERS {
            return Err(
                self.unsupported(format!("{STORAGE_BUFFERS} storage buffers a kernel (its limit is {buffers})"))
            );
        }
        let shared = limits.max_compute_workgroup_storage_size.min(options.workgroup_memory.unwrap_or(u32::MAX));
        let log_block = (4..=13).rev().find(|b| 4 << b <= shared && 1 << (b - 4) <= invocations);
        let log_block = log_block
            .ok_or_else(|| self.unsupported(format!("64 bytes of workgroup memory (its limit is {shared})")))?;
        let binding_bytes = limits.max_storage_buffer_binding_size.min(options.binding_bytes.unwrap_or(u64::MAX));
        Ok(Plan { form, features, immediates, log_block, binding_bytes, zero_copy, timestamps })
    }
}
