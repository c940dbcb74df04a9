//! Bits shared by XOR: conjunctions, carries (comparisons), equality, and selection of ring elements by a shared bit.
//!
//! Comparison is by digits (Rathee et al., "CrypTFlow2", CCS 2020; Huang et al., "Cheetah", USENIX Security 2022): a
//! 1-of-16 lookup gives shares of "greater" and "equal" of each digit, and a tree of conjunctions joins neighbours.

use super::SharedError;
use super::cot::Batch;
use super::fields::{Fields, generate, low_mask, select};
use super::lookup::Lookup;
use super::meter::{Cost, Sender};
use super::party::{Party, Shares};

/// Bits of a digit.
const DIGIT: u32 = 4;

/// A conjunction of a shared bit with each of `width` shared bits (the low ones of the words).
pub(super) struct And<'a> {
    pub(super) bit: &'a [u64],
    pub(super) bits: &'a [u64],
    pub(super) width: u32,
}

/// Conjunctions, all in one flight: `2 (1 + width)` bits and 2 COTs each.
pub(super) async fn and(party: &mut Party, terms: &[And<'_>]) -> Result<Vec<Shares>, SharedError> {
    let mut send = Vec::with_capacity(terms.len());
    let mut receive = Vec::with_capacity(terms.len());
    for term in terms {
        let fields = Fields::new(&vec![1; term.width as usize])?;
        send.push(Batch::new(fields, term.bits));
        receive.push(Batch::new(fields, term.bit));
    }
    let (sent, received) = party.products(&send, &receive).await?;
    Ok(terms
        .iter()
        .zip(sent.iter().zip(&received))
        .map(|(term, (s, r))| {
            generate(s.len(), |i| (term.bits[i] & select(term.bit[i]) & low_mask(term.width)) ^ s[i] ^ r[i])
        })
        .collect())
}

/// The cost of [`and`] for terms of these widths.
pub(super) fn and_cost(count: usize, widths: &[u32], cost: &mut Cost) -> Result<(), SharedError> {
    let batches: Vec<_> = widths.iter().map(|&w| (count, w)).collect();
    cost.products(&batches, &batches)
}

/// A ring element times a shared bit.
pub(super) struct Mux<'a> {
    pub(super) bit: &'a [u64],
    pub(super) value: &'a [u64],
    pub(super) ring: u32,
}

/// Selections, all in one flight: `2 (1 + ring)` bits and 2 COTs each. Of `b x` with `b = b_C ^ b_S` a party has
/// `b_own x_own` alone, and the rest is the other's bit times `(1 - 2 b_own) x_own`.
pub(super) async fn mux(party: &mut Party, terms: &[Mux<'_>]) -> Result<Vec<Shares>, SharedError> {
    let signed: Vec<Shares> = terms
        .iter()
        .map(|t| {
            generate(t.value.len(), |i| {
                let sign = select(t.bit[i]);
                (t.value[i] ^ sign).wrapping_sub(sign) & low_mask(t.ring)
            })
        })
        .collect();
    let mut send = Vec::with_capacity(terms.len());
    let mut receive = Vec::with_capacity(terms.len());
    for (term, signed) in terms.iter().zip(&signed) {
        let fields = Fields::ring(term.ring)?;
        send.push(Batch::new(fields, signed));
        receive.push(Batch::new(fields, term.bit));
    }
    let (sent, received) = party.products(&send, &receive).await?;
    Ok(terms
        .iter()
        .zip(sent.iter().zip(&received))
        .map(|(t, (s, r))| {
            generate(s.len(), |i| {
                (t.value[i] & select(t.bit[i])).wrapping_add(s[i]).wrapping_add(r[i]) & low_mask(t.ring)
            })
        })
        .collect())
}

/// The cost of [`mux`] for terms of these rings.
pub(super) fn mux_cost(count: usize, rings: &[u32], cost: &mut Cost) -> Result<(), SharedError> {
    and_cost(count, rings, cost)
}

/// Whether shares of `bits`-bit numbers carry: `x_C + x_S >= 2^bits`, i.e. `x_C > 2^bits - 1 - x_S`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carry {
    pub(super) bits: u32,
}

