//! The launches of each operation. Sizes are checked by the caller; buffers hold at least the words that the shapes say.

use std::ops::Range;

use super::{
    context::{Context, Launch, Slice},
    shaders::{Kernel, Transform, Variant, ntt_passes},
    tables::{LIMB_WORDS, Tables},
};
use crate::engine::{Buffer, MatmulShape, RnsRing, Shape, backend::Result};

impl Tables {
    fn log_n(&self) -> u32 {
        self.n.trailing_zeros()
    }

    fn limb_slice(&self) -> Slice<'_> {
        Slice { buffer: self.limbs.buffer(), start: 0, words: self.count * LIMB_WORDS }
    }

    fn twiddle_slice(&self, transform: Transform) -> Slice<'_> {
        let memory = if transform == Transform::Inverse { &self.inverse } else { &self.forward };
        Slice { buffer: memory.buffer(), start: 0, words: 2 * self.count * self.n }
    }

    fn inverse_slice(&self) -> Slice<'_> {
        Slice { buffer: self.inverses.buffer(), start: 0, words: 2 * self.count * self.count }
    }
}

/// The words of `items`, each of `words` words.
fn part<'a>(buffer: &'a wgpu::Buffer, items: &Range<usize>, words: usize) -> Slice<'a> {
    Slice { buffer, start: items.start * words, words: items.len() * words }
}

/// Cuts `items` into ranges, each at most what a kernel can see of a buffer with `words` words an item.
fn parts(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    items: usize,
    words: usize,
) -> Result<Vec<Range<usize>>> {
    if items.saturating_mul(words) <= context.binding_words {
        return Ok(std::iter::once(0..items).collect());
    }
    if words > context.binding_words {
        let (bytes, limit) = (4 * words, 4 * context.binding_words);
        return Err(context.unsupported(operation, format!("storage bindings of {bytes} bytes (its limit is {limit})")));
    }
    if !tables.n.is_multiple_of(context.align_words) {
        // Offsets into a batch are multiples of N words.
        let what = format!("storage offsets of {} words", tables.n);
        return Err(context.unsupported(operation, what));
    }
    let step = context.binding_words / words;
    Ok((0..items).step_by(step).map(|start| start..items.min(start + step)).collect())
}

fn words32(values: &[usize]) -> Vec<u32> {
    // Sizes are bounded by what a kernel can see of a buffer, below 2^32 bytes.
    values.iter().map(|&v| v as u32).collect()
}

/// Launches of a transform of `rows` rows from `x` to `result`.
fn transform_launches<'a>(
    context: &Context,
    tables: &'a Tables,
    transform: Transform,
    x: Slice<'a>,
    result: Slice<'a>,
    limbs: usize,
) -> Vec<Launch<'a>> {
    let rows = result.words / tables.n;
    let passes = ntt_passes(transform, tables.log_n(), context.log_block);
    let launch = |(i, pass): (usize, super::shaders::NttPass)| {
        let mut slices = vec![tables.limb_slice(), tables.twiddle_slice(transform), result];
        if i == 0 {
            slices.push(x);
        }
        let items = rows * pass.per_row as usize;
        Launch {
            variant: pass.variant,
            params: words32(&[rows, limbs]),
            slices,
            groups: if pass.block { items } else { Launch::groups_for(items) },
        }
    };
    passes.into_iter().enumerate().map(launch).collect()
}

