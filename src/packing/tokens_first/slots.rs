//! Slots: polynomials modulo `t` and X^N + 1 as their values at the N primitive 2N-th roots of unity.

use concrete_ntt::prime64::Plan;
use zeroize::Zeroizing;

use crate::{
    arith::{PrimeModulus, ShareModulus},
    he::{HeError, Result},
};

/// Encodes `[2][N/2]` slots as polynomials modulo a prime `t = 1 mod 2N`, and back.
///
/// Slot `j` of row 0 is the value at `psi^(3^j)`, that of row 1 the value at `psi^-(3^j)`. So `f(X^(3^s))` has in slot `j` what `f`
/// has in slot `j + s mod N/2` of the same row, and `f(X^-1)` what it has in the other row.
///
/// Of `concrete-ntt` only the transforms themselves are used: some of its products of values are wrong for some primes.
pub struct SlotEncoder {
    plan: Plan,
    t: PrimeModulus,
    /// `N^-1 mod t`.
    scale: u64,
    /// Index of every slot in the transform's bit-reversed order.
    index: Vec<u32>,
}

impl SlotEncoder {
    /// For ring dimension `n` and the ring `t`.
    ///
    /// # Errors
    /// If `t` is not a prime that is 1 mod 2N, or N is below 16 or no power of two.
    pub fn new(n: usize, t: ShareModulus) -> Result<Self> {
        let refuse = || HeError::shape("slots", format!("{t:?} has no slots at N = {n}; use a prime that is 1 mod 2N"));
        let ShareModulus::Prime(prime) = t else { return Err(refuse()) };
        if !n.is_power_of_two() || n < 16 || prime.value() % (2 * n as u64) != 1 {
            return Err(refuse());
        }
        let plan = Plan::try_new(n, prime.value()).ok_or_else(refuse)?;
        let scale = prime.inv(prime.reduce(n as u64));
        let at = |exponent: usize| ((exponent / 2).reverse_bits() >> (usize::BITS - n.trailing_zeros())) as u32;
        let mut index = vec![0; n];
        let mut exponent = 1;
        for j in 0..n / 2 {
            index[j] = at(exponent);
            index[n / 2 + j] = at(2 * n - exponent);
            exponent = exponent * 3 % (2 * n);
        }
        Ok(Self { plan, t: prime, scale, index })
    }

    /// Ring dimension.
    pub fn n(&self) -> usize {
        self.index.len()
    }

    /// A sum modulo t.
    #[inline]
    pub(super) fn add(&self, a: u64, b: u64) -> u64 {
        self.t.add(a, b)
    }

    /// `v / N`: what [`Self::interpolate`] takes for a slot that should hold `v`.
    pub(super) fn scaled(&self, v: u64) -> u64 {
        self.t.mul(v, self.scale)
    }

    /// The polynomial whose slots hold N times `value(slot)`; slot `r N/2 + j` is slot `j` of row `r`.
    pub(super) fn interpolate(&self, out: &mut [u64], value: impl Fn(usize) -> u64) {
        for (slot, &at) in self.index.iter().enumerate() {
            out[at as usize] = value(slot);
        }
        self.plan.inv(out);
    }

    /// The polynomial `[N]` with the slots `values`, residues modulo t.
    ///
    /// # Errors
    /// If there are not N of them, or one is not below t.
    pub fn encode(&self, values: &[u64]) -> Result<Zeroizing<Vec<u64>>> {
        self.check(values)?;
        let mut out = Zeroizing::new(vec![0; self.n()]);
        self.interpolate(&mut out, |slot| self.scaled(values[slot]));
        Ok(out)
    }

    /// The slots of a polynomial `[N]`, residues modulo t.
    ///
    /// # Errors
    /// If there are not N coefficients, or one is not below t.
    pub fn decode(&self, polynomial: &[u64]) -> Result<Zeroizing<Vec<u64>>> {
        self.check(polynomial)?;
        let mut values = Zeroizing::new(polynomial.to_vec());
        self.plan.fwd(&mut values);
        Ok(Zeroizing::new(self.index.iter().map(|&at| values[at as usize]).collect()))
    }

