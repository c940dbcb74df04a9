//! What an inference is going to cost, node by node, before it runs: `heliostat plan`, and what a run's report sets beside
//! its measurements.

use std::fmt::{self, Write};

use serde::Serialize;

use super::{
    ReportError,
    fields::{PhaseTotals, Predicted},
    print::{bytes, totals},
};
use crate::{
    he::{GaloisKeys, ParameterSet, SeededCiphertexts},
    model::{Graph, NodeId, Op},
    net::{
        frame::FRAME_OVERHEAD,
        session::{joint_opening, opening},
    },
    protocol::{
        Circumstances, Estimate, Flow, Forecast, HeItem, KEY_BLOCK, LayerKind, Method, NodeForecast, OtPlan, Plan,
        SetId, parameter_set,
    },
};

/// When the garbled tables and correlations of an inference are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Making {
    /// In the offline phase.
    Offline,
    /// Garbled tables in the online phase, layer by layer.
    Interleaved,
    /// In an earlier run.
    Before,
}

/// The costs of one inference by a plan; of what several share, its part.
///
/// # Errors
/// Sizes that cannot be counted.
pub fn predict(plan: &Plan, circumstances: &Circumstances, making: Making) -> Result<Predicted, ReportError> {
    let forecast = Forecast::new(plan)?;
    let estimate = Estimate::new(plan, &forecast, circumstances)?;
    Ok(predicted(plan, &forecast, &estimate, making))
}

fn predicted(plan: &Plan, forecast: &Forecast, estimate: &Estimate, making: Making) -> Predicted {
    let (mut offline, mut online) = (forecast.offline, forecast.online);
    let (mut before, mut after) = (estimate.offline, estimate.online);
    if making == Making::Interleaved {
        for (node, seconds) in forecast.nodes.iter().zip(&estimate.nodes) {
            if let Some(OtPlan::Garbled(_)) = plan.ot(node.node) {
                offline -= node.offline;
                online += node.offline;
                (before, after) = (before - seconds.offline, after + seconds.offline);
            }
        }
    }
    let mut rounds = forecast.offline_rounds + 1;
    if forecast.together > 1 {
        let mut joint = forecast.joint;
        joint += joint_opening();
        offline += joint.part(forecast.together);
        rounds += (forecast.joint_rounds + 1).div_ceil(forecast.together);
    }
    if making == Making::Before {
        (offline, before, rounds) = (Flow::default(), 0.0, 1);
    }
    offline += opening(making == Making::Before);
    let phase = |flow: Flow, seconds: f64, rounds: u64| {
        let (bytes_up, bytes_down) = flow.framed(FRAME_OVERHEAD as u64);
        PhaseTotals { seconds, bytes_up, bytes_down, rounds }
    };
    Predicted {
        offline: phase(offline, before.max(0.0), rounds),
        online: phase(online, after, forecast.online_rounds),
        products: forecast.he.products + forecast.joint_he.products.div_ceil(forecast.together),
        key_switches: forecast.he.key_switches + forecast.joint_he.key_switches.div_ceil(forecast.together),
        and_gates: forecast.and_gates,
        ots: forecast.ots,
    }
}

/// What several inferences share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedJoint {
    /// Inferences whose linear layers are prepared together.
    pub inferences: u64,
    /// Bytes to the server, for all of them.
    pub bytes_up: u64,
    /// Bytes to the client, for all of them.
    pub bytes_down: u64,
    /// Products of ciphertexts and integers, for all of them.
    pub scalar_products: u64,
    /// Ciphertexts to the server, for all of them.
    pub ciphertexts_up: u64,
    /// Ciphertexts to the client, for all of them.
    pub ciphertexts_down: u64,
    /// Bytes that either party holds of them until the inferences themselves are prepared.
    pub memory_bytes: u64,
    /// Seconds of work for one of them, on all threads.
    pub seconds_each: f64,
}

impl PlannedJoint {
    fn new(plan: &Plan, forecast: &Forecast, estimate: &Estimate) -> Option<Self> {
        let shared = |node: &NodeForecast| node.joint_he.ciphertexts_up > 0 || node.joint_he.ciphertexts_down > 0;
        let seconds = forecast.nodes.iter().zip(&estimate.nodes).filter(|(node, _)| shared(node));
        let mut flow = forecast.joint;
        flow += joint_opening();
        let (bytes_up, bytes_down) = flow.framed(FRAME_OVERHEAD as u64);
        (forecast.together > 1).then(|| Self {
            inferences: forecast.together,
            bytes_up,
            bytes_down,
            scalar_products: forecast.joint_he.scalar_products,
            ciphertexts_up: forecast.joint_he.ciphertexts_up,
            ciphertexts_down: forecast.joint_he.ciphertexts_down,
            memory_bytes: plan.joint_bytes(),
            seconds_each: seconds.map(|(_, seconds)| seconds.offline).sum(),
        })
    }
}

