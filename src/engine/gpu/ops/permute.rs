//! Operations that move coefficients: automorphisms, one level of output packing, expansion, gathering.

use super::{part, parts, words32};
use crate::engine::{
    Buffer, GatherItem, Shape,
    backend::Result,
    gpu::{
        context::{Context, Launch, Slice},
        shaders::{Kernel, Variant},
        tables::Tables,
        transfer::CopyWords,
    },
};

/// Sparse signed polynomials to residues. Values travel as 32-bit words when all of them fit.
pub(in crate::engine::gpu) fn expand(
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
pub(in crate::engine::gpu) fn automorphism(
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

/// `f(X) -> f(X^g)` in the NTT domain.
pub(in crate::engine::gpu) fn automorphism_ntt(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    shape: Shape,
    g: usize,
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let out = context.allocate(operation, shape.polys * poly)?;
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let words = polys.len() * poly;
        let params = words32(&[tables.log_n() as usize, shape.limbs, words, g]);
        let slices = vec![part(x, &polys, poly), part(out.buffer(), &polys, poly)];
        let groups = Launch::groups_for(words);
        context
            .run(operation, &[Launch { variant: Variant::plain(Kernel::AutomorphismNtt), params, slices, groups }])?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// Copies items of `sources`, in as few copies as their order allows; absent items are cleared.
pub(in crate::engine::gpu) fn gather(
    context: &Context,
    operation: &'static str,
    sources: &[Option<&wgpu::Buffer>],
    item_words: usize,
    items: &[GatherItem],
) -> Result<Buffer> {
    let total = item_words * items.len();
    let out = context.allocate(operation, total)?;
    let continues = |a: &GatherItem, b: &GatherItem| match (*a, *b) {
        (Some((source, index)), Some(next)) => next == (source, index + 1),
        (None, None) => true,
        _ => false,
    };
    let mut copies = Vec::new();
    let mut done = 0;
    for run in items.chunk_by(continues) {
        let words = run.len() * item_words;
        let from = run[0].and_then(|(source, index)| Some((sources[source]?, index * item_words)));
        copies.push(CopyWords { from, to: done, words });
        done += words;
    }
    context.copy_all(operation, out.buffer(), &copies)?;
    Ok(context.wrap(total, Some(out)))
}

/// `g^-1 mod 2^32` for odd `g`: Newton's step doubles the right bits, from 3.
pub(super) fn inverse_mod_power_of_two(g: u32) -> u32 {
    (0..4).fold(g, |inverse, _| inverse.wrapping_mul(2u32.wrapping_sub(g.wrapping_mul(inverse))))
}

/// `E + X^shift O` and `E - X^shift O` with `E` and `O` the halves of the batch.
pub(in crate::engine::gpu) fn pack_step(
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
