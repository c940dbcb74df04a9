//! Piecewise functions as gates: a walk down the tree of cells, products of slopes, their sum.

use super::arith::add;
use super::builder::{Bit, CircuitBuilder};
use crate::arith::fixed::piecewise::{Leaf, Piecewise};

/// `enable ? f(position) - outside : 0`, taken apart: `outside + constant + sum of bits times weights`.
pub(super) struct Pieces {
    /// What is added to the sum of the terms: the value where nothing is enabled and all terms are 0.
    pub constant: i64,
    /// The cells' constants: bits of an unsigned number.
    pub base: Vec<Bit>,
    /// Per slope class its lowest bit's place and its products, upwards from there.
    pub products: Vec<(u32, Vec<Bit>)>,
}

impl Pieces {
    /// The value is `f(position)` where `enable`, else `outside`. `position` has `f.bits()` bits.
    ///
    /// One AND a leaf but one (and one more where `enable` is not constant), one a product. With `enable` constantly 1 the
    /// wires of a complete level of the tree add up to 1, which saves one AND for each such level.
    pub(super) fn new(b: &mut CircuitBuilder, f: &Piecewise, position: &[Bit], enable: Bit, outside: i64) -> Self {
        let leaves = f.leaves();
        let complete = (0..=f.bits()).map(|h| leaves.iter().all(|l| l.log2 < h)).collect();
        let mut walk = Walk {
            position,
            leaves,
            complete,
            enabled: enable == Bit::TRUE,
            last: (1u128 << f.bits()) as u64,
            products: vec![Bit::FALSE; position.len()],
            wires: Vec::with_capacity(leaves.len()),
        };
        walk.visit(b, enable, 0, f.bits());
        let wires = walk.wires;

        let outside = (enable != Bit::TRUE).then_some((!enable, outside));
        let constants: Vec<(Bit, i64)> = wires.iter().zip(leaves).map(|(&w, l)| (w, l.base)).chain(outside).collect();
        let constant = constants.iter().map(|c| c.1).min().unwrap_or(0).min(0);
        let width = constants.iter().map(|c| 64 - (c.1 - constant).leading_zeros()).max().unwrap_or(0);
        let base = (0..width)
            .map(|k| xor_of(b, constants.iter().filter(|c| (c.1 - constant) >> k & 1 == 1).map(|c| c.0)))
            .collect();

        let falling = xor_of(b, wires.iter().zip(leaves).filter(|(_, l)| l.falling).map(|(&w, _)| w));
        let products = (f.classes().iter().enumerate())
            .map(|(c, class)| {
                let bits = (class.cut..class.top)
                    .map(|j| {
                        let using = |l: &Leaf| l.classes >> c & 1 == 1 && l.log2 > j;
                        let any = xor_of(b, wires.iter().zip(leaves).filter(|(_, l)| using(l)).map(|(&w, _)| w));
                        let x = position.get(j as usize).copied().unwrap_or(Bit::FALSE);
                        let x = b.xor(x, falling);
                        b.and(any, x)
                    })
                    .collect();
                ((class.cut as i32 + class.exponent).max(0) as u32, bits)
            })
            .collect();
        Self { constant, base, products }
    }

    /// Bits and weights of the sum without the constant.
    pub(super) fn terms(&self) -> impl Iterator<Item = (Bit, u64)> {
        let base = self.base.iter().enumerate().map(|(k, &bit)| (bit, 1u64 << k));
        let products = |(low, bits): &(u32, Vec<Bit>)| {
            let low = *low;
            bits.clone().into_iter().enumerate().map(move |(k, bit)| (bit, 1u64 << (low as usize + k).min(63)))
        };
        base.chain(self.products.iter().flat_map(products))
    }

    /// The sum modulo `2^width` as a word, by one adder a class; the constant must be 0.
    pub(super) fn word(&self, b: &mut CircuitBuilder, width: usize) -> Vec<Bit> {
        let mut sum: Vec<Bit> = (0..width).map(|k| self.base.get(k).copied().unwrap_or(Bit::FALSE)).collect();
        for (low, bits) in &self.products {
            let low = (*low as usize).min(width);
            let high = add(b, &sum[low..], bits, Bit::FALSE, width - low);
            sum.splice(low.., high);
        }
        sum
    }
}

