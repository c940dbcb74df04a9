//! What can go wrong between the two parties, one sentence each.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use crate::arith::codec::CodecError;

/// An error of a channel, a frame, a session or the listener.
///
/// It is `Clone` because one broken connection is reported to every lane that runs over it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NetError {
    /// The first bytes are not a frame's.
    #[error("the peer does not speak the Heliostat protocol: it sent {found}")]
    NotHeliostat {
        /// What the bytes look like, without their content.
        found: String,
    },
    /// The frame format of the peer is another one.
    #[error("the peer writes frame format {theirs} and this program {ours}: use the same release on both sides")]
    FrameVersion {
        /// Format number in the peer's frame.
        theirs: u16,
        /// [`super::frame::FRAME_VERSION`].
        ours: u16,
    },
    /// The handshake found no protocol version that both sides speak.
    #[error(
        "no common protocol version: the client speaks {client} and the server {server}; use the same release on both \
         sides"
    )]
    NoCommonVersion {
        /// Versions of the client, as `oldest..newest`.
        client: String,
        /// Versions of the server, as `oldest..newest`.
        server: String,
    },
    /// The header was altered on the way.
    #[error("a frame's header was corrupted on the way (its checksum does not match)")]
    HeaderChecksum,
    /// The payload was altered on the way.
    #[error("a frame's payload was corrupted on the way (its checksum does not match)")]
    PayloadChecksum,
    /// A frame announces, or was given, more bytes than the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit} bytes")]
    TooLong {
        /// Payload length in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A frame is missing, repeated or out of order.
    #[error("frame {found} arrived where frame {expected} was due: frames were lost, repeated or reordered")]
    Sequence {
        /// The number that was due.
        expected: u32,
        /// The number in the frame.
        found: u32,
    },
    /// All 2^32 sequence numbers of a direction are used.
    #[error("this connection has carried its greatest number of frames (2^32): connect again")]
    SequenceExhausted,
    /// The stream ends inside a frame.
    #[error("the connection ended in the middle of a frame: the peer stopped or the line was cut")]
    Truncated,
    /// A frame of another session.
    #[error("a frame of another session arrived on this connection")]
    WrongSession,
    /// A frame for a lane that this connection does not have.
    #[error("a frame arrived for lane {lane}, but this connection has {lanes} lanes")]
    UnknownLane {
        /// Lane number in the frame.
        lane: u8,
        /// Number of lanes of the connection.
        lanes: u8,
    },
    /// A frame of an unexpected kind.
    #[error("a frame of kind {kind:#06x} arrived where {expected} was due")]
    UnexpectedKind {
        /// Kind in the frame.
        kind: u16,
        /// What was due.
        expected: &'static str,
    },
    /// A message kind in the range kept for the connection itself.
    #[error("message kind {kind:#06x} is reserved: kinds of messages are below 0xff00")]
    ReservedKind {
        /// The kind that was given.
        kind: u16,
    },
    /// The connection is closed in order.
    #[error("the connection is closed: {reason}")]
    Closed {
        /// Who closed it and how.
        reason: String,
    },
    /// The peer stopped and said why.
    #[error("the peer stopped: {reason}")]
    Peer {
        /// The peer's sentence, control characters removed.
        reason: String,
    },
    /// This side stopped the session.
    #[error("the session was stopped here: {reason}")]
    Aborted {
        /// This side's sentence.
        reason: String,
    },
    /// Nobody listens at the address.
    #[error("nobody listens at {address}: start `heliostat serve` there or check the address")]
    Refused {
        /// The address as given.
        address: String,
    },
    /// The peer vanished.
    #[error("the peer is gone: the connection was reset while {doing}")]
    Reset {
        /// What this side was doing.
        doing: &'static str,
    },
    /// The port is taken.
    #[error("the address {address} is already in use: stop the other program or choose another port")]
    PortInUse {
        /// The address as given.
        address: SocketAddr,
    },
    /// The address has no port or does not resolve.
    #[error("`{address}` is no address of the form HOST:PORT that can be resolved")]
    Address {
        /// The address as given.
        address: String,
    },
    /// Plain TCP off loopback.
    #[error("plain TCP is only allowed on loopback, and {address} is not a loopback address: use 127.0.0.1 or [::1]")]
    NotLoopback {
        /// The address as given.
        address: SocketAddr,
    },
    /// Nothing came, or nothing could be written, for too long.
    #[error("no progress for {} s while {doing}: the peer is stuck or gone", limit.as_secs_f64())]
    Timeout {
        /// What this side was doing.
        doing: &'static str,
        /// The limit that was reached.
        limit: Duration,
    },
    /// Any other error of the operating system.
    #[error("the operating system reports while {doing}: {message}")]
    Io {
        /// What this side was doing.
        doing: &'static str,
        /// The system's message.
        message: String,
    },
    /// A description of a link that cannot be read.
    #[error("`{given}` is no link: write unlimited, lan, wan or RATE,DELAY such as 100mbps,80ms ({problem})")]
    BadLink {
        /// The text as given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The fields inside a payload cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl NetError {
    /// `error` met while `doing` something (a gerund: "reading a frame").
    pub(super) fn io(doing: &'static str, error: &io::Error, limit: Option<Duration>) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::NotConnected => {
                Self::Reset { doing }
            }
            Kind::UnexpectedEof => Self::Truncated,
            Kind::WouldBlock | Kind::TimedOut => Self::Timeout { doing, limit: limit.unwrap_or_default() },
            _ => Self::Io { doing, message: error.to_string() },
        }
    }

    /// `Closed` with this reason.
    pub(super) fn closed(reason: &str) -> Self {
        Self::Closed { reason: reason.to_owned() }
    }

    /// Whether the peer is simply gone or done, so that telling it anything is of no use.
    pub(super) fn is_departure(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Reset { .. } | Self::Truncated | Self::Peer { .. })
    }
}

/// A peer's sentence made fit to print: valid UTF-8, no control characters, at most 500 characters.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(500).collect()
}
