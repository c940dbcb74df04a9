//! A channel between two threads of one process.
//!
//! Frames are handed over as they are, without checksums; they count with the bytes that they would take on a wire. Each
//! direction holds a limited number of bytes: a sender that is ahead waits.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::channel::{Channel, Control, Receiver, Sender};
use super::error::NetError;
use super::frame::{DEFAULT_PAYLOAD_LIMIT, Frame};

/// Bytes that wait in one direction before its sender does (64 MiB).
pub const DEFAULT_QUEUE_BYTES: u64 = 64 << 20;

/// Two connected channels. Each direction holds up to `queue_bytes` bytes on the wire, or one frame of any length.
pub fn memory_pair(queue_bytes: u64) -> (Channel, Channel) {
    let (there, back) = (Arc::new(Pipe::new(queue_bytes)), Arc::new(Pipe::new(queue_bytes)));
    (end(&there, &back), end(&back, &there))
}

fn end(outgoing: &Arc<Pipe>, incoming: &Arc<Pipe>) -> Channel {
    Channel {
        sender: Box::new(MemorySender { pipe: Arc::clone(outgoing) }),
        receiver: Box::new(MemoryReceiver { pipe: Arc::clone(incoming), limit: DEFAULT_PAYLOAD_LIMIT }),
        control: Arc::new(MemoryControl { pipes: [Arc::clone(outgoing), Arc::clone(incoming)] }),
    }
}

struct Pipe {
    queue: Mutex<Queue>,
    limit: u64,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: u64,
    /// Nothing more will be put in.
    finished: bool,
    /// Nothing more will be taken out.
    abandoned: bool,
}

impl Pipe {
    fn new(limit: u64) -> Self {
        Self { queue: Mutex::default(), limit, changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, frame: Frame) -> Result<(), NetError> {
        let bytes = frame.wire_len();
        let mut queue = self.lock();
        while !queue.abandoned && !queue.finished && queue.bytes > 0 && queue.bytes + bytes > self.limit {
            queue = self.wait(queue);
        }
        if queue.abandoned {
            return Err(NetError::Reset { doing: "sending a frame" });
        }
        if queue.finished {
            return Err(NetError::closed("it was closed on this side"));
        }
        queue.bytes += bytes;
        queue.frames.push_back(frame);
        self.changed.notify_all();
        Ok(())
    }

    fn take(&self) -> Result<Frame, NetError> {
        let mut queue = self.lock();
        loop {
            if queue.abandoned {
                return Err(NetError::closed("it was closed on this side"));
            }
            if let Some(frame) = queue.frames.pop_front() {
                queue.bytes -= frame.wire_len();
                self.changed.notify_all();
                return Ok(frame);
            }
            if queue.finished {
                return Err(NetError::closed("the peer closed it"));
            }
            queue = self.wait(queue);
        }
    }

    fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    fn abandon(&self) {
        let mut queue = self.lock();
        queue.abandoned = true;
        queue.frames.clear();
        queue.bytes = 0;
        self.changed.notify_all();
    }
}

struct MemorySender {
    pipe: Arc<Pipe>,
}

impl Sender for MemorySender {
    fn send(&mut self, frame: Frame) -> Result<(), NetError> {
        let bytes = frame.payload.len() as u64;
        if bytes > DEFAULT_PAYLOAD_LIMIT {
            return Err(NetError::TooLong { bytes, limit: DEFAULT_PAYLOAD_LIMIT });
        }
        self.pipe.put(frame)
    }

    fn close(&mut self) {
        self.pipe.finish();
    }
}

impl Drop for MemorySender {
    fn drop(&mut self) {
        self.pipe.finish();
    }
}

struct MemoryReceiver {
    pipe: Arc<Pipe>,
    limit: u64,
}

impl Receiver for MemoryReceiver {
    fn recv(&mut self) -> Result<Frame, NetError> {
        let frame = self.pipe.take()?;
        let bytes = frame.payload.len() as u64;
        if bytes > self.limit {
            self.pipe.abandon();
            return Err(NetError::TooLong { bytes, limit: self.limit });
        }
        Ok(frame)
    }

    fn set_payload_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }
}

impl Drop for MemoryReceiver {
    fn drop(&mut self) {
        self.pipe.abandon();
    }
}

struct MemoryControl {
    /// Outgoing, incoming.
    pipes: [Arc<Pipe>; 2],
}

impl Control for MemoryControl {
    fn close(&self) {
        self.pipes[0].finish();
        self.pipes[1].abandon();
    }

    fn set_deadline(&self, _deadline: Option<Instant>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn frame(kind: u16, bytes: usize) -> Frame {
        Frame { lane: 0, kind, session: [0; 16], payload: vec![kind as u8; bytes] }
    }

    #[test]
    fn frames_arrive_in_order_and_then_the_end() {
        let (mut a, mut b) = memory_pair(1000);
        (0..5).for_each(|k| a.send(frame(k, 10)).unwrap());
        a.close();
        assert!(matches!(a.send(frame(9, 1)), Err(NetError::Closed { .. })));
        (0..5).for_each(|k| assert_eq!(b.recv().unwrap(), frame(k, 10)));
        assert!(matches!(b.recv(), Err(NetError::Closed { .. })));
        b.send(frame(7, 3)).unwrap();
        assert_eq!(a.recv().unwrap(), frame(7, 3));
    }

    #[test]
    fn a_sender_waits_for_space_and_never_holds_more() {
        let (mut a, mut b) = memory_pair(400);
        let sender = thread::spawn(move || (0..200).try_for_each(|k| a.send(frame(k, 100))));
        for k in 0..200 {
            assert_eq!(b.recv().unwrap(), frame(k, 100));
        }
        sender.join().unwrap().unwrap();
        // One frame over the limit passes alone.
        let (mut a, mut b) = memory_pair(10);
        a.send(frame(1, 1000)).unwrap();
        assert_eq!(b.recv().unwrap(), frame(1, 1000));
    }

    #[test]
    fn a_waiting_sender_is_told_that_the_receiver_is_gone() {
        let (mut a, b) = memory_pair(10);
        a.send(frame(1, 100)).unwrap();
        let sender = thread::spawn(move || a.send(frame(2, 100)));
        drop(b);
        assert!(matches!(sender.join().unwrap(), Err(NetError::Reset { .. })));
    }

    #[test]
    fn control_wakes_both_halves() {
        let (a, mut b) = memory_pair(10);
        let Channel { mut sender, mut receiver, control } = a;
        sender.send(frame(1, 100)).unwrap();
        let sending = thread::spawn(move || sender.send(frame(2, 100)));
        let receiving = thread::spawn(move || receiver.recv());
        control.close();
        assert!(sending.join().unwrap().is_err());
        assert!(receiving.join().unwrap().is_err());
        assert_eq!(b.recv().unwrap(), frame(1, 100));
        assert!(b.recv().is_err());
    }

    #[test]
    fn payload_limits_hold() {
        let (mut a, mut b) = memory_pair(1000);
        b.receiver.set_payload_limit(50);
        a.send(frame(1, 51)).unwrap();
        assert_eq!(b.recv(), Err(NetError::TooLong { bytes: 51, limit: 50 }));
        assert!(b.recv().is_err());
    }
}
