//! One open device: errors as values, memory, pipelines, launches, readback.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use super::{
    GpuOptions, ProductForm, adapter,
    memory::{GpuBuffer, Memory, Pool},
    shaders::Variant,
};
use crate::engine::{Buffer, EngineError, backend::Result};

/// Largest piece of one readback.
const STAGING_BYTES: u64 = 64 << 20;
/// Readback buffers kept for the next download.
const STAGING_KEPT: usize = 3;

/// An open device with its queue, pipelines and pool.
pub(super) struct Context {
    pub id: u64,
    pub info: wgpu::AdapterInfo,
    pub form: ProductForm,
    /// log2 of the words that one workgroup of a transform holds.
    pub log_block: u32,
    /// Largest range of words that a kernel can see.
    pub binding_words: usize,
    /// Alignment of the start of such a range, in words.
    pub align_words: usize,
    checked: bool,
    immediates: bool,
    max_buffer_bytes: u64,
    max_groups: u32,
    device: wgpu::Device,
    queue: wgpu::Queue,
    pool: Arc<Pool>,
    staging: Mutex<Vec<wgpu::Buffer>>,
    pipelines: Mutex<HashMap<Variant, Arc<Pipeline>>>,
    lost: Arc<Mutex<Option<String>>>,
    stray: Arc<Mutex<Option<String>>>,
    dispatches: AtomicU64,
}

struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// A range of words of a buffer.
#[derive(Clone, Copy)]
pub(super) struct Slice<'a> {
    pub buffer: &'a wgpu::Buffer,
    pub start: usize,
    pub words: usize,
}

/// One kernel launch; `slices` in the order of the variant's bindings.
pub(super) struct Launch<'a> {
    pub variant: Variant,
    pub params: Vec<u32>,
    pub slices: Vec<Slice<'a>>,
    /// Workgroups, any number: the grid is folded.
    pub groups: usize,
}

