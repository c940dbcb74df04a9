//! The product in slots: turned inputs times diagonals, tile by tile, then the turns of the partial sums.

use std::{collections::HashMap, ops::Range, sync::Arc};

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{
    SlotPacking,
    layout::{Order, SlotLayout},
    turns::{Hoist, Turn},
};
use crate::{
    arith::sample::SecureRng,
    engine::{
        Buffer, GatherItem, MatmulShape, Poly, Shape,
        schedule::{Demand, Slot, Task, TaskGraph, TaskId, Work},
    },
    he::{Domain, HeClient, HeError, HeServer, Response, ResponsePlan, Result, SeededCiphertexts},
    packing::{
        Counts, Loaded, LoadedInput, MatmulSpec, Packing, Pending, PendingProduct, Prepared, PreparedWeights,
        check_weights, foreign,
        respond::{Batch, Responding},
    },
};

/// An encrypted input on the device, `[groups][digits][blocks]` ciphertexts in both domains; `blocks` here are those of all
/// digits.
#[derive(Clone)]
pub(in crate::packing) struct SlotInput {
    groups: usize,
    blocks: usize,
    coefficients: Buffer,
    transformed: Buffer,
}

/// Matrices of weights, `[inner][cols]` residues of `W / N` modulo t each.
pub(in crate::packing) struct SlotWeights {
    matrices: Vec<Zeroizing<Vec<u64>>>,
}

/// Turned ciphertexts that are on the device at a time, unless one input has more of them.
const TURNED: usize = 128;

/// A product whose tasks are in a graph; ciphertexts come as `[groups][outputs]`.
struct Product {
    packing: SlotPacking,
    responding: Responding,
}

impl Pending for Product {
    fn tasks(&self) -> Vec<TaskId> {
        self.responding.tasks()
    }

    fn collect(&self) -> Result<(Response, Vec<u64>)> {
        let (response, masks) = self.responding.collect()?;
        Ok((response, self.packing.rows(&masks)?))
    }
}

/// The matrix product on the device.
struct Multiplication {
    packing: SlotPacking,
    server: HeServer,
    inputs: Vec<SlotInput>,
    weights: Arc<SlotWeights>,
}

/// One input ciphertext of a group: which summed input, and which of its ciphertexts. Those of all digits of a block of features
/// stand side by side, because their plaintexts come from one polynomial.
type Block = (usize, usize);

impl Multiplication {
    fn ct_words(&self) -> usize {
        let params = self.server.context().params();
        2 * params.limbs() * params.n()
    }

    fn groups(&self) -> usize {
        self.packing.layout.groups(self.packing.spec.rows)
    }

    fn outputs(&self) -> usize {
        self.packing.layout.output_blocks(self.packing.spec.cols)
    }

    /// The result of every group, `[outputs][2][limbs][N]`, in one domain.
    fn run(&self) -> Result<(Domain, Vec<Buffer>)> {
        let turns = &*self.packing.turns;
        let digits = self.packing.digits.count;
        let blocks: Vec<Block> = (self.inputs.iter().enumerate())
            .flat_map(|(k, input)| {
                let own = input.blocks / digits;
                (0..own).flat_map(move |block| (0..digits).map(move |digit| (k, digit * own + block)))
            })
            .collect();
        let longest = turns.hoists.iter().map(|hoist| hoist.turns.len()).max().unwrap_or(1);
        let together = digits * (TURNED / (longest * self.groups() * digits)).clamp(1, (blocks.len() / digits).max(1));
        let ctx = self.server.context();
        let polys = (ctx.tile_words() / (self.ct_words() / 2)).max(1);
        let tile = (polys / (together * longest)).clamp(1, self.outputs() * turns.giants.len());
        let mut sums = Sums { tile, count: self.outputs() * turns.giants.len(), buffers: HashMap::new() };
        for blocks in blocks.chunks(together) {
            self.add_blocks(blocks, &mut sums)?;
        }
        let finish = |group| self.turn_sums(&sums, group);
        let domain = if turns.giants.len() > 1 { Domain::Coefficient } else { Domain::Ntt };
        Ok((domain, (0..self.groups()).map(finish).collect::<Result<_>>()?))
    }

