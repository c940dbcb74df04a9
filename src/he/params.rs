//! Named parameter sets, their security, and the width rule that ties a share ring to a set.

use std::sync::Arc;

use super::{HeError, NoiseBound, ResponsePlan};
use crate::{
    arith::{Modulus, ShareModulus, crt::CrtBasis, primes::ntt_primes},
    engine::{KeySwitchShape, RnsRing},
};

/// The numbers of a parameter set. A [`ParameterSet`] is what has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name in reports and on the command line.
    pub name: &'static str,
    /// Ring dimension.
    pub n: usize,
    /// Bits of each prime, at most 30.
    pub prime_bits: u32,
    /// Primes of the ciphertext modulus q.
    pub data_limbs: usize,
    /// Special primes of key switching, and data primes of a digit: 0 (no key switch) to [`ParameterSpec::MAX_SPECIAL`].
    pub special_limbs: usize,
}

impl ParameterSpec {
    /// Most special primes.
    pub const MAX_SPECIAL: usize = 4;
}

/// Batch-column linear layers, no key switch: 4 x 27 bits.
pub const COLUMN_4096: ParameterSpec =
    ParameterSpec { name: "column-4096", n: 4096, prime_bits: 27, data_limbs: 4, special_limbs: 0 };

/// The same for wider rings: 7 x 30 bits.
pub const COLUMN_8192: ParameterSpec =
    ParameterSpec { name: "column-8192", n: 8192, prime_bits: 30, data_limbs: 7, special_limbs: 0 };

/// Coefficient packing and products of shares: 5 x 30 bits and a special prime.
pub const MATMUL_8192: ParameterSpec =
    ParameterSpec { name: "matmul-8192", n: 8192, prime_bits: 30, data_limbs: 5, special_limbs: 1 };

/// Products of shares in rings over 48 bits: 9 x 30 bits and a special prime.
pub const MATMUL_16384: ParameterSpec =
    ParameterSpec { name: "matmul-16384", n: 16384, prime_bits: 30, data_limbs: 9, special_limbs: 1 };

/// All named sets of BFV; [`super::ckks::CKKS_SPECS`] are those of CKKS.
pub const PARAMETER_SPECS: [ParameterSpec; 4] = [COLUMN_4096, COLUMN_8192, MATMUL_8192, MATMUL_16384];

/// Largest `log2` of all moduli together for 128-bit classical security with a ternary secret: the table of the
/// Homomorphic Encryption Standard (Albrecht et al., 2018). `None` outside the table.
pub const fn standard_log_q(n: usize) -> Option<u32> {
    match n {
        2048 => Some(54),
        4096 => Some(109),
        8192 => Some(218),
        16384 => Some(438),
        32768 => Some(881),
        _ => None,
    }
}

/// A parameter set that has passed the security check, with its ring.
#[derive(Clone, Debug)]
pub struct ParameterSet {
    spec: ParameterSpec,
    ring: Arc<RnsRing>,
    /// Primes of a ciphertext: those of `spec`, or the first of them.
    data: CrtBasis,
}

impl ParameterSet {
    /// Builds the set: the largest primes of its width, the special ones last.
    ///
    /// # Errors
    /// [`HeError::Security`] if the moduli exceed the standard table, [`HeError::Primes`] if there are not enough primes.
    pub fn new(spec: ParameterSpec) -> Result<Self, HeError> {
        Self::build(spec, true)
    }

    /// A set of a small ring, whatever its security: for tests.
    #[cfg(test)]
    pub(crate) fn insecure(spec: ParameterSpec) -> Result<Self, HeError> {
        Self::build(spec, false)
    }

    fn build(spec: ParameterSpec, check: bool) -> Result<Self, HeError> {
        let ParameterSpec { name, n, prime_bits: bits, data_limbs, special_limbs } = spec;
        let no_primes = HeError::Primes { name, count: data_limbs + special_limbs, bits, modulus: 2 * n };
        if data_limbs == 0 || special_limbs > ParameterSpec::MAX_SPECIAL {
            return Err(no_primes);
        }
        let primes = ntt_primes(bits, n, data_limbs + special_limbs).ok_or(no_primes)?;
        let log_q: f64 = primes.iter().map(|&p| (p as f64).log2()).sum();
        let allowed = standard_log_q(n).unwrap_or(0);
        if check && log_q > allowed as f64 {
            return Err(HeError::Security { name, n, log_q, allowed });
        }
        let ring = Arc::new(RnsRing::new(n, &primes)?);
        let data = CrtBasis::new(&ring.moduli()[..data_limbs]);
        Ok(Self { spec, ring, data })
    }

    /// The numbers that the set was built from.
    pub fn spec(&self) -> ParameterSpec {
        self.spec
    }

    /// Name in reports.
    pub fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Ring dimension N.
    pub fn n(&self) -> usize {
        self.spec.n
    }

    /// Limbs of a fresh ciphertext.
    pub fn limbs(&self) -> usize {
        self.data.moduli().len()
    }

    /// The set with ciphertexts modulo the first `limbs` primes of q only, where a product needs no more. The ring, the special
    /// prime and all keys are those of the whole set: keys modulo q serve modulo every prefix of its primes.
    ///
    /// # Errors
    /// If `limbs` is 0 or more than the whole set has.
    pub fn at_level(&self, limbs: usize) -> Result<Self, HeError> {
        if limbs == 0 || limbs > self.spec.data_limbs {
            let detail = format!("{limbs} limbs where {} has 1 to {}", self.name(), self.spec.data_limbs);
            return Err(HeError::shape("level", detail));
        }
        Ok(Self { spec: self.spec, ring: self.ring.clone(), data: CrtBasis::new(&self.ring.moduli()[..limbs]) })
    }

