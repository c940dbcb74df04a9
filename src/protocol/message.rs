//! Typed messages of the two phases and their wire form.
//!
//! Ring elements travel packed at the bits of their edge's ring; the receiver knows from the graph how many to expect, so
//! messages carry the packed bytes and [`pack_ring`], [`unpack_ring`] convert. Sizes depend on public data only.

use crate::arith::{
    ShareModulus, bits,
    codec::{CodecError, Reader, Writer},
};

/// Bytes of a payload in one frame; longer messages travel in several.
pub const FRAME_PART: usize = 32 << 20;

/// Most byte strings in one HE message.
const MAX_PARTS: usize = 1 << 16;

/// A message of the offline or online phase.
///
/// Direction is from client to server ("up") or from server to client ("down").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Up, once a connection: the client's public key and switching keys.
    Keys {
        /// [`crate::he::PublicKey`] in wire form.
        public_key: Vec<u8>,
        /// [`crate::he::GaloisKeys`] in wire form.
        galois_keys: Vec<u8>,
    },
    /// Up: encryptions of the client's shares that an HE item needs and the server does not have yet.
    HeUpload {
        /// Index of the item.
        item: u32,
        /// Encrypted matrices.
        matrices: Vec<Vec<u8>>,
    },
    /// Down: what the server computed from them, masked.
    HeResponse {
        /// Index of the item.
        item: u32,
        /// Packed ciphertexts.
        responses: Vec<Vec<u8>>,
    },
    /// Up: first message of the base OTs in which the client sends.
    BaseOffer {
        /// Message A.
        offer: Vec<u8>,
    },
    /// Down: the server's choices, and its own offer for the OTs of the other direction.
    BaseChoice {
        /// Message B of the client's offer.
        choice: Vec<u8>,
        /// Message A of the other direction.
        offer: Vec<u8>,
    },
    /// Up: the client's choices in the other direction.
    BaseReply {
        /// Message B of the server's offer.
        choice: Vec<u8>,
    },
    /// Up: an OT extension for the client's choice bits of a chunk of a node.
    Extend {
        /// Node of the graph.
        node: u32,
        /// Chunk of the node.
        chunk: u32,
        /// Extension matrix.
        matrix: Vec<u8>,
    },
    /// Down: garbled tables of a chunk.
    Tables {
        /// Node of the graph.
        node: u32,
        /// Chunk of the node.
        chunk: u32,
        /// The tables.
        tables: Vec<u8>,
    },
    /// Down: product messages for the client's choices, and the server's own extension where the node needs one.
    ProductDown {
        /// Node of the graph.
        node: u32,
        /// Chunk of the node.
        chunk: u32,
        /// Correlated messages.
        message: Vec<u8>,
        /// Extension matrix of the other direction, empty if there is none.
        matrix: Vec<u8>,
    },
    /// Up: product messages for the server's choices.
    ProductUp {
        /// Node of the graph.
        node: u32,
        /// Chunk of the node.
        chunk: u32,
        /// Correlated messages.
        message: Vec<u8>,
    },
    /// Both ways, client first: a round of random OTs.
    Cots {
        /// This end's message of the round.
        payload: Vec<u8>,
    },
    /// Both ways: a message of a layer that is evaluated on shares.
    Shared {
        /// Node of the graph.
        node: u32,
        /// Chunk of the node.
        chunk: u32,
        /// The message, as the layer's protocol has it.
        payload: Vec<u8>,
    },
    /// Up: the client's inputs less its masks.
    Input {
        /// Embedded tokens.
        embedding: Vec<u8>,
        /// Pooling weights, empty if there are none.
        pool: Vec<u8>,
    },
    /// Down: labels of the server's input bits of a chunk.
    Labels {
        /// Node of the graph.
        node: u32,
        /// Chunk of the node.
        chunk: u32,
        /// 16 bytes a bit.
        labels: Vec<u8>,
    },
    /// Down: the server's shares of a product's operands less its masks.
    Masked {
        /// Node of the graph.
        node: u32,
        /// First operand.
        left: Vec<u8>,
        /// Second operand, empty for squares.
        right: Vec<u8>,
    },
    /// Up: colour bits of a garbled node's outputs.
    Colours {
        /// Node of the graph.
        node: u32,
        /// Packed bits.
        bits: Vec<u8>,
    },
    /// Up: the client's share of a product less its next mask.
    Restored {
        /// Node of the graph.
        node: u32,
        /// Packed ring elements.
        share: Vec<u8>,
    },
    /// Down: the server's share of the output.
    Open {
        /// Packed ring elements.
        share: Vec<u8>,
    },
}

