//! The client's side: encryption with a seeded uniform half, and decryption of responses.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::{
    BfvContext, GaloisKeys, HeError, ParameterSet, PublicKey, RelinearisationKey, Response, ResponsePlan, Result,
    SecretKey,
    encode::{Encoder, WideReducer},
    keys::{Domain, small_residue, uniform_half},
    wire,
};
use crate::{
    arith::{
        ShareModulus,
        crt::CrtBasis,
        sample::{self, SecureRng},
    },
    engine::Shape,
};

/// The holder of a secret key.
///
/// Uniform halves are `XOF(seed, counter)`; a client draws its seed when it is made and never gives a counter twice.
pub struct HeClient {
    ctx: Arc<BfvContext>,
    secret: SecretKey,
    seed: [u8; 32],
    counter: AtomicU64,
}

/// Symmetric encryptions in the NTT domain: the halves `c0`, and the name of the uniform halves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeededCiphertexts {
    seed: [u8; 32],
    first_counter: u64,
    count: usize,
    /// `[count][limbs][N]`.
    c0: Vec<u32>,
}

impl HeClient {
    /// A client with a new secret key.
    pub fn generate(ctx: Arc<BfvContext>, rng: &mut SecureRng) -> Self {
        let secret = SecretKey::generate(ctx.params(), rng);
        Self { ctx, secret, seed: rng.bytes32(), counter: AtomicU64::new(0) }
    }

