//! The noise ledger: a bound that follows a ciphertext through every step, and what it implies for the response.
//!
//! Coefficients of the noise are sub-Gaussian: a sum of independent terms whose variance proxies add (errors, secrets and
//! the roundings of uniform values are bounded and centred, so Hoeffding's lemma gives the proxy). A bound is
//! [`TAIL`] deviations plus a deterministic part and fails for some coefficient of a ciphertext with probability below
//! `2 N exp(-TAIL^2 / 2) < 2^-43`.

use super::{Cut, HeError, ParameterSet};
use crate::arith::{
    Modulus, ShareModulus,
    crt::CrtBasis,
    sample::{ERROR_VARIANCE, GAUSSIAN_TAIL, MAX_DEVIATION_LOG2},
};

/// Deviations of a bound.
pub const TAIL: f64 = 9.0;

/// The flooding deviation is `2^FLOOD_BITS` times the bound on the ciphertext's own noise.
pub const FLOOD_BITS: u32 = 40;

/// A bound on the absolute value of every coefficient of a ciphertext's noise, in units of 1 modulo q.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseBound {
    /// Variance proxy of a coefficient.
    pub variance: f64,
    /// Deterministic part of the bound.
    pub offset: f64,
}

impl NoiseBound {
    /// A fresh symmetric encryption: the error, and the rounding of the encoding of a *uniform* message.
    pub const fn fresh() -> Self {
        Self { variance: ERROR_VARIANCE + 0.25, offset: 0.0 }
    }

    /// No noise at all.
    pub const fn zero() -> Self {
        Self { variance: 0.0, offset: 0.0 }
    }

    /// The bound on the absolute value of a coefficient.
    pub fn bound(&self) -> f64 {
        TAIL * self.variance.sqrt() + self.offset
    }

    /// `log2` of [`Self::bound`].
    pub fn log2(&self) -> f64 {
        self.bound().log2()
    }

    /// The sum of `terms` coefficients times plaintext integers of absolute value at most `magnitude`.
    pub fn weighted_sum(&self, terms: f64, magnitude: f64) -> Self {
        Self { variance: self.variance * terms * magnitude * magnitude, offset: self.offset * terms * magnitude }
    }

    /// The sum of two ciphertexts with independent noises.
    pub fn plus(&self, other: &Self) -> Self {
        Self { variance: self.variance + other.variance, offset: self.offset + other.offset }
    }

    /// One key switch at the full modulus: digits times errors over the special primes, then their rounding.
    pub fn key_switch(params: &ParameterSet) -> Self {
        if params.specials().is_empty() {
            return Self::zero();
        }
        let n = params.n() as f64;
        let product = |moduli: &[Modulus]| moduli.iter().map(|p| p.value() as f64).product::<f64>();
        let special = product(params.specials());
        let digits = params.data().moduli().chunks(params.digit_limbs());
        let digits: f64 = digits.map(|digit| (product(digit) / special).powi(2)).sum();
        Self { variance: digits * n * ERROR_VARIANCE, offset: 0.0 }.plus(&Self::rounding(params.n()))
    }

    /// After a rotation ([`super::HeServer::rotate`]) at the full modulus: `X -> X^g` moves coefficients, and one key switch.
    pub fn rotated(&self, params: &ParameterSet) -> Self {
        self.plus(&Self::key_switch(params))
    }

    /// What key switches add to a sum of products of all `turns` automorphisms of some ciphertexts, the identity among them, and
    /// plaintexts: under one automorphism, digits at one place meet weights with the absolute sum `sum` and the sum of squares
    /// `square` (or the square of `sum`, where weights may all have one sign: digits are not centred). They are added up before
    /// they meet the errors of their key.
    pub fn turned_products(params: &ParameterSet, turns: f64, sum: f64, square: f64) -> Self {
        let switch = Self::key_switch(params);
        Self { variance: switch.variance * (turns - 1.0) * square, offset: switch.offset * (turns - 1.0) * sum }
    }

    /// Output packing of `outputs` ciphertexts (a power of two): a coefficient of the result takes its message and noise
    /// from one input, and each of the `log2` levels doubles what the levels below it added and adds a key switch.
    pub fn packed(&self, params: &ParameterSet, outputs: usize) -> Self {
        let switch = Self::key_switch(params);
        let (variance, offset) = ((outputs * outputs - 1) as f64 / 3.0, (outputs - 1) as f64);
        self.plus(&Self { variance: switch.variance * variance, offset: switch.offset * offset })
    }

    /// After adding an encryption of zero under a public key (`e1 + u e_pk + e2 s`) and the server's mask (rounding 1/2).
    pub fn rerandomised(&self, params: &ParameterSet) -> Self {
        let n = params.n() as f64;
        self.plus(&Self { variance: ERROR_VARIANCE * (2.0 * n + 1.0), offset: 0.5 })
    }

    /// Deviation of the Gaussian that floods this noise.
    pub fn flood_deviation(&self) -> f64 {
        self.bound() * 2f64.powi(FLOOD_BITS as i32)
    }

    /// After flooding with that deviation. The Gaussian never exceeds [`GAUSSIAN_TAIL`] deviations.
    pub fn flooded(&self) -> Self {
        let deviation = self.flood_deviation();
        const { assert!(GAUSSIAN_TAIL <= TAIL) };
        Self { variance: self.variance + deviation * deviation, offset: self.offset }
    }

