//! The plaintext-ciphertext matrix product.

use rayon::prelude::*;

use super::{
    inner_product::{self, Term},
    pool::{Pool, Words},
};
use crate::engine::{MatmulShape, RnsRing};

/// One output row pair: both parts of one limb of one output ciphertext.
struct Task<'a> {
    group: usize,
    limb: usize,
    output: usize,
    out: [&'a mut [u32]; 2],
}

/// `out[g][o] = sum_i ct[g][i] * plain[g][o][i]`; layouts as in [`crate::engine::Backend::matmul_plain`], sizes checked.
pub(super) fn matmul_plain(ring: &RnsRing, pool: &Pool, ct: &[u32], plain: &[u32], shape: MatmulShape) -> Words {
    let MatmulShape { groups, inputs, outputs, limbs } = shape;
    let n = ring.n();
    let mut out = pool.take(groups * outputs * 2 * limbs * n);
    let mut tasks = Vec::with_capacity(groups * outputs * limbs);
    for (index, ciphertext) in out.chunks_mut(2 * limbs * n).enumerate() {
        let (c0, c1) = ciphertext.split_at_mut(limbs * n);
        for (limb, (c0, c1)) in c0.chunks_mut(n).zip(c1.chunks_mut(n)).enumerate() {
            tasks.push(Task { group: index / outputs, limb, output: index % outputs, out: [c0, c1] });
        }
    }
    // Neighbours share one limb of the inputs, which then stays in cache while the plaintexts stream past.
    tasks.sort_by_key(|task| (task.group, task.limb, task.output));
    tasks.into_par_iter().for_each(|Task { group, limb, output, out }| {
        let terms: Vec<Term<'_>> = (0..inputs)
            .map(|input| {
                let plain_at = (((group * outputs + output) * inputs + input) * limbs + limb) * n;
                let ct_at = |part: usize| (((group * inputs + input) * 2 + part) * limbs + limb) * n;
                Term { factor: &plain[plain_at..][..n], parts: [0, 1].map(|part| &ct[ct_at(part)..][..n]) }
            })
            .collect();
        inner_product::pair(ring.moduli()[limb], out, &terms);
    });
    out
}
