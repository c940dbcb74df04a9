//! Whole evaluations against the floating-point model.

use std::sync::Arc;

use super::{model::tests::random, *};
use crate::{
    arith::sample::SecureRng,
    engine::{
        Backend, DualBackend,
        cpu::CpuBackend,
        gpu::{GpuBackend, GpuOptions, adapters},
    },
    he::{ParameterSet, ParameterSpec, ckks::CKKS_8192},
};
use rand_core::Rng;

const SMALL: ParameterSpec = ParameterSpec { name: "small", n: 256, ..CKKS_8192 };

fn rows(count: usize, rng: &mut SecureRng) -> Vec<f32> {
    (0..count).map(|_| (rng.next_u32() as f64 / 2f64.powi(31) - 1.0) as f32).collect()
}

/// Evaluates and compares; gives the run.
fn compare(
    backend: Arc<dyn Backend>,
    spec: ParameterSpec,
    model: ApproxModel,
    length: usize,
    tolerance: f64,
) -> ClientAidedRun {
    let mut rng = SecureRng::from_seed([length as u8; 32]);
    let model = Arc::new(model);
    let rows = rows(length * model.embedding_norm.gamma.len(), &mut rng);
    let expected = model.forward(&rows).unwrap();
    assert!(expected.largest_score < model.score_limit && expected.largest_activation < model.activation_limit);
    let params = ParameterSet::insecure(spec).unwrap();
    let mut parties = ClientAided::new(backend, params, model.clone(), length, &mut rng).unwrap();
    let run = parties.evaluate(&rows).unwrap();
    assert_eq!(run.outputs.len(), expected.outputs.len());
    for (found, expected) in run.outputs.iter().zip(&expected.outputs) {
        assert!((found - expected).abs() < tolerance, "{found} is not {expected}: {run:?}");
    }
    // A second sequence on the same keys.
    let shorter = &rows[..rows.len() / length * (length - 1).max(1)];
    let again = parties.evaluate(shorter).unwrap();
    let expected = model.forward(shorter).unwrap();
    assert!((again.outputs[0] - expected.outputs[0]).abs() < tolerance);
    assert_eq!(
        (again.rounds, again.bytes_up, again.bytes_down),
        (run.rounds, run.bytes_up, run.bytes_down),
        "sizes are public"
    );
    run
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(None))
}

#[test]
fn small_models_agree_with_floats() {
    let mut rng = SecureRng::from_seed([3; 32]);
    // Heads that fill their ciphertexts, and that do not; one and two ciphertexts a head; all kinds of remainders.
    for (sizes, units, length, pooling) in [
        ((16, 2, 32, 2, 2), 8, 8, Pooling::First),
        ((18, 3, 20, 1, 3), 19, 5, Pooling::Mean),
        ((20, 2, 24, 2, 1), 5, 7, Pooling::Mean),
    ] {
        let model = random(sizes, units, length, pooling, &mut rng);
        let run = compare(cpu(), SMALL, model, length, 0.01);
        assert_eq!(run.rounds, 4 * sizes.3 as u64 + 1);
        let bare: Vec<_> = run.seen.iter().filter(|seen| !seen.masked).map(|seen| seen.name).collect();
        assert_eq!(bare.len(), 3 * sizes.3 + 1);
        assert!(bare.last() == Some(&"outputs"));
    }
}

/// Every word of every operation on both sides.
#[test]
fn the_device_agrees() {
    assert!(!adapters().is_empty(), "no Vulkan adapter: install mesa-vulkan-drivers and libvulkan1");
    let gpu = GpuBackend::open(0, &GpuOptions::default()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(DualBackend::new(gpu, CpuBackend::new(None)));
    let model = random((8, 1, 8, 1, 2), 4, 8, Pooling::First, &mut SecureRng::from_seed([4; 32]));
    compare(backend, SMALL, model, 8, 0.01);
}

#[test]
fn a_layer_at_the_named_parameters() {
    let model = random((32, 1, 32, 1, 2), 16, 64, Pooling::First, &mut SecureRng::from_seed([5; 32]));
    compare(cpu(), CKKS_8192, model, 20, 0.01);
}

#[test]
fn wrong_use_is_refused() {
    let mut rng = SecureRng::from_seed([6; 32]);
    let mut model = random((8, 1, 8, 1, 2), 4, 8, Pooling::First, &mut rng);
    let shallow = ParameterSet::insecure(ParameterSpec { data_limbs: 5, ..SMALL }).unwrap();
    let e = ClientAided::new(cpu(), shallow, Arc::new(model.clone()), 8, &mut rng).err().unwrap();
    assert!(matches!(e, ThexError::Depth { needed: 6, found: 5, .. }), "{e}");
    let params = ParameterSet::insecure(SMALL).unwrap();
    let e = ClientAided::new(cpu(), params.clone(), Arc::new(model.clone()), 64, &mut rng).err().unwrap();
    assert!(matches!(e, ThexError::Sequence(_)), "{e}");

    let rows = rows(64, &mut rng);
    let mut parties = ClientAided::new(cpu(), params.clone(), Arc::new(model.clone()), 8, &mut rng).unwrap();
    assert!(matches!(parties.evaluate(&rows[..7]).unwrap_err(), ThexError::Sequence(_)));
    assert!(matches!(parties.evaluate(&[1e4; 8]).unwrap_err(), ThexError::Range { what: "a row", .. }));
    let mut narrow = model.clone();
    narrow.layers[0].sum_range = [0.0, 1.0];
    let mut parties = ClientAided::new(cpu(), params.clone(), Arc::new(narrow), 8, &mut rng).unwrap();
    assert!(matches!(parties.evaluate(&rows).unwrap_err(), ThexError::SumRange { layer: 0, .. }));
    model.score_limit = 0.01;
    let mut parties = ClientAided::new(cpu(), params.clone(), Arc::new(model.clone()), 8, &mut rng).unwrap();
    let e = parties.evaluate(&rows).unwrap_err();
    assert!(matches!(e, ThexError::Range { what: "a score", .. }) && e.to_string().contains("wider"), "{e}");
}

#[test]
fn messages_out_of_place_or_shape_are_refused() {
    let mut rng = SecureRng::from_seed([7; 32]);
    let model = Arc::new(random((8, 1, 8, 1, 2), 4, 8, Pooling::First, &mut rng));
    let ctx = crate::he::ckks::CkksContext::new(cpu(), ParameterSet::insecure(SMALL).unwrap());
    let mut client = ThexClient::new(ctx.clone(), model.shape().unwrap(), 8, rng.fork()).unwrap();
    let keys = client.keys().unwrap();
    let mut server = ThexServer::new(ctx, model, 8, &keys, rng.fork()).unwrap();
    assert!(matches!(client.receive(&[0; 9]).unwrap_err(), ThexError::Message(_)));
    let start = client.start(&rows(64, &mut rng)).unwrap().to_bytes();
    assert!(server.receive(&start[..start.len() - 1]).is_err() && server.receive(&[]).is_err());
    let mut bad = start.clone();
    bad[1] = 7;
    assert!(server.receive(&bad).is_err());
    let answer = server.receive(&start).unwrap();
    assert!(server.receive(&answer.to_bytes()).is_err());
    let mut bad = answer.to_bytes();
    bad[0] = 2;
    assert!(client.receive(&bad).is_err());
    assert!(client.receive(&answer.to_bytes()).is_ok());
}