/// One node of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedNode {
    /// `layer.name`.
    pub name: String,
    /// Encoder layer.
    pub layer: Option<usize>,
    /// Rows and columns of its output.
    pub shape: (usize, usize),
    /// Bits of the ring of its output.
    pub ring_bits: u32,
    /// How it is computed: packing, product mode or the way of its non-linear layer.
    pub how: String,
    /// Payload bytes of the offline phase, up and down, of what several inferences share its part; OTs that are made for all
    /// nodes together are not among them.
    pub offline_bytes: (u64, u64),
    /// Payload bytes of the online phase, up and down.
    pub online_bytes: (u64, u64),
    /// Flights online: messages one after the other.
    pub flights: usize,
    /// Plaintext-ciphertext products.
    pub products: u64,
    /// Products of ciphertexts and integers, of what several inferences share its part.
    pub scalar_products: u64,
    /// Key switches.
    pub key_switches: u64,
    /// AND gates.
    pub and_gates: u64,
    /// OTs of both directions.
    pub ots: u64,
    /// Seconds of work offline, on all threads.
    pub offline_seconds: f64,
    /// Seconds of work online.
    pub online_seconds: f64,
}

/// A plan for readers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// The model's name.
    pub model: String,
    /// Tokens of the bucket.
    pub bucket: usize,
    /// The link, as it was given.
    pub link: String,
    /// Where the homomorphic part would be computed.
    pub backend: String,
    /// How OTs are made.
    pub ot: String,
    /// What the layout of ciphertexts economises.
    pub layout: String,
    /// Why, where it was left to the program.
    pub reasons: Vec<String>,
    /// The whole inference.
    pub predicted: Predicted,
    /// What it shares with others, of which it bears its part.
    pub joint: Option<PlannedJoint>,
    /// Bytes of the client's keys, once a connection.
    pub key_bytes: u64,
    /// Bytes that both parties keep in memory between the phases.
    pub memory_bytes: u64,
    /// Bytes of garbled tables on the client's disk.
    pub table_bytes: u64,
    /// Every node, in execution order.
    pub nodes: Vec<PlannedNode>,
}

/// What a plan is made for, in words.
#[derive(Clone, Debug)]
pub struct Names {
    /// The model's name.
    pub model: String,
    /// The link.
    pub link: String,
    /// The backend.
    pub backend: String,
    /// Reasons of a decision.
    pub reasons: Vec<String>,
}

impl PlanReport {
    /// The report of a plan.
    ///
    /// # Errors
    /// Sizes that cannot be counted.
    pub fn new(plan: &Plan, circumstances: &Circumstances, names: Names) -> Result<Self, ReportError> {
        let forecast = Forecast::new(plan)?;
        let estimate = Estimate::new(plan, &forecast, circumstances)?;
        let together = forecast.together;
        let planned = |(node, seconds): (&NodeForecast, &crate::protocol::NodeSeconds)| {
            let (own, out) = (plan.graph.node(node.node), plan.graph.edge(plan.graph.node(node.node).output));
            let joint = node.joint.part(together);
            PlannedNode {
                name: own.name.clone(),
                layer: own.layer,
                shape: (out.rows, out.cols),
                ring_bits: out.ring.bits(),
                how: how(plan, node.node),
                offline_bytes: (node.offline.up + joint.up, node.offline.down + joint.down),
                online_bytes: (node.online.up, node.online.down),
                flights: node.flights,
                products: node.he.products,
                scalar_products: node.he.scalar_products + node.joint_he.scalar_products.div_ceil(together),
                key_switches: node.he.key_switches,
                and_gates: node.and_gates,
                ots: node.ots,
                offline_seconds: seconds.offline,
                online_seconds: seconds.online,
            }
        };
        Ok(Self {
            model: names.model,
            bucket: plan.graph.tokens,
            link: names.link,
            backend: names.backend,
            ot: plan.settings.ot.name().into(),
            layout: plan.settings.layout.name().into(),
            reasons: names.reasons,
            predicted: predicted(plan, &forecast, &estimate, Making::Offline),
            joint: PlannedJoint::new(plan, &forecast, &estimate),
            key_bytes: key_bytes(plan)?,
            memory_bytes: estimate.memory,
            table_bytes: plan.table_bytes(),
            nodes: forecast.nodes.iter().zip(&estimate.nodes).map(planned).collect(),
        })
    }
}

/// Bytes of the keys of every connection, and of those that this plan needs besides.
fn key_bytes(plan: &Plan) -> Result<u64, ReportError> {
    let keys = |params: &ParameterSet, elements: usize| {
        // A public key is an encryption of zero.
        let galois = if elements == 0 { 0 } else { GaloisKeys::byte_len_for(params, elements).unwrap_or(0) };
        (galois + SeededCiphertexts::byte_len(params, 1).unwrap_or(0)) as u64
    };
    let params = parameter_set()?;
    let common = GaloisKeys::elements_for_block(params.n(), KEY_BLOCK);
    let mut sum = keys(&params, common.len());
    for (set, elements) in plan.rotation_elements() {
        if set != SetId::Matmul8192 || elements.iter().any(|g| !common.contains(g)) {
            sum += keys(set.params()?, elements.len());
        }
    }
    Ok(sum)
}

