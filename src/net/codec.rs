//! The fields inside a payload: a writer and a length-checked reader.
//!
//! Integers are little-endian. Vectors of ring elements are packed at `k` bits each, least significant bit first, with
//! zero bits up to the next byte; a reader refuses other filling, so that a message has one form only. Neither side
//! branches on the values of packed elements, which may be shares.

use thiserror::Error;

/// A payload that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Fewer bytes than a field needs.
    #[error("a message ends early: {what} needs {needed} bytes and {left} are left")]
    Short {
        /// The field.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// More bytes than the fields.
    #[error("a message has {bytes} bytes after {what}, its last field")]
    Trailing {
        /// The message.
        what: &'static str,
        /// Bytes that are left over.
        bytes: u64,
    },
    /// A value that its field does not allow.
    #[error("a message holds an invalid value in {what}")]
    Invalid {
        /// The field.
        what: &'static str,
    },
    /// A length field over its limit.
    #[error("a message announces {found} elements in {what}, over the limit of {limit}")]
    TooMany {
        /// The field.
        what: &'static str,
        /// The announced number.
        found: u64,
        /// The limit.
        limit: u64,
    },
}

/// Bytes that `count` elements of `bits` bits take, or `None` when that does not fit a `usize` or `bits` is not in
/// `1..=64`.
pub fn packed_len(count: usize, bits: u32) -> Option<usize> {
    if !(1..=64).contains(&bits) {
        return None;
    }
    usize::try_from((count as u128 * u128::from(bits)).div_ceil(8)).ok()
}

/// Builds a payload field by field.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty payload with space for `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: Vec::with_capacity(bytes) }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends `bytes` as they are, without their length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Appends the length of `bytes` as a u64, then `bytes`.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u64(bytes.len() as u64).raw(bytes)
    }

    /// Appends `values` at `bits` bits each (1 to 64), without their number.
    ///
    /// # Errors
    /// [`CodecError::Invalid`] when `bits` is out of range or a value is 2^bits or more; nothing is then appended.
    pub fn packed(&mut self, what: &'static str, values: &[u64], bits: u32) -> Result<&mut Self, CodecError> {
        let bytes = packed_len(values.len(), bits).ok_or(CodecError::Invalid { what })?;
        let all = values.iter().fold(0, |all, v| all | v);
        if all & !mask(bits) != 0 {
            return Err(CodecError::Invalid { what });
        }
        self.out.reserve(bytes);
        if bits.is_multiple_of(8) {
            let width = (bits / 8) as usize;
            values.iter().for_each(|v| self.out.extend_from_slice(&v.to_le_bytes()[..width]));
            return Ok(self);
        }
        // `filled` is below 8 before each element, so that at most 71 bits are waiting.
        let (mut waiting, mut filled) = (0u128, 0u32);
        for &value in values {
            waiting |= u128::from(value) << filled;
            filled += bits;
            let whole = (filled / 8) as usize;
            self.out.extend_from_slice(&waiting.to_le_bytes()[..whole]);
            waiting >>= 8 * whole;
            filled %= 8;
        }
        if filled > 0 {
            self.out.push(waiting as u8);
        }
        Ok(self)
    }

    /// The finished payload.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Takes a payload apart field by field; every field is checked against what is left before memory is taken for it.
