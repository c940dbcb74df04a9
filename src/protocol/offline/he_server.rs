//! The server's HE lane offline: linear maps and cross terms of the client's encrypted masks, masked, flooded and packed.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Instant,
};

use zeroize::Zeroizing;

use super::WINDOW;
use crate::{
    arith::sample::SecureRng,
    engine::schedule::{Demand, Job, ScheduleError, Slot, Task, TaskGraph, TaskId, Work},
    he::{HeError, HeServer as HeKeys},
    model::{EdgeId, NodeId, ServerWeights},
    packing::{CoefficientPacking, DeviceInput, EncryptedMatrix, Operand, Packing, Product},
    protocol::{
        HeItem, Machine, Message, Plan, ProtocolError, Result, ServerCorrelation, Turn, WorkSpan,
        he_plan::add_cross_term, operands::Operands, weights::linear_weights,
    },
};

/// Items in work at once: one less than the client has on their way, so that the next one has been sent when this side asks
/// for it, and a finished response never waits for the client.
const IN_WORK: usize = WINDOW - 1;

/// The server's machine of the HE lane.
///
/// What arrives is read and expanded at once; the products run as graphs of tasks on the device's scheduler, behind the
/// machine's back, while the next item arrives. Responses leave in the order of the items.
pub struct HeServer {
    plan: Arc<Plan>,
    correlation: Arc<ServerCorrelation>,
    weights: Arc<ServerWeights>,
    keys: Arc<HeKeys>,
    rng: SecureRng,
    /// Encrypted inputs of linear nodes and the last item that reads each.
    inputs: HashMap<(EdgeId, usize), DeviceInput>,
    last_use: HashMap<(EdgeId, usize), usize>,
    next: usize,
    in_work: VecDeque<InWork>,
    working: Option<NodeId>,
    finished: u64,
    spans: Vec<WorkSpan>,
}

/// An item whose tasks have been handed over.
struct InWork {
    item: usize,
    node: NodeId,
    start: Instant,
    job: Job<HeError>,
    responses: Arc<Slot<Vec<Vec<u8>>>>,
}

type Graph = TaskGraph<'static, HeError>;

