//! Correlated OTs in bulk: the extension of Ishai, Kilian, Nissim and Petrank (CRYPTO 2003) with 128 columns, in the
//! correlated form of Asharov, Lindell, Schneider and Zohner (CCS 2013), for semi-honest parties.
//!
//! The parties play the base OTs in reversed roles, with the bits of `delta` as choices: the sender holds `k[i][delta_i]`,
//! the receiver both `k[i]`. For choice vector `r` the receiver sends `U_i = G(k[i][0]) ^ G(k[i][1]) ^ r` for each column
//! `i`, the sender computes `Q_i = G(k[i][delta_i]) ^ delta_i * U_i = G(k[i][0]) ^ delta_i * r`, and the rows of the two
//! matrices satisfy `q_j = t_j ^ r_j * delta`.
//!
//! Both ends count the blocks that they have taken from each stream, so that no (seed, counter) ever serves twice.

use rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::transpose::transpose;
use super::{BaseSender, CotReceiverPool, CotSenderPool, OtError, base};
use crate::arith::bits::BitsError;
use crate::mpc::block::{BLOCK_BYTES, Block};
use crate::mpc::prg::Prg;

/// Columns of the extension matrix: base OTs that it needs, bits of `delta`.
pub const COLUMNS: usize = 128;

/// Blocks of a column that are worked on (and sent) together: the matrix of a chunk, 128 KiB, stays in the second-level
/// cache, and a column's share of it fills the AES pipelines.
const CHUNK_WIDTH: usize = 64;

/// Bytes of the receiver's message for `count` OTs: 16 an OT, in whole groups of 128; `None` if that overflows.
pub const fn extend_len(count: usize) -> Option<usize> {
    match count.checked_next_multiple_of(COLUMNS) {
        Some(padded) => padded.checked_mul(BLOCK_BYTES),
        None => None,
    }
}

/// The party that knows `delta`; as a garbler it takes `q_j` as the zero label of the evaluator's input wire `j`.
pub struct CotSender {
    delta: Block,
    columns: Vec<Prg>,
    position: u64,
}

impl CotSender {
    /// From the base OTs' outcome: `keys[i]` is the key that bit `i` of `delta` chose.
    ///
    /// # Errors
    /// If there are not [`COLUMNS`] keys or `delta` is even (half-gates need its colour bit set).
    pub fn new(delta: Block, keys: &[Block]) -> Result<Self, OtError> {
        if !delta.lsb() {
            return Err(OtError::Delta);
        }
        check_base_count(keys.len())?;
        Ok(Self { delta, columns: keys.iter().map(|&key| Prg::new(key)).collect(), position: 0 })
    }

    /// Answers the COT receiver's base OT opening ([`BaseSender::new`]) with the bits of `delta` as choices. Returns the
    /// sender and the reply for [`CotReceiver::set_up`].
    ///
    /// # Errors
    /// If the opening is malformed or `delta` is even.
    pub fn set_up<R: CryptoRng>(
        session: &[u8],
        delta: Block,
        opening: &[u8],
        rng: &mut R,
    ) -> Result<(Self, Vec<u8>), OtError> {
        let (keys, reply) = base::receive(session, opening, &delta.to_bytes(), COLUMNS, rng)?;
        Ok((Self::new(delta, &keys)?, reply))
    }

    /// The offset of all correlations of this sender.
    pub fn delta(&self) -> Block {
        self.delta
    }

    /// Stream position: OTs made so far, counting the padding to 128 of every call.
    pub fn position(&self) -> u64 {
        self.position * COLUMNS as u64
    }

    /// The sender's side of `count` random COTs, whose message is [`CotReceiver::extend_random`]'s.
    ///
    /// # Errors
    /// As [`CotSender::extend`].
    pub fn extend_random(&mut self, u_message: &[u8], count: usize) -> Result<CotSenderPool, OtError> {
        CotSenderPool::new(self.delta, self.extend(u_message, count)?)
    }

    /// The sender's side of `count` COTs: `q_j = t_j ^ choice_j * delta`.
    ///
    /// # Errors
    /// If the message has not [`extend_len`] bytes; the streams have then not moved.
    pub fn extend(&mut self, u_message: &[u8], count: usize) -> Result<Vec<Block>, OtError> {
        let (padded, expected, next) = advance(self.position, count)?;
        if u_message.len() != expected {
            return Err(OtError::Length { what: "the OT extension message", expected, found: u_message.len() });
        }
        let mut q = vec![Block::ZERO; padded];
        let (position, columns, delta) = (self.position, &self.columns, self.delta);
        let chunk = COLUMNS * CHUNK_WIDTH;
        q.par_chunks_mut(chunk).zip(u_message.par_chunks(chunk * BLOCK_BYTES)).enumerate().for_each_init(
            || Zeroizing::new(vec![Block::ZERO; chunk]),
            |matrix, (c, (q, u))| {
                let width = q.len() / COLUMNS;
                let counter = position + (c * CHUNK_WIDTH) as u64;
                let rows = matrix.chunks_exact_mut(width).zip(u.chunks_exact(width * BLOCK_BYTES));
                for (i, ((row, u), prg)) in rows.zip(columns).enumerate() {
                    prg.fill_blocks_at(counter, row);
                    let mask = Block::mask(delta.bit(i));
                    for (x, u) in row.iter_mut().zip(u.as_chunks::<BLOCK_BYTES>().0) {
                        *x ^= mask & Block::from_bytes(*u);
                    }
                }
                transpose(matrix, width, q);
            },
        );
        self.position = next;
        q[count..].zeroize();
        q.truncate(count);
        Ok(q)
    }
}

