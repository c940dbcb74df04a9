//! What an inference will cost, from public numbers alone: every message is of a size that follows from the plan, so that
//! bytes, products, key switches, gates and OTs are exact before anything has run.

use super::{
    HePhase, HeTurn, Message, OtMethod, OtPlan, Plan, Result,
    he_plan::{ItemCosts, item_costs},
    message::FRAME_PART,
    offline::fill_turns,
    operands::Operands,
};
use crate::{
    arith::{ShareModulus, bits::packed_len},
    model::{EdgeId, NodeId},
    mpc::{
        block::BLOCK_BYTES,
        garble::half_gates::tables_len,
        ot::{base::POINT_BYTES, iknp},
    },
    packing::Counts,
};

/// Messages (a long one counts for each of its frames) and the bytes of their payloads, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Flow {
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// Messages from client to server.
    pub messages_up: u64,
    /// Messages from server to client.
    pub messages_down: u64,
}

/// Frames of a message.
fn frames(bytes: u64) -> u64 {
    bytes.div_ceil(FRAME_PART as u64).max(1)
}

impl Flow {
    fn up(&mut self, bytes: u64) {
        self.up += bytes;
        self.messages_up += frames(bytes);
    }

    fn down(&mut self, bytes: u64) {
        self.down += bytes;
        self.messages_down += frames(bytes);
    }

    /// Bytes with `overhead` for each message: up and down.
    pub fn framed(&self, overhead: u64) -> (u64, u64) {
        (self.up + self.messages_up * overhead, self.down + self.messages_down * overhead)
    }
}

impl std::ops::AddAssign for Flow {
    fn add_assign(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
        self.messages_up += other.messages_up;
        self.messages_down += other.messages_down;
    }
}

impl std::ops::SubAssign for Flow {
    fn sub_assign(&mut self, other: Self) {
        self.up -= other.up;
        self.down -= other.down;
        self.messages_up -= other.messages_up;
        self.messages_down -= other.messages_down;
    }
}

/// What a node costs.
#[derive(Clone, Debug)]
pub struct NodeForecast {
    /// The node.
    pub node: NodeId,
    /// Its messages of the offline phase. Random OTs that are made for all nodes together are not among them.
    pub offline: Flow,
    /// Its messages of the online phase.
    pub online: Flow,
    /// Its messages of the work that [`Forecast::together`] inferences share.
    pub joint: Flow,
    /// Homomorphic work of one inference alone.
    pub he: Counts,
    /// Homomorphic work that several share.
    pub joint_he: Counts,
    /// AND gates.
    pub and_gates: u64,
    /// OTs of both directions.
    pub ots: u64,
    /// Flights of its messages online, one after the other.
    pub flights: usize,
}

/// What an inference costs, keys and manifest apart.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// One entry a node, in execution order.
    pub nodes: Vec<NodeForecast>,
    /// Inferences whose linear layers are prepared together; 1 where each is for itself.
    pub together: u64,
    /// All messages of the linear layers that are prepared together, before the inferences' own offline phases.
    pub joint: Flow,
    /// Rounds of these, the opening apart.
    pub joint_rounds: u64,
    /// Homomorphic work of these.
    pub joint_he: Counts,
    /// All messages of the offline lanes of one inference, those of the nodes included.
    pub offline: Flow,
    /// All messages of the online lane.
    pub online: Flow,
    /// Rounds of the offline phase's longer lane, as a meter counts them.
    pub offline_rounds: u64,
    /// Rounds of the online phase. Of layers on shares, whose messages cross, the most that a meter can count.
    pub online_rounds: u64,
    /// Flights of the online phase: how often a message waits for one of the other direction.
    pub online_flights: u64,
    /// Homomorphic work of all nodes for one inference alone.
    pub he: Counts,
    /// AND gates of all nodes.
    pub and_gates: u64,
    /// OTs of all nodes.
    pub ots: u64,
}

