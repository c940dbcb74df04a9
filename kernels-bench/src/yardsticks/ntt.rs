//! Batched transforms by `tfhe-ntt` and `concrete-ntt`, out of place, on one thread.

use std::hint::black_box;

use crate::{Result, devices::Label, kernels::Kernel, measure::Contender, operands::Prepared, stats::Operation};

/// Transforms one row in place.
type Transform<'a> = Box<dyn Fn(usize, &mut [u32]) + 'a>;

/// The same transforms by the two libraries, none for other kernels.
///
/// # Errors
/// If a library has no such transform.
pub fn contenders(prepared: &Prepared) -> Result<Vec<Contender<'_>>> {
    if !prepared.case.kernel.is_transform() {
        return Ok(Vec::new());
    }
    let (n, limbs) = (prepared.case.n, prepared.case.limbs);
    let forward = prepared.case.kernel == Kernel::NttForward;
    let primes = || prepared.ring.moduli()[..limbs].iter().map(|m| m.value());
    let missing = |library: &str| format!("{library} has no transform of N = {n}");
    let tfhe: Vec<_> = primes()
        .map(|p| tfhe_ntt::prime32::Plan::try_new(n, p).ok_or_else(|| missing("tfhe-ntt")))
        .collect::<Result<_, _>>()?;
    let concrete: Vec<_> = primes()
        .map(|p| concrete_ntt::prime32::Plan::try_new(n, p).ok_or_else(|| missing("concrete-ntt")))
        .collect::<Result<_, _>>()?;
    let libraries: [(&str, Transform); 2] = [
        (
            "tfhe-ntt",
            Box::new(move |limb, x| {
                let plan = &tfhe[limb];
                if forward {
                    plan.fwd(x);
                } else {
                    plan.inv(x);
                    plan.normalize(x);
                }
            }),
        ),
        (
            "concrete-ntt",
            Box::new(move |limb, x| {
                let plan = &concrete[limb];
                if forward {
                    plan.fwd(x);
                } else {
                    plan.inv(x);
                    plan.normalize(x);
                }
            }),
        ),
    ];
    Ok(libraries.into_iter().map(|(name, transform)| contender(prepared, name, transform)).collect())
}

fn contender<'a>(prepared: &'a Prepared, name: &str, transform: Transform<'a>) -> Contender<'a> {
    let (n, limbs) = (prepared.case.n, prepared.case.limbs);
    let x = &prepared.operands.buffers[0];
    let batch = move |out: &mut [u32]| {
        for (row, (out, x)) in out.chunks_mut(n).zip(x.chunks(n)).enumerate() {
            out.copy_from_slice(x);
            transform(row % limbs, out);
        }
    };
    let mut out = vec![0; x.len()];
    batch(&mut out);
    let verified = prepared.expected.matches(&out);
    let operation: Operation = Box::new(move |repeats| {
        (0..repeats).for_each(|_| batch(black_box(&mut out)));
        Ok(())
    });
    Contender { label: Label::library(name, 1), verified, ceilings: None, operation, again: None }
}
