//! The client's end of a connection: manifest, keys, then inferences one after another.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map::Entry},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use super::{
    KEY_PART, LANES, Lanes, MOST_PLANS, SessionError,
    control::{Control, Mode},
    drive::Driver,
    first_cause, missing_keys, public_reason,
    recorder::{Party, Phase, Recorder},
    spool::FileTables,
    store::{Binding, CorrelationStore, Quota, StoreError, StoreId, Terms, parameters_id},
    too_many_together,
};
use crate::{
    arith::sample::SecureRng,
    engine::Backend,
    he::{BfvContext, GaloisKeys, HeClient as HeKeys, HeCounters},
    model::{Graph, Inputs, ModelSpec},
    net::{self, Channel, Meter, Mux, MuxOptions, Traffic},
    protocol::{
        ClientCorrelation, ClientLinear, Encryptor, HeClient, JOINT_MEMORY, KeySets, MemoryTables, Message,
        OnlineClient, OtClient, Plan, ProtocolError, SessionId, SetId, Settings, TableStore, parameter_set,
    },
};

/// Largest manifest that a client accepts: embedding tables of a BERT-large in f32 with room to spare.
const MANIFEST_LIMIT: u64 = 1 << 30;

/// What the server offers: the digest of its manifest, and its bytes unless the cached ones are current.
pub struct Offer {
    /// blake3 of the manifest.
    pub digest: [u8; 32],
    /// The manifest; `None` if the digest is that of the cached one.
    pub manifest: Option<Vec<u8>>,
}

/// A connection on which the manifest has been exchanged.
pub struct ClientConnection {
    mux: Mux,
    lanes: Lanes,
    meter: Meter,
    recorder: Recorder,
    digest: [u8; 32],
    /// The server's store of correlations, if it keeps any.
    peer: Option<StoreId>,
}

/// How the offline phase keeps garbled tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// In a nameless file of this directory.
    Spool(PathBuf),
    /// In a store, with the rest of the correlation, for an online phase later.
    Keep {
        /// Its directory.
        store: PathBuf,
        /// How much it may hold.
        quota: Quota,
    },
    /// Made, sent and used layer by layer, in memory.
    Interleaved,
}

/// The offline half of one inference, ready for its text.
pub struct Prepared {
    /// Tokens of the bucket.
    pub tokens: usize,
    /// The correlation.
    pub correlation: Arc<ClientCorrelation>,
    ot: Option<OtClient>,
    encryptor: Option<Encryptor>,
    plan: Arc<Plan>,
    ots: u64,
}

impl Prepared {
    /// What both parties derive from the graph.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }
}

impl ClientConnection {
    /// Asks for the manifest. `session` names every frame: what the handshake agreed on. `cached` is the digest of a manifest that the caller holds.
    ///
    /// # Errors
    /// The connection fails, or the bytes do not have the digest they came with.
    pub fn open(
        channel: Channel,
        session: net::SessionId,
        meter: Meter,
        cached: Option<[u8; 32]>,
        recorder: Recorder,
    ) -> Result<(Self, Offer), SessionError> {
        let (mux, lanes) = Mux::new(channel, meter.clone(), MuxOptions::new(session, LANES))?;
        let mut own = Self { mux, lanes: Lanes::new(lanes)?, meter, recorder, digest: [0; 32], peer: None };
        let start = own.recorder.now();
        own.say(&Control::AskManifest { cached: cached.unwrap_or([0; 32]) })?;
        let Control::Manifest { digest, length, store } = own.hear()? else {
            return Err(SessionError::Unexpected { doing: "waiting for the manifest" });
        };
        if length > MANIFEST_LIMIT {
            return Err(SessionError::Manifest {
                reason: format!("{length} bytes are over the limit of {MANIFEST_LIMIT}"),
            });
        }
        let manifest = if length == 0 {
            if cached != Some(digest) {
                return Err(SessionError::Manifest { reason: "it is missing".into() });
            }
            None
        } else {
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < length {
                let Control::ManifestPart { bytes: part } = own.hear()? else {
                    return Err(SessionError::Unexpected { doing: "reading the manifest" });
                };
                if part.is_empty() || (bytes.len() + part.len()) as u64 > length {
                    return Err(SessionError::Manifest { reason: "its parts do not have the announced length".into() });
                }
                bytes.extend_from_slice(&part);
            }
            if *blake3::hash(&bytes).as_bytes() != digest {
                return Err(SessionError::Manifest { reason: "its bytes do not have the announced digest".into() });
            }
            Some(bytes)
        };
        own.digest = digest;
        own.peer = Some(store).filter(|id| *id != [0; 16]);
        super::setup_span(&own.recorder, Party::Client, "manifest", start);
        Ok((own, Offer { digest, manifest }))
    }

