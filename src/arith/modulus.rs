//! Arithmetic modulo one prime limb of an RNS basis.

/// A prime modulus `p < 2^30` with the constants of Barrett reduction.
///
/// Residues are `u32` in `[0, p)` unless a function says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Modulus {
    p: u32,
    /// `floor(2^64 / p)`.
    barrett: u64,
}

impl Modulus {
    /// Largest number of bits of a modulus: `4p < 2^32` leaves room for lazy reduction.
    pub const MAX_BITS: u32 = 30;

    /// Wraps an odd `p` in `[3, 2^30)`; primality is the caller's (see [`super::primes`]). `None` outside the range.
    pub const fn new(p: u32) -> Option<Self> {
        if p < 3 || p >= 1 << Self::MAX_BITS || p.is_multiple_of(2) {
            return None;
        }
        Some(Self { p, barrett: (u64::MAX / p as u64) })
    }

    /// The modulus itself.
    #[inline]
    pub const fn value(self) -> u32 {
        self.p
    }

    /// Reduces any 64-bit word to `[0, p)`.
    #[inline]
    pub const fn reduce(self, x: u64) -> u32 {
        // floor((2^64-1)/p) errs by less than one quotient, and the estimate by one more.
        let q = ((x as u128 * self.barrett as u128) >> 64) as u64;
        let mut r = x.wrapping_sub(q.wrapping_mul(self.p as u64));
        if r >= self.p as u64 {
            r -= self.p as u64;
        }
        if r >= self.p as u64 {
            r -= self.p as u64;
        }
        r as u32
    }

    /// The residue of a signed integer.
    #[inline]
    pub const fn from_i64(self, x: i64) -> u32 {
        let r = self.reduce(x.unsigned_abs());
        if x < 0 { self.neg(r) } else { r }
    }

    /// The residue of a signed 128-bit integer.
    #[inline]
    pub const fn from_i128(self, x: i128) -> u32 {
        let r = (x.unsigned_abs() % self.p as u128) as u32;
        if x < 0 { self.neg(r) } else { r }
    }

    /// `a + b mod p`.
    #[inline]
    pub const fn add(self, a: u32, b: u32) -> u32 {
        let s = a + b;
        if s >= self.p { s - self.p } else { s }
    }

    /// `a - b mod p`.
    #[inline]
    pub const fn sub(self, a: u32, b: u32) -> u32 {
        if a >= b { a - b } else { a + self.p - b }
    }

    /// `-a mod p`.
    #[inline]
    pub const fn neg(self, a: u32) -> u32 {
        if a == 0 { 0 } else { self.p - a }
    }

    /// `a * b mod p`.
    #[inline]
    pub const fn mul(self, a: u32, b: u32) -> u32 {
        self.reduce(a as u64 * b as u64)
    }

    /// `a^e mod p`.
    pub const fn pow(self, a: u32, mut e: u64) -> u32 {
        let mut base = a;
        let mut acc = 1;
        while e > 0 {
            if e & 1 == 1 {
                acc = self.mul(acc, base);
            }
            base = self.mul(base, base);
            e >>= 1;
        }
        acc
    }

    /// `a^-1 mod p` for prime `p` and `a` not 0 (Fermat); 0 for `a = 0`.
    pub const fn inv(self, a: u32) -> u32 {
        self.pow(a, self.p as u64 - 2)
    }

    /// Shoup's companion of a constant factor `w < p`: `floor(w * 2^32 / p)`.
    #[inline]
    pub const fn shoup(self, w: u32) -> u32 {
        (((w as u64) << 32) / self.p as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reduce_is_the_remainder(x: u64, k in 0usize..4) {
            let p = ntt_primes(30, 8192, 4).unwrap()[k];
            let m = Modulus::new(p).unwrap();
            prop_assert_eq!(m.reduce(x) as u64, x % p as u64);
            prop_assert_eq!(m.reduce(u64::MAX - (x & 0xff)) as u64, (u64::MAX - (x & 0xff)) % p as u64);
        }

        #[test]
        fn field_laws(a: u32, b: u32) {
            let m = Modulus::new(ntt_primes(27, 4096, 1).unwrap()[0]).unwrap();
            let (a, b) = (m.reduce(a.into()), m.reduce(b.into()));
            prop_assert_eq!(m.sub(m.add(a, b), b), a);
            prop_assert_eq!(m.mul(a, b) as u64, a as u64 * b as u64 % m.value() as u64);
            if a != 0 { prop_assert_eq!(m.mul(a, m.inv(a)), 1); }
        }
    }

    #[test]
    fn reduce_near_the_modulus() {
        for bits in [20, 27, 30] {
            let m = Modulus::new(ntt_primes(bits, 1024, 1).unwrap()[0]).unwrap();
            let p = m.value() as u64;
            for x in
                [0, p - 1, p, p + 1, 2 * p - 1, 2 * p, p * p - 1, p * p, (p - 1) * (p - 1), u64::MAX, u64::MAX / p * p]
            {
                assert_eq!(m.reduce(x) as u64, x % p);
            }
        }
    }
}
