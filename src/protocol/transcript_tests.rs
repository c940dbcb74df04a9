//! What the parties get to see: a whole inference whose every message is kept, searched for what must not be there.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use super::{tests::Parties, *};
use crate::{
    arith::{bits, sample::SecureRng},
    model::{EdgeId, Inputs, Op},
    mpc::block::{BLOCK_BYTES, Block},
};

/// A message and who sent it.
struct Sent {
    up: bool,
    message: Message,
}

/// Everything that was sent, in order, of both phases.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Sent>>>);

/// A machine whose messages are kept.
struct Kept<M> {
    inner: M,
    up: bool,
    log: Log,
}

impl<M: Machine> Machine for Kept<M> {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        let turn = self.inner.advance(incoming)?;
        if let Turn::Send(message) = &turn {
            self.log.0.lock().unwrap().push(Sent { up: self.up, message: message.clone() });
        }
        Ok(turn)
    }

    fn node(&self) -> Option<NodeId> {
        self.inner.node()
    }

    fn progress(&self) -> (u64, u64) {
        self.inner.progress()
    }
}

/// One inference with everything that either side knows about it.
struct Run {
    log: Vec<Sent>,
    client: Arc<ClientCorrelation>,
    /// As it was before the online phase.
    labels: Vec<(ChunkKey, Vec<Block>)>,
    products: Vec<(NodeId, Vec<u64>)>,
    server: ServerExport,
    online: OnlineServer,
}

fn run(parties: &Parties, inputs: Inputs, interleaved: bool) -> Run {
    let mut rng = SecureRng::from_os().unwrap();
    let mut session = [0; 16];
    session.copy_from_slice(&rng.bytes32()[..16]);
    let tables = Box::new(MemoryTables::default());
    let client = ClientCorrelation::draw(session, &parties.plan, tables, &mut rng);
    run_with(parties, (client, ServerCorrelation::draw(session, &mut rng)), inputs, interleaved)
}

/// The messages of the work that inferences share, and what each goes on with.
fn run_joint(parties: &Parties) -> (Vec<Sent>, Vec<(ClientCorrelation, ServerCorrelation)>) {
    let log = Log::default();
    let (client, server) = parties.joint_by(&mut |client, server| {
        let mut client = Kept { inner: client, up: true, log: log.clone() };
        let mut server = Kept { inner: server, up: false, log: log.clone() };
        assert!(drive_pair(&mut client, &mut server).unwrap());
        (client.inner, server.inner)
    });
    let correlations = parties.begin(client, server);
    let log = std::mem::take(&mut *log.0.lock().unwrap());
    (log, correlations)
}

