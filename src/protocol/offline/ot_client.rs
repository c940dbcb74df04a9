//! The client's OT lane offline: labels of its input bits, garbled tables, products by correlated OT.
//!
//! Nodes are taken in the order in which the client's shares become known, so that garbling does not wait for HE.

use std::{collections::VecDeque, sync::Arc};

use zeroize::Zeroizing;

use super::{
    cots::{Receiving, Sending},
    fill::Fill,
    rows::{add_squares, gather_rows, product_hash, scatter_rows},
};
use crate::{
    arith::{bits, sample::SecureRng},
    model::{NodeId, Op},
    mpc::{
        block::Block,
        garble::half_gates::tables_len,
        ot::{BaseSender, CotReceiver, CotSender},
        shared::gilboa,
    },
    protocol::{ClientCorrelation, Machine, Message, OtPlan, Plan, ProtocolError, Result, Turn},
};

/// Chunks on their way at once: the extension of the next overlaps with the garbling of this one.
pub(in crate::protocol) const WINDOW: usize = 3;

/// Base OTs of both directions, then random COTs.
enum Setup {
    Offer,
    Waiting(BaseSender),
    Reply(Vec<u8>, Box<Fill>),
    Fill(Box<Fill>),
    Filling(Box<Fill>),
    Ready,
}

/// OT keys and choice bits of a product's chunk.
type ProductKeys = (Zeroizing<Vec<Block>>, Zeroizing<Vec<u8>>);

/// A chunk whose answer is awaited.
struct Outstanding {
    node: NodeId,
    chunk: usize,
    /// Of products: OT keys and choice bits.
    keys: Option<ProductKeys>,
}

/// The client's machine of the OT lane.
pub struct OtClient {
    plan: Arc<Plan>,
    correlation: Arc<ClientCorrelation>,
    setup: Setup,
    receiver: Option<Receiving>,
    sender: Option<Sending>,
    ots: u64,
    delta: Zeroizing<Block>,
    rng: SecureRng,
    pending: VecDeque<NodeId>,
    current: Option<(NodeId, usize)>,
    outstanding: VecDeque<Outstanding>,
    outgoing: VecDeque<Message>,
    working: Option<NodeId>,
    done: u64,
    total: u64,
}

impl OtClient {
    /// A machine that will make `nodes`; base OTs come first.
    pub fn new(plan: Arc<Plan>, correlation: Arc<ClientCorrelation>, nodes: Vec<NodeId>, mut rng: SecureRng) -> Self {
        let delta = Zeroizing::new(Block::random(&mut rng).with_lsb_set());
        let mut own = Self {
            plan,
            correlation,
            setup: Setup::Offer,
            receiver: None,
            sender: None,
            ots: 0,
            delta,
            rng,
            pending: VecDeque::new(),
            current: None,
            outstanding: VecDeque::new(),
            outgoing: VecDeque::new(),
            working: None,
            done: 0,
            total: 0,
        };
        own.enqueue(nodes);
        own
    }

    /// Adds work; a finished machine goes on.
    pub fn enqueue(&mut self, nodes: Vec<NodeId>) {
        self.total += nodes.iter().filter_map(|&n| self.plan.ot(n)).map(|p| p.chunks() as u64).sum::<u64>();
        self.pending.extend(nodes);
    }

    /// OTs made so far, in both directions.
    pub fn ot_count(&self) -> u64 {
        self.ots
    }

    /// Whether the client's shares that the node's choice bits come from are known.
    fn is_ready(&self, node: NodeId) -> bool {
        let node = self.plan.graph.node(node);
        node.op.inputs().iter().all(|&e| self.correlation.board.get(e).is_some())
    }

    fn next_chunk(&mut self) -> Option<(NodeId, usize)> {
        if self.current.is_none() {
            let at = self.pending.iter().position(|&n| self.is_ready(n))?;
            self.current = self.pending.remove(at).map(|n| (n, 0));
        }
        let (node, chunk) = self.current?;
        let chunks = self.plan.ot(node).map_or(0, OtPlan::chunks);
        self.current = (chunk + 1 < chunks).then_some((node, chunk + 1));
        Some((node, chunk))
    }

