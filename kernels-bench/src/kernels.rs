//! The engine's operations as things to measure: their names, shapes and calls.

use std::sync::Arc;

use heliostat::engine::{
    Backend, Buffer, EngineError, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, RingGemmShape,
    RingOperand, RnsRing, Rotation, Shape,
};

/// An operation of the engine with the sizes that a [`Case`] does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Coefficient to NTT domain.
    NttForward,
    /// NTT to coefficient domain.
    NttInverse,
    /// Residue-wise sum.
    Add,
    /// Residue-wise difference.
    Sub,
    /// Residue-wise product.
    Mul,
    /// Residue-wise product added to a third operand.
    MulAccumulate,
    /// Product with a constant a limb.
    MulScalar,
    /// Plaintext-ciphertext matrix product; the batch counts groups.
    MatmulPlain {
        /// Input ciphertexts.
        inputs: usize,
        /// Output ciphertexts.
        outputs: usize,
    },
    /// Sparse polynomials of small integers.
    Expand {
        /// Coefficients that are not zero.
        positions: usize,
    },
    /// One level of output packing; the batch counts pairs of ciphertexts.
    PackStep,
    /// `X -> X^g` in the coefficient domain.
    Automorphism,
    /// `X -> X^g` in the NTT domain.
    AutomorphismNtt,
    /// Hybrid key switch; special primes come above the case's limbs.
    KeySwitch {
        /// Special primes.
        special: usize,
        /// Limbs of a digit.
        digit_limbs: usize,
    },
    /// Hoisted rotations of each ciphertext of the batch; one special prime above the case's limbs.
    Rotate {
        /// Rotations of each ciphertext, each with a key of its own.
        rotations: usize,
    },
    /// Base conversion from the case's limbs to as many others.
    BaseConvert,
    /// Product with a matrix of small integers; the batch is the polynomials of an item.
    ModularGemm {
        /// Input items.
        inputs: usize,
        /// Output items.
        outputs: usize,
    },
    /// Matrix product modulo `2^bits`; the batch counts products, N and limbs do not matter.
    RingGemm {
        /// Bits of the ring.
        bits: u32,
        /// Rows of the left operand.
        rows: usize,
        /// Inner dimension.
        inner: usize,
        /// Columns of the right operand.
        cols: usize,
        /// What the right operand holds.
        operand: RingOperand,
    },
    /// Weight polynomials of `coefficient` packing from small integers.
    ExpandMatrix {
        /// Rows of the matrix.
        inner: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Rows that share a polynomial.
        block: usize,
        /// Columns that share a polynomial.
        columns: usize,
    },
    /// Copies of polynomials in another order.
    Gather,
    /// Modulus switch down to so many limbs.
    ModSwitch {
        /// Limbs that stay.
        target: usize,
    },
}

impl Kernel {
    /// Names of all operations, in the order of a run.
    pub const NAMES: [&'static str; 20] = [
        "ntt_forward",
        "ntt_inverse",
        "add",
        "sub",
        "mul",
        "mul_accumulate",
        "mul_scalar",
        "matmul_plain",
        "expand",
        "pack_step",
        "automorphism",
        "automorphism_ntt",
        "key_switch",
        "rotate",
        "base_convert",
        "modular_gemm",
        "ring_gemm",
        "expand_matrix",
        "gather",
        "mod_switch",
    ];

    /// Name of the engine's operation.
    pub fn name(self) -> &'static str {
        match self {
            Self::NttForward => "ntt_forward",
            Self::NttInverse => "ntt_inverse",
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::MulAccumulate => "mul_accumulate",
            Self::MulScalar => "mul_scalar",
            Self::MatmulPlain { .. } => "matmul_plain",
            Self::Expand { .. } => "expand",
            Self::PackStep => "pack_step",
            Self::Automorphism => "automorphism",
            Self::AutomorphismNtt => "automorphism_ntt",
            Self::KeySwitch { .. } => "key_switch",
            Self::Rotate { .. } => "rotate",
            Self::BaseConvert => "base_convert",
            Self::ModularGemm { .. } => "modular_gemm",
            Self::RingGemm { .. } => "ring_gemm",
            Self::ExpandMatrix { .. } => "expand_matrix",
            Self::Gather => "gather",
            Self::ModSwitch { .. } => "mod_switch",
        }
    }

    /// Whether the operation is a bare transform, which an NTT library does as well.
    pub fn is_transform(self) -> bool {
        matches!(self, Self::NttForward | Self::NttInverse)
    }
}

