//! What holds for every graph.

use proptest::prelude::*;

use super::*;
use crate::{
    arith::fixed::Activation,
    model::{DenseActivation, DenseSpec, LayerSpec, LookupSpec, Pooling},
};

pub(crate) fn tiny(pooling: Pooling) -> ModelSpec {
    let layer = LayerSpec {
        query_log2: 4,
        key_log2: 4,
        value_log2: 3,
        score_log2: 7,
        attention_log2: 5,
        attention_squares_log2: 10,
        attention_squares_min_log2: -2,
        up_log2: 5,
        down_log2: 8,
        down_squares_log2: 16,
        down_squares_min_log2: -2,
        qkv_weight_frac: 12,
        attention_weight_frac: 12,
        up_weight_frac: 12,
        down_weight_frac: 12,
    };
    ModelSpec {
        hidden: 128,
        heads: 2,
        ffn: 512,
        activation: Activation::Gelu,
        embedding_log2: 4,
        layers: vec![layer.clone(), layer],
        pooling,
        dense: vec![
            DenseSpec { features: 128, activation: DenseActivation::Tanh, weight_frac: 12, out_log2: 5 },
            DenseSpec { features: 2, activation: DenseActivation::Identity, weight_frac: 12, out_log2: 4 },
        ],
        precision: Default::default(),
        lookup: None,
    }
}

/// [`tiny`] with everything that options can ask for: an identity between dense layers, a private lookup.
fn full(pooling: Pooling) -> ModelSpec {
    let mut spec = tiny(pooling);
    let between = DenseSpec { features: 64, activation: DenseActivation::Identity, weight_frac: 11, out_log2: 5 };
    spec.dense.insert(1, between);
    spec.lookup = Some(LookupSpec {
        vocabulary: 1000,
        types: 2,
        table_frac: 12,
        sum_log2: 1,
        squares_log2: 5,
        squares_min_log2: -4,
        qkv_weight_frac: 11,
        attention_weight_frac: 12,
    });
    spec
}

const POOLINGS: [Pooling; 3] = [Pooling::First, Pooling::Mean, Pooling::Tokens];

/// Options that every model has a graph for, and the largest merges.
fn options(spec: &ModelSpec, tokens: usize) -> Vec<GraphOptions> {
    let mut all = Vec::new();
    for rings in [Rings::Pow2, Rings::Prime] {
        for lookup in [Lookup::Public, Lookup::Private] {
            let largest = Graph::largest_merge(spec, tokens, rings, lookup).unwrap();
            assert!(largest.contains(Boundary::Scores) && largest.contains(Boundary::Values));
            for merge in [MergeSet::NONE, MergeSet::NONE.with(Boundary::Scores), largest] {
                all.push(GraphOptions { merge, rings, lookup });
            }
        }
    }
    all
}

fn check_order(g: &Graph) {
    let mut written: Vec<bool> = vec![false; g.edges.len()];
    written[g.embedding.0] = true;
    if let Some(pool) = g.pool {
        written[pool.0] = true;
    }
    let mut count = 0;
    for &id in g.stages.iter().flat_map(|s| s.local.iter().chain(&s.interactive)) {
        let node = g.node(id);
        assert!(node.op.inputs().iter().all(|e| written[e.0]), "{}", node.name);
        assert!(!std::mem::replace(&mut written[node.output.0], true), "{}", node.name);
        count += 1;
    }
    assert_eq!(count, g.nodes.len());
    assert!(written.iter().all(|w| *w));
}

