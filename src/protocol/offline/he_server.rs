//! The server's HE lane offline: linear maps and cross terms of the client's encrypted masks. Either of one inference, or the
//! linear layers of several that are prepared together.

use std::sync::Arc;

use super::WINDOW;
use crate::{
    arith::sample::SecureRng,
    he::HeServer as HeKeys,
    model::{NodeId, ServerWeights},
    protocol::{
        Evaluator, HeItem, HeTurn, KeySets, Machine, Message, PackedShare, Plan, ProtocolError, Result,
        ServerCorrelation, ServerLinear, Turn, WorkSpan, operands::Operands,
    },
};

/// Items in work at once: one less than the client has on their way, so that the next one has been sent when this side asks
/// for it, and a finished response never waits for the client.
const IN_WORK: usize = WINDOW - 1;

/// What the server's masks are of.
enum Masks {
    One(Arc<ServerCorrelation>),
    Several(Vec<ServerLinear>),
}

/// The server's machine of the HE lane. Responses leave in the order of the items.
pub struct HeServer {
    plan: Arc<Plan>,
    masks: Masks,
    evaluator: Evaluator,
    rng: SecureRng,
    next: usize,
    working: Option<NodeId>,
    /// Responses sent.
    sent: usize,
    prepared: bool,
}

impl HeServer {
    /// A machine that does the offline part of all HE items of one inference.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ServerCorrelation>,
        weights: Arc<ServerWeights>,
        keys: impl Into<KeySets<HeKeys>>,
        rng: SecureRng,
    ) -> Self {
        Self::with(plan, Masks::One(correlation), weights, keys.into(), rng)
    }

    /// A machine that does the HE items that [`crate::protocol::Settings::together`] inferences share.
    pub fn joint(
        plan: Arc<Plan>,
        weights: Arc<ServerWeights>,
        keys: impl Into<KeySets<HeKeys>>,
        rng: SecureRng,
    ) -> Self {
        let inferences = (0..plan.settings.together).map(|_| ServerLinear::default()).collect();
        Self::with(plan, Masks::Several(inferences), weights, keys.into(), rng)
    }

    fn with(
        plan: Arc<Plan>,
        masks: Masks,
        weights: Arc<ServerWeights>,
        keys: KeySets<HeKeys>,
        mut rng: SecureRng,
    ) -> Self {
        let evaluator = Evaluator::new(plan.clone(), weights, keys, rng.fork());
        Self { plan, masks, evaluator, rng, next: 0, working: None, sent: 0, prepared: false }
    }

    /// What the online phase goes on with.
    pub fn into_evaluator(self) -> Evaluator {
        self.evaluator
    }

    fn lane<'a>(&self, plan: &'a Plan) -> &'a [HeTurn] {
        match self.masks {
            Masks::One(_) => plan.he_lane(),
            Masks::Several(_) => plan.joint_lane(),
        }
    }

    /// What each inference goes on with, after [`Self::joint`].
    pub fn into_linear(self) -> Vec<ServerLinear> {
        match self.masks {
            Masks::One(_) => Vec::new(),
            Masks::Several(inferences) => inferences,
        }
    }

    /// Reads an item's ciphertexts and hands its tasks over, if it is answered now.
    fn start(&mut self, turn: HeTurn, matrices: Vec<Vec<u8>>) -> Result<()> {
        let plan = self.plan.clone();
        let (id, work) = &plan.he[turn.item];
        self.working = Some(*id);
        self.evaluator.load(turn.item, matrices)?;
        if !turn.answered {
            return Ok(());
        }
        match (&self.masks, work) {
            (Masks::One(correlation), HeItem::Product(..)) => {
                let masks = Operands::of(&plan.graph, *id)?.masks(&plan.graph, &mut self.rng);
                self.evaluator.start_product(turn.item, &masks.left_mask, &masks.right_mask)?;
                correlation.put_masks(*id, masks);
                Ok(())
            }
            _ => self.evaluator.start_linear(turn.item),
        }
    }

    /// Waits for the oldest item.
    fn finish_oldest(&mut self) -> Result<Option<Message>> {
        let Some(evaluated) = self.evaluator.finish_oldest()? else { return Ok(None) };
        let (node, share) = (evaluated.node, evaluated.share);
        self.working = Some(node);
        self.sent += 1;
        match (&mut self.masks, &self.plan.he[evaluated.item].1) {
            (Masks::One(correlation), HeItem::Linear(..)) => correlation.put_linear(node, share),
            (Masks::One(correlation), HeItem::Product(..)) => correlation.with_product(node, share.len(), |sum| {
                sum.iter_mut().zip(share.iter()).for_each(|(s, &z)| *s = s.wrapping_add(z));
            }),
            (Masks::Several(inferences), _) => {
                let edge = self.plan.graph.edge(self.plan.graph.node(node).output);
                let parts = share.chunks(edge.len().max(1));
                inferences.iter_mut().zip(parts).for_each(|(own, z)| own.put(node, PackedShare::new(z, edge.ring)));
            }
        }
        Ok(Some(Message::HeResponse { item: evaluated.item as u32, responses: evaluated.responses }))
    }
}

impl Machine for HeServer {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        if !self.prepared {
            self.evaluator.prepare()?;
            self.prepared = true;
        }
        let plan = self.plan.clone();
        let lane = self.lane(&plan);
        if let Some(message) = incoming {
            let found = message.name();
            match (lane.get(self.next), message) {
                (Some(&turn), Message::HeUpload { item, matrices }) if item as usize == turn.item => {
                    self.start(turn, matrices)?;
                }
                _ => {
                    let expected = "the encrypted shares of the next item";
                    return Err(ProtocolError::Unexpected { lane: "server HE lane", expected, found });
                }
            }
            self.next += 1;
        }
        // What needs a response that has not left cannot have been sent.
        if lane.get(self.next).is_some_and(|turn| turn.after <= self.sent && self.evaluator.in_work() < IN_WORK) {
            return Ok(Turn::Receive);
        }
        Ok(self.finish_oldest()?.map_or(Turn::Done, Turn::Send))
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        ((self.next - self.evaluator.in_work()) as u64, self.lane(&self.plan).len() as u64)
    }

    fn take_spans(&mut self) -> Vec<WorkSpan> {
        self.evaluator.take_spans()
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
        let correlation = Arc::new(ClientCorrelation::draw([1; 16], plan, tables, &mut rng));
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
