//! Several lanes over one channel, each for its own threads.
//!
//! One thread takes frames from the channel and puts them into the queues of their lanes. A queue holds a limited number
//! of bytes. **While the queue of one lane is full, nothing is read for any lane**: that is what slows the peer down.
//! Protocol code must therefore keep draining every lane that the peer may send on, and must not wait on one lane for
//! something that the peer sends only after another lane, left full, was read. The limit is generous for that reason.
//!
//! Sending takes turns, one frame at a time in the order of asking, so that a lane with large frames cannot starve another.
//!
//! **The end.** When the [`Mux`] and all its lanes are dropped, the peer is told so, everything sent still arrives, and the
//! call waits (up to [`MuxOptions::linger`]) until the peer has seen it, so that no thread and no socket is left behind. A
//! broken connection, a corrupted frame, the peer's end or its [`Mux::abort`] reaches every lane as an error, after the
//! messages that had arrived before it; messages are never lost silently, since an end in order is a frame of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::channel::{Channel, Control, Receiver};
use super::error::{NetError, printable};
use super::frame::{FIRST_RESERVED_KIND, Frame, SessionId, wire_len};
use super::meter::Meter;
use super::turns::Turns;

/// The lane of the connection's own frames.
pub(super) const CONTROL_LANE: u8 = u8::MAX;
/// Kind of the frame that ends a session in order; no payload.
const KIND_END: u16 = 0xff10;
/// Kind of the frame that ends a session with an error; the payload is a sentence in UTF-8.
pub(super) const KIND_ABORT: u16 = 0xff11;
/// How long a call that ends the session waits for its turn to send.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long a failed send waits for the peer's own explanation.
const EXPLANATION: Duration = Duration::from_secs(2);

/// What a [`Mux`] is made for.
#[derive(Debug, Clone)]
pub struct MuxOptions {
    /// The session that every frame names.
    pub session: SessionId,
    /// Number of lanes, numbered from 0; at most 255.
    pub lanes: u8,
    /// Bytes (framing included) that wait in one lane's queue, or one message of any length.
    pub queue_bytes: u64,
    /// How long the end waits for the peer.
    pub linger: Duration,
}

impl MuxOptions {
    /// Options with 256 MiB for each lane's queue and 10 s for the end.
    pub fn new(session: SessionId, lanes: u8) -> Self {
        Self { session, lanes, queue_bytes: 256 << 20, linger: Duration::from_secs(10) }
    }
}

/// The connection under the lanes; clones are the same connection.
#[derive(Clone)]
pub struct Mux {
    owner: Arc<Owner>,
}

/// One of the parallel streams of a connection. Its two directions may be used by different threads; several threads that
/// receive from one lane each get some of the messages.
pub struct Lane {
    owner: Arc<Owner>,
    id: u8,
}

impl Mux {
    /// Starts the lanes over `channel`; each lane is handed out once, in the order of its number. What the lanes carry is
    /// counted in `meter`.
    ///
    /// # Errors
    /// [`NetError::Io`] when the system refuses a thread.
    pub fn new(channel: Channel, meter: Meter, options: MuxOptions) -> Result<(Self, Vec<Lane>), NetError> {
        let Channel { sender, receiver, control } = channel;
        let lanes = options.lanes;
        let shared = Arc::new(Shared {
            turns: Turns::new(sender),
            inbox: Mutex::new(Inbox {
                lanes: (0..lanes).map(|_| Queue::default()).collect(),
                ended: None,
                done: false,
            }),
            changed: Condvar::new(),
            control,
            meter,
            options,
        });
        let reader = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("lanes".into())
            .spawn(move || reader.read_all(receiver))
            .map_err(|e| NetError::io("starting a thread", &e, None))?;
        let owner = Arc::new(Owner { shared, thread: Some(thread) });
        let lanes = (0..lanes).map(|id| Lane { owner: Arc::clone(&owner), id }).collect();
        Ok((Self { owner }, lanes))
    }

    /// Stops the session on both sides: every lane here fails with [`NetError::Aborted`], every lane of the peer with
    /// [`NetError::Peer`], each holding `reason`, a sentence without secrets.
    pub fn abort(&self, reason: &str) {
        self.owner.shared.abort(NetError::Aborted { reason: reason.to_owned() }, reason);
    }

    /// The meter that the lanes count in.
    pub fn meter(&self) -> &Meter {
        &self.owner.shared.meter
    }

