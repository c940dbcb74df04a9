//! Levels of output packing that are done on the inputs.
//!
//! Packing `h` outputs is `sum_o X^(o K / h) T(c_o)` with `T = (1 + sigma_(2N/K + 1)) (1 + sigma_(4N/K + 1)) .. (1 + sigma_(hN/K + 1))`,
//! and an automorphism of a product is the product of the automorphisms. With the first `s` levels, `A = 2^s` automorphisms
//! `tau`, taken to the inputs, and `B = h / A`:
//!
//! `D_r = sum_b sum_tau tau(ct_b) sum_(a < A) X^(a K / A) tau(w_(b, r + a B))` for `r < B`,
//!
//! and the result is the packing of `D_0 .. D_(B-1)` in blocks of `K / A`, by the levels that are left. There are as many products
//! as without (`B` outputs of `A` times as many inputs), `A - 1` key switches an input and `B - 1` an output. The automorphisms
//! of an input do not depend on the weights: they are made once for all products that read it, in one hoisted batch.
//!
//! Inputs are multiplied by `A^-1` modulo q first, and `D_r` by `B^-1`: all multiples of `h` that the levels make are undone.

use std::ops::Range;

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{CoefficientPacking, layout::Pack};
use crate::{
    engine::{Buffer, GatherItem, Poly, Shape},
    he::{HeServer, Result},
};

/// Galois elements of the automorphisms of inputs, the identity first: the products of `2N/K + 1, 4N/K + 1 .. 2^split N/K + 1`.
pub(super) fn elements(n: usize, block: usize, split: u32) -> Vec<usize> {
    let mut elements = vec![1];
    for level in 1..=split {
        let last = ((n / block) << level) + 1;
        elements.extend_from_within(..);
        let half = elements.len() / 2;
        elements[half..].iter_mut().for_each(|g| *g = *g * last % (2 * n));
    }
    elements
}

/// What is packed after the first levels: `D_0 .. D_(B-1)` of every pack, of which those with an output are computed.
pub(super) fn merged(packs: &[Pack], split: u32) -> Vec<Pack> {
    let merge = |pack: &Pack| {
        let outputs = pack.outputs >> split;
        Pack { first: pack.first >> split, used: pack.used.min(outputs), outputs }
    };
    packs.iter().map(merge).collect()
}

/// All automorphisms of `count` ciphertexts (`[count][2][limbs][N]`, NTT domain), each divided by their number: one buffer of that
/// layout for every Galois element of `elements`, which begins with the identity.
pub(super) fn turn_inputs(server: &HeServer, x: &Buffer, count: usize, elements: &[usize]) -> Result<Vec<Buffer>> {
    let ctx = server.context();
    let (params, ring, backend) = (ctx.params(), ctx.ring(), ctx.backend());
    let limbs = params.limbs();
    let shape = Shape { polys: 2 * count, limbs };
    let inverse = |p: &crate::arith::Modulus| p.inv(p.reduce(elements.len() as u64));
    let scalars: Vec<u32> = params.data().moduli().iter().map(inverse).collect();
    let x = backend.mul_scalar(ring, x, shape, &scalars)?;
    let others = &elements[1..];
    if others.is_empty() {
        return Ok(vec![x]);
    }
    let coefficients = Poly::from_buffer(&ctx.engine(), ring, limbs, ctx.ntt_inverse(&x, shape)?)?;
    let rotations: Vec<_> = (0..count).flat_map(|k| others.iter().map(move |&g| (k, g))).collect();
    let turned = server.rotate(&coefficients, &rotations)?;
    let turned = ctx.ntt_forward(turned.buffer(), Shape { polys: 2 * rotations.len(), limbs })?;
    let of = |turn: usize| -> Result<Buffer> {
        let items: Vec<GatherItem> = (0..count).map(|k| Some((0, k * others.len() + turn))).collect();
        Ok(backend.gather(&[&turned], 2 * limbs * params.n(), &items)?)
    };
    let turned = (0..others.len()).map(of);
    std::iter::once(Ok(x)).chain(turned).collect()
}

/// The plaintexts of one turn as sparse polynomials: all have their coefficients at the same exponents.
pub(super) struct Pattern {
    /// Exponents of the coefficients.
    pub positions: Vec<u32>,
    /// `[A][S]`: the coefficient that weight `k` of output `a` is added to; its complement where it is subtracted.
    slots: Vec<i32>,
    split: u32,
}

impl Pattern {
    /// For the automorphism `element`.
    pub fn new(n: usize, stride: usize, block: usize, split: u32, element: usize) -> Self {
        let mut slot_of: Vec<i32> = vec![-1; n];
        let (mut positions, mut slots) = (Vec::new(), Vec::with_capacity(stride << split));
        for a in 0..1usize << split {
            for k in 0..stride {
                let exponent = (k * element + ((a * block) >> split)) % (2 * n);
                let slot = &mut slot_of[exponent % n];
                if *slot < 0 {
                    *slot = positions.len() as i32;
                    positions.push((exponent % n) as u32);
                }
                slots.push(if exponent < n { *slot } else { !*slot });
            }
        }
        Self { positions, slots, split }
    }