fn check_rings(g: &Graph) {
    let prime = |e: &Edge| matches!(e.ring, ShareModulus::Prime(_));
    let pow2 = g.options.rings == Rings::Pow2;
    for node in &g.nodes {
        let (out, name) = (g.edge(node.output), &node.name);
        let input = |e: &EdgeId| g.edge(*e);
        match &node.op {
            Op::Linear { inputs, bias_shift, weights, .. } => {
                let first = input(&inputs[0]);
                assert!(inputs.iter().all(|e| input(e).ring == first.ring && input(e).frac == first.frac), "{name}");
                assert!(if pow2 { out.ring <= first.ring } else { out.ring == first.ring && prime(out) }, "{name}");
                // The bias was rounded for inputs of 10 fraction bits, or for one-hot ones.
                let expected = if *weights == WeightId::Tokens { 0 } else { first.frac - 10 };
                assert_eq!(*bias_shift, expected, "{name}");
            }
            Op::Product { left, right, mask, .. } => {
                assert!(input(left).ring == out.ring && input(right).ring == out.ring, "{name}");
                assert_eq!(prime(out), !pow2, "{name}");
                let limit = if g.options.merge.is_empty() { PRODUCT_RING_LIMIT } else { MERGED_RING_LIMIT };
                assert!(out.ring.bits() <= limit, "{name}");
                assert_eq!(out.frac, input(left).frac + input(right).frac, "{name}");
                assert!(mask.is_none_or(|m| out.ring.holds(2 * i128::from(m))), "{name}");
            }
            Op::RowScale { input: x, scale, .. } => {
                assert!(input(x).ring >= out.ring && input(scale).ring == out.ring && !prime(out), "{name}");
                assert_eq!(out.frac, input(x).frac + input(scale).frac, "{name}");
            }
            Op::SquareSum { input: x } => assert!(input(x).ring == out.ring && !prime(out), "{name}"),
            Op::RowSum { input: x } => assert_eq!(input(x).ring, out.ring, "{name}"),
            Op::ShiftLeft { input: x, bits } => {
                assert_eq!((input(x).ring, input(x).frac + bits), (out.ring, out.frac), "{name}");
            }
            Op::Garbled { function: Function::Truncate { shift }, input: x } => {
                assert_eq!(input(x).frac - shift, out.frac, "{name}");
                assert!(*shift > 0 || input(x).ring != out.ring, "{name} does nothing");
            }
            Op::Garbled { .. } => {}
        }
    }
}

