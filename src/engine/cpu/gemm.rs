//! Products of small integer weights with residues.
//!
//! A residue, centred, is `low + 2^15 high` with both halves in `[-2^14, 2^14]`. A vector multiplies the halves of two
//! inputs by 16-bit weights and adds the two products in one instruction, so that a product with a residue costs half of
//! one in double precision. The 32-bit sums hand their carries on before they can overflow, which the widest weight decides,
//! and become residues once a block of inputs. Everything is exact.

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::{
    lanes::{Lanes, WithLanes, with_widest},
    pool::{Pool, Words},
    residue::{Reducer, add},
};
use crate::{
    arith::Modulus,
    engine::{GemmShape, RnsRing},
};

/// Integer `index` of a batch packed by [`crate::engine::small_words`].
#[inline(always)]
pub(super) fn small(words: &[u32], index: usize) -> i16 {
    (words[index / 2] >> (16 * (index % 2))) as i16
}

/// Outputs that are worked on together: their sums stay in registers.
const TILE_OUTPUTS: usize = 6;

/// Columns that are worked on together.
const TILE_COLUMNS: usize = 32;

/// Columns of a task, all modulo one limb.
const TASK_COLUMNS: usize = 256;

/// Inputs of a block, at most: its residues stay in the second-level cache, and a sum is below `2^55`.
const BLOCK_INPUTS: usize = 1024;

/// `out[o] = sum_i weights[o][i] * x[i]`; layouts as in [`crate::engine::Backend::modular_gemm`], sizes checked.
pub(super) fn modular_gemm(ring: &RnsRing, pool: &Pool, x: &[u32], weights: &[u32], shape: GemmShape) -> Words {
    let GemmShape { inputs, outputs, polys, limbs } = shape;
    let n = ring.n();
    let item = polys * limbs * n;
    let mut out = pool.take(outputs * item);
    let weights = Weights::new(weights, inputs, outputs);
    let width = n.min(TASK_COLUMNS);
    // The same columns of every output are one task.
    let mut tasks: Vec<Vec<&mut [u32]>> = (0..item / width).map(|_| Vec::with_capacity(outputs)).collect();
    for out in out.chunks_mut(item.max(1)) {
        tasks.iter_mut().zip(out.chunks_mut(width)).for_each(|(task, out)| task.push(out));
    }
    tasks.into_par_iter().enumerate().for_each_init(
        || pool.take(BLOCK_INPUTS * TILE_COLUMNS),
        |panel, (task, mut out)| {
            let first = task * width;
            let modulus = ring.moduli()[first / n % limbs];
            with_widest(TILE_COLUMNS, Columns { x, item, first, modulus, weights: &weights, panel, out: &mut out });
        },
    );
    out
}

/// Weights by tiles of outputs: pairs of inputs in one word, as [`Lanes::dot_halves`] takes them.
struct Weights {
    inputs: usize,
    /// `[tiles of outputs][pairs of inputs]`, zeros where there is no output or input.
    pairs: Vec<[u32; TILE_OUTPUTS]>,
    /// Pairs whose products a 32-bit sum holds.
    exact: usize,
}

impl Weights {
    fn new(words: &[u32], inputs: usize, outputs: usize) -> Self {
        let half = inputs.div_ceil(2);
        let weight = |output: usize, input: usize| {
            if output < outputs && input < inputs { small(words, output * inputs + input) } else { 0 }
        };
        let tiles = outputs.div_ceil(TILE_OUTPUTS);
        let pairs = (0..tiles * half).into_par_iter().map(|at| {
            let (tile, pair) = (at / half, at % half);
            std::array::from_fn(|row| {
                let output = tile * TILE_OUTPUTS + row;
                weight(output, 2 * pair) as u16 as u32 | (weight(output, 2 * pair + 1) as u16 as u32) << 16
            })
        });
        // A power of two, so that only the width of the widest weight shows in the time.
        let widest = (0..inputs * outputs).into_par_iter().map(|i| small(words, i).unsigned_abs()).max();
        let pair = 2 * (1 << 14) * widest.unwrap_or(0).max(1).next_power_of_two() as u32;
        Self { inputs, pairs: pairs.collect(), exact: ((i32::MAX as u32 - CARRIES) / pair) as usize }
    }
}

