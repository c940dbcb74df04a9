//! The client: encryption of slots and of integer polynomials, decryption, keys.

use std::sync::Arc;

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{
    super::{
        GaloisKeys, HeClient, HeError, ParameterSet, PublicKey, RelinearisationKey, Result, SeededCiphertexts,
        encode::WideReducer, wire,
    },
    CkksContext, CkksResponse, Fresh, rotation_element,
};
use crate::arith::{
    crt::CrtBasis,
    sample::{self, SecureRng},
};

/// The holder of a secret key. See the rule about decrypted values in [`super`].
pub struct CkksClient {
    ctx: Arc<CkksContext>,
    inner: HeClient,
}

/// What a server needs of a client: public key, relinearisation key, keys of rotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CkksKeys {
    pub(super) owner: [u8; 32],
    pub(super) public: PublicKey,
    pub(super) relinearisation: RelinearisationKey,
    pub(super) galois: GaloisKeys,
}

impl CkksClient {
    /// A client with a new secret key.
    pub fn generate(ctx: Arc<CkksContext>, rng: &mut SecureRng) -> Self {
        let inner = HeClient::generate(ctx.inner().clone(), rng);
        Self { ctx, inner }
    }

    /// What both parties share.
    pub fn context(&self) -> &Arc<CkksContext> {
        &self.ctx
    }

    /// Keys for the rotations by `steps` to the left, distinct and not 0 modulo `N/2`.
    ///
    /// # Errors
    /// If the set has no special prime, or `steps` breaks its rule.
    pub fn keys(&self, steps: &[usize], rng: &mut SecureRng) -> Result<CkksKeys> {
        let n = self.ctx.params().n();
        let elements: Vec<usize> = steps.iter().map(|&steps| rotation_element(n, steps)).collect();
        self.keys_for_elements(&elements, rng)
    }

    /// The same for Galois elements: [`rotation_element`], [`super::conjugation_element`].
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub fn keys_for_elements(&self, elements: &[usize], rng: &mut SecureRng) -> Result<CkksKeys> {
        Ok(CkksKeys {
            owner: self.inner.seed(),
            public: self.inner.public_key(rng)?,
            relinearisation: self.inner.relinearisation_key(rng)?,
            galois: self.inner.galois_keys_for(elements, rng)?,
        })
    }

    /// Encrypts real slots, `N/2` a ciphertext (the last one may have fewer).
    ///
    /// # Errors
    /// If they cannot be encoded, a slot exceeds `form.magnitude`, or the form does not fit the parameters.
    pub fn encrypt(&self, slots: &[f64], form: Fresh, rng: &mut SecureRng) -> Result<SeededCiphertexts> {
        // One comparison for all of them: that a slot is too large, not which one.
        if !slots.iter().fold(true, |fits, x| fits & (x.abs() <= form.magnitude)) {
            let detail = format!("a slot exceeds {}, the bound that was agreed on", form.magnitude);
            return Err(HeError::shape("encrypt", detail));
        }
        let encode = |slots: &[f64]| self.ctx.encoder().encode(slots, form.scale);
        let encoded: Vec<Vec<i64>> = slots.par_chunks(self.ctx.slots()).map(encode).collect::<Result<_>>()?;
        let wide: Zeroizing<Vec<i128>> = Zeroizing::new(encoded.into_iter().flatten().map(i128::from).collect());
        self.encrypt_integers(&wide, form, rng)
    }

    /// Encrypts polynomials of integers below `2^125`, `[count][N]`.
    ///
    /// # Errors
    /// If these are not whole polynomials or the form does not fit the parameters.
    pub fn encrypt_integers(&self, messages: &[i128], form: Fresh, rng: &mut SecureRng) -> Result<SeededCiphertexts> {
        self.ctx.ledger(&form)?;
        let (params, limbs) = (self.ctx.params(), form.limbs);
        let n = params.n();
        if !messages.len().is_multiple_of(n) {
            return Err(HeError::shape(
                "encrypt",
                format!("{} coefficients are not polynomials of {n}", messages.len()),
            ));
        }
        let reducers: Vec<_> = params.ring().moduli()[..limbs].iter().map(|&p| WideReducer::new(p)).collect();
        let forks: Vec<SecureRng> = (0..messages.len() / n).map(|_| rng.fork()).collect();
        let mut words = Zeroizing::new(vec![0u32; messages.len() * limbs]);
        words.par_chunks_mut(limbs * n).zip(messages.par_chunks(n)).zip(forks).for_each(|((out, m), mut rng)| {
            let mut e = Zeroizing::new(vec![0; n]);
            sample::centred_binomial(&mut rng, &mut e);
            for (reducer, out) in reducers.iter().zip(out.chunks_mut(n)) {
                for ((out, &m), &e) in out.iter_mut().zip(m).zip(e.iter()) {
                    *out = reducer.reduce(m + i128::from(e));
                }
            }
        });
        self.inner.encrypt_words(limbs, &words)
    }