    /// Limbs of the whole set's ciphertexts.
    pub fn key_limbs(&self) -> usize {
        self.spec.data_limbs
    }

    /// Data limbs of a digit of key switching: as many as there are special primes.
    pub fn digit_limbs(&self) -> usize {
        self.spec.special_limbs.max(1)
    }

    /// Digits of a switching key.
    pub fn key_digits(&self) -> usize {
        self.key_limbs().div_ceil(self.digit_limbs())
    }

    /// The sizes of a key switch of `polys` polynomials or ciphertexts of `limbs` limbs.
    pub(crate) fn key_switch_shape(&self, polys: usize, limbs: usize) -> KeySwitchShape {
        KeySwitchShape { polys, limbs, special: self.spec.special_limbs, digit_limbs: self.digit_limbs() }
    }

    /// Bits that a residue takes on the wire.
    pub fn residue_bits(&self) -> u32 {
        self.spec.prime_bits
    }

    /// The ring, special primes last.
    pub fn ring(&self) -> &Arc<RnsRing> {
        &self.ring
    }

    /// The ciphertext modulus q as a basis.
    pub fn data(&self) -> &CrtBasis {
        &self.data
    }

    /// The special primes of key switching.
    pub fn specials(&self) -> &[Modulus] {
        &self.ring.moduli()[self.spec.data_limbs..]
    }

    /// The first special prime, if there is one.
    pub fn special(&self) -> Option<Modulus> {
        self.specials().first().copied()
    }

    /// Whether messages modulo `t` can be scaled to q: t must have an inverse modulo q.
    pub(super) fn check_ring(&self, t: ShareModulus) -> Result<(), HeError> {
        let divides = |p: &Modulus| t.largest() == u64::from(p.value()) - 1;
        if t.is_valid() && !self.data.moduli().iter().any(divides) {
            return Ok(());
        }
        Err(HeError::shape("ring of shares", format!("{t:?} is no ring, or one of the moduli of {}", self.name())))
    }

    /// The width rule: whether a ciphertext with the bound `own` can be re-randomised, flooded and still decrypt in the
    /// ring `t`, and how its response is cut.
    ///
    /// # Errors
    /// [`HeError::Width`], naming the numbers.
    pub fn check(&self, t: ShareModulus, own: &NoiseBound) -> Result<ResponsePlan, HeError> {
        self.check_ring(t)?;
        ResponsePlan::new(self, t, own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_sets_are_secure_and_have_the_stated_moduli() {
        for (spec, log_q) in PARAMETER_SPECS.into_iter().zip([108, 210, 180, 300]) {
            let set = ParameterSet::new(spec).unwrap();
            let total: f64 = set.ring().moduli().iter().map(|p| (p.value() as f64).log2()).sum();
            assert!((total - log_q as f64).abs() < 0.02, "{} {total}", spec.name);
            assert!(total <= standard_log_q(spec.n).unwrap() as f64);
            assert_eq!(set.special().is_some(), spec.special_limbs == 1);
        }
    }

    #[test]
    fn a_set_over_the_table_cannot_be_built() {
        for spec in [
            ParameterSpec { data_limbs: 5, ..COLUMN_4096 },
            ParameterSpec { data_limbs: 8, ..COLUMN_8192 },
            ParameterSpec { data_limbs: 7, ..MATMUL_8192 },
            ParameterSpec { data_limbs: 14, ..MATMUL_16384 },
            ParameterSpec { n: 1024, data_limbs: 1, ..COLUMN_4096 },
        ] {
            let e = ParameterSet::new(spec).unwrap_err();
            assert!(matches!(e, HeError::Security { .. }), "{e}");
        }
        assert!(matches!(
            ParameterSet::new(ParameterSpec { prime_bits: 31, ..MATMUL_8192 }),
            Err(HeError::Primes { .. })
        ));
    }

    #[test]
    fn width_rule_of_the_named_sets() {
        let fits = |spec: ParameterSpec, bits, terms: f64, magnitude: f64| {
            let set = ParameterSet::new(spec).unwrap();
            let own = NoiseBound::fresh().weighted_sum(terms, magnitude);
            set.check(ShareModulus::pow2(bits).unwrap(), &own)
        };
        let uniform = |bits: u32| 2f64.powi(bits as i32 - 1);
        assert!(fits(COLUMN_4096, 38, 3072.0, 2048.0).is_ok() && fits(COLUMN_4096, 44, 3072.0, 2048.0).is_err());
        assert!(fits(MATMUL_8192, 64, 3072.0 * 16.0, 32768.0).is_ok());
        assert!(fits(MATMUL_8192, 48, 128.0, uniform(48)).is_ok());
        let e = fits(MATMUL_8192, 56, 128.0, uniform(56)).unwrap_err().to_string();
        assert!(e.contains("56 bits") && e.contains("matmul-8192"), "{e}");
        assert!(fits(MATMUL_16384, 64, 128.0, uniform(64)).is_ok());
        // A plaintext modulus that divides q has no inverse there.
        let set = ParameterSet::new(MATMUL_8192).unwrap();
        let t = ShareModulus::prime(set.data().moduli()[1].value().into()).unwrap();
        assert!(set.check(t, &NoiseBound::fresh()).unwrap_err().to_string().contains("moduli"));
    }
}
