//! The product itself: the client encrypts and decrypts, the server multiplies, packs and responds.

use std::ops::Range;

use rayon::prelude::*;

use super::{CoefficientPacking, InputLayout, layout::Pack};
use crate::{
    arith::{ShareModulus, sample::SecureRng},
    engine::{Buffer, MatmulShape, Shape},
    he::{HeClient, HeError, HeServer, ParameterSet, Response, Result, SeededCiphertexts},
};

/// An encrypted operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedMatrix {
    layout: InputLayout,
    ciphertexts: SeededCiphertexts,
}

/// The client's operations on matrices.
pub trait ClientMatrix {
    /// Encrypts `x`, `[heads][rows][inner]` modulo `t`.
    fn encrypt_matrix(
        &self,
        t: ShareModulus,
        layout: &InputLayout,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<EncryptedMatrix>;

    /// Decrypts a response: `sum_k X_k W_k - Z` modulo `t`, `[heads][rows][cols]`, the client's share.
    fn decrypt_matrix(&self, packing: &CoefficientPacking, response: &Response) -> Result<Vec<u64>>;
}

impl ClientMatrix for HeClient {
    fn encrypt_matrix(
        &self,
        t: ShareModulus,
        layout: &InputLayout,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<EncryptedMatrix> {
        if layout.n != self.context().params().n() {
            return Err(HeError::shape("encrypt", format!("a layout for N = {} at another N", layout.n)));
        }
        let messages = zeroize::Zeroizing::new(layout.encode(t, x)?);
        Ok(EncryptedMatrix { layout: *layout, ciphertexts: self.encrypt(t, &messages, rng)? })
    }

    fn decrypt_matrix(&self, packing: &CoefficientPacking, response: &Response) -> Result<Vec<u64>> {
        let places: Vec<_> = packing.packs.iter().map(|pack| packing.output.places(pack)).collect();
        let positions: Vec<Vec<u32>> = places.iter().map(|p| p.iter().map(|&(at, _)| at).collect()).collect();
        let values = self.decrypt(packing.spec.t, &packing.response, &positions, response)?;
        let mut out = vec![0; packing.outputs()];
        places.iter().flatten().zip(values).for_each(|(&(_, index), value)| out[index] = value);
        Ok(out)
    }
}

impl EncryptedMatrix {
    /// The layout.
    pub fn layout(&self) -> &InputLayout {
        &self.layout
    }

    /// The ciphertexts, `[heads][blocks]`.
    pub fn ciphertexts(&self) -> &SeededCiphertexts {
        &self.ciphertexts
    }

    /// The ciphertexts as [`SeededCiphertexts::to_bytes`] writes them; the layout is known to both sides.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        self.ciphertexts.to_bytes(params)
    }

    /// Reads an operand of a known layout.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes(params: &ParameterSet, layout: &InputLayout, bytes: &[u8]) -> Result<Self> {
        layout.check()?;
        let ciphertexts = SeededCiphertexts::from_bytes(params, layout.ciphertexts(), bytes)?;
        Ok(Self { layout: *layout, ciphertexts })
    }
}

impl CoefficientPacking {
    /// The server's product: `inputs[k]` is an encrypted operand and its plaintext matrix, `[heads][inner_k][cols]` of integers
    /// within the planned bound.
    ///
    /// Returns the response and Z, `[heads][rows][cols]` uniform modulo t: the client's share is the product minus Z. Z must
    /// serve no other response.
    ///
    /// # Errors
    /// If operands do not fit the plan, a weight exceeds its bound, a switching key is missing, or the device fails.
    pub fn multiply(
        &self,
        server: &HeServer,
        inputs: &[(&EncryptedMatrix, &[i64])],
        rng: &mut SecureRng,
    ) -> Result<(Response, Vec<u64>)> {
        self.check_operands(server, inputs)?;
        let operands = Operands::new(self, server, inputs)?;
        let ct_words = operands.ct_words;
        let mut response: Option<Response> = None;
        let mut mask = vec![0; self.outputs()];
        // The groups of several heads come out of one launch, which batches must not repeat; those of one head are computed
        // batch by batch, so that memory does not grow with the layer.
        let everything =
            if self.spec.heads > 1 { operands.compute(server, 0..self.output.groups())? } else { Vec::new() };
        for batch in self.batches(server.context().tile_words() / ct_words) {
            let (first, outputs) = (batch[0].first, batch[0].outputs);
            let groups = first..batch.iter().map(|p| p.first + p.used).max().unwrap_or(first);
            let computed;
            let computed = if self.spec.heads > 1 {
                &everything[groups.start * ct_words..groups.end * ct_words]
            } else {
                computed = operands.compute(server, groups)?;
                &computed
            };
            // From [pack][output] to [output][pack], absent outputs zero.
            let mut ordered = vec![0; outputs * batch.len() * ct_words];
            ordered.par_chunks_mut(ct_words).enumerate().for_each(|(k, out)| {
                let (t, pack) = (k / batch.len(), &batch[k % batch.len()]);
                if t < pack.used {
                    out.copy_from_slice(&computed[(pack.first + t - first) * ct_words..][..ct_words]);
                }
            });
            let ordered = server.context().backend().upload(&ordered)?;
            let packed = server.pack_outputs(&ordered, outputs, batch.len(), self.output.block)?;

            let places: Vec<_> = batch.iter().map(|pack| self.output.places(pack)).collect();
            let positions: Vec<Vec<u32>> = places.iter().map(|p| p.iter().map(|&(at, _)| at).collect()).collect();
            let (part, kept) = server.respond(self.spec.t, &self.response, &packed, &positions, rng)?;
            places.iter().flatten().zip(kept).for_each(|(&(_, index), z)| mask[index] = z);
            match &mut response {
                Some(response) => response.append(part),
                None => response = Some(part),
            }
        }
        let response = response.ok_or_else(|| HeError::shape("multiply", "there is no output"))?;
        Ok((response, mask))
    }