impl Drop for CotSender {
    fn drop(&mut self) {
        self.delta.zeroize();
    }
}

/// The party with choices; as an evaluator it holds `t_j`, the label of its own bit.
pub struct CotReceiver {
    columns: Vec<[Prg; 2]>,
    position: u64,
}

impl CotReceiver {
    /// From the base OTs' outcome: both keys of each.
    ///
    /// # Errors
    /// If there are not [`COLUMNS`] pairs.
    pub fn new(pairs: &[[Block; 2]]) -> Result<Self, OtError> {
        check_base_count(pairs.len())?;
        Ok(Self { columns: pairs.iter().map(|pair| pair.map(Prg::new)).collect(), position: 0 })
    }

    /// Ends the base OTs that this party opened with [`BaseSender::new`].
    ///
    /// # Errors
    /// If the reply is malformed.
    pub fn set_up(base: BaseSender, reply: &[u8]) -> Result<Self, OtError> {
        Self::new(&base.keys(reply, COLUMNS)?)
    }

    /// Stream position: OTs made so far, counting the padding to 128 of every call.
    pub fn position(&self) -> u64 {
        self.position * COLUMNS as u64
    }

    /// `count` COTs with random choices. Returns the message for [`CotSender::extend_random`], [`extend_len`] bytes, and the
    /// COTs.
    ///
    /// # Errors
    /// If `count` is too large.
    pub fn extend_random<R: CryptoRng>(
        &mut self,
        count: usize,
        rng: &mut R,
    ) -> Result<(Vec<u8>, CotReceiverPool), OtError> {
        let mut choices = Zeroizing::new(vec![0; count.div_ceil(8)]);
        rng.fill_bytes(&mut choices);
        if let Some(last) = choices.last_mut()
            && !count.is_multiple_of(8)
        {
            *last &= (1 << (count % 8)) - 1;
        }
        let (message, t) = self.extend(&choices, count)?;
        Ok((message, CotReceiverPool::new(t)))
    }

    /// `count` COTs for packed choice bits (OT `j` takes bit `j % 8` of byte `j / 8`, padding zero). Returns the message
    /// for the sender, [`extend_len`] bytes, and `t_j`.
    ///
    /// # Errors
    /// If the choice bits are malformed; the streams have then not moved.
    pub fn extend(&mut self, choices: &[u8], count: usize) -> Result<(Vec<u8>, Vec<Block>), OtError> {
        let (padded, message_len, next) = advance(self.position, count)?;
        let mut r = choice_blocks(choices, count, padded)?;
        let mut message = vec![0; message_len];
        let mut t = vec![Block::ZERO; padded];
        let (position, columns) = (self.position, &self.columns);
        let chunk = COLUMNS * CHUNK_WIDTH;
        t.par_chunks_mut(chunk)
            .zip(message.par_chunks_mut(chunk * BLOCK_BYTES))
            .zip(r.par_chunks(CHUNK_WIDTH))
            .enumerate()
            .for_each_init(
                || (Zeroizing::new(vec![Block::ZERO; chunk]), Zeroizing::new([Block::ZERO; CHUNK_WIDTH])),
                |(matrix, other), (c, ((t, message), r))| {
                    let width = t.len() / COLUMNS;
                    let counter = position + (c * CHUNK_WIDTH) as u64;
                    let other = &mut other[..width];
                    let rows = matrix.chunks_exact_mut(width).zip(message.chunks_exact_mut(width * BLOCK_BYTES));
                    for ((row, u), [zero, one]) in rows.zip(columns) {
                        zero.fill_blocks_at(counter, row);
                        one.fill_blocks_at(counter, other);
                        for ((y, x), r) in other.iter_mut().zip(&*row).zip(r) {
                            *y ^= *x ^ *r;
                        }
                        u.copy_from_slice(bytemuck::cast_slice(other));
                    }
                    transpose(matrix, width, t);
                },
            );
        self.position = next;
        r.zeroize();
        t[count..].zeroize();
        t.truncate(count);
        Ok((message, t))
    }
}

/// OTs with padding, message bytes and the next stream position after `count` OTs.
fn advance(position: u64, count: usize) -> Result<(usize, usize, u64), OtError> {
    let padded = count.checked_next_multiple_of(COLUMNS).ok_or(OtError::Exhausted)?;
    let bytes = extend_len(count).ok_or(OtError::Exhausted)?;
    let next = position.checked_add((padded / COLUMNS) as u64).ok_or(OtError::Exhausted)?;
    Ok((padded, bytes, next))
}

fn choice_blocks(choices: &[u8], count: usize, padded: usize) -> Result<Vec<Block>, OtError> {
    if choices.len() != count.div_ceil(8) {
        return Err(BitsError::Length { count, bits: 1, found: choices.len() }.into());
    }
    if let Some(last) = choices.last()
        && !count.is_multiple_of(8)
        && last >> (count % 8) != 0
    {
        return Err(BitsError::Padding.into());
    }
    let mut blocks = vec![Block::ZERO; padded / COLUMNS];
    bytemuck::cast_slice_mut::<Block, u8>(&mut blocks)[..choices.len()].copy_from_slice(choices);
    Ok(blocks)
}

fn check_base_count(found: usize) -> Result<(), OtError> {
    if found == COLUMNS { Ok(()) } else { Err(OtError::BaseCount { expected: COLUMNS, found }) }
}
