//! The server's product as tasks, batch by batch of output ciphertexts:
//!
//! | task | where | waits for |
//! |---|---|---|
//! | `multiply`: expand weights, transform, multiply and sum, tile by tile | device | |
//! | `sample`: mask, `u`, errors, flooding noise | CPU | |
//! | `pack`: order the products, pack them | device | its `multiply` tasks |
//! | `finish`: blind, switch down, read back | device | `pack`, `sample` |
//! | `cut`: drop bits, keep the wanted coefficients | CPU | `finish` |
//!
//! Products with one head are multiplied batch by batch, so that memory does not grow with the layer; with several heads a
//! `multiply` task serves a range of heads and any number of batches.

use std::{ops::Range, sync::Arc};

use zeroize::Zeroizing;

use super::{
    CoefficientPacking,
    layout::Pack,
    operand::{DeviceInput, Operand, Operands, Tile},
};
use crate::{
    arith::sample::SecureRng,
    engine::{
        Buffer, GatherItem,
        schedule::{Demand, Slot, Task, TaskGraph, TaskId, Work},
    },
    he::{BfvContext, HeError, HeServer, Response, Result},
};

/// A product whose tasks are in a graph.
pub struct Product {
    packing: Arc<CoefficientPacking>,
    batches: Vec<(TaskId, Arc<Slot<Part>>)>,
}

/// One batch of the result.
struct Part {
    response: Response,
    /// Places in `[heads][rows][cols]`.
    places: Vec<usize>,
    /// The masks there.
    masks: Zeroizing<Vec<u64>>,
}

impl Product {
    /// Adds the tasks of a product to `graph`, their names beginning with `name`. Every generator that they need is forked
    /// from `rng` here, one a pack in the order of packs, so that results do not depend on when tasks run, nor on tiles.
    ///
    /// # Errors
    /// If the operands do not fit the plan.
    pub fn add<'a>(
        graph: &mut TaskGraph<'a, HeError>,
        name: &str,
        packing: &CoefficientPacking,
        server: &HeServer,
        operands: Vec<(DeviceInput, Operand<'a>)>,
        rng: &mut SecureRng,
    ) -> Result<Self> {
        let packing = Arc::new(packing.clone());
        let server = &server.at_level(packing.limbs())?;
        let ctx = server.context().clone();
        let operands = Arc::new(Operands::new(packing.clone(), server.clone(), operands)?);
        let adder = Adder { name, packing: packing.clone(), server, ctx: &ctx, operands };

        let shared = if packing.spec.heads > 1 { adder.add_heads(graph) } else { Vec::new() };
        let mut batches = Vec::new();
        for (number, packs) in packing.batches(ctx.tile_words() / adder.ct_words()).into_iter().enumerate() {
            let units = if packing.spec.heads > 1 {
                shared.clone()
            } else {
                let groups = groups(&packing.merged[packs.clone()]);
                vec![adder.add_multiply(graph, &number.to_string(), 0, 0, groups)]
            };
            batches.push(adder.add_batch(graph, number, packs, &units, rng));
        }
        Ok(Self { packing, batches })
    }

    /// The last task of every batch: what uses the result must wait for these.
    pub fn tasks(&self) -> Vec<TaskId> {
        self.batches.iter().map(|(task, _)| *task).collect()
    }

    /// The response and Z, `[heads][rows][cols]`, once [`Self::tasks`] have run.
    ///
    /// # Errors
    /// If they have not.
    pub fn collect(&self) -> Result<(Response, Vec<u64>)> {
        let mut response: Option<Response> = None;
        let mut mask = vec![0; self.packing.outputs()];
        for (_, slot) in &self.batches {
            let part = take(slot)?;
            part.places.iter().zip(part.masks.iter()).for_each(|(&index, &z)| mask[index] = z);
            match &mut response {
                Some(response) => response.append(part.response),
                None => response = Some(part.response),
            }
        }
        let response = response.ok_or_else(|| HeError::shape("multiply", "there is no output"))?;
        Ok((response, mask))
    }
}

