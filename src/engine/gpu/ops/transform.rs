//! Forward and inverse transforms.

use super::{Rows, part, parts, window, window_words, words32};
use crate::engine::{
    Buffer, ExpandShape, Shape,
    backend::Result,
    gpu::{
        context::{Context, Launch, Slice},
        shaders::{NttPass, Transform, ntt_passes},
        tables::Tables,
    },
};

/// What the first launch of a transform reads, and how.
pub(super) struct Input<'a> {
    /// The words, and the constants of a base conversion where there is one. None: the result, in place.
    pub slices: Vec<Slice<'a>>,
    /// Parameters of the kernel's load.
    pub params: Vec<usize>,
}

impl<'a> Input<'a> {
    /// As many rows as the result has.
    pub fn rows(x: Slice<'a>) -> Self {
        Self { slices: vec![x], params: Vec::new() }
    }

    /// The rows of the result itself.
    pub fn in_place() -> Self {
        Self { slices: Vec::new(), params: Vec::new() }
    }
}

/// Launches of a transform of polynomials with `rows` to `result`.
pub(super) fn launches<'a>(
    context: &Context,
    tables: &'a Tables,
    transform: Transform,
    input: Input<'a>,
    result: Slice<'a>,
    rows: Rows,
) -> Vec<Launch<'a>> {
    let count = result.words / tables.n;
    let mut passes = ntt_passes(transform, tables.log_n(), context.log_block);
    if input.slices.is_empty()
        && let Some(first) = passes.first_mut()
    {
        first.variant.flags.push("IN_PLACE");
    }
    let launch = |(i, pass): (usize, NttPass)| {
        let mut slices = vec![tables.limb_slice(), tables.twiddle_slice(transform), result];
        let mut params = vec![count, rows.count, rows.data, rows.skip];
        if i == 0 {
            slices.extend(&input.slices);
            params.extend(&input.params);
        }
        let items = count * pass.per_row as usize;
        Launch {
            variant: pass.variant,
            params: words32(&params),
            slices,
            groups: if pass.block { items } else { Launch::groups_for(items) },
        }
    };
    passes.into_iter().enumerate().map(launch).collect()
}

/// Forward or inverse transform.
pub(in crate::engine::gpu) fn transform(
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
        let launches = launches(context, tables, transform, Input::rows(x), result, Rows::prefix(shape.limbs));
        context.run(operation, &launches)?;
    }
    Ok(context.wrap(shape.polys * poly, Some(out)))
}

/// Weight polynomials in the NTT domain.
pub(in crate::engine::gpu) fn expand_matrix(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    weights: &wgpu::Buffer,
    shape: &ExpandShape,
) -> Result<Buffer> {
    let poly = shape.limbs * tables.n;
    let polys = shape.outputs.len() * shape.inputs.len();
    let out = context.allocate(operation, polys * poly)?;
    // The rows of the matrix that are read.
    let rows = (shape.inputs.start * shape.block).min(shape.inner)..(shape.inputs.end * shape.block).min(shape.inner);
    let halves = rows.start * shape.cols..rows.end * shape.cols;
    let words = halves.end.div_ceil(2) - halves.start / 2;
    if words > window_words(context) {
        let what = format!("storage bindings of {} bytes, the rows of the matrix", 4 * words);
        return Err(context.unsupported(operation, what));
    }
    let (seen, before) = window(context, weights, halves.start / 2, words);
    let skipped = 2 * (halves.start / 2 - before);
    for range in parts(context, operation, tables, polys, poly)? {
        let params = vec![
            shape.inner,
            shape.cols,
            skipped,
            shape.columns,
            range.start,
            shape.outputs.start,
            shape.inputs.start,
            shape.inputs.len(),
        ];
        let input = Input { slices: vec![seen], params };
        let result = part(out.buffer(), &range, poly);
        let span = (shape.block * shape.columns).next_power_of_two();
        let transform = Transform::ForwardExpand { block: shape.block, span };
        let launches = launches(context, tables, transform, input, result, Rows::prefix(shape.limbs));
        context.run(operation, &launches)?;
    }
    Ok(context.wrap(polys * poly, Some(out)))
}