/// Forward or inverse transform.
pub(super) fn transform(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    shape: Shape,
    transform: Transform,
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let out = context.allocate(operation, shape.polys * poly)?;
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let (x, result) = (part(x, &polys, poly), part(out.buffer(), &polys, poly));
        let launches = transform_launches(context, tables, transform, x, result, shape.limbs);
        context.run(operation, &launches)?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// `add`, `sub` or `mul`.
pub(super) fn pointwise(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    kernel: Kernel,
    a: &wgpu::Buffer,
    b: &wgpu::Buffer,
    shape: Shape,
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let out = context.allocate(operation, shape.polys * poly)?;
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let vectors = polys.len() * poly / 4;
        let slices =
            vec![tables.limb_slice(), part(a, &polys, poly), part(b, &polys, poly), part(out.buffer(), &polys, poly)];
        let params = words32(&[vectors, tables.log_n() as usize - 2, shape.limbs]);
        let groups = Launch::groups_for(vectors);
        context.run(operation, &[Launch { variant: Variant::plain(kernel), params, slices, groups }])?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// Product with one constant a limb.
pub(super) fn mul_scalar(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    ring: &RnsRing,
    x: &wgpu::Buffer,
    shape: Shape,
    scalars: &[u32],
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let pairs: Vec<u32> = scalars.iter().zip(ring.moduli()).flat_map(|(&s, m)| [s, m.shoup(s)]).collect();
    let constants = context.upload(operation, &pairs)?;
    let constants = Slice { buffer: constants.buffer(), start: 0, words: pairs.len() };
    let out = context.allocate(operation, shape.polys * poly)?;
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let vectors = polys.len() * poly / 4;
        let slices = vec![tables.limb_slice(), part(x, &polys, poly), constants, part(out.buffer(), &polys, poly)];
        let params = words32(&[vectors, tables.log_n() as usize - 2, shape.limbs]);
        let groups = Launch::groups_for(vectors);
        context.run(operation, &[Launch { variant: Variant::plain(Kernel::MulScalar), params, slices, groups }])?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// Plaintext-ciphertext matrix product: whole groups a launch where they fit, else parts of the outputs of one group, else
/// parts of the inputs of one output, which add up.
pub(super) fn matmul_plain(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    ct: &wgpu::Buffer,
    plain: &wgpu::Buffer,
    shape: MatmulShape,
) -> Result<Buffer> {
    let MatmulShape { groups, inputs, outputs, limbs } = shape;
    let poly = limbs * tables.n;
    let total = groups * outputs * 2 * poly;
    let out = context.allocate(operation, total)?;
    let run = |ct, plain, result: Slice<'_>, shape: MatmulShape, accumulate: bool| {
        let MatmulShape { groups, inputs, outputs, .. } = shape;
        let params = words32(&[tables.log_n() as usize, limbs, groups, inputs, outputs, usize::from(accumulate)]);
        context.run(
            operation,
            &[Launch {
                variant: Variant::plain(Kernel::MatmulPlain),
                params,
                slices: vec![tables.limb_slice(), ct, plain, result],
                groups: Launch::groups_for(groups * outputs.div_ceil(4) * poly),
            }],
        )
    };
    let per_group = poly * (2 * inputs).max(outputs * inputs.max(2));
    if per_group <= context.binding_words {
        for range in parts(context, operation, tables, groups, per_group)? {
            let slices = (
                part(ct, &range, inputs * 2 * poly),
                part(plain, &range, outputs * inputs * poly),
                part(out.buffer(), &range, outputs * 2 * poly),
            );
            run(slices.0, slices.1, slices.2, MatmulShape { groups: range.len(), ..shape }, false)?;
        }
    } else if 2 * inputs * poly <= context.binding_words {
        for group in 0..groups {
            let ct = part(ct, &(group..group + 1), inputs * 2 * poly);
            for range in parts(context, operation, tables, outputs, poly * inputs.max(2))? {
                let at = group * outputs + range.start..group * outputs + range.end;
                let slices = (part(plain, &at, inputs * poly), part(out.buffer(), &at, 2 * poly));
                run(ct, slices.0, slices.1, MatmulShape { groups: 1, outputs: range.len(), ..shape }, false)?;
            }
        }
    } else {
        for output in 0..groups * outputs {
            let result = part(out.buffer(), &(output..output + 1), 2 * poly);
            let from = output / outputs * inputs;
            for range in parts(context, operation, tables, inputs, 2 * poly)? {
                let ct = part(ct, &(from + range.start..from + range.end), 2 * poly);
                let at = output * inputs + range.start..output * inputs + range.end;
                let part_shape = MatmulShape { groups: 1, outputs: 1, inputs: range.len(), ..shape };
                run(ct, part(plain, &at, poly), result, part_shape, range.start > 0)?;
            }
        }
    }
    Ok(context.wrap(total, Some(out)))
}

/// Sparse signed polynomials to residues. Values travel as 32-bit words when all of them fit.
pub(super) fn expand(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    shape: Shape,
    values: &[i64],
    positions: &[u32],
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let wide = !values.iter().all(|&v| i32::try_from(v).is_ok());
    let word_count = if wide { 2 } else { 1 };
    let mut slot_of = vec![0u32; tables.n];
    for (slot, &at) in (1..).zip(positions) {
        slot_of[at as usize] = slot;
    }
    let slots = context.upload(operation, &slot_of)?;
    let slots = Slice { buffer: slots.buffer(), start: 0, words: tables.n };
    let out = context.allocate(operation, shape.polys * poly)?;
    // Two words a value may outweigh the residues where there is one limb.
    for polys in parts(context, operation, tables, shape.polys, poly.max(word_count * positions.len()))? {
        let values = &values[polys.start * positions.len()..polys.end * positions.len()];
        let words: Vec<u32> = if wide {
            values.iter().flat_map(|&v| [v as u32, (v as u64 >> 32) as u32]).collect()
        } else {
            values.iter().map(|&v| v as u32).collect()
        };
        let memory = context.upload(operation, &words)?;
        let values = Slice { buffer: memory.buffer(), start: 0, words: words.len() };
        let log_n = tables.log_n() as usize;
        let params = words32(&[log_n, shape.limbs, polys.len(), positions.len(), usize::from(wide)]);
        let slices = vec![tables.limb_slice(), slots, values, part(out.buffer(), &polys, poly)];
        let groups = Launch::groups_for(polys.len() * tables.n);
        context.run(operation, &[Launch { variant: Variant::plain(Kernel::Expand), params, slices, groups }])?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// `f(X) -> f(X^g)`.
pub(super) fn automorphism(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    shape: Shape,
    g: usize,
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let out = context.allocate(operation, shape.polys * poly)?;
    let g_inverse = inverse_mod_power_of_two(g as u32) as usize & (2 * tables.n - 1);
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let words = polys.len() * poly;
        let params = words32(&[tables.log_n() as usize, shape.limbs, words, g_inverse]);
        let slices = vec![tables.limb_slice(), part(x, &polys, poly), part(out.buffer(), &polys, poly)];
        let groups = Launch::groups_for(words);
        context.run(operation, &[Launch { variant: Variant::plain(Kernel::Automorphism), params, slices, groups }])?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// `g^-1 mod 2^32` for odd `g`: Newton's step doubles the right bits, from 3.
fn inverse_mod_power_of_two(g: u32) -> u32 {
    (0..4).fold(g, |inverse, _| inverse.wrapping_mul(2u32.wrapping_sub(g.wrapping_mul(inverse))))
}

/// `E + X^shift O` and `E - X^shift O` with `E` and `O` the halves of the batch.
pub(super) fn pack_step(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    shape: Shape,
    shift: usize,
) -> Result<(Buffer, Buffer)> {
    let poly = shape.limbs * tables.n;
    let half = shape.polys / 2;
    let sum = context.allocate(operation, half * poly)?;
    let difference = context.allocate(operation, half * poly)?;
    // Both halves are bound apart, so the second one's start must be aligned too.
    let aligned = (half * poly).is_multiple_of(context.align_words);
    let staged = if aligned { None } else { Some(context.copy_words(operation, x, half * poly, half * poly)?) };
    for polys in parts(context, operation, tables, half, poly)? {
        let words = polys.len() * poly;
        let odd = match &staged {
            Some(staged) => part(staged.buffer(), &polys, poly),
            None => part(x, &(half + polys.start..half + polys.end), poly),
        };
        let slices = vec![
            tables.limb_slice(),
            part(x, &polys, poly),
            odd,
            part(sum.buffer(), &polys, poly),
            part(difference.buffer(), &polys, poly),
        ];
        let params = words32(&[tables.log_n() as usize, shape.limbs, words, shift]);
        let groups = Launch::groups_for(words);
        context.run(operation, &[Launch { variant: Variant::plain(Kernel::PackStep), params, slices, groups }])?;
    }
    Ok((context.wrap(half * poly, Some(sum)), context.wrap(half * poly, Some(difference))))
}

fn mod_switch_launch<'a>(
    tables: &'a Tables,
    x: Slice<'a>,
    result: Slice<'a>,
    polys: usize,
    limbs: usize,
    kept: usize,
) -> Launch<'a> {
    Launch {
        variant: Variant::mod_switch(limbs - kept),
        params: words32(&[tables.log_n() as usize, limbs, kept, tables.count, polys]),
        slices: vec![tables.limb_slice(), tables.inverse_slice(), x, result],
        groups: Launch::groups_for(polys * tables.n),
    }
}

/// Drops limbs from `shape.limbs` down to `kept`, fewer than there are.
pub(super) fn mod_switch(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    shape: Shape,
    kept: usize,
) -> Result<Buffer> {
    let out = context.allocate(operation, shape.polys * kept * tables.n)?;
    let poly = shape.limbs * tables.n;
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let (x, result) = (part(x, &polys, poly), part(out.buffer(), &polys, kept * tables.n));
        context.run(operation, &[mod_switch_launch(tables, x, result, polys.len(), shape.limbs, kept)])?;
    }
    Ok(context.wrap(shape.polys * kept * tables.n, Some(out)))
}

/// Hybrid key switch: forward transform of the digits, inner product, inverse transform, mod-down. With at most two launches
/// a transform, six launches for as many polynomials as a kernel can see the digits of.
pub(super) fn key_switch(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    polys: usize,
    key: &wgpu::Buffer,
) -> Result<Buffer> {
    let n = tables.n;
    let limbs = tables.count - 1;
    let key_words = limbs * 2 * (limbs + 1) * n;
    if key_words > context.binding_words {
        let what = format!("storage bindings of {} bytes, the size of one switching key", 4 * key_words);
        return Err(context.unsupported(operation, what));
    }
    let key = Slice { buffer: key, start: 0, words: key_words };
    let out = context.allocate(operation, polys * 2 * limbs * n)?;
    let digit_words = limbs * (limbs + 1) * n;
    let sum_words = 2 * (limbs + 1) * n;
    for range in parts(context, operation, tables, polys, digit_words.max(sum_words))? {
        let count = range.len();
        let digits = context.allocate(operation, count * digit_words)?;
        let sums = context.allocate(operation, count * sum_words)?;
        let digits = part(digits.buffer(), &(0..count), digit_words);
        let coefficients = context.allocate(operation, count * sum_words)?;
        let sums = part(sums.buffer(), &(0..count), sum_words);
        let coefficients = part(coefficients.buffer(), &(0..count), sum_words);

        let input = part(x, &range, limbs * n);
        let mut launches = transform_launches(context, tables, Transform::ForwardDigits, input, digits, limbs + 1);
        launches.push(Launch {
            variant: Variant::plain(Kernel::InnerProduct),
            params: words32(&[tables.log_n() as usize, limbs, count]),
            slices: vec![tables.limb_slice(), digits, key, sums],
            groups: Launch::groups_for(count * (limbs + 1) * n),
        });
        launches.extend(transform_launches(context, tables, Transform::Inverse, sums, coefficients, limbs + 1));
        let result = part(out.buffer(), &range, 2 * limbs * n);
        launches.push(mod_switch_launch(tables, coefficients, result, 2 * count, limbs + 1, limbs));
        context.run(operation, &launches)?;
    }
    Ok(context.wrap(polys * 2 * limbs * n, Some(out)))
}

#[cfg(test)]
mod tests {
    use super::inverse_mod_power_of_two;

    #[test]
    fn inverses_of_odd_words() {
        for g in [1u32, 3, 5, 7, 0x1234_5679, u32::MAX] {
            assert_eq!(g.wrapping_mul(inverse_mod_power_of_two(g)), 1);
        }
    }
}
