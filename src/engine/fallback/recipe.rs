//! An operation as a value: what is needed to run it, and to run it again elsewhere.

use std::{ops::Range, sync::Arc};

use zeroize::Zeroizing;

use crate::engine::{
    Backend, Buffer, EngineError, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, Op, Result,
    RingGemmShape, RingOperand, RnsRing, Rotation, Shape,
};

/// An operation of [`Backend`] with everything but its buffers. Integers of an expansion are weights, and wiped on drop.
pub(super) enum Recipe {
    NttForward(Arc<RnsRing>, Shape),
    NttInverse(Arc<RnsRing>, Shape),
    Add(Arc<RnsRing>, Shape),
    Sub(Arc<RnsRing>, Shape),
    Mul(Arc<RnsRing>, Shape),
    MulAccumulate(Arc<RnsRing>, Shape),
    MulScalar(Arc<RnsRing>, Shape, Vec<u32>),
    MatmulPlain(Arc<RnsRing>, MatmulShape),
    Expand(Arc<RnsRing>, usize, Zeroizing<Vec<i64>>, Vec<u32>),
    PackStep(Arc<RnsRing>, Shape, usize),
    Automorphism(Arc<RnsRing>, Shape, usize),
    AutomorphismNtt(Arc<RnsRing>, Shape, usize),
    KeySwitch(Arc<RnsRing>, KeySwitchShape),
    Rotate(Arc<RnsRing>, KeySwitchShape, Vec<Rotation>),
    BaseConvert(Arc<RnsRing>, usize, Range<usize>, Range<usize>),
    ModularGemm(Arc<RnsRing>, GemmShape),
    RingGemm(RingOperand, RingGemmShape),
    ExpandMatrix(Arc<RnsRing>, ExpandShape),
    Gather(usize, Vec<GatherItem>),
    ModSwitch(Arc<RnsRing>, Shape, usize),
}

impl Recipe {
    /// Which operation.
    pub fn op(&self) -> Op {
        match self {
            Self::NttForward(..) => Op::NttForward,
            Self::NttInverse(..) => Op::NttInverse,
            Self::Add(..) => Op::Add,
            Self::Sub(..) => Op::Sub,
            Self::Mul(..) => Op::Mul,
            Self::MulAccumulate(..) => Op::MulAccumulate,
            Self::MulScalar(..) => Op::MulScalar,
            Self::MatmulPlain(..) => Op::MatmulPlain,
            Self::Expand(..) => Op::Expand,
            Self::PackStep(..) => Op::PackStep,
            Self::Automorphism(..) => Op::Automorphism,
            Self::AutomorphismNtt(..) => Op::AutomorphismNtt,
            Self::KeySwitch(..) => Op::KeySwitch,
            Self::Rotate(..) => Op::Rotate,
            Self::BaseConvert(..) => Op::BaseConvert,
            Self::ModularGemm(..) => Op::ModularGemm,
            Self::RingGemm(..) => Op::RingGemm,
            Self::ExpandMatrix(..) => Op::ExpandMatrix,
            Self::Gather(..) => Op::Gather,
            Self::ModSwitch(..) => Op::ModSwitch,
        }
    }

    /// Bytes of host memory that it takes beyond a few words.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Expand(_, _, values, positions) => size_of_val(&values[..]) + size_of_val(&positions[..]),
            Self::Rotate(_, _, rotations) => size_of_val(&rotations[..]),
            Self::Gather(_, items) => size_of_val(&items[..]),
            _ => 0,
        };
        bytes as u64
    }

    /// Runs it: one result, two of `pack_step`.
    pub fn run(&self, on: &dyn Backend, inputs: &[Buffer]) -> Result<Vec<Buffer>> {
        let one = match (self, inputs) {
            (Self::NttForward(ring, shape), [x]) => on.ntt_forward(ring, x, *shape),
            (Self::NttInverse(ring, shape), [x]) => on.ntt_inverse(ring, x, *shape),
            (Self::Add(ring, shape), [a, b]) => on.add(ring, a, b, *shape),
            (Self::Sub(ring, shape), [a, b]) => on.sub(ring, a, b, *shape),
            (Self::Mul(ring, shape), [a, b]) => on.mul(ring, a, b, *shape),
            (Self::MulAccumulate(ring, shape), [acc, a, b]) => on.mul_accumulate(ring, acc, a, b, *shape),
            (Self::MulScalar(ring, shape, scalars), [x]) => on.mul_scalar(ring, x, *shape, scalars),
            (Self::MatmulPlain(ring, shape), [ct, plain]) => on.matmul_plain(ring, ct, plain, *shape),
            (Self::Expand(ring, limbs, values, positions), []) => on.expand(ring, *limbs, values, positions),
            (Self::PackStep(ring, shape, shift), [x]) => {
                return on.pack_step(ring, x, *shape, *shift).map(|(sum, difference)| vec![sum, difference]);
            }
            (Self::Automorphism(ring, shape, g), [x]) => on.automorphism(ring, x, *shape, *g),
            (Self::AutomorphismNtt(ring, shape, g), [x]) => on.automorphism_ntt(ring, x, *shape, *g),
            (Self::KeySwitch(ring, shape), [x, key]) => on.key_switch(ring, x, *shape, key),
            (Self::Rotate(ring, shape, rotations), [x, keys]) => on.rotate(ring, x, *shape, keys, rotations),
            (Self::BaseConvert(ring, polys, from, to), [x]) => {
                on.base_convert(ring, x, *polys, from.clone(), to.clone())
            }
            (Self::ModularGemm(ring, shape), [x, weights]) => on.modular_gemm(ring, x, weights, *shape),
            (Self::RingGemm(operand, shape), [a, b]) => on.ring_gemm(a, b, *operand, *shape),
            (Self::ExpandMatrix(ring, shape), [weights]) => on.expand_matrix(ring, weights, shape),
            (Self::Gather(item_words, items), sources) => {
                on.gather(&sources.iter().collect::<Vec<_>>(), *item_words, items)
            }
            (Self::ModSwitch(ring, shape, target), [x]) => on.mod_switch(ring, x, *shape, *target),
            (recipe, inputs) => {
                let detail = format!("{} inputs are not what the operation takes", inputs.len());
                Err(EngineError::Shape { operation: recipe.op().name(), detail })
            }
        };
        one.map(|buffer| vec![buffer])
    }
}
