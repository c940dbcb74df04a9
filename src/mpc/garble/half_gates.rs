//! Half-gates garbling of many instances of one circuit side by side.
//!
//! Zahur, Rosulek, Evans, "Two halves make a whole" (EUROCRYPT 2015): free XOR, point-and-permute, two blocks an AND gate.
//! The hash is [`CrHash`]'s, under a key that changes with every group of instances and every segment of the circuit, as
//! "Better concrete security for half-gates garbling" (Guo, Katz, Wang, Weng, Yu, CRYPTO 2020) asks for: see [`GateKey`].
//!
//! # Layout
//! Instances are numbered from 0 within a layer and taken in *groups* of [`GROUP`] from
//! the start of their chunk; a group is named by its first instance, so that chunks may start anywhere but must not
//! overlap. Labels and packed bits are in the order `[instance][input or output]`. Tables are in the order
//! `[group][instruction][part][instance of the group]`: an AND gate has two parts of 16 bytes, its generator and its
//! evaluator half; a projection has one of up to 8 bytes. The tables of consecutive chunks are one string, however it is
//! cut at groups.
//!
//! # Outputs
//! An output word `y = c + sum_i w_i b_i` in a ring leaves the circuit by *projections* (Ball, Malkin, Rosulek, "Garbling
//! gadgets for Boolean and arithmetic circuits", CCS 2016): for the bit `b_i` the evaluator gets `w_i b_i + r_i`, with a
//! mask `r_i` that is uniform in the ring, or modulo `2^l` among the multiples of `w_i`'s power of two. It comes from the hashes of both labels,
//! so that one of them needs no ciphertext. The evaluator ends up with `y + M`, the garbler with the mask
//! `M = sum_i r_i - c`. A bit costs up to `l / 8` bytes and half the hashes of an AND gate, and additions of
//! outputs, multiplications by constants and the re-masking of a result cost no gate.
//!
//! # Secrecy
//! The evaluator gets tables, one label an input, nothing else; no decoding bits exist. Each `w_i b_i + r_i` is uniform
//! whatever the bit. It returns `y + M` less its next share, which is uniform for the garbler. The code does not branch on
//! labels or bits and looks nothing up by them.

use std::hint::black_box;

use aes::Aes128Enc;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use rayon::prelude::*;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::circuit::Circuit;
use super::lanes::{GroupLabels, Scratch};
use crate::mpc::block::{BLOCK_BYTES, Block};
use crate::mpc::prg::Prg;

#[cfg(any(doc, test))]
use crate::mpc::prg::CrHash;

/// Instances that are garbled side by side, whose hashes fill the vector units.
pub const GROUP: usize = 32;

/// Bytes of an AND gate's table.
pub const GATE_BYTES: usize = 2 * BLOCK_BYTES;

/// Why a chunk cannot be garbled or evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GarbleError {
    /// The global offset does not have bit 0 set.
    #[error("the garbling offset must have bit 0 set")]
    Delta,
    /// Labels, bits or tables of the wrong length.
    #[error("{count} instances take {expected} {what}, not {found}")]
    Length {
        /// What is measured, and in which unit.
        what: &'static str,
        /// Instances of the chunk.
        count: usize,
        /// The right length.
        expected: usize,
        /// The length found.
        found: usize,
    },
    /// More instances or gates than can be numbered.
    #[error("{count} instances of this circuit are more than can be counted")]
    TooMany {
        /// Instances of the chunk.
        count: usize,
    },
}

/// Names the hash keys of a chunk of one garbled layer; public.
///
/// The key of a group and segment is AES of `(node, segment, group)` under the session's hash seed, and under one key the
/// tweak numbers gate or projection, half and instance: no (key, tweak) pair comes twice in a session whose layers have different node
/// numbers, and one key serves at most `4 * 512 * 32 = 2^16` hashes.
#[derive(Clone, Copy)]
pub struct GateKey {
    /// The session's hash seed: fresh for each session, known to both parties, fixed before any input.
    pub session: Block,
    /// The layer.
    pub node: u32,
    /// Number of the chunk's first instance in the layer. Chunks of a layer must not overlap.
    pub first_instance: u64,
}

impl GateKey {
    /// The key of another chunk of the same layer.
    pub fn at(self, first_instance: u64) -> Self {
        Self { first_instance, ..self }
    }

    /// A group is named by its first instance.
    fn group(self, index: usize) -> u64 {
        self.first_instance + (index * GROUP) as u64
    }

