//! How non-linear layers are evaluated and OTs made, where the user leaves it to the program.
//!
//! For each kind of layer both ways are priced: bytes over the link, round trips, work. The prices are of offline and online
//! phase together, and are sums: what runs side by side is not credited, on either side of the comparison.

use std::str::FromStr;

use super::{
    CotDemand, LayerKind, Layout, Method, Methods, OtMethod, OtPlan, Plan, Result, Settings,
    estimate::{AND, IKNP_COT, PRODUCT, SHARED_BYTE, SILENT_BASE, SILENT_BYTES, SILENT_COT},
    he_plan::{he_costs, he_items},
};
use crate::{he::ParameterSet, model::Graph};

/// What a user asks of the non-linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nonlinear {
    /// Every layer garbled: exact.
    #[default]
    Garbled,
    /// Every layer on shares.
    Shared,
    /// For each kind of layer what is faster on this link and machine.
    Auto,
}

impl Nonlinear {
    /// The methods, where they are asked for and not to be chosen.
    fn fixed(self) -> Option<Methods> {
        match self {
            Self::Garbled => Some(Methods::GARBLED),
            Self::Shared => Some(Methods::SHARED),
            Self::Auto => None,
        }
    }
}

impl FromStr for Nonlinear {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "garbled" => Ok(Self::Garbled),
            "shared" => Ok(Self::Shared),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("no way {text} to evaluate non-linear layers: there are garbled, shared and auto")),
        }
    }
}

/// What a user asks of the OTs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtChoice {
    /// This method.
    Fixed(OtMethod),
    /// What is faster on this link and machine.
    #[default]
    Auto,
}

impl FromStr for OtChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Fixed).map_err(|e| format!("{e}, and auto")),
        }
    }
}

/// The link and the machine, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Circumstances {
    /// For a byte in one direction.
    pub byte: f64,
    /// For a message and its answer.
    pub round_trip: f64,
    /// For a block of AES on one thread; all work of these layers scales with it.
    pub aes_block: f64,
    /// For the transform of one limb on the server's device, in batches: all homomorphic work scales with it.
    pub ntt: f64,
    /// Threads of each party.
    pub threads: usize,
}

impl Circumstances {
    /// Work in blocks of AES, on all threads.
    fn work(&self, blocks: f64) -> f64 {
        blocks * self.aes_block / self.threads.max(1) as f64
    }
}

/// What is done, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// For the inference.
    pub settings: Settings,
    /// A sentence for everything that was chosen rather than asked for.
    pub reasons: Vec<String>,
}

/// The price of one way in seconds.
struct Price {
    seconds: f64,
    cots: CotDemand,
}