#[test]
fn every_graph_is_in_order_and_its_rings_fit_together() {
    for pooling in POOLINGS {
        for tokens in BUCKETS {
            let spec = full(pooling);
            for options in options(&spec, tokens) {
                let g = Graph::build(&spec, tokens, &options).unwrap();
                assert_eq!(g.options, options);
                check_order(&g);
                check_rings(&g);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_options_give_a_sound_graph_or_say_why_not(
        pooling in 0usize..3, tokens in 1usize..=512, merge in prop::collection::vec(0usize..9, 0..9), prime: bool,
        private: bool, grow in -2i32..5,
    ) {
        let mut spec = full(POOLINGS[pooling]);
        spec.layers[1].magnitudes().into_iter().for_each(|(_, m)| *m += grow);
        let options = GraphOptions {
            merge: merge.into_iter().map(|b| Boundary::ALL[b]).collect(),
            rings: if prime { Rings::Prime } else { Rings::Pow2 },
            lookup: if private { Lookup::Private } else { Lookup::Public },
        };
        match Graph::build(&spec, tokens, &options) {
            Ok(g) => {
                check_order(&g);
                check_rings(&g);
            }
            Err(SpecError::Ring { edge, bits, limit }) => prop_assert!(!edge.is_empty() && bits > limit),
            Err(SpecError::Options { .. }) => prop_assert!(prime),
            Err(e) => prop_assert!(false, "{e}"),
        }
    }
}

#[test]
fn a_merged_boundary_has_no_truncation() {
    let spec = full(Pooling::Mean);
    let names = |merge: MergeSet| -> Vec<String> {
        let g = Graph::build(&spec, 32, &GraphOptions { merge, ..Default::default() }).unwrap();
        let truncated = |n: &&Node| matches!(n.op, Op::Garbled { function: Function::Truncate { .. }, .. });
        g.nodes.iter().filter(truncated).map(|n| n.name.clone()).collect()
    };
    let all = names(MergeSet::NONE);
    for (boundary, gone) in [
        (Boundary::Scores, &["layer0.query", "layer0.key", "layer1.query", "layer1.key"][..]),
        (Boundary::Values, &["layer0.value", "layer1.value"]),
        (Boundary::Context, &["layer0.context", "layer1.context"]),
        (Boundary::AttentionNorm, &["layer0.attention_norm_in", "layer1.attention_norm_in"]),
        (Boundary::DownNorm, &["layer0.down_norm_in", "layer1.down_norm_in"]),
        (Boundary::Middle, &["layer0.attention_norm", "layer1.attention_norm"]),
        (Boundary::Hidden, &["layer0.down_norm", "layer1.down_norm"]),
        (Boundary::Pool, &["pool"]),
        (Boundary::Dense, &["dense1"]),
    ] {
        let left: Vec<String> = all.iter().filter(|n| !gone.contains(&n.as_str())).cloned().collect();
        assert_eq!(all.len(), left.len() + gone.len());
        assert_eq!(names(MergeSet::NONE.with(boundary)), left, "{}", boundary.name());
    }
    let candidates = Graph::merge_candidates(&spec, 32, &GraphOptions::default());
    assert_eq!(candidates.iter().map(|c| c.0).collect::<Vec<_>>(), Boundary::ALL);
    let merge = MergeSet::NONE.with(Boundary::Scores);
    let beside = Graph::merge_candidates(&spec, 32, &GraphOptions { merge, ..Default::default() });
    assert!(beside.iter().all(|(b, g)| *b != Boundary::Scores && g.options.merge == merge.with(*b)));
}

/// A private lookup changes nothing after the embedding but the first layer's fraction bits.
#[test]
fn a_private_lookup_begins_with_the_table() {
    let spec = full(Pooling::First);
    let lookup = Lookup::Private;
    for rings in [Rings::Pow2, Rings::Prime] {
        let private = Graph::build(&spec, 16, &GraphOptions { rings, lookup, ..Default::default() }).unwrap();
        let public = Graph::build(&spec, 16, &GraphOptions { rings, ..Default::default() }).unwrap();
        let first = private.edge(private.embedding);
        assert_eq!((first.name.as_str(), first.rows, first.cols, first.frac), ("one_hot", 16, 1002, 0));
        let at = private.nodes.iter().position(|n| n.name == "embedding").unwrap();
        let after: Vec<&str> = private.nodes[at + 1..].iter().map(|n| n.name.as_str()).collect();
        assert_eq!(after, public.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>());
        let frac = |g: &Graph| g.edges.iter().find(|e| e.name == "layer0.query_raw").unwrap().frac;
        assert_eq!((frac(&public), frac(&private)), (22, 21));
    }
    let options = GraphOptions { lookup, ..Default::default() };
    assert!(matches!(Graph::build(&tiny(Pooling::First), 16, &options), Err(SpecError::Options { .. })));
}

#[test]
fn descriptions_out_of_range_are_refused() {
    let mut spec = tiny(Pooling::First);
    spec.heads = 3;
    assert!(Graph::build(&spec, 8, &GraphOptions::default()).is_err());
    let mut spec = tiny(Pooling::First);
    spec.layers[0].score_log2 = 40;
    assert!(matches!(Graph::build(&spec, 8, &GraphOptions::default()), Err(SpecError::Ring { .. })));
    assert!(Graph::build(&tiny(Pooling::First), 0, &GraphOptions::default()).is_err());
    assert!(Graph::build(&tiny(Pooling::First), 513, &GraphOptions::default()).is_err());
    // What merging needs is named.
    let merge = MergeSet::NONE.with(Boundary::Scores);
    let mut spec = tiny(Pooling::First);
    spec.layers[1].score_log2 = 16;
    match Graph::build(&spec, 8, &GraphOptions { merge, ..Default::default() }) {
        Err(SpecError::Ring { edge, bits, limit: MERGED_RING_LIMIT }) => {
            assert_eq!((&*edge, bits), ("layer1.scores", 64))
        }
        other => panic!("{other:?}"),
    }
    let merge = MergeSet::NONE.with(Boundary::Context);
    let refused =
        Graph::build(&tiny(Pooling::First), 8, &GraphOptions { merge, rings: Rings::Prime, ..Default::default() });
    assert!(matches!(refused, Err(SpecError::Options { .. })));
}