/// One kernel at one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The operation.
    pub kernel: Kernel,
    /// Ring dimension.
    pub n: usize,
    /// Bits of each modulus.
    pub bits: u32,
    /// Limbs of the data.
    pub limbs: usize,
    /// Polynomials, or what the kernel says.
    pub batch: usize,
}

impl Case {
    /// Moduli of the ring that the case needs.
    pub fn moduli(&self) -> usize {
        match self.kernel {
            Kernel::KeySwitch { special, .. } => self.limbs + special,
            Kernel::Rotate { .. } => self.limbs + 1,
            Kernel::BaseConvert => 2 * self.limbs,
            _ => self.limbs,
        }
    }

    /// What the sizes of the kernel's own are, for reports.
    pub fn size(&self) -> Option<String> {
        match self.kernel {
            Kernel::MatmulPlain { inputs, outputs } => Some(format!("{inputs} to {outputs}")),
            Kernel::Expand { positions } => Some(format!("{positions} of N")),
            Kernel::KeySwitch { special, digit_limbs } => {
                Some(format!("digits of {digit_limbs}, {special} special")).filter(|_| (special, digit_limbs) != (1, 1))
            }
            Kernel::Rotate { rotations } => Some(format!("{rotations} each")),
            Kernel::BaseConvert => Some(format!("{0} to {0} limbs", self.limbs)),
            Kernel::ModularGemm { inputs, outputs } => Some(format!("{outputs}x{inputs}x{}", self.gemm_columns())),
            Kernel::RingGemm { bits, rows, inner, cols, operand } => {
                let weights = if operand == RingOperand::Small { ", 16-bit weights" } else { "" };
                Some(format!("{rows}x{inner}x{cols} mod 2^{bits}{weights}"))
            }
            Kernel::ExpandMatrix { inner, cols, block, columns } => {
                Some(format!("{inner}x{cols} in {block}x{columns}"))
            }
            Kernel::ModSwitch { target } => Some(format!("to {target}")),
            _ => None,
        }
    }

    /// Columns of a modular GEMM: the residues of an item.
    pub fn gemm_columns(&self) -> usize {
        self.batch * self.limbs * self.n
    }

    /// The shape of the operands of one-shape operations.
    pub fn shape(&self) -> Shape {
        let polys = if self.kernel == Kernel::PackStep { 4 * self.batch } else { self.batch };
        Shape { polys, limbs: self.limbs }
    }

    /// Sizes of a plaintext-ciphertext product.
    pub fn matmul(&self, inputs: usize, outputs: usize) -> MatmulShape {
        MatmulShape { groups: self.batch, inputs, outputs, limbs: self.limbs }
    }

    /// Sizes of a key switch.
    pub fn key_switch(&self, special: usize, digit_limbs: usize) -> KeySwitchShape {
        KeySwitchShape { polys: self.batch, limbs: self.limbs, special, digit_limbs }
    }

    /// The rotations of a batch: every ciphertext under every key, the elements powers of 3.
    pub fn rotations(&self, rotations: usize) -> Vec<Rotation> {
        let element = |key| (0..=key).fold(1, |g, _| g * 3 % (2 * self.n));
        let of = |input| (0..rotations).map(move |key| Rotation { input, element: element(key), key });
        (0..self.batch).flat_map(of).collect()
    }

    /// Sizes of the whole matrix's weight polynomials.
    pub fn expansion(&self, inner: usize, cols: usize, block: usize, columns: usize) -> ExpandShape {
        let (outputs, inputs) = (0..cols.div_ceil(columns), 0..inner.div_ceil(block));
        ExpandShape { inner, cols, block, columns, limbs: self.limbs, outputs, inputs }
    }