impl Carry {
    /// First bit and bits of each digit, lowest first.
    fn digits(self) -> impl Iterator<Item = (u32, u32)> {
        let bits = self.bits;
        (0..bits).step_by(DIGIT as usize).map(move |first| (first, DIGIT.min(bits - first)))
    }

    /// The lookups of the digits; the server's tables. Their results go to [`Carry::join`].
    pub(super) fn leaves<'a>(self, x: &'a [u64]) -> Result<Vec<Lookup<'a>>, SharedError> {
        self.digits()
            .map(|(first, k)| {
                // The lowest digit's equality decides nothing.
                let widths: &[u32] = if first == 0 { &[1] } else { &[1, 1] };
                let fields = Fields::new(widths)?;
                let digit = move |i: usize| (x[i] >> first) & low_mask(k);
                Ok(Lookup {
                    k,
                    fields,
                    fill: Box::new(move |i, entries| {
                        let y = digit(i) ^ low_mask(k);
                        for (v, entry) in (0u64..).zip(entries) {
                            // v > y and v == y without a branch.
                            let greater = y.wrapping_sub(v) >> 63;
                            let equal = super::lookup::equal(v, y) & 2;
                            *entry = (greater | equal) & fields.mask();
                        }
                    }),
                    choice: Box::new(digit),
                })
            })
            .collect()
    }

    /// `(k, bits)` of the leaves.
    pub(super) fn leaf_sizes(self) -> Vec<(u32, u32)> {
        self.digits().map(|(first, k)| (k, if first == 0 { 1 } else { 2 })).collect()
    }

    /// Shares of the carry from the digits' comparisons.
    pub(super) async fn join(self, party: &mut Party, mut nodes: Vec<Shares>) -> Result<Shares, SharedError> {
        // A word has "greater" in bit 0 and, but for the lowest node, "equal" in bit 1.
        while nodes.len() > 1 {
            let equal: Vec<Shares> =
                nodes.chunks_exact(2).map(|pair| generate(pair[1].len(), |i| pair[1][i] >> 1)).collect();
            let terms: Vec<And<'_>> = nodes
                .chunks_exact(2)
                .zip(&equal)
                .enumerate()
                .map(|(n, (pair, equal))| And { bit: equal, bits: &pair[0], width: if n == 0 { 1 } else { 2 } })
                .collect();
            let mut joined = and(party, &terms).await?;
            for (joined, pair) in joined.iter_mut().zip(nodes.chunks_exact(2)) {
                for (joined, high) in joined.iter_mut().zip(&*pair[1]) {
                    *joined ^= high & 1;
                }
            }
            if nodes.len() % 2 == 1 {
                joined.extend(nodes.pop());
            }
            nodes = joined;
        }
        nodes.pop().ok_or(SharedError::Internal { what: "a digit of a comparison" })
    }

    /// The cost of [`Carry::join`].
    pub(super) fn join_cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let mut nodes = self.digits().count();
        while nodes > 1 {
            let widths: Vec<u32> = (0..nodes / 2).map(|n| if n == 0 { 1 } else { 2 }).collect();
            and_cost(count, &widths, cost)?;
            nodes = nodes.div_ceil(2);
        }
        Ok(())
    }

    /// Shares of the carry of the low bits of `x`.
    pub(super) async fn run(self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let leaves = party.lookup(Sender::Server, x.len(), &self.leaves(x)?).await?;
        self.join(party, leaves).await
    }

    /// The cost of [`Carry::run`].
    pub(super) fn cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        cost.lookups(Sender::Server, count, &self.leaf_sizes())?;
        self.join_cost(count, cost)
    }
}

