//! Results by one pass over the coefficients.

use heliostat::engine::RnsRing;

use crate::kernels::{ELEMENT, SHIFT};

/// `f(p, a, b)` residue by residue of batches `[poly][limb][N]`.
pub fn zip(ring: &RnsRing, limbs: usize, a: &[u32], b: &[u32], f: impl Fn(u64, u64, u64) -> u64) -> Vec<u32> {
    let rows = a.chunks(ring.n()).zip(b.chunks(ring.n())).enumerate();
    rows.flat_map(|(row, (a, b))| {
        let p = u64::from(ring.moduli()[row % limbs].value());
        let f = &f;
        a.iter().zip(b).map(move |(&a, &b)| f(p, a.into(), b.into()) as u32)
    })
    .collect()
}

/// Sparse polynomials: value `k` of each at its position.
pub fn expand(ring: &RnsRing, limbs: usize, values: &[i64], positions: &[u32]) -> Vec<u32> {
    let n = ring.n();
    let polys = values.len() / positions.len();
    let mut out = vec![0; polys * limbs * n];
    for (row, out) in out.chunks_mut(n).enumerate() {
        let p = i64::from(ring.moduli()[row % limbs].value());
        let values = &values[row / limbs * positions.len()..][..positions.len()];
        values.iter().zip(positions).for_each(|(v, &at)| out[at as usize] = v.rem_euclid(p) as u32);
    }
    out
}

/// `f(X) -> f(X^g)` of every row for the kernels' g.
pub fn automorphism(ring: &RnsRing, limbs: usize, x: &[u32]) -> Vec<u32> {
    let rows = x.chunks(ring.n()).enumerate();
    rows.flat_map(|(row, x)| substitute(ring.moduli()[row % limbs].value(), x, ELEMENT)).collect()
}

/// `f(X^g)` modulo `X^N + 1` and `p`.
pub fn substitute(p: u32, f: &[u32], g: usize) -> Vec<u32> {
    let n = f.len();
    let mut out = vec![0; n];
    for (i, &c) in f.iter().enumerate() {
        let exponent = i * g % (2 * n);
        let negated = if c == 0 { 0 } else { p - c };
        out[exponent % n] = if exponent < n { c } else { negated };
    }
    out
}

/// `E + X^s O` of every pair, then `E - X^s O`, `parts` polynomials a ciphertext.
pub fn pack_step(ring: &RnsRing, limbs: usize, x: &[u32], parts: usize) -> Vec<u32> {
    let n = ring.n();
    let (even, odd) = x.split_at(x.len() / 2);
    debug_assert_eq!(even.len() % (parts * limbs * n), 0);
    // X^s O.
    let shifted: Vec<u32> = (odd.chunks(n).enumerate())
        .flat_map(|(row, f)| {
            let p = ring.moduli()[row % limbs].value();
            let mut out = vec![0; n];
            for (i, &c) in f.iter().enumerate() {
                out[(i + SHIFT) % n] = if i + SHIFT < n || c == 0 { c } else { p - c };
            }
            out
        })
        .collect();
    let mut sum = zip(ring, limbs, even, &shifted, |p, a, b| (a + b) % p);
    sum.extend(zip(ring, limbs, even, &shifted, |p, a, b| (a + p - b) % p));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitution_wraps_with_a_sign() {
        // 1 + 2X + 3X^2 + 4X^3 at X^3: 1 + 2X^3 + 3X^6 + 4X^9 = 1 + 4X - 3X^2 + 2X^3 mod X^4 + 1.
        assert_eq!(substitute(17, &[1, 2, 3, 4], 3), [1, 4, 14, 2]);
        assert_eq!(substitute(17, &[5, 0, 0, 0], 7), [5, 0, 0, 0]);
    }
}
