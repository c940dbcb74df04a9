//! The operands of a product on the server: ciphertexts on the device, and plaintexts that become polynomials tile by tile.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{
    CoefficientPacking, EncryptedMatrix, InputLayout,
    layout::OutputLayout,
    split::{self, Pattern},
};
use crate::{
    engine::{Buffer, ExpandShape, MatmulShape, small_words},
    he::{BfvContext, HeError, HeServer, Result},
};

/// An encrypted operand, expanded onto the device: made once for all products that read it. Clones share the memory.
#[derive(Clone)]
pub struct DeviceInput {
    layout: InputLayout,
    /// Heads of a part.
    head_step: usize,
    /// Levels of packing that have been done.
    split: u32,
    /// By head range, then by block range: `[heads][blocks][2][limbs][N]` in the NTT domain. Of inputs with levels of packing, by
    /// automorphism, which have one head.
    parts: Vec<Vec<(Range<usize>, Buffer)>>,
}

impl DeviceInput {
    /// Expands `matrix` for products by `packing`, and for all others that have as many heads in a launch (those of one head
    /// in any case) and as many levels of packing on the inputs, which are done here.
    ///
    /// # Errors
    /// If the operand's layout is no layout, a switching key is missing, or the device fails.
    pub fn upload(packing: &CoefficientPacking, server: &HeServer, matrix: &EncryptedMatrix) -> Result<Self> {
        let layout = *matrix.layout();
        let server = &server.at_level(layout.limbs)?;
        let ctx = server.context();
        let params = ctx.params();
        if matrix.ciphertexts().len() != layout.ciphertexts() || layout.n != params.n() {
            return Err(HeError::shape(
                "multiply",
                format!("{} ciphertexts for {layout:?}", matrix.ciphertexts().len()),
            ));
        }
        let ct_words = 2 * params.limbs() * params.n();
        let head_step = packing.head_step(ctx);
        let block_step = layout.blocks().clamp(1, tile_polys(ctx));
        let words = matrix.ciphertexts().expand(params)?;
        let upload = |heads: Range<usize>, blocks: Range<usize>| -> Result<Buffer> {
            let whole = heads.len() == 1 || blocks.len() == layout.blocks();
            let start = (heads.start * layout.blocks() + blocks.start) * ct_words;
            let count = heads.len() * blocks.len() * ct_words;
            if whole {
                return Ok(ctx.backend().upload(&words[start..start + count])?);
            }
            let mut part = Vec::with_capacity(count);
            for head in heads {
                let start = (head * layout.blocks() + blocks.start) * ct_words;
                part.extend_from_slice(&words[start..start + blocks.len() * ct_words]);
            }
            Ok(ctx.backend().upload(&part)?)
        };
        let part = |heads: Range<usize>| -> Result<Vec<(Range<usize>, Buffer)>> {
            steps(0..layout.blocks(), block_step)
                .map(|blocks| Ok((blocks.clone(), upload(heads.clone(), blocks)?)))
                .collect()
        };
        let split = packing.split;
        let mut parts = steps(0..layout.heads, head_step).map(part).collect::<Result<Vec<_>>>()?;
        if split > 0 {
            let elements = split::elements(params.n(), layout.block, split);
            let mut turned = vec![Vec::new(); elements.len()];
            for (blocks, x) in parts.into_iter().flatten() {
                let turns = split::turn_inputs(server, &x, blocks.len(), &elements)?;
                turned.iter_mut().zip(turns).for_each(|(to, x)| to.push((blocks.clone(), x)));
            }
            parts = turned;
        }
        Ok(Self { layout, head_step, split, parts })
    }
}

/// A plaintext operand, `[heads][inner][cols]` integers within the planned bound.
#[derive(Clone)]
pub enum Operand<'a> {
    /// Of any width, on the host.
    Wide(&'a [i64]),
    /// Of any width, on the host, wiped with the last clone.
    Secret(Arc<Zeroizing<Vec<i64>>>),
    /// One matrix of 16-bit integers, on the device.
    Small {
        /// As [`small_words`] packs them.
        weights: Buffer,
        /// How many there are.
        count: usize,
    },
}

