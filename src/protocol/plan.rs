//! What both parties derive from a graph alone: circuits, chunks, the order of the offline work.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    CotPools, LayerKind, LinearMode, Method, OtMethod, PackedShare, ProtocolError, Result, SessionId, SetId, Settings,
    he_plan::{HeCosts, HeItem, HePhase, he_costs, he_items, multiplied_by_he},
};
use crate::{
    arith::ShareModulus,
    he::ParameterSet,
    model::{Function, Graph, NodeId, Op, Stage},
    mpc::{
        block::Block,
        garble::{
            Gadget, GadgetError,
            half_gates::{GROUP, tables_len},
        },
        shared::{Cost, Party, ProductShape, Role, SharedFunction},
    },
};

/// Most bytes that a party holds in memory of linear layers that are prepared together, for one connection.
pub const JOINT_MEMORY: u64 = 4 << 30;

/// Correlated OTs of one chunk: 2 MiB of extension matrix.
const CHUNK_OTS: usize = 1 << 17;
/// Bytes of garbled tables of one chunk.
const CHUNK_TABLES: usize = 16 << 20;
/// Elements of one chunk of a layer on shares: messages of a few MiB, and work for all threads.
const CHUNK_SHARED: usize = 1 << 15;
/// Bytes of one product message.
const CHUNK_PRODUCT: usize = 8 << 20;

/// A garbled node: one gadget, evaluated for many instances.
#[derive(Clone)]
pub struct GarbledPlan {
    /// The gadget of one instance.
    pub gadget: Arc<Gadget>,
    /// Instances in all.
    pub instances: usize,
    /// Instances of a chunk (the last one may have fewer).
    pub per_chunk: usize,
}

impl GarbledPlan {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.instances.div_ceil(self.per_chunk)
    }

    /// Instances of a chunk.
    pub fn chunk(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.per_chunk;
        start..(start + self.per_chunk).min(self.instances)
    }

    /// Elements of a chunk.
    pub fn elements(&self, index: usize) -> std::ops::Range<usize> {
        let range = self.chunk(index);
        range.start * self.gadget.cols()..range.end * self.gadget.cols()
    }

    /// Bytes of tables in all, projections included.
    pub fn table_bytes(&self) -> u64 {
        tables_len(self.gadget.circuit(), self.instances).map_or(0, |bytes| bytes as u64)
    }

    /// AND gates in all.
    pub fn and_gates(&self) -> u64 {
        self.gadget.circuit().and_count() as u64 * self.instances as u64
    }
}

/// A node whose offline part is products by correlated OT.
#[derive(Clone, Copy, Debug)]
pub struct ProductPlan {
    /// Rows (of squares: elements; of scalings: pairs of row and head) in all.
    pub rows: usize,
    /// Rows of a chunk.
    pub per_chunk: usize,
    /// Ring elements of a message: 1 for squares, columns of a head for scalings.
    pub width: usize,
    /// Ring of the products; operands of a wider one are reduced to it.
    pub ring: ShareModulus,
    /// Whether the products of the other direction are needed too.
    pub both: bool,
}

impl ProductPlan {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.rows.div_ceil(self.per_chunk)
    }

    /// Rows of a chunk.
    pub fn chunk(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.per_chunk;
        start..(start + self.per_chunk).min(self.rows)
    }

    /// Shape of a chunk's messages.
    pub fn shape(&self, index: usize) -> Result<ProductShape> {
        Ok(ProductShape::new(self.chunk(index).len(), self.width, self.ring)?)
    }
}

/// A node that is evaluated on shares, online, chunk by chunk side by side.
#[derive(Clone, Debug)]
pub struct SharedPlan {
    /// The function.
    pub function: SharedFunction,
    /// Elements in all.
    pub elements: usize,
    /// Elements of a chunk (the last one may have fewer): whole rows.
    pub per_chunk: usize,
    /// What a full chunk costs, and the last one.
    costs: [Cost; 2],
}

impl SharedPlan {
    fn new(function: SharedFunction, elements: usize) -> Result<Self> {
        let row = function.columns();
        let per_chunk = (CHUNK_SHARED / row).max(1) * row;
        let last = match elements % per_chunk {
            0 => per_chunk.min(elements),
            rest => rest,
        };
        let costs = [function.cost(per_chunk.min(elements))?, function.cost(last)?];
        Ok(Self { function, elements, per_chunk, costs })
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.elements.div_ceil(self.per_chunk)
    }

