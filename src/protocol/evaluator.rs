//! The server's homomorphic work: linear maps and cross terms of the client's encrypted shares, masked, flooded and packed, in
//! whichever phase.
//!
//! What arrives is read and expanded at once; the products run as graphs of tasks on the device's scheduler, behind the back of
//! the machine that asks for them.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Instant,
};

use zeroize::Zeroizing;

use super::{
    HeInput, HeItem, HePhase, KeySets, Plan, ProtocolError, Result, SecretVec, WorkSpan, he_plan::add_cross_term,
    operands::Operands, weights::linear_weights,
};
use crate::{
    arith::sample::SecureRng,
    engine::schedule::{Demand, Job, ScheduleError, Slot, Task, TaskGraph, TaskId, Work},
    he::{HeError, HeServer as HeKeys},
    model::{NodeId, ServerWeights},
    packing::{LoadedInput, Packing, PendingProduct, PreparedWeights},
};

/// A client's keys, and the ciphertexts of one inference.
pub struct Evaluator {
    plan: Arc<Plan>,
    weights: Arc<ServerWeights>,
    keys: KeySets<HeKeys>,
    rng: SecureRng,
    /// Encrypted inputs of linear nodes, and how many items are still to read each.
    inputs: HashMap<HeInput, LoadedInput>,
    readers: HashMap<HeInput, usize>,
    /// Encrypted operands of products whose work has not begun, by item.
    operands: HashMap<usize, Vec<LoadedInput>>,
    /// Weights that were made ready ahead of time, by item.
    prepared: HashMap<usize, PreparedWeights>,
    in_work: VecDeque<InWork>,
    spans: Vec<WorkSpan>,
}

/// An item whose tasks have been handed over.
struct InWork {
    item: usize,
    node: NodeId,
    start: Instant,
    job: Job<HeError>,
    result: Arc<Slot<Evaluated>>,
}

/// What an item came to.
pub struct Evaluated {
    /// Which one.
    pub item: usize,
    /// Its node.
    pub node: NodeId,
    /// Ciphertexts for the client.
    pub responses: Vec<Vec<u8>>,
    /// The server's part, in the shape and ring of the node's output; of several inferences one after the other.
    pub share: SecretVec,
}

type Graph = TaskGraph<'static, HeError>;

impl Evaluator {
    /// One that has got nothing yet.
    pub fn new(plan: Arc<Plan>, weights: Arc<ServerWeights>, keys: KeySets<HeKeys>, rng: SecureRng) -> Self {
        let mut readers = HashMap::new();
        for (_, work) in &plan.he {
            if let HeItem::Linear(inputs, _) = work {
                inputs.iter().for_each(|input| *readers.entry(*input).or_insert(0) += 1);
            }
        }
        Self {
            plan,
            weights,
            keys,
            rng,
            inputs: HashMap::new(),
            readers,
            operands: HashMap::new(),
            prepared: HashMap::new(),
            in_work: VecDeque::new(),
            spans: Vec::new(),
        }
    }

    /// Items in work.
    pub fn in_work(&self) -> usize {
        self.in_work.len()
    }

    /// Tasks that have ended since the last call.
    pub fn take_spans(&mut self) -> Vec<WorkSpan> {
        std::mem::take(&mut self.spans)
    }

    /// Gets the weights of all items ready whose linear maps are computed online.
    ///
    /// # Errors
    /// Weights that do not fit the graph, or a failing device.
    pub fn prepare(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        for (item, (id, work)) in plan.he.iter().enumerate() {
            if let HeItem::Linear(_, packing) = work
                && work.phase(&plan.settings) == HePhase::Online
            {
                let prepared = self.weights(*id, work, &**packing)?;
                self.prepared.insert(item, prepared);
            }
        }
        Ok(())
    }