    fn say(&self, message: &Control) -> Result<(), SessionError> {
        Ok(self.lanes.control.send(message.kind(), message.encode())?)
    }

    /// Waits until the server is ready for what was asked.
    fn ready(&self) -> Result<(), SessionError> {
        match self.hear()? {
            Control::Ready => Ok(()),
            Control::Refused { reason } => Err(SessionError::Refused { reason }),
            _ => Err(SessionError::Unexpected { doing: "starting an inference" }),
        }
    }

    fn hear(&self) -> Result<Control, SessionError> {
        let (kind, payload) = self.lanes.control.recv()?;
        Ok(Control::decode(kind, &payload)?)
    }
}

/// A client that has sent its keys: runs inferences.
pub struct ClientSession {
    connection: ClientConnection,
    backend: Arc<dyn Backend>,
    keys: BTreeMap<SetId, Arc<HeKeys>>,
    /// Sets and Galois elements of the switching keys that the server has.
    sent: Vec<(SetId, Vec<usize>)>,
    spec: ModelSpec,
    plans: HashMap<(usize, Settings), Arc<Plan>>,
    rng: SecureRng,
    ots: u64,
    spooled: Arc<AtomicU64>,
    /// Linear layers that were prepared together, of inferences that have not begun.
    joint: Option<Joint>,
}

/// Linear layers that were prepared together.
struct Joint {
    tokens: usize,
    settings: Settings,
    left: VecDeque<ClientLinear>,
}

impl ClientSession {
    /// Makes keys on `backend` and sends the public ones. Keys live as long as the connection.
    ///
    /// # Errors
    /// A description that cannot be built, or a failing connection or device.
    pub fn new(connection: ClientConnection, spec: ModelSpec, backend: Arc<dyn Backend>) -> Result<Self, SessionError> {
        spec.validate()?;
        let start = connection.recorder.now();
        let mut rng = SecureRng::from_os().map_err(|e| SessionError::Entropy(e.to_string()))?;
        let keys = Arc::new(HeKeys::generate(BfvContext::new(backend.clone(), parameter_set()?), &mut rng));
        let elements = GaloisKeys::elements_for_block(keys.context().params().n(), crate::protocol::KEY_BLOCK);
        let mut own = Self {
            connection,
            backend,
            keys: BTreeMap::from([(SetId::Matmul8192, keys)]),
            sent: Vec::new(),
            spec,
            plans: HashMap::new(),
            rng,
            ots: 0,
            spooled: Arc::default(),
            joint: None,
        };
        own.send_keys(SetId::Matmul8192, elements)?;
        super::setup_span(&own.connection.recorder, Party::Client, "keys", start);
        Ok(own)
    }