    /// Elements of a chunk.
    pub fn chunk(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.per_chunk;
        start..(start + self.per_chunk).min(self.elements)
    }

    /// What a chunk costs.
    pub fn cost(&self, index: usize) -> &Cost {
        &self.costs[usize::from(index + 1 >= self.chunks())]
    }

    /// COTs of a chunk.
    pub fn cots(&self, index: usize) -> CotDemand {
        let cots = self.cost(index).cots;
        CotDemand { client_receives: cots.server_sends, client_sends: cots.client_sends }
    }

    /// COTs of all chunks.
    pub fn all_cots(&self) -> CotDemand {
        (0..self.chunks()).map(|c| self.cots(c)).sum()
    }

    /// Bytes of all messages, up and down.
    pub fn bytes(&self) -> (u64, u64) {
        let chunks = (0..self.chunks()).map(|c| self.cost(c));
        chunks.fold((0, 0), |sum, c| (sum.0 + c.up as u64, sum.1 + c.down as u64))
    }

    /// The party that evaluates a chunk, with COTs of its own.
    pub(super) fn party(
        &self,
        role: Role,
        session: &SessionId,
        node: NodeId,
        chunk: usize,
        pools: &mut Option<CotPools>,
    ) -> Result<Party> {
        let demand = match role {
            Role::Client => self.cots(chunk),
            Role::Server => self.cots(chunk).reversed(),
        };
        let missing = || ProtocolError::Missing { what: "the OTs of the layers on shares".into() };
        let pools = pools.as_mut().ok_or_else(missing)?.split(demand.client_receives, demand.client_sends)?;
        let session = Block::from_bytes(*session);
        Ok(Party::new(role, pools.sends, pools.receives, session, node.0 as u32, chunk as u32))
    }
}

/// COTs by direction, from the client's point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CotDemand {
    /// The client chooses.
    pub client_receives: usize,
    /// The server chooses.
    pub client_sends: usize,
}

impl CotDemand {
    /// From the other party's point of view.
    pub fn reversed(self) -> Self {
        Self { client_receives: self.client_sends, client_sends: self.client_receives }
    }

    /// Of both directions.
    pub fn total(self) -> usize {
        self.client_receives + self.client_sends
    }
}

impl std::iter::Sum for CotDemand {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            client_receives: a.client_receives + b.client_receives,
            client_sends: a.client_sends + b.client_sends,
        })
    }
}

/// What a node that communicates needs besides HE: offline work of the OT lane, or OTs for its online part.
#[derive(Clone)]
pub enum OtPlan {
    /// Tables and the client's labels.
    Garbled(GarbledPlan),
    /// Products of shares.
    Product(ProductPlan),
    /// Random OTs only: the node is evaluated online.
    Shared(SharedPlan),
}

impl OtPlan {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        match self {
            Self::Garbled(g) => g.chunks(),
            Self::Product(p) => p.chunks(),
            Self::Shared(s) => s.chunks(),
        }
    }

    /// COTs that the node takes.
    pub fn cots(&self) -> CotDemand {
        match self {
            Self::Garbled(g) => {
                CotDemand { client_receives: g.instances * g.gadget.circuit().evaluator_inputs(), client_sends: 0 }
            }
            Self::Product(p) => {
                let ots = p.rows * p.ring.bits() as usize;
                CotDemand { client_receives: ots, client_sends: if p.both { ots } else { 0 } }
            }
            Self::Shared(s) => s.all_cots(),
        }
    }
}

/// What both parties derive from a graph.
pub struct Plan {
    /// The graph.
    pub graph: Graph,
    /// What the parties agreed on.
    pub settings: Settings,
    /// Homomorphic work, in execution order.
    pub he: Vec<(NodeId, HeItem)>,
    he_lane: Vec<HeTurn>,
    joint_lane: Vec<HeTurn>,
    ot: HashMap<NodeId, OtPlan>,
}

/// An item's turn on the HE lane offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeTurn {
    /// Which one of [`Plan::he`].
    pub item: usize,
    /// Responses that the client must have read before: they give shares that it encrypts.
    pub after: usize,
    /// Whether there is a response; if not, the item's ciphertexts wait for the online phase.
    pub answered: bool,
}

