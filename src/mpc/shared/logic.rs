//! Bits shared by XOR: conjunctions, carries (comparisons), equality, and selection of ring elements by a shared bit.
//!
//! Comparison is by digits (Rathee et al., "CrypTFlow2", CCS 2020; Huang et al., "Cheetah", USENIX Security 2022): a
//! 1-of-16 lookup gives shares of "greater" and "equal" of each digit, and a tree of conjunctions joins neighbours.

use super::SharedError;
use super::cot::Batch;
use super::fields::{Fields, generate, low_mask, select};
use super::lookup::{Lookup, equal};
use super::meter::Cost;
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

/// Whether shares of `bits`-bit numbers, from bit `first` of the words on, carry: `x_C + x_S >= 2^bits`, i.e.
/// `x_C > 2^bits - 1 - x_S`; and with `equal` also whether a carry from below would go through, in bit 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carry {
    first: u32,
    bits: u32,
    equal: bool,
}

impl Carry {
    /// Of the low `bits` bits.
    pub(super) fn low(bits: u32) -> Self {
        Self { first: 0, bits, equal: false }
    }

    /// Of `bits` bits from bit `first` on, with the second answer.
    pub(super) fn middle(first: u32, bits: u32) -> Self {
        Self { first, bits, equal: true }
    }

    /// First bit, bits and answers of each digit, lowest first. The lowest digit's equality matters for the second answer
    /// only.
    fn digits(self) -> impl Iterator<Item = (u32, u32, usize)> {
        let starts = (0..self.bits).step_by(DIGIT as usize);
        starts.map(move |at| {
            let answers = if at == 0 && !self.equal { 1 } else { 2 };
            (self.first + at, DIGIT.min(self.bits - at), answers)
        })
    }

    /// The lookups of the digits. Their results go to [`Carry::join`].
    pub(super) fn leaves<'a>(self, x: &'a [u64]) -> Result<Vec<Lookup<'a>>, SharedError> {
        self.digits()
            .map(|(first, k, answers)| {
                let fields = Fields::new(&vec![1; answers])?;
                let digit = move |i: usize| (x[i] >> first) & low_mask(k);
                Ok(Lookup {
                    k,
                    fields,
                    fill: Box::new(move |i, entries| {
                        let y = digit(i) ^ low_mask(k);
                        for (v, entry) in (0u64..).zip(entries) {
                            // v > y and v == y without a branch.
                            *entry = (y.wrapping_sub(v) >> 63 | equal(v, y) & 2) & fields.mask();
                        }
                    }),
                    choice: Box::new(digit),
                })
            })
            .collect()
    }

    /// `(k, bits)` of the leaves.
    pub(super) fn leaf_sizes(self) -> Vec<(u32, u32)> {
        self.digits().map(|(_, k, answers)| (k, answers as u32)).collect()
    }

    /// Shares of the answers from those of the digits.
    pub(super) async fn join(self, party: &mut Party, mut nodes: Vec<Shares>) -> Result<Shares, SharedError> {
        while nodes.len() > 1 {
            let through: Vec<Shares> =
                nodes.chunks_exact(2).map(|pair| generate(pair[1].len(), |i| pair[1][i] >> 1)).collect();
            let terms: Vec<And<'_>> = nodes
                .chunks_exact(2)
                .zip(&through)
                .zip(self.widths(nodes.len()))
                .map(|((pair, through), width)| And { bit: through, bits: &pair[0], width })
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

    /// Answers of the pairs of a level of `nodes` nodes.
    fn widths(self, nodes: usize) -> Vec<u32> {
        (0..nodes / 2).map(|n| if n == 0 && !self.equal { 1 } else { 2 }).collect()
    }

    /// The cost of [`Carry::join`].
    pub(super) fn join_cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let mut nodes = self.digits().count();
        while nodes > 1 {
            and_cost(count, &self.widths(nodes), cost)?;
            nodes = nodes.div_ceil(2);
        }
        Ok(())
    }
}

/// Shares of the sign (the highest bit) of values shared modulo `2^ring`, `ring >= 2`.
pub(super) async fn sign(party: &mut Party, ring: u32, x: &[u64]) -> Result<Shares, SharedError> {
    let carry = Carry::low(ring - 1);
    let leaves = party.lookup(x.len(), &carry.leaves(x)?).await?;
    let carry = carry.join(party, leaves).await?;
    Ok(generate(x.len(), |i| carry[i] ^ (x[i] >> (ring - 1) & 1)))
}

/// The cost of [`sign`].
pub(super) fn sign_cost(ring: u32, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
    let carry = Carry::low(ring - 1);
    cost.lookups(count, &carry.leaf_sizes())?;
    carry.join_cost(count, cost)
}

/// Whether `x_C + x_S + j` is 0 modulo `2^bits`, in bit `j` of a word, for `j` below `targets`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zero {
    pub(super) bits: u32,
    pub(super) targets: u32,
}

impl Zero {
    /// First bit and bits of each digit: as few digits as there must be, of nearly equal width.
    fn digits(self) -> Vec<(u32, u32)> {
        let count = self.bits.div_ceil(DIGIT);
        let start = |d: u32| d * self.bits / count;
        (0..count).map(|d| (start(d), start(d + 1) - start(d))).collect()
    }

    /// The lookups of the digits. Their results go to [`Zero::join`].
    pub(super) fn leaves<'a>(
        self,
        x: impl Fn(usize) -> u64 + Copy + Send + Sync + 'a,
    ) -> Result<Vec<Lookup<'a>>, SharedError> {
        let digit = |(first, k): (u32, u32)| -> Result<Lookup<'a>, SharedError> {
            Ok(Lookup {
                k,
                fields: Fields::new(&vec![1; self.targets as usize])?,
                fill: Box::new(move |i, entries| {
                    entries.fill(0);
                    for j in 0..self.targets {
                        let target = (x(i).wrapping_add(j.into()).wrapping_neg() >> first) & low_mask(k);
                        for (v, entry) in (0u64..).zip(entries.iter_mut()) {
                            *entry |= equal(v, target) & 1 << j;
                        }
                    }
                }),
                choice: Box::new(move |i| (x(i) >> first) & low_mask(k)),
            })
        };
        self.digits().into_iter().map(digit).collect()
    }

    /// `(k, bits)` of the leaves.
    pub(super) fn leaf_sizes(self) -> Vec<(u32, u32)> {
        self.digits().into_iter().map(|(_, k)| (k, self.targets)).collect()
    }

    /// Shares of the answers.
    pub(super) async fn join(self, party: &mut Party, mut nodes: Vec<Shares>) -> Result<Shares, SharedError> {
        while nodes.len() > 1 {
            let bit = |node: &Shares, j: u32| generate(node.len(), |i| node[i] >> j & 1);
            let split: Vec<[Shares; 2]> = nodes
                .chunks_exact(2)
                .flat_map(|pair| (0..self.targets).map(|j| [bit(&pair[0], j), bit(&pair[1], j)]))
                .collect();
            let terms: Vec<And<'_>> = split.iter().map(|[low, high]| And { bit: low, bits: high, width: 1 }).collect();
            let products = and(party, &terms).await?;
            let mut joined: Vec<Shares> = products
                .chunks_exact(self.targets as usize)
                .map(|bits| generate(bits[0].len(), |i| bits.iter().rev().fold(0, |word, b| word << 1 | b[i])))
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
            and_cost(count, &vec![1; nodes / 2 * self.targets as usize], cost)?;
            nodes = nodes.div_ceil(2);
        }
        Ok(())
    }
}