impl Message {
    /// Number of the message's kind on the wire.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Keys { .. } => 0x10,
            Self::HeUpload { .. } => 0x20,
            Self::HeResponse { .. } => 0x21,
            Self::BaseOffer { .. } => 0x30,
            Self::BaseChoice { .. } => 0x31,
            Self::BaseReply { .. } => 0x32,
            Self::Extend { .. } => 0x33,
            Self::Tables { .. } => 0x34,
            Self::ProductDown { .. } => 0x35,
            Self::ProductUp { .. } => 0x36,
            Self::Cots { .. } => 0x37,
            Self::Shared { .. } => 0x46,
            Self::Input { .. } => 0x40,
            Self::Labels { .. } => 0x41,
            Self::Masked { .. } => 0x42,
            Self::Colours { .. } => 0x43,
            Self::Restored { .. } => 0x44,
            Self::Open { .. } => 0x45,
        }
    }

    /// Name of the message's kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Keys { .. } => "keys",
            Self::HeUpload { .. } => "encrypted shares",
            Self::HeResponse { .. } => "packed ciphertexts",
            Self::BaseOffer { .. } => "a base-OT offer",
            Self::BaseChoice { .. } => "base-OT choices",
            Self::BaseReply { .. } => "a base-OT reply",
            Self::Extend { .. } => "an OT extension",
            Self::Tables { .. } => "garbled tables",
            Self::ProductDown { .. } | Self::ProductUp { .. } => "OT product messages",
            Self::Cots { .. } => "random OTs",
            Self::Shared { .. } => "a message of a shared layer",
            Self::Input { .. } => "masked inputs",
            Self::Labels { .. } => "wire labels",
            Self::Masked { .. } => "masked operands",
            Self::Colours { .. } => "colour bits",
            Self::Restored { .. } => "a restored share",
            Self::Open { .. } => "the opened output",
        }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Keys { public_key, galois_keys } => {
                w.bytes(public_key).bytes(galois_keys);
            }
            Self::HeUpload { item, matrices: parts } | Self::HeResponse { item, responses: parts } => {
                w.u32(*item).u64(parts.len() as u64);
                for part in parts {
                    w.bytes(part);
                }
            }
            Self::BaseOffer { offer: a }
            | Self::BaseReply { choice: a }
            | Self::Cots { payload: a }
            | Self::Open { share: a } => {
                w.bytes(a);
            }
            Self::BaseChoice { choice: a, offer: b } | Self::Input { embedding: a, pool: b } => {
                w.bytes(a).bytes(b);
            }
            Self::Extend { node, chunk, matrix: a }
            | Self::Tables { node, chunk, tables: a }
            | Self::ProductUp { node, chunk, message: a }
            | Self::Shared { node, chunk, payload: a }
            | Self::Labels { node, chunk, labels: a } => {
                w.u32(*node).u32(*chunk).bytes(a);
            }
            Self::ProductDown { node, chunk, message, matrix } => {
                w.u32(*node).u32(*chunk).bytes(message).bytes(matrix);
            }
            Self::Masked { node, left, right } => {
                w.u32(*node).bytes(left).bytes(right);
            }
            Self::Colours { node, bits: a } | Self::Restored { node, share: a } => {
                w.u32(*node).bytes(a);
            }
        }
        w.finish()
    }

    /// Length of a payload of `numbers` 32-bit numbers, and byte strings of these lengths.
    pub(super) fn payload_len(numbers: usize, parts: &[usize]) -> u64 {
        (4 * numbers + parts.iter().map(|len| 8 + len).sum::<usize>()) as u64
    }

    /// Reads a payload of a kind.
    ///
    /// # Errors
    /// An unknown kind, or bytes that are not exactly one message of it.
    pub fn decode(kind: u16, payload: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new("message", payload);
        let message = match kind {
            0x10 => Self::Keys { public_key: vec(&mut r)?, galois_keys: vec(&mut r)? },
            0x20 => Self::HeUpload { item: r.u32("item")?, matrices: parts(&mut r)? },
            0x21 => Self::HeResponse { item: r.u32("item")?, responses: parts(&mut r)? },
            0x30 => Self::BaseOffer { offer: vec(&mut r)? },
            0x31 => Self::BaseChoice { choice: vec(&mut r)?, offer: vec(&mut r)? },
            0x32 => Self::BaseReply { choice: vec(&mut r)? },
            0x33 => Self::Extend { node: r.u32("node")?, chunk: r.u32("chunk")?, matrix: vec(&mut r)? },
            0x34 => Self::Tables { node: r.u32("node")?, chunk: r.u32("chunk")?, tables: vec(&mut r)? },
            0x35 => Self::ProductDown {
                node: r.u32("node")?,
                chunk: r.u32("chunk")?,
                message: vec(&mut r)?,
                matrix: vec(&mut r)?,
            },
            0x36 => Self::ProductUp { node: r.u32("node")?, chunk: r.u32("chunk")?, message: vec(&mut r)? },
            0x37 => Self::Cots { payload: vec(&mut r)? },
            0x46 => Self::Shared { node: r.u32("node")?, chunk: r.u32("chunk")?, payload: vec(&mut r)? },
            0x40 => Self::Input { embedding: vec(&mut r)?, pool: vec(&mut r)? },
            0x41 => Self::Labels { node: r.u32("node")?, chunk: r.u32("chunk")?, labels: vec(&mut r)? },
            0x42 => Self::Masked { node: r.u32("node")?, left: vec(&mut r)?, right: vec(&mut r)? },
            0x43 => Self::Colours { node: r.u32("node")?, bits: vec(&mut r)? },
            0x44 => Self::Restored { node: r.u32("node")?, share: vec(&mut r)? },
            0x45 => Self::Open { share: vec(&mut r)? },
            _ => return Err(CodecError::Invalid { what: "the kind of a message" }),
        };
        r.finish()?;
        Ok(message)
    }
}