impl Plan {
    /// Derives circuits, chunks and packings. `params` is the smallest parameter set, [`SetId::Matmul8192`].
    ///
    /// # Errors
    /// A layer that cannot be evaluated as the settings say, or work that the parameters cannot carry.
    pub fn new(mut graph: Graph, params: &ParameterSet, settings: Settings) -> Result<Self> {
        let mut cache: HashMap<String, Arc<Gadget>> = HashMap::new();
        let mut ot = HashMap::new();
        for (id, node) in graph.iter() {
            match &node.op {
                Op::Garbled { function, .. } => {
                    let plan = match settings.methods.of(LayerKind::of(function)) {
                        Method::Garbled => OtPlan::Garbled(garbled_plan(&graph, id, &mut cache)?),
                        Method::Shared => OtPlan::Shared(shared_plan(&graph, id)?),
                    };
                    ot.insert(id, plan);
                }
                Op::SquareSum { input } if !multiplied_by_he(&graph, id, settings.layout) => {
                    let edge = graph.edge(*input);
                    ot.insert(id, product_plan(edge.len(), 1, edge.ring, false));
                }
                Op::RowScale { input, heads, .. } => {
                    let (edge, ring) = (graph.edge(*input), graph.edge(node.output).ring);
                    ot.insert(id, product_plan(edge.rows * heads, edge.cols / heads, ring, true));
                }
                _ => {}
            }
        }
        let he = he_items(&graph, params, &settings)?;
        let he_lane = self::he_lane(&graph, &he, &settings, false);
        let joint_lane = self::he_lane(&graph, &he, &settings, true);
        if settings.linear == LinearMode::Online {
            graph.stages = stages(&graph, |op| is_local(op, settings.linear));
        }
        Ok(Self { graph, settings, he, he_lane, joint_lane, ot })
    }

    /// Whether each party computes its share of a node alone, online: the client's share of the output is then no mask.
    pub fn is_local(&self, node: NodeId) -> bool {
        is_local(&self.graph.node(node).op, self.settings.linear)
    }

    /// The HE lane's work offline for one inference, in order.
    pub fn he_lane(&self) -> &[HeTurn] {
        &self.he_lane
    }

    /// The same for the linear layers of [`Settings::together`] inferences, which are prepared before.
    pub fn joint_lane(&self) -> &[HeTurn] {
        &self.joint_lane
    }

    /// Most inferences that are prepared together: as many as fill the ciphertexts of the larger ring dimension with the rows of
    /// their bucket.
    pub fn most_together(&self) -> usize {
        most_together(self.graph.tokens)
    }

    /// Bytes that either party holds of linear layers that are prepared together, until the inferences themselves are.
    pub fn joint_bytes(&self) -> u64 {
        let outputs = self.joint_lane.iter().map(|turn| self.graph.edge(self.graph.node(self.he[turn.item].0).output));
        outputs.map(|edge| PackedShare::bytes(edge.len(), edge.ring)).sum::<u64>() * u64::from(self.settings.together)
    }

    /// The node's item of [`Self::he`] if it is answered online, and whether it is encrypted online too.
    pub fn he_online(&self, node: NodeId) -> Option<(usize, bool)> {
        let item = self.he.iter().position(|(id, _)| *id == node)?;
        match self.he[item].1.phase(&self.settings) {
            HePhase::Offline => None,
            HePhase::Split => Some((item, false)),
            HePhase::Online => Some((item, true)),
        }
    }

    /// What the homomorphic work of one inference costs.
    ///
    /// # Errors
    /// Parameters that cannot be built.
    pub fn he_costs(&self) -> Result<HeCosts> {
        he_costs(&self.he, &self.settings)
    }

    /// The Galois elements whose switching keys the server needs, by parameter set, in ascending order.
    pub fn rotation_elements(&self) -> BTreeMap<SetId, Vec<usize>> {
        let mut elements: BTreeMap<SetId, BTreeSet<usize>> = BTreeMap::new();
        for (_, item) in &self.he {
            let of_set = elements.entry(item.set()).or_default();
            item.packings().for_each(|packing| of_set.extend(packing.rotation_elements()));
        }
        elements.into_iter().map(|(set, elements)| (set, elements.into_iter().collect())).collect()
    }

