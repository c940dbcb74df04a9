//! Two hundred kills while correlations are put and taken: none is used twice, and what is left is whole or a remnant.
//!
//! The small process is this test itself, run again: it fills and spends two stores, as the two parties do, through the
//! store's own operations, and writes the name of every correlation that it is about to use to an append-only file. A kill
//! shows what a process leaves half done; it does not show what a disk forgets when the power goes.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use heliostat::{
    arith::sample::SecureRng,
    model::{Graph, GraphOptions, ModelSpec, NodeId},
    net::session::{
        Binding, CorrelationStore, Entry, Party, Prune, State, Step, StoreError, Terms, inventory, prune, session_name,
        verify,
    },
    protocol::{ClientCorrelation, ServerCorrelation, SessionId, Settings, TableStore},
};

use super::program::{Serving, TEXT, client, json, model, run};

const KILLS: u32 = 200;
/// Of the small process: its directory, and the step at which it ends itself (0 for never).
const DIR: &str = "HELIOSTAT_KILLED_IN";
const AT: &str = "HELIOSTAT_KILLED_AT";
const NAME: &str = "kills::two_hundred_kills_and_no_correlation_is_used_twice";

#[test]
fn two_hundred_kills_and_no_correlation_is_used_twice() {
    if let Some(dir) = std::env::var_os(DIR) {
        let at = std::env::var(AT).unwrap().parse().unwrap();
        fill_and_spend(&Both::open(Path::new(&dir), at));
    }
    // In memory where there is such a place: what a process leaves is the same, and nothing waits for a disk.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let dir = dir.path();
    let mut rng = SecureRng::from_os().unwrap();
    let mut draw = move |n: u32| u32::from_le_bytes(rng.bytes32()[..4].try_into().unwrap()) % n;
    let mut remnants: HashMap<&str, usize> = HashMap::new();
    for kill in 0..KILLS {
        // Half of them between two steps, the others at any moment.
        let at = if kill % 2 == 0 { 1 + draw(40) } else { 0 };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(DIR, dir)
            .env(AT, at.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if at == 0 {
            let mut out = child.stdout.take().unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"begin\n") {
                let mut byte = [0];
                assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
                seen.push(byte[0]);
            }
            thread::sleep(Duration::from_micros(u64::from(draw(40_000))));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "kill {kill}: {status}");
        for entry in both(dir, inventory) {
            assert!(!matches!(entry.state, State::Damaged(_) | State::InWork), "kill {kill}: {entry:?}");
            *remnants.entry(entry.state.name()).or_default() += 1;
        }
        used(dir);
        if kill % 20 == 19 {
            sweep(dir);
        }
    }
    for kind in ["half written", "spent", "tables alone"] {
        assert!(remnants.contains_key(kind), "no kill left anything {kind}: {remnants:?}");
    }
    // What is ready can be spent, by both sides.
    let stores = Both::open(dir, 0);
    let mut spent = 0;
    while stores.spend() {
        spent += 1;
    }
    let total = used(dir);
    assert!(total > KILLS as usize && total >= spent, "only {total} were used");
    println!("{KILLS} kills, {total} correlations used, {remnants:?} seen after kills");
    sweep(dir);
    let left = both(dir, inventory);
    assert!(left.iter().all(|e| e.party == Some(Party::Server)), "the client's are spent: {left:?}");
    for party in ["client", "server"] {
        prune(&dir.join(party), &Prune { all: true, ..Prune::default() }, 0).unwrap();
        let names: Vec<_> = fs::read_dir(dir.join(party)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["key"]);
    }
}

fn both(dir: &Path, look: fn(&Path) -> Result<Vec<Entry>, StoreError>) -> Vec<Entry> {
    // A process that was killed early has made no store.
    let stores = ["client", "server"].map(|party| dir.join(party)).into_iter().filter(|store| store.is_dir());
    stores.flat_map(|store| look(&store).unwrap()).collect()
}

/// Nothing is damaged when everything is opened, and pruning leaves only what is ready.
fn sweep(dir: &Path) {
    for entry in both(dir, verify) {
        assert!(entry.state == State::Ready || entry.state.is_remnant(), "{entry:?}");
    }
    for party in ["client", "server"] {
        prune(&dir.join(party), &Prune { remnants: true, ..Prune::default() }, 0).unwrap();
    }
    let left = both(dir, inventory);
    assert!(left.iter().all(|e| e.state == State::Ready), "{left:?}");
}

/// How many correlations were used; each by each party once.
fn used(dir: &Path) -> usize {
    let mut count = 0;
    for party in ["client", "server"] {
        let log = fs::read_to_string(dir.join(format!("{party}.log"))).unwrap_or_default();
        let names: Vec<&str> = log.lines().collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len(), "a correlation of the {party} was used twice");
        count = count.max(names.len());
    }
    count
}

/// Both parties' stores.
struct Both {
    dir: PathBuf,
    graph: Graph,
    client: CorrelationStore,
    server: CorrelationStore,
}

impl Both {
    /// Opens them; the process ends itself by SIGKILL at step `at` of all.
    fn open(dir: &Path, at: u32) -> Self {
        let calibration = fs::read(model().join("heliostat.json")).unwrap();
        let calibration: serde_json::Value = serde_json::from_slice(&calibration).unwrap();
        let mut spec: ModelSpec = serde_json::from_value(calibration["spec"].clone()).unwrap();
        spec.layers.truncate(1);
        let graph = Graph::build(&spec, 8, &GraphOptions::default()).unwrap();
        let steps = Arc::new(AtomicU32::new(0));
        let open = |party: &str| {
            let steps = steps.clone();
            let observer = move |_: Step| {
                if steps.fetch_add(1, Ordering::SeqCst) + 1 == at {
                    let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
                    thread::sleep(Duration::from_secs(60));
                }
            };
            CorrelationStore::open(&dir.join(party)).unwrap().with_observer(Box::new(observer))
        };
        let (client, server) = (open("client"), open("server"));
        Self { dir: dir.to_path_buf(), graph, client, server }
    }

