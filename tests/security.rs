//! What a peer, or someone on the wire, gets to see of whole inferences over a recorded channel: shapes that do not depend
//! on the text, and none of the plaintext secrets. What the two sides' correlations show of each other is tested beside
//! the protocol (`protocol::transcript_tests`). `SECURITY.md` lists the rules and the tests of each.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not recognise outside test functions"
)]

use std::{collections::HashMap, path::PathBuf, sync::Arc, thread};

use heliostat::{
    engine::cpu::CpuBackend,
    model::{Inputs, Model},
    net::{
        Meter, Role, memory_pair,
        record::{Entry, Outline, record},
        session::{ClientConnection, ClientSession, Recorder, ServerContext, Tables, serve_connection},
    },
    protocol::{Layout, LinearMode, Methods, OtMethod, ProductMode, Settings},
};

/// Lanes of a connection.
const OT: u8 = 2;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")
}

struct Observed {
    entries: Vec<Entry>,
    outlines: Vec<Outline>,
    output: Vec<i64>,
}

/// One connection with one inference, recorded at the client.
fn observe(
    model: &Model,
    context: &Arc<ServerContext>,
    inputs: Inputs,
    settings: Settings,
    tables: Tables,
) -> Observed {
    let (client, server) = memory_pair(256 << 20);
    let (client, transcript) = record(client);
    let served = thread::spawn({
        let context = context.clone();
        move || serve_connection(&context, server, [5; 16], Meter::new(Role::Server), &Recorder::default())
    });
    let (connection, _) =
        ClientConnection::open(client, [5; 16], Meter::new(Role::Client), None, Recorder::default()).unwrap();
    let mut session = ClientSession::new(connection, model.spec().clone(), Arc::new(CpuBackend::new(None))).unwrap();
    let prepared = session.offline(8, settings, tables).unwrap();
    let output = session.online(prepared, inputs).unwrap();
    session.close().unwrap();
    served.join().unwrap().unwrap();
    Observed { entries: transcript.entries(), outlines: transcript.outlines(), output }
}

fn setting() -> (Model, Arc<ServerContext>) {
    let model = Model::load(&folder()).unwrap();
    let manifest = model.manifest().to_bytes().unwrap();
    let backend = Arc::new(CpuBackend::new(None));
    let context = ServerContext::new(model.spec().clone(), model.weights().clone(), manifest, backend, 512).unwrap();
    (model, Arc::new(context))
}

fn inputs(model: &Model, text: &str) -> Inputs {
    let encoded = model.client().encode(text, None, 8).unwrap();
    assert_eq!(encoded.bucket, 8, "{text}");
    model.client().inputs(&encoded).unwrap()
}

/// Kinds, lanes, directions and sizes, in order. On the OT lane nodes are taken as the HE lane makes their shares known, so
/// there the order follows the speed of the machine, and the collection of outlines is compared.
fn shape(observed: &Observed) -> Vec<Outline> {
    let mut outlines = observed.outlines.clone();
    let first = outlines.partition_point(|o| o.lane < OT);
    let last = outlines.partition_point(|o| o.lane <= OT);
    outlines[first..last].sort_unstable();
    outlines
}

#[test]
fn transcripts_of_different_texts_have_one_shape() {
    let (model, context) = setting();
    let spool = || Tables::Spool(std::env::temp_dir());
    let silent = Settings { ot: OtMethod::Silent, ..Settings::EXACT };
    let shared =
        Settings { methods: Methods::SHARED, ot: OtMethod::Silent, layout: Layout::Balanced, ..Settings::EXACT };
    let cases = [
        (Settings::EXACT, spool()),
        (Settings::EXACT, Tables::Interleaved),
        (silent, spool()),
        (silent, Tables::Interleaved),
        (shared, spool()),
        (Settings { products: ProductMode::Fhgs, ..Settings::EXACT }, spool()),
        (Settings { linear: LinearMode::Online, products: ProductMode::Fhgs, ..Settings::EXACT }, spool()),
    ];
    for (settings, tables) in cases {
        // Nothing but [CLS] and [SEP], and a bucket filled to its end.
        let texts = ["", "a warm and very funny little film"];
        let [short, long] = texts.map(|text| observe(&model, &context, inputs(&model, text), settings, tables.clone()));
        assert_ne!(short.output, long.output);
        assert!(short.outlines.len() > 50);
        assert!(shape(&short) == shape(&long), "{settings:?}, {tables:?}: messages differ in number, order or size");
    }
}