impl Operand<'_> {
    /// Small integers onto the device. `weights` is `[inner][cols]`, for products with one head.
    ///
    /// # Errors
    /// If the device fails.
    pub fn small(server: &HeServer, weights: &[i16]) -> Result<Self> {
        let buffer = server.context().backend().upload(&small_words(weights))?;
        Ok(Self::Small { weights: buffer, count: weights.len() })
    }

    /// The same on the host.
    fn on_host(&self, server: &HeServer) -> Result<Self> {
        let Self::Small { weights, count } = self else { return Ok(self.clone()) };
        let words = server.context().backend().download(weights)?;
        let halves = words.iter().flat_map(|&word| [word as i16, (word >> 16) as i16]);
        Ok(Self::Secret(Arc::new(Zeroizing::new(halves.take(*count).map(i64::from).collect()))))
    }

    fn host(&self) -> Option<&[i64]> {
        match self {
            Self::Wide(weights) => Some(weights),
            Self::Secret(weights) => Some(weights),
            Self::Small { .. } => None,
        }
    }
}

/// The operands of one product, checked against its plan.
pub(super) struct Operands<'a> {
    packing: Arc<CoefficientPacking>,
    server: HeServer,
    operands: Vec<(DeviceInput, Operand<'a>)>,
    /// Of the plaintexts of every automorphism, where there are some.
    patterns: Vec<Pattern>,
}

/// Products of some heads, on the device.
pub(super) struct Tile {
    /// Output groups of one head.
    pub outputs: Range<usize>,
    /// `[heads][outputs][2][limbs][N]`, NTT domain.
    pub products: Buffer,
}

