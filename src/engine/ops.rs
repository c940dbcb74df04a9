//! Names and counters of the engine's operations, shared by every backend.

use std::sync::atomic::{AtomicU64, Ordering};

use super::OpCount;

/// An operation of [`super::Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Upload,
    Download,
    NttForward,
    NttInverse,
    Add,
    Sub,
    Mul,
    MulAccumulate,
    MulScalar,
    MatmulPlain,
    Expand,
    PackStep,
    Automorphism,
    AutomorphismNtt,
    KeySwitch,
    Rotate,
    BaseConvert,
    ModularGemm,
    RingGemm,
    ExpandMatrix,
    Gather,
    ModSwitch,
}

impl Op {
    /// Every operation, in the order of the trait.
    pub const ALL: [Self; 22] = [
        Self::Upload,
        Self::Download,
        Self::NttForward,
        Self::NttInverse,
        Self::Add,
        Self::Sub,
        Self::Mul,
        Self::MulAccumulate,
        Self::MulScalar,
        Self::MatmulPlain,
        Self::Expand,
        Self::PackStep,
        Self::Automorphism,
        Self::AutomorphismNtt,
        Self::KeySwitch,
        Self::Rotate,
        Self::BaseConvert,
        Self::ModularGemm,
        Self::RingGemm,
        Self::ExpandMatrix,
        Self::Gather,
        Self::ModSwitch,
    ];

    /// Name of the trait method, for counters and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::NttForward => "ntt_forward",
            Self::NttInverse => "ntt_inverse",
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::MulAccumulate => "mul_accumulate",
            Self::MulScalar => "mul_scalar",
            Self::MatmulPlain => "matmul_plain",
            Self::Expand => "expand",
            Self::PackStep => "pack_step",
            Self::Automorphism => "automorphism",
            Self::AutomorphismNtt => "automorphism_ntt",
            Self::KeySwitch => "key_switch",
            Self::Rotate => "rotate",
            Self::BaseConvert => "base_convert",
            Self::ModularGemm => "modular_gemm",
            Self::RingGemm => "ring_gemm",
            Self::ExpandMatrix => "expand_matrix",
            Self::Gather => "gather",
            Self::ModSwitch => "mod_switch",
        }
    }
}

/// Thread-safe counters behind [`super::Backend::ops`]: how often each operation ran, and where.
#[derive(Debug, Default)]
pub struct OpCounter {
    gpu: [AtomicU64; Op::ALL.len()],
    cpu: [AtomicU64; Op::ALL.len()],
    compared: [AtomicU64; Op::ALL.len()],
}

impl OpCounter {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one run of `op` on the CPU.
    pub fn cpu(&self, op: Op) {
        self.cpu[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one run of `op` on the GPU.
    pub fn gpu(&self, op: Op) {
        self.gpu[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one comparison of the two.
    pub fn compared(&self, op: Op) {
        self.compared[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The operations that ran at least once, in the order of the trait.
    pub fn snapshot(&self) -> Vec<OpCount> {
        let read = |counters: &[AtomicU64], op: Op| counters[op as usize].load(Ordering::Relaxed);
        Op::ALL
            .into_iter()
            .map(|op| OpCount {
                name: op.name(),
                gpu: read(&self.gpu, op),
                cpu: read(&self.cpu, op),
                compared: read(&self.compared, op),
            })
            .filter(|count| count.gpu + count.cpu + count.compared > 0)
            .collect()
    }
}

/// The counters of several backends as those of one, in the order of the trait.
pub(super) fn merged(sides: &[Vec<OpCount>]) -> Vec<OpCount> {
    let sum = |op: Op, field: fn(&OpCount) -> u64| {
        sides.iter().flatten().filter(|count| count.name == op.name()).map(field).sum()
    };
    let merge = |op: Op| OpCount {
        name: op.name(),
        gpu: sum(op, |c| c.gpu),
        cpu: sum(op, |c| c.cpu),
        compared: sum(op, |c| c.compared),
    };
    Op::ALL.into_iter().map(merge).filter(|count| count.gpu + count.cpu + count.compared > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_device_and_lists_what_ran() {
        assert!(Op::ALL.into_iter().enumerate().all(|(i, op)| op as usize == i));
        let counter = OpCounter::new();
        counter.cpu(Op::ModSwitch);
        counter.cpu(Op::ModSwitch);
        counter.gpu(Op::ModSwitch);
        counter.compared(Op::Add);
        let expected = [
            OpCount { name: "add", gpu: 0, cpu: 0, compared: 1 },
            OpCount { name: "mod_switch", gpu: 1, cpu: 2, compared: 0 },
        ];
        assert_eq!(counter.snapshot(), expected);
    }
}
