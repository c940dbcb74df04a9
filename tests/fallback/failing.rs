//! A backend that fails at a chosen call.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use heliostat::engine::{
    Backend, BackendInfo, Buffer, EngineError, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape,
    MemoryUse, OpCount, Result, RingGemmShape, RingOperand, RnsRing, Rotation, Shape, cpu::CpuBackend,
};

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The device is lost, and with it everything on it: every later call fails as well.
    Loss,
    /// Out of memory, once.
    Memory,
    /// Out of memory from then on, for everything but downloads.
    Full,
    /// A validation error, once.
    Validation,
    /// Something that the adapter lacks, once.
    Lack,
}

impl Failure {
    pub const ALL: [Self; 5] = [Self::Loss, Self::Memory, Self::Full, Self::Validation, Self::Lack];
}

/// The CPU until call number `at`.
pub struct Failing {
    inner: CpuBackend,
    failure: Failure,
    at: u64,
    calls: Arc<AtomicU64>,
}

impl Failing {
    pub fn new(failure: Failure, at: u64) -> Self {
        Self { inner: CpuBackend::new(None), failure, at, calls: Arc::default() }
    }

    /// The number of calls so far, to keep after the backend has moved.
    pub fn calls(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.calls)
    }

    fn call(&self, operation: &'static str) -> Result<&CpuBackend> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let fails = match self.failure {
            Failure::Loss => call >= self.at,
            Failure::Full => call >= self.at && operation != "download",
            Failure::Memory | Failure::Validation | Failure::Lack => call == self.at,
        };
        if !fails {
            return Ok(&self.inner);
        }
        let reason = "injected".to_owned();
        Err(match self.failure {
            Failure::Loss => EngineError::DeviceLost { operation, reason },
            Failure::Memory | Failure::Full => out_of_memory(operation),
            Failure::Validation => EngineError::Validation { operation, reason },
            Failure::Lack => EngineError::Unsupported { operation, adapter: "none".into(), what: reason },
        })
    }
}

fn out_of_memory(operation: &'static str) -> EngineError {
    EngineError::OutOfMemory { operation, bytes: 4096, live: 0, budget: None }
}

impl Backend for Failing {
    fn info(&self) -> BackendInfo {
        BackendInfo { kind: "gpu", ..self.inner.info() }
    }

    fn ops(&self) -> Vec<OpCount> {
        self.inner.ops()
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn upload(&self, words: &[u32]) -> Result<Buffer> {
        self.call("upload")?.upload(words)
    }

    fn download(&self, x: &Buffer) -> Result<Vec<u32>> {
        self.call("download")?.download(x)
    }

    fn ntt_forward(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.call("ntt_forward")?.ntt_forward(ring, x, shape)
    }

    fn ntt_inverse(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.call("ntt_inverse")?.ntt_inverse(ring, x, shape)
    }

    fn add(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.call("add")?.add(ring, a, b, shape)
    }

    fn sub(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.call("sub")?.sub(ring, a, b, shape)
    }

    fn mul(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.call("mul")?.mul(ring, a, b, shape)
    }

    fn mul_accumulate(
        &self,
        ring: &Arc<RnsRing>,
        acc: &Buffer,
        a: &Buffer,
        b: &Buffer,
        shape: Shape,
    ) -> Result<Buffer> {
        self.call("mul_accumulate")?.mul_accumulate(ring, acc, a, b, shape)
    }

    fn mul_scalar(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, scalars: &[u32]) -> Result<Buffer> {
        self.call("mul_scalar")?.mul_scalar(ring, x, shape, scalars)
    }

    fn matmul_plain(&self, ring: &Arc<RnsRing>, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer> {
        self.call("matmul_plain")?.matmul_plain(ring, ct, plain, shape)
    }

    fn expand(&self, ring: &Arc<RnsRing>, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer> {
        self.call("expand")?.expand(ring, limbs, values, positions)
    }

    fn pack_step(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, shift: usize) -> Result<(Buffer, Buffer)> {
        self.call("pack_step")?.pack_step(ring, x, shape, shift)
    }

    fn automorphism(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        self.call("automorphism")?.automorphism(ring, x, shape, g)
    }

    fn automorphism_ntt(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        self.call("automorphism_ntt")?.automorphism_ntt(ring, x, shape, g)
    }

    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: KeySwitchShape, key: &Buffer) -> Result<Buffer> {
        self.call("key_switch")?.key_switch(ring, x, shape, key)
    }

    fn rotate(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        shape: KeySwitchShape,
        keys: &Buffer,
        rotations: &[Rotation],
    ) -> Result<Buffer> {
        self.call("rotate")?.rotate(ring, x, shape, keys, rotations)
    }

    fn base_convert(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        polys: usize,
        from: Range<usize>,
        to: Range<usize>,
    ) -> Result<Buffer> {
        self.call("base_convert")?.base_convert(ring, x, polys, from, to)
    }

    fn modular_gemm(&self, ring: &Arc<RnsRing>, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer> {
        self.call("modular_gemm")?.modular_gemm(ring, x, weights, shape)
    }

    fn ring_gemm(&self, a: &Buffer, b: &Buffer, operand: RingOperand, shape: RingGemmShape) -> Result<Buffer> {
        self.call("ring_gemm")?.ring_gemm(a, b, operand, shape)
    }

    fn expand_matrix(&self, ring: &Arc<RnsRing>, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        self.call("expand_matrix")?.expand_matrix(ring, weights, shape)
    }

    fn gather(&self, sources: &[&Buffer], item_words: usize, items: &[GatherItem]) -> Result<Buffer> {
        self.call("gather")?.gather(sources, item_words, items)
    }

    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer> {
        self.call("mod_switch")?.mod_switch(ring, x, shape, target)
    }
}
