//! Building circuits gate by gate.
//!
//! Constants fold away, equal gates are built once and negation is a flag on the edge, so only AND gates cost anything.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Not;

use super::circuit::{Circuit, Gate, Term, Words};
use crate::arith::ShareModulus;

/// A value inside a [`CircuitBuilder`]: a constant, an input or a gate's output, possibly negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bit(u32);

impl Bit {
    /// The constant 0.
    pub const FALSE: Self = Self(0);
    /// The constant 1.
    pub const TRUE: Self = Self(1);

    fn of(node: u32) -> Self {
        Self(node << 1)
    }

    fn node(self) -> u32 {
        self.0 >> 1
    }

    fn inverted(self) -> bool {
        self.0 & 1 == 1
    }

    fn invert_if(self, invert: bool) -> Self {
        Self(self.0 ^ u32::from(invert))
    }
}

impl From<bool> for Bit {
    fn from(value: bool) -> Self {
        if value { Self::TRUE } else { Self::FALSE }
    }
}

impl Not for Bit {
    type Output = Self;

    /// Negation, which costs no gate.
    fn not(self) -> Self {
        self.invert_if(true)
    }
}

#[derive(Clone, Copy)]
enum Node {
    Zero,
    GarblerInput(u32),
    EvaluatorInput(u32),
    /// Of two different nodes, the smaller first.
    Xor(u32, u32),
    /// Of bits of two different nodes, the smaller first.
    And(Bit, Bit),
}

/// An output: a constant plus bits times weights, modulo a power of two or a prime.
#[derive(Clone, Debug, Default)]
pub struct Word {
    /// The constant, negative ones in two's complement.
    pub constant: u64,
    /// Bits and their weights, negative ones in two's complement. Bits may repeat; constant ones cost nothing.
    pub terms: Vec<(Bit, u64)>,
}

/// Builds a [`Circuit`] gate by gate. Words are slices of bits, least significant first.
pub struct CircuitBuilder {
    nodes: Vec<Node>,
    xors: HashMap<(u32, u32), u32, BuildHasherDefault<PairHasher>>,
    ands: HashMap<(u32, u32), u32, BuildHasherDefault<PairHasher>>,
    garbler_inputs: u32,
    evaluator_inputs: u32,
}

