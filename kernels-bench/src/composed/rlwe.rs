//! The least of RLWE that a check by decryption needs, by the transforms of the references: a secret, ciphertexts of known
//! phase, switching keys. Data for tests, of no security whatever.

use std::sync::Arc;

use heliostat::{arith::primes::ntt_primes, engine::RnsRing};

use crate::{Result, operands::Random, reference::Transforms};

/// A secret over a ring whose last prime is the special one.
pub struct Rlwe {
    ring: Arc<RnsRing>,
    transforms: Transforms,
    random: Random,
    /// Ternary, coefficient domain.
    secret: Vec<i64>,
}

/// Largest coefficient of noise that a rotation may add: far above what it does add, far below a prime.
const NOISE: i64 = 1 << 20;

impl Rlwe {
    /// `limbs` primes of 30 bits and a special one.
    ///
    /// # Errors
    /// If there is no such ring.
    pub fn new(n: usize, limbs: usize) -> Result<Self> {
        let ring = Arc::new(RnsRing::new(n, &ntt_primes(30, n, limbs + 1).ok_or("there are no such primes")?)?);
        let transforms = Transforms::new(&ring, limbs + 1)?;
        let mut random = Random(n as u64 + 7);
        let secret = (0..n).map(|_| (random.word() % 3) as i64 - 1).collect();
        Ok(Self { ring, transforms, random, secret })
    }

    /// The ring.
    pub fn ring(&self) -> &Arc<RnsRing> {
        &self.ring
    }

    /// Limbs of a ciphertext.
    pub fn limbs(&self) -> usize {
        self.ring.moduli().len() - 1
    }

    /// Uniform residues of `polys` polynomials modulo the first `limbs` limbs.
    pub fn uniform(&mut self, polys: usize, limbs: usize) -> Vec<u32> {
        let rows = (0..polys).flat_map(|_| &self.ring.moduli()[..limbs]);
        let residues = rows.flat_map(|m| (0..self.ring.n()).map(move |_| m));
        residues.map(|m| m.reduce(self.random.word() >> 1)).collect()
    }

    /// Residues of a polynomial of small integers modulo the first `limbs` limbs, NTT domain.
    pub fn small(&self, f: &[i64], limbs: usize) -> Vec<u32> {
        let row = |limb: usize| {
            let p = i64::from(self.ring.moduli()[limb].value());
            let mut row: Vec<u32> = f.iter().map(|c| c.rem_euclid(p) as u32).collect();
            self.transforms.forward(limb, &mut row);
            row
        };
        (0..limbs).flat_map(row).collect()
    }

    /// A random plaintext of small integers.
    pub fn weights(&mut self) -> Vec<i64> {
        (0..self.ring.n()).map(|_| self.random.small().into()).collect()
    }

    /// A ciphertext `[2][limbs][N]` whose phase `c0 + c1 s` is `phase`; all in the NTT domain.
    pub fn encrypt(&mut self, phase: &[u32]) -> Vec<u32> {
        let limbs = self.limbs();
        let c1 = self.uniform(1, limbs);
        let masked = self.times(&c1, &self.small(&self.secret, limbs));
        let mut ct = self.zip(phase, &masked, |p, m, x| (m + p - x) % p);
        ct.extend(c1);
        ct
    }

    /// The phase of a ciphertext, NTT domain.
    pub fn phase(&self, ct: &[u32]) -> Vec<u32> {
        let (c0, c1) = ct.split_at(ct.len() / 2);
        self.zip(c0, &self.times(c1, &self.small(&self.secret, self.limbs())), |p, a, b| (a + b) % p)
    }

    /// Residue-wise product.
    pub fn times(&self, a: &[u32], b: &[u32]) -> Vec<u32> {
        self.zip(a, b, |p, a, b| a * b % p)
    }

    fn zip(&self, a: &[u32], b: &[u32], f: impl Fn(u64, u64, u64) -> u64) -> Vec<u32> {
        let n = self.ring.n();
        let at = |i: usize| u64::from(self.ring.moduli()[i / n].value());
        a.iter().zip(b).enumerate().map(|(i, (&a, &b))| f(at(i), a.into(), b.into()) as u32).collect()
    }

