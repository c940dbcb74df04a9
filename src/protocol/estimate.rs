//! Seconds and memory of an inference, from its forecast and from what operations cost on this machine.
//!
//! Work is counted in blocks of AES on one thread and in transforms of one limb on the server's device, the two gauges that a
//! program takes at its start; the ratios below were fitted to whole runs on one machine. Both parties' work is added up and
//! shared by the threads of both, which holds where they run side by side, in one process or in two.

use super::{Circumstances, CotDemand, Flow, Forecast, HePhase, NodeForecast, OtMethod, OtPlan, Plan, Result};
use crate::{
    he::ParameterSet,
    model::{NodeId, Op},
    mpc::{block::BLOCK_BYTES, garble::half_gates::GATE_BYTES},
    packing::Counts,
};

// Work for one of a kind in blocks of AES, both parties together.
/// Garbling an AND gate, or as many bytes of projections.
const GARBLED: f64 = 3.0;
/// Evaluating it: fewer hashes, but its table comes from memory.
const EVALUATED: f64 = 1.5;
/// An AND gate in both phases.
pub(super) const AND: f64 = GARBLED + EVALUATED;
/// A COT of the extension.
pub(super) const IKNP_COT: f64 = 9.0;
/// A silent COT, and its bytes.
pub(super) const SILENT_COT: f64 = 10.0;
pub(super) const SILENT_BYTES: f64 = 0.2;
/// Bytes of the OTs that silent OT begins with, for each direction that is used.
pub(super) const SILENT_BASE: f64 = 1.2e6;
/// A byte that a layer on shares sends: it is hashed at both ends.
pub(super) const SHARED_BYTE: f64 = 6.0;
/// A byte of a product's message: masked twice at one end and once at the other, packed and unpacked.
const PRODUCT_BYTE: f64 = 1.0;
/// A byte on the line: its frame is checked at both ends, and copied.
const LINE_BYTE: f64 = 0.5;
/// A product of two numbers in the plain linear algebra online.
const MULTIPLY: f64 = 0.15;

/// A product of one limb, in transforms.
pub(super) const PRODUCT: f64 = 0.5;
/// A term of a modular matrix product, a ciphertext's limb wide, in transforms; by the rows of `encrypted_matmul` in
/// `kernels-bench/RESULTS.md`.
const TERM: f64 = 0.1;
/// Noise of a coefficient that leaves the server, in transforms of `2^13` coefficients.
const FLOOD: f64 = 2.0 / 8192.0;

// Wall time over the sums above, fitted to runs of two models on an idle machine.
/// Seconds of an offline phase besides its work.
const OFFLINE_START: f64 = 0.5;
/// Offline, where lanes wait for each other now and then.
const OFFLINE_WALL: f64 = 1.35;
/// Online, where one party waits for the other and most steps are short.
const ONLINE_WALL: f64 = 4.3;

/// Seconds of work on all threads, the line apart.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct NodeSeconds {
    /// The node.
    #[serde(skip)]
    pub node: NodeId,
    /// Offline.
    pub offline: f64,
    /// Online.
    pub online: f64,
}

/// What an inference will take; of what several share, its part.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Work of every node, in execution order.
    pub nodes: Vec<NodeSeconds>,
    /// Seconds of the offline phase.
    pub offline: f64,
    /// Seconds of the online phase.
    pub online: f64,
    /// Bytes that both parties keep for the inference at the end of its offline phase, tables on disk apart.
    pub memory: u64,
}

