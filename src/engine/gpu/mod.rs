//! The GPU backend: wgpu and the WGSL kernels of `shaders/`.
//!
//! | file | subject |
//! |---|---|
//! | `adapter`, `capabilities` | finding adapters; what a device offers and how it is used |
//! | `context` | an open device: errors as values, memory within the budget, launches |
//! | `memory` | buffers, their pool, the account of bytes, wiping |
//! | `transfer` | words to the device and back |
//! | `pipelines` | compiled kernels, from the built-in sources or a folder |
//! | `faults` | faults on demand, for tests and drills |
//! | `timing`, `ceilings`, `audit` | time on the device, its limits, and what kernels do by their text |
//! | `preprocess`, `shaders` | `#include` and `#ifdef` for WGSL, the typed table of kernels |
//! | `tables` | constants of a ring on the device |
//! | `ops` | launches of each operation, in parts where a batch exceeds what a kernel can see |
//!
//! A batch larger than the adapter's storage binding limit runs in several launches over its polynomials (outputs or inputs
//! for `matmul_plain`). What cannot be split, and gives [`crate::engine::EngineError::Unsupported`]: one polynomial (of a key switch: its
//! digits, `limbs * (limbs + 1) * N` words), one key, one pair of ciphertext components. A buffer larger than the adapter
//! allows gives [`crate::engine::EngineError::OutOfMemory`].

mod adapter;
mod audit;
mod capabilities;
mod ceilings;
mod context;
mod faults;
mod memory;
mod ops;
mod pipelines;
mod preprocess;
mod shaders;
mod tables;
mod timing;
mod transfer;

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// The wgpu that this crate is built with, for programs that share their device.
pub use ::wgpu;

pub use self::{
    adapter::{AdapterSummary, adapters},
    audit::{Cost, KernelAudit, audit},
    ceilings::Ceilings,
    faults::{Fault, Faults, Lack},
    preprocess::{PreprocessError, preprocess},
    shaders::{GemmForm, ProductForm},
    timing::KernelTime,
};
use self::{
    context::Context,
    memory::{GpuBuffer, Memory},
    shaders::{Kernel, Transform},
    tables::{TableCache, Tables},
};
use super::{
    Backend, BackendInfo, Buffer, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, MemoryUse, Op,
    OpCount, OpCounter, Result, RingGemmShape, RingOperand, RnsRing, Rotation, Shape,
    check::{self, operand},
};

/// How to open an adapter. The default suits every adapter; the limits are there to be lowered by tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    /// Product form; `None` takes 64-bit integers where the adapter has them.
    pub form: Option<ProductForm>,
    /// How products with small integers are computed; `None` measures at the first one and keeps the faster form.
    pub gemm: Option<GemmForm>,
    /// Whether kernels carry bounds checks and loop counters. Off in release builds.
    pub checked: bool,
    /// Parameters as immediates (push constants) where the adapter has them, else in uniform buffers.
    pub immediates: bool,
    /// Caps the bytes that a kernel can see of one buffer.
    pub binding_bytes: Option<u64>,
    /// Caps the bytes of workgroup memory of a transform.
    pub workgroup_memory: Option<u32>,
    /// Bytes of free buffers kept for reuse.
    pub pool_bytes: u64,
    /// Most bytes of device memory that the backend may hold: buffers in use, buffers kept for reuse, staging of transfers.
    /// `None` leaves it to the driver. Compiled kernels and the driver's own overhead are not counted, nor are transfers of
    /// less than a MiB on their way to the device.
    pub vram_bytes: Option<u64>,
    /// Whether the host maps device buffers instead of copying through others (`MAPPABLE_PRIMARY_BUFFERS`). `None`: where
    /// device and host share their memory, on integrated and software adapters that can.
    pub zero_copy: Option<bool>,
    /// Whether device memory is overwritten with zeros before it goes back to the driver. Memory in use or kept for reuse is
    /// not: [`GpuBackend::release`] gives the latter back. Not reached: wgpu's own copies of uploads, parameters of launches,
    /// memory that the host program owns or shares, and everything on a device that is lost.
    pub wipe: bool,
    /// A folder to read shader sources from instead of the built-in ones, for who works on kernels: as `shaders/` of this
    /// crate, looked at again at every launch. An edit takes effect at the next launch; a broken one is
    /// [`crate::engine::EngineError::Validation`] with file and line until it is mended. Kernels are checked then (see
    /// `checked`), as their text may do anything.
    pub shader_dir: Option<PathBuf>,
    /// Whether launches are timed on the device, for [`GpuBackend::take_times`]; without effect where the adapter has no
    /// timestamps. Launches run one by one then.
    pub timestamps: bool,
    /// Faults to inject, for tests and drills.
    pub faults: Faults,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            form: None,
            gemm: None,
            checked: cfg!(debug_assertions),
            immediates: true,
            binding_bytes: None,
            workgroup_memory: None,
            pool_bytes: 1 << 30,
            vram_bytes: None,
            zero_copy: None,
            wipe: true,
            shader_dir: None,
            timestamps: false,
            faults: Faults::default(),
        }
    }
}

