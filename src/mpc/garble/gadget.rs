//! The non-linear functions of [`crate::arith::fixed`] as circuits on additive shares.
//!
//! `ring_in` and `ring_out` are powers of two or primes. Input of an instance of `cols` elements (1 unless a whole row is needed): each party's share of each element, `ring_in`
//! bits, least significant first. To its own the garbler adds what saves the circuit a rounding
//! ([`Gadget::garbler_bits`]).
//!
//! Output: words of `ring_out` bits, which leave the circuit by projections (see [`super::half_gates`]): the evaluator ends
//! up with `f(x) + M`, `x` the signed meaning of the shares' sum, the garbler with the mask `M`. The evaluator replies
//! with its word less its next share `rho` ([`Gadget::reply`]); so the garbler's next share is `f(x) - rho`
//! ([`Gadget::output_shares`]). No gate is spent on signs, sums and masks of results: those are weights.
//!
//! The circuits compute exactly the integer functions for every `x` for which `x` plus the offset is still in the signed
//! range of `ring_in` (an oracle that checks edges for overflow with one bit of room has checked this); beyond it, they
//! compute the function of the wrapped sum. A result outside `ring_out` wraps.

use thiserror::Error;
use zeroize::Zeroizing;

use super::arith::{add_with_carry, any, less_than, max, mux, normalise, shift_left, shift_right, sub};
use super::builder::{Bit, Word};
use super::circuit::Circuit;
use super::io::{Io, Range, require, signed_word, unsigned_word};
use super::pieces::Pieces;
use crate::arith::ShareModulus;
use crate::arith::bits::{self, BitsError};
use crate::arith::fixed::{ActivationTable, ExpTable, Piecewise, PowerTable, RowPower, TanhTable, rounding_offset};

/// Longest row of a gadget.
pub const MAX_COLS: usize = 4096;

/// Most fraction bits of a score and mantissa bits of a row value: pieces cost up to an AND gate a position.
pub const MAX_POSITION_BITS: u32 = 20;

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
    out_cols: usize,
    garbler_offset: u64,
}

impl Gadget {
    /// [`crate::arith::fixed::round_shift`], elementwise; `shift` is below the input ring's bits.
    ///
    /// `ring_in - 1` ANDs to add the shares; modulo a prime of `k` bits `2 k - 1`, or `k` where nothing is dropped.
    ///
    /// # Errors
    /// If a ring or the shift is out of range.
    pub fn truncate(ring_in: ShareModulus, shift: u32, ring_out: ShareModulus) -> Result<Self, GadgetError> {
        if shift == 0 && matches!(ring_in, ShareModulus::Prime(_)) {
            return Self::from_prime(ring_in, ring_out);
        }
        let mut io = Io::new(ring_in, ring_out, 1)?;
        io.check_shift(Some(shift))?;
        let x = io.recombine(0, shift);
        Ok(Self::elementwise(io, signed_word(&x), ring_in, ring_out, rounding_offset(shift)))
    }