    /// The OT lane's work for a node, if it has any.
    pub fn ot(&self, node: NodeId) -> Option<&OtPlan> {
        self.ot.get(&node)
    }

    /// The plan of a garbled node.
    ///
    /// # Errors
    /// [`ProtocolError::Mismatch`] if the node is not garbled.
    pub fn garbled(&self, node: NodeId) -> Result<&GarbledPlan> {
        match self.ot.get(&node) {
            Some(OtPlan::Garbled(plan)) => Ok(plan),
            _ => Err(ProtocolError::Mismatch { detail: format!("node {} is not a garbled one", node.0) }),
        }
    }

    /// The plan of a node that is evaluated on shares.
    ///
    /// # Errors
    /// [`ProtocolError::Mismatch`] if it is not.
    pub fn shared(&self, node: NodeId) -> Result<&SharedPlan> {
        match self.ot.get(&node) {
            Some(OtPlan::Shared(plan)) => Ok(plan),
            _ => Err(ProtocolError::Mismatch { detail: format!("node {} is not evaluated on shares", node.0) }),
        }
    }

    /// COTs of the layers on shares.
    pub fn shared_cots(&self) -> CotDemand {
        self.ot.values().filter(|p| matches!(p, OtPlan::Shared(_))).map(OtPlan::cots).sum()
    }

    /// COTs that are made at random before anything else: those of the layers on shares, and with silent OT all others.
    pub fn pooled_cots(&self) -> CotDemand {
        match self.settings.ot {
            OtMethod::Iknp => self.shared_cots(),
            OtMethod::Silent => self.all_cots(),
        }
    }

    /// COTs of all nodes.
    pub fn all_cots(&self) -> CotDemand {
        self.ot.values().map(OtPlan::cots).sum()
    }

    /// Bytes of the tables of all garbled nodes.
    pub fn table_bytes(&self) -> u64 {
        self.ot.values().map(|p| if let OtPlan::Garbled(g) = p { g.table_bytes() } else { 0 }).sum()
    }

    /// AND gates of all garbled nodes.
    pub fn and_gates(&self) -> u64 {
        self.ot.values().map(|p| if let OtPlan::Garbled(g) = p { g.and_gates() } else { 0 }).sum()
    }

    /// Nodes with work in the OT lane, in execution order: garbled ones, or product ones, or both.
    pub fn ot_nodes(&self, garbled: bool, products: bool) -> Vec<NodeId> {
        let wanted = |id: &NodeId| match self.ot.get(id) {
            Some(OtPlan::Garbled(_)) => garbled,
            Some(OtPlan::Product(_)) => products,
            Some(OtPlan::Shared(_)) | None => false,
        };
        self.graph.iter().map(|(id, _)| id).filter(wanted).collect()
    }
}

/// Most inferences of a bucket that are prepared together.
pub(super) fn most_together(tokens: usize) -> usize {
    (SetId::Matmul8192.spec().n / tokens.max(1)).clamp(1, usize::from(u16::MAX))
}

fn is_local(op: &Op, linear: LinearMode) -> bool {
    match op {
        Op::Linear { .. } => linear == LinearMode::Offline,
        op => op.is_local(),
    }
}

/// The online schedule: a node runs in the first stage after those of its inputs, local nodes before interactive ones.
fn stages(graph: &Graph, is_local: impl Fn(&Op) -> bool) -> Vec<Stage> {
    let mut ready = vec![0usize; graph.edges.len()];
    let mut stages: Vec<Stage> = Vec::new();
    for (id, node) in graph.iter() {
        let at = node.op.inputs().iter().map(|e| ready[e.0]).max().unwrap_or(0);
        if stages.len() <= at {
            stages.resize(at + 1, Stage::default());
        }
        if is_local(&node.op) {
            stages[at].local.push(id);
            ready[node.output.0] = at;
        } else {
            stages[at].interactive.push(id);
            ready[node.output.0] = at + 1;
        }
    }
    stages
}