fn run_with(
    parties: &Parties,
    (client, server): (ClientCorrelation, ServerCorrelation),
    inputs: Inputs,
    interleaved: bool,
) -> Run {
    let log = Log::default();
    let mut rng = SecureRng::from_os().unwrap();
    let (plan, client, server) = (&parties.plan, Arc::new(client), Arc::new(server));
    let nodes = plan.ot_nodes(!interleaved, true);
    let (keys, params) = (&parties.client_keys, parties.client_keys.context().params().clone());
    log.0.lock().unwrap().push(Sent {
        up: true,
        message: Message::Keys {
            public_key: keys.public_key(&mut rng).unwrap().to_bytes(&params),
            galois_keys: keys.galois_keys(KEY_BLOCK, &mut rng).unwrap().to_bytes(&params),
        },
    });
    fn up<M>(inner: M, log: &Log) -> Kept<M> {
        Kept { inner, up: true, log: log.clone() }
    }
    fn down<M>(inner: M, log: &Log) -> Kept<M> {
        Kept { inner, up: false, log: log.clone() }
    }
    let mut he = up(HeClient::new(plan.clone(), client.clone(), parties.client_sets.clone(), rng.fork()), &log);
    let he_server =
        HeServer::new(plan.clone(), server.clone(), parties.weights.clone(), parties.server_sets.clone(), rng.fork());
    let mut he_server = down(he_server, &log);
    assert!(drive_pair(&mut he, &mut he_server).unwrap());
    let mut ot = up(OtClient::new(plan.clone(), client.clone(), nodes.clone(), rng.fork()), &log);
    let mut ot_server = down(OtServer::new(plan.clone(), server.clone(), nodes, rng.fork()), &log);
    assert!(drive_pair(&mut ot, &mut ot_server).unwrap());
    let (_, products, labels) = client.export(&plan.graph).unwrap();
    let export = server.export();
    let he_online = plan.settings.he_online();
    let (encryptor, evaluator) =
        (he_online.then(|| he.inner.into_encryptor()), he_online.then(|| he_server.inner.into_evaluator()));
    let online =
        OnlineClient::new(plan.clone(), client.clone(), inputs, interleaved.then_some(ot.inner), encryptor).unwrap();
    let weights = Arc::new(OnlineWeights::host(parties.weights.clone()));
    let server = OnlineServer::new(plan.clone(), server, weights, interleaved.then_some(ot_server.inner), evaluator);
    let (mut online, mut server) = (up(online, &log), down(server, &log));
    assert!(drive_pair(&mut online, &mut server).unwrap());
    drop((he.log, he_server.log, ot.log, ot_server.log, online));
    let log = std::mem::take(&mut *log.0.lock().unwrap());
    Run { log, client, labels, products, server: export, online: server.inner }
}

/// Parties whose OTs are silent.
fn silent() -> Parties {
    Parties::with(8, Settings { ot: OtMethod::Silent, ..Settings::EXACT })
}

/// Parties who do everything homomorphic online.
fn online() -> Parties {
    let (linear, products) = (LinearMode::Online, ProductMode::Fhgs);
    Parties::with(8, Settings { linear, products, ..Settings::EXACT })
}

/// Parties whose products are FHGS.
fn fhgs() -> Parties {
    Parties::with(8, Settings { products: ProductMode::Fhgs, ..Settings::EXACT })
}

fn inputs(parties: &Parties, text: &str) -> Inputs {
    let text = parties.model.client().encode(text, None, 8).unwrap();
    parties.model.client().inputs(&text).unwrap()
}

/// Bytes of a needle that are looked for in one piece: nothing random is found by chance.
const PIECE: usize = 16;

/// Secrets by name, cut into pieces.
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

    /// Pieces at the start, in the middle and all along (at most 64) of a secret.
    fn add(&mut self, name: &str, secret: &[u8]) {
        let last = secret.len().checked_sub(PIECE).unwrap_or_else(|| panic!("{name} is too short to look for"));
        let step = (last / 64).max(1);
        for at in (0..=last).step_by(step) {
            let piece: [u8; PIECE] = secret[at..at + PIECE].try_into().unwrap();
            // A run of one byte, as of zero padding, is no secret.
            if piece.iter().any(|b| *b != piece[0]) {
                let piece = u128::from_le_bytes(piece);
                self.starts[start(piece).0] |= start(piece).1;
                self.pieces.insert(piece, name.to_string());
            }
        }
    }

    /// Ring elements as they would be packed, and as they are in memory.
    fn add_ring(&mut self, name: &str, values: &[u64], bits: u32) {
        for (form, bytes) in [
            ("packed", bits::pack(values, bits)),
            ("64-bit", values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            ("32-bit", values.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect()),
        ] {
            if bytes.len() >= PIECE {
                self.add(&format!("{name} ({form})"), &bytes);
            }
        }
    }

    /// Name of the first secret in `bytes`, at whatever offset.
    fn find(&self, bytes: &[u8]) -> Option<&str> {
        let mut window = 0u128;
        bytes.iter().enumerate().find_map(|(i, &b)| {
            window = window >> 8 | u128::from(b) << 120;
            let whole = i + 1 >= PIECE && self.starts[start(window).0] & start(window).1 != 0;
            if whole { self.pieces.get(&window).map(String::as_str) } else { None }
        })
    }
}

