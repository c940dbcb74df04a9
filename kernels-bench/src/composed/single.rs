//! One rotation and one ciphertext-plaintext product.

use heliostat::engine::{Backend, EngineError, KeySwitchShape, MatmulShape, Rotation};

use super::{Bench, PRODUCT, ROTATION, rlwe::Rlwe};
use crate::{
    Result, cost,
    devices::{Device, Label},
    kernels::{Case, Kernel},
    measure::{Contender, Group, Work, group},
    reference::Transforms,
    stats::Operation,
};

/// Data limbs; a special one comes above.
const LIMBS: usize = 5;

/// The Galois element of the rotation.
const ELEMENT: usize = 3;

/// Ring dimension of the bars.
pub const BAR_DIMENSION: usize = 8192;

/// 8192 for the bars, and in a long run its neighbours.
pub fn dimensions(bench: &Bench) -> Vec<usize> {
    let wanted = bench.arguments.dimensions();
    if bench.arguments.quick {
        return vec![BAR_DIMENSION];
    }
    [4096, BAR_DIMENSION, 16384].into_iter().filter(|n| *n == BAR_DIMENSION || wanted.contains(n)).collect()
}

/// `c0(X^g), c1(X^g)` back under the secret; coefficient domain.
pub fn rotation(bench: &Bench, n: usize) -> Result<Group> {
    let mut rlwe = Rlwe::new(n, LIMBS)?;
    let message = rlwe.uniform(1, LIMBS);
    let ct = rlwe.encrypt(&message);
    let (x, key) = (rlwe.coefficients(&ct), rlwe.switching_key(ELEMENT));
    let turned = turn(&rlwe, &rlwe.coefficients(&message));
    let shape = KeySwitchShape { polys: 1, limbs: LIMBS, special: 1, digit_limbs: 1 };
    let rotations = [Rotation { input: 0, element: ELEMENT, key: 0 }];
    let case = Case { kernel: Kernel::Rotate { rotations: 1 }, n, bits: 30, limbs: LIMBS, batch: 1 };
    let work = Work { kernel: ROTATION, n, limbs: LIMBS, batch: 1, size: None, cost: cost::of(&case) };

    let (rlwe, turned) = (&rlwe, &turned);
    let rotate = |backend: &dyn Backend, x: &[heliostat::engine::Buffer]| {
        backend.rotate(rlwe.ring(), &x[0], shape, &x[1], &rotations)
    };
    let verify = move |ct: &[u32]| {
        let phase = rlwe.coefficients(&rlwe.phase(&rlwe.transformed(ct)));
        rlwe.close(&phase, turned)
    };
    measure(bench, &work, &[&x, &key], rotate, verify, rlwe)
}

/// A ciphertext times a plaintext, NTT domain.
pub fn product(bench: &Bench, n: usize) -> Result<Group> {
    let mut rlwe = Rlwe::new(n, LIMBS)?;
    let message = rlwe.uniform(1, LIMBS);
    let ct = rlwe.encrypt(&message);
    let weights = rlwe.weights();
    let plain = rlwe.small(&weights, LIMBS);
    let expected = rlwe.times(&message, &plain);
    let shape = MatmulShape { groups: 1, inputs: 1, outputs: 1, limbs: LIMBS };
    let case = Case { kernel: Kernel::MatmulPlain { inputs: 1, outputs: 1 }, n, bits: 30, limbs: LIMBS, batch: 1 };
    let work = Work { kernel: PRODUCT, n, limbs: LIMBS, batch: 1, size: None, cost: cost::of(&case) };

    let (rlwe, expected) = (&rlwe, &expected);
    let multiply =
        |backend: &dyn Backend, x: &[heliostat::engine::Buffer]| backend.matmul_plain(rlwe.ring(), &x[0], &x[1], shape);
    let verify = move |ct: &[u32]| rlwe.phase(ct) == *expected;
    measure(bench, &work, &[&ct, &plain], multiply, verify, rlwe)
}

/// Every device in hardware, and one transform of one limb by `tfhe-ntt` in the same rounds: the clock of the bars.
fn measure(
    bench: &Bench,
    work: &Work,
    inputs: &[&[u32]],
    run: impl Fn(&dyn Backend, &[heliostat::engine::Buffer]) -> Result<heliostat::engine::Buffer, EngineError> + Sync,
    verify: impl Fn(&[u32]) -> bool,
    rlwe: &Rlwe,
) -> Result<Group> {
    let run = &run;
    let mut contenders = Vec::new();
    for (device, ceilings) in bench.devices(super::in_hardware) {
        let backend = device.backend();
        let once = || -> Result<_> {
            let x = inputs.iter().map(|words| backend.upload(words)).collect::<Result<Vec<_>, _>>()?;
            let out = backend.download(&run(backend, &x)?)?;
            Ok((x, out))
        };
        let Some((x, out)) = bench.attempt(device, work.kernel, device.install(once))? else { continue };
        let operation: Operation = Box::new(move |repeats| repeat(device, run, &x, repeats));
        let (label, ceilings) = (device.label().clone(), Some(ceilings));
        contenders.push(Contender { label, verified: verify(&out), ceilings, operation, again: None });
    }
    contenders.push(clock(rlwe)?);
    group(work, bench.effort.careful(), contenders)
}

fn repeat(
    device: &Device,
    run: &(impl Fn(&dyn Backend, &[heliostat::engine::Buffer]) -> Result<heliostat::engine::Buffer, EngineError> + Sync),
    x: &[heliostat::engine::Buffer],
    repeats: usize,
) -> Result<()> {
    device.install(|| {
        (0..repeats).try_for_each(|_| run(device.backend(), x).map(drop))?;
        Ok(device.wait()?)
    })
}

/// The row of the clock: not the work of its group, but one forward transform of one 30-bit limb.
pub const CLOCK: &str = "one limb by tfhe-ntt";

/// One forward transform of one limb.
fn clock(rlwe: &Rlwe) -> Result<Contender<'static>> {
    let (ring, n) = (rlwe.ring(), rlwe.ring().n());
    let plan = tfhe_ntt::prime32::Plan::try_new(n, ring.moduli()[0].value()).ok_or("tfhe-ntt has no such transform")?;
    let mut x: Vec<u32> = (0..n as u32).collect();
    let mut expected = x.clone();
    Transforms::new(ring, 1)?.forward(0, &mut expected);
    plan.fwd(&mut x);
    let verified = x == expected;
    let operation: Operation = Box::new(move |repeats| {
        (0..repeats).for_each(|_| plan.fwd(std::hint::black_box(&mut x)));
        Ok(())
    });
    Ok(Contender { label: Label::library(CLOCK, 1), verified, ceilings: None, operation, again: None })
}

/// `f(X^g)` of residues `[limbs][N]`, coefficient domain.
fn turn(rlwe: &Rlwe, f: &[u32]) -> Vec<u32> {
    let n = rlwe.ring().n();
    let mut out = vec![0; f.len()];
    for (limb, (f, out)) in f.chunks(n).zip(out.chunks_mut(n)).enumerate() {
        let p = rlwe.ring().moduli()[limb].value();
        for (i, &c) in f.iter().enumerate() {
            let exponent = i * ELEMENT % (2 * n);
            out[exponent % n] = if exponent < n || c == 0 { c } else { p - c };
        }
    }
    out
}
