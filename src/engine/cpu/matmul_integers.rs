//! The product of ciphertexts and polynomials of integers that are reduced and transformed on the way: those of one output and one
//! limb at a time, which do not leave the caches.

use rayon::prelude::*;

use super::{
    inner_product::{self, Term},
    ntt::CpuNtt,
    permute::wide_residues,
    pool::{Pool, Words},
    simd,
};
use crate::engine::{MatmulShape, RnsRing};

/// Transformed polynomials that are held at a time, in words: half of what a second-level cache has.
const HELD: usize = 1 << 17;

/// As [`crate::engine::Backend::matmul_integers`], sizes checked.
pub(super) fn matmul_integers(
    ring: &RnsRing,
    pool: &Pool,
    plans: &[Box<dyn CpuNtt>],
    ct: &[u32],
    values: &[i64],
    shape: MatmulShape,
) -> Words {
    let MatmulShape { groups, inputs, outputs, limbs } = shape;
    let n = ring.n();
    let held = (HELD / n).clamp(1, inputs.max(1));
    let mut out = pool.take(groups * outputs * 2 * limbs * n);
    if inputs == 0 {
        out.fill(0);
        return out;
    }
    out.par_chunks_mut(2 * limbs * n).zip(values.par_chunks(inputs * n)).enumerate().for_each_init(
        || (vec![0; held * n], vec![0; 2 * n]),
        |(plain, more), (index, (out, values))| {
            let ct = &ct[index / outputs * inputs * 2 * limbs * n..][..inputs * 2 * limbs * n];
            let (c0, c1) = out.split_at_mut(limbs * n);
            for (limb, (c0, c1)) in c0.chunks_mut(n).zip(c1.chunks_mut(n)).enumerate() {
                let modulus = ring.moduli()[limb];
                for (number, values) in values.chunks(held * n).enumerate() {
                    for (values, plain) in values.chunks(n).zip(plain.chunks_mut(n)) {
                        simd::dispatch(
                            #[inline(always)]
                            || wide_residues(modulus, values, plain),
                        );
                        plans[limb].forward(plain);
                    }
                    let term = |(at, factor)| {
                        let part = |part: usize| &ct[(((number * held + at) * 2 + part) * limbs + limb) * n..][..n];
                        Term { factor, parts: [part(0), part(1)] }
                    };
                    let terms: Vec<Term<'_>> = plain.chunks(n).take(values.len() / n).enumerate().map(term).collect();
                    if number == 0 {
                        inner_product::pair(modulus, [&mut *c0, &mut *c1], &terms);
                        continue;
                    }
                    let (d0, d1) = more.split_at_mut(n);
                    inner_product::pair(modulus, [&mut *d0, &mut *d1], &terms);
                    for (sum, more) in [(&mut *c0, d0), (&mut *c1, d1)] {
                        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum = modulus.add(*sum, *more));
                    }
                }
            }
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        arith::primes::ntt_primes,
        engine::{Backend, RnsRing, Shape, cpu::CpuBackend},
    };

    /// Against the three steps, with more inputs than are held at a time.
    #[test]
    fn the_same_as_step_by_step() {
        let backend = CpuBackend::new(None);
        for (log_n, shape) in [
            (10, MatmulShape { groups: 1, inputs: 3, outputs: 2, limbs: 3 }),
            (13, MatmulShape { groups: 2, inputs: 35, outputs: 1, limbs: 1 }),
            (4, MatmulShape { groups: 1, inputs: 1, outputs: 1, limbs: 2 }),
        ] {
            let n = 1 << log_n;
            let ring = Arc::new(RnsRing::new(n, &ntt_primes(28, n, 3).unwrap()).unwrap());
            let word = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let polys = shape.groups * shape.inputs;
            let ct: Vec<u32> = (0..polys * 2 * shape.limbs * n)
                .map(|i| (word(i) % u64::from(ring.moduli()[i / n % shape.limbs].value())) as u32)
                .collect();
            let ct = backend.upload(&ct).unwrap();
            let mut values: Vec<i64> = (0..polys * shape.outputs * n).map(|i| word(i) as i64 - (1 << 43)).collect();
            (values[0], values[1]) = (i64::MIN, i64::MAX);
            let positions: Vec<u32> = (0..n as u32).collect();
            let plain = backend.expand(&ring, shape.limbs, &values, &positions).unwrap();
            let all = Shape { polys: polys * shape.outputs, limbs: shape.limbs };
            let plain = backend.ntt_forward(&ring, &plain, all).unwrap();
            let expected = backend.matmul_plain(&ring, &ct, &plain, shape).unwrap();
            let found = backend.matmul_integers(&ring, &ct, &values, shape).unwrap();
            assert!(backend.download(&found).unwrap() == backend.download(&expected).unwrap(), "{shape:?}");
            assert!(backend.matmul_integers(&ring, &ct, &values[1..], shape).is_err());
        }
    }
}
