//! The GPU backend against the laws of the engine and against the CPU, on the first Vulkan adapter (lavapipe will do).

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "gpu/device.rs"]
mod device;
#[path = "gpu/dispatches.rs"]
mod dispatches;
#[path = "laws/oracle.rs"]
mod oracle;
#[path = "laws/suite/mod.rs"]
mod suite;

use std::sync::Arc;

use heliostat::{
    arith::primes::ntt_primes,
    engine::{
        Backend, DualBackend, EngineError, ExpandShape, KeySwitchShape, MatmulShape, RnsRing, Rotation, Shape,
        cpu::CpuBackend,
        gpu::{GemmForm, GpuBackend, GpuOptions, ProductForm, adapters},
    },
};

use crate::{
    oracle::Random,
    suite::{hybrid_laws, laws, laws_in},
};

fn open(options: &GpuOptions) -> GpuBackend {
    assert!(!adapters().is_empty(), "no Vulkan adapter: install mesa-vulkan-drivers and libvulkan1");
    GpuBackend::open(0, options).unwrap()
}

fn options(form: ProductForm, checked: bool) -> GpuOptions {
    GpuOptions { form: Some(form), checked, ..GpuOptions::default() }
}

fn ring(n: usize, bits: u32, limbs: usize) -> Arc<RnsRing> {
    Arc::new(RnsRing::new(n, &ntt_primes(bits, n, limbs).unwrap()).unwrap())
}

/// Rings for the forms that do not get the whole suite: both butterfly layouts, one and several limbs, N = 8.
fn small_rings() -> Vec<Arc<RnsRing>> {
    let far_apart = [ntt_primes(30, 64, 1).unwrap(), ntt_primes(14, 64, 1).unwrap(), ntt_primes(20, 64, 1).unwrap()];
    vec![
        ring(8, 30, 3),
        ring(16, 20, 1),
        ring(32, 30, 4),
        Arc::new(RnsRing::new(64, &far_apart.concat()).unwrap()),
        ring(512, 27, 2),
    ]
}

#[test]
fn laws_hold_with_64_bit_integers_unchecked() {
    laws(&open(&GpuOptions { gemm: Some(GemmForm::Dot), ..options(ProductForm::U64, false) }));
}

#[test]
fn laws_hold_with_64_bit_integers_checked() {
    let backend = open(&GpuOptions { gemm: Some(GemmForm::Wide), ..options(ProductForm::U64, true) });
    small_rings().iter().for_each(|ring| laws_in(&backend, ring));
}

#[test]
fn laws_hold_with_split_products_unchecked() {
    let backend = open(&GpuOptions { gemm: Some(GemmForm::Wide), ..options(ProductForm::Split16, false) });
    small_rings().iter().for_each(|ring| laws_in(&backend, ring));
    laws_in(&backend, &ring(1024, 30, 3));
    hybrid_laws(&backend);
}

#[test]
fn laws_hold_with_split_products_checked_and_uniform_buffers() {
    let backend =
        open(&GpuOptions { immediates: false, gemm: Some(GemmForm::Dot), ..options(ProductForm::Split16, true) });
    small_rings().iter().for_each(|ring| laws_in(&backend, ring));
}

/// 1 KiB of workgroup memory leaves the first stages of N = 512 and up to the streaming kernel, and 64 bytes four more.
#[test]
fn laws_hold_with_little_workgroup_memory() {
    for bytes in [1024, 64] {
        let backend = open(&GpuOptions { workgroup_memory: Some(bytes), ..GpuOptions::default() });
        laws_in(&backend, &ring(64, 30, 2));
        laws_in(&backend, &ring(512, 30, 3));
    }
}