    /// [`crate::arith::fixed::saturate`] to `bits` bits of [`crate::arith::fixed::round_shift`], elementwise.
    ///
    /// Beside the sum one AND for each bit that is dropped or may be replaced.
    ///
    /// # Errors
    /// If a ring, the shift or the number of bits is out of range.
    pub fn saturate(ring_in: ShareModulus, shift: u32, bits: u32, ring_out: ShareModulus) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        io.check_shift(Some(shift))?;
        require((1..=64).contains(&bits), "the number of bits to saturate to", bits, "1 to 64")?;
        let x = io.recombine(0, shift);
        let (sign, magnitude) = io.split_sign(&x);
        let (low, high) = magnitude.split_at((bits as usize - 1).min(magnitude.len()));
        let over = any(&mut io.b, high);
        let mut clipped: Vec<Bit> = low.iter().map(|&m| io.b.or(m, over)).collect();
        clipped.iter_mut().for_each(|c| *c = io.b.xor(*c, sign));
        clipped.push(sign);
        Ok(Self::elementwise(io, signed_word(&clipped), ring_in, ring_out, rounding_offset(shift)))
    }

    /// The signed meaning of shares modulo a prime, elementwise: from its integers to a ring. An AND for each bit of the prime.
    ///
    /// The correction of a sum that stayed below the prime, which other functions add, is a weight here.
    ///
    /// # Errors
    /// If `ring_in` is no prime or `ring_out` invalid.
    pub fn from_prime(ring_in: ShareModulus, ring_out: ShareModulus) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let ShareModulus::Prime(p) = ring_in else {
            return Err(GadgetError::Parameter { what: "the modulus", value: ring_in.largest(), range: "a prime" });
        };
        let (garbler, evaluator) = io.shares(0);
        let (sum, carry) = add_with_carry(&mut io.b, &garbler, &evaluator, Bit::FALSE, p.bits() as usize);
        let missing = (1 << p.bits()) - p.value();
        let mut word = unsigned_word(&sum);
        word.terms.push((carry, missing));
        word.constant = missing.wrapping_add(p.value() / 2).wrapping_neg();
        Ok(Self::elementwise(io, word, ring_in, ring_out, 0))
    }

    /// An activation, elementwise.
    ///
    /// The linear part costs one AND: with the sign `s` and a bit `x` of the number, `2 x (1 - s) = x + (x ^ s) - s`, all of
    /// which are weights; only the lowest bit cannot be halved. The pieces cost their cells, their products and finding out
    /// whether the position is in range; their sum is weights too.
    ///
    /// # Errors
    /// If a ring or a width is out of range.
    pub fn activation(
        function: &ActivationTable,
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let shift = io.check_shift(function.in_frac.checked_sub(function.out_frac))?;
        let range = Range::new(function.in_frac, function.range_log2)?;
        let x = io.recombine(0, 0);
        let (sign, magnitude) = io.split_sign(&x);
        let mut word = Word::default();
        for (i, (&bit, &mirrored)) in x.iter().zip(&magnitude).skip(shift as usize).enumerate() {
            if i == 0 {
                word.terms.push((io.b.and(bit, !sign), 1));
            } else {
                let half = 1u64 << (i - 1);
                word.terms.extend([(bit, half), (mirrored, half), (sign, half.wrapping_neg())]);
            }
        }
        if let Some(pieces) = function.pieces() {
            let (position, beyond) = range.split(&magnitude);
            let outside = any(&mut io.b, &beyond);
            let g = Pieces::new(&mut io.b, &pieces, &position, !outside, 0);
            word.constant = (-g.constant) as u64;
            word.terms.extend(g.terms().map(|(bit, weight)| (bit, weight.wrapping_neg())));
        }
        Ok(Self::elementwise(io, word, ring_in, ring_out, rounding_offset(shift)))
    }

    /// One row of softmax numerators.
    ///
    /// Per score: adding the shares; comparison and choice in the tree of maxima, on whole parts; their difference; the
    /// mantissa of the fraction, a line less pieces; and a shifter by the low bits of the difference. A difference beyond
    /// them sets enough of them to shift everything out.
    ///
    /// # Errors
    /// If a ring or a width is out of range or `cols` is not 1 to [`MAX_COLS`].
    pub fn exp_row(
        function: &ExpTable,
        cols: usize,
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, cols)?;
        let shift = io.check_shift(function.in_frac.checked_sub(function.frac_bits))?;
        let ExpTable { frac_bits, out_frac, .. } = *function;
        require(out_frac < 48, "fraction bits of the exponentials", out_frac, "at most 47")?;
        let most = MAX_POSITION_BITS.min(out_frac);
        require(frac_bits <= most, "fraction bits of a score", frac_bits, "at most 20 and those of the exponentials")?;
        let pieces = function.pieces();
        // The sign bit extends, so that there is a whole part. Flipping it turns signed into unsigned order and leaves
        // differences alone.
        let scores: Vec<(Vec<Bit>, Vec<Bit>)> = (0..cols)
            .map(|j| {
                let mut fraction = io.recombine(j, shift);
                let sign = fraction.last().copied().unwrap_or(Bit::FALSE);
                let mut whole = fraction.split_off((frac_bits as usize).min(fraction.len()));
                match whole.last_mut() {
                    Some(top) => *top = !*top,
                    None => whole.push(!sign),
                }
                fraction.resize(frac_bits as usize, sign);
                (fraction, whole)
            })
            .collect();
        let wholes: Vec<Vec<Bit>> = scores.iter().map(|s| s.1.clone()).collect();
        let top = max(&mut io.b, &wholes);
        let out_frac = out_frac as usize;
        let stages = (usize::BITS - (out_frac + 1).leading_zeros()) as usize;
        let mut words = Vec::with_capacity(cols);
        for (fraction, whole) in &scores {
            let distance = sub(&mut io.b, &top, whole, whole.len());
            let beyond = any(&mut io.b, distance.get(stages..).unwrap_or_default());
            let mut amount: Vec<Bit> = distance.iter().take(stages).copied().collect();
            if beyond != Bit::FALSE {
                let mut missing = out_frac + 1;
                for (k, bit) in amount.iter_mut().enumerate().rev() {
                    if missing > 0 {
                        *bit = io.b.or(*bit, beyond);
                        missing = missing.saturating_sub(1 << k);
                    }
                }
            }
            let rest = Pieces::new(&mut io.b, &pieces, fraction, Bit::TRUE, 0).word(&mut io.b, out_frac);
            let line = [vec![Bit::FALSE; out_frac - fraction.len()], fraction.clone()].concat();
            let mut mantissa = sub(&mut io.b, &line, &rest, out_frac);
            mantissa.push(Bit::TRUE);
            words.push(unsigned_word(&shift_right(&mut io.b, &mantissa, &amount)));
        }
        let circuit = io.b.finish_in(ring_out, &words);
        Ok(Self { circuit, ring_in, ring_out, cols, out_cols: cols, garbler_offset: rounding_offset(shift) })
    }

    /// A reciprocal or inverse square root, elementwise, of the residue `x` in `[0, 2^ring_in)`; `pieces` are
    /// [`PowerTable::pieces`]. No offset.
    ///
    /// Only the low `max_log2 + 1` bits are added; then normalisation, the pieces, the shift back.
    ///
    /// # Errors
    /// If a ring or a width is out of range or `pieces` are not those of the function's mantissa.
    pub fn power(
        function: &PowerTable,
        pieces: &Piecewise,
        ring_in: ShareModulus,
        ring_out: ShareModulus,
    ) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let PowerTable { power, min_log2, max_log2, mantissa_bits, entry_bits, drop, .. } = *function;
        require(max_log2 < 64, "the highest leading one", max_log2, "below 64")?;
        require(min_log2 <= max_log2, "the lowest leading one", min_log2, "at most the highest")?;
        require((1..=MAX_POSITION_BITS).contains(&mantissa_bits), "mantissa_bits", mantissa_bits, "1 to 20")?;
        require(entry_bits < 48, "entry_bits", entry_bits, "below 48")?;
        require(drop < 64, "the number of dropped bits", drop, "below 64")?;
        let position_bits = mantissa_bits + u32::from(power == RowPower::InverseSqrt);
        require(
            pieces.bits() == position_bits,
            "bits of the pieces",
            pieces.bits(),
            "those of the mantissa and parity",
        )?;
        let fits = pieces.leaves().iter().all(|l| l.base >= 0 && l.base >> entry_bits == 0);
        require(fits, "entry_bits", entry_bits, "enough for every value")?;
        // Bits above the ring are 0; those above `max_log2` do not count.
        let mut x = io.recombine(0, 0);
        x.resize(max_log2 as usize + 1, Bit::FALSE);
        let (mut position, distance) = normalise(&mut io.b, &x, min_log2 as usize, mantissa_bits as usize);
        let most = (max_log2 - min_log2) as usize;
        let (amount, most) = match power {
            RowPower::Reciprocal => (&distance[..], most),
            RowPower::InverseSqrt => {
                position.push(distance.first().copied().unwrap_or(Bit::FALSE));
                (distance.get(1..).unwrap_or_default(), most / 2)
            }
        };
        let entry = Pieces::new(&mut io.b, pieces, &position, Bit::TRUE, 0).word(&mut io.b, entry_bits as usize);
        let shifted = shift_left(&mut io.b, &entry, amount, most);
        let word = unsigned_word(shifted.get(drop as usize..).unwrap_or_default());
        Ok(Self::elementwise(io, word, ring_in, ring_out, 0))
    }

    /// `tanh`, elementwise. No offset.
    ///
    /// As [`Self::activation`]'s pieces; the sign `s` multiplies every bit `b` of the sum as `b (1 - 2 s) = (b ^ s) - s`, by
    /// weights.
    ///
    /// # Errors
    /// If a ring or a width is out of range.
    pub fn tanh(function: &TanhTable, ring_in: ShareModulus, ring_out: ShareModulus) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, 1)?;
        let range = Range::new(function.in_frac, function.range_log2)?;
        require(function.out_frac < 48, "fraction bits of the output", function.out_frac, "below 48")?;
        let x = io.recombine(0, 0);
        let (sign, magnitude) = io.split_sign(&x);
        let (position, beyond) = range.split(&magnitude);
        let outside = any(&mut io.b, &beyond);
        let t = Pieces::new(&mut io.b, &function.pieces(), &position, !outside, function.limit());
        let mut word = Word { constant: t.constant as u64, terms: vec![(sign, (-2 * t.constant) as u64)] };
        for (bit, weight) in t.terms() {
            word.terms.extend([(io.b.xor(bit, sign), weight), (sign, weight.wrapping_neg())]);
        }
        Ok(Self::elementwise(io, word, ring_in, ring_out, 0))
    }

    /// [`crate::arith::fixed::argmax`] of a row: one output word an instance, the position of the first maximum.
    ///
    /// A tree of comparisons, which carries the larger element and its position.
    ///
    /// # Errors
    /// If a ring is invalid or `cols` is not 1 to [`MAX_COLS`].
    pub fn argmax(cols: usize, ring_in: ShareModulus, ring_out: ShareModulus) -> Result<Self, GadgetError> {
        let mut io = Io::new(ring_in, ring_out, cols)?;
        let mut round: Vec<(Vec<Bit>, Vec<Bit>)> = (0..cols)
            .map(|j| {
                let mut x = io.recombine(j, 0);
                if let Some(sign) = x.last_mut() {
                    *sign = !*sign;
                }
                (x, Vec::new())
            })
            .collect();
        while round.len() > 1 {
            let mut next = Vec::with_capacity(round.len().div_ceil(2));
            for pair in round.chunks(2) {
                let (x, at) = &pair[0];
                next.push(match pair.get(1) {
                    Some((y, there)) => {
                        let less = less_than(&mut io.b, x, y);
                        let mut position = mux(&mut io.b, less, there, at);
                        position.push(less);
                        (mux(&mut io.b, less, y, x), position)
                    }
                    None => (x.clone(), [&at[..], &[Bit::FALSE]].concat()),
                });
            }
            round = next;
        }
        let word = round.first().map_or_else(Word::default, |(_, position)| unsigned_word(position));
        let circuit = io.b.finish_in(ring_out, &[word]);
        Ok(Self { circuit, ring_in, ring_out, cols, out_cols: 1, garbler_offset: 0 })
    }

    fn elementwise(io: Io, word: Word, ring_in: ShareModulus, ring_out: ShareModulus, offset: u64) -> Self {
        let circuit = io.b.finish_in(ring_out, &[word]);
        Self { circuit, ring_in, ring_out, cols: 1, out_cols: 1, garbler_offset: offset }
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

    /// Output words of an instance: as many as elements, or one of [`Self::argmax`].
    pub fn out_cols(&self) -> usize {
        self.out_cols
    }

    /// What the garbler adds to its share of every element, modulo the input ring: half a unit of the last place kept.
    /// [`Self::garbler_bits`] does it.
    pub fn garbler_offset(&self) -> u64 {
        self.garbler_offset
    }

    /// The garbler's input bits, packed as by [`bits::pack`], instance after instance: its shares plus the offset;
    /// modulo a prime `t` of `k` bits also plus `t / 2`, reduced, then plus `2^k - t`.
    ///
    /// # Errors
    /// If `shares` is not a whole number of instances.
    pub fn garbler_bits(&self, shares: &[u64]) -> Result<Vec<u8>, GadgetError> {
        self.instances(shares.len())?;
        let bits = self.ring_in.bits();
        let own = |&s: &u64| match self.ring_in {
            ShareModulus::PowerOfTwo(_) => self.ring_in.add(s, self.garbler_offset),
            ShareModulus::Prime(p) => {
                // Without a branch on the share.
                let t = p.value();
                let add = (t / 2).wrapping_add(self.garbler_offset) % t;
                let shifted = s.wrapping_add(add).wrapping_sub(t);
                let below = ((shifted as i64) >> 63) as u64;
                shifted.wrapping_add(t & below).wrapping_add((1 << bits) - t)
            }
        };
        let shifted = Zeroizing::new(shares.iter().map(own).collect::<Vec<_>>());
        Ok(bits::pack(&shifted, bits))
    }

    /// The evaluator's input bits, in the same form.
    ///
    /// # Errors
    /// If `shares` is not a whole number of instances.
    pub fn evaluator_bits(&self, shares: &[u64]) -> Result<Vec<u8>, GadgetError> {
        self.instances(shares.len())?;
        Ok(bits::pack(shares, self.ring_in.bits()))
    }

    /// What the evaluator returns: its words, as evaluation gave them packed, less its next shares; packed again.
    ///
    /// # Errors
    /// If `values` are not as many words as `next`.
    pub fn reply(&self, values: &[u8], next: &[u64]) -> Result<Vec<u8>, GadgetError> {
        let mut out = bits::unpack(values, self.ring_out.bits(), next.len())?;
        out.iter_mut().zip(next).for_each(|(x, &rho)| *x = self.ring_out.sub(self.ring_out.reduce(*x), rho));
        Ok(bits::pack(&out, self.ring_out.bits()))
    }

    /// The garbler's new shares `f(x) - rho` of `count` instances: the evaluator's reply less the masks that garbling gave.
    ///
    /// # Errors
    /// If either has the wrong length.
    pub fn output_shares(&self, reply: &[u8], masks: &[u8], count: usize) -> Result<Vec<u64>, GadgetError> {
        let (bits, elements) = (self.ring_out.bits(), count.saturating_mul(self.out_cols));
        let mut out = bits::unpack(reply, bits, elements)?;
        let masks = Zeroizing::new(bits::unpack(masks, bits, elements)?);
        out.iter_mut().zip(masks.iter()).for_each(|(x, &m)| *x = self.ring_out.sub(self.ring_out.reduce(*x), m));
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
