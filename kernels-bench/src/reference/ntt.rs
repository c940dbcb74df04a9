//! Transforms by `concrete-ntt`, called directly.

use std::sync::Arc;

use concrete_ntt::prime32::Plan;
use heliostat::{arith::Modulus, engine::RnsRing};
use rayon::prelude::*;

use crate::Result;

/// Transforms of the first limbs of a ring, checked against evaluation.
pub struct Transforms {
    n: usize,
    limbs: Vec<(Modulus, Plan, u32)>,
}

impl Transforms {
    /// The transforms of `limbs` limbs, each checked at sampled points.
    ///
    /// # Errors
    /// If the library has no such transform, or one that contradicts the ring's definition.
    pub fn new(ring: &Arc<RnsRing>, limbs: usize) -> Result<Self> {
        let n = ring.n();
        let plan = |limb: usize| -> Result<_> {
            let m = ring.moduli()[limb];
            let plan = Plan::try_new(n, m.value()).ok_or_else(|| format!("concrete-ntt has no N = {n}"))?;
            let f: Vec<u32> = (0..n as u64).map(|i| m.reduce((i + 3) * 0x9e37_79b9_7f4a % (1 << 50))).collect();
            let mut transform = f.clone();
            plan.fwd(&mut transform);
            for index in [0, 1, n / 2, n - 1 - limb] {
                if transform[index] != evaluate(ring, limb, &f, index) {
                    return Err(format!("concrete-ntt is wrong at N = {n}, p = {}, index {index}", m.value()).into());
                }
            }
            Ok((m, plan, m.inv(m.reduce(n as u64))))
        };
        Ok(Self { n, limbs: (0..limbs).into_par_iter().map(plan).collect::<Result<_>>()? })
    }

    /// Coefficient to NTT domain, one polynomial modulo one limb.
    pub fn forward(&self, limb: usize, x: &mut [u32]) {
        self.limbs[limb].1.fwd(x);
    }

    /// NTT to coefficient domain, one polynomial modulo one limb.
    pub fn inverse(&self, limb: usize, x: &mut [u32]) {
        let (m, plan, n_inv) = &self.limbs[limb];
        plan.inv(x);
        x.iter_mut().for_each(|c| *c = (u64::from(*c) * u64::from(*n_inv) % u64::from(m.value())) as u32);
    }

    /// [`Self::forward`] of a batch `[poly][limb][N]`.
    pub fn forward_batch(&self, x: &mut [u32]) {
        let limbs = self.limbs.len();
        x.par_chunks_mut(self.n).enumerate().for_each(|(row, x)| self.forward(row % limbs, x));
    }

    /// [`Self::inverse`] of a batch `[poly][limb][N]`.
    pub fn inverse_batch(&self, x: &mut [u32]) {
        let limbs = self.limbs.len();
        x.par_chunks_mut(self.n).enumerate().for_each(|(row, x)| self.inverse(row % limbs, x));
    }
}

/// `f(psi^(2*brv(index)+1))` by Horner's rule.
fn evaluate(ring: &RnsRing, limb: usize, f: &[u32], index: usize) -> u32 {
    let (m, psi) = (ring.moduli()[limb], ring.psi()[limb]);
    let p = u64::from(m.value());
    let brv = (index as u32).reverse_bits() >> (32 - ring.log_n());
    let x = u64::from(m.pow(psi, 2 * u64::from(brv) + 1));
    f.iter().rev().fold(0, |acc, &c| (acc * x + u64::from(c)) % p) as u32
}