/// Chooses how non-linear layers are evaluated, OTs made and ciphertexts laid out; all other settings are those of `base`, and
/// `graph` must be of its options.
///
/// # Errors
/// A layer that can be evaluated in neither way.
pub(super) fn decide(
    graph: &Graph,
    params: &ParameterSet,
    base: Settings,
    nonlinear: Nonlinear,
    ot: OtChoice,
    circumstances: &Circumstances,
) -> Result<Decision> {
    let layout = layout(graph, params, base, nonlinear, circumstances)?;
    let plan = |methods| Plan::new(graph.clone(), params, Settings { methods, ot: OtMethod::Iknp, layout, ..base });
    let ots: &[OtMethod] = match ot {
        OtChoice::Fixed(OtMethod::Iknp) => &[OtMethod::Iknp],
        OtChoice::Fixed(OtMethod::Silent) => &[OtMethod::Silent],
        // Who asks for layers on shares on a link without limit asks for few bytes.
        OtChoice::Auto if nonlinear == Nonlinear::Shared && circumstances.byte == 0.0 => &[OtMethod::Silent],
        // Where bytes cost nothing, the extension is the less work.
        OtChoice::Auto if circumstances.byte == 0.0 => &[OtMethod::Iknp],
        OtChoice::Auto => &[OtMethod::Iknp, OtMethod::Silent],
    };
    // Where nothing is left to choose, no circuit is built to price it.
    if let (&[ot], Some(methods)) = (ots, nonlinear.fixed()) {
        return Ok(Decision { settings: Settings { methods, ot, layout, ..base }, reasons: Vec::new() });
    }
    let (garbled, shared) = match nonlinear {
        Nonlinear::Garbled => (Some(plan(Methods::GARBLED)?), None),
        Nonlinear::Shared => (None, Some(plan(Methods::SHARED)?)),
        Nonlinear::Auto => (Some(plan(Methods::GARBLED)?), Some(plan(Methods::SHARED)?)),
    };
    let mut best: Option<(f64, Settings, Vec<String>)> = None;
    for &method in ots {
        let asked = nonlinear.fixed().unwrap_or(Methods::GARBLED);
        let (mut total, mut methods, mut reasons) = (0.0, asked, Vec::new());
        if method == OtMethod::Silent {
            total += 2.0 * SILENT_BASE * circumstances.byte;
        }
        let products = garbled.as_ref().or(shared.as_ref()).map_or(0.0, |p| products(p, method, circumstances));
        total += products;
        for kind in LayerKind::ALL {
            let price = |plan: &Option<Plan>| plan.as_ref().and_then(|p| price(p, kind, method, circumstances));
            let (garbled, shared) = (price(&garbled), price(&shared));
            let (chosen, seconds) = match (garbled, shared) {
                (Some(g), Some(s)) => {
                    let chosen = if s < g { Method::Shared } else { Method::Garbled };
                    reasons.push(format!(
                        "{}: {}, estimated {} garbled and {} shared",
                        kind.name(),
                        chosen.name(),
                        seconds_text(g),
                        seconds_text(s)
                    ));
                    (chosen, g.min(s))
                }
                (Some(g), None) => (Method::Garbled, g),
                (None, Some(s)) => (Method::Shared, s),
                (None, None) => continue,
            };
            methods = methods.with(kind, chosen);
            total += seconds;
        }
        if best.as_ref().is_none_or(|(least, ..)| total < *least) {
            if ots.len() > 1 {
                reasons.push(format!("OTs: {}", method.name()));
            }
            best = Some((total, Settings { methods, ot: method, layout, ..base }, reasons));
        }
    }
    let (_, settings, reasons) = best.unwrap_or((0.0, base, Vec::new()));
    Ok(Decision { settings, reasons })
}

/// The layout of the least time, where homomorphic work and the line are used one after the other. Who wants layers on
/// shares wants few bytes.
fn layout(
    graph: &Graph,
    params: &ParameterSet,
    base: Settings,
    nonlinear: Nonlinear,
    c: &Circumstances,
) -> Result<Layout> {
    if c.byte == 0.0 {
        return Ok(if nonlinear == Nonlinear::Shared { Layout::Bytes } else { Layout::Work });
    }
    let mut best = None;
    for layout in Layout::ALL {
        let settings = Settings { layout, ..base };
        let counts = he_costs(&he_items(graph, params, &settings)?, &settings)?.total();
        let work = counts.server_ntts as f64 + PRODUCT * counts.products as f64 * params.limbs() as f64;
        let seconds = work * c.ntt + (counts.bytes_up + counts.bytes_down) as f64 * c.byte;
        if best.is_none_or(|(least, _)| seconds < least) {
            best = Some((seconds, layout));
        }
    }
    Ok(best.map_or(Layout::Work, |(_, layout)| layout))
}