impl Forecast {
    /// The forecast of a plan.
    ///
    /// # Errors
    /// Sizes that cannot be counted.
    pub fn new(plan: &Plan) -> Result<Self> {
        let empty = |(node, _)| NodeForecast {
            node,
            offline: Flow::default(),
            online: Flow::default(),
            joint: Flow::default(),
            he: Counts::default(),
            joint_he: Counts::default(),
            and_gates: 0,
            ots: 0,
            flights: 0,
        };
        let mut nodes: Vec<NodeForecast> = plan.graph.iter().map(empty).collect();
        he(plan, &mut nodes)?;
        let ot_rounds = ot(plan, &mut nodes)?;
        online(plan, &mut nodes)?;
        let (mut offline, mut online) = base_and_pools(plan);
        let (mut he, mut and_gates, mut ots) = (Counts::default(), 0, 0);
        let (mut joint, mut joint_he) = (Flow::default(), Counts::default());
        for node in &nodes {
            offline += node.offline;
            online += node.online;
            he += node.he;
            joint += node.joint;
            joint_he += node.joint_he;
            and_gates += node.and_gates;
            ots += node.ots;
        }
        let (online_rounds, online_flights) = online_rounds(plan, &nodes);
        let offline_rounds = lane_rounds(plan.he_lane()).max(ot_rounds);
        let together = if plan.joint_lane().is_empty() { 1 } else { u64::from(plan.settings.together) };
        let joint_rounds = lane_rounds(plan.joint_lane());
        Ok(Self {
            nodes,
            together,
            joint,
            joint_rounds,
            joint_he,
            offline,
            online,
            offline_rounds,
            online_rounds,
            online_flights,
            he,
            and_gates,
            ots,
        })
    }
}

impl Flow {
    /// One part of `parts`, every number rounded up.
    pub fn part(&self, parts: u64) -> Self {
        let part = |x: u64| x.div_ceil(parts.max(1));
        Self {
            up: part(self.up),
            down: part(self.down),
            messages_up: part(self.messages_up),
            messages_down: part(self.messages_down),
        }
    }
}

/// Homomorphic work of both phases.
fn he(plan: &Plan, nodes: &mut [NodeForecast]) -> Result<()> {
    for ItemCosts { node, phase, together, up, down, counts } in item_costs(&plan.he, &plan.settings)? {
        let node = &mut nodes[node.0];
        // The number of parts has eight bytes.
        let (up, down) = (Message::payload_len(3, &up), Message::payload_len(3, &down));
        if together > 1 {
            node.joint.up(up);
            node.joint.down(down);
            node.joint_he += counts;
            continue;
        }
        node.he += counts;
        match phase {
            HePhase::Offline => {
                node.offline.up(up);
                node.offline.down(down);
            }
            HePhase::Split => {
                node.offline.up(up);
                node.online.down(down);
            }
            HePhase::Online => {
                node.online.up(up);
                node.online.down(down);
            }
        }
    }
    Ok(())
}

/// Rounds of an HE lane: the client sends some ahead.
fn lane_rounds(lane: &[HeTurn]) -> u64 {
    let items = lane.iter().filter(|turn| turn.answered).count() as u64;
    items.saturating_sub(super::offline::WINDOW as u64 - 1).max(items.min(1))
}

/// Bytes by which an end that chooses asks for `count` OTs.
fn ask(plan: &Plan, count: usize) -> usize {
    match plan.settings.ot {
        OtMethod::Iknp => iknp::extend_len(count).unwrap_or(usize::MAX),
        OtMethod::Silent => count.div_ceil(8),
    }
}

/// The OT lane; gives its rounds.
fn ot(plan: &Plan, nodes: &mut [NodeForecast]) -> Result<u64> {
    let mut chunks = 0;
    for node in nodes {
        let Some(ot) = plan.ot(node.node) else { continue };
        node.ots = ot.cots().total() as u64;
        match ot {
            OtPlan::Garbled(g) => {
                chunks += g.chunks();
                node.and_gates = g.and_gates();
                let circuit = g.gadget.circuit();
                for count in (0..g.chunks()).map(|c| g.chunk(c).len()) {
                    let tables = tables_len(circuit, count).unwrap_or(usize::MAX);
                    node.offline.up(Message::payload_len(2, &[ask(plan, count * circuit.evaluator_inputs())]));
                    node.offline.down(Message::payload_len(2, &[tables]));
                }
            }
            OtPlan::Product(p) => {
                chunks += p.chunks();
                for chunk in 0..p.chunks() {
                    let shape = p.shape(chunk)?;
                    let asked = ask(plan, shape.ots());
                    node.offline.up(Message::payload_len(2, &[asked]));
                    let back = if p.both { asked } else { 0 };
                    node.offline.down(Message::payload_len(2, &[shape.message_len(), back]));
                    if p.both {
                        node.offline.up(Message::payload_len(2, &[shape.message_len()]));
                    }
                }
            }
            OtPlan::Shared(_) => {}
        }
    }
    let chunks = chunks as u64;
    let ahead = chunks.saturating_sub(super::offline::OT_WINDOW as u64 - 1).max(chunks.min(1));
    Ok(1 + fill_turns(plan).len() as u64 + ahead)
}

