//! Garbling and evaluating the GELU layer of a transformer, streamed in chunks, beside AES alone.
//!
//! The layer is that of a MiniLM at 32 tokens: 32 x 1536 elements of 32 bits, within 0.006. Results are decoded and compared
//! with the integer function. The yardstick is a loop of AES on registers, as many blocks as the half-gates hash: it
//! touches no memory, so that its speed-up by two threads is the machine's own.

use std::sync::Arc;

use heliostat::{
    arith::{
        ShareModulus, bits,
        fixed::{Activation, ActivationTable},
    },
    mpc::{
        block::Block,
        garble::{
            Gadget,
            half_gates::{Garbling, GateKey, LabelSeed, evaluate_chunk, tables_len},
        },
        prg::{CrHash, Prg},
    },
};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

use crate::{
    Result,
    composed::Bench,
    cost::Cost,
    devices::Label,
    measure::{Contender, Group, Work, group},
    stats::Operation,
};

/// Garbling a layer.
pub const GARBLE: &str = "garble";

/// Evaluating it.
pub const EVALUATE: &str = "evaluate";

/// Names of the alternative that is AES alone.
pub const AES: &str = "aes";

/// Both, in the order of a run.
pub const NAMES: [&str; 2] = [GARBLE, EVALUATE];

/// Elements of a chunk: tables of some MiB.
const CHUNK: usize = 2048;

/// Blocks that stay in registers and the nearest cache.
const AES_BLOCKS: usize = 64;

/// Measures what was asked for.
///
/// # Errors
/// Whatever the library or `done` reports.
pub fn run(bench: &Bench, mut done: impl FnMut(Group) -> Result<()>) -> Result<()> {
    if !NAMES.iter().any(|name| bench.arguments.wants(name)) {
        return Ok(());
    }
    let layer = Layer::new(if bench.arguments.quick { 96 } else { 32 * 1536 })?;
    for name in NAMES {
        if bench.arguments.wants(name) {
            done(layer.measure(bench, name)?)?;
        }
    }
    Ok(())
}

/// AND gates of an element, projections counted as half of one each, from a row's size.
pub fn gates(size: &str) -> Option<f64> {
    let mut numbers = size.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<f64>().ok());
    Some(numbers.next()? + numbers.next()? / 2.0)
}

/// One layer with everything that both parties need.
struct Layer {
    gadget: Gadget,
    function: ActivationTable,
    elements: usize,
    inputs: Vec<i64>,
    evaluator_shares: Vec<u64>,
    next: Vec<u64>,
    delta: Block,
    seed: Block,
    session: Block,
    /// Zero labels of the evaluator's inputs of one chunk, which all chunks of this bench share.
    zero: Vec<Block>,
}

impl Layer {
    fn new(elements: usize) -> Result<Self> {
        let ring = ShareModulus::pow2(32).ok_or("32 bits are no ring")?;
        let function = ActivationTable {
            activation: Activation::Gelu,
            in_frac: 24,
            out_frac: 12,
            range_log2: 2,
            error_ppm: 6_000,
        };
        let gadget = Gadget::activation(&function, ring, ring)?;
        let mut prg = Prg::new(Block(0x6a5b));
        let mut words = |count: usize| -> Vec<u64> {
            let mut blocks = vec![Block::ZERO; count];
            prg.fill_blocks(&mut blocks);
            blocks.iter().map(|b| b.0 as u64).collect()
        };
        // Mostly within the range of the pieces.
        let inputs = words(elements).into_iter().map(|w| (w as u32 as i32 >> (w >> 32 & 7)) as i64 >> 1).collect();
        let evaluator_shares = words(elements).into_iter().map(|w| ring.reduce(w)).collect();
        let next = words(elements).into_iter().map(|w| ring.reduce(w)).collect();
        let mut zero = vec![Block::ZERO; elements.min(CHUNK) * gadget.circuit().evaluator_inputs()];
        Prg::new(Block(7)).fill_blocks(&mut zero);
        Ok(Self {
            gadget,
            function,
            elements,
            inputs,
            evaluator_shares,
            next,
            delta: Block(0x1234_5678_9abc_def1_0fed_cba9_8765_4321),
            seed: Block(99),
            session: Block(5),
            zero,
        })
    }

