//! Matrix products with plain integers: small weights times residues, and products modulo a power of two.

use rayon::prelude::*;

use crate::engine::{GemmShape, RingGemmShape, RingOperand, RnsRing};

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

/// Products modulo `2^l`; layouts as in [`crate::engine::Backend::ring_gemm`], sizes checked.
pub(super) fn ring_gemm(a: &[u32], b: &[u32], operand: RingOperand, shape: RingGemmShape) -> Vec<u32> {
    let RingGemmShape { bits, batch, rows, inner, cols } = shape;
    let words = shape.element_words();
    let element = |x: &[u32], index: usize| match words {
        1 => x[index] as u64,
        _ => x[2 * index] as u64 | (x[2 * index + 1] as u64) << 32,
    };
    let right: Vec<u64> = (0..batch * inner * cols)
        .map(|i| match operand {
            RingOperand::Ring => element(b, i),
            RingOperand::Small => small(b, i) as u64,
        })
        .collect();
    let mut out = vec![0; batch * rows * cols * words];
    out.par_chunks_mut((cols * words).max(1)).enumerate().for_each_init(
        || vec![0u64; cols],
        |sums, (row, out)| {
            sums.fill(0);
            let right = &right[row / rows * inner * cols..];
            for k in 0..inner {
                let factor = element(a, row * inner + k);
                for (sum, &b) in sums.iter_mut().zip(&right[k * cols..][..cols]) {
                    *sum = sum.wrapping_add(factor.wrapping_mul(b));
                }
            }
            for (out, &sum) in out.chunks_mut(words).zip(sums.iter()) {
                let sum = sum & (u64::MAX >> (64 - bits));
                out[0] = sum as u32;
                if let Some(high) = out.get_mut(1) {
                    *high = (sum >> 32) as u32;
                }
            }
        },
    );
    out
}
