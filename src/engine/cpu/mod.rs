//! The CPU backend: rayon over limbs and polynomials, kernels on the vectors of the machine.

mod convert;
mod gemm;
mod inner_product;
mod key_switch;
mod lane_residue;
mod lanes;
mod matmul_integers;
mod matmul_matrix;
mod matmul_plain;
mod mod_switch;
mod ntt;
mod permute;
pub(crate) mod plain_ntt;
mod pointwise;
mod pool;
mod residue;
mod ring_gemm;
mod simd;

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;

use self::{
    key_switch::KeySwitch,
    ntt::CpuNtt,
    pool::{Pool, Words},
};
pub use self::{
    ntt::NttLibrary,
    ring_gemm::{RingElement, matmul, matmul_transposed},
};
use super::{
    Backend, BackendInfo, Buffer, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, Op, OpCount,
    OpCounter, Result, RingGemmShape, RingOperand, RnsRing, Rotation, Shape,
    check::{self, operand},
};

/// [`Backend`] on CPU threads.
///
/// Words that are not canonical residues give unspecified residues, never a panic.
///
/// Memory of dropped buffers is kept for the next ones, [`CpuBackend::DEFAULT_KEPT_BYTES`] at most unless
/// [`CpuBackend::keep_bytes`] says otherwise. It may hold what the buffers held, secrets too, until it is used again; it is
/// wiped before it goes back to the system, all of it when the backend is dropped.
pub struct CpuBackend {
    library: NttLibrary,
    /// `None` is rayon's shared pool, or whichever pool the caller runs in.
    threads: Option<rayon::ThreadPool>,
    memory: Pool,
    tables: TableCache,
    ops: OpCounter,
}

impl CpuBackend {
    /// Bytes of dropped buffers that are kept by default: 512 MiB.
    pub const DEFAULT_KEPT_BYTES: usize = 512 << 20;

    /// Our own NTT on `threads` threads of its own, or on rayon's shared pool.
    pub fn new(threads: Option<usize>) -> Self {
        Self::with_ntt(NttLibrary::default(), threads)
    }