impl HeServer {
    /// A machine that makes all HE items of the plan.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ServerCorrelation>,
        weights: Arc<ServerWeights>,
        keys: Arc<HeKeys>,
        rng: SecureRng,
    ) -> Self {
        let mut last_use = HashMap::new();
        for (item, (_, work)) in plan.he.iter().enumerate() {
            if let HeItem::Linear { inputs, rows, .. } = work {
                last_use.extend(inputs.iter().map(|&e| ((e, *rows), item)));
            }
        }
        Self {
            plan,
            correlation,
            weights,
            keys,
            rng,
            inputs: HashMap::new(),
            last_use,
            next: 0,
            in_work: VecDeque::new(),
            working: None,
            finished: 0,
            spans: Vec::new(),
        }
    }

    /// Reads an item's ciphertexts and hands its tasks over.
    fn start(&mut self, item: usize, matrices: Vec<Vec<u8>>) -> Result<()> {
        let plan = self.plan.clone();
        let (node, work) = &plan.he[item];
        self.working = Some(*node);
        let (mut graph, responses) = (Graph::new(), Arc::new(Slot::new()));
        match work {
            HeItem::Linear { inputs, rows, packing } => {
                self.add_linear(&mut graph, item, (inputs, *rows, packing), matrices, &responses)?;
            }
            HeItem::Product(_) => self.add_product(&mut graph, item, matrices, &responses)?,
        }
        let scheduler = self.keys.context().scheduler()?;
        let start = Instant::now();
        let job = scheduler.submit(graph).map_err(into_he_error)?;
        self.in_work.push_back(InWork { item, node: *node, start, job, responses });
        Ok(())
    }

    /// Waits for the oldest item.
    fn finish_oldest(&mut self) -> Result<Option<Message>> {
        let Some(InWork { item, node, start, job, responses }) = self.in_work.pop_front() else { return Ok(None) };
        self.working = Some(node);
        let schedule = job.wait().map_err(into_he_error)?;
        self.spans.extend(schedule.spans.into_iter().map(|span| WorkSpan { node, since: start, span }));
        self.finished += 1;
        let responses = responses.take().ok_or_else(|| wrong(item))?;
        Ok(Some(Message::HeResponse { item: item as u32, responses }))
    }

    fn add_linear(
        &mut self,
        graph: &mut Graph,
        item: usize,
        (inputs, rows, packing): (&[EdgeId], usize, &CoefficientPacking),
        matrices: Vec<Vec<u8>>,
        responses: &Arc<Slot<Vec<Vec<u8>>>>,
    ) -> Result<()> {
        let plan = self.plan.clone();
        let id = plan.he[item].0;
        let params = self.keys.context().params();
        let mut matrices = matrices.into_iter();
        for (&edge, layout) in inputs.iter().zip(packing.inputs()) {
            if let Entry::Vacant(slot) = self.inputs.entry((edge, rows)) {
                let bytes = matrices.next().ok_or_else(|| wrong(item))?;
                let matrix = EncryptedMatrix::from_bytes(params, layout, &bytes)?;
                slot.insert(DeviceInput::upload(packing, &self.keys, &matrix)?);
            }
        }
        if matrices.next().is_some() {
            return Err(wrong(item));
        }
        let view = linear_weights(&self.weights, &plan.graph, id)?;
        let mut operands = Vec::new();
        let mut row = 0;
        for &edge in inputs {
            let input = self.inputs.get(&(edge, rows)).ok_or_else(|| wrong(item))?;
            let inner = plan.graph.edge(edge).cols;
            let block = &view.weights[row * view.outputs..(row + inner) * view.outputs];
            operands.push((input.clone(), self.operand(block)?));
            row += inner;
        }
        let name = &plan.graph.node(id).name;
        let product = Product::add(graph, name, packing, &self.keys, operands, &mut self.rng)?;
        // Memory: an input's ciphertexts go with their last use.
        self.inputs.retain(|key, _| self.last_use.get(key).is_some_and(|&last| last > item));

        let (correlation, keys, packing) = (self.correlation.clone(), self.keys.clone(), packing.clone());
        let responses = responses.clone();
        let task = self.writing(name, &[&packing], product.tasks());
        graph.add(task, move || {
            let (response, mask) = product.collect()?;
            correlation.put_linear(id, mask);
            responses.put(vec![packing.write_response(keys.context().params(), &response)]);
            Ok(())
        });
        Ok(())
    }

    /// Weights of a linear node: 16 bits each and expanded on the device, or wider where somebody quantised them so.
    fn operand(&self, weights: &[i32]) -> Result<Operand<'static>> {
        let narrow = weights.iter().map(|&w| i16::try_from(w).ok()).collect::<Option<Vec<i16>>>();
        Ok(match narrow {
            Some(small) => Operand::small(&self.keys, &small)?,
            None => Operand::Secret(Arc::new(Zeroizing::new(weights.iter().map(|&w| w as i64).collect()))),
        })
    }

    fn add_product(
        &mut self,
        graph: &mut Graph,
        item: usize,
        matrices: Vec<Vec<u8>>,
        responses: &Arc<Slot<Vec<Vec<u8>>>>,
    ) -> Result<()> {
        let plan = self.plan.clone();
        let (id, HeItem::Product(terms)) = &plan.he[item] else { return Err(wrong(item)) };
        let id = *id;
        let model = &plan.graph;
        let node = model.node(id);
        let operands = Operands::of(model, id)?;
        if matrices.len() != terms.len() {
            return Err(wrong(item));
        }
        let masks = operands.masks(model, &mut self.rng);
        let params = self.keys.context().params();
        let mut products = Vec::new();
        for (number, ((terms, packing), bytes)) in terms.iter().zip(matrices).enumerate() {
            let matrix = EncryptedMatrix::from_bytes(params, &packing.inputs()[0], &bytes)?;
            let t = packing.spec().t;
            let mut operand = Zeroizing::new(Vec::new());
            for term in terms {
                let (mask, edge) = if term.operand_left {
                    (&masks.left_mask, operands.left.edge)
                } else {
                    (&masks.right_mask, operands.right.unwrap_or(operands.left).edge)
                };
                let edge = model.edge(edge);
                let cut = Zeroizing::new(term.operand.take(mask, edge.rows, edge.cols));
                operand.extend(cut.iter().map(|&x| t.to_signed(x)));
            }
            let input = DeviceInput::upload(packing, &self.keys, &matrix)?;
            let operands = vec![(input, Operand::Secret(Arc::new(operand)))];
            let name = format!("{} term {number}", node.name);
            products.push(Product::add(graph, &name, packing, &self.keys, operands, &mut self.rng)?);
        }
        self.correlation.put_masks(id, masks);

        let packings: Vec<&CoefficientPacking> = terms.iter().map(|(_, packing)| packing).collect();
        let task = self.writing(&node.name, &packings, products.iter().flat_map(Product::tasks).collect());
        let (correlation, keys, responses, plan) =
            (self.correlation.clone(), self.keys.clone(), responses.clone(), self.plan.clone());
        graph.add(task, move || {
            let (model, HeItem::Product(terms)) = (&plan.graph, &plan.he[item].1) else { return Ok(()) };
            let mut written = Vec::with_capacity(terms.len());
            for ((terms, packing), product) in terms.iter().zip(&products) {
                let (response, z) = product.collect()?;
                let z = Zeroizing::new(z);
                let (rows, cols) = (packing.spec().rows, packing.spec().cols);
                correlation.with_product(id, model.edge(model.node(id).output).len(), |sum| {
                    for (term, part) in terms.iter().zip(z.chunks_exact(rows * cols)) {
                        add_cross_term(model, id, term, part, cols, sum);
                    }
                });
                written.push(packing.write_response(keys.context().params(), &response));
            }
            responses.put(written);
            Ok(())
        });
        Ok(())
    }

    /// The task that writes an item's responses once its products are done.
    fn writing(&self, name: &str, packings: &[&CoefficientPacking], after: Vec<TaskId>) -> Task {
        let bytes = packings.iter().map(|p| p.counts().bytes_down).sum();
        let seconds = self.keys.context().estimate(Work { samples: bytes / 16, ..Work::default() });
        Task::new(format!("{name}: write"), Demand::threads(1)).seconds(seconds).bytes(bytes).after(after)
    }
}