impl Default for CircuitBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl CircuitBuilder {
    /// A circuit without inputs.
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::Zero],
            xors: HashMap::default(),
            ands: HashMap::default(),
            garbler_inputs: 0,
            evaluator_inputs: 0,
        }
    }

    /// The garbler's next `count` input bits.
    pub fn garbler_inputs(&mut self, count: usize) -> Vec<Bit> {
        (0..count)
            .map(|_| {
                self.garbler_inputs += 1;
                self.push(Node::GarblerInput(self.garbler_inputs - 1))
            })
            .collect()
    }

    /// The evaluator's next `count` input bits.
    pub fn evaluator_inputs(&mut self, count: usize) -> Vec<Bit> {
        (0..count)
            .map(|_| {
                self.evaluator_inputs += 1;
                self.push(Node::EvaluatorInput(self.evaluator_inputs - 1))
            })
            .collect()
    }

    /// `a ^ b`; free.
    pub fn xor(&mut self, a: Bit, b: Bit) -> Bit {
        let invert = a.inverted() ^ b.inverted();
        let (x, y) = (a.node().min(b.node()), a.node().max(b.node()));
        if x == y {
            return Bit::from(invert);
        }
        if x == 0 {
            return Bit::of(y).invert_if(invert);
        }
        let next = self.nodes.len() as u32;
        let node = *self.xors.entry((x, y)).or_insert(next);
        if node == next {
            self.nodes.push(Node::Xor(x, y));
        }
        Bit::of(node).invert_if(invert)
    }

    /// `a & b`; one AND unless an operand is constant or both are the same value.
    pub fn and(&mut self, a: Bit, b: Bit) -> Bit {
        let (x, y) = (a.min(b), a.max(b));
        if x == Bit::FALSE || x == !y {
            return Bit::FALSE;
        }
        if x == Bit::TRUE || x == y {
            return y;
        }
        let next = self.nodes.len() as u32;
        let node = *self.ands.entry((x.0, y.0)).or_insert(next);
        if node == next {
            self.nodes.push(Node::And(x, y));
        }
        Bit::of(node)
    }

    /// `a | b`; as [`Self::and`].
    pub fn or(&mut self, a: Bit, b: Bit) -> Bit {
        !self.and(!a, !b)
    }

    /// `if select { a } else { b }`; one AND.
    pub fn mux(&mut self, select: Bit, a: Bit, b: Bit) -> Bit {
        if select.node() == 0 {
            return if select == Bit::TRUE { a } else { b };
        }
        let differ = self.xor(a, b);
        let change = self.and(select, differ);
        self.xor(b, change)
    }

    /// The circuit whose outputs are these bits: words of one bit each.
    pub fn finish(self, outputs: &[Bit]) -> Circuit {
        self.finish_words(1, &outputs.iter().map(|&b| Word { constant: 0, terms: vec![(b, 1)] }).collect::<Vec<_>>())
    }

    /// The circuit with these output words, modulo `2^bits` (1 to 64), in the order of building. Gates that no output
    /// depends on are left out; inputs stay, used or not.
    pub fn finish_words(self, bits: u32, words: &[Word]) -> Circuit {
        self.finish_in(ShareModulus::PowerOfTwo(bits.clamp(1, 64)), words)
    }

    /// As [`Self::finish_words`], with words in any valid ring. Modulo a prime, weights and constants are signed 64-bit
    /// integers.
    pub fn finish_in(self, modulus: ShareModulus, words: &[Word]) -> Circuit {
        let mut out = Words { modulus, constants: Vec::new(), terms: Vec::new() };
        let mut nodes = Vec::new();
        for (i, word) in words.iter().enumerate() {
            let mut constant = word.constant;
            // One term a node: negation is a sign and a constant.
            let mut weights: Vec<(u32, u64)> = Vec::with_capacity(word.terms.len());
            for &(bit, weight) in &word.terms {
                if bit.inverted() {
                    constant = constant.wrapping_add(weight);
                }
                weights.push((bit.node(), if bit.inverted() { weight.wrapping_neg() } else { weight }));
            }
            weights.sort_unstable_by_key(|w| w.0);
            for same in weights.chunk_by(|a, b| a.0 == b.0) {
                let weight = modulus.from_signed(same.iter().fold(0u64, |sum, w| sum.wrapping_add(w.1)) as i64);
                if same[0].0 != 0 && weight != 0 {
                    nodes.push(same[0].0);
                    out.terms.push(Term::new(i as u32, weight, modulus));
                }
            }
            out.constants.push(modulus.from_signed(constant as i64));
        }
        Allocator::new(self, &nodes).run(&nodes, out)
    }

    fn push(&mut self, node: Node) -> Bit {
        self.nodes.push(node);
        Bit::of(self.nodes.len() as u32 - 1)
    }
}

