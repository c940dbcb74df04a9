//! Which packing every class of linear layers gets, and how many inferences share ciphertexts, where that is left to the
//! program.
//!
//! Prices are of the homomorphic work of one inference: what both parties compute, and the bytes of ciphertexts and of switching
//! keys beyond those of every connection, one after the other. Of what inferences share, each pays its part.

use std::{collections::BTreeMap, str::FromStr};

use super::{
    Circumstances, ClassPackings, KEY_BLOCK, LinearClass, LinearMode, PackedShare, PackingKind, Result, SetId,
    Settings,
    choose::seconds_text,
    estimate::transforms,
    he_plan::{HeItem, he_items, item_costs, linear_items},
    plan::{JOINT_MEMORY, most_together},
};
use crate::{
    he::{GaloisKeys, ParameterSet, SeededCiphertexts},
    model::{Graph, NodeId, Rings},
};

/// What a user asks of the packings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PackingChoice {
    /// This one for everything that it serves.
    Fixed(PackingKind),
    /// For each class of linear layers what is cheapest on this link and machine.
    #[default]
    Auto,
}

impl FromStr for PackingChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Fixed).map_err(|e: String| format!("{e}, and auto")),
        }
    }
}

/// A choice.
pub(super) struct Chosen {
    pub settings: Settings,
    pub reasons: Vec<String>,
}

/// Most inferences of `count` that are prepared together with all linear layers in columns.
pub(super) fn together(graph: &Graph, settings: &Settings, count: usize) -> usize {
    if settings.linear != LinearMode::Offline {
        return 1;
    }
    let outputs = LinearClass::all(graph).into_iter().flat_map(|class| class.nodes);
    let bytes = |id: NodeId| {
        let edge = graph.edge(graph.node(id).output);
        PackedShare::bytes(edge.len(), edge.ring)
    };
    let in_memory = JOINT_MEMORY / outputs.map(bytes).sum::<u64>().max(1);
    count.min(most_together(graph.tokens)).min(in_memory as usize).max(1)
}

