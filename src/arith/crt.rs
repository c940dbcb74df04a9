//! The Chinese remainder theorem on bases of 30-bit primes: reconstruction, and the fraction `x / q`.

use super::{Modulus, ShareModulus};

/// A basis of distinct primes `p_0 .. p_(k-1)` with product `q`.
#[derive(Clone, Debug)]
pub struct CrtBasis {
    moduli: Vec<Modulus>,
    /// `[(q / p_i)^-1]_(p_i)`.
    cofactor_inverse: Vec<u32>,
    /// `floor(2^128 / p_i)`.
    fraction: Vec<u128>,
    /// `garner[i][j] = p_j^-1 mod p_i`, `j < i`.
    garner: Vec<Vec<u32>>,
}

impl CrtBasis {
    /// Most primes of a basis whose product fits a `u128` (at 30 bits each).
    pub const MAX_LIFT: usize = 4;

    /// The basis of distinct primes `moduli`.
    pub fn new(moduli: &[Modulus]) -> Self {
        let cofactor_inverse = moduli
            .iter()
            .map(|&m| {
                let others = moduli.iter().filter(|o| **o != m);
                m.inv(others.fold(1, |acc, o| m.mul(acc, m.reduce(o.value() as u64))))
            })
            .collect();
        // An odd divisor above 1 does not divide 2^128, so the floor of (2^128 - 1) / p is the same.
        let fraction = moduli.iter().map(|m| u128::MAX / m.value() as u128).collect();
        let garner = moduli
            .iter()
            .enumerate()
            .map(|(i, m)| moduli[..i].iter().map(|o| m.inv(m.reduce(o.value() as u64))).collect())
            .collect();
        Self { moduli: moduli.to_vec(), cofactor_inverse, fraction, garner }
    }

    /// The primes.
    pub fn moduli(&self) -> &[Modulus] {
        &self.moduli
    }

    /// `log2 q`.
    pub fn log2(&self) -> f64 {
        self.moduli.iter().map(|m| (m.value() as f64).log2()).sum()
    }

    /// `q` if it fits a `u128`.
    pub fn product(&self) -> Option<u128> {
        self.moduli.iter().try_fold(1u128, |acc, m| acc.checked_mul(m.value() as u128))
    }

    /// `q mod 2^64`.
    pub fn product_mod_2_64(&self) -> u64 {
        self.moduli.iter().fold(1, |acc, m| acc.wrapping_mul(m.value() as u64))
    }

    /// `[(q / p_i)^-1]_(p_i)`, one for each prime.
    pub fn cofactor_inverse(&self) -> &[u32] {
        &self.cofactor_inverse
    }

    /// `round(2^bits * x / q) mod 2^bits` for the `x` with the given residues, `1 <= bits <= 64`.
    ///
    /// Right unless `2^bits x / q` is within `k 2^(bits - 98)` of a half-integer.
    #[inline]
    pub fn scale_to_power_of_two(&self, bits: u32, residue: impl Fn(usize) -> u32) -> u64 {
        let rounded = self.fraction_of(residue).wrapping_add(1 << (127 - bits)) >> (128 - bits);
        rounded as u64
    }

    /// `round(t x / q) mod t` for the `x` with the given residues, without branches on them.
    ///
    /// Right unless `t x / q` is within `k t 2^-98 + 2^-64` of a half-integer.
    #[inline]
    pub fn scale(&self, t: ShareModulus, residue: impl Fn(usize) -> u32) -> u64 {
        match t {
            ShareModulus::PowerOfTwo(bits) => self.scale_to_power_of_two(bits, residue),
            ShareModulus::Prime(p) => {
                let fraction = self.fraction_of(residue);
                let (high, low) = (fraction >> 64, fraction & u128::from(u64::MAX));
                let p = u128::from(p.value());
                let rounded = (high * p + ((low * p) >> 64) + (1 << 63)) >> 64;
                t.reduce(rounded as u64)
            }
        }
    }

    /// `x / q` in units of `2^-128`.
    #[inline]
    fn fraction_of(&self, residue: impl Fn(usize) -> u32) -> u128 {
        let mut sum = 0u128;
        for (i, &m) in self.moduli.iter().enumerate() {
            let y = m.mul(residue(i), self.cofactor_inverse[i]);
            sum = sum.wrapping_add((y as u128).wrapping_mul(self.fraction[i]));
        }
        sum
    }

    /// The `x` in `[0, q)` with the given residues (Garner's mixed radix), for at most [`Self::MAX_LIFT`] primes.
    #[inline]
    pub fn lift(&self, residue: impl Fn(usize) -> u32) -> u128 {
        let mut digits = [0u32; Self::MAX_LIFT];
        let mut x = 0u128;
        let mut radix = 1u128;
        for (i, &m) in self.moduli.iter().take(Self::MAX_LIFT).enumerate() {
            let mut digit = residue(i);
            for j in 0..i {
                digit = m.mul(m.sub(digit, m.reduce(digits[j] as u64)), self.garner[i][j]);
            }
            digits[i] = digit;
            x += radix * digit as u128;
            radix *= m.value() as u128;
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;
    use proptest::prelude::*;

    fn basis(k: usize) -> CrtBasis {
        let primes = ntt_primes(30, 8192, k).unwrap();
        CrtBasis::new(&primes.iter().map(|&p| Modulus::new(p).unwrap()).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn lift_inverts_reduction(k in 1usize..=4, x: u128) {
            let b = basis(k);
            let q = b.product().unwrap();
            for x in [x % q, 0, q - 1, q / 2] {
                let residue = |i: usize| (x % b.moduli()[i].value() as u128) as u32;
                prop_assert_eq!(b.lift(residue), x);
            }
        }

        #[test]
        fn scaling_is_rounded_division(k in 1usize..=2, x: u64, bits in 1u32..=60) {
            let b = basis(k);
            let q = b.product().unwrap();
            let x = x as u128 % q;
            let exact = ((x << bits) * 2 + q) / (2 * q);
            let got = b.scale_to_power_of_two(bits, |i| (x % b.moduli()[i].value() as u128) as u32);
            prop_assert_eq!(got as u128, exact % (1 << bits));
            let t = ShareModulus::slots(bits.clamp(31, 38), 8192).unwrap();
            for x in [x, 0, 1, q - 1, q / 2] {
                let m = t.largest() as u128 + 1;
                let exact = (x * m * 2 + q) / (2 * q) % m;
                prop_assert_eq!(b.scale(t, |i| (x % b.moduli()[i].value() as u128) as u32) as u128, exact);
            }
        }
    }

    #[test]
    fn products() {
        let b = basis(5);
        assert!(b.product().is_none() && (b.log2() - 150.0).abs() < 0.01);
        assert_eq!(basis(3).product().unwrap() as u64, basis(3).product_mod_2_64());
    }
}