impl<'a> Operands<'a> {
    pub fn new(
        packing: Arc<CoefficientPacking>,
        server: HeServer,
        mut operands: Vec<(DeviceInput, Operand<'a>)>,
    ) -> Result<Self> {
        let fail = |detail: String| Err(HeError::shape("multiply", detail));
        let head_step = packing.head_step(server.context());
        if packing.inputs.iter().any(|x| x.n != server.context().params().n()) {
            return fail("the product was planned for another ring".into());
        }
        if operands.len() != packing.inputs.len() {
            return fail(format!("{} operands where {} were planned", operands.len(), packing.inputs.len()));
        }
        let bound = packing.spec.operand.max_abs(packing.spec.t);
        for ((input, weights), layout) in operands.iter().zip(&packing.inputs) {
            if input.layout != *layout || input.head_step != head_step || input.split != packing.split {
                let (found, planned) = ((input.layout, input.split), (layout, packing.split));
                return fail(format!("an operand is laid out as {found:?}, planned was {planned:?}"));
            }
            let expected = packing.spec.heads * layout.inner * packing.spec.cols;
            let count = match weights {
                Operand::Small { count, .. } if packing.spec.heads == 1 => *count,
                Operand::Small { .. } => return fail("small weights serve products with one head".into()),
                _ => weights.host().map_or(0, <[i64]>::len),
            };
            if count != expected {
                return fail(format!("{count} weights where {expected} are needed"));
            }
            // Whoever has 16-bit weights has checked them once for all products.
            let largest = weights.host().map_or(0, |w| w.iter().fold(0, |max, w| w.unsigned_abs().max(max)));
            if largest > bound {
                return fail(format!("a weight exceeds its bound of {bound}"));
            }
        }
        let mut patterns = Vec::new();
        if packing.split > 0 {
            let OutputLayout { stride, block, .. } = packing.output;
            let n = server.context().params().n();
            let elements = split::elements(n, block, packing.split).into_iter();
            patterns = elements.map(|g| Pattern::new(n, stride, block, packing.split, g)).collect();
            for (_, weights) in &mut operands {
                *weights = weights.on_host(&server)?;
            }
        }
        Ok(Self { packing, server, operands, patterns })
    }

    /// Head ranges that are multiplied together.
    pub fn heads(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        steps(0..self.packing.spec.heads, self.packing.head_step(self.server.context()))
    }

    /// Products of head range number `part` with the output groups `outputs` of each of its heads, in tiles that stay within
    /// the tile budget when expanded.
    pub fn multiply(&self, part: usize, outputs: Range<usize>) -> Result<Vec<Tile>> {
        let ctx = self.server.context();
        let heads = self.heads().nth(part).unwrap_or(0..0);
        let chunks = self.operands.iter().filter_map(|(input, _)| input.parts.get(part));
        let widest = chunks.flatten().map(|(blocks, _)| blocks.len()).max().unwrap_or(1);
        // On CPU threads plaintexts that are made from small integers take no memory.
        let small = self.operands.iter().all(|(_, weights)| matches!(weights, Operand::Small { .. }));
        let polys = if small && ctx.capacity().device == 0 { usize::MAX } else { tile_polys(ctx) };
        let tile = (polys / (heads.len() * widest).max(1)).clamp(1, outputs.len().max(1));
        steps(outputs, tile)
            .map(|outputs| {
                let products = self.tile(part, &heads, &outputs)?;
                Ok(Tile { outputs, products })
            })
            .collect()
    }

    /// The sum over all operands and all their blocks.
    fn tile(&self, part: usize, heads: &Range<usize>, outputs: &Range<usize>) -> Result<Buffer> {
        let ctx = self.server.context();
        let limbs = ctx.params().limbs();
        let mut sum: Option<Buffer> = None;
        for (k, (input, weights)) in self.operands.iter().enumerate() {
            // Automorphisms, each with plaintexts of its own, of the one head that there is.
            let parts = if self.patterns.is_empty() { part..part + 1 } else { 0..self.patterns.len() };
            for (turn, (blocks, ct)) in
                parts.flat_map(|p| input.parts.get(p).into_iter().flatten().map(move |x| (p, x)))
            {
                let shape = MatmulShape { groups: heads.len(), inputs: blocks.len(), outputs: outputs.len(), limbs };
                let product = match weights {
                    Operand::Small { weights, .. } => {
                        let layout = &self.packing.output;
                        let tile = ExpandShape {
                            inner: self.packing.inputs[k].inner,
                            cols: layout.cols,
                            block: layout.block,
                            columns: layout.columns(),
                            limbs,
                            outputs: outputs.clone(),
                            inputs: blocks.clone(),
                        };
                        self.server.multiply_matrix(ct, weights, &tile)?
                    }
                    wide if let Some(pattern) = self.patterns.get(turn) => {
                        let weights = wide.host().unwrap_or(&[]);
                        let values = pattern.values(&self.packing, k, weights, outputs, blocks);
                        let plain = self.server.transform_sparse(limbs, &values, &pattern.positions)?;
                        self.server.multiply_transformed(ct, &plain, shape)?
                    }
                    wide => {
                        let values = self.weight_values(k, wide.host().unwrap_or(&[]), heads, outputs, blocks);
                        self.server.multiply(ct, &values, self.packing.output.stride, shape)?
                    }
                };
                let polys = crate::engine::Shape { polys: shape.groups * shape.outputs * 2, limbs };
                sum = Some(match sum {
                    Some(sum) => ctx.backend().add(ctx.ring(), &sum, &product, polys)?,
                    None => product,
                });
            }
        }
        sum.ok_or_else(|| HeError::shape("multiply", "there is no operand"))
    }

    /// Weights of operand `k` for the polynomials `[heads][outputs][blocks]`: exponent `o K + j` holds `W[bK + j, gm + o]`.
    fn weight_values(
        &self,
        k: usize,
        weights: &[i64],
        heads: &Range<usize>,
        outputs: &Range<usize>,
        blocks: &Range<usize>,
    ) -> Zeroizing<Vec<i64>> {
        let layout = &self.packing.output;
        let (stride, block, columns, cols) = (layout.stride, layout.block, layout.columns(), layout.cols);
        let inner = self.packing.inputs[k].inner;
        let mut values = Zeroizing::new(vec![0; heads.len() * outputs.len() * blocks.len() * stride]);
        values.par_chunks_mut(stride).enumerate().for_each(|(poly, values)| {
            let b = blocks.start + poly % blocks.len();
            let g = outputs.start + poly / blocks.len() % outputs.len();
            let head = heads.start + poly / blocks.len() / outputs.len();
            let weights = &weights[head * inner * cols..][..inner * cols];
            for j in 0..block.min(inner - b * block) {
                let row = &weights[(b * block + j) * cols..][..cols];
                let row = &row[g * columns..cols.min((g + 1) * columns)];
                for (o, &w) in row.iter().enumerate() {
                    values[o * block + j] = w;
                }
            }
        });
        values
    }
}

impl CoefficientPacking {
    /// Whether small weights become polynomials on the device.
    pub(super) fn expands_on_device(&self) -> bool {
        self.spec.heads == 1 && self.split == 0
    }

    /// Heads of one launch: as many as a tile holds with one output each.
    fn head_step(&self, ctx: &BfvContext) -> usize {
        let blocks: usize = self.inputs.iter().map(InputLayout::blocks).sum();
        (tile_polys(ctx) / blocks.max(1)).clamp(1, self.spec.heads)
    }
}

/// Plaintext polynomials that fit a tile.
fn tile_polys(ctx: &BfvContext) -> usize {
    (ctx.tile_words() / (ctx.params().limbs() * ctx.params().n())).max(1)
}

/// `range` in steps.
fn steps(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step.max(1)).map(move |first| first..end.min(first + step.max(1)))
}
