//! What a user asks of an inference, and the graph and settings that come of it.

use std::str::FromStr;

use super::{
    Circumstances, Decision, Estimate, Forecast, LinearMode, Nonlinear, OtChoice, PackingChoice, PackingKind, Plan,
    ProductMode, ProtocolError, Result, Settings,
    choose::{decide, seconds_text},
    packings, parameter_set,
};
use crate::model::{Boundary, Graph, GraphOptions, Lookup, MergeSet, ModelSpec, Rings};

/// What a user asks of the boundaries between linear operations (Primer's computation merge).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// Every product is truncated.
    #[default]
    Off,
    /// No truncation where rings have room.
    On,
    /// Where it is estimated to be faster.
    Auto,
}

impl FromStr for Merge {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("no merge {text}: there are on, off and auto")),
        }
    }
}

/// What a user asks of an inference. The default is Heliostat's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Non-linear layers.
    pub nonlinear: Nonlinear,
    /// OTs.
    pub ot: OtChoice,
    /// When the homomorphic work of linear layers is done.
    pub linear: LinearMode,
    /// How products of two shared matrices are made.
    pub products: ProductMode,
    /// How matrices lie in ciphertexts. Those in slots bring rings of prime order with them.
    pub packing: PackingChoice,
    /// Inferences that are prepared one after the other, and may share ciphertexts; 0 counts as 1.
    pub count: usize,
    /// Boundaries between linear operations.
    pub merge: Merge,
    /// Where tokens become vectors.
    pub lookup: Lookup,
    /// Everything but non-linear layers, OTs and layout exactly so, whatever the other wishes are: to compare variants.
    pub variant: Option<Settings>,
}

impl Wishes {
    /// The settings that are asked for and not to be chosen, nothing merged.
    fn base(&self, packing: PackingKind) -> Settings {
        let rings = match packing {
            PackingKind::Coefficient | PackingKind::BatchColumn => Rings::Pow2,
            PackingKind::TokensFirst | PackingKind::TokensFirstPlain | PackingKind::FeaturesFirst => Rings::Prime,
        };
        let graph = GraphOptions { merge: MergeSet::NONE, rings, lookup: self.lookup };
        let Self { linear, products, .. } = *self;
        Settings { linear, products, packing, graph, ..Settings::EXACT }
    }

    /// Chooses what is left to choose, for a model and a bucket of `tokens`; reasons come for every choice. What is chosen for
    /// one inference and for several together differs in nothing that a kept correlation is bound to ([`Settings::kept`]).
    ///
    /// # Errors
    /// A graph that cannot be built as it is wished, or work that no parameters carry.
    pub fn settle(&self, spec: &ModelSpec, tokens: usize, c: &Circumstances) -> Result<Decision> {
        if let Some(variant) = self.variant {
            return self.decide(spec, tokens, variant, c);
        }
        match self.packing {
            PackingChoice::Fixed(kind) => {
                let mut decision = self.settle_graph(spec, tokens, kind, c)?;
                if kind == PackingKind::BatchColumn {
                    let graph = Graph::build(spec, tokens, &decision.settings.graph)?;
                    let size = packings::together(&graph, &decision.settings, self.count.max(1));
                    decision.settings.together = size as u16;
                    if size > 1 {
                        decision.reasons.push(format!("{size} inferences share the ciphertexts of linear layers"));
                    }
                }
                Ok(decision)
            }
            PackingChoice::Auto => self.settle_packing(spec, tokens, c),
        }
    }