/// The cheapest packings for `count` inferences that are prepared one after the other: those of `base`, or others that the
/// rings of `graph` allow.
pub(super) fn choose(
    graph: &Graph,
    params: &ParameterSet,
    base: Settings,
    count: usize,
    c: &Circumstances,
) -> Result<Chosen> {
    let classes = LinearClass::all(graph);
    let most = together(graph, &base, count);
    // Whole ciphertexts of the smaller ring dimension may be cheaper than as many inferences as there are.
    let full = SetId::Column4096.spec().n / graph.tokens.max(1);
    let mut sizes = vec![most];
    if full > 1 && most > full && !most.is_multiple_of(full) {
        sizes.push(most - most % full);
    }
    let kinds: &[PackingKind] = match base.graph.rings {
        Rings::Pow2 => &[PackingKind::Coefficient, PackingKind::BatchColumn],
        Rings::Prime => &[PackingKind::TokensFirst, PackingKind::Coefficient, PackingKind::BatchColumn],
    };
    let price = |settings: &Settings| price(&linear_items(graph, params, settings)?, settings, count, c);
    let with = |settings: Settings, class: usize, kind: PackingKind, size: usize| {
        let classes = match kind == settings.packing {
            true => settings.classes.without(class),
            false => settings.classes.with(class, kind),
        };
        let columns = (0..ClassPackings::CLASSES).any(|i| classes.get(i) == Some(PackingKind::BatchColumn));
        Settings { classes, together: if columns { size as u16 } else { 1 }, ..settings }
    };
    let all = |kind| {
        let each = (0..classes.len().min(ClassPackings::CLASSES)).map(move |class| (class, kind));
        move |settings: Settings, size| each.clone().fold(settings, |s, (class, kind)| with(s, class, kind, size))
    };
    let first = price(&base)?;
    let (mut best, mut least) = (base, first);
    let mut tried = Vec::new();
    for &kind in kinds.iter().filter(|&&kind| kind != base.packing) {
        for &size in &sizes {
            let mut settings = all(kind)(base, size);
            // What no parameters carry is no choice.
            let Ok(mut seconds) = price(&settings) else { continue };
            tried.push((kind, size, seconds));
            // Class by class, as long as one is left that is cheaper otherwise.
            let mut changed = true;
            while changed {
                changed = false;
                for class in 0..classes.len().min(ClassPackings::CLASSES) {
                    for &other in kinds {
                        let candidate = with(settings, class, other, size);
                        if candidate != settings
                            && let Ok(less) = price(&candidate)
                            && less < seconds
                        {
                            (settings, seconds, changed) = (candidate, less, true);
                        }
                    }
                }
            }
            if seconds < least {
                (best, least) = (settings, seconds);
            }
        }
    }
    let mut reasons = Vec::new();
    if best == base {
        let others = tried
            .iter()
            .map(|(kind, size, seconds)| format!("{}{}: {}", kind.name(), shared(*size), seconds_text(*seconds)));
        let others: Vec<String> = others.collect();
        reasons.push(format!(
            "linear layers: {}, estimated {} of HE; all in {}",
            base.packing.name(),
            seconds_text(first),
            others.join(", in ")
        ));
    } else {
        for (i, class) in classes.iter().enumerate() {
            let kind = best.packing_of(i);
            let otherwise = with(best, i, base.packing, usize::from(best.together));
            let difference = match kind == base.packing {
                true => String::new(),
                false => {
                    let more = price(&otherwise)? - least;
                    format!(", estimated to save {} of HE against {}", seconds_text(more), base.packing.name())
                }
            };
            let (shape, layers) = (&class.shape, class.nodes.len());
            let size = format!("{}x{}x{}", shape.rows, shape.features(), shape.cols);
            let packed = if kind == PackingKind::BatchColumn { shared(best.together.into()) } else { String::new() };
            reasons.push(format!("linear {size} ({layers} layers): {}{packed}{difference}", kind.name()));
        }
        reasons.push(format!(
            "linear layers: estimated {} of HE an inference instead of {} in {}",
            seconds_text(least),
            seconds_text(first),
            base.packing.name()
        ));
    }
    Ok(Chosen { settings: best, reasons })
}

fn shared(size: usize) -> String {
    if size > 1 { format!(", {size} inferences together") } else { String::new() }
}

/// Seconds of all homomorphic work of an inference, products included.
pub(super) fn whole_price(graph: &Graph, params: &ParameterSet, settings: &Settings, c: &Circumstances) -> Result<f64> {
    price(&he_items(graph, params, settings)?, settings, 1, c)
}

/// Seconds of items for one of `count` inferences.
fn price(items: &[(NodeId, HeItem)], settings: &Settings, count: usize, c: &Circumstances) -> Result<f64> {
    let mut seconds = 0.0;
    let mut elements: BTreeMap<SetId, Vec<usize>> = BTreeMap::new();
    for (costs, (_, item)) in item_costs(items, settings)?.iter().zip(items) {
        let work = transforms(&costs.counts, item.set().params()?) * c.ntt;
        let line = (costs.counts.bytes_up + costs.counts.bytes_down) as f64 * c.byte;
        seconds += (work + line) / costs.together as f64;
        let of_set = elements.entry(item.set()).or_default();
        item.packings().for_each(|packing| of_set.extend(packing.rotation_elements()));
    }
    for (set, mut elements) in elements {
        let params = set.params()?;
        elements.sort_unstable();
        elements.dedup();
        let common = GaloisKeys::elements_for_block(params.n(), KEY_BLOCK);
        // Those are there anyway.
        if set == SetId::Matmul8192 && elements.iter().all(|g| common.contains(g)) {
            continue;
        }
        let keys = match elements.len() {
            0 => 0,
            count => GaloisKeys::byte_len_for(params, count).unwrap_or(usize::MAX),
        };
        let public = SeededCiphertexts::byte_len(params, 1).unwrap_or(usize::MAX);
        seconds += (keys as f64 + public as f64) * c.byte / count.max(1) as f64;
    }
    Ok(seconds)
}
