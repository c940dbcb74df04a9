//! The client online: masked inputs up, then garbled layers evaluated and products restored, stage by stage.

use std::{collections::VecDeque, sync::Arc};

use zeroize::{Zeroize, Zeroizing};

use super::{bilinear::bilinear, shared::SharedTasks};
use crate::{
    model::{EdgeId, Graph, Inputs, NodeId, Op},
    mpc::{block::blocks_from_bytes, garble::half_gates::evaluate_chunk, shared::Role},
    protocol::{
        ClientCorrelation, CotPools, Encryptor, Machine, Message, OtClient, OtPlan, Plan, ProtocolError, Result,
        SharedPlan, Turn, gate_key,
        operands::{Operand, Operands},
        pack_ring, unpack_ring,
    },
};

/// What is expected next within a stage.
#[derive(Clone, Copy)]
enum Expected {
    Chunk(NodeId, usize),
    Operands(NodeId),
    /// Ciphertexts of an HE item.
    Responses(NodeId, usize),
}

/// The client's machine of the online phase.
pub struct OnlineClient {
    plan: Arc<Plan>,
    correlation: Arc<ClientCorrelation>,
    input: Option<Inputs>,
    length: usize,
    /// Makes tables just before they are used, in the interleaved mode.
    garbling: Option<OtClient>,
    /// For what is done homomorphically online.
    encryptor: Option<Encryptor>,
    stage: usize,
    /// HE items of the stage whose shares are still to be sent.
    uploads: VecDeque<usize>,
    expected: VecDeque<Expected>,
    tasks: SharedTasks<()>,
    pools: Option<CotPools>,
    colours: Vec<u8>,
    replies: VecDeque<Message>,
    output: Option<Vec<i64>>,
    current: Option<NodeId>,
    state: State,
    stages_prepared: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    Stage,
    Uploading,
    Waiting,
    Replying,
    Opening,
    Done,
}

