//! Whole inferences over channels: memory and TCP, both table modes, faults in the middle.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not recognise outside test functions")]

use std::{path::Path, sync::Arc, thread};

use heliostat::{
    engine::cpu::CpuBackend,
    model::{GraphOptions, Inputs, Model, Rings, execute},
    net::{
        Channel, Meter, Role, memory_pair,
        session::{
            ClientConnection, ClientSession, CorrelationStore, Party, Quota, Recorder, ServerContext, SessionError,
            StoreError, Tables, chrome_trace, overlap, serve_connection, session_name,
        },
    },
    protocol::{Layout, LinearMode, Methods, OtMethod, PackingKind, ProductMode, Settings},
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
    let (connection, offer) = ClientConnection::open(channel, [5; 16], Meter::new(Role::Client), None, recorder)?;
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
        move || serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &server_recorder)
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
        let prepared = session.offline(8, Settings::EXACT, tables).unwrap();
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

/// Modes with homomorphic work online: two inferences over one connection, of which nothing can be kept.
#[test]
fn homomorphic_work_online_equals_the_oracle() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let store = CorrelationStore::open(&dir.path().join("server")).unwrap();
    let context = Arc::new(Arc::into_inner(context(&model)).unwrap().with_store(store));
    for (linear, products) in [(LinearMode::Offline, ProductMode::Fhgs), (LinearMode::Online, ProductMode::Fhgs)] {
        let settings = Settings { linear, products, ..Settings::EXACT };
        let (client, server) = memory_pair(256 << 20);
        let served = thread::spawn({
            let context = context.clone();
            move || serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
        });
        let mut session = connect(client, &model, Recorder::default()).unwrap();
        let costs = session.plan(8, settings).unwrap().he_costs().unwrap();
        let mut bytes = Vec::new();
        for text in ["a warm and funny film", "so"] {
            let counters = [context.he_counters()];
            let start = session.cut();
            let prepared = session.offline(8, settings, Tables::Spool(std::env::temp_dir())).unwrap();
            let (middle, counters) = (session.cut(), [counters[0], context.he_counters()]);
            let inputs = inputs(&model, text, 8);
            let output = session.online(prepared, inputs.clone()).unwrap();
            let (end, counters) = (session.cut(), [counters[0], counters[1], context.he_counters()]);
            let graph = model.client().graph(8).unwrap();
            assert_eq!(output, execute(&graph, model.weights(), &inputs).unwrap().edge(graph.output), "{settings:?}");
            for (phase, costs) in [costs.offline, costs.online].into_iter().enumerate() {
                assert_eq!(counters[phase + 1].key_switches - counters[phase].key_switches, costs.key_switches);
                assert_eq!(counters[phase + 1].products - counters[phase].products, costs.products);
            }
            let (offline, online) = (middle.since(&start), end.since(&middle));
            bytes.push([offline.bytes_up, offline.bytes_down, online.bytes_up, online.bytes_down, online.rounds]);
        }
        assert_eq!(bytes[0], bytes[1]);
        assert!(costs.online.products > 0 && bytes[0][3] > costs.online.bytes_down);
        let keep = Tables::Keep { store: dir.path().join("client"), quota: Quota::default() };
        let kept = session.offline(8, settings, keep).err().unwrap();
        assert!(kept.to_string().contains("cannot be kept"), "{kept}");
        drop(session);
        served.join().unwrap().unwrap_err();
    }
}

/// Switching keys of slots follow when they are first needed, and are not part of a phase.
#[test]
fn keys_come_when_a_packing_needs_them() {
    let model = model();
    let context = context(&model);
    let (client, server) = memory_pair(256 << 20);
    let served = thread::spawn(move || {
        serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
    });
    let mut session = connect(client, &model, Recorder::default()).unwrap();
    let graph = GraphOptions { rings: Rings::Prime, ..GraphOptions::default() };
    let (products, packing) = (ProductMode::Fhgs, PackingKind::TokensFirst);
    let slots = Settings { products, packing, graph, ..Settings::EXACT };
    let mut sent = Vec::new();
    for settings in [Settings::EXACT, slots, Settings::EXACT, slots] {
        let before = session.cut();
        session.ensure_keys(8, settings).unwrap();
        sent.push(session.cut().since(&before).bytes_up);
        if sent.len() < 2 || sent.len() == 4 {
            continue;
        }
        let prepared = session.offline(8, settings, Tables::Interleaved).unwrap();
        let inputs = inputs(&model, "a few keys more", 8);
        let output = session.online(prepared, inputs.clone()).unwrap();
        let graph = model.client().graph_with(8, &settings.graph).unwrap();
        assert_eq!(output, execute(&graph, model.weights(), &inputs).unwrap().edge(graph.output), "{settings:?}");
    }
    assert!(sent[0] == 0 && sent[1] > 1 << 20 && sent[2..] == [0, 0], "{sent:?}");
    session.close().unwrap();
    served.join().unwrap().unwrap();
}

