//! Boolean circuits of XOR and AND gates with the inputs of two parties.
//!
//! A circuit is a list of instructions on *slots*: an input is loaded when it is first used, an output leaves as soon as it
//! exists, and a slot is taken again once its value is dead. Evaluating a long circuit therefore needs memory for its live
//! values only. Negation is a flag on an operand. [`super::CircuitBuilder`] makes circuits.

use std::ops::Range;

use thiserror::Error;

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
    /// Output `index` is `a ^ invert`.
    Output { index: u32, a: u32, invert: bool },
}

/// Most AND gates of a segment, see [`Circuit::segments`].
pub(super) const SEGMENT_ANDS: usize = 512;

/// A circuit ready to be evaluated in the clear or garbled.
#[derive(Clone, Debug)]
pub struct Circuit {
    garbler_inputs: usize,
    evaluator_inputs: usize,
    outputs: usize,
    slots: usize,
    and_count: usize,
    gates: Vec<Gate>,
    segments: Vec<Range<usize>>,
}

impl Circuit {
    /// From instructions on `slots` slots that load before they use and make each of `outputs` outputs once.
    pub(super) fn new(inputs: [usize; 2], outputs: usize, slots: usize, gates: Vec<Gate>) -> Self {
        let (segments, and_count) = segments(&gates);
        let [garbler_inputs, evaluator_inputs] = inputs;
        Self { garbler_inputs, evaluator_inputs, outputs, slots, and_count, gates, segments }
    }

    /// Input bits of the garbler.
    pub fn garbler_inputs(&self) -> usize {
        self.garbler_inputs
    }

    /// Input bits of the evaluator.
    pub fn evaluator_inputs(&self) -> usize {
        self.evaluator_inputs
    }

    /// Output bits.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Most values that are alive at a time.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// AND gates: the only ones that cost communication.
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

    /// Consecutive ranges of instructions, none empty, all but the last with exactly [`SEGMENT_ANDS`] AND gates. Garbling
    /// takes a fresh hash key for each.
    pub(super) fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// Evaluates one instance in the clear.
    ///
    /// # Errors
    /// If an input has the wrong number of bits.
    pub fn eval(&self, garbler: &[bool], evaluator: &[bool]) -> Result<Vec<bool>, CircuitError> {
        let words = |bits: &[bool]| bits.iter().map(|&b| u64::from(b)).collect::<Vec<_>>();
        Ok(self.eval64(&words(garbler), &words(evaluator))?.into_iter().map(|w| w & 1 == 1).collect())
    }

    /// Evaluates 64 instances in the clear: bit `i` of every word belongs to instance `i`.
    ///
    /// # Errors
    /// If an input has the wrong number of words.
    pub fn eval64(&self, garbler: &[u64], evaluator: &[u64]) -> Result<Vec<u64>, CircuitError> {
        check_inputs("garbler", self.garbler_inputs, garbler.len())?;
        check_inputs("evaluator", self.evaluator_inputs, evaluator.len())?;
        let ones = |invert: bool| u64::from(invert).wrapping_neg();
        let mut slots = vec![0u64; self.slots];
        let mut outputs = vec![0u64; self.outputs];
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
                Gate::Output { index, a, invert } => outputs[index as usize] = slots[a as usize] ^ ones(invert),
            }
        }
        Ok(outputs)
    }
}

fn check_inputs(party: &'static str, expected: usize, found: usize) -> Result<(), CircuitError> {
    if expected == found { Ok(()) } else { Err(CircuitError::Inputs { party, expected, found }) }
}

/// Cuts after every [`SEGMENT_ANDS`] AND gates; also the number of AND gates.
fn segments(gates: &[Gate]) -> (Vec<Range<usize>>, usize) {
    let mut segments = Vec::new();
    let (mut start, mut ands) = (0, 0);
    for (i, gate) in gates.iter().enumerate() {
        if matches!(gate, Gate::And { .. }) {
            if ands > 0 && ands % SEGMENT_ANDS == 0 {
                segments.push(start..i);
                start = i;
            }
            ands += 1;
        }
    }
    if start < gates.len() {
        segments.push(start..gates.len());
    }
    (segments, ands)
}
