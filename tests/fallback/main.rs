//! The CPU finishes what a failing device cannot: at every point of failure, with every kind of failure, the words are those
//! of the CPU alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which clippy does not recognise")]

mod failing;
#[path = "../laws/oracle.rs"]
mod oracle;
#[cfg(feature = "protocol")]
mod session;
#[allow(dead_code)]
#[path = "../laws/suite/mod.rs"]
mod suite;

use std::sync::{Arc, atomic::Ordering};

use heliostat::{
    arith::{ShareModulus, primes::ntt_primes, sample::SecureRng},
    engine::{
        Backend, EngineError, ExpandShape, FallbackBackend, FallbackLimits, GemmShape, KeySwitchShape, MatmulShape,
        RingGemmShape, RingOperand, RnsRing, Rotation, Shape, cpu::CpuBackend, small_words,
    },
    he::{BfvContext, HeClient, HeServer, ParameterSet, ParameterSpec},
    packing::{ClientMatrix, CoefficientPacking, MatmulSpec, OperandBound},
};

use crate::{
    failing::{Failing, Failure},
    oracle::Random,
    suite::laws_in,
};

type Guarded = FallbackBackend<Failing, CpuBackend>;

fn guarded(failure: Failure, at: u64) -> Guarded {
    FallbackBackend::new(Failing::new(failure, at), CpuBackend::new(None))
}

fn ring(n: usize, limbs: usize) -> Arc<RnsRing> {
    Arc::new(RnsRing::new(n, &ntt_primes(30, n, limbs).unwrap()).unwrap())
}

#[test]
fn laws_hold_while_nothing_fails() {
    let backend = FallbackBackend::new(CpuBackend::new(None), CpuBackend::new(None));
    [ring(32, 4), ring(64, 2), ring(1024, 3)].iter().for_each(|ring| laws_in(&backend, ring));
    assert_eq!(backend.degraded(), None);
    assert!(backend.second().ops().is_empty(), "the second backend has worked");
    assert_eq!(backend.host_bytes(), 0, "the laws have dropped their buffers");
}

#[test]
fn laws_hold_when_the_device_fails() {
    for (failure, at) in [(Failure::Loss, 0), (Failure::Loss, 57), (Failure::Full, 30), (Failure::Memory, 5)] {
        let backend = guarded(failure, at);
        [ring(32, 4), ring(64, 2)].iter().for_each(|ring| laws_in(&backend, ring));
        assert!(backend.degraded().is_some(), "{failure:?} at {at}");
    }
}

/// Every operation of the trait at least once, on inputs that are uploads, results, dropped and still held; some results are
/// read at once, some at the end.
fn workload(backend: &dyn Backend) -> Vec<Vec<u32>> {
    let ring = ring(64, 4);
    let (n, limbs) = (64, 3);
    let mut random = Random(11);
    let shape = Shape { polys: 4, limbs };
    let up = |words: &[u32]| backend.upload(words).unwrap();
    let x = up(&random.uniform(&ring, shape));
    let y = up(&random.uniform(&ring, shape));
    let key_words = random.uniform(&ring, Shape { polys: 2 * 6, limbs: 4 });
    let keys = up(&key_words);
    let key = up(&key_words[..key_words.len() / 2]);
    let mut read = Vec::new();

    let nx = backend.ntt_forward(&ring, &x, shape).unwrap();
    let ny = backend.ntt_forward(&ring, &y, shape).unwrap();
    let product = backend.mul(&ring, &nx, &ny, shape).unwrap();
    let product = backend.mul_accumulate(&ring, &product, &nx, &nx, shape).unwrap();
    drop(ny);
    let back = backend.ntt_inverse(&ring, &product, shape).unwrap();
    read.push(backend.download(&back).unwrap());
    let turned = backend.automorphism_ntt(&ring, &product, shape, 5).unwrap();
    let rotated = backend.automorphism(&ring, &back, shape, 3).unwrap();
    let scaled = backend.mul_scalar(&ring, &rotated, shape, &[1, 2, 3]).unwrap();
    let difference = backend.sub(&ring, &backend.add(&ring, &scaled, &x, shape).unwrap(), &y, shape).unwrap();
    let (even, odd) = backend.pack_step(&ring, &difference, shape, 7).unwrap();
    let half = Shape { polys: 2, ..shape };
    let sum = backend.add(&ring, &odd, &even, half).unwrap();
    drop((x, y, rotated));

    let positions: Vec<u32> = (0..8).collect();
    let values: Vec<i64> = (-24..24).collect();
    let plain = backend.expand(&ring, limbs, &values, &positions).unwrap();
    let plain = backend.ntt_forward(&ring, &plain, Shape { polys: 6, limbs }).unwrap();
    let matmul = MatmulShape { groups: 1, inputs: 2, outputs: 3, limbs };
    let ct = backend.matmul_plain(&ring, &turned, &plain, matmul).unwrap();
    let ct = backend.ntt_inverse(&ring, &ct, Shape { polys: 6, limbs }).unwrap();
    let switch = KeySwitchShape::full(&ring, 2);
    let switched = backend.key_switch(&ring, &sum, switch, &key).unwrap();
    let rotations = [Rotation { input: 0, element: 5, key: 1 }, Rotation { input: 1, element: 9, key: 0 }];
    let hoisted = backend.rotate(&ring, &switched, switch, &keys, &rotations).unwrap();
    drop((key, keys));
    let gathered = backend.gather(&[&ct, &hoisted], limbs * n, &[Some((1, 3)), None, Some((0, 0))]).unwrap();
    let down = backend.mod_switch(&ring, &gathered, Shape { polys: 3, limbs }, 2).unwrap();
    read.push(backend.download(&down).unwrap());
    let wide = backend.base_convert(&ring, &down, 3, 0..2, 1..4).unwrap();

    let small = up(&small_words(&[3, -4, 5, -6, 7, -8]));
    let gemm = GemmShape { inputs: 3, outputs: 2, polys: 1, limbs: 3 };
    let mixed = backend.modular_gemm(&ring, &wide, &small, gemm).unwrap();
    let matrix = ExpandShape { inner: 2, cols: 3, block: 2, columns: 2, limbs, outputs: 0..2, inputs: 0..1 };
    let weights = backend.expand_matrix(&ring, &small, &matrix).unwrap();
    let left = up(&[1, 2, 3, u32::MAX]);
    let product = RingGemmShape { bits: 30, batch: 1, rows: 2, inner: 2, cols: 3 };
    let shares = backend.ring_gemm(&left, &small, RingOperand::Small, product).unwrap();
    drop(small);
    read.extend([&nx, &difference, &mixed, &weights, &shares, &wide].map(|buffer| backend.download(buffer).unwrap()));
    read
}

