//! Products of one party's bit with the other's ring element, as additive shares, by random COTs in a single flight.
//!
//! The receiver has a choice bit `c`, the sender an element `m`. From a random COT with choice `r` the sender has the pads
//! `p0 = H(q)` and `p1 = H(q ^ delta)`, the receiver `H(t) = p_r`. The sender sends `e = m + p0 - p1`, by which the parties
//! share `r m = -p0 + (p_r + r e)`; at the same time the receiver sends `d = c ^ r`, and since `c m = d m + (1 - 2d) r m`,
//! both correct their shares alone. So a product takes `1 + bits(m)` bits, one COT and one flight.

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::SharedError;
use super::fields::{Fields, RUN, generate, pack, packed_len, select, unpack};
use super::party::{Party, Shares};
use crate::mpc::block::Block;
use crate::mpc::prg::CrHash;

/// Products of one shape: the sender's elements, or the receiver's choice bits (lowest bits of the words).
pub(super) struct Batch<'a> {
    /// Layout of the elements.
    pub(super) fields: Fields,
    /// One word a product.
    pub(super) values: &'a [u64],
}

impl<'a> Batch<'a> {
    pub(super) fn new(fields: Fields, values: &'a [u64]) -> Self {
        Self { fields, values }
    }
}

impl Party {
    /// Products in both directions at once: `send` are batches of this party's elements, `receive` of its choice bits; the
    /// peer calls with batches of the same shapes, the other way round. Returns this party's shares of both.
    pub(super) async fn products(
        &mut self,
        send: &[Batch<'_>],
        receive: &[Batch<'_>],
    ) -> Result<(Vec<Shares>, Vec<Shares>), SharedError> {
        // Seeds go by the direction and then by the batch, so both parties must draw them in the same order.
        let (own, peer) = (self.next_seed(), self.next_seed());
        let (send_seed, receive_seed) = match self.role {
            super::Role::Client => (own, peer),
            super::Role::Server => (peer, own),
        };
        let mut message = Vec::new();
        let mut expected = 0usize;
        let mut chosen = Vec::with_capacity(receive.len());
        for (b, batch) in receive.iter().enumerate() {
            let cots = self.receiver.take(batch.values.len())?;
            let flips = generate(batch.values.len(), |i| (batch.values[i] & 1) ^ u64::from(cots.t[i].lsb()));
            pack(&flips, 1, &mut message)?;
            let pads = hashed(receive_seed, b, &cots.t, Block::ZERO, batch.fields);
            expected += packed_len(batch.values.len(), batch.fields.bits())?;
            chosen.push((cots, flips, pads));
        }
        let mut shares = Vec::with_capacity(send.len());
        for (b, batch) in send.iter().enumerate() {
            let q = self.sender.take(batch.values.len())?;
            let fields = batch.fields;
            let zero = hashed(send_seed, b, &q, Block::ZERO, fields);
            let one = hashed(send_seed, b, &q, self.sender.delta(), fields);
            let hidden = generate(q.len(), |i| fields.sub(fields.add(batch.values[i], zero[i]), one[i]));
            pack(&hidden, fields.bits(), &mut message)?;
            expected += packed_len(q.len(), 1)?;
            shares.push(zero);
        }
        self.send(message);
        let message = self.receive(expected).await?;
        let mut message = &message[..];

        let mut sent = Vec::with_capacity(send.len());
        for (batch, zero) in send.iter().zip(&shares) {
            let fields = batch.fields;
            let flips = unpack(&mut message, 1, zero.len())?;
            // The share of r m is -p0; a flip makes it m + p0.
            sent.push(generate(zero.len(), |i| {
                let flip = select(flips[i]);
                (flip & fields.add(batch.values[i], zero[i])) | (!flip & fields.neg(zero[i]))
            }));
        }
        let mut received = Vec::with_capacity(receive.len());
        for (batch, (cots, flips, pads)) in receive.iter().zip(&chosen) {
            let fields = batch.fields;
            let hidden = unpack(&mut message, fields.bits(), flips.len())?;
            received.push(generate(flips.len(), |i| {
                let share = fields.add(pads[i], hidden[i] & select(u64::from(cots.t[i].lsb())));
                let flip = select(flips[i]);
                (flip & fields.neg(share)) | (!flip & share)
            }));
        }
        Ok((sent, received))
    }
}

/// `H(x ^ offset)` of each label, cut to the fields.
fn hashed(seed: Block, batch: usize, labels: &[Block], offset: Block, fields: Fields) -> Shares {
    let mut out: Shares = Zeroizing::new(vec![0; labels.len()]);
    let mask = fields.mask();
    out.par_chunks_mut(RUN).zip(labels.par_chunks(RUN)).enumerate().for_each_init(
        || Zeroizing::new([Block::ZERO; RUN]),
        |scratch, (run, (out, labels))| {
            let hashed = &mut scratch[..labels.len()];
            for (hashed, &label) in hashed.iter_mut().zip(labels) {
                *hashed = label ^ offset;
            }
            let number = (batch as u64) << 32 | run as u64;
            CrHash::derive(seed, number).hash_in_place(hashed, |i| i as u64);
            for (out, hashed) in out.iter_mut().zip(&*hashed) {
                *out = hashed.0 as u64 & mask;
            }
        },
    );
    out
}
