//! The server: linear operations, levels and rotations of batches, and the way out. Products are in [`super::products`].

use std::sync::Arc;

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{
    super::{Domain, HeError, Result, SeededCiphertexts, keys::small_residue},
    CkksCiphertexts, CkksContext, CkksKeys, CkksResponse, Fresh, Ledger,
    key_switch::Offsets,
};
use crate::{
    arith::sample::{self, SecureRng},
    engine::{Buffer, GatherItem, MatmulShape, Shape},
};

/// A client's keys on the device, and every operation on its ciphertexts.
pub struct CkksServer {
    pub(super) ctx: Arc<CkksContext>,
    owner: [u8; 32],
    /// `[2][limbs][N]`, NTT domain.
    public_key: Buffer,
    pub(super) relinearisation: Buffer,
    /// Galois elements, in the order of their keys.
    pub(super) elements: Vec<usize>,
    pub(super) galois: Buffer,
    pub(super) offsets: Offsets,
}

impl CkksServer {
    /// Expands a client's keys onto the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(ctx: Arc<CkksContext>, keys: &CkksKeys) -> Result<Self> {
        let (params, backend) = (ctx.params(), ctx.backend());
        let public_key = backend.upload(&keys.public.expand(params)?)?;
        let relinearisation = backend.upload(&keys.relinearisation.expand(params)?)?;
        let mut galois = Vec::new();
        for index in 0..keys.galois.elements().len() {
            galois.extend(keys.galois.expand(params, index)?);
        }
        let galois = backend.upload(&galois)?;
        let elements = keys.galois.elements().to_vec();
        Ok(Self { owner: keys.owner, public_key, relinearisation, elements, galois, offsets: Offsets::default(), ctx })
    }

    /// What both parties share.
    pub fn context(&self) -> &Arc<CkksContext> {
        &self.ctx
    }

    /// Fresh ciphertexts on the device.
    ///
    /// # Errors
    /// [`HeError::WrongKey`] if they are of another client, [`HeError::Shape`] if they have not the limbs of `form`.
    pub fn load(&self, fresh: &SeededCiphertexts, form: Fresh) -> Result<CkksCiphertexts> {
        let ledger = self.ctx.ledger(&form)?;
        if fresh.names().0 != self.owner {
            return Err(HeError::WrongKey { what: "a ciphertext" });
        }
        let words = fresh.expand(&self.ctx.params().at_level(form.limbs)?)?;
        Ok(self.wrap(fresh.len(), 2, form.limbs, Domain::Ntt, self.ctx.backend().upload(&words)?, ledger))
    }

    pub(super) fn wrap(
        &self,
        count: usize,
        parts: usize,
        limbs: usize,
        domain: Domain,
        buffer: Buffer,
        ledger: Ledger,
    ) -> CkksCiphertexts {
        CkksCiphertexts { owner: self.owner, count, parts, limbs, domain, buffer, ledger }
    }

    /// The batch in another domain.
    pub(super) fn to(&self, domain: Domain, x: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let inner = self.ctx.inner();
        let buffer = match (x.domain, domain) {
            (Domain::Ntt, Domain::Coefficient) => inner.ntt_inverse(&x.buffer, x.shape())?,
            (Domain::Coefficient, Domain::Ntt) => inner.ntt_forward(&x.buffer, x.shape())?,
            _ => x.buffer.clone(),
        };
        Ok(CkksCiphertexts { buffer, domain, ..x.clone() })
    }

    /// Both batches with as many limbs as the one that has fewer, in one domain.
    fn aligned(&self, a: &CkksCiphertexts, b: &CkksCiphertexts) -> Result<(CkksCiphertexts, CkksCiphertexts)> {
        if (a.count, a.parts) != (b.count, b.parts) {
            let detail = format!("{} ciphertexts of {} parts and {} of {}", a.count, a.parts, b.count, b.parts);
            return Err(HeError::shape("add", detail));
        }
        let limbs = a.limbs.min(b.limbs);
        let a = self.drop_to(a, limbs)?;
        let b = self.to(a.domain, &self.drop_to(b, limbs)?)?;
        Ok((a, b))
    }

    /// Slot-wise sum, at the lower of both levels.
    ///
    /// # Errors
    /// [`HeError::ScaleMismatch`], or [`HeError::Shape`] for batches of different lengths.
    pub fn add(&self, a: &CkksCiphertexts, b: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let ledger = a.ledger.plus(&b.ledger)?;
        let (a, b) = self.aligned(a, b)?;
        ledger.check("add", self.ctx.params(), a.limbs)?;
        let buffer = self.ctx.backend().add(self.ctx.ring(), &a.buffer, &b.buffer, a.shape())?;
        Ok(CkksCiphertexts { buffer, ledger, ..a })
    }

    /// Slot-wise difference, at the lower of both levels.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn sub(&self, a: &CkksCiphertexts, b: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let ledger = a.ledger.plus(&b.ledger)?;
        let (a, b) = self.aligned(a, b)?;
        ledger.check("sub", self.ctx.params(), a.limbs)?;
        let buffer = self.ctx.backend().sub(self.ctx.ring(), &a.buffer, &b.buffer, a.shape())?;
        Ok(CkksCiphertexts { buffer, ledger, ..a })
    }

    /// Some ciphertexts of the batch, in any order and any number of times.
    ///
    /// # Errors
    /// If one is not there.
    pub fn select(&self, x: &CkksCiphertexts, indices: &[usize]) -> Result<CkksCiphertexts> {
        let items: Vec<GatherItem> = indices.iter().map(|&index| Some((0, index))).collect();
        let words = x.parts * x.limbs * self.ctx.params().n();
        let buffer = self.ctx.backend().gather(&[&x.buffer], words, &items)?;
        Ok(CkksCiphertexts { buffer, count: indices.len(), ..x.clone() })
    }

    /// One batch of several of as many limbs and parts, whose scales are equal as in [`Self::add`].
    ///
    /// # Errors
    /// If there are none, or their forms differ.
    pub fn concat(&self, batches: &[&CkksCiphertexts]) -> Result<CkksCiphertexts> {
        let Some(first) = batches.first() else { return Err(HeError::shape("concat", "there are no ciphertexts")) };
        let mut ledger = first.ledger;
        let mut converted = Vec::with_capacity(batches.len());
        for x in batches {
            if (x.parts, x.limbs) != (first.parts, first.limbs) {
                return Err(HeError::shape("concat", "ciphertexts of different parts or limbs"));
            }
            ledger.magnitude = ledger.magnitude.max(x.ledger.magnitude);
            let drift = (x.ledger.scale / first.ledger.scale - 1.0).abs();
            ledger.error = ledger.error.max(x.ledger.error + drift * x.ledger.magnitude);
            first.ledger.plus(&x.ledger)?;
            converted.push(self.to(first.domain, x)?);
        }
        let sources: Vec<&Buffer> = converted.iter().map(|x| &x.buffer).collect();
        let items: Vec<GatherItem> = batches
            .iter()
            .enumerate()
            .flat_map(|(source, x)| (0..x.count).map(move |item| Some((source, item))))
            .collect();
        let words = first.parts * first.limbs * self.ctx.params().n();
        let buffer = self.ctx.backend().gather(&sources, words, &items)?;
        Ok(CkksCiphertexts { buffer, count: items.len(), ledger, ..(*first).clone() })
    }

    /// The same ciphertexts modulo the first `limbs` primes: nothing is divided, scale and error stay.
    ///
    /// # Errors
    /// [`HeError::DepthExhausted`] if the message does not fit.
    pub fn drop_to(&self, x: &CkksCiphertexts, limbs: usize) -> Result<CkksCiphertexts> {
        if limbs == x.limbs {
            return Ok(x.clone());
        }
        if limbs > x.limbs {
            let needed = (x.ledger.magnitude * x.ledger.scale).log2();
            return Err(HeError::DepthExhausted {
                operation: "drop to a higher level",
                limbs: x.limbs,
                available: 0.0,
                needed,
            });
        }
        x.ledger.check("drop", self.ctx.params(), limbs)?;
        let rows = (0..x.count * x.parts).flat_map(|poly| (0..limbs).map(move |limb| (poly, limb)));
        let items: Vec<GatherItem> = rows.map(|(poly, limb)| Some((0, poly * x.limbs + limb))).collect();
        let buffer = self.ctx.backend().gather(&[&x.buffer], self.ctx.params().n(), &items)?;
        Ok(CkksCiphertexts { buffer, limbs, ..x.clone() })
    }

    /// Divides by the last prime and rounds: one limb less, the scale divided by [`CkksContext::prime`].
    ///
    /// # Errors
    /// [`HeError::DepthExhausted`] if there is no limb to drop or the message does not fit the others.
    pub fn rescale(&self, x: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let (params, limbs) = (self.ctx.params(), x.limbs - 1);
        let ledger = x.ledger.rescaled(params.n(), self.ctx.prime(x.limbs));
        ledger.check("rescale", params, limbs)?;
        let x = self.to(Domain::Coefficient, x)?;
        let buffer = self.ctx.backend().mod_switch(self.ctx.ring(), &x.buffer, x.shape(), limbs)?;
        Ok(CkksCiphertexts { buffer, limbs, ledger, ..x })
    }

    /// Drops to `limbs` limbs and adds a fresh encryption of zero under the client's public key, without which `c1` would be a
    /// public linear function of the server's plaintexts. The error is not flooded: what the client decrypts still tells it
    /// something about them.
    ///
    /// # Errors
    /// [`HeError::DepthExhausted`] if the message does not fit, [`HeError::Shape`] for more limbs than can be decrypted.
    pub fn respond(&self, x: &CkksCiphertexts, limbs: usize, rng: &mut SecureRng) -> Result<CkksResponse> {
        if x.parts != 2 || limbs > CkksResponse::MAX_LIMBS {
            return Err(HeError::shape("respond", format!("{} parts and {limbs} limbs", x.parts)));
        }
        let x = self.to(Domain::Ntt, &self.drop_to(x, limbs)?)?;
        x.ledger.rerandomised(self.ctx.params().n()).check("respond", self.ctx.params(), limbs)?;
        let zero = self.zeros(x.count, limbs, rng)?;
        let backend = self.ctx.backend();
        let words = backend.download(&backend.add(self.ctx.ring(), &x.buffer, &zero, x.shape())?)?;
        self.ctx.inner().count(|c| &c.responded, x.count);
        Ok(CkksResponse { owner: self.owner, scale: x.ledger.scale, count: x.count, limbs, words })
    }

    /// `count` public encryptions of zero, `[count][2][limbs][N]`, NTT domain.
    fn zeros(&self, count: usize, limbs: usize, rng: &mut SecureRng) -> Result<Buffer> {
        let (params, ring, backend) = (self.ctx.params(), self.ctx.ring(), self.ctx.backend());
        let n = params.n();
        let forks: Vec<SecureRng> = (0..count).map(|_| rng.fork()).collect();
        // u, e0, e1.
        let mut small = Zeroizing::new(vec![0u32; count * 3 * limbs * n]);
        small.par_chunks_mut(3 * limbs * n).zip(forks).for_each(|(out, mut rng)| {
            let mut values = Zeroizing::new(vec![0i8; n]);
            for (part, out) in out.chunks_mut(limbs * n).enumerate() {
                if part == 0 {
                    sample::ternary(&mut rng, &mut values);
                } else {
                    sample::centred_binomial(&mut rng, &mut values);
                }
                for (&p, out) in params.ring().moduli().iter().zip(out.chunks_mut(n)) {
                    out.iter_mut().zip(values.iter()).for_each(|(out, &x)| *out = small_residue(p, x));
                }
            }
        });
        let small = self.ctx.inner().ntt_forward(&backend.upload(&small)?, Shape { polys: 3 * count, limbs })?;
        let words = limbs * n;
        let pick = |parts: std::ops::Range<usize>| -> Result<Buffer> {
            let items: Vec<GatherItem> =
                (0..count).flat_map(|k| parts.clone().map(move |part| Some((0, 3 * k + part)))).collect();
            Ok(backend.gather(&[&small], words, &items)?)
        };
        let whole = params.key_limbs();
        let rows: Vec<GatherItem> = (0..2 * limbs).map(|row| Some((0, row / limbs * whole + row % limbs))).collect();
        let key = backend.gather(&[&self.public_key], n, &rows)?;
        let one = MatmulShape { groups: 1, inputs: 1, outputs: count, limbs };
        let product = backend.matmul_plain(ring, &key, &pick(0..1)?, one)?;
        Ok(backend.add(ring, &product, &pick(1..3)?, Shape { polys: 2 * count, limbs })?)
    }
}
