//! Products with plaintexts.

use super::{part, parts, words32};
use crate::engine::{
    Buffer, MatmulShape,
    backend::Result,
    gpu::{
        context::{Context, Launch, Slice},
        shaders::{Kernel, Variant},
        tables::Tables,
    },
};

/// Plaintext-ciphertext matrix product: whole groups a launch where they fit, else parts of the outputs of one group, else
/// parts of the inputs of one output, which add up.
pub(in crate::engine::gpu) fn matmul_plain(
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
