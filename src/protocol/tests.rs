//! The protocol in memory, machine against machine in one thread, against the oracle, edge by edge.

use std::{path::Path, sync::Arc};

use super::{small_model::small_model, *};
use crate::{
    arith::sample::SecureRng,
    engine::cpu::CpuBackend,
    he::{BfvContext, HeClient as ClientKeys, HeCounters, HeServer as ServerKeys},
    model::{
        Boundary, EdgeId, Evaluator, Exact, Execution, Function, GraphOptions, Inputs, Lookup, MergeSet, Model,
        NonLinear, Op, Rings, execute,
    },
};

pub(super) struct Parties {
    pub plan: Arc<Plan>,
    pub weights: Arc<crate::model::ServerWeights>,
    pub client_keys: Arc<ClientKeys>,
    pub client_sets: KeySets<ClientKeys>,
    pub server_sets: KeySets<ServerKeys>,
    pub model: Model,
}

impl Parties {
    pub fn new(tokens: usize) -> Self {
        Self::with(tokens, Settings::EXACT)
    }

    pub fn with(tokens: usize, settings: Settings) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2");
        Self::of(Model::load(&dir).unwrap(), tokens, settings)
    }

    /// With a model that is small enough for many settings.
    pub fn small(tokens: usize, settings: Settings) -> Self {
        Self::of(small_model(), tokens, settings)
    }

    fn of(model: Model, tokens: usize, settings: Settings) -> Self {
        let mut rng = SecureRng::from_os().unwrap();
        let graph = model.client().graph_with(tokens, &settings.graph).unwrap();
        let plan = Plan::new(graph, &parameter_set().unwrap(), settings).unwrap();
        let backend = Arc::new(CpuBackend::new(None));
        let make = |set: SetId, elements: &[usize], rng: &mut SecureRng| {
            let context = BfvContext::new(backend.clone(), set.params().unwrap().clone());
            let keys = ClientKeys::generate(context.clone(), rng);
            let public = keys.public_key(rng).unwrap();
            let galois = (!elements.is_empty()).then(|| keys.galois_keys_for(elements, rng).unwrap());
            let server = ServerKeys::new(context, &public, galois.as_ref()).unwrap();
            (Arc::new(keys), Arc::new(server))
        };
        let mut needed = plan.rotation_elements();
        needed.entry(SetId::Matmul8192).or_default();
        let sets: Vec<_> = needed.iter().map(|(&set, elements)| (set, make(set, elements, &mut rng))).collect();
        let client_sets: KeySets<ClientKeys> = sets.iter().map(|(set, keys)| (*set, keys.0.clone())).collect();
        let server_sets: KeySets<ServerKeys> = sets.iter().map(|(set, keys)| (*set, keys.1.clone())).collect();
        Self {
            plan: Arc::new(plan),
            weights: model.weights_for(settings.graph.lookup).unwrap(),
            client_keys: client_sets.get(SetId::Matmul8192).unwrap().clone(),
            client_sets,
            server_sets,
            model,
        }
    }

    /// The server's homomorphic work so far. One context serves both parties here: `encrypted` is the client's.
    fn counters(&self) -> Vec<HeCounters> {
        let keys = SetId::ALL.into_iter().filter_map(|set| self.server_sets.get(set).ok());
        keys.map(|keys| keys.context().counters()).collect()
    }

    /// Runs both phases and returns the opened output, with the server's machine for its shares.
    pub fn run(&self, inputs: Inputs, interleaved: bool) -> (Vec<i64>, Arc<ClientCorrelation>, OnlineServer) {
        let mut rng = SecureRng::from_os().unwrap();
        let session = [7; 16];
        let client = ClientCorrelation::draw(session, &self.plan, Box::new(MemoryTables::default()), &mut rng);
        self.finish((client, ServerCorrelation::draw(session, &mut rng)), inputs, interleaved)
    }

    /// The correlations of all inferences whose linear layers are prepared together, the rest of their offline phases not done.
    pub fn joint(&self) -> Vec<(ClientCorrelation, ServerCorrelation)> {
        let (client, server) = self.joint_by(&mut |mut client, mut server| {
            assert!(drive_pair(&mut client, &mut server).unwrap());
            (client, server)
        });
        self.begin(client, server)
    }

    /// The machines of the work that inferences share, once `drive` has driven them.
    pub fn joint_by(&self, drive: &mut dyn FnMut(HeClient, HeServer) -> (HeClient, HeServer)) -> (HeClient, HeServer) {
        let mut rng = SecureRng::from_os().unwrap();
        let client = HeClient::joint(self.plan.clone(), self.client_sets.clone(), rng.fork());
        let (weights, keys) = (self.weights.clone(), self.server_sets.clone());
        drive(client, HeServer::joint(self.plan.clone(), weights, keys, rng.fork()))
    }

    /// Correlations with the linear layers that machines have prepared together.
    pub fn begin(&self, client: HeClient, server: HeServer) -> Vec<(ClientCorrelation, ServerCorrelation)> {
        let mut rng = SecureRng::from_os().unwrap();
        let pair = |(i, (client, server))| {
            let session = [i as u8; 16];
            let client =
                ClientCorrelation::after(session, &self.plan, Box::<MemoryTables>::default(), &client).unwrap();
            let own = ServerCorrelation::draw(session, &mut rng);
            own.absorb(server).unwrap();
            (client, own)
        };
        client.into_linear().into_iter().zip(server.into_linear()).enumerate().map(pair).collect()
    }

    /// As [`Self::run`] with correlations that are begun.
    pub fn finish(
        &self,
        (client, server): (ClientCorrelation, ServerCorrelation),
        inputs: Inputs,
        interleaved: bool,
    ) -> (Vec<i64>, Arc<ClientCorrelation>, OnlineServer) {
        let mut rng = SecureRng::from_os().unwrap();
        let (plan, client, server) = (&self.plan, Arc::new(client), Arc::new(server));
        let nodes = plan.ot_nodes(!interleaved, true);
        let mut he = HeClient::new(plan.clone(), client.clone(), self.client_sets.clone(), rng.fork());
        let mut he_server =
            HeServer::new(plan.clone(), server.clone(), self.weights.clone(), self.server_sets.clone(), rng.fork());
        let mut ot = OtClient::new(plan.clone(), client.clone(), nodes.clone(), rng.fork());
        let mut ot_server = OtServer::new(plan.clone(), server.clone(), nodes, rng.fork());
        assert!(drive_pair(&mut he, &mut he_server).unwrap());
        assert!(drive_pair(&mut ot, &mut ot_server).unwrap());
        let he_online = plan.settings.he_online();
        let (encryptor, evaluator) =
            (he_online.then(|| he.into_encryptor()), he_online.then(|| he_server.into_evaluator()));
        let mut online =
            OnlineClient::new(plan.clone(), client.clone(), inputs, interleaved.then_some(ot), encryptor).unwrap();
        let weights = Arc::new(OnlineWeights::host(self.weights.clone()));
        let mut online_server =
            OnlineServer::new(plan.clone(), server, weights, interleaved.then_some(ot_server), evaluator);
        assert!(drive_pair(&mut online, &mut online_server).unwrap());
        (online.output().unwrap().to_vec(), client, online_server)
    }
}

