//! Lanes over memory and TCP: concurrent traffic, ends of every sort, exact counts through a proxy.
#![allow(clippy::unwrap_used, reason = "helpers of a test; clippy allows it in test functions only")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use heliostat::net::frame::FRAME_OVERHEAD;
use heliostat::net::tcp::{TcpOptions, connect, tcp_channel};
use heliostat::net::{Channel, Frame, Lane, Link, Meter, Mux, MuxOptions, NetError, Role, memory_pair, shape};

const SESSION: [u8; 16] = [42; 16];

struct Side {
    mux: Mux,
    lanes: Vec<Lane>,
    meter: Meter,
}

fn side(channel: Channel, role: Role, options: MuxOptions) -> Side {
    let meter = Meter::new(role);
    let (mux, lanes) = Mux::new(channel, meter.clone(), options).unwrap();
    Side { mux, lanes, meter }
}

fn options(lanes: u8) -> MuxOptions {
    MuxOptions { linger: Duration::from_secs(60), ..MuxOptions::new(SESSION, lanes) }
}

fn tcp_pair() -> (Channel, Channel) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = connect(&listener.local_addr().unwrap().to_string(), &TcpOptions::default()).unwrap();
    (client, tcp_channel(listener.accept().unwrap().0, &TcpOptions::default()).unwrap())
}

fn sides((client, server): (Channel, Channel), lanes: u8) -> (Side, Side) {
    (side(client, Role::Client, options(lanes)), side(server, Role::Server, options(lanes)))
}

/// Message `i` of a lane: its length and bytes follow from the numbers.
fn message(lane: u8, i: u16) -> Vec<u8> {
    let length = (i as usize * 7919 + lane as usize * 104_729) % 60_000;
    vec![lane ^ i as u8; length]
}

/// Three lanes at once, each in its own way: bulk up, bulk down, questions and answers.
fn busy_traffic((client, server): (Side, Side)) {
    let meters = (client.meter.clone(), server.meter.clone());
    let bulk_out = |lane: Lane| (0..60).for_each(|i| lane.send(i, message(lane.id(), i)).unwrap());
    let bulk_in = |lane: Lane| (0..60).for_each(|i| assert!(lane.recv().unwrap() == (i, message(lane.id(), i))));
    let ask = |lane: Lane| {
        (0..40).for_each(|i| {
            lane.send(i, message(2, i)).unwrap();
            assert!(lane.recv_kind(i, "an answer").unwrap() == message(3, i));
        })
    };
    let answer = |lane: Lane| {
        (0..40).for_each(|i| {
            assert!(lane.recv_kind(i, "a question").unwrap() == message(2, i));
            lane.send(i, message(3, i)).unwrap();
        })
    };
    thread::scope(|s| {
        let mut up = client.lanes.into_iter();
        let mut down = server.lanes.into_iter();
        let (c0, c1, c2) = (up.next().unwrap(), up.next().unwrap(), up.next().unwrap());
        let (s0, s1, s2) = (down.next().unwrap(), down.next().unwrap(), down.next().unwrap());
        s.spawn(move || bulk_out(c0));
        s.spawn(move || bulk_in(s0));
        s.spawn(move || bulk_in(c1));
        s.spawn(move || bulk_out(s1));
        s.spawn(move || ask(c2));
        s.spawn(move || answer(s2));
    });
    drop(client.mux);
    drop(server.mux);
    let (seen_by_client, seen_by_server) = (meters.0.snapshot(), meters.1.snapshot());
    assert_eq!(seen_by_client, seen_by_server);
    assert_eq!(seen_by_client.rounds, 40);
    let bulk = |lane| (0..60).map(|i| (message(lane, i).len() + FRAME_OVERHEAD) as u64).sum::<u64>();
    assert_eq!(seen_by_client.lanes[&0], (bulk(0), 0));
    assert_eq!(seen_by_client.lanes[&1], (0, bulk(1)));
    // The lanes and one frame each way that ends the session.
    let lanes_up: u64 = seen_by_client.lanes.values().map(|(up, _)| up).sum();
    assert_eq!(seen_by_client.bytes_up, lanes_up + FRAME_OVERHEAD as u64);
}

#[test]
fn three_lanes_at_once_over_memory() {
    busy_traffic(sides(memory_pair(1 << 16), 3));
}

#[test]
fn three_lanes_at_once_over_tcp() {
    busy_traffic(sides(tcp_pair(), 3));
}

#[test]
fn three_lanes_at_once_over_a_shaped_link() {
    let (client, server) = memory_pair(1 << 20);
    let link: Link = "2gbps,0.1ms".parse().unwrap();
    busy_traffic(sides((shape::shape(client, link).unwrap(), server), 3));
}

