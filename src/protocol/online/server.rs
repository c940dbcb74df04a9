//! The server online: plain integer linear algebra on its shares, labels and masked operands down, stage by stage.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    bilinear::bilinear,
    client::{garbled_nodes, no_keys},
    shared::SharedTasks,
};
use crate::{
    model::{EdgeId, NodeId, Op},
    mpc::{
        block::blocks_as_bytes,
        garble::{
            GadgetError,
            half_gates::{Garbling, LabelSeed},
        },
        shared::Role,
    },
    protocol::{
        CotPools, Evaluator, Machine, Message, OnlineWeights, OtPlan, OtServer, Plan, ProtocolError, Result, SecretVec,
        ServerCorrelation, SharedPlan, Turn, WorkSpan, gate_key,
        operands::{Operand, Operands},
        pack_ring, row_sums, shifted, unpack_ring,
    },
};

/// What is to be sent within a stage.
#[derive(Clone, Copy)]
enum Outgoing {
    Chunk(NodeId, usize),
    Operands(NodeId),
    /// Ciphertexts of an HE item.
    Responses(NodeId, usize),
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    Stage,
    Uploads,
    Sending,
    Waiting,
    Opening,
    Done,
}

/// The server's machine of the online phase.
pub struct OnlineServer {
    plan: Arc<Plan>,
    correlation: Arc<ServerCorrelation>,
    weights: Arc<OnlineWeights>,
    shares: Vec<Option<SecretVec>>,
    garbling: Option<OtServer>,
    /// For what is done homomorphically online.
    evaluator: Option<Evaluator>,
    stage: usize,
    stages_prepared: usize,
    /// HE items of the stage whose ciphertexts are still to come.
    uploads: VecDeque<(NodeId, usize)>,
    /// The server's shares of what was computed homomorphically, until the client's are restored.
    unrestored: HashMap<NodeId, SecretVec>,
    outgoing: VecDeque<Outgoing>,
    waiting: VecDeque<NodeId>,
    tasks: SharedTasks<Vec<u64>>,
    pools: Option<CotPools>,
    current: Option<NodeId>,
    state: State,
}