    /// All products with some input blocks.
    fn add_blocks(&self, blocks: &[Block], sums: &mut Sums) -> Result<()> {
        let backend = self.server.context().backend();
        let turns = &*self.packing.turns;
        let select = |group: usize, of: fn(&SlotInput) -> &Buffer| -> Result<Buffer> {
            let sources: Vec<&Buffer> = self.inputs.iter().map(of).collect();
            let items: Vec<GatherItem> =
                blocks.iter().map(|&(k, b)| Some((k, group * self.inputs[k].blocks + b))).collect();
            Ok(backend.gather(&sources, self.ct_words(), &items)?)
        };
        let groups = 0..self.groups();
        let inputs = groups.clone().map(|group| select(group, |x| &x.transformed)).collect::<Result<Vec<_>>>()?;
        self.add_products(blocks, &[0], &inputs, sums)?;
        // Where hoists start, by group; those to come are kept.
        let mut bases: HashMap<usize, Vec<Buffer>> = HashMap::new();
        bases.insert(0, groups.map(|group| select(group, |x| &x.coefficients)).collect::<Result<_>>()?);
        for (number, hoist) in turns.hoists.iter().enumerate() {
            let needed = |base: usize| turns.hoists[number + 1..].iter().any(|later| later.base == base);
            let from = if needed(hoist.base) { bases.get(&hoist.base).cloned() } else { bases.remove(&hoist.base) };
            let from = from.ok_or_else(|| HeError::shape("multiply", "a hoist has no base"))?;
            let turned = from.iter().map(|x| self.rotate(blocks.len(), hoist, x)).collect::<Result<Vec<_>>>()?;
            for (at, &(baby, _)) in hoist.turns.iter().enumerate().filter(|(_, (baby, _))| needed(*baby)) {
                let items: Vec<GatherItem> = (0..blocks.len()).map(|b| Some((0, b * hoist.turns.len() + at))).collect();
                let kept = turned.iter().map(|x| Ok(backend.gather(&[x], self.ct_words(), &items)?));
                bases.insert(baby, kept.collect::<Result<_>>()?);
            }
            let babies: Vec<usize> = hoist.turns.iter().map(|&(baby, _)| baby).collect();
            let turned = turned.into_iter().map(|x| self.forward(&x)).collect::<Result<Vec<_>>>()?;
            self.add_products(blocks, &babies, &turned, sums)?;
        }
        Ok(())
    }

    /// `[blocks][turns]` rotations of `[blocks]` ciphertexts, coefficient domain.
    fn rotate(&self, blocks: usize, hoist: &Hoist, x: &Buffer) -> Result<Buffer> {
        let n = self.packing.layout.n;
        let elements: Vec<usize> = hoist.turns.iter().map(|&(_, turn)| turn.element(n)).collect();
        let rotations: Vec<_> = (0..blocks).flat_map(|block| elements.iter().map(move |&g| (block, g))).collect();
        rotate(&self.server, x, &rotations)
    }

    fn forward(&self, x: &Buffer) -> Result<Buffer> {
        let ctx = self.server.context();
        let limbs = ctx.params().limbs();
        ctx.ntt_forward(x, Shape { polys: x.words() / (limbs * ctx.params().n()), limbs })
    }

    /// Adds the products of `[blocks][babies]` turned ciphertexts of every group to all sums.
    fn add_products(&self, blocks: &[Block], babies: &[usize], turned: &[Buffer], sums: &mut Sums) -> Result<()> {
        let ctx = self.server.context();
        let (limbs, giants) = (ctx.params().limbs(), self.packing.turns.giants.len());
        for range in sums.tiles() {
            let shape = MatmulShape { groups: 1, inputs: blocks.len() * babies.len(), outputs: range.len(), limbs };
            let values = self.plaintexts(blocks, babies, range.clone().map(|sum| (sum / giants, sum % giants)));
            let plain = match turned {
                [_] => None,
                _ => Some(self.server.transform_plaintexts(limbs, &values)?),
            };
            for (group, x) in turned.iter().enumerate() {
                let product = match &plain {
                    Some(plain) => self.server.multiply_transformed(x, plain, shape)?,
                    None => self.server.multiply(x, &values, self.packing.layout.n, shape)?,
                };
                let polys = Shape { polys: 2 * range.len(), limbs };
                let sum = match sums.buffers.remove(&(group, range.start)) {
                    Some(sum) => ctx.backend().add(ctx.ring(), &sum, &product, polys)?,
                    None => product,
                };
                sums.buffers.insert((group, range.start), sum);
            }
        }
        Ok(())
    }

