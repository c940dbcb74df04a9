//! Errors of parameters, keys, encryption and their wire forms.

use thiserror::Error;

use crate::{arith::bits::BitsError, engine::EngineError};

/// What can go wrong in homomorphic encryption and the packings above it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HeError {
    /// The compute engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A parameter set that the HE-standard table does not cover, or that its bound forbids.
    #[error(
        "parameter set {name} is not 128-bit secure: log2 q = {log_q:.1} at N = {n}, where the table allows {allowed}; \
         use fewer moduli or a larger N"
    )]
    Security {
        /// Name of the set.
        name: &'static str,
        /// Ring dimension.
        n: usize,
        /// Bits of all moduli, the special ones included.
        log_q: f64,
        /// Bits that the table allows (0: N is not in the table).
        allowed: u32,
    },
    /// A parameter set that does not exist.
    #[error("parameter set {name} has no primes: {count} primes of {bits} bits that are 1 mod {modulus} do not exist")]
    Primes {
        /// Name of the set.
        name: &'static str,
        /// Primes wanted.
        count: usize,
        /// Bits of each.
        bits: u32,
        /// `2N`.
        modulus: usize,
    },
    /// A share ring that is too wide for a parameter set and the noise that must be flooded.
    #[error(
        "a ring of {ring_bits} bits does not fit parameter set {name}: noise of 2^{own_noise:.1} flooded by {flood_bits} \
         bits reaches 2^{noise:.1}, and decryption needs it below 2^{budget:.1}; use a narrower ring or a larger set"
    )]
    Width {
        /// Name of the set.
        name: &'static str,
        /// Bits of the share ring.
        ring_bits: u32,
        /// `log2` of the bound on the ciphertext's own noise.
        own_noise: f64,
        /// Bits of flooding.
        flood_bits: u32,
        /// `log2` of the bound after flooding.
        noise: f64,
        /// `log2(q / 2t)`.
        budget: f64,
    },
    /// A graph of tasks did not finish, for no fault of an operation.
    #[error("{detail}")]
    Task {
        /// Which task, and what happened.
        detail: String,
    },
    /// Matrices or layouts that do not fit each other.
    #[error("{operation}: {detail}")]
    Shape {
        /// What was asked for.
        operation: &'static str,
        /// Expected and found.
        detail: String,
    },
    /// Bytes from outside that are not what they should be.
    #[error("{what}: {reason}")]
    Wire {
        /// What the bytes should be.
        what: &'static str,
        /// Why they are not.
        reason: String,
    },
    /// A key switch whose key the client did not send.
    #[error("no switching key for the Galois element {element}; generate keys for blocks of at least {block}")]
    MissingKey {
        /// The element `g` of `X -> X^g`.
        element: usize,
        /// Block width that needs it.
        block: usize,
    },
    /// A rotation whose key the client did not send.
    #[error("no switching key for the Galois element {element}; name it when the client generates its keys")]
    MissingRotationKey {
        /// The element `g` of `X -> X^g`.
        element: usize,
    },
    /// Slots that a CKKS plaintext cannot hold.
    #[error(
        "slots cannot be encoded at the scale 2^{:.1}: they are not numbers, or too large; use a smaller scale or smaller values",
        scale.log2()
    )]
    Unencodable {
        /// Scale asked for.
        scale: f64,
    },
    /// A CKKS ciphertext without room for the next step.
    #[error(
        "{operation}: the depth of the parameters is exhausted: {limbs} limbs hold 2^{available:.1} and 2^{needed:.1} is needed;          use a larger parameter set or refresh earlier"
    )]
    DepthExhausted {
        /// What was asked for.
        operation: &'static str,
        /// Limbs that would be left.
        limbs: usize,
        /// `log2` of the largest message that fits them.
        available: f64,
        /// `log2` of the message at its scale.
        needed: f64,
    },
    /// CKKS ciphertexts at scales that cannot be added.
    #[error("ciphertexts at the scales 2^{:.6} and 2^{:.6} cannot be added; choose the plaintext's scale so that they meet",
        left.log2(), right.log2())]
    ScaleMismatch {
        /// Scale of the first.
        left: f64,
        /// Scale of the second.
        right: f64,
    },
    /// A ciphertext or key of another client.
    #[error("{what} is of another secret key; use the keys and ciphertexts of one client")]
    WrongKey {
        /// What it is.
        what: &'static str,
    },
    /// The counter of uniform halves is used up.
    #[error("the encryption counter is used up; make a new key")]
    CounterExhausted,
    /// The operating system gave no entropy.
    #[error("the operating system gave no random bytes: {0}")]
    Entropy(getrandom::Error),
}

impl HeError {
    pub(crate) fn wire(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Wire { what, reason: reason.into() }
    }

    pub(crate) fn bits(what: &'static str) -> impl Fn(BitsError) -> Self {
        move |e| Self::wire(what, e.to_string())
    }

    pub(crate) fn shape(operation: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { operation, detail: detail.into() }
    }
}

impl From<getrandom::Error> for HeError {
    fn from(e: getrandom::Error) -> Self {
        Self::Entropy(e)
    }
}