fn vec(r: &mut Reader<'_>) -> Result<Vec<u8>, CodecError> {
    Ok(r.bytes("a field")?.to_vec())
}

fn parts(r: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, CodecError> {
    let count = r.count("the parts of a message", MAX_PARTS)?;
    // Every part has a length field: memory for the list is bounded by bytes that are there.
    if count * 8 > r.remaining() {
        return Err(CodecError::Short {
            what: "the parts of a message",
            needed: count as u64 * 8,
            left: r.remaining() as u64,
        });
    }
    (0..count).map(|_| vec(r)).collect()
}

/// Ring elements at the bits of their ring.
pub fn pack_ring(values: &[u64], ring: ShareModulus) -> Vec<u8> {
    bits::pack(values, ring.bits())
}

/// Exactly `count` ring elements.
///
/// # Errors
/// Another number of bytes, non-zero filling bits, or an element that is not reduced.
pub fn unpack_ring(bytes: &[u8], count: usize, ring: ShareModulus) -> Result<Vec<u64>, CodecError> {
    let wrong = CodecError::Invalid { what: "packed ring elements" };
    match bits::unpack(bytes, ring.bits(), count) {
        Ok(values) if values.iter().all(|&x| x <= ring.largest()) => Ok(values),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let v = |n: u8| vec![n; n as usize];
        vec![
            Message::Keys { public_key: v(1), galois_keys: v(2) },
            Message::HeUpload { item: 7, matrices: vec![v(3), v(0), v(5)] },
            Message::HeResponse { item: 8, responses: vec![] },
            Message::BaseOffer { offer: v(4) },
            Message::BaseChoice { choice: v(4), offer: v(6) },
            Message::BaseReply { choice: v(4) },
            Message::Extend { node: 1, chunk: 2, matrix: v(9) },
            Message::Tables { node: 1, chunk: 2, tables: v(9) },
            Message::ProductDown { node: 1, chunk: 2, message: v(9), matrix: v(0) },
            Message::ProductUp { node: 1, chunk: 2, message: v(9) },
            Message::Cots { payload: v(9) },
            Message::Shared { node: 1, chunk: 2, payload: v(9) },
            Message::Input { embedding: v(3), pool: v(1) },
            Message::Labels { node: 1, chunk: 2, labels: v(16) },
            Message::Masked { node: 1, left: v(2), right: v(3) },
            Message::Colours { node: 1, bits: v(2) },
            Message::Restored { node: 1, share: v(2) },
            Message::Open { share: v(2) },
        ]
    }

    #[test]
    fn every_message_comes_back_and_every_cut_is_refused() {
        for message in samples() {
            let bytes = message.encode();
            assert_eq!(Message::decode(message.kind(), &bytes).unwrap(), message);
            for cut in 0..bytes.len() {
                assert!(Message::decode(message.kind(), &bytes[..cut]).is_err(), "{} cut at {cut}", message.name());
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(Message::decode(message.kind(), &longer).is_err());
        }
        assert!(Message::decode(0x99, &[]).is_err());
    }

    #[test]
    fn lengths_are_those_of_the_wire() {
        let len = |m: Message| m.encode().len() as u64;
        let v = |n: usize| vec![0; n];
        assert_eq!(len(Message::Cots { payload: v(9) }), Message::payload_len(0, &[9]));
        assert_eq!(len(Message::Colours { node: 1, bits: v(3) }), Message::payload_len(1, &[3]));
        let down = Message::ProductDown { node: 1, chunk: 2, message: v(5), matrix: v(0) };
        assert_eq!(len(down), Message::payload_len(2, &[5, 0]));
        let up = Message::HeUpload { item: 3, matrices: vec![v(5), v(6)] };
        // The number of parts has eight bytes.
        assert_eq!(len(up), Message::payload_len(3, &[5, 6]));
    }

    #[test]
    fn ring_elements_come_back_and_others_are_refused() {
        let prime = ShareModulus::slots(20, 64).unwrap();
        for ring in [ShareModulus::pow2(20).unwrap(), prime] {
            let values = [0, 1, ring.largest()];
            assert_eq!(unpack_ring(&pack_ring(&values, ring), 3, ring).unwrap(), values);
        }
        assert!(unpack_ring(&bits::pack(&[prime.largest() + 1], 20), 1, prime).is_err());
    }

    #[test]
    fn a_huge_count_is_refused_before_it_allocates() {
        let mut w = Writer::new();
        w.u32(0).u64(60_000);
        assert!(Message::decode(0x20, &w.finish()).is_err());
    }
}