/// Inferences whose linear layers share ciphertexts: kept each for itself, spent each once, whatever the packing that they are
/// then asked for in; what is not finished is lost with its connection.
#[test]
fn inferences_prepared_together_are_spent_one_by_one() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let (client_dir, server_dir) = (dir.path().join("client"), dir.path().join("server"));
    let store = CorrelationStore::open(&server_dir).unwrap();
    let context = Arc::new(Arc::into_inner(context(&model)).unwrap().with_store(store));
    let session = || {
        let (client, server) = memory_pair(256 << 20);
        let context = context.clone();
        thread::spawn(move || {
            serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
        });
        connect(client, &model, Recorder::default()).unwrap()
    };
    let settings = Settings { packing: PackingKind::BatchColumn, together: 3, ..Settings::EXACT };
    let keep = || Tables::Keep { store: client_dir.clone(), quota: Quota::default() };
    let mut first = session();
    let many = first.joint(8, Settings { together: 2000, ..settings }).unwrap_err().to_string();
    assert!(many.contains("2000 inferences prepared together are over the limit of 1024"), "{many}");
    first.joint(8, settings).unwrap();
    assert_eq!(first.joint_left(), 3);
    // Two are kept; the third dies with the connection.
    drop(first.offline(8, settings, keep()).unwrap());
    drop(first.offline(8, settings, keep()).unwrap());
    assert_eq!(first.joint_left(), 1);
    drop(first);
    let mut second = session();
    let none = second.offline(8, settings, keep()).map(drop);
    assert!(matches!(none, Err(SessionError::NotJoint)));

    let mut third = session();
    let store = CorrelationStore::open(&client_dir).unwrap();
    let fitting = store.fitting(&third.terms(8, Settings::EXACT).unwrap(), Party::Client).unwrap();
    assert_eq!(fitting.len(), 2);
    let graph = model.client().graph(8).unwrap();
    for (text, asked) in [("kept one by one", Settings::EXACT), ("and spent", settings)] {
        let prepared = third.resume(&store, 8, asked).unwrap();
        let inputs = inputs(&model, text, 8);
        let output = third.online(prepared, inputs.clone()).unwrap();
        assert_eq!(output, execute(&graph, model.weights(), &inputs).unwrap().edge(graph.output), "{text}");
    }
    let spent = third.resume(&store, 8, settings).map(drop);
    assert!(matches!(spent, Err(SessionError::Store(StoreError::Nothing { .. }))));
    let left = |d: &Path| std::fs::read_dir(d).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!((left(&client_dir), left(&server_dir)), (vec!["key".into()], vec!["key".into()]));
}

#[test]
fn kept_correlations_serve_another_connection_once() {
    kept(Settings::EXACT);
    kept(Settings { methods: Methods::SHARED, ot: OtMethod::Silent, layout: Layout::Balanced, ..Settings::EXACT });
}

