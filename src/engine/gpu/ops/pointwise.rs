//! Residue-wise operations.

use super::{part, parts, words32};
use crate::engine::{
    Buffer, RnsRing, Shape,
    backend::Result,
    gpu::{
        context::{Context, Launch, Slice},
        shaders::{Kernel, Variant},
        tables::Tables,
    },
};

/// `add`, `sub` or `mul`.
pub(in crate::engine::gpu) fn pointwise(
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

/// `acc + a * b`.
pub(in crate::engine::gpu) fn mul_accumulate(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    operands: [&wgpu::Buffer; 3],
    shape: Shape,
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let out = context.allocate(operation, shape.polys * poly)?;
    for polys in parts(context, operation, tables, shape.polys, poly)? {
        let vectors = polys.len() * poly / 4;
        let mut slices = vec![tables.limb_slice()];
        slices.extend(operands.map(|x| part(x, &polys, poly)));
        slices.push(part(out.buffer(), &polys, poly));
        let params = words32(&[vectors, tables.log_n() as usize - 2, shape.limbs]);
        let groups = Launch::groups_for(vectors);
        context.run(operation, &[Launch { variant: Variant::plain(Kernel::MulAccumulate), params, slices, groups }])?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// Product with one constant a limb.
pub(in crate::engine::gpu) fn mul_scalar(
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