    /// Input of the key derivation for a group (numbered in the layer) and a segment.
    fn key_input(self, group: u64, segment: u32) -> Block {
        Block(u128::from(self.node) << 96 | u128::from(segment) << 64 | u128::from(group))
    }
}

/// The part of the tweak that is the same for all instances: AND gate or projection within the segment, half.
pub(super) fn gate_tweak(gate: u64, half: u64) -> u64 {
    (gate << 1 | half) << 8
}

/// Derives the hash keys of a session.
pub(super) struct KeySchedule {
    cipher: Aes128Enc,
    key: GateKey,
}

impl KeySchedule {
    fn new(key: GateKey) -> Self {
        Self { cipher: Aes128Enc::new(&key.session.to_bytes().into()), key }
    }

    pub(super) fn cipher(&self, group: u64, segment: u32) -> Aes128Enc {
        let mut key = self.key.key_input(group, segment).to_bytes().into();
        self.cipher.encrypt_block(&mut key);
        Aes128Enc::new(&key)
    }
}

/// The garbler's secret seed of its own inputs' zero labels, from which they are derived again when they are needed.
///
/// The zero label of input `i` of instance `k` of a layer is block `k * inputs + i` of the generator seeded by
/// AES_seed(node). One seed must serve one session only: two labels of one wire in an evaluator's hands give the inputs
/// away.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct LabelSeed {
    seed: Block,
}

impl LabelSeed {
    /// From a uniform block.
    pub fn new(seed: Block) -> Self {
        Self { seed }
    }

    /// The generator of a layer.
    fn layer(&self, node: u32) -> Prg {
        let mut seed = Prg::new(self.seed).at(u64::from(node)).next_block();
        let prg = Prg::new(seed);
        seed.zeroize();
        prg
    }
}

/// What garbling a chunk gives.
pub struct GarbledChunk {
    /// For the evaluator.
    pub tables: Vec<u8>,
    /// For the garbler: the masks of the output words, packed in the order `[instance][word]`.
    pub masks: Zeroizing<Vec<u8>>,
}

/// Bytes of the tables of `count` instances, projections included.
///
/// # Errors
/// If that number does not fit.
pub fn tables_len(circuit: &Circuit, count: usize) -> Result<usize, GarbleError> {
    product(count, instance_bytes(circuit))
}

fn instance_bytes(circuit: &Circuit) -> usize {
    circuit.and_count() * GATE_BYTES + circuit.projection_bytes()
}

fn product(count: usize, each: usize) -> Result<usize, GarbleError> {
    count.checked_mul(each).ok_or(GarbleError::TooMany { count })
}

fn check(what: &'static str, count: usize, expected: usize, found: usize) -> Result<(), GarbleError> {
    if expected == found { Ok(()) } else { Err(GarbleError::Length { what, count, expected, found }) }
}

/// The garbler's side of one chunk.
pub struct Garbling<'a> {
    circuit: &'a Circuit,
    delta: Zeroizing<Block>,
    key: GateKey,
    labels: Prg,
}

impl<'a> Garbling<'a> {
    /// `delta` is the session's global offset, the same as in the correlated OT of the evaluator's inputs, bit 0 set.
    ///
    /// # Errors
    /// If `delta` has bit 0 clear.
    pub fn new(circuit: &'a Circuit, delta: Block, key: GateKey, labels: &LabelSeed) -> Result<Self, GarbleError> {
        if !delta.lsb() {
            return Err(GarbleError::Delta);
        }
        Ok(Self { circuit, delta: Zeroizing::new(delta), key, labels: labels.layer(key.node) })
    }

    /// Garbles `count` instances: [`Self::garble_into`] with memory of its own.
    ///
    /// # Errors
    /// If `evaluator_zero` has the wrong length.
    pub fn garble_chunk(&self, evaluator_zero: &[Block], count: usize) -> Result<GarbledChunk, GarbleError> {
        let mut tables = vec![0; tables_len(self.circuit, count)?];
        let masks = self.garble_into(evaluator_zero, count, &mut tables)?;
        Ok(GarbledChunk { tables, masks })
    }

