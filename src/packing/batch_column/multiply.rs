//! The product: the client's columns, the server's matrix product tile by tile.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::BatchColumnPacking;
use crate::{
    arith::sample::SecureRng,
    engine::{
        Buffer, GemmShape, Shape,
        schedule::{TaskGraph, TaskId, Work},
        small_words,
    },
    he::{BfvContext, Domain, HeClient, HeError, HeServer, Response, ResponsePlan, Result, SeededCiphertexts},
    packing::{
        Counts, Loaded, LoadedInput, MatmulSpec, Packing, Pending, PendingProduct, Prepared, PreparedWeights,
        check_weights, foreign,
        respond::{Batch, Responding},
    },
};

/// Encrypted columns of one summed input.
#[derive(Clone)]
pub(in crate::packing) struct Columns {
    /// Columns of a block, and what is multiplied at a time.
    inner: usize,
    chunks: Vec<Range<usize>>,
    source: Arc<SeededCiphertexts>,
    /// `[blocks][chunks]` on the device, each `[columns][2][limbs][N]` in the NTT domain; empty where all of them would take too
    /// much memory, and each comes when it is needed.
    resident: Vec<Buffer>,
}

/// Integer matrices on the device, cut as a product reads them.
pub(in crate::packing) struct Weights {
    /// `[inputs][tiles of outputs][chunks]`, each `[outputs][columns]`.
    matrices: Vec<Vec<Vec<Buffer>>>,
}

/// Tiles of a chunk of columns where CPU threads do the work: the fewer chunks, the fewer passes over the sums.
const CPU_CHUNK: usize = 8;

/// Tiles of columns that stay where they are between products: 2 GiB on a CPU or a GPU without a memory budget, a quarter of
/// the budget where there is one.
const CPU_RESIDENT: usize = 128;
const GPU_RESIDENT: usize = 8;
const BUDGET_RESIDENT: usize = 2;

fn ciphertext_words(ctx: &BfvContext) -> usize {
    2 * ctx.params().limbs() * ctx.params().n()
}

/// Output columns of one tile.
fn tiles(ctx: &BfvContext, cols: usize) -> Vec<Range<usize>> {
    steps(cols, ctx.tile_words() / ciphertext_words(ctx))
}

/// Input columns of one matrix product.
fn chunks(ctx: &BfvContext, inner: usize) -> Vec<Range<usize>> {
    let words = if on_cpu(ctx) { CPU_CHUNK * ctx.tile_words() } else { ctx.tile_words() };
    steps(inner, words / ciphertext_words(ctx))
}

fn on_cpu(ctx: &BfvContext) -> bool {
    ctx.capacity().device == 0
}

/// Words of columns that stay on the device.
fn resident_words(ctx: &BfvContext) -> usize {
    let tiles = match ctx.backend().memory().budget {
        _ if on_cpu(ctx) => CPU_RESIDENT,
        Some(_) => BUDGET_RESIDENT,
        None => GPU_RESIDENT,
    };
    tiles.saturating_mul(ctx.tile_words())
}

fn steps(end: usize, step: usize) -> Vec<Range<usize>> {
    (0..end).step_by(step.max(1)).map(|first| first..end.min(first + step.max(1))).collect()
}

impl Columns {
    fn load(ctx: &BfvContext, blocks: usize, inner: usize, source: Arc<SeededCiphertexts>) -> Result<Self> {
        if source.len() != blocks * inner {
            return Err(HeError::shape(
                "multiply",
                format!("{} ciphertexts for {} columns", source.len(), blocks * inner),
            ));
        }
        let fits = source.len() * ciphertext_words(ctx) <= resident_words(ctx);
        let mut columns = Self { inner, chunks: chunks(ctx, inner), source, resident: Vec::new() };
        if fits {
            let all = (0..blocks).flat_map(|block| (0..columns.chunks.len()).map(move |chunk| (block, chunk)));
            columns.resident = all.map(|(block, chunk)| columns.upload(ctx, block, chunk)).collect::<Result<_>>()?;
        }
        Ok(columns)
    }

    fn chunk(&self, ctx: &BfvContext, block: usize, chunk: usize) -> Result<Buffer> {
        match self.resident.get(block * self.chunks.len() + chunk) {
            Some(buffer) => Ok(buffer.clone()),
            None => self.upload(ctx, block, chunk),
        }
    }

    fn upload(&self, ctx: &BfvContext, block: usize, chunk: usize) -> Result<Buffer> {
        let range = &self.chunks[chunk];
        let first = block * self.inner;
        let words = self.source.expand_range(ctx.params(), first + range.start..first + range.end)?;
        Ok(ctx.backend().upload(&words)?)
    }
}