    fn check(&self, x: &[u64]) -> Result<()> {
        if x.len() == self.n() && x.iter().all(|&x| x < self.t.value()) {
            return Ok(());
        }
        Err(HeError::shape("slots", format!("{} values where {} residues modulo t are needed", x.len(), self.n())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `f(x^e)` by Horner's rule.
    fn evaluate(t: PrimeModulus, f: &[u64], x: u64) -> u64 {
        f.iter().rev().fold(0, |acc, &c| t.add(t.mul(acc, x), c))
    }

    fn prime(bits: u32, n: usize) -> (ShareModulus, PrimeModulus) {
        let t = ShareModulus::slots(bits, n).unwrap();
        let ShareModulus::Prime(p) = t else { unreachable!() };
        (t, p)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        /// Against values at the roots by Horner's rule: every width of prime, extreme values.
        #[test]
        fn slots_are_values_at_roots(bits in 31u32..=38, log_n in 4u32..8, seed: u64, edge in 0usize..3) {
            let n = 1 << log_n;
            let (t, p) = prime(bits, n);
            let encoder = SlotEncoder::new(n, t).unwrap();
            let random = |i: usize| p.reduce((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let values: Vec<u64> = (0..n).map(|i| [random(i), t.largest(), [0, t.largest()][i % 2]][edge]).collect();
            let f = encoder.encode(&values).unwrap();
            prop_assert!(f.iter().all(|&c| c <= t.largest()));
            prop_assert_eq!(&encoder.decode(&f).unwrap()[..], &values[..]);
            // Some root of order 2N: the transform's is found by where X goes.
            let mut x = vec![0; n];
            x[1] = 1;
            let root = encoder.decode(&x).unwrap()[0];
            prop_assert_eq!(p.pow(root, n as u64), t.largest());
            let mut e = 1;
            for j in 0..n / 2 {
                prop_assert_eq!(evaluate(p, &f, p.pow(root, e)), values[j]);
                prop_assert_eq!(evaluate(p, &f, p.pow(root, 2 * n as u64 - e)), values[n / 2 + j]);
                e = e * 3 % (2 * n as u64);
            }
        }
    }

    #[test]
    fn automorphisms_rotate_and_swap() {
        let n = 64;
        let (t, p) = prime(33, n);
        let encoder = SlotEncoder::new(n, t).unwrap();
        let values: Vec<u64> = (0..n as u64).collect();
        let f = encoder.encode(&values).unwrap();
        let turned = |g: usize| {
            let mut out = vec![0; n];
            for (i, &c) in f.iter().enumerate() {
                let e = i * g % (2 * n);
                out[e % n] = if e < n { c } else { p.sub(0, c) };
            }
            encoder.decode(&out).unwrap()
        };
        let rotated: Vec<u64> = (0..n).map(|slot| values[slot / 32 * 32 + (slot + 2) % 32]).collect();
        assert_eq!(turned(9)[..], rotated[..]);
        let swapped: Vec<u64> = (0..n).map(|slot| values[(slot + 32) % 64]).collect();
        assert_eq!(turned(2 * n - 1)[..], swapped[..]);
    }

    /// The library's transforms at the size that is used, for every prime that may be: there and back, and linear.
    #[test]
    fn transforms_at_full_size() {
        for bits in 31..=38 {
            for n in [4096, 8192, 16384] {
                let (t, p) = prime(bits, n);
                let encoder = SlotEncoder::new(n, t).unwrap();
                let a: Vec<u64> = (0..n as u64).map(|i| p.reduce(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3)).collect();
                let b: Vec<u64> = (0..n).map(|i| [t.largest(), 0, 1, t.largest() - 1][i % 4]).collect();
                let sum: Vec<u64> = a.iter().zip(&b).map(|(&a, &b)| p.add(a, b)).collect();
                let (fa, fb, fs) =
                    (encoder.encode(&a).unwrap(), encoder.encode(&b).unwrap(), encoder.encode(&sum).unwrap());
                assert!(fa.iter().zip(fb.iter()).zip(fs.iter()).all(|((&a, &b), &s)| p.add(a, b) == s));
                assert!(encoder.decode(&fa).unwrap()[..] == a[..] && encoder.decode(&fb).unwrap()[..] == b[..]);
                let at_one: u64 = (0..4)
                    .map(|k| fa.iter().skip(k).step_by(4).fold(0, |s, &x| p.add(s, x)))
                    .fold(0, |s, x| p.add(s, x));
                assert_eq!(at_one, evaluate(p, &fa, 1));
            }
        }
    }

    #[test]
    fn rings_without_slots_are_refused() {
        let power = ShareModulus::pow2(32).unwrap();
        let other = ShareModulus::slots(31, 16).unwrap();
        assert!(SlotEncoder::new(4096, power).is_err());
        assert!(SlotEncoder::new(1 << 20, other).is_err() && SlotEncoder::new(8, other).is_err());
        let encoder = SlotEncoder::new(16, other).unwrap();
        assert!(encoder.encode(&[0; 15]).is_err() && encoder.decode(&[other.largest() + 1; 16]).is_err());
    }
}