    /// Diagonals `[sums][blocks][babies][N]`; a sum is an output block and a giant.
    fn plaintexts(
        &self,
        blocks: &[Block],
        babies: &[usize],
        sums: impl Iterator<Item = (usize, usize)>,
    ) -> Zeroizing<Vec<i64>> {
        let packing = &self.packing;
        let (layout, turns, t) = (&packing.layout, &packing.turns, packing.spec.t);
        let (n, digits) = (layout.n, packing.digits.count);
        let wanted: Vec<(usize, usize, Block)> = sums
            .flat_map(|(output, giant)| blocks.iter().step_by(digits).map(move |&block| (output, giant, block)))
            .collect();
        let mut values = Zeroizing::new(vec![0i64; wanted.len() * digits * babies.len() * n]);
        values.par_chunks_mut(digits * babies.len() * n).zip(&wanted).for_each_init(
            || (Zeroizing::new(vec![0u64; n]), Zeroizing::new(vec![0u64; layout.width])),
            |(buffer, columns), (values, &(output, giant, (input, block)))| {
                for (at, &baby) in babies.iter().enumerate() {
                    let diagonal = Diagonal {
                        layout,
                        weights: &self.weights.matrices[input],
                        shape: (packing.spec.inner[input], packing.spec.cols),
                        corner: (block * layout.features, output * layout.outputs),
                        turns: (turns.babies[baby], turns.giants[giant]),
                    };
                    match layout.order {
                        // All tokens of a column meet the same weight.
                        Order::Tokens => {
                            let weight =
                                |(column, out): (usize, &mut u64)| *out = diagonal.value(column * layout.tokens);
                            columns.iter_mut().enumerate().for_each(weight);
                            let shift = layout.tokens.trailing_zeros();
                            packing.encoder.interpolate(buffer, |slot| columns[slot >> shift]);
                        }
                        Order::Features => packing.encoder.interpolate(buffer, |slot| diagonal.value(slot)),
                    }
                    buffer.iter_mut().for_each(|c| *c = t.to_signed(*c) as u64);
                    for (digit, values) in values.chunks_exact_mut(babies.len() * n).enumerate() {
                        let values = &mut values[at * n..][..n];
                        values
                            .iter_mut()
                            .zip(buffer.iter())
                            .for_each(|(out, &c)| *out = packing.digits.of(c as i64, digit));
                    }
                }
            },
        );
        values
    }

    /// The sum over giants of the turned sums of one group, `[outputs][2][limbs][N]`.
    fn turn_sums(&self, sums: &Sums, group: usize) -> Result<Buffer> {
        let ctx = self.server.context();
        let (backend, limbs, giants) = (ctx.backend(), ctx.params().limbs(), &self.packing.turns.giants);
        let mut tiles = Vec::new();
        for range in sums.tiles() {
            let sum = sums.buffers.get(&(group, range.start));
            let sum = sum.ok_or_else(|| HeError::shape("multiply", "there is no operand"))?;
            let shape = Shape { polys: 2 * range.len(), limbs };
            tiles.push(if giants.len() > 1 { ctx.ntt_inverse(sum, shape)? } else { sum.clone() });
        }
        let sources: Vec<&Buffer> = tiles.iter().collect();
        let layer = |giant: usize| -> Result<Buffer> {
            let item = |output: usize| {
                let sum = output * giants.len() + giant;
                Some((sum / sums.tile, sum % sums.tile))
            };
            let items: Vec<GatherItem> = (0..self.outputs()).map(item).collect();
            Ok(backend.gather(&sources, self.ct_words(), &items)?)
        };
        let mut result = layer(0)?;
        for (giant, turn) in giants.iter().enumerate().skip(1) {
            let element = turn.element(self.packing.layout.n);
            let rotations: Vec<_> = (0..self.outputs()).map(|output| (output, element)).collect();
            let turned = rotate(&self.server, &layer(giant)?, &rotations)?;
            result = backend.add(ctx.ring(), &result, &turned, Shape { polys: 2 * self.outputs(), limbs })?;
        }
        Ok(result)
    }
}

/// Sums by group and first number of their tile, `[tile][2][limbs][N]` in the NTT domain. Sum `output * giants + giant` waits for
/// the turn `giant`.
struct Sums {
    tile: usize,
    count: usize,
    buffers: HashMap<(usize, usize), Buffer>,
}

impl Sums {
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (tile, count) = (self.tile, self.count);
        (0..count).step_by(tile).map(move |first| first..count.min(first + tile))
    }
}

/// The weights that a turned input meets, one in every slot.
struct Diagonal<'a> {
    layout: &'a SlotLayout,
    weights: &'a [u64],
    /// Rows and columns of the weights.
    shape: (usize, usize),
    /// First feature of the input block and of the output block.
    corner: (usize, usize),
    /// The input's turn, and the turn that the sum will have.
    turns: (Turn, Turn),
}

