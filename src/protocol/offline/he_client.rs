//! The client's HE lane offline: it sends its masks encrypted and takes its shares of linear results and cross terms.

use std::{collections::VecDeque, sync::Arc};

use super::WINDOW;
use crate::{
    arith::sample::SecureRng,
    he::HeClient as HeKeys,
    model::NodeId,
    protocol::{
        ClientCorrelation, Encryptor, HeItem, HeTurn, KeySets, Machine, Message, Plan, ProtocolError, Result, Turn,
    },
};

/// The client's machine of the HE lane.
pub struct HeClient {
    plan: Arc<Plan>,
    correlation: Arc<ClientCorrelation>,
    encryptor: Encryptor,
    next: usize,
    outstanding: VecDeque<usize>,
    /// Responses read.
    read: usize,
    working: Option<NodeId>,
}

impl HeClient {
    /// A machine that does the offline part of all HE items of the plan.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ClientCorrelation>,
        keys: impl Into<KeySets<HeKeys>>,
        rng: SecureRng,
    ) -> Self {
        Self {
            encryptor: Encryptor::new(plan.clone(), keys.into(), rng),
            plan,
            correlation,
            next: 0,
            outstanding: VecDeque::new(),
            read: 0,
            working: None,
        }
    }

    /// What the online phase goes on with.
    pub fn into_encryptor(self) -> Encryptor {
        self.encryptor
    }

    fn on_response(&mut self, item: usize, responses: &[Vec<u8>]) -> Result<()> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let (id, work) = &plan.he[item];
        self.working = Some(*id);
        self.read += 1;
        let share = self.encryptor.decrypt(item, responses)?;
        let output = graph.node(*id).output;
        match work {
            HeItem::Linear(..) => self.correlation.board.publish(graph, output, share.to_vec()),
            HeItem::Product(..) => self.correlation.with_product(*id, share.len(), |sum| {
                sum.iter_mut().zip(share.iter()).for_each(|(s, &x)| *s = s.wrapping_add(x));
            }),
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
        if let Some(&HeTurn { item, after, answered }) = self.plan.he_lane().get(self.next)
            && self.outstanding.len() < WINDOW
            && after <= self.read
        {
            self.next += 1;
            self.working = Some(self.plan.he[item].0);
            if answered {
                self.outstanding.push_back(item);
            }
            return Ok(Turn::Send(self.encryptor.upload(item, &self.correlation.board)?));
        }
        Ok(if self.outstanding.is_empty() { Turn::Done } else { Turn::Receive })
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        ((self.next - self.outstanding.len()) as u64, self.plan.he_lane().len() as u64)
    }
}
