//! How many launches each operation takes, whatever the batch.

use heliostat::engine::{
    Backend, ExpandShape, GemmShape, KeySwitchShape, RingGemmShape, RingOperand, Rotation, Shape,
    gpu::{GemmForm, GpuBackend, GpuOptions},
};

use crate::{open, oracle::Random, ring};

/// Launches of `f`.
fn launches(backend: &GpuBackend, f: impl FnOnce()) -> u64 {
    let before = backend.dispatches();
    f();
    backend.dispatches() - before
}

/// One launch a transform, and two where a workgroup does not hold a polynomial: here N = 512 in blocks of 256, as 65536 in
/// blocks of 4096 or 8192.
#[test]
fn launches_do_not_grow_with_the_batch() {
    for (workgroup_memory, transforms) in [(None, 1), (Some(1024), 2)] {
        let backend = open(&GpuOptions { workgroup_memory, gemm: Some(GemmForm::Wide), ..GpuOptions::default() });
        let ring = ring(512, 30, 6);
        let mut random = Random(1);
        let keys = backend.upload(&random.batch(&ring, Shape { polys: 3 * 10, limbs: 6 })).unwrap();
        let key = backend.upload(&random.batch(&ring, Shape { polys: 10, limbs: 6 })).unwrap();
        for polys in [1, 9] {
            let x = backend.upload(&random.batch(&ring, Shape { polys: 2 * polys, limbs: 5 })).unwrap();
            let shape = Shape { polys: 2 * polys, limbs: 5 };
            let count = |f: &dyn Fn()| launches(&backend, f);
            let switch = KeySwitchShape::full(&ring, 2 * polys);
            let hybrid = KeySwitchShape { polys, limbs: 4, special: 2, digit_limbs: 2 };
            assert_eq!(count(&|| drop(backend.ntt_forward(&ring, &x, shape).unwrap())), transforms);
            assert_eq!(count(&|| drop(backend.ntt_inverse(&ring, &x, shape).unwrap())), transforms);
            assert_eq!(count(&|| drop(backend.key_switch(&ring, &x, switch, &key).unwrap())), 2 + 2 * transforms);
            assert_eq!(count(&|| drop(backend.automorphism_ntt(&ring, &x, shape, 3).unwrap())), 1);
            assert_eq!(count(&|| drop(backend.mod_switch(&ring, &x, shape, 1).unwrap())), 1);
            assert_eq!(count(&|| drop(backend.base_convert(&ring, &x, 2 * polys, 0..5, 0..6).unwrap())), 1);
            let items: Vec<_> = (0..polys).rev().map(|i| Some((0, i))).collect();
            assert_eq!(count(&|| drop(backend.gather(&[&x], 5 * 512, &items).unwrap())), 0);

            // Rotations: many of one input, one of each input, inputs that nothing reads.
            let rotation = |input, element, key| Rotation { input, element, key };
            let full = KeySwitchShape::full(&ring, polys);
            for rotations in [
                (0..40).map(|i| rotation(0, 2 * i + 1, i % 3)).collect::<Vec<_>>(),
                (0..polys).map(|i| rotation(i, 257, 1)).collect(),
                (0..polys).step_by(3).map(|i| rotation(i, 5, i % 3)).collect(),
            ] {
                let run = || drop(backend.rotate(&ring, &x, full, &keys, &rotations).unwrap());
                assert_eq!(count(&run), 2 + 2 * transforms);
            }
            let data = backend.upload(&random.batch(&ring, Shape { polys, limbs: 4 })).unwrap();
            let hybrid_key = backend.upload(&random.batch(&ring, Shape { polys: 4, limbs: 6 })).unwrap();
            let run = || drop(backend.key_switch(&ring, &data, hybrid, &hybrid_key).unwrap());
            assert_eq!(count(&run), 2 + 2 * transforms);

            let gemm = GemmShape { inputs: polys, outputs: 30, polys: 2, limbs: 5 };
            let weights = backend.upload(&vec![7; 15 * polys]).unwrap();
            assert_eq!(count(&|| drop(backend.modular_gemm(&ring, &x, &weights, gemm).unwrap())), 1);
            let product = RingGemmShape { bits: 40, batch: polys, rows: 2, inner: 6, cols: 3 };
            let (a, b) = (backend.upload(&vec![1; polys * 24]).unwrap(), backend.upload(&vec![2; polys * 9]).unwrap());
            assert_eq!(count(&|| drop(backend.ring_gemm(&a, &b, RingOperand::Small, product).unwrap())), 1);
            let matrix = backend.upload(&vec![3; 64 * 12 / 2]).unwrap();
            // 64 coefficients at most: three stages are left out, the streamed one among them.
            let (inner, cols, block, columns) = (64, 12, 16, 4);
            let tile = ExpandShape { inner, cols, block, columns, limbs: 6, outputs: 0..3, inputs: 0..polys.min(4) };
            assert_eq!(count(&|| drop(backend.expand_matrix(&ring, &matrix, &tile).unwrap())), 1);
        }
    }
}