    fn extend(&mut self, node: NodeId, chunk: usize) -> Result<Message> {
        let (plan, graph) = (self.plan.clone(), &self.plan.graph);
        let board = &self.correlation.board;
        let receiver = self.receiver.as_mut().ok_or(ProtocolError::Missing { what: "the base OTs".into() })?;
        let op = &graph.node(node).op;
        let matrix = match plan.ot(node) {
            Some(OtPlan::Garbled(g)) => {
                let share = board.expect(graph, op.inputs()[0])?;
                let choices = g
                    .gadget
                    .evaluator_bits(&share[g.elements(chunk)])
                    .map_err(|e| ProtocolError::Garble(e.to_string()))?;
                let count = g.chunk(chunk).len() * g.gadget.circuit().evaluator_inputs();
                let (matrix, mut labels) = receiver.choose(&Zeroizing::new(choices), count)?;
                self.ots += count as u64;
                self.correlation.put_labels((node, chunk), std::mem::take(&mut *labels));
                self.outstanding.push_back(Outstanding { node, chunk, keys: None });
                matrix
            }
            Some(OtPlan::Product(p)) => {
                // The choices are the bits of the squared elements, or of the scale.
                let edge = match *op {
                    Op::RowScale { scale, .. } => scale,
                    _ => op.inputs()[0],
                };
                let share = board.expect(graph, edge)?;
                let range = p.chunk(chunk);
                let bits = graph.edge(edge).ring.bits();
                let choices = Zeroizing::new(bits::pack(&share[range.clone()], bits));
                let count = range.len() * bits as usize;
                let (matrix, keys) = receiver.choose(&choices, count)?;
                self.ots += count as u64;
                self.outstanding.push_back(Outstanding { node, chunk, keys: Some((keys, choices)) });
                matrix
            }
            Some(OtPlan::Shared(_)) | None => {
                return Err(ProtocolError::Mismatch { detail: format!("node {} needs no OTs of its own", node.0) });
            }
        };
        Ok(Message::Extend { node: node.0 as u32, chunk: chunk as u32, matrix })
    }

    fn on_product(&mut self, entry: Outstanding, message: &[u8], matrix: &[u8]) -> Result<()> {
        let graph = &self.plan.graph;
        let (Some(OtPlan::Product(p)), Some((keys, choices))) = (self.plan.ot(entry.node), entry.keys) else {
            return Err(ProtocolError::Mismatch { detail: format!("node {} is not a product", entry.node.0) });
        };
        let (node, chunk) = (entry.node, entry.chunk);
        let range = p.chunk(chunk);
        let op = &graph.node(node).op;
        let input = graph.edge(op.inputs()[0]);
        let out_len = graph.edge(graph.node(node).output).len();
        let shape = p.shape(chunk)?;
        let hash = |reverse| product_hash(&self.correlation.session, node, chunk, reverse);
        let piece = Zeroizing::new(gilboa::receive(&shape, &hash(false), &keys, &choices, message)?);
        self.correlation.with_product(node, out_len, |sum| match op {
            Op::SquareSum { .. } => add_squares(range.clone(), input.cols, &piece, sum),
            _ => scatter_rows(graph, node, range.clone(), p.width, &piece, sum),
        });
        if p.both {
            // The other cross term: the server chooses by its scale's mask, this side's rows are the messages.
            let share = self.correlation.board.expect(graph, op.inputs()[0])?;
            let rows = gather_rows(graph, node, &share, range.clone(), p.width);
            let sender = self.sender.as_mut().ok_or(ProtocolError::Missing { what: "the base OTs".into() })?;
            let keys = sender.transfer(matrix, shape.ots())?;
            self.ots += shape.ots() as u64;
            let (message, piece) = gilboa::send(&shape, &hash(true), *self.delta, &keys, &rows)?;
            let piece = Zeroizing::new(piece);
            self.correlation.with_product(node, out_len, |sum| scatter_rows(graph, node, range, p.width, &piece, sum));
            self.outgoing.push_back(Message::ProductUp { node: node.0 as u32, chunk: chunk as u32, message });
        }
        Ok(())
    }