#[test]
fn every_edge_equals_the_oracle() {
    every_edge_equals(Settings::EXACT);
}

#[test]
fn every_edge_equals_the_oracle_with_pooled_ots() {
    every_edge_equals(Settings { ot: OtMethod::Silent, ..Settings::EXACT });
}

#[test]
fn every_edge_equals_the_oracle_in_every_mode() {
    for linear in LinearMode::ALL {
        for products in ProductMode::ALL {
            // With few bytes, sums of squares are homomorphic too.
            every_edge_equals(Settings { linear, products, layout: Layout::Bytes, ..Settings::EXACT });
        }
    }
}

/// Packings and modes of either phase, in prime rings where there are slots.
#[test]
fn every_edge_equals_the_oracle_in_every_packing() {
    let prime = GraphOptions { rings: Rings::Prime, ..GraphOptions::default() };
    let (offline, online) = (LinearMode::Offline, LinearMode::Online);
    for (packing, linear, products, graph) in [
        (PackingKind::TokensFirst, offline, ProductMode::Masked, prime),
        (PackingKind::TokensFirst, offline, ProductMode::Fhgs, prime),
        (PackingKind::FeaturesFirst, online, ProductMode::Fhgs, prime),
        (PackingKind::Coefficient, offline, ProductMode::Fhgs, prime),
        (PackingKind::BatchColumn, offline, ProductMode::Masked, GraphOptions::default()),
    ] {
        let settings = Settings { packing, linear, products, graph, ..Settings::EXACT };
        every_edge_equals_of(&Parties::small(8, settings), &[false]);
    }
}

