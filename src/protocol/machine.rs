//! The form of every party's state machines: they consume and produce typed messages and do no I/O.

use std::time::Instant;

use super::{Message, Result};
use crate::{engine::schedule::TaskSpan, model::NodeId};

/// A task that ran for a machine on a scheduler.
#[derive(Clone, Debug)]
pub struct WorkSpan {
    /// The node that it ran for.
    pub node: NodeId,
    /// What the span's times count from.
    pub since: Instant,
    /// The task.
    pub span: TaskSpan,
}

/// What a machine wants next.
#[derive(Debug)]
pub enum Turn {
    /// Hand this message to the peer's machine of the same lane, then advance again.
    Send(Message),
    /// Advance with the next message of this lane.
    Receive,
    /// Advance again after another machine of the same party has made progress.
    Blocked,
    /// Nothing more to do.
    Done,
}

/// A lane of one party: a resumable state machine over typed messages.
///
/// It may be driven by a test, a socket or a simulator of a slow link, and be left alone between any two turns.
pub trait Machine: Send {
    /// Moves on; `incoming` is there exactly when the last turn was [`Turn::Receive`].
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn>;

    /// The node that the last turn worked for, for traces and progress.
    fn node(&self) -> Option<NodeId>;

    /// Work done and work in all, in units that grow evenly enough for a progress bar.
    fn progress(&self) -> (u64, u64);

    /// Tasks that have ended since the last call, for traces.
    fn take_spans(&mut self) -> Vec<WorkSpan> {
        Vec::new()
    }
}

/// Drives two machines of one lane against each other, in one thread, until both are done or both are blocked.
/// Returns whether they are done.
pub fn drive_pair<'a>(a: &'a mut dyn Machine, b: &'a mut dyn Machine) -> Result<bool> {
    use std::collections::VecDeque;
    struct Side<'a> {
        machine: &'a mut dyn Machine,
        inbox: VecDeque<Message>,
        receiving: bool,
        done: bool,
    }
    let mut sides = [a, b].map(|machine| Side { machine, inbox: VecDeque::new(), receiving: false, done: false });
    loop {
        let mut moved = false;
        for i in 0..2 {
            loop {
                let side = &mut sides[i];
                if side.done {
                    break;
                }
                let incoming = if side.receiving {
                    match side.inbox.pop_front() {
                        Some(message) => {
                            moved = true;
                            Some(message)
                        }
                        None => break,
                    }
                } else {
                    None
                };
                side.receiving = false;
                match side.machine.advance(incoming)? {
                    Turn::Send(message) => {
                        moved = true;
                        sides[1 - i].inbox.push_back(message);
                    }
                    Turn::Receive => side.receiving = true,
                    Turn::Blocked => break,
                    Turn::Done => {
                        moved = true;
                        side.done = true;
                    }
                }
            }
        }
        if sides.iter().all(|s| s.done) {
            return Ok(true);
        }
        if !moved {
            return Ok(false);
        }
    }
}
