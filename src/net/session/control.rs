//! Messages of the connection's control lane: what is agreed before and between inferences.

use super::StoreId;
use crate::{
    arith::codec::{CodecError, Reader, Writer},
    protocol::{Flow, SessionId, Settings},
};

/// Bytes of the manifest in one message.
pub(super) const PART_BYTES: usize = 8 << 20;

/// A message of the control lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Up: asks for the manifest, naming the digest of a cached one (all zero if there is none).
    AskManifest { cached: [u8; 32] },
    /// Down: the manifest's digest and its length; 0 if the cached one is current. `store` names the server's store of
    /// correlations (all zero if there is none).
    Manifest { digest: [u8; 32], length: u64, store: StoreId },
    /// Down: a part of the manifest.
    ManifestPart { bytes: Vec<u8> },
    /// Up: begins an inference. `store` names the client's store (all zero if it keeps nothing).
    Start { session: SessionId, tokens: u32, mode: Mode, settings: Settings, store: StoreId },
    /// Up: begins the online phase of an inference whose correlations both sides have kept.
    Resume { session: SessionId, tokens: u32, settings: Settings, store: StoreId },
    /// Up: the client has kept its half, so that the server may keep its own.
    Kept,
    /// Up: the switching keys that these settings need and the server lacks will follow.
    Keys { tokens: u32, settings: Settings },
    /// Up: prepares the linear layers of as many inferences as the settings say, which [`Self::Start`] with the same settings
    /// then takes one by one.
    Joint { tokens: u32, settings: Settings },
    /// Down: the server is ready for it.
    Ready,
    /// Down: the server will not do it, and why.
    Refused { reason: String },
    /// Up: no more inferences.
    Bye,
}

/// What follows the offline phase of an inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The online phase, in the same connection.
    Direct,
    /// The same, with garbled tables made layer by layer.
    Interleaved,
    /// Nothing: both sides keep their correlation on disk.
    Keep,
}

/// What opens an inference, or with `resume` the online phase of one that was prepared: its messages on the control lane.
pub fn opening(resume: bool) -> Flow {
    let (session, settings, store) = ([0; 16], Settings::EXACT, [0; 16]);
    let asked = match resume {
        true => Control::Resume { session, tokens: 0, settings, store },
        false => Control::Start { session, tokens: 0, mode: Mode::Direct, settings, store },
    };
    let (up, down) = (asked.encode().len() as u64, Control::Ready.encode().len() as u64);
    Flow { up, down, messages_up: 1, messages_down: 1 }
}

/// What opens the work that several inferences share.
pub fn joint_opening() -> Flow {
    let asked = Control::Joint { tokens: 0, settings: Settings::EXACT };
    let (up, down) = (asked.encode().len() as u64, Control::Ready.encode().len() as u64);
    Flow { up, down, messages_up: 1, messages_down: 1 }
}

impl Control {
    pub(super) fn kind(&self) -> u16 {
        match self {
            Self::AskManifest { .. } => 0x01,
            Self::Manifest { .. } => 0x02,
            Self::ManifestPart { .. } => 0x03,
            Self::Start { .. } => 0x05,
            Self::Resume { .. } => 0x09,
            Self::Kept => 0x0a,
            Self::Keys { .. } => 0x0b,
            Self::Joint { .. } => 0x0c,
            Self::Ready => 0x06,
            Self::Refused { .. } => 0x07,
            Self::Bye => 0x08,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::AskManifest { cached } => {
                w.raw(cached);
            }
            Self::Manifest { digest, length, store } => {
                w.raw(digest).u64(*length).raw(store);
            }
            Self::ManifestPart { bytes } => {
                w.bytes(bytes);
            }
            Self::Start { session, tokens, mode, settings, store } => {
                w.raw(session).u32(*tokens).u8(*mode as u8).raw(&settings.to_bytes()).raw(store);
            }
            Self::Resume { session, tokens, settings, store } => {
                w.raw(session).u32(*tokens).raw(&settings.to_bytes()).raw(store);
            }
            Self::Keys { tokens, settings } | Self::Joint { tokens, settings } => {
                w.u32(*tokens).raw(&settings.to_bytes());
            }
            Self::Ready | Self::Kept | Self::Bye => {}
            Self::Refused { reason } => {
                w.bytes(reason.as_bytes());
            }
        }
        w.finish()
    }

    pub(super) fn decode(kind: u16, payload: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("control message", payload);
        let message = match kind {
            0x01 => Self::AskManifest { cached: r.array("digest")? },
            0x02 => Self::Manifest { digest: r.array("digest")?, length: r.u64("length")?, store: r.array("store")? },
            0x03 => Self::ManifestPart { bytes: r.bytes("part")?.to_vec() },
            0x05 => Self::Start {
                session: r.array("session")?,
                tokens: r.u32("tokens")?,
                mode: match r.u8("mode")? {
                    0 => Mode::Direct,
                    1 => Mode::Interleaved,
                    2 => Mode::Keep,
                    _ => return Err(CodecError::Invalid { what: "mode" }),
                },
                settings: Settings::from_bytes(r.array("settings")?)?,
                store: r.array("store")?,
            },
            0x09 => Self::Resume {
                session: r.array("session")?,
                tokens: r.u32("tokens")?,
                settings: Settings::from_bytes(r.array("settings")?)?,
                store: r.array("store")?,
            },
            0x0a => Self::Kept,
            0x0b => Self::Keys { tokens: r.u32("tokens")?, settings: Settings::from_bytes(r.array("settings")?)? },
            0x0c => Self::Joint { tokens: r.u32("tokens")?, settings: Settings::from_bytes(r.array("settings")?)? },
            0x06 => Self::Ready,
            0x07 => Self::Refused { reason: String::from_utf8_lossy(r.bytes("reason")?).into_owned() },
            0x08 => Self::Bye,
            _ => return Err(CodecError::Invalid { what: "the kind of a control message" }),
        };
        r.finish()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_cuts() {
        let all = [
            Control::AskManifest { cached: [1; 32] },
            Control::Manifest { digest: [2; 32], length: 77, store: [6; 16] },
            Control::ManifestPart { bytes: vec![1, 2] },
            Control::Start {
                session: [3; 16],
                tokens: 128,
                mode: Mode::Keep,
                settings: Settings::EXACT,
                store: [6; 16],
            },
            Control::Resume { session: [3; 16], tokens: 128, settings: Settings::EXACT, store: [6; 16] },
            Control::Kept,
            Control::Keys { tokens: 128, settings: Settings::EXACT },
            Control::Joint { tokens: 128, settings: Settings { together: 64, ..Settings::EXACT } },
            Control::Ready,
            Control::Refused { reason: "no".into() },
            Control::Bye,
        ];
        for message in all {
            let bytes = message.encode();
            assert_eq!(Control::decode(message.kind(), &bytes).unwrap(), message);
            (0..bytes.len()).for_each(|cut| assert!(Control::decode(message.kind(), &bytes[..cut]).is_err()));
        }
        assert!(Control::decode(0x05, &[[0; 20].as_slice(), &[3, 0, 0, 0]].concat()).is_err());
    }
}