/// What a 32-bit sum may hold beside the products since its last carry.
const CARRIES: u32 = 1 << 17;

/// The columns `first ..` of every output.
struct Columns<'a> {
    x: &'a [u32],
    /// Words of an input item.
    item: usize,
    first: usize,
    modulus: Modulus,
    weights: &'a Weights,
    /// Scratch: the halves of a block of inputs and a tile of columns.
    panel: &'a mut [u32],
    out: &'a mut [&'a mut [u32]],
}

impl WithLanes for Columns<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        // Twelve or, where there are 32 registers, 24 sums.
        if L::LOG_ROWS == 3 { self.run::<L, 2>(lanes) } else { self.run::<L, 1>(lanes) }
    }
}

impl Columns<'_> {
    #[inline(always)]
    fn run<L: Lanes, const VECTORS: usize>(self, lanes: L) {
        let Self { x, item, first, modulus, weights, panel, out } = self;
        let (p, reducer) = (modulus.value(), Reducer::new(modulus));
        // Makes sums of at most 2^10 products of 15 bits and half a modulus positive.
        let offset = (p as i64) << 25;
        let (step, width) = (L::WIDTH * VECTORS, out.first().map_or(0, |out| out.len()));
        let all = weights.inputs.div_ceil(2);
        for from in (0..all).step_by(BLOCK_INPUTS / 2) {
            let pairs = (BLOCK_INPUTS / 2).min(all - from);
            for column in (0..width).step_by(step) {
                let columns = step.min(width - column);
                for (pair, words) in panel.chunks_exact_mut(2 * step).take(pairs).enumerate() {
                    let row = |input: usize| match input < weights.inputs {
                        true => &x[input * item + first + column..][..columns],
                        false => &[],
                    };
                    pack::<L>(p, row(2 * (from + pair)), row(2 * (from + pair) + 1), words);
                }
                let halves = bytemuck::cast_slice(&panel[..2 * step * pairs]);
                for (tile, tile_weights) in weights.pairs.chunks_exact(all).enumerate() {
                    let sums = tile_sums::<L, VECTORS>(lanes, &tile_weights[from..][..pairs], halves, weights.exact);
                    for (out, sums) in out[tile * TILE_OUTPUTS..].iter_mut().zip(&sums) {
                        for (out, &sum) in out[column..][..columns].iter_mut().zip(sums) {
                            let residue = reducer.wide(sum.wrapping_add(offset) as u64);
                            *out = if from == 0 { residue } else { add(*out, residue, p) };
                        }
                    }
                }
            }
        }
    }
}

/// The halves of two inputs, side by side: for every vector of columns the low ones, then the high ones. Missing inputs and
/// columns are zero.
#[inline(always)]
fn pack<L: Lanes>(p: u32, even: &[u32], odd: &[u32], words: &mut [u32]) {
    let zeros = [0; TILE_COLUMNS];
    let odd = if odd.is_empty() { &zeros[..even.len()] } else { odd };
    for (at, words) in words.chunks_exact_mut(2 * L::WIDTH).enumerate() {
        let (low, high) = words.split_at_mut(L::WIDTH);
        let columns = (at * L::WIDTH).min(even.len())..((at + 1) * L::WIDTH).min(even.len());
        if columns.len() < L::WIDTH {
            low.fill(0);
            high.fill(0);
        }
        let inputs = even[columns.clone()].iter().zip(&odd[columns]);
        for ((low, high), (&even, &odd)) in low.iter_mut().zip(high).zip(inputs) {
            let (even, odd) = (split(even, p), split(odd, p));
            *low = even.0 & 0xffff | odd.0 << 16;
            *high = even.1 & 0xffff | odd.1 << 16;
        }
    }
}

/// A residue, centred, as `low + 2^15 high` with both in `[-2^14, 2^14]`.
#[inline(always)]
fn split(x: u32, p: u32) -> (u32, u32) {
    let centred = if x > p / 2 { x.wrapping_sub(p) } else { x } as i32;
    let low = centred << 17 >> 17;
    (low as u32, (centred.wrapping_sub(low) >> 15) as u32)
}

