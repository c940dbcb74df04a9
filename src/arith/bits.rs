//! Tight packing of arrays of `bits`-bit integers into bytes, the wire form of ring elements and residues.
//!
//! Value `i` takes bits `i * bits .. (i + 1) * bits` of the string, least significant first; bit `j` of the string is bit
//! `j % 8` of byte `j / 8`. The last byte is padded with zeros, and a decoder refuses any other padding, so that a vector
//! has one form only.

use thiserror::Error;

/// Why bytes are not a packed array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BitsError {
    /// The width is not one that can be unpacked.
    #[error("values of {bits} bits cannot be unpacked here: the width must be 1 to {limit}")]
    Width {
        /// Bits asked for.
        bits: u32,
        /// Widest value of the output type.
        limit: u32,
    },
    /// Too few or too many bytes.
    #[error("{count} values of {bits} bits do not take {found} bytes")]
    Length {
        /// Values asked for.
        count: usize,
        /// Bits of a value.
        bits: u32,
        /// Bytes found.
        found: usize,
    },
    /// The unused bits of the last byte are not zero.
    #[error("the padding of a packed array is not zero")]
    Padding,
}

/// Bytes that `count` values of `bits` bits take; `None` if that number does not fit a `usize`.
pub const fn packed_len(count: usize, bits: u32) -> Option<usize> {
    match count.checked_mul(bits as usize) {
        Some(total) => Some(total.div_ceil(8)),
        None => None,
    }
}

/// Packs the low `bits` bits of every value, `1 <= bits <= 64` (a larger width counts as 64, width 0 gives no bytes).
pub fn pack<T: Copy + Into<u64>>(values: &[T], bits: u32) -> Vec<u8> {
    let mut out = Vec::new();
    pack_into(values, bits, &mut out);
    out
}

/// Appends what [`pack`] returns.
pub fn pack_into<T: Copy + Into<u64>>(values: &[T], bits: u32, out: &mut Vec<u8>) {
    let bits = bits.min(64);
    if bits == 0 {
        return;
    }
    out.reserve((values.len() as u128 * u128::from(bits)).div_ceil(8) as usize);
    match bits {
        8 => out.extend(values.iter().map(|&x| x.into() as u8)),
        16 => append_bytes::<T, 2>(values, out),
        24 => append_bytes::<T, 3>(values, out),
        32 => append_bytes::<T, 4>(values, out),
        40 => append_bytes::<T, 5>(values, out),
        48 => append_bytes::<T, 6>(values, out),
        56 => append_bytes::<T, 7>(values, out),
        64 => append_bytes::<T, 8>(values, out),
        _ => append_bits(values, bits, out),
    }
}

/// Unpacks `count` values of `bits` bits, `1 <= bits <= 64`.
///
/// # Errors
/// If the width is out of range, `bytes` has not exactly [`packed_len`] bytes, or the padding is not zero. Nothing is
/// allocated before these are checked.
pub fn unpack(bytes: &[u8], bits: u32, count: usize) -> Result<Vec<u64>, BitsError> {
    check(bytes, bits, count, 64)?;
    let mut out = vec![0; count];
    extract(bytes, bits, &mut out, |x| x);
    Ok(out)
}

/// Reads `out.len()` values of `bits` bits, `1 <= bits <= 64`, from bit `first_bit` on: one run of what [`BitWriter`]
/// wrote. Nothing is said about the bits around it; see [`is_padded`].
///
/// # Errors
/// If the width is out of range or the run ends outside `bytes`; `out` is then unchanged.
pub fn unpack_run(bytes: &[u8], first_bit: usize, bits: u32, out: &mut [u64]) -> Result<(), BitsError> {
    if bits == 0 || bits > 64 {
        return Err(BitsError::Width { bits, limit: 64 });
    }
    let end = out.len().checked_mul(bits as usize).and_then(|n| n.checked_add(first_bit));
    if end.is_none_or(|end| end.div_ceil(8) > bytes.len()) {
        return Err(BitsError::Length { count: out.len(), bits, found: bytes.len() });
    }
    extract_run(bytes, first_bit, bits as usize, out, |x| x);
    Ok(())
}