    /// Real slots of a response, `N/2` a ciphertext.
    ///
    /// # Errors
    /// [`HeError::WrongKey`] if it is encrypted under another key.
    pub fn decrypt(&self, response: &CkksResponse) -> Result<Zeroizing<Vec<f64>>> {
        let integers = self.decrypt_integers(response)?;
        let (encoder, n) = (self.ctx.encoder(), self.ctx.params().n());
        let slots: Vec<Vec<f64>> = integers.par_chunks(n).map(|m| encoder.decode(m, response.scale)).collect();
        Ok(Zeroizing::new(slots.into_iter().flatten().collect()))
    }

    /// The polynomials of a response, `[count][N]`, centred modulo q.
    ///
    /// # Errors
    /// As [`Self::decrypt`].
    pub fn decrypt_integers(&self, response: &CkksResponse) -> Result<Zeroizing<Vec<i128>>> {
        if response.owner != self.inner.seed() {
            return Err(HeError::WrongKey { what: "the response" });
        }
        let (params, limbs) = (self.ctx.params(), response.limbs);
        let n = params.n();
        let phase = self.inner.phase(limbs, &response.words)?;
        let basis = CrtBasis::new(&params.ring().moduli()[..limbs]);
        let q = basis.product().ok_or_else(|| HeError::shape("decrypt", format!("{limbs} limbs are too many")))?;
        let mut out = Zeroizing::new(vec![0i128; response.count * n]);
        out.par_chunks_mut(n).zip(phase.par_chunks(limbs * n)).for_each(|(out, phase)| {
            for (i, out) in out.iter_mut().enumerate() {
                let x = basis.lift(|limb| phase[limb * n + i]);
                // x - q where x > q/2, without a branch.
                let above = ((q / 2).wrapping_sub(x) as i128) >> 127;
                *out = x as i128 - (q as i128 & above);
            }
        });
        Ok(out)
    }

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &HeClient {
        &self.inner
    }
}

impl CkksKeys {
    /// Bytes on the wire with the keys of `elements` rotations.
    pub fn byte_len(params: &ParameterSet, elements: usize) -> Option<usize> {
        let public = wire::residues_len(params, 1, params.key_limbs())?.checked_add(32)?;
        let galois = GaloisKeys::byte_len_for(params, elements)?;
        public.checked_add(galois)?.checked_add(RelinearisationKey::byte_len(params)?)?.checked_add(32)
    }

    /// The client's name, then public key, relinearisation key and rotation keys.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        let mut out = self.owner.to_vec();
        out.extend(self.public.to_bytes(params));
        out.extend(self.relinearisation.to_bytes(params));
        out.extend(self.galois.to_bytes(params));
        out
    }

    /// Reads what [`Self::to_bytes`] wrote for the rotations by `steps`, which both sides know.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes(params: &ParameterSet, steps: &[usize], mut bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "keys";
        if Self::byte_len(params, steps.len()) != Some(bytes.len()) {
            return Err(HeError::wire(
                WHAT,
                format!("{} bytes are not the keys of {} rotations", bytes.len(), steps.len()),
            ));
        }
        let elements: Vec<usize> = steps.iter().map(|&steps| rotation_element(params.n(), steps)).collect();
        let owner = wire::take_array(WHAT, &mut bytes)?;
        let public = wire::residues_len(params, 1, params.key_limbs()).unwrap_or(usize::MAX).saturating_add(32);
        let public = PublicKey::from_bytes(params, wire::take(WHAT, &mut bytes, public)?)?;
        let relinearisation = RelinearisationKey::byte_len(params).unwrap_or(usize::MAX);
        let relinearisation = RelinearisationKey::from_bytes(params, wire::take(WHAT, &mut bytes, relinearisation)?)?;
        let galois = GaloisKeys::from_bytes_for(params, &elements, bytes)?;
        Ok(Self { owner, public, relinearisation, galois })
    }
}