    #[cfg(test)]
    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }

    /// What both parties share.
    pub fn context(&self) -> &Arc<BfvContext> {
        &self.ctx
    }

    /// A public key for the server, under a seed of its own.
    pub fn public_key(&self, rng: &mut SecureRng) -> Result<PublicKey> {
        PublicKey::generate(self.ctx.params(), &self.secret, rng.bytes32(), rng)
    }

    /// Switching keys for output packing of blocks up to `block`.
    pub fn galois_keys(&self, block: usize, rng: &mut SecureRng) -> Result<GaloisKeys> {
        GaloisKeys::generate(self.ctx.params(), &self.secret, block, rng.bytes32(), rng)
    }

    /// Switching keys for the Galois elements `elements`, distinct odd numbers above 1 and below 2N: what
    /// [`super::HeServer::rotate`] needs. [`GaloisKeys::elements_for_block`] names those of output packing.
    pub fn galois_keys_for(&self, elements: &[usize], rng: &mut SecureRng) -> Result<GaloisKeys> {
        GaloisKeys::generate_for(self.ctx.params(), &self.secret, elements, rng.bytes32(), rng)
    }

    /// Encrypts polynomials with coefficients modulo `t`, `[count][N]`.
    ///
    /// The noise ledger takes the messages for uniform modulo `t`, as shares and masks are.
    pub fn encrypt(&self, t: ShareModulus, messages: &[u64], rng: &mut SecureRng) -> Result<SeededCiphertexts> {
        self.encrypt_at(self.ctx.params().limbs(), t, messages, rng)
    }

    /// As [`Self::encrypt`] modulo the first `limbs` primes only ([`ParameterSet::at_level`]).
    pub fn encrypt_at(
        &self,
        limbs: usize,
        t: ShareModulus,
        messages: &[u64],
        rng: &mut SecureRng,
    ) -> Result<SeededCiphertexts> {
        let params = &self.ctx.params().at_level(limbs)?;
        let n = params.n();
        if !messages.len().is_multiple_of(n) {
            return Err(HeError::shape(
                "encrypt",
                format!("{} coefficients are not polynomials of {n}", messages.len()),
            ));
        }
        params.check_ring(t)?;
        // Every packing gives residues; the comparison tells no more than that one did not.
        if messages.par_iter().any(|&m| m > t.largest()) {
            return Err(HeError::shape("encrypt", "a coefficient is not reduced modulo t"));
        }
        let count = messages.len() / n;
        let encoder = Encoder::new(params.data(), t);
        let forks: Vec<SecureRng> = (0..count).map(|_| rng.fork()).collect();
        // Error and message together, coefficient domain.
        let mut words = Zeroizing::new(vec![0u32; count * limbs * n]);
        words.par_chunks_mut(limbs * n).zip(messages.par_chunks(n)).zip(forks).for_each(|((out, m), mut rng)| {
            let mut e = Zeroizing::new(vec![0; n]);
            sample::centred_binomial(&mut rng, &mut e);
            let remainders: Zeroizing<Vec<i64>> = Zeroizing::new(m.iter().map(|&m| encoder.remainder(m)).collect());
            for (limb, out) in out.chunks_mut(n).enumerate() {
                let p = params.data().moduli()[limb];
                for ((out, &r), &e) in out.iter_mut().zip(remainders.iter()).zip(e.iter()) {
                    *out = p.add(encoder.residue(limb, r), small_residue(p, e));
                }
            }
        });
        self.encrypt_words(limbs, &words)
    }

    /// Encrypts polynomials `[count][limbs][N]` modulo the first `limbs` primes (coefficient domain) that already contain the
    /// error.
    pub(super) fn encrypt_words(&self, limbs: usize, words: &[u32]) -> Result<SeededCiphertexts> {
        let params = &self.ctx.params().at_level(limbs)?;
        let n = params.n();
        let count = words.len() / (limbs * n);
        let first_counter = self.counter.fetch_add(count as u64, Ordering::Relaxed);
        let transformed = self.ctx.ntt_forward(&self.ctx.backend().upload(words)?, Shape { polys: count, limbs })?;
        let mut c0 = self.ctx.backend().download(&transformed)?;
        c0.par_chunks_mut(limbs * n).enumerate().try_for_each(|(k, c0)| {
            let mut a = vec![0; limbs * n];
            uniform_half(params, &self.seed, Domain::Ciphertext, first_counter + k as u64, limbs, &mut a)?;
            for (limb, (c0, a)) in c0.chunks_mut(n).zip(a.chunks(n)).enumerate() {
                let (p, s) = (params.data().moduli()[limb], self.secret.limb(params, limb));
                for ((c0, &a), &s) in c0.iter_mut().zip(a).zip(s) {
                    *c0 = p.sub(*c0, p.mul(a, s));
                }
            }
            Ok::<_, HeError>(())
        })?;
        self.ctx.count(|c| &c.encrypted, count);
        Ok(SeededCiphertexts { seed: self.seed, first_counter, count, c0 })
    }

    /// `c0 + c1 s` of ciphertexts `[count][2][limbs][N]` in the NTT domain: `[count][limbs][N]`, coefficient domain.
    pub(super) fn phase(&self, limbs: usize, words: &[u32]) -> Result<Zeroizing<Vec<u32>>> {
        let params = self.ctx.params();
        let n = params.n();
        let count = words.len() / (2 * limbs * n);
        let mut phase = Zeroizing::new(vec![0; count * limbs * n]);
        phase.par_chunks_mut(limbs * n).zip(words.par_chunks(2 * limbs * n)).for_each(|(out, ciphertext)| {
            let (c0, c1) = ciphertext.split_at(limbs * n);
            for limb in 0..limbs {
                let (p, s, at) = (params.ring().moduli()[limb], self.secret.limb(params, limb), limb * n);
                for i in 0..n {
                    out[at + i] = p.add(c0[at + i], p.mul(c1[at + i], s[i]));
                }
            }
        });
        let backend = self.ctx.backend();
        let phase = self.ctx.ntt_inverse(&backend.upload(&phase)?, Shape { polys: count, limbs })?;
        self.ctx.count(|c| &c.decrypted, count);
        Ok(Zeroizing::new(backend.download(&phase)?))
    }

    /// The public seed of this client's uniform halves, which names it.
    pub(super) fn seed(&self) -> [u8; 32] {
        self.seed
    }

    /// The relinearisation key, under a seed of its own.
    pub(super) fn relinearisation_key(&self, rng: &mut SecureRng) -> Result<RelinearisationKey> {
        RelinearisationKey::generate(self.ctx.params(), &self.secret, rng.bytes32(), rng)
    }

    /// Decrypts a response: the messages modulo `t` at `positions[pack]` of every ciphertext, concatenated.
    ///
    /// # Errors
    /// If the response does not have this shape.
    pub fn decrypt(
        &self,
        t: ShareModulus,
        plan: &ResponsePlan,
        positions: &[Vec<u32>],
        response: &Response,
    ) -> Result<Vec<u64>> {
        let params = self.ctx.params();
        let (n, limbs, packs) = (params.n(), plan.limbs, positions.len());
        response.check(params, positions)?;
        let basis = CrtBasis::new(&params.data().moduli()[..limbs]);
        let shape = Shape { polys: packs, limbs };
        let backend = self.ctx.backend();
        let mut c1 = vec![0; packs * limbs * n];
        c1.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
            let reducer = WideReducer::new(basis.moduli()[row % limbs]);
            for (out, &x) in out.iter_mut().zip(&response.c1[row / limbs * n..]) {
                *out = reducer.reduce(plan.c1.restore(x) as i128);
            }
        });
        let c1 = self.ctx.ntt_forward(&backend.upload(&c1)?, shape)?;
        let mut product = backend.download(&c1)?;
        product.par_chunks_mut(n).enumerate().for_each(|(row, x)| {
            let p = basis.moduli()[row % limbs];
            for (x, &s) in x.iter_mut().zip(self.secret.limb(params, row % limbs)) {
                *x = p.mul(*x, s);
            }
        });
        let phase = self.ctx.ntt_inverse(&backend.upload(&product)?, shape)?;
        product.zeroize();
        let phase = Zeroizing::new(backend.download(&phase)?);
        self.ctx.count(|c| &c.decrypted, packs);
        let mut c0 = response.c0.iter();
        let mut out = Vec::with_capacity(response.c0.len());
        for (pack, positions) in positions.iter().enumerate() {
            for (&at, &high) in positions.iter().zip(c0.by_ref()) {
                let c0 = plan.c0.restore(high);
                out.push(basis.scale(t, |limb| {
                    let p = basis.moduli()[limb];
                    let c0 = (c0 % p.value() as u128) as u32;
                    p.add(phase[(pack * limbs + limb) * n + at as usize], c0)
                }));
            }
        }
        Ok(out)
    }
}