/// Linear layers of several inferences in the same ciphertexts: every inference is as if it were alone, and every product was
/// made once for all.
#[test]
fn inferences_prepared_together_equal_the_oracle() {
    let merge: MergeSet = [Boundary::Middle, Boundary::Hidden].into_iter().collect();
    let merged = GraphOptions { merge, ..GraphOptions::default() };
    let prime = GraphOptions { rings: Rings::Prime, ..GraphOptions::default() };
    let shared = Settings { packing: PackingKind::BatchColumn, together: 3, ..Settings::EXACT };
    let head = ClassPackings::NONE.with(0, PackingKind::BatchColumn);
    for settings in [
        shared,
        // Some results are encrypted again for others.
        Settings { together: 2, graph: merged, ..shared },
        // One class of layers is prepared together, all others are not.
        Settings { packing: PackingKind::Coefficient, classes: head, together: 2, ..shared },
        Settings { together: 2, graph: prime, products: ProductMode::Fhgs, ..shared },
    ] {
        let parties = Parties::small(8, settings);
        let graph = &parties.plan.graph;
        let costs = parties.plan.he_costs().unwrap();
        let before = parties.counters();
        let correlations = parties.joint();
        assert_eq!(correlations.len(), usize::from(settings.together));
        let after = parties.counters();
        let done = |of: fn(&HeCounters) -> u64| -> u64 {
            after.iter().map(of).sum::<u64>() - before.iter().map(of).sum::<u64>()
        };
        assert_eq!(done(|c| c.scalar_products), costs.joint.scalar_products);
        assert_eq!(done(|c| c.encrypted), costs.joint.ciphertexts_up);
        assert_eq!(done(|c| c.responded), costs.joint.ciphertexts_down);
        let alone = settings.packing == PackingKind::BatchColumn;
        assert!(costs.joint.scalar_products > 0 && (costs.total().scalar_products == 0 || !alone));
        for (correlation, text) in correlations.into_iter().zip(["ab cd", "q", "xyz abc"]) {
            let text = parties.model.client().encode(text, None, 8).unwrap();
            let inputs = parties.model.client().inputs_for(&text, settings.graph.lookup).unwrap();
            let oracle = execute(graph, &parties.weights, &inputs).unwrap();
            assert_eq!(oracle.overflow_count(), 0);
            let (output, client, server) = parties.finish(correlation, inputs, false);
            equals(graph, &oracle, &client, &server);
            assert_eq!(output, oracle.edge(graph.output));
        }
    }
}

/// Queries and keys multiplied at their full scale: one share that is known after a response is encrypted for another.
#[test]
fn every_edge_equals_the_oracle_with_merged_boundaries() {
    let merge = MergeSet::NONE.with(Boundary::Scores).with(Boundary::Values);
    for (rings, packing, products) in [
        (Rings::Pow2, PackingKind::Coefficient, ProductMode::Masked),
        (Rings::Prime, PackingKind::TokensFirst, ProductMode::Fhgs),
    ] {
        let graph = GraphOptions { merge, rings, ..GraphOptions::default() };
        every_edge_equals_of(&Parties::small(8, Settings { packing, products, graph, ..Settings::EXACT }), &[false]);
    }
}

/// Boundaries whose merge needs shifts and scaled biases, and tokens that are looked up in the graph.
#[test]
fn every_edge_equals_the_oracle_whatever_the_graph() {
    let norms: MergeSet = [Boundary::AttentionNorm, Boundary::DownNorm].into_iter().collect();
    let hidden: MergeSet = [Boundary::Middle, Boundary::Hidden].into_iter().collect();
    let context = MergeSet::NONE.with(Boundary::Context);
    for (merge, lookup) in [
        (hidden, Lookup::Public),
        (norms, Lookup::Public),
        (context, Lookup::Public),
        (MergeSet::NONE, Lookup::Private),
    ] {
        println!("{merge} {lookup:?}");
        let graph = GraphOptions { merge, lookup, ..GraphOptions::default() };
        every_edge_equals_in(Settings { graph, ..Settings::EXACT }, &[false]);
    }
}

fn every_edge_equals(settings: Settings) {
    every_edge_equals_in(settings, &[false, true]);
}

fn every_edge_equals_in(settings: Settings, tables: &[bool]) {
    every_edge_equals_of(&Parties::with(8, settings), tables);
}

fn every_edge_equals_of(parties: &Parties, tables: &[bool]) {
    let settings = parties.plan.settings;
    let costs = parties.plan.he_costs().unwrap();
    let text = parties.model.client().encode("a charming and moving film", None, 8).unwrap();
    let inputs = parties.model.client().inputs_for(&text, settings.graph.lookup).unwrap();
    let graph = &parties.plan.graph;
    let oracle = execute(graph, &parties.weights, &inputs).unwrap();
    assert_eq!(oracle.overflow_count(), 0);
    for &interleaved in tables {
        let before = parties.counters();
        let (output, client, server) = parties.run(inputs.clone(), interleaved);
        let after = parties.counters();
        let done = |of: fn(&HeCounters) -> u64| -> u64 {
            after.iter().map(of).sum::<u64>() - before.iter().map(of).sum::<u64>()
        };
        let total = costs.total();
        assert_eq!(done(|c| c.products), total.products);
        assert_eq!(done(|c| c.scalar_products), total.scalar_products);
        assert_eq!(done(|c| c.key_switches), total.key_switches);
        assert_eq!(done(|c| c.encrypted), total.ciphertexts_up);
        assert_eq!(done(|c| c.responded), total.ciphertexts_down);
        equals(graph, &oracle, &client, &server);
        assert_eq!(output, oracle.edge(graph.output));
    }
}