/// All secrets of both parties: none of them may ever be in any message, whoever sends it.
fn secrets(parties: &Parties, run: &Run, inputs: &Inputs) -> Needles {
    let (graph, mut needles) = (&parties.plan.graph, Needles::new());
    let keys = &parties.client_keys;
    for form in keys.secret().forms(keys.context().params()) {
        needles.add("the client's secret key", &form);
    }
    for (i, edge) in graph.edges.iter().enumerate() {
        let bits = edge.ring.bits();
        let share = run.client.board.expect(graph, EdgeId(i)).unwrap();
        needles.add_ring(&format!("the client's share of {}", edge.name), &share, bits);
        // The last one is opened to the client.
        if EdgeId(i) != graph.output {
            let share = run.online.share_of(EdgeId(i)).unwrap();
            // What the client itself sent is its masked input.
            if EdgeId(i) != graph.embedding && Some(EdgeId(i)) != graph.pool {
                needles.add_ring(&format!("the server's share of {}", edge.name), share, bits);
            }
        }
    }
    let edge = graph.edge(graph.embedding);
    let embedding: Vec<u64> = inputs.embedding.iter().map(|&x| edge.ring.from_signed(x)).collect();
    needles.add_ring("the embedded text", &embedding, edge.ring.bits());
    needles.add_ring("the embedded text, signed", &inputs.embedding.iter().map(|&x| x as u64).collect::<Vec<_>>(), 64);

    needles.add("the garbling offset", &run.server.delta.to_bytes());
    needles.add("the seed of the server's labels", &run.server.label_seed.to_bytes());
    for (key, labels) in &run.labels {
        let bytes: Vec<u8> = labels.iter().flat_map(|l| l.to_bytes()).collect();
        needles.add(&format!("the client's labels of {}", graph.node(key.0).name), &bytes);
    }
    for (what, vectors) in [
        ("the server's mask of", &run.server.linear),
        ("the server's part of the product", &run.server.products),
        ("the client's part of the product", &run.products),
    ] {
        for (node, values) in vectors {
            let node = graph.node(*node);
            needles.add_ring(&format!("{what} {}", node.name), values, graph.edge(node.op.inputs()[0]).ring.bits());
        }
    }
    for (node, left, right) in &run.server.masks {
        let node = graph.node(*node);
        for (edge, mask) in node.op.inputs().iter().zip([left, right]) {
            needles.add_ring(&format!("the mask of an operand of {}", node.name), mask, graph.edge(*edge).ring.bits());
        }
    }
    for (key, bits) in &run.server.permute {
        if bits.len() >= PIECE {
            needles.add(&format!("the permute bits of {}", graph.node(key.0).name), bits);
        }
    }
    for (_, node) in graph.iter() {
        if let Op::Linear { weights, .. } = node.op {
            let matrix = parties.weights.get(weights).unwrap();
            let signed: Vec<u64> = matrix.weights.iter().map(|&w| w as i64 as u64).collect();
            needles.add_ring(&format!("the weights {weights:?}"), &signed, 16);
        }
    }
    needles
}

#[test]
fn no_secret_of_either_party_is_in_any_message() {
    for (parties, interleaved) in
        [(Parties::new(8), false), (Parties::new(8), true), (silent(), false), (online(), false), (fhgs(), false)]
    {
        let inputs = inputs(&parties, "a charming and moving film");
        let run = run(&parties, inputs.clone(), interleaved);
        let needles = secrets(&parties, &run, &inputs);
        assert!(needles.pieces.len() > 3_000 && run.log.len() > 100);
        for Sent { up, message } in &run.log {
            if let Some(found) = needles.find(&message.encode()) {
                panic!("{found} is in {} sent by the {}", message.name(), if *up { "client" } else { "server" });
            }
        }
    }
}