/// [`Backend`] on a GPU. Operations are submitted and return at once; only [`Backend::download`] waits.
pub struct GpuBackend {
    context: Context,
    tables: TableCache,
    gemm: Mutex<Option<GemmForm>>,
    ops: OpCounter,
}

impl GpuBackend {
    /// Opens adapter `index` of [`adapters`].
    ///
    /// # Errors
    /// [`crate::engine::EngineError::NoAdapter`] when there is none at `index` or its driver refuses; [`crate::engine::EngineError::Unsupported`] when it lacks
    /// a feature or limit that the kernels need.
    pub fn open(index: usize, options: &GpuOptions) -> Result<Self> {
        let adapter = adapter::adapter_at(index)?;
        let context = Context::open(&adapter, options)?;
        Ok(Self { context, tables: TableCache::default(), gemm: Mutex::new(options.gemm), ops: OpCounter::new() })
    }

    /// Waits until everything submitted so far is done, for measurements.
    pub fn wait(&self) -> Result<()> {
        self.context.wait("wait")
    }

    /// Works on a device that the host program has opened with wgpu.
    ///
    /// Form, limits and features are those that the device has *enabled*: for the fastest kernels the host asks for
    /// `SHADER_INT64` and `IMMEDIATES` (with 64 bytes or more), and for the adapter's workgroup memory, invocations, and
    /// buffer and binding sizes, where the adapter has them.
    ///
    /// The device's callbacks for uncaptured errors and for loss remain the host's. Errors of this backend are caught in
    /// error scopes, which wgpu keeps apart by thread, so that they never reach the host and the host's never come here. A
    /// lost device is told to nobody but the callback: call [`GpuBackend::report_loss`] from there, else the loss shows at
    /// the next download only. The host may submit to the queue at any time; submissions run in the order they are made.
    ///
    /// # Errors
    /// [`crate::engine::EngineError::Unsupported`] when the device has not enabled what the kernels need.
    pub fn with_device(device: wgpu::Device, queue: wgpu::Queue, options: &GpuOptions) -> Result<Self> {
        let context = Context::with_device(device, queue, options)?;
        Ok(Self { context, tables: TableCache::default(), gemm: Mutex::new(options.gemm), ops: OpCounter::new() })
    }

    /// Tells the backend that its device is lost: every later call is [`crate::engine::EngineError::DeviceLost`].
    pub fn report_loss(&self, reason: &str) {
        self.context.lose(reason);
    }

    /// Time that each kernel took on the device since the last call, by entry point. Waits for what is under way. Empty
    /// without [`GpuOptions::timestamps`].
    pub fn take_times(&self) -> Result<Vec<KernelTime>> {
        self.context.take_times()
    }

    /// The host's buffer as an operand, without a copy. It holds `words` words at least, has the usages `STORAGE`, `COPY_SRC`
    /// and `COPY_DST`, and was made on this backend's device.
    ///
    /// An engine buffer does not change while it is in use: the host writes only before it hands the buffer over, or after
    /// the last operation that reads it has been submitted (operations are when they return). It is not mapped meanwhile.
    /// The memory is not on the account of [`Backend::memory`].
    ///
    /// # Errors
    /// [`crate::engine::EngineError::Shape`] when the buffer is too short or lacks a usage. A buffer of another device is
    /// refused by the first operation that uses it.
    pub fn import(&self, buffer: wgpu::Buffer, words: usize) -> Result<Buffer> {
        let usages = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let (size, found) = (buffer.size(), buffer.usage());
        let fits = size.is_multiple_of(4) && usize::try_from(size / 4).is_ok_and(|most| words <= most);
        check::require(Op::Upload, fits && found.contains(usages), || {
            format!(
                "an imported buffer of {size} bytes with usages {found:?} cannot hold {words} words under {usages:?}"
            )
        })?;
        Ok(self.context.wrap(words, (words > 0).then(|| Memory::of_host(buffer))))
    }