/// Shares of the sign (the highest bit) of values shared modulo `2^ring`.
pub(super) async fn sign(party: &mut Party, ring: u32, x: &[u64]) -> Result<Shares, SharedError> {
    let carry = Carry { bits: ring - 1 }.run(party, x).await?;
    Ok(generate(x.len(), |i| carry[i] ^ (x[i] >> (ring - 1) & 1)))
}

/// The cost of [`sign`].
pub(super) fn sign_cost(ring: u32, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
    Carry { bits: ring - 1 }.cost(count, cost)
}

/// Whether `x_C + x_S` and `x_C + x_S + 1` are 0 modulo `2^bits`, in bits 0 and 1 of a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zero {
    pub(super) bits: u32,
}

impl Zero {
    /// First bit and bits of each digit: as few digits as carry at most [`DIGIT`] bits, of nearly equal width.
    fn digits(self) -> Vec<(u32, u32)> {
        let count = self.bits.div_ceil(DIGIT);
        (0..count).map(|d| (d * self.bits / count, (d + 1) * self.bits / count - d * self.bits / count)).collect()
    }

    /// The lookups of the digits; the server's tables. Their results go to [`Zero::join`].
    pub(super) fn leaves<'a>(
        self,
        x: impl Fn(usize) -> u64 + Copy + Send + Sync + 'a,
    ) -> Result<Vec<Lookup<'a>>, SharedError> {
        let digit = |(first, k): (u32, u32)| -> Result<Lookup<'a>, SharedError> {
            Ok(Lookup {
                k,
                fields: Fields::new(&[1, 1])?,
                fill: Box::new(move |i, entries| {
                    let targets = [x(i).wrapping_neg(), !x(i)].map(|t| (t >> first) & low_mask(k));
                    for (v, entry) in (0u64..).zip(entries) {
                        *entry = super::lookup::equal(v, targets[0]) & 1 | super::lookup::equal(v, targets[1]) & 2;
                    }
                }),
                choice: Box::new(move |i| (x(i) >> first) & low_mask(k)),
            })
        };
        self.digits().into_iter().map(digit).collect()
    }

    /// `(k, bits)` of the leaves.
    pub(super) fn leaf_sizes(self) -> Vec<(u32, u32)> {
        self.digits().into_iter().map(|(_, k)| (k, 2)).collect()
    }

    /// Shares of both answers.
    pub(super) async fn join(self, party: &mut Party, mut nodes: Vec<Shares>) -> Result<Shares, SharedError> {
        while nodes.len() > 1 {
            let upper: Vec<Shares> =
                nodes.chunks_exact(2).map(|pair| generate(pair[0].len(), |i| pair[0][i] >> 1)).collect();
            let other: Vec<Shares> =
                nodes.chunks_exact(2).map(|pair| generate(pair[1].len(), |i| pair[1][i] >> 1)).collect();
            let terms: Vec<And<'_>> = nodes
                .chunks_exact(2)
                .zip(upper.iter().zip(&other))
                .flat_map(|(pair, (upper, other))| {
                    [And { bit: &pair[0], bits: &pair[1], width: 1 }, And { bit: upper, bits: other, width: 1 }]
                })
                .collect();
            let products = and(party, &terms).await?;
            let mut joined: Vec<Shares> = products
                .chunks_exact(2)
                .map(|pair| generate(pair[0].len(), |i| pair[0][i] | pair[1][i] << 1))
                .collect();
            if nodes.len() % 2 == 1 {
                joined.extend(nodes.pop());
            }
            nodes = joined;
        }
        nodes.pop().ok_or(SharedError::Internal { what: "a digit of an equality" })
    }

    /// The cost of [`Zero::join`].
    pub(super) fn join_cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let mut nodes = self.digits().len();
        while nodes > 1 {
            and_cost(count, &vec![1; nodes / 2 * 2], cost)?;
            nodes = nodes.div_ceil(2);
        }
        Ok(())
    }
}