    /// To the coefficient domain, `[..][limbs][N]`.
    pub fn coefficients(&self, x: &[u32]) -> Vec<u32> {
        let (n, limbs, mut x) = (self.ring.n(), self.limbs(), x.to_vec());
        x.chunks_mut(n).enumerate().for_each(|(row, x)| self.transforms.inverse(row % limbs, x));
        x
    }

    /// To the NTT domain, `[..][limbs][N]`.
    pub fn transformed(&self, x: &[u32]) -> Vec<u32> {
        let (n, limbs, mut x) = (self.ring.n(), self.limbs(), x.to_vec());
        x.chunks_mut(n).enumerate().for_each(|(row, x)| self.transforms.forward(row % limbs, x));
        x
    }

    /// The switching key from `s(X^g)` to `s`, one digit a limb: `[limbs][2][limbs + 1][N]`, NTT domain.
    pub fn switching_key(&mut self, g: usize) -> Vec<u32> {
        let (n, limbs) = (self.ring.n(), self.limbs());
        let mut turned = vec![0; n];
        for (i, &s) in self.secret.iter().enumerate() {
            let exponent = i * g % (2 * n);
            turned[exponent % n] = if exponent < n { s } else { -s };
        }
        let (secret, turned) = (self.small(&self.secret, limbs + 1), self.small(&turned, limbs + 1));
        let special = u64::from(self.ring.moduli()[limbs].value());
        let mut key = Vec::with_capacity(limbs * 2 * (limbs + 1) * n);
        for digit in 0..limbs {
            let a = self.uniform(1, limbs + 1);
            let error: Vec<i64> = (0..n).map(|_| (self.random.word() % 7) as i64 - 3).collect();
            let mut b = self.zip(&self.small(&error, limbs + 1), &self.times(&a, &secret), |p, e, x| (e + p - x) % p);
            // The digit's limb carries the special prime times the turned secret; it is 0 modulo the others.
            let p = u64::from(self.ring.moduli()[digit].value());
            let row = digit * n..(digit + 1) * n;
            for (b, &s) in b[row.clone()].iter_mut().zip(&turned[row]) {
                *b = ((u64::from(*b) + special % p * u64::from(s)) % p) as u32;
            }
            key.extend(b);
            key.extend(a);
        }
        key
    }

    /// Whether two phases (coefficient domain) differ by one polynomial of small integers, the same modulo every limb.
    pub fn close(&self, a: &[u32], b: &[u32]) -> bool {
        let n = self.ring.n();
        let difference = |limb: usize, at: usize| {
            let p = i64::from(self.ring.moduli()[limb].value());
            let d = (i64::from(a[limb * n + at]) - i64::from(b[limb * n + at])).rem_euclid(p);
            if 2 * d > p { d - p } else { d }
        };
        let small = |at: usize| {
            let first = difference(0, at);
            first.abs() < NOISE && (1..self.limbs()).all(|limb| difference(limb, at) == first)
        };
        a.len() == self.limbs() * n && a.len() == b.len() && (0..n).all(small)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_come_back_and_closeness_means_one_small_polynomial() {
        let mut rlwe = Rlwe::new(1024, 2).unwrap();
        let phase = rlwe.uniform(1, 2);
        let ct = rlwe.encrypt(&phase);
        assert_eq!(rlwe.phase(&ct), phase);
        assert_eq!(rlwe.transformed(&rlwe.coefficients(&phase)), phase);
        let mut near = phase.clone();
        assert!(rlwe.close(&phase, &near));
        for limb in 0..2 {
            let p = rlwe.ring().moduli()[limb].value();
            near[limb * 1024 + 5] = (near[limb * 1024 + 5] + 1000) % p;
        }
        assert!(rlwe.close(&phase, &near));
        let p = rlwe.ring().moduli()[1].value();
        near[1024 + 5] = (near[1024 + 5] + 1) % p;
        assert!(!rlwe.close(&phase, &near), "not the same modulo both limbs");
    }
}