impl Diagonal<'_> {
    #[inline]
    fn value(&self, slot: usize) -> u64 {
        let n = self.layout.n;
        let (from, there) = self.layout.place(self.turns.0.source(n, slot, false));
        let (to, here) = self.layout.place(self.turns.1.source(n, slot, true));
        let (feature, column) = (self.corner.0 + self.layout.feature(there), self.corner.1 + self.layout.output(here));
        if from == to && self.layout.active(here) && feature < self.shape.0 && column < self.shape.1 {
            self.weights[feature * self.shape.1 + column]
        } else {
            0
        }
    }
}

fn rotate(server: &HeServer, x: &Buffer, rotations: &[(usize, usize)]) -> Result<Buffer> {
    let ctx = server.context();
    let x = Poly::from_buffer(&ctx.engine(), ctx.ring(), ctx.params().limbs(), x.clone())?;
    Ok(server.rotate(&x, rotations)?.buffer().clone())
}

impl SlotPacking {
    /// `[rows][cols]` of the slots of `[groups][outputs][N]` coefficients.
    fn rows(&self, coefficients: &[u64]) -> Result<Vec<u64>> {
        self.layout.decode(&self.encoder, self.spec.rows, self.spec.cols, coefficients)
    }

    /// Ciphertexts of `inner` features of a group, those of all digits.
    fn blocks(&self, inner: usize) -> usize {
        self.digits.count * self.layout.input_blocks(inner)
    }

    /// All coefficients of every response ciphertext: a slot depends on each.
    fn positions(&self) -> Vec<Vec<u32>> {
        vec![(0..self.layout.n as u32).collect(); self.counts.ciphertexts_down as usize]
    }

    fn inner(&self, index: usize) -> Result<usize> {
        let inner = self.spec.inner.get(index).copied();
        inner.ok_or_else(|| HeError::shape("packing", format!("there is no input number {index}")))
    }

    fn check_ring(&self, n: usize) -> Result<()> {
        if n == self.layout.n {
            return Ok(());
        }
        Err(HeError::shape("packing", format!("planned for N = {}, used at N = {n}", self.layout.n)))
    }
}

impl Packing for SlotPacking {
    fn name(&self) -> &'static str {
        self.name_of()
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn spec(&self) -> &MatmulSpec {
        &self.spec
    }

    fn response_plan(&self) -> &ResponsePlan {
        &self.response
    }

    fn rotation_elements(&self) -> Vec<usize> {
        self.turns.elements(self.layout.n)
    }

    fn input_ciphertexts(&self, index: usize) -> usize {
        self.spec.inner.get(index).map_or(0, |&inner| self.layout.groups(self.spec.rows) * self.blocks(inner))
    }

    fn kept_coefficients(&self) -> usize {
        self.counts.ciphertexts_down as usize * self.layout.n
    }