fn xor_of(b: &mut CircuitBuilder, bits: impl Iterator<Item = Bit>) -> Bit {
    bits.fold(Bit::FALSE, |acc, x| b.xor(acc, x))
}

/// The walk from the root to the leaves, depth first.
struct Walk<'a> {
    position: &'a [Bit],
    leaves: &'a [Leaf],
    /// Whether no leaf is as high, so that all cells of this level are split.
    complete: Vec<bool>,
    enabled: bool,
    /// The end of all positions.
    last: u64,
    /// Per level the XOR of the products made so far.
    products: Vec<Bit>,
    /// The wire of every leaf so far: 1 if the position is in it.
    wires: Vec<Bit>,
}

impl Walk<'_> {
    /// `wire` is 1 if the position is in the cell of `2^height` positions from `start`.
    fn visit(&mut self, b: &mut CircuitBuilder, wire: Bit, start: u64, height: u32) {
        if self.leaves.get(self.wires.len()).is_none_or(|l| l.log2 >= height) {
            self.wires.push(wire);
            return;
        }
        let level = height as usize - 1;
        let x = self.position.get(level).copied().unwrap_or(Bit::FALSE);
        let last = start.wrapping_add(1 << level).wrapping_add(1 << level) == self.last;
        let closes = self.enabled && last && self.complete[height as usize];
        let high = if closes { b.xor(x, self.products[level]) } else { b.and(wire, x) };
        self.products[level] = b.xor(self.products[level], high);
        let low = b.xor(wire, high);
        self.visit(b, low, start, height - 1);
        self.visit(b, high, start.wrapping_add(1 << level), height - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::fixed::piecewise::Fit;
    use crate::mpc::garble::builder::Word;
    use proptest::prelude::*;

    fn run(c: &crate::mpc::garble::Circuit, x: u64) -> u64 {
        let bits: Vec<bool> = (0..c.garbler_inputs()).map(|i| x >> i & 1 == 1).collect();
        c.eval(&bits, &[]).unwrap().into_iter().enumerate().map(|(i, v)| u64::from(v) << i).sum()
    }

    proptest! {
        #[test]
        fn pieces_are_the_function(
            bits in 1u32..9, error in 0.5f64..20.0, tilt in -3.0f64..3.0, bow in -0.05f64..0.05, outside in -50i64..50,
            slopes in 0u32..4, enabled: bool, grid in 0u32..3,
        ) {
            let f = move |x: f64| 300.0 + tilt * x + bow * x * x;
            let fit = Fit {
                bits,
                low: &|x| f(x) - error,
                high: &|x| f(x) + error,
                truncated: false,
                grid,
                slopes: (1, slopes),
                class_cost: 0,
            };
            let f = fit.run();
            let mut b = CircuitBuilder::new();
            let x = b.garbler_inputs(bits as usize + 1);
            let enable = if enabled { Bit::TRUE } else { x[bits as usize] };
            let pieces = Pieces::new(&mut b, &f, &x[..bits as usize], enable, outside);
            let mut words = vec![Word { constant: pieces.constant as u64, terms: pieces.terms().collect() }];
            let sum = pieces.word(&mut b, 16);
            words.push(Word { constant: pieces.constant as u64, terms: (0..16).map(|k| (sum[k], 1 << k)).collect() });
            let c = b.finish_words(16, &words);
            for x in 0..1u64 << bits {
                let y = f.eval(x) as u64 & 0xffff;
                prop_assert_eq!(run(&c, x | 1 << bits), y | y << 16);
                let y = if enabled { y } else { outside as u64 & 0xffff };
                prop_assert_eq!(run(&c, x), y | y << 16);
            }
        }
    }

    #[test]
    fn costs() {
        let cost = |leaves: u32, enabled: bool| {
            let f = |x: f64| x * f64::from(x.rem_euclid(2.0) as u32 * 2 + 1);
            let f =
                Fit { bits: leaves, low: &f, high: &f, truncated: false, grid: 0, slopes: (0, 0), class_cost: 0 }.run();
            let mut b = CircuitBuilder::new();
            let x = b.garbler_inputs(leaves as usize + 1);
            let enable = if enabled { Bit::TRUE } else { x[leaves as usize] };
            let pieces = Pieces::new(&mut b, &f, &x[..leaves as usize], enable, 0);
            b.finish(&pieces.base).and_count()
        };
        assert_eq!((cost(7, true), cost(7, false)), (128 - 8, 127));
    }
}
