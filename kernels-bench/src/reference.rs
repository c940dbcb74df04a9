//! The results that kernels must have, by plain arithmetic, and the NTT library that they are compared with.
//!
//! Transforms come from the engine's plain NTT, each checked here against the evaluation of the polynomial at some points.

use std::{error::Error, sync::Arc};

use heliostat::engine::{
    Backend, MatmulShape, RnsRing, Shape,
    cpu::{CpuBackend, NttLibrary},
};

use crate::{
    cases::{Case, Kernel, Prepared},
    report::Row,
    stats::{self, Effort},
};

/// Forward transform of a batch.
pub fn ntt_forward(ring: &Arc<RnsRing>, x: &[u32], shape: Shape) -> Result<Vec<u32>, Box<dyn Error>> {
    let plain = CpuBackend::with_ntt(NttLibrary::Plain, None);
    let transform = plain.download(&plain.ntt_forward(ring, &plain.upload(x)?, shape)?)?;
    for (row, (f, t)) in x.chunks(ring.n()).zip(transform.chunks(ring.n())).enumerate() {
        for index in [0, 1, ring.n() / 2, ring.n() - 1 - row % ring.n()] {
            if t[index] != evaluate(ring, row % shape.limbs, f, index) {
                return Err(format!("the plain NTT is wrong at N = {}, row {row}, index {index}", ring.n()).into());
            }
        }
    }
    Ok(transform)
}

/// `f(psi^(2*brv(index)+1))` by Horner's rule.
fn evaluate(ring: &RnsRing, limb: usize, f: &[u32], index: usize) -> u32 {
    let (m, psi) = (ring.moduli()[limb], ring.psi()[limb]);
    let p = u64::from(m.value());
    let brv = (index as u32).reverse_bits() >> (32 - ring.log_n());
    let x = u64::from(m.pow(psi, 2 * u64::from(brv) + 1));
    f.iter().rev().fold(0, |acc, &c| (acc * x + u64::from(c)) % p) as u32
}

/// Residue-wise product.
pub fn mul(ring: &RnsRing, a: &[u32], b: &[u32], limbs: usize) -> Vec<u32> {
    let p = |at: usize| u64::from(ring.moduli()[at / ring.n() % limbs].value());
    a.iter().zip(b).enumerate().map(|(at, (&a, &b))| (u64::from(a) * u64::from(b) % p(at)) as u32).collect()
}

/// `out[g][o][c] = sum_i ct[g][i][c] * plain[g][o][i]`, word by word.
pub fn matmul_plain(ring: &RnsRing, ct: &[u32], plain: &[u32], shape: MatmulShape) -> Vec<u32> {
    let MatmulShape { groups, inputs, outputs, limbs } = shape;
    let n = ring.n();
    let mut out = vec![0; groups * outputs * 2 * limbs * n];
    for (row, out) in out.chunks_mut(n).enumerate() {
        let (ciphertext, part, limb) = (row / (2 * limbs), row / limbs % 2, row % limbs);
        let (group, p) = (ciphertext / outputs, u64::from(ring.moduli()[limb].value()));
        for input in 0..inputs {
            let c = &ct[(((group * inputs + input) * 2 + part) * limbs + limb) * n..][..n];
            let w = &plain[((ciphertext * inputs + input) * limbs + limb) * n..][..n];
            for ((out, &c), &w) in out.iter_mut().zip(c).zip(w) {
                *out = ((u64::from(*out) + u64::from(c) * u64::from(w)) % p) as u32;
            }
        }
    }
    out
}

/// The key switch as [`Backend::key_switch`] defines it: digits, products, exact division by the special prime.
pub fn key_switch(ring: &Arc<RnsRing>, x: &[u32], polys: usize, key: &[u32]) -> Result<Vec<u32>, Box<dyn Error>> {
    let plain = CpuBackend::with_ntt(NttLibrary::Plain, None);
    let (n, all) = (ring.n(), ring.moduli().len());
    let limbs = all - 1;
    let moduli: Vec<u64> = ring.moduli().iter().map(|m| u64::from(m.value())).collect();
    // [polys * digits][all limbs][N]: a digit is the integers of one limb, modulo every limb.
    let digit_rows = x.chunks(n).flat_map(|digit| moduli.iter().map(move |p| (digit, *p)));
    let digits: Vec<u32> = digit_rows.flat_map(|(d, p)| d.iter().map(move |&c| (u64::from(c) % p) as u32)).collect();
    let digits = ntt_forward(ring, &digits, Shape { polys: polys * limbs, limbs: all })?;
    // [polys][2][all limbs][N]: each polynomial is a row of digits, the key a column.
    let mut wide = vec![0; polys * 2 * all * n];
    for (row, wide) in wide.chunks_mut(n).enumerate() {
        let (poly, part, limb) = (row / (2 * all), row / all % 2, row % all);
        for digit in 0..limbs {
            let d = &digits[((poly * limbs + digit) * all + limb) * n..][..n];
            let k = &key[((digit * 2 + part) * all + limb) * n..][..n];
            for ((wide, &d), &k) in wide.iter_mut().zip(d).zip(k) {
                *wide = ((u64::from(*wide) + u64::from(d) * u64::from(k)) % moduli[limb]) as u32;
            }
        }
    }
    let wide = plain.ntt_inverse(ring, &plain.upload(&wide)?, Shape { polys: 2 * polys, limbs: all })?;
    let wide = plain.download(&wide)?;
    let special = moduli[limbs];
    let mut out = Vec::with_capacity(polys * 2 * limbs * n);
    for wide in wide.chunks(all * n) {
        for (limb, &p) in moduli[..limbs].iter().enumerate() {
            let inverse = u64::from(ring.moduli()[limb].inv((special % p) as u32));
            out.extend(wide[limb * n..][..n].iter().zip(&wide[limbs * n..]).map(|(&x, &r)| {
                // The remainder centred: r or r - special.
                let centred = if u64::from(r) > special / 2 {
                    (u64::from(r) + p * 4 - special % p) % p
                } else {
                    u64::from(r) % p
                };
                ((u64::from(x) + p - centred) % p * inverse % p) as u32
            }));
        }
    }
    Ok(out)
}

/// The same transforms by `tfhe-ntt` called directly on one thread; nothing for other kernels.
pub fn tfhe_ntt(case: &Case, prepared: &Prepared, effort: Effort) -> Result<Option<Row>, Box<dyn Error>> {
    if !case.kernel.is_transform() {
        return Ok(None);
    }
    let plan = |p: u32| tfhe_ntt::prime32::Plan::try_new(case.n, p).ok_or("tfhe-ntt has no such transform");
    let moduli = &prepared.ring.moduli()[..case.limbs];
    let plans = moduli.iter().map(|m| plan(m.value())).collect::<Result<Vec<_>, _>>()?;
    let x = &prepared.inputs[0];
    let mut out = vec![0; x.len()];
    let mut transform = || {
        for (row, (out, x)) in out.chunks_mut(case.n).zip(x.chunks(case.n)).enumerate() {
            let plan = &plans[row % case.limbs];
            out.copy_from_slice(x);
            if case.kernel == Kernel::NttForward {
                plan.fwd(out);
            } else {
                plan.inv(out);
                plan.normalize(out);
            }
        }
    };
    let timing = stats::measure(effort, |repeats| {
        (0..repeats).for_each(|_| transform());
        Ok::<(), Box<dyn Error>>(())
    })?;
    let verified = out == prepared.expected;
    Ok(Some(Row::new(case.work(), "library", "tfhe-ntt", 1, timing, verified)))
}