    fn encrypt_input(
        &self,
        client: &HeClient,
        index: usize,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<SeededCiphertexts> {
        let (rows, inner, t) = (self.spec.rows, self.inner(index)?, self.spec.t);
        self.check_ring(client.context().params().n())?;
        if x.len() != rows * inner {
            return Err(HeError::shape("encrypt", format!("{} elements where {rows} x {inner} are needed", x.len())));
        }
        let reduced: Zeroizing<Vec<u64>> = Zeroizing::new(x.iter().map(|&x| t.reduce(x)).collect());
        let encoded = self.layout.encode(&self.encoder, rows, inner, &reduced)?;
        let mut plaintexts = Zeroizing::new(Vec::with_capacity(self.digits.count * encoded.len()));
        for group in encoded.chunks(self.layout.input_blocks(inner) * self.layout.n) {
            for digit in 0..self.digits.count as u32 {
                let factor = t.reduce(1 << (digit * self.digits.bits));
                plaintexts.extend(group.iter().map(|&c| t.mul(c, factor)));
            }
        }
        client.encrypt(t, &plaintexts, rng)
    }

    fn load_input(&self, server: &HeServer, index: usize, input: Arc<SeededCiphertexts>) -> Result<LoadedInput> {
        let (ctx, inner) = (server.context(), self.inner(index)?);
        self.check_ring(ctx.params().n())?;
        let (groups, blocks) = (self.layout.groups(self.spec.rows), self.blocks(inner));
        if input.len() != groups * blocks {
            return Err(HeError::shape(
                "multiply",
                format!("{} ciphertexts where {} are needed", input.len(), groups * blocks),
            ));
        }
        let transformed = ctx.backend().upload(&input.expand(ctx.params())?)?;
        let coefficients =
            ctx.ntt_inverse(&transformed, Shape { polys: 2 * input.len(), limbs: ctx.params().limbs() })?;
        Ok(LoadedInput(Loaded::Slots(SlotInput { groups, blocks, coefficients, transformed })))
    }

    fn prepare_weights(&self, _server: &HeServer, weights: &[&[i64]]) -> Result<PreparedWeights> {
        check_weights(&self.spec, weights)?;
        let residue = |&w: &i64| self.encoder.scaled(self.spec.t.from_signed(w));
        let matrix = |weights: &&[i64]| Zeroizing::new(weights.iter().map(residue).collect());
        Ok(PreparedWeights(Prepared::Slots(Arc::new(SlotWeights { matrices: weights.iter().map(matrix).collect() }))))
    }

    fn add<'a>(
        &self,
        graph: &mut TaskGraph<'a, HeError>,
        name: &str,
        server: &HeServer,
        inputs: &[LoadedInput],
        weights: &PreparedWeights,
        rng: &mut SecureRng,
    ) -> Result<PendingProduct> {
        let Prepared::Slots(weights) = &weights.0 else { return Err(foreign("weights")) };
        let input = |input: &LoadedInput| match &input.0 {
            Loaded::Slots(input) => Ok(input.clone()),
            _ => Err(foreign("an input")),
        };
        let inputs = inputs.iter().map(input).collect::<Result<Vec<_>>>()?;
        let ctx = server.context();
        self.check_ring(ctx.params().n())?;
        let groups = self.layout.groups(self.spec.rows);
        let fits = inputs.len() == self.spec.inner.len()
            && inputs
                .iter()
                .zip(&self.spec.inner)
                .all(|(x, &inner)| x.groups == groups && x.blocks == self.blocks(inner))
            && weights.matrices.len() == inputs.len()
            && weights.matrices.iter().zip(&self.spec.inner).all(|(w, &inner)| w.len() == inner * self.spec.cols);
        if !fits {
            return Err(HeError::shape("multiply", "the operands are not those of this product"));
        }
        let work = Multiplication { packing: self.clone(), server: server.clone(), inputs, weights: weights.clone() };
        let (outputs, ct_words) = (work.outputs(), work.ct_words());
        let estimate = Work {
            ntts: self.counts.products * ctx.params().limbs() as u64,
            products: self.counts.products,
            key_switches: self.counts.key_switches,
            ..Work::default()
        };
        let words = groups * outputs * ct_words;
        // One product's steps are too short to keep all threads busy; two at a time do.
        let capacity = ctx.capacity();
        let half = Demand::threads(capacity.threads.div_ceil(2));
        let demand = if capacity.device == 0 { half } else { ctx.device_demand() };
        let task = Task::new(format!("{name}: turn and multiply"), demand);
        let task = task.seconds(ctx.estimate(estimate)).bytes(words as u64 * 4);
        let results = Arc::new(Slot::new());
        let out = results.clone();
        let task = graph.add(task, move || {
            out.put(work.run()?);
            Ok(())
        });

        let step = (ctx.tile_words() / ct_words).clamp(1, outputs);
        let positions: Vec<u32> = (0..self.layout.n as u32).collect();
        let mut batches = Vec::new();
        for group in 0..groups {
            for first in (0..outputs).step_by(step) {
                let range = first..outputs.min(first + step);
                let (results, server, positions) =
                    (results.clone(), server.clone(), vec![positions.clone(); range.len()]);
                let compute = move || {
                    let (domain, buffers): (Domain, Vec<Buffer>) =
                        results.get().ok_or_else(|| HeError::shape("multiply", "there is no product"))?;
                    let items: Vec<GatherItem> = range.map(|output| Some((group, output))).collect();
                    let sources: Vec<&Buffer> = buffers.iter().collect();
                    Ok((domain, server.context().backend().gather(&sources, ct_words, &items)?))
                };
                batches.push(Batch { after: vec![task], work: Work::default(), positions, compute: Box::new(compute) });
            }
        }
        let responding = Responding::add(graph, name, server, self.spec.t, &self.response, batches, rng);
        Ok(PendingProduct(Box::new(Product { packing: self.clone(), responding })))
    }

    fn decrypt_output(&self, client: &HeClient, response: &Response) -> Result<Vec<u64>> {
        let coefficients = client.decrypt(self.spec.t, &self.response, &self.positions(), response)?;
        self.rows(&Zeroizing::new(coefficients))
    }
}
