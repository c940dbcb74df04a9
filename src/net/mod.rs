//! Channels that count bytes and rounds, framing, sessions.
//!
//! From the wire upwards: [`frame`] (the checked binary form of one message), [`channel`] with its two forms [`memory`]
//! and [`tcp`] (a pair of halves that carry frames), [`link`] and [`mod@shape`] (a channel made as slow as a stated link),
//! [`mux`] (several lanes over one channel), [`handshake`] and [`server`] (who speaks to whom, in which version). Beside
//! them stand [`meter`] (bytes and rounds), [`mod@record`] (transcripts for tests), [`codec`] (the fields inside a payload) and [`error`].
//!
//! All of it is blocking I/O on threads. Nothing here encrypts: plain TCP is refused off loopback, and the checksums
//! find accidents, not attacks (`SECURITY.md`).

pub mod channel;

pub mod error;
pub mod frame;
pub mod handshake;
pub mod link;
pub mod memory;
pub mod meter;
pub mod mux;
pub mod record;
pub mod server;
pub mod session;
pub mod shape;
pub mod tcp;
mod turns;

pub use crate::arith::codec::{self, CodecError, Reader, Writer};
pub use channel::{Channel, Control, Receiver, Sender};
pub use error::NetError;
pub use frame::{Frame, SessionId};
pub use handshake::{Agreed, Versions};
pub use link::Link;
pub use memory::memory_pair;
pub use meter::{Meter, Role, Traffic};
pub use mux::{Lane, Mux, MuxOptions};
pub use server::{Connection, Server, ServerOptions};