impl Context {
    /// Opens the adapter with all its limits.
    pub fn open(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Self> {
        let info = adapter.get_info();
        let form = options.form.unwrap_or_else(|| adapter::default_form(adapter));
        let unsupported =
            |what: String| EngineError::Unsupported { operation: "open device", adapter: info.name.clone(), what };
        let available = adapter.features();
        let mut features = wgpu::Features::empty();
        if form == ProductForm::U64 {
            features |= wgpu::Features::SHADER_INT64;
        }
        let limits = adapter.limits();
        let most_params = 4 * 8;
        let immediates = options.immediates
            && available.contains(wgpu::Features::IMMEDIATES)
            && limits.max_immediate_size >= most_params;
        if immediates {
            features |= wgpu::Features::IMMEDIATES;
        }
        if !available.contains(features) {
            return Err(unsupported(format!("the feature {:?}", features - available)));
        }
        let invocations = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        if invocations < super::shaders::WORKGROUP {
            return Err(unsupported(format!("workgroups of 256 invocations ({invocations})")));
        }
        let shared = limits.max_compute_workgroup_storage_size.min(options.workgroup_memory.unwrap_or(u32::MAX));
        let log_block = (4..=13).rev().find(|b| 4 << b <= shared && 1 << (b - 4) <= invocations);
        let log_block = log_block.ok_or_else(|| unsupported(format!("workgroup memory ({shared} bytes)")))?;
        let binding = limits.max_storage_buffer_binding_size.min(options.binding_bytes.unwrap_or(u64::MAX));

        let descriptor = wgpu::DeviceDescriptor {
            label: Some("heliostat"),
            required_features: features,
            required_limits: limits.clone(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| EngineError::NoAdapter { reason: format!("{}: {e}", info.name) })?;

        let lost = Arc::new(Mutex::new(None));
        let report = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            *lock(&report) = Some(format!("{reason:?}: {message}"));
        });
        let stray = Arc::new(Mutex::new(None));
        let report = Arc::clone(&stray);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&report).get_or_insert_with(|| error.to_string());
        }));

        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            form,
            log_block,
            binding_words: usize::try_from(binding / 4).unwrap_or(usize::MAX),
            align_words: (limits.min_storage_buffer_offset_alignment as usize).div_ceil(4).max(1),
            checked: options.checked,
            immediates,
            max_buffer_bytes: limits.max_buffer_size,
            max_groups: limits.max_compute_workgroups_per_dimension,
            device,
            queue,
            pool: Arc::new(Pool::new(options.pool_bytes)),
            staging: Mutex::new(Vec::new()),
            pipelines: Mutex::new(HashMap::new()),
            lost,
            stray,
            dispatches: AtomicU64::new(0),
            info,
        })
    }

    /// Kernel launches so far.
    pub fn dispatches(&self) -> u64 {
        self.dispatches.load(Ordering::Relaxed)
    }

    /// An error for what this adapter cannot do.
    pub fn unsupported(&self, operation: &'static str, what: String) -> EngineError {
        EngineError::Unsupported { operation, adapter: self.info.name.clone(), what }
    }

    /// Device memory for `words` words, contents unspecified.
    pub fn allocate(&self, operation: &'static str, words: usize) -> Result<Memory> {
        let bytes = 4 * words as u64;
        if bytes > self.max_buffer_bytes {
            return Err(EngineError::OutOfMemory { operation, bytes });
        }
        let class = Pool::class(bytes).min(self.max_buffer_bytes & !3);
        if let Some(buffer) = self.pool.take(class) {
            return Ok(Memory::new(buffer, Arc::clone(&self.pool)));
        }
        let create = || {
            self.scoped(operation, bytes, || {
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(operation),
                    size: class,
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })
        };
        let buffer = match create() {
            Err(EngineError::OutOfMemory { .. }) => {
                // What the pool holds may be what is missing.
                self.pool.clear();
                self.wait(operation)?;
                create()?
            }
            other => other?,
        };
        Ok(Memory::new(buffer, Arc::clone(&self.pool)))
    }

    /// Device memory wrapped as an engine buffer, once filled.
    pub fn wrap(&self, words: usize, memory: Option<Memory>) -> Buffer {
        Buffer::new(words, GpuBuffer { context: self.id, memory })
    }

    /// Copies words to new device memory.
    pub fn upload(&self, operation: &'static str, words: &[u32]) -> Result<Memory> {
        let memory = self.allocate(operation, words.len())?;
        self.scoped(operation, 4 * words.len() as u64, || {
            let piece = (STAGING_BYTES / 4) as usize;
            for (i, part) in words.chunks(piece).enumerate() {
                self.queue.write_buffer(memory.buffer(), i as u64 * STAGING_BYTES, bytemuck::cast_slice(part));
                if words.len() > piece {
                    // Lets wgpu recycle its staging memory instead of holding all of it until the next launch.
                    self.queue.submit([]);
                }
            }
        })?;
        Ok(memory)
    }

    /// Copies the first `words` words of a buffer back.
    pub fn download(&self, operation: &'static str, buffer: &wgpu::Buffer, words: usize) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        out.try_reserve_exact(words).map_err(|_| EngineError::OutOfMemory { operation, bytes: 4 * words as u64 })?;
        let mut start = 0;
        while start < 4 * words as u64 {
            let bytes = STAGING_BYTES.min(4 * words as u64 - start);
            self.read_piece(operation, buffer, start, bytes, &mut out)?;
            start += bytes;
        }
        Ok(out)
    }

    /// A copy of `words` words from word `start` on, in memory of its own.
    pub fn copy_words(
        &self,
        operation: &'static str,
        buffer: &wgpu::Buffer,
        start: usize,
        words: usize,
    ) -> Result<Memory> {
        let memory = self.allocate(operation, words)?;
        self.scoped(operation, 4 * words as u64, || {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(operation) });
            encoder.copy_buffer_to_buffer(buffer, 4 * start as u64, memory.buffer(), 0, 4 * words as u64);
            self.queue.submit([encoder.finish()]);
        })?;
        Ok(memory)
    }

    /// Waits until everything submitted so far is done.
    pub fn wait(&self, operation: &'static str) -> Result<()> {
        self.poll(operation, wgpu::PollType::wait_indefinitely())
    }

    /// Records the launches in one pass, in order, and submits them.
    pub fn run(&self, operation: &'static str, launches: &[Launch<'_>]) -> Result<()> {
        let pipelines = launches.iter().map(|l| self.pipeline(operation, &l.variant)).collect::<Result<Vec<_>>>()?;
        self.scoped(operation, 0, || {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(operation) });
            let mut pass = encoder
                .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(operation), timestamp_writes: None });
            for (launch, pipeline) in launches.iter().zip(&pipelines) {
                self.record(&mut pass, launch, pipeline);
            }
            drop(pass);
            self.queue.submit([encoder.finish()]);
        })?;
        self.dispatches.fetch_add(launches.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn record(&self, pass: &mut wgpu::ComputePass<'_>, launch: &Launch<'_>, pipeline: &Pipeline) {
        // One dimension while it is wide enough, else rows of a power of two.
        let groups = u32::try_from(launch.groups).unwrap_or(u32::MAX);
        let grid_x = if groups <= self.max_groups { groups } else { 1 << (31 - self.max_groups.leading_zeros()) };
        let mut params = launch.params.clone();
        params.push(grid_x);
        let uniforms;
        let mut entries: Vec<_> = launch
            .variant
            .bindings()
            .iter()
            .zip(&launch.slices)
            .map(|(binding, slice)| wgpu::BindGroupEntry {
                binding: binding.index,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: slice.buffer,
                    offset: 4 * slice.start as u64,
                    size: wgpu::BufferSize::new(4 * slice.words as u64),
                }),
            })
            .collect();
        if !self.immediates {
            uniforms = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("params"),
                size: 4 * params.len() as u64,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            self.queue.write_buffer(&uniforms, 0, bytemuck::cast_slice(&params));
            entries.push(wgpu::BindGroupEntry { binding: 0, resource: uniforms.as_entire_binding() });
        }
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(launch.variant.kernel.entry()),
            layout: &pipeline.layout,
            entries: &entries,
        });
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[]);
        if self.immediates {
            pass.set_immediates(0, bytemuck::cast_slice(&params));
        }
        pass.dispatch_workgroups(grid_x, groups.div_ceil(grid_x.max(1)), 1);
    }

    fn pipeline(&self, operation: &'static str, variant: &Variant) -> Result<Arc<Pipeline>> {
        let mut cache = lock(&self.pipelines);
        if let Some(pipeline) = cache.get(variant) {
            return Ok(Arc::clone(pipeline));
        }
        let source = variant
            .source(self.form, self.immediates)
            .map_err(|e| EngineError::Validation { operation, reason: e.to_string() })?;
        let pipeline = Arc::new(self.scoped(operation, 0, || self.build(variant, source))?);
        cache.insert(variant.clone(), Arc::clone(&pipeline));
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
            immediate_size: if self.immediates { 4 * variant.kernel.params() as u32 } else { 0 },
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

    fn read_piece(
        &self,
        operation: &'static str,
        buffer: &wgpu::Buffer,
        start: u64,
        bytes: u64,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let class = Pool::class(bytes);
        let kept = {
            let mut staging = lock(&self.staging);
            staging.iter().position(|b| b.size() == class).map(|i| staging.swap_remove(i))
        };
        let staging = match kept {
            Some(staging) => staging,
            None => self.scoped(operation, bytes, || {
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("readback"),
                    size: class,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })?,
        };
        let (sender, receiver) = mpsc::channel();
        let submitted = self.scoped(operation, bytes, || {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(operation) });
            encoder.copy_buffer_to_buffer(buffer, start, &staging, 0, bytes);
            let submitted = self.queue.submit([encoder.finish()]);
            staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only if this download has failed already.
                let _ = sender.send(result);
            });
            submitted
        })?;
        self.poll(operation, wgpu::PollType::Wait { submission_index: Some(submitted), timeout: None })?;
        let failed = |reason: String| match lock(&self.lost).clone() {
            Some(reason) => EngineError::DeviceLost { operation, reason },
            None => EngineError::Validation { operation, reason },
        };
        match receiver.recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(e) => return Err(failed(e.to_string())),
        }
        {
            let view = staging.slice(..bytes).get_mapped_range().map_err(|e| failed(e.to_string()))?;
            match bytemuck::try_cast_slice::<u8, u32>(&view) {
                Ok(words) => out.extend_from_slice(words),
                Err(_) => out.extend(bytemuck::pod_collect_to_vec::<u8, u32>(&view)),
            }
        }
        staging.unmap();
        let mut kept = lock(&self.staging);
        if kept.len() >= STAGING_KEPT {
            kept.remove(0);
        }
        kept.push(staging);
        Ok(())
    }

    fn poll(&self, operation: &'static str, how: wgpu::PollType) -> Result<()> {
        // wgpu panics where the device is lost while it is being waited for.
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.device.poll(how)));
        if let Some(reason) = lock(&self.lost).clone() {
            return Err(EngineError::DeviceLost { operation, reason });
        }
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(EngineError::Validation { operation, reason: e.to_string() }),
            Err(_) => Err(EngineError::DeviceLost { operation, reason: "waiting for the device failed".to_owned() }),
        }
    }

    /// Runs wgpu calls and turns what they report into an error of `operation`; `bytes` is what they ask for.
    fn scoped<T>(&self, operation: &'static str, bytes: u64, f: impl FnOnce() -> T) -> Result<T> {
        let lost = |reason| EngineError::DeviceLost { operation, reason };
        if let Some(reason) = lock(&self.lost).clone() {
            return Err(lost(reason));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let value = f();
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        let memory = pollster::block_on(memory.pop());
        if let Some(reason) = lock(&self.lost).clone() {
            return Err(lost(reason));
        }
        if memory.is_some() {
            return Err(EngineError::OutOfMemory { operation, bytes });
        }
        if let Some(error) = validation.or(internal) {
            return Err(EngineError::Validation { operation, reason: error.to_string() });
        }
        // Errors that were reported outside any scope, by a callback or another thread.
        if let Some(reason) = lock(&self.stray).take() {
            return Err(EngineError::Validation { operation, reason });
        }
        Ok(value)
    }
}

