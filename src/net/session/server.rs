//! The server's end of a connection.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    LANES, Lanes, MOST_PLANS, SessionError,
    control::{Control, Mode, PART_BYTES},
    drive::Driver,
    first_cause, missing_keys, public_reason,
    recorder::{Party, Phase, Recorder},
    store::{Binding, CorrelationStore, StoreId, Terms, parameters_id},
    too_many_together,
};
use crate::{
    arith::sample::SecureRng,
    engine::{Backend, schedule::CostModel},
    he::{BfvContext, GaloisKeys, HeCounters, HeServer as HeKeys, PublicKey},
    model::{Graph, Lookup, ModelSpec, ServerWeights},
    net::{self, Channel, Lane, Meter, Mux, MuxOptions},
    protocol::{
        Evaluator, HeServer, JOINT_MEMORY, KEY_BLOCK, KeySets, Message, OnlineServer, OnlineWeights, OtServer, Plan,
        ProtocolError, ServerCorrelation, ServerLinear, SessionId, SetId, Settings, parameter_set,
    },
};

/// What a server serves: one model on one backend, for any number of connections.
pub struct ServerContext {
    spec: ModelSpec,
    weights: Arc<ServerWeights>,
    online: Arc<OnlineWeights>,
    /// The same for private lookup.
    private: Option<(Arc<ServerWeights>, Arc<OnlineWeights>)>,
    manifest: Vec<u8>,
    digest: [u8; 32],
    backend: Arc<dyn Backend>,
    context: Arc<BfvContext>,
    /// Of other parameter sets, once a client has asked for them.
    others: Mutex<BTreeMap<SetId, Arc<BfvContext>>>,
    costs: Option<CostModel>,
    max_tokens: usize,
    joint_memory: u64,
    store: Option<CorrelationStore>,
    plans: Mutex<HashMap<(usize, Settings), Arc<Plan>>>,
}

impl ServerContext {
    /// `manifest` is what clients are given; `max_tokens` the largest bucket served.
    ///
    /// # Errors
    /// A description or a parameter set that cannot be built.
    pub fn new(
        spec: ModelSpec,
        weights: Arc<ServerWeights>,
        manifest: Vec<u8>,
        backend: Arc<dyn Backend>,
        max_tokens: usize,
    ) -> Result<Self, SessionError> {
        spec.validate()?;
        let digest = *blake3::hash(&manifest).as_bytes();
        let online = Arc::new(OnlineWeights::on(weights.clone(), backend.clone()));
        let context = BfvContext::new(backend.clone(), parameter_set()?);
        Ok(Self {
            spec,
            weights,
            online,
            private: None,
            manifest,
            digest,
            backend,
            context,
            others: Mutex::default(),
            costs: None,
            max_tokens,
            joint_memory: JOINT_MEMORY,
            store: None,
            plans: Mutex::default(),
        })
    }

    /// Serves private token lookup too, with its matrices.
    pub fn with_private_lookup(mut self, weights: Arc<ServerWeights>) -> Self {
        let online = Arc::new(OnlineWeights::on(weights.clone(), self.backend.clone()));
        self.private = Some((weights, online));
        self
    }

    /// The matrices of a plan, on the host and where the online phase multiplies by them.
    fn weights(&self, plan: &Plan) -> (&Arc<ServerWeights>, &Arc<OnlineWeights>) {
        match (&self.private, plan.settings.graph.lookup) {
            (Some((weights, online)), Lookup::Private) => (weights, online),
            _ => (&self.weights, &self.online),
        }
    }

    /// Keeps correlations for later online phases in a store of this server's own.
    pub fn with_store(mut self, store: CorrelationStore) -> Self {
        self.store = Some(store);
        self
    }

    /// Refuses to hold more than `bytes` of linear layers that are prepared together, for each connection; the default is
    /// [`JOINT_MEMORY`].
    pub fn with_joint_memory(mut self, bytes: u64) -> Self {
        self.joint_memory = bytes;
        self
    }

    /// Orders tasks by measured costs instead of round numbers.
    pub fn with_costs(mut self, costs: CostModel) -> Self {
        self.context.set_costs(costs.clone());
        self.costs = Some(costs);
        self
    }

    /// Digest of the manifest.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Homomorphic work of all connections so far.
    pub fn he_counters(&self) -> HeCounters {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        super::sum_counters([&self.context].into_iter().chain(others.values()).map(|c| c.counters()))
    }

