//! Boolean circuits of XOR and AND gates with the inputs of two parties, whose outputs are integers.
//!
//! An output is a *word*: a constant plus a sum of bits with weights, modulo a power of two or a prime. A weight costs no gate: a bit
//! leaves the circuit by a projection (see [`super::half_gates`]), which turns it into a share of bit times weight.
//!
//! A circuit is a list of instructions on *slots*: an input is loaded when it is first used, an output leaves as soon as it
//! exists, and a slot is taken again once its value is dead. Evaluating a long circuit therefore needs memory for its live
//! values only. Negation is a flag on an operand. [`super::CircuitBuilder`] makes circuits.

use std::ops::Range;

use thiserror::Error;

use crate::arith::ShareModulus;

/// Why a circuit cannot be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CircuitError {
    /// A party's input has the wrong number of bits.
    #[error("the circuit takes {expected} {party} input bits, not {found}")]
    Inputs {
        /// `garbler` or `evaluator`.
        party: &'static str,
        /// Bits of one instance.
        expected: usize,
        /// Bits given.
        found: usize,
    },
}

/// One instruction of a finished circuit; operands and results are slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// `out = input`, garbler's inputs counted before the evaluator's.
    Load { out: u32, input: u32 },
    /// `out = a ^ b`; `a = b` makes the constant 0, whatever the slot held.
    Xor { out: u32, a: u32, b: u32 },
    /// `out = (a ^ invert_a) & (b ^ invert_b)`.
    And { out: u32, a: u32, b: u32, invert_a: bool, invert_b: bool },
    /// The bit of term `term` is `a`.
    Project { term: u32, a: u32 },
}

impl Gate {
    /// Whether garbling the instruction takes hashes.
    fn is_hashed(self) -> bool {
        matches!(self, Self::And { .. } | Self::Project { .. })
    }
}

/// Most hashed instructions of a segment, see [`Circuit::segments`].
pub(super) const SEGMENT_GATES: usize = 512;

/// A bit's part of an output word: `unit * 2^shift` times the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term {
    /// Which word.
    pub word: u32,
    /// The odd part of the weight; modulo a prime the whole weight.
    pub unit: u64,
    /// The even part, below the word's bits; 0 modulo a prime.
    pub shift: u32,
    /// Bytes of the projection's ciphertext: those of the bits that matter, the modulus's less `shift`.
    pub bytes: u32,
}

impl Term {
    /// For a residue that is not 0.
    pub(super) fn new(word: u32, weight: u64, modulus: ShareModulus) -> Self {
        let shift = match modulus {
            ShareModulus::PowerOfTwo(_) => weight.trailing_zeros(),
            ShareModulus::Prime(_) => 0,
        };
        let bytes = modulus.bits().saturating_sub(shift).max(1).div_ceil(8);
        Self { word, unit: weight >> shift, shift, bytes }
    }
}

/// The outputs of a circuit.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// What words are taken modulo.
    pub modulus: ShareModulus,
    /// The constant of every word.
    pub constants: Vec<u64>,
    /// The terms of all words.
    pub terms: Vec<Term>,
}

/// A circuit ready to be evaluated in the clear or garbled.
#[derive(Clone, Debug)]
pub struct Circuit {
    garbler_inputs: usize,
    evaluator_inputs: usize,
    words: Words,
    slots: usize,
    and_count: usize,
    projection_bytes: usize,
    gates: Vec<Gate>,
    segments: Vec<Range<usize>>,
}

impl Circuit {
    /// From instructions on `slots` slots that load before they use and project the bit of each term once.
    pub(super) fn new(inputs: [usize; 2], words: Words, slots: usize, gates: Vec<Gate>) -> Self {
        let segments = segments(&gates);
        let and_count = gates.iter().filter(|g| matches!(g, Gate::And { .. })).count();
        let projection_bytes = words.terms.iter().map(|t| t.bytes as usize).sum();
        let [garbler_inputs, evaluator_inputs] = inputs;
        Self { garbler_inputs, evaluator_inputs, words, slots, and_count, projection_bytes, gates, segments }
    }

    /// Input bits of the garbler.
    pub fn garbler_inputs(&self) -> usize {
        self.garbler_inputs
    }

    /// Input bits of the evaluator.
    pub fn evaluator_inputs(&self) -> usize {
        self.evaluator_inputs
    }