/// Whether `bytes` has no set bit from bit `used` on, i.e. is a canonical string of `used` bits.
pub fn is_padded(bytes: &[u8], used: usize) -> bool {
    match bytes.get(used / 8..) {
        Some([first, rest @ ..]) => first >> (used % 8) == 0 && rest.iter().all(|&b| b == 0),
        _ => true,
    }
}

/// Unpacks `out.len()` values of `bits` bits, `1 <= bits <= 64`, into `out`.
///
/// # Errors
/// As [`unpack`]; `out` is then unchanged.
pub fn unpack_into(bytes: &[u8], bits: u32, out: &mut [u64]) -> Result<(), BitsError> {
    check(bytes, bits, out.len(), 64)?;
    extract(bytes, bits, out, |x| x);
    Ok(())
}

/// Unpacks `count` values of `bits` bits, `1 <= bits <= 32`.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_u32(bytes: &[u8], bits: u32, count: usize) -> Result<Vec<u32>, BitsError> {
    check(bytes, bits, count, 32)?;
    let mut out = vec![0; count];
    extract(bytes, bits, &mut out, |x| x as u32);
    Ok(out)
}

fn check(bytes: &[u8], bits: u32, count: usize, limit: u32) -> Result<(), BitsError> {
    if bits == 0 || bits > limit {
        return Err(BitsError::Width { bits, limit });
    }
    if packed_len(count, bits) != Some(bytes.len()) {
        return Err(BitsError::Length { count, bits, found: bytes.len() });
    }
    // The product fits: `packed_len` has just computed it.
    if is_padded(bytes, count * bits as usize) { Ok(()) } else { Err(BitsError::Padding) }
}

/// The fast path of whole-byte widths: `N` bytes a value.
fn append_bytes<T: Copy + Into<u64>, const N: usize>(values: &[T], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + values.len() * N, 0);
    let (groups, _) = out[start..].as_chunks_mut::<N>();
    for (group, &x) in groups.iter_mut().zip(values) {
        group.copy_from_slice(&x.into().to_le_bytes()[..N]);
    }
}

/// Any width: bits gather in a word that is written when it is full.
fn append_bits<T: Copy + Into<u64>>(values: &[T], bits: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + (values.len() * bits as usize).div_ceil(8), 0);
    let mut writer = BitWriter::new(&mut out[start..]);
    writer.push(values, bits);
    writer.finish();
}

/// Writes runs of values of different widths one after the other, without padding between them.
pub struct BitWriter<'a> {
    out: &'a mut [u8],
    at: usize,
    word: u64,
    fill: u32,
}

impl<'a> BitWriter<'a> {
    /// A writer that starts at bit 0 of `out`. What does not fit is dropped, so size `out` with [`packed_len`].
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, word: 0, fill: 0 }
    }

    /// Appends the low `bits` bits of every value, `bits <= 64`; nothing for a wider or zero width.
    #[inline(always)]
    pub fn push<T: Copy + Into<u64>>(&mut self, values: &[T], bits: u32) {
        if bits == 0 || bits > 64 {
            return;
        }
        let mask = u64::MAX >> (64 - bits);
        let (mut word, mut fill, mut at) = (self.word, self.fill, self.at);
        for &x in values {
            let x = x.into() & mask;
            word |= x << fill;
            fill += bits;
            if fill >= 64 {
                if let Some(slot) = self.out.get_mut(at..at + 8) {
                    slot.copy_from_slice(&word.to_le_bytes());
                }
                at += 8;
                fill -= 64;
                // Two shifts, because a value that ends the word exactly would need a shift by its whole width.
                word = x >> (bits - fill - 1) >> 1;
            }
        }
        (self.word, self.fill, self.at) = (word, fill, at);
    }

    /// Writes what is left, with zero padding to a whole byte.
    pub fn finish(self) {
        let bytes = self.word.to_le_bytes();
        let rest = &bytes[..self.fill.div_ceil(8) as usize];
        if let Some(slot) = self.out.get_mut(self.at..self.at + rest.len()) {
            slot.copy_from_slice(rest);
        }
    }
}