/// Sixteen bytes at a time: nothing random is found by chance.
const PIECE: usize = 16;

struct Needles {
    pieces: HashMap<u128, String>,
    /// A set of 24-bit numbers, the beginnings of all pieces: almost every place is passed over by this alone.
    starts: Vec<u64>,
}

/// Word and bit of the first three bytes of a piece.
fn start(piece: u128) -> (usize, u64) {
    ((piece as usize & 0xff_ffff) >> 6, 1 << (piece as u64 & 63))
}

impl Needles {
    fn new() -> Self {
        Self { pieces: HashMap::new(), starts: vec![0; 1 << 18] }
    }

    /// Up to 64 pieces of a secret; those of one repeated byte are none.
    fn add(&mut self, name: &str, secret: &[u8]) {
        let last = secret.len().checked_sub(PIECE).unwrap_or_else(|| panic!("{name} is too short to look for"));
        for at in (0..=last).step_by((last / 64).max(1)) {
            let piece: [u8; PIECE] = secret[at..at + PIECE].try_into().unwrap();
            if piece.iter().any(|b| *b != piece[0]) {
                let piece = u128::from_le_bytes(piece);
                self.starts[start(piece).0] |= start(piece).1;
                self.pieces.insert(piece, name.to_string());
            }
        }
    }

    fn find(&self, bytes: &[u8]) -> Option<&str> {
        let mut window = 0u128;
        bytes.iter().enumerate().find_map(|(i, &b)| {
            window = window >> 8 | u128::from(b) << 120;
            let whole = i + 1 >= PIECE && self.starts[start(window).0] & start(window).1 != 0;
            if whole { self.pieces.get(&window).map(String::as_str) } else { None }
        })
    }
}

fn words<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&x| bytes(x)).collect()
}

#[test]
fn neither_text_nor_weights_are_on_the_wire() {
    let (model, context) = setting();
    let text = "a warm and very funny little film";
    let encoded = model.client().encode(text, None, 8).unwrap();
    let own = inputs(&model, text);
    let observed = observe(&model, &context, own.clone(), Settings::EXACT, Tables::Spool(std::env::temp_dir()));

    let mut of_the_client = Needles::new();
    of_the_client.add("the text", text.as_bytes());
    of_the_client.add("the token ids", &words(&encoded.ids, |x| x.to_le_bytes()));
    of_the_client.add("the embedded text", &words(&own.embedding, i64::to_le_bytes));
    of_the_client.add("the embedded text", &words(&own.embedding, |x| (x as i32).to_le_bytes()));
    of_the_client.add("the embedded text", &words(&own.embedding, |x| (x as i16).to_le_bytes()));

    // The encoder and the head as the checkpoint stores them; the embedding block is public.
    let mut of_the_server = Needles::new();
    let file = std::fs::read(folder().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut searched = 0;
    for (name, tensor) in tensors.tensors() {
        let values = tensor.data();
        if !name.contains("embeddings") && values.len() >= PIECE {
            of_the_server.add(&name, values);
            searched += 1;
        }
    }
    assert!(searched > 20);

    for Entry { sent, frame } in &observed.entries {
        let found = of_the_client.find(&frame.payload).or_else(|| of_the_server.find(&frame.payload));
        assert_eq!(found, None, "in a message of kind {:#x} (sent by the client: {sent})", frame.kind);
    }
    // The search can find: the manifest holds the embedding block, and says so.
    let mut public = Needles::new();
    for (name, tensor) in tensors.tensors().into_iter().filter(|(name, _)| name.contains("word_embeddings")) {
        public.add(&name, tensor.data());
    }
    let with: Vec<&Entry> = observed.entries.iter().filter(|e| public.find(&e.frame.payload).is_some()).collect();
    assert!(!with.is_empty() && with.iter().all(|e| !e.sent && e.frame.lane == 0), "only in the manifest");
}