    /// Garbles `count` instances, overwrites `tables` ([`tables_len`] bytes) and returns the masks. Groups run in
    /// parallel on the current rayon pool. Streaming in chunks through one buffer spares the page faults of a fresh one,
    /// which cost about as much as the garbling.
    ///
    /// `evaluator_zero` are the zero labels of the evaluator's inputs, as its correlated OTs gave them to the sender.
    ///
    /// # Errors
    /// If `evaluator_zero` or `tables` has the wrong length.
    pub fn garble_into(
        &self,
        evaluator_zero: &[Block],
        count: usize,
        tables: &mut [u8],
    ) -> Result<Zeroizing<Vec<u8>>, GarbleError> {
        let c = self.circuit;
        let expected = product(count, c.evaluator_inputs())?;
        check("zero labels of the evaluator's inputs", count, expected, evaluator_zero.len())?;
        check("bytes of tables", count, tables_len(c, count)?, tables.len())?;
        let mut masks = Zeroizing::new(vec![0; product(count, c.outputs())?.div_ceil(8)]);
        let keys = KeySchedule::new(self.key);
        group_slices(c, tables, &mut masks, count).into_par_iter().for_each_init(
            || Scratch::new(c),
            |scratch, (g, width, tables, out)| {
                let own = self.zero_labels(g, width);
                let labels = GroupLabels {
                    garbler: bytemuck::cast_slice(&own),
                    evaluator: instance_labels(evaluator_zero, c.evaluator_inputs(), g, width),
                    width,
                };
                scratch.garble(c, &keys, self.key.group(g), labels, *self.delta, tables, out);
            },
        );
        Ok(masks)
    }

    /// The labels that stand for the garbler's input bits, packed in the order `[instance][input]`, of `count` instances.
    ///
    /// # Errors
    /// If `bits` has the wrong length.
    pub fn garbler_labels(&self, bits: &[u8], count: usize) -> Result<Vec<Block>, GarbleError> {
        let inputs = product(count, self.circuit.garbler_inputs())?;
        check("bytes of input bits", count, inputs.div_ceil(8), bits.len())?;
        let mut labels = vec![Block::ZERO; inputs];
        self.first_label(0).fill_blocks(&mut labels);
        for (i, label) in labels.iter_mut().enumerate() {
            // Opaque, so that the compiler cannot turn the selection into a branch.
            *label ^= black_box(Block::mask((bits[i / 8] >> (i % 8)) & 1 == 1)) & *self.delta;
        }
        Ok(labels)
    }

    /// Zero labels of the garbler's inputs of a group.
    fn zero_labels(&self, group: usize, width: usize) -> Zeroizing<Vec<Block>> {
        let mut labels = Zeroizing::new(vec![Block::ZERO; width * self.circuit.garbler_inputs()]);
        self.first_label(group * GROUP).fill_blocks(&mut labels);
        labels
    }

    /// The generator of zero labels from an instance of the chunk on.
    fn first_label(&self, instance: usize) -> Prg {
        let instance = self.key.first_instance.wrapping_add(instance as u64);
        self.labels.at(instance.wrapping_mul(self.circuit.garbler_inputs() as u64))
    }
}

/// Evaluates `count` garbled instances and returns the masked output words, packed in the order `[instance][word]`.
///
/// `key` is the garbler's; labels are one an input. Tables or labels that are not the garbler's give meaningless bits.
/// Groups run in parallel on the current rayon pool.
///
/// # Errors
/// If the tables or labels have the wrong length.
pub fn evaluate_chunk(
    circuit: &Circuit,
    key: GateKey,
    tables: &[u8],
    evaluator_labels: &[Block],
    garbler_labels: &[Block],
    count: usize,
) -> Result<Vec<u8>, GarbleError> {
    let (garbler, evaluator) = (circuit.garbler_inputs(), circuit.evaluator_inputs());
    check("bytes of tables", count, tables_len(circuit, count)?, tables.len())?;
    check("labels of the evaluator's inputs", count, product(count, evaluator)?, evaluator_labels.len())?;
    check("labels of the garbler's inputs", count, product(count, garbler)?, garbler_labels.len())?;
    let mut values = vec![0; product(count, circuit.outputs())?.div_ceil(8)];
    let keys = KeySchedule::new(key);
    let stride = instance_bytes(circuit);
    group_slices(circuit, &mut [], &mut values, count).into_par_iter().for_each_init(
        || Scratch::new(circuit),
        |scratch, (g, width, _, out)| {
            let tables = &tables[g * GROUP * stride..][..width * stride];
            let labels = GroupLabels {
                garbler: instance_labels(garbler_labels, garbler, g, width),
                evaluator: instance_labels(evaluator_labels, evaluator, g, width),
                width,
            };
            scratch.evaluate(circuit, &keys, key.group(g), labels, tables, out);
        },
    );
    Ok(values)
}

