//! Matrix products by naive sums.

use std::sync::Arc;

use heliostat::engine::{ExpandShape, MatmulShape, RingOperand, RnsRing};

use super::Transforms;
use crate::{
    Result,
    operands::{Expected, sample},
};

/// Rows (of N residues) or elements of which the result is computed.
const SAMPLES: usize = 24;

/// `out[g][o][c] = sum_i ct[g][i][c] * plain[g][o][i]`, sampled rows whole.
pub fn matmul_plain(ring: &RnsRing, ct: &[u32], plain: &[u32], shape: MatmulShape) -> Expected {
    let MatmulShape { groups, inputs, outputs, limbs } = shape;
    let n = ring.n();
    let rows = groups * outputs * 2 * limbs;
    let blocks = sample(rows, SAMPLES).into_iter().map(|row| {
        let (ciphertext, part, limb) = (row / (2 * limbs), row / limbs % 2, row % limbs);
        let (group, p) = (ciphertext / outputs, u64::from(ring.moduli()[limb].value()));
        let mut out = vec![0u32; n];
        for input in 0..inputs {
            let c = &ct[(((group * inputs + input) * 2 + part) * limbs + limb) * n..][..n];
            let w = &plain[((ciphertext * inputs + input) * limbs + limb) * n..][..n];
            for ((out, &c), &w) in out.iter_mut().zip(c).zip(w) {
                *out = ((u64::from(*out) + u64::from(c) * u64::from(w)) % p) as u32;
            }
        }
        (row * n, out)
    });
    Expected { words: rows * n, blocks: blocks.collect() }
}

/// Element `at` of signed 16-bit integers, two a word.
fn small(words: &[u32], at: usize) -> i64 {
    i64::from((words[at / 2] >> (16 * (at % 2))) as u16 as i16)
}

/// `out[o] = sum_i w[o][i] x[i]` at sampled positions of sampled outputs.
pub fn modular_gemm(
    ring: &RnsRing,
    limbs: usize,
    x: &[u32],
    weights: &[u32],
    (outputs, inputs): (usize, usize),
    columns: usize,
) -> Expected {
    let blocks = sample(outputs, SAMPLES).into_iter().flat_map(|o| {
        sample(columns, SAMPLES).into_iter().map(move |column| {
            let p = i128::from(ring.moduli()[column / ring.n() % limbs].value());
            let terms =
                (0..inputs).map(|i| i128::from(small(weights, o * inputs + i)) * i128::from(x[i * columns + column]));
            (o * columns + column, vec![terms.sum::<i128>().rem_euclid(p) as u32])
        })
    });
    Expected { words: outputs * columns, blocks: blocks.collect() }
}

/// Matrix products modulo `2^bits` at sampled positions, over 128-bit integers.
pub fn ring_gemm(
    bits: u32,
    batch: usize,
    (rows, inner, cols): (usize, usize, usize),
    a: &[u32],
    b: &[u32],
    operand: RingOperand,
) -> Expected {
    let words = if bits <= 32 { 1 } else { 2 };
    let element = |x: &[u32], at: usize| match words {
        1 => i128::from(x[at]),
        _ => i128::from(x[2 * at]) | i128::from(x[2 * at + 1]) << 32,
    };
    let right = |at: usize| match operand {
        RingOperand::Ring => element(b, at),
        RingOperand::Small => small(b, at).into(),
    };
    let positions = sample(batch * rows * cols, SAMPLES * SAMPLES).into_iter();
    let blocks = positions.map(|at| {
        let (k, row, col) = (at / (rows * cols), at / cols % rows, at % cols);
        let term =
            |i: usize| element(a, (k * rows + row) * inner + i).wrapping_mul(right((k * inner + i) * cols + col));
        let sum = (0..inner).fold(0i128, |sum, i| sum.wrapping_add(term(i))) as u64;
        let value = if bits == 64 { sum } else { sum & ((1 << bits) - 1) };
        (at * words, if words == 1 { vec![value as u32] } else { vec![value as u32, (value >> 32) as u32] })
    });
    Expected { words: batch * rows * cols * words, blocks: blocks.collect() }
}

/// Sampled weight polynomials: `W[bK + j][gm + o]` at `X^(oK + j)`, transformed.
pub fn expand_matrix(ring: &Arc<RnsRing>, weights: &[u32], shape: &ExpandShape) -> Result<Expected> {
    let ExpandShape { inner, cols, block, columns, limbs, .. } = *shape;
    let (n, transforms) = (ring.n(), Transforms::new(ring, limbs)?);
    let (outputs, inputs) = (shape.outputs.len(), shape.inputs.len());
    let blocks = sample(outputs * inputs * limbs, SAMPLES).into_iter().map(|row| {
        let (poly, limb) = (row / limbs, row % limbs);
        let (g, b) = (shape.outputs.start + poly / inputs, shape.inputs.start + poly % inputs);
        let p = i64::from(ring.moduli()[limb].value());
        let mut f = vec![0; n];
        for (o, j) in (0..columns).flat_map(|o| (0..block).map(move |j| (o, j))) {
            let (k, col) = (b * block + j, g * columns + o);
            if k < inner && col < cols {
                f[o * block + j] = small(weights, k * cols + col).rem_euclid(p) as u32;
            }
        }
        transforms.forward(limb, &mut f);
        (row * n, f)
    });
    Ok(Expected { words: outputs * inputs * limbs * n, blocks: blocks.collect() })
}