    fn chunks(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.elements).step_by(CHUNK).map(|start| start..(start + CHUNK).min(self.elements))
    }

    fn key(&self, chunk: &std::ops::Range<usize>) -> GateKey {
        GateKey { session: self.session, node: 0, first_instance: chunk.start as u64 }
    }

    fn zero(&self, chunk: &std::ops::Range<usize>) -> &[Block] {
        &self.zero[..chunk.len() * self.gadget.circuit().evaluator_inputs()]
    }

    /// Garbles the layer chunk by chunk through one buffer; hands each chunk's tables and masks to `sink`.
    fn garble(&self, mut sink: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let circuit = self.gadget.circuit();
        let mut tables = vec![0; tables_len(circuit, self.elements.min(CHUNK))?];
        for chunk in self.chunks() {
            let tables = &mut tables[..tables_len(circuit, chunk.len())?];
            let garbling = Garbling::new(circuit, self.delta, self.key(&chunk), &LabelSeed::new(self.seed))?;
            let masks = garbling.garble_into(self.zero(&chunk), chunk.len(), tables)?;
            sink(tables, &masks);
        }
        Ok(())
    }

    /// The labels of both parties' inputs of a chunk.
    fn labels(&self, chunk: &std::ops::Range<usize>) -> Result<[Vec<Block>; 2]> {
        let ring = self.gadget.ring_in();
        let own: Vec<u64> = (self.inputs[chunk.clone()].iter().zip(&self.evaluator_shares[chunk.clone()]))
            .map(|(&x, &e)| ring.sub(ring.from_signed(x), e))
            .collect();
        let circuit = self.gadget.circuit();
        let garbling = Garbling::new(circuit, self.delta, self.key(chunk), &LabelSeed::new(self.seed))?;
        let garbler = garbling.garbler_labels(&self.gadget.garbler_bits(&own)?, chunk.len())?;
        let bits = self.gadget.evaluator_bits(&self.evaluator_shares[chunk.clone()])?;
        let label = |(i, &zero): (usize, &Block)| zero ^ (Block::mask(bits[i / 8] >> (i % 8) & 1 == 1) & self.delta);
        Ok([garbler, self.zero(chunk).iter().enumerate().map(label).collect()])
    }

    fn measure(&self, bench: &Bench, name: &'static str) -> Result<Group> {
        let circuit = self.gadget.circuit();
        let (ands, projections) = (circuit.and_count(), circuit.projections());
        let mut tables = Vec::with_capacity(tables_len(circuit, self.elements)?);
        let mut masks = Vec::new();
        self.garble(|t, m| {
            tables.extend_from_slice(t);
            masks.push(m.to_vec());
        })?;
        let labels: Vec<[Vec<Block>; 2]> = match name {
            EVALUATE => self.chunks().map(|chunk| self.labels(&chunk)).collect::<Result<_>>()?,
            _ => Vec::new(),
        };
        let (tables, labels) = (Arc::new(tables), Arc::new(labels));
        let hashes = match name {
            GARBLE => 4 * ands + 2 * projections,
            _ => 2 * ands + projections,
        };
        let work = Work {
            kernel: name,
            n: 0,
            limbs: 1,
            batch: self.elements,
            size: Some(format!("{ands} ANDs, {projections} projections each")),
            cost: Cost { bytes: tables.len() as f64, multiplies: 0.0 },
        };
        let verified = self.verify(&tables, &masks)?;
        let mut contenders = Vec::new();
        let mut threads: Vec<usize> = bench.devices.main.iter().map(|d| d.label().threads).collect();
        threads.extend([1, 2]);
        threads.sort_unstable();
        threads.dedup();
        for threads in threads {
            let pool = Arc::new(ThreadPoolBuilder::new().num_threads(threads).build()?);
            let ceilings = bench.devices.main.iter().position(|d| d.label().threads == threads);
            let label = Label { backend: "cpu", form: "half-gates".into(), threads, adapter: String::new() };
            let (own, labels, tables) = (pool.clone(), labels.clone(), tables.clone());
            let operation: Operation = Box::new(move |repeats| {
                own.install(|| (0..repeats).try_for_each(|_| self.once(name, &tables, &labels)))
            });
            let ceilings = ceilings.and_then(|i| bench.ceilings.get(i));
            contenders.push(Contender { label, verified, ceilings, operation, again: None });
            let blocks = self.elements * hashes;
            let operation: Operation = Box::new(move |repeats| {
                (0..repeats).for_each(|_| aes(&pool, blocks));
                Ok(())
            });
            let label = Label::library(AES, threads);
            contenders.push(Contender { label, verified: true, ceilings: None, operation, again: None });
        }
        group(&work, bench.effort.heavy(), contenders)
    }

    fn once(&self, name: &str, tables: &[u8], labels: &[[Vec<Block>; 2]]) -> Result<()> {
        if name == GARBLE {
            return self.garble(|tables, _| {
                std::hint::black_box(tables);
            });
        }
        let (circuit, mut rest) = (self.gadget.circuit(), tables);
        for (chunk, [garbler, evaluator]) in self.chunks().zip(labels) {
            let (own, tail) = rest.split_at(tables_len(circuit, chunk.len())?);
            rest = tail;
            let key = self.key(&chunk);
            std::hint::black_box(evaluate_chunk(circuit, key, own, evaluator, garbler, chunk.len())?);
        }
        Ok(())
    }

    /// Whether the sums of both parties' new shares are the function's values.
    fn verify(&self, tables: &[u8], masks: &[Vec<u8>]) -> Result<bool> {
        let (circuit, ring, mut rest) = (self.gadget.circuit(), self.gadget.ring_out(), tables);
        let pieces = self.function.pieces();
        let mut right = true;
        for (chunk, masks) in self.chunks().zip(masks) {
            let (own, tail) = rest.split_at(tables_len(circuit, chunk.len())?);
            rest = tail;
            let [garbler, evaluator] = self.labels(&chunk)?;
            let values = evaluate_chunk(circuit, self.key(&chunk), own, &evaluator, &garbler, chunk.len())?;
            let next = &self.next[chunk.clone()];
            let shares = self.gadget.output_shares(&self.gadget.reply(&values, next)?, masks, chunk.len())?;
            right &= bits::unpack(&values, ring.bits(), chunk.len())?.len() == chunk.len();
            for ((share, rho), &x) in shares.iter().zip(next).zip(&self.inputs[chunk]) {
                let expected = ring.from_signed(self.function.eval(pieces.as_ref(), x.into()) as i64);
                right &= ring.add(*share, *rho) == expected;
            }
        }
        Ok(right)
    }
}

