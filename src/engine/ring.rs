//! The ring `Z_q[X]/(X^N + 1)` in RNS form, with the host-side constants that every backend derives its tables from.

use std::sync::atomic::{AtomicU64, Ordering};

use super::EngineError;
use crate::arith::{Modulus, primes::is_prime};

/// An RNS ring: dimension, moduli and roots of unity.
///
/// By convention the last modulus is the special prime of key switching where there is one; ciphertexts use a prefix.
#[derive(Debug)]
pub struct RnsRing {
    id: u64,
    n: usize,
    moduli: Vec<Modulus>,
    psi: Vec<u32>,
}

impl RnsRing {
    /// Builds the ring of dimension `n` (a power of two from 8 to 65536) over distinct primes 1 mod `2n`, below `2^30`.
    pub fn new(n: usize, primes: &[u32]) -> Result<Self, EngineError> {
        let fail = |reason| EngineError::Ring { n, moduli: primes.to_vec(), reason };
        if !n.is_power_of_two() || !(8..=65536).contains(&n) {
            return Err(fail("N must be a power of two from 8 to 65536"));
        }
        if primes.is_empty() || primes.len() > 64 {
            return Err(fail("between 1 and 64 moduli are supported"));
        }
        let mut moduli = Vec::with_capacity(primes.len());
        for (i, &p) in primes.iter().enumerate() {
            let m = Modulus::new(p).ok_or_else(|| fail("moduli must be odd and below 2^30"))?;
            if !is_prime(p) || p as usize % (2 * n) != 1 || primes[..i].contains(&p) {
                return Err(fail("moduli must be distinct primes that are 1 mod 2N"));
            }
            moduli.push(m);
        }
        let psi = moduli.iter().map(|&m| primitive_root_2n(m, n)).collect();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), n, moduli, psi })
    }

    /// A number that no other ring of this process has: a key for backends' table caches.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Ring dimension N.
    pub fn n(&self) -> usize {
        self.n
    }

    /// `log2 N`.
    pub fn log_n(&self) -> u32 {
        self.n.trailing_zeros()
    }

    /// All moduli.
    pub fn moduli(&self) -> &[Modulus] {
        &self.moduli
    }

    /// The primitive `2N`-th root of unity of each limb that defines the order of the NTT domain.
    pub fn psi(&self) -> &[u32] {
        &self.psi
    }
}

/// `g^((p-1)/2N)` for the smallest `g >= 2` that makes it primitive.
fn primitive_root_2n(m: Modulus, n: usize) -> u32 {
    let p = m.value();
    let exponent = (p as u64 - 1) / (2 * n as u64);
    let mut g = 2;
    loop {
        let root = m.pow(g, exponent);
        // psi^N = -1 exactly when the order is 2N (N a power of two).
        if m.pow(root, n as u64) == p - 1 {
            return root;
        }
        g += 1;
    }
}
