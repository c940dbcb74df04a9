//! Two backends that must agree: every operation runs on both, and every word of every result is compared.

use std::{ops::Range, sync::Arc};

use super::{
    Backend, BackendInfo, Buffer, EngineError, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape,
    MemoryUse, Op, OpCount, OpCounter, Result, RingGemmShape, RingOperand, RnsRing, Rotation, Shape,
    check::foreign_buffer, ops::merged,
};

/// [`Backend`] for debugging and tests: `A` (the GPU) computes, `B` (the CPU) checks.
///
/// A difference is [`EngineError::Mismatch`] with the index of the first differing word. An operation fails when it fails on
/// either; if it fails on one only, the error says which.
pub struct DualBackend<A, B> {
    gpu: A,
    cpu: B,
    compared: OpCounter,
}

/// The two copies behind a buffer of a [`DualBackend`].
struct Pair {
    gpu: Buffer,
    cpu: Buffer,
}

impl<A: Backend, B: Backend> DualBackend<A, B> {
    /// Pairs the backend under test with the one that checks it.
    pub fn new(gpu: A, cpu: B) -> Self {
        Self { gpu, cpu, compared: OpCounter::new() }
    }

    /// The backend under test.
    pub fn gpu(&self) -> &A {
        &self.gpu
    }

    /// The backend that checks.
    pub fn cpu(&self) -> &B {
        &self.cpu
    }

    /// Compares two results of `op` and pairs them; `detail` is the shape of the operation.
    fn pair(&self, op: Op, gpu: Result<Buffer>, cpu: Result<Buffer>, detail: &str) -> Result<Buffer> {
        let (gpu, cpu) = both(op, gpu, cpu)?;
        compare(op, &self.gpu.download(&gpu)?, &self.cpu.download(&cpu)?, detail)?;
        self.compared.compared(op);
        Ok(Buffer::new(gpu.words(), Pair { gpu, cpu }))
    }
}

fn split(op: Op, x: &Buffer) -> Result<&Pair> {
    x.downcast().ok_or_else(|| foreign_buffer(op))
}

/// Both values, or the error; if only one side fails, its error says which side that is.
fn both<T>(op: Op, gpu: Result<T>, cpu: Result<T>) -> Result<(T, T)> {
    let alone = |side: &str, e: EngineError| EngineError::Validation {
        operation: op.name(),
        reason: format!("only the {side} failed: {e}"),
    };
    match (gpu, cpu) {
        (Ok(gpu), Ok(cpu)) => Ok((gpu, cpu)),
        (Err(e), Err(_)) => Err(e),
        // Limits of a device are its own; what is wrong with the operands must be wrong on both.
        (Err(e @ EngineError::Shape { .. }), Ok(_)) => Err(alone("GPU", e)),
        (Err(e), Ok(_)) => Err(e),
        (Ok(_), Err(e)) => Err(alone("CPU", e)),
    }
}

fn compare(op: Op, gpu: &[u32], cpu: &[u32], detail: &str) -> Result<()> {
    if gpu.len() != cpu.len() {
        let detail = format!("the GPU gives {} words, the CPU {}", gpu.len(), cpu.len());
        return Err(EngineError::Shape { operation: op.name(), detail });
    }
    match gpu.iter().zip(cpu).position(|(gpu, cpu)| gpu != cpu) {
        None => Ok(()),
        Some(index) => Err(EngineError::Mismatch {
            operation: op.name(),
            index,
            gpu: gpu[index],
            cpu: cpu[index],
            detail: detail.to_owned(),
        }),
    }
}

fn describe(ring: &RnsRing, shape: Shape) -> String {
    format!("N = {}, {} polynomials, {} limbs", ring.n(), shape.polys, shape.limbs)
}

impl<A: Backend, B: Backend> Backend for DualBackend<A, B> {
    fn info(&self) -> BackendInfo {
        let (gpu, cpu) = (self.gpu.info(), self.cpu.info());
        BackendInfo { kind: "dual", adapter: format!("{} checked by {}", gpu.adapter, cpu.adapter), ..gpu }
    }

