//! A channel that really takes the time of a stated link.
//!
//! [`shape`] wraps one end of a connection and shapes both directions there; the other end stays as it is. A thread per
//! direction holds the frames that are on the way. A sender waits only until its frame has passed into the wire, less a
//! short run-ahead that plays the part of the socket's buffer and hides that threads wake late.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::channel::{Channel, Control, Receiver, Sender};
use super::error::NetError;
use super::frame::Frame;
use super::link::{Link, Wire};

/// How far ahead of the wire a sender may run.
const RUN_AHEAD: Duration = Duration::from_millis(2);
/// How often a thread that sleeps looks whether the channel was closed.
const WAKE: Duration = Duration::from_millis(50);
/// How long the end waits, beyond the link's own time, for a peer that does not read.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes on the way in one direction before the sender waits: more than a fast link with a long delay holds, so that it is
/// reached only when the far end does not take what arrives.
const IN_TRANSIT: u64 = 256 << 20;

/// The time that a shaped channel goes by, from a start of its own.
pub trait Clock: Send + Sync {
    /// Time since the start.
    fn now(&self) -> Duration;
    /// Returns at `time` or shortly after.
    fn sleep_until(&self, time: Duration);
}

/// The real time.
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep_until(&self, time: Duration) {
        thread::sleep(time.saturating_sub(self.now()));
    }
}

/// `channel` as slow as `link` in both directions, in real time.
///
/// # Errors
/// [`NetError::Io`] when the system refuses a thread.
pub fn shape(channel: Channel, link: Link) -> Result<Channel, NetError> {
    shape_by(channel, link, Arc::new(SystemClock::start()))
}

/// As [`shape`], by a given clock.
///
/// # Errors
/// [`NetError::Io`] when the system refuses a thread.
pub fn shape_by(channel: Channel, link: Link, clock: Arc<dyn Clock>) -> Result<Channel, NetError> {
    if link == Link::UNLIMITED {
        return Ok(channel);
    }
    let Channel { sender, receiver, control } = channel;
    let (out, inward) = (Arc::new(Transit::default()), Arc::new(Transit::default()));
    let mut pumps = Pumps {
        out: Arc::clone(&out),
        inward: Arc::clone(&inward),
        control,
        clock: Arc::clone(&clock),
        threads: Vec::new(),
    };
    let (transit, by) = (Arc::clone(&out), Arc::clone(&clock));
    pumps.start("link out", move || push_out(&transit, &*by, sender))?;
    let (transit, by) = (Arc::clone(&inward), Arc::clone(&clock));
    pumps.start("link in", move || pull_in(&transit, &*by, receiver, Wire::new(link)))?;
    let pumps = Arc::new(pumps);
    let control =
        ShapedControl { out: Arc::clone(&out), inward: Arc::clone(&inward), inner: Arc::clone(&pumps.control) };
    let wire = Wire::new(link);
    Ok(Channel {
        sender: Box::new(ShapedSender { transit: out, wire, clock: Arc::clone(&clock), _pumps: Arc::clone(&pumps) }),
        receiver: Box::new(ShapedReceiver { transit: inward, clock, limit: u64::MAX, failed: None, _pumps: pumps }),
        control: Arc::new(control),
    })
}

/// Takes arrived frames to the far end.
fn push_out(transit: &Transit, clock: &dyn Clock, mut sender: Box<dyn Sender>) {
    while let Some(Ok(frame)) = transit.take(clock) {
        if let Err(error) = sender.send(frame) {
            transit.fail(error);
            break;
        }
    }
    sender.close();
    transit.set_done();
}

/// Sets frames of the far end on their way, at the rate of the wire.
fn pull_in(transit: &Transit, clock: &dyn Clock, mut receiver: Box<dyn Receiver>, mut wire: Wire) {
    loop {
        let received = receiver.recv();
        let failed = received.is_err();
        let passage = wire.book(clock.now(), received.as_ref().map_or(0, Frame::wire_len));
        let taken = transit.put(passage.arrives, received);
        if failed || taken.is_err() {
            return;
        }
        transit.sleep(clock, passage.sent.saturating_sub(RUN_AHEAD));
    }
}

/// The frames on the way in one direction.
#[derive(Default)]
struct Transit {
    state: Mutex<TransitState>,
    changed: Condvar,
}

#[derive(Default)]
struct TransitState {
    /// Each with the time of its arrival; an error is the last.
    frames: VecDeque<(Duration, Result<Frame, NetError>)>,
    bytes: u64,
    /// Nothing more is put in; what is on the way arrives.
    finished: bool,
    /// Nothing more is taken out.
    stopped: Option<NetError>,
    /// The thread that takes frames to the far end has ended.
    done: bool,
}

