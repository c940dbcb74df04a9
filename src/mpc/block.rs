//! 128-bit blocks: wire labels, OT keys, PRG seeds.

use std::ops::{BitAnd, BitXor, BitXorAssign};

use bytemuck::{Pod, Zeroable};
use rand_core::CryptoRng;
use subtle::{Choice, ConstantTimeEq};
use zeroize::DefaultIsZeroes;

#[cfg(target_endian = "big")]
compile_error!("blocks travel as their memory image, which must be little-endian");

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 16;

/// A 128-bit string; bit `i` is bit `i` of the integer, and the wire form is its 16 bytes, least significant first.
///
/// Blocks hold labels and keys, so there is no `Debug` form and equality takes the same time for all values.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Block(pub u128);

impl Block {
    /// The all-zero block.
    pub const ZERO: Self = Self(0);
    /// The all-one block.
    pub const ONES: Self = Self(u128::MAX);

    /// A uniform block.
    pub fn random<R: CryptoRng>(rng: &mut R) -> Self {
        let mut bytes = [0; BLOCK_BYTES];
        rng.fill_bytes(&mut bytes);
        Self::from_bytes(bytes)
    }

    /// The block with this wire form.
    #[inline]
    pub const fn from_bytes(bytes: [u8; BLOCK_BYTES]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// The wire form.
    #[inline]
    pub const fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        self.0.to_le_bytes()
    }

    /// Bit 0, the permute (colour) bit of a wire label.
    #[inline]
    pub const fn lsb(self) -> bool {
        self.0 & 1 == 1
    }

    /// Bit `i`, `i < 128`.
    #[inline]
    pub const fn bit(self, i: usize) -> bool {
        (self.0 >> i) & 1 == 1
    }

    /// The same block with bit 0 set, as half-gates needs of the offset `delta`.
    #[inline]
    pub const fn with_lsb_set(self) -> Self {
        Self(self.0 | 1)
    }

    /// All ones if `bit`, else zero; `mask(b) & x` selects without a branch.
    #[inline]
    pub const fn mask(bit: bool) -> Self {
        Self((bit as u128).wrapping_neg())
    }
}

impl DefaultIsZeroes for Block {}

impl ConstantTimeEq for Block {
    fn ct_eq(&self, other: &Self) -> Choice {
        let x = self.0 ^ other.0;
        ((x as u64) | ((x >> 64) as u64)).ct_eq(&0)
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for Block {}

impl BitXor for Block {
    type Output = Self;
    #[inline]
    fn bitxor(self, rhs: Self) -> Self {
        Self(self.0 ^ rhs.0)
    }
}

impl BitXorAssign for Block {
    #[inline]
    fn bitxor_assign(&mut self, rhs: Self) {
        self.0 ^= rhs.0;
    }
}

impl BitAnd for Block {
    type Output = Self;
    #[inline]
    fn bitand(self, rhs: Self) -> Self {
        Self(self.0 & rhs.0)
    }
}

impl From<u128> for Block {
    fn from(x: u128) -> Self {
        Self(x)
    }
}

impl From<[u8; BLOCK_BYTES]> for Block {
    fn from(bytes: [u8; BLOCK_BYTES]) -> Self {
        Self::from_bytes(bytes)
    }
}

/// The wire form of a run of blocks: 16 bytes each.
pub fn blocks_as_bytes(blocks: &[Block]) -> &[u8] {
    bytemuck::cast_slice(blocks)
}

/// The blocks whose wire form is `bytes`; `None` unless the length is a multiple of 16. `bytes` need not be aligned.
pub fn blocks_from_bytes(bytes: &[u8]) -> Option<Vec<Block>> {
    if !bytes.len().is_multiple_of(BLOCK_BYTES) {
        return None;
    }
    let mut blocks = vec![Block::ZERO; bytes.len() / BLOCK_BYTES];
    bytemuck::cast_slice_mut::<Block, u8>(&mut blocks).copy_from_slice(bytes);
    Some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_bytes_agree() {
        let x = Block(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert!(Block::from_bytes(x.to_bytes()) == x);
        assert_eq!(x.to_bytes()[0], 0x77);
        assert!(x.lsb() && x.bit(0) && !x.bit(3) && x.bit(120) && !x.bit(121));
        assert!(Block(2).with_lsb_set() == Block(3) && Block(3).with_lsb_set() == Block(3));
        assert!(Block::mask(true) == Block::ONES && Block::mask(false) == Block::ZERO);
    }

    #[test]
    fn slices_travel_as_little_endian_bytes() {
        let blocks = [Block(1), Block(2 << 64), Block::ONES];
        let mut padded = vec![0u8];
        padded.extend_from_slice(blocks_as_bytes(&blocks));
        assert_eq!(&padded[1..17], &blocks[0].to_bytes());
        assert!(blocks_from_bytes(&padded[1..]).unwrap() == blocks);
        assert!(blocks_from_bytes(&padded).is_none());
        assert!(blocks_from_bytes(&[]).unwrap().is_empty());
    }

    #[test]
    fn equality_sees_either_half() {
        assert!(Block(1) != Block(0) && Block(1 << 127) != Block(0) && Block(5 << 64) == Block(5 << 64));
    }
}