    /// Why the session ended, once it has.
    pub fn ended(&self) -> Option<NetError> {
        self.owner.shared.lock().ended.clone()
    }
}

impl Lane {
    /// The lane's number.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Sends a message, waiting while the way is full. `kind` is below [`FIRST_RESERVED_KIND`].
    ///
    /// # Errors
    /// [`NetError::ReservedKind`] and [`NetError::TooLong`] leave the lane usable. Otherwise the session is over, and the
    /// error says why as far as it is known.
    pub fn send(&self, kind: u16, payload: Vec<u8>) -> Result<(), NetError> {
        if kind >= FIRST_RESERVED_KIND {
            return Err(NetError::ReservedKind { kind });
        }
        let bytes = wire_len(payload.len());
        self.owner.shared.send(Frame { lane: self.id, kind, session: self.owner.shared.options.session, payload })?;
        self.owner.shared.meter.sent(self.id, bytes);
        Ok(())
    }

    /// Waits for the next message of this lane: its kind and payload.
    ///
    /// # Errors
    /// The reason of the session's end, after the last message that arrived before it.
    pub fn recv(&self) -> Result<(u16, Vec<u8>), NetError> {
        let (kind, payload) = self.owner.shared.take(self.id)?;
        self.owner.shared.meter.received(self.id, wire_len(payload.len()));
        Ok((kind, payload))
    }

    /// As [`Lane::recv`] for a message of one kind.
    ///
    /// # Errors
    /// [`NetError::UnexpectedKind`] when another arrives; `expected` names what was due.
    pub fn recv_kind(&self, kind: u16, expected: &'static str) -> Result<Vec<u8>, NetError> {
        match self.recv()? {
            (found, payload) if found == kind => Ok(payload),
            (found, _) => Err(NetError::UnexpectedKind { kind: found, expected }),
        }
    }

    /// Stops the session on both sides, as [`Mux::abort`].
    pub fn abort(&self, reason: &str) {
        self.owner.shared.abort(NetError::Aborted { reason: reason.to_owned() }, reason);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let shared = &self.owner.shared;
        let mut inbox = shared.lock();
        let queue = &mut inbox.lanes[self.id as usize];
        queue.dropped = true;
        let unread = queue.discard();
        shared.meter.control_received(unread);
        shared.changed.notify_all();
    }
}

/// Held by the mux and its lanes: the last one to go ends the session.
struct Owner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.end();
        if let Some(thread) = self.thread.take() {
            // The reader does not panic, and if it did there is nobody left to tell.
            let _ = thread.join();
        }
        self.shared.control.close();
    }
}

/// What the users' threads and the reading thread have in common.
struct Shared {
    turns: Turns,
    inbox: Mutex<Inbox>,
    /// Any change of the inbox.
    changed: Condvar,
    control: Arc<dyn Control>,
    meter: Meter,
    options: MuxOptions,
}

struct Inbox {
    lanes: Vec<Queue>,
    /// Why nothing more comes and nothing more can be sent.
    ended: Option<NetError>,
    /// The reading thread has stopped.
    done: bool,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<(u16, Vec<u8>)>,
    bytes: u64,
    /// Nobody will take messages any more.
    dropped: bool,
}

impl Queue {
    /// Empties the queue; returns the bytes that nobody took.
    fn discard(&mut self) -> u64 {
        self.messages.clear();
        std::mem::take(&mut self.bytes)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inbox: MutexGuard<'a, Inbox>) -> MutexGuard<'a, Inbox> {
        self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `until` holds, at most for `limit`.
    fn wait_for(&self, limit: Duration, until: impl Fn(&Inbox) -> bool) -> MutexGuard<'_, Inbox> {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |inbox| !until(inbox));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn send(&self, frame: Frame) -> Result<(), NetError> {
        if let Some(reason) = self.lock().ended.clone() {
            return Err(reason);
        }
        let result = match self.turns.take(false, None) {
            Some(mut sender) => sender.send(frame),
            None => Err(NetError::closed("it was closed on this side")),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error @ NetError::TooLong { .. }) => Err(error),
            // The peer's own words, which may still be on their way in, tell more than a reset.
            Err(error) => {
                let known = self.wait_for(EXPLANATION, |inbox| inbox.ended.is_some()).ended.clone();
                Err(known.unwrap_or_else(|| self.set_ended(error)))
            }
        }
    }

