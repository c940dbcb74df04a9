//! Two parties driven in memory, and the checks that every function of shares must pass.

mod functions;
mod gadgets;
mod truncate;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;
use crate::arith::ShareModulus;
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