/// Every batch exceeds what a kernel may see: each operation runs in parts.
#[test]
fn laws_hold_when_batches_are_split() {
    let ring = ring(64, 30, 3);
    // The key of a ring with two data limbs has 12 N words; a quarter more leaves parts uneven.
    let backend = open(&GpuOptions { binding_bytes: Some(4 * 15 * 64), ..GpuOptions::default() });
    laws_in(&backend, &ring);
    // A product whose one group, and whose one output, are too large.
    let cpu = CpuBackend::new(None);
    let mut random = Random(3);
    for (inputs, outputs) in [(3, 9), (21, 3)] {
        let shape = MatmulShape { groups: 2, inputs, outputs, limbs: 2 };
        let ct = random.batch(&ring, Shape { polys: 2 * inputs * 2, limbs: 2 });
        let plain = random.batch(&ring, Shape { polys: 2 * inputs * outputs, limbs: 2 });
        let run = |backend: &dyn Backend| {
            let (ct, plain) = (backend.upload(&ct).unwrap(), backend.upload(&plain).unwrap());
            backend.download(&backend.matmul_plain(&ring, &ct, &plain, shape).unwrap()).unwrap()
        };
        assert_eq!(run(&backend), run(&cpu), "{shape:?}");
    }
}

#[test]
fn what_cannot_be_split_is_an_error_that_says_so() {
    let backend = open(&GpuOptions { binding_bytes: Some(4 * 64), ..GpuOptions::default() });
    let ring = ring(64, 30, 3);
    let shape = Shape { polys: 2, limbs: 3 };
    let x = backend.upload(&vec![1; 6 * 64]).unwrap();
    for result in [
        backend.ntt_forward(&ring, &x, shape),
        backend.add(&ring, &x, &x, shape),
        backend.mod_switch(&ring, &x, shape, 1),
        backend.matmul_plain(&ring, &x, &x, MatmulShape { groups: 1, inputs: 1, outputs: 2, limbs: 3 }),
    ] {
        match result {
            Err(EngineError::Unsupported { what, .. }) => assert!(what.contains("storage bindings"), "{what}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn gpu_and_cpu_agree_word_by_word() {
    let backend = DualBackend::new(open(&GpuOptions::default()), CpuBackend::new(None));
    small_rings().iter().for_each(|ring| laws_in(&backend, ring));
    let info = backend.info();
    assert_eq!(info.kind, "dual");
    for count in backend.ops() {
        assert_eq!(count.gpu, count.cpu, "{}", count.name);
        assert!(count.compared > 0, "{} is never compared", count.name);
    }
}

#[test]
fn grids_beyond_one_dimension_are_folded() {
    let backend = DualBackend::new(open(&GpuOptions::default()), CpuBackend::new(None));
    // One workgroup a row: 70002 of them, more than 65535.
    let (ring, shape) = (ring(16, 30, 2), Shape { polys: 35_001, limbs: 2 });
    let x = Random(5).batch(&ring, shape);
    let there = backend.ntt_forward(&ring, &backend.upload(&x).unwrap(), shape).unwrap();
    let back = backend.ntt_inverse(&ring, &there, shape).unwrap();
    assert_eq!(backend.download(&back).unwrap(), x);
}

/// Every dimension, in workgroups of 4096 words (what every adapter has) and in the largest that this one has.
#[test]
fn transforms_of_every_dimension_agree_with_the_cpu() {
    for workgroup_memory in [Some(16384), None] {
        let gpu = open(&GpuOptions { workgroup_memory, ..GpuOptions::default() });
        let backend = DualBackend::new(gpu, CpuBackend::new(None));
        for log_n in 3..=16 {
            let (ring, shape) = (ring(1 << log_n, 30, 2), Shape { polys: 1, limbs: 2 });
            let x = Random(log_n).batch(&ring, shape);
            let there = backend.ntt_forward(&ring, &backend.upload(&x).unwrap(), shape).unwrap();
            let back = backend.ntt_inverse(&ring, &there, shape).unwrap();
            assert_eq!(backend.download(&back).unwrap(), x, "N = {}", ring.n());
        }
    }
}

#[test]
fn one_backend_serves_many_threads() {
    let backend = open(&GpuOptions::default());
    let ring = ring(256, 30, 2);
    let shape = Shape { polys: 3, limbs: 2 };
    std::thread::scope(|scope| {
        for k in 0..4 {
            let (backend, ring) = (&backend, &ring);
            scope.spawn(move || {
                for round in 0..8 {
                    let x = vec![k + round; 3 * 2 * 256];
                    let there = backend.ntt_forward(ring, &backend.upload(&x).unwrap(), shape).unwrap();
                    let sum = backend.add(ring, &there, &there, shape).unwrap();
                    let back = backend.download(&backend.ntt_inverse(ring, &sum, shape).unwrap()).unwrap();
                    assert!(back.iter().all(|&word| word == 2 * (k + round)));
                }
            });
        }
    });
}

#[test]
fn more_rings_than_the_cache_keeps() {
    let backend = open(&GpuOptions::default());
    let x = backend.upload(&[3; 32]).unwrap();
    let shape = Shape { polys: 1, limbs: 1 };
    let first = ring(32, 20, 1);
    for _ in 0..20 {
        let other = ring(32, 30, 1);
        for ring in [&first, &other] {
            let back = backend.ntt_inverse(ring, &backend.ntt_forward(ring, &x, shape).unwrap(), shape).unwrap();
            assert_eq!(backend.download(&back).unwrap(), [3; 32]);
        }
    }
}

/// As many limbs as there may be in a digit, and N = 65536, for the operations that have more than one kernel.
#[test]
fn many_limbs_and_large_rings_agree_with_the_cpu() {
    let backend = DualBackend::new(open(&GpuOptions::default()), CpuBackend::new(None));
    let wide = ring(64, 30, 32);
    let x = backend.upload(&Random(6).batch(&wide, Shape { polys: 2, limbs: 32 })).unwrap();
    let there = backend.ntt_forward(&wide, &x, Shape { polys: 2, limbs: 32 }).unwrap();
    backend.ntt_inverse(&wide, &there, Shape { polys: 2, limbs: 32 }).unwrap();
    backend.base_convert(&wide, &x, 2, 0..32, 0..32).unwrap();
    backend.mod_switch(&wide, &x, Shape { polys: 2, limbs: 32 }, 2).unwrap();
    let data = backend.upload(&Random(7).batch(&wide, Shape { polys: 2, limbs: 20 })).unwrap();
    let key = backend.upload(&Random(8).batch(&wide, Shape { polys: 4, limbs: 32 })).unwrap();
    let shape = KeySwitchShape { polys: 2, limbs: 20, special: 12, digit_limbs: 12 };
    backend.key_switch(&wide, &data, shape, &key).unwrap();

    let large = ring(65536, 30, 2);
    let weights = backend.upload(&[0x7fff_8000; 1000]).unwrap();
    for (block, columns) in [(8, 16), (128, 512), (8, 8192 / 8), (1, 3)] {
        let tile = ExpandShape { inner: 40, cols: 50, block, columns, limbs: 2, outputs: 0..1, inputs: 0..1 };
        backend.expand_matrix(&large, &weights, &tile).unwrap();
    }
    let x = backend.upload(&Random(9).batch(&large, Shape { polys: 2, limbs: 1 })).unwrap();
    let key = backend.upload(&Random(10).uniform(&large, Shape { polys: 2, limbs: 2 })).unwrap();
    let rotation = Rotation { input: 0, element: 3, key: 0 };
    backend.rotate(&large, &x, KeySwitchShape::full(&large, 1), &key, &[rotation]).unwrap();
}

#[test]
fn a_buffer_of_another_device_is_refused() {
    let (one, other) = (open(&GpuOptions::default()), open(&GpuOptions::default()));
    let x = one.upload(&[1, 2]).unwrap();
    assert!(matches!(other.download(&x), Err(EngineError::Shape { operation: "download", .. })));
    assert!(matches!(GpuBackend::open(1000, &GpuOptions::default()), Err(EngineError::NoAdapter { .. })));
}
