//! What a user asks of an inference, and the graph and settings that come of it.

use std::str::FromStr;

use super::{
    Circumstances, Decision, Estimate, Forecast, LinearMode, Nonlinear, OtChoice, PackingKind, Plan, ProductMode,
    Result, Settings, choose::decide, parameter_set,
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
    pub packing: PackingKind,
    /// Boundaries between linear operations.
    pub merge: Merge,
    /// Where tokens become vectors.
    pub lookup: Lookup,
    /// Everything but non-linear layers, OTs and layout exactly so, whatever the other wishes are: to compare variants.
    pub variant: Option<Settings>,
}

impl Wishes {
    /// The settings that are asked for and not to be chosen, nothing merged.
    fn base(&self) -> Settings {
        let rings = match self.packing {
            PackingKind::Coefficient | PackingKind::BatchColumn => Rings::Pow2,
            PackingKind::TokensFirst | PackingKind::TokensFirstPlain | PackingKind::FeaturesFirst => Rings::Prime,
        };
        let graph = GraphOptions { merge: MergeSet::NONE, rings, lookup: self.lookup };
        let Self { linear, products, packing, .. } = *self;
        Settings { linear, products, packing, graph, ..Settings::EXACT }
    }

    /// Chooses what is left to choose, for a model and a bucket of `tokens`; reasons come for every choice.
    ///
    /// # Errors
    /// A graph that cannot be built as it is wished, or work that no parameters carry.
    pub fn settle(&self, spec: &ModelSpec, tokens: usize, circumstances: &Circumstances) -> Result<Decision> {
        if let Some(variant) = self.variant {
            return self.decide(spec, tokens, variant, circumstances);
        }
        let mut base = self.base();
        match self.merge {
            Merge::Off => {}
            Merge::On => {
                base.graph.merge = Graph::largest_merge(spec, tokens, base.graph.rings, base.graph.lookup)?;
            }
            Merge::Auto => return self.settle_merging(spec, tokens, base, circumstances),
        }
        let mut decision = self.decide(spec, tokens, base, circumstances)?;
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
    use crate::model::Model;

    const FAST: Circumstances = Circumstances { byte: 0.0, round_trip: 0.0, aes_block: 4e-9, ntt: 1e-5, threads: 2 };

    fn spec() -> ModelSpec {
        let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")).unwrap();
        model.spec().clone()
    }

    #[test]
    fn the_default_is_the_exact_mode() {
        let decision = Wishes::default().settle(&spec(), 8, &FAST).unwrap();
        assert_eq!((decision.settings, decision.reasons), (Settings::EXACT, Vec::new()));
    }

    #[test]
    fn what_is_wished_is_settled() {
        let spec = spec();
        let wishes = Wishes {
            linear: LinearMode::Online,
            products: ProductMode::Fhgs,
            packing: PackingKind::TokensFirst,
            merge: Merge::On,
            ..Wishes::default()
        };
        let Decision { settings, reasons } = wishes.settle(&spec, 8, &FAST).unwrap();
        assert_eq!((settings.linear, settings.products), (wishes.linear, wishes.products));
        assert_eq!((settings.packing, settings.graph.rings), (wishes.packing, Rings::Prime));
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
