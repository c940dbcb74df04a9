//! The client's HE lane offline: encrypts its masks, decrypts its shares of linear results and cross terms.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::WINDOW;
use crate::{
    arith::sample::SecureRng,
    he::HeClient as HeKeys,
    model::{EdgeId, NodeId},
    packing::{ClientMatrix, CoefficientPacking},
    protocol::{
        ClientCorrelation, HeItem, Machine, Message, Plan, ProtocolError, Result, Turn, he_plan::add_cross_term,
    },
};

/// The client's machine of the HE lane.
pub struct HeClient {
    plan: Arc<Plan>,
    correlation: Arc<ClientCorrelation>,
    keys: Arc<HeKeys>,
    rng: SecureRng,
    /// Inputs of linear nodes that the server holds, by edge and rows.
    uploaded: HashSet<(EdgeId, usize)>,
    next: usize,
    outstanding: VecDeque<usize>,
    working: Option<NodeId>,
    done: u64,
}

impl HeClient {
    /// A machine that makes all HE items of the plan.
    pub fn new(plan: Arc<Plan>, correlation: Arc<ClientCorrelation>, keys: Arc<HeKeys>, rng: SecureRng) -> Self {
        Self {
            plan,
            correlation,
            keys,
            rng,
            uploaded: HashSet::new(),
            next: 0,
            outstanding: VecDeque::new(),
            working: None,
            done: 0,
        }
    }

    fn upload(&mut self, item: usize) -> Result<Message> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let params = self.keys.context().params();
        let board = &self.correlation.board;
        let mut matrices = Vec::new();
        match &plan.he[item].1 {
            HeItem::Linear { inputs, rows, packing } => {
                for (&edge, layout) in inputs.iter().zip(packing.inputs()) {
                    if self.uploaded.insert((edge, *rows)) {
                        let share = board.expect(graph, edge)?;
                        let x = &share[..rows * graph.edge(edge).cols];
                        let matrix = self.keys.encrypt_matrix(packing.spec().t, layout, x, &mut self.rng)?;
                        matrices.push(matrix.to_bytes(params));
                    }
                }
            }
            HeItem::Product(terms) => {
                for (terms, packing) in terms {
                    let mut x = Zeroizing::new(Vec::new());
                    for term in terms {
                        let (id, cut) = term.encrypted;
                        let edge = graph.edge(id);
                        x.extend(cut.take(&board.expect(graph, id)?, edge.rows, edge.cols));
                    }
                    let layout = &packing.inputs()[0];
                    let matrix = self.keys.encrypt_matrix(packing.spec().t, layout, &x, &mut self.rng)?;
                    matrices.push(matrix.to_bytes(params));
                }
            }
        }
        Ok(Message::HeUpload { item: item as u32, matrices })
    }

    fn decrypt(&self, packing: &CoefficientPacking, bytes: &[u8]) -> Result<Zeroizing<Vec<u64>>> {
        let response = packing.read_response(self.keys.context().params(), bytes)?;
        Ok(Zeroizing::new(self.keys.decrypt_matrix(packing, &response)?))
    }

    fn on_response(&mut self, item: usize, responses: &[Vec<u8>]) -> Result<()> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let (id, work) = &plan.he[item];
        self.working = Some(*id);
        self.done += 1;
        let output = graph.node(*id).output;
        let edge = graph.edge(output);
        match (work, responses) {
            (HeItem::Linear { packing, .. }, [response]) => {
                // In the ring of the inputs; the output's is at most as wide.
                let share = self.decrypt(packing, response)?.iter().map(|&x| edge.ring.reduce(x)).collect();
                self.correlation.board.publish(graph, output, share);
            }
            (HeItem::Product(terms), responses) if responses.len() == terms.len() => {
                for ((terms, packing), response) in terms.iter().zip(responses) {
                    let values = self.decrypt(packing, response)?;
                    let (rows, cols) = (packing.spec().rows, packing.spec().cols);
                    self.correlation.with_product(*id, edge.len(), |sum| {
                        for (term, part) in terms.iter().zip(values.chunks_exact(rows * cols)) {
                            add_cross_term(graph, *id, term, part, cols, sum);
                        }
                    });
                }
            }
            _ => return Err(ProtocolError::Mismatch { detail: format!("ciphertexts of HE item {item}") }),
        }
        Ok(())
    }
}

impl Machine for HeClient {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        if let Some(message) = incoming {
            let found = message.name();
            match (self.outstanding.pop_front(), message) {
                (Some(expected), Message::HeResponse { item, responses }) if item as usize == expected => {
                    self.on_response(expected, &responses)?;
                }
                _ => {
                    let expected = "the packed ciphertexts of the oldest item";
                    return Err(ProtocolError::Unexpected { lane: "client HE lane", expected, found });
                }
            }
        }
        if self.outstanding.len() < WINDOW && self.next < self.plan.he.len() {
            let item = self.next;
            self.next += 1;
            self.working = Some(self.plan.he[item].0);
            self.outstanding.push_back(item);
            return Ok(Turn::Send(self.upload(item)?));
        }
        Ok(if self.outstanding.is_empty() { Turn::Done } else { Turn::Receive })
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        (self.done, self.plan.he.len() as u64)
    }
}