#[test]
fn every_operation_is_finished_at_every_point_of_failure() {
    let expected = workload(&CpuBackend::new(None));
    let whole = Failing::new(Failure::Loss, u64::MAX);
    let calls = whole.calls();
    let backend = FallbackBackend::new(whole, CpuBackend::new(None));
    assert_eq!(workload(&backend), expected);
    assert_eq!((backend.degraded(), backend.host_bytes()), (None, 0));
    let names: Vec<_> = backend.ops().iter().map(|op| op.name).collect();
    assert_eq!(names, heliostat::engine::Op::ALL.map(heliostat::engine::Op::name));

    for failure in Failure::ALL {
        for at in 0..calls.load(Ordering::SeqCst) {
            let backend = guarded(failure, at);
            assert!(workload(&backend) == expected, "{failure:?} at call {at}");
            // Only downloads may be left, which need no memory.
            assert!(backend.degraded().is_some() || failure == Failure::Full, "{failure:?} at call {at}");
            assert_eq!(backend.is_lost(), failure == Failure::Loss);
            assert_eq!(backend.host_bytes(), 0);
        }
    }
}

#[test]
fn the_first_failure_is_told_once() {
    let backend = guarded(Failure::Loss, 1);
    let ring = ring(32, 2);
    let shape = Shape { polys: 1, limbs: 2 };
    let x = backend.upload(&[1; 64]).unwrap();
    assert_eq!(backend.degraded(), None);
    let y = backend.add(&ring, &x, &x, shape).unwrap();
    assert_eq!(backend.download(&y).unwrap(), [2; 64]);
    let notice = backend.degraded().unwrap();
    assert_eq!(notice, "the GPU was lost during add (injected); the CPU has done 2 operations in its place");
    assert_eq!(backend.info().kind, "gpu");
}

/// What is wrong with the operands, or with the results, is not hidden.
#[test]
fn other_errors_come_out() {
    let backend = guarded(Failure::Loss, u64::MAX);
    let ring = ring(32, 2);
    let x = backend.upload(&[1; 63]).unwrap();
    let wrong = backend.add(&ring, &x, &x, Shape { polys: 1, limbs: 2 });
    assert!(matches!(wrong, Err(EngineError::Shape { operation: "add", .. })));
    let foreign = CpuBackend::new(None).upload(&[1]).unwrap();
    assert!(matches!(backend.download(&foreign), Err(EngineError::Shape { operation: "download", .. })));
    let other = guarded(Failure::Loss, u64::MAX);
    assert!(other.download(&x).is_err());
    assert_eq!(backend.degraded(), None);
    // Nor does the CPU hide what is wrong once it works alone.
    let lost = guarded(Failure::Loss, 0);
    let x = lost.upload(&[1; 63]).unwrap();
    assert!(matches!(lost.add(&ring, &x, &x, Shape { polys: 1, limbs: 2 }), Err(EngineError::Shape { .. })));
}

