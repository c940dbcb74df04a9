//! The launches of each operation. Sizes are checked by the caller; buffers hold at least the words that the shapes say.
//!
//! | file | operations |
//! |---|---|
//! | `transform` | transforms |
//! | `pointwise` | residue-wise operations |
//! | `product` | products with plaintexts |
//! | `gemm` | products with matrices of integers |
//! | `permute` | automorphisms, packing, expansion, gathering |
//! | `convert` | modulus switch, base conversion |
//! | `key_switch` | key switches and rotations |

mod convert;
mod gemm;
mod key_switch;
mod permute;
mod pointwise;
mod product;
mod transform;

use std::ops::Range;

pub(super) use self::{
    convert::{base_convert, mod_switch},
    gemm::{faster_gemm, modular_gemm, ring_gemm},
    key_switch::{key_switch, rotate},
    permute::{automorphism, automorphism_ntt, expand, gather, pack_step},
    pointwise::{mul_accumulate, mul_scalar, pointwise},
    product::matmul_plain,
    transform::{expand_matrix, transform},
};
use super::{
    context::{Context, Slice},
    memory::Memory,
    shaders::Transform,
    tables::{LIMB_WORDS, Tables},
};
use crate::engine::backend::Result;

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

/// Which limb each row of a polynomial is modulo: row `r` limb `r`, `skip` limbs further from row `data` on.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    data: usize,
    skip: usize,
}

impl Rows {
    /// The first limbs of the ring.
    fn prefix(count: usize) -> Self {
        Self { count, data: count, skip: 0 }
    }
}

/// The first `words` words of a buffer.
fn whole(memory: &Memory, words: usize) -> Slice<'_> {
    Slice { buffer: memory.buffer(), start: 0, words }
}

/// The words of `items`, each of `words` words.
fn part<'a>(buffer: &'a wgpu::Buffer, items: &Range<usize>, words: usize) -> Slice<'a> {
    Slice { buffer, start: items.start * words, words: items.len() * words }
}

/// Cuts `items` into ranges, each at most what a kernel can see of a buffer with `words` words an item; under a memory budget
/// into smaller ones where one item allows it, so that what is made on the way stays small.
fn parts(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    items: usize,
    words: usize,
) -> Result<Vec<Range<usize>>> {
    let aligned = tables.n.is_multiple_of(context.align_words);
    let most = if aligned { context.part_words.max(words).min(context.binding_words) } else { context.binding_words };
    if items.saturating_mul(words) <= most {
        return Ok(std::iter::once(0..items).collect());
    }
    if words > context.binding_words {
        let (bytes, limit) = (4 * words, 4 * context.binding_words);
        return Err(context.unsupported(operation, format!("storage bindings of {bytes} bytes (its limit is {limit})")));
    }
    if !aligned {
        // Offsets into a batch are multiples of N words.
        let what = format!("storage offsets of {} words", tables.n);
        return Err(context.unsupported(operation, what));
    }
    let step = most / words;
    Ok((0..items).step_by(step).map(|start| start..items.min(start + step)).collect())
}

/// The range of `words` words from `start` on, which need not be aligned, and where it begins in what a kernel then sees.
fn window<'a>(context: &Context, buffer: &'a wgpu::Buffer, start: usize, words: usize) -> (Slice<'a>, usize) {
    let before = start % context.align_words;
    (Slice { buffer, start: start - before, words: words + before }, before)
}

/// Words that a [`window`] can hold wherever it starts.
fn window_words(context: &Context) -> usize {
    context.binding_words.saturating_sub(context.align_words - 1)
}

fn words32(values: &[usize]) -> Vec<u32> {
    // Sizes are bounded by what a kernel can see of a buffer, below 2^32 bytes.
    values.iter().map(|&v| v as u32).collect()
}