    /// As [`CpuBackend::new`] with NTTs by `library`.
    ///
    /// If the system refuses the threads, the shared pool serves and a warning is logged.
    pub fn with_ntt(library: NttLibrary, threads: Option<usize>) -> Self {
        let build = |count: usize| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(count.max(1));
            builder.thread_name(|i| format!("heliostat-cpu-{i}")).build()
        };
        let threads = threads.and_then(|count| {
            build(count).inspect_err(|e| log::warn!("no pool of {count} CPU threads ({e}): using the shared one")).ok()
        });
        Self {
            library,
            threads,
            memory: Pool::new(Self::DEFAULT_KEPT_BYTES),
            tables: TableCache::default(),
            ops: OpCounter::new(),
        }
    }

    /// The same backend keeping at most `bytes` of dropped buffers; 0 keeps none.
    pub fn keep_bytes(mut self, bytes: usize) -> Self {
        self.memory = Pool::new(bytes);
        self
    }

    /// Threads that operations run on.
    pub fn threads(&self) -> usize {
        self.threads.as_ref().map_or_else(rayon::current_num_threads, rayon::ThreadPool::current_num_threads)
    }

    /// Runs `f` on the backend's threads, counts it and wraps the result.
    fn run(&self, op: Op, f: impl FnOnce() -> Words + Send) -> Buffer {
        self.ops.cpu(op);
        wrap(self.install(f))
    }

    fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    fn ntt(
        &self,
        op: Op,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        shape: Shape,
        transform: impl Fn(&dyn CpuNtt, &[u32], &mut [u32]) + Sync + Send,
    ) -> Result<Buffer> {
        let x = words(op, x)?;
        check::batch(op, ring, "the input", x.len(), shape)?;
        Ok(self.run(op, || {
            let (n, plans) = (ring.n(), self.tables.of(ring, self.library));
            let mut out = self.memory.take(x.len());
            out.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(row, (out, x))| {
                transform(plans[row % shape.limbs].as_ref(), x, out);
            });
            out
        }))
    }

    fn pointwise(
        &self,
        op: Op,
        ring: &RnsRing,
        a: &Buffer,
        b: &Buffer,
        shape: Shape,
        f: impl Fn(&RnsRing, &Pool, usize, &[u32], &[u32]) -> Words + Sync,
    ) -> Result<Buffer> {
        let (a, b) = (words(op, a)?, words(op, b)?);
        check::batch(op, ring, "the first operand", a.len(), shape)?;
        check::batch(op, ring, "the second operand", b.len(), shape)?;
        Ok(self.run(op, || f(ring, &self.memory, shape.limbs, a, b)))
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: "cpu",
            adapter: format!("{}, {} threads", cpu_model(), self.threads()),
            driver: String::new(),
            software: false,
            form: self.library.name(),
        }
    }

    fn ops(&self) -> Vec<OpCount> {
        self.ops.snapshot()
    }

    fn upload(&self, words: &[u32]) -> Result<Buffer> {
        self.ops.cpu(Op::Upload);
        let mut copy = self.memory.take(words.len());
        copy.copy_from_slice(words);
        Ok(wrap(copy))
    }

    fn download(&self, x: &Buffer) -> Result<Vec<u32>> {
        let x = words(Op::Download, x)?;
        self.ops.cpu(Op::Download);
        Ok(x.to_vec())
    }

    fn ntt_forward(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.ntt(Op::NttForward, ring, x, shape, |plan, x, out| plan.forward_from(x, out))
    }

    fn ntt_inverse(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.ntt(Op::NttInverse, ring, x, shape, |plan, x, out| plan.inverse_from(x, out))
    }

    fn add(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.pointwise(Op::Add, ring, a, b, shape, pointwise::add)
    }

    fn sub(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.pointwise(Op::Sub, ring, a, b, shape, pointwise::sub)
    }

    fn mul(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.pointwise(Op::Mul, ring, a, b, shape, pointwise::mul)
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
        let (acc, a, b) = (words(op, acc)?, words(op, a)?, words(op, b)?);
        for (what, x) in [("the sum", acc), ("the first factor", a), ("the second factor", b)] {
            check::batch(op, ring, what, x.len(), shape)?;
        }
        Ok(self.run(op, || pointwise::mul_accumulate(ring, &self.memory, shape.limbs, acc, a, b)))
    }

    fn mul_scalar(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, scalars: &[u32]) -> Result<Buffer> {
        let op = Op::MulScalar;
        let x = words(op, x)?;
        check::batch(op, ring, "the input", x.len(), shape)?;
        operand::scalars(ring, shape, scalars)?;
        Ok(self.run(op, || pointwise::mul_scalar(ring, &self.memory, x, scalars)))
    }

    fn matmul_plain(&self, ring: &Arc<RnsRing>, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer> {
        let op = Op::MatmulPlain;
        let (ct, plain) = (words(op, ct)?, words(op, plain)?);
        operand::matmul(ring, ct.len(), plain.len(), shape)?;
        Ok(self.run(op, || matmul_plain::matmul_plain(ring, &self.memory, ct, plain, shape)))
    }

    fn expand(&self, ring: &Arc<RnsRing>, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer> {
        operand::positions(ring, limbs, values, positions)?;
        Ok(self.run(Op::Expand, || permute::expand(ring, &self.memory, limbs, values, positions)))
    }

    fn pack_step(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, shift: usize) -> Result<(Buffer, Buffer)> {
        let op = Op::PackStep;
        let x = words(op, x)?;
        check::batch(op, ring, "the input", x.len(), shape)?;
        operand::packing(ring, shape, shift)?;
        self.ops.cpu(op);
        let (sum, difference) = self.install(|| permute::pack_step(ring, &self.memory, x, shape, shift));
        Ok((wrap(sum), wrap(difference)))
    }

    fn automorphism(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        let op = Op::Automorphism;
        let x = words(op, x)?;
        check::batch(op, ring, "the input", x.len(), shape)?;
        operand::galois_element(op, ring, g)?;
        Ok(self.run(op, || permute::automorphism(ring, &self.memory, x, shape.limbs, g)))
    }

    fn automorphism_ntt(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        let op = Op::AutomorphismNtt;
        let x = words(op, x)?;
        check::batch(op, ring, "the input", x.len(), shape)?;
        operand::galois_element(op, ring, g)?;
        Ok(self.run(op, || permute::automorphism_ntt(ring, &self.memory, x, g)))
    }

    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: KeySwitchShape, key: &Buffer) -> Result<Buffer> {
        let op = Op::KeySwitch;
        let (x, key) = (words(op, x)?, words(op, key)?);
        operand::key_switch(ring, x.len(), shape, key.len())?;
        Ok(self.run(op, || {
            let plans = self.tables.of(ring, self.library);
            KeySwitch::new(ring, &plans, shape, &self.memory).run(x, key)
        }))
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
        let (x, keys) = (words(op, x)?, words(op, keys)?);
        operand::rotate(ring, x.len(), shape, keys.len(), rotations)?;
        Ok(self.run(op, || {
            let plans = self.tables.of(ring, self.library);
            KeySwitch::new(ring, &plans, shape, &self.memory).rotate(x, keys, rotations)
        }))
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
        let x = words(op, x)?;
        operand::base_convert(ring, x.len(), polys, &from, &to)?;
        Ok(self.run(op, || convert::base_convert(ring, &self.memory, x, from, to)))
    }

    fn modular_gemm(&self, ring: &Arc<RnsRing>, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer> {
        let op = Op::ModularGemm;
        let (x, weights) = (words(op, x)?, words(op, weights)?);
        operand::modular_gemm(ring, x.len(), weights.len(), shape)?;
        Ok(self.run(op, || gemm::modular_gemm(ring, &self.memory, x, weights, shape)))
    }

    fn ring_gemm(&self, a: &Buffer, b: &Buffer, operand: RingOperand, shape: RingGemmShape) -> Result<Buffer> {
        let op = Op::RingGemm;
        let (a, b) = (words(op, a)?, words(op, b)?);
        operand::ring_gemm(a.len(), b.len(), operand, shape)?;
        self.ops.cpu(op);
        Ok(wrap(self.install(|| ring_gemm::ring_gemm(&self.memory, a, b, operand, shape))?))
    }

    fn expand_matrix(&self, ring: &Arc<RnsRing>, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        let op = Op::ExpandMatrix;
        let weights = words(op, weights)?;
        operand::expand_matrix(ring, weights.len(), shape)?;
        Ok(self.run(op, || {
            let plans = self.tables.of(ring, self.library);
            let mut out = permute::expand_matrix(ring, &self.memory, weights, shape);
            let rows = out.par_chunks_mut(ring.n()).enumerate();
            rows.for_each(|(row, out)| plans[row % shape.limbs].forward(out));
            out
        }))
    }

    fn matmul_matrix(&self, ring: &Arc<RnsRing>, ct: &Buffer, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        let plans = self.tables.of(ring, self.library);
        let plans: Option<Vec<_>> = plans.iter().map(|plan| plan.plain()).collect();
        let (Some(plans), true) = (plans, matmul_matrix::fits(ring, shape)) else {
            let plain = self.expand_matrix(ring, weights, shape)?;
            return self.matmul_plain(ring, ct, &plain, matmul_matrix::product(shape));
        };
        let (ct, weights) = (words(Op::MatmulPlain, ct)?, words(Op::ExpandMatrix, weights)?);
        operand::expand_matrix(ring, weights.len(), shape)?;
        let plain = shape.outputs.len() * shape.inputs.len() * shape.limbs * ring.n();
        operand::matmul(ring, ct.len(), plain, matmul_matrix::product(shape))?;
        self.ops.cpu(Op::ExpandMatrix);
        Ok(self.run(Op::MatmulPlain, || matmul_matrix::matmul_matrix(ring, &self.memory, &plans, ct, weights, shape)))
    }

    fn matmul_integers(&self, ring: &Arc<RnsRing>, ct: &Buffer, values: &[i64], shape: MatmulShape) -> Result<Buffer> {
        let positions: Vec<u32> = (0..ring.n() as u32).collect();
        operand::positions(ring, shape.limbs, values, &positions)?;
        let ct = words(Op::MatmulPlain, ct)?;
        operand::matmul(ring, ct.len(), values.len().saturating_mul(shape.limbs), shape)?;
        let plans = self.tables.of(ring, self.library);
        self.ops.cpu(Op::Expand);
        self.ops.cpu(Op::NttForward);
        Ok(self
            .run(Op::MatmulPlain, || matmul_integers::matmul_integers(ring, &self.memory, &plans, ct, values, shape)))
    }

    fn gather(&self, sources: &[&Buffer], item_words: usize, items: &[GatherItem]) -> Result<Buffer> {
        let op = Op::Gather;
        let sources = sources.iter().map(|x| words(op, x)).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = sources.iter().map(|x| x.len()).collect();
        operand::gather(&lengths, item_words, items)?;
        Ok(self.run(op, || permute::gather(&self.memory, &sources, item_words, items)))
    }

    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer> {
        let op = Op::ModSwitch;
        let x = words(op, x)?;
        check::batch(op, ring, "the input", x.len(), shape)?;
        operand::target(shape, target)?;
        Ok(self.run(op, || mod_switch::mod_switch(ring, &self.memory, x, shape, target)))
    }
}

fn wrap(words: Words) -> Buffer {
    Buffer::new(words.len(), words)
}

fn words(op: Op, x: &Buffer) -> Result<&[u32]> {
    let found = x.downcast::<Words>();
    check::require(op, found.is_some(), || "the buffer belongs to another backend; download and upload it".into())?;
    Ok(found.map_or(&[], |words| words))
}

/// NTT tables by ring, the most recently used ones.
#[derive(Default)]
struct TableCache {
    /// Most recently used last.
    rings: Mutex<Vec<(u64, Plans)>>,
}

type Plans = Arc<Vec<Box<dyn CpuNtt>>>;

impl TableCache {
    /// Rings kept: a protocol uses a handful; the largest named one takes about 15 MB.
    const RINGS: usize = 16;

    /// Tables of `ring`, built when absent.
    fn of(&self, ring: &Arc<RnsRing>, library: NttLibrary) -> Plans {
        if let Some(plans) = self.touch(ring.id()) {
            return plans;
        }
        // Built outside the lock: a pool thread that waits for this work may pick up another operation that wants the lock.
        let plans = Arc::new(ntt::plans(library, ring));
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if rings.iter().all(|(id, _)| *id != ring.id()) {
            if rings.len() >= Self::RINGS {
                rings.remove(0);
            }
            rings.push((ring.id(), plans.clone()));
        }
        plans
    }

    fn touch(&self, id: u64) -> Option<Plans> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let at = rings.iter().position(|(known, _)| *known == id)?;
        rings[at..].rotate_left(1);
        rings.last().map(|(_, plans)| plans.clone())
    }
}