#[test]
fn lineages_stay_within_their_limits() {
    let ring = ring(1024, 2);
    let shape = Shape { polys: 1, limbs: 2 };
    let bytes = 4 * 2048;
    for (limits, most) in [
        (FallbackLimits { chain: 8, kept_bytes: u64::MAX }, 12),
        (FallbackLimits { chain: usize::MAX, kept_bytes: 5 * bytes }, 8),
    ] {
        // Every sum takes in a new upload, which is dropped.
        let run = |at| {
            let backend = FallbackBackend::with_limits(Failing::new(Failure::Loss, at), CpuBackend::new(None), limits);
            let mut sum = backend.upload(&[0; 2048]).unwrap();
            for k in 1..200 {
                let term = backend.upload(&[k; 2048]).unwrap();
                sum = backend.add(&ring, &sum, &term, shape).unwrap();
                drop(term);
                assert!(backend.host_bytes() <= most * bytes, "{} bytes after {k} sums", backend.host_bytes());
            }
            assert_eq!(backend.download(&sum).unwrap(), [200 * 199 / 2; 2048]);
            (backend.first().ops(), backend.host_bytes())
        };
        let (ops, _) = run(u64::MAX);
        let downloads = ops.iter().find(|op| op.name == "download").unwrap().cpu;
        assert!((20..60).contains(&downloads), "{downloads} downloads");
        for at in [3, 100, 255, 256, 257, 420] {
            run(at);
        }
    }
}

/// Uploads that are in use do not count against a lineage: a key serves any number of operations without downloads.
#[test]
fn what_is_in_use_is_not_downloaded() {
    let limits = FallbackLimits { chain: 64, kept_bytes: 0 };
    let backend = FallbackBackend::with_limits(CpuBackend::new(None), CpuBackend::new(None), limits);
    let ring = ring(32, 2);
    let shape = Shape { polys: 1, limbs: 2 };
    let (x, key) = (backend.upload(&[1; 64]).unwrap(), backend.upload(&[2; 64]).unwrap());
    let mut sums = Vec::new();
    for _ in 0..50 {
        sums.push(backend.add(&ring, &x, &key, shape).unwrap());
    }
    assert!(backend.first().ops().iter().all(|op| op.name != "download"));
    assert_eq!(backend.host_bytes(), 2 * 256);
}

/// An encrypted matrix product: keys that live long, ciphertexts, weights, packing, the response.
#[test]
fn an_encrypted_product_survives_every_point_of_failure() {
    let params = ParameterSet::new(ParameterSpec {
        name: "test-4096",
        n: 4096,
        prime_bits: 27,
        data_limbs: 3,
        special_limbs: 1,
    })
    .unwrap();
    let t = ShareModulus::pow2(8).unwrap();
    let operand = OperandBound::Weights { max_abs: 3 };
    let spec = MatmulSpec { t, heads: 1, rows: 8, inner: vec![16], cols: 24, operand };
    let packing = CoefficientPacking::with_block(&params, &spec, 64, 8).unwrap();
    let rng = || SecureRng::from_seed([7; 32]);
    let mut client_rng = rng();
    let client = HeClient::generate(BfvContext::new(Arc::new(CpuBackend::new(None)), params.clone()), &mut client_rng);
    let public = client.public_key(&mut client_rng).unwrap();
    let galois = client.galois_keys(packing.block(), &mut client_rng).unwrap();
    let x: Vec<u64> = (0..8 * 16).map(|i| i % 256).collect();
    let w: Vec<i64> = (0..16 * 24).map(|i| i % 7 - 3).collect();
    let encrypted = client.encrypt_matrix(t, &packing.inputs()[0], &x, &mut client_rng).unwrap();
    let product = |backend: Arc<dyn Backend>| {
        let server = HeServer::new(BfvContext::new(backend, params.clone()), &public, Some(&galois)).unwrap();
        packing.multiply(&server, &[(&encrypted, &w)], &mut rng()).unwrap()
    };
    let expected = product(Arc::new(CpuBackend::new(None)));
    let share = client.decrypt_matrix(&packing, &expected.0).unwrap();
    for (at, (c, z)) in share.iter().zip(&expected.1).enumerate() {
        let terms = (0..16).map(|k| t.mul(x[at / 24 * 16 + k], t.from_signed(w[k * 24 + at % 24])));
        assert_eq!(t.add(*c, *z), terms.fold(0, |sum, term| t.add(sum, term)));
    }
    let whole = Failing::new(Failure::Loss, u64::MAX);
    let calls = whole.calls();
    assert!(product(Arc::new(FallbackBackend::new(whole, CpuBackend::new(None)))) == expected);
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls > 20, "{calls} calls");
    for at in 0..calls {
        for failure in [Failure::Loss, Failure::Memory] {
            let backend = Arc::new(guarded(failure, at));
            assert!(product(backend.clone()) == expected, "{failure:?} at call {at}");
            assert!(backend.degraded().is_some());
        }
    }
}