    /// Reads a response of this product.
    ///
    /// # Errors
    /// If the length is not exactly right or a value is out of range.
    pub fn read_response(&self, params: &ParameterSet, bytes: &[u8]) -> Result<Response> {
        Response::from_bytes(params, &self.response, self.packs.len(), self.outputs(), bytes)
    }

    /// Bytes of a response of this product.
    pub fn write_response(&self, params: &ParameterSet, response: &Response) -> Vec<u8> {
        response.to_bytes(params, &self.response)
    }

    fn check_operands(&self, server: &HeServer, inputs: &[(&EncryptedMatrix, &[i64])]) -> Result<()> {
        let fail = |detail: String| Err(HeError::shape("multiply", detail));
        if self.inputs.iter().any(|x| x.n != server.context().params().n()) {
            return fail("the product was planned for another ring".into());
        }
        if inputs.len() != self.inputs.len() {
            return fail(format!("{} operands where {} were planned", inputs.len(), self.inputs.len()));
        }
        let bound = self.spec.operand.max_abs(self.spec.t);
        for ((matrix, weights), layout) in inputs.iter().zip(&self.inputs) {
            if matrix.layout != *layout || matrix.ciphertexts.len() != layout.ciphertexts() {
                return fail(format!("an operand is laid out as {:?}, planned was {layout:?}", matrix.layout));
            }
            let expected = self.spec.heads * layout.inner * self.spec.cols;
            if weights.len() != expected {
                return fail(format!("{} weights where {expected} are needed", weights.len()));
            }
            if weights.iter().fold(0, |max, w| w.unsigned_abs().max(max)) > bound {
                return fail(format!("a weight exceeds its bound of {bound}"));
            }
        }
        Ok(())
    }

    /// Packs with equal numbers of outputs, together up to about a number of unpacked ciphertexts.
    fn batches(&self, ciphertexts: usize) -> Vec<&[Pack]> {
        let mut out = Vec::new();
        for run in self.packs.chunk_by(|a, b| a.outputs == b.outputs) {
            let size = (ciphertexts / run[0].outputs).clamp(1, run.len());
            out.extend(run.chunks(size));
        }
        out
    }
}

/// The server's operands on the device.
struct Operands<'a> {
    packing: &'a CoefficientPacking,
    weights: Vec<&'a [i64]>,
    /// Input ciphertexts `[heads in the range][inputs in the chunk][2][limbs][N]`, by head range and input chunk.
    parts: Vec<HeadRange>,
    inputs: usize,
    ct_words: usize,
}

struct HeadRange {
    heads: Range<usize>,
    chunks: Vec<(Range<usize>, Buffer)>,
}