pub struct Reader<'a> {
    left: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader of `payload`; `what` names the message in the error of [`Reader::finish`].
    pub fn new(what: &'static str, payload: &'a [u8]) -> Self {
        Self { left: payload, what }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.left.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn raw(&mut self, what: &'static str, count: usize) -> Result<&'a [u8], CodecError> {
        let short = CodecError::Short { what, needed: count as u64, left: self.left.len() as u64 };
        let (head, tail) = self.left.split_at_checked(count).ok_or(short)?;
        self.left = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.raw(what, N)?);
        Ok(out)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`CodecError::Short`] at the end.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        self.array::<1>(what).map(|[b]| b)
    }

    /// The next two bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// The next four bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of elements as a u64, at most `limit`.
    ///
    /// # Errors
    /// [`CodecError::Short`], [`CodecError::TooMany`].
    pub fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, CodecError> {
        let found = self.u64(what)?;
        match usize::try_from(found) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(CodecError::TooMany { what, found, limit: limit as u64 }),
        }
    }

    /// A byte string with its length before it, as [`Writer::bytes`] wrote it.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer bytes are left than the length says.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], CodecError> {
        let needed = self.u64(what)?;
        let short = CodecError::Short { what, needed, left: self.left.len() as u64 };
        self.raw(what, usize::try_from(needed).map_err(|_| short)?)
    }

    /// `count` elements of `bits` bits (1 to 64), as [`Writer::packed`] wrote them; each is below 2^bits.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left, [`CodecError::Invalid`] when `bits` is out of range or the filling
    /// bits of the last byte are not zero.
    pub fn packed(&mut self, what: &'static str, count: usize, bits: u32) -> Result<Vec<u64>, CodecError> {
        let bytes = packed_len(count, bits).ok_or(CodecError::Invalid { what })?;
        let source = self.raw(what, bytes)?;
        if bits.is_multiple_of(8) {
            let width = (bits / 8) as usize;
            return Ok(source.chunks_exact(width).map(little_endian).collect());
        }
        let mut values = Vec::with_capacity(count);
        let (mut waiting, mut filled, mut at) = (0u128, 0u32, 0usize);
        for _ in 0..count {
            let whole = bits.saturating_sub(filled).div_ceil(8) as usize;
            waiting |= u128::from(little_endian(&source[at..at + whole])) << filled;
            at += whole;
            filled += 8 * whole as u32;
            values.push(waiting as u64 & mask(bits));
            waiting >>= bits;
            filled -= bits;
        }
        if waiting != 0 {
            return Err(CodecError::Invalid { what });
        }
        Ok(values)
    }

    /// Ends the message.
    ///
    /// # Errors
    /// [`CodecError::Trailing`] when bytes are left.
    pub fn finish(self) -> Result<(), CodecError> {
        if self.left.is_empty() {
            return Ok(());
        }
        Err(CodecError::Trailing { what: self.what, bytes: self.left.len() as u64 })
    }
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// At most 8 bytes as an integer.
fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0u8; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit `i` of the stream is bit `i % bits` of element `i / bits`.
    fn packed_naive(values: &[u64], bits: u32) -> Vec<u8> {
        let mut out = vec![0u8; (values.len() * bits as usize).div_ceil(8)];
        for i in 0..values.len() * bits as usize {
            let bit = values[i / bits as usize] >> (i % bits as usize) & 1;
            out[i / 8] |= (bit as u8) << (i % 8);
        }
        out
    }

    proptest! {
        #[test]
        fn packing_matches_the_definition(values in proptest::collection::vec(any::<u64>(), 0..40), bits in 1u32..=64) {
            let values: Vec<u64> = values.into_iter().map(|v| v & mask(bits)).collect();
            let mut writer = Writer::new();
            writer.packed("values", &values, bits).unwrap();
            let payload = writer.finish();
            prop_assert_eq!(&payload, &packed_naive(&values, bits));
            let mut reader = Reader::new("test", &payload);
            prop_assert_eq!(reader.packed("values", values.len(), bits).unwrap(), values);
            reader.finish().unwrap();
        }

        #[test]
        fn reading_any_bytes_gives_a_result(bytes in proptest::collection::vec(any::<u8>(), 0..64), count: usize, bits: u32) {
            let mut reader = Reader::new("test", &bytes);
            let _ = reader.packed("values", count % 100, bits % 70);
            let _ = reader.bytes("bytes");
            let _ = reader.count("count", 5);
            let before = reader.remaining();
            prop_assert!(reader.raw("raw", before + 1).is_err());
            prop_assert_eq!(reader.remaining(), before);
        }
    }

    #[test]
    fn edge_values_come_back_at_every_width() {
        for bits in 1..=64 {
            let values = [0, mask(bits), 0, mask(bits), mask(bits) >> 1];
            let mut writer = Writer::new();
            writer.packed("values", &values, bits).unwrap();
            let payload = writer.finish();
            assert_eq!(payload, packed_naive(&values, bits));
            assert_eq!(Reader::new("test", &payload).packed("values", 5, bits).unwrap(), values);
        }
    }

    #[test]
    fn fields_come_back_in_order() {
        let mut writer = Writer::with_capacity(64);
        writer.u8(1).u16(0xfffe).u32(3).u64(u64::MAX).bytes(b"text").raw(&[9, 9]);
        let payload = writer.finish();
        let mut reader = Reader::new("test", &payload);
        assert_eq!(reader.u8("a").unwrap(), 1);
        assert_eq!(reader.u16("b").unwrap(), 0xfffe);
        assert_eq!(reader.u32("c").unwrap(), 3);
        assert_eq!(reader.u64("d").unwrap(), u64::MAX);
        assert_eq!(reader.bytes("e").unwrap(), b"text");
        assert_eq!(reader.array("f").unwrap(), [9, 9]);
        reader.finish().unwrap();
        for cut in 0..payload.len() {
            let mut reader = Reader::new("test", &payload[..cut]);
            let whole = reader.u8("a").is_ok()
                && reader.u16("b").is_ok()
                && reader.u32("c").is_ok()
                && reader.u64("d").is_ok()
                && reader.bytes("e").is_ok()
                && reader.array::<2>("f").is_ok();
            assert!(!whole, "cut at {cut}");
        }
    }

    #[test]
    fn wrong_lengths_and_values_are_errors() {
        let mut writer = Writer::new();
        assert!(matches!(writer.packed("v", &[0, 8], 3), Err(CodecError::Invalid { .. })));
        assert!(matches!(writer.packed("v", &[0], 0), Err(CodecError::Invalid { .. })));
        assert!(matches!(writer.packed("v", &[0], 65), Err(CodecError::Invalid { .. })));
        assert!(writer.is_empty());
        // Filling bits that are not zero, a count far beyond the bytes, a length of u64::MAX, trailing bytes.
        assert!(matches!(Reader::new("t", &[0b1000]).packed("v", 1, 3), Err(CodecError::Invalid { .. })));
        assert!(matches!(Reader::new("t", &[0]).packed("v", usize::MAX, 1), Err(CodecError::Short { .. })));
        assert!(matches!(Reader::new("t", &[0]).packed("v", usize::MAX, 64), Err(CodecError::Invalid { .. })));
        let huge = u64::MAX.to_le_bytes();
        assert!(matches!(Reader::new("t", &huge).bytes("v"), Err(CodecError::Short { needed: u64::MAX, .. })));
        assert!(matches!(Reader::new("t", &huge).count("v", 10), Err(CodecError::TooMany { found: u64::MAX, .. })));
        assert!(matches!(Reader::new("t", &[0]).finish(), Err(CodecError::Trailing { bytes: 1, .. })));
    }
}
