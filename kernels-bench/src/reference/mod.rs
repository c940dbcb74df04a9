//! What the kernels must give, computed apart from the engine: transforms by `concrete-ntt` called directly and checked
//! against the evaluation of the polynomial at sampled points, the rest by plain arithmetic on 64-bit or big integers.
//!
//! Cheap results are computed whole, the others for sampled polynomials or positions, the first and the last among them. The
//! rest of those is compared between devices.

mod ntt;
mod pointwise;
mod products;
mod switching;

use std::sync::Arc;

use heliostat::engine::RnsRing;

pub use self::ntt::Transforms;
use crate::{
    Result,
    kernels::{Case, Kernel, Operands},
    operands::Expected,
};

/// The result of a case. Replaces the operand of an inverse transform by a transform whose original is known.
///
/// # Errors
/// If the transform library contradicts the evaluation of the polynomial.
pub fn expected(case: &Case, ring: &Arc<RnsRing>, operands: &mut Operands) -> Result<Expected> {
    let limbs = case.limbs;
    if case.kernel == Kernel::NttInverse {
        let original = operands.buffers[0].clone();
        Transforms::new(ring, limbs)?.forward_batch(&mut operands.buffers[0]);
        return Ok(Expected::all(original));
    }
    let x = &operands.buffers;
    Ok(match case.kernel {
        Kernel::NttForward | Kernel::NttInverse => {
            let mut out = x[0].clone();
            Transforms::new(ring, limbs)?.forward_batch(&mut out);
            Expected::all(out)
        }
        Kernel::Add => Expected::all(pointwise::zip(ring, limbs, &x[0], &x[1], |p, a, b| (a + b) % p)),
        Kernel::Sub => Expected::all(pointwise::zip(ring, limbs, &x[0], &x[1], |p, a, b| (a + p - b) % p)),
        Kernel::Mul => Expected::all(pointwise::zip(ring, limbs, &x[0], &x[1], |p, a, b| a * b % p)),
        Kernel::MulAccumulate => {
            let product = pointwise::zip(ring, limbs, &x[1], &x[2], |p, a, b| a * b % p);
            Expected::all(pointwise::zip(ring, limbs, &x[0], &product, |p, a, b| (a + b) % p))
        }
        Kernel::MulScalar => {
            let scalars: Vec<u32> =
                x[0].chunks(case.n).enumerate().map(|(row, _)| operands.scalars[row % limbs]).collect();
            let scalars: Vec<u32> = scalars.into_iter().flat_map(|s| std::iter::repeat_n(s, case.n)).collect();
            Expected::all(pointwise::zip(ring, limbs, &x[0], &scalars, |p, a, b| a * b % p))
        }
        Kernel::MatmulPlain { inputs, outputs } => {
            products::matmul_plain(ring, &x[0], &x[1], case.matmul(inputs, outputs))
        }
        Kernel::Expand { .. } => Expected::all(pointwise::expand(ring, limbs, &operands.values, &operands.positions)),
        Kernel::PackStep => Expected::all(pointwise::pack_step(ring, limbs, &x[0], 2)),
        Kernel::Automorphism => Expected::all(pointwise::automorphism(ring, limbs, &x[0])),
        Kernel::AutomorphismNtt => {
            // Back, mapped by exponents, and forth: no index rule of the NTT domain is used.
            let transforms = Transforms::new(ring, limbs)?;
            let mut coefficients = x[0].clone();
            transforms.inverse_batch(&mut coefficients);
            let mut mapped = pointwise::automorphism(ring, limbs, &coefficients);
            transforms.forward_batch(&mut mapped);
            Expected::all(mapped)
        }
        Kernel::KeySwitch { special, digit_limbs } => {
            switching::key_switch(ring, case.key_switch(special, digit_limbs), &x[0], &x[1])?
        }
        Kernel::Rotate { rotations } => {
            switching::rotate(ring, case.key_switch(1, 1), &x[0], &x[1], &case.rotations(rotations))?
        }
        Kernel::BaseConvert => switching::base_convert(ring, limbs, &x[0]),
        Kernel::ModularGemm { inputs, outputs } => {
            products::modular_gemm(ring, limbs, &x[0], &x[1], (outputs, inputs), case.gemm_columns())
        }
        Kernel::RingGemm { bits, rows, inner, cols, operand } => {
            products::ring_gemm(bits, case.batch, (rows, inner, cols), &x[0], &x[1], operand)
        }
        Kernel::ExpandMatrix { inner, cols, block, columns } => {
            products::expand_matrix(ring, &x[0], &case.expansion(inner, cols, block, columns))?
        }
        Kernel::Gather => {
            let item = limbs * case.n;
            let copy = |item_of: &Option<(usize, usize)>| match item_of {
                Some((_, k)) => x[0][k * item..][..item].to_vec(),
                None => vec![0; item],
            };
            Expected::all(case.items().iter().flat_map(copy).collect())
        }
        Kernel::ModSwitch { target } => Expected::all(switching::mod_switch(ring, limbs, target, &x[0])),
    })
}