    fn take(&self, lane: u8) -> Result<(u16, Vec<u8>), NetError> {
        let mut inbox = self.lock();
        loop {
            let queue = &mut inbox.lanes[lane as usize];
            if let Some(message) = queue.messages.pop_front() {
                queue.bytes -= wire_len(message.1.len());
                self.changed.notify_all();
                return Ok(message);
            }
            if let Some(reason) = &inbox.ended {
                return Err(reason.clone());
            }
            inbox = self.wait(inbox);
        }
    }

    /// Sets the reason of the end unless there is one; returns the one that holds.
    fn set_ended(&self, reason: NetError) -> NetError {
        let mut inbox = self.lock();
        let reason = inbox.ended.get_or_insert(reason).clone();
        self.changed.notify_all();
        reason
    }

    /// The life of the reading thread.
    fn read_all(&self, mut receiver: Box<dyn Receiver>) {
        let error = loop {
            let received = receiver.recv().map_err(|error| match error {
                NetError::Closed { .. } => {
                    NetError::closed("the peer stopped or crashed before the end of the session")
                }
                other => other,
            });
            if let Err(error) = received.and_then(|frame| self.deliver(frame)) {
                break error;
            }
        };
        let reason = self.set_ended(error.clone());
        if reason == error && !error.is_departure() {
            self.last_words(KIND_ABORT, error.to_string().into_bytes());
        } else {
            self.last_words(KIND_END, Vec::new());
        }
        drop(receiver);
        self.lock().done = true;
        self.changed.notify_all();
    }

    fn deliver(&self, frame: Frame) -> Result<(), NetError> {
        let bytes = frame.wire_len();
        if frame.session != self.options.session {
            return Err(NetError::WrongSession);
        }
        if frame.lane == CONTROL_LANE {
            self.meter.control_received(bytes);
            return Err(match frame.kind {
                KIND_END => NetError::closed("the peer has ended the session"),
                KIND_ABORT => NetError::Peer { reason: printable(&frame.payload) },
                kind => NetError::UnexpectedKind { kind, expected: "a message or the end of the session" },
            });
        }
        if frame.lane >= self.options.lanes {
            return Err(NetError::UnknownLane { lane: frame.lane, lanes: self.options.lanes });
        }
        if frame.kind >= FIRST_RESERVED_KIND {
            return Err(NetError::UnexpectedKind { kind: frame.kind, expected: "a message" });
        }
        let lane = frame.lane as usize;
        let full = |queue: &Queue| !queue.dropped && queue.bytes > 0 && queue.bytes + bytes > self.options.queue_bytes;
        let mut inbox = self.lock();
        while inbox.ended.is_none() && full(&inbox.lanes[lane]) {
            inbox = self.wait(inbox);
        }
        if inbox.lanes[lane].dropped || inbox.ended.is_some() {
            self.meter.control_received(bytes);
            return Ok(());
        }
        let queue = &mut inbox.lanes[lane];
        queue.bytes += bytes;
        queue.messages.push_back((frame.kind, frame.payload));
        self.changed.notify_all();
        Ok(())
    }

    /// Sends a frame of the connection's own and ends the outgoing direction, unless that has happened or the way stays
    /// blocked.
    fn last_words(&self, kind: u16, payload: Vec<u8>) {
        let Some(mut sender) = self.turns.take(true, Some(LAST_WORD)) else {
            if !self.turns.closed() {
                self.control.close();
            }
            return;
        };
        let frame = Frame { lane: CONTROL_LANE, kind, session: self.options.session, payload };
        let bytes = frame.wire_len();
        // A failure means that the peer is gone, which the reading thread reports.
        if sender.send(frame).is_ok() {
            self.meter.control_sent(bytes);
        }
        sender.close();
    }

    fn abort(&self, error: NetError, reason: &str) {
        {
            let mut inbox = self.lock();
            if inbox.ended.is_some() {
                return;
            }
            inbox.ended = Some(error);
            let unread = inbox.lanes.iter_mut().map(Queue::discard).sum();
            self.meter.control_received(unread);
            self.changed.notify_all();
        }
        self.last_words(KIND_ABORT, reason.as_bytes().to_vec());
    }

    /// The end, from the side of the users.
    fn end(&self) {
        if self.lock().ended.is_none() {
            self.last_words(KIND_END, Vec::new());
        }
        if !self.wait_for(self.options.linger, |inbox| inbox.done).done {
            self.control.close();
        }
    }
}
