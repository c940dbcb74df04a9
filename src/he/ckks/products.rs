//! Products: with plaintexts, and of ciphertexts with relinearisation.

use rayon::prelude::*;

use super::{
    super::{Domain, HeError, Result},
    CkksCiphertexts, CkksPlaintexts, CkksServer,
};
use crate::engine::{GatherItem, MatmulShape, Shape};

impl CkksServer {
    /// Encodes a matrix of plaintexts, `slots(output, input)` giving up to `N/2` real slots of each, at `scale`, for ciphertexts of
    /// `limbs` limbs. Runs on all threads.
    ///
    /// # Errors
    /// If a plaintext cannot be encoded.
    pub fn encode(
        &self,
        limbs: usize,
        scale: f64,
        (outputs, inputs): (usize, usize),
        slots: impl Fn(usize, usize) -> Vec<f64> + Sync,
    ) -> Result<CkksPlaintexts> {
        let (ctx, n) = (&self.ctx, self.ctx.params().n());
        let mut values = vec![0i64; outputs * inputs * n];
        let rows = values.par_chunks_mut((inputs * n).max(1)).enumerate().map(|(output, row)| {
            let mut sums = vec![0f64; ctx.slots()];
            for (input, out) in row.chunks_mut(n).enumerate() {
                let slots = slots(output, input);
                out.copy_from_slice(&ctx.encoder().encode(&slots, scale)?);
                sums.iter_mut().zip(&slots).for_each(|(sum, x)| *sum += x.abs());
            }
            Ok(sums.into_iter().fold(0.0, f64::max))
        });
        let sum = rows.collect::<Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
        let positions: Vec<u32> = (0..n as u32).collect();
        let expanded = ctx.backend().expand(ctx.ring(), limbs, &values, &positions)?;
        let buffer = ctx.inner().ntt_forward(&expanded, Shape { polys: outputs * inputs, limbs })?;
        Ok(CkksPlaintexts { outputs, inputs, limbs, scale, sum, buffer })
    }

    /// `out[g][o] = sum_i x[g][i] plain[o][i]`, slot by slot, for `groups` groups of as many ciphertexts as `plain` has inputs.
    /// Scales multiply; [`Self::rescale`] comes next.
    ///
    /// # Errors
    /// If the counts or limbs do not fit, or [`HeError::DepthExhausted`].
    pub fn multiply_plain(&self, x: &CkksCiphertexts, plain: &CkksPlaintexts) -> Result<CkksCiphertexts> {
        let params = self.ctx.params();
        if x.parts != 2 || plain.limbs != x.limbs || plain.inputs == 0 || !x.count.is_multiple_of(plain.inputs) {
            let detail = format!(
                "{} ciphertexts of {} parts and {} limbs, plaintexts for {} of {} limbs",
                x.count, x.parts, x.limbs, plain.inputs, plain.limbs
            );
            return Err(HeError::shape("multiply", detail));
        }
        let ledger = x.ledger.times_plain(params.n(), plain.scale, plain.sum, plain.inputs);
        ledger.check("multiply", params, x.limbs)?;
        let groups = x.count / plain.inputs;
        let x = self.to(Domain::Ntt, x)?;
        let (ring, backend) = (self.ctx.ring(), self.ctx.backend());
        let shape = MatmulShape { groups: 1, inputs: plain.inputs, outputs: plain.outputs, limbs: x.limbs };
        let words = plain.inputs * 2 * x.limbs * params.n();
        let mut parts = Vec::with_capacity(groups);
        for group in 0..groups {
            let input = if groups == 1 {
                x.buffer.clone()
            } else {
                backend.gather(&[&x.buffer], words, &[Some((0, group))])?
            };
            let out = backend.matmul_plain(ring, &input, &plain.buffer, shape)?;
            parts.push(self.wrap(plain.outputs, 2, x.limbs, Domain::Ntt, out, ledger));
        }
        self.ctx.inner().count(|c| &c.products, groups * plain.outputs * plain.inputs);
        match &parts[..] {
            [one] => Ok(one.clone()),
            parts => self.concat(&parts.iter().collect::<Vec<_>>()),
        }
    }