/// Hashes two words by multiplication: the keys are the builder's own numbers, so nobody can choose collisions.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u32(b.into()));
    }

    fn write_u32(&mut self, x: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(x)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Turns nodes into instructions on slots.
struct Allocator {
    builder: CircuitBuilder,
    /// Uses still to come, by gates and by outputs.
    uses: Vec<u32>,
    slot: Vec<Option<u32>>,
    free: Vec<u32>,
    slots: u32,
    gates: Vec<Gate>,
}

impl Allocator {
    /// `outputs` are the nodes of the terms.
    fn new(builder: CircuitBuilder, outputs: &[u32]) -> Self {
        let mut uses = vec![0; builder.nodes.len()];
        for &node in outputs {
            uses[node as usize] += 1;
        }
        for (i, node) in builder.nodes.iter().enumerate().rev() {
            if uses[i] > 0 {
                for operand in operands(*node).into_iter().flatten() {
                    uses[operand as usize] += 1;
                }
            }
        }
        let slot = vec![None; uses.len()];
        Self { builder, uses, slot, free: Vec::new(), slots: 0, gates: Vec::new() }
    }

    fn run(mut self, outputs: &[u32], words: Words) -> Circuit {
        // Terms of each node, so that they leave at once.
        let mut by_node: Vec<(u32, u32)> = outputs.iter().enumerate().map(|(i, &n)| (n, i as u32)).collect();
        by_node.sort_unstable();
        let mut next_output = 0;
        for i in 0..self.builder.nodes.len() as u32 {
            let used = self.uses[i as usize] > 0;
            match self.builder.nodes[i as usize] {
                Node::Xor(a, b) if used => {
                    let (x, y) = (self.operand(a), self.operand(b));
                    let out = self.result(i, [a, b]);
                    self.gates.push(Gate::Xor { out, a: x, b: y });
                }
                Node::And(a, b) if used => {
                    let (x, y) = (self.operand(a.node()), self.operand(b.node()));
                    let out = self.result(i, [a.node(), b.node()]);
                    let (invert_a, invert_b) = (a.inverted(), b.inverted());
                    self.gates.push(Gate::And { out, a: x, b: y, invert_a, invert_b });
                }
                _ => {}
            }
            while let Some(&(node, term)) = by_node.get(next_output)
                && node == i
            {
                let a = self.operand(i);
                self.gates.push(Gate::Project { term, a });
                self.used(i);
                next_output += 1;
            }
        }
        let inputs = [self.builder.garbler_inputs as usize, self.builder.evaluator_inputs as usize];
        Circuit::new(inputs, words, self.slots as usize, self.gates)
    }

    /// The slot of a node, which is loaded or made first if it is an input or the constant.
    fn operand(&mut self, node: u32) -> u32 {
        if let Some(slot) = self.slot[node as usize] {
            return slot;
        }
        let out = self.take(node);
        let gate = match self.builder.nodes[node as usize] {
            Node::GarblerInput(input) => Gate::Load { out, input },
            Node::EvaluatorInput(input) => Gate::Load { out, input: self.builder.garbler_inputs + input },
            // Gates have slots before they are operands, and constants are no operands.
            _ => Gate::Xor { out, a: out, b: out },
        };
        self.gates.push(gate);
        out
    }

    /// A slot for a gate's result, perhaps one that an operand has just left.
    fn result(&mut self, node: u32, operands: [u32; 2]) -> u32 {
        for operand in operands {
            self.used(operand);
        }
        self.take(node)
    }

    fn take(&mut self, node: u32) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.slot[node as usize] = Some(slot);
        slot
    }

    fn used(&mut self, node: u32) {
        let uses = &mut self.uses[node as usize];
        *uses -= 1;
        if *uses == 0
            && let Some(slot) = self.slot[node as usize].take()
        {
            self.free.push(slot);
        }
    }
}