/// `sums[row][column] = sum over pairs of weights[row] * halves[column]`.
#[inline(always)]
fn tile_sums<L: Lanes, const VECTORS: usize>(
    lanes: L,
    weights: &[[u32; TILE_OUTPUTS]],
    halves: &[L::Words],
    exact: usize,
) -> [[i64; TILE_COLUMNS]; TILE_OUTPUTS] {
    let (halves, _) = halves.as_chunks::<2>().0.as_chunks::<VECTORS>();
    // Digits of 15 bits; the top ones only take carries.
    let mut digits = [[[lanes.splat(0); 2]; VECTORS]; TILE_OUTPUTS];
    let mut top = [[lanes.splat(0); VECTORS]; TILE_OUTPUTS];
    for (weights, halves) in weights.chunks(exact).zip(halves.chunks(exact)) {
        for (weights, halves) in weights.iter().zip(halves) {
            let halves: [[L::Vector; 2]; VECTORS] =
                std::array::from_fn(|v| [lanes.load(&halves[v][0]), lanes.load(&halves[v][1])]);
            for row in 0..TILE_OUTPUTS {
                let weight = lanes.splat(weights[row]);
                for v in 0..VECTORS {
                    let [low, high] = digits[row][v];
                    digits[row][v] = [
                        lanes.add(low, lanes.dot_halves(weight, halves[v][0])),
                        lanes.add(high, lanes.dot_halves(weight, halves[v][1])),
                    ];
                }
            }
        }
        for row in 0..TILE_OUTPUTS {
            for v in 0..VECTORS {
                let (low, carry) = lanes.carry(digits[row][v][0]);
                let (high, carry) = lanes.carry(lanes.add(digits[row][v][1], carry));
                digits[row][v] = [low, high];
                top[row][v] = lanes.add(top[row][v], carry);
            }
        }
    }
    let mut sums = [[0; TILE_COLUMNS]; TILE_OUTPUTS];
    for row in 0..TILE_OUTPUTS {
        for v in 0..VECTORS {
            let mut words = [L::Words::zeroed(); 3];
            lanes.store(&mut words[0], digits[row][v][0]);
            lanes.store(&mut words[1], digits[row][v][1]);
            lanes.store(&mut words[2], top[row][v]);
            let [low, high, top] =
                words.each_ref().map(|words| bytemuck::cast_slice::<_, i32>(std::slice::from_ref(words)));
            for (i, sum) in sums[row][v * L::WIDTH..][..L::WIDTH].iter_mut().enumerate() {
                *sum = low[i] as i64 + ((high[i] as i64) << 15) + ((top[i] as i64) << 30);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arith::primes::ntt_primes, engine::small_words};

    #[test]
    fn every_width_of_weights_is_exact_at_the_edges() {
        let pool = Pool::new(0);
        for (bits, n, inputs, outputs) in [(30, 8, 1, 1), (12, 8, 5, 7), (30, 64, 7, 13), (27, 16, 2051, 2)] {
            let ring = RnsRing::new(n, &ntt_primes(bits, n, 2).unwrap()).unwrap();
            let item = 2 * n;
            let modulus = |at: usize| ring.moduli()[at % item / n];
            let x: Vec<u32> = (0..inputs * item)
                .map(|at| {
                    let p = modulus(at).value();
                    [p / 2, p / 2 + 1, p - 1, 0, 1, (at as u32).wrapping_mul(2654435761) % p][at / 3 % 6]
                })
                .collect();
            for width in [0, 1, 7, 11, 12, 14, 15] {
                let most = (1i32 << width) - 1;
                let of = |at: usize| [most, -most, -1 - most, most, (at as i32 * 7919) % (most + 1)][at / 2 % 5] as i16;
                let weights: Vec<i16> = (0..inputs * outputs).map(of).collect();
                let shape = GemmShape { inputs, outputs, polys: 1, limbs: 2 };
                let found = modular_gemm(&ring, &pool, &x, &small_words(&weights), shape);
                for (at, &found) in found.iter().enumerate() {
                    let (o, c) = (at / item, at % item);
                    let sum: i64 = (0..inputs).map(|i| weights[o * inputs + i] as i64 * x[i * item + c] as i64).sum();
                    assert_eq!(
                        found,
                        modulus(c).from_i64(sum),
                        "{bits} bits, {inputs} inputs, weights of {width} bits, {at}"
                    );
                }
            }
        }
    }
}
