//! The client's end of a connection: manifest, keys, then inferences one after another.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use super::{
    LANES, Lanes, SessionError,
    control::{Control, Mode},
    drive::Driver,
    first_cause, public_reason,
    recorder::{Party, Phase, Recorder},
    spool::FileTables,
    store::{Binding, CorrelationStore},
};
use crate::{
    arith::sample::SecureRng,
    engine::Backend,
    he::{BfvContext, HeClient as HeKeys, HeCounters},
    model::{Graph, Inputs, ModelSpec},
    net::{self, Channel, Meter, Mux, MuxOptions, Traffic},
    protocol::{
        ClientCorrelation, Encryptor, HeClient, MemoryTables, Message, OnlineClient, OtClient, Plan, ProtocolError,
        SessionId, Settings, TableStore, parameter_set,
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
}

/// How the offline phase keeps garbled tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// In a nameless file of this directory.
    Spool(PathBuf),
    /// In a store, with the rest of the correlation, for an online phase later.
    Keep(PathBuf),
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
        let mut own = Self { mux, lanes: Lanes::new(lanes)?, meter, recorder, digest: [0; 32] };
        let start = own.recorder.now();
        own.say(&Control::AskManifest { cached: cached.unwrap_or([0; 32]) })?;
        let Control::Manifest { digest, length } = own.hear()? else {
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
    keys: Arc<HeKeys>,
    spec: ModelSpec,
    plans: HashMap<(usize, Settings), Arc<Plan>>,
    rng: SecureRng,
    ots: u64,
    spooled: Arc<AtomicU64>,
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
        let context = BfvContext::new(backend, parameter_set()?);
        let keys = Arc::new(HeKeys::generate(context, &mut rng));
        let params = keys.context().params();
        let message = Message::Keys {
            public_key: keys.public_key(&mut rng)?.to_bytes(params),
            galois_keys: keys.galois_keys(crate::protocol::KEY_BLOCK, &mut rng)?.to_bytes(params),
        };
        connection.lanes.control.send(message.kind(), message.encode())?;
        super::setup_span(&connection.recorder, Party::Client, "keys", start);
        Ok(Self { connection, keys, spec, plans: HashMap::new(), rng, ots: 0, spooled: Arc::default() })
    }

    /// The meter of this connection.
    pub fn meter(&self) -> &Meter {
        &self.connection.meter
    }

    /// Homomorphic work so far.
    pub fn he_counters(&self) -> HeCounters {
        self.keys.context().counters()
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
        self.plans.insert((tokens, settings), plan.clone());
        Ok(plan)
    }

    /// The offline phase for one inference: only bucket, settings and model are known.
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
        let mut session: SessionId = [0; 16];
        session.copy_from_slice(&self.rng.bytes32()[..16]);
        let (mode, store, file) = match tables {
            Tables::Spool(dir) => {
                let file: Box<dyn TableStore> = Box::new(FileTables::temporary(&dir, self.spooled.clone())?);
                (Mode::Direct, file, None)
            }
            Tables::Interleaved => (Mode::Interleaved, Box::<MemoryTables>::default() as Box<dyn TableStore>, None),
            Tables::Keep(dir) => {
                settings.check_kept()?;
                let store = CorrelationStore::open(&dir)?;
                let file = Arc::new(FileTables::create(&store.tables_path(&session), self.spooled.clone())?);
                (Mode::Keep, Box::new(file.clone()) as Box<dyn TableStore>, Some((store, file)))
            }
        };
        let interleaved = mode == Mode::Interleaved;
        let correlation = Arc::new(ClientCorrelation::draw(session, &plan, store, &mut self.rng));
        let connection = &self.connection;
        connection.say(&Control::Start { session, tokens: tokens as u32, mode, settings })?;
        connection.ready()?;
        let nodes = plan.ot_nodes(!interleaved, true);
        let mut he = HeClient::new(plan.clone(), correlation.clone(), self.keys.clone(), self.rng.fork());
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
        if let Some((store, file)) = file {
            file.sync()?;
            let binding = Binding { digest: connection.digest, tokens: tokens as u32, settings, session };
            store.put_client(&binding, &plan.graph, &correlation, &file.index())?;
            // The server has kept its side once it is ready again.
            connection.ready()?;
        }
        self.ots += ots;
        let encryptor = settings.he_online().then(|| he.into_encryptor());
        Ok(Prepared { tokens, correlation, ot: interleaved.then_some(ot), encryptor, plan, ots })
    }

    /// Takes a correlation that [`Tables::Keep`] left in a store; the server must have its side.
    ///
    /// # Errors
    /// [`ProtocolError::Missing`] if the store has none for this model and bucket, [`SessionError::Refused`] if the
    /// server has not its side (any more): this side is then removed, since it can serve nothing.
    pub fn resume(&mut self, dir: &Path, tokens: usize, settings: Settings) -> Result<Prepared, SessionError> {
        let plan = self.plan(tokens, settings)?;
        let store = CorrelationStore::open(dir)?;
        let digest = self.connection.digest;
        let session =
            *store.unspent(&digest, tokens as u32, settings, true)?.first().ok_or_else(|| ProtocolError::Missing {
                what: format!(
                    "an unspent correlation of this model for {tokens} tokens ({}, {} OTs) in {}",
                    settings.methods,
                    settings.ot.name(),
                    dir.display()
                ),
            })?;
        let binding = Binding { digest, tokens: tokens as u32, settings, session };
        let correlation = Arc::new(store.take_client(&binding, &plan.graph)?);
        // The open file stays readable; its name goes now, so that a crash leaves nothing behind.
        store.remove_tables(&session);
        self.connection.say(&Control::Resume { session, tokens: tokens as u32, settings })?;
        self.connection.ready()?;
        Ok(Prepared { tokens, correlation, ot: None, encryptor: None, plan, ots: 0 })
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