    fn ops(&self) -> Vec<OpCount> {
        merged(&[self.gpu.ops(), self.cpu.ops(), self.compared.snapshot()])
    }

    fn memory(&self) -> MemoryUse {
        self.gpu.memory()
    }

    fn release(&self) -> Result<()> {
        self.gpu.release()?;
        self.cpu.release()
    }

    fn upload(&self, words: &[u32]) -> Result<Buffer> {
        let detail = format!("{} words", words.len());
        self.pair(Op::Upload, self.gpu.upload(words), self.cpu.upload(words), &detail)
    }

    fn download(&self, x: &Buffer) -> Result<Vec<u32>> {
        let x = split(Op::Download, x)?;
        let (gpu, cpu) = both(Op::Download, self.gpu.download(&x.gpu), self.cpu.download(&x.cpu))?;
        compare(Op::Download, &gpu, &cpu, &format!("{} words", gpu.len()))?;
        self.compared.compared(Op::Download);
        Ok(gpu)
    }

    fn ntt_forward(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        let x = split(Op::NttForward, x)?;
        let (gpu, cpu) = (self.gpu.ntt_forward(ring, &x.gpu, shape), self.cpu.ntt_forward(ring, &x.cpu, shape));
        self.pair(Op::NttForward, gpu, cpu, &describe(ring, shape))
    }

    fn ntt_inverse(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        let x = split(Op::NttInverse, x)?;
        let (gpu, cpu) = (self.gpu.ntt_inverse(ring, &x.gpu, shape), self.cpu.ntt_inverse(ring, &x.cpu, shape));
        self.pair(Op::NttInverse, gpu, cpu, &describe(ring, shape))
    }

    fn add(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        let (a, b) = (split(Op::Add, a)?, split(Op::Add, b)?);
        let (gpu, cpu) = (self.gpu.add(ring, &a.gpu, &b.gpu, shape), self.cpu.add(ring, &a.cpu, &b.cpu, shape));
        self.pair(Op::Add, gpu, cpu, &describe(ring, shape))
    }

    fn sub(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        let (a, b) = (split(Op::Sub, a)?, split(Op::Sub, b)?);
        let (gpu, cpu) = (self.gpu.sub(ring, &a.gpu, &b.gpu, shape), self.cpu.sub(ring, &a.cpu, &b.cpu, shape));
        self.pair(Op::Sub, gpu, cpu, &describe(ring, shape))
    }

    fn mul(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        let (a, b) = (split(Op::Mul, a)?, split(Op::Mul, b)?);
        let (gpu, cpu) = (self.gpu.mul(ring, &a.gpu, &b.gpu, shape), self.cpu.mul(ring, &a.cpu, &b.cpu, shape));
        self.pair(Op::Mul, gpu, cpu, &describe(ring, shape))
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
        let (acc, a, b) = (split(op, acc)?, split(op, a)?, split(op, b)?);
        let gpu = self.gpu.mul_accumulate(ring, &acc.gpu, &a.gpu, &b.gpu, shape);
        let cpu = self.cpu.mul_accumulate(ring, &acc.cpu, &a.cpu, &b.cpu, shape);
        self.pair(op, gpu, cpu, &describe(ring, shape))
    }

    fn mul_scalar(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, scalars: &[u32]) -> Result<Buffer> {
        let x = split(Op::MulScalar, x)?;
        let gpu = self.gpu.mul_scalar(ring, &x.gpu, shape, scalars);
        let cpu = self.cpu.mul_scalar(ring, &x.cpu, shape, scalars);
        self.pair(Op::MulScalar, gpu, cpu, &describe(ring, shape))
    }