    /// Sends a public key and switching keys for these elements.
    fn send_keys(&mut self, set: SetId, elements: Vec<usize>) -> Result<(), SessionError> {
        let keys = match self.keys.entry(set) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(slot) => {
                let context = BfvContext::new(self.backend.clone(), set.params()?.clone());
                slot.insert(Arc::new(HeKeys::generate(context, &mut self.rng)))
            }
        };
        let params = keys.context().params();
        let mut public_key = keys.public_key(&mut self.rng)?.to_bytes(params);
        // A set without key switches has no room for their keys.
        let galois = match elements.is_empty() {
            true => Vec::new(),
            false => keys.galois_keys_for(&elements, &mut self.rng)?.to_bytes(params),
        };
        let (first, rest) = galois.split_at(galois.len().min(KEY_PART));
        for part in std::iter::once(first).chain(rest.chunks(KEY_PART)) {
            let message = Message::Keys { public_key: std::mem::take(&mut public_key), galois_keys: part.to_vec() };
            self.connection.lanes.control.send(message.kind(), message.encode())?;
        }
        self.sent.push((set, elements));
        Ok(())
    }

    /// Sends the keys that an inference needs and the server does not have. The offline phase does so by itself; before it, the
    /// keys are not part of its time and bytes.
    ///
    /// # Errors
    /// A plan that cannot be built on either side, or a failing connection or device.
    pub fn ensure_keys(&mut self, tokens: usize, settings: Settings) -> Result<(), SessionError> {
        let plan = self.plan(tokens, settings)?;
        let missing = missing_keys(&plan, &self.sent);
        if missing.is_empty() {
            return Ok(());
        }
        let start = self.connection.recorder.now();
        self.connection.say(&Control::Keys { tokens: tokens as u32, settings })?;
        self.connection.ready()?;
        for (set, elements) in missing {
            self.send_keys(set, elements)?;
        }
        self.connection.ready()?;
        super::setup_span(&self.connection.recorder, Party::Client, "keys", start);
        Ok(())
    }

    /// The meter of this connection.
    pub fn meter(&self) -> &Meter {
        &self.connection.meter
    }

    /// Homomorphic work so far.
    pub fn he_counters(&self) -> HeCounters {
        super::sum_counters(self.keys.values().map(|keys| keys.context().counters()))
    }

    /// OTs made so far, in both directions.
    pub fn ot_count(&self) -> u64 {
        self.ots
    }

    /// Bytes of garbled tables written to disk so far.
    pub fn spooled_bytes(&self) -> u64 {
        self.spooled.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Traffic up to now, closing a phase.
    pub fn cut(&self) -> Traffic {
        self.connection.meter.cut()
    }

    /// What both parties derive from the graph of a bucket.
    ///
    /// # Errors
    /// A description that cannot be built for this bucket.
    pub fn plan(&mut self, tokens: usize, settings: Settings) -> Result<Arc<Plan>, SessionError> {
        if let Some(plan) = self.plans.get(&(tokens, settings)) {
            return Ok(plan.clone());
        }
        let plan =
            Arc::new(Plan::new(Graph::build(&self.spec, tokens, &settings.graph)?, &parameter_set()?, settings)?);
        if self.plans.len() >= MOST_PLANS {
            self.plans.clear();
        }
        self.plans.insert((tokens, settings), plan.clone());
        Ok(plan)
    }

    /// The part of the offline phase that [`Settings::together`] inferences share: their linear layers in columns. As many calls
    /// of [`Self::offline`] with the same bucket and settings then prepare the rest of one each. What is left of an earlier call
    /// is dropped.
    ///
    /// # Errors
    /// [`SessionError::Refused`] if they are more than either side takes; the connection then goes on. Else whatever fails first
    /// on either side; the connection is then over.
    pub fn joint(&mut self, tokens: usize, settings: Settings) -> Result<(), SessionError> {
        let plan = self.plan(tokens, settings)?;
        if let Some(reason) = too_many_together(&plan, JOINT_MEMORY) {
            return Err(SessionError::Refused { reason });
        }
        self.ensure_keys(tokens, settings)?;
        self.joint = None;
        let connection = &self.connection;
        connection.say(&Control::Joint { tokens: tokens as u32, settings })?;
        connection.ready()?;
        let keys: KeySets<HeKeys> = self.keys.iter().map(|(&set, keys)| (set, keys.clone())).collect();
        let mut he = HeClient::joint(plan.clone(), keys, self.rng.fork());
        let driver = Driver {
            party: Party::Client,
            phase: Phase::Offline,
            lane_name: "he",
            lane: &connection.lanes.he,
            graph: &plan.graph,
            recorder: &connection.recorder,
            board: None,
        };
        if let Err(e) = driver.run(&mut he) {
            connection.mux.abort(&public_reason(&e));
            return Err(e);
        }
        self.joint = Some(Joint { tokens, settings, left: he.into_linear().into() });
        Ok(())
    }

    /// Inferences of which [`Self::joint`] has prepared the linear layers and [`Self::offline`] not yet the rest.
    pub fn joint_left(&self) -> usize {
        self.joint.as_ref().map_or(0, |joint| joint.left.len())
    }

    /// The offline phase for one inference: only bucket, settings and model are known. Where the settings have linear layers
    /// prepared for several together, [`Self::joint`] comes first.
    ///
    /// # Errors
    /// Whatever fails first on either side; the connection is then over.
    pub fn offline(&mut self, tokens: usize, settings: Settings, tables: Tables) -> Result<Prepared, SessionError> {
        let result = self.offline_inner(tokens, settings, tables);
        if let Err(e) = &result {
            self.connection.mux.abort(&public_reason(e));
        }
        result
    }

    fn offline_inner(&mut self, tokens: usize, settings: Settings, tables: Tables) -> Result<Prepared, SessionError> {
        let plan = self.plan(tokens, settings)?;
        self.ensure_keys(tokens, settings)?;
        let mut session: SessionId = [0; 16];
        session.copy_from_slice(&self.rng.bytes32()[..16]);
        let (mode, store, kept) = match tables {
            Tables::Spool(dir) => {
                let file: Box<dyn TableStore> = Box::new(FileTables::temporary(&dir, self.spooled.clone())?);
                (Mode::Direct, file, None)
            }
            Tables::Interleaved => (Mode::Interleaved, Box::<MemoryTables>::default() as Box<dyn TableStore>, None),
            Tables::Keep { store, quota } => {
                settings.check_kept()?;
                let store = CorrelationStore::open(&store)?.with_quota(quota);
                let binding = Binding { terms: self.terms(tokens, settings)?, session };
                store.room(plan.table_bytes())?;
                let file = store.tables(&session, self.spooled.clone())?;
                (Mode::Keep, Box::new(file.clone()) as Box<dyn TableStore>, Some((store, file, binding)))
            }
        };
        let interleaved = mode == Mode::Interleaved;
        let correlation = match plan.joint_lane().is_empty() {
            true => ClientCorrelation::draw(session, &plan, store, &mut self.rng),
            false => {
                let fitting = |joint: &&mut Joint| (joint.tokens, joint.settings) == (tokens, settings);
                let linear = self.joint.as_mut().filter(fitting).and_then(|joint| joint.left.pop_front());
                let linear = linear.ok_or(SessionError::NotJoint)?;
                ClientCorrelation::after(session, &plan, store, &linear)?
            }
        };
        let correlation = Arc::new(correlation);
        let connection = &self.connection;
        let own = kept.as_ref().map_or([0; 16], |(store, ..)| store.id());
        connection.say(&Control::Start { session, tokens: tokens as u32, mode, settings, store: own })?;
        connection.ready()?;
        let nodes = plan.ot_nodes(!interleaved, true);
        let keys: KeySets<HeKeys> = self.keys.iter().map(|(&set, keys)| (set, keys.clone())).collect();
        let mut he = HeClient::new(plan.clone(), correlation.clone(), keys, self.rng.fork());
        let mut ot = OtClient::new(plan.clone(), correlation.clone(), nodes, self.rng.fork());
        let driver = |lane_name, lane| Driver {
            party: Party::Client,
            phase: Phase::Offline,
            lane_name,
            lane,
            graph: &plan.graph,
            recorder: &connection.recorder,
            board: Some(&correlation.board),
        };
        let board = &correlation.board;
        // A lane that fails wakes the other one and tells the peer.
        let guard = |result: Result<(), SessionError>| {
            if let Err(e) = &result {
                board.fail();
                connection.mux.abort(&public_reason(e));
            }
            result
        };
        let (he_driver, ot_driver) = (driver("he", &connection.lanes.he), driver("ot", &connection.lanes.ot));
        let (first, second) = thread::scope(|scope| {
            let he = scope.spawn(|| guard(he_driver.run(&mut he)));
            let ot = guard(ot_driver.run(&mut ot));
            (he.join().unwrap_or_else(|_| Err(SessionError::Thread("the HE lane stopped".into()))), ot)
        });
        first_cause(first, second)?;
        let ots = ot.ot_count();
        if let Some((store, file, binding)) = kept {
            store.put_client(&binding, &plan.graph, &correlation, &file)?;
            // The server keeps its half only now, and says so.
            let server = connection.say(&Control::Kept).and_then(|()| connection.ready());
            if let Err(e) = server {
                store.discard_client(&session);
                return Err(e);
            }
        }
        self.ots += ots;
        let encryptor = settings.he_online().then(|| he.into_encryptor());
        Ok(Prepared { tokens, correlation, ot: interleaved.then_some(ot), encryptor, plan, ots })
    }

    /// What a correlation must have been made for to serve here.
    ///
    /// # Errors
    /// [`SessionError::Refused`] if the server keeps no correlations.
    pub fn terms(&self, tokens: usize, settings: Settings) -> Result<Terms, SessionError> {
        let refused = || SessionError::Refused { reason: "it keeps no correlations: start it with --store".into() };
        let (digest, peer) = (self.connection.digest, self.connection.peer.ok_or_else(refused)?);
        let (parameters, settings) = (parameters_id(&parameter_set()?), settings.kept());
        Ok(Terms { digest, parameters, tokens: tokens as u32, settings, peer })
    }

    /// Takes a correlation that [`Tables::Keep`] left in a store, the oldest that fits. One that is damaged, or of which the
    /// server has not its half (any more), is passed over and gone, since it can serve nothing.
    ///
    /// # Errors
    /// [`StoreError::Nothing`] if the store has none for this model, bucket, settings and server; the connection then goes
    /// on. Else whatever is in the way.
    pub fn resume(
        &mut self,
        store: &CorrelationStore,
        tokens: usize,
        settings: Settings,
    ) -> Result<Prepared, SessionError> {
        settings.check_kept()?;
        let plan = self.plan(tokens, settings)?;
        let terms = self.terms(tokens, settings)?;
        let mut reasons = Vec::new();
        for binding in store.fitting(&terms, Party::Client)? {
            let correlation = match store.take_client(&binding, &plan.graph) {
                Ok(correlation) => Arc::new(correlation),
                // Another process was faster.
                Err(StoreError::Spent) => continue,
                Err(e) => {
                    reasons.push(e.to_string());
                    continue;
                }
            };
            let session = binding.session;
            self.connection.say(&Control::Resume { session, tokens: tokens as u32, settings, store: store.id() })?;
            match self.connection.ready() {
                Ok(()) => return Ok(Prepared { tokens, correlation, ot: None, encryptor: None, plan, ots: 0 }),
                Err(SessionError::Refused { reason }) => reasons.push(format!("the server refuses one: {reason}")),
                Err(e) => return Err(e),
            }
        }
        let reason = reasons.pop().unwrap_or_else(|| "another process took them".into());
        Err(StoreError::Nothing { dir: store.dir().to_path_buf(), reason }.into())
    }

    /// The online phase: spends a correlation on an input and returns the opened output in fixed point.
    ///
    /// # Errors
    /// Whatever fails first on either side; the connection is then over.
    pub fn online(&mut self, prepared: Prepared, input: Inputs) -> Result<Vec<i64>, SessionError> {
        let connection = &self.connection;
        let result = (|| {
            let plan = prepared.plan.clone();
            let Prepared { correlation, ot, encryptor, .. } = prepared;
            let mut machine = OnlineClient::new(plan.clone(), correlation, input, ot, encryptor)?;
            let driver = Driver {
                party: Party::Client,
                phase: Phase::Online,
                lane_name: "online",
                lane: &connection.lanes.online,
                graph: &plan.graph,
                recorder: &connection.recorder,
                board: None,
            };
            driver.run(&mut machine)?;
            let output = machine.output().map(<[i64]>::to_vec);
            // In the interleaved mode garbled layers are made here.
            self.ots += machine.ot_count().saturating_sub(prepared.ots);
            output.ok_or_else(|| ProtocolError::Missing { what: "the opened output".into() }.into())
        })();
        if let Err(e) = &result {
            let e: &SessionError = e;
            connection.mux.abort(&public_reason(e));
        }
        result
    }

    /// Ends the connection in order.
    ///
    /// # Errors
    /// The connection fails.
    pub fn close(self) -> Result<(), SessionError> {
        self.connection.say(&Control::Bye)
    }
}
