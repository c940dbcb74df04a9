//! One message on the wire: a frame with a checked header and a checked payload.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `HLS\x1a` |
//! | 4 | 2 | frame format, [`FRAME_VERSION`] |
//! | 6 | 2 | kind of the message |
//! | 8 | 1 | lane |
//! | 9 | 16 | session |
//! | 25 | 4 | sequence number in this direction, from 0 |
//! | 29 | 8 | payload length `n` |
//! | 37 | 16 | BLAKE3 of bytes 0..37, first 16 bytes |
//! | 53 | n | payload |
//! | 53+n | 16 | BLAKE3 of bytes 0..53+n, first 16 bytes |
//!
//! Integers are little-endian. Magic and format keep their place in every future format, so that two releases can name
//! each other's. The checksums have no key: they find bytes altered by accident or by a faulty proxy, not by an
//! attacker. The length is believed, and checked against the limit, only after the header's checksum.

use std::fmt;
use std::io::{self, Read, Write};

use super::error::NetError;

/// The name of one session, chosen at random by the server; all zero before it is known.
pub type SessionId = [u8; 16];

/// Number of this frame format.
pub const FRAME_VERSION: u16 = 1;
/// Longest payload that is written or accepted unless a channel is told otherwise, in bytes (64 MiB).
pub const DEFAULT_PAYLOAD_LIMIT: u64 = 64 << 20;
/// Bytes that a frame adds to its payload on the wire.
pub const FRAME_OVERHEAD: usize = HEADER_LEN + CHECKSUM_LEN;
/// Kinds from this one up belong to the connection (handshake, end, abort), not to messages.
pub const FIRST_RESERVED_KIND: u16 = 0xff00;

const MAGIC: [u8; 4] = *b"HLS\x1a";
const CHECKSUM_LEN: usize = 16;
const FIELDS_LEN: usize = 37;
const HEADER_LEN: usize = FIELDS_LEN + CHECKSUM_LEN;
/// Space taken for a payload before its bytes arrive; the rest grows with them.
const FIRST_ALLOCATION: u64 = 1 << 20;

/// One message with its address.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which of the parallel streams of the connection it belongs to.
    pub lane: u8,
    /// What the payload is; the protocol's own numbering, below [`FIRST_RESERVED_KIND`].
    pub kind: u16,
    /// The session it belongs to.
    pub session: SessionId,
    /// The message.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Bytes of this frame on the wire, framing included.
    pub fn wire_len(&self) -> u64 {
        wire_len(self.payload.len())
    }
}

/// Bytes on the wire of a frame with `payload` bytes of payload.
pub fn wire_len(payload: usize) -> u64 {
    payload as u64 + FRAME_OVERHEAD as u64
}

impl fmt::Debug for Frame {
    /// The payload's length only: payloads carry shares and ciphertexts, which belong in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame {{ lane: {}, kind: {:#06x}, payload: {} bytes }}", self.lane, self.kind, self.payload.len())
    }
}

/// Writes the frames of one direction, numbering them.
#[derive(Debug)]
pub struct FrameEncoder {
    next: Option<u32>,
    limit: u64,
}

impl FrameEncoder {
    /// An encoder at sequence number 0 with the given payload limit in bytes.
    pub fn new(limit: u64) -> Self {
        Self { next: Some(0), limit }
    }

    /// Writes `frame` to `out`, which is not flushed.
    ///
    /// # Errors
    /// [`NetError::TooLong`] and [`NetError::SequenceExhausted`] before anything is written; errors of `out` otherwise,
    /// after which the stream is of no more use.
    pub fn write(&mut self, frame: &Frame, out: &mut impl Write) -> Result<(), NetError> {
        let bytes = frame.payload.len() as u64;
        if bytes > self.limit {
            return Err(NetError::TooLong { bytes, limit: self.limit });
        }
        let sequence = self.next.ok_or(NetError::SequenceExhausted)?;
        self.next = sequence.checked_add(1);
        let header = header(frame, sequence, bytes);
        let checksum = payload_checksum(&header, &frame.payload);
        out.write_all(&header)
            .and_then(|()| out.write_all(&frame.payload))
            .and_then(|()| out.write_all(&checksum))
            .map_err(|e| NetError::io("sending a frame", &e, None))
    }
}