/// The search is able to find: what is meant to travel (a share less its mask) is found where it travels and only there.
#[test]
fn the_search_finds_what_does_travel() {
    let parties = Parties::new(8);
    let run = run(&parties, inputs(&parties, "so so"), false);
    let graph = &parties.plan.graph;
    // Those of scalings are of a narrower ring.
    let product = |(node, ..): &&(NodeId, Vec<u64>, Vec<u64>)| matches!(graph.node(*node).op, Op::Product { .. });
    let (node, left, _) = run.server.masks.iter().find(product).unwrap();
    let edge = graph.node(*node).op.inputs()[0];
    let ring = graph.edge(edge).ring;
    let share = run.online.share_of(edge).unwrap();
    let masked: Vec<u64> = share.iter().zip(left).map(|(&x, &m)| ring.sub(x, m)).collect();
    let mut needles = Needles::new();
    needles.add_ring("masked", &masked, ring.bits());
    let found: Vec<&Sent> = run.log.iter().filter(|sent| needles.find(&sent.message.encode()).is_some()).collect();
    assert_eq!(found.len(), 1);
    assert!(matches!(&found[0].message, Message::Masked { node: n, .. } if *n as usize == node.0) && !found[0].up);
}

#[test]
fn the_evaluator_never_holds_two_labels_of_one_wire() {
    for parties in [Parties::new(8), silent()] {
        one_label_a_wire(&run(&parties, inputs(&parties, "two labels"), false));
    }
}

fn one_label_a_wire(run: &Run) {
    let mut held: HashSet<u128> = run.labels.iter().flat_map(|(_, labels)| labels.iter().map(|l| l.0)).collect();
    let own = held.len();
    for sent in &run.log {
        if let Message::Labels { labels, .. } = &sent.message {
            held.extend(labels.chunks_exact(BLOCK_BYTES).map(|l| u128::from_le_bytes(l.try_into().unwrap())));
        }
    }
    assert!(held.len() > own && own > 1_000);
    assert!(held.iter().all(|label| !held.contains(&(label ^ run.server.delta.0))));
}

/// Every mask serves once: nothing that is sent under a mask comes twice, within an inference or in another of the same
/// text, and operands that two products share are opened under different masks.
#[test]
fn masks_labels_and_correlations_are_fresh() {
    let (iknp, silent) = (Parties::new(8), silent());
    let mut seen: HashMap<u128, usize> = HashMap::new();
    let mut messages = 0;
    let (online, fhgs) = (online(), fhgs());
    for parties in [&iknp, &iknp, &silent, &silent, &online, &online, &fhgs, &fhgs] {
        let run = run(parties, inputs(parties, "the same text"), false);
        for sent in run.log.iter().filter(|s| !matches!(s.message, Message::Keys { .. } | Message::Open { .. })) {
            let fields: Vec<&[u8]> = match &sent.message {
                Message::HeUpload { matrices: parts, .. } | Message::HeResponse { responses: parts, .. } => {
                    parts.iter().map(Vec::as_slice).collect()
                }
                Message::ProductDown { message, matrix, .. } => vec![message, matrix],
                Message::BaseOffer { offer: a } | Message::BaseReply { choice: a } => vec![a],
                Message::BaseChoice { choice, offer } => vec![choice, offer],
                Message::Extend { matrix: a, .. }
                | Message::Tables { tables: a, .. }
                | Message::ProductUp { message: a, .. }
                | Message::Labels { labels: a, .. }
                | Message::Colours { bits: a, .. }
                | Message::Cots { payload: a }
                | Message::Shared { payload: a, .. }
                | Message::Restored { share: a, .. } => vec![a],
                Message::Input { embedding, pool } => vec![embedding, pool],
                Message::Masked { left, right, .. } => vec![left, right],
                Message::Keys { .. } | Message::Open { .. } => vec![],
            };
            // The end, because encrypted matrices begin with the client's public seed.
            for field in fields.into_iter().filter(|f| f.len() >= PIECE) {
                let piece: [u8; PIECE] = field[field.len() - PIECE..].try_into().unwrap();
                *seen.entry(u128::from_le_bytes(piece)).or_default() += 1;
                messages += 1;
            }
        }
    }
    assert!(messages > 200);
    assert_eq!(seen.len(), messages, "something masked was sent twice");
}