impl OnlineClient {
    /// Starts an inference on a finished correlation. With `interleaved` (an OT machine without work yet) garbled nodes
    /// are made stage by stage. `encryptor` comes from the offline phase where something is done homomorphically online.
    ///
    /// # Errors
    /// Input of another shape than the graph's.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ClientCorrelation>,
        input: Inputs,
        interleaved: Option<OtClient>,
        encryptor: Option<Encryptor>,
    ) -> Result<Self> {
        let graph = &plan.graph;
        let pool = graph.pool.map(|e| graph.edge(e).len());
        if input.embedding.len() != graph.edge(graph.embedding).len()
            || input.pool.as_ref().map(Vec::len) != pool
            || input.len > graph.tokens
        {
            return Err(ProtocolError::Mismatch { detail: "the input's shape is not the graph's".into() });
        }
        Ok(Self {
            pools: correlation.take_pools(),
            length: input.len,
            input: Some(input),
            plan,
            correlation,
            garbling: interleaved,
            encryptor,
            stage: 0,
            uploads: Default::default(),
            expected: Default::default(),
            tasks: SharedTasks::new(),
            colours: Vec::new(),
            replies: Default::default(),
            output: None,
            current: None,
            state: State::Start,
            stages_prepared: 0,
        })
    }

    /// The opened output in fixed point, once the machine is done.
    pub fn output(&self) -> Option<&[i64]> {
        self.output.as_deref()
    }

    /// OTs made by the interleaved mode's machine so far, those of its offline phase included; 0 without one.
    pub fn ot_count(&self) -> u64 {
        self.garbling.as_ref().map_or(0, OtClient::ot_count)
    }

    fn graph(&self) -> &Graph {
        &self.plan.graph
    }

    fn masked_input(&mut self) -> Result<Message> {
        self.correlation.spend()?;
        let mut input = self.input.take().ok_or(ProtocolError::Spent)?;
        let graph = self.graph();
        let mask = |id: EdgeId, values: &[i64]| -> Result<Vec<u8>> {
            let ring = graph.edge(id).ring;
            let share = self.correlation.board.expect(graph, id)?;
            let masked: Vec<u64> =
                values.iter().zip(share.iter()).map(|(&x, &r)| ring.sub(ring.from_signed(x), r)).collect();
            Ok(pack_ring(&masked, ring))
        };
        let embedding = mask(graph.embedding, &input.embedding)?;
        let pool = match (graph.pool, &input.pool) {
            (Some(id), Some(values)) => mask(id, values)?,
            _ => Vec::new(),
        };
        input.embedding.zeroize();
        input.pool.zeroize();
        Ok(Message::Input { embedding, pool })
    }

    /// Lists what a stage will bring, and starts its layers on shares.
    fn enter_stage(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        for &id in &plan.graph.stages[self.stage].interactive {
            if let Some((item, encrypted_online)) = plan.he_online(id) {
                self.uploads.extend(encrypted_online.then_some(item));
                self.expected.push_back(Expected::Responses(id, item));
                continue;
            }
            match plan.ot(id) {
                Some(OtPlan::Shared(s)) => self.start_shared(id, s)?,
                Some(OtPlan::Garbled(g)) => self.expected.extend((0..g.chunks()).map(|c| Expected::Chunk(id, c))),
                _ => self.expected.push_back(Expected::Operands(id)),
            }
        }
        Ok(())
    }

    fn start_shared(&mut self, id: NodeId, shared: &SharedPlan) -> Result<()> {
        let graph = &self.plan.graph;
        let node = graph.node(id);
        let (share, next) = (
            self.correlation.board.expect(graph, node.op.inputs()[0])?,
            self.correlation.board.expect(graph, node.output)?,
        );
        for chunk in 0..shared.chunks() {
            let range = shared.chunk(chunk);
            let party = shared.party(Role::Client, &self.correlation.session, id, chunk, &mut self.pools)?;
            let task = shared.function.client(party, share[range.clone()].to_vec(), next[range].to_vec())?;
            self.tasks.start((id, chunk), task)?;
        }
        Ok(())
    }

    fn on_labels(&mut self, id: NodeId, chunk: usize, labels: &[u8]) -> Result<()> {
        let plan = self.plan.garbled(id)?;
        let count = plan.chunk(chunk).len();
        let own = self.correlation.take_labels((id, chunk))?;
        let tables = self.correlation.tables.take(id, chunk)?;
        let theirs = blocks_from_bytes(labels)
            .filter(|l| l.len() == count * plan.gadget.circuit().garbler_inputs())
            .ok_or_else(|| ProtocolError::Mismatch { detail: format!("labels of node {} chunk {chunk}", id.0) })?;
        let key = gate_key(&self.correlation.session, id, plan.chunk(chunk).start);
        let values = evaluate_chunk(plan.gadget.circuit(), key, &tables, &own, &theirs, count)
            .map_err(|e| ProtocolError::Garble(e.to_string()))?;
        // The masked results less the next shares are what the server gets.
        let graph = &self.plan.graph;
        let next = self.correlation.board.expect(graph, graph.node(id).output)?;
        let bits = plan
            .gadget
            .reply(&values, &next[plan.elements(chunk)])
            .map_err(|e| ProtocolError::Garble(e.to_string()))?;
        self.colours.extend_from_slice(&bits);
        if chunk + 1 == plan.chunks() {
            let bits = std::mem::take(&mut self.colours);
            self.replies.push_back(Message::Colours { node: id.0 as u32, bits });
        }
        Ok(())
    }

    /// The client's share of a product, with its mask offsets, less its next mask.
    fn on_operands(&mut self, id: NodeId, left: &[u8], right: &[u8]) -> Result<()> {
        let graph = self.graph();
        let node = graph.node(id);
        let operands = Operands::of(graph, id)?;
        let board = &self.correlation.board;
        let unpack = |x: Operand, bytes: &[u8]| unpack_ring(bytes, graph.edge(x.edge).len(), x.ring);
        let (own_l, delta_l) = (board.expect(graph, operands.left.edge)?, unpack(operands.left, left)?);
        let (own_r, delta_r) = match operands.right {
            Some(x) => (board.expect(graph, x.edge)?, unpack(x, right)?),
            None => (own_l.clone(), delta_l.clone()),
        };
        let ring = operands.left.ring;
        let opened: Zeroizing<Vec<u64>> =
            Zeroizing::new(own_l.iter().zip(&delta_l).map(|(&x, &d)| ring.add(ring.reduce(x), d)).collect());
        let mut share = Zeroizing::new(bilinear(graph, id, &opened, &own_r)?);
        let cross = Zeroizing::new(bilinear(graph, id, &own_l, &delta_r)?);
        let offline = self.correlation.take_product(id)?;
        let ring = graph.edge(node.output).ring;
        for (s, (&c, &o)) in share.iter_mut().zip(cross.iter().zip(offline.iter())) {
            *s = ring.add(ring.add(ring.reduce(*s), ring.reduce(c)), ring.reduce(o));
        }
        self.restore(id, share)
    }

    /// The client's share of what was computed homomorphically, less its next mask.
    fn on_responses(&mut self, id: NodeId, item: usize, responses: &[Vec<u8>]) -> Result<()> {
        let encryptor = self.encryptor.as_ref().ok_or_else(no_keys)?;
        let decrypted = encryptor.decrypt(item, responses)?;
        let mut share = Zeroizing::new(decrypted.to_vec());
        let graph = self.graph();
        let node = graph.node(id);
        if let Ok(Operands { left, right }) = Operands::of(graph, id) {
            let board = &self.correlation.board;
            let (left, right) = (board.expect(graph, left.edge)?, board.expect(graph, right.unwrap_or(left).edge)?);
            let own = Zeroizing::new(bilinear(graph, id, &left, &right)?);
            let ring = graph.edge(node.output).ring;
            share.iter_mut().zip(own.iter()).for_each(|(s, &x)| *s = ring.add(*s, ring.reduce(x)));
        }
        self.restore(id, share)
    }

    /// Replies with a share that depends on the input, with its mask offsets, less the client's mask of that edge.
    fn restore(&mut self, id: NodeId, mut share: Zeroizing<Vec<u64>>) -> Result<()> {
        let graph = self.graph();
        let node = graph.node(id);
        let out = graph.edge(node.output);
        let next = self.correlation.board.expect(graph, node.output)?;
        for (i, (s, &next)) in share.iter_mut().zip(next.iter()).enumerate() {
            let offset = match node.op {
                Op::Product { mask: Some(offset), .. } if i % out.cols >= self.length => out.ring.from_signed(offset),
                _ => 0,
            };
            *s = out.ring.sub(out.ring.add(*s, offset), next);
        }
        let share = pack_ring(&share, out.ring);
        self.replies.push_back(Message::Restored { node: id.0 as u32, share });
        Ok(())
    }

    fn on_open(&mut self, share: &[u8]) -> Result<()> {
        let graph = self.graph();
        let edge = graph.edge(graph.output);
        let theirs = unpack_ring(share, edge.len(), edge.ring)?;
        let own = self.correlation.board.expect(graph, graph.output)?;
        let open = own.iter().zip(&theirs).map(|(&a, &b)| edge.ring.to_signed(edge.ring.add(a, b))).collect();
        self.output = Some(open);
        Ok(())
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        let found = message.name();
        match (self.state, message) {
            (State::Waiting, Message::Shared { node, chunk, payload }) => {
                self.current = Some(self.tasks.deliver(node, chunk, payload)?);
                self.tasks.finished.clear();
                Ok(())
            }
            (State::Waiting, message) => {
                let wrong = |expected| ProtocolError::Unexpected { lane: "online client", expected, found };
                match (self.expected.pop_front(), message) {
                    (Some(Expected::Chunk(id, chunk)), Message::Labels { node, chunk: c, labels })
                        if (node as usize, c as usize) == (id.0, chunk) =>
                    {
                        self.current = Some(id);
                        self.on_labels(id, chunk, &labels)
                    }
                    (Some(Expected::Operands(id)), Message::Masked { node, left, right }) if node as usize == id.0 => {
                        self.current = Some(id);
                        self.on_operands(id, &left, &right)
                    }
                    (Some(Expected::Responses(id, item)), Message::HeResponse { item: i, responses })
                        if i as usize == item =>
                    {
                        self.current = Some(id);
                        self.on_responses(id, item, &responses)
                    }
                    (Some(Expected::Chunk(..)), _) => Err(wrong("wire labels of the next chunk")),
                    (Some(Expected::Responses(..)), _) => Err(wrong("packed ciphertexts of the next item")),
                    _ => Err(wrong("masked operands of the next product")),
                }
            }
            (State::Opening, Message::Open { share }) => {
                self.state = State::Done;
                self.on_open(&share)
            }
            _ => Err(ProtocolError::Unexpected { lane: "online client", expected: "nothing yet", found }),
        }
    }
}