/// The values of a whole array. Lengths are checked before.
fn extract<T>(bytes: &[u8], bits: u32, out: &mut [T], convert: impl Fn(u64) -> T + Copy) {
    match bits {
        8 => extract_bytes::<T, 1>(bytes, out, convert),
        16 => extract_bytes::<T, 2>(bytes, out, convert),
        32 => extract_bytes::<T, 4>(bytes, out, convert),
        64 => extract_bytes::<T, 8>(bytes, out, convert),
        _ => extract_run(bytes, 0, bits as usize, out, convert),
    }
}

/// Any width, from any bit: value `i` is a shifted unaligned word, which needs no state from value to value.
#[inline]
fn extract_run<T>(bytes: &[u8], first: usize, bits: usize, out: &mut [T], convert: impl Fn(u64) -> T + Copy) {
    let mask = u64::MAX >> (64 - bits);
    // A value of more than 57 bits can touch nine bytes.
    let reach = if bits <= 57 { 8 } else { 16 };
    let last = bytes.len().checked_sub(reach).map(|at| (at * 8 + 7).checked_sub(first));
    let inside = if let Some(Some(last)) = last { (last / bits + 1).min(out.len()) } else { 0 };
    let (body, tail) = out.split_at_mut(inside);
    for (i, slot) in body.iter_mut().enumerate() {
        let (at, shift) = ((first + i * bits) / 8, (first + i * bits) % 8);
        let x = if bits <= 57 { word_at::<8>(bytes, at) >> shift } else { word_at::<16>(bytes, at) >> shift };
        *slot = convert(x as u64 & mask);
    }
    for (i, slot) in tail.iter_mut().enumerate() {
        let bit = first + (inside + i) * bits;
        let mut window = [0; 16];
        let rest = &bytes[bit / 8..bytes.len().min(bit / 8 + 16)];
        window[..rest.len()].copy_from_slice(rest);
        *slot = convert((u128::from_le_bytes(window) >> (bit % 8)) as u64 & mask);
    }
}

/// The `N`-byte little-endian integer at byte `at`; zero outside, which `extract` never asks for.
#[inline(always)]
fn word_at<const N: usize>(bytes: &[u8], at: usize) -> u128 {
    let mut window = [0; 16];
    if let Some(part) = bytes.get(at..at + N) {
        window[..N].copy_from_slice(part);
    }
    u128::from_le_bytes(window)
}

