//! Whole inferences over channels: memory and TCP, both table modes, faults in the middle.

use std::{path::Path, sync::Arc, thread};

use heliostat::{
    engine::cpu::CpuBackend,
    model::{Inputs, Model, execute},
    net::{
        Channel, Meter, Role, memory_pair,
        session::{
            ClientConnection, ClientSession, Recorder, ServerContext, SessionError, Tables, chrome_trace, overlap,
            serve_connection,
        },
    },
};

fn model() -> Model {
    Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")).unwrap()
}

fn context(model: &Model) -> Arc<ServerContext> {
    let manifest = model.manifest().to_bytes().unwrap();
    let backend = Arc::new(CpuBackend::new(None));
    Arc::new(ServerContext::new(model.spec().clone(), model.weights().clone(), manifest, backend, 512).unwrap())
}

fn connect(channel: Channel, model: &Model, recorder: Recorder) -> Result<ClientSession, SessionError> {
    let (connection, offer) = ClientConnection::open(channel, Meter::new(Role::Client), None, recorder)?;
    assert_eq!(offer.digest, *blake3_of(&offer.manifest));
    ClientSession::new(connection, model.spec().clone(), Arc::new(CpuBackend::new(None)))
}

fn blake3_of(manifest: &Option<Vec<u8>>) -> Box<[u8; 32]> {
    Box::new(*blake3::hash(manifest.as_deref().unwrap()).as_bytes())
}

fn inputs(model: &Model, text: &str, tokens: usize) -> Inputs {
    let encoded = model.client().encode(text, None, tokens).unwrap();
    assert_eq!(encoded.bucket, tokens);
    model.client().inputs(&encoded).unwrap()
}

#[test]
fn several_inferences_over_one_connection_equal_the_oracle() {
    let model = model();
    let context = context(&model);
    let (client, server) = memory_pair(256 << 20);
    let recorder = Recorder::default();
    let server_recorder = recorder.clone();
    let served = thread::spawn({
        let context = context.clone();
        move || serve_connection(&context, server, Meter::new(Role::Server), &server_recorder)
    });
    let mut session = connect(client, &model, recorder.clone()).unwrap();
    let mut bytes = Vec::new();
    for (text, tables) in [
        ("a warm and funny film", Tables::Spool(std::env::temp_dir())),
        ("dull, dull and dull", Tables::Spool(std::env::temp_dir())),
        ("so so", Tables::Interleaved),
    ] {
        let start = session.cut();
        let interleaved = tables == Tables::Interleaved;
        let prepared = session.offline(8, tables).unwrap();
        let middle = session.cut();
        let inputs = inputs(&model, text, 8);
        let output = session.online(prepared, inputs.clone()).unwrap();
        let end = session.cut();
        let graph = model.client().graph(8).unwrap();
        let oracle = execute(&graph, model.weights(), &inputs).unwrap();
        assert_eq!(oracle.overflow_count(), 0);
        assert_eq!(output, oracle.edge(graph.output), "{text}");
        if !interleaved {
            let (offline, online) = (middle.since(&start), end.since(&middle));
            bytes.push([offline.bytes_up, offline.bytes_down, online.bytes_up, online.bytes_down, online.rounds]);
        }
    }
    // Message sizes and the number of rounds do not depend on the text.
    assert_eq!(bytes[0], bytes[1]);
    session.close().unwrap();
    served.join().unwrap().unwrap();
    let spans = recorder.take();
    assert!(overlap(&spans) > 0.0);
    assert!(chrome_trace(&spans)["traceEvents"].as_array().unwrap().len() > 50);
}
