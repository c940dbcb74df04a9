//! Changes of the set of limbs: modulus switch and base conversion.

use std::ops::Range;

use super::{Rows, part, parts, whole, words32};
use crate::engine::{
    Buffer, Shape,
    backend::Result,
    gpu::{
        context::{Context, Launch, Slice},
        shaders::Variant,
        tables::{Conversion, Tables},
    },
};

/// Where the mod-down of rotations finds what it adds.
pub(super) struct Added<'a> {
    /// Ciphertexts `[inputs][2][kept][N]`.
    pub ciphertexts: Slice<'a>,
    /// Per result its input and the inverse of its Galois element modulo 2N.
    pub rotations: Slice<'a>,
}

/// Drops the last `rows.count - kept` rows of `polys` polynomials.
pub(super) fn drop_launch<'a>(
    tables: &'a Tables,
    x: Slice<'a>,
    result: Slice<'a>,
    polys: usize,
    rows: Rows,
    kept: usize,
    added: Option<Added<'a>>,
) -> Launch<'a> {
    let mut slices = vec![tables.limb_slice(), tables.inverse_slice(), x, result];
    let variant = Variant::mod_switch(rows.count - kept, added.is_some());
    slices.extend(added.into_iter().flat_map(|added| [added.ciphertexts, added.rotations]));
    let log_n = tables.log_n() as usize;
    Launch {
        variant,
        params: words32(&[log_n, rows.count, kept, rows.data, rows.skip, tables.count, polys]),
        slices,
        groups: Launch::groups_for(polys * tables.n),
    }
}

/// Drops limbs from `shape.limbs` down to `kept`, fewer than there are.
pub(in crate::engine::gpu) fn mod_switch(
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
        let rows = Rows::prefix(shape.limbs);
        context.run(operation, &[drop_launch(tables, x, result, polys.len(), rows, kept, None)])?;
    }
    Ok(context.wrap(shape.polys * kept * tables.n, Some(out)))
}

/// Base conversion from the limbs `from` to the limbs `to`.
pub(in crate::engine::gpu) fn base_convert(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    polys: usize,
    from: Range<usize>,
    to: Range<usize>,
) -> Result<Buffer> {
    let conversion = Conversion { from: vec![from.clone()], width: from.len(), to: to.clone().collect() };
    let table_words = conversion.set_words();
    let table = tables.conversion(context, conversion)?;
    let (input, output) = (from.len() * tables.n, to.len() * tables.n);
    let out = context.allocate(operation, polys * output)?;
    for range in parts(context, operation, tables, polys, input.max(output))? {
        let log_n = tables.log_n() as usize;
        let slices = vec![
            tables.limb_slice(),
            whole(&table, table_words),
            part(x, &range, input),
            part(out.buffer(), &range, output),
        ];
        let params = words32(&[log_n, range.len(), from.start, to.start, to.len()]);
        let groups = Launch::groups_for(range.len() * tables.n);
        context.run(operation, &[Launch { variant: Variant::base_convert(from.len()), params, slices, groups }])?;
    }
    Ok(context.wrap(polys * output, Some(out)))
}
