//! Two parties driven in memory, and the checks that every function of shares must pass.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;
use crate::arith::ShareModulus;
use crate::arith::fixed::{Activation, ActivationTable, ExpTable, PowerTable, RowPower, TanhTable, round_shift};
use crate::mpc::block::Block;
use crate::mpc::ot::{CotReceiverPool, CotSenderPool, deal};
use crate::mpc::prg::Prg;

/// What a run sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    pub up: usize,
    pub down: usize,
    pub rounds: usize,
    /// Lengths of all messages, in order, of each direction.
    pub sizes: [Vec<usize>; 2],
}

/// Drives both tasks; the clock of a message is one more than its sender's when it left.
pub(super) fn drive<A, B>(client: &mut Task<A>, server: &mut Task<B>) -> Result<(A, B, Measured), SharedError> {
    let mut measured = Measured::default();
    let mut queues: [VecDeque<(usize, Vec<u8>)>; 2] = Default::default();
    let mut clocks = [0usize; 2];
    let (mut a, mut b) = (None, None);
    let mut waiting = [false; 2];
    loop {
        let mut moved = false;
        for side in 0..2 {
            loop {
                if [a.is_some(), b.is_some()][side] {
                    break;
                }
                let mut incoming = None;
                if waiting[side] {
                    let Some((clock, message)) = queues[side].pop_front() else { break };
                    clocks[side] = clocks[side].max(clock);
                    incoming = Some(message);
                    waiting[side] = false;
                }
                moved = true;
                let sent = if side == 0 {
                    match client.resume(incoming)? {
                        Step::Send(m) => Some(m),
                        Step::Receive => {
                            waiting[0] = true;
                            None
                        }
                        Step::Done(x) => {
                            a = Some(x);
                            None
                        }
                    }
                } else {
                    match server.resume(incoming)? {
                        Step::Send(m) => Some(m),
                        Step::Receive => {
                            waiting[1] = true;
                            None
                        }
                        Step::Done(x) => {
                            b = Some(x);
                            None
                        }
                    }
                };
                if let Some(message) = sent {
                    measured.sizes[side].push(message.len());
                    if side == 0 {
                        measured.up += message.len();
                    } else {
                        measured.down += message.len();
                    }
                    measured.rounds = measured.rounds.max(clocks[side] + 1);
                    queues[1 - side].push_back((clocks[side] + 1, message));
                }
            }
        }
        if a.is_some() && b.is_some() {
            break;
        }
        assert!(moved, "deadlock");
    }
    assert!(queues.iter().all(VecDeque::is_empty), "messages left over");
    Ok((a.unwrap(), b.unwrap(), measured))
}

pub(super) fn random(count: usize, bits: u32, seed: u64) -> Vec<u64> {
    let mut x = vec![0; count];
    Prg::new(Block(u128::from(seed) << 20 | 0x51)).fill_u64(&mut x);
    x.iter_mut().for_each(|x| *x &= u64::MAX >> (64 - bits));
    x
}

pub(super) type Trace = Arc<Mutex<Vec<Vec<u64>>>>;

/// Both parties with exactly the COTs that are given, and the client's trace.
pub(super) fn parties(cots: Cots, seed: u64) -> (Party, Party, Trace) {
    let (client_sender, server_receiver): (CotSenderPool, CotReceiverPool) = deal(seed, cots.client_sends);
    let (server_sender, client_receiver) = deal(seed + 1, cots.server_sends);
    let session = Block(u128::from(seed) | 7 << 70);
    let client = Party::new(Role::Client, client_sender, client_receiver, session, 3, 1);
    let server = Party::new(Role::Server, server_sender, server_receiver, session, 3, 1);
    let trace = client.trace.clone();
    (client, server, trace)
}

