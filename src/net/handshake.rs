//! The first two frames of a connection: who speaks which protocol version, and the session's name.
//!
//! The client sends a hello with the oldest and newest version that it speaks. The server answers with a welcome (the
//! newest version that both speak, a fresh session name) or with a refusal that holds a sentence. Both frames are on the
//! connection's own lane. Until the handshake is over, payloads are short and the time for all of it is limited, so that
//! a stranger on the port costs little.

use std::time::{Duration, Instant};

use super::channel::Channel;
use super::error::{NetError, printable};
use super::frame::{DEFAULT_PAYLOAD_LIMIT, Frame, SessionId};
use super::meter::Meter;
use super::mux::{CONTROL_LANE, KIND_ABORT};
use crate::arith::codec::{CodecError, Reader, Writer};

const KIND_HELLO: u16 = 0xff00;
const KIND_WELCOME: u16 = 0xff01;
const PAYLOAD_LIMIT: u64 = 4096;
const NO_SESSION: SessionId = [0; 16];

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest that is spoken.
    pub oldest: u16,
    /// The newest that is spoken.
    pub newest: u16,
}

impl Versions {
    /// What this release speaks.
    pub const CURRENT: Self = Self { oldest: 3, newest: 3 };

    /// The newest version in both ranges.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    fn text(self) -> String {
        if self.oldest == self.newest { self.newest.to_string() } else { format!("{} to {}", self.oldest, self.newest) }
    }
}

/// What the two sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol version to speak.
    pub version: u16,
    /// The session's name, for [`super::MuxOptions`].
    pub session: SessionId,
    /// The peer's release as it says, printable.
    pub release: String,
}

/// The client's part: says hello and waits for the welcome, at most for `limit`.
///
/// # Errors
/// [`NetError::Peer`] with the server's sentence when it refuses, [`NetError::FrameVersion`] when it is of another
/// release, [`NetError::Timeout`], and errors of the channel.
pub fn greet(channel: &mut Channel, meter: &Meter, versions: Versions, limit: Duration) -> Result<Agreed, NetError> {
    begin(channel, limit);
    let mut hello = Writer::new();
    hello.u16(versions.oldest).u16(versions.newest).bytes(release().as_bytes());
    let sent = send(channel, meter, KIND_HELLO, NO_SESSION, hello.finish());
    // A server that has refused already may have closed its side; its sentence is then still to be read.
    let frame = match (sent, receive(channel, meter)) {
        (Err(error), Ok(frame)) if frame.kind != KIND_ABORT => return Err(error),
        (_, received) => received.map_err(|error| waited(error, limit))?,
    };
    let agreed = match frame.kind {
        KIND_WELCOME => read_welcome(&frame)?,
        KIND_ABORT => return Err(NetError::Peer { reason: printable(&frame.payload) }),
        kind => return Err(NetError::UnexpectedKind { kind, expected: "the server's welcome" }),
    };
    if agreed.version < versions.oldest || agreed.version > versions.newest {
        let server = Versions { oldest: agreed.version, newest: agreed.version };
        return Err(NetError::NoCommonVersion { client: versions.text(), server: server.text() });
    }
    end(channel);
    Ok(agreed)
}

/// The server's part: waits for the hello, at most for `limit`, and welcomes or refuses.
///
/// # Errors
/// [`NetError::NotHeliostat`] for a stranger, [`NetError::NoCommonVersion`], [`NetError::FrameVersion`],
/// [`NetError::Timeout`], and errors of the channel. Where the peer can understand it, it has been told.
pub fn welcome(channel: &mut Channel, meter: &Meter, versions: Versions, limit: Duration) -> Result<Agreed, NetError> {
    begin(channel, limit);
    match try_welcome(channel, meter, versions) {
        Ok(agreed) => {
            end(channel);
            Ok(agreed)
        }
        Err(error) => {
            let error = waited(error, limit);
            if !matches!(error, NetError::NotHeliostat { .. } | NetError::Timeout { .. }) && !error.is_departure() {
                refuse(channel, meter, &error.to_string());
            }
            Err(error)
        }
    }
}

/// Tells the peer `reason`, a sentence without secrets, and ends the outgoing direction. Failures do not matter: the peer
/// is then gone.
pub fn refuse(channel: &mut Channel, meter: &Meter, reason: &str) {
    let _ = send(channel, meter, KIND_ABORT, NO_SESSION, reason.as_bytes().to_vec());
    channel.close();
}

fn try_welcome(channel: &mut Channel, meter: &Meter, versions: Versions) -> Result<Agreed, NetError> {
    let frame = receive(channel, meter)?;
    if frame.kind != KIND_HELLO {
        return Err(NetError::UnexpectedKind { kind: frame.kind, expected: "the client's hello" });
    }
    let (theirs, their_release) = read_hello(&frame.payload)?;
    let version = versions
        .common(theirs)
        .ok_or_else(|| NetError::NoCommonVersion { client: theirs.text(), server: versions.text() })?;
    let mut session = NO_SESSION;
    getrandom::fill(&mut session).map_err(|e| NetError::Io { doing: "naming a session", message: e.to_string() })?;
    let mut answer = Writer::new();
    answer.u16(version).bytes(release().as_bytes());
    send(channel, meter, KIND_WELCOME, session, answer.finish())?;
    Ok(Agreed { version, session, release: their_release })
}

