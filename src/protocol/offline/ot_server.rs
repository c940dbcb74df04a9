//! The server's OT lane offline: it garbles what the client asks for, chunk by chunk, and sends product messages.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::{
    cots::{Receiving, Sending},
    fill::Fill,
    ot_client::reverse_session,
    rows::{add_squares, gather_rows, product_hash, scatter_rows},
};
use crate::{
    arith::{bits, sample::SecureRng},
    model::{NodeId, Op},
    mpc::{
        block::Block,
        garble::half_gates::{Garbling, LabelSeed},
        ot::{BaseSender, CotReceiver, CotSender},
        shared::gilboa,
    },
    protocol::{
        Machine, Message, OtPlan, Plan, ProductPlan, ProtocolError, Result, ServerCorrelation, Turn, gate_key,
        operands::Operands,
    },
};

enum Setup {
    Offer,
    Choice { choice: Vec<u8>, offer: Vec<u8>, base: BaseSender, sender: CotSender },
    Reply(BaseSender, CotSender),
    Filling(Box<Fill>),
    Answer(Vec<u8>, Box<Fill>),
    Ready,
}

/// Choices of this side whose product message has not come yet.
struct Reverse {
    keys: Zeroizing<Vec<Block>>,
    choices: Zeroizing<Vec<u8>>,
}

/// The server's machine of the OT lane.
pub struct OtServer {
    plan: Arc<Plan>,
    correlation: Arc<ServerCorrelation>,
    setup: Setup,
    sender: Option<Sending>,
    receiver: Option<Receiving>,
    rng: SecureRng,
    /// Chunks still to come, by node.
    expected: HashMap<NodeId, HashSet<usize>>,
    reverse: HashMap<(NodeId, usize), Reverse>,
    outgoing: VecDeque<Message>,
    working: Option<NodeId>,
    done: u64,
    total: u64,
}

impl OtServer {
    /// A machine that serves `nodes`.
    pub fn new(plan: Arc<Plan>, correlation: Arc<ServerCorrelation>, nodes: Vec<NodeId>, rng: SecureRng) -> Self {
        let mut own = Self {
            plan,
            correlation,
            setup: Setup::Offer,
            sender: None,
            receiver: None,
            rng,
            expected: HashMap::new(),
            reverse: HashMap::new(),
            outgoing: VecDeque::new(),
            working: None,
            done: 0,
            total: 0,
        };
        own.enqueue(nodes);
        own
    }

    /// Adds work; a finished machine goes on. Masks of product operands are drawn here, fresh for each node.
    pub fn enqueue(&mut self, nodes: Vec<NodeId>) {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        for id in nodes {
            let Some(ot) = plan.ot(id) else { continue };
            self.total += ot.chunks() as u64;
            self.expected.insert(id, (0..ot.chunks()).collect());
            if let (OtPlan::Product(_), Ok(operands)) = (ot, Operands::of(graph, id)) {
                self.correlation.put_masks(id, operands.masks(graph, &mut self.rng));
            }
        }
    }

    fn on_extend(&mut self, id: NodeId, chunk: usize, matrix: &[u8]) -> Result<()> {
        let fresh = self.expected.get_mut(&id).is_some_and(|chunks| chunks.remove(&chunk));
        if !fresh {
            // A second garbling of a chunk under the same labels would give two labels of one wire away.
            return Err(ProtocolError::Mismatch { detail: format!("node {} chunk {chunk} was not expected", id.0) });
        }
        self.working = Some(id);
        let plan = self.plan.clone();
        match plan.ot(id) {
            Some(OtPlan::Garbled(g)) => {
                let range = g.chunk(chunk);
                let circuit = g.gadget.circuit();
                let zero = self.transfer(matrix, range.len() * circuit.evaluator_inputs())?;
                let key = gate_key(&self.correlation.session, id, range.start);
                let secrets = &self.correlation.secrets;
                let seed = LabelSeed::new(secrets.label_seed);
                let garbled = Garbling::new(circuit, secrets.delta, key, &seed)
                    .and_then(|g| g.garble_chunk(&zero, range.len()))
                    .map_err(|e| ProtocolError::Garble(e.to_string()))?;
                self.correlation.put_permute((id, chunk), garbled.masks.to_vec());
                self.finished(id);
                let (node, chunk, tables) = (id.0 as u32, chunk as u32, garbled.tables);
                self.outgoing.push_back(Message::Tables { node, chunk, tables });
                Ok(())
            }
            Some(OtPlan::Product(p)) => self.product(id, chunk, p, matrix),
            Some(OtPlan::Shared(_)) | None => {
                Err(ProtocolError::Mismatch { detail: format!("node {} needs no OTs of its own", id.0) })
            }
        }
    }

    fn transfer(&mut self, matrix: &[u8], count: usize) -> Result<Zeroizing<Vec<Block>>> {
        let sender = self.sender.as_mut().ok_or(ProtocolError::Missing { what: "the base OTs".into() })?;
        sender.transfer(matrix, count)
    }

