//! The server's side: products with plaintexts, output packing, and the one way out for a ciphertext.

use std::sync::Arc;

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{
    BfvContext, GaloisKeys, HeError, ParameterSet, PublicKey, Response, ResponsePlan, Result, SeededCiphertexts,
    encode::{Encoder, WideReducer},
    keys::small_residue,
};
use crate::{
    arith::{
        ShareModulus,
        sample::{self, SecureRng},
    },
    engine::{Buffer, Coeff, ExpandShape, GemmShape, MatmulShape, Ntt, Poly, Rotation, Shape},
};

/// What a server needs of one client: its public key and its switching keys, on the device. Clones share them.
#[derive(Clone)]
pub struct HeServer {
    ctx: Arc<BfvContext>,
    /// `[2][limbs][N]`, NTT domain.
    public_key: Buffer,
    /// The same with all limbs of the parameter set.
    whole_public_key: Buffer,
    /// Galois elements, in the order of their keys.
    elements: Vec<usize>,
    /// `[elements][digits][2][limbs + 1][N]`, NTT domain.
    galois_keys: Buffer,
}

impl HeServer {
    /// Expands a client's keys onto the device. Without switching keys only blocks of width 1 can be computed.
    pub fn new(ctx: Arc<BfvContext>, public_key: &PublicKey, galois: Option<&GaloisKeys>) -> Result<Self> {
        let params = ctx.params();
        let public_key = ctx.backend().upload(&public_key.expand(params)?)?;
        let elements = galois.map_or(&[][..], GaloisKeys::elements).to_vec();
        let mut keys = Vec::new();
        for index in 0..elements.len() {
            if let Some(galois) = galois {
                keys.extend(galois.expand(params, index)?);
            }
        }
        let galois_keys = ctx.backend().upload(&keys)?;
        Ok(Self { elements, galois_keys, whole_public_key: public_key.clone(), public_key, ctx })
    }

    /// The same for ciphertexts of the first `limbs` primes ([`ParameterSet::at_level`]), with the same keys.
    ///
    /// # Errors
    /// If there are no such ciphertexts, or the device fails.
    pub fn at_level(&self, limbs: usize) -> Result<Self> {
        if limbs == self.ctx.params().limbs() {
            return Ok(self.clone());
        }
        let ctx = self.ctx.at_level(limbs)?;
        let (n, whole) = (ctx.params().n(), ctx.params().key_limbs());
        let items: Vec<_> = (0..2 * limbs).map(|row| Some((0, row / limbs * whole + row % limbs))).collect();
        let public_key = ctx.backend().gather(&[&self.whole_public_key], n, &items)?;
        Ok(Self { ctx, public_key, ..self.clone() })
    }

    /// What both parties share.
    pub fn context(&self) -> &Arc<BfvContext> {
        &self.ctx
    }

    /// Galois elements whose switching keys are there.
    pub fn elements(&self) -> &[usize] {
        &self.elements
    }

    /// `out[g][o] = sum_i ct[g][i] * plain[g][o][i]` for sparse plaintexts: polynomial `k` of `[groups][outputs][inputs]` has
    /// the integers `values[k*S ..][..S]` at exponents `0 .. S`. `ct` is `[groups][inputs][2][limbs][N]` and the result
    /// `[groups][outputs][2][limbs][N]`, both in the NTT domain.
    pub fn multiply(&self, ct: &Buffer, values: &[i64], stride: usize, shape: MatmulShape) -> Result<Buffer> {
        if stride == self.ctx.params().n() {
            let products = shape.groups * shape.outputs * shape.inputs;
            self.ctx.count(|c| &c.products, products);
            self.ctx.count(|c| &c.ntts, products * shape.limbs);
            return Ok(self.ctx.backend().matmul_integers(self.ctx.ring(), ct, values, shape)?);
        }
        let plain = self.transform(shape.limbs, values, stride)?;
        self.multiply_transformed(ct, &plain, shape)
    }

