//! The client's HE lane offline: it sends its masks encrypted and takes its shares of linear results and cross terms. Either of
//! one inference, or of the linear layers of several that are prepared together.

use std::{collections::VecDeque, sync::Arc};

use super::WINDOW;
use crate::{
    arith::sample::SecureRng,
    he::HeClient as HeKeys,
    model::NodeId,
    protocol::{
        ClientCorrelation, ClientLinear, Encryptor, HeItem, HeTurn, KeySets, Machine, Message, Plan, ProtocolError,
        Result, ShareSource, Turn,
    },
};

/// What the client's shares are of.
enum Shares {
    One(Arc<ClientCorrelation>),
    Several(Vec<ClientLinear>),
}

/// The client's machine of the HE lane.
pub struct HeClient {
    plan: Arc<Plan>,
    shares: Shares,
    encryptor: Encryptor,
    next: usize,
    outstanding: VecDeque<usize>,
    /// Responses read.
    read: usize,
    working: Option<NodeId>,
}

impl HeClient {
    /// A machine that does the offline part of all HE items of one inference.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ClientCorrelation>,
        keys: impl Into<KeySets<HeKeys>>,
        rng: SecureRng,
    ) -> Self {
        Self::with(plan, Shares::One(correlation), keys.into(), rng)
    }

    /// A machine that does the HE items that [`crate::protocol::Settings::together`] inferences share.
    pub fn joint(plan: Arc<Plan>, keys: impl Into<KeySets<HeKeys>>, mut rng: SecureRng) -> Self {
        let inferences = (0..plan.settings.together).map(|_| ClientLinear::draw(&mut rng)).collect();
        Self::with(plan, Shares::Several(inferences), keys.into(), rng)
    }

    fn with(plan: Arc<Plan>, shares: Shares, keys: KeySets<HeKeys>, rng: SecureRng) -> Self {
        Self {
            encryptor: Encryptor::new(plan.clone(), keys, rng),
            plan,
            shares,
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

    /// What each inference goes on with, after [`Self::joint`].
    pub fn into_linear(self) -> Vec<ClientLinear> {
        match self.shares {
            Shares::One(_) => Vec::new(),
            Shares::Several(inferences) => inferences,
        }
    }

    fn lane(&self) -> &[HeTurn] {
        match self.shares {
            Shares::One(_) => self.plan.he_lane(),
            Shares::Several(_) => self.plan.joint_lane(),
        }
    }

    fn on_response(&mut self, item: usize, responses: &[Vec<u8>]) -> Result<()> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let (id, work) = &plan.he[item];
        self.working = Some(*id);
        self.read += 1;
        let share = self.encryptor.decrypt(item, responses)?;
        let output = graph.node(*id).output;
        match (&mut self.shares, work) {
            (Shares::One(correlation), HeItem::Linear(..)) => correlation.board.publish(graph, output, share.to_vec()),
            (Shares::One(correlation), HeItem::Product(..)) => correlation.with_product(*id, share.len(), |sum| {
                sum.iter_mut().zip(share.iter()).for_each(|(s, &x)| *s = s.wrapping_add(x));
            }),
            (Shares::Several(inferences), _) => {
                let parts = share.chunks(graph.edge(output).len().max(1));
                inferences.iter_mut().zip(parts).for_each(|(own, part)| own.put(graph, output, part));
            }
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
        if let Some(&HeTurn { item, after, answered }) = self.lane().get(self.next)
            && self.outstanding.len() < WINDOW
            && after <= self.read
        {
            self.next += 1;
            self.working = Some(self.plan.he[item].0);
            if answered {
                self.outstanding.push_back(item);
            }
            let shares: &dyn ShareSource = match &self.shares {
                Shares::One(correlation) => &correlation.board,
                Shares::Several(inferences) => inferences,
            };
            return Ok(Turn::Send(self.encryptor.upload(item, shares)?));
        }
        Ok(if self.outstanding.is_empty() { Turn::Done } else { Turn::Receive })
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        ((self.next - self.outstanding.len()) as u64, self.lane().len() as u64)
    }
}
