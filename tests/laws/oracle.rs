//! Naive computations that are plainly right, and the operands that the laws try.

use heliostat::{
    arith::Modulus,
    engine::{RnsRing, Shape},
};
use num_bigint::{BigInt, BigUint};

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): operands that a seed repeats.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// A batch `[polys][limbs][N]`. Row after row it is uniform, all `p - 1`, a mixture of edge values, zero.
    pub fn batch(&mut self, ring: &RnsRing, shape: Shape) -> Vec<u32> {
        let mut out = Vec::with_capacity(shape.polys * shape.limbs * ring.n());
        for poly in 0..shape.polys {
            for m in &ring.moduli()[..shape.limbs] {
                let p = m.value();
                let edges = [0, 1, p / 2, p / 2 + 1, p - 2, p - 1];
                out.extend((0..ring.n()).map(|_| match poly % 4 {
                    0 => m.reduce(self.word()),
                    1 => p - 1,
                    2 => edges[self.below(edges.len())],
                    _ => 0,
                }));
            }
        }
        out
    }

    /// A batch of uniform residues.
    pub fn uniform(&mut self, ring: &RnsRing, shape: Shape) -> Vec<u32> {
        let limbs = (0..shape.polys).flat_map(|_| &ring.moduli()[..shape.limbs]);
        limbs.flat_map(|&m| std::iter::repeat_n(m, ring.n())).map(|m| m.reduce(self.word())).collect()
    }
}

/// `f(psi^(2*brv(i)+1))` by Horner's rule.
pub fn evaluate(ring: &RnsRing, limb: usize, f: &[u32], i: usize) -> u32 {
    let m = ring.moduli()[limb];
    let brv = (i as u32).reverse_bits() >> (32 - ring.log_n());
    let x = m.pow(ring.psi()[limb], 2 * brv as u64 + 1);
    f.iter().rev().fold(0, |acc, &c| m.add(m.mul(acc, x), c))
}

/// `a * b` modulo `X^N + 1` by the schoolbook; cheap where `a` is sparse.
pub fn negacyclic(m: Modulus, a: &[u32], b: &[u32]) -> Vec<u32> {
    let n = b.len();
    let mut out = vec![0; n];
    for (i, &a) in a.iter().enumerate().filter(|(_, a)| **a != 0) {
        for (j, &b) in b.iter().enumerate() {
            let c = m.mul(a, b);
            let at = (i + j) % n;
            out[at] = if i + j < n { m.add(out[at], c) } else { m.sub(out[at], c) };
        }
    }
    out
}

/// `f(X^g)`.
pub fn substitute(m: Modulus, f: &[u32], g: usize) -> Vec<u32> {
    let n = f.len();
    let mut out = vec![0; n];
    for (i, &c) in f.iter().enumerate() {
        let e = i * g % (2 * n);
        out[e % n] = if e < n { c } else { m.neg(c) };
    }
    out
}

/// `X^shift * f`, `shift < N`.
pub fn shift(m: Modulus, f: &[u32], shift: usize) -> Vec<u32> {
    let n = f.len();
    (0..n).map(|i| if i < shift { m.neg(f[n + i - shift]) } else { f[i - shift] }).collect()
}

/// The integer in `[0, q)` with the given residues, `q` the product of as many first moduli of the ring.
pub fn reconstruct(ring: &RnsRing, residues: &[u32]) -> BigUint {
    reconstruct_modulo(&ring.moduli()[..residues.len()], residues)
}

/// The integer in `[0, q)` with the given residues, `q` the product of `moduli`.
pub fn reconstruct_modulo(moduli: &[Modulus], residues: &[u32]) -> BigUint {
    let q = product(moduli);
    let terms = moduli.iter().zip(residues).map(|(m, &r)| {
        let rest = &q / m.value();
        let inverse = m.inv(residue(*m, &rest.clone().into()));
        rest * m.mul(r, inverse)
    });
    terms.sum::<BigUint>() % &q
}

/// What a base conversion from `moduli` makes of `residues`, as an integer: `sum_i y_i (Q/q_i) - v Q`, by the formula that
/// [`heliostat::engine::Backend::base_convert`] states.
pub fn converted(moduli: &[Modulus], residues: &[u32]) -> BigInt {
    let q = BigInt::from(product(moduli));
    let (mut sum, mut fractions) = (BigInt::ZERO, BigUint::from(1u64 << 31));
    for (m, &x) in moduli.iter().zip(residues) {
        let (p, bits) = (m.value(), 32 - m.value().leading_zeros());
        let rest = &q / p;
        let y = m.mul(x, m.inv(residue(*m, &rest)));
        sum += rest * y;
        fractions += (BigUint::from(y) * ((BigUint::from(1u8) << (bits + 31)) / p)) >> (bits - 1);
    }
    sum - BigInt::from(fractions >> 32) * q
}

/// Product of moduli.
pub fn product(moduli: &[Modulus]) -> BigUint {
    moduli.iter().map(|m| BigUint::from(m.value())).product()
}

/// Residue of a signed integer.
pub fn residue(m: Modulus, x: &BigInt) -> u32 {
    let p = BigInt::from(m.value());
    u32::try_from(((x % &p) + &p) % &p).unwrap()
}

/// `(x - [x]_p) / p`, `[x]_p` centred.
pub fn divide_rounding(x: &BigInt, p: u32) -> BigInt {
    let big = BigInt::from(p);
    let mut rest: BigInt = ((x % &big) + &big) % &big;
    if rest > BigInt::from(p / 2) {
        rest -= &big;
    }
    (x - rest) / big
}
