//! What holds for every graph.

use super::*;
use crate::{
    arith::fixed::Activation,
    model::{DenseActivation, DenseSpec, LayerSpec, Pooling},
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

#[test]
fn every_edge_is_written_once_and_before_it_is_read() {
    for pooling in [Pooling::First, Pooling::Mean, Pooling::Tokens] {
        for tokens in BUCKETS {
            let g = Graph::build(&tiny(pooling), tokens, &GraphOptions::default()).unwrap();
            let mut written: Vec<bool> = vec![false; g.edges.len()];
            written[g.embedding.0] = true;
            if let Some(pool) = g.pool {
                written[pool.0] = true;
            }
            let order = g.stages.iter().flat_map(|s| s.local.iter().chain(&s.interactive));
            let mut count = 0;
            for &id in order {
                let node = g.node(id);
                assert!(node.op.inputs().iter().all(|e| written[e.0]), "{}", node.name);
                assert!(!std::mem::replace(&mut written[node.output.0], true), "{}", node.name);
                count += 1;
            }
            assert_eq!(count, g.nodes.len());
            assert!(written.iter().all(|w| *w));
        }
    }
}

#[test]
fn rings_and_fractions_fit_together() {
    for tokens in BUCKETS {
        let g = Graph::build(&tiny(Pooling::Mean), tokens, &GraphOptions::default()).unwrap();
        for node in &g.nodes {
            let out = g.edge(node.output);
            match &node.op {
                Op::Linear { inputs, .. } => {
                    let first = g.edge(inputs[0]);
                    assert!(inputs.iter().all(|e| g.edge(*e).ring == first.ring && g.edge(*e).frac == first.frac));
                    assert!(out.ring <= first.ring, "{}", node.name);
                }
                Op::Product { left, right, .. } => {
                    assert!(g.edge(*left).ring == out.ring && g.edge(*right).ring == out.ring);
                    assert!(out.ring.bits() <= PRODUCT_RING_LIMIT);
                    assert_eq!(out.frac, g.edge(*left).frac + g.edge(*right).frac);
                }
                Op::RowScale { input, scale, .. } => {
                    assert!(g.edge(*input).ring >= out.ring && g.edge(*scale).ring == out.ring);
                }
                Op::SquareSum { input } | Op::RowSum { input } | Op::ShiftLeft { input, .. } => {
                    assert_eq!(g.edge(*input).ring, out.ring)
                }
                Op::Garbled { function: Function::Truncate { shift }, input } => {
                    assert_eq!(g.edge(*input).frac - shift, out.frac, "{}", node.name);
                }
                Op::Garbled { .. } => {}
            }
        }
    }
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
}
