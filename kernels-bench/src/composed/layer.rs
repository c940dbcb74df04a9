//! The server's share of an encrypted linear layer, end to end: expand, transform, multiply, pack, re-randomise, flood, cut.

use std::sync::Arc;

use heliostat::{
    arith::{ShareModulus, sample, sample::SecureRng},
    engine::cpu::CpuBackend,
    he::{BfvContext, HeClient, HeServer, MATMUL_8192, ParameterSet, Response},
    packing::{ClientMatrix, CoefficientPacking, CostWeights, EncryptedMatrix, MatmulSpec, OperandBound, Packing},
};
use rayon::prelude::*;

use super::{Bench, MATMUL};
use crate::{
    Error, Result,
    cost::{self, Cost},
    devices::Device,
    measure::{Contender, Group, Work, group},
    stats::Operation,
};

/// Largest magnitude of a weight: 12 bits.
const MAX_WEIGHT: i64 = 2047;

/// Block that the switching keys serve.
const BLOCK: usize = 64;

/// Bits of the ring of shares.
const BITS: u32 = 32;

/// Measures every layer of a run, on every device at once.
pub fn run(bench: &Bench, done: &mut impl FnMut(Group) -> Result<()>) -> Result<()> {
    let client = Client::new(BLOCK)?;
    let layer = |sizes, fits: fn(&Device) -> bool| -> Result<Group> {
        let product = Product::new(&client, sizes)?;
        let weights = product.random_weights()?;
        let expected = product.expected(&weights);
        let mut contenders = Vec::new();
        for (device, ceilings) in bench.devices(fits) {
            let server = client.server(device)?;
            let mut rng = SecureRng::from_os()?;
            let result = device.install(|| product.multiply(&server, &weights, &mut rng));
            let Some((response, mask)) = bench.attempt(device, MATMUL, result)? else { continue };
            let verified = product.is_right(&client, &response, &mask, &expected)?;
            let (product, weights) = (&product, &weights);
            let operation: Operation = Box::new(move |repeats| {
                // The response is in host memory when the product returns: there is nothing left to wait for.
                device.install(|| (0..repeats).try_for_each(|_| product.multiply(&server, weights, &mut rng).map(drop)))
            });
            let (label, ceilings) = (device.label().clone(), Some(ceilings));
            contenders.push(Contender { label, verified, ceilings, operation, again: None });
        }
        group(&product.work(), bench.effort.heavy(), contenders)
    };
    if bench.arguments.quick || bench.devices.has_software_gpu() {
        return done(layer((8, 64, 16), |_| true)?);
    }
    for sizes in [(128, 768, 768), (128, 768, 3072)] {
        done(layer(sizes, super::in_hardware)?)?;
    }
    Ok(())
}

/// The client, who encrypts the inputs and checks the results.
pub struct Client {
    client: HeClient,
    max_block: usize,
}

impl Client {
    /// New keys.
    pub fn new(max_block: usize) -> Result<Self> {
        let context = BfvContext::new(Arc::new(CpuBackend::new(None)), ParameterSet::new(MATMUL_8192)?);
        Ok(Self { client: HeClient::generate(context, &mut SecureRng::from_os()?), max_block })
    }

    /// A server of this client on a device.
    pub fn server(&self, device: &Device) -> Result<HeServer> {
        let mut rng = SecureRng::from_os()?;
        let params = self.client.context().params().clone();
        let keys = (self.client.public_key(&mut rng)?, self.client.galois_keys(self.max_block, &mut rng)?);
        Ok(HeServer::new(BfvContext::new(device.shared(), params), &keys.0, Some(&keys.1))?)
    }
}

/// An encrypted operand and the plan of its product with a matrix.
pub struct Product {
    packing: CoefficientPacking,
    operand: EncryptedMatrix,
    x: Vec<u64>,
    cost: Cost,
}