    fn product(&mut self, id: NodeId, chunk: usize, p: &ProductPlan, matrix: &[u8]) -> Result<()> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let op = &graph.node(id).op;
        let cols = graph.edge(op.inputs()[0]).cols;
        let range = p.chunk(chunk);
        let out_len = graph.edge(graph.node(id).output).len();
        let shape = p.shape(chunk)?;
        let keys = self.transfer(matrix, shape.ots())?;
        let square = matches!(op, Op::SquareSum { .. });
        let (values, choices) = self.correlation.with_masks(id, |m| {
            if square {
                (Zeroizing::new(m.left_mask[range.clone()].to_vec()), Zeroizing::new(Vec::new()))
            } else {
                let choices = Zeroizing::new(bits::pack(&m.right_mask[range.clone()], p.ring.bits()));
                (gather_rows(graph, id, &m.left_mask, range.clone(), p.width), choices)
            }
        })?;
        let hash = product_hash(&self.correlation.session, id, chunk, false);
        let (message, piece) = gilboa::send(&shape, &hash, self.correlation.secrets.delta, &keys, &values)?;
        let piece = Zeroizing::new(piece);
        self.correlation.with_product(id, out_len, |sum| {
            if square {
                add_squares(range.clone(), cols, &piece, sum);
            } else {
                scatter_rows(graph, id, range.clone(), p.width, &piece, sum);
            }
        });
        let mut own = Vec::new();
        if p.both {
            let receiver = self.receiver.as_mut().ok_or(ProtocolError::Missing { what: "the base OTs".into() })?;
            let (matrix, keys) = receiver.choose(&choices, shape.ots())?;
            own = matrix;
            self.reverse.insert((id, chunk), Reverse { keys, choices });
        } else {
            self.finished(id);
        }
        let (node, chunk) = (id.0 as u32, chunk as u32);
        self.outgoing.push_back(Message::ProductDown { node, chunk, message, matrix: own });
        Ok(())
    }

    fn on_product(&mut self, id: NodeId, chunk: usize, message: &[u8]) -> Result<()> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let (Some(reverse), Some(OtPlan::Product(p))) = (self.reverse.remove(&(id, chunk)), plan.ot(id)) else {
            return Err(ProtocolError::Mismatch { detail: format!("product of node {} chunk {chunk}", id.0) });
        };
        self.working = Some(id);
        let range = p.chunk(chunk);
        let hash = product_hash(&self.correlation.session, id, chunk, true);
        let piece = gilboa::receive(&p.shape(chunk)?, &hash, &reverse.keys, &reverse.choices, message)?;
        let piece = Zeroizing::new(piece);
        let out_len = graph.edge(graph.node(id).output).len();
        self.correlation.with_product(id, out_len, |sum| scatter_rows(graph, id, range, p.width, &piece, sum));
        self.finished(id);
        Ok(())
    }

    /// One chunk of a node is complete.
    fn finished(&mut self, id: NodeId) {
        self.done += 1;
        if self.expected.get(&id).is_some_and(HashSet::is_empty) && !self.reverse.keys().any(|(n, _)| *n == id) {
            self.expected.remove(&id);
        }
    }

    /// Waits for another round of random COTs, or takes what was made of them.
    fn filled(&mut self, fill: Box<Fill>) -> Result<()> {
        if !fill.is_full() {
            self.setup = Setup::Filling(fill);
            return Ok(());
        }
        let filled = fill.finish()?;
        (self.receiver, self.sender) = (Some(filled.receiving), Some(filled.sending));
        if let Some(pools) = filled.shared {
            self.correlation.put_pools(pools);
        }
        self.setup = Setup::Ready;
        Ok(())
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        let found = message.name();
        let unexpected = |expected| ProtocolError::Unexpected { lane: "server OT lane", expected, found };
        let session = self.correlation.session;
        match (std::mem::replace(&mut self.setup, Setup::Ready), message) {
            (Setup::Offer, Message::BaseOffer { offer }) => {
                let delta = self.correlation.secrets.delta;
                let (sender, choice) = CotSender::set_up(&session, delta, &offer, &mut self.rng)?;
                let (base, offer) = BaseSender::new(&reverse_session(&session), &mut self.rng);
                self.setup = Setup::Choice { choice, offer, base, sender };
                Ok(())
            }
            (Setup::Offer, _) => Err(unexpected("a base-OT offer")),
            (Setup::Reply(base, sender), Message::BaseReply { choice }) => {
                let receiver = CotReceiver::set_up(base, &choice)?;
                let fill = Fill::server(&self.plan, &session, receiver, sender, self.rng.fork())?;
                self.filled(Box::new(fill))
            }
            (Setup::Reply(..), _) => Err(unexpected("a base-OT reply")),
            (Setup::Filling(mut fill), Message::Cots { payload }) => {
                // The answer is of the same round: its size is taken before this end's counts move.
                let answer = fill.message()?;
                fill.absorb(&payload)?;
                self.setup = Setup::Answer(answer, fill);
                Ok(())
            }
            (Setup::Filling(_), _) => Err(unexpected("random OTs")),
            (Setup::Ready, Message::Extend { node, chunk, matrix }) => {
                self.on_extend(NodeId(node as usize), chunk as usize, &matrix)
            }
            (Setup::Ready, Message::ProductUp { node, chunk, message }) => {
                self.on_product(NodeId(node as usize), chunk as usize, &message)
            }
            _ => Err(unexpected("an OT extension")),
        }
    }
}

impl Machine for OtServer {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        if let Some(message) = incoming {
            self.receive(message)?;
        }
        match std::mem::replace(&mut self.setup, Setup::Ready) {
            Setup::Choice { choice, offer, base, sender } => {
                self.setup = Setup::Reply(base, sender);
                return Ok(Turn::Send(Message::BaseChoice { choice, offer }));
            }
            Setup::Answer(payload, fill) => {
                self.filled(fill)?;
                return Ok(Turn::Send(Message::Cots { payload }));
            }
            other @ (Setup::Offer | Setup::Reply(..) | Setup::Filling(_)) => {
                self.setup = other;
                return Ok(Turn::Receive);
            }
            Setup::Ready => {}
        }
        match self.outgoing.pop_front() {
            Some(message) => Ok(Turn::Send(message)),
            None if self.expected.is_empty() => Ok(Turn::Done),
            None => Ok(Turn::Receive),
        }
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }
}
