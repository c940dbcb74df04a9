//! [`super::gilboa`] on random COTs from a pool: the receiver sends one correction bit a COT.
//!
//! With `d = choice ^ random choice` the sender's label `q ^ d delta` fits the receiver's `t` and its choice. The receiver's
//! part needs no more than its own operand, so it can be sent before anything else is known.

use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::{ProductShape, SharedError, gilboa};
use crate::arith::bits::{self, BitsError};
use crate::mpc::block::Block;
use crate::mpc::ot::{CotReceiverPool, CotSenderPool};

/// What the receiver of products keeps until the sender's message comes.
pub struct ProductReceiver {
    labels: Zeroizing<Vec<Block>>,
    choices: Zeroizing<Vec<u8>>,
}

impl ProductReceiver {
    /// Takes [`ProductShape::ots`] COTs for the scalars `x` (reduced here). Returns the corrections for
    /// [`sender_labels`] too, [`corrections_len`] bytes.
    ///
    /// # Errors
    /// If there are not as many scalars as the shape has rows, or too few COTs.
    pub fn new(shape: &ProductShape, pool: &mut CotReceiverPool, x: &[u64]) -> Result<(Self, Vec<u8>), SharedError> {
        if x.len() != shape.rows() {
            return Err(SharedError::Length { what: "the receiver's scalars", expected: shape.rows(), found: x.len() });
        }
        let cots = pool.take(shape.ots())?;
        let choices = Zeroizing::new(gilboa::choice_bits(x, shape.modulus()));
        let corrections = choices.iter().zip(cots.choices().iter()).map(|(c, r)| c ^ r).collect();
        Ok((Self { labels: cots.t, choices }, corrections))
    }

    /// The labels and the packed choice bits, for [`gilboa::receive`].
    pub fn operands(&self) -> (&[Block], &[u8]) {
        (&self.labels, &self.choices)
    }
}

/// Bytes of the receiver's corrections.
pub fn corrections_len(shape: &ProductShape) -> usize {
    shape.ots().div_ceil(8)
}

/// Takes the same COTs from the sender's pool and corrects them: labels for [`gilboa::send`], whose offset is
/// [`CotSenderPool::delta`].
///
/// # Errors
/// If the corrections are malformed or there are too few COTs.
pub fn sender_labels(
    shape: &ProductShape,
    pool: &mut CotSenderPool,
    corrections: &[u8],
) -> Result<Zeroizing<Vec<Block>>, SharedError> {
    if corrections.len() != corrections_len(shape) {
        return Err(SharedError::MessageLength { expected: corrections_len(shape), found: corrections.len() });
    }
    if !bits::is_padded(corrections, shape.ots()) {
        return Err(BitsError::Padding.into());
    }
    let mut labels = pool.take(shape.ots())?;
    let mut delta = pool.delta();
    labels.par_chunks_mut(8).zip(corrections.par_iter()).with_min_len(128).for_each(|(labels, byte)| {
        for (j, label) in labels.iter_mut().enumerate() {
            *label ^= Block::mask(byte >> j & 1 == 1) & delta;
        }
    });
    delta.zeroize();
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::ShareModulus;
    use crate::mpc::ot::deal;
    use crate::mpc::prg::CrHash;

    #[test]
    fn products_of_random_cots_add_up() {
        for (rows, width, l) in [(5, 1, 37), (3, 7, 32), (0, 3, 8), (40, 2, 13)] {
            let modulus = ShareModulus::pow2(l).unwrap();
            let shape = ProductShape::new(rows, width, modulus).unwrap();
            let x = super::super::tests::random(rows, l, 1);
            let y = super::super::tests::random(rows * width, l, 2);
            let (mut sender, mut receiver) = deal(4, shape.ots());
            let (state, corrections) = ProductReceiver::new(&shape, &mut receiver, &x).unwrap();
            assert_eq!(corrections.len(), corrections_len(&shape));
            let labels = sender_labels(&shape, &mut sender, &corrections).unwrap();
            assert!(sender.is_empty() && receiver.is_empty());
            let hash = || CrHash::derive(Block(3), 9);
            let (message, own) = gilboa::send(&shape, &hash(), sender.delta(), &labels, &y).unwrap();
            let (labels, choices) = state.operands();
            let other = gilboa::receive(&shape, &hash(), labels, choices, &message).unwrap();
            for i in 0..rows * width {
                assert_eq!(modulus.add(own[i], other[i]), modulus.mul(x[i / width], y[i]));
            }
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let shape = ProductShape::new(3, 1, ShareModulus::pow2(7).unwrap()).unwrap();
        let (mut sender, mut receiver) = deal(4, 21);
        assert!(ProductReceiver::new(&shape, &mut receiver, &[1, 2]).is_err());
        assert!(ProductReceiver::new(&shape, &mut deal(4, 20).1, &[1, 2, 3]).is_err());
        assert!(sender_labels(&shape, &mut sender, &[0; 2]).is_err());
        assert!(matches!(sender_labels(&shape, &mut sender, &[0, 0, 0x20]), Err(SharedError::Packing(_))));
        assert!(sender_labels(&shape, &mut sender, &[0, 0, 0x1f]).is_ok());
    }
}