impl CoefficientPacking {
    /// Packs with equal numbers of outputs, together up to about a number of unpacked ciphertexts.
    fn batches(&self, ciphertexts: usize) -> Vec<Range<usize>> {
        let (mut out, mut first) = (Vec::new(), 0);
        for run in self.merged.chunk_by(|a, b| a.outputs == b.outputs) {
            let (size, end) = ((ciphertexts / run[0].outputs).clamp(1, run.len()), first + run.len());
            out.extend((first..end).step_by(size).map(|first| first..end.min(first + size)));
            first = end;
        }
        out
    }
}

/// Output groups of consecutive packs, counted over all heads.
fn groups(packs: &[Pack]) -> Range<usize> {
    let first = packs.first().map_or(0, |p| p.first);
    first..packs.last().map_or(first, |p| p.first + p.used)
}

/// A `multiply` task: the first head that it serves, and where it leaves its tiles.
#[derive(Clone)]
struct Unit {
    task: TaskId,
    first_head: usize,
    tiles: Arc<Slot<Arc<Vec<Tile>>>>,
}

/// What the tasks of one product have in common.
struct Adder<'b, 'a> {
    name: &'b str,
    packing: Arc<CoefficientPacking>,
    server: &'b HeServer,
    ctx: &'b BfvContext,
    operands: Arc<Operands<'a>>,
}