impl OnlineServer {
    /// Starts an inference on a finished correlation; `interleaved` as at the client. `evaluator` comes from the offline phase
    /// where something is done homomorphically online.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ServerCorrelation>,
        weights: Arc<OnlineWeights>,
        interleaved: Option<OtServer>,
        evaluator: Option<Evaluator>,
    ) -> Self {
        let shares = plan.graph.edges.iter().map(|_| None).collect();
        Self {
            tasks: SharedTasks::new(),
            pools: correlation.take_pools(),
            plan,
            correlation,
            weights,
            shares,
            garbling: interleaved,
            evaluator,
            uploads: VecDeque::new(),
            unrestored: HashMap::new(),
            stage: 0,
            stages_prepared: 0,
            outgoing: VecDeque::new(),
            waiting: VecDeque::new(),
            current: None,
            state: State::Start,
        }
    }

    /// The server's share of an edge, once it is there; for the edge-by-edge comparison with the oracle.
    #[cfg(test)]
    pub(crate) fn share_of(&self, edge: EdgeId) -> Option<&[u64]> {
        self.shares[edge.0].as_deref()
    }

    fn share(&self, edge: EdgeId) -> Result<&SecretVec> {
        self.shares[edge.0].as_ref().ok_or_else(|| ProtocolError::Missing {
            what: format!("the server's share of {}", self.plan.graph.edge(edge).name),
        })
    }

    fn on_input(&mut self, embedding: &[u8], pool: &[u8]) -> Result<()> {
        self.correlation.spend()?;
        let graph = &self.plan.graph;
        let unpack = |id: EdgeId, bytes: &[u8]| unpack_ring(bytes, graph.edge(id).len(), graph.edge(id).ring);
        let (first, second) = (unpack(graph.embedding, embedding)?, graph.pool.map(|id| unpack(id, pool)).transpose()?);
        self.shares[graph.embedding.0] = Some(SecretVec::new(first));
        if let (Some(id), Some(values)) = (graph.pool, second) {
            self.shares[id.0] = Some(SecretVec::new(values));
        }
        Ok(())
    }

    /// Local nodes of a stage, and the list of what its interactive nodes send.
    fn enter_stage(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        let stage = &plan.graph.stages[self.stage];
        for &id in &stage.local {
            self.current = Some(id);
            let node = plan.graph.node(id);
            let out = plan.graph.edge(node.output);
            let share = match &node.op {
                Op::RowSum { input } => {
                    let edge = plan.graph.edge(*input);
                    row_sums(self.share(*input)?, edge.cols, edge.ring)
                }
                Op::ShiftLeft { input, bits } => shifted(self.share(*input)?, *bits, out.ring),
                Op::Linear { .. } => {
                    // `c = R W - Z` is reduced by the client to the narrower ring of the output; so is this side.
                    let mask = self.correlation.take_linear(id)?;
                    self.plain_part(id)?.iter().zip(mask.iter()).map(|(&x, &z)| out.ring.add(x, z)).collect()
                }
                _ => return Err(ProtocolError::Mismatch { detail: format!("{} is not local", node.name) }),
            };
            self.shares[node.output.0] = Some(SecretVec::new(share));
        }
        for &id in &stage.interactive {
            if let Some((item, encrypted_online)) = plan.he_online(id) {
                if encrypted_online {
                    self.uploads.push_back((id, item));
                } else {
                    self.start_item(id, item)?;
                }
                self.outgoing.push_back(Outgoing::Responses(id, item));
                self.waiting.push_back(id);
                continue;
            }
            match plan.ot(id) {
                Some(OtPlan::Shared(s)) => {
                    self.start_shared(id, s)?;
                    continue;
                }
                Some(OtPlan::Garbled(g)) => self.outgoing.extend((0..g.chunks()).map(|c| Outgoing::Chunk(id, c))),
                _ => self.outgoing.push_back(Outgoing::Operands(id)),
            }
            self.waiting.push_back(id);
        }
        Ok(())
    }

    /// What this side computes on its shares alone: a linear map with its bias, or a product.
    fn plain_part(&self, id: NodeId) -> Result<SecretVec> {
        let graph = &self.plan.graph;
        let (node, ring) = (graph.node(id), graph.edge(graph.node(id).output).ring);
        let part = match &node.op {
            Op::Linear { inputs, .. } => {
                let parts = inputs.iter().map(|&e| Ok((e, &**self.share(e)?))).collect::<Result<Vec<_>>>()?;
                self.weights.linear(graph, id, &parts)?
            }
            _ => {
                let Operands { left, right } = Operands::of(graph, id)?;
                bilinear(graph, id, self.share(left.edge)?, self.share(right.unwrap_or(left).edge)?)?
            }
        };
        Ok(SecretVec::new(part.into_iter().map(|x| ring.reduce(x)).collect()))
    }

    /// Hands over the homomorphic work of an item whose ciphertexts are loaded.
    fn start_item(&mut self, id: NodeId, item: usize) -> Result<()> {
        let mut evaluator = self.evaluator.take().ok_or_else(no_keys)?;
        match self.plan.graph.node(id).op {
            Op::Linear { .. } => evaluator.start_linear(item)?,
            _ => {
                let Operands { left, right } = Operands::of(&self.plan.graph, id)?;
                evaluator.start_product(item, self.share(left.edge)?, self.share(right.unwrap_or(left).edge)?)?;
            }
        }
        self.evaluator = Some(evaluator);
        Ok(())
    }

    /// Ciphertexts for the client; this side's share waits for the restored one.
    fn responses(&mut self, id: NodeId, item: usize) -> Result<Message> {
        let mut share = self.plain_part(id)?;
        let evaluated = self.evaluator.as_mut().ok_or_else(no_keys)?.finish_oldest()?;
        let evaluated = evaluated
            .filter(|e| e.item == item)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the product of node {}", id.0) })?;
        let graph = &self.plan.graph;
        let ring = graph.edge(graph.node(id).output).ring;
        share.iter_mut().zip(evaluated.share.iter()).for_each(|(s, &z)| *s = ring.add(*s, z));
        self.unrestored.insert(id, share);
        Ok(Message::HeResponse { item: item as u32, responses: evaluated.responses })
    }

    fn start_shared(&mut self, id: NodeId, shared: &SharedPlan) -> Result<()> {
        let plan = self.plan.clone();
        let node = plan.graph.node(id);
        self.shares[node.output.0] = Some(SecretVec::new(vec![0; plan.graph.edge(node.output).len()]));
        for chunk in 0..shared.chunks() {
            let share = self.share(node.op.inputs()[0])?[shared.chunk(chunk)].to_vec();
            let party = shared.party(Role::Server, &self.correlation.session, id, chunk, &mut self.pools)?;
            let task = shared.function.server(party, share)?;
            self.tasks.start((id, chunk), task)?;
        }
        self.take_finished()
    }

    /// Puts the results of shared layers where they belong.
    fn take_finished(&mut self) -> Result<()> {
        for ((id, chunk), share) in self.tasks.finished.drain(..) {
            let share = Zeroizing::new(share);
            let range = self.plan.shared(id)?.chunk(chunk);
            let output = self.plan.graph.node(id).output;
            let place =
                self.shares[output.0].as_mut().and_then(|s| s.get_mut(range)).filter(|p| p.len() == share.len());
            let place = place.ok_or_else(|| ProtocolError::Missing { what: format!("the result of node {}", id.0) })?;
            place.copy_from_slice(&share);
        }
        Ok(())
    }

    /// Labels of this side's input bits, the rounding offset added.
    fn labels(&self, id: NodeId, chunk: usize) -> Result<Message> {
        let plan = self.plan.garbled(id)?;
        let Op::Garbled { input, .. } = self.plan.graph.node(id).op else {
            return Err(ProtocolError::Mismatch { detail: format!("node {} is not garbled", id.0) });
        };
        let range = plan.chunk(chunk);
        let share = self.share(input)?;
        let wrong = |e: GadgetError| ProtocolError::Garble(e.to_string());
        let bits = Zeroizing::new(plan.gadget.garbler_bits(&share[plan.elements(chunk)]).map_err(wrong)?);
        let key = gate_key(&self.correlation.session, id, range.start);
        let secrets = &self.correlation.secrets;
        let seed = LabelSeed::new(secrets.label_seed);
        let labels = Garbling::new(plan.gadget.circuit(), secrets.delta, key, &seed)
            .and_then(|g| g.garbler_labels(&bits, range.len()))
            .map_err(|e| ProtocolError::Garble(e.to_string()))?;
        Ok(Message::Labels { node: id.0 as u32, chunk: chunk as u32, labels: blocks_as_bytes(&labels).to_vec() })
    }

    fn masked(&self, id: NodeId) -> Result<Message> {
        let graph = &self.plan.graph;
        let operands = Operands::of(graph, id)?;
        let mask = |x: Operand, mask: &[u64]| -> Result<Vec<u8>> {
            let share = self.share(x.edge)?;
            let masked: Vec<u64> =
                share.iter().zip(mask).map(|(&share, &m)| x.ring.sub(x.ring.reduce(share), m)).collect();
            Ok(pack_ring(&masked, x.ring))
        };
        self.correlation.with_masks(id, |m| {
            let right = operands.right.map(|x| mask(x, &m.right_mask)).transpose()?;
            Ok(Message::Masked {
                node: id.0 as u32,
                left: mask(operands.left, &m.left_mask)?,
                right: right.unwrap_or_default(),
            })
        })?
    }

    fn on_colours(&mut self, id: NodeId, colours: &[u8]) -> Result<()> {
        let plan = self.plan.garbled(id)?;
        let mut share = Vec::with_capacity(plan.instances * plan.gadget.cols());
        let mut rest = colours;
        for chunk in 0..plan.chunks() {
            let permute = self.correlation.take_permute((id, chunk))?;
            let wrong = || ProtocolError::Mismatch { detail: format!("colour bits of node {}", id.0) };
            let (bytes, tail) = rest.split_at_checked(permute.len()).ok_or_else(wrong)?;
            rest = tail;
            share.extend(
                plan.gadget
                    .output_shares(bytes, &permute, plan.chunk(chunk).len())
                    .map_err(|e| ProtocolError::Garble(e.to_string()))?,
            );
        }
        if !rest.is_empty() {
            return Err(ProtocolError::Mismatch { detail: format!("colour bits of node {}", id.0) });
        }
        let output = self.plan.graph.node(id).output;
        self.shares[output.0] = Some(SecretVec::new(share));
        Ok(())
    }

    fn on_restored(&mut self, id: NodeId, share: &[u8]) -> Result<()> {
        let graph = &self.plan.graph;
        let output = graph.node(id).output;
        let edge = graph.edge(output);
        let theirs = unpack_ring(share, edge.len(), edge.ring)?;
        let mut sum = match self.unrestored.remove(&id) {
            Some(share) => share,
            None => {
                let mut sum = self.plain_part(id)?;
                let offline = self.correlation.take_product(id)?;
                // The masks have served.
                drop(self.correlation.take_masks(id)?);
                sum.iter_mut().zip(offline.iter()).for_each(|(s, &o)| *s = edge.ring.add(*s, edge.ring.reduce(o)));
                sum
            }
        };
        sum.iter_mut().zip(&theirs).for_each(|(s, &t)| *s = edge.ring.add(*s, t));
        self.shares[output.0] = Some(sum);
        Ok(())
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        let found = message.name();
        let unexpected = |expected| ProtocolError::Unexpected { lane: "online server", expected, found };
        match (self.state, message) {
            (State::Start, Message::Input { embedding, pool }) => {
                self.state = State::Stage;
                self.on_input(&embedding, &pool)
            }
            (State::Start, _) => Err(unexpected("masked inputs")),
            (State::Uploads, message) => match (self.uploads.pop_front(), message) {
                (Some((id, item)), Message::HeUpload { item: i, matrices }) if i as usize == item => {
                    self.current = Some(id);
                    self.evaluator.as_mut().ok_or_else(no_keys)?.load(item, matrices)?;
                    self.start_item(id, item)
                }
                _ => Err(unexpected("the encrypted shares of the next item")),
            },
            (State::Waiting, Message::Shared { node, chunk, payload }) => {
                self.current = Some(self.tasks.deliver(node, chunk, payload)?);
                self.take_finished()
            }
            (State::Waiting, message) => match (self.waiting.pop_front(), message) {
                (Some(id), Message::Colours { node, bits }) if node as usize == id.0 => {
                    self.current = Some(id);
                    self.on_colours(id, &bits)
                }
                (Some(id), Message::Restored { node, share }) if node as usize == id.0 => {
                    self.current = Some(id);
                    self.on_restored(id, &share)
                }
                _ => Err(unexpected("the reply of the next node")),
            },
            _ => Err(unexpected("nothing yet")),
        }
    }
}

