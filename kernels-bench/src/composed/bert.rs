//! The linear layers of BERT-base at 128 tokens: 12 layers of four 768x768 products, one 768x3072 and one 3072x768.
//!
//! A GPU computes all of them, each with weights of its own. A CPU computes one layer (`--quick`: one product): its row says
//! so in its size, and what the bars make of it says that it is extrapolated.

use std::time::Instant;

use heliostat::{arith::sample::SecureRng, he::MATMUL_8192};

use super::{
    BERT, Bench,
    layer::{Client, Product},
};
use crate::{
    Result,
    ceilings::Ceilings,
    cost::Cost,
    devices::Device,
    measure::{Finding, Group},
    report::Row,
    stats::Samples,
};

/// Layers of the model.
pub const LAYERS: usize = 12;

/// Tokens.
const TOKENS: usize = 128;

/// Products of a layer: inner dimension and columns.
const LAYER: [(usize, usize); 6] = [(768, 768), (768, 768), (768, 768), (768, 768), (768, 3072), (3072, 768)];

/// Part of a layer's multiply-adds that `--quick` computes: 768 x 768 of 12 times as many.
const QUICK_PART: f64 = 12.0;

/// Measures on every GPU in hardware and on all CPU threads.
pub fn run(bench: &Bench, done: &mut impl FnMut(Group) -> Result<()>) -> Result<()> {
    let threads = bench.devices.main.iter().map(|device| device.label().threads).max().unwrap_or(1);
    let client = Client::new(64)?;
    let mut group = Group::new();
    for (device, ceilings) in
        bench.devices(|d| d.is_real_gpu() || (d.as_gpu().is_none() && d.label().threads == threads))
    {
        let layers = if device.is_real_gpu() && !bench.arguments.quick { LAYERS } else { 1 };
        let products = if bench.arguments.quick { &LAYER[..1] } else { &LAYER[..] };
        let result = measure(&client, device, ceilings, layers, products);
        group.extend(bench.attempt(device, BERT, result)?);
    }
    done(group)
}

/// Times `layers` layers on a device, one sample each, each product with new weights and verified.
fn measure(
    client: &Client,
    device: &Device,
    ceilings: &Ceilings,
    layers: usize,
    products: &[(usize, usize)],
) -> Result<Finding> {
    let server = client.server(device)?;
    let mut rng = SecureRng::from_os()?;
    let mut shapes: Vec<((usize, usize), Product)> = Vec::new();
    for &(inner, cols) in products {
        if shapes.iter().all(|(shape, _)| *shape != (inner, cols)) {
            shapes.push(((inner, cols), Product::new(client, (TOKENS, inner, cols))?));
        }
    }
    let product = |shape| shapes.iter().find(|(known, _)| *known == shape).map(|(_, product)| product);
    let (mut samples, mut verified, mut cost) = (Vec::new(), true, Cost::default());
    for layer in 0..layers {
        let mut nanoseconds = 0.0;
        for product in products.iter().filter_map(|&shape| product(shape)) {
            let weights = product.random_weights()?;
            let start = Instant::now();
            let (response, mask) = device.install(|| product.multiply(&server, &weights, &mut rng))?;
            nanoseconds += start.elapsed().as_secs_f64() * 1e9;
            verified &= product.is_right(client, &response, &mask, &product.expected(&weights))?;
            if layer == 0 {
                cost.bytes += product.cost().bytes;
                cost.multiplies += product.cost().multiplies;
            }
        }
        samples.push(nanoseconds);
    }
    let samples = Samples::new(samples);
    let label = device.label().clone();
    let what = if products.len() == LAYER.len() { "a layer" } else { SAMPLE };
    let row = Row {
        kernel: BERT.into(),
        n: MATMUL_8192.n,
        limbs: shapes.iter().map(|(_, product)| product.work().limbs).max().unwrap_or(0),
        batch: 1,
        size: Some(format!("{what}, {layers} of {LAYERS} measured")),
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

const SAMPLE: &str = "the first product of a layer";

/// Seconds of all layers by a row of this operation, and whether they are extrapolated.
pub fn whole_model(finding: &Finding) -> (f64, bool) {
    let layers = finding.samples.runs();
    let sampled = finding.row.size.as_ref().is_some_and(|size| size.starts_with(SAMPLE));
    let part = if sampled { QUICK_PART } else { 1.0 };
    let seconds = finding.samples.mean() * LAYERS as f64 * part / 1e9;
    (seconds, sampled || layers < LAYERS)
}
