//! What gadgets have in common: shares in, words out.

use super::arith::{add_high, add_with_carry, xor_all};
use super::builder::{Bit, CircuitBuilder, Word};
use super::gadget::{GadgetError, MAX_COLS};
use crate::arith::ShareModulus;

/// Succeeds if `holds`.
pub(super) fn require(
    holds: bool,
    what: &'static str,
    value: impl Into<u64>,
    range: &'static str,
) -> Result<(), GadgetError> {
    if holds { Ok(()) } else { Err(GadgetError::Parameter { what, value: value.into(), range }) }
}

/// The positions of pieces of `in_frac + range_log2` bits in a magnitude.
pub(super) struct Range {
    bits: usize,
}

impl Range {
    pub(super) fn new(in_frac: u32, range_log2: u32) -> Result<Self, GadgetError> {
        require(in_frac < 48, "fraction bits of the input", in_frac, "below 48")?;
        require(range_log2 < 12, "log2 of the range of the pieces", range_log2, "below 12")?;
        Ok(Self { bits: (in_frac + range_log2) as usize })
    }

    /// The position's bits, and those that must be 0 in range.
    pub(super) fn split(&self, magnitude: &[Bit]) -> (Vec<Bit>, Vec<Bit>) {
        let position = (0..self.bits).map(|i| magnitude.get(i).copied().unwrap_or(Bit::FALSE)).collect();
        (position, magnitude.get(self.bits..).unwrap_or_default().to_vec())
    }
}

/// The two's complement number of these bits as an output: the sign has a negative weight.
pub(super) fn signed_word(bits: &[Bit]) -> Word {
    let mut word = unsigned_word(bits);
    if let Some((_, weight)) = word.terms.last_mut() {
        *weight = weight.wrapping_neg();
    }
    word
}

/// The unsigned number of these bits as an output; bits from 64 on vanish in every ring.
pub(super) fn unsigned_word(bits: &[Bit]) -> Word {
    Word { constant: 0, terms: bits.iter().take(64).enumerate().map(|(i, &b)| (b, 1 << i)).collect() }
}

/// A circuit under construction with the inputs of every gadget.
pub(super) struct Io {
    pub b: CircuitBuilder,
    garbler: Vec<Bit>,
    evaluator: Vec<Bit>,
    ring_in: ShareModulus,
}

impl Io {
    pub(super) fn new(ring_in: ShareModulus, ring_out: ShareModulus, cols: usize) -> Result<Self, GadgetError> {
        require(ring_in.is_valid(), "bits of the input ring", ring_in.bits(), "1 to 64")?;
        require(ring_out.is_valid(), "bits of the output ring", ring_out.bits(), "1 to 64")?;
        require((1..=MAX_COLS).contains(&cols), "the row length", cols as u64, "1 to 4096")?;
        let mut b = CircuitBuilder::new();
        let bits = ring_in.bits() as usize;
        let garbler = b.garbler_inputs(cols * bits);
        let evaluator = b.evaluator_inputs(cols * bits);
        Ok(Self { b, garbler, evaluator, ring_in })
    }

    pub(super) fn check_shift(&self, shift: Option<u32>) -> Result<u32, GadgetError> {
        let range = "from 0 to below the bits of the input ring";
        match shift {
            Some(s) if s < self.ring_in.bits() => Ok(s),
            _ => Err(GadgetError::Parameter {
                what: "the number of bits to drop",
                value: shift.unwrap_or(0).into(),
                range,
            }),
        }
    }

    /// Both parties' shares of element `j`.
    pub(super) fn shares(&self, j: usize) -> (Vec<Bit>, Vec<Bit>) {
        let width = self.ring_in.bits() as usize;
        let range = j * width..(j + 1) * width;
        (self.garbler[range.clone()].to_vec(), self.evaluator[range].to_vec())
    }

    /// Element `j`, two's complement, without its low `drop` bits.
    ///
    /// Modulo a prime `t` of `k` bits the garbler's share comes with `t / 2` and `2^k - t` added: the carry says whether the
    /// sum is beyond `t`, and one constant or another is added; `2 k - 1` ANDs.
    pub(super) fn recombine(&mut self, j: usize, drop: u32) -> Vec<Bit> {
        let (garbler, evaluator) = self.shares(j);
        if let ShareModulus::Prime(p) = self.ring_in {
            let width = p.bits() as usize;
            let (sum, carry) = add_with_carry(&mut self.b, &garbler, &evaluator, Bit::FALSE, width);
            let beyond = (p.value() / 2).wrapping_neg();
            let below = beyond.wrapping_sub((1 << width) - p.value());
            let constant: Vec<Bit> = (0..width)
                .map(|i| match (beyond >> i & 1 == 1, below >> i & 1 == 1) {
                    (false, false) => Bit::FALSE,
                    (true, true) => Bit::TRUE,
                    (true, false) => carry,
                    (false, true) => !carry,
                })
                .collect();
            return add_high(&mut self.b, &sum, &constant, drop as usize, width);
        }
        add_high(&mut self.b, &garbler, &evaluator, drop as usize, self.ring_in.bits() as usize)
    }

    /// The sign and the ones' complement magnitude, one bit shorter than `x`.
    pub(super) fn split_sign(&mut self, x: &[Bit]) -> (Bit, Vec<Bit>) {
        match x.split_last() {
            Some((&sign, low)) => (sign, xor_all(&mut self.b, low, sign)),
            None => (Bit::FALSE, Vec::new()),
        }
    }
}
