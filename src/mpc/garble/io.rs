//! What gadgets have in common: shares in, masked result out, table indices.

use super::arith::{add_high, sub, xor_all};
use super::builder::{Bit, CircuitBuilder};
use super::gadget::{Gadget, GadgetError, MAX_COLS, MAX_TABLE_BITS};
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

/// Bits of the largest entry.
pub(super) fn entry_bits(entries: &[u64]) -> usize {
    entries.iter().map(|e| u64::BITS - e.leading_zeros()).max().unwrap_or(0) as usize
}

pub(super) fn wide(entries: &[u64]) -> Vec<u128> {
    entries.iter().map(|&e| u128::from(e)).collect()
}

/// Which bits of a magnitude index a table.
pub(super) struct Index {
    shift: usize,
    pub bits: usize,
}

impl Index {
    pub(super) fn new(in_frac: u32, range_log2: u32, table_bits: u32) -> Result<Self, GadgetError> {
        require(table_bits <= MAX_TABLE_BITS, "table_bits", table_bits, "at most 14")?;
        require(
            in_frac < 64 && range_log2 < 64,
            "fraction bits of the input",
            in_frac,
            "below 64, as the table's range",
        )?;
        require(table_bits <= in_frac + range_log2, "table_bits", table_bits, "at most the bits of the table's range")?;
        Ok(Self { shift: (in_frac + range_log2 - table_bits) as usize, bits: table_bits as usize })
    }

    /// First bit that must be 0 in range.
    pub(super) fn end(&self) -> usize {
        self.shift + self.bits
    }

    pub(super) fn of(&self, word: &[Bit]) -> Vec<Bit> {
        (self.shift..self.end()).map(|i| word.get(i).copied().unwrap_or(Bit::FALSE)).collect()
    }
}

/// A circuit under construction with the inputs of every gadget.
pub(super) struct Io {
    pub b: CircuitBuilder,
    garbler: Vec<Bit>,
    evaluator: Vec<Bit>,
    masks: Vec<Bit>,
    outputs: Vec<Bit>,
    ring_in: ShareModulus,
    ring_out: ShareModulus,
    cols: usize,
}

impl Io {
    pub(super) fn new(ring_in: ShareModulus, ring_out: ShareModulus, cols: usize) -> Result<Self, GadgetError> {
        require(ring_in.is_valid(), "bits of the input ring", ring_in.bits(), "1 to 64")?;
        require(ring_out.is_valid(), "bits of the output ring", ring_out.bits(), "1 to 64")?;
        require((1..=MAX_COLS).contains(&cols), "the row length", cols as u64, "1 to 4096")?;
        let mut b = CircuitBuilder::new();
        let (bits_in, bits_out) = (ring_in.bits() as usize, ring_out.bits() as usize);
        let garbler = b.garbler_inputs(cols * bits_in);
        let evaluator = b.evaluator_inputs(cols * bits_in);
        let masks = b.evaluator_inputs(cols * bits_out);
        Ok(Self { b, garbler, evaluator, masks, outputs: Vec::new(), ring_in, ring_out, cols })
    }

    pub(super) fn width_out(&self) -> usize {
        self.ring_out.bits() as usize
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

    /// Element `j` without its low `drop` bits.
    pub(super) fn recombine(&mut self, j: usize, drop: u32) -> Vec<Bit> {
        let width = self.ring_in.bits() as usize;
        let range = j * width..(j + 1) * width;
        add_high(&mut self.b, &self.garbler[range.clone()], &self.evaluator[range], drop as usize, width)
    }

    /// The sign and the ones' complement magnitude, one bit shorter than `x`.
    pub(super) fn split_sign(&mut self, x: &[Bit]) -> (Bit, Vec<Bit>) {
        match x.split_last() {
            Some((&sign, low)) => (sign, xor_all(&mut self.b, low, sign)),
            None => (Bit::FALSE, Vec::new()),
        }
    }

    /// Subtracts the mask of element `j` from its result (0 beyond its bits) and makes it an output; in order of `j`.
    pub(super) fn emit(&mut self, j: usize, result: &[Bit]) {
        let width = self.width_out();
        let masked = sub(&mut self.b, result, &self.masks[j * width..(j + 1) * width], width);
        self.outputs.extend(masked);
    }

    pub(super) fn finish(self, garbler_offset: u64) -> Gadget {
        Gadget::from_parts(self.b.finish(&self.outputs), self.ring_in, self.ring_out, self.cols, garbler_offset)
    }
}

/// Bits of mixed widths in the packing of [`bits::pack`].
#[derive(Default)]
pub(super) struct BitString {
    bytes: Vec<u8>,
    word: u128,
    fill: u32,
}

impl BitString {
    pub(super) fn push(&mut self, value: u64, bits: u32) {
        self.word |= u128::from(value & (u64::MAX >> (64 - bits))) << self.fill;
        self.fill += bits;
        while self.fill >= 8 {
            self.bytes.push(self.word as u8);
            self.word >>= 8;
            self.fill -= 8;
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.fill > 0 {
            self.bytes.push(self.word as u8);
        }
        self.bytes
    }
}