/// Runs a function on shares of `x` and checks everything that holds for all functions: the client's share is its mask,
/// the sum is the simulator's, cost as declared. Returns the results and what was sent.
pub(super) fn run(
    f: &SharedFunction,
    rings: (u32, u32),
    client: &[u64],
    server: &[u64],
    seed: u64,
) -> (Vec<u64>, Measured) {
    let count = client.len();
    let cost = f.cost(count).unwrap();
    let rho = random(count, rings.1, seed + 77);
    let (a, b, trace) = parties(cost.cots, seed);
    let mut client_task = f.client(a, client.to_vec(), rho.clone()).unwrap();
    let mut server_task = f.server(b, server.to_vec()).unwrap();
    let ((), y_server, measured) = drive(&mut client_task, &mut server_task).unwrap();
    // The pools held exactly the declared COTs; were there some left, a count one lower would do.
    for fewer in [
        Cots { client_sends: cost.cots.client_sends.wrapping_sub(1), ..cost.cots },
        Cots { server_sends: cost.cots.server_sends.wrapping_sub(1), ..cost.cots },
    ] {
        if count > 0 && count <= 600 && fewer.client_sends != usize::MAX && fewer.server_sends != usize::MAX {
            let (a, b, _) = parties(fewer, seed);
            let mut a = f.client(a, client.to_vec(), rho.clone()).unwrap();
            let mut b = f.server(b, server.to_vec()).unwrap();
            assert!(matches!(drive(&mut a, &mut b), Err(SharedError::Ot(_))), "fewer COTs than declared suffice");
        }
    }
    assert_eq!((measured.up, measured.down), (cost.up, cost.down));
    assert_eq!(measured.rounds, cost.rounds);
    if count > 0 {
        assert_eq!(f.rounds(), cost.rounds);
    }
    let mask = u64::MAX >> (64 - rings.1);
    assert!(y_server.iter().all(|y| y & !mask == 0));
    let y: Vec<u64> = y_server.iter().zip(&rho).map(|(s, c)| s.wrapping_add(*c) & mask).collect();
    let mut coins = Coins::recorded(std::mem::take(&mut trace.lock().unwrap()));
    let simulated = f.simulate(client, server, &mut coins).unwrap();
    for i in 0..count {
        assert_eq!(y[i], simulated[i], "element {i}: shares {:x} and {:x}", client[i], server[i]);
    }
    assert!(client_task.resume(None).is_err() && server_task.resume(None).is_err());
    (y, measured)
}

/// Shares of each value: random ones, and with the client's 0, all ones, half the ring.
pub(super) fn split(values: &[i64], bits: u32, seed: u64) -> (Vec<u64>, Vec<u64>) {
    let mask = u64::MAX >> (64 - bits);
    let mut client = random(values.len(), bits, seed);
    for (i, c) in client.iter_mut().enumerate() {
        match i % 7 {
            0 => *c = 0,
            2 => *c = mask,
            4 => *c = 1 << (bits - 1),
            _ => {}
        }
    }
    client.rotate_right(seed as usize % values.len().max(1));
    let server = values.iter().zip(&client).map(|(&v, &c)| (v as u64).wrapping_sub(c) & mask).collect();
    (client, server)
}

pub(super) fn signed(x: u64, bits: u32) -> i64 {
    ShareModulus::pow2(bits).unwrap().to_signed(x)
}

pub(super) fn ring(bits: u32) -> ShareModulus {
    ShareModulus::pow2(bits).unwrap()
}

/// Values over all magnitudes below `2^log2` of both signs, with the edges.
pub(super) fn spread(log2: u32, count: usize, seed: u64) -> Vec<i64> {
    let limit = 1i64 << log2;
    let mut values: Vec<i64> = vec![0, 1, -1, 2, -2, limit - 1, -limit, limit / 2, -limit / 2];
    for (i, r) in random(count, 63, seed).into_iter().enumerate() {
        let v = (r as i64) & (limit - 1) >> (i as u32 % log2.max(1));
        values.push(if i % 2 == 0 { v } else { v.wrapping_neg() });
    }
    values.retain(|v| (-limit..limit).contains(v));
    values
}