pub(super) fn seconds_text(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

/// Seconds for all layers of a kind as the plan has them; `None` if the graph has none.
fn price(plan: &Plan, kind: LayerKind, ot: OtMethod, c: &Circumstances) -> Option<f64> {
    let mut price: Option<Price> = None;
    let graph = &plan.graph;
    for stage in &graph.stages {
        let mut flights = 0;
        for &id in &stage.interactive {
            let crate::model::Op::Garbled { function, .. } = &graph.node(id).op else { continue };
            if LayerKind::of(function) != kind {
                continue;
            }
            let Some(node) = plan.ot(id) else { continue };
            let sum = price.get_or_insert(Price { seconds: 0.0, cots: CotDemand::default() });
            sum.cots = [sum.cots, node.cots()].into_iter().sum();
            match node {
                OtPlan::Garbled(g) => {
                    let ands = g.and_gates() as f64;
                    let labels = 16.0 * (g.instances * g.gadget.circuit().garbler_inputs()) as f64;
                    sum.seconds += c.work(AND * ands).max(g.table_bytes() as f64 * c.byte) + labels * c.byte;
                    flights = flights.max(2);
                }
                OtPlan::Shared(s) => {
                    let (up, down) = s.bytes();
                    let bytes = (up + down) as f64;
                    sum.seconds += c.work(SHARED_BYTE * bytes) + bytes * c.byte;
                    flights = flights.max(s.cost(0).rounds);
                }
                OtPlan::Product(_) => {}
            }
        }
        if let Some(sum) = &mut price {
            sum.seconds += flights as f64 * c.round_trip / 2.0;
        }
    }
    price.map(|p| p.seconds + cot_seconds(p.cots, ot, c))
}

/// Seconds for the OTs of the products, which are the same whatever becomes of the layers.
fn products(plan: &Plan, ot: OtMethod, c: &Circumstances) -> f64 {
    let nodes = plan.graph.iter().filter_map(|(id, _)| plan.ot(id));
    let cots = nodes.filter(|n| matches!(n, OtPlan::Product(_))).map(OtPlan::cots).sum();
    cot_seconds(cots, ot, c)
}

fn cot_seconds(cots: CotDemand, ot: OtMethod, c: &Circumstances) -> f64 {
    let count = cots.total() as f64;
    match ot {
        OtMethod::Iknp => c.work(IKNP_COT * count).max(16.0 * count * c.byte),
        OtMethod::Silent => c.work(SILENT_COT * count) + SILENT_BYTES * count * c.byte,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{model::Model, protocol::parameter_set};

    fn on(byte: f64, round_trip: f64, nonlinear: Nonlinear, ot: OtChoice) -> Decision {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")).unwrap();
        let circumstances = Circumstances { byte, round_trip, aes_block: 4e-9, ntt: 1e-5, threads: 2 };
        let graph = model.client().graph(8).unwrap();
        decide(&graph, &parameter_set().unwrap(), Settings::EXACT, nonlinear, ot, &circumstances).unwrap()
    }

    #[test]
    fn the_link_decides() {
        // Only round trips cost: one each is best, which a truncation on shares has too. Only bytes cost: as few as possible.
        let far = on(0.0, 10.0, Nonlinear::Auto, OtChoice::Auto);
        assert_eq!(far.settings.methods.with(LayerKind::Truncate, Method::Garbled), Methods::GARBLED);
        assert_eq!(far.settings.layout, Layout::Work);
        let narrow = on(1e-4, 0.0, Nonlinear::Auto, OtChoice::Auto);
        assert_eq!((narrow.settings.methods, narrow.settings.ot), (Methods::SHARED, OtMethod::Silent));
        assert!(narrow.reasons.iter().any(|r| r.starts_with("exp: shared, estimated")), "{:?}", narrow.reasons);
    }

    #[test]
    fn what_is_asked_for_is_done() {
        for (byte, round_trip) in [(0.0, 10.0), (1e-4, 0.0)] {
            for method in [OtMethod::Iknp, OtMethod::Silent] {
                let ot = OtChoice::Fixed(method);
                let garbled = on(byte, round_trip, Nonlinear::Garbled, ot).settings;
                assert_eq!((garbled.methods, garbled.ot), (Methods::GARBLED, method));
                let shared = on(byte, round_trip, Nonlinear::Shared, ot).settings;
                assert_eq!((shared.methods, shared.ot), (Methods::SHARED, method));
            }
        }
        assert_eq!("auto".parse(), Ok(OtChoice::Auto));
        assert_eq!("silent".parse(), Ok(OtChoice::Fixed(OtMethod::Silent)));
        assert!("loud".parse::<OtChoice>().is_err() && "mixed".parse::<Nonlinear>().is_err());
    }
}
