//! The server's share of an encrypted linear layer, end to end: expand, transform, multiply, pack, re-randomise, flood, cut.

use std::{error::Error, sync::Arc};

use heliostat::{
    arith::{ShareModulus, sample, sample::SecureRng},
    engine::cpu::CpuBackend,
    he::{BfvContext, HeClient, HeServer, MATMUL_8192, ParameterSet},
    packing::{ClientMatrix, CoefficientPacking, CostWeights, EncryptedMatrix, MatmulSpec, OperandBound},
};

use crate::{
    devices::Device,
    report::{Row, Work},
    stats::{self, Effort},
};

/// Its name in reports.
pub const KERNEL: &str = "encrypted_matmul";

/// Largest magnitude of a weight: 12 bits.
const MAX_WEIGHT: i64 = 2047;

/// The layers of a run: rows, inner dimension, columns, blocks that the switching keys serve.
fn layers(quick: bool) -> Vec<(usize, usize, usize, usize)> {
    if quick { vec![(8, 64, 16, 4)] } else { vec![(32, 128, 128, 64), (32, 384, 384, 64)] }
}

/// Measures every layer on every device and hands over the rows of each.
pub fn all(
    quick: bool,
    devices: &[Device],
    effort: Effort,
    mut done: impl FnMut(Vec<Row>),
) -> Result<(), Box<dyn Error>> {
    for (rows, inner, cols, block) in layers(quick) {
        let layer = Layer::new(rows, inner, cols, block)?;
        done(devices.iter().map(|device| layer.measure(device, effort)).collect::<Result<_, _>>()?);
    }
    Ok(())
}

/// A layer with its data and the client, who checks the results.
struct Layer {
    packing: CoefficientPacking,
    client: HeClient,
    operand: EncryptedMatrix,
    weights: Vec<i64>,
    /// The product modulo `t`.
    expected: Vec<u64>,
    max_block: usize,
}

impl Layer {
    fn new(rows: usize, inner: usize, cols: usize, max_block: usize) -> Result<Self, Box<dyn Error>> {
        let params = ParameterSet::new(MATMUL_8192)?;
        let t = ShareModulus::pow2(32).ok_or("2^32 is no ring of shares")?;
        let operand = OperandBound::Weights { max_abs: MAX_WEIGHT as u64 };
        let spec = MatmulSpec { t, heads: 1, rows, inner: vec![inner], cols, operand };
        let packing = CoefficientPacking::choose(&params, &spec, &CostWeights { max_block, ..CostWeights::default() })?;

        let mut rng = SecureRng::from_os()?;
        let client = HeClient::generate(BfvContext::new(Arc::new(CpuBackend::new(None)), params), &mut rng);
        let mut x = vec![0; rows * inner];
        sample::uniform_ring(&mut rng, t, &mut x);
        let mut weights = vec![0; inner * cols];
        let bound = 2 * MAX_WEIGHT as u64 + 1;
        sample::uniform_ring(&mut rng, t, &mut weights);
        let weights: Vec<i64> = weights.into_iter().map(|w| (w % bound) as i64 - MAX_WEIGHT).collect();
        let mut expected = vec![0; rows * cols];
        for (x, out) in x.chunks(inner).zip(expected.chunks_mut(cols)) {
            for (&x, weights) in x.iter().zip(weights.chunks(cols)) {
                out.iter_mut().zip(weights).for_each(|(out, &w)| *out = t.add(*out, t.mul(x, t.from_signed(w))));
            }
        }
        let operand = client.encrypt_matrix(t, &packing.inputs()[0], &x, &mut rng)?;
        Ok(Self { packing, client, operand, weights, expected, max_block })
    }

    fn measure(&self, device: &Device, effort: Effort) -> Result<Row, Box<dyn Error>> {
        device.install(|| {
            let mut rng = SecureRng::from_os()?;
            let params = self.client.context().params();
            let keys = (self.client.public_key(&mut rng)?, self.client.galois_keys(self.max_block, &mut rng)?);
            let context = BfvContext::new(device.shared(), params.clone());
            let server = HeServer::new(context, &keys.0, Some(&keys.1))?;
            let operands = [(&self.operand, self.weights.as_slice())];

            let (response, mask) = self.packing.multiply(&server, &operands, &mut rng)?;
            let share = self.client.decrypt_matrix(&self.packing, &response)?;
            let t = self.packing.spec().t;
            let verified = share.iter().zip(&mask).map(|(&c, &z)| t.add(c, z)).eq(self.expected.iter().copied());
            // The response is in host memory when the product returns: there is nothing left to wait for.
            let timing = stats::measure(effort, |repeats| {
                (0..repeats).try_for_each(|_| self.packing.multiply(&server, &operands, &mut rng).map(drop))
            })?;
            Ok(Row::new(self.work(), device.label(), device.form(), device.threads(), timing, verified))
        })
    }

    fn work(&self) -> Work {
        let MatmulSpec { rows, inner, cols, .. } = self.packing.spec();
        let params = self.client.context().params();
        Work {
            kernel: KERNEL,
            n: params.n(),
            limbs: params.limbs(),
            batch: 1,
            size: Some(format!("{rows}x{}x{cols}", inner[0])),
        }
    }
}