impl Transit {
    fn lock(&self) -> MutexGuard<'_, TransitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, TransitState>) -> MutexGuard<'a, TransitState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, arrives: Duration, frame: Result<Frame, NetError>) -> Result<(), NetError> {
        let bytes = frame.as_ref().map_or(0, Frame::wire_len);
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.stopped {
                return Err(error.clone());
            }
            if state.finished {
                return Err(NetError::closed("it was closed on this side"));
            }
            if state.bytes == 0 || state.bytes + bytes <= IN_TRANSIT {
                break;
            }
            state = self.wait(state);
        }
        state.bytes += bytes;
        state.frames.push_back((arrives, frame));
        self.changed.notify_all();
        Ok(())
    }

    /// The next frame, at its time; `None` when no more come.
    fn take(&self, clock: &dyn Clock) -> Option<Result<Frame, NetError>> {
        loop {
            let mut state = self.lock();
            let arrives = loop {
                if state.stopped.is_some() {
                    return None;
                }
                match state.frames.front() {
                    Some((arrives, _)) => break *arrives,
                    None if state.finished => return None,
                    None => state = self.wait(state),
                }
            };
            if clock.now() >= arrives {
                let (_, frame) = state.frames.pop_front()?;
                state.bytes -= frame.as_ref().map_or(0, Frame::wire_len);
                self.changed.notify_all();
                return Some(frame);
            }
            drop(state);
            self.sleep(clock, arrives);
        }
    }

    /// Sleeps until `time`, or until the frames are no longer wanted.
    fn sleep(&self, clock: &dyn Clock, time: Duration) {
        loop {
            let now = clock.now();
            if now >= time || self.lock().stopped.is_some() {
                return;
            }
            clock.sleep_until(time.min(now + WAKE));
        }
    }

    fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    fn fail(&self, error: NetError) {
        let mut state = self.lock();
        state.stopped.get_or_insert(error);
        state.frames.clear();
        state.bytes = 0;
        self.changed.notify_all();
    }

    fn set_done(&self) {
        self.lock().done = true;
        self.changed.notify_all();
    }
}

/// The two threads, held by the two halves: when both are gone, what is on the way out still arrives, then all ends.
struct Pumps {
    out: Arc<Transit>,
    inward: Arc<Transit>,
    control: Arc<dyn Control>,
    clock: Arc<dyn Clock>,
    threads: Vec<JoinHandle<()>>,
}