#[test]
fn truncation_is_the_simulators_and_off_by_one_at_most() {
    for (input, output, shift) in [
        (32, 32, 12),
        (32, 20, 12),
        (32, 21, 12),
        (30, 18, 12),
        (37, 26, 14),
        (26, 40, 12),
        (20, 33, 0),
        (33, 20, 0),
        (64, 64, 20),
        (64, 64, 0),
        (48, 64, 1),
        (64, 3, 60),
        (14, 30, 12),
    ] {
        let f = SharedFunction::truncate(shift, ring(input), ring(output)).unwrap();
        let values = spread(input - 2, 2000, u64::from(input));
        let (client, server) = split(&values, input, 5);
        let (y, _) = run(&f, (input, output), &client, &server, 9);
        for (i, &v) in values.iter().enumerate() {
            let exact = ring(output).from_signed(round_shift(i128::from(v), shift) as i64);
            let off = signed(ring(output).sub(y[i], exact), output);
            assert!(off.unsigned_abs() <= f.error_bound(), "{input} {output} {shift}: {v} gives {}", y[i]);
            assert!(shift > 0 || off == 0);
        }
    }
}

#[test]
fn truncation_rounds_without_bias() {
    let f = SharedFunction::truncate(8, ring(32), ring(32)).unwrap();
    let values = vec![1000; 4000];
    let server: Vec<u64> = random(4000, 32, 1);
    let client: Vec<u64> = server.iter().map(|s| 1000u64.wrapping_sub(*s) & 0xffff_ffff).collect();
    let y = f.simulate(&client, &server, &mut Coins::seeded(1)).unwrap();
    let mean = y.iter().sum::<u64>() as f64 / values.len() as f64;
    // 1000/256 = 3.906; the deviation of the mean is 0.005.
    assert!((mean - 1000.0 / 256.0).abs() < 0.03, "{mean}");
}

#[test]
fn known_sign_truncation_takes_under_eight_bytes() {
    let f = SharedFunction::truncate(12, ring(32), ring(32)).unwrap();
    let (client, server) = split(&vec![12345; 4096], 32, 3);
    let (_, measured) = run(&f, (32, 32), &client, &server, 1);
    let per = (measured.up + measured.down) as f64 / 4096.0;
    assert!(per < 8.0, "{per}");
    assert_eq!(f.cots(4096).unwrap().server_sends, 4096);
}