impl Launch<'_> {
    /// Workgroups for `items` invocations of a kernel with workgroups of 256.
    pub fn groups_for(items: usize) -> usize {
        items.div_ceil(super::shaders::WORKGROUP as usize)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced in one step, so that a panic elsewhere cannot leave it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Context {
        let adapter = adapter::adapter_at(0).expect("install mesa-vulkan-drivers and libvulkan1");
        Context::open(&adapter, &GpuOptions::default()).unwrap()
    }

    #[test]
    fn a_lost_device_is_an_error_of_every_later_call() {
        let context = open();
        let memory = context.upload("upload", &[1, 2, 3]).unwrap();
        assert_eq!(context.download("download", memory.buffer(), 3).unwrap(), [1, 2, 3]);
        context.device.destroy();
        let lost = |result: Result<()>| match result {
            Err(EngineError::DeviceLost { .. }) => {}
            other => panic!("{other:?}"),
        };
        lost(context.wait("wait"));
        lost(context.download("download", memory.buffer(), 3).map(drop));
        lost(context.upload("upload", &[1]).map(drop));
        lost(context.allocate("add", 1 << 20).map(drop));
    }

    #[test]
    fn too_much_memory_is_an_error_with_the_size() {
        let context = open();
        let words = usize::MAX / 8;
        match context.allocate("expand", words) {
            Err(EngineError::OutOfMemory { operation: "expand", bytes }) => assert_eq!(bytes, 4 * words as u64),
            other => panic!("{:?}", other.map(drop)),
        }
    }

    #[test]
    fn what_wgpu_refuses_is_an_error_that_names_the_operation() {
        let context = open();
        let memory = context.upload("upload", &[0; 64]).unwrap();
        let beyond = context.copy_words("pack_step", memory.buffer(), 1 << 20, 64);
        match beyond.map(drop) {
            Err(EngineError::Validation { operation: "pack_step", .. }) => {}
            other => panic!("{other:?}"),
        }
        // The scope that caught it is gone, and the device still works.
        assert_eq!(context.download("download", memory.buffer(), 64).unwrap(), [0; 64]);
    }
}
