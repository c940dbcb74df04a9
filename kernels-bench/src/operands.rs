//! Inputs of the cases, and what an operation must give on them.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, OnceLock},
};

use heliostat::{
    arith::primes::ntt_primes,
    engine::{Backend, Buffer, EngineError, RingOperand, RnsRing, small_words},
};

use crate::{
    Result,
    kernels::{self, Case, Kernel, Operands},
    reference,
};

/// A case with its data.
pub struct Prepared {
    /// The case.
    pub case: Case,
    /// The ring.
    pub ring: Arc<RnsRing>,
    /// Its inputs on the host.
    pub operands: Operands,
    /// What the operation must give.
    pub expected: Expected,
    /// Digest of the first whole result that had the expected parts.
    agreed: OnceLock<u64>,
}

/// Parts of a result that were computed apart, and the length of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Words of the result.
    pub words: usize,
    /// Word offsets and the words there.
    pub blocks: Vec<(usize, Vec<u32>)>,
}

impl Expected {
    /// The whole result.
    pub fn all(words: Vec<u32>) -> Self {
        Self { words: words.len(), blocks: vec![(0, words)] }
    }

    /// Whether a result has the length and the known words.
    pub fn matches(&self, result: &[u32]) -> bool {
        let same = |(at, words): &(usize, Vec<u32>)| result.get(*at..at + words.len()) == Some(words.as_slice());
        result.len() == self.words && !self.blocks.is_empty() && self.blocks.iter().all(same)
    }
}

/// Up to `count` of `0..all`, spread evenly, the first and the last among them.
pub fn sample(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|k| if count == 1 { 0 } else { k * (all - 1) / (count - 1) }).collect()
}

impl Prepared {
    /// Makes the inputs and, apart from the engine, the result.
    ///
    /// # Errors
    /// If the case has no such ring, or the references contradict each other.
    pub fn new(case: &Case) -> Result<Self> {
        let primes = ntt_primes(case.bits, case.n, case.moduli())
            .ok_or_else(|| format!("there are no {} such primes for N = {}", case.moduli(), case.n))?;
        let ring = Arc::new(RnsRing::new(case.n, &primes)?);
        let mut operands = operands(case, &ring);
        let expected = reference::expected(case, &ring, &mut operands)?;
        Ok(Self { case: *case, ring, operands, expected, agreed: OnceLock::new() })
    }

    /// The operands on a device.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn upload(&self, backend: &dyn Backend) -> Result<Vec<Buffer>, EngineError> {
        self.operands.buffers.iter().map(|words| backend.upload(words)).collect()
    }

    /// The operation, once.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn run(&self, backend: &dyn Backend, inputs: &[Buffer]) -> Result<Vec<Buffer>, EngineError> {
        kernels::run(&self.case, &self.ring, backend, &self.operands, inputs)
    }

    /// Runs the operation and compares: the known parts with what was computed apart, and the whole, word for word by its
    /// digest, with what every other device gave.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn verify(&self, backend: &dyn Backend, inputs: &[Buffer]) -> Result<bool, EngineError> {
        let mut words = Vec::with_capacity(self.expected.words);
        for buffer in self.run(backend, inputs)? {
            words.append(&mut backend.download(&buffer)?);
        }
        Ok(self.expected.matches(&words) && self.agrees(&words))
    }

    /// Whether a result is the one that others gave; the first one is believed.
    fn agrees(&self, words: &[u32]) -> bool {
        let mut digest = DefaultHasher::new();
        words.hash(&mut digest);
        let digest = digest.finish();
        *self.agreed.get_or_init(|| digest) == digest
    }
}

