//! Tables that the server makes and the client indexes, as additive shares, by random 1-of-2^k OTs.
//!
//! The server sends: its tables are the long messages, most links are faster towards the client, and the client's part is the
//! lighter one. The receiver has an index `c` of `k` bits, the sender entries `E[0 .. 2^k]`. From a random OT with index `r` and pads
//! `p_j`, the receiver sends `d = c ^ r`. The sender's share is `s = E[d] - p_0`, and for `j >= 1` it sends
//! `E[d ^ j] - s - p_j`: so the receiver has `E[c] - s = p_r + message_r`, with an empty message for `r = 0`. That takes
//! `k + (2^k - 1) bits(E)` bits, `k` COTs and two flights.
//!
//! The receiver reads its entry by passing over all of them, and tables must be filled without branches or addresses that
//! depend on the sender's share.

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::SharedError;
use super::fields::{Fields, generate, packed_len, unpack};
use super::party::{Party, Role, Shares};
use crate::arith::bits::{self, BitWriter, BitsError};
use crate::mpc::ot::{PadShape, receiver_pads, sender_pads};
use crate::mpc::prg::Prg;

/// Elements whose pads are made together: bounds the memory of long tables.
const BLOCK: usize = 4096;

/// Elements of a unit of parallel work; a multiple of 8, so that units start at a byte of the message.
const UNIT: usize = 64;

/// Writes all entries of an element's table.
type Fill<'a> = Box<dyn Fn(usize, &mut [u64]) + Send + Sync + 'a>;

/// Lookups of one shape, written once for both parties: the server calls `fill`, the client `choice`.
pub(super) struct Lookup<'a> {
    /// Bits of an index.
    pub(super) k: u32,
    /// Layout of an entry.
    pub(super) fields: Fields,
    /// Writes the `2^k` entries of an element, for the indices in order.
    pub(super) fill: Fill<'a>,
    /// The index of an element.
    pub(super) choice: Box<dyn Fn(usize) -> u64 + Send + Sync + 'a>,
}

impl Lookup<'_> {
    fn entries(&self) -> usize {
        (1 << self.k) - 1
    }

    fn shape(&self) -> Result<PadShape, SharedError> {
        Ok(PadShape::new(self.k, self.fields.bits())?)
    }
}