    /// The context of a parameter set.
    fn he(&self, set: SetId) -> Result<Arc<BfvContext>, SessionError> {
        if set == SetId::Matmul8192 {
            return Ok(self.context.clone());
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = others.get(&set) {
            return Ok(context.clone());
        }
        let context = BfvContext::new(self.backend.clone(), set.params()?.clone());
        if let Some(costs) = &self.costs {
            context.set_costs(costs.clone());
        }
        others.insert(set, context.clone());
        Ok(context)
    }

    fn plan(&self, tokens: usize, settings: Settings) -> Result<Arc<Plan>, SessionError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&(tokens, settings)) {
            return Ok(plan.clone());
        }
        let plan =
            Arc::new(Plan::new(Graph::build(&self.spec, tokens, &settings.graph)?, &parameter_set()?, settings)?);
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        plans.insert((tokens, settings), plan.clone());
        Ok(plan)
    }
}

/// Serves one connection, whose frames are named `session` as the handshake agreed, until the client says goodbye or goes.
///
/// # Errors
/// Whatever fails first on either side.
pub fn serve_connection(
    context: &ServerContext,
    channel: Channel,
    session: net::SessionId,
    meter: Meter,
    recorder: &Recorder,
) -> Result<(), SessionError> {
    let (mux, lanes) = Mux::new(channel, meter, MuxOptions::new(session, LANES))?;
    let lanes = Lanes::new(lanes)?;
    let result = Connection { context, mux: &mux, lanes: &lanes, recorder }.run();
    if let Err(e) = &result {
        mux.abort(&public_reason(e));
    }
    // Between connections the device's memory is for others. That it cannot be given back hurts nobody here.
    if let Err(e) = context.context.backend().release() {
        log::warn!("device memory is not given back: {e}");
    }
    result
}

/// Linear layers that were prepared together, of inferences that have not begun.
struct Joint {
    tokens: usize,
    settings: Settings,
    left: VecDeque<ServerLinear>,
}

struct Connection<'a> {
    context: &'a ServerContext,
    mux: &'a Mux,
    lanes: &'a Lanes,
    recorder: &'a Recorder,
}

/// A client's keys, with parameter set and Galois elements, in the order in which they came.
#[derive(Default)]
struct Keys(Vec<(SetId, Vec<usize>, Arc<HeKeys>)>);

impl Keys {
    fn elements(&self) -> Vec<(SetId, Vec<usize>)> {
        self.0.iter().map(|(set, elements, _)| (*set, elements.clone())).collect()
    }

    /// Those that a plan needs; `None` if some have not come.
    fn of(&self, plan: &Plan) -> Option<KeySets<HeKeys>> {
        let find = |(wanted, needed): (SetId, Vec<usize>)| {
            let found = self.0.iter().find(|(set, has, _)| super::serves(*set, has, wanted, &needed));
            found.map(|(_, _, keys)| (wanted, keys.clone()))
        };
        plan.rotation_elements().into_iter().map(find).collect()
    }
}

