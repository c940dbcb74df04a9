//! Integer arithmetic on words of bits: adders, comparators, tables, shifters, normalisation.
//!
//! Words are least significant bit first and stand for unsigned integers; a missing bit counts as 0. Costs are in AND
//! gates, without what folding of constants saves.

use super::builder::{Bit, CircuitBuilder};

/// Bit `i` of a word, 0 beyond its end.
fn bit(word: &[Bit], i: usize) -> Bit {
    word.get(i).copied().unwrap_or(Bit::FALSE)
}

/// A two's-complement word made `width` bits wide: its top bit repeated, or high bits dropped.
pub fn sign_extend(word: &[Bit], width: usize) -> Vec<Bit> {
    let sign = word.last().copied().unwrap_or(Bit::FALSE);
    (0..width).map(|i| word.get(i).copied().unwrap_or(sign)).collect()
}

/// Every bit XOR `by`: the ones' complement where `by` is 1.
pub fn xor_all(b: &mut CircuitBuilder, word: &[Bit], by: Bit) -> Vec<Bit> {
    word.iter().map(|&x| b.xor(x, by)).collect()
}

/// `x + y + carry mod 2^width`; `width - 1` ANDs.
pub fn add(b: &mut CircuitBuilder, x: &[Bit], y: &[Bit], carry: Bit, width: usize) -> Vec<Bit> {
    add_with_carry(b, x, y, carry, width).0
}

/// `x + y mod 2^width` without its low `drop` bits, of which only the carry is computed; `width - 1` ANDs.
pub fn add_high(b: &mut CircuitBuilder, x: &[Bit], y: &[Bit], drop: usize, width: usize) -> Vec<Bit> {
    add(b, x, y, Bit::FALSE, width).split_off(drop.min(width))
}

/// `x - y mod 2^width`; `width - 1` ANDs.
pub fn sub(b: &mut CircuitBuilder, x: &[Bit], y: &[Bit], width: usize) -> Vec<Bit> {
    sub_with_borrow(b, x, y, width).0
}

/// `x - y mod 2^width`, and 1 if `x < y` as `width`-bit integers; `width` ANDs.
pub fn sub_with_borrow(b: &mut CircuitBuilder, x: &[Bit], y: &[Bit], width: usize) -> (Vec<Bit>, Bit) {
    let complement: Vec<Bit> = (0..width).map(|i| !bit(y, i)).collect();
    let (difference, carry) = add_with_carry(b, x, &complement, Bit::TRUE, width);
    (difference, !carry)
}

/// 1 if `x < y`; as many ANDs as the longer word has bits.
pub fn less_than(b: &mut CircuitBuilder, x: &[Bit], y: &[Bit]) -> Bit {
    sub_with_borrow(b, x, y, x.len().max(y.len())).1
}

/// `x + y + carry mod 2^width` and the carry out; `width` ANDs: `c' = c ^ (x ^ c)(y ^ c)`.
pub fn add_with_carry(b: &mut CircuitBuilder, x: &[Bit], y: &[Bit], carry: Bit, width: usize) -> (Vec<Bit>, Bit) {
    let mut carry = carry;
    let mut sum = Vec::with_capacity(width);
    for i in 0..width {
        let (x, y) = (bit(x, i), bit(y, i));
        let xc = b.xor(x, carry);
        let yc = b.xor(y, carry);
        sum.push(b.xor(xc, y));
        let both = b.and(xc, yc);
        carry = b.xor(carry, both);
    }
    (sum, carry)
}

/// `if select { x } else { y }`, as long as the longer word; one AND a bit.
pub fn mux(b: &mut CircuitBuilder, select: Bit, x: &[Bit], y: &[Bit]) -> Vec<Bit> {
    (0..x.len().max(y.len())).map(|i| b.mux(select, bit(x, i), bit(y, i))).collect()
}

/// 1 if any bit is 1; `len - 1` ANDs, shared with the same question about a prefix.
pub fn any(b: &mut CircuitBuilder, bits: &[Bit]) -> Bit {
    bits.iter().fold(Bit::FALSE, |acc, &x| b.or(acc, x))
}

/// The larger of the words, as unsigned integers of the same width, by a balanced tree; `2 * width` ANDs a comparison.
pub fn max(b: &mut CircuitBuilder, words: &[Vec<Bit>]) -> Vec<Bit> {
    match words {
        [] => Vec::new(),
        [one] => one.clone(),
        _ => {
            let (left, right) = words.split_at(words.len() / 2);
            let (x, y) = (max(b, left), max(b, right));
            let less = less_than(b, &x, &y);
            mux(b, less, &y, &x)
        }
    }
}

/// `word >> amount`; one AND a bit of the word and of the amount.
pub fn shift_right(b: &mut CircuitBuilder, word: &[Bit], amount: &[Bit]) -> Vec<Bit> {
    let mut word = word.to_vec();
    // The longest shift first: what it moves down over zeros needs no gate of its own.
    for (j, &select) in amount.iter().enumerate().rev() {
        let shifted: Vec<Bit> = word.iter().skip(1 << j).copied().collect();
        word = mux(b, select, &shifted, &word);
    }
    word
}

