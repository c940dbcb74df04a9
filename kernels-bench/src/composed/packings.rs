//! The server's share of an encrypted linear layer in the packings beside the coefficient one (`layer`): batch column, whose rows
//! are those of as many inferences as fill a ciphertext (`batch` says how many, and times are of all of them), tokens first with
//! baby steps and giant steps, and the coefficient packing with the fewest ciphertexts, half of its levels on the inputs. Inputs
//! (with their rotations, which serve all products that read them, where the size says so) and weights are where their packing wants them before the clock starts.

use std::{sync::Arc, time::Instant};

use heliostat::{
    arith::{ShareModulus, sample, sample::SecureRng},
    engine::cpu::CpuBackend,
    he::{
        BfvContext, COLUMN_4096, HeClient, HeServer, MATMUL_8192, ParameterSet, ParameterSpec, Response,
        SeededCiphertexts,
    },
    packing::{
        BatchColumnPacking, CoefficientLayout, CoefficientPacking, MatmulSpec, OperandBound, Packing, SlotMethod,
        SlotPacking,
    },
};

use super::{Bench, COLUMNS, LAYERS, MATMUL};
use crate::{
    Result,
    ceilings::Ceilings,
    cost::{self, Cost},
    devices::Device,
    measure::{Contender, Finding, Group, Work, group},
    report::Row,
    stats::{Operation, Samples},
};

/// Largest magnitude of a weight: 12 bits.
const MAX_WEIGHT: i64 = 2047;

/// Bits of the ring of shares; one more of the prime, to hold as much.
const BITS: u32 = 32;

/// Rows and columns of one inference's matrix, and the columns of the weights.
type Sizes = (usize, usize, usize);

/// Measures every layer of a run in both packings, on every device at once.
pub fn run(bench: &Bench, done: &mut impl FnMut(Group) -> Result<()>) -> Result<()> {
    let small = bench.arguments.quick || bench.devices.has_software_gpu();
    let sizes: &[Sizes] = if small { &[(512, 16, 16)] } else { &[(128, 768, 768), (128, 768, 3072)] };
    let fits: fn(&Device) -> bool = if small { |_| true } else { super::in_hardware };
    for &sizes in sizes {
        done(Layer::batch_column(sizes)?.measure(bench, fits)?)?;
        done(Layer::tokens_first(sizes)?.measure(bench, fits)?)?;
        done(Layer::split(sizes)?.measure(bench, fits)?)?;
    }
    Ok(())
}

/// Products of a layer of BERT-base: inner dimension, columns, how many.
const BERT_LAYER: [(usize, usize, usize); 3] = [(768, 768, 4), (768, 3072, 1), (3072, 768, 1)];

/// Tokens.
const TOKENS: usize = 128;

/// How the size of a row begins that stands for no whole layer.
const SAMPLE: &str = "a small product";

/// The linear layers of BERT-base at 128 tokens in batch-column packing on every GPU in hardware and on all CPU threads: one
/// encoder layer for as many inferences as fill the rows, the time that of one of them. `--quick` computes a small product, of
/// which nothing follows.
pub fn bert_columns(bench: &Bench, done: &mut impl FnMut(Group) -> Result<()>) -> Result<()> {
    let threads = bench.devices.main.iter().map(|device| device.label().threads).max().unwrap_or(1);
    let small = [(64, 32, 1)];
    let products = if bench.arguments.quick { &small[..] } else { &BERT_LAYER[..] };
    let layers = products.iter().map(|&(inner, cols, count)| Ok((Layer::batch_column((TOKENS, inner, cols))?, count)));
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let mut group = Group::new();
    for (device, ceilings) in
        bench.devices(|d| d.is_real_gpu() || (d.as_gpu().is_none() && d.label().threads == threads))
    {
        let result = columns(&layers, device, ceilings, bench.arguments.quick);
        group.extend(bench.attempt(device, COLUMNS, result)?);
    }
    done(group)
}