    /// Every ciphertext times its own plaintext of `slots`.
    ///
    /// # Errors
    /// As [`Self::multiply_plain`].
    pub fn scale_slots(
        &self,
        x: &CkksCiphertexts,
        scale: f64,
        slots: impl Fn(usize) -> Vec<f64> + Sync,
    ) -> Result<CkksCiphertexts> {
        let mut plain = self.encode(x.limbs, scale, (x.count, 1), |output, _| slots(output))?;
        (plain.inputs, plain.outputs) = (x.count, 1);
        let params = self.ctx.params();
        let ledger = x.ledger.times_plain(params.n(), scale, plain.sum, 1);
        ledger.check("multiply", params, x.limbs)?;
        let x = self.to(Domain::Ntt, x)?;
        let shape = MatmulShape { groups: x.count, inputs: 1, outputs: 1, limbs: x.limbs };
        let buffer = self.ctx.backend().matmul_plain(self.ctx.ring(), &x.buffer, &plain.buffer, shape)?;
        self.ctx.inner().count(|c| &c.products, x.count);
        Ok(CkksCiphertexts { buffer, ledger, ..x })
    }

    /// Adds to every ciphertext its own plaintext of `slots`, at the ciphertexts' scale.
    ///
    /// # Errors
    /// If it cannot be encoded, or [`HeError::DepthExhausted`].
    pub fn add_plain(&self, x: &CkksCiphertexts, slots: impl Fn(usize) -> Vec<f64> + Sync) -> Result<CkksCiphertexts> {
        let plain = self.encode(x.limbs, x.ledger.scale, (x.count, 1), |output, _| slots(output))?;
        let rounding = crate::he::TAIL * (self.ctx.params().n() as f64 / 12.0).sqrt() / x.ledger.scale;
        let mut ledger = x.ledger;
        (ledger.magnitude, ledger.error) = (ledger.magnitude + plain.sum, ledger.error + rounding);
        self.add_to_first(x, &plain.buffer, ledger)
    }

