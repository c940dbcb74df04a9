//! Drives one machine over one lane of a connection.

use super::{
    SessionError,
    recorder::{Party, Phase, Progress, Recorder, Span},
};
use crate::{
    model::Graph,
    net::Lane,
    protocol::{FRAME_PART, Machine, Message, ShareBoard, Turn, WorkSpan},
};

/// Who drives what, for the recorder.
pub(super) struct Driver<'a> {
    pub party: Party,
    pub phase: Phase,
    pub lane_name: &'static str,
    pub lane: &'a Lane,
    pub graph: &'a Graph,
    pub recorder: &'a Recorder,
    /// Where a blocked machine waits.
    pub board: Option<&'a ShareBoard>,
}

impl Driver<'_> {
    /// Runs the machine to its end.
    pub fn run(&self, machine: &mut dyn Machine) -> Result<(), SessionError> {
        let mut incoming = None;
        let mut bytes = 0;
        loop {
            let seen = self.board.map(ShareBoard::version);
            let start = self.recorder.now();
            let turn = machine.advance(incoming.take())?;
            self.span(machine, start, false, 0, 0);
            self.tasks(machine);
            match turn {
                Turn::Send(message) => {
                    let start = self.recorder.now();
                    let (kind, payload) = (message.kind(), message.encode());
                    let sent = payload.len() as u64;
                    bytes += sent;
                    send(self.lane, kind, payload)?;
                    let (up, down) = if self.party == Party::Client { (sent, 0) } else { (0, sent) };
                    self.span(machine, start, true, up, down);
                }
                Turn::Receive => {
                    let start = self.recorder.now();
                    let (kind, payload) = receive(self.lane)?;
                    let received = payload.len() as u64;
                    bytes += received;
                    let (up, down) = if self.party == Party::Client { (0, received) } else { (received, 0) };
                    self.span(machine, start, true, up, down);
                    incoming = Some(Message::decode(kind, &payload).map_err(crate::protocol::ProtocolError::from)?);
                }
                Turn::Blocked => {
                    let start = self.recorder.now();
                    match (self.board, seen) {
                        (Some(board), Some(version)) => board.wait(version)?,
                        _ => return Err(SessionError::Stuck { lane: self.lane_name }),
                    }
                    self.span(machine, start, true, 0, 0);
                }
                Turn::Done => return Ok(()),
            }
            if self.party == Party::Client {
                let (done, total) = machine.progress();
                let name = machine.node().map_or_else(String::new, |id| self.graph.node(id).name.clone());
                self.recorder.progress(&Progress { phase: self.phase, lane: self.lane_name, name, done, total, bytes });
            }
        }
    }

    /// What ran on a scheduler for the machine.
    fn tasks(&self, machine: &mut dyn Machine) {
        for WorkSpan { node, since, span } in machine.take_spans() {
            let start = self.recorder.at(since) + span.start;
            self.recorder.add(Span {
                party: self.party,
                phase: self.phase,
                lane: span.resource.name(),
                name: span.name,
                layer: self.graph.node(node).layer,
                start,
                duration: span.end.saturating_sub(span.start),
                bytes_up: 0,
                bytes_down: 0,
                held_bytes: span.bytes,
                waiting: false,
            });
        }
    }

    fn span(&self, machine: &dyn Machine, start: std::time::Duration, waiting: bool, bytes_up: u64, bytes_down: u64) {
        let node = machine.node().map(|id| self.graph.node(id));
        self.recorder.add(Span {
            party: self.party,
            phase: self.phase,
            lane: self.lane_name,
            name: node.map_or_else(|| "set-up".to_string(), |n| n.name.clone()),
            layer: node.and_then(|n| n.layer),
            start,
            duration: self.recorder.now().saturating_sub(start),
            bytes_up,
            bytes_down,
            held_bytes: 0,
            waiting,
        });
    }
}

/// Kind of a frame that more frames of the same message follow; the last one has the message's kind.
const PART: u16 = 0x50;

/// Longest message, far above what any model needs, so that a peer cannot have this side gather without end.
const LONGEST: usize = 1 << 30;

/// A message in as many frames as it needs.
fn send(lane: &Lane, kind: u16, mut payload: Vec<u8>) -> Result<(), SessionError> {
    while payload.len() > FRAME_PART {
        let rest = payload.split_off(FRAME_PART);
        lane.send(PART, std::mem::replace(&mut payload, rest))?;
    }
    Ok(lane.send(kind, payload)?)
}

/// The next message, of as many frames as it has.
fn receive(lane: &Lane) -> Result<(u16, Vec<u8>), SessionError> {
    let (mut kind, mut payload) = lane.recv()?;
    while kind == PART {
        let (next, part) = lane.recv()?;
        if payload.len() + part.len() > LONGEST {
            return Err(SessionError::Unexpected { doing: "receiving a message in parts" });
        }
        payload.extend_from_slice(&part);
        kind = next;
    }
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Meter, Mux, MuxOptions, Role, memory::DEFAULT_QUEUE_BYTES, memory_pair};

    /// Short and long messages come whole, in order, at the edges of a frame too.
    #[test]
    fn long_messages_come_in_parts() {
        let (a, b) = memory_pair(DEFAULT_QUEUE_BYTES);
        let lane = |channel, role| {
            let (mux, lanes) = Mux::new(channel, Meter::new(role), MuxOptions::new([1; 16], 1)).unwrap();
            (mux, lanes.into_iter().next().unwrap())
        };
        let lengths = [0, 5, FRAME_PART, FRAME_PART + 1, 2 * FRAME_PART, 2 * FRAME_PART + 7];
        let content = |len: usize| (0..len).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (_mux, lane) = lane(a, Role::Client);
                lengths.iter().for_each(|&len| send(&lane, 0x20, content(len)).unwrap());
                assert_eq!(receive(&lane).unwrap(), (0x21, vec![1]));
            });
            let (_mux, lane) = lane(b, Role::Server);
            for len in lengths {
                assert!(receive(&lane).unwrap() == (0x20, content(len)), "{len}");
            }
            send(&lane, 0x21, vec![1]).unwrap();
        });
    }
}