#[test]
fn what_is_secret_is_wiped_and_has_no_form_to_print_or_send() {
    fn wiped<T: zeroize::ZeroizeOnDrop>() {}
    wiped::<SecretVec>();
    wiped::<SecretBlocks>();
    wiped::<GarblerSecrets>();
    wiped::<ServerExport>();
    wiped::<crate::mpc::garble::half_gates::LabelSeed>();
    wiped::<aes::Aes128Enc>();

    // Each call is ambiguous, and this file does not compile, if the type has the trait.
    macro_rules! without {
        ($bound:path: $($secret:ty),*) => {{
            struct Marker;
            trait Without<Marker> {
                fn check() {}
            }
            impl<T: ?Sized> Without<()> for T {}
            impl<T: ?Sized + $bound> Without<Marker> for T {}
            $(<$secret as Without<_>>::check();)*
        }};
    }
    macro_rules! secret {
        ($($secret:ty),* $(,)?) => {
            without!(std::fmt::Debug: $($secret),*);
            without!(std::fmt::Display: $($secret),*);
            without!(serde::Serialize: $($secret),*);
        };
    }
    macro_rules! owned {
        ($($secret:ty),* $(,)?) => {
            secret!($($secret),*);
            without!(Clone: $($secret),*);
            without!(PartialEq: $($secret),*);
        };
    }
    // Labels and keys are copied a lot; their comparison takes the same time for all values.
    secret!(Block);
    owned!(
        SecretVec,
        SecretBlocks,
        GarblerSecrets,
        ServerProduct,
        ServerExport,
        ClientCorrelation,
        ServerCorrelation,
        ShareBoard,
        SecureRng,
        crate::he::SecretKey,
        crate::he::HeClient,
        crate::mpc::prg::Prg,
        crate::mpc::ot::BaseSender,
        crate::mpc::ot::CotSender,
        crate::mpc::ot::CotReceiver,
        crate::mpc::ot::CotSenderPool,
        crate::mpc::ot::CotReceiverPool,
        crate::mpc::ot::ReceiverCots,
        crate::mpc::ot::FerretSender,
        crate::mpc::ot::FerretReceiver,
        crate::mpc::ot::SenderPads,
        crate::mpc::ot::ReceiverPads,
        crate::mpc::garble::half_gates::LabelSeed,
    );
}

/// The forecast tells bytes and messages of every node, of both phases, to the byte.
#[test]
fn what_is_sent_was_forecast() {
    let shared = Settings { methods: Methods::SHARED, ot: OtMethod::Silent, layout: Layout::Bytes, ..Settings::EXACT };
    let mixed = shared.methods.with(LayerKind::Exp, Method::Garbled).with(LayerKind::Tanh, Method::Garbled);
    let settings = [
        Settings::EXACT,
        Settings { ot: OtMethod::Silent, ..Settings::EXACT },
        shared,
        Settings { methods: mixed, ot: OtMethod::Iknp, layout: Layout::Balanced, ..Settings::EXACT },
        Settings { products: ProductMode::Fhgs, layout: Layout::Bytes, ..Settings::EXACT },
        Settings { linear: LinearMode::Online, products: ProductMode::Fhgs, ..Settings::EXACT },
        Settings { linear: LinearMode::Online, ..Settings::EXACT },
    ];
    for settings in settings {
        let parties = Parties::small(8, settings);
        let forecast = Forecast::new(&parties.plan).unwrap();
        assert_eq!((forecast.together, forecast.joint), (1, Flow::default()));
        let run = run(&parties, inputs(&parties, "forecast"), false);
        was_forecast(&parties.plan, &forecast, &[], &run.log);
    }
}