    /// Subtracts from every ciphertext a polynomial of integers, `[count][N]`, below `2^125` in magnitude: a mask that was added
    /// before. `ledger` is that of the result.
    ///
    /// # Errors
    /// If there are not as many polynomials.
    pub fn sub_integers(&self, x: &CkksCiphertexts, integers: &[i128], magnitude: f64) -> Result<CkksCiphertexts> {
        let n = self.ctx.params().n();
        if integers.len() != x.count * n {
            return Err(HeError::shape("sub", format!("{} integers for {} ciphertexts", integers.len(), x.count)));
        }
        let moduli = &self.ctx.ring().moduli()[..x.limbs];
        let reducers: Vec<_> = moduli.iter().map(|&p| super::super::encode::WideReducer::new(p)).collect();
        let mut words = zeroize::Zeroizing::new(vec![0u32; x.count * x.limbs * n]);
        words.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
            let (poly, limb) = (row / x.limbs, row % x.limbs);
            for (out, &value) in out.iter_mut().zip(&integers[poly * n..]) {
                *out = reducers[limb].reduce(-value);
            }
        });
        let shape = Shape { polys: x.count, limbs: x.limbs };
        let plain = self.ctx.inner().ntt_forward(&self.ctx.backend().upload(&words)?, shape)?;
        self.add_to_first(x, &plain, x.ledger.bounded(magnitude))
    }

    /// Adds polynomials `[count][limbs][N]` (NTT domain) to c0.
    fn add_to_first(
        &self,
        x: &CkksCiphertexts,
        plain: &crate::engine::Buffer,
        ledger: super::Ledger,
    ) -> Result<CkksCiphertexts> {
        ledger.check("add", self.ctx.params(), x.limbs)?;
        let backend = self.ctx.backend();
        let x = self.to(Domain::Ntt, x)?;
        let words = x.limbs * self.ctx.params().n();
        let items: Vec<GatherItem> =
            (0..x.count * x.parts).map(|poly| (poly % x.parts == 0).then_some((0, poly / x.parts))).collect();
        let spread = backend.gather(&[plain], words, &items)?;
        let buffer = backend.add(self.ctx.ring(), &x.buffer, &spread, x.shape())?;
        Ok(CkksCiphertexts { buffer, ledger, ..x })
    }

    /// Slot-wise products of ciphertexts one by one, three parts each.
    ///
    /// # Errors
    /// If the batches differ in length, or [`HeError::DepthExhausted`].
    pub fn multiply(&self, a: &CkksCiphertexts, b: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        self.multiply_sums(a, b, a.count, 1)
    }

    /// Sums of slot-wise products, three parts each: `out[g][o] = sum_i a[g][i] b[g][o][i]` with `inputs` terms, at the lower of
    /// both levels. `a` is `[groups][inputs]`, `b` `[groups][outputs][inputs]`, where `groups` is told.
    ///
    /// # Errors
    /// If the counts do not fit, or [`HeError::DepthExhausted`].
    pub fn multiply_sums(
        &self,
        a: &CkksCiphertexts,
        b: &CkksCiphertexts,
        groups: usize,
        inputs: usize,
    ) -> Result<CkksCiphertexts> {
        let (params, ring, backend) = (self.ctx.params(), self.ctx.ring(), self.ctx.backend());
        let fits = a.parts == 2 && b.parts == 2 && groups * inputs > 0 && a.count == groups * inputs;
        if !fits || !b.count.is_multiple_of(a.count) || a.owner != b.owner {
            let detail = format!("{} and {} ciphertexts in {groups} groups of {inputs} terms", a.count, b.count);
            return Err(HeError::shape("multiply", detail));
        }
        let limbs = a.limbs.min(b.limbs);
        let ledger = a.ledger.times(&b.ledger, inputs);
        ledger.check("multiply", params, limbs)?;
        let a = self.to(Domain::Ntt, &self.drop_to(a, limbs)?)?;
        let b = self.to(Domain::Ntt, &self.drop_to(b, limbs)?)?;
        let outputs = b.count / a.count;
        // The parts of b as plaintexts: (sum a0 b0, sum a1 b0), then (sum a0 b1, sum a1 b1), for every output.
        let words = limbs * params.n();
        let mut items: Vec<GatherItem> = Vec::with_capacity(2 * b.count);
        for output in 0..groups * outputs {
            for part in 0..2 {
                items.extend((0..inputs).map(|input| Some((0, (output * inputs + input) * 2 + part))));
            }
        }
        let plain = backend.gather(&[&b.buffer], words, &items)?;
        let shape = MatmulShape { groups, inputs, outputs: 2 * outputs, limbs };
        let products = backend.matmul_plain(ring, &a.buffer, &plain, shape)?;
        let count = groups * outputs;
        let pick = |part: usize| -> Result<_> {
            let items: Vec<GatherItem> = (0..count).map(|k| Some((0, 4 * k + part))).collect();
            Ok(backend.gather(&[&products], words, &items)?)
        };
        let middle = backend.add(ring, &pick(1)?, &pick(2)?, Shape { polys: count, limbs })?;
        let items: Vec<GatherItem> =
            (0..count).flat_map(|k| [Some((0, 4 * k)), Some((1, k)), Some((0, 4 * k + 3))]).collect();
        let buffer = backend.gather(&[&products, &middle], words, &items)?;
        self.ctx.inner().count(|c| &c.products, 2 * b.count);
        Ok(self.wrap(count, 3, limbs, Domain::Ntt, buffer, ledger))
    }
}