/// Bytes of ring elements on the wire.
fn packed_bytes(count: usize, ring: ShareModulus) -> usize {
    packed_len(count, ring.bits()).unwrap_or(usize::MAX)
}

/// The online lane.
fn online(plan: &Plan, nodes: &mut [NodeForecast]) -> Result<()> {
    let graph = &plan.graph;
    let packed = |edge: EdgeId, ring: ShareModulus| packed_bytes(graph.edge(edge).len(), ring);
    for node in nodes {
        let own = graph.node(node.node);
        if plan.is_local(node.node) {
            continue;
        }
        if plan.he_online(node.node).is_some() {
            let out = graph.edge(own.output);
            node.online.up(Message::payload_len(1, &[packed(own.output, out.ring)]));
            node.flights = 2;
            continue;
        }
        match plan.ot(node.node) {
            Some(OtPlan::Shared(s)) => {
                for cost in (0..s.chunks()).map(|c| s.cost(c)) {
                    let [up, down] = cost.messages.map(|m| m as u64);
                    let empty = Message::payload_len(2, &[0]);
                    node.online += Flow {
                        up: cost.up as u64 + up * empty,
                        down: cost.down as u64 + down * empty,
                        messages_up: up,
                        messages_down: down,
                    };
                }
                node.flights = s.cost(0).rounds;
            }
            Some(OtPlan::Garbled(g)) => {
                let (circuit, mut reply) = (g.gadget.circuit(), 0);
                for chunk in 0..g.chunks() {
                    let labels = g.chunk(chunk).len() * circuit.garbler_inputs() * BLOCK_BYTES;
                    node.online.down(Message::payload_len(2, &[labels]));
                    reply += packed_bytes(g.elements(chunk).len(), g.gadget.ring_out());
                }
                node.online.up(Message::payload_len(1, &[reply]));
                node.flights = 2;
            }
            _ => {
                let Operands { left, right } = Operands::of(graph, node.node)?;
                let right = right.map_or(0, |x| packed(x.edge, x.ring));
                node.online.down(Message::payload_len(1, &[packed(left.edge, left.ring), right]));
                let out = graph.edge(own.output);
                node.online.up(Message::payload_len(1, &[packed(own.output, out.ring)]));
                node.flights = 2;
            }
        }
    }
    Ok(())
}

/// What belongs to no node: base OTs and random OTs offline, the inputs and the opened output online.
fn base_and_pools(plan: &Plan) -> (Flow, Flow) {
    let (mut offline, mut online) = (Flow::default(), Flow::default());
    let choice = iknp::COLUMNS * POINT_BYTES;
    offline.up(Message::payload_len(0, &[POINT_BYTES]));
    offline.down(Message::payload_len(0, &[choice, POINT_BYTES]));
    offline.up(Message::payload_len(0, &[choice]));
    for (up, down) in fill_turns(plan) {
        offline.up(Message::payload_len(0, &[up]));
        offline.down(Message::payload_len(0, &[down]));
    }
    let graph = &plan.graph;
    let packed = |edge: EdgeId| packed_bytes(graph.edge(edge).len(), graph.edge(edge).ring);
    online.up(Message::payload_len(0, &[packed(graph.embedding), graph.pool.map_or(0, packed)]));
    online.down(Message::payload_len(0, &[packed(graph.output)]));
    (offline, online)
}

/// Rounds as a meter counts them, and flights.
fn online_rounds(plan: &Plan, nodes: &[NodeForecast]) -> (u64, u64) {
    // The inputs, and the output that answers.
    let (mut rounds, mut flights) = (1, 2);
    for stage in &plan.graph.stages {
        let in_stage = || stage.interactive.iter().map(|id| &nodes[id.0]);
        let shared = |node: &&NodeForecast| matches!(plan.ot(node.node), Some(OtPlan::Shared(_)));
        // Every message of a layer on shares that comes finds one sent before it.
        let crossing: u64 = in_stage().filter(shared).map(|n| n.online.messages_down).sum();
        let asked = u64::from(in_stage().any(|n| !shared(&n)));
        rounds += crossing.max(asked);
        flights += in_stage().map(|n| n.flights as u64).max().unwrap_or(0);
    }
    (rounds, flights)
}
