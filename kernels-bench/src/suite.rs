//! Which cases a run has: every kernel over ring dimensions, and some over limbs and batches.

use heliostat::engine::RingOperand;

use crate::{
    args::Arguments,
    devices::Devices,
    kernels::{Case, Kernel},
};

/// Bits of the cases' moduli.
const BITS: u32 = 30;

/// Ring dimension of the sweeps over limbs and batches.
const SWEEP: usize = 8192;

/// How large the cases are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Ring dimensions.
    pub dimensions: Vec<usize>,
    /// Limbs of the data.
    pub limbs: usize,
    /// Words of an operand, about.
    pub words: usize,
    /// Whether limbs and batches are swept as well.
    pub sweeps: bool,
}

impl Scale {
    /// What suits the run and its slowest device.
    pub fn of(arguments: &Arguments, devices: &Devices) -> Self {
        let dimensions = arguments.dimensions();
        let small = arguments.quick || devices.has_software_gpu();
        let words = match (small, devices.has_real_gpu()) {
            (true, _) => 1 << 15,
            (false, true) => 1 << 24,
            (false, false) => 1 << 21,
        };
        Self { dimensions, limbs: if small { 3 } else { 5 }, words, sweeps: !small }
    }
}

/// All cases at that scale, kernel by kernel.
pub fn cases(scale: &Scale) -> Vec<Case> {
    let mut all = Vec::new();
    let limbs = scale.limbs;
    let batch = |n: usize, limbs: usize| (scale.words / (n * limbs)).max(1);
    // Per dimension, the kernels whose sizes follow from it.
    for kernel in [
        Kernel::NttForward,
        Kernel::NttInverse,
        Kernel::Add,
        Kernel::Sub,
        Kernel::Mul,
        Kernel::MulAccumulate,
        Kernel::MulScalar,
        Kernel::MatmulPlain { inputs: 4, outputs: 4 },
        Kernel::Expand { positions: 256 },
        Kernel::PackStep,
        Kernel::Automorphism,
        Kernel::AutomorphismNtt,
        Kernel::KeySwitch { special: 1, digit_limbs: 1 },
        Kernel::KeySwitch { special: 2, digit_limbs: 2 },
        Kernel::Rotate { rotations: 4 },
        Kernel::BaseConvert,
        Kernel::ModularGemm { inputs: 64, outputs: 64 },
        Kernel::ExpandMatrix { inner: 0, cols: 0, block: 64, columns: 4 },
        Kernel::Gather,
        Kernel::ModSwitch { target: 1 },
    ] {
        for &n in &scale.dimensions {
            let batch = batch(n, limbs);
            let case = |kernel, batch: usize| Case { kernel, n, bits: BITS, limbs, batch: batch.max(1) };
            all.push(match kernel {
                Kernel::MatmulPlain { .. } => case(kernel, batch / 16),
                Kernel::PackStep => case(kernel, batch / 4),
                // Digits and keys are several times as large as the batch.
                Kernel::KeySwitch { .. } | Kernel::Rotate { .. } => case(kernel, batch / 8),
                Kernel::ModularGemm { inputs, outputs } => {
                    // Items are one ciphertext, as many as the words allow.
                    let items = |most: usize| (batch / 2).clamp(4, most);
                    case(Kernel::ModularGemm { inputs: items(inputs), outputs: items(outputs) }, 2)
                }
                Kernel::ExpandMatrix { block, columns, .. } => {
                    // As many columns of polynomials as the words allow, two blocks high.
                    let cols = (batch / 2).max(1) * columns;
                    case(Kernel::ExpandMatrix { inner: 2 * block, cols, block, columns }, 1)
                }
                kernel => case(kernel, batch),
            });
        }
    }
    if scale.sweeps && scale.dimensions.contains(&SWEEP) {
        sweep(&mut all, scale);
    }
    all.extend(ring_gemms(scale));
    all
}

/// Limbs from 1 to 32, and batches from one polynomial up, at one dimension.
fn sweep(all: &mut Vec<Case>, scale: &Scale) {
    let n = SWEEP;
    let batch = |limbs: usize| (scale.words / (n * limbs)).max(1);
    let case = |kernel, limbs, batch| Case { kernel, n, bits: BITS, limbs, batch };
    let switch = Kernel::KeySwitch { special: 1, digit_limbs: 1 };
    for limbs in [1, 2, 16, 32] {
        all.push(case(Kernel::NttForward, limbs, batch(limbs)));
        all.push(case(Kernel::Mul, limbs, batch(limbs)));
    }
    for limbs in [2, 9, 16] {
        all.push(case(switch, limbs, (batch(limbs) / 8).max(1)));
    }
    for batch in [1, 8] {
        all.push(case(Kernel::NttForward, scale.limbs, batch));
        all.push(case(Kernel::Rotate { rotations: 1 }, scale.limbs, batch));
    }
}

/// Products of the online phase: shares times 16-bit weights, and shares times shares.
fn ring_gemms(scale: &Scale) -> impl Iterator<Item = Case> {
    let full = scale.words > 1 << 15;
    let (rows, inner, cols) = if full { (128, 768, 768) } else { (16, 96, 64) };
    let kernels =
        [(32, RingOperand::Small), (32, RingOperand::Ring), (64, RingOperand::Small), (64, RingOperand::Ring)];
    kernels.into_iter().map(move |(bits, operand)| Case {
        kernel: Kernel::RingGemm { bits, rows, inner, cols, operand },
        // The ring of polynomials plays no part.
        n: 1024,
        bits: BITS,
        limbs: 1,
        batch: 1,
    })
}

/// What the bars compare with libraries on the CPU: batched transforms of 5 + 1 limbs, a modular GEMM.
pub fn bar_cases(quick: bool) -> Vec<Case> {
    let transform = |kernel| Case { kernel, n: SWEEP, bits: BITS, limbs: 6, batch: 16 };
    let gemm = match quick {
        // Too small for the last tenth of either speed.
        true => {
            Case { kernel: Kernel::ModularGemm { inputs: 128, outputs: 128 }, n: 4096, bits: 27, limbs: 2, batch: 2 }
        }
        // Batch-column form at N = 4096 with 4 limbs: 768 x 768 x 32768.
        false => {
            Case { kernel: Kernel::ModularGemm { inputs: 768, outputs: 768 }, n: 4096, bits: 27, limbs: 4, batch: 2 }
        }
    };
    vec![transform(Kernel::NttForward), transform(Kernel::NttInverse), gemm]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scale(words: usize, limbs: usize, sweeps: bool) -> Scale {
        Scale { dimensions: vec![1024, 8192, 65536], limbs, words, sweeps }
    }

    #[test]
    fn every_kernel_is_in_every_run_and_no_case_comes_twice() {
        for scale in [scale(1 << 15, 3, false), scale(1 << 21, 5, true), scale(1 << 24, 5, true)] {
            let cases = cases(&scale);
            let names: BTreeSet<_> = cases.iter().map(|case| case.kernel.name()).collect();
            assert_eq!(names, BTreeSet::from(Kernel::NAMES));
            for (i, case) in cases.iter().enumerate() {
                assert!(!cases[..i].contains(case), "{case:?}");
                assert!(case.batch > 0 && case.moduli() <= 64, "{case:?}");
            }
        }
    }
}