    fn matmul_plain(&self, ring: &Arc<RnsRing>, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer> {
        let (ct, plain) = (split(Op::MatmulPlain, ct)?, split(Op::MatmulPlain, plain)?);
        let gpu = self.gpu.matmul_plain(ring, &ct.gpu, &plain.gpu, shape);
        let cpu = self.cpu.matmul_plain(ring, &ct.cpu, &plain.cpu, shape);
        self.pair(Op::MatmulPlain, gpu, cpu, &format!("N = {}, {shape:?}", ring.n()))
    }

    fn expand(&self, ring: &Arc<RnsRing>, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer> {
        let gpu = self.gpu.expand(ring, limbs, values, positions);
        let cpu = self.cpu.expand(ring, limbs, values, positions);
        let detail =
            format!("N = {}, {limbs} limbs, {} values at {} positions", ring.n(), values.len(), positions.len());
        self.pair(Op::Expand, gpu, cpu, &detail)
    }

    fn pack_step(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, shift: usize) -> Result<(Buffer, Buffer)> {
        let x = split(Op::PackStep, x)?;
        let gpu = self.gpu.pack_step(ring, &x.gpu, shape, shift);
        let (gpu, cpu) = both(Op::PackStep, gpu, self.cpu.pack_step(ring, &x.cpu, shape, shift))?;
        let detail = format!("{}, shift {shift}", describe(ring, shape));
        let sum = self.pair(Op::PackStep, Ok(gpu.0), Ok(cpu.0), &format!("{detail}, sum"))?;
        let difference = self.pair(Op::PackStep, Ok(gpu.1), Ok(cpu.1), &format!("{detail}, difference"))?;
        Ok((sum, difference))
    }

    fn automorphism(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        let x = split(Op::Automorphism, x)?;
        let gpu = self.gpu.automorphism(ring, &x.gpu, shape, g);
        let cpu = self.cpu.automorphism(ring, &x.cpu, shape, g);
        self.pair(Op::Automorphism, gpu, cpu, &format!("{}, g = {g}", describe(ring, shape)))
    }

    fn automorphism_ntt(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        let x = split(Op::AutomorphismNtt, x)?;
        let gpu = self.gpu.automorphism_ntt(ring, &x.gpu, shape, g);
        let cpu = self.cpu.automorphism_ntt(ring, &x.cpu, shape, g);
        self.pair(Op::AutomorphismNtt, gpu, cpu, &format!("{}, g = {g}", describe(ring, shape)))
    }

    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: KeySwitchShape, key: &Buffer) -> Result<Buffer> {
        let (x, key) = (split(Op::KeySwitch, x)?, split(Op::KeySwitch, key)?);
        let gpu = self.gpu.key_switch(ring, &x.gpu, shape, &key.gpu);
        let cpu = self.cpu.key_switch(ring, &x.cpu, shape, &key.cpu);
        self.pair(Op::KeySwitch, gpu, cpu, &format!("N = {}, {shape:?}", ring.n()))
    }

    fn rotate(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        shape: KeySwitchShape,
        keys: &Buffer,
        rotations: &[Rotation],
    ) -> Result<Buffer> {
        let (x, keys) = (split(Op::Rotate, x)?, split(Op::Rotate, keys)?);
        let gpu = self.gpu.rotate(ring, &x.gpu, shape, &keys.gpu, rotations);
        let cpu = self.cpu.rotate(ring, &x.cpu, shape, &keys.cpu, rotations);
        self.pair(Op::Rotate, gpu, cpu, &format!("N = {}, {shape:?}, {} rotations", ring.n(), rotations.len()))
    }

    fn base_convert(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        polys: usize,
        from: Range<usize>,
        to: Range<usize>,
    ) -> Result<Buffer> {
        let x = split(Op::BaseConvert, x)?;
        let detail = format!("N = {}, {polys} polynomials, limbs {from:?} to {to:?}", ring.n());
        let gpu = self.gpu.base_convert(ring, &x.gpu, polys, from.clone(), to.clone());
        self.pair(Op::BaseConvert, gpu, self.cpu.base_convert(ring, &x.cpu, polys, from, to), &detail)
    }

    fn modular_gemm(&self, ring: &Arc<RnsRing>, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer> {
        let (x, weights) = (split(Op::ModularGemm, x)?, split(Op::ModularGemm, weights)?);
        let gpu = self.gpu.modular_gemm(ring, &x.gpu, &weights.gpu, shape);
        let cpu = self.cpu.modular_gemm(ring, &x.cpu, &weights.cpu, shape);
        self.pair(Op::ModularGemm, gpu, cpu, &format!("N = {}, {shape:?}", ring.n()))
    }

    fn ring_gemm(&self, a: &Buffer, b: &Buffer, operand: RingOperand, shape: RingGemmShape) -> Result<Buffer> {
        let (a, b) = (split(Op::RingGemm, a)?, split(Op::RingGemm, b)?);
        let gpu = self.gpu.ring_gemm(&a.gpu, &b.gpu, operand, shape);
        let cpu = self.cpu.ring_gemm(&a.cpu, &b.cpu, operand, shape);
        self.pair(Op::RingGemm, gpu, cpu, &format!("{shape:?}, {operand:?}"))
    }

    fn expand_matrix(&self, ring: &Arc<RnsRing>, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        let weights = split(Op::ExpandMatrix, weights)?;
        let gpu = self.gpu.expand_matrix(ring, &weights.gpu, shape);
        let cpu = self.cpu.expand_matrix(ring, &weights.cpu, shape);
        self.pair(Op::ExpandMatrix, gpu, cpu, &format!("N = {}, {shape:?}", ring.n()))
    }

    fn gather(&self, sources: &[&Buffer], item_words: usize, items: &[GatherItem]) -> Result<Buffer> {
        let pairs = sources.iter().map(|x| split(Op::Gather, x)).collect::<Result<Vec<_>>>()?;
        let gpu: Vec<&Buffer> = pairs.iter().map(|pair| &pair.gpu).collect();
        let cpu: Vec<&Buffer> = pairs.iter().map(|pair| &pair.cpu).collect();
        let gpu = self.gpu.gather(&gpu, item_words, items);
        let cpu = self.cpu.gather(&cpu, item_words, items);
        self.pair(Op::Gather, gpu, cpu, &format!("{} items of {item_words} words", items.len()))
    }

    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer> {
        let x = split(Op::ModSwitch, x)?;
        let gpu = self.gpu.mod_switch(ring, &x.gpu, shape, target);
        let cpu = self.cpu.mod_switch(ring, &x.cpu, shape, target);
        self.pair(Op::ModSwitch, gpu, cpu, &format!("{} to {target}", describe(ring, shape)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arith::primes::ntt_primes, engine::cpu::CpuBackend};

    fn dual() -> DualBackend<CpuBackend, CpuBackend> {
        DualBackend::new(CpuBackend::new(None), CpuBackend::new(None))
    }

    #[test]
    fn a_difference_is_found_and_placed() {
        let backend = dual();
        let ring = Arc::new(RnsRing::new(16, &ntt_primes(20, 16, 1).unwrap()).unwrap());
        let (gpu, mut words) = (vec![5u32; 16], vec![5u32; 16]);
        words[11] = 6;
        let wrong =
            Buffer::new(16, Pair { gpu: backend.gpu.upload(&gpu).unwrap(), cpu: backend.cpu.upload(&words).unwrap() });
        let shape = Shape { polys: 1, limbs: 1 };
        match backend.add(&ring, &wrong, &wrong, shape).unwrap_err() {
            EngineError::Mismatch { operation: "add", index: 11, gpu: 10, cpu: 12, detail } => {
                assert_eq!(detail, "N = 16, 1 polynomials, 1 limbs");
            }
            other => panic!("{other}"),
        }
        assert!(matches!(backend.download(&wrong), Err(EngineError::Mismatch { index: 11, .. })));
    }

    #[test]
    fn counts_runs_and_comparisons() {
        let backend = dual();
        let x = backend.upload(&[1, 2, 3]).unwrap();
        assert_eq!(backend.download(&x).unwrap(), [1, 2, 3]);
        let ops = backend.ops();
        let upload = ops.iter().find(|c| c.name == "upload").unwrap();
        assert_eq!((upload.cpu, upload.compared), (2, 1));
    }

    #[test]
    fn an_error_on_one_side_says_which() {
        let wrong = || Err(EngineError::Shape { operation: "add", detail: "no".into() });
        let e = both(Op::Add, wrong(), Ok(())).unwrap_err();
        assert_eq!(e.to_string(), "add: the device reported a validation error: only the GPU failed: add: no");
        assert!(matches!(both::<()>(Op::Add, wrong(), wrong()), Err(EngineError::Shape { .. })));
    }
}