    /// Reads what the client has encrypted for an item.
    ///
    /// # Errors
    /// Another number of matrices than are missing, or bytes that are not ciphertexts.
    pub fn load(&mut self, item: usize, matrices: Vec<Vec<u8>>) -> Result<()> {
        let plan = self.plan.clone();
        let keys = self.keys.get(plan.he[item].1.set())?;
        let mut matrices = matrices.into_iter();
        let mut read = |packing: &dyn Packing, index: usize| -> Result<LoadedInput> {
            let bytes = matrices.next().ok_or_else(|| wrong(item))?;
            let ciphertexts = packing.read_input(keys.context().params(), index, &bytes)?;
            Ok(packing.load_input(keys, index, Arc::new(ciphertexts))?)
        };
        match &plan.he[item].1 {
            HeItem::Linear(inputs, packing) => {
                for (index, input) in inputs.iter().enumerate() {
                    if let Entry::Vacant(slot) = self.inputs.entry(*input) {
                        slot.insert(read(&**packing, index)?);
                    }
                }
            }
            HeItem::Product(terms, _) => {
                let loaded = terms.iter().map(|(_, packing)| read(&**packing, 0)).collect::<Result<Vec<_>>>()?;
                self.operands.insert(item, loaded);
            }
        }
        if matrices.next().is_some() {
            return Err(wrong(item));
        }
        Ok(())
    }

    /// Hands the tasks of a linear item over, once its inputs are loaded.
    ///
    /// # Errors
    /// Inputs that have not come, or a failing device.
    pub fn start_linear(&mut self, item: usize) -> Result<()> {
        let plan = self.plan.clone();
        let (id, work) = &plan.he[item];
        let HeItem::Linear(inputs, packing) = work else { return Err(wrong(item)) };
        let (id, keys) = (*id, self.keys.get(work.set())?.clone());
        let loaded = inputs.iter().map(|input| self.inputs.get(input).cloned().ok_or_else(|| wrong(item)));
        let loaded = loaded.collect::<Result<Vec<_>>>()?;
        let weights = match self.prepared.remove(&item) {
            Some(prepared) => prepared,
            None => self.weights(id, work, &**packing)?,
        };
        let node = plan.graph.node(id);
        let mut graph = Graph::new();
        let product = packing.add(&mut graph, &node.name, &keys, &loaded, &weights, &mut self.rng)?;
        // Memory: an input's ciphertexts go with their last reader.
        for input in inputs {
            let left = self.readers.get_mut(input).map_or(0, |left| {
                *left = left.saturating_sub(1);
                *left
            });
            if left == 0 {
                self.inputs.remove(input);
            }
        }
        let ring = plan.graph.edge(node.output).ring;
        let result = Arc::new(Slot::new());
        let task = writing(&keys, &node.name, [&**packing].into_iter(), product.tasks());
        let (packing, out) = (packing.clone(), result.clone());
        graph.add(task, move || {
            let (response, mask) = product.collect()?;
            let mask = Zeroizing::new(mask);
            // In the ring of the inputs; the output's is at most as wide.
            let share = SecretVec::new(mask.iter().map(|&z| ring.reduce(z)).collect());
            let responses = vec![packing.write_output(&response)];
            out.put(Evaluated { item, node: id, responses, share });
            Ok(())
        });
        self.submit(&keys, (item, id), graph, result)
    }

    /// The blocks of a linear node's matrix, as its packing wants them.
    fn weights(&self, id: NodeId, work: &HeItem, packing: &dyn Packing) -> Result<PreparedWeights> {
        let view = linear_weights(&self.weights, &self.plan.graph, id)?;
        let weights = Zeroizing::new(view.weights.iter().map(|&w| i64::from(w)).collect::<Vec<i64>>());
        let mut rest: &[i64] = &weights;
        let mut blocks = Vec::new();
        for inner in &packing.spec().inner {
            let (block, tail) = rest.split_at_checked(inner * view.outputs).unwrap_or((rest, &[]));
            blocks.push(block);
            rest = tail;
        }
        Ok(packing.prepare_weights(self.keys.get(work.set())?, &blocks)?)
    }

