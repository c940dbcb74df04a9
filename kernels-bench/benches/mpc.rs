//! Two-party computation: AES, half-gates, oblivious transfer, products. `cargo bench -p kernels-bench --bench mpc`.
#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "a bench may fail")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use heliostat::{
    arith::ShareModulus,
    mpc::{
        block::Block,
        garble::{
            Gadget,
            half_gates::{Garbling, GateKey, LabelSeed, evaluate_chunk, tables_len},
        },
        ot::{BaseSender, CotReceiver, CotSender},
        prg::{CrHash, Prg},
        shared::{ProductShape, gilboa},
    },
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

fn blocks(seed: u64, count: usize) -> Vec<Block> {
    let mut out = vec![Block::ZERO; count];
    Prg::new(Block(u128::from(seed))).fill_blocks(&mut out);
    out
}

fn delta() -> Block {
    blocks(1, 1)[0].with_lsb_set()
}

fn aes(c: &mut Criterion) {
    let mut group = c.benchmark_group("aes");
    let mut x = blocks(2, 1 << 14);
    group.throughput(Throughput::Elements(x.len() as u64));
    let mut prg = Prg::new(Block(3));
    group.bench_function("prg blocks", |b| b.iter(|| prg.fill_blocks(black_box(&mut x))));
    let hash = CrHash::derive(Block(4), 0);
    group.bench_function("hash blocks", |b| b.iter(|| hash.hash_in_place(black_box(&mut x), |i| i as u64)));
    group.finish();
}

fn half_gates(c: &mut Criterion) {
    let ring = ShareModulus::pow2(32).unwrap();
    let gadget = Gadget::truncate(ring, 12, ring).unwrap();
    let (circuit, count) = (gadget.circuit(), 1024);
    let key = GateKey { session: Block(5), node: 0, first_instance: 0 };
    let (own, evaluator) =
        (vec![0; (count * circuit.garbler_inputs()).div_ceil(8)], count * circuit.evaluator_inputs());
    let labels = blocks(6, evaluator);
    let garbling = Garbling::new(circuit, delta(), key, &LabelSeed::new(Block(7))).unwrap();
    let garbler_labels = garbling.garbler_labels(&own, count).unwrap();
    let tables = garbling.garble_chunk(&labels, count).unwrap().tables;
    assert_eq!(tables.len(), tables_len(circuit, count).unwrap());

    let mut group = c.benchmark_group("half-gates of 1024 truncations");
    group.throughput(Throughput::Elements((count * circuit.and_count()) as u64));
    group.bench_function("garble", |b| b.iter(|| garbling.garble_chunk(black_box(&labels), count).unwrap().tables));
    group.bench_function("evaluate", |b| {
        b.iter(|| evaluate_chunk(circuit, key, black_box(&tables), &labels, &garbler_labels, count).unwrap());
    });
    group.finish();
}

/// Both ends after the base OTs.
fn ot_pair() -> (CotSender, CotReceiver) {
    let mut rng = ChaCha20Rng::seed_from_u64(8);
    let (base, opening) = BaseSender::new(b"bench", &mut rng);
    let (sender, reply) = CotSender::set_up(b"bench", delta(), &opening, &mut rng).unwrap();
    (sender, CotReceiver::set_up(base, &reply).unwrap())
}

fn oblivious_transfer(c: &mut Criterion) {
    let mut group = c.benchmark_group("ot");
    group.bench_function("128 base OTs", |b| b.iter(ot_pair));
    let count = 1 << 16;
    let choices = vec![0b1010_0110; count / 8];
    group.throughput(Throughput::Elements(count as u64));
    let (mut sender, mut receiver) = ot_pair();
    group.bench_function("IKNP, both ends", |b| {
        b.iter(|| {
            let (message, t) = receiver.extend(black_box(&choices), count).unwrap();
            (sender.extend(&message, count).unwrap(), t)
        });
    });
    group.finish();
}

fn products_of_shares(c: &mut Criterion) {
    let shape = ProductShape::new(256, 16, ShareModulus::pow2(32).unwrap()).unwrap();
    let x: Vec<u64> = (0..256u64).map(|i| i.wrapping_mul(0x9e37_79b9) & 0xffff_ffff).collect();
    let y = vec![0x1234_5678; 256 * 16];
    let choices = gilboa::choice_bits(&x, shape.modulus());
    let (mut sender, mut receiver) = ot_pair();
    let (message, t) = receiver.extend(&choices, shape.ots()).unwrap();
    let q = sender.extend(&message, shape.ots()).unwrap();
    let hash = CrHash::derive(Block(9), 0);
    let (message, _) = gilboa::send(&shape, &hash, delta(), &q, &y).unwrap();

    let mut group = c.benchmark_group("products of 256 scalars and vectors of 16");
    group.throughput(Throughput::Elements((shape.rows() * shape.width()) as u64));
    group.bench_function("send", |b| {
        b.iter(|| gilboa::send(&shape, &hash, delta(), black_box(&q), &y).unwrap());
    });
    group.bench_function("receive", |b| {
        b.iter(|| gilboa::receive(&shape, &hash, &t, &choices, black_box(&message)).unwrap());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = aes, half_gates, oblivious_transfer, products_of_shares
}
criterion_main!(benches);