/// Per group: its index in the chunk, its instances, its tables (as far as `tables` reaches), its packed output bits, which
/// are whole bytes because a full group has a multiple of 8 instances.
fn group_slices<'a>(
    circuit: &Circuit,
    mut tables: &'a mut [u8],
    mut packed: &'a mut [u8],
    count: usize,
) -> Vec<(usize, usize, &'a mut [u8], &'a mut [u8])> {
    (0..count.div_ceil(GROUP))
        .map(|g| {
            let width = (count - g * GROUP).min(GROUP);
            let table_bytes = (width * instance_bytes(circuit)).min(tables.len());
            let packed_bytes = (width * circuit.outputs()).div_ceil(8).min(packed.len());
            let (head, rest) = std::mem::take(&mut tables).split_at_mut(table_bytes);
            tables = rest;
            let (out, rest) = std::mem::take(&mut packed).split_at_mut(packed_bytes);
            packed = rest;
            (g, width, head, out)
        })
        .collect()
}

/// Labels of a group's instances as words, low half first.
fn instance_labels(labels: &[Block], inputs: usize, group: usize, width: usize) -> &[u64] {
    bytemuck::cast_slice(&labels[group * GROUP * inputs..][..width * inputs])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::ShareModulus;
    use crate::mpc::garble::builder::Word;
    use crate::mpc::garble::builder::{Bit, CircuitBuilder};
    use crate::mpc::garble::circuit::{Gate, SEGMENT_GATES};
    use std::collections::HashSet;

    #[test]
    fn no_key_and_no_tweak_comes_twice() {
        let session = Block(9);
        let mut keys = HashSet::new();
        for node in [0, 1, 2, 255, 256, u32::MAX] {
            for first in [0, 5, 32, 64, 1 << 20, 1 << 40] {
                let key = GateKey { session, node, first_instance: first };
                for segment in [0, 1, 2, 255, 256, u32::MAX] {
                    // The next chunk starts where this one ends.
                    assert!(keys.insert(key.key_input(key.group(0), segment).0));
                    assert!(key.key_input(key.group(1), segment) == key.at(first + 32).key_input(first + 32, segment));
                }
            }
        }
        let mut tweaks = HashSet::new();
        for gate in 0..SEGMENT_GATES as u64 {
            for half in 0..2 {
                for lane in 0..GROUP as u64 {
                    assert!(tweaks.insert(gate_tweak(gate, half) | lane));
                }
            }
        }
        // Two hashes (a label and its partner) for each tweak at the garbler.
        assert!(2 * tweaks.len() <= 1 << 16);
    }

    /// One instance by the book: every hash by [`CrHash`], one gate after another. Parts of the tables in order, and the
    /// masks of the words.
    fn naive(
        c: &Circuit,
        delta: Block,
        key: GateKey,
        instance: u64,
        zero: &[Block],
        lane: u64,
    ) -> (Vec<Vec<u8>>, Vec<u64>) {
        let mut slots = vec![Block::ZERO; c.slots()];
        let modulus = c.words().modulus;
        let mut masks: Vec<u64> = c.words().constants.iter().map(|&c| modulus.sub(0, c)).collect();
        let mut parts = Vec::new();
        for (segment, range) in c.segments().iter().enumerate() {
            let seed = key.key_input(instance - lane, segment as u32);
            let mut hash_key = seed.to_bytes().into();
            Aes128Enc::new(&key.session.to_bytes().into()).encrypt_block(&mut hash_key);
            let hash = CrHash::new(Block::from_bytes(hash_key.into()));
            let mut number = 0;
            for gate in &c.gates()[range.clone()] {
                let (t0, t1) = (number << 9 | lane, number << 9 | 256 | lane);
                match *gate {
                    Gate::Load { out, input } => slots[out as usize] = zero[input as usize],
                    Gate::Xor { out, a, b } => slots[out as usize] = slots[a as usize] ^ slots[b as usize],
                    Gate::And { out, a, b, invert_a, invert_b } => {
                        let a0 = slots[a as usize] ^ (Block::mask(invert_a) & delta);
                        let b0 = slots[b as usize] ^ (Block::mask(invert_b) & delta);
                        number += 1;
                        let (pa, pb) = (Block::mask(a0.lsb()), Block::mask(b0.lsb()));
                        let g = hash.hash(a0, t0) ^ hash.hash(a0 ^ delta, t0) ^ (pb & delta);
                        let e = hash.hash(b0, t1) ^ hash.hash(b0 ^ delta, t1) ^ a0;
                        parts.extend([g.to_bytes().to_vec(), e.to_bytes().to_vec()]);
                        slots[out as usize] = hash.hash(a0, t0) ^ (pa & g) ^ hash.hash(b0, t1) ^ (pb & (e ^ a0));
                    }
                    Gate::Project { term, a } => {
                        let (term, zero) = (c.words().terms[term as usize], slots[a as usize]);
                        number += 1;
                        let one = zero ^ delta;
                        let (even, odd) = if zero.lsb() { (one, zero) } else { (zero, one) };
                        let key = |label| match modulus {
                            ShareModulus::PowerOfTwo(_) => hash.hash(label, t0).0 as u64,
                            ShareModulus::Prime(p) => (hash.hash(label, t0).0 % u128::from(p.value())) as u64,
                        };
                        let (k0, k1, p) = (key(even), key(odd), u64::from(zero.lsb()));
                        let full = match modulus {
                            ShareModulus::PowerOfTwo(_) => ShareModulus::PowerOfTwo(64),
                            prime => prime,
                        };
                        let r = full.sub(k0, p * term.unit);
                        let sent = full.sub(full.add(r, (1 - p) * term.unit), k1);
                        parts.push(sent.to_le_bytes()[..term.bytes as usize].to_vec());
                        let mask = &mut masks[term.word as usize];
                        *mask = full.add(*mask, r << term.shift);
                    }
                }
            }
        }
        (parts, masks)
    }

    #[test]
    fn the_vector_code_follows_the_book() {
        for modulus in [
            ShareModulus::PowerOfTwo(29),
            ShareModulus::slots(29, 1024).unwrap(),
            ShareModulus::slots(62, 1024).unwrap(),
        ] {
            follows_the_book(modulus);
        }
    }

    fn follows_the_book(modulus: ShareModulus) {
        // A chain with negations, constants, words of many weights and more than one segment.
        let mut b = CircuitBuilder::new();
        let (x, y) = (b.garbler_inputs(40), b.evaluator_inputs(30));
        let mut acc = !x[0];
        let mut words = vec![
            Word { constant: 3, terms: vec![(Bit::TRUE, 9)] },
            Word { constant: 0, terms: vec![(!y[3], 1 << 28), (x[1], 3), (x[1], 5), (x[2], 1 << 40)] },
        ];
        for i in 0..SEGMENT_GATES + 40 {
            let (p, q) = (x[i % 40], y[i * 7 % 30]);
            let t = b.xor(acc, if i % 3 == 0 { !q } else { q });
            acc = b.and(t, if i % 5 == 0 { !p } else { p });
            acc = b.xor(acc, !q);
            if i % 50 == 0 {
                words.push(Word { constant: i as u64, terms: vec![(acc, (i as u64 + 1) << (i % 31)), (t, u64::MAX)] });
            }
        }
        let c = b.finish_in(modulus, &words);
        assert_eq!(c.segments().len(), 2);
        let (delta, labels) = (Block(0xdead_beef << 90 | 0x1357_9bdf), LabelSeed::new(Block(3)));
        let key = GateKey { session: Block(17), node: 5, first_instance: 101 };
        for count in [1usize, 8, 13, 32, 45] {
            let mut evaluator_zero = vec![Block::ZERO; count * 30];
            Prg::new(Block(4)).fill_blocks(&mut evaluator_zero);
            let garbling = Garbling::new(&c, delta, key, &labels).unwrap();
            let zero = garbling.garbler_labels(&vec![0; count * 5], count).unwrap();
            let chunk = garbling.garble_chunk(&evaluator_zero, count).unwrap();
            assert_eq!(chunk.tables.len(), tables_len(&c, count).unwrap());
            let packed = crate::arith::bits::unpack(&chunk.masks, modulus.bits(), count * words.len()).unwrap();
            for i in 0..count {
                let inputs = [&zero[i * 40..][..40], &evaluator_zero[i * 30..][..30]].concat();
                let (lane, group, width) = (i % GROUP, i / GROUP, GROUP.min(count - i / GROUP * GROUP));
                let (parts, masks) = naive(&c, delta, key, 101 + i as u64, &inputs, lane as u64);
                let mut at = group * GROUP * instance_bytes(&c);
                for (n, part) in parts.iter().enumerate() {
                    let here = at + lane * part.len();
                    assert!(chunk.tables[here..here + part.len()] == part[..], "{count} {i} {n}");
                    at += width * part.len();
                }
                for (w, mask) in masks.iter().enumerate() {
                    assert_eq!(packed[i * words.len() + w], modulus.reduce(*mask), "{count} {i} {w}");
                }
            }
        }
    }
}
