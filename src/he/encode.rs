//! Plaintext encoding with exact scaling, `round(q m / t)`, and constant-time residues of wide integers.

use crate::arith::{Modulus, ShareModulus, crt::CrtBasis};

/// Encodes integers modulo `t`, a power of two or an odd prime, into residues of `round(q m / t)`.
///
/// With `r = q m mod t` centred, `t` divides `q m - r`, and modulo `p_i` (which divides `q`) the quotient is `-r / t`. Scaling
/// by `floor(q / t)` instead would turn every wrap of a sum around `t` into noise of the size of `t`.
pub(super) struct Encoder {
    t: ShareModulus,
    /// `q mod t`.
    q: u64,
    limbs: Vec<Limb>,
}

struct Limb {
    p: Modulus,
    /// `-t^-1 mod p`.
    factor: u32,
    /// `2^63 mod p`.
    offset: u32,
}

impl Encoder {
    pub(super) fn new(data: &CrtBasis, t: ShareModulus) -> Self {
        let limb = |&p: &Modulus| {
            // t may be 2^64.
            let t = p.add(p.reduce(t.largest()), 1);
            Limb { p, factor: p.neg(p.inv(t)), offset: p.pow(2, 63) }
        };
        let q = data.moduli().iter().fold(t.reduce(1), |acc, p| t.mul(acc, t.reduce(p.value().into())));
        Self { t, q, limbs: data.moduli().iter().map(limb).collect() }
    }

    /// `q m mod t`, centred, of a message below t: what [`Self::residue`] takes.
    #[inline]
    pub(super) fn remainder(&self, m: u64) -> i64 {
        self.t.to_signed(self.t.mul(m, self.q))
    }

    /// The encoding modulo limb `limb` of the message with remainder `r`, without branches on it.
    #[inline]
    pub(super) fn residue(&self, limb: usize, r: i64) -> u32 {
        let Limb { p, factor, offset } = self.limbs[limb];
        let shifted = p.reduce(r as u64 ^ 1 << 63);
        p.mul(p.sub(shifted, offset), factor)
    }
}

/// Residues of signed 128-bit integers in `[-2^126, 2^126)`, without divisions or branches on the value.
pub(super) struct WideReducer {
    p: Modulus,
    /// `2^64 mod p`.
    radix: u32,
    /// `2^126 mod p`.
    offset: u32,
}

impl WideReducer {
    pub(super) fn new(p: Modulus) -> Self {
        Self { p, radix: p.pow(2, 64), offset: p.pow(2, 126) }
    }

    #[inline]
    pub(super) fn reduce(&self, x: i128) -> u32 {
        let shifted = x.wrapping_add(1 << 126) as u128;
        let (high, low) = (self.p.reduce((shifted >> 64) as u64), self.p.reduce(shifted as u64));
        self.p.sub(self.p.add(self.p.mul(high, self.radix), low), self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::he::{MATMUL_8192, ParameterSet};
    use num_bigint::BigInt;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn encoding_is_the_rounded_quotient(m: u64, bits in 1u32..=64) {
            let params = ParameterSet::new(MATMUL_8192).unwrap();
            let t = ShareModulus::pow2(bits).unwrap();
            let encoder = Encoder::new(params.data(), t);
            let q: BigInt = params.data().moduli().iter().map(|p| BigInt::from(p.value())).product();
            for m in [t.reduce(m), 0, 1, t.mask(), t.mask() / 2 + 1] {
                let scaled: BigInt = (&q * m * 2 + (BigInt::from(1) << bits)) / (BigInt::from(2) << bits);
                for (i, p) in params.data().moduli().iter().enumerate() {
                    let expected = BigInt::from(encoder.residue(i, encoder.remainder(m)));
                    // m = t/2 mod t is a tie, rounded either way.
                    let difference = (&scaled - expected) % p.value();
                    let tie = encoder.remainder(m) == i64::MIN >> (64 - bits);
                    let zero = difference == BigInt::from(0);
                    prop_assert!(zero || tie && (difference == BigInt::from(1) || difference == BigInt::from(1 - p.value() as i64)));
                }
            }
        }

        #[test]
        fn encoding_modulo_a_prime_is_the_rounded_quotient(m: u64, bits in 31u32..=62) {
            let params = ParameterSet::new(MATMUL_8192).unwrap();
            let t = ShareModulus::slots(bits, 4096).unwrap();
            let encoder = Encoder::new(params.data(), t);
            let modulus = BigInt::from(t.largest()) + 1;
            let q: BigInt = params.data().moduli().iter().map(|p| BigInt::from(p.value())).product();
            for m in [t.reduce(m), 0, 1, t.largest(), t.largest() / 2, t.largest() / 2 + 1] {
                let scaled: BigInt = (&q * m * 2 + &modulus) / (&modulus * 2);
                for (i, p) in params.data().moduli().iter().enumerate() {
                    prop_assert_eq!(&scaled % p.value(), BigInt::from(encoder.residue(i, encoder.remainder(m))));
                }
            }
        }

        #[test]
        fn wide_residues(x: i128) {
            let p = ParameterSet::new(MATMUL_8192).unwrap().data().moduli()[1];
            for x in [x >> 2, 0, -1, (1 << 126) - 1, -(1 << 126)] {
                prop_assert_eq!(WideReducer::new(p).reduce(x), p.from_i128(x));
            }
        }
    }
}
