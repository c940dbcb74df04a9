//! Parameter sets of CKKS, and what client and server share.

use std::sync::Arc;

use super::{
    super::{BfvContext, HeCounters, HeError, ParameterSet, ParameterSpec, Result},
    CkksEncoder, Ledger,
};
use crate::engine::{Backend, RnsRing};

/// Client-aided evaluation: 6 x 30 bits and a special prime, 210 of the 218 bits that the table allows. Four levels above the
/// last two limbs.
pub const CKKS_8192: ParameterSpec =
    ParameterSpec { name: "ckks-8192", n: 8192, prime_bits: 30, data_limbs: 6, special_limbs: 1 };

/// Ten levels: 12 x 30 bits and two special primes, 420 of 438 bits.
pub const CKKS_16384: ParameterSpec =
    ParameterSpec { name: "ckks-16384", n: 16384, prime_bits: 30, data_limbs: 12, special_limbs: 2 };

/// Deeper circuits without the client: 26 x 30 bits and three special primes, 870 of 881 bits.
pub const CKKS_32768: ParameterSpec =
    ParameterSpec { name: "ckks-32768", n: 32768, prime_bits: 30, data_limbs: 26, special_limbs: 3 };

/// All named sets of CKKS.
pub const CKKS_SPECS: [ParameterSpec; 3] = [CKKS_8192, CKKS_16384, CKKS_32768];

/// The public form of fresh ciphertexts: what both sides know of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fresh {
    /// Limbs.
    pub limbs: usize,
    /// Units of the number 1.
    pub scale: f64,
    /// Bound on the magnitude of a slot.
    pub magnitude: f64,
}

/// A parameter set on a device, with the tables of the encoding.
pub struct CkksContext {
    inner: Arc<BfvContext>,
    encoder: CkksEncoder,
}

impl CkksContext {
    /// The set `params` on `backend`.
    pub fn new(backend: Arc<dyn Backend>, params: ParameterSet) -> Arc<Self> {
        let encoder = CkksEncoder::new(params.n());
        Arc::new(Self { inner: BfvContext::new(backend, params), encoder })
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        self.inner.backend()
    }

    /// The parameter set.
    pub fn params(&self) -> &ParameterSet {
        self.inner.params()
    }

    /// The ring, special primes last.
    pub fn ring(&self) -> &Arc<RnsRing> {
        self.inner.ring()
    }

    /// The encoding.
    pub fn encoder(&self) -> &CkksEncoder {
        &self.encoder
    }

    /// Slots of a ciphertext, `N/2`.
    pub fn slots(&self) -> usize {
        self.encoder.slots()
    }

    /// The scale of fresh ciphertexts: 2 to the bits of a prime.
    pub fn scale(&self) -> f64 {
        2f64.powi(self.params().residue_bits() as i32)
    }

    /// The form of fresh ciphertexts of `limbs` limbs with slots up to `magnitude`, at [`Self::scale`].
    pub fn fresh(&self, limbs: usize, magnitude: f64) -> Fresh {
        Fresh { limbs, scale: self.scale(), magnitude }
    }

    /// The prime that [`super::CkksServer::rescale`] divides a ciphertext of `limbs` limbs by. A plaintext at this scale leaves
    /// the scale of what it multiplies.
    pub fn prime(&self, limbs: usize) -> f64 {
        let index = limbs.clamp(1, self.params().key_limbs()) - 1;
        self.params().ring().moduli()[index].value() as f64
    }

    /// Work done so far.
    pub fn counters(&self) -> HeCounters {
        self.inner.counters()
    }

    /// Words that a batch of intermediates should stay below on this device.
    pub fn tile_words(&self) -> usize {
        self.inner.tile_words()
    }

    pub(super) fn inner(&self) -> &Arc<BfvContext> {
        &self.inner
    }

    /// The ledger of a fresh ciphertext.
    pub(super) fn ledger(&self, form: &Fresh) -> Result<Ledger> {
        let params = self.params();
        if form.limbs == 0 || form.limbs > params.key_limbs() || !(form.scale.is_finite() && form.scale >= 1.0) {
            let detail = format!("{form:?} where {} has 1 to {} limbs", params.name(), params.key_limbs());
            return Err(HeError::shape("encrypt", detail));
        }
        let ledger = Ledger::fresh(params.n(), form.scale, form.magnitude);
        ledger.check("encrypt", params, form.limbs)?;
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::standard_log_q, *};

    #[test]
    fn named_sets_are_within_the_table() {
        for (spec, log_q) in CKKS_SPECS.into_iter().zip([210, 420, 870]) {
            let set = ParameterSet::new(spec).unwrap();
            let total: f64 = set.ring().moduli().iter().map(|p| (p.value() as f64).log2()).sum();
            assert!(total <= log_q as f64 && total > log_q as f64 - 0.6 && log_q <= standard_log_q(spec.n).unwrap());
            let more = ParameterSpec { data_limbs: spec.data_limbs + 1, ..spec };
            assert!(matches!(ParameterSet::new(more), Err(HeError::Security { .. })));
        }
    }
}
