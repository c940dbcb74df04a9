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
        ot::{BaseSender, CotReceiver, CotSender, FerretReceiver, FerretSender, LpnParams, PadShape, SilentStep},
        ot::{receiver_pads, sender_pads},
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
    let mut buffer = vec![0; tables_len(circuit, count).unwrap()];
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
    group
        .bench_function("garble", |b| b.iter(|| garbling.garble_into(black_box(&labels), count, &mut buffer).unwrap()));
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

/// Silent OT with base COTs by IKNP: every message is counted, and its bytes printed beside the time of either end.
fn silent_transfer(c: &mut Criterion) {
    let mut rng = ChaCha20Rng::seed_from_u64(10);
    for (name, params) in [("k = 2^16", LpnParams::N20), ("k = 2^19", LpnParams::N24)] {
        let (mut sender, mut receiver) = ot_pair();
        let (matrix, t) = receiver.extend_random(params.base_cots(), &mut rng).unwrap();
        let q = sender.extend_random(&matrix, params.base_cots()).unwrap();
        let (mut sender, mut receiver) = (FerretSender::new(Block(11), q), FerretReceiver::new(Block(11), t));
        let step = SilentStep { params, keep: params.base_cots() };
        let (made, mut bytes) = (step.outputs() as f64, matrix.len());

        let mut group = c.benchmark_group(format!("silent ot, {name}"));
        group.throughput(Throughput::Elements(step.outputs() as u64));
        // The ends have to stay in step, so each is timed within both.
        let (mut steps, mut times) = (0, [0.0; 2]);
        group.bench_function("both ends, one after the other", |b| {
            b.iter(|| {
                let start = std::time::Instant::now();
                let (message, q) = sender.extend(step, &mut rng).unwrap();
                let middle = std::time::Instant::now();
                let t = receiver.extend(step, &message).unwrap();
                times[0] += (middle - start).as_secs_f64();
                times[1] += middle.elapsed().as_secs_f64();
                bytes += message.len();
                steps += 1;
                (q, t)
            });
        });
        group.finish();
        let [send, receive] = times.map(|t| f64::from(steps) * made / t / 1e6);
        println!("silent ot, {name}: sender {send:.1} M COT/s, receiver {receive:.1} M COT/s");
        let (step_bytes, base) = (step.message_len() as f64 / made, matrix.len());
        let amortised = bytes as f64 / (f64::from(steps) * made);
        println!(
            "  {step_bytes:.3} B/COT a step; {base} B once; {amortised:.3} B/COT over all {steps} steps of this run"
        );
    }
}

fn pads(c: &mut Criterion) {
    let mut group = c.benchmark_group("1-of-N OT pads, 4096 instances");
    let count = 4096;
    group.throughput(Throughput::Elements(count as u64));
    for (k, bits) in [(1, 32), (4, 2), (6, 16), (8, 32)] {
        let shape = PadShape::new(k, bits).unwrap();
        let (mut sender, mut receiver) = ot_pair();
        let mut rng = ChaCha20Rng::seed_from_u64(12);
        let mut pools = || {
            let (matrix, t) = receiver.extend_random(shape.cots(count).unwrap(), &mut rng).unwrap();
            (sender.extend_random(&matrix, shape.cots(count).unwrap()).unwrap(), t)
        };
        let name = format!("{} entries of {bits} bits", shape.entries());
        group.bench_function(format!("{name}, sender"), |b| {
            b.iter_batched(
                &mut pools,
                |(mut q, _)| sender_pads(&mut q, Block(13), shape, count).unwrap(),
                criterion::BatchSize::LargeInput,
            );
        });
        group.bench_function(format!("{name}, receiver"), |b| {
            b.iter_batched(
                &mut pools,
                |(_, mut t)| receiver_pads(&mut t, Block(13), shape, count).unwrap(),
                criterion::BatchSize::LargeInput,
            );
        });
    }
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
    targets = aes, half_gates, oblivious_transfer, silent_transfer, pads, products_of_shares
}
criterion_main!(benches);