/// That the shares of every edge add up to what the oracle has there.
fn equals(graph: &crate::model::Graph, oracle: &Execution, client: &ClientCorrelation, server: &OnlineServer) {
    for (i, edge) in graph.edges.iter().enumerate() {
        let id = EdgeId(i);
        let (a, b) = (client.board.expect(graph, id).unwrap(), server.share_of(id).unwrap());
        let sum: Vec<u64> = a.iter().zip(b).map(|(&x, &y)| edge.ring.add(x, y)).collect();
        let expected = oracle.residues(graph, id);
        let wrong = sum.iter().zip(&expected).filter(|(x, y)| x != y).count();
        assert_eq!(wrong, 0, "{} of {} elements of {} differ", wrong, sum.len(), edge.name);
    }
}

/// Layers on shares: each within its stated error of the exact function of what went in, everything else exact.
#[test]
fn layers_on_shares_keep_to_their_error() {
    let methods = Methods::SHARED;
    for ot in [OtMethod::Iknp, OtMethod::Silent] {
        let parties = Parties::with(8, Settings { methods, ot, layout: Layout::Bytes, ..Settings::EXACT });
        let text = parties.model.client().encode("a charming and moving film", None, 8).unwrap();
        let inputs = parties.model.client().inputs(&text).unwrap();
        let graph = &parties.plan.graph;
        let (output, client, server) = parties.run(inputs.clone(), false);
        let value = |id: EdgeId| -> Vec<i64> {
            let ring = graph.edge(id).ring;
            let (a, b) = (client.board.expect(graph, id).unwrap(), server.share_of(id).unwrap());
            a.iter().zip(b).map(|(&x, &y)| ring.to_signed(ring.add(x, y))).collect()
        };
        let (mut checked, mut off) = (0, 0);
        for (id, node) in graph.iter() {
            let Op::Garbled { function, input } = &node.op else { continue };
            let (x, y) = (value(*input), value(node.output));
            let nonlinear =
                NonLinear { name: &node.name, function, input: graph.edge(*input), output: graph.edge(node.output) };
            let (mut expected, _) = Exact.evaluate(nonlinear, &x).unwrap();
            let (bound, relative) = match parties.plan.ot(id) {
                Some(OtPlan::Shared(s)) => (s.function.error_bound() as f64, s.function.relative_error_bound()),
                _ => (0.0, 0.0),
            };
            if let (Function::Exp(f), true) = (function, bound > 0.0) {
                // On shares the numerators are those of distances to the maximum.
                let cols = graph.edge(*input).cols;
                for (x, e) in x.chunks(cols).zip(expected.chunks_mut(cols)) {
                    let factor = f.row_factor(&x.iter().map(|&x| x.into()).collect::<Vec<_>>());
                    e.iter_mut().for_each(|e| *e = (*e as f64 / factor).round() as i128);
                }
            }
            for (y, e) in y.iter().zip(&expected) {
                let (y, e) = (i128::from(*y), *e);
                assert!((y - e).abs() as f64 <= bound + relative * e.abs() as f64, "{}: {y} instead of {e}", node.name);
                (checked, off) = (checked + i64::from(bound > 0.0), off + i64::from(y != e));
            }
        }
        // Errors do occur, and not everywhere.
        assert!(checked > 10_000 && off > 0 && off < checked, "{off} of {checked}");
        let oracle = execute(graph, &parties.weights, &inputs).unwrap();
        let frac = graph.edge(graph.output).frac;
        for (a, b) in output.iter().zip(oracle.edge(graph.output)) {
            assert!((a - b).abs() < 1 << (frac - 3), "{a} {b}");
        }
    }
}

#[test]
fn a_correlation_is_spent_once() {
    let parties = Parties::new(8);
    let text = parties.model.client().encode("twice", None, 8).unwrap();
    let inputs = parties.model.client().inputs(&text).unwrap();
    let (_, client, _) = parties.run(inputs.clone(), false);
    let mut again = OnlineClient::new(parties.plan.clone(), client, inputs, None, None).unwrap();
    assert!(matches!(again.advance(None), Err(ProtocolError::Spent)));
}