    /// The packing of every class of linear layers. Slots are priced for the reader but not taken: rings of prime order take 1.6 times
    /// the AND gates, have no layers on shares, and the price leaves out the encoding of plaintexts.
    fn settle_packing(&self, spec: &ModelSpec, tokens: usize, c: &Circumstances) -> Result<Decision> {
        let params = parameter_set()?;
        let mut best = self.settle_graph(spec, tokens, PackingKind::Coefficient, c)?;
        let graph = |settings: &Settings| Graph::build(spec, tokens, &settings.graph);
        let own = packings::whole_price(&graph(&best.settings)?, &params, &best.settings, c)?;
        let slots = Settings { layout: best.settings.layout, ..self.base(PackingKind::TokensFirst) };
        let slots_price = graph(&slots)
            .map_err(ProtocolError::from)
            .and_then(|graph| packings::whole_price(&graph, &params, &slots, c));
        match slots_price {
            Ok(price) => {
                let (price, own) = (seconds_text(price), seconds_text(own));
                best.reasons.push(format!(
                    "no slots: tokens-first is estimated to take {price} of HE instead of {own}, and its prime rings make garbled \
                     layers dearer and rule out those on shares"
                ));
            }
            Err(_) => best.reasons.push("no slots: no prime rings carry this model".into()),
        }
        let chosen = packings::choose(&graph(&best.settings)?, &params, best.settings, self.count.max(1), c)?;
        let mut reasons = chosen.reasons;
        let mut settings = chosen.settings;
        if settings != best.settings {
            // The sums above do not see what runs side by side.
            let (before, after) =
                (seconds(graph(&best.settings)?, best.settings, c)?, seconds(graph(&settings)?, settings, c)?);
            if after >= before {
                (settings, reasons) = (
                    best.settings,
                    vec![format!(
                        "linear layers: {}, as columns save nothing where work and link are used side by side",
                        best.settings.packing.name()
                    )],
                );
            }
        }
        best.reasons.extend(reasons);
        Ok(Decision { settings, reasons: best.reasons })
    }

    /// Everything but the packing of classes.
    fn settle_graph(&self, spec: &ModelSpec, tokens: usize, kind: PackingKind, c: &Circumstances) -> Result<Decision> {
        let mut base = self.base(kind);
        match self.merge {
            Merge::Off => {}
            Merge::On => {
                base.graph.merge = Graph::largest_merge(spec, tokens, base.graph.rings, base.graph.lookup)?;
            }
            Merge::Auto => return self.settle_merging(spec, tokens, base, c),
        }
        let mut decision = self.decide(spec, tokens, base, c)?;
        if self.merge == Merge::On {
            decision.reasons.push(format!("merged, as the rings have room: {}", base.graph.merge));
        }
        Ok(decision)
    }

    fn decide(&self, spec: &ModelSpec, tokens: usize, base: Settings, c: &Circumstances) -> Result<Decision> {
        let graph = Graph::build(spec, tokens, &base.graph)?;
        decide(&graph, &parameter_set()?, base, self.nonlinear, self.ot, c)
    }

    /// Merges boundaries one after another, as long as one is left that saves time.
    fn settle_merging(&self, spec: &ModelSpec, tokens: usize, base: Settings, c: &Circumstances) -> Result<Decision> {
        let mut best = self.decide(spec, tokens, base, c)?;
        let first = seconds(Graph::build(spec, tokens, &base.graph)?, best.settings, c)?;
        let mut least = first;
        loop {
            let mut found: Option<(Boundary, Settings, f64)> = None;
            for (boundary, graph) in Graph::merge_candidates(spec, tokens, &best.settings.graph) {
                let merge = best.settings.graph.merge.with(boundary);
                let settings = Settings { graph: GraphOptions { merge, ..best.settings.graph }, ..best.settings };
                // A ring that no parameters carry is no choice.
                let Ok(seconds) = seconds(graph, settings, c) else { continue };
                if seconds < found.map_or(least, |(_, _, least)| least) {
                    found = Some((boundary, settings, seconds));
                }
            }
            let Some((boundary, settings, seconds)) = found else { break };
            best.reasons.push(format!("{boundary:?} merged: estimated {seconds:.2} s instead of {least:.2} s"));
            (best.settings, least) = (settings, seconds);
        }
        if best.settings.graph.merge.is_empty() {
            best.reasons.push(format!("nothing merged: no boundary is estimated to save time on {first:.2} s"));
        }
        Ok(best)
    }
}