impl Machine for OnlineServer {
    fn advance(&mut self, mut incoming: Option<Message>) -> Result<Turn> {
        loop {
            match self.state {
                State::Start => match incoming.take() {
                    Some(message) => self.receive(message)?,
                    None => return Ok(Turn::Receive),
                },
                State::Stage => {
                    if self.stage == self.plan.graph.stages.len() {
                        self.state = State::Opening;
                        continue;
                    }
                    if let Some(ot) = &mut self.garbling {
                        if self.stages_prepared == self.stage {
                            ot.enqueue(garbled_nodes(&self.plan, self.stage));
                            self.stages_prepared += 1;
                        }
                        match ot.advance(incoming.take())? {
                            Turn::Done => {}
                            turn => {
                                self.current = ot.node();
                                return Ok(turn);
                            }
                        }
                    }
                    self.enter_stage()?;
                    self.state = State::Uploads;
                }
                State::Uploads => {
                    if let Some(message) = incoming.take() {
                        self.receive(message)?;
                    }
                    if !self.uploads.is_empty() {
                        return Ok(Turn::Receive);
                    }
                    self.state = State::Sending;
                }
                State::Sending => match self.outgoing.pop_front() {
                    Some(Outgoing::Chunk(id, chunk)) => {
                        self.current = Some(id);
                        return Ok(Turn::Send(self.labels(id, chunk)?));
                    }
                    Some(Outgoing::Operands(id)) => {
                        self.current = Some(id);
                        return Ok(Turn::Send(self.masked(id)?));
                    }
                    Some(Outgoing::Responses(id, item)) => {
                        self.current = Some(id);
                        return Ok(Turn::Send(self.responses(id, item)?));
                    }
                    None => self.state = State::Waiting,
                },
                State::Waiting => {
                    if let Some(message) = incoming.take() {
                        self.receive(message)?;
                    }
                    if let Some(message) = self.tasks.outgoing.pop_front() {
                        return Ok(Turn::Send(message));
                    }
                    if !self.waiting.is_empty() || !self.tasks.is_done() {
                        return Ok(Turn::Receive);
                    }
                    self.stage += 1;
                    self.state = State::Stage;
                }
                State::Opening => {
                    let graph = &self.plan.graph;
                    let share = pack_ring(self.share(graph.output)?, graph.edge(graph.output).ring);
                    self.state = State::Done;
                    return Ok(Turn::Send(Message::Open { share }));
                }
                State::Done => return Ok(Turn::Done),
            }
        }
    }

    fn node(&self) -> Option<NodeId> {
        self.current
    }

    fn progress(&self) -> (u64, u64) {
        (self.stage as u64, self.plan.graph.stages.len() as u64)
    }

    fn take_spans(&mut self) -> Vec<WorkSpan> {
        self.evaluator.as_mut().map(Evaluator::take_spans).unwrap_or_default()
    }
}