fn read_hello(payload: &[u8]) -> Result<(Versions, String), CodecError> {
    let mut reader = Reader::new("the client's hello", payload);
    let versions = Versions { oldest: reader.u16("oldest version")?, newest: reader.u16("newest version")? };
    let release = printable(reader.bytes("release")?);
    reader.finish()?;
    if versions.oldest > versions.newest {
        return Err(CodecError::Invalid { what: "the range of versions" });
    }
    Ok((versions, release))
}

fn read_welcome(frame: &Frame) -> Result<Agreed, CodecError> {
    let mut reader = Reader::new("the server's welcome", &frame.payload);
    let version = reader.u16("version")?;
    let release = printable(reader.bytes("release")?);
    reader.finish()?;
    if frame.session == NO_SESSION {
        return Err(CodecError::Invalid { what: "the session's name" });
    }
    Ok(Agreed { version, session: frame.session, release })
}

fn release() -> &'static str {
    concat!("heliostat ", env!("CARGO_PKG_VERSION"))
}

fn begin(channel: &mut Channel, limit: Duration) {
    channel.receiver.set_payload_limit(PAYLOAD_LIMIT);
    channel.control.set_deadline(Instant::now().checked_add(limit));
}

fn end(channel: &mut Channel) {
    channel.control.set_deadline(None);
    channel.receiver.set_payload_limit(DEFAULT_PAYLOAD_LIMIT);
}

/// The deadline's error with the deadline's length.
fn waited(error: NetError, limit: Duration) -> NetError {
    match error {
        NetError::Timeout { .. } => NetError::Timeout { doing: "waiting for the peer's first message", limit },
        other => other,
    }
}

fn send(channel: &mut Channel, meter: &Meter, kind: u16, session: SessionId, payload: Vec<u8>) -> Result<(), NetError> {
    let frame = Frame { lane: CONTROL_LANE, kind, session, payload };
    let bytes = frame.wire_len();
    channel.send(frame)?;
    meter.control_sent(bytes);
    Ok(())
}

fn receive(channel: &mut Channel, meter: &Meter) -> Result<Frame, NetError> {
    let frame = channel.recv()?;
    meter.control_received(frame.wire_len());
    if frame.lane != CONTROL_LANE {
        return Err(NetError::UnknownLane { lane: frame.lane, lanes: 0 });
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::super::memory::memory_pair;
    use super::super::meter::Role;
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(20);

    fn both(client: Versions, server: Versions) -> (Result<Agreed, NetError>, Result<Agreed, NetError>) {
        let (mut c, mut s) = memory_pair(1 << 20);
        let (c_meter, s_meter) = (Meter::new(Role::Client), Meter::new(Role::Server));
        let counting = s_meter.clone();
        let serving = thread::spawn(move || welcome(&mut s, &counting, server, LIMIT));
        let greeted = greet(&mut c, &c_meter, client, LIMIT);
        let welcomed = serving.join().unwrap();
        assert_eq!(c_meter.snapshot(), s_meter.snapshot());
        assert_eq!(c_meter.snapshot().rounds, 0);
        (greeted, welcomed)
    }

    #[test]
    fn the_newest_common_version_is_agreed_on() {
        let range = |oldest, newest| Versions { oldest, newest };
        for (client, server, version) in [
            (Versions::CURRENT, Versions::CURRENT, 3),
            (range(1, 3), range(2, 5), 3),
            (range(2, 5), range(1, 3), 3),
            (range(3, 3), range(1, 3), 3),
        ] {
            let (greeted, welcomed) = both(client, server);
            let (greeted, welcomed) = (greeted.unwrap(), welcomed.unwrap());
            assert_eq!(greeted, welcomed);
            assert_eq!(greeted.version, version);
            assert_ne!(greeted.session, NO_SESSION);
        }
        let sessions = [0, 1].map(|_| both(Versions::CURRENT, Versions::CURRENT).0.unwrap().session);
        assert_ne!(sessions[0], sessions[1]);
    }

    #[test]
    fn no_common_version_is_a_sentence_on_both_sides() {
        let (greeted, welcomed) = both(Versions { oldest: 1, newest: 2 }, Versions { oldest: 3, newest: 3 });
        let sentence = welcomed.unwrap_err().to_string();
        assert!(sentence.contains("the client speaks 1 to 2 and the server 3"), "{sentence}");
        assert_eq!(greeted.unwrap_err(), NetError::Peer { reason: sentence });
    }

    #[test]
    fn a_message_in_place_of_the_handshake_is_refused_with_a_sentence() {
        let (mut c, mut s) = memory_pair(1 << 20);
        let meter = Meter::new(Role::Server);
        c.send(Frame { lane: CONTROL_LANE, kind: 3, session: NO_SESSION, payload: vec![] }).unwrap();
        let error = welcome(&mut s, &meter, Versions::CURRENT, LIMIT).unwrap_err();
        assert!(matches!(error, NetError::UnexpectedKind { kind: 3, .. }));
        assert_eq!(c.recv().unwrap().payload, error.to_string().into_bytes());

        let (mut c, mut s) = memory_pair(1 << 20);
        let long = vec![0; PAYLOAD_LIMIT as usize + 1];
        c.send(Frame { lane: CONTROL_LANE, kind: KIND_HELLO, session: NO_SESSION, payload: long }).unwrap();
        assert!(matches!(welcome(&mut s, &meter, Versions::CURRENT, LIMIT), Err(NetError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn any_payload_gives_a_result(payload in proptest::collection::vec(any::<u8>(), 0..40), session: [u8; 16]) {
            let _ = read_hello(&payload);
            let _ = read_welcome(&Frame { lane: CONTROL_LANE, kind: KIND_WELCOME, session, payload });
        }
    }
}