/// The processor's name where the system tells it, else the architecture.
fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arith::primes::ntt_primes, engine::EngineError};

    fn ring(n: usize) -> Arc<RnsRing> {
        Arc::new(RnsRing::new(n, &ntt_primes(30, n, 2).unwrap()).unwrap())
    }

    #[test]
    fn the_table_cache_is_bounded_and_keeps_what_is_used() {
        let cache = TableCache::default();
        let first = ring(8);
        let tables = cache.of(&first, NttLibrary::Plain);
        for _ in 0..2 * TableCache::RINGS {
            cache.of(&ring(8), NttLibrary::Plain);
            assert!(Arc::ptr_eq(&tables, &cache.of(&first, NttLibrary::Plain)));
        }
        assert_eq!(cache.rings.lock().unwrap().len(), TableCache::RINGS);
    }

    #[test]
    fn a_foreign_buffer_is_an_error() {
        let backend = CpuBackend::new(Some(1));
        let foreign = Buffer::new(16, [0u8; 64]);
        assert!(matches!(backend.download(&foreign), Err(EngineError::Shape { operation: "download", .. })));
    }

    #[test]
    fn one_backend_serves_many_threads() {
        let backend = CpuBackend::new(Some(2));
        let ring = ring(64);
        let shape = Shape { polys: 3, limbs: 2 };
        std::thread::scope(|scope| {
            for k in 0..4 {
                let (backend, ring) = (&backend, &ring);
                scope.spawn(move || {
                    let x = vec![k; 3 * 2 * 64];
                    let buffer = backend.upload(&x).unwrap();
                    let there = backend.ntt_forward(ring, &buffer, shape).unwrap();
                    let back = backend.ntt_inverse(ring, &there, shape).unwrap();
                    assert_eq!(backend.download(&back).unwrap(), x);
                });
            }
        });
        let forward = backend.ops().into_iter().find(|op| op.name == "ntt_forward").unwrap();
        assert_eq!((forward.cpu, forward.gpu, backend.threads()), (4, 0, 2));
    }
}