fn kept(settings: Settings) {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let (client_dir, server_dir) = (dir.path().join("client"), dir.path().join("server"));
    let keep = |quota| Tables::Keep { store: client_dir.clone(), quota };
    let server_with = |dir: &Path, quota| {
        let manifest = model.manifest().to_bytes().unwrap();
        let (spec, weights) = (model.spec().clone(), model.weights().clone());
        let context = ServerContext::new(spec, weights, manifest, Arc::new(CpuBackend::new(None)), 512).unwrap();
        Arc::new(context.with_store(CorrelationStore::open(dir).unwrap().with_quota(quota)))
    };
    let session = |context: &Arc<ServerContext>| {
        let (client, server) = memory_pair(256 << 20);
        let context = context.clone();
        thread::spawn(move || {
            serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
        });
        connect(client, &model, Recorder::default()).unwrap()
    };
    let context = server_with(&server_dir, Quota { count: Some(2), bytes: None });
    let mut first = session(&context);
    // The client's quota is looked at before anything is sent, the server's when it is asked.
    let full = first.offline(8, settings, keep(Quota { bytes: Some(1000), count: None }));
    assert!(matches!(full.map(drop), Err(SessionError::Store(StoreError::Full { .. }))));
    let mut first = session(&context);
    drop(first.offline(8, settings, keep(Quota::default())).unwrap());
    drop(first.offline(8, settings, keep(Quota::default())).unwrap());
    let refused = first.offline(8, settings, keep(Quota::default())).map(drop).unwrap_err().to_string();
    assert!(refused.contains("refuses: its store of correlations is full"), "{refused}");

    let store = CorrelationStore::open(&client_dir).unwrap();
    // Another server has another store, and is not shown what was made with this one.
    let mut elsewhere = session(&server_with(&dir.path().join("elsewhere"), Quota::default()));
    let error = elsewhere.resume(&store, 8, settings).map(drop).unwrap_err().to_string();
    assert!(error.contains("2 made with another peer"), "{error}");

    let mut second = session(&context);
    assert!(second.resume(&store, 16, settings).is_err(), "another bucket");
    let other =
        Settings { ot: if settings.ot == OtMethod::Iknp { OtMethod::Silent } else { OtMethod::Iknp }, ..settings };
    assert!(second.resume(&store, 8, other).is_err(), "other settings");
    // The server has lost its half of one: it is passed over, and the next one serves.
    let terms = second.terms(8, settings).unwrap();
    let lost = store.fitting(&terms, Party::Client).unwrap()[0].session;
    std::fs::remove_file(server_dir.join(format!("{}.server", session_name(&lost)))).unwrap();
    let prepared = second.resume(&store, 8, settings).unwrap();
    let inputs = inputs(&model, "kept on disk", 8);
    let graph = model.client().graph(8).unwrap();
    let output = second.online(prepared, inputs.clone()).unwrap();
    let oracle = execute(&graph, model.weights(), &inputs).unwrap();
    if settings.methods.is_exact() {
        assert_eq!(output, oracle.edge(graph.output));
    } else {
        let close = 1 << (graph.edge(graph.output).frac - 3);
        assert!(output.iter().zip(oracle.edge(graph.output)).all(|(a, b)| (a - b).abs() < close));
    }
    let spent = second.resume(&store, 8, settings).map(drop);
    assert!(matches!(spent, Err(SessionError::Store(StoreError::Nothing { .. }))));
    let left = |d: &Path| std::fs::read_dir(d).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!((left(&client_dir), left(&server_dir)), (vec!["key".into()], vec!["key".into()]));
}

/// The three real checkpoints, 8 tokens each: classification by [CLS], classification and embedding by mean pooling.
#[test]
fn real_checkpoints_equal_the_oracle() {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    let dir = match std::env::var_os("HELIOSTAT_MODELS") {
        Some(dir) => dir.into(),
        None if default.is_dir() => default,
        None => {
            println!("NOT RUN: ../shared/models absent (HELIOSTAT_MODELS is not set)");
            return;
        }
    };
    for (name, text) in [
        ("bert-tiny-sst2", "\u{1f600} fine"),
        ("minilm-sst2", "a charming film"),
        ("all-minilm-l6-v2", "two cats sleep"),
    ] {
        let model = Model::load(&dir.join(name)).unwrap();
        let context = context(&model);
        let (client, server) = memory_pair(256 << 20);
        let served = thread::spawn(move || {
            serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
        });
        let mut session = connect(client, &model, Recorder::default()).unwrap();
        let prepared = session.offline(8, Settings::EXACT, Tables::Spool(std::env::temp_dir())).unwrap();
        let inputs = inputs(&model, text, 8);
        let output = session.online(prepared, inputs.clone()).unwrap();
        session.close().unwrap();
        served.join().unwrap().unwrap();
        let graph = model.client().graph(8).unwrap();
        let oracle = execute(&graph, model.weights(), &inputs).unwrap();
        assert_eq!(oracle.overflow_count(), 0, "{name}");
        assert_eq!(output, oracle.edge(graph.output), "{name}");
    }
}
