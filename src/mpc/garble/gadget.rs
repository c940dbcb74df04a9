//! The non-linear functions of [`crate::arith::fixed`] as circuits on additive shares.
//!
//! Input of an instance of `cols` elements (1 unless a whole row is needed):
//!
//! * garbler: its share of each element, `ring_in` bits, to which it has added [`Gadget::garbler_offset`] modulo the ring,
//!   so that the circuit need not round;
//! * evaluator: its share of each element, `ring_in` bits; then its next share `rho` of each element, fresh and uniform,
//!   `ring_out` bits.
//!
//! Output: `f(x) - rho mod 2^ring_out` of each element, `x` the signed meaning of the shares' sum. All words are least
//! significant bit first. The circuits compute exactly the integer functions for every `x` for which `x` plus the offset
//! is still in the signed range of `ring_in` (an oracle that checks edges for overflow with one bit of room has checked
//! this); beyond it, they compute the function of the wrapped sum. A result outside `ring_out` wraps.

use thiserror::Error;

use super::arith::{
    add, any, max, mux, normalise, shift_left, shift_right, sign_extend, sub, sub_with_borrow, table, xor_all,
};
use super::builder::Bit;
use super::circuit::Circuit;
use super::io::{BitString, Index, Io, entry_bits, require, wide};
use crate::arith::ShareModulus;
use crate::arith::bits::{self, BitsError};
use crate::arith::fixed::{Activation, ActivationTable, ExpTable, PowerTable, RowPower, TanhTable, rounding_offset};

/// Longest row of a gadget.
pub const MAX_COLS: usize = 4096;

/// Most index bits of a table: a table costs about `2^bits` AND gates.
pub const MAX_TABLE_BITS: u32 = 14;

/// Why a gadget cannot be built or fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GadgetError {
    /// A parameter is out of range.
    #[error("garbled function: {what} is {value}, but must be {range}")]
    Parameter {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        range: &'static str,
    },
    /// A number of elements that is not whole instances, or differs between two arguments.
    #[error("{found} elements are not {expected} whole instances of {cols}")]
    Elements {
        /// Elements given.
        found: usize,
        /// Instances expected, by the other argument.
        expected: usize,
        /// Elements of an instance.
        cols: usize,
    },
    /// Output bits of the wrong length.
    #[error(transparent)]
    Bits(#[from] BitsError),
}

/// A function on shares: its circuit and the layout of its inputs and outputs.
#[derive(Clone, Debug)]
pub struct Gadget {
    circuit: Circuit,
    ring_in: ShareModulus,
    ring_out: ShareModulus,
    cols: usize,
    garbler_offset: u64,
}

