//! A channel that keeps a transcript of everything it carries, for tests of what the other party gets to see.
//!
//! The transcript holds whole payloads in memory: it is for small models and never part of a normal run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::channel::{Channel, Receiver, Sender};
use super::error::NetError;
use super::frame::Frame;

/// One frame of a transcript.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whether this side sent it.
    pub sent: bool,
    /// The frame.
    pub frame: Frame,
}

/// The shape of an entry, which must not depend on private data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outline {
    /// Lane of the frame.
    pub lane: u8,
    /// Whether this side sent it.
    pub sent: bool,
    /// Kind of the message.
    pub kind: u16,
    /// Bytes of payload.
    pub bytes: usize,
}

/// Everything a recorded channel carried so far; clones are the same transcript.
#[derive(Clone, Default)]
pub struct Transcript {
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Transcript {
    /// A copy of the entries, in the order in which this side saw them.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    /// Outlines lane by lane and direction by direction, each in order. Between lanes and directions the order depends on
    /// the timing of threads and is left out, so that two runs can be compared.
    pub fn outlines(&self) -> Vec<Outline> {
        let outline = |entry: &Entry| Outline {
            lane: entry.frame.lane,
            sent: entry.sent,
            kind: entry.frame.kind,
            bytes: entry.frame.payload.len(),
        };
        let mut outlines: Vec<Outline> = self.lock().iter().map(outline).collect();
        outlines.sort_by_key(|outline| (outline.lane, outline.sent));
        outlines
    }

    /// Whether `needle` occurs within one payload that this side sent. An empty needle does not occur.
    pub fn sent_contains(&self, needle: &[u8]) -> bool {
        !needle.is_empty()
            && self
                .lock()
                .iter()
                .any(|entry| entry.sent && entry.frame.payload.windows(needle.len()).any(|window| window == needle))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `channel` with a transcript of what it sends and receives from now on.
pub fn record(channel: Channel) -> (Channel, Transcript) {
    let transcript = Transcript::default();
    let sender = Box::new(RecordedSender { inner: channel.sender, transcript: transcript.clone() });
    let receiver = Box::new(RecordedReceiver { inner: channel.receiver, transcript: transcript.clone() });
    (Channel { sender, receiver, control: channel.control }, transcript)
}

struct RecordedSender {
    inner: Box<dyn Sender>,
    transcript: Transcript,
}

impl Sender for RecordedSender {
    fn send(&mut self, frame: Frame) -> Result<(), NetError> {
        self.transcript.lock().push(Entry { sent: true, frame: frame.clone() });
        self.inner.send(frame)
    }

    fn close(&mut self) {
        self.inner.close();
    }
}

struct RecordedReceiver {
    inner: Box<dyn Receiver>,
    transcript: Transcript,
}

impl Receiver for RecordedReceiver {
    fn recv(&mut self) -> Result<Frame, NetError> {
        let frame = self.inner.recv()?;
        self.transcript.lock().push(Entry { sent: false, frame: frame.clone() });
        Ok(frame)
    }

    fn set_payload_limit(&mut self, bytes: u64) {
        self.inner.set_payload_limit(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::memory_pair;
    use super::*;

    fn frame(lane: u8, payload: &[u8]) -> Frame {
        Frame { lane, kind: 5, session: [0; 16], payload: payload.to_vec() }
    }

    #[test]
    fn a_transcript_holds_both_directions_and_finds_what_was_sent() {
        let (near, mut far) = memory_pair(1 << 20);
        let (mut near, transcript) = record(near);
        near.send(frame(1, b"a sentence")).unwrap();
        near.send(frame(0, b"abc")).unwrap();
        far.send(frame(0, b"reply")).unwrap();
        assert_eq!(near.recv().unwrap(), frame(0, b"reply"));
        assert_eq!(far.recv().unwrap(), frame(1, b"a sentence"));
        let sent: Vec<bool> = transcript.entries().iter().map(|entry| entry.sent).collect();
        assert_eq!(sent, [true, true, false]);
        let outline = |lane, sent, bytes| Outline { lane, sent, kind: 5, bytes };
        assert_eq!(transcript.outlines(), [outline(0, false, 5), outline(0, true, 3), outline(1, true, 10)]);
        assert!(transcript.sent_contains(b"sent") && transcript.sent_contains(b"abc"));
        assert!(
            !transcript.sent_contains(b"reply")
                && !transcript.sent_contains(b"")
                && !transcript.sent_contains(&[0; 99])
        );
    }
}