impl<'a> Adder<'_, 'a> {
    fn ct_words(&self) -> usize {
        2 * self.ctx.params().limbs() * self.ctx.params().n()
    }

    fn task(&self, what: &str, number: &str, demand: Demand, words: usize, work: Work) -> Task {
        let name = format!("{}: {what} {number}", self.name);
        Task::new(name, demand).seconds(self.ctx.estimate(work)).bytes(words as u64 * 4)
    }

    fn add_heads(&self, graph: &mut TaskGraph<'a, HeError>) -> Vec<Unit> {
        let per_head = self.packing.output.groups_per_head();
        let ranges: Vec<Range<usize>> = self.operands.heads().collect();
        let add = |(part, heads): (usize, &Range<usize>)| {
            self.add_multiply(graph, &format!("heads {heads:?}"), part, heads.start, 0..per_head)
        };
        ranges.iter().enumerate().map(add).collect()
    }

    fn add_multiply(
        &self,
        graph: &mut TaskGraph<'a, HeError>,
        number: &str,
        part: usize,
        first_head: usize,
        outputs: Range<usize>,
    ) -> Unit {
        let heads = self.operands.heads().nth(part).map_or(0, |heads| heads.len());
        let blocks: usize =
            self.packing.inputs.iter().map(super::InputLayout::blocks).sum::<usize>() << self.packing.split;
        let (count, limbs) = (heads * outputs.len(), self.ctx.params().limbs());
        let polys = (count * blocks) as u64;
        let work = Work { ntts: polys * limbs as u64, products: polys, ..Work::default() };
        let task = self.task("multiply", number, self.ctx.device_demand(), count * self.ct_words(), work);
        let tiles = Arc::new(Slot::new());
        let (operands, out) = (self.operands.clone(), tiles.clone());
        let task = graph.add(task, move || {
            out.put(Arc::new(operands.multiply(part, outputs)?));
            Ok(())
        });
        Unit { task, first_head, tiles }
    }

    fn add_batch(
        &self,
        graph: &mut TaskGraph<'a, HeError>,
        number: usize,
        range: Range<usize>,
        units: &[Unit],
        rng: &mut SecureRng,
    ) -> (TaskId, Arc<Slot<Part>>) {
        let (params, device) = (self.ctx.params(), self.ctx.device_demand());
        let packs = self.packing.merged[range.clone()].to_vec();
        let (n, limbs, count, outputs) = (params.n(), params.limbs(), packs.len(), packs[0].outputs);
        let number = number.to_string();
        let ct_words = self.ct_words();
        let (blinding, packed, finished, part) =
            (Arc::new(Slot::new()), Arc::new(Slot::new()), Arc::new(Slot::new()), Arc::new(Slot::new()));

        let rngs: Vec<SecureRng> = packs.iter().map(|_| rng.fork()).collect();
        // Several samplers as costly as the Gaussian one.
        let work = Work { samples: 3 * (count * n) as u64, ..Work::default() };
        let words = count * (3 * limbs + 2) * n;
        let sample = self.task("sample", &number, Demand::threads(count), words, work);
        let (server, packing, out) = (self.server.clone(), self.packing.clone(), blinding.clone());
        let sample = graph.add(sample, move || {
            out.put(server.sample_blinding(packing.spec.t, packing.response.flood_deviation, rngs));
            Ok(())
        });

        let work = Work {
            ntts: (2 * outputs * count * limbs) as u64,
            key_switches: ((outputs - 1) * count) as u64,
            ..Work::default()
        };
        let pack = self.task("pack", &number, device, count * ct_words, work);
        let (server, packing, out) = (self.server.clone(), self.packing.clone(), packed.clone());
        let (units, tasks) = (units.to_vec(), units.iter().map(|u| u.task));
        let these = packs;
        let pack = graph.add(pack.after(tasks), move || {
            let ordered = order(&packing, &server, &units, &these)?;
            drop(units);
            let block = packing.output.block >> packing.split;
            out.put(server.pack_outputs(&ordered, these[0].outputs, these.len(), block)?);
            Ok(())
        });

        let switched = count * 2 * self.packing.response.limbs * n;
        let work = Work {
            ntts: (3 * count * limbs) as u64,
            products: count as u64,
            upload_bytes: (count * 3 * limbs * n * 4) as u64,
            download_bytes: switched as u64 * 4,
            ..Work::default()
        };
        let finish = self.task("finish", &number, device, switched + 2 * count * n, work);
        let (server, packing, out) = (self.server.clone(), self.packing.clone(), finished.clone());
        let finish = graph.add(finish.after([sample, pack]), move || {
            let (packed, blinding) = (take::<Buffer>(&packed)?, take(&blinding)?);
            out.put(server.finish(&packing.response, &packed, blinding)?);
            Ok(())
        });

        // Lifting a coefficient costs about as much as sampling one.
        let work = Work { samples: (count * n) as u64, ..Work::default() };
        let cut = self.task("cut", &number, Demand::threads(count), switched / 2 + 8 * count * n, work);
        let (server, packing, out) = (self.server.clone(), self.packing.clone(), part.clone());
        let cut = graph.add(cut.after([finish]), move || {
            let finished = take(&finished)?;
            let places: Vec<_> = packing.packs[range].iter().map(|pack| packing.output.places(pack)).collect();
            let positions: Vec<Vec<u32>> = places.iter().map(|p| p.iter().map(|&(at, _)| at).collect()).collect();
            let (response, kept) = finished.cut(server.context().params(), &packing.response, &positions)?;
            let places = places.iter().flatten().map(|&(_, index)| index).collect();
            out.put(Part { response, places, masks: Zeroizing::new(kept) });
            Ok(())
        });
        (cut, part)
    }
}

/// The products of some packs as `[output][pack]`, absent outputs zero.
fn order(packing: &CoefficientPacking, server: &HeServer, units: &[Unit], packs: &[Pack]) -> Result<Buffer> {
    let ctx = server.context();
    let ct_words = 2 * ctx.params().limbs() * ctx.params().n();
    let per_head = packing.output.groups_per_head();
    // Tiles of all units, and for every group the tile and its place in it.
    let mut buffers: Vec<Buffer> = Vec::new();
    let range = groups(packs);
    let mut found: Vec<GatherItem> = vec![None; range.len()];
    for unit in units {
        let tiles = unit.tiles.get().ok_or_else(missing)?;
        for tile in tiles.iter() {
            let heads = tile.products.words() / (ct_words * tile.outputs.len()).max(1);
            for k in 0..heads * tile.outputs.len() {
                let (head, output) =
                    (unit.first_head + k / tile.outputs.len(), tile.outputs.start + k % tile.outputs.len());
                let group = head * per_head + output;
                if range.contains(&group) {
                    found[group - range.start] = Some((buffers.len(), k));
                }
            }
            buffers.push(tile.products.clone());
        }
    }
    let outputs = packs.first().map_or(0, |p| p.outputs);
    let item = |k: usize| {
        let (t, pack) = (k / packs.len(), &packs[k % packs.len()]);
        if t < pack.used { found[pack.first + t - range.start] } else { None }
    };
    let items: Vec<GatherItem> = (0..outputs * packs.len()).map(item).collect();
    let sources: Vec<&Buffer> = buffers.iter().collect();
    Ok(ctx.backend().gather(&sources, ct_words, &items)?)
}

