//! Taking turns at a sender that several threads share.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::channel::Sender;
use super::error::NetError;
use super::frame::Frame;

/// The sender, lent to one thread at a time in the order of asking.
pub(super) struct Turns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

struct TurnState {
    sender: Option<Box<dyn Sender>>,
    waiting: VecDeque<u64>,
    next: u64,
    /// The outgoing direction has ended.
    closed: bool,
}

/// The sender on loan; dropping it passes it on.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    sender: Option<Box<dyn Sender>>,
    closed: bool,
}

impl Turns {
    pub(super) fn new(sender: Box<dyn Sender>) -> Self {
        let state = TurnState { sender: Some(sender), waiting: VecDeque::new(), next: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the outgoing direction has ended.
    pub(super) fn closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for the sender, an urgent caller before the others. `None` when the direction has ended or `limit` passed.
    pub(super) fn take(&self, urgent: bool, limit: Option<Duration>) -> Option<Turn<'_>> {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        if urgent {
            state.waiting.push_front(ticket);
        } else {
            state.waiting.push_back(ticket);
        }
        loop {
            let late = until.is_some_and(|until| Instant::now() >= until);
            let mine = state.sender.is_some() && state.waiting.front() == Some(&ticket);
            if state.closed || mine || late {
                state.waiting.retain(|other| *other != ticket);
                let sender = if mine && !state.closed { state.sender.take() } else { None };
                self.changed.notify_all();
                return sender.map(|sender| Turn { turns: self, sender: Some(sender), closed: false });
            }
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Turn<'_> {
    pub(super) fn send(&mut self, frame: Frame) -> Result<(), NetError> {
        match &mut self.sender {
            Some(sender) => sender.send(frame),
            None => Err(NetError::closed("it was closed on this side")),
        }
    }

    pub(super) fn close(&mut self) {
        if let Some(sender) = &mut self.sender {
            sender.close();
        }
        self.closed = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.sender = self.sender.take();
        state.closed |= self.closed;
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    struct Log(mpsc::Sender<u16>);

    impl Sender for Log {
        fn send(&mut self, frame: Frame) -> Result<(), NetError> {
            self.0.send(frame.kind).map_err(|_| NetError::closed("the test is over"))
        }

        fn close(&mut self) {}
    }

    fn frame(kind: u16) -> Frame {
        Frame { lane: 0, kind, session: [0; 16], payload: vec![] }
    }

    /// Waits until `count` threads wait for their turn.
    fn until_waiting(turns: &Turns, count: usize) {
        while turns.lock().waiting.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn turns_come_in_the_order_of_asking_and_urgent_ones_first() {
        let (sender, log) = mpsc::channel();
        let turns = Turns::new(Box::new(Log(sender)));
        let first = turns.take(false, None).unwrap();
        thread::scope(|s| {
            for (asked, (kind, urgent)) in [(1, false), (2, false), (9, true), (3, false)].into_iter().enumerate() {
                let turns = &turns;
                s.spawn(move || turns.take(urgent, None).unwrap().send(frame(kind)).unwrap());
                until_waiting(turns, asked + 1);
            }
            drop(first);
        });
        assert_eq!(log.try_iter().collect::<Vec<_>>(), [9, 1, 2, 3]);
    }

    #[test]
    fn nobody_gets_a_turn_after_the_end_and_a_limit_is_kept() {
        let turns = Turns::new(Box::new(Log(mpsc::channel().0)));
        let mut first = turns.take(false, None).unwrap();
        assert!(turns.take(true, Some(Duration::ZERO)).is_none());
        thread::scope(|s| {
            let waiting = s.spawn(|| turns.take(false, None).is_none());
            until_waiting(&turns, 1);
            first.close();
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert!(turns.closed() && turns.take(true, None).is_none());
        assert!(turns.lock().waiting.is_empty());
    }
}