impl Gadget {
    /// [`crate::arith::fixed::round_shift`], elementwise; `shift` is below the input ring's bits.
    ///
    /// `ring_in - 1` ANDs to add the shares and `ring_out - 1` to subtract the mask.
    ///
    /// # Errors
    /// If a ring or the shift is out of range.
    pub fn truncate(ring_in: ShareModulus, shift: u32, ring_out: ShareModulus) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        io.check_shift(Some(shift))?;
        let x = io.recombine(0, shift);
        io.emit(0, &sign_extend(&x, io.width_out()));
        Ok(io.finish(rounding_offset(shift)))
    }

    /// An activation, elementwise; `entries` is [`ActivationTable::table`].
    ///
    /// ReLU: the truncation plus one AND for each bit that the sign masks. Others: a table enabled by the index being in
    /// range, and a subtraction on the bits that the table covers: beyond them a borrow means that the linear part is
    /// 0, so it only sets the sign.
    ///
    /// # Errors
    /// If a ring or a width is out of range or `entries` has the wrong length.
    pub fn activation(
        function: &ActivationTable,
        entries: &[u64],
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let shift = io.check_shift(function.in_frac.checked_sub(function.out_frac))?;
        let x = io.recombine(0, 0);
        let (sign, magnitude) = io.split_sign(&x);
        let linear: Vec<Bit> =
            x.iter().take(magnitude.len()).skip(shift as usize).map(|&x| io.b.and(x, !sign)).collect();
        let result = if function.activation == Activation::Relu {
            linear
        } else {
            let index = Index::new(function.in_frac, function.range_log2, function.table_bits)?;
            require(entries.len() == 1 << index.bits, "the table's length", entries.len() as u64, "2^table_bits")?;
            let covered = (function.out_frac + function.range_log2) as usize;
            let width = entry_bits(entries).max(covered);
            let outside = any(&mut io.b, magnitude.get(index.end()..).unwrap_or_default());
            let g = table(&mut io.b, &index.of(&magnitude), !outside, &wide(entries), entry_bits(entries));
            let (mut low, borrow) = sub_with_borrow(&mut io.b, &linear, &g, width);
            let high = (width..io.width_out().max(width)).map(|i| linear.get(i).copied().unwrap_or(Bit::FALSE));
            low.extend(high.map(|l| io.b.xor(l, borrow)));
            low
        };
        io.emit(0, &result);
        Ok(io.finish(rounding_offset(shift)))
    }

    /// One row of softmax numerators; `entries` is [`ExpTable::table`].
    ///
    /// Per score: adding the shares, comparison and choice in the tree of maxima on the shortened scores, the distance,
    /// the table of its fraction bits, and a shifter by the low bits of its whole part. A whole part beyond them sets
    /// enough of them to shift everything out.
    ///
    /// # Errors
    /// If a ring or a width is out of range, `entries` has the wrong length or `cols` is not 1 to [`MAX_COLS`].
    pub fn exp_row(
        function: &ExpTable,
        entries: &[u64],
        cols: usize,
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, cols)?;
        let shift = io.check_shift(function.in_frac.checked_sub(function.frac_bits))?;
        let index = Index::new(function.frac_bits, 0, function.frac_bits)?;
        require(function.out_frac < 48, "fraction bits of the exponentials", function.out_frac, "at most 47")?;
        require(entries.len() == 1 << index.bits, "the table's length", entries.len() as u64, "2^frac_bits")?;
        require(
            entries.iter().all(|&e| e <= 1 << function.out_frac),
            "a numerator's fraction bits",
            function.out_frac,
            "enough for every table entry to be at most 1",
        )?;
        // Flipping the sign bit turns signed into unsigned order and leaves differences alone.
        let scores: Vec<Vec<Bit>> = (0..cols)
            .map(|j| {
                let mut s = io.recombine(j, shift);
                if let Some(sign) = s.last_mut() {
                    *sign = !*sign;
                }
                s
            })
            .collect();
        let top = max(&mut io.b, &scores);
        let (result_bits, wide_entries) = (function.out_frac as usize + 1, wide(entries));
        let stages = (u32::BITS - (function.out_frac + 1).leading_zeros()) as usize;
        for (j, score) in scores.iter().enumerate() {
            let distance = sub(&mut io.b, &top, score, score.len());
            let whole = distance.get(index.bits..).unwrap_or_default();
            let beyond = any(&mut io.b, whole.get(stages..).unwrap_or_default());
            let mut amount: Vec<Bit> = whole.iter().take(stages).copied().collect();
            if beyond != Bit::FALSE {
                let mut missing = result_bits;
                for (k, bit) in amount.iter_mut().enumerate().rev() {
                    if missing > 0 {
                        *bit = io.b.or(*bit, beyond);
                        missing = missing.saturating_sub(1 << k);
                    }
                }
            }
            let entry = table(&mut io.b, &index.of(&distance), Bit::TRUE, &wide_entries, result_bits);
            let e = shift_right(&mut io.b, &entry, &amount);
            io.emit(j, &e);
        }
        Ok(io.finish(rounding_offset(shift)))
    }

    /// A reciprocal or inverse square root, elementwise, of the residue `x` in `[0, 2^ring_in)`; `tables` is
    /// [`PowerTable::tables`]. No offset.
    ///
    /// Only the low `max_log2 + 1` bits are added; then normalisation, the tables on one decoder, the shift back.
    ///
    /// # Errors
    /// If a ring or a width is out of range or `tables` have the wrong lengths.
    pub fn power(
        function: &PowerTable,
        tables: &[Vec<u64>],
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let PowerTable { power, min_log2, max_log2, table_bits, entry_bits, drop } = *function;
        require(max_log2 < 64, "the highest leading one", max_log2, "below 64")?;
        require(min_log2 <= max_log2, "the lowest leading one", min_log2, "at most the highest")?;
        require((1..=MAX_TABLE_BITS).contains(&table_bits), "table_bits", table_bits, "1 to 14")?;
        require(entry_bits < 48, "entry_bits", entry_bits, "below 48")?;
        require(drop < 64, "the number of dropped bits", drop, "below 64")?;
        let count = if power == RowPower::InverseSqrt { 2 } else { 1 };
        require(tables.len() == count, "the number of tables", tables.len() as u64, "1, or 2 for the inverse root")?;
        for t in tables {
            require(t.len() == 1 << table_bits, "the table's length", t.len() as u64, "2^table_bits")?;
            require(t.iter().all(|&e| e >> entry_bits == 0), "entry_bits", entry_bits, "enough for every entry")?;
        }
        // Bits above the ring are 0; those above `max_log2` do not count.
        let mut x = io.recombine(0, 0);
        x.resize(max_log2 as usize + 1, Bit::FALSE);
        let (fraction, distance) = normalise(&mut io.b, &x, min_log2 as usize, table_bits as usize);
        let width = entry_bits as usize;
        let joined: Vec<u128> = (0..1 << table_bits)
            .map(|i| tables.iter().rev().fold(0, |acc, t| acc << width | u128::from(t[i])))
            .collect();
        let both = table(&mut io.b, &fraction, Bit::TRUE, &joined, width * count);
        let (even, odd) = both.split_at(width);
        let most = (max_log2 - min_log2) as usize;
        let shifted = match power {
            RowPower::Reciprocal => shift_left(&mut io.b, even, &distance, most),
            RowPower::InverseSqrt => {
                let parity = distance.first().copied().unwrap_or(Bit::FALSE);
                let entry = mux(&mut io.b, parity, odd, even);
                shift_left(&mut io.b, &entry, distance.get(1..).unwrap_or_default(), most / 2)
            }
        };
        io.emit(0, shifted.get(drop as usize..).unwrap_or_default());
        Ok(io.finish(0))
    }

    /// `tanh`, elementwise; `entries` is [`TanhTable::table`]. No offset.
    ///
    /// Entries are stored relative to the last one, which so is what a disabled table gives.
    ///
    /// # Errors
    /// If a ring or a width is out of range or `entries` has the wrong length.
    pub fn tanh(
        function: &TanhTable,
        entries: &[u64],
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let index = Index::new(function.in_frac, function.range_log2, function.table_bits)?;
        require(entries.len() == 1 << index.bits, "the table's length", entries.len() as u64, "2^table_bits")?;
        let x = io.recombine(0, 0);
        let (sign, magnitude) = io.split_sign(&x);
        let width = entry_bits(entries);
        let last = entries.last().copied().unwrap_or(0);
        let relative: Vec<u128> = entries.iter().map(|&e| u128::from(e ^ last)).collect();
        let outside = any(&mut io.b, magnitude.get(index.end()..).unwrap_or_default());
        let difference = table(&mut io.b, &index.of(&magnitude), !outside, &relative, width);
        let mut t: Vec<Bit> = (0..width).map(|k| io.b.xor(difference[k], Bit::from(last >> k & 1 == 1))).collect();
        t.push(Bit::FALSE);
        let complement = xor_all(&mut io.b, &t, sign);
        let signed = add(&mut io.b, &complement, &[], sign, width + 1);
        io.emit(0, &sign_extend(&signed, io.width_out()));
        Ok(io.finish(0))
    }

    pub(super) fn from_parts(
        circuit: Circuit,
        ring_in: ShareModulus,
        ring_out: ShareModulus,
        cols: usize,
        garbler_offset: u64,
    ) -> Self {
        Self { circuit, ring_in, ring_out, cols, garbler_offset }
    }

    /// The circuit of one instance.
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// Ring of the inputs.
    pub fn ring_in(&self) -> ShareModulus {
        self.ring_in
    }

    /// Ring of the outputs.
    pub fn ring_out(&self) -> ShareModulus {
        self.ring_out
    }

    /// Elements of an instance.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What the garbler adds to its share of every element, modulo the input ring: half a unit of the last place kept.
    /// [`Self::garbler_bits`] does it.
    pub fn garbler_offset(&self) -> u64 {
        self.garbler_offset
    }

    /// The garbler's input bits, packed as by [`bits::pack`], instance after instance: its shares plus the offset.
    ///
    /// # Errors
    /// If `shares` is not a whole number of instances.
    pub fn garbler_bits(&self, shares: &[u64]) -> Result<Vec<u8>, GadgetError> {
        self.instances(shares.len())?;
        let shifted: Vec<u64> = shares.iter().map(|&s| self.ring_in.add(s, self.garbler_offset)).collect();
        Ok(bits::pack(&shifted, self.ring_in.bits()))
    }

    /// The evaluator's input bits, in the same form: per instance its shares, then its masks.
    ///
    /// # Errors
    /// If `shares` and `masks` are not the same whole number of instances.
    pub fn evaluator_bits(&self, shares: &[u64], masks: &[u64]) -> Result<Vec<u8>, GadgetError> {
        let expected = self.instances(shares.len())?;
        if masks.len() != shares.len() {
            return Err(GadgetError::Elements { found: masks.len(), expected, cols: self.cols });
        }
        let mut out = BitString::default();
        for (shares, masks) in shares.chunks(self.cols).zip(masks.chunks(self.cols)) {
            shares.iter().for_each(|&s| out.push(s, self.ring_in.bits()));
            masks.iter().for_each(|&m| out.push(m, self.ring_out.bits()));
        }
        Ok(out.finish())
    }

    /// The garbler's new shares `f(x) - rho` of `count` instances: colour bits XOR permute bits.
    ///
    /// # Errors
    /// If either has the wrong length.
    pub fn output_shares(&self, colours: &[u8], permute: &[u8], count: usize) -> Result<Vec<u64>, GadgetError> {
        let (bits, elements) = (self.ring_out.bits(), count.saturating_mul(self.cols));
        let mut out = bits::unpack(colours, bits, elements)?;
        for (x, p) in out.iter_mut().zip(bits::unpack(permute, bits, elements)?) {
            *x ^= p;
        }
        Ok(out)
    }

    fn instances(&self, elements: usize) -> Result<usize, GadgetError> {
        let expected = elements / self.cols;
        if elements.is_multiple_of(self.cols) {
            Ok(expected)
        } else {
            Err(GadgetError::Elements { found: elements, expected, cols: self.cols })
        }
    }
}