fn take<T>(slot: &Slot<T>) -> Result<T> {
    slot.take().ok_or_else(missing)
}

fn missing() -> HeError {
    HeError::Task { detail: "a task of a product ran before those it depends on; please report this".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arith::ShareModulus,
        engine::{
            cpu::CpuBackend,
            schedule::{Capacity, Resource, simulate},
        },
        he::{HeClient, MATMUL_8192, ParameterSet},
        packing::{ClientMatrix, EncryptedMatrix, MatmulSpec, OperandBound},
    };

    const BLOCK: usize = 8;

    fn plan(params: &ParameterSet, heads: usize, cols: usize) -> CoefficientPacking {
        let t = ShareModulus::pow2(32).unwrap();
        let operand = OperandBound::Weights { max_abs: 100 };
        let spec = MatmulSpec { t, heads, rows: 32, inner: vec![20], cols, operand };
        CoefficientPacking::with_block(params, &spec, params.n() / 32, BLOCK).unwrap()
    }

    struct Fixture {
        servers: Vec<HeServer>,
        client: HeClient,
    }

    /// One client, and a server for each pair of tile words and capacity.
    fn fixture(limits: &[(usize, Capacity)]) -> Fixture {
        let params = ParameterSet::new(MATMUL_8192).unwrap();
        let backend = Arc::new(CpuBackend::new(None));
        let mut rng = SecureRng::from_seed([1; 32]);
        let client = HeClient::generate(BfvContext::new(backend.clone(), params.clone()), &mut rng);
        let public = client.public_key(&mut rng).unwrap();
        let galois = client.galois_keys(BLOCK, &mut rng).unwrap();
        let server = |&(tile, capacity): &(usize, Capacity)| {
            let ctx = BfvContext::with_limits(backend.clone(), params.clone(), tile, capacity);
            HeServer::new(ctx, &public, Some(&galois)).unwrap()
        };
        Fixture { servers: limits.iter().map(server).collect(), client }
    }

    fn operand(client: &HeClient, packing: &CoefficientPacking) -> (EncryptedMatrix, Vec<i64>, Vec<u64>) {
        let layout = &packing.inputs()[0];
        let x: Vec<u64> = (0..layout.elements() as u64).map(|i| i.wrapping_mul(0x9e37_79b9) >> 3).collect();
        let w: Vec<i64> =
            (0..layout.heads * layout.inner * packing.spec().cols).map(|i| (i * 37 % 201) as i64 - 100).collect();
        let t = packing.spec().t;
        let mut expected = vec![0u64; packing.outputs()];
        let (rows, inner, cols) = (layout.rows, layout.inner, packing.spec().cols);
        for (k, out) in expected.iter_mut().enumerate() {
            let (head, i, o) = (k / cols / rows, k / cols % rows, k % cols);
            for f in 0..inner {
                let product =
                    t.mul(t.reduce(x[(head * rows + i) * inner + f]), t.from_signed(w[(head * inner + f) * cols + o]));
                *out = t.add(*out, product);
            }
        }
        let mut rng = SecureRng::from_seed([2; 32]);
        (client.encrypt_matrix(t, layout, &x, &mut rng).unwrap(), w, expected)
    }

    /// Tiles and threads decide when and in what pieces things are computed, never what.
    #[test]
    fn results_do_not_depend_on_the_schedule() {
        let Fixture { servers, client } = fixture(&[
            (1 << 22, Capacity { device: 0, threads: 1, link: 0, bytes: 1 << 24 }),
            (1 << 19, Capacity { device: 0, threads: 3, link: 0, bytes: 0 }),
            (1, Capacity::new(2, 1 << 22)),
            (1 << 26, Capacity::new(4, u64::MAX)),
        ]);
        let params = client.context().params().clone();
        for (heads, cols) in [(1, 3 * 32 * BLOCK - 5), (3, 40)] {
            let packing = plan(&params, heads, cols);
            let (matrix, weights, expected) = operand(&client, &packing);
            let mut first = None;
            for server in &servers {
                let mut rng = SecureRng::from_seed([3; 32]);
                let result = packing.multiply(server, &[(&matrix, &weights)], &mut rng).unwrap();
                let share = client.decrypt_matrix(&packing, &result.0).unwrap();
                let t = packing.spec().t;
                assert!(share.iter().zip(&result.1).map(|(&c, &z)| t.add(c, z)).eq(expected.iter().copied()));
                assert!(*first.get_or_insert(result.clone()) == result, "{heads} heads");
            }
        }
    }

    #[test]
    fn small_weights_on_the_device_give_the_same() {
        let Fixture { servers, client } = fixture(&[(1 << 20, Capacity::new(2, 1 << 24))]);
        let packing = plan(client.context().params(), 1, 70);
        let (matrix, weights, _) = operand(&client, &packing);
        let server = &servers[0];
        let wide = packing.multiply(server, &[(&matrix, &weights)], &mut SecureRng::from_seed([3; 32])).unwrap();
        let small: Vec<i16> = weights.iter().map(|&w| w as i16).collect();
        let operand = Operand::small(server, &small).unwrap();
        let input = DeviceInput::upload(&packing, server, &matrix).unwrap();
        let mut graph = TaskGraph::new();
        let mut rng = SecureRng::from_seed([3; 32]);
        let product =
            Product::add(&mut graph, "p", &packing, server, vec![(input.clone(), operand)], &mut rng).unwrap();
        assert!(product.collect().is_err(), "nothing has run");
        server.context().scheduler().unwrap().run(graph).unwrap();
        assert!(product.collect().unwrap() == wide);

        let few = Operand::small(server, &small[1..]).unwrap();
        assert!(Product::add(&mut TaskGraph::new(), "p", &packing, server, vec![(input, few)], &mut rng).is_err());
    }

    /// The plan of a product of several batches has host and device busy at the same time, within the memory that there is.
    #[test]
    fn batches_overlap_in_the_plan() {
        let capacity = Capacity::new(1, 4 << 22);
        let Fixture { servers, client } = fixture(&[(1 << 20, capacity)]);
        let packing = plan(client.context().params(), 1, 6 * 32 * BLOCK);
        let (matrix, weights, _) = operand(&client, &packing);
        let input = DeviceInput::upload(&packing, &servers[0], &matrix).unwrap();
        let mut graph = TaskGraph::new();
        let mut rng = SecureRng::from_seed([3; 32]);
        let operands = vec![(input, Operand::Wide(&weights))];
        Product::add(&mut graph, "p", &packing, &servers[0], operands, &mut rng).unwrap();
        let plan = simulate(&graph, capacity).unwrap();
        assert!(plan.spans.len() == 5 * 6 && plan.peak_bytes <= capacity.bytes);
        let work: f64 = plan.spans.iter().map(|s| (s.end - s.start).as_secs_f64()).sum();
        let (device, cpu) = (plan.busy(Resource::Device), plan.busy(Resource::Cpu));
        assert!((device + cpu - work / plan.makespan.as_secs_f64()).abs() < 1e-6);
        // Only the last cut, and at most the first sample, has the device wait.
        assert!(device > 0.9 && device + cpu > 1.0, "device {device}, CPU {cpu}");
    }
}