/// Random inputs, the same in every run.
fn operands(case: &Case, ring: &RnsRing) -> Operands {
    let mut random = Random(case.n as u64);
    let (n, limbs, batch) = (case.n, case.limbs, case.batch);
    let moduli = ring.moduli();
    // `polys` polynomials modulo the given limbs.
    let mut residues = |polys: usize, limbs: usize| -> Vec<u32> {
        let rows = (0..polys).flat_map(|_| &moduli[..limbs]);
        rows.flat_map(|m| (0..n).map(move |_| m)).map(|m| m.reduce(random.word() >> 1)).collect()
    };
    let mut out = Operands::default();
    out.buffers = match case.kernel {
        Kernel::NttForward
        | Kernel::NttInverse
        | Kernel::Automorphism
        | Kernel::AutomorphismNtt
        | Kernel::BaseConvert
        | Kernel::Gather
        | Kernel::ModSwitch { .. } => vec![residues(batch, limbs)],
        Kernel::Add | Kernel::Sub | Kernel::Mul => vec![residues(batch, limbs), residues(batch, limbs)],
        Kernel::MulAccumulate => vec![residues(batch, limbs), residues(batch, limbs), residues(batch, limbs)],
        Kernel::MulScalar => {
            out.scalars = moduli.iter().map(|m| m.value() - 2).collect();
            vec![residues(batch, limbs)]
        }
        Kernel::MatmulPlain { inputs, outputs } => {
            vec![residues(batch * inputs * 2, limbs), residues(batch * outputs * inputs, limbs)]
        }
        Kernel::Expand { positions } => {
            // An odd stride, so that the positions are distinct.
            out.positions = (0..positions).map(|i| (i * 5 % n) as u32).collect();
            out.values = (0..batch * positions).map(|_| random.small().into()).collect();
            Vec::new()
        }
        Kernel::PackStep => vec![residues(4 * batch, limbs)],
        Kernel::KeySwitch { special, digit_limbs } => {
            let digits = limbs.div_ceil(digit_limbs);
            vec![residues(batch, limbs), residues(digits * 2, limbs + special)]
        }
        Kernel::Rotate { rotations } => {
            vec![residues(2 * batch, limbs), residues(rotations * limbs * 2, limbs + 1)]
        }
        Kernel::ModularGemm { inputs, outputs } => {
            let x = residues(inputs * batch, limbs);
            vec![x, random.small_matrix(outputs * inputs)]
        }
        Kernel::RingGemm { bits, rows, inner, cols, operand } => {
            let element = if bits <= 32 { 1 } else { 2 };
            let mut words = |count: usize| (0..count).map(|_| random.word() as u32).collect::<Vec<_>>();
            let a = words(batch * rows * inner * element);
            let b = match operand {
                RingOperand::Ring => words(batch * inner * cols * element),
                RingOperand::Small => random.small_matrix(batch * inner * cols),
            };
            vec![a, b]
        }
        Kernel::ExpandMatrix { inner, cols, .. } => vec![random.small_matrix(inner * cols)],
    };
    out.scalars.truncate(limbs);
    out
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): test data, not secrets.
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A weight: 12 bits and a sign.
    pub fn small(&mut self) -> i16 {
        (self.word() % 4095) as i16 - 2047
    }

    /// So many weights as a device keeps them.
    fn small_matrix(&mut self, count: usize) -> Vec<u32> {
        small_words(&(0..count).map(|_| self.small()).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_must_have_the_length_and_every_known_word() {
        let expected = Expected { words: 4, blocks: vec![(1, vec![7]), (3, vec![9])] };
        assert!(expected.matches(&[0, 7, 5, 9]));
        for wrong in [&[0, 7, 5, 8][..], &[0, 6, 5, 9], &[0, 7, 5], &[0, 7, 5, 9, 0]] {
            assert!(!expected.matches(wrong), "{wrong:?}");
        }
        assert!(!Expected { words: 1, blocks: Vec::new() }.matches(&[0]), "nothing known is nothing verified");
    }

    #[test]
    fn devices_must_agree_beyond_the_known_parts() {
        let case =
            Case { kernel: Kernel::KeySwitch { special: 1, digit_limbs: 1 }, n: 32, bits: 20, limbs: 2, batch: 5 };
        let prepared = Prepared::new(&case).unwrap();
        let known: usize = prepared.expected.blocks.iter().map(|(_, words)| words.len()).sum();
        assert!(known < prepared.expected.words);
        let cpu = heliostat::engine::cpu::CpuBackend::new(Some(1));
        let inputs = prepared.upload(&cpu).unwrap();
        assert!(prepared.verify(&cpu, &inputs).unwrap() && prepared.verify(&cpu, &inputs).unwrap());
        let mut words = cpu.download(&prepared.run(&cpu, &inputs).unwrap()[0]).unwrap();
        assert!(prepared.agrees(&words));
        // A polynomial in the middle, which the reference did not compute.
        let at = 2 * 2 * 2 * 32;
        words[at] ^= 1;
        assert!(prepared.expected.matches(&words) && !prepared.agrees(&words));
    }

    #[test]
    fn samples_reach_both_ends() {
        assert_eq!(sample(10, 3), [0, 4, 9]);
        assert_eq!((sample(2, 5), sample(1, 3), sample(5, 1)), (vec![0, 1], vec![0], vec![0]));
    }
}
