//! Boolean circuits of XOR and AND gates with the inputs of two parties.
//!
//! A [`CircuitBuilder`] grows a graph; constants fold away, equal gates are built once and negation is a flag on the edge,
//! so only AND gates cost anything. [`CircuitBuilder::finish`] drops what no output needs and assigns *slots*: an input is
//! loaded when it is first used, an output leaves as soon as it exists, and a slot is taken again once its value is dead.
//! Evaluating a long circuit therefore needs memory for its live values only.

use std::collections::HashMap;
use std::ops::{Not, Range};

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

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    Zero,
    GarblerInput(u32),
    EvaluatorInput(u32),
    /// Of two different nodes, the smaller first.
    Xor(u32, u32),
    /// Of bits of two different nodes, the smaller first.
    And(Bit, Bit),
}

/// Builds a [`Circuit`] gate by gate. Words are slices of bits, least significant first.
pub struct CircuitBuilder {
    nodes: Vec<Node>,
    known: HashMap<Node, u32>,
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
        Self { nodes: vec![Node::Zero], known: HashMap::new(), garbler_inputs: 0, evaluator_inputs: 0 }
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
        self.gate(Node::Xor(x, y)).invert_if(invert)
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
        self.gate(Node::And(x, y))
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

    /// The circuit with these outputs. Gates that no output depends on are left out; inputs stay, used or not.
    pub fn finish(self, outputs: &[Bit]) -> Circuit {
        Allocator::new(self, outputs).run(outputs)
    }

    fn gate(&mut self, node: Node) -> Bit {
        if let Some(&known) = self.known.get(&node) {
            return Bit::of(known);
        }
        let bit = self.push(node);
        self.known.insert(node, bit.node());
        bit
    }

    fn push(&mut self, node: Node) -> Bit {
        self.nodes.push(node);
        Bit::of(self.nodes.len() as u32 - 1)
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
    fn new(builder: CircuitBuilder, outputs: &[Bit]) -> Self {
        let mut uses = vec![0; builder.nodes.len()];
        for bit in outputs {
            uses[bit.node() as usize] += 1;
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

    fn run(mut self, outputs: &[Bit]) -> Circuit {
        // Outputs of each node, so that they leave at once.
        let mut by_node: Vec<(u32, u32)> = outputs.iter().enumerate().map(|(i, b)| (b.node(), i as u32)).collect();
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
            while let Some(&(node, index)) = by_node.get(next_output)
                && node == i
            {
                let a = self.operand(i);
                let invert = outputs[index as usize].inverted();
                self.gates.push(Gate::Output { index, a, invert });
                self.used(i);
                next_output += 1;
            }
        }
        let (segments, and_count) = segments(&self.gates);
        Circuit {
            garbler_inputs: self.builder.garbler_inputs as usize,
            evaluator_inputs: self.builder.evaluator_inputs as usize,
            outputs: outputs.len(),
            slots: self.slots as usize,
            and_count,
            gates: self.gates,
            segments,
        }
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
            // Gates have slots before they are operands, so only the constant is left.
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

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!((c.and_count(), c.outputs(), c.xor_count()), (1, 6, 1));
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
            .map(|r| c.gates()[r.clone()].iter().filter(|g| matches!(g, Gate::And { .. })).count())
            .collect();
        assert_eq!(sizes, [vec![SEGMENT_ANDS; 9], vec![5000 - 9 * SEGMENT_ANDS]].concat());
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
