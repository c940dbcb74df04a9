//! Whole inferences whose device dies on the way.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread,
};

use heliostat::{
    engine::{Backend, FallbackBackend, cpu::CpuBackend},
    model::{Model, execute},
    net::{
        Meter, Role, memory_pair,
        session::{ClientConnection, ClientSession, Recorder, ServerContext, Tables, serve_connection},
    },
    protocol::Settings,
};

use crate::failing::{Failing, Failure};

/// One inference with both parties on `backend`: the output and the oracle's.
fn infer(model: &Model, backend: Arc<dyn Backend>) -> (Vec<i64>, Vec<i64>) {
    let manifest = model.manifest().to_bytes().unwrap();
    let context = ServerContext::new(model.spec().clone(), model.weights().clone(), manifest, backend.clone(), 512);
    let context = context.unwrap();
    let (client, server) = memory_pair(256 << 20);
    let served = thread::spawn(move || {
        serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
    });
    let recorder = Recorder::default();
    let (connection, _) = ClientConnection::open(client, [5; 16], Meter::new(Role::Client), None, recorder).unwrap();
    let mut session = ClientSession::new(connection, model.spec().clone(), backend).unwrap();
    let prepared = session.offline(8, Settings::EXACT, Tables::Interleaved).unwrap();
    let inputs = model.client().inputs(&model.client().encode("so so", None, 8).unwrap()).unwrap();
    let output = session.online(prepared, inputs.clone()).unwrap();
    session.close().unwrap();
    served.join().unwrap().unwrap();
    let graph = model.client().graph(8).unwrap();
    let oracle = execute(&graph, model.weights(), &inputs).unwrap();
    (output, oracle.edge(graph.output).to_vec())
}

#[test]
fn an_inference_whose_device_dies_equals_the_oracle() {
    let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")).unwrap();
    let whole = Failing::new(Failure::Loss, u64::MAX);
    let calls = whole.calls();
    let (output, oracle) = infer(&model, Arc::new(FallbackBackend::new(whole, CpuBackend::new(None))));
    assert_eq!(output, oracle);
    let calls = calls.load(Ordering::SeqCst);
    for (failure, at) in
        [(Failure::Loss, 0), (Failure::Loss, calls / 3), (Failure::Loss, calls - 5), (Failure::Full, calls / 2)]
    {
        let backend = Arc::new(FallbackBackend::new(Failing::new(failure, at), CpuBackend::new(None)));
        let (output, oracle) = infer(&model, backend.clone());
        assert_eq!(output, oracle, "{failure:?} at call {at} of {calls}");
        assert!(backend.degraded().is_some());
    }
}