pub(super) fn no_keys() -> ProtocolError {
    ProtocolError::Missing { what: "the HE keys that linear layers or products need online".into() }
}

/// Garbled nodes of a stage.
pub(super) fn garbled_nodes(plan: &Plan, stage: usize) -> Vec<NodeId> {
    let nodes = &plan.graph.stages[stage].interactive;
    nodes.iter().copied().filter(|&id| matches!(plan.ot(id), Some(OtPlan::Garbled(_)))).collect()
}

impl Machine for OnlineClient {
    fn advance(&mut self, mut incoming: Option<Message>) -> Result<Turn> {
        loop {
            match self.state {
                State::Start => {
                    self.state = State::Stage;
                    return Ok(Turn::Send(self.masked_input()?));
                }
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
                    self.state = State::Uploading;
                }
                State::Uploading => match self.uploads.pop_front() {
                    Some(item) => {
                        self.current = Some(self.plan.he[item].0);
                        let encryptor = self.encryptor.as_mut().ok_or_else(no_keys)?;
                        return Ok(Turn::Send(encryptor.upload(item, &self.correlation.board)?));
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
                    if !self.expected.is_empty() || !self.tasks.is_done() {
                        return Ok(Turn::Receive);
                    }
                    self.state = State::Replying;
                }
                State::Replying => match self.replies.pop_front() {
                    Some(message) => return Ok(Turn::Send(message)),
                    None => {
                        self.stage += 1;
                        self.state = State::Stage;
                    }
                },
                State::Opening => match incoming.take() {
                    Some(message) => self.receive(message)?,
                    None => return Ok(Turn::Receive),
                },
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
}
