//! Checks of sizes that every backend makes before it starts an operation, with one wording of the errors.

use super::{EngineError, MatmulShape, Op, Result, RnsRing, Shape};

/// Fails unless `1 <= limbs <= moduli of the ring`.
pub(crate) fn limbs(op: Op, ring: &RnsRing, limbs: usize) -> Result<()> {
    let most = ring.moduli().len();
    require(op, (1..=most).contains(&limbs), || format!("{limbs} limbs asked for, the ring has 1 to {most}"))
}

/// Fails unless the batch `what` of `found` words is `product(dims)` words long.
pub(crate) fn words(op: Op, what: &str, found: usize, dims: &[usize]) -> Result<usize> {
    let expected = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    require(op, expected == Some(found), || format!("{what} has {found} words, not the product of {dims:?}"))?;
    Ok(found)
}

/// [`limbs`] and [`words`] of a batch `[polys][limbs][N]`.
pub(crate) fn batch(op: Op, ring: &RnsRing, what: &str, found: usize, shape: Shape) -> Result<usize> {
    limbs(op, ring, shape.limbs)?;
    words(op, what, found, &[shape.polys, shape.limbs, ring.n()])
}

/// Fails with [`EngineError::Shape`] unless `holds`.
pub(crate) fn require(op: Op, holds: bool, detail: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(EngineError::Shape { operation: op.name(), detail: detail() }) }
}

/// The preconditions on scalars that are not lengths of buffers.
pub(crate) mod operand {
    use super::*;

    /// `scalars` of `mul_scalar`: one a limb, each below its modulus.
    pub(crate) fn scalars(ring: &RnsRing, shape: Shape, scalars: &[u32]) -> Result<()> {
        let op = Op::MulScalar;
        require(op, scalars.len() == shape.limbs, || {
            format!("{} scalars for {} limbs, one a limb is needed", scalars.len(), shape.limbs)
        })?;
        let reduced = scalars.iter().zip(ring.moduli()).all(|(&s, m)| s < m.value());
        require(op, reduced, || "every scalar must be below its limb's modulus".into())
    }

    /// Both operands of `matmul_plain`.
    pub(crate) fn matmul(ring: &RnsRing, ct: usize, plain: usize, shape: MatmulShape) -> Result<()> {
        let (op, n) = (Op::MatmulPlain, ring.n());
        let MatmulShape { groups, inputs, outputs, limbs } = shape;
        super::limbs(op, ring, limbs)?;
        words(op, "the ciphertext batch", ct, &[groups, inputs, 2, limbs, n])?;
        words(op, "the plaintext batch", plain, &[groups, outputs, inputs, limbs, n])?;
        // With no inputs neither operand bounds the result.
        require(op, inputs > 0, || "a product needs at least one input".into())
    }

    /// `positions` of `expand` (distinct, below N) and the number of `values`; returns the number of polynomials.
    pub(crate) fn positions(ring: &RnsRing, limbs: usize, values: &[i64], positions: &[u32]) -> Result<usize> {
        let op = Op::Expand;
        super::limbs(op, ring, limbs)?;
        require(op, !positions.is_empty() && values.len().is_multiple_of(positions.len()), || {
            format!("{} values are not a multiple of {} positions", values.len(), positions.len())
        })?;
        let mut seen = vec![false; ring.n()];
        let distinct =
            positions.iter().all(|&at| seen.get_mut(at as usize).is_some_and(|s| !std::mem::replace(s, true)));
        require(op, distinct, || format!("positions must be distinct and below N = {}", ring.n()))?;
        Ok(values.len() / positions.len())
    }

    /// An even number of polynomials and a shift below N, for `pack_step`.
    pub(crate) fn packing(ring: &RnsRing, shape: Shape, shift: usize) -> Result<()> {
        let op = Op::PackStep;
        require(op, shape.polys.is_multiple_of(2), || format!("{} polynomials are not two halves", shape.polys))?;
        require(op, shift < ring.n(), || format!("shift {shift} is not below N = {}", ring.n()))
    }

    /// A Galois element: odd, below 2N.
    pub(crate) fn galois_element(ring: &RnsRing, g: usize) -> Result<()> {
        let good = g % 2 == 1 && g < 2 * ring.n();
        require(Op::Automorphism, good, || format!("Galois element {g} must be odd and below 2N = {}", 2 * ring.n()))
    }

    /// `1 <= target <= limbs`, for `mod_switch`.
    pub(crate) fn target(shape: Shape, target: usize) -> Result<()> {
        let good = (1..=shape.limbs).contains(&target);
        require(Op::ModSwitch, good, || format!("cannot switch from {} limbs to {target}", shape.limbs))
    }

    /// Input and key of `key_switch`; returns the number of data limbs.
    pub(crate) fn key_switch(ring: &RnsRing, x: usize, polys: usize, key: usize) -> Result<usize> {
        let (op, n, limbs) = (Op::KeySwitch, ring.n(), ring.moduli().len() - 1);
        require(op, limbs > 0, || "the ring has one modulus, key switching needs a special prime too".into())?;
        words(op, "the input", x, &[polys, limbs, n])?;
        words(op, "the key", key, &[limbs, 2, limbs + 1, n])?;
        Ok(limbs)
    }
}