    /// Another round of random COTs, or what was made of them.
    fn filled(&mut self, fill: Box<Fill>) -> Result<()> {
        if !fill.is_full() {
            self.setup = Setup::Fill(fill);
            return Ok(());
        }
        let filled = fill.finish()?;
        (self.receiver, self.sender) = (Some(filled.receiving), Some(filled.sending));
        if let Some(pools) = filled.shared {
            self.ots += pools.len() as u64;
            self.correlation.put_pools(pools);
        }
        self.setup = Setup::Ready;
        Ok(())
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        let found = message.name();
        let unexpected = |expected| ProtocolError::Unexpected { lane: "client OT lane", expected, found };
        if let Setup::Waiting(_) = self.setup {
            let Message::BaseChoice { choice, offer } = message else { return Err(unexpected("base-OT choices")) };
            let Setup::Waiting(base) = std::mem::replace(&mut self.setup, Setup::Ready) else {
                return Err(unexpected("base-OT choices"));
            };
            let receiver = CotReceiver::set_up(base, &choice)?;
            let session = reverse_session(&self.correlation.session);
            let (sender, reply) = CotSender::set_up(&session, *self.delta, &offer, &mut self.rng)?;
            let fill = Fill::client(&self.plan, &self.correlation.session, receiver, sender, self.rng.fork())?;
            self.setup = Setup::Reply(reply, Box::new(fill));
            return Ok(());
        }
        if let Setup::Filling(mut fill) = std::mem::replace(&mut self.setup, Setup::Ready) {
            let Message::Cots { payload } = message else { return Err(unexpected("random OTs")) };
            fill.absorb(&payload)?;
            return self.filled(fill);
        }
        let entry = self.outstanding.pop_front().ok_or_else(|| unexpected("nothing yet"))?;
        self.working = Some(entry.node);
        self.done += 1;
        let at = |n: u32, c: u32| (n as usize, c as usize) == (entry.node.0, entry.chunk);
        match message {
            Message::Tables { node, chunk, tables } if at(node, chunk) => {
                let g = self.plan.garbled(entry.node)?;
                let expected = tables_len(g.gadget.circuit(), g.chunk(entry.chunk).len())
                    .map_err(|e| ProtocolError::Garble(e.to_string()))?;
                if tables.len() != expected {
                    return Err(ProtocolError::Mismatch { detail: format!("tables of node {node} chunk {chunk}") });
                }
                self.correlation.tables.put(entry.node, entry.chunk, tables)
            }
            Message::ProductDown { node, chunk, message, matrix } if at(node, chunk) => {
                self.on_product(entry, &message, &matrix)
            }
            _ => Err(unexpected("the answer to the oldest OT extension")),
        }
    }
}

/// Separates the base OTs of the two directions.
pub(super) fn reverse_session(session: &[u8]) -> Vec<u8> {
    [session, b" reverse"].concat()
}

impl Machine for OtClient {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        if let Some(message) = incoming {
            self.receive(message)?;
        }
        match std::mem::replace(&mut self.setup, Setup::Ready) {
            Setup::Offer => {
                let (base, offer) = BaseSender::new(&self.correlation.session, &mut self.rng);
                self.setup = Setup::Waiting(base);
                return Ok(Turn::Send(Message::BaseOffer { offer }));
            }
            Setup::Waiting(base) => {
                self.setup = Setup::Waiting(base);
                return Ok(Turn::Receive);
            }
            Setup::Reply(choice, fill) => {
                self.filled(fill)?;
                return Ok(Turn::Send(Message::BaseReply { choice }));
            }
            Setup::Fill(mut fill) => {
                let payload = fill.message()?;
                self.setup = Setup::Filling(fill);
                return Ok(Turn::Send(Message::Cots { payload }));
            }
            Setup::Filling(fill) => {
                self.setup = Setup::Filling(fill);
                return Ok(Turn::Receive);
            }
            Setup::Ready => {}
        }
        if let Some(message) = self.outgoing.pop_front() {
            return Ok(Turn::Send(message));
        }
        if self.outstanding.len() < WINDOW
            && let Some((node, chunk)) = self.next_chunk()
        {
            self.working = Some(node);
            return Ok(Turn::Send(self.extend(node, chunk)?));
        }
        Ok(match (self.outstanding.is_empty(), self.pending.is_empty() && self.current.is_none()) {
            (false, _) => Turn::Receive,
            (true, false) => Turn::Blocked,
            (true, true) => Turn::Done,
        })
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }
}