impl Weights {
    fn new(ctx: &BfvContext, spec: &MatmulSpec, weights: &[&[i64]]) -> Result<Self> {
        let cols = spec.cols;
        let matrix = |weights: &[i64], outputs: &Range<usize>, columns: &Range<usize>| -> Result<Buffer> {
            let entry = |o: usize, f: usize| weights[f * cols + o] as i16;
            let row = |o: usize| columns.clone().map(move |f| entry(o, f));
            let cut: Vec<i16> = outputs.clone().flat_map(row).collect();
            Ok(ctx.backend().upload(&small_words(&cut))?)
        };
        let input = |(weights, &inner): (&&[i64], &usize)| -> Result<Vec<Vec<Buffer>>> {
            let chunks = chunks(ctx, inner);
            let tile =
                |outputs: &Range<usize>| chunks.iter().map(|columns| matrix(weights, outputs, columns)).collect();
            tiles(ctx, cols).iter().map(tile).collect()
        };
        Ok(Self { matrices: weights.iter().zip(&spec.inner).map(input).collect::<Result<_>>()? })
    }
}

/// `sum over inputs and chunks` of one tile of outputs of one block, `[outputs][2][limbs][N]` in the NTT domain.
fn multiply(
    server: &HeServer,
    inputs: &[Columns],
    weights: &Weights,
    (block, tile, outputs): (usize, usize, usize),
) -> Result<Buffer> {
    let ctx = server.context();
    let limbs = ctx.params().limbs();
    let mut sum: Option<Buffer> = None;
    for (input, matrices) in inputs.iter().zip(&weights.matrices) {
        for (chunk, columns) in input.chunks.iter().enumerate() {
            let x = input.chunk(ctx, block, chunk)?;
            let shape = GemmShape { inputs: columns.len(), outputs, polys: 2, limbs };
            let product = server.combine(&x, &matrices[tile][chunk], shape)?;
            let polys = Shape { polys: 2 * outputs, limbs };
            sum = Some(match sum {
                Some(sum) => ctx.backend().add(ctx.ring(), &sum, &product, polys)?,
                None => product,
            });
        }
    }
    sum.ok_or_else(|| HeError::shape("multiply", "there is no operand"))
}

/// A product whose tasks are in a graph; ciphertexts come as `[blocks][cols]`.
struct Product {
    packing: BatchColumnPacking,
    responding: Responding,
}

impl Pending for Product {
    fn tasks(&self) -> Vec<TaskId> {
        self.responding.tasks()
    }

    fn collect(&self) -> Result<(Response, Vec<u64>)> {
        let (response, masks) = self.responding.collect()?;
        Ok((response, self.packing.rows(&masks)))
    }
}

impl BatchColumnPacking {
    /// Coefficients of c0 that are sent, of every ciphertext `[blocks][cols]`.
    fn positions(&self) -> Vec<Vec<u32>> {
        let block = |block| vec![(0..self.rows_of(block) as u32).collect(); self.spec.cols];
        (0..self.blocks()).flat_map(block).collect()
    }

    /// `[rows][cols]` of values `[blocks][cols][rows of the block]`.
    fn rows(&self, values: &[u64]) -> Vec<u64> {
        let cols = self.spec.cols;
        let mut out = vec![0; self.spec.rows * cols];
        for (block, (out, values)) in out.chunks_mut(self.n * cols).zip(values.chunks(self.n * cols)).enumerate() {
            let rows = self.rows_of(block);
            let fill = |(i, row): (usize, &mut [u64])| {
                row.iter_mut().enumerate().for_each(|(o, out)| *out = values[o * rows + i]);
            };
            out.par_chunks_mut(cols).enumerate().for_each(fill);
        }
        out
    }
}

impl Packing for BatchColumnPacking {
    fn name(&self) -> &'static str {
        "batch_column"
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn spec(&self) -> &MatmulSpec {
        &self.spec
    }

    fn response_plan(&self) -> &ResponsePlan {
        &self.response
    }

    fn rotation_elements(&self) -> Vec<usize> {
        Vec::new()
    }

    fn input_ciphertexts(&self, index: usize) -> usize {
        self.spec.inner.get(index).map_or(0, |inner| self.blocks() * inner)
    }

    fn kept_coefficients(&self) -> usize {
        self.spec.rows * self.spec.cols
    }