/// Both phases.
fn seconds(graph: Graph, settings: Settings, c: &Circumstances) -> Result<f64> {
    let plan = Plan::new(graph, &parameter_set()?, settings)?;
    let estimate = Estimate::new(&plan, &Forecast::new(&plan)?, c)?;
    Ok(estimate.offline + estimate.online)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{model::Model, protocol::ClassPackings};

    const FAST: Circumstances = Circumstances { byte: 0.0, round_trip: 0.0, aes_block: 4e-9, ntt: 1e-5, threads: 2 };

    fn spec() -> ModelSpec {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")).unwrap();
        model.spec().clone()
    }

    #[test]
    fn the_default_is_the_exact_mode() {
        let decision = Wishes::default().settle(&spec(), 8, &FAST).unwrap();
        assert_eq!(decision.settings, Settings::EXACT);
        for words in ["no slots: tokens-first is estimated", "linear layers: coefficient, estimated"] {
            assert!(decision.reasons.iter().any(|r| r.starts_with(words)), "{:?}", decision.reasons);
        }
        let fixed = Wishes { packing: PackingChoice::Fixed(PackingKind::Coefficient), ..Wishes::default() };
        let decision = fixed.settle(&spec(), 8, &FAST).unwrap();
        assert_eq!((decision.settings, decision.reasons), (Settings::EXACT, Vec::new()));
    }

    /// Inferences share ciphertexts where that is forced, or cheaper; what is kept is then good for one alone.
    #[test]
    fn several_inferences_share_columns() {
        let spec = spec();
        let columns = PackingChoice::Fixed(PackingKind::BatchColumn);
        for (count, together) in [(0, 1), (1, 1), (3, 3), (2000, 1024)] {
            let wishes = Wishes { packing: columns, count, ..Wishes::default() };
            let settings = wishes.settle(&spec, 8, &FAST).unwrap().settings;
            assert_eq!((settings.packing, settings.together), (PackingKind::BatchColumn, together));
        }
        let online = Wishes { packing: columns, count: 3, linear: LinearMode::Online, ..Wishes::default() };
        assert_eq!(online.settle(&spec, 8, &FAST).unwrap().settings.together, 1);

        let one = Wishes::default().settle(&spec, 64, &FAST).unwrap().settings;
        let Decision { settings, reasons } =
            Wishes { count: 64, ..Wishes::default() }.settle(&spec, 64, &FAST).unwrap();
        assert!(settings.together > 1 && settings.classes != ClassPackings::NONE, "{reasons:?}");
        assert!(reasons.iter().any(|r| r.contains("batch_column") && r.contains("inferences together")), "{reasons:?}");
        assert_eq!(settings.kept(), one.kept());
        let time =
            |settings: Settings| seconds(Graph::build(&spec, 64, &settings.graph).unwrap(), settings, &FAST).unwrap();
        assert!(time(settings) < time(one));
    }

    /// No choice of packings takes away the layers on shares.
    #[test]
    fn layers_on_shares_keep_their_rings() {
        for tokens in [8, 32, 128] {
            for nonlinear in [Nonlinear::Garbled, Nonlinear::Shared, Nonlinear::Auto] {
                let wishes = Wishes { nonlinear, ..Wishes::default() };
                let settings = wishes.settle(&spec(), tokens, &FAST).unwrap().settings;
                assert_eq!(settings.graph.rings, Rings::Pow2);
            }
        }
    }

    #[test]
    fn what_is_wished_is_settled() {
        let spec = spec();
        let wishes = Wishes {
            linear: LinearMode::Online,
            products: ProductMode::Fhgs,
            packing: PackingChoice::Fixed(PackingKind::TokensFirst),
            merge: Merge::On,
            ..Wishes::default()
        };
        let Decision { settings, reasons } = wishes.settle(&spec, 8, &FAST).unwrap();
        assert_eq!((settings.linear, settings.products), (wishes.linear, wishes.products));
        assert_eq!((settings.packing, settings.graph.rings), (PackingKind::TokensFirst, Rings::Prime));
        let largest = Graph::largest_merge(&spec, 8, Rings::Prime, Lookup::Public).unwrap();
        assert!(settings.graph.merge == largest && largest.contains(Boundary::Scores));
        assert!(reasons.iter().any(|r| r.starts_with("merged")), "{reasons:?}");
    }

    /// What is merged is never estimated to be slower than what is not, and every choice has its reason.
    #[test]
    fn merging_is_chosen_by_time() {
        let spec = spec();
        for (byte, round_trip) in [(0.0, 0.0), (0.0, 10.0), (1e-4, 0.0)] {
            let c = Circumstances { byte, round_trip, ..FAST };
            let auto = Wishes { merge: Merge::Auto, ..Wishes::default() };
            let chosen = auto.settle(&spec, 8, &c).unwrap();
            let plain = Wishes::default().settle(&spec, 8, &c).unwrap();
            let time =
                |settings: Settings| seconds(Graph::build(&spec, 8, &settings.graph).unwrap(), settings, &c).unwrap();
            assert!(time(chosen.settings) <= time(plain.settings));
            assert!(chosen.reasons.iter().any(|r| r.contains("merged")), "{:?}", chosen.reasons);
            // A merged boundary is a round less.
            assert!(round_trip == 0.0 || !chosen.settings.graph.merge.is_empty());
        }
        assert!("on".parse() == Ok(Merge::On) && "maybe".parse::<Merge>().is_err());
    }
}
