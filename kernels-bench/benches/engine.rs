//! Operations of the engine on the CPU backend: `cargo bench -p kernels-bench --bench engine`.
#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "a bench may fail")]

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heliostat::{
    arith::primes::ntt_primes,
    engine::{Backend, Buffer, KeySwitchShape, MatmulShape, RnsRing, Shape, cpu::CpuBackend},
};

fn ring(n: usize, bits: u32, limbs: usize) -> Arc<RnsRing> {
    Arc::new(RnsRing::new(n, &ntt_primes(bits, n, limbs).unwrap()).unwrap())
}

/// Residues below every modulus in use (those are over `2^26`).
fn batch(backend: &CpuBackend, words: usize) -> Buffer {
    let x: Vec<u32> = (0..words as u32).map(|i| i.wrapping_mul(0x9e37_79b9) >> 6).collect();
    backend.upload(&x).unwrap()
}

fn transforms(c: &mut Criterion) {
    let backend = CpuBackend::new(None);
    let mut group = c.benchmark_group("ntt");
    for (n, bits, limbs) in [(4096, 27, 4), (8192, 30, 6)] {
        let (ring, shape) = (ring(n, bits, limbs), Shape { polys: 8, limbs });
        let x = batch(&backend, shape.polys * limbs * n);
        group.throughput(Throughput::Elements((shape.polys * limbs) as u64));
        let bench = |name| BenchmarkId::new(name, format!("{n}x{limbs}"));
        group
            .bench_function(bench("forward"), |b| b.iter(|| backend.ntt_forward(&ring, black_box(&x), shape).unwrap()));
        group
            .bench_function(bench("inverse"), |b| b.iter(|| backend.ntt_inverse(&ring, black_box(&x), shape).unwrap()));
    }
    group.finish();
}

fn products(c: &mut Criterion) {
    let backend = CpuBackend::new(None);
    let (n, limbs) = (8192, 5);
    let ring = ring(n, 30, limbs + 1);
    let mut group = c.benchmark_group("products");

    let shape = Shape { polys: 16, limbs };
    let (a, b) = (batch(&backend, shape.polys * limbs * n), batch(&backend, shape.polys * limbs * n));
    group.bench_function("mul", |bench| bench.iter(|| backend.mul(&ring, black_box(&a), &b, shape).unwrap()));

    let product = MatmulShape { groups: 1, inputs: 2, outputs: 16, limbs };
    let (ct, plain) = (batch(&backend, 2 * 2 * limbs * n), batch(&backend, 2 * 16 * limbs * n));
    let id = "matmul_plain 2->16";
    group.bench_function(id, |bench| {
        bench.iter(|| backend.matmul_plain(&ring, black_box(&ct), &plain, product).unwrap())
    });

    let polys = 4;
    let (x, key) = (batch(&backend, polys * limbs * n), batch(&backend, limbs * 2 * (limbs + 1) * n));
    let id = "key_switch of 4";
    group.bench_function(id, |bench| {
        bench.iter(|| backend.key_switch(&ring, black_box(&x), KeySwitchShape::full(&ring, polys), &key).unwrap())
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = transforms, products
}
criterion_main!(benches);
