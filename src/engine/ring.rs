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

/// The primitive `2N`-th root of unity reached from `-1` by `log2 N` square roots, each the one that Tonelli-Shanks finds
/// with the smallest quadratic non-residue.
///
/// The CPU NTT libraries choose by this rule, and all implementations of the NTT must agree word for word.
fn primitive_root_2n(m: Modulus, n: usize) -> u32 {
    let p = m.value();
    let mut z = 2;
    while m.pow(z, (p as u64 - 1) / 2) != p - 1 {
        z += 1;
    }
    (0..n.trailing_zeros()).fold(p - 1, |root, _| square_root(m, z, root))
}

/// The square root of a quadratic residue `a` that Tonelli-Shanks (Cohen, "A Course in Computational Algebraic Number
/// Theory", algorithm 1.5.1) gives for the non-residue `z`.
fn square_root(m: Modulus, z: u32, a: u32) -> u32 {
    let order = m.value() as u64 - 1;
    let odd = order >> order.trailing_zeros();
    // Invariant: root^2 = a * t, t of order dividing 2^(e-1), c of order 2^e.
    let mut e = order.trailing_zeros();
    let mut c = m.pow(z, odd);
    let mut t = m.pow(a, odd);
    let mut root = m.pow(a, odd.div_ceil(2));
    while t != 1 {
        let (mut k, mut square) = (0, t);
        while square != 1 {
            square = m.mul(square, square);
            k += 1;
        }
        let b = m.pow(c, 1 << (e - k - 1));
        e = k;
        c = m.mul(b, b);
        t = m.mul(t, c);
        root = m.mul(root, b);
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;

    #[test]
    fn roots_are_primitive() {
        for (bits, n) in [(14, 8), (20, 1024), (27, 4096), (30, 8192), (30, 65536)] {
            let ring = RnsRing::new(n, &ntt_primes(bits, n, 3).unwrap()).unwrap();
            for (m, &psi) in ring.moduli().iter().zip(ring.psi()) {
                assert_eq!(m.pow(psi, n as u64), m.value() - 1, "psi^N = -1, so its order is 2N");
            }
        }
    }

    #[test]
    fn wrong_rings_are_refused() {
        for (n, primes) in [(4, vec![97]), (24, vec![97]), (8, vec![]), (8, vec![97, 97]), (8, vec![91]), (8, vec![19])]
        {
            assert!(matches!(RnsRing::new(n, &primes), Err(EngineError::Ring { .. })), "{n} {primes:?}");
        }
    }
}
