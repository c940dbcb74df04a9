//! Products with matrices of integers.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{part, parts, window, window_words, words32};
use crate::engine::{
    Buffer, GemmShape, RingGemmShape, RingOperand,
    backend::Result,
    gpu::{
        context::{Context, Launch},
        shaders::{GemmForm, Variant},
        tables::Tables,
    },
};

/// Most inputs of one launch: what the sums of each form hold.
fn most_inputs(form: GemmForm) -> usize {
    match form {
        GemmForm::Wide => 1 << 17,
        GemmForm::Dot => 1 << 15,
    }
}

/// Product of items with a matrix of small integers: parts of the outputs, and of the inputs, which add up.
pub(in crate::engine::gpu) fn modular_gemm(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    x: &wgpu::Buffer,
    weights: &wgpu::Buffer,
    shape: GemmShape,
    form: GemmForm,
) -> Result<Buffer> {
    let GemmShape { inputs, outputs, polys, limbs } = shape;
    let item = polys * limbs * tables.n;
    let (variant, output_tile, word_tile) = Variant::modular_gemm(form, context.form);
    let out = context.allocate(operation, outputs * item)?;
    let chunks: Vec<Range<usize>> = parts(context, operation, tables, inputs, item)?
        .into_iter()
        .flat_map(|chunk| {
            let step = most_inputs(form);
            chunk.clone().step_by(step).map(move |first| first..chunk.end.min(first + step))
        })
        .collect();
    // A row of weights has half as many words as inputs, one more where it begins and ends within a word.
    for rows in parts(context, operation, tables, outputs, item.max(inputs / 2 + 1 + context.align_words))? {
        for chunk in &chunks {
            let first = rows.start * inputs + chunk.start;
            let last = (rows.end - 1) * inputs + chunk.end;
            let (seen, before) = window(context, weights, first / 2, last.div_ceil(2) - first / 2);
            let tiles = rows.len().div_ceil(output_tile);
            let params = words32(&[
                tables.log_n() as usize,
                limbs,
                item,
                chunk.len(),
                rows.len(),
                tiles,
                2 * before + first % 2,
                inputs,
                usize::from(chunk.start > 0),
            ]);
            let slices = vec![tables.limb_slice(), part(x, chunk, item), seen, part(out.buffer(), &rows, item)];
            let groups = tiles * item.div_ceil(word_tile);
            context.run(operation, &[Launch { variant: variant.clone(), params, slices, groups }])?;
        }
    }
    Ok(context.wrap(outputs * item, Some(out)))
}

/// The form that is faster on this adapter: both are timed on growing products until they take long enough to tell.
pub(in crate::engine::gpu) fn faster_gemm(context: &Context, tables: &Tables) -> Result<GemmForm> {
    let operation = "choice of a form for modular_gemm";
    let polys = (1usize << 14).div_ceil(tables.n);
    let mut size = 32;
    if size * polys * tables.n > context.binding_words {
        return Ok(GemmForm::Wide);
    }
    loop {
        let shape = GemmShape { inputs: size, outputs: size, polys, limbs: 1 };
        // The contents do not matter: nothing depends on them.
        let x = context.allocate(operation, size * polys * tables.n)?;
        let weights = context.allocate(operation, size * size / 2)?;
        let time = |form| {
            let run = || {
                modular_gemm(context, operation, tables, x.buffer(), weights.buffer(), shape, form)?;
                context.wait(operation)
            };
            run()?;
            let start = Instant::now();
            run()?;
            run()?;
            Ok(start.elapsed())
        };
        let (wide, dot) = (time(GemmForm::Wide)?, time(GemmForm::Dot)?);
        let fits = 2 * size * polys * tables.n <= context.binding_words;
        if wide.min(dot) >= LONG_ENOUGH || size >= 512 || !fits {
            return Ok(if dot < wide { GemmForm::Dot } else { GemmForm::Wide });
        }
        size *= 2;
    }
}

/// Duration of two products that launch overheads do not dominate.
const LONG_ENOUGH: Duration = Duration::from_millis(4);

/// Matrix products modulo a power of two: whole products a launch where they fit, else parts of the rows of one, and of its
/// inner dimension, which add up.
pub(in crate::engine::gpu) fn ring_gemm(
    context: &Context,
    operation: &'static str,
    a: &wgpu::Buffer,
    b: &wgpu::Buffer,
    operand: RingOperand,
    shape: RingGemmShape,
) -> Result<Buffer> {
    let RingGemmShape { batch, rows, inner, cols, .. } = shape;
    let words = shape.element_words();
    let total = batch * rows * cols * words;
    let out = context.allocate(operation, total)?;
    let most = window_words(context);
    let need = |words: usize| {
        if words <= most {
            return Ok(());
        }
        let what = format!("storage bindings of {} bytes (its limit is {})", 4 * words, 4 * context.binding_words);
        Err(context.unsupported(operation, what))
    };
    let ranges = |items: usize, words: usize| {
        let step = (most / words.max(1)).max(1);
        (0..items).step_by(step).map(move |first| first..items.min(first + step))
    };
    // Words of the right operand, from one half of a word to another where it is packed.
    let right_words = |elements: usize| if operand == RingOperand::Small { elements / 2 + 1 } else { elements * words };
    let (left_one, right_one, result_one) = (rows * inner * words, right_words(inner * cols), rows * cols * words);
    let largest = left_one.max(right_one).max(result_one);
    let run = |heads: Range<usize>, part: Range<usize>, depth: Range<usize>| {
        let left_at = (heads.start * rows + part.start) * inner + depth.start;
        let left_end = ((heads.end - 1) * rows + part.end - 1) * inner + depth.end;
        let (left, left_start) = window(context, a, left_at * words, (left_end - left_at) * words);
        let right_at = (heads.start * inner + depth.start) * cols;
        let right_end = ((heads.end - 1) * inner + depth.end) * cols;
        let (right, right_start) = if operand == RingOperand::Small {
            let (seen, before) = window(context, b, right_at / 2, right_end.div_ceil(2) - right_at / 2);
            (seen, 2 * before + right_at % 2)
        } else {
            window(context, b, right_at * words, (right_end - right_at) * words)
        };
        let result_at = (heads.start * rows + part.start) * cols * words;
        let result_end = ((heads.end - 1) * rows + part.end) * cols * words;
        let (result, result_start) = window(context, out.buffer(), result_at, result_end - result_at);
        let (variant, row_tile, col_tile) = Variant::ring_gemm(words, operand, part.len());
        let mask = u64::MAX >> (64 - shape.bits);
        let mut params = words32(&[heads.len(), part.len(), depth.len(), cols, inner]);
        params.extend(words32(&[left_start, right_start, result_start]));
        params.extend([mask as u32, (mask >> 32) as u32, u32::from(depth.start > 0)]);
        let groups = heads.len() * part.len().div_ceil(row_tile) * cols.div_ceil(col_tile);
        context.run(operation, &[Launch { variant, params, slices: vec![left, right, result], groups }])
    };
    if largest <= most {
        for heads in ranges(batch, largest) {
            run(heads, 0..rows, 0..inner)?;
        }
    } else {
        need(inner * words)?;
        need(right_words(cols).max(cols * words))?;
        for head in 0..batch {
            for part in ranges(rows, (inner * words).max(cols * words)) {
                for depth in ranges(inner, right_words(cols)) {
                    run(head..head + 1, part.clone(), depth)?;
                }
            }
        }
    }
    Ok(context.wrap(total, Some(out)))
}