#[test]
fn small_queues_slow_the_peer_down_without_loss() {
    let (client, server) = memory_pair(1000);
    let small = MuxOptions { queue_bytes: 1000, ..options(2) };
    let client = side(client, Role::Client, small.clone());
    let server = side(server, Role::Server, small);
    thread::scope(|s| {
        for lane in client.lanes {
            s.spawn(move || (0..100).for_each(|i| lane.send(i, vec![lane.id(); 500]).unwrap()));
        }
        for lane in server.lanes {
            s.spawn(move || (0..100).for_each(|i| assert!(lane.recv().unwrap() == (i, vec![lane.id(); 500]))));
        }
    });
}

#[test]
fn a_dropped_lane_holds_nobody_up_and_its_bytes_still_count() {
    let small = MuxOptions { queue_bytes: 1000, ..options(2) };
    let (client, server) = memory_pair(1000);
    let client = side(client, Role::Client, small.clone());
    let mut server = side(server, Role::Server, small);
    drop(server.lanes.remove(0));
    (0..50).for_each(|i| client.lanes[0].send(i, vec![0; 500]).unwrap());
    client.lanes[1].send(1, vec![1]).unwrap();
    assert_eq!(server.lanes[0].recv().unwrap(), (1, vec![1]));
    let expected = 50 * (500 + FRAME_OVERHEAD) + 1 + FRAME_OVERHEAD;
    assert_eq!(server.meter.snapshot().bytes_up, expected as u64);
    assert_eq!(client.meter.snapshot().bytes_up, expected as u64);
}

#[test]
fn a_side_that_stops_with_full_queues_frees_the_other() {
    let small = MuxOptions { queue_bytes: 1000, ..options(1) };
    let (client, server) = memory_pair(1000);
    let client = side(client, Role::Client, small.clone());
    let mut server = side(server, Role::Server, small);
    let lane = server.lanes.remove(0);
    // Nobody reads on the client's side, so this comes to a halt in `send` until the client gives up.
    let blocked = thread::spawn(move || {
        loop {
            if let Err(error) = lane.send(1, vec![0; 500]) {
                return error;
            }
        }
    });
    client.mux.abort("enough");
    assert_eq!(blocked.join().unwrap(), NetError::Peer { reason: "enough".into() });
}

#[test]
fn a_message_outside_the_rules_leaves_the_lane_usable() {
    let (client, server) = sides(memory_pair(1 << 20), 1);
    assert_eq!(client.lanes[0].send(0xff00, vec![]), Err(NetError::ReservedKind { kind: 0xff00 }));
    assert!(matches!(client.lanes[0].send(1, vec![0; (64 << 20) + 1]), Err(NetError::TooLong { .. })));
    client.lanes[0].send(2, vec![7]).unwrap();
    assert_eq!(
        server.lanes[0].recv_kind(3, "a greeting"),
        Err(NetError::UnexpectedKind { kind: 2, expected: "a greeting" })
    );
    drop(client.mux);
    drop(client.lanes);
    assert!(matches!(server.lanes[0].recv(), Err(NetError::Closed { .. })));
}

#[test]
fn messages_before_an_end_in_order_still_arrive() {
    for pair in [memory_pair(1 << 20), tcp_pair()] {
        let (client, server) = sides(pair, 2);
        (0..10).for_each(|i| client.lanes[1].send(i, message(1, i)).unwrap());
        drop(client);
        (0..10).for_each(|i| assert!(server.lanes[1].recv().unwrap() == (i, message(1, i))));
        let error = server.lanes[1].recv().unwrap_err();
        assert_eq!(server.lanes[0].recv().unwrap_err(), error);
        assert!(error.to_string().contains("the peer has ended the session"), "{error}");
        assert_eq!(server.lanes[0].send(1, vec![]).unwrap_err(), error);
    }
}

#[test]
fn an_abort_reaches_every_lane_of_both_sides_with_its_sentence() {
    for pair in [memory_pair(1 << 20), tcp_pair()] {
        let (client, server) = sides(pair, 3);
        let mut waiting: Vec<JoinHandle<_>> =
            server.lanes.into_iter().map(|l| thread::spawn(move || l.recv())).collect();
        let last = client.lanes.into_iter().next_back().unwrap();
        client.mux.abort("the model is not\n loaded");
        for thread in waiting.drain(..) {
            let error = thread.join().unwrap().unwrap_err();
            assert_eq!(error, NetError::Peer { reason: "the model is not loaded".into() });
            assert_eq!(error.to_string(), "the peer stopped: the model is not loaded");
        }
        assert!(matches!(last.recv(), Err(NetError::Aborted { .. })));
        assert!(matches!(last.send(1, vec![]), Err(NetError::Aborted { .. })));
    }
}