impl Connection<'_> {
    fn run(&self) -> Result<(), SessionError> {
        self.manifest()?;
        let mut rng = SecureRng::from_os().map_err(|e| SessionError::Entropy(e.to_string()))?;
        let start = self.recorder.now();
        let mut keys = Keys::default();
        let mut joint: Option<Joint> = None;
        let block = GaloisKeys::elements_for_block(self.context.context.params().n(), KEY_BLOCK);
        loop {
            let (kind, payload) = self.lanes.control.recv()?;
            if keys.0.is_empty()
                && let Ok(Message::Keys { public_key, galois_keys }) = Message::decode(kind, &payload)
            {
                self.take_keys(&mut keys, SetId::Matmul8192, block.clone(), Some((public_key, galois_keys)))?;
                super::setup_span(self.recorder, Party::Server, "keys", start);
                continue;
            }
            match (Control::decode(kind, &payload)?, !keys.0.is_empty()) {
                (Control::Bye, _) => return Ok(()),
                (Control::Keys { tokens, settings }, true) => {
                    let (tokens, start) = (tokens as usize, self.recorder.now());
                    if let Some(reason) = self.refusal(tokens, settings) {
                        self.say(&Control::Refused { reason })?;
                        continue;
                    }
                    self.say(&Control::Ready)?;
                    for (set, elements) in missing_keys(&*self.context.plan(tokens, settings)?, &keys.elements()) {
                        self.take_keys(&mut keys, set, elements, None)?;
                    }
                    self.say(&Control::Ready)?;
                    super::setup_span(self.recorder, Party::Server, "keys", start);
                }
                (Control::Start { session, tokens, mode, settings, store }, true) => {
                    let tokens = tokens as usize;
                    let full = || (mode == Mode::Keep).then(|| self.unkept(settings)).flatten();
                    if let Some(reason) = self.refusal(tokens, settings).or_else(full) {
                        self.say(&Control::Refused { reason })?;
                        continue;
                    }
                    let plan = self.context.plan(tokens, settings)?;
                    let Some(keys) = keys.of(&plan) else {
                        self.say(&Control::Refused { reason: "its switching keys have not come".into() })?;
                        continue;
                    };
                    let linear = match plan.joint_lane().is_empty() {
                        true => None,
                        false => {
                            let fitting = |j: &&mut Joint| (j.tokens, j.settings) == (tokens, settings);
                            let Some(linear) = joint.as_mut().filter(fitting).and_then(|j| j.left.pop_front()) else {
                                self.say(&Control::Refused { reason: SessionError::NotJoint.to_string() })?;
                                continue;
                            };
                            Some(linear)
                        }
                    };
                    self.say(&Control::Ready)?;
                    self.inference(session, plan, mode, store, keys, linear, &mut rng)?;
                }
                (Control::Joint { tokens, settings }, true) => {
                    let tokens = tokens as usize;
                    if let Some(reason) = self.refusal(tokens, settings) {
                        self.say(&Control::Refused { reason })?;
                        continue;
                    }
                    let plan = self.context.plan(tokens, settings)?;
                    let Some(keys) = keys.of(&plan) else {
                        self.say(&Control::Refused { reason: "its switching keys have not come".into() })?;
                        continue;
                    };
                    // What was left of another has no use any more.
                    drop(joint.take());
                    self.say(&Control::Ready)?;
                    let weights = self.context.weights(&plan).0.clone();
                    let mut he = HeServer::joint(plan.clone(), weights, keys, rng.fork());
                    self.driver(Phase::Offline, "he", &self.lanes.he, &plan.graph).run(&mut he)?;
                    joint = Some(Joint { tokens, settings, left: he.into_linear().into() });
                }
                (Control::Resume { session, tokens, settings, store }, true) => {
                    self.resume(session, tokens as usize, settings, store)?;
                }
                _ => return Err(SessionError::Unexpected { doing: "waiting for keys or an inference" }),
            }
        }
    }

    /// Reads keys of a set for these elements, the first message of them already there or not.
    fn take_keys(
        &self,
        keys: &mut Keys,
        set: SetId,
        elements: Vec<usize>,
        first: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), SessionError> {
        let context = self.context.he(set)?;
        let params = context.params();
        let hear = || -> Result<(Vec<u8>, Vec<u8>), SessionError> {
            let (kind, payload) = self.lanes.control.recv()?;
            match Message::decode(kind, &payload).map_err(ProtocolError::from)? {
                Message::Keys { public_key, galois_keys } => Ok((public_key, galois_keys)),
                _ => Err(SessionError::Unexpected { doing: "waiting for switching keys" }),
            }
        };
        let (public_key, mut galois) = match first {
            Some(first) => first,
            None => hear()?,
        };
        let length = match elements.len() {
            0 => 0,
            count => GaloisKeys::byte_len_for(params, count).unwrap_or(usize::MAX),
        };
        while galois.len() < length {
            let (_, part) = hear()?;
            if part.is_empty() || galois.len() + part.len() > length {
                return Err(SessionError::Unexpected { doing: "reading switching keys" });
            }
            galois.extend_from_slice(&part);
        }
        let public = PublicKey::from_bytes(params, &public_key)?;
        let galois = match elements.is_empty() {
            true if galois.is_empty() => None,
            true => return Err(SessionError::Unexpected { doing: "reading switching keys" }),
            false => Some(GaloisKeys::from_bytes_for(params, &elements, &galois)?),
        };
        keys.0.push((set, elements, Arc::new(HeKeys::new(context.clone(), &public, galois.as_ref())?)));
        Ok(())
    }

    fn manifest(&self) -> Result<(), SessionError> {
        let (kind, payload) = self.lanes.control.recv()?;
        let Control::AskManifest { cached } = Control::decode(kind, &payload)? else {
            return Err(SessionError::Unexpected { doing: "waiting for a request of the manifest" });
        };
        let (digest, manifest) = (self.context.digest, &self.context.manifest);
        let store = self.context.store.as_ref().map_or([0; 16], CorrelationStore::id);
        if cached == digest {
            return self.say(&Control::Manifest { digest, length: 0, store });
        }
        self.say(&Control::Manifest { digest, length: manifest.len() as u64, store })?;
        for part in manifest.chunks(PART_BYTES) {
            self.say(&Control::ManifestPart { bytes: part.to_vec() })?;
        }
        Ok(())
    }

    fn say(&self, message: &Control) -> Result<(), SessionError> {
        Ok(self.lanes.control.send(message.kind(), message.encode())?)
    }

    fn refusal(&self, tokens: usize, settings: Settings) -> Option<String> {
        if !crate::model::BUCKETS.contains(&tokens) || tokens > self.context.max_tokens {
            return Some(format!("{tokens} tokens are not a bucket of this model (up to {})", self.context.max_tokens));
        }
        if settings.graph.lookup == Lookup::Private && self.context.private.is_none() {
            return Some("this server does not look tokens up privately; take public lookup".into());
        }
        self.context
            .plan(tokens, settings)
            .map_or_else(|e| Some(e.to_string()), |plan| too_many_together(&plan, self.context.joint_memory))
    }

    /// Why a correlation cannot be kept now.
    fn unkept(&self, settings: Settings) -> Option<String> {
        if let Err(e) = settings.check_kept() {
            return Some(e.to_string());
        }
        match &self.context.store {
            None => Some("this server keeps no correlations; start it with a store".into()),
            Some(store) => store.room(0).err().map(|e| public_reason(&e.into())),
        }
    }

    fn binding(
        &self,
        session: SessionId,
        tokens: usize,
        settings: Settings,
        peer: StoreId,
    ) -> Result<Binding, SessionError> {
        let (digest, parameters, settings) = (self.context.digest, parameters_id(&parameter_set()?), settings.kept());
        Ok(Binding { terms: Terms { digest, parameters, tokens: tokens as u32, settings, peer }, session })
    }

    fn driver<'b>(&'b self, phase: Phase, lane_name: &'static str, lane: &'b Lane, graph: &'b Graph) -> Driver<'b> {
        Driver { party: Party::Server, phase, lane_name, lane, graph, recorder: self.recorder, board: None }
    }

    fn inference(
        &self,
        session: SessionId,
        plan: Arc<Plan>,
        mode: Mode,
        peer: StoreId,
        keys: KeySets<HeKeys>,
        linear: Option<ServerLinear>,
        rng: &mut SecureRng,
    ) -> Result<(), SessionError> {
        let interleaved = mode == Mode::Interleaved;
        let correlation = Arc::new(ServerCorrelation::draw(session, rng));
        if let Some(linear) = linear {
            correlation.absorb(linear)?;
        }
        let weights = self.context.weights(&plan).0.clone();
        let mut he = HeServer::new(plan.clone(), correlation.clone(), weights.clone(), keys, rng.fork());
        let nodes = plan.ot_nodes(!interleaved, true);
        let mut ot = OtServer::new(plan.clone(), correlation.clone(), nodes, rng.fork());
        let guard = |result: Result<(), SessionError>| {
            if let Err(e) = &result {
                self.mux.abort(&public_reason(e));
            }
            result
        };
        let he_driver = self.driver(Phase::Offline, "he", &self.lanes.he, &plan.graph);
        let ot_driver = self.driver(Phase::Offline, "ot", &self.lanes.ot, &plan.graph);
        let (first, second) = thread::scope(|scope| {
            let he = scope.spawn(|| guard(he_driver.run(&mut he)));
            let ot = guard(ot_driver.run(&mut ot));
            (he.join().unwrap_or_else(|_| Err(SessionError::Thread("the HE lane stopped".into()))), ot)
        });
        first_cause(first, second)?;
        if let (Mode::Keep, Some(store)) = (mode, &self.context.store) {
            // A client that cannot keep its half goes, and nothing is kept here.
            let (kind, payload) = self.lanes.control.recv()?;
            if Control::decode(kind, &payload)? != Control::Kept {
                return Err(SessionError::Unexpected { doing: "waiting for the client to keep its half" });
            }
            let binding = self.binding(session, plan.graph.tokens, plan.settings, peer)?;
            store.put_server(&binding, &correlation)?;
            return self.say(&Control::Ready);
        }
        let evaluator = plan.settings.he_online().then(|| he.into_evaluator());
        self.online(&plan, correlation, interleaved.then_some(ot), evaluator)
    }

    /// The online phase of a kept correlation.
    fn resume(&self, session: SessionId, tokens: usize, settings: Settings, peer: StoreId) -> Result<(), SessionError> {
        let refuse = |reason: String| self.say(&Control::Refused { reason });
        if let Some(reason) = self.refusal(tokens, settings) {
            return refuse(reason);
        }
        let Some(store) = &self.context.store else {
            return refuse("this server keeps no correlations; start it with a store".into());
        };
        let binding = self.binding(session, tokens, settings, peer)?;
        match store.take_server(&binding) {
            Ok(correlation) => {
                self.say(&Control::Ready)?;
                self.online(&self.context.plan(tokens, settings)?, Arc::new(correlation), None, None)
            }
            Err(e) => refuse(public_reason(&e.into())),
        }
    }

    fn online(
        &self,
        plan: &Arc<Plan>,
        correlation: Arc<ServerCorrelation>,
        garbling: Option<OtServer>,
        evaluator: Option<Evaluator>,
    ) -> Result<(), SessionError> {
        let weights = self.context.weights(plan).1.clone();
        let mut online = OnlineServer::new(plan.clone(), correlation, weights, garbling, evaluator);
        self.driver(Phase::Online, "online", &self.lanes.online, &plan.graph).run(&mut online)
    }
}
