//! The negacyclic NTT in plain Rust: the permissive implementation, the twin of the NTT shaders and the source of their
//! tables.
//!
//! Forward: Cooley-Tukey with `psi` merged into the twiddles (Longa and Naehrig, CANS 2016). Inverse: Gentleman-Sande. The
//! butterflies are lazy (Harvey, "Faster arithmetic for number-theoretic transforms", 2014): values stay in `[0, 4p)`
//! forward and `[0, 2p)` inverse, and multiplications by constants follow Shoup. No bit-reversal pass is needed: the
//! forward transform takes natural order to bit-reversed order, `fwd(f)[i] = f(psi^(2*brv(i)+1))`, and the inverse goes back.

use super::{
    residue::{mul_shoup, mul_shoup_lazy, reduce_once},
    simd,
};
use crate::{arith::Modulus, engine::RnsRing};

/// Twiddle factors of one limb of a ring, as CPU and GPU use them.
///
/// A stage with `m` blocks (`m = 1, 2, 4, .. N/2`) takes the factor of its block `i` at index `m + i`. Index 0 is unused by
/// the transforms (it holds 1). A `_shoup` table holds `floor(w * 2^32 / p)` for every `w` of its table.
pub(crate) struct Twiddles {
    /// The modulus `p`.
    pub modulus: Modulus,
    /// `psi^brv(k)`, `brv` on `log2 N` bits, at index `k < N`.
    pub forward: Vec<u32>,
    /// Shoup companions of `forward`.
    pub forward_shoup: Vec<u32>,
    /// `psi^-brv(k)` at index `k < N`.
    pub inverse: Vec<u32>,
    /// Shoup companions of `inverse`.
    pub inverse_shoup: Vec<u32>,
    /// `N^-1 mod p`, which the sum half of the last inverse stage takes.
    pub n_inv: u32,
    /// Shoup companion of `n_inv`.
    pub n_inv_shoup: u32,
    /// `inverse[1] * N^-1 mod p`, which the difference half of the last inverse stage takes.
    pub last_inverse: u32,
    /// Shoup companion of `last_inverse`.
    pub last_inverse_shoup: u32,
}

impl Twiddles {
    /// Tables of limb `limb` of `ring`.
    pub fn new(ring: &RnsRing, limb: usize) -> Self {
        let (modulus, psi, n) = (ring.moduli()[limb], ring.psi()[limb], ring.n());
        let table = |root: u32| {
            let mut table = vec![1; n];
            let mut power = 1;
            for k in 0..n as u32 {
                table[(k.reverse_bits() >> (32 - ring.log_n())) as usize] = power;
                power = modulus.mul(power, root);
            }
            table
        };
        let shoup = |table: &[u32]| table.iter().map(|&w| modulus.shoup(w)).collect();
        let (forward, inverse) = (table(psi), table(modulus.inv(psi)));
        let n_inv = modulus.inv(modulus.reduce(n as u64));
        let last_inverse = modulus.mul(inverse[1], n_inv);
        Self {
            modulus,
            forward_shoup: shoup(&forward),
            inverse_shoup: shoup(&inverse),
            forward,
            inverse,
            n_inv,
            n_inv_shoup: modulus.shoup(n_inv),
            last_inverse,
            last_inverse_shoup: modulus.shoup(last_inverse),
        }
    }

    /// Coefficients in `[0, p)`, natural order, to NTT domain in `[0, p)`, in place; `x.len() == N`.
    pub fn forward(&self, x: &mut [u32]) {
        simd::dispatch(
            #[inline(always)]
            || self.forward_inlined(x),
        );
    }

    /// NTT domain in `[0, p)` to coefficients in `[0, p)`, `1/N` included, in place; `x.len() == N`.
    pub fn inverse(&self, x: &mut [u32]) {
        simd::dispatch(
            #[inline(always)]
            || self.inverse_inlined(x),
        );
    }

    // Nothing wraps on canonical input; the wrapping forms keep other words from panicking in checked builds.

    #[inline(always)]
    fn forward_inlined(&self, x: &mut [u32]) {
        let p = self.modulus.value();
        let mut half = x.len() / 2;
        while half > 0 {
            match half {
                1 => self.forward_stage::<1>(x),
                2 => self.forward_stage::<2>(x),
                4 => self.forward_stage::<4>(x),
                8 => self.forward_stage::<8>(x),
                _ => {
                    for (block, (w, shoup)) in
                        x.chunks_exact_mut(2 * half).zip(stage(&self.forward, &self.forward_shoup, half))
                    {
                        let (low, high) = block.split_at_mut(half);
                        for (a, b) in low.iter_mut().zip(high) {
                            (*a, *b) = forward_butterfly(*a, *b, w, shoup, p);
                        }
                    }
                }
            }
            half /= 2;
        }
        for a in x {
            *a = reduce_once(reduce_once(*a, 2 * p), p);
        }
    }