/// Times the products of a layer, each several times.
fn columns(layers: &[(Layer, usize)], device: &Device, ceilings: &Ceilings, quick: bool) -> Result<Finding> {
    let mut nanoseconds = vec![0.0; 3];
    let (mut verified, mut cost) = (true, Cost::default());
    for (layer, count) in layers {
        let (packing, mut rng) = (layer.packing.as_ref(), SecureRng::from_os()?);
        let mut multiply = device.install(|| -> Result<_> {
            let server = layer.server(device)?;
            let input = packing.load_input(&server, 0, layer.input.clone())?;
            let weights = packing.prepare_weights(&server, &[&layer.weights])?;
            Ok(move || -> Result<(Response, Vec<u64>)> {
                Ok(packing.multiply_prepared(&server, std::slice::from_ref(&input), &weights, &mut rng)?)
            })
        })?;
        // The first one warms up and is checked.
        let (response, mask) = device.install(&mut multiply)?;
        verified &= layer.is_right(&response, &mask)?;
        for sum in &mut nanoseconds {
            let start = Instant::now();
            drop(device.install(&mut multiply)?);
            *sum += start.elapsed().as_secs_f64() * 1e9 * *count as f64 / layer.work.batch as f64;
        }
        cost.bytes += layer.work.cost.bytes * *count as f64 / layer.work.batch as f64;
        cost.multiplies += layer.work.cost.multiplies * *count as f64 / layer.work.batch as f64;
    }
    let samples = Samples::new(nanoseconds);
    let label = device.label().clone();
    let together = layers.first().map_or(1, |(layer, _)| layer.work.batch);
    let what = if quick { SAMPLE } else { "a layer" };
    let row = Row {
        kernel: COLUMNS.into(),
        n: COLUMN_4096.n,
        limbs: COLUMN_4096.data_limbs,
        batch: together,
        size: Some(format!("{what} for one of {together} inferences together")),
        backend: label.backend.into(),
        form: label.form,
        threads: label.threads,
        adapter: label.adapter,
        runs: samples.runs(),
        median_ns: samples.median(),
        iqr_ns: samples.iqr(),
        verified,
        limit_fraction: ceilings.limit_ns(&cost).map(|limit| limit / samples.median()),
    };
    Ok(Finding { row, cost, samples })
}

/// Seconds of all linear layers for one inference by a row of [`COLUMNS`]; `None` for a sample.
pub fn whole_columns(finding: &Finding) -> Option<f64> {
    let sampled = finding.row.size.as_ref().is_some_and(|size| size.starts_with(SAMPLE));
    (!sampled).then(|| finding.samples.median() * LAYERS as f64 / 1e9)
}

/// A planned product with its operands.
struct Layer {
    set: ParameterSpec,
    packing: Box<dyn Packing>,
    client: HeClient,
    input: Arc<SeededCiphertexts>,
    x: Vec<u64>,
    weights: Vec<i64>,
    work: Work,
}

impl Layer {
    /// As many inferences as fill the rows.
    fn batch_column((rows, inner, cols): Sizes) -> Result<Self> {
        let params = ParameterSet::new(COLUMN_4096)?;
        let together = COLUMN_4096.n / rows;
        let t = ShareModulus::pow2(BITS).ok_or("2^32 is no ring of shares")?;
        let packing = BatchColumnPacking::new(&params, &spec(t, (rows * together, inner, cols)))?;
        let size = format!("{rows}x{inner}x{cols} batch_column, {together} inferences together");
        // A product of two residues takes one multiply, and every output has its reduction.
        let words = 2 * params.limbs() * params.n();
        let multiplies = (inner * cols * words) as f64 + cost::transforms(params.n(), 3 * cols * params.limbs());
        let cost = Cost { bytes: 4.0 * ((inner + cols) * words + inner * cols / 2) as f64, multiplies };
        Self::new(COLUMN_4096, Box::new(packing), together, size, cost)
    }

    fn tokens_first(sizes: Sizes) -> Result<Self> {
        let params = ParameterSet::new(MATMUL_8192)?;
        let t = ShareModulus::slots(BITS + 1, params.n()).ok_or("there is no such prime")?;
        let packing = SlotPacking::new(&params, SlotMethod::TokensFirst, &spec(t, sizes))?;
        let (rows, inner, cols) = sizes;
        let (babies, giants) = packing.steps();
        let size = format!("{rows}x{inner}x{cols} tokens_first, {babies} babies, {giants} giants");
        let (counts, words) = (packing.counts(), 2 * params.limbs() * params.n());
        let moved = (counts.ciphertexts_up + counts.ciphertexts_down) as usize * words + inner * cols / 2;
        // Beside the transforms modulo q one modulo t for each plaintext, of 64-bit words: four multiplies for one.
        let transforms = counts.server_ntts as usize + 4 * counts.products as usize;
        let multiplies = cost::transforms(params.n(), transforms) + (counts.products as usize * words) as f64;
        Self::new(MATMUL_8192, Box::new(packing), 1, size, Cost { bytes: 4.0 * moved as f64, multiplies })
    }

    fn split(sizes: Sizes) -> Result<Self> {
        let params = ParameterSet::new(MATMUL_8192)?;
        let t = ShareModulus::pow2(BITS).ok_or("2^32 is no ring of shares")?;
        let (rows, inner, cols) = sizes;
        let stride = params.n() / rows.next_power_of_two();
        let layout = CoefficientLayout { stride, block: stride, split: stride.ilog2() / 2, limbs: None };
        let packing = CoefficientPacking::with_layout(&params, &spec(t, sizes), &layout)?;
        let (counts, limbs) = (packing.counts(), packing.limbs());
        let size = format!(
            "{rows}x{inner}x{cols} coefficient, {} of {} levels on inputs made before",
            layout.split,
            stride.ilog2()
        );
        let words = 2 * limbs * params.n();
        let moved = (counts.ciphertexts_up + counts.ciphertexts_down) as usize * words + inner * cols / 2;
        let multiplies =
            cost::transforms(params.n(), counts.server_ntts as usize) + (counts.products as usize * words) as f64;
        let cost = Cost { bytes: 4.0 * moved as f64, multiplies };
        let mut layer = Self::new(MATMUL_8192, Box::new(packing), 1, size, cost)?;
        layer.work.limbs = limbs;
        Ok(layer)
    }

