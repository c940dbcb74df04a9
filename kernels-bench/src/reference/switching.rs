//! Key switches, rotations, base conversion and modulus switch by their definitions.

use std::sync::Arc;

use heliostat::engine::{KeySwitchShape, RnsRing, Rotation};
use num_bigint::BigUint;
use rayon::prelude::*;

use super::{Transforms, pointwise::substitute};
use crate::{
    Result,
    operands::{Expected, sample},
};

/// Polynomials of which the whole result is computed.
const SAMPLES: usize = 2;

/// Coefficients of each polynomial that a conversion is checked at.
const COEFFICIENTS: usize = 64;

/// Key switch of sampled polynomials.
pub fn key_switch(ring: &Arc<RnsRing>, shape: KeySwitchShape, x: &[u32], key: &[u32]) -> Result<Expected> {
    let (n, limbs) = (ring.n(), shape.limbs);
    let transforms = Transforms::new(ring, ring.moduli().len())?;
    let block = |&poly: &usize| {
        let digits = digits(ring, shape, &x[poly * limbs * n..][..limbs * n]);
        (poly * 2 * limbs * n, inner_product(ring, &transforms, shape, digits, key))
    };
    let blocks = sample(shape.polys, SAMPLES).par_iter().map(block).collect();
    Ok(Expected { words: shape.polys * 2 * limbs * n, blocks })
}

/// Sampled rotations of a batch.
pub fn rotate(
    ring: &Arc<RnsRing>,
    shape: KeySwitchShape,
    x: &[u32],
    keys: &[u32],
    rotations: &[Rotation],
) -> Result<Expected> {
    let (n, limbs) = (ring.n(), shape.limbs);
    let transforms = Transforms::new(ring, ring.moduli().len())?;
    let key_words = shape.key_words(ring);
    let block = |&at: &usize| {
        let Rotation { input, element, key } = rotations[at];
        let (c0, c1) = x[input * 2 * limbs * n..][..2 * limbs * n].split_at(limbs * n);
        // Digits first, then the automorphism of each.
        let mut digits = digits(ring, shape, c1);
        for (row, digit) in digits.chunks_mut(n).enumerate() {
            let limb = shape.row_limbs(ring)[row % shape.rows()];
            digit.copy_from_slice(&substitute(ring.moduli()[limb].value(), digit, element));
        }
        let mut out = inner_product(ring, &transforms, shape, digits, &keys[key * key_words..][..key_words]);
        for (limb, c0) in c0.chunks(n).enumerate() {
            let p = ring.moduli()[limb].value();
            let sum = |(out, c): (&mut u32, u32)| *out = (*out + c) % p;
            out[limb * n..][..n].iter_mut().zip(substitute(p, c0, element)).for_each(sum);
        }
        (at * 2 * limbs * n, out)
    };
    let blocks = sample(rotations.len(), SAMPLES).par_iter().map(block).collect();
    Ok(Expected { words: rotations.len() * 2 * limbs * n, blocks })
}

/// Digits of a polynomial `[limbs][N]` modulo every row of the inner product: `[digits][rows][N]`, coefficient domain.
fn digits(ring: &RnsRing, shape: KeySwitchShape, x: &[u32]) -> Vec<u32> {
    let (n, rows) = (ring.n(), shape.row_limbs(ring));
    let mut out = Vec::with_capacity(shape.digits() * rows.len() * n);
    for first in (0..shape.limbs).step_by(shape.digit_limbs) {
        let limbs: Vec<usize> = (first..shape.limbs.min(first + shape.digit_limbs)).collect();
        let lift = Lift::new(ring, &limbs);
        for &row in &rows {
            let p = ring.moduli()[row].value();
            match (limbs.contains(&row), limbs.len()) {
                (true, _) => out.extend(&x[row * n..][..n]),
                // One limb's residues are integers in [0, p_i); more are centred.
                (false, 1) => out.extend(x[first * n..][..n].iter().map(|&c| c % p)),
                (false, _) => {
                    out.extend((0..n).map(|at| lift.centred_mod(p, |k| x[limbs[k] * n + at])));
                }
            }
        }
    }
    out
}

