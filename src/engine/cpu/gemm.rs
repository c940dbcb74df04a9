//! Products of small integer weights with residues.

use rayon::prelude::*;

use crate::engine::{GemmShape, RnsRing};

/// Integer `index` of a batch packed by [`crate::engine::small_words`].
#[inline(always)]
pub(super) fn small(words: &[u32], index: usize) -> i16 {
    (words[index / 2] >> (16 * (index % 2))) as i16
}

/// `out[o] = sum_i weights[o][i] * x[i]`; layouts as in [`crate::engine::Backend::modular_gemm`], sizes checked.
pub(super) fn modular_gemm(ring: &RnsRing, x: &[u32], weights: &[u32], shape: GemmShape) -> Vec<u32> {
    let GemmShape { inputs, outputs, polys, limbs } = shape;
    let n = ring.n();
    let item = polys * limbs * n;
    let mut out = vec![0; outputs * item];
    out.par_chunks_mut(n).enumerate().for_each_init(
        || vec![0i64; n],
        |sums, (row, out)| {
            let (output, at) = (row / (polys * limbs), row % (polys * limbs));
            let modulus = ring.moduli()[at % limbs];
            sums.fill(0);
            // 2^15 weights of 15 bits times residues of 30 bits stay below 2^62.
            for from in (0..inputs).step_by(1 << 15) {
                for i in from..inputs.min(from + (1 << 15)) {
                    let weight = small(weights, output * inputs + i) as i64;
                    let x = &x[i * item + at * n..][..n];
                    sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += weight * x as i64);
                }
                sums.iter_mut().for_each(|sum| *sum = modulus.from_i64(*sum) as i64);
            }
            out.iter_mut().zip(sums.iter()).for_each(|(out, &sum)| *out = sum as u32);
        },
    );
    out
}