impl SeededCiphertexts {
    /// Number of ciphertexts.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The public seed and the counters of the uniform halves; no two encryptions of one client share both.
    pub fn names(&self) -> ([u8; 32], std::ops::Range<u64>) {
        (self.seed, self.first_counter..self.first_counter + self.count as u64)
    }

    /// Bytes of `count` ciphertexts on the wire.
    pub fn byte_len(params: &ParameterSet, count: usize) -> Option<usize> {
        wire::residues_len(params, count, params.limbs()).map(|len| len + 40)
    }

    /// 32 bytes of seed, 8 of the first counter, then `c0` packed at the bits of a prime.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        let mut out = self.seed.to_vec();
        out.extend(self.first_counter.to_le_bytes());
        wire::write_residues(params, &self.c0, &mut out);
        out
    }

    /// Reads `count` ciphertexts.
    ///
    /// # Errors
    /// If the length is not exactly right, a residue is not below its modulus, or the counters overflow.
    pub fn from_bytes(params: &ParameterSet, count: usize, mut bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "ciphertexts";
        let seed = wire::take_array(WHAT, &mut bytes)?;
        let first_counter = u64::from_le_bytes(wire::take_array(WHAT, &mut bytes)?);
        if first_counter.checked_add(count as u64).is_none_or(|end| end >> 56 != 0) {
            return Err(HeError::wire(WHAT, "the counters of the uniform halves overflow"));
        }
        let c0 = wire::read_residues(params, WHAT, bytes, count, params.limbs())?;
        Ok(Self { seed, first_counter, count, c0 })
    }

    /// Both halves, `[count][2][limbs][N]`, NTT domain.
    pub fn expand(&self, params: &ParameterSet) -> Result<Vec<u32>> {
        self.expand_range(params, 0..self.count)
    }

    /// Both halves of some of the ciphertexts.
    ///
    /// # Errors
    /// If they are not there.
    pub fn expand_range(&self, params: &ParameterSet, range: std::ops::Range<usize>) -> Result<Vec<u32>> {
        if range.start > range.end || range.end > self.count {
            return Err(HeError::shape("expand", format!("ciphertexts {range:?} of {}", self.count)));
        }
        let poly = params.limbs() * params.n();
        if self.c0.len() != self.count * poly {
            let limbs = self.c0.len() / (self.count * params.n()).max(1);
            let detail = format!("ciphertexts of {limbs} limbs where {} are read", params.limbs());
            return Err(HeError::shape("expand", detail));
        }
        let mut out = vec![0; range.len() * 2 * poly];
        out.par_chunks_mut(2 * poly).zip(range).try_for_each(|(out, k)| {
            let (c0, a) = out.split_at_mut(poly);
            c0.copy_from_slice(&self.c0[k * poly..][..poly]);
            uniform_half(params, &self.seed, Domain::Ciphertext, self.first_counter + k as u64, params.limbs(), a)
        })?;
        Ok(out)
    }
}