/// The offline turns of the items of one inference, or of those that several share.
fn he_lane(graph: &Graph, items: &[(NodeId, HeItem)], settings: &Settings, joint: bool) -> Vec<HeTurn> {
    // Responses after which the client knows its share of an edge.
    let mut known = vec![0usize; graph.edges.len()];
    let (mut lane, mut responses) = (Vec::new(), 0);
    let mut items = items.iter().enumerate().peekable();
    for (id, node) in graph.iter() {
        if is_local(&node.op, settings.linear) {
            known[node.output.0] = node.op.inputs().iter().map(|e| known[e.0]).max().unwrap_or(0);
        }
        let Some((item, (_, work))) = items.next_if(|(_, (node, _))| *node == id) else { continue };
        let phase = work.phase(settings);
        if phase == HePhase::Online {
            continue;
        }
        if joint != (work.together() > 1) {
            // Results of several are there before the others begin, and wait for none of these.
            known[node.output.0] = 0;
            continue;
        }
        let after = work.encrypted().iter().map(|e| known[e.0]).max().unwrap_or(0);
        let answered = phase == HePhase::Offline;
        lane.push(HeTurn { item, after, answered });
        responses += usize::from(answered);
        if is_local(&node.op, settings.linear) {
            known[node.output.0] = responses;
        }
    }
    lane
}

fn garbled_plan(graph: &Graph, id: NodeId, cache: &mut HashMap<String, Arc<Gadget>>) -> Result<GarbledPlan> {
    let node = graph.node(id);
    let Op::Garbled { function, input } = &node.op else {
        return Err(ProtocolError::Mismatch { detail: format!("{} is not garbled", node.name) });
    };
    let (from, to) = (graph.edge(*input), graph.edge(node.output));
    let elements = if matches!(function, Function::Exp(_)) { from.cols } else { 1 };
    let key = format!("{function:?} {:?} {:?} {elements}", from.ring, to.ring);
    let gadget = match cache.get(&key) {
        Some(gadget) => gadget.clone(),
        None => {
            let gadget = build(function, elements, from.ring, to.ring)
                .map_err(|e| ProtocolError::Garble(format!("{}: {e}", node.name)))?;
            cache.entry(key).or_insert(Arc::new(gadget)).clone()
        }
    };
    let instances = from.len() / elements;
    let ots = gadget.circuit().evaluator_inputs().max(1);
    let tables = tables_len(gadget.circuit(), 1).map_err(|e| ProtocolError::Garble(e.to_string()))?.max(1);
    let per_chunk = (CHUNK_OTS / ots).min(CHUNK_TABLES / tables).clamp(1, instances.max(1));
    // Whole lockstep groups where there are several.
    let per_chunk = if per_chunk > GROUP { per_chunk / GROUP * GROUP } else { per_chunk };
    Ok(GarbledPlan { gadget, instances, per_chunk })
}

fn shared_plan(graph: &Graph, id: NodeId) -> Result<SharedPlan> {
    let node = graph.node(id);
    let Op::Garbled { function, input } = &node.op else {
        return Err(ProtocolError::Mismatch { detail: format!("{} is not a non-linear function", node.name) });
    };
    let (from, to) = (graph.edge(*input), graph.edge(node.output));
    let refused = |source| ProtocolError::OnShares { node: node.name.clone(), source };
    let function = crate::model::shared_function(function, from, to).map_err(refused)?;
    SharedPlan::new(function, from.len())
}

fn build(
    function: &Function,
    cols: usize,
    ring_in: ShareModulus,
    ring_out: ShareModulus,
) -> std::result::Result<Gadget, GadgetError> {
    match function {
        Function::Truncate { shift } => Gadget::truncate(ring_in, *shift, ring_out),
        Function::Activation(f) => Gadget::activation(f, ring_in, ring_out),
        Function::Exp(f) => Gadget::exp_row(f, cols, ring_in, ring_out),
        Function::Power { table, numerator, in_frac, out_frac } => {
            Gadget::power(table, &table.pieces(*numerator, *in_frac, *out_frac), ring_in, ring_out)
        }
        Function::Tanh(f) => Gadget::tanh(f, ring_in, ring_out),
    }
}

fn product_plan(rows: usize, width: usize, ring: ShareModulus, both: bool) -> OtPlan {
    let bits = ring.bits() as usize;
    let row_bytes = (width * bits * (bits + 1) / 16).max(1);
    let per_chunk = (CHUNK_OTS / bits).min(CHUNK_PRODUCT / row_bytes).clamp(1, rows.max(1));
    OtPlan::Product(ProductPlan { rows, per_chunk, width, ring, both })
}