    /// Output bits: those of all words.
    pub fn outputs(&self) -> usize {
        self.words.constants.len() * self.words.modulus.bits() as usize
    }

    /// Output words.
    pub(super) fn words(&self) -> &Words {
        &self.words
    }

    /// Bits that are projected into output words.
    pub fn projections(&self) -> usize {
        self.words.terms.len()
    }

    /// Bytes of the projections' ciphertexts of one instance.
    pub fn projection_bytes(&self) -> usize {
        self.projection_bytes
    }

    /// Most values that are alive at a time.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// AND gates: beside the projections the only ones that cost communication.
    pub fn and_count(&self) -> usize {
        self.and_count
    }

    /// XOR gates.
    pub fn xor_count(&self) -> usize {
        self.gates.iter().filter(|g| matches!(g, Gate::Xor { .. })).count()
    }

    /// Instructions in order.
    pub(super) fn gates(&self) -> &[Gate] {
        &self.gates
    }

    /// Consecutive ranges of instructions, none empty, all but the last with exactly [`SEGMENT_GATES`] AND gates and
    /// projections. Garbling takes a fresh hash key for each.
    pub(super) fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// Evaluates one instance in the clear; the bits of the words in order, least significant first.
    ///
    /// # Errors
    /// If an input has the wrong number of bits.
    pub fn eval(&self, garbler: &[bool], evaluator: &[bool]) -> Result<Vec<bool>, CircuitError> {
        let words = |bits: &[bool]| bits.iter().map(|&b| u64::from(b)).collect::<Vec<_>>();
        Ok(self.eval64(&words(garbler), &words(evaluator))?.into_iter().map(|w| w & 1 == 1).collect())
    }

    /// Evaluates 64 instances in the clear: bit `i` of every `u64` belongs to instance `i`. The bits of the output words in
    /// order, least significant first.
    ///
    /// # Errors
    /// If an input has the wrong number of words.
    pub fn eval64(&self, garbler: &[u64], evaluator: &[u64]) -> Result<Vec<u64>, CircuitError> {
        check_inputs("garbler", self.garbler_inputs, garbler.len())?;
        check_inputs("evaluator", self.evaluator_inputs, evaluator.len())?;
        let ones = |invert: bool| u64::from(invert).wrapping_neg();
        let mut slots = vec![0u64; self.slots];
        let Words { modulus, constants, terms } = &self.words;
        let mut sums: Vec<[u64; 64]> = constants.iter().map(|&c| [c; 64]).collect();
        for gate in &self.gates {
            match *gate {
                Gate::Load { out, input } => {
                    let input = input as usize;
                    slots[out as usize] =
                        if input < garbler.len() { garbler[input] } else { evaluator[input - garbler.len()] };
                }
                Gate::Xor { out, a, b } => slots[out as usize] = slots[a as usize] ^ slots[b as usize],
                Gate::And { out, a, b, invert_a, invert_b } => {
                    slots[out as usize] = (slots[a as usize] ^ ones(invert_a)) & (slots[b as usize] ^ ones(invert_b));
                }
                Gate::Project { term, a } => {
                    let (term, x) = (terms[term as usize], slots[a as usize]);
                    for (i, sum) in sums[term.word as usize].iter_mut().enumerate() {
                        *sum = modulus.add(*sum, (term.unit & ones(x >> i & 1 == 1)) << term.shift);
                    }
                }
            }
        }
        let bit = |sums: &[u64; 64], b: u32| sums.iter().enumerate().fold(0, |acc, (i, s)| acc | (s >> b & 1) << i);
        Ok(sums.iter().flat_map(|s| (0..modulus.bits()).map(move |b| bit(s, b))).collect())
    }
}

fn check_inputs(party: &'static str, expected: usize, found: usize) -> Result<(), CircuitError> {
    if expected == found { Ok(()) } else { Err(CircuitError::Inputs { party, expected, found }) }
}

/// Cuts after every [`SEGMENT_GATES`] hashed instructions.
fn segments(gates: &[Gate]) -> Vec<Range<usize>> {
    let mut segments = Vec::new();
    let (mut start, mut hashed) = (0, 0);
    for (i, gate) in gates.iter().enumerate() {
        if gate.is_hashed() {
            if hashed == SEGMENT_GATES {
                segments.push(start..i);
                (start, hashed) = (i, 0);
            }
            hashed += 1;
        }
    }
    if start < gates.len() {
        segments.push(start..gates.len());
    }
    segments
}