impl Party {
    /// Lookups of `count` elements in each of the server's `tables`, in two flights.
    pub(super) async fn lookup(&mut self, count: usize, tables: &[Lookup<'_>]) -> Result<Vec<Shares>, SharedError> {
        let mut seeds = Prg::new(self.next_seed());
        match self.role {
            Role::Server => self.lookup_send(count, tables, &mut seeds).await,
            Role::Client => self.lookup_receive(count, tables, &mut seeds).await,
        }
    }

    async fn lookup_send(
        &mut self,
        count: usize,
        tables: &[Lookup<'_>],
        seeds: &mut Prg,
    ) -> Result<Vec<Shares>, SharedError> {
        let (mut expected, mut len) = (0, 0);
        for table in tables {
            expected += packed_len(count, table.k)?;
            len += packed_len(count * table.entries(), table.fields.bits())?;
        }
        let corrections = self.receive(expected).await?;
        let mut corrections = &corrections[..];
        let mut message = vec![0; len];
        let mut rest = &mut message[..];
        let mut shares = Vec::with_capacity(tables.len());
        for table in tables {
            let (fields, bits) = (table.fields, table.fields.bits());
            let shape = table.shape()?;
            let shifts = unpack(&mut corrections, table.k, count)?;
            let mut share: Shares = Zeroizing::new(vec![0; count]);
            for (b, (shifts, share)) in shifts.chunks(BLOCK).zip(share.chunks_mut(BLOCK)).enumerate() {
                let pads = sender_pads(&mut self.sender, seeds.next_block(), shape, shifts.len())?;
                let len = packed_len(shifts.len() * table.entries(), bits)?;
                let (here, after) = std::mem::take(&mut rest).split_at_mut(len);
                rest = after;
                let units = here.par_chunks_mut(UNIT / 8 * table.entries() * bits as usize);
                let units = units.zip(share.par_chunks_mut(UNIT)).zip(shifts.par_chunks(UNIT));
                units.enumerate().for_each_init(
                    || [Zeroizing::new(vec![0; 1 << table.k]), Zeroizing::new(vec![0; table.entries()])],
                    |[entries, row], (u, ((out, share), shifts))| {
                        let mut writer = BitWriter::new(out);
                        for (i, (share, &d)) in share.iter_mut().zip(shifts).enumerate() {
                            let (at, d) = (u * UNIT + i, d as usize);
                            (table.fill)(b * BLOCK + at, entries);
                            let s = fields.sub(entries[d], pads.get(at, 0));
                            for (j, out) in row.iter_mut().enumerate() {
                                let j = j + 1;
                                *out = fields.sub(fields.sub(entries[d ^ j], s), pads.get(at, j));
                            }
                            writer.push(row, bits);
                            *share = s;
                        }
                        writer.finish();
                    },
                );
            }
            shares.push(share);
        }
        self.send(message);
        Ok(shares)
    }

    async fn lookup_receive(
        &mut self,
        count: usize,
        tables: &[Lookup<'_>],
        seeds: &mut Prg,
    ) -> Result<Vec<Shares>, SharedError> {
        let mut message = Vec::new();
        let mut expected = 0;
        let mut random = Vec::with_capacity(tables.len());
        for table in tables {
            let shape = table.shape()?;
            let (mut indices, mut pads): (Zeroizing<Vec<u8>>, Shares) = Default::default();
            for first in (0..count).step_by(BLOCK) {
                let block = receiver_pads(&mut self.receiver, seeds.next_block(), shape, BLOCK.min(count - first))?;
                indices.extend_from_slice(&block.indices);
                pads.extend_from_slice(&block.pads);
            }
            let corrections = generate(count, |i| (table.choice)(i) ^ u64::from(indices[i]));
            super::fields::pack(&corrections, table.k, &mut message)?;
            expected += packed_len(count * table.entries(), table.fields.bits())?;
            random.push((indices, pads));
        }
        self.send(message);
        let message = self.receive(expected).await?;
        let mut rest = &message[..];
        let mut shares = Vec::with_capacity(tables.len());
        for (table, (indices, pads)) in tables.iter().zip(&random) {
            let (fields, bits, entries) = (table.fields, table.fields.bits(), table.entries());
            let total = count * entries * bits as usize;
            let (here, after) = rest.split_at(total.div_ceil(8));
            rest = after;
            if !bits::is_padded(here, total) {
                return Err(BitsError::Padding.into());
            }
            let mut share: Shares = Zeroizing::new(vec![0; count]);
            let units = here.par_chunks(UNIT / 8 * entries * bits as usize).zip(share.par_chunks_mut(UNIT));
            units.enumerate().try_for_each_init(
                || vec![0; entries],
                |row, (u, (here, share))| -> Result<(), BitsError> {
                    for (i, share) in share.iter_mut().enumerate() {
                        bits::unpack_run(here, i * entries * bits as usize, bits, row)?;
                        let at = u * UNIT + i;
                        let index = u64::from(indices[at]);
                        let mut hidden = 0;
                        for (j, &entry) in row.iter().enumerate() {
                            hidden |= entry & equal(index, j as u64 + 1);
                        }
                        *share = fields.add(hidden, pads[at]);
                    }
                    Ok(())
                },
            )?;
            shares.push(share);
        }
        Ok(shares)
    }
}

/// All ones if two numbers below 2^63 agree, else zero.
#[inline(always)]
pub(super) const fn equal(a: u64, b: u64) -> u64 {
    (((a ^ b).wrapping_sub(1)) >> 63).wrapping_neg()
}