/// `word << amount` for an `amount` that is never over `max_amount`; the result has `word.len() + max_amount` bits.
pub fn shift_left(b: &mut CircuitBuilder, word: &[Bit], amount: &[Bit], max_amount: usize) -> Vec<Bit> {
    let limit = word.len() + max_amount;
    let mut word = word.to_vec();
    for (j, &select) in amount.iter().enumerate() {
        let by = 1 << j;
        let width = (word.len() + by).min(limit);
        word = (0..width)
            .map(|i| {
                let shifted = if i >= by { bit(&word, i - by) } else { Bit::FALSE };
                b.mux(select, shifted, bit(&word, i))
            })
            .collect();
    }
    word
}

/// The leading one of `x`, looked for from its top bit down to bit `min`, where it is assumed if none is higher.
///
/// Returns the `mantissa` bits below it (zeros below bit 0 of `x`) and its distance from the top of `x`. One stage a bit
/// of the distance: if the top `2^j` bits are zero, shift by `2^j`.
pub fn normalise(b: &mut CircuitBuilder, x: &[Bit], min: usize, mantissa: usize) -> (Vec<Bit>, Vec<Bit>) {
    let most = x.len().saturating_sub(min + 1);
    // Most significant first from here on.
    let mut window: Vec<Bit> = x.iter().rev().copied().collect();
    if let Some(sentinel) = window.get(most).copied() {
        let found = any(b, &window[..most]);
        window[most] = b.or(sentinel, !found);
    }
    let stages = (usize::BITS - most.leading_zeros()) as usize;
    let mut distance = vec![Bit::FALSE; stages];
    for j in (0..stages).rev() {
        let by = 1 << j;
        let empty = !any(b, &window[..by]);
        distance[j] = empty;
        // What later stages can still bring into view.
        window = (0..by + mantissa).map(|i| b.mux(empty, bit(&window, i + by), bit(&window, i))).collect();
    }
    let fraction = (1..=mantissa).rev().map(|i| bit(&window, i)).collect();
    (fraction, distance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpc::garble::circuit::Circuit;
    use proptest::prelude::*;

    fn build(inputs: usize, f: impl FnOnce(&mut CircuitBuilder, &[Bit]) -> Vec<Bit>) -> Circuit {
        let mut b = CircuitBuilder::new();
        let x = b.garbler_inputs(inputs);
        let out = f(&mut b, &x);
        b.finish(&out)
    }

    fn run(c: &Circuit, x: u128) -> u128 {
        let bits: Vec<bool> = (0..c.garbler_inputs()).map(|i| x >> i & 1 == 1).collect();
        c.eval(&bits, &[]).unwrap().into_iter().enumerate().map(|(i, v)| u128::from(v) << i).sum()
    }

    #[test]
    fn sums_differences_and_comparisons() {
        let c = build(10, |b, x| {
            let (x, y) = x.split_at(5);
            let mut out = add(b, x, y, Bit::TRUE, 7);
            out.extend(add_high(b, x, y, 2, 5));
            let (d, borrow) = sub_with_borrow(b, x, y, 5);
            out.extend(d);
            out.push(borrow);
            out.extend(max(b, &[x.to_vec(), y.to_vec(), x.to_vec()]));
            out
        });
        for x in 0..32u128 {
            for y in 0..32u128 {
                let expected = (x + y + 1)
                    | (((x + y) % 32) >> 2) << 7
                    | (x.wrapping_sub(y) & 31) << 10
                    | u128::from(x < y) << 15
                    | x.max(y) << 16;
                assert_eq!(run(&c, x | y << 5), expected, "{x} {y}");
            }
        }
    }

    #[test]
    fn costs() {
        let adder = build(64, |b, x| add(b, &x[..32], &x[32..], Bit::FALSE, 32));
        assert_eq!(adder.and_count(), 31);
        let high = build(64, |b, x| add_high(b, &x[..32], &x[32..], 12, 32));
        assert_eq!((high.and_count(), high.outputs()), (31, 20));
        let difference = build(64, |b, x| sub(b, &x[..32], &x[32..], 32));
        assert_eq!(difference.and_count(), 31);
        let compare = build(64, |b, x| vec![less_than(b, &x[..32], &x[32..])]);
        assert_eq!(compare.and_count(), 32);
    }

    proptest! {
        #[test]
        fn shifts(x in 0u128..1 << 13, amount in 0u128..16) {
            let right = build(17, |b, x| shift_right(b, &x[..13], &x[13..]));
            prop_assert_eq!(run(&right, x | amount << 13), x >> amount);
            let left = build(17, |b, x| shift_left(b, &x[..13], &x[13..], 11));
            let amount = amount % 12;
            prop_assert_eq!(run(&left, x | amount << 13), x << amount);
        }

        #[test]
        fn normalisation(top in 0usize..40, low in 0usize..40, mantissa in 1usize..12, x: u64, down in 0u32..64) {
            let min = low % (top + 1);
            let x = (u128::from(x) >> down) & ((1 << (top + 1)) - 1);
            let c = build(top + 1, |b, x| {
                let (m, z) = normalise(b, x, min, mantissa);
                [m, z].concat()
            });
            let p = (127 - (x | 1).leading_zeros() as usize).max(min);
            let m = (x << mantissa >> p) & ((1 << mantissa) - 1);
            prop_assert_eq!(run(&c, x), m | ((top - p) as u128) << mantissa);
        }
    }
}