/// How a node is computed, in a few words.
fn how(plan: &Plan, id: NodeId) -> String {
    let graph: &Graph = &plan.graph;
    let item = || plan.he.iter().find(|(node, _)| *node == id).map(|(_, item)| item);
    match (&graph.node(id).op, plan.ot(id)) {
        (Op::Garbled { function, .. }, _) => {
            let kind = LayerKind::of(function);
            let way = match plan.settings.methods.of(kind) {
                Method::Garbled => "garbled",
                Method::Shared => "on shares",
            };
            format!("{} {way}", kind.name())
        }
        (Op::RowSum { .. }, _) => "each party alone".into(),
        (_, Some(OtPlan::Product(p))) => format!("masked, OT in {} bits", p.ring.bits()),
        (op, _) => match (item(), op) {
            (Some(HeItem::Linear(inputs, packing)), _) => {
                let block = inputs.first().map_or(0, |input| input.layout);
                let online = if plan.he_online(id).is_some() { ", online" } else { "" };
                match inputs.first().map_or(1, |input| input.together) {
                    1 => format!("{} packing, {block} features a ciphertext{online}", packing.name()),
                    more => format!("{} packing, {more} inferences a ciphertext", packing.name()),
                }
            }
            (Some(HeItem::Product(terms, _)), _) => {
                let packing = terms.first().map(|(_, packing)| packing);
                let block = packing.map_or(0, |p| {
                    let features = p.spec().heads * p.spec().inner.iter().sum::<usize>();
                    features.div_ceil(p.input_ciphertexts(0).max(1))
                });
                let mode = plan.settings.products.name();
                format!("{mode}, HE in {block} features a ciphertext")
            }
            (None, _) => String::new(),
        },
    }
}

/// The plan for people.
pub fn text(plan: &PlanReport) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, plan);
    out
}

fn write(out: &mut String, r: &PlanReport) -> fmt::Result {
    writeln!(out, "model    {}, bucket of {} tokens", r.model, r.bucket)?;
    writeln!(out, "backend  {}", r.backend)?;
    writeln!(out, "link     {}", r.link)?;
    writeln!(out, "OTs      {}; ciphertexts laid out for {}", r.ot, r.layout)?;
    for reason in &r.reasons {
        writeln!(out, "         {reason}")?;
    }
    let width = r.nodes.iter().map(|n| n.name.len()).max().unwrap_or(0).max(4);
    let hows = r.nodes.iter().map(|n| n.how.len()).max().unwrap_or(0);
    writeln!(
        out,
        "{:<width$} {:>10} {:>4} {:<hows$} {:>9} {:>9} {:>9} {:>9} {:>3} {:>8} {:>7} {:>9} {:>9} {:>8} {:>8}",
        "node",
        "shape",
        "ring",
        "how",
        "off up",
        "off down",
        "on up",
        "on down",
        "fl",
        "products",
        "key sw",
        "ANDs",
        "OTs",
        "off s",
        "on s",
    )?;
    for n in &r.nodes {
        writeln!(
            out,
            "{:<width$} {:>10} {:>4} {:<hows$} {:>9} {:>9} {:>9} {:>9} {:>3} {:>8} {:>7} {:>9} {:>9} {:>8.4} {:>8.4}",
            n.name,
            format!("{}x{}", n.shape.0, n.shape.1),
            n.ring_bits,
            n.how,
            bytes(n.offline_bytes.0),
            bytes(n.offline_bytes.1),
            bytes(n.online_bytes.0),
            bytes(n.online_bytes.1),
            n.flights,
            n.products,
            n.key_switches,
            n.and_gates,
            n.ots,
            n.offline_seconds,
            n.online_seconds,
        )?;
    }
    let p = &r.predicted;
    writeln!(out, "offline  {}", totals(&p.offline))?;
    writeln!(out, "online   {}", totals(&p.online))?;
    writeln!(
        out,
        "HE       {} products, {} key switches; {} of keys once a connection",
        p.products,
        p.key_switches,
        bytes(r.key_bytes)
    )?;
    if let Some(j) = &r.joint {
        writeln!(
            out,
            "together {} inferences: {} up, {} down, {} products with integers; each {} up, {} down, {:.3} s of work; {} held",
            j.inferences,
            bytes(j.bytes_up),
            bytes(j.bytes_down),
            j.scalar_products,
            bytes(j.bytes_up.div_ceil(j.inferences)),
            bytes(j.bytes_down.div_ceil(j.inferences)),
            j.seconds_each,
            bytes(j.memory_bytes),
        )?;
    }
    writeln!(out, "garbled  {} AND gates, {} on the client's disk", p.and_gates, bytes(r.table_bytes))?;
    writeln!(out, "OT       {}", p.ots)?;
    writeln!(out, "memory   {} of OTs, shares and labels between the phases, both parties", bytes(r.memory_bytes))?;
    writeln!(out, "Bytes, products, key switches, gates and OTs are exact; rounds and seconds are estimates.")
}