/// The same of inferences that share ciphertexts: what they share once, and the rest of each.
#[test]
fn what_is_sent_together_was_forecast() {
    let columns = ClassPackings::NONE.with(0, PackingKind::BatchColumn);
    for settings in [
        Settings { packing: PackingKind::BatchColumn, together: 3, ..Settings::EXACT },
        Settings { classes: columns, together: 2, layout: Layout::Bytes, ..Settings::EXACT },
    ] {
        let parties = Parties::small(8, settings);
        let forecast = Forecast::new(&parties.plan).unwrap();
        assert_eq!(forecast.together, u64::from(settings.together));
        let (joint, correlations) = run_joint(&parties);
        assert_eq!(correlations.len(), usize::from(settings.together));
        for correlation in correlations {
            let run = run_with(&parties, correlation, inputs(&parties, "forecast"), false);
            was_forecast(&parties.plan, &forecast, &joint, &run.log);
        }
    }
}

/// What inferences prepared together reveal is under masks of their own, and holds no secret of any of them.
#[test]
fn inferences_prepared_together_share_no_mask() {
    let parties = Parties::small(8, Settings { packing: PackingKind::BatchColumn, together: 3, ..Settings::EXACT });
    let (joint, correlations) = run_joint(&parties);
    let inputs = inputs(&parties, "the same text");
    let mut opened = HashSet::new();
    let mut masks = HashSet::new();
    for correlation in correlations {
        let run = run_with(&parties, correlation, inputs.clone(), false);
        let needles = secrets(&parties, &run, &inputs);
        for Sent { message, .. } in joint.iter().chain(&run.log) {
            assert_eq!(needles.find(&message.encode()), None, "{}", message.name());
            if let Message::Input { embedding, .. } = message {
                assert!(opened.insert(embedding.clone()));
            }
        }
        for (node, mask) in &run.server.linear {
            assert!(masks.insert((node.0, mask.clone())));
        }
    }
    assert_eq!(opened.len(), 3);
}

/// That messages are those of a forecast, node by node.
fn was_forecast(plan: &Plan, forecast: &Forecast, joint: &[Sent], log: &[Sent]) {
    let mut sums = [Flow::default(); 3];
    let mut nodes: HashMap<NodeId, [Flow; 3]> = HashMap::new();
    let mut begun = false;
    for (shared, Sent { up, message }) in joint.iter().map(|s| (true, s)).chain(log.iter().map(|s| (false, s))) {
        begun |= matches!(message, Message::Input { .. });
        let node = match &message {
            Message::Keys { .. } => continue,
            Message::HeUpload { item, .. } | Message::HeResponse { item, .. } => Some(plan.he[*item as usize].0),
            Message::Extend { node, .. }
            | Message::Tables { node, .. }
            | Message::ProductDown { node, .. }
            | Message::ProductUp { node, .. }
            | Message::Shared { node, .. }
            | Message::Labels { node, .. }
            | Message::Masked { node, .. }
            | Message::Colours { node, .. }
            | Message::Restored { node, .. } => Some(NodeId(*node as usize)),
            _ => None,
        };
        let bytes = message.encode().len() as u64;
        let sent = match up {
            true => Flow { up: bytes, messages_up: 1, ..Flow::default() },
            false => Flow { down: bytes, messages_down: 1, ..Flow::default() },
        };
        let phase = if shared { 2 } else { usize::from(begun) };
        sums[phase] += sent;
        if let Some(node) = node {
            nodes.entry(node).or_default()[phase] += sent;
        }
    }
    for node in &forecast.nodes {
        let found = nodes.get(&node.node).copied().unwrap_or_default();
        assert_eq!([node.offline, node.online, node.joint], found, "{}", plan.graph.node(node.node).name);
    }
    assert_eq!([forecast.offline, forecast.online, forecast.joint], sums);
    assert_eq!(forecast.ots, plan.all_cots().total() as u64);
    assert_eq!(forecast.and_gates, plan.and_gates());
}