    /// A stage of short blocks, whose length the compiler knows so that it vectorises across blocks.
    #[inline(always)]
    fn forward_stage<const HALF: usize>(&self, x: &mut [u32]) {
        let p = self.modulus.value();
        for (block, (w, shoup)) in x.chunks_exact_mut(2 * HALF).zip(stage(&self.forward, &self.forward_shoup, HALF)) {
            for i in 0..HALF {
                (block[i], block[i + HALF]) = forward_butterfly(block[i], block[i + HALF], w, shoup, p);
            }
        }
    }

    #[inline(always)]
    fn inverse_inlined(&self, x: &mut [u32]) {
        let p = self.modulus.value();
        let last = x.len() / 2;
        let mut half = 1;
        while half < last {
            match half {
                1 => self.inverse_stage::<1>(x),
                2 => self.inverse_stage::<2>(x),
                4 => self.inverse_stage::<4>(x),
                8 => self.inverse_stage::<8>(x),
                _ => {
                    for (block, (w, shoup)) in
                        x.chunks_exact_mut(2 * half).zip(stage(&self.inverse, &self.inverse_shoup, half))
                    {
                        let (low, high) = block.split_at_mut(half);
                        for (a, b) in low.iter_mut().zip(high) {
                            (*a, *b) = inverse_butterfly(*a, *b, w, shoup, p);
                        }
                    }
                }
            }
            half *= 2;
        }
        let (low, high) = x.split_at_mut(last);
        for (a, b) in low.iter_mut().zip(high) {
            let (sum, difference) = (a.wrapping_add(*b), a.wrapping_add(2 * p).wrapping_sub(*b));
            *a = mul_shoup(sum, self.n_inv, self.n_inv_shoup, p);
            *b = mul_shoup(difference, self.last_inverse, self.last_inverse_shoup, p);
        }
    }

    /// As [`Self::forward_stage`].
    #[inline(always)]
    fn inverse_stage<const HALF: usize>(&self, x: &mut [u32]) {
        let p = self.modulus.value();
        for (block, (w, shoup)) in x.chunks_exact_mut(2 * HALF).zip(stage(&self.inverse, &self.inverse_shoup, HALF)) {
            for i in 0..HALF {
                (block[i], block[i + HALF]) = inverse_butterfly(block[i], block[i + HALF], w, shoup, p);
            }
        }
    }
}

/// Factors and companions of the blocks of the stage with blocks of `2 * half`.
#[inline(always)]
fn stage<'a>(table: &'a [u32], shoup: &'a [u32], half: usize) -> impl Iterator<Item = (u32, u32)> + 'a {
    let blocks = table.len() / (2 * half);
    table[blocks..2 * blocks].iter().copied().zip(shoup[blocks..2 * blocks].iter().copied())
}

/// `(a + w b, a - w b)` on `[0, 4p)`.
#[inline(always)]
fn forward_butterfly(a: u32, b: u32, w: u32, shoup: u32, p: u32) -> (u32, u32) {
    let u = reduce_once(a, 2 * p);
    let t = mul_shoup_lazy(b, w, shoup, p);
    (u.wrapping_add(t), u.wrapping_add(2 * p).wrapping_sub(t))
}

/// `(a + b, w (a - b))` on `[0, 2p)`.
#[inline(always)]
fn inverse_butterfly(a: u32, b: u32, w: u32, shoup: u32, p: u32) -> (u32, u32) {
    let sum = reduce_once(a.wrapping_add(b), 2 * p);
    (sum, mul_shoup_lazy(a.wrapping_add(2 * p).wrapping_sub(b), w, shoup, p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;

    /// `f(psi^(2*brv(i)+1))` by Horner's rule: quadratic, plainly right.
    fn naive(ring: &RnsRing, limb: usize, f: &[u32]) -> Vec<u32> {
        let (m, psi) = (ring.moduli()[limb], ring.psi()[limb]);
        (0..ring.n() as u32)
            .map(|i| {
                let brv = i.reverse_bits() >> (32 - ring.log_n());
                let x = m.pow(psi, 2 * brv as u64 + 1);
                f.iter().rev().fold(0, |acc, &c| m.add(m.mul(acc, x), c))
            })
            .collect()
    }

    #[test]
    fn forward_is_naive_evaluation_and_inverse_undoes_it() {
        for (bits, n) in [(14, 8), (27, 64), (30, 16), (30, 256), (30, 1024)] {
            let ring = RnsRing::new(n, &ntt_primes(bits, n, 2).unwrap()).unwrap();
            for limb in 0..2 {
                let tables = Twiddles::new(&ring, limb);
                let p = tables.modulus.value();
                let mut state = n as u64 + limb as u64;
                let random = (0..n).map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    tables.modulus.reduce(state >> 20)
                });
                for f in [random.collect(), vec![p - 1; n], vec![0; n], vec![1; n]] {
                    let mut x = f.clone();
                    tables.forward(&mut x);
                    assert_eq!(x, naive(&ring, limb, &f), "N = {n}, p = {p}");
                    tables.inverse(&mut x);
                    assert_eq!(x, f, "N = {n}, p = {p}");
                }
            }
        }
    }
}