    /// The wgpu buffer behind an engine buffer and the number of words in it, for kernels of the host; `None` where it is
    /// empty or of another backend. The wgpu buffer may be longer.
    ///
    /// The host may read it, from submissions made after this call and for as long as it likes: the memory is not reused
    /// even when the engine buffer is gone (nor is it on the account of [`Backend::memory`] then). It does not write to it
    /// while an engine buffer or a clone of it is alive.
    pub fn export(&self, buffer: &Buffer) -> Option<(wgpu::Buffer, usize)> {
        let found = buffer.downcast::<GpuBuffer>().filter(|b| b.context == self.context.id)?;
        Some((found.memory.as_ref()?.share(), buffer.words()))
    }

    /// Kernel launches so far, for reports and tests.
    pub fn dispatches(&self) -> u64 {
        self.context.dispatches()
    }

    /// The wgpu buffer behind an engine buffer; `None` when it is empty.
    fn words_of<'a>(&self, op: Op, x: &'a Buffer) -> Result<Option<&'a wgpu::Buffer>> {
        Ok(self.memory_of(op, x)?.map(Memory::buffer))
    }

    /// The memory behind an engine buffer; `None` when it is empty.
    fn memory_of<'a>(&self, op: Op, x: &'a Buffer) -> Result<Option<&'a Memory>> {
        let found = x.downcast::<GpuBuffer>().filter(|b| b.context == self.context.id);
        check::require(op, found.is_some(), || "the buffer belongs to another backend; download and upload it".into())?;
        Ok(found.and_then(|b| b.memory.as_ref()))
    }

    /// Checks that `x` is a batch `[polys][limbs][N]` of this backend.
    fn batch<'a>(
        &self,
        op: Op,
        ring: &RnsRing,
        what: &str,
        x: &'a Buffer,
        shape: Shape,
    ) -> Result<Option<&'a wgpu::Buffer>> {
        let memory = self.words_of(op, x)?;
        check::batch(op, ring, what, x.words(), shape)?;
        Ok(memory)
    }

    /// The form of products with small integers: as the options say, else the faster one on this adapter, measured once.
    fn gemm_form(&self, tables: &Tables) -> Result<GemmForm> {
        let mut form = self.gemm.lock().unwrap_or_else(PoisonError::into_inner);
        match *form {
            Some(form) => Ok(form),
            None => Ok(*form.insert(ops::faster_gemm(&self.context, tables)?)),
        }
    }

    fn empty(&self) -> Buffer {
        self.context.wrap(0, None)
    }

    fn transform(&self, op: Op, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, transform: Transform) -> Result<Buffer> {
        let x = self.batch(op, ring, "the input", x, shape)?;
        self.ops.gpu(op);
        let Some(x) = x else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::transform(&self.context, op.name(), &tables, x, shape, transform)
    }

    fn pointwise(
        &self,
        op: Op,
        ring: &Arc<RnsRing>,
        a: &Buffer,
        b: &Buffer,
        shape: Shape,
        kernel: Kernel,
    ) -> Result<Buffer> {
        let first = self.batch(op, ring, "the first operand", a, shape)?;
        let second = self.batch(op, ring, "the second operand", b, shape)?;
        self.ops.gpu(op);
        let (Some(a), Some(b)) = (first, second) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::pointwise(&self.context, op.name(), &tables, kernel, a, b, shape)
    }
}