    /// Random shares and weights.
    fn new(set: ParameterSpec, packing: Box<dyn Packing>, batch: usize, size: String, cost: Cost) -> Result<Self> {
        let mut rng = SecureRng::from_os()?;
        let context = BfvContext::new(Arc::new(CpuBackend::new(None)), ParameterSet::new(set)?);
        let client = HeClient::generate(context, &mut rng);
        let MatmulSpec { t, rows, ref inner, cols, .. } = *packing.spec();
        let mut x = vec![0; rows * inner[0]];
        sample::uniform_ring(&mut rng, t, &mut x);
        let mut weights = vec![0; inner[0] * cols];
        sample::uniform_ring(&mut rng, t, &mut weights);
        let small = |w: u64| (w % (2 * MAX_WEIGHT as u64 + 1)) as i64 - MAX_WEIGHT;
        let weights = weights.into_iter().map(small).collect();
        let input = Arc::new(packing.encrypt_input(&client, 0, &x, &mut rng)?);
        let work = Work { kernel: MATMUL, n: set.n, limbs: set.data_limbs, batch, size: Some(size), cost };
        Ok(Self { set, packing, client, input, x, weights, work })
    }

    fn measure(&self, bench: &Bench, fits: fn(&Device) -> bool) -> Result<Group> {
        let packing = self.packing.as_ref();
        let mut contenders = Vec::new();
        for (device, ceilings) in bench.devices(fits) {
            let mut rng = SecureRng::from_os()?;
            let prepare = || -> Result<_> {
                let server = self.server(device)?;
                let input = packing.load_input(&server, 0, self.input.clone())?;
                let weights = packing.prepare_weights(&server, &[&self.weights])?;
                let result = packing.multiply_prepared(&server, std::slice::from_ref(&input), &weights, &mut rng)?;
                Ok((server, input, weights, result))
            };
            let Some((server, input, weights, (response, mask))) =
                bench.attempt(device, MATMUL, device.install(prepare))?
            else {
                continue;
            };
            let verified = self.is_right(&response, &mask)?;
            let operation: Operation = Box::new(move |repeats| {
                // The response is in host memory when the product returns: there is nothing left to wait for.
                device.install(|| {
                    let mut multiply =
                        || packing.multiply_prepared(&server, std::slice::from_ref(&input), &weights, &mut rng);
                    (0..repeats).try_for_each(|_| multiply().map(drop).map_err(Into::into))
                })
            });
            let (label, ceilings) = (device.label().clone(), Some(ceilings));
            contenders.push(Contender { label, verified, ceilings, operation, again: None });
        }
        group(&self.work, bench.effort.heavy(), contenders)
    }

    fn server(&self, device: &Device) -> Result<HeServer> {
        let mut rng = SecureRng::from_os()?;
        let elements = self.packing.rotation_elements();
        let public = self.client.public_key(&mut rng)?;
        let galois = match elements.is_empty() {
            true => None,
            false => Some(self.client.galois_keys_for(&elements, &mut rng)?),
        };
        let context = BfvContext::new(device.shared(), ParameterSet::new(self.set)?);
        Ok(HeServer::new(context, &public, galois.as_ref())?)
    }

    /// Whether the client's share and the mask add up to the product of the integers, in one row of every 16 and the last.
    fn is_right(&self, response: &Response, mask: &[u64]) -> Result<bool> {
        let share = self.packing.decrypt_output(&self.client, response)?;
        let MatmulSpec { t, rows, ref inner, cols, .. } = *self.packing.spec();
        let right = |i: usize| {
            let mut expected = vec![0; cols];
            for (&x, weights) in self.x[i * inner[0]..][..inner[0]].iter().zip(self.weights.chunks(cols)) {
                let term = |(out, &w): (&mut u64, &i64)| *out = t.add(*out, t.mul(x, t.from_signed(w)));
                expected.iter_mut().zip(weights).for_each(term);
            }
            let row = i * cols..(i + 1) * cols;
            share[row.clone()].iter().zip(&mask[row]).map(|(&c, &z)| t.add(c, z)).eq(expected)
        };
        Ok(share.len() == rows * cols && (0..rows).step_by(16).chain([rows - 1]).all(right))
    }
}

fn spec(t: ShareModulus, (rows, inner, cols): Sizes) -> MatmulSpec {
    MatmulSpec {
        t,
        heads: 1,
        rows,
        inner: vec![inner],
        cols,
        operand: OperandBound::Weights { max_abs: MAX_WEIGHT as u64 },
    }
}