impl<'a> Operands<'a> {
    fn new(
        packing: &'a CoefficientPacking,
        server: &HeServer,
        inputs: &[(&EncryptedMatrix, &'a [i64])],
    ) -> Result<Self> {
        let params = server.context().params();
        let poly_words = params.limbs() * params.n();
        let ct_words = 2 * poly_words;
        let heads = packing.spec.heads;
        let expanded =
            inputs.iter().map(|(matrix, _)| matrix.ciphertexts.expand(params)).collect::<Result<Vec<Vec<u32>>>>()?;
        let blocks: Vec<usize> = packing.inputs.iter().map(InputLayout::blocks).collect();
        let count: usize = blocks.iter().sum();

        let polys = (server.context().tile_words() / poly_words).max(1);
        let head_step = (polys / count).clamp(1, heads);
        let input_step = count.min(polys);
        let mut parts = Vec::new();
        for first in (0..heads).step_by(head_step) {
            let range = first..heads.min(first + head_step);
            let mut chunks = Vec::new();
            for first in (0..count).step_by(input_step) {
                let chunk = first..count.min(first + input_step);
                let mut words = Vec::with_capacity(range.len() * chunk.len() * ct_words);
                for head in range.clone() {
                    for i in chunk.clone() {
                        let (k, b) = locate(&blocks, i);
                        words.extend_from_slice(&expanded[k][(head * blocks[k] + b) * ct_words..][..ct_words]);
                    }
                }
                chunks.push((chunk, server.context().backend().upload(&words)?));
            }
            parts.push(HeadRange { heads: range, chunks });
        }
        let weights = inputs.iter().map(|(_, weights)| *weights).collect();
        Ok(Self { packing, weights, parts, inputs: count, ct_words })
    }

    /// The output groups in `groups`, `[groups][2][limbs][N]` in the NTT domain. For several heads `groups` is
    /// all of them.
    fn compute(&self, server: &HeServer, groups: Range<usize>) -> Result<Vec<u32>> {
        let ctx = server.context();
        let limbs = ctx.params().limbs();
        let per_head = self.packing.output.groups_per_head();
        let mut out = vec![0; groups.len() * self.ct_words];
        for part in &self.parts {
            let outputs = if self.packing.spec.heads == 1 { groups.clone() } else { 0..per_head };
            let chunk_inputs = part.chunks.first().map_or(1, |(chunk, _)| chunk.len());
            let polys = ctx.tile_words() / (limbs * ctx.params().n());
            let tile = (polys / (part.heads.len() * chunk_inputs)).clamp(1, outputs.len().max(1));
            for first in outputs.clone().step_by(tile) {
                let tile = first..outputs.end.min(first + tile);
                let mut sum: Option<Buffer> = None;
                for (chunk, ct) in &part.chunks {
                    let values = self.weight_values(&part.heads, &tile, chunk);
                    let shape =
                        MatmulShape { groups: part.heads.len(), inputs: chunk.len(), outputs: tile.len(), limbs };
                    let product = server.multiply(ct, &values, self.packing.output.stride, shape)?;
                    let polys = Shape { polys: shape.groups * shape.outputs * 2, limbs };
                    sum = Some(match sum {
                        Some(sum) => ctx.backend().add(ctx.ring(), &sum, &product, polys)?,
                        None => product,
                    });
                }
                let Some(sum) = sum else { continue };
                let words = ctx.backend().download(&sum)?;
                for (k, words) in words.chunks(tile.len() * self.ct_words).enumerate() {
                    let start = (part.heads.start + k) * per_head + tile.start;
                    for (group, words) in (start..).zip(words.chunks(self.ct_words)) {
                        if groups.contains(&group) {
                            out[(group - groups.start) * self.ct_words..][..self.ct_words].copy_from_slice(words);
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    /// Weights of the polynomials `[heads][outputs][inputs]`: exponent `o K + j` holds `W[bK + j, gm + o]`.
    fn weight_values(&self, heads: &Range<usize>, outputs: &Range<usize>, inputs: &Range<usize>) -> Vec<i64> {
        let layout = &self.packing.output;
        let (stride, block, columns, cols) = (layout.stride, layout.block, layout.columns(), layout.cols);
        let blocks: Vec<usize> = self.packing.inputs.iter().map(InputLayout::blocks).collect();
        debug_assert!(inputs.end <= self.inputs);
        let mut values = vec![0; heads.len() * outputs.len() * inputs.len() * stride];
        values.par_chunks_mut(stride).enumerate().for_each(|(poly, values)| {
            let i = inputs.start + poly % inputs.len();
            let g = outputs.start + poly / inputs.len() % outputs.len();
            let head = heads.start + poly / inputs.len() / outputs.len();
            let (k, b) = locate(&blocks, i);
            let inner = self.packing.inputs[k].inner;
            let weights = &self.weights[k][head * inner * cols..][..inner * cols];
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

/// The operand and the block within it of input ciphertext `i` of a head.
fn locate(blocks: &[usize], mut i: usize) -> (usize, usize) {
    for (k, &count) in blocks.iter().enumerate() {
        if i < count {
            return (k, i);
        }
        i -= count;
    }
    (blocks.len(), i)
}
