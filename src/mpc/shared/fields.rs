//! Small ring elements side by side in one word: what one oblivious transfer carries.

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::SharedError;
use super::party::Shares;
use crate::arith::bits::{self, BitWriter, BitsError};

/// Elements of a run that is packed or hashed on its own; a multiple of 8, so that runs start at a byte.
pub(super) const RUN: usize = 1024;

/// The layout of a word of at most 64 bits: fields from bit 0 up, each a ring modulo a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    bits: u32,
    /// The highest bit of each field: where carries must stop.
    high: u64,
}

impl Fields {
    /// One ring modulo `2^bits`, `1 <= bits <= 64`.
    pub(super) fn ring(bits: u32) -> Result<Self, SharedError> {
        Self::new(&[bits])
    }

    /// Fields of these widths, at least 1 each and 64 in all.
    pub(super) fn new(widths: &[u32]) -> Result<Self, SharedError> {
        let (mut bits, mut high) = (0u32, 0u64);
        for &width in widths {
            bits = bits.saturating_add(width);
            if width == 0 || bits > 64 {
                return Err(SharedError::Width { bits });
            }
            high |= 1 << (bits - 1);
        }
        if bits == 0 { Err(SharedError::Width { bits }) } else { Ok(Self { bits, high }) }
    }

    /// Bits in all.
    pub(super) const fn bits(self) -> u32 {
        self.bits
    }

    /// All bits of all fields.
    pub(super) const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Field by field.
    #[inline(always)]
    pub(super) const fn add(self, a: u64, b: u64) -> u64 {
        let high = self.high;
        ((a & !high).wrapping_add(b & !high) ^ ((a ^ b) & high)) & self.mask()
    }

    /// Field by field.
    #[inline(always)]
    pub(super) const fn sub(self, a: u64, b: u64) -> u64 {
        let high = self.high;
        ((a | high).wrapping_sub(b & !high) ^ ((a ^ !b) & high)) & self.mask()
    }

    /// Field by field.
    #[inline(always)]
    pub(super) const fn neg(self, a: u64) -> u64 {
        self.sub(0, a)
    }
}

/// All ones for a set lowest bit, else zero.
#[inline(always)]
pub(super) const fn select(bit: u64) -> u64 {
    (bit & 1).wrapping_neg()
}

/// The low `bits` bits set; `bits` up to 64.
#[inline(always)]
pub(super) const fn low_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// `f` of every index, computed in parallel.
pub(super) fn generate(count: usize, f: impl Fn(usize) -> u64 + Sync) -> Shares {
    let mut out = Zeroizing::new(vec![0; count]);
    out.par_chunks_mut(RUN).enumerate().for_each(|(run, out)| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = f(run * RUN + i);
        }
    });
    out
}

/// Bytes of `count` packed values.
pub(super) fn packed_len(count: usize, bits: u32) -> Result<usize, SharedError> {
    bits::packed_len(count, bits).ok_or(SharedError::TooLarge { rows: count, width: bits as usize })
}

/// Appends the packed values.
pub(super) fn pack(values: &[u64], bits: u32, out: &mut Vec<u8>) -> Result<(), SharedError> {
    let start = out.len();
    out.resize(start + packed_len(values.len(), bits)?, 0);
    out[start..].par_chunks_mut(RUN / 8 * bits as usize).zip(values.par_chunks(RUN)).for_each(|(out, values)| {
        let mut writer = BitWriter::new(out);
        writer.push(values, bits);
        writer.finish();
    });
    Ok(())
}

/// Takes `count` packed values off the front of a message.
pub(super) fn unpack(message: &mut &[u8], bits: u32, count: usize) -> Result<Shares, SharedError> {
    let len = packed_len(count, bits)?;
    let Some((here, rest)) = message.split_at_checked(len) else {
        return Err(SharedError::MessageLength { expected: len, found: message.len() });
    };
    *message = rest;
    if !bits::is_padded(here, count * bits as usize) {
        return Err(BitsError::Padding.into());
    }
    let mut out = Zeroizing::new(vec![0; count]);
    here.par_chunks(RUN / 8 * bits as usize)
        .zip(out.par_chunks_mut(RUN))
        .try_for_each(|(here, out)| bits::unpack_run(here, 0, bits, out))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_do_not_disturb_each_other(widths in proptest::collection::vec(1u32..=20, 1..5), a: u64, b: u64) {
            let total: u32 = widths.iter().sum();
            let Ok(fields) = Fields::new(&widths) else {
                prop_assert!(total > 64);
                return Ok(());
            };
            let (sum, difference) = (fields.add(a, b), fields.sub(a, b));
            let mut at = 0;
            for w in widths {
                let cut = |x: u64| (x >> at) & low_mask(w);
                prop_assert_eq!(cut(sum), cut(a).wrapping_add(cut(b)) & low_mask(w));
                prop_assert_eq!(cut(difference), cut(a).wrapping_sub(cut(b)) & low_mask(w));
                at += w;
            }
            prop_assert!(sum <= fields.mask() && difference <= fields.mask());
        }

        #[test]
        fn packing_in_runs_is_packing(bits in 1u32..=64, count in 0usize..2500) {
            let values: Vec<u64> = (0..count as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            let mut bytes = vec![7];
            pack(&values, bits, &mut bytes).unwrap();
            prop_assert_eq!(&bytes[1..], &bits::pack(&values, bits)[..]);
            bytes.push(9);
            let mut rest = &bytes[1..];
            let back = unpack(&mut rest, bits, count).unwrap();
            prop_assert_eq!(rest, &[9][..]);
            prop_assert!(back.iter().zip(&values).all(|(b, v)| *b == v & low_mask(bits)));
        }
    }

    #[test]
    fn widths_are_checked() {
        for widths in [&[][..], &[0], &[65], &[32, 33], &[3, 0]] {
            assert!(Fields::new(widths).is_err());
        }
        let whole = Fields::ring(64).unwrap();
        assert_eq!(whole.add(u64::MAX, 2), 1);
        assert_eq!(whole.sub(0, 1), u64::MAX);
    }
}