#[test]
fn a_peer_that_vanishes_mid_way_is_an_error_on_every_lane() {
    let (client, server) = tcp_pair();
    let client = side(client, Role::Client, options(2));
    let Channel { mut sender, receiver, control } = server;
    sender.send(Frame { lane: 0, kind: 5, session: SESSION, payload: vec![1, 2] }).unwrap();
    assert_eq!(client.lanes[0].recv().unwrap(), (5, vec![1, 2]));
    control.close();
    drop((sender, receiver, control));
    for lane in &client.lanes {
        let error = lane.recv().unwrap_err();
        assert!(matches!(error, NetError::Closed { .. } | NetError::Reset { .. }), "{error}");
    }
    while client.lanes[0].send(1, vec![0; 1000]).is_ok() {}
}

#[test]
fn frames_outside_the_session_end_it_on_both_sides() {
    let good = Frame { lane: 0, kind: 1, session: SESSION, payload: vec![] };
    for (bad, expected) in [
        (Frame { session: [0; 16], ..good.clone() }, NetError::WrongSession),
        (Frame { lane: 2, ..good.clone() }, NetError::UnknownLane { lane: 2, lanes: 2 }),
        (Frame { kind: 0xff77, ..good.clone() }, NetError::UnexpectedKind { kind: 0xff77, expected: "a message" }),
    ] {
        let (client, mut server) = memory_pair(1 << 20);
        let client = side(client, Role::Client, options(2));
        server.send(bad).unwrap();
        assert_eq!(client.lanes[1].recv().unwrap_err(), expected);
        assert_eq!(server.recv().unwrap().payload, expected.to_string().into_bytes());
        assert_eq!(client.mux.ended(), Some(expected));
        drop(server);
    }
}

/// Passes bytes on both ways, counting them; `alter` may change the bytes up from its offset on.
struct Proxy {
    address: SocketAddr,
    up: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Proxy {
    fn start(target: SocketAddr, alter: impl Fn(u64, &mut [u8]) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (up, down) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count_up, count_down) = (Arc::clone(&up), Arc::clone(&down));
        let thread = thread::spawn(move || {
            let client = listener.accept().unwrap().0;
            let server = TcpStream::connect(target).unwrap();
            [&client, &server].iter().for_each(|stream| stream.set_nodelay(true).unwrap());
            thread::scope(|s| {
                s.spawn(|| pass(&client, &server, &count_up, &alter));
                s.spawn(|| pass(&server, &client, &count_down, &|_, _| {}));
            });
        });
        Self { address, up, down, thread }
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, count: &AtomicU64, alter: &(dyn Fn(u64, &mut [u8]) + Sync)) {
    let mut buffer = vec![0; 7001];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 {
            break;
        }
        let before = count.fetch_add(n as u64, Ordering::SeqCst);
        alter(before, &mut buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn through_proxy(alter: impl Fn(u64, &mut [u8]) + Send + Sync + 'static) -> (Channel, Channel, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap(), alter);
    let client = connect(&proxy.address.to_string(), &TcpOptions::default()).unwrap();
    (client, tcp_channel(listener.accept().unwrap().0, &TcpOptions::default()).unwrap(), proxy)
}

#[test]
fn counted_bytes_are_the_bytes_on_the_socket() {
    let (client, server, proxy) = through_proxy(|_, _| {});
    let (client, server) = sides((client, server), 3);
    let meters = (client.meter.clone(), server.meter.clone());
    busy_traffic((client, server));
    proxy.thread.join().unwrap();
    for meter in [meters.0, meters.1] {
        let seen = meter.snapshot();
        assert_eq!(seen.bytes_up, proxy.up.load(Ordering::SeqCst));
        assert_eq!(seen.bytes_down, proxy.down.load(Ordering::SeqCst));
    }
}

#[test]
fn one_byte_flipped_on_the_way_ends_the_session_on_both_sides() {
    // Three frames of 100 bytes of payload; a byte of each part of the second one.
    let frame = 100 + FRAME_OVERHEAD as u64;
    for offset in [0, 4, 6, 8, 20, 26, 30, 40, 53, 100, frame - 1] {
        let at = frame + offset;
        let (client, server, proxy) = through_proxy(move |before, bytes| {
            if let Some(byte) = at.checked_sub(before).and_then(|i| bytes.get_mut(i as usize)) {
                *byte ^= 0x10;
            }
        });
        let (client, server) = sides((client, server), 2);
        (0..3).for_each(|_| {
            let _ = client.lanes[0].send(1, vec![9; 100]);
        });
        assert_eq!(server.lanes[0].recv().unwrap(), (1, vec![9; 100]));
        let found = server.lanes[0].recv().unwrap_err();
        assert_eq!(server.lanes[1].recv().unwrap_err(), found);
        let told = client.lanes[1].recv().unwrap_err();
        assert_eq!(told, NetError::Peer { reason: found.to_string() }, "byte {offset}");
        drop(client);
        drop(server);
        proxy.thread.join().unwrap();
    }
}