fn into_he_error(error: ScheduleError<HeError>) -> HeError {
    error.into_source(|detail| HeError::Task { detail })
}

fn wrong(item: usize) -> ProtocolError {
    ProtocolError::Mismatch { detail: format!("encrypted shares of HE item {item}") }
}

impl Machine for HeServer {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        if let Some(message) = incoming {
            let found = message.name();
            let (item, matrices) = match message {
                Message::HeUpload { item, matrices }
                    if item as usize == self.next && self.next < self.plan.he.len() =>
                {
                    (self.next, matrices)
                }
                _ => {
                    let expected = "the encrypted shares of the next item";
                    return Err(ProtocolError::Unexpected { lane: "server HE lane", expected, found });
                }
            };
            self.start(item, matrices)?;
            self.next += 1;
        }
        if self.next < self.plan.he.len() && self.in_work.len() < IN_WORK {
            return Ok(Turn::Receive);
        }
        Ok(self.finish_oldest()?.map_or(Turn::Done, Turn::Send))
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        (self.finished, self.plan.he.len() as u64)
    }

    fn take_spans(&mut self) -> Vec<WorkSpan> {
        std::mem::take(&mut self.spans)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        engine::{cpu::CpuBackend, schedule::Capacity},
        he::BfvContext,
        protocol::{ClientCorrelation, HeClient, KEY_BLOCK, MemoryTables, parameter_set, tests::Parties},
    };

    /// What a machine did: a letter a turn, and what it sent.
    struct Run {
        turns: String,
        sent: Vec<Message>,
    }

    /// The server's shares, by node.
    fn kept(correlation: &ServerCorrelation) -> [BTreeMap<usize, Vec<u64>>; 2] {
        let export = correlation.export();
        [&export.linear, &export.products].map(|list| list.iter().map(|(node, x)| (node.0, x.clone())).collect())
    }

    fn step(machine: &mut dyn Machine, incoming: Option<Message>, run: &mut Run) {
        let turn = machine.advance(incoming).unwrap();
        run.turns.push_str(&format!("{turn:?}")[..1]);
        if let Turn::Send(message) = turn {
            run.sent.push(message);
        }
    }

    /// Messages, their bytes and the order of turns are the same whatever the scheduler has to work with, and with uploads that
    /// come one by one or all ahead.
    #[test]
    fn messages_do_not_depend_on_the_schedule() {
        let parties = Parties::new(8);
        let mut rng = SecureRng::from_seed([5; 32]);
        let public = parties.client_keys.public_key(&mut rng).unwrap();
        let galois = parties.client_keys.galois_keys(KEY_BLOCK, &mut rng).unwrap();
        let plan = &parties.plan;
        let machine = |tile: usize, capacity: Capacity| {
            let backend = Arc::new(CpuBackend::new(None));
            let context = BfvContext::with_limits(backend, parameter_set().unwrap(), tile, capacity);
            let keys = HeKeys::new(context, &public, Some(&galois)).unwrap();
            let mut rng = SecureRng::from_seed([6; 32]);
            let correlation = Arc::new(ServerCorrelation::draw([1; 16], &mut rng));
            let machine =
                HeServer::new(plan.clone(), correlation.clone(), parties.weights.clone(), Arc::new(keys), rng);
            (machine, correlation)
        };

        // The client beside the first server, one turn each.
        let (mut server, first) = machine(1 << 22, Capacity { device: 0, threads: 1, link: 0, bytes: 0 });
        let tables = Box::new(MemoryTables::default());
        let correlation = Arc::new(ClientCorrelation::draw([1; 16], &plan.graph, tables, &mut rng));
        let mut client = HeClient::new(plan.clone(), correlation, parties.client_keys.clone(), rng.fork());
        let mut up = Run { turns: String::new(), sent: Vec::new() };
        let mut down = Run { turns: String::new(), sent: Vec::new() };
        let mut read = [0; 2];
        while !(up.turns.ends_with('D') && down.turns.ends_with('D')) {
            for side in 0..2 {
                let (machine, run, inbox): (&mut dyn Machine, _, _) = match side {
                    0 => (&mut client, &mut up, &down.sent),
                    _ => (&mut server, &mut down, &up.sent),
                };
                let receives = run.turns.ends_with('R');
                let incoming = inbox.get(read[side]).filter(|_| receives).cloned();
                if run.turns.ends_with('D') || receives && incoming.is_none() {
                    continue;
                }
                read[side] += incoming.is_some() as usize;
                step(machine, incoming, run);
            }
        }
        assert_eq!((up.sent.len(), down.sent.len()), (plan.he.len(), plan.he.len()));
        assert!(down.turns.starts_with("RRS"), "two items are in work: {}", down.turns);
        assert!(server.take_spans().len() > 5 * plan.he.len() && server.take_spans().is_empty());

        for capacity in [Capacity::new(3, 1 << 23), Capacity::new(1, u64::MAX)] {
            let (mut server, correlation) = machine(1 << 20, capacity);
            let mut again = Run { turns: String::new(), sent: Vec::new() };
            let mut uploads = up.sent.iter().cloned();
            step(&mut server, None, &mut again);
            while !again.turns.ends_with('D') {
                let incoming = if again.turns.ends_with('R') { uploads.next() } else { None };
                step(&mut server, incoming, &mut again);
            }
            assert_eq!(again.turns, down.turns);
            assert!(again.sent == down.sent);
            assert!(kept(&correlation) == kept(&first));
        }
    }
}