impl Pumps {
    fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), NetError> {
        let thread = thread::Builder::new().name(name.into()).spawn(work);
        self.threads.push(thread.map_err(|e| NetError::io("starting a thread", &e, None))?);
        Ok(())
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.out.finish();
        self.inward.fail(NetError::closed("it was closed on this side"));
        let mut state = self.out.lock();
        // The link's own time does not count against a peer that does not read.
        let last = state.frames.back().map_or(Duration::ZERO, |(arrives, _)| *arrives).max(self.clock.now());
        while !state.done && self.clock.now() < last + LINGER {
            state = self.out.changed.wait_timeout(state, WAKE).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.control.close();
        for thread in self.threads.drain(..) {
            // The pumps do not panic, and if one did there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

struct ShapedSender {
    transit: Arc<Transit>,
    wire: Wire,
    clock: Arc<dyn Clock>,
    _pumps: Arc<Pumps>,
}

impl Sender for ShapedSender {
    fn send(&mut self, frame: Frame) -> Result<(), NetError> {
        let passage = self.wire.book(self.clock.now(), frame.wire_len());
        self.transit.put(passage.arrives, Ok(frame))?;
        self.transit.sleep(&*self.clock, passage.sent.saturating_sub(RUN_AHEAD));
        Ok(())
    }

    fn close(&mut self) {
        self.transit.finish();
    }
}

impl Drop for ShapedSender {
    fn drop(&mut self) {
        self.transit.finish();
    }
}

struct ShapedReceiver {
    transit: Arc<Transit>,
    clock: Arc<dyn Clock>,
    limit: u64,
    failed: Option<NetError>,
    _pumps: Arc<Pumps>,
}

impl Receiver for ShapedReceiver {
    fn recv(&mut self) -> Result<Frame, NetError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let closed = || Err(NetError::closed("it was closed on this side"));
        let received = self.transit.take(&*self.clock).unwrap_or_else(closed).and_then(|frame| {
            let (bytes, limit) = (frame.payload.len() as u64, self.limit);
            if bytes > limit { Err(NetError::TooLong { bytes, limit }) } else { Ok(frame) }
        });
        received.inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn set_payload_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }
}

impl Drop for ShapedReceiver {
    fn drop(&mut self) {
        self.transit.fail(NetError::closed("it was closed on this side"));
    }
}

struct ShapedControl {
    out: Arc<Transit>,
    inward: Arc<Transit>,
    inner: Arc<dyn Control>,
}

impl Control for ShapedControl {
    /// What is on the way out still arrives; the connection itself ends with the halves.
    fn close(&self) {
        self.out.finish();
        self.inward.fail(NetError::closed("it was closed on this side"));
    }

    fn set_deadline(&self, deadline: Option<Instant>) {
        self.inner.set_deadline(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::FRAME_OVERHEAD;
    use super::super::memory::memory_pair;
    use super::*;

    /// A clock that stands until the test moves it, and that knows who sleeps until when.
    #[derive(Default)]
    struct TestClock {
        state: Mutex<(Duration, Vec<Duration>)>,
        changed: Condvar,
    }

    impl Clock for TestClock {
        fn now(&self) -> Duration {
            self.state.lock().unwrap().0
        }

        fn sleep_until(&self, time: Duration) {
            let mut state = self.state.lock().unwrap();
            state.1.push(time);
            self.changed.notify_all();
            state = self.changed.wait_while(state, |(now, _)| *now < time).unwrap();
            let at = state.1.iter().position(|other| *other == time).unwrap();
            state.1.remove(at);
            self.changed.notify_all();
        }
    }

    impl TestClock {
        fn set(&self, time: Duration) {
            self.state.lock().unwrap().0 = time;
            self.changed.notify_all();
        }

        /// Waits until exactly these sleep, then moves to the earliest.
        fn step(&self, sleepers: &[u64]) {
            let expected: Vec<Duration> = sleepers.iter().map(|t| Duration::from_millis(*t)).collect();
            let sleeping = |(_, now): &mut (Duration, Vec<Duration>)| {
                now.sort();
                *now != expected
            };
            let limit = Duration::from_secs(20);
            let (state, waited) = self.changed.wait_timeout_while(self.state.lock().unwrap(), limit, sleeping).unwrap();
            assert!(!waited.timed_out(), "sleepers {:?} instead of {expected:?}", state.1);
            drop(state);
            self.set(expected[0]);
        }
    }

    /// A frame that takes `bytes` bytes on the wire.
    fn frame(kind: u16, bytes: usize) -> Frame {
        Frame { lane: 0, kind, session: [0; 16], payload: vec![0; bytes - FRAME_OVERHEAD] }
    }

    #[test]
    fn frames_on_the_way_up_pass_one_after_another_and_arrive_in_time() {
        let clock = Arc::new(TestClock::default());
        let (near, mut far) = memory_pair(1 << 20);
        let mut near = shape_by(near, Link::WAN, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        // 125 000 bytes pass in 10 ms; the sender runs 2 ms ahead.
        let sending = thread::spawn(move || {
            (0..3).for_each(|k| near.send(frame(k, 125_000)).unwrap());
            near
        });
        clock.step(&[8, 50]);
        clock.step(&[18, 50]);
        clock.step(&[28, 50]);
        let near = sending.join().unwrap();
        for (k, arrival) in [50, 60, 70].into_iter().enumerate() {
            assert!(clock.now() < Duration::from_millis(arrival));
            clock.step(&[arrival]);
            assert_eq!(far.recv().unwrap().kind, k as u16);
        }
        drop(near);
        assert!(far.recv().is_err());
    }

    #[test]
    fn frames_on_the_way_down_keep_the_same_timetable() {
        let clock = Arc::new(TestClock::default());
        let (near, mut far) = memory_pair(1 << 20);
        let mut near = shape_by(near, Link::WAN, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        (0..2).for_each(|k| far.send(frame(k, 125_000)).unwrap());
        let receiving = thread::spawn(move || {
            let kinds = [near.recv().unwrap().kind, near.recv().unwrap().kind];
            (near, kinds)
        });
        clock.step(&[8, 50]);
        clock.step(&[18, 50]);
        clock.step(&[50]);
        // The second was read from the far end at 8 ms, while the first was still passing.
        clock.step(&[60]);
        let (near, kinds) = receiving.join().unwrap();
        assert_eq!(kinds, [0, 1]);
        drop(near);
    }

    #[test]
    fn an_end_in_order_lets_everything_arrive_in_real_time() {
        let link = Link { bits_per_second: Some(1e8), round_trip: Duration::from_millis(4) };
        let (near, mut far) = memory_pair(1 << 20);
        let mut near = shape(near, link).unwrap();
        (0..5).for_each(|k| near.send(frame(k, 1000)).unwrap());
        far.send(frame(9, 1000)).unwrap();
        assert_eq!(near.recv().unwrap().kind, 9);
        let control = Arc::clone(&near.control);
        control.close();
        assert!(near.recv().is_err() && near.send(frame(6, 100)).is_err());
        drop(near);
        (0..5).for_each(|k| assert_eq!(far.recv().unwrap().kind, k));
        assert!(matches!(far.recv(), Err(NetError::Closed { .. })));
    }

    #[test]
    fn the_far_end_leaving_reaches_both_halves() {
        let link = Link { bits_per_second: None, round_trip: Duration::from_millis(1) };
        let (near, mut far) = memory_pair(1 << 20);
        let mut near = shape(near, link).unwrap();
        far.send(frame(1, 100)).unwrap();
        drop(far);
        assert_eq!(near.recv().unwrap().kind, 1);
        assert!(near.recv().is_err());
        while near.send(frame(2, 100)).is_ok() {
            thread::yield_now();
        }
    }

    #[test]
    fn an_unlimited_link_is_the_channel_itself() {
        let (near, mut far) = memory_pair(1 << 20);
        let mut near = shape_by(near, Link::UNLIMITED, Arc::new(TestClock::default())).unwrap();
        near.send(frame(1, 100)).unwrap();
        assert_eq!(far.recv().unwrap().kind, 1);
    }
}