impl Backend for GpuBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: "gpu",
            adapter: self.context.info.name.clone(),
            driver: adapter::driver(&self.context.info),
            software: adapter::is_software(&self.context.info),
            form: self.context.form.name(),
        }
    }

    fn ops(&self) -> Vec<OpCount> {
        self.ops.snapshot()
    }

    fn memory(&self) -> MemoryUse {
        self.context.pool.usage()
    }

    /// Waits until the driver has it.
    fn release(&self) -> Result<()> {
        self.context.release("release")
    }

    fn upload(&self, words: &[u32]) -> Result<Buffer> {
        self.ops.gpu(Op::Upload);
        if words.is_empty() {
            return Ok(self.empty());
        }
        let memory = self.context.upload(Op::Upload.name(), words)?;
        Ok(self.context.wrap(words.len(), Some(memory)))
    }

    fn download(&self, x: &Buffer) -> Result<Vec<u32>> {
        let memory = self.memory_of(Op::Download, x)?;
        self.ops.gpu(Op::Download);
        match memory {
            Some(memory) => self.context.download_memory(Op::Download.name(), memory, x.words()),
            None => Ok(Vec::new()),
        }
    }

    fn ntt_forward(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.transform(Op::NttForward, ring, x, shape, Transform::Forward)
    }

    fn ntt_inverse(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.transform(Op::NttInverse, ring, x, shape, Transform::Inverse)
    }

    fn add(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.pointwise(Op::Add, ring, a, b, shape, Kernel::Add)
    }

    fn sub(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.pointwise(Op::Sub, ring, a, b, shape, Kernel::Sub)
    }

    fn mul(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.pointwise(Op::Mul, ring, a, b, shape, Kernel::Mul)
    }

    fn mul_accumulate(
        &self,
        ring: &Arc<RnsRing>,
        acc: &Buffer,
        a: &Buffer,
        b: &Buffer,
        shape: Shape,
    ) -> Result<Buffer> {
        let op = Op::MulAccumulate;
        let acc = self.batch(op, ring, "the sum", acc, shape)?;
        let a = self.batch(op, ring, "the first factor", a, shape)?;
        let b = self.batch(op, ring, "the second factor", b, shape)?;
        self.ops.gpu(op);
        let (Some(acc), Some(a), Some(b)) = (acc, a, b) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::mul_accumulate(&self.context, op.name(), &tables, [acc, a, b], shape)
    }

    fn mul_scalar(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, scalars: &[u32]) -> Result<Buffer> {
        let op = Op::MulScalar;
        let x = self.batch(op, ring, "the input", x, shape)?;
        operand::scalars(ring, shape, scalars)?;
        self.ops.gpu(op);
        let Some(x) = x else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::mul_scalar(&self.context, op.name(), &tables, ring, x, shape, scalars)
    }

    fn matmul_plain(&self, ring: &Arc<RnsRing>, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer> {
        let op = Op::MatmulPlain;
        let (first, second) = (self.words_of(op, ct)?, self.words_of(op, plain)?);
        operand::matmul(ring, ct.words(), plain.words(), shape)?;
        self.ops.gpu(op);
        let (Some(ct), Some(plain)) = (first, second) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::matmul_plain(&self.context, op.name(), &tables, ct, plain, shape)
    }

    fn expand(&self, ring: &Arc<RnsRing>, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer> {
        let op = Op::Expand;
        let polys = operand::positions(ring, limbs, values, positions)?;
        self.ops.gpu(op);
        if polys == 0 {
            return Ok(self.empty());
        }
        let tables = self.tables.get(&self.context, ring)?;
        ops::expand(&self.context, op.name(), &tables, Shape { polys, limbs }, values, positions)
    }

    fn pack_step(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, shift: usize) -> Result<(Buffer, Buffer)> {
        let op = Op::PackStep;
        let x = self.batch(op, ring, "the input", x, shape)?;
        operand::packing(ring, shape, shift)?;
        self.ops.gpu(op);
        let Some(x) = x else { return Ok((self.empty(), self.empty())) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::pack_step(&self.context, op.name(), &tables, x, shape, shift)
    }

    fn automorphism(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        let op = Op::Automorphism;
        let x = self.batch(op, ring, "the input", x, shape)?;
        operand::galois_element(op, ring, g)?;
        self.ops.gpu(op);
        let Some(x) = x else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::automorphism(&self.context, op.name(), &tables, x, shape, g)
    }

    fn automorphism_ntt(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        let op = Op::AutomorphismNtt;
        let x = self.batch(op, ring, "the input", x, shape)?;
        operand::galois_element(op, ring, g)?;
        self.ops.gpu(op);
        let Some(x) = x else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::automorphism_ntt(&self.context, op.name(), &tables, x, shape, g)
    }

    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: KeySwitchShape, key: &Buffer) -> Result<Buffer> {
        let op = Op::KeySwitch;
        let (input, key_memory) = (self.words_of(op, x)?, self.words_of(op, key)?);
        operand::key_switch(ring, x.words(), shape, key.words())?;
        self.ops.gpu(op);
        let (Some(x), Some(key)) = (input, key_memory) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::key_switch(&self.context, op.name(), &tables, ring, x, shape, key)
    }

    fn rotate(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        shape: KeySwitchShape,
        keys: &Buffer,
        rotations: &[Rotation],
    ) -> Result<Buffer> {
        let op = Op::Rotate;
        let (input, key_memory) = (self.words_of(op, x)?, self.words_of(op, keys)?);
        operand::rotate(ring, x.words(), shape, keys.words(), rotations)?;
        self.ops.gpu(op);
        let (Some(x), Some(keys), false) = (input, key_memory, rotations.is_empty()) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::rotate(&self.context, op.name(), &tables, ring, x, shape, keys, rotations)
    }

    fn base_convert(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        polys: usize,
        from: Range<usize>,
        to: Range<usize>,
    ) -> Result<Buffer> {
        let op = Op::BaseConvert;
        let memory = self.words_of(op, x)?;
        operand::base_convert(ring, x.words(), polys, &from, &to)?;
        self.ops.gpu(op);
        let Some(x) = memory else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::base_convert(&self.context, op.name(), &tables, x, polys, from, to)
    }

    fn modular_gemm(&self, ring: &Arc<RnsRing>, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer> {
        let op = Op::ModularGemm;
        let (input, matrix) = (self.words_of(op, x)?, self.words_of(op, weights)?);
        operand::modular_gemm(ring, x.words(), weights.words(), shape)?;
        self.ops.gpu(op);
        let (Some(x), Some(weights)) = (input, matrix) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        let form = self.gemm_form(&tables)?;
        ops::modular_gemm(&self.context, op.name(), &tables, x, weights, shape, form)
    }

    fn ring_gemm(&self, a: &Buffer, b: &Buffer, operand: RingOperand, shape: RingGemmShape) -> Result<Buffer> {
        let op = Op::RingGemm;
        let (left, right) = (self.words_of(op, a)?, self.words_of(op, b)?);
        operand::ring_gemm(a.words(), b.words(), operand, shape)?;
        self.ops.gpu(op);
        let (Some(a), Some(b)) = (left, right) else { return Ok(self.empty()) };
        ops::ring_gemm(&self.context, op.name(), a, b, operand, shape)
    }

    fn expand_matrix(&self, ring: &Arc<RnsRing>, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        let op = Op::ExpandMatrix;
        let memory = self.words_of(op, weights)?;
        operand::expand_matrix(ring, weights.words(), shape)?;
        let some = !shape.outputs.is_empty() && !shape.inputs.is_empty();
        self.ops.gpu(op);
        let (Some(weights), true) = (memory, some) else { return Ok(self.empty()) };
        let tables = self.tables.get(&self.context, ring)?;
        ops::expand_matrix(&self.context, op.name(), &tables, weights, shape)
    }

    fn gather(&self, sources: &[&Buffer], item_words: usize, items: &[GatherItem]) -> Result<Buffer> {
        let op = Op::Gather;
        let memories = sources.iter().map(|x| self.words_of(op, x)).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = sources.iter().map(|x| x.words()).collect();
        operand::gather(&lengths, item_words, items)?;
        self.ops.gpu(op);
        if item_words * items.len() == 0 {
            return Ok(self.empty());
        }
        ops::gather(&self.context, op.name(), &memories, item_words, items)
    }

    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer> {
        let op = Op::ModSwitch;
        let memory = self.batch(op, ring, "the input", x, shape)?;
        operand::target(shape, target)?;
        self.ops.gpu(op);
        let Some(memory) = memory else { return Ok(self.empty()) };
        if target == shape.limbs {
            return Ok(x.clone());
        }
        let tables = self.tables.get(&self.context, ring)?;
        ops::mod_switch(&self.context, op.name(), &tables, memory, shape, target)
    }
}
