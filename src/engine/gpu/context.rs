//! One open device: errors as values, memory within the budget, launches.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};

use super::{
    GpuOptions, ProductForm,
    capabilities::{Offer, Plan},
    faults::{Event, Faults, Lack},
    memory::{GpuBuffer, Memory, Pool, Reserved, Wiper},
    pipelines::{Pipeline, Pipelines},
    shaders::Variant,
    timing::{SLOTS, Timer},
    transfer::Staging,
};
use crate::engine::{Buffer, EngineError, backend::Result};

/// An open device with its queue, kernels and memory.
pub(super) struct Context {
    pub id: u64,
    pub info: wgpu::AdapterInfo,
    pub form: ProductForm,
    /// log2 of the words that one workgroup of a transform holds.
    pub log_block: u32,
    /// Largest range of words that a kernel can see.
    pub binding_words: usize,
    /// Words that a part of a batch should keep to: what a kernel can see, or an eighth of the memory budget.
    pub part_words: usize,
    /// Alignment of the start of such a range, in words.
    pub align_words: usize,
    pub(super) checked: bool,
    pub(super) immediates: bool,
    max_buffer_bytes: u64,
    max_groups: u32,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// Whether the host program owns the device.
    hosted: bool,
    pub(super) pool: Arc<Pool>,
    pub(super) staging: Staging,
    pub(super) pipelines: Pipelines,
    pub(super) faults: Faults,
    /// Buffers are mapped instead of copied.
    pub(super) zero_copy: bool,
    /// Held to submit work, and alone while a buffer that others may use is mapped.
    mapping: RwLock<()>,
    pub(super) timer: Option<Timer>,
    lost: Arc<Mutex<Option<String>>>,
    stray: Arc<Mutex<Option<String>>>,
    dispatches: AtomicU64,
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
        let offer = Offer::of_adapter(adapter, options);
        let plan = offer.plan(options)?;
        let refused = |reason: String| EngineError::NoAdapter { reason: format!("{}: {reason}", offer.info.name) };
        if options.faults.lacks().contains(&Lack::Device) {
            return Err(refused("an injected fault".to_owned()));
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("heliostat"),
            required_features: plan.features,
            required_limits: offer.limits.clone(),
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| refused(e.to_string()))?;
        let context = Self::new(offer, &plan, options, device, queue, false);
        let report = Arc::clone(&context.lost);
        context.device.set_device_lost_callback(move |reason, message| {
            lock(&report).get_or_insert_with(|| format!("{reason:?}: {message}"));
        });
        let report = Arc::clone(&context.stray);
        context.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&report).get_or_insert_with(|| error.to_string());
        }));
        Ok(context)
    }

    /// Works on a device that the host program owns, and leaves its callbacks alone.
    pub fn with_device(device: wgpu::Device, queue: wgpu::Queue, options: &GpuOptions) -> Result<Self> {
        let offer = Offer::of_device(&device, options);
        let plan = offer.plan(options)?;
        Ok(Self::new(offer, &plan, options, device, queue, true))
    }

    fn new(
        offer: Offer,
        plan: &Plan,
        options: &GpuOptions,
        device: wgpu::Device,
        queue: wgpu::Queue,
        hosted: bool,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Offer { info, limits, .. } = offer;
        let timer = plan.timestamps.then(|| Timer::new(&device, &queue));
        let part_bytes = plan.binding_bytes.min(options.vram_bytes.map_or(u64::MAX, |budget| budget / 8));
        let lost = Arc::default();
        let wiper =
            options.wipe.then(|| Wiper { device: device.clone(), queue: queue.clone(), lost: Arc::clone(&lost) });
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            form: plan.form,
            log_block: plan.log_block,
            binding_words: usize::try_from(plan.binding_bytes / 4).unwrap_or(usize::MAX),
            part_words: usize::try_from(part_bytes / 4).unwrap_or(usize::MAX),
            align_words: (limits.min_storage_buffer_offset_alignment as usize).div_ceil(4).max(1),
            // Sources from outside may do anything.
            checked: options.checked || options.shader_dir.is_some(),
            immediates: plan.immediates,
            max_buffer_bytes: limits.max_buffer_size,
            max_groups: limits.max_compute_workgroups_per_dimension,
            device,
            queue,
            hosted,
            pool: Arc::new(Pool::new(options.pool_bytes, options.vram_bytes, wiper)),
            staging: Staging::default(),
            pipelines: Pipelines::new(options.shader_dir.clone()),
            faults: options.faults.clone(),
            zero_copy: plan.zero_copy,
            mapping: RwLock::new(()),
            timer,
            lost,
            stray: Arc::default(),
            dispatches: AtomicU64::new(0),
            info,
        }
    }

    /// Kernel launches so far.
    pub fn dispatches(&self) -> u64 {
        self.dispatches.load(Ordering::Relaxed)
    }

    /// An error for what this adapter cannot do.
    pub fn unsupported(&self, operation: &'static str, what: String) -> EngineError {
        EngineError::Unsupported { operation, adapter: self.info.name.clone(), what }
    }

    /// An error for memory that is not there.
    pub fn out_of_memory(&self, operation: &'static str, bytes: u64) -> EngineError {
        let usage = self.pool.usage();
        EngineError::OutOfMemory { operation, bytes, live: usage.live + usage.staging, budget: usage.budget }
    }

    /// Device memory for `words` words, contents unspecified.
    ///
    /// Where the budget or the driver has no room, what the pool keeps is freed first.
    pub fn allocate(&self, operation: &'static str, words: usize) -> Result<Memory> {
        let bytes = 4 * words as u64;
        if bytes > self.max_buffer_bytes || self.faults.strikes(Event::Allocation) {
            return Err(self.out_of_memory(operation, bytes));
        }
        let class = Pool::class(bytes).min(self.max_buffer_bytes & !3);
        if let Some(memory) = self.pool.take(class, class) {
            return Ok(memory);
        }
        let mut usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        if self.zero_copy {
            usage |= wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE;
        }
        let reserved = match self.pool.reserve(class, false) {
            Some(reserved) => reserved,
            None => {
                // A larger buffer than usual is better than freeing and waiting.
                if let Some(memory) = self.pool.take(class, 2 * class) {
                    return Ok(memory);
                }
                self.reserve(operation, class, false)?
            }
        };
        let buffer = self.create(operation, operation, &reserved, usage)?;
        Ok(reserved.fill(buffer))
    }

    /// Puts bytes on the account; where they do not fit, frees what is kept for reuse and waits for what is in flight.
    pub(super) fn reserve(&self, operation: &'static str, bytes: u64, staging: bool) -> Result<Reserved> {
        if let Some(reserved) = self.pool.reserve(bytes, staging) {
            return Ok(reserved);
        }
        self.release(operation)?;
        self.pool.reserve(bytes, staging).ok_or_else(|| self.out_of_memory(operation, bytes))
    }

    /// Creates the buffer that memory was reserved for.
    pub(super) fn create(
        &self,
        operation: &'static str,
        label: &'static str,
        reserved: &Reserved,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let size = reserved.bytes();
        let create = || {
            let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            self.scoped(operation, size, || self.device.create_buffer(&descriptor))
        };
        match create() {
            Err(EngineError::OutOfMemory { .. }) => {
                // What is kept for reuse may be what is missing.
                self.release(operation)?;
                create()
            }
            other => other,
        }
    }

    /// Gives the driver back what is kept for reuse, wiped.
    pub fn release(&self, operation: &'static str) -> Result<()> {
        self.pool.clear();
        self.staging.clear(&self.pool);
        // The driver has it once the last work that uses it is done.
        self.wait(operation)
    }

    /// Device memory wrapped as an engine buffer, once filled.
    pub fn wrap(&self, words: usize, memory: Option<Memory>) -> Buffer {
        Buffer::new(words, GpuBuffer { context: self.id, memory })
    }

    /// Waits until everything submitted so far is done.
    pub fn wait(&self, operation: &'static str) -> Result<()> {
        self.poll(operation, wgpu::PollType::wait_indefinitely())
    }

    /// Records the launches in one pass, in order, and submits them; with a timer, in a pass each.
    pub fn run(&self, operation: &'static str, launches: &[Launch<'_>]) -> Result<()> {
        let pipelines = launches.iter().map(|l| self.pipeline(operation, &l.variant)).collect::<Result<Vec<_>>>()?;
        match &self.timer {
            None => self.submission(operation, 0, || {
                let mut encoder = self.encoder(operation);
                let descriptor = wgpu::ComputePassDescriptor { label: Some(operation), timestamp_writes: None };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                for (launch, pipeline) in launches.iter().zip(&pipelines) {
                    self.record(&mut pass, launch, pipeline);
                }
                drop(pass);
                self.queue.submit([encoder.finish()]);
            })?,
            Some(timer) => {
                for (launches, pipelines) in launches.chunks(SLOTS).zip(pipelines.chunks(SLOTS)) {
                    self.run_timed(operation, timer, launches, pipelines)?;
                }
            }
        }
        self.dispatches.fetch_add(launches.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn run_timed(
        &self,
        operation: &'static str,
        timer: &Timer,
        launches: &[Launch<'_>],
        pipelines: &[Arc<Pipeline>],
    ) -> Result<()> {
        let mut state = timer.state();
        if state.free() < launches.len() {
            self.collect_times(timer, &mut state)?;
        }
        let before = state.pending();
        let submitted = self.submission(operation, 0, || {
            let mut encoder = self.encoder(operation);
            for (launch, pipeline) in launches.iter().zip(pipelines) {
                let writes = timer.writes(&mut state, launch.variant.kernel.entry());
                let descriptor = wgpu::ComputePassDescriptor { label: Some(operation), timestamp_writes: Some(writes) };
                self.record(&mut encoder.begin_compute_pass(&descriptor), launch, pipeline);
            }
            self.queue.submit([encoder.finish()]);
        });
        submitted.inspect_err(|_| state.forget(before))
    }

    pub(super) fn encoder(&self, operation: &'static str) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(operation) })
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

    /// Why the device is lost, if it is.
    pub fn lost(&self) -> Option<String> {
        lock(&self.lost).clone()
    }

    /// Makes every later call fail: the host has lost the device.
    pub fn lose(&self, reason: &str) {
        lock(&self.lost).get_or_insert_with(|| reason.to_owned());
    }

    /// The error for what wgpu refused.
    pub(super) fn refused(&self, operation: &'static str, reason: String) -> EngineError {
        if self.hosted && self.lost().is_none() && !self.maps() {
            // wgpu tells of a loss through the callback alone, which is the host's.
            self.lose("the host's device gives no memory any more");
        }
        match self.lost() {
            Some(reason) => EngineError::DeviceLost { operation, reason },
            None => EngineError::Validation { operation, reason },
        }
    }

    /// Whether the device can still make and map a buffer.
    fn maps(&self) -> bool {
        let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal]
            .map(|filter| self.device.push_error_scope(filter));
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("probe"),
            size: 4,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mapped = Arc::new(Mutex::new(false));
        let report = Arc::clone(&mapped);
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |result| *lock(&report) = result.is_ok());
        let polled = self.poll_device(wgpu::PollType::wait_indefinitely());
        scopes.into_iter().rev().for_each(|scope| drop(pollster::block_on(scope.pop())));
        polled.is_ok() && *lock(&mapped)
    }

    pub(super) fn poll(&self, operation: &'static str, how: wgpu::PollType) -> Result<()> {
        let polled = self.poll_device(how);
        match (self.lost(), polled) {
            (Some(reason), _) => Err(EngineError::DeviceLost { operation, reason }),
            (None, Ok(())) => Ok(()),
            (None, Err(reason)) => Err(self.refused(operation, reason)),
        }
    }

    fn poll_device(&self, how: wgpu::PollType) -> std::result::Result<(), String> {
        // wgpu panics where the device is lost while it is being waited for.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.device.poll(how))) {
            Ok(polled) => polled.map(drop).map_err(|e| e.to_string()),
            Err(_) => {
                self.lose("waiting for the device failed");
                Err("waiting for the device failed".to_owned())
            }
        }
    }

    /// As [`Context::scoped`], for calls that submit work.
    pub(super) fn submission<T>(&self, operation: &'static str, bytes: u64, f: impl FnOnce() -> T) -> Result<T> {
        if self.faults.strikes(Event::Submission) {
            self.lose("an injected fault");
            if !self.hosted {
                self.device.destroy();
            }
        }
        let _submitting = self.zero_copy.then(|| self.submitting());
        self.scoped(operation, bytes, f)
    }

    fn submitting(&self) -> RwLockReadGuard<'_, ()> {
        self.mapping.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps other threads from submitting work, as nothing may use a buffer that is mapped.
    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.mapping.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs wgpu calls and turns what they report into an error of `operation`; `bytes` is what they ask for.
    pub(super) fn scoped<T>(&self, operation: &'static str, bytes: u64, f: impl FnOnce() -> T) -> Result<T> {
        let lost = |reason| EngineError::DeviceLost { operation, reason };
        if let Some(reason) = self.lost() {
            return Err(lost(reason));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let value = f();
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        let memory = pollster::block_on(memory.pop());
        if let Some(reason) = self.lost() {
            return Err(lost(reason));
        }
        if memory.is_some() {
            return Err(self.out_of_memory(operation, bytes));
        }
        if let Some(error) = validation.or(internal) {
            return Err(self.refused(operation, error.to_string()));
        }
        // Errors that were reported outside any scope, by a callback or another thread.
        if let Some(reason) = lock(&self.stray).take() {
            return Err(EngineError::Validation { operation, reason });
        }
        Ok(value)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.staging.clear(&self.pool);
    }
}

impl Launch<'_> {
    /// Workgroups for `items` invocations of a kernel with workgroups of 256.
    pub fn groups_for(items: usize) -> usize {
        items.div_ceil(super::shaders::WORKGROUP as usize)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced in one step, so that a panic elsewhere cannot leave it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Context {
        let adapter = super::super::adapter::adapter_at(0).expect("install mesa-vulkan-drivers and libvulkan1");
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
            Err(EngineError::OutOfMemory { operation: "expand", bytes, .. }) => assert_eq!(bytes, 4 * words as u64),
            other => panic!("{:?}", other.map(drop)),
        }
    }

    /// What a buffer holds once it has left the pool.
    fn left_behind(options: GpuOptions, leave: impl FnOnce(&Context)) -> Vec<u32> {
        let adapter = super::super::adapter::adapter_at(0).unwrap();
        let context = Context::open(&adapter, &options).unwrap();
        let memory = context.upload("upload", &[0x5ec2e7; 2000]).unwrap();
        let buffer = memory.buffer().clone();
        drop(memory);
        leave(&context);
        context.download("download", &buffer, 2000).unwrap()
    }

    #[test]
    fn memory_is_wiped_when_it_leaves() {
        let secret = vec![0x5ec2e7; 2000];
        let release = |context: &Context| context.release("release").unwrap();
        assert_eq!(left_behind(GpuOptions::default(), release), [0; 2000]);
        // Pooled memory waits for its next user.
        assert_eq!(left_behind(GpuOptions::default(), |_| ()), secret);
        let boundless = GpuOptions { pool_bytes: 0, ..GpuOptions::default() };
        assert_eq!(left_behind(boundless.clone(), |_| ()), [0; 2000]);
        assert_eq!(left_behind(GpuOptions { wipe: false, ..boundless }, release), secret);
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