fn operands(node: Node) -> [Option<u32>; 2] {
    match node {
        Node::Zero | Node::GarblerInput(_) | Node::EvaluatorInput(_) => [None, None],
        Node::Xor(a, b) => [Some(a), Some(b)],
        Node::And(a, b) => [Some(a.node()), Some(b.node())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpc::garble::circuit::{CircuitError, SEGMENT_GATES};
    use proptest::prelude::*;

    #[test]
    fn constants_and_equal_operands_cost_nothing() {
        let mut b = CircuitBuilder::new();
        let x = b.garbler_inputs(1)[0];
        let y = b.evaluator_inputs(1)[0];
        assert_eq!(b.and(x, Bit::FALSE), Bit::FALSE);
        assert_eq!(b.and(Bit::TRUE, x), x);
        assert_eq!(b.and(x, x), x);
        assert_eq!(b.and(!x, !x), !x);
        assert_eq!(b.and(x, !x), Bit::FALSE);
        assert_eq!(b.or(x, Bit::TRUE), Bit::TRUE);
        assert_eq!(b.xor(x, x), Bit::FALSE);
        assert_eq!(b.xor(x, !x), Bit::TRUE);
        assert_eq!(b.xor(Bit::TRUE, x), !x);
        assert_eq!(b.mux(Bit::TRUE, x, y), x);
        assert_eq!(b.mux(Bit::FALSE, x, y), y);
        let (p, q) = (b.and(x, !y), b.and(!y, x));
        assert_eq!(p, q);
        let dead = b.and(!x, y);
        b.xor(dead, p);
        let c = b.finish(&[p, Bit::TRUE, x, !x, Bit::FALSE, p]);
        assert_eq!((c.and_count(), c.outputs(), c.xor_count()), (1, 6, 0));
        for (x, y) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_eq!(c.eval(&[x], &[y]).unwrap(), [x & !y, true, x, !x, false, x & !y]);
        }
    }

    #[test]
    fn wrong_inputs_are_errors() {
        let mut b = CircuitBuilder::new();
        let x = b.garbler_inputs(2);
        b.evaluator_inputs(3);
        let c = b.finish(&x);
        assert_eq!(c.evaluator_inputs(), 3);
        assert!(c.eval(&[true; 2], &[true; 3]).is_ok());
        assert_eq!(
            c.eval(&[true; 3], &[true; 3]),
            Err(CircuitError::Inputs { party: "garbler", expected: 2, found: 3 })
        );
        assert!(c.eval(&[true; 2], &[]).is_err());
    }

    #[test]
    fn a_long_chain_needs_few_slots() {
        let mut b = CircuitBuilder::new();
        let xs = b.garbler_inputs(5000);
        let ys = b.evaluator_inputs(5000);
        let mut acc = Bit::TRUE;
        let mut outs = Vec::new();
        for (&x, &y) in xs.iter().zip(&ys) {
            let t = b.and(x, y);
            acc = b.xor(acc, t);
            outs.push(acc);
        }
        let c = b.finish(&outs);
        assert!(c.slots() <= 4, "{}", c.slots());
        assert_eq!(c.and_count(), 5000);
        let sizes: Vec<usize> = c
            .segments()
            .iter()
            .map(|r| {
                let hashed = |g: &&Gate| matches!(g, Gate::And { .. } | Gate::Project { .. });
                c.gates()[r.clone()].iter().filter(hashed).count()
            })
            .collect();
        assert_eq!(sizes, [vec![SEGMENT_GATES; 19], vec![10000 - 19 * SEGMENT_GATES]].concat());
        assert_eq!(c.segments().last().unwrap().end, c.gates().len());
        assert!(c.segments().windows(2).all(|w| w[0].end == w[1].start));
    }

    proptest! {
        /// Random graphs: slots and folding must not change the function.
        #[test]
        fn finished_circuits_compute_what_was_built(
            gates in proptest::collection::vec((any::<u8>(), any::<u16>(), any::<u16>()), 1..200),
            outs in proptest::collection::vec(any::<u16>(), 1..20),
            garbler: [u64; 3],
            evaluator: [u64; 4],
        ) {
            let mut b = CircuitBuilder::new();
            let mut bits = vec![(Bit::FALSE, 0u64)];
            bits.extend(b.garbler_inputs(3).into_iter().zip(garbler));
            bits.extend(b.evaluator_inputs(4).into_iter().zip(evaluator));
            for (op, i, j) in gates {
                let (mut x, mut y) = (bits[i as usize % bits.len()], bits[j as usize % bits.len()]);
                if op & 1 == 1 { x = (!x.0, !x.1) }
                if op & 2 == 2 { y = (!y.0, !y.1) }
                bits.push(match op >> 2 & 3 {
                    0 => (b.xor(x.0, y.0), x.1 ^ y.1),
                    1 => (b.or(x.0, y.0), x.1 | y.1),
                    2 => (b.and(x.0, y.0), x.1 & y.1),
                    _ => { let s = bits[0]; (b.mux(x.0, y.0, s.0), (x.1 & y.1) | (!x.1 & s.1)) }
                });
            }
            let outs: Vec<_> = outs.iter().map(|&i| bits[i as usize % bits.len()]).collect();
            let c = b.finish(&outs.iter().map(|o| o.0).collect::<Vec<_>>());
            prop_assert_eq!(c.eval64(&garbler, &evaluator).unwrap(), outs.iter().map(|o| o.1).collect::<Vec<_>>());
        }
    }
}