impl Product {
    /// Of random shares, `rows x inner` times `inner x cols`.
    pub fn new(client: &Client, (rows, inner, cols): (usize, usize, usize)) -> Result<Self> {
        let params = client.client.context().params();
        let t = ShareModulus::pow2(BITS).ok_or("2^32 is no ring of shares")?;
        let operand = OperandBound::Weights { max_abs: MAX_WEIGHT as u64 };
        let spec = MatmulSpec { t, heads: 1, rows, inner: vec![inner], cols, operand };
        let weights = CostWeights { max_block: client.max_block, fewest_limbs: true, ..CostWeights::default() };
        let packing = CoefficientPacking::choose(params, &spec, &weights)?;
        let mut rng = SecureRng::from_os()?;
        let mut x = vec![0; rows * inner];
        sample::uniform_ring(&mut rng, t, &mut x);
        let operand = client.client.encrypt_matrix(t, &packing.inputs()[0], &x, &mut rng)?;

        let (n, limbs, counts) = (params.n(), packing.limbs(), packing.counts());
        let ciphertext = 2 * limbs * n;
        let moved = (counts.ciphertexts_up + counts.ciphertexts_down) as usize * ciphertext + inner * cols / 2;
        let multiplies =
            cost::transforms(n, counts.server_ntts as usize) + (counts.products as usize * ciphertext) as f64;
        Ok(Self { packing, operand, x, cost: Cost { bytes: 4.0 * moved as f64, multiplies } })
    }

    /// Random weights of 12 bits, `inner x cols`.
    pub fn random_weights(&self) -> Result<Vec<i64>> {
        let MatmulSpec { t, inner, cols, .. } = self.packing.spec();
        let mut weights = vec![0; inner[0] * cols];
        sample::uniform_ring(&mut SecureRng::from_os()?, *t, &mut weights);
        let bound = 2 * MAX_WEIGHT as u64 + 1;
        Ok(weights.into_iter().map(|w| (w % bound) as i64 - MAX_WEIGHT).collect())
    }

    /// The server's part.
    pub fn multiply(
        &self,
        server: &HeServer,
        weights: &[i64],
        rng: &mut SecureRng,
    ) -> Result<(Response, Vec<u64>), Error> {
        Ok(self.packing.multiply(server, &[(&self.operand, weights)], rng)?)
    }

    /// The product of the integers, modulo `t`.
    pub fn expected(&self, weights: &[i64]) -> Vec<u64> {
        let MatmulSpec { t, inner, cols, .. } = self.packing.spec();
        let row = |x: &[u64]| {
            let mut out = vec![0u64; *cols];
            for (&x, weights) in x.iter().zip(weights.chunks(*cols)) {
                let term = |(out, &w): (&mut u64, &i64)| *out = out.wrapping_add(x.wrapping_mul(w as u64));
                out.iter_mut().zip(weights).for_each(term);
            }
            out.into_iter().map(|v| t.reduce(v)).collect::<Vec<_>>()
        };
        self.x.par_chunks(inner[0]).flat_map(row).collect()
    }

    /// Whether the client's share and the mask add up to what is expected.
    pub fn is_right(&self, client: &Client, response: &Response, mask: &[u64], expected: &[u64]) -> Result<bool> {
        let share = client.client.decrypt_matrix(&self.packing, response)?;
        let t = self.packing.spec().t;
        Ok(share.len() == mask.len() && share.iter().zip(mask).map(|(&c, &z)| t.add(c, z)).eq(expected.iter().copied()))
    }

    /// Bytes and multiplies by the packing's own counts.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// What a report says of it.
    pub fn work(&self) -> Work {
        let MatmulSpec { rows, inner, cols, .. } = self.packing.spec();
        let size = Some(format!("{rows}x{}x{cols} {}", inner[0], self.packing.name()));
        Work { kernel: MATMUL, n: MATMUL_8192.n, limbs: self.packing.limbs(), batch: 1, size, cost: self.cost }
    }
}