    /// Items of a gather: the batch backwards, the last one zeros.
    pub fn items(&self) -> Vec<GatherItem> {
        (0..self.batch).map(|i| (i + 1 < self.batch).then_some((0, self.batch - 1 - i))).collect()
    }
}

/// A case's operands on the host.
#[derive(Clone, Debug, Default)]
pub struct Operands {
    /// What is uploaded, in the order of the engine's operation.
    pub buffers: Vec<Vec<u32>>,
    /// Constants of [`Kernel::MulScalar`].
    pub scalars: Vec<u32>,
    /// Values of [`Kernel::Expand`].
    pub values: Vec<i64>,
    /// Positions of [`Kernel::Expand`].
    pub positions: Vec<u32>,
}

/// The Galois element of the automorphism kernels.
pub const ELEMENT: usize = 5;

/// The monomial of [`Kernel::PackStep`].
pub const SHIFT: usize = 3;

/// The operation, once, on operands that were uploaded.
///
/// # Errors
/// Whatever the device reports.
pub fn run(
    case: &Case,
    ring: &Arc<RnsRing>,
    backend: &dyn Backend,
    operands: &Operands,
    x: &[Buffer],
) -> Result<Vec<Buffer>, EngineError> {
    let shape = case.shape();
    let one = match case.kernel {
        Kernel::NttForward => backend.ntt_forward(ring, &x[0], shape),
        Kernel::NttInverse => backend.ntt_inverse(ring, &x[0], shape),
        Kernel::Add => backend.add(ring, &x[0], &x[1], shape),
        Kernel::Sub => backend.sub(ring, &x[0], &x[1], shape),
        Kernel::Mul => backend.mul(ring, &x[0], &x[1], shape),
        Kernel::MulAccumulate => backend.mul_accumulate(ring, &x[0], &x[1], &x[2], shape),
        Kernel::MulScalar => backend.mul_scalar(ring, &x[0], shape, &operands.scalars),
        Kernel::MatmulPlain { inputs, outputs } => {
            backend.matmul_plain(ring, &x[0], &x[1], case.matmul(inputs, outputs))
        }
        Kernel::Expand { .. } => backend.expand(ring, case.limbs, &operands.values, &operands.positions),
        Kernel::PackStep => {
            return backend.pack_step(ring, &x[0], shape, SHIFT).map(|(sum, difference)| vec![sum, difference]);
        }
        Kernel::Automorphism => backend.automorphism(ring, &x[0], shape, ELEMENT),
        Kernel::AutomorphismNtt => backend.automorphism_ntt(ring, &x[0], shape, ELEMENT),
        Kernel::KeySwitch { special, digit_limbs } => {
            backend.key_switch(ring, &x[0], case.key_switch(special, digit_limbs), &x[1])
        }
        Kernel::Rotate { rotations } => {
            backend.rotate(ring, &x[0], case.key_switch(1, 1), &x[1], &case.rotations(rotations))
        }
        Kernel::BaseConvert => backend.base_convert(ring, &x[0], case.batch, 0..case.limbs, case.limbs..2 * case.limbs),
        Kernel::ModularGemm { inputs, outputs } => {
            let shape = GemmShape { inputs, outputs, polys: case.batch, limbs: case.limbs };
            backend.modular_gemm(ring, &x[0], &x[1], shape)
        }
        Kernel::RingGemm { bits, rows, inner, cols, operand } => {
            let shape = RingGemmShape { bits, batch: case.batch, rows, inner, cols };
            backend.ring_gemm(&x[0], &x[1], operand, shape)
        }
        Kernel::ExpandMatrix { inner, cols, block, columns } => {
            backend.expand_matrix(ring, &x[0], &case.expansion(inner, cols, block, columns))
        }
        Kernel::Gather => backend.gather(&[&x[0]], case.limbs * case.n, &case.items()),
        Kernel::ModSwitch { target } => backend.mod_switch(ring, &x[0], shape, target),
    }?;
    Ok(vec![one])
}