    fn encrypt_input(
        &self,
        client: &HeClient,
        index: usize,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<SeededCiphertexts> {
        let (rows, inner) = (self.spec.rows, self.spec.inner.get(index).copied().unwrap_or(0));
        if x.len() != rows * inner || inner == 0 || client.context().params().n() != self.n {
            let detail = format!(
                "{} elements at N = {} where {rows} x {inner} at N = {} were planned",
                x.len(),
                client.context().params().n(),
                self.n
            );
            return Err(HeError::shape("encrypt", detail));
        }
        let mut messages = Zeroizing::new(vec![0; self.blocks() * inner * self.n]);
        messages.par_chunks_mut(self.n).enumerate().for_each(|(k, column)| {
            let (block, f) = (k / inner, k % inner);
            let rows = &x[block * self.n * inner..][..self.rows_of(block) * inner];
            column.iter_mut().zip(rows.chunks(inner)).for_each(|(out, row)| *out = self.spec.t.reduce(row[f]));
        });
        client.encrypt(self.spec.t, &messages, rng)
    }

    fn load_input(&self, server: &HeServer, index: usize, input: Arc<SeededCiphertexts>) -> Result<LoadedInput> {
        let ctx = server.context();
        let inner = self.spec.inner.get(index).copied().unwrap_or(0);
        if ctx.params().n() != self.n || inner == 0 {
            return Err(HeError::shape(
                "multiply",
                "there is no such input, or the product was planned for another ring",
            ));
        }
        Ok(LoadedInput(Loaded::Columns(Columns::load(ctx, self.blocks(), inner, input)?)))
    }

    fn prepare_weights(&self, server: &HeServer, weights: &[&[i64]]) -> Result<PreparedWeights> {
        check_weights(&self.spec, weights)?;
        Ok(PreparedWeights(Prepared::Columns(Arc::new(Weights::new(server.context(), &self.spec, weights)?))))
    }

    fn add<'a>(
        &self,
        graph: &mut TaskGraph<'a, HeError>,
        name: &str,
        server: &HeServer,
        inputs: &[LoadedInput],
        weights: &PreparedWeights,
        rng: &mut SecureRng,
    ) -> Result<PendingProduct> {
        let Prepared::Columns(weights) = &weights.0 else { return Err(foreign("weights")) };
        let columns = |input: &LoadedInput| match &input.0 {
            Loaded::Columns(columns) => Ok(columns.clone()),
            _ => Err(foreign("an input")),
        };
        let inputs: Arc<Vec<Columns>> = Arc::new(inputs.iter().map(columns).collect::<Result<_>>()?);
        let ctx = server.context();
        let (cols, tiles) = (self.spec.cols, tiles(ctx, self.spec.cols));
        let fits = inputs.len() == self.spec.inner.len()
            && inputs
                .iter()
                .zip(&self.spec.inner)
                .all(|(x, &inner)| x.inner == inner && x.source.len() == self.blocks() * inner)
            && weights.matrices.len() == inputs.len()
            && weights
                .matrices
                .iter()
                .zip(inputs.iter())
                .all(|(m, x)| m.len() == tiles.len() && m.iter().all(|m| m.len() == x.chunks.len()));
        if !fits || ctx.params().n() != self.n {
            return Err(HeError::shape("multiply", "the operands are not those of this product on this device"));
        }
        let positions = self.positions();
        let batch = |(block, (tile, outputs)): (usize, (usize, &Range<usize>))| {
            let (server, inputs, weights, what) =
                (server.clone(), inputs.clone(), weights.clone(), (block, tile, outputs.len()));
            // The cost model has no matrix product with integers; on residues it costs about a quarter of one with polynomials.
            let work = Work { products: (outputs.len() * self.features() / 4) as u64, ..Work::default() };
            Batch {
                after: Vec::new(),
                work,
                positions: positions[block * cols + outputs.start..][..outputs.len()].to_vec(),
                compute: Box::new(move || Ok((Domain::Ntt, multiply(&server, &inputs, &weights, what)?))),
            }
        };
        let batches = (0..self.blocks()).flat_map(|block| tiles.iter().enumerate().map(move |tile| (block, tile)));
        let batches = batches.map(batch).collect();
        let responding = Responding::add(graph, name, server, self.spec.t, &self.response, batches, rng);
        Ok(PendingProduct(Box::new(Product { packing: self.clone(), responding })))
    }

    fn decrypt_output(&self, client: &HeClient, response: &Response) -> Result<Vec<u64>> {
        let values = client.decrypt(self.spec.t, &self.response, &self.positions(), response)?;
        Ok(self.rows(&Zeroizing::new(values)))
    }
}