/// Reads the frames of one direction, checking everything.
#[derive(Debug)]
pub struct FrameDecoder {
    next: Option<u32>,
    limit: u64,
    failed: Option<NetError>,
}

impl FrameDecoder {
    /// A decoder at sequence number 0 with the given payload limit in bytes.
    pub fn new(limit: u64) -> Self {
        Self { next: Some(0), limit, failed: None }
    }

    /// Changes the payload limit for the frames to come.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Reads one frame. Memory is taken as the payload's bytes arrive, never on the word of the header alone.
    ///
    /// # Errors
    /// [`NetError::Closed`] when the stream ends between two frames, [`NetError::Truncated`] within one, and a variant
    /// for each malformed field. After an error the place in the stream is lost: every later call returns it again.
    pub fn read(&mut self, input: &mut impl Read) -> Result<Frame, NetError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.read_frame(input).inspect_err(|e| self.failed = Some(e.clone()))
    }

    fn read_frame(&mut self, input: &mut impl Read) -> Result<Frame, NetError> {
        let mut header = [0u8; HEADER_LEN];
        // The magic alone first: a stranger's short request must be refused at once, not waited on for a full header.
        let got = read_up_to(input, &mut header[..MAGIC.len()])?;
        if got == 0 {
            return Err(NetError::closed("the peer closed it"));
        }
        if header[..got] != MAGIC[..got] {
            return Err(NetError::NotHeliostat { found: describe(&header[..got]) });
        }
        if got < MAGIC.len() {
            return Err(NetError::Truncated);
        }
        read_all(input, &mut header[4..6])?;
        let theirs = u16::from_le_bytes(field(&header, 4));
        if theirs != FRAME_VERSION {
            return Err(NetError::FrameVersion { theirs, ours: FRAME_VERSION });
        }
        read_all(input, &mut header[6..])?;
        if checksum(&header[..FIELDS_LEN]) != header[FIELDS_LEN..] {
            return Err(NetError::HeaderChecksum);
        }
        let expected = self.next.ok_or(NetError::SequenceExhausted)?;
        let found = u32::from_le_bytes(field(&header, 25));
        if found != expected {
            return Err(NetError::Sequence { expected, found });
        }
        let bytes = u64::from_le_bytes(field(&header, 29));
        if bytes > self.limit {
            return Err(NetError::TooLong { bytes, limit: self.limit });
        }
        let payload = read_payload(input, bytes)?;
        let mut given = [0u8; CHECKSUM_LEN];
        read_all(input, &mut given)?;
        if payload_checksum(&header, &payload) != given {
            return Err(NetError::PayloadChecksum);
        }
        self.next = expected.checked_add(1);
        Ok(Frame { lane: header[8], kind: u16::from_le_bytes(field(&header, 6)), session: field(&header, 9), payload })
    }
}

fn header(frame: &Frame, sequence: u32, bytes: u64) -> [u8; HEADER_LEN] {
    let mut header = [0u8; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&FRAME_VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&frame.kind.to_le_bytes());
    header[8] = frame.lane;
    header[9..25].copy_from_slice(&frame.session);
    header[25..29].copy_from_slice(&sequence.to_le_bytes());
    header[29..37].copy_from_slice(&bytes.to_le_bytes());
    let sum = checksum(&header[..FIELDS_LEN]);
    header[FIELDS_LEN..].copy_from_slice(&sum);
    header
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    truncate(&blake3::hash(bytes))
}

fn payload_checksum(header: &[u8; HEADER_LEN], payload: &[u8]) -> [u8; CHECKSUM_LEN] {
    truncate(&blake3::Hasher::new().update(header).update(payload).finalize())
}

fn truncate(hash: &blake3::Hash) -> [u8; CHECKSUM_LEN] {
    let mut out = [0u8; CHECKSUM_LEN];
    out.copy_from_slice(&hash.as_bytes()[..CHECKSUM_LEN]);
    out
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

/// Fills `buffer` as far as the stream goes; returns how far.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, NetError> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(NetError::io("waiting for a frame", &e, None)),
        }
    }
    Ok(got)
}