    /// After switching down to a modulus `2^-dropped_bits` times as large.
    pub fn switched(&self, n: usize, dropped_bits: f64) -> Self {
        let scale = (-dropped_bits).exp2();
        let scaled = Self { variance: self.variance * scale * scale, offset: self.offset * scale };
        // Roundings of earlier dropped limbs are scaled by the later ones to under 2^-25 of the last.
        let rounding = Self::rounding(n);
        scaled.plus(&Self { variance: rounding.variance * (1.0 + 2f64.powi(-20)), ..rounding })
    }

    /// After the low `bits` bits of c0 are dropped and replaced by their midpoint.
    pub fn truncated(&self, bits: u32) -> Self {
        let half = if bits == 0 { 0.0 } else { 2f64.powi(bits as i32 - 1) };
        Self { offset: self.offset + half, ..*self }
    }

    /// The same of c1, whose N errors meet a ternary secret.
    pub fn c1_truncated(&self, n: usize, bits: u32) -> Self {
        let half = if bits == 0 { 0.0 } else { 2f64.powi(bits as i32 - 1) };
        Self { variance: self.variance + n as f64 * half * half, ..*self }
    }

    /// Rounding both parts of a ciphertext to integers: 1/2 in c0, and N roundings times a ternary secret.
    fn rounding(n: usize) -> Self {
        Self { variance: n as f64 / 4.0, offset: 0.5 }
    }
}

/// How a response is flooded, switched and cut so that it still decrypts: a public function of the parameters, the ring
/// and the bound on the noise, never of the data.
#[derive(Clone, Debug)]
pub struct ResponsePlan {
    /// Limbs that remain, at most [`CrtBasis::MAX_LIFT`].
    pub limbs: usize,
    /// What is sent of coefficients of c0.
    pub c0: Cut,
    /// And of c1.
    pub c1: Cut,
    /// Deviation of the flooding noise.
    pub flood_deviation: f64,
    /// Noise that is flooded: the ciphertext's own, with re-randomisation.
    pub own: NoiseBound,
    /// Noise that the client meets.
    pub received: NoiseBound,
    n: usize,
}

impl ResponsePlan {
    /// The plan for a ciphertext with noise `own` before re-randomisation.
    pub(super) fn new(params: &ParameterSet, t: ShareModulus, own: &NoiseBound) -> Result<Self, HeError> {
        let (n, log_q) = (params.n(), params.data().log2());
        let own = own.rerandomised(params);
        let flooded = own.flooded();
        // Half a unit of the message, less what the rounding of the decryption itself can take.
        let budget = |log_q: f64| log_q - t.bits() as f64 - 1.0 - 0.01;
        let too_wide = || HeError::Width {
            name: params.name(),
            ring_bits: t.bits(),
            own_noise: own.log2(),
            flood_bits: FLOOD_BITS,
            noise: flooded.log2(),
            budget: budget(log_q),
        };
        // A Gaussian wider than the sampler's would be cut short, and flood less than the ledger says.
        if own.flood_deviation() > 2f64.powi(MAX_DEVIATION_LOG2) || !t.is_valid() || flooded.log2() >= budget(log_q) {
            return Err(too_wide());
        }
        for limbs in 1..=params.limbs().min(CrtBasis::MAX_LIFT) {
            let basis = CrtBasis::new(&params.data().moduli()[..limbs]);
            let switched = if limbs == params.limbs() { flooded } else { flooded.switched(n, log_q - basis.log2()) };
            let room = budget(basis.log2()).exp2() - switched.bound();
            if room <= 0.0 {
                continue;
            }
            // Dropping b bits costs 2^(b-1) in c0, and the deviation of a sum of N of these in c1: which gets a quarter of the room, so
            // that less than half a bit is lost in c0.
            let bits = basis.log2().ceil() as u32;
            let most = |room: f64| (room.log2().floor().max(-1.0) + 1.0) as u32;
            let c1 = Cut::new(bits, most(room / 4.0 / (TAIL * (n as f64).sqrt())));
            let switched = switched.c1_truncated(n, c1.dropped_bits);
            let c0 = Cut::new(bits, most(budget(basis.log2()).exp2() - switched.bound()));
            let received = switched.truncated(c0.dropped_bits);
            return Ok(Self { limbs, c0, c1, flood_deviation: own.flood_deviation(), own, received, n });
        }
        Err(too_wide())
    }

    /// `log2` of a bound on the statistical distance between what the client decrypts in `ciphertexts` responses and what
    /// it would decrypt if the noise did not depend on the server's weights.
    ///
    /// The Kullback-Leibler divergence of a Gaussian from its shift by `d` is `d^2 / 2 sigma^2` and adds over coefficients;
    /// Pinsker's inequality gives `sqrt(E ||d||^2) / 2 sigma`. Rounding and switching are post-processing.
    pub fn statistical_distance_log2(&self, ciphertexts: u64) -> f64 {
        let mean_square = self.own.variance + self.own.offset * self.own.offset;
        let coefficients = self.n as f64 * ciphertexts as f64;
        0.5 * (coefficients * mean_square).log2() - 1.0 - self.flood_deviation.log2()
    }
}