    fn terms(&self, party: Party) -> Terms {
        let peer = if party == Party::Client { self.server.id() } else { self.client.id() };
        Terms { digest: [1; 32], parameters: [2; 16], tokens: 8, settings: Settings::EXACT, peer }
    }

    /// The client keeps its half, then the server.
    fn fill(&self, rng: &mut SecureRng) {
        let mut session: SessionId = [0; 16];
        session.copy_from_slice(&rng.bytes32()[..16]);
        let tables = self.client.tables(&session, Arc::default()).unwrap();
        for chunk in 0..3 {
            tables.put(NodeId(chunk), chunk, session.repeat(1000)).unwrap();
        }
        let shares = self.graph.edges.iter().map(|e| vec![u64::from(session[0] & 1); e.len()]).collect();
        let correlation = ClientCorrelation::restore(session, shares, vec![], vec![], None, Box::new(tables.clone()));
        let binding = Binding { terms: self.terms(Party::Client), session };
        self.client.put_client(&binding, &self.graph, &correlation, &tables).unwrap();
        let binding = Binding { terms: self.terms(Party::Server), session };
        self.server.put_server(&binding, &ServerCorrelation::draw(session, rng)).unwrap();
    }

    /// Whether there was one.
    fn spend(&self) -> bool {
        let Ok(found) = self.client.fitting(&self.terms(Party::Client), Party::Client) else { return false };
        let session = found[0].session;
        let correlation = self.client.take_client(&found[0], &self.graph).unwrap();
        self.log("client", &session);
        for chunk in 0..3 {
            assert_eq!(correlation.tables.take(NodeId(chunk), chunk).unwrap(), session.repeat(1000));
        }
        match self.server.take_server(&Binding { terms: self.terms(Party::Server), session }) {
            Ok(correlation) => {
                assert_eq!(correlation.session, session);
                self.log("server", &session);
            }
            // The process was killed before the server had kept its half.
            Err(StoreError::Spent) => {}
            Err(e) => panic!("{e}"),
        }
        true
    }

    fn log(&self, party: &str, session: &SessionId) {
        let path = self.dir.join(format!("{party}.log"));
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{}\n", session_name(session)).as_bytes()).unwrap();
    }
}

/// Fills and spends until it is killed.
fn fill_and_spend(stores: &Both) -> ! {
    println!("begin");
    let mut rng = SecureRng::from_os().unwrap();
    loop {
        let held = inventory(&stores.dir.join("client")).unwrap();
        let ready = held.iter().filter(|e| e.state == State::Ready).count();
        // From 0 to 7: the more there are, the likelier one is spent.
        if usize::from(rng.bytes32()[0] >> 5) >= ready || !stores.spend() {
            stores.fill(&mut rng);
        }
    }
}

/// Kills of the program itself: of a client that prepares, of a client that spends, of the server.
#[test]
fn killed_programs_waste_correlations_and_reuse_none() {
    let home = tempfile::tempdir().unwrap();
    let (mine, theirs) = (home.path().join("mine"), home.path().join("theirs"));
    let (store, servers) = (mine.to_str().unwrap().to_string(), theirs.to_str().unwrap().to_string());
    let mut serving = Serving::start(&["--store", &servers]);
    let ready = |dir: &Path| -> BTreeSet<SessionId> {
        let entries = inventory(dir).unwrap_or_default();
        entries.iter().filter(|e| e.state == State::Ready).filter_map(|e| e.session).collect()
    };
    let mut gone = (BTreeSet::new(), BTreeSet::new());
    let offline = ["--store", &store, "--bucket", "8", "--count", "20", "--quiet"];
    let infer = ["--store", &store, "--text", TEXT, "--text", TEXT, "--quiet"];
    for round in 0..6u64 {
        let before = (ready(&mine), ready(&theirs));
        let (name, args) = if round % 2 == 0 { ("offline", &offline[..]) } else { ("infer", &infer[..]) };
        let mut child = client(home.path(), name, &serving.address, args).spawn().unwrap();
        // Until the server's store has changed, then a little more.
        while ready(&theirs) == before.1 && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(37 * round));
        if round == 4 {
            serving.kill();
        }
        let _ = child.kill();
        child.wait().unwrap();
        if round == 4 {
            serving = Serving::start(&["--store", &servers]);
        }
        let after = (ready(&mine), ready(&theirs));
        gone.0.extend(before.0.difference(&after.0).copied());
        gone.1.extend(before.1.difference(&after.1).copied());
        assert!(gone.0.is_disjoint(&after.0) && gone.1.is_disjoint(&after.1), "a spent correlation came back");
    }
    assert!(!gone.0.is_empty() && !gone.1.is_empty(), "no round has spent anything");
    for dir in [&store, &servers] {
        let verified = run(&["store", "verify", dir]);
        assert!(verified.status.success(), "{}", super::program::stderr(&verified));
        assert!(run(&["store", "prune", dir]).status.success());
    }
    // It all goes on.
    let report =
        json(&client(home.path(), "infer", &serving.address, &[&infer[..4], &["--json"]].concat()).output().unwrap());
    let expected = json(&run(&["oracle", "--model", model().to_str().unwrap(), "--text", TEXT, "--json"]));
    assert_eq!(report["inputs"][0]["outputs"], expected[0]["oracle_outputs"]);
    for dir in [&store, &servers] {
        assert!(run(&["store", "prune", dir, "--all"]).status.success());
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["key"]);
    }
}