fn read_all(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), NetError> {
    input.read_exact(buffer).map_err(|e| NetError::io("reading a frame", &e, None))
}

fn read_payload(input: &mut impl Read, bytes: u64) -> Result<Vec<u8>, NetError> {
    let mut payload = Vec::with_capacity(bytes.min(FIRST_ALLOCATION) as usize);
    input.take(bytes).read_to_end(&mut payload).map_err(|e| NetError::io("reading a frame", &e, None))?;
    if (payload.len() as u64) < bytes {
        return Err(NetError::Truncated);
    }
    Ok(payload)
}

/// What a stranger's first bytes look like, in words.
fn describe(bytes: &[u8]) -> String {
    const HTTP: [&[u8]; 9] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"CONN", b"PATC", b"PRI "];
    if HTTP.contains(&bytes) {
        "an HTTP request".into()
    } else if bytes.starts_with(b"HTTP") {
        "an HTTP answer".into()
    } else if bytes.starts_with(&[0x16, 0x03]) {
        "a TLS greeting".into()
    } else if bytes.starts_with(b"SSH-") {
        "an SSH greeting".into()
    } else {
        "other bytes".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut encoder = FrameEncoder::new(DEFAULT_PAYLOAD_LIMIT);
        let mut out = Vec::new();
        frames.iter().for_each(|f| encoder.write(f, &mut out).unwrap());
        out
    }

    fn decode(mut bytes: &[u8], limit: u64) -> Result<Vec<Frame>, NetError> {
        let mut decoder = FrameDecoder::new(limit);
        let mut frames = Vec::new();
        loop {
            match decoder.read(&mut bytes) {
                Ok(frame) => frames.push(frame),
                Err(NetError::Closed { .. }) => return Ok(frames),
                Err(e) => {
                    assert_eq!(decoder.read(&mut bytes), Err(e.clone()), "an error must stay");
                    return Err(e);
                }
            }
        }
    }

    fn sample() -> Frame {
        Frame { lane: 3, kind: 0x0102, session: [7; 16], payload: b"a short payload".to_vec() }
    }

    proptest! {
        #[test]
        fn frames_come_back(frames in proptest::collection::vec(
            (any::<u8>(), any::<u16>(), any::<[u8; 16]>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..5)) {
            let frames: Vec<Frame> =
                frames.into_iter().map(|(lane, kind, session, payload)| Frame { lane, kind, session, payload }).collect();
            let wire = encode(&frames);
            prop_assert_eq!(wire.len() as u64, frames.iter().map(Frame::wire_len).sum::<u64>());
            prop_assert_eq!(decode(&wire, DEFAULT_PAYLOAD_LIMIT).unwrap(), frames);
        }

        #[test]
        fn any_bytes_give_a_result(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            prop_assert!(decode(&bytes, 1000).is_err());
        }

        #[test]
        fn whatever_is_changed_only_true_frames_come_out(
            at in 0usize..400, remove in 0usize..200, insert in proptest::collection::vec(any::<u8>(), 0..100)) {
            let frames = [sample(), Frame { payload: vec![9; 100], ..sample() }, sample()];
            let mut wire = encode(&frames);
            let (from, original) = (at.min(wire.len()), wire.clone());
            let to = (from + remove).min(wire.len());
            wire.splice(from..to, insert);
            let mut decoder = FrameDecoder::new(DEFAULT_PAYLOAD_LIMIT);
            let mut input = &wire[..];
            let mut read = 0;
            while let Ok(frame) = decoder.read(&mut input) {
                prop_assert_eq!(&frame, &frames[read]);
                read += 1;
            }
            prop_assert!(read < frames.len() || wire.starts_with(&original));
        }

        #[test]
        fn a_good_header_with_any_tail_gives_a_result(len in 0usize..2000, tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let frame = Frame { payload: vec![1; len], ..sample() };
            let mut wire = header(&frame, 0, len as u64).to_vec();
            wire.extend_from_slice(&tail);
            prop_assert!(decode(&wire, 1000).is_err());
        }
    }

    #[test]
    fn a_payload_over_the_first_allocation_comes_back() {
        let frame = Frame { payload: (0..3_000_001u32).map(|i| (i % 251) as u8).collect(), ..sample() };
        assert_eq!(decode(&encode(std::slice::from_ref(&frame)), DEFAULT_PAYLOAD_LIMIT).unwrap(), [frame]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let wire = encode(&[sample()]);
        for cut in 1..wire.len() {
            assert_eq!(decode(&wire[..cut], 100), Err(NetError::Truncated), "cut at {cut}");
        }
    }

    #[test]
    fn every_flipped_byte_is_an_error() {
        let wire = encode(&[sample(), sample()]);
        for at in 0..wire.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = wire.clone();
                bad[at] ^= flip;
                assert!(decode(&bad, 100).is_err(), "byte {at} flipped by {flip:#x} went unnoticed");
            }
        }
    }

    /// Hands out a header and panics if the payload is asked for.
    struct HeaderOnly<'a>(&'a [u8]);

    impl Read for HeaderOnly<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            assert!(!self.0.is_empty(), "the payload of an oversized frame was read");
            self.0.read(out)
        }
    }

    #[test]
    fn an_oversized_length_is_refused_on_the_header_alone() {
        for (bytes, limit) in [(101, 100), (u64::MAX, DEFAULT_PAYLOAD_LIMIT), (1 << 62, u64::MAX >> 3)] {
            let header = header(&sample(), 0, bytes);
            let result = FrameDecoder::new(limit).read(&mut HeaderOnly(&header));
            assert_eq!(result, Err(NetError::TooLong { bytes, limit }));
        }
        // A length within a huge limit, but without the bytes: an error, not an allocation of that size.
        let header = header(&sample(), 0, 1 << 60);
        assert_eq!(FrameDecoder::new(u64::MAX).read(&mut &header[..]), Err(NetError::Truncated));
        let long = Frame { payload: vec![0; 101], ..sample() };
        let mut out = Vec::new();
        assert!(matches!(FrameEncoder::new(100).write(&long, &mut out), Err(NetError::TooLong { .. })));
        assert!(out.is_empty());
    }

    #[test]
    fn lost_repeated_and_swapped_frames_are_errors() {
        let one = encode(&[sample()]).len();
        let wire = encode(&[sample(), sample(), sample()]);
        assert!(matches!(decode(&wire[one..], 100), Err(NetError::Sequence { expected: 0, found: 1 })));
        let repeated = [&wire[..one], &wire[..one]].concat();
        assert!(matches!(decode(&repeated, 100), Err(NetError::Sequence { expected: 1, found: 0 })));
        // The payloads and trailers of two frames exchanged.
        let other = encode(&[sample(), Frame { payload: b"another payload".to_vec(), ..sample() }]);
        let mixed = [&other[..HEADER_LEN], &other[one + HEADER_LEN..]].concat();
        assert_eq!(decode(&mixed, 100), Err(NetError::PayloadChecksum));
    }

    #[test]
    fn the_last_sequence_number_is_used_and_no_other() {
        let mut encoder = FrameEncoder { next: Some(u32::MAX), limit: 100 };
        let mut decoder = FrameDecoder { next: Some(u32::MAX), limit: 100, failed: None };
        let mut wire = Vec::new();
        encoder.write(&sample(), &mut wire).unwrap();
        assert_eq!(encoder.write(&sample(), &mut wire), Err(NetError::SequenceExhausted));
        wire.extend_from_slice(&encode(&[sample()]));
        let mut input = &wire[..];
        assert_eq!(decoder.read(&mut input), Ok(sample()));
        assert_eq!(decoder.read(&mut input), Err(NetError::SequenceExhausted));
    }

    #[test]
    fn strangers_are_named() {
        for (bytes, word) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP request"),
            (b"\x16\x03\x01\x02", "TLS"),
            (b"SSH-2.0-x", "SSH"),
            (b"\0", "other bytes"),
        ] {
            let error = decode(bytes, 100).unwrap_err();
            assert!(matches!(&error, NetError::NotHeliostat { found } if found.contains(word)), "{error}");
        }
        let mut wire = encode(&[sample()]);
        wire[4] = 9;
        assert_eq!(decode(&wire[..6], 100), Err(NetError::FrameVersion { theirs: 9, ours: FRAME_VERSION }));
    }
}
