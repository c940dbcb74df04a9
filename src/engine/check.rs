//! Checks of sizes that every backend makes before it starts an operation, with one wording of the errors.

use std::ops::Range;

use super::{
    EngineError, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape, Op, Result, RingGemmShape,
    RingOperand, RnsRing, Rotation, Shape,
};

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

/// The error of a buffer that another backend made.
pub(crate) fn foreign_buffer(op: Op) -> EngineError {
    let detail = "the buffer belongs to another backend; download and upload it".into();
    EngineError::Shape { operation: op.name(), detail }
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
    pub(crate) fn galois_element(op: Op, ring: &RnsRing, g: usize) -> Result<()> {
        let good = g % 2 == 1 && g < 2 * ring.n();
        require(op, good, || format!("Galois element {g} must be odd and below 2N = {}", 2 * ring.n()))
    }

    /// `1 <= target <= limbs`, for `mod_switch`.
    pub(crate) fn target(shape: Shape, target: usize) -> Result<()> {
        let good = (1..=shape.limbs).contains(&target);
        require(Op::ModSwitch, good, || format!("cannot switch from {} limbs to {target}", shape.limbs))
    }

    /// Limbs and digits of a key switch.
    fn digits(op: Op, ring: &RnsRing, shape: KeySwitchShape) -> Result<()> {
        let KeySwitchShape { limbs, special, digit_limbs, .. } = shape;
        let all = ring.moduli().len();
        require(op, special > 0 && special < all, || {
            format!("{special} special primes of {all} moduli: there must be special primes and data limbs")
        })?;
        require(op, limbs > 0 && limbs <= all - special, || {
            format!("{limbs} limbs asked for, the ring has 1 to {} beside its special primes", all - special)
        })?;
        require(op, (1..=MAX_CONVERTED).contains(&digit_limbs), || {
            format!("digits of {digit_limbs} limbs, possible are 1 to {MAX_CONVERTED}")
        })
    }

    /// Input and key of `key_switch`.
    pub(crate) fn key_switch(ring: &RnsRing, x: usize, shape: KeySwitchShape, key: usize) -> Result<()> {
        let op = Op::KeySwitch;
        digits(op, ring, shape)?;
        words(op, "the input", x, &[shape.polys, shape.limbs, ring.n()])?;
        words(op, "the key", key, &[shape.key_digits(ring), 2, ring.moduli().len(), ring.n()]).map(drop)
    }

    /// Input, keys and rotations of `rotate`.
    pub(crate) fn rotate(
        ring: &RnsRing,
        x: usize,
        shape: KeySwitchShape,
        keys: usize,
        rotations: &[Rotation],
    ) -> Result<()> {
        let op = Op::Rotate;
        digits(op, ring, shape)?;
        words(op, "the input", x, &[shape.polys, 2, shape.limbs, ring.n()])?;
        let key = shape.key_words(ring);
        require(op, keys.is_multiple_of(key), || format!("{keys} words of keys are not a multiple of {key}"))?;
        rotations.iter().try_for_each(|r| {
            galois_element(op, ring, r.element)?;
            require(op, r.input < shape.polys && r.key < keys / key, || {
                format!("{r:?} with {} ciphertexts and {} keys", shape.polys, keys / key)
            })
        })
    }

    /// Most limbs that a base conversion starts from.
    const MAX_CONVERTED: usize = 32;

    /// Input and limbs of `base_convert`.
    pub(crate) fn base_convert(
        ring: &RnsRing,
        x: usize,
        polys: usize,
        from: &Range<usize>,
        to: &Range<usize>,
    ) -> Result<()> {
        let (op, all) = (Op::BaseConvert, ring.moduli().len());
        let inside = |range: &Range<usize>| range.start < range.end && range.end <= all;
        require(op, inside(from) && inside(to) && from.len() <= MAX_CONVERTED, || {
            format!("from limbs {from:?} to {to:?} of {all}, at most {MAX_CONVERTED} in the first range")
        })?;
        words(op, "the input", x, &[polys, from.len(), ring.n()]).map(drop)
    }

    /// Fails unless `found` words are `count` packed 16-bit integers.
    fn small(op: Op, what: &str, found: usize, dims: &[usize]) -> Result<()> {
        let count = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        require(op, count.is_some_and(|count| found == count.div_ceil(2)), || {
            format!("{what} has {found} words, not half the product of {dims:?}")
        })
    }

    /// Both operands of `modular_gemm`.
    pub(crate) fn modular_gemm(ring: &RnsRing, x: usize, weights: usize, shape: GemmShape) -> Result<()> {
        let op = Op::ModularGemm;
        let GemmShape { inputs, outputs, polys, limbs } = shape;
        super::limbs(op, ring, limbs)?;
        require(op, inputs > 0, || "a product needs at least one input".into())?;
        words(op, "the input", x, &[inputs, polys, limbs, ring.n()])?;
        small(op, "the weight matrix", weights, &[outputs, inputs])
    }

    /// Both operands of `ring_gemm`.
    pub(crate) fn ring_gemm(a: usize, b: usize, operand: RingOperand, shape: RingGemmShape) -> Result<()> {
        let op = Op::RingGemm;
        let RingGemmShape { bits, batch, rows, inner, cols } = shape;
        require(op, (1..=64).contains(&bits), || format!("a ring of {bits} bits, possible are 1 to 64"))?;
        require(op, inner > 0, || "a product needs an inner dimension".into())?;
        words(op, "the left operand", a, &[batch, rows, inner, shape.element_words()])?;
        match operand {
            RingOperand::Ring => {
                words(op, "the right operand", b, &[batch, inner, cols, shape.element_words()]).map(drop)
            }
            RingOperand::Small => small(op, "the right operand", b, &[batch, inner, cols]),
        }
    }

    /// The matrix and the tile of `expand_matrix`.
    pub(crate) fn expand_matrix(ring: &RnsRing, weights: usize, shape: &ExpandShape) -> Result<()> {
        let op = Op::ExpandMatrix;
        super::limbs(op, ring, shape.limbs)?;
        let fits = shape.block > 0
            && shape.columns > 0
            && shape.block.checked_mul(shape.columns).is_some_and(|exponents| exponents <= ring.n());
        require(op, fits, || {
            format!("{} columns in blocks of {} do not fit N = {}", shape.columns, shape.block, ring.n())
        })?;
        let inside = shape.inputs.end <= shape.inner.div_ceil(shape.block)
            && shape.outputs.end <= shape.cols.div_ceil(shape.columns);
        require(op, inside, || {
            format!("blocks {:?} and groups {:?} reach beyond the matrix", shape.inputs, shape.outputs)
        })?;
        small(op, "the matrix", weights, &[shape.inner, shape.cols])
    }

    /// Sources and items of `gather`.
    pub(crate) fn gather(sources: &[usize], item_words: usize, items: &[GatherItem]) -> Result<()> {
        let op = Op::Gather;
        require(op, item_words.checked_mul(items.len()).is_some(), || {
            format!("{} items of {item_words} words are more than there can be", items.len())
        })?;
        items.iter().flatten().try_for_each(|&(source, index)| {
            let end = index.checked_add(1).and_then(|end| end.checked_mul(item_words));
            let inside = sources.get(source).zip(end).is_some_and(|(&words, end)| end <= words);
            require(op, inside, || format!("item {index} of {item_words} words is not in source {source}"))
        })
    }
}
