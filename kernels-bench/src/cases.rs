//! What is measured: kernels, sizes, inputs and the results that they must have.

use std::{error::Error, sync::Arc};

use heliostat::{
    arith::primes::ntt_primes,
    engine::{Backend, Buffer, EngineError, KeySwitchShape, MatmulShape, RnsRing, Shape},
};

use crate::{reference, report::Work};

/// An operation of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Coefficient to NTT domain.
    NttForward,
    /// NTT to coefficient domain.
    NttInverse,
    /// Residue-wise product.
    Mul,
    /// Plaintext-ciphertext matrix product of so many input and output ciphertexts.
    MatmulPlain {
        /// Input ciphertexts.
        inputs: usize,
        /// Output ciphertexts.
        outputs: usize,
    },
    /// Hybrid key switch, one special prime above the case's limbs.
    KeySwitch,
}

impl Kernel {
    /// Name of the engine's operation.
    pub fn name(self) -> &'static str {
        match self {
            Self::NttForward => "ntt_forward",
            Self::NttInverse => "ntt_inverse",
            Self::Mul => "mul",
            Self::MatmulPlain { .. } => "matmul_plain",
            Self::KeySwitch => "key_switch",
        }
    }

    /// Whether the operation is a bare transform, which an NTT library does as well.
    pub fn is_transform(self) -> bool {
        matches!(self, Self::NttForward | Self::NttInverse)
    }
}

/// One kernel at one size.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The operation.
    pub kernel: Kernel,
    /// Ring dimension.
    pub n: usize,
    /// Bits of each modulus.
    pub bits: u32,
    /// Limbs of the data.
    pub limbs: usize,
    /// Polynomials; groups of a matrix product.
    pub batch: usize,
}

impl Case {
    /// The cases of a run: the named parameter sets, or small ones.
    pub fn all(quick: bool) -> Vec<Self> {
        use Kernel::{KeySwitch, MatmulPlain, Mul, NttForward, NttInverse};
        let case = |kernel, n, bits, limbs, batch| Self { kernel, n, bits, limbs, batch };
        if quick {
            return vec![
                case(NttForward, 4096, 27, 2, 2),
                case(NttInverse, 4096, 27, 2, 2),
                case(Mul, 1024, 30, 2, 4),
                case(MatmulPlain { inputs: 2, outputs: 3 }, 1024, 30, 2, 2),
                case(KeySwitch, 1024, 30, 3, 2),
            ];
        }
        let transforms =
            [(4096, 27, 4, 64), (8192, 30, 6, 1), (8192, 30, 6, 64), (16384, 30, 10, 32), (32768, 30, 29, 8)];
        let mut all = Vec::new();
        for kernel in [NttForward, NttInverse] {
            all.extend(transforms.map(|(n, bits, limbs, batch)| case(kernel, n, bits, limbs, batch)));
        }
        all.extend([
            case(Mul, 8192, 30, 5, 64),
            case(MatmulPlain { inputs: 2, outputs: 32 }, 8192, 30, 5, 1),
            case(MatmulPlain { inputs: 12, outputs: 12 }, 8192, 30, 5, 1),
            case(KeySwitch, 8192, 30, 5, 1),
            case(KeySwitch, 8192, 30, 5, 32),
            case(KeySwitch, 16384, 30, 9, 8),
        ]);
        all
    }

    /// Makes the inputs and, apart from the engine where it can be, the result.
    pub fn prepare(&self) -> Result<Prepared, Box<dyn Error>> {
        let special = usize::from(self.kernel == Kernel::KeySwitch);
        let primes = ntt_primes(self.bits, self.n, self.limbs + special).ok_or("no such primes")?;
        let ring = Arc::new(RnsRing::new(self.n, &primes)?);
        let mut random = Random(self.n as u64);
        let mut batch = |polys: usize, limbs: usize| -> Vec<u32> {
            let moduli = &ring.moduli()[..limbs];
            let rows = (0..polys).flat_map(|_| moduli).flat_map(|m| (0..self.n).map(move |_| m));
            rows.map(|m| m.reduce(random.next() >> 1)).collect()
        };
        let (limbs, polys) = (self.limbs, self.batch);
        let (inputs, expected) = match self.kernel {
            Kernel::NttForward => {
                let x = batch(polys, limbs);
                let transform = reference::ntt_forward(&ring, &x, self.shape())?;
                (vec![x], transform)
            }
            Kernel::NttInverse => {
                let x = batch(polys, limbs);
                let transform = reference::ntt_forward(&ring, &x, self.shape())?;
                (vec![transform], x)
            }
            Kernel::Mul => {
                let (a, b) = (batch(polys, limbs), batch(polys, limbs));
                let product = reference::mul(&ring, &a, &b, limbs);
                (vec![a, b], product)
            }
            Kernel::MatmulPlain { inputs, outputs } => {
                let (ct, plain) = (batch(polys * inputs * 2, limbs), batch(polys * outputs * inputs, limbs));
                let product = reference::matmul_plain(&ring, &ct, &plain, self.matmul(inputs, outputs));
                (vec![ct, plain], product)
            }
            Kernel::KeySwitch => {
                let (x, key) = (batch(polys, limbs), batch(limbs * 2, limbs + 1));
                let switched = reference::key_switch(&ring, &x, polys, &key)?;
                (vec![x, key], switched)
            }
        };
        Ok(Prepared { case: *self, ring, inputs, expected })
    }

    /// What a report says of it.
    pub fn work(&self) -> Work {
        let size = match self.kernel {
            Kernel::MatmulPlain { inputs, outputs } => Some(format!("{inputs}->{outputs}")),
            _ => None,
        };
        Work { kernel: self.kernel.name(), n: self.n, limbs: self.limbs, batch: self.batch, size }
    }

    /// The shape of the operands of one-shape operations.
    fn shape(&self) -> Shape {
        Shape { polys: self.batch, limbs: self.limbs }
    }

    fn matmul(&self, inputs: usize, outputs: usize) -> MatmulShape {
        MatmulShape { groups: self.batch, inputs, outputs, limbs: self.limbs }
    }
}

/// A case with its data.
pub struct Prepared {
    case: Case,
    /// The ring.
    pub ring: Arc<RnsRing>,
    /// Operands, in the order of the engine's operation.
    pub inputs: Vec<Vec<u32>>,
    /// What the operation must give.
    pub expected: Vec<u32>,
}

impl Prepared {
    /// The operands on a device.
    pub fn upload(&self, backend: &dyn Backend) -> Result<Vec<Buffer>, EngineError> {
        self.inputs.iter().map(|input| backend.upload(input)).collect()
    }

    /// The operation, once.
    pub fn run(&self, backend: &dyn Backend, inputs: &[Buffer]) -> Result<Buffer, EngineError> {
        let (case, ring) = (&self.case, &self.ring);
        match case.kernel {
            Kernel::NttForward => backend.ntt_forward(ring, &inputs[0], case.shape()),
            Kernel::NttInverse => backend.ntt_inverse(ring, &inputs[0], case.shape()),
            Kernel::Mul => backend.mul(ring, &inputs[0], &inputs[1], case.shape()),
            Kernel::MatmulPlain { inputs: i, outputs: o } => {
                backend.matmul_plain(ring, &inputs[0], &inputs[1], case.matmul(i, o))
            }
            Kernel::KeySwitch => {
                backend.key_switch(ring, &inputs[0], KeySwitchShape::full(ring, case.batch), &inputs[1])
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): test data, not secrets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