#[test]
fn sizes_do_not_depend_on_values() {
    let gelu = activation(Activation::Gelu, 22, 10, 6);
    let exp = ExpTable { in_frac: 18, frac_bits: 5, out_frac: 11 };
    let power = PowerTable::new(RowPower::Reciprocal, 1.0, 11, 16, 11, 16, 9, 12).unwrap();
    let tanh = TanhTable { in_frac: 22, out_frac: 10, range_log2: 2, table_bits: 9 };
    for (f, values) in [
        (SharedFunction::truncate(12, ring(32), ring(32)), [0, -1, 1 << 29]),
        (SharedFunction::activation(&gelu, ring(32), ring(32)), [0, -1, 1 << 29]),
        (SharedFunction::exp(&exp, 10, ring(32), ring(32)), [0, -1, 1 << 29]),
        (SharedFunction::power(&power, 1.0, 11, 16, ring(32), ring(32)), [1 << 11, 5555, 1 << 16]),
        (SharedFunction::tanh(&tanh, ring(32), ring(32)), [0, -1, 1 << 29]),
    ] {
        let f = f.unwrap();
        let runs = values.map(|v| {
            let (client, server) = split(&[v; 100], 32, v as u64 & 3);
            run(&f, (32, 32), &client, &server, 1).1
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
    }
}

#[test]
fn nothing_costs_nothing() {
    let f = SharedFunction::truncate(12, ring(32), ring(32)).unwrap();
    assert_eq!(f.cost(0).unwrap(), Cost::default());
    run(&f, (32, 32), &[], &[], 1);
}

#[test]
fn wrong_uses_are_refused() {
    let f = SharedFunction::truncate(12, ring(32), ring(32)).unwrap();
    assert!(SharedFunction::truncate(31, ring(32), ring(32)).is_err());
    assert!(SharedFunction::truncate(1, ShareModulus::PowerOfTwo(65), ring(32)).is_err());
    let cots = f.cots(8).unwrap();
    let (a, b, _) = parties(cots, 1);
    assert!(matches!(f.client(a, vec![0; 8], vec![0; 7]), Err(SharedError::Length { .. })));
    assert!(matches!(f.client(b, vec![0; 8], vec![0; 8]), Err(SharedError::Role)));
    // A message of another length, and one with dirty padding.
    let start = || {
        let mut task = f.server(parties(cots, 1).1, vec![0; 8]).unwrap();
        assert!(matches!(task.resume(None), Ok(Step::Send(_))));
        assert!(matches!(task.resume(None), Ok(Step::Receive)));
        task
    };
    assert!(matches!(start().resume(Some(vec![0; 2])), Err(SharedError::MessageLength { expected: 1, found: 2 })));
    let mut task = start();
    assert!(matches!(task.resume(Some(vec![0; 1])), Ok(Step::Receive)));
    assert!(task.resume(Some(vec![0; 31])).is_err());
    assert!(matches!(task.resume(None), Err(SharedError::Finished)));
    let f = SharedFunction::truncate(2, ring(10), ring(9)).unwrap();
    let mut task = f.server(parties(f.cots(3).unwrap(), 1).1, vec![0; 3]).unwrap();
    assert!(matches!(task.resume(None), Ok(Step::Send(_))));
    assert!(matches!(task.resume(Some(vec![0x80])), Err(SharedError::Packing(_))));
}

/// Runs the tasks of a gadget that is no function of its own.
pub(super) fn gadget<F, G>(
    client: Vec<u64>,
    server: Vec<u64>,
    cost: impl Fn(usize, &mut Cost) -> Result<(), SharedError>,
    body: G,
) -> (Vec<u64>, Vec<u64>, Measured)
where
    F: Future<Output = Result<Vec<u64>, SharedError>> + Send + 'static,
    G: Fn(Party, Vec<u64>) -> F,
{
    let mut declared = Cost::default();
    cost(client.len(), &mut declared).unwrap();
    let (a, b, _) = parties(declared.cots, 31);
    let mut a = Task::new(a, |party| body(party, client));
    let mut b = Task::new(b, |party| body(party, server));
    let (a, b, measured) = drive(&mut a, &mut b).unwrap();
    assert_eq!((measured.up, measured.down, measured.rounds), (declared.up, declared.down, declared.rounds));
    (a, b, measured)
}

#[test]
fn signs_are_right_and_take_under_sixty_bytes() {
    for ring in [2, 5, 6, 16, 17, 31, 32, 33, 48, 63] {
        let values = spread(ring - 1, 3000, u64::from(ring));
        let (client, server) = split(&values, ring, 4);
        let (a, b, measured) = gadget(
            client,
            server,
            |count, cost| logic::sign_cost(ring, count, cost),
            move |mut party, x| async move { Ok(logic::sign(&mut party, ring, &x).await?.to_vec()) },
        );
        for (i, v) in values.iter().enumerate() {
            assert_eq!((a[i] ^ b[i]) & 1, u64::from(*v < 0), "{ring} {v}");
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        assert!(ring > 33 || per < 60.0, "{per}");
        if ring == 33 {
            println!("32-bit comparison: {per:.1} bytes, {} flights", measured.rounds);
        }
    }
}

#[test]
fn selection_multiplies_by_a_shared_bit() {
    for ring in [1, 9, 32, 64] {
        let mask = u64::MAX >> (64 - ring);
        let (client, server) = (random(500, ring, 1), random(500, ring, 2));
        let bits = [random(500, 1, 3), random(500, 1, 4)];
        let own = bits.clone();
        let (a, b, _) = gadget(
            client.clone(),
            server.clone(),
            |count, cost| logic::mux_cost(count, &[ring], cost),
            move |mut party, x| {
                let bit = own[usize::from(party.role() == Role::Server)].clone();
                async move {
                    let y = logic::mux(&mut party, &[logic::Mux { bit: &bit, value: &x, ring }]).await?;
                    Ok(y[0].to_vec())
                }
            },
        );
        for i in 0..500 {
            let value = client[i].wrapping_add(server[i]) & mask;
            let bit = bits[0][i] ^ bits[1][i];
            assert_eq!(a[i].wrapping_add(b[i]) & mask, value * bit);
        }
    }
}

pub(super) fn activation(activation: Activation, in_frac: u32, out_frac: u32, table_bits: u32) -> ActivationTable {
    ActivationTable { activation, in_frac, out_frac, range_log2: 2, table_bits }
}

/// All of `[-2^log2, 2^log2)` in steps, and the neighbourhoods of 0 and of the ends of the table's range.
fn dense(log2: u32, frac: u32, steps: i64) -> Vec<i64> {
    let limit = 1i64 << log2;
    let mut values: Vec<i64> = (0..steps).map(|k| -limit + 2 * limit / steps * k + k % 7).collect();
    for centre in [0, 4 << frac, -4 << frac] {
        values.extend((-600..600).map(|d| centre + d * d * d / 300));
    }
    values.extend([limit - 1, -limit]);
    values.retain(|v| (-limit..limit).contains(v));
    values
}

#[test]
fn activations_are_the_simulators_and_within_their_error() {
    for (kind, in_frac, out_frac, table_bits, input, output) in [
        (Activation::Gelu, 22, 10, 6, 30, 26),
        (Activation::Gelu, 22, 10, 6, 32, 24),
        (Activation::Gelu, 22, 10, 7, 30, 18),
        (Activation::GeluTanh, 24, 12, 6, 34, 37),
        (Activation::Gelu, 12, 12, 6, 18, 30),
        (Activation::Gelu, 14, 10, 6, 17, 20),
        (Activation::Gelu, 22, 10, 6, 31, 24),
        (Activation::Gelu, 22, 10, 6, 42, 34),
        (Activation::Relu, 22, 10, 6, 30, 26),
        (Activation::Relu, 22, 10, 6, 40, 30),
        (Activation::Relu, 12, 12, 6, 20, 24),
    ] {
        let table = activation(kind, in_frac, out_frac, table_bits);
        let f = SharedFunction::activation(&table, ring(input), ring(output)).unwrap();
        let values = dense(input - 2, in_frac, 6000);
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.table();
        let (mut worst, mut worst_real) = (0u64, 0f64);
        for (i, &v) in values.iter().enumerate() {
            let got = signed(y[i], output);
            worst = worst.max((got - table.eval(&exact, v.into()) as i64).unsigned_abs());
            let real = kind.real(v as f64 / f64::from(1u32 << in_frac)) * f64::from(1u32 << out_frac);
            worst_real = worst_real.max((got as f64 - real).abs());
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(1).unwrap();
        println!(
            "{kind:?} {in_frac}->{out_frac} ({table_bits}) {input}->{output}: {per:.1} B, {} COTs, {} flights; off by {worst} \
             (bound {}), really {:.4} ({:.4})",
            cots.client_sends + cots.server_sends,
            measured.rounds,
            f.error_bound(),
            worst_real / f64::from(1 << out_frac),
            f.real_error() / f64::from(1 << out_frac),
        );
        assert!(worst <= f.error_bound() && worst_real <= f.real_error());
        assert!(per < 300.0);
    }
}

/// Rows of scores in `[-limit, limit)`: scattered, close together, equal, with far columns as padding has, at the ends.
fn score_rows(rows: usize, columns: usize, limit: i64, frac: u32) -> Vec<i64> {
    let mut values = Vec::new();
    for row in 0..rows {
        let noise = random(columns, 62, row as u64);
        for (column, noise) in noise.into_iter().enumerate() {
            let wide = (noise % (2 * limit) as u64) as i64 - limit;
            values.push(match row % 5 {
                0 => wide,
                1 => wide % (6 << frac),
                2 => 12345,
                3 if column % 3 == 0 => -limit,
                3 => limit - 1 - (wide & 0xfff),
                _ => wide % 5000 - limit / 2,
            });
        }
    }
    values
}

#[test]
fn numerators_are_the_simulators_and_within_their_error() {
    for (in_frac, frac_bits, out_frac, columns, input, output) in [
        (18, 5, 11, 128, 28, 44),
        (18, 5, 11, 32, 28, 40),
        (18, 7, 12, 7, 30, 48),
        (18, 5, 11, 1, 28, 44),
        (8, 6, 16, 5, 20, 18),
        (20, 8, 13, 12, 34, 14),
        (12, 4, 6, 9, 17, 30),
    ] {
        let table = ExpTable { in_frac, frac_bits, out_frac };
        let f = SharedFunction::exp(&table, columns, ring(input), ring(output)).unwrap();
        let values = score_rows(if columns > 100 { 16 } else { 60 }, columns, 1 << (input - 2), in_frac);
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.table();
        let (mut worst, mut worst_real) = (0u64, 0f64);
        for (row, y) in values.chunks(columns).zip(y.chunks(columns)) {
            let max = *row.iter().max().unwrap();
            let wide: Vec<i128> = row.iter().map(|&s| s.into()).collect();
            for ((&score, expected), &got) in row.iter().zip(table.eval_row(&exact, &wide)).zip(y) {
                worst = worst.max((got as i64).abs_diff(expected as i64));
                let distance = (max - score) as f64 / f64::from(1u32 << in_frac);
                worst_real = worst_real.max((got as f64 - libm::exp2(f64::from(out_frac) - distance)).abs());
            }
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(values.len()).unwrap();
        println!(
            "exp {in_frac}->{out_frac}, {columns} columns, {input}->{output}: {per:.1} B, {:.1} COTs, {} flights; off by {worst} \
             (bound {}), really {worst_real:.1} ({:.1}) units",
            (cots.client_sends + cots.server_sends) as f64 / values.len() as f64,
            measured.rounds,
            f.error_bound(),
            f.real_error(),
        );
        assert!(worst <= f.error_bound() && worst_real <= f.real_error());
        assert!(per < 300.0);
    }
    let table = ExpTable { in_frac: 18, frac_bits: 5, out_frac: 11 };
    let f = SharedFunction::exp(&table, 8, ring(28), ring(44)).unwrap();
    assert!(matches!(f.cost(12), Err(SharedError::Rows { columns: 8, found: 12 })));
}

#[test]
fn powers_are_the_simulators_and_within_their_error() {
    let root = 384f64.sqrt();
    for (power, numerator, in_frac, out_frac, min_log2, max_log2, input, output) in [
        (RowPower::Reciprocal, 1.0, 11, 18, 11, 18, 44, 44),
        (RowPower::Reciprocal, 1.0, 11, 16, 11, 16, 37, 40),
        (RowPower::Reciprocal, 3.0, 4, 20, 6, 6, 12, 32),
        (RowPower::InverseSqrt, root, 20, 15, 18, 35, 37, 37),
        (RowPower::InverseSqrt, root, 20, 14, 17, 35, 37, 24),
        (RowPower::InverseSqrt, 1.0, 24, 12, 3, 42, 44, 48),
    ] {
        let table = PowerTable::new(power, numerator, in_frac, out_frac, min_log2, max_log2, 9, 12).unwrap();
        let f = SharedFunction::power(&table, numerator, in_frac, out_frac, ring(input), ring(output)).unwrap();
        let mut values = Vec::new();
        for log2 in min_log2..=max_log2 {
            let noise = random(40, 60, u64::from(log2));
            values.extend(noise.into_iter().map(|r| ((1 << log2) | (r & ((1 << log2) - 1))) as i64));
            values.extend([1 << log2, (2 << log2) - 1, (1 << log2) + 1, 3 << log2 >> 1]);
        }
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.tables(numerator, in_frac, out_frac);
        let (mut worst, mut worst_real) = (0f64, 0f64);
        for (&v, &y) in values.iter().zip(&y) {
            let expected = table.eval(&exact, v as u64) as f64;
            let exponent = if power == RowPower::Reciprocal { -1.0 } else { -0.5 };
            let x = v as f64 / libm::exp2(in_frac.into());
            let real = numerator * libm::pow(x, exponent) * libm::exp2(out_frac.into());
            if real >= libm::exp2(f64::from(output - 1)) {
                continue;
            }
            let y = y as f64;
            assert!(
                (y - expected).abs() <= f.error_bound() as f64 + f.relative_error_bound() * expected,
                "{v} {y} {expected}"
            );
            assert!((y - real).abs() <= f.real_error() + f.real_relative_error() * real, "{v} {y} {real}");
            worst = worst.max(((y - expected).abs() - f.error_bound() as f64) / expected);
            worst_real = worst_real.max(((y - real).abs() - 1.0) / real);
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(1).unwrap();
        println!(
            "{power:?} 2^{min_log2}..2^{max_log2} {input}->{output}: {per:.0} B, {} COTs, {} flights; relatively off by {worst:.5} \
             (bound {:.5}), really {worst_real:.5} ({:.5})",
            cots.client_sends + cots.server_sends,
            measured.rounds,
            f.relative_error_bound(),
            f.real_relative_error(),
        );
        assert!(per < 4096.0 && f.real_relative_error() < 0.001);
    }
}

#[test]
fn tanh_is_the_simulators_and_within_its_error() {
    for (in_frac, out_frac, table_bits, input, output) in [(22, 10, 9, 30, 24), (20, 12, 10, 36, 37), (9, 6, 6, 14, 20)]
    {
        let table = TanhTable { in_frac, out_frac, range_log2: 2, table_bits };
        let f = SharedFunction::tanh(&table, ring(input), ring(output)).unwrap();
        let values = dense(input - 2, in_frac, 3000);
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.table();
        let (mut worst, mut worst_real) = (0u64, 0f64);
        for (&v, &y) in values.iter().zip(&y) {
            let y = signed(y, output);
            worst = worst.max(y.abs_diff(table.eval(&exact, v.into()) as i64));
            let real = libm::tanh(v as f64 / libm::exp2(in_frac.into())) * libm::exp2(out_frac.into());
            worst_real = worst_real.max((y as f64 - real).abs());
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(1).unwrap();
        println!(
            "tanh {in_frac}->{out_frac} {input}->{output}: {per:.0} B, {} COTs, {} flights; off by {worst} (bound {}), really \
             {worst_real:.1} ({:.1}) units",
            cots.client_sends + cots.server_sends,
            measured.rounds,
            f.error_bound(),
            f.real_error(),
        );
        assert!(worst <= f.error_bound() && worst_real <= f.real_error());
    }
}

#[test]
fn ranges_are_told_apart() {
    for (ring, bits) in [(14, 12), (18, 12), (19, 12), (20, 12), (30, 12), (9, 2), (13, 12), (40, 3)] {
        let range = range::Range { ring, bits };
        let mut values = spread(ring - 1, 2000, 3);
        let end = 1i64 << bits;
        values.extend([end - 1, end, -end, -end - 1, -end + 1, 2 * end, -2 * end, 2 * end - 1, -2 * end - 1]);
        values.retain(|v| (-(1i64 << (ring - 1))..1 << (ring - 1)).contains(v));
        let (client, server) = split(&values, ring, 4);
        let (a, b, measured) = gadget(
            client,
            server,
            |count, cost| range.cost(count, cost),
            move |mut party, x| async move { Ok(range.run(&mut party, &x).await?.to_vec()) },
        );
        for (i, v) in values.iter().enumerate() {
            let state = a[i] ^ b[i];
            assert_eq!(state & 1, u64::from(*v < 0), "{ring} {bits} {v}");
            assert_eq!(state >> 1, u64::from((-end..end).contains(v)), "{ring} {bits} {v}");
        }
        println!("range {ring} {bits}: {:.1} B", (measured.up + measured.down) as f64 / values.len() as f64);
    }
}
