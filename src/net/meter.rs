//! Bytes and rounds of one session, as the client sees them.
//!
//! *Up* is client to server, *down* the other way, whichever side counts. Bytes are those written to the channel, framing
//! included, without TCP and IP headers.
//!
//! **Rounds.** Within one lane a round ends when the direction of traffic turns from up to down. Sends count when they are
//! made and receipts when the lane's user takes the message (not when it arrives), so that the count follows the program
//! and not the timing. Lanes run side by side: their chains do not add up, the longest counts. Lanes that wait for one
//! another meet at a [`Meter::barrier`]: what comes after it on any lane depends on what came before it on all, so the
//! longest chain up to it is added to the total and the lanes start again from zero. A lane keeps its last direction
//! across a barrier: a question before it and the answer after it are one round, counted after it. Traffic down that
//! nobody asked for (the manifest) is no round.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which party counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends up, receives down.
    Client,
    /// Sends down, receives up.
    Server,
}

/// Bytes and rounds up to a moment, or between two of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from client to server.
    pub bytes_up: u64,
    /// Bytes from server to client.
    pub bytes_down: u64,
    /// Rounds along the longest chain, as the module says.
    pub rounds: u64,
    /// Bytes (up, down) of each lane that was used. The connection's own frames (handshake, end) are in the sums only.
    pub lanes: BTreeMap<u8, (u64, u64)>,
}

impl Traffic {
    /// What happened between `earlier` and `self`, both of the same meter. Rounds are exact when both are from
    /// [`Meter::cut`], and otherwise the growth of the total.
    pub fn since(&self, earlier: &Self) -> Self {
        let lane = |(id, &(up, down)): (&u8, &(u64, u64))| {
            let (up0, down0) = earlier.lanes.get(id).copied().unwrap_or_default();
            (*id, (up.saturating_sub(up0), down.saturating_sub(down0)))
        };
        Self {
            bytes_up: self.bytes_up.saturating_sub(earlier.bytes_up),
            bytes_down: self.bytes_down.saturating_sub(earlier.bytes_down),
            rounds: self.rounds.saturating_sub(earlier.rounds),
            lanes: self.lanes.iter().map(lane).filter(|(_, bytes)| *bytes != (0, 0)).collect(),
        }
    }
}

/// The counter of one party, shared by everything that sends and receives for it; clones count into the same.
#[derive(Debug, Clone)]
pub struct Meter {
    role: Role,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    bytes: Bytes,
    lanes: BTreeMap<u8, LaneCounts>,
    /// Rounds up to the last barrier.
    rounds: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Bytes {
    up: u64,
    down: u64,
}

#[derive(Debug, Default)]
struct LaneCounts {
    bytes: Bytes,
    /// Turns since the last barrier.
    turns: u64,
    /// Whether the last traffic was up, so that traffic down would end a round.
    asked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Meter {
    /// A meter at zero.
    pub fn new(role: Role) -> Self {
        Self { role, counts: Arc::default() }
    }

    /// The party that counts.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Counts a message of `bytes` bytes on the wire that this party sent on `lane`.
    pub fn sent(&self, lane: u8, bytes: u64) {
        self.message(lane, bytes, self.sending());
    }

    /// Counts a message of `bytes` bytes on the wire that this party took from `lane`.
    pub fn received(&self, lane: u8, bytes: u64) {
        self.message(lane, bytes, self.receiving());
    }

    /// Counts bytes sent outside the lanes: no round.
    pub fn control_sent(&self, bytes: u64) {
        self.lock().bytes.add(bytes, self.sending());
    }

    /// Counts bytes received outside the lanes, or for a lane that is no longer read: no round.
    pub fn control_received(&self, bytes: u64) {
        self.lock().bytes.add(bytes, self.receiving());
    }

    /// All lanes meet: what follows on any of them depends on what came before on all.
    pub fn barrier(&self) {
        let mut counts = self.lock();
        counts.rounds += counts.longest();
        counts.lanes.values_mut().for_each(|lane| lane.turns = 0);
    }

    /// The totals so far.
    pub fn snapshot(&self) -> Traffic {
        let counts = self.lock();
        Traffic {
            bytes_up: counts.bytes.up,
            bytes_down: counts.bytes.down,
            rounds: counts.rounds + counts.longest(),
            lanes: counts.lanes.iter().map(|(id, lane)| (*id, (lane.bytes.up, lane.bytes.down))).collect(),
        }
    }

    /// A barrier and the totals at it: the end of a phase.
    pub fn cut(&self) -> Traffic {
        self.barrier();
        self.snapshot()
    }

    fn message(&self, lane: u8, bytes: u64, direction: Direction) {
        let mut counts = self.lock();
        counts.bytes.add(bytes, direction);
        let lane = counts.lanes.entry(lane).or_default();
        lane.bytes.add(bytes, direction);
        lane.turns += u64::from(lane.asked && direction == Direction::Down);
        lane.asked = direction == Direction::Up;
    }

    fn sending(&self) -> Direction {
        if self.role == Role::Client { Direction::Up } else { Direction::Down }
    }

    fn receiving(&self) -> Direction {
        if self.role == Role::Client { Direction::Down } else { Direction::Up }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn longest(&self) -> u64 {
        self.lanes.values().map(|lane| lane.turns).max().unwrap_or(0)
    }
}

impl Bytes {
    fn add(&mut self, bytes: u64, direction: Direction) {
        match direction {
            Direction::Up => self.up += bytes,
            Direction::Down => self.down += bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `u` (up) and `d` (down) on lane 0 of both parties' meters and returns the rounds, which must agree.
    fn rounds(script: &str) -> u64 {
        let (client, server) = (Meter::new(Role::Client), Meter::new(Role::Server));
        for step in script.chars() {
            match step {
                'u' => (client.sent(0, 1), server.received(0, 1)),
                'd' => (client.received(0, 1), server.sent(0, 1)),
                _ => (client.barrier(), server.barrier()),
            };
        }
        assert_eq!(client.snapshot(), server.snapshot());
        client.snapshot().rounds
    }

    #[test]
    fn a_round_is_a_turn_from_up_to_down() {
        for (script, expected) in [
            ("", 0),
            ("u", 0),
            ("d", 0),
            ("dd", 0),
            ("ud", 1),
            ("uudd", 1),
            ("dduud", 1),
            ("udu", 1),
            ("udud", 2),
            ("u|d", 1),
            ("ud|ud", 2),
            ("d|ud|d", 1),
        ] {
            assert_eq!(rounds(script), expected, "{script}");
        }
    }

    #[test]
    fn parallel_lanes_count_by_the_longest_and_add_up_at_barriers() {
        let meter = Meter::new(Role::Client);
        let ask = |lane| (meter.sent(lane, 10), meter.received(lane, 100));
        ask(0);
        ask(0);
        ask(1);
        assert_eq!(meter.snapshot().rounds, 2);
        let offline = meter.cut();
        ask(1);
        ask(1);
        ask(1);
        ask(0);
        let online = meter.cut().since(&offline);
        assert_eq!((offline.rounds, online.rounds, meter.snapshot().rounds), (2, 3, 5));
        assert_eq!((online.bytes_up, online.bytes_down), (40, 400));
        assert_eq!(online.lanes, BTreeMap::from([(0, (10, 100)), (1, (30, 300))]));
    }

    #[test]
    fn connection_frames_count_as_bytes_only() {
        let meter = Meter::new(Role::Server);
        meter.control_received(5);
        meter.control_sent(7);
        let expected = Traffic { bytes_up: 5, bytes_down: 7, ..Traffic::default() };
        assert_eq!(meter.snapshot(), expected);
    }
}