    /// Coefficients of the plaintexts `[outputs][blocks]` of some `D` (numbered over all packs) for input number `k`, whose weights
    /// are `[inner][cols]`.
    pub fn values(
        &self,
        packing: &CoefficientPacking,
        k: usize,
        weights: &[i64],
        outputs: &Range<usize>,
        blocks: &Range<usize>,
    ) -> Zeroizing<Vec<i64>> {
        let layout = &packing.output;
        let (stride, block, columns, cols) = (layout.stride, layout.block, layout.columns(), layout.cols);
        let inner = packing.inputs[k].inner;
        let len = self.positions.len();
        let mut values = Zeroizing::new(vec![0; outputs.len() * blocks.len() * len]);
        values.par_chunks_mut(len.max(1)).enumerate().for_each(|(poly, values)| {
            let b = blocks.start + poly % blocks.len();
            let d = outputs.start + poly / blocks.len();
            let per_pack = block >> self.split;
            let pack = packing.packs[d / per_pack];
            for (a, slots) in self.slots.chunks(stride).enumerate() {
                let output = d % per_pack + a * (pack.outputs >> self.split);
                if output >= pack.used {
                    break;
                }
                let first = (pack.first + output) * columns;
                for j in 0..block.min(inner - b * block) {
                    let row = &weights[(b * block + j) * cols..][..cols];
                    for (o, &w) in row[first..cols.min(first + columns)].iter().enumerate() {
                        let slot = slots[o * block + j];
                        // Bounds of weights leave room for the sum of A of them.
                        if slot < 0 {
                            values[!slot as usize] -= w;
                        } else {
                            values[slot as usize] += w;
                        }
                    }
                }
            }
        });
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Integer polynomials modulo `X^N + 1`.
    fn times(a: &[i128], b: &[i128]) -> Vec<i128> {
        let n = a.len();
        let mut out = vec![0; n];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                let k = (i + j) % n;
                out[k] += if i + j < n { x * y } else { -x * y };
            }
        }
        out
    }

    fn turned(f: &[i128], g: usize) -> Vec<i128> {
        let n = f.len();
        let mut out = vec![0; n];
        for (i, &c) in f.iter().enumerate() {
            let e = i * g % (2 * n);
            out[e % n] += if e < n { c } else { -c };
        }
        out
    }

    fn shifted(f: &[i128], by: usize) -> Vec<i128> {
        let mut x = vec![0; f.len()];
        x[by] = 1;
        times(f, &x)
    }

    fn sum(a: &[i128], b: &[i128]) -> Vec<i128> {
        a.iter().zip(b).map(|(x, y)| x + y).collect()
    }

    /// The recursion of output packing, without its first factor.
    fn pack(x: &[Vec<i128>], block: usize) -> Vec<i128> {
        if let [x] = x {
            return x.clone();
        }
        let (n, h) = (x[0].len(), x.len());
        let half = |first: usize| pack(&x.iter().skip(first).step_by(2).cloned().collect::<Vec<_>>(), block);
        let (even, odd) = (half(0), shifted(&half(1), block / h));
        let difference: Vec<i128> = even.iter().zip(&odd).map(|(x, y)| x - y).collect();
        sum(&sum(&even, &odd), &turned(&difference, n * h / block + 1))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// The identity of the module's description, as polynomials of integers: products first and all levels on them, against
        /// some levels on the inputs.
        #[test]
        fn levels_may_be_done_on_inputs(log_k in 0u32..5, log_h in 0u32..5, split in 0u32..5, seed: u64) {
            let (n, block) = (64, 1 << log_k);
            let h = 1 << log_h.min(log_k);
            let split = split.min(log_h.min(log_k));
            let mut state = seed | 1;
            let mut random = |len: usize| -> Vec<i128> {
                (0..len).map(|_| { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as i128 - 128 }).collect()
            };
            let input = random(n);
            let weights: Vec<Vec<i128>> = (0..h).map(|_| random(block)).collect();
            let padded = |w: &[i128]| { let mut w = w.to_vec(); w.resize(n, 0); w };
            let products: Vec<Vec<i128>> = weights.iter().map(|w| times(&input, &padded(w))).collect();

            let (a, b) = (1 << split, h >> split);
            let merged: Vec<Vec<i128>> = (0..b).map(|r| {
                elements(n, block, split).iter().fold(vec![0; n], |out, &g| {
                    let pattern = Pattern::new(n, block, block, split, g);
                    let mut plain = vec![0; n];
                    for (k, &slot) in pattern.slots.iter().enumerate() {
                        let w = weights[r + k / block * b][k % block];
                        let (at, w) = if slot < 0 { (!slot, -w) } else { (slot, w) };
                        plain[pattern.positions[at as usize] as usize] += w;
                    }
                    sum(&out, &times(&turned(&input, g), &plain))
                })
            }).collect();
            prop_assert_eq!(pack(&merged, block / a), pack(&products, block));
        }
    }

    #[test]
    fn elements_are_distinct_and_odd() {
        for (block, split) in [(64, 0), (64, 3), (64, 6), (8, 3), (1, 0)] {
            let elements = elements(8192, block, split);
            assert_eq!((elements.len(), elements[0]), (1 << split, 1));
            let distinct: std::collections::HashSet<_> = elements.iter().collect();
            assert!(distinct.len() == elements.len() && elements.iter().all(|g| g % 2 == 1 && *g < 16384));
        }
    }
}