    /// Plaintexts `[count][N]` of integers, transformed modulo the first `limbs` limbs.
    pub fn transform_plaintexts(&self, limbs: usize, values: &[i64]) -> Result<Buffer> {
        self.transform(limbs, values, self.ctx.params().n())
    }

    /// As [`Self::multiply`] with plaintexts `[groups][outputs][inputs]` that [`Self::transform_plaintexts`] has made.
    pub fn multiply_transformed(&self, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer> {
        self.ctx.count(|c| &c.products, shape.groups * shape.outputs * shape.inputs);
        Ok(self.ctx.backend().matmul_plain(self.ctx.ring(), ct, plain, shape)?)
    }

    fn transform(&self, limbs: usize, values: &[i64], stride: usize) -> Result<Buffer> {
        let positions: Vec<u32> = (0..stride as u32).collect();
        self.transform_sparse(limbs, values, &positions)
    }

    /// Plaintexts of integers at the exponents `positions`, `[count][positions]`, transformed modulo the first `limbs` limbs.
    pub(crate) fn transform_sparse(&self, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer> {
        let ctx = &self.ctx;
        let plain = ctx.backend().expand(ctx.ring(), limbs, values, positions)?;
        ctx.ntt_forward(&plain, Shape { polys: values.len() / positions.len().max(1), limbs })
    }

    /// As [`Self::multiply`] for one group and a tile of a matrix of small integers that is on the device
    /// ([`crate::engine::Backend::matmul_matrix`]).
    pub fn multiply_matrix(&self, ct: &Buffer, weights: &Buffer, tile: &ExpandShape) -> Result<Buffer> {
        let ctx = &self.ctx;
        let polys = tile.outputs.len() * tile.inputs.len();
        ctx.count(|c| &c.ntts, polys * tile.limbs);
        ctx.count(|c| &c.products, polys);
        Ok(ctx.backend().matmul_matrix(ctx.ring(), ct, weights, tile)?)
    }

    /// `out[o] = sum_i weights[o][i] * x[i]` with integers of magnitude below `2^15`, as [`crate::engine::small_words`] packs
    /// them: a linear map of ciphertexts `[inputs][2][limbs][N]` (`shape.polys` is 2 for each), in either domain.
    pub fn combine(&self, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer> {
        let ctx = &self.ctx;
        ctx.count(|c| &c.scalar_products, shape.inputs * shape.outputs * shape.polys / 2);
        Ok(ctx.backend().modular_gemm(ctx.ring(), x, weights, shape)?)
    }

    /// Packs `outputs` ciphertexts (a power of two up to `block`) into one, for `packs` packs at once.
    ///
    /// `x` is `[outputs][packs][2][limbs][N]` in the NTT domain; the result, `[packs][2][limbs][N]` in the coefficient domain,
    /// holds the coefficient of `X^(K j)` of input `o` at `X^(K j + o K / outputs)`, `K` the block. With `E` and `O` the
    /// packs of the even and odd halves of `h` inputs, a level is
    /// `(E + X^(K/h) O) + sigma_(N h / K + 1)(E - X^(K/h) O)`; inputs are first multiplied by `outputs^-1` modulo q, which
    /// undoes the doubling of each level (Chen, Dai, Kim, Song 2021; Bae et al. 2023).
    pub fn pack_outputs(&self, x: &Buffer, outputs: usize, packs: usize, block: usize) -> Result<Buffer> {
        let ctx = &self.ctx;
        let (params, ring, backend) = (ctx.params(), ctx.ring(), ctx.backend());
        let (n, limbs) = (params.n(), params.limbs());
        if !outputs.is_power_of_two() || !block.is_power_of_two() || outputs > block || block > n {
            let detail = format!("{outputs} outputs in blocks of {block} (powers of two, at most N = {n})");
            return Err(HeError::shape("pack_outputs", detail));
        }
        let all = Shape { polys: outputs * packs * 2, limbs };
        let mut x = ctx.ntt_inverse(x, all)?;
        if outputs > 1 {
            let inverse = |p: &crate::arith::Modulus| p.inv(p.reduce(outputs as u64));
            let scalars: Vec<u32> = params.data().moduli().iter().map(inverse).collect();
            x = backend.mul_scalar(ring, &x, all, &scalars)?;
        }
        let mut h = 2;
        while h <= outputs {
            // Ciphertexts after this level.
            let half = outputs / h * packs;
            let element = n / block * h + 1;
            let key = self.elements.iter().position(|&g| g == element);
            let key = key.ok_or(HeError::MissingKey { element, block })?;
            let shape = Shape { polys: half * 2, limbs };
            let (sum, difference) = backend.pack_step(ring, &x, Shape { polys: half * 4, limbs }, block / h)?;
            let rotations: Vec<_> = (0..half).map(|input| Rotation { input, element, key }).collect();
            let shape_of_keys = params.key_switch_shape(half, limbs);
            let rotated = backend.rotate(ring, &difference, shape_of_keys, &self.galois_keys, &rotations)?;
            ctx.count(|c| &c.key_switches, half);
            ctx.count(|c| &c.ntts, half * (limbs + 1) * (limbs + 2));
            x = backend.add(ring, &sum, &rotated, shape)?;
            h *= 2;
        }
        Ok(x)
    }

    /// Fresh ciphertexts on the device: polynomial `2k + j` is part `c_j` of ciphertext `k`, at the full modulus.
    pub fn load(&self, ciphertexts: &SeededCiphertexts) -> Result<Poly<Ntt>> {
        let params = self.ctx.params();
        let words = ciphertexts.expand(params)?;
        Ok(Poly::upload(&self.ctx.engine(), params.ring(), params.limbs(), &words)?)
    }

    /// A batch of rotations, hoisted: rotation `(k, g)` maps ciphertext `k` of `x` by `X -> X^g` under the same secret key. A
    /// ciphertext is decomposed once, however many rotations read it, and the number of launches does not depend on the batch
    /// ([`Backend::rotate`](crate::engine::Backend::rotate)).
    ///
    /// `x` is `[count][2]` polynomials `(c0, c1)`, and so is the result, one ciphertext a rotation. In the encoding of this
    /// module coefficient `i` of a message goes to `X^(i g mod 2N)`, with a minus sign where that is `N` or more. The noise
    /// is [`super::NoiseBound::rotated`].
    ///
    /// # Errors
    /// [`HeError::MissingRotationKey`] for an element without a key ([`super::HeClient::galois_keys_for`]), [`HeError::Shape`]
    /// for another ring, for half a ciphertext or one that is not there, and whatever the device reports.
    pub fn rotate(&self, x: &Poly<Coeff>, rotations: &[(usize, usize)]) -> Result<Poly<Coeff>> {
        let (ctx, shape) = (&self.ctx, x.shape());
        let (ring, limbs) = (ctx.ring(), shape.limbs);
        let fail = |detail: &str| Err(HeError::shape("rotate", detail));
        if x.ring().id() != ring.id() || !shape.polys.is_multiple_of(2) {
            return fail("the batch is not one of ciphertexts (pairs of polynomials) of this parameter set");
        }
        let key = |&(input, element): &(usize, usize)| match self.elements.iter().position(|&g| g == element) {
            Some(key) => Ok(Rotation { input, element, key }),
            None => Err(HeError::MissingRotationKey { element }),
        };
        let batch = rotations.iter().map(key).collect::<Result<Vec<_>>>()?;
        let key_shape = ctx.params().key_switch_shape(shape.polys / 2, limbs);
        let rotated = ctx.backend().rotate(ring, x.buffer(), key_shape, &self.galois_keys, &batch)?;
        ctx.count(|c| &c.key_switches, batch.len());
        ctx.count(|c| &c.ntts, (shape.polys / 2 * limbs + batch.len() * 2) * (limbs + 1));
        Ok(Poly::from_buffer(x.engine(), ring, limbs, rotated)?)
    }

    /// Finishes packed ciphertexts `[packs][2][limbs][N]` (coefficient domain) for the wire, in this order: subtracts a mask
    /// uniform over all coefficients, adds an encryption of zero under the client's public key, floods c0, switches down
    /// to the plan's limbs, drops low bits of c0 and keeps of it only the coefficients at `positions[pack]`.
    ///
    /// Returns the response and the mask at those positions, which is the server's share (the client's is message - mask).
    /// These are three steps, of the host, the device and the host, which a product runs as tasks of their own.
    pub fn respond(
        &self,
        t: ShareModulus,
        plan: &ResponsePlan,
        packed: &Buffer,
        positions: &[Vec<u32>],
        rng: &mut SecureRng,
    ) -> Result<(Response, Vec<u64>)> {
        let rngs = positions.iter().map(|_| rng.fork()).collect();
        let blinding = self.sample_blinding(t, plan.flood_deviation, rngs);
        self.finish(plan, packed, blinding)?.cut(self.ctx.params(), plan, positions)
    }

    /// The first, on the host: samples what [`Self::finish`] adds to as many packed ciphertexts as there are generators.
    pub(crate) fn sample_blinding(&self, t: ShareModulus, flood_deviation: f64, rngs: Vec<SecureRng>) -> Blinding {
        let params = self.ctx.params();
        let (n, limbs, packs) = (params.n(), params.limbs(), rngs.len());
        let mut masks = Zeroizing::new(vec![0u64; packs * n]);
        let mut u = Zeroizing::new(vec![0u32; packs * limbs * n]);
        let mut noise = Zeroizing::new(vec![0u32; packs * 2 * limbs * n]);
        let encoder = Encoder::new(params.data(), t);
        u.par_chunks_mut(limbs * n)
            .zip(noise.par_chunks_mut(2 * limbs * n))
            .zip(masks.par_chunks_mut(n))
            .zip(rngs)
            .for_each(|(((u, noise), mask), mut rng)| {
                sample_blinding(params, t, flood_deviation, &encoder, &mut rng, u, noise, mask);
            });
        Blinding { u, noise, masks }
    }

    /// The second, on the device: blinds, switches down and reads back.
    pub(crate) fn finish(&self, plan: &ResponsePlan, packed: &Buffer, blinding: Blinding) -> Result<Finished> {
        self.finish_in(Domain::Coefficient, plan, packed, blinding)
    }

    /// The second step for ciphertexts in either domain: those in the NTT domain go back together with the encryption of zero.
    pub(crate) fn finish_in(
        &self,
        domain: Domain,
        plan: &ResponsePlan,
        packed: &Buffer,
        blinding: Blinding,
    ) -> Result<Finished> {
        let (ctx, packs) = (&self.ctx, blinding.masks.len() / self.ctx.params().n());
        let shape = Shape { polys: packs * 2, limbs: ctx.params().limbs() };
        let blinded = self.add_blinding(domain, packed, packs, &blinding)?;
        let switched = ctx.backend().mod_switch(ctx.ring(), &blinded, shape, plan.limbs)?;
        let words = ctx.backend().download(&switched)?;
        ctx.count(|c| &c.responded, packs);
        Ok(Finished { words, masks: blinding.masks })
    }

    /// Subtracts a mask, adds an encryption of zero and floods c0, at the full modulus in the coefficient domain. Returns the
    /// ciphertexts `[packs][2][limbs][N]` and the masks `[packs][N]`.
    #[cfg(test)]
    pub(super) fn blind(
        &self,
        t: ShareModulus,
        flood_deviation: f64,
        packed: &Buffer,
        packs: usize,
        rng: &mut SecureRng,
    ) -> Result<(Buffer, Zeroizing<Vec<u64>>)> {
        let rngs = (0..packs).map(|_| rng.fork()).collect();
        let blinding = self.sample_blinding(t, flood_deviation, rngs);
        Ok((self.add_blinding(Domain::Coefficient, packed, packs, &blinding)?, blinding.masks))
    }

    fn add_blinding(&self, domain: Domain, packed: &Buffer, packs: usize, blinding: &Blinding) -> Result<Buffer> {
        let (ctx, ring, backend) = (&self.ctx, self.ctx.ring(), self.ctx.backend());
        let limbs = ctx.params().limbs();
        let shape = Shape { polys: packs * 2, limbs };
        let u = ctx.ntt_forward(&backend.upload(&blinding.u)?, Shape { polys: packs, limbs })?;
        let one = MatmulShape { groups: 1, inputs: 1, outputs: packs, limbs };
        let zero = backend.matmul_plain(ring, &self.public_key, &u, one)?;
        let x = match domain {
            Domain::Ntt => ctx.ntt_inverse(&backend.add(ring, packed, &zero, shape)?, shape)?,
            Domain::Coefficient => backend.add(ring, packed, &ctx.ntt_inverse(&zero, shape)?, shape)?,
        };
        Ok(backend.add(ring, &x, &backend.upload(&blinding.noise)?, shape)?)
    }
}

/// The domain of ciphertexts that are to be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    /// Power basis.
    Coefficient,
    /// Transformed.
    Ntt,
}

/// What a batch of packed ciphertexts gets added, and the masks in it. It serves one batch.
pub(crate) struct Blinding {
    /// `[packs][limbs][N]`, coefficient domain.
    u: Zeroizing<Vec<u32>>,
    /// `e1 + flood + encode(-mask)` and `e2`, `[packs][2][limbs][N]`.
    noise: Zeroizing<Vec<u32>>,
    /// `[packs][N]`.
    masks: Zeroizing<Vec<u64>>,
}

/// Packed ciphertexts that are blinded and switched down, on the host, `[packs][2][plan.limbs][N]`; and their masks.
pub(crate) struct Finished {
    words: Vec<u32>,
    masks: Zeroizing<Vec<u64>>,
}

impl Finished {
    /// The third, on the host: drops low bits of c0 and keeps of it only the coefficients at `positions[pack]`. Returns the
    /// response and the masks at those positions.
    pub(crate) fn cut(
        self,
        params: &ParameterSet,
        plan: &ResponsePlan,
        positions: &[Vec<u32>],
    ) -> Result<(Response, Vec<u64>)> {
        let response = Response::cut(params, plan, positions, &self.words)?;
        let masks = positions.iter().zip(self.masks.chunks(params.n()));
        Ok((response, masks.flat_map(|(at, mask)| at.iter().map(|&i| mask[i as usize])).collect()))
    }
}

/// Samples what one response adds: `u` (`[limbs][N]`), and `e1 + flood + encode(-mask)` beside `e2` (`[2][limbs][N]`).
fn sample_blinding(
    params: &ParameterSet,
    t: ShareModulus,
    flood_deviation: f64,
    encoder: &Encoder,
    rng: &mut SecureRng,
    u: &mut [u32],
    noise: &mut [u32],
    mask: &mut [u64],
) {
    let n = params.n();
    sample::uniform_ring(rng, t, mask);
    let mut small = Zeroizing::new(vec![0i8; n]);
    sample::ternary(rng, &mut small);
    let (noise0, noise1) = noise.split_at_mut(u.len());
    let moduli = params.data().moduli();
    let spread = |small: &[i8], out: &mut [u32]| {
        for (out, &p) in out.chunks_mut(n).zip(moduli) {
            out.iter_mut().zip(small).for_each(|(out, &x)| *out = small_residue(p, x));
        }
    };
    spread(&small, u);
    sample::centred_binomial(rng, &mut small);
    spread(&small, noise1);
    sample::centred_binomial(rng, &mut small);
    let mut wide = Zeroizing::new(vec![0i128; n]);
    sample::rounded_gaussian(rng, flood_deviation, &mut wide);
    wide.iter_mut().zip(small.iter()).for_each(|(x, &e)| *x += e as i128);
    let remainders: Zeroizing<Vec<i64>> =
        Zeroizing::new(mask.iter().map(|&z| encoder.remainder(t.sub(0, z))).collect());
    for (limb, (out, &p)) in noise0.chunks_mut(n).zip(moduli).enumerate() {
        let reducer = WideReducer::new(p);
        for ((out, &x), &r) in out.iter_mut().zip(wide.iter()).zip(remainders.iter()) {
            *out = p.add(reducer.reduce(x), encoder.residue(limb, r));
        }
    }
}