fn extract_bytes<T, const N: usize>(bytes: &[u8], out: &mut [T], convert: impl Fn(u64) -> T) {
    let (groups, _) = bytes.as_chunks::<N>();
    for (slot, group) in out.iter_mut().zip(groups) {
        let mut word = [0; 8];
        word[..N].copy_from_slice(group);
        *slot = convert(u64::from_le_bytes(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, straight from the definition.
    fn naive_pack(values: &[u64], bits: u32) -> Vec<u8> {
        let mut out = vec![0u8; (values.len() * bits as usize).div_ceil(8)];
        for (i, &x) in values.iter().enumerate() {
            for b in 0..bits as usize {
                let at = i * bits as usize + b;
                out[at / 8] |= ((x >> b & 1) as u8) << (at % 8);
            }
        }
        out
    }

    #[test]
    fn every_width_matches_the_definition() {
        for bits in 1..=64u32 {
            let mask = u64::MAX >> (64 - bits);
            for count in [0usize, 1, 2, 7, 8, 9, 63, 64, 65, 130] {
                let values: Vec<u64> = (0..count as u64)
                    .map(|i| (i + 3).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32))
                    .collect();
                let bytes = pack(&values, bits);
                assert_eq!(bytes, naive_pack(&values, bits), "{bits} {count}");
                let reduced: Vec<u64> = values.iter().map(|x| x & mask).collect();
                assert_eq!(unpack(&bytes, bits, count).unwrap(), reduced);
                let full = pack(&vec![u64::MAX; count], bits);
                assert_eq!(unpack(&full, bits, count).unwrap(), vec![mask; count]);
                if bits <= 32 {
                    let small: Vec<u32> = reduced.iter().map(|&x| x as u32).collect();
                    assert_eq!(pack(&small, bits), bytes);
                    assert_eq!(unpack_u32(&bytes, bits, count).unwrap(), small);
                }
            }
        }
    }

    #[test]
    fn appending_starts_at_a_byte() {
        let mut out = vec![0xaa];
        pack_into(&[5u64, 6], 3, &mut out);
        pack_into(&[1u64], 7, &mut out);
        assert_eq!(out, [0xaa, 5 | 6 << 3, 1]);
    }

    #[test]
    fn runs_of_different_widths_follow_each_other() {
        for shift in 0..64u32 {
            let widths = [7u32, 64, 1, 33, 8, 57, 58, 13, 63];
            let value =
                |w: u32, i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(w) & (u64::MAX >> (64 - w));
            let total = (shift + widths.iter().sum::<u32>() * 3) as usize;
            let mut bytes = vec![0; total.div_ceil(8)];
            let mut writer = BitWriter::new(&mut bytes);
            let mut naive = Vec::new();
            writer.push(&vec![1u64; shift as usize], 1);
            naive.extend(vec![1u8; shift as usize]);
            for w in widths {
                let run: Vec<u64> = (0..3).map(|i| value(w, i)).collect();
                writer.push(&run, w);
                naive.extend(run.iter().flat_map(|x| (0..w).map(move |b| (x >> b & 1) as u8)));
            }
            writer.finish();
            assert!(is_padded(&bytes, total) && !is_padded(&bytes, 8));
            for (j, bit) in naive.iter().enumerate() {
                assert_eq!(bytes[j / 8] >> (j % 8) & 1, *bit, "{shift} {j}");
            }
            let mut first = shift as usize;
            for w in widths {
                let mut run = [0; 3];
                unpack_run(&bytes, first, w, &mut run).unwrap();
                assert_eq!(run, [0, 1, 2].map(|i| value(w, i)), "{shift} {w}");
                first += 3 * w as usize;
            }
            assert!(unpack_run(&bytes, first, 8, &mut [0; 1]).is_err() && unpack_run(&bytes, 0, 65, &mut []).is_err());
            assert!(unpack_run(&bytes, usize::MAX, 8, &mut [0; 1]).is_err());
        }
    }

    #[test]
    fn wrong_bytes_are_refused() {
        assert_eq!(unpack(&[0; 2], 0, 2), Err(BitsError::Width { bits: 0, limit: 64 }));
        assert_eq!(unpack(&[0; 2], 65, 2), Err(BitsError::Width { bits: 65, limit: 64 }));
        assert_eq!(unpack_u32(&[0; 5], 33, 1), Err(BitsError::Width { bits: 33, limit: 32 }));
        for found in [0, 1, 3] {
            assert_eq!(unpack(&[0; 3][..found], 5, 3), Err(BitsError::Length { count: 3, bits: 5, found }));
        }
        assert!(matches!(unpack(&[], 64, usize::MAX), Err(BitsError::Length { .. })));
        assert_eq!(unpack(&[0xff, 0x7f], 5, 3).unwrap(), [31; 3]);
        assert_eq!(unpack(&[0xff, 0xff], 5, 3), Err(BitsError::Padding));
        let mut out = [9u64; 2];
        assert!(unpack_into(&[1, 2, 3], 8, &mut out).is_err());
        assert_eq!(out, [9; 2]);
        assert!(unpack_into(&[1, 2], 8, &mut out).is_ok());
        assert_eq!(out, [1, 2]);
    }

    #[test]
    fn packing_width_zero_or_over_64_is_harmless() {
        assert!(pack(&[1u64, 2], 0).is_empty());
        assert_eq!(pack(&[1u64], 99), pack(&[1u64], 64));
    }

    proptest! {
        #[test]
        fn round_trip(bits in 1u32..=64, values in proptest::collection::vec(any::<u64>(), 0..300)) {
            let bytes = pack(&values, bits);
            prop_assert_eq!(Some(bytes.len()), packed_len(values.len(), bits));
            let back = unpack(&bytes, bits, values.len()).unwrap();
            prop_assert_eq!(pack(&back, bits), bytes);
            for (x, y) in values.iter().zip(&back) {
                prop_assert_eq!(x & (u64::MAX >> (64 - bits)), *y);
            }
        }

        #[test]
        fn decoder_never_panics(bits: u32, count: usize, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = unpack(&bytes, bits, count);
            let _ = unpack(&bytes, bits % 65, count % 700);
            let _ = unpack_u32(&bytes, bits % 33, count % 700);
        }
    }
}