/// AES of so many blocks, some at a time over and over, split among the pool's threads.
fn aes(pool: &ThreadPool, blocks: usize) {
    let hash = CrHash::derive(Block(4), 0);
    let threads = pool.current_num_threads();
    let rounds = blocks.div_ceil(AES_BLOCKS * threads);
    pool.install(|| {
        (0..threads).into_par_iter().for_each(|thread| {
            let mut x = [Block(thread as u128); AES_BLOCKS];
            for _ in 0..rounds {
                hash.hash_in_place(&mut x, |i| i as u64);
            }
            std::hint::black_box(x);
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_decodes_and_a_wrong_table_is_seen() {
        let layer = Layer::new(70).unwrap();
        let (mut tables, mut masks) = (Vec::new(), Vec::new());
        let sink = |t: &[u8], m: &[u8]| {
            tables.extend_from_slice(t);
            masks.push(m.to_vec());
        };
        layer.garble(sink).unwrap();
        assert!(layer.verify(&tables, &masks).unwrap());
        tables.iter_mut().step_by(64).for_each(|b| *b ^= 1);
        assert!(!layer.verify(&tables, &masks).unwrap());
    }

    #[test]
    fn gates_are_read_from_a_size() {
        assert_eq!(gates("58 ANDs, 40 projections each"), Some(78.0));
        assert_eq!(gates("none"), None);
    }
}