impl Estimate {
    /// The estimate of a plan.
    ///
    /// # Errors
    /// A parameter set that cannot be built.
    pub fn new(plan: &Plan, forecast: &Forecast, c: &Circumstances) -> Result<Self> {
        let blocks = |blocks: f64| blocks * c.aes_block / (2 * c.threads.max(1)) as f64;
        let seconds = |node: &NodeForecast| {
            let (offline, online) = work(plan, node);
            let line = |flow: &Flow| LINE_BYTE * (flow.up + flow.down) as f64;
            NodeSeconds {
                node: node.node,
                offline: blocks(offline + line(&node.offline) + line(&node.joint) / forecast.together as f64),
                online: blocks(online + line(&node.online)),
            }
        };
        let mut nodes: Vec<NodeSeconds> = forecast.nodes.iter().map(seconds).collect();
        for (id, item) in &plan.he {
            let (node, params) = (&forecast.nodes[id.0], item.set().params()?);
            let seconds = transforms(&node.he, params) * c.ntt;
            match item.phase(&plan.settings) {
                HePhase::Offline => nodes[id.0].offline += seconds,
                HePhase::Split | HePhase::Online => nodes[id.0].online += seconds,
            }
            nodes[id.0].offline += transforms(&node.joint_he, params) * c.ntt / forecast.together as f64;
        }
        let sum = |f: fn(&NodeSeconds) -> f64| nodes.iter().map(f).sum::<f64>();
        let line = |bytes: u64| bytes as f64 * c.byte;
        // Offline both directions of the line are busy at the same time, and what is computed next does not wait for it.
        let joint = forecast.joint.part(forecast.together);
        let busy = line((forecast.offline.up + joint.up).max(forecast.offline.down + joint.down));
        let rounds = forecast.offline_rounds as f64 + forecast.joint_rounds as f64 / forecast.together as f64;
        let ahead = super::offline::WINDOW as f64;
        let offline = (OFFLINE_START + OFFLINE_WALL * sum(|n| n.offline)).max(busy) + rounds / ahead * c.round_trip;
        let sent = forecast.online.up + forecast.online.down;
        let online = ONLINE_WALL * sum(|n| n.online) + line(sent) + forecast.online_flights as f64 / 2.0 * c.round_trip;
        Ok(Self { nodes, offline, online, memory: memory(plan, forecast) + 2 * plan.joint_bytes() })
    }
}

/// Work of a node besides HE in blocks of AES: offline and online.
fn work(plan: &Plan, node: &NodeForecast) -> (f64, f64) {
    let cot = match plan.settings.ot {
        OtMethod::Iknp => IKNP_COT,
        OtMethod::Silent => SILENT_COT,
    };
    let ots = cot * node.ots as f64;
    match (plan.ot(node.node), &plan.graph.node(node.node).op) {
        (Some(OtPlan::Garbled(g)), _) => {
            let gates = g.table_bytes() as f64 / GATE_BYTES as f64;
            (ots + GARBLED * gates, EVALUATED * gates)
        }
        (Some(OtPlan::Shared(_)), _) => (ots, SHARED_BYTE * (node.online.up + node.online.down) as f64),
        (Some(OtPlan::Product(_)), _) => (ots + PRODUCT_BYTE * (node.offline.up + node.offline.down) as f64, 0.0),
        (None, Op::Linear { inputs, .. }) => {
            let inner: usize = inputs.iter().map(|&e| plan.graph.edge(e).cols).sum();
            (0.0, MULTIPLY * (inner * plan.graph.edge(plan.graph.node(node.node).output).len()) as f64)
        }
        // Three products of the same shape, as each party multiplies in the clear.
        (None, Op::Product { left, right, heads, .. }) => {
            let (l, r) = (plan.graph.edge(*left), plan.graph.edge(*right));
            (0.0, 3.0 * MULTIPLY * (l.len() * r.len() / heads / l.cols.max(1)) as f64)
        }
        (None, _) => (0.0, 0.0),
    }
}

/// Homomorphic work in transforms of one limb of 2^13 coefficients.
pub(super) fn transforms(he: &Counts, params: &ParameterSet) -> f64 {
    let (n, gauged) = (params.n() as f64, 8192.0f64);
    let transforms = (he.server_ntts + he.client_ntts) as f64 * n.log2() / gauged.log2();
    let products = PRODUCT * (he.products * params.limbs() as u64) as f64;
    let noise = FLOOD * gauged * he.ciphertexts_down as f64 * params.limbs() as f64;
    // Terms of a modular matrix product have no transform to hide behind.
    let terms = TERM * he.scalar_products as f64 * params.limbs() as f64;
    (transforms + products + noise + terms) * n / gauged
}

/// OTs, shares and masks of both parties.
fn memory(plan: &Plan, forecast: &Forecast) -> u64 {
    let CotDemand { client_receives, client_sends } = plan.pooled_cots();
    let pools = (client_receives + client_sends) * 2 * BLOCK_BYTES;
    // Two parties, 8 bytes an element, and masks of as many elements at the server.
    let shares = plan.graph.edges.iter().map(|e| e.len() * 24).sum::<usize>();
    let labels = forecast.nodes.iter().filter(|n| n.and_gates > 0).map(|n| n.ots).sum::<u64>() * BLOCK_BYTES as u64;
    (pools + shares) as u64 + labels
}