    /// Hands the tasks of a product's cross terms over, once its operands are loaded: the client's right operand times `left`,
    /// and its left operand times `right`, which are in the shapes of the node's operands.
    ///
    /// # Errors
    /// Operands that have not come, or a failing device.
    pub fn start_product(&mut self, item: usize, left: &[u64], right: &[u64]) -> Result<()> {
        let plan = self.plan.clone();
        let (id, HeItem::Product(terms, set)) = &plan.he[item] else { return Err(wrong(item)) };
        let (id, keys) = (*id, self.keys.get(*set)?.clone());
        let node = plan.graph.node(id);
        let operands = Operands::of(&plan.graph, id)?;
        let loaded = self.operands.remove(&item).ok_or_else(|| wrong(item))?;
        let mut graph = Graph::new();
        let mut products: Vec<PendingProduct> = Vec::new();
        for (number, ((terms, packing), input)) in terms.iter().zip(loaded).enumerate() {
            let t = packing.spec().t;
            let mut operand = Zeroizing::new(Vec::new());
            for term in terms {
                let (share, id) = match operands.right.filter(|_| !term.operand_left) {
                    Some(other) => (right, other.edge),
                    None => (left, operands.left.edge),
                };
                let edge = plan.graph.edge(id);
                let cut = Zeroizing::new(term.operand.take(share, edge.rows, edge.cols));
                operand.extend(cut.iter().map(|&x| t.to_signed(x)));
            }
            let weights = packing.prepare_weights(&keys, &[&operand])?;
            let name = format!("{} term {number}", node.name);
            products.push(packing.add(&mut graph, &name, &keys, &[input], &weights, &mut self.rng)?);
        }
        let after = products.iter().flat_map(PendingProduct::tasks).collect();
        let task = writing(&keys, &node.name, terms.iter().map(|(_, packing)| &**packing), after);
        let result = Arc::new(Slot::new());
        let (out, plan) = (result.clone(), plan.clone());
        graph.add(task, move || {
            let (model, HeItem::Product(terms, _)) = (&plan.graph, &plan.he[item].1) else { return Ok(()) };
            let mut responses = Vec::with_capacity(terms.len());
            let mut share = SecretVec::new(vec![0; model.edge(model.node(id).output).len()]);
            for ((terms, packing), product) in terms.iter().zip(&products) {
                let (response, z) = product.collect()?;
                let z = Zeroizing::new(z);
                let (rows, cols) = (packing.spec().rows, packing.spec().cols);
                for (term, part) in terms.iter().zip(z.chunks_exact(rows * cols)) {
                    add_cross_term(model, id, term, part, cols, &mut share);
                }
                responses.push(packing.write_output(&response));
            }
            out.put(Evaluated { item, node: id, responses, share });
            Ok(())
        });
        self.submit(&keys, (item, id), graph, result)
    }

    /// Waits for the oldest item in work, if there is one.
    ///
    /// # Errors
    /// What its tasks report.
    pub fn finish_oldest(&mut self) -> Result<Option<Evaluated>> {
        let Some(InWork { item, node, start, job, result }) = self.in_work.pop_front() else { return Ok(None) };
        let schedule = job.wait().map_err(into_he_error)?;
        self.spans.extend(schedule.spans.into_iter().map(|span| WorkSpan { node, since: start, span }));
        Ok(Some(result.take().ok_or_else(|| wrong(item))?))
    }

    fn submit(
        &mut self,
        keys: &HeKeys,
        (item, node): (usize, NodeId),
        graph: Graph,
        result: Arc<Slot<Evaluated>>,
    ) -> Result<()> {
        let scheduler = keys.context().scheduler()?;
        let start = Instant::now();
        let job = scheduler.submit(graph).map_err(into_he_error)?;
        self.in_work.push_back(InWork { item, node, start, job, result });
        Ok(())
    }
}

/// The task that writes an item's responses once its products are done.
fn writing<'a>(keys: &HeKeys, name: &str, packings: impl Iterator<Item = &'a dyn Packing>, after: Vec<TaskId>) -> Task {
    let bytes = packings.map(|p| p.counts().bytes_down).sum();
    let seconds = keys.context().estimate(Work { samples: bytes / 16, ..Work::default() });
    Task::new(format!("{name}: write"), Demand::threads(1)).seconds(seconds).bytes(bytes).after(after)
}

fn into_he_error(error: ScheduleError<HeError>) -> HeError {
    error.into_source(|detail| HeError::Task { detail })
}

fn wrong(item: usize) -> ProtocolError {
    ProtocolError::Mismatch { detail: format!("encrypted shares of HE item {item}") }
}