/// `sum_i digit_i key_i` with the special primes dropped: `[2][limbs][N]`, coefficient domain.
fn inner_product(
    ring: &RnsRing,
    transforms: &Transforms,
    shape: KeySwitchShape,
    mut digits: Vec<u32>,
    key: &[u32],
) -> Vec<u32> {
    let (n, rows, all) = (ring.n(), shape.row_limbs(ring), ring.moduli().len());
    digits.chunks_mut(n).enumerate().for_each(|(k, digit)| transforms.forward(rows[k % rows.len()], digit));
    let mut out = Vec::with_capacity(2 * shape.limbs * n);
    for part in 0..2 {
        let mut wide = Vec::with_capacity(rows.len());
        for (row, &limb) in rows.iter().enumerate() {
            let p = u64::from(ring.moduli()[limb].value());
            let mut sum = vec![0u32; n];
            for digit in 0..shape.digits() {
                let d = &digits[(digit * rows.len() + row) * n..][..n];
                let k = &key[((digit * 2 + part) * all + limb) * n..][..n];
                for ((sum, &d), &k) in sum.iter_mut().zip(d).zip(k) {
                    *sum = ((u64::from(*sum) + u64::from(d) * u64::from(k)) % p) as u32;
                }
            }
            transforms.inverse(limb, &mut sum);
            wide.push(sum);
        }
        drop_limbs(ring, &rows, &mut wide, shape.limbs);
        out.extend(wide.concat());
    }
    out
}

/// Drops the last of the rows down to `target`, each by exact rounding: `(x - [x]_p) / p`, `[x]_p` centred.
fn drop_limbs(ring: &RnsRing, row_limbs: &[usize], rows: &mut Vec<Vec<u32>>, target: usize) {
    while rows.len() > target {
        let Some(last) = rows.pop() else { return };
        let p = i64::from(ring.moduli()[row_limbs[rows.len()]].value());
        for (row, &limb) in rows.iter_mut().zip(row_limbs) {
            let m = ring.moduli()[limb];
            let q = i64::from(m.value());
            let inverse = i64::from(m.inv((p % q) as u32));
            for (x, &r) in row.iter_mut().zip(&last) {
                let r = i64::from(r);
                let centred = if 2 * r > p { r - p } else { r };
                *x = ((i64::from(*x) - centred).rem_euclid(q) * inverse % q) as u32;
            }
        }
    }
}

/// Modulus switch of a batch from `limbs` to `target` limbs.
pub fn mod_switch(ring: &RnsRing, limbs: usize, target: usize, x: &[u32]) -> Vec<u32> {
    let row_limbs: Vec<usize> = (0..limbs).collect();
    let poly = |x: &[u32]| {
        let mut rows: Vec<Vec<u32>> = x.chunks(ring.n()).map(<[u32]>::to_vec).collect();
        drop_limbs(ring, &row_limbs, &mut rows, target);
        rows.concat()
    };
    x.par_chunks(limbs * ring.n()).flat_map(poly).collect()
}

/// Base conversion from the first `limbs` of the ring to the next `limbs`, at sampled coefficients, over big integers.
pub fn base_convert(ring: &RnsRing, limbs: usize, x: &[u32]) -> Expected {
    let n = ring.n();
    let lift = Lift::new(ring, &(0..limbs).collect::<Vec<_>>());
    let blocks = x.chunks(limbs * n).enumerate().flat_map(|(poly, x)| {
        let lift = &lift;
        sample(n, COEFFICIENTS).into_iter().flat_map(move |at| {
            let residue = move |k: usize| x[k * n + at];
            let convert = move |to: usize| {
                let p = ring.moduli()[limbs + to].value();
                ((poly * limbs + to) * n + at, vec![lift.centred_mod(p, residue)])
            };
            (0..limbs).map(convert)
        })
    });
    Expected { words: x.len(), blocks: blocks.collect() }
}

/// The integers behind residues modulo some limbs.
struct Lift {
    product: BigUint,
    half: BigUint,
    /// `(Q/q_i) [(Q/q_i)^-1]_(q_i)`.
    basis: Vec<BigUint>,
}

impl Lift {
    fn new(ring: &RnsRing, limbs: &[usize]) -> Self {
        let moduli: Vec<_> = limbs.iter().map(|&limb| ring.moduli()[limb]).collect();
        let product: BigUint = moduli.iter().map(|m| m.value()).product();
        let basis = moduli.iter().map(|m| {
            let cofactor = &product / m.value();
            let residue = (&cofactor % m.value()).iter_u32_digits().next().unwrap_or(0);
            cofactor * m.inv(residue)
        });
        Self { half: &product >> 1u32, basis: basis.collect(), product: product.clone() }
    }

    /// The integer in `(-Q/2, Q/2)`, modulo `p`.
    fn centred_mod(&self, p: u32, residue: impl Fn(usize) -> u32) -> u32 {
        let sum: BigUint = self.basis.iter().enumerate().map(|(k, basis)| basis * residue(k)).sum();
        let x = sum % &self.product;
        let low = |x: BigUint| (x % p).iter_u32_digits().next().unwrap_or(0);
        if x > self.half { (p - low(&self.product - x)) % p } else { low(x) }
    }
}
