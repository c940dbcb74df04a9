//! Every operation of the engine on the CPU backend: `cargo bench -p kernels-bench --bench engine`.
#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "a bench may fail")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heliostat::engine::{Backend, cpu::CpuBackend};
use kernels_bench::{
    cost,
    operands::Prepared,
    suite::{Scale, cases},
};

fn operations(c: &mut Criterion) {
    let backend = CpuBackend::new(None);
    let scale = Scale { dimensions: vec![4096, 8192], limbs: 5, words: 1 << 18, sweeps: false };
    for case in cases(&scale) {
        let prepared = Prepared::new(&case).unwrap();
        let inputs = prepared.upload(&backend).unwrap();
        assert!(prepared.verify(&backend, &inputs).unwrap(), "{case:?}");
        let mut group = c.benchmark_group(case.kernel.name());
        group.throughput(Throughput::Bytes(cost::of(&case).bytes as u64));
        let size = case.size().map(|size| format!(", {size}")).unwrap_or_default();
        let id = BenchmarkId::from_parameter(format!("N {}, {} limbs, batch {}{size}", case.n, case.limbs, case.batch));
        group.bench_function(id, |b| b.iter(|| prepared.run(&backend, black_box(&inputs)).unwrap()));
        group.finish();
    }
    black_box(backend.ops());
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = operations
}
criterion_main!(benches);
