//! Correlations on disk: sealed, bound to what they are good for, and spent durably before they are used.
//!
//! A store is a directory with a key of its own (`key`, readable by its owner alone) and, for each correlation, a file
//! `SESSION.client` or `SESSION.server`: a public header, then an XChaCha20-Poly1305 box whose associated data is the
//! header. Garbled tables are beside the client's half in `SESSION.tables`, in clear: without labels they are pseudorandom;
//! the box holds a digest of each chunk.
//!
//! *Putting*: tables and box are written under names that end in `part`, locked, made durable and then renamed. *Taking*
//! renames the file to `SESSION.client-spent`, makes that durable, and only then reads it, so that a crash can waste a
//! correlation but never spend one twice. What a crash leaves behind is found by its name ([`inventory`]).
//!
//! The store's identity, which the other party binds its halves to, is derived from the key.

mod error;
mod header;
mod inventory;
mod payload;

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::{SystemTime, UNIX_EPOCH},
};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use super::{Party, spool::FileTables};
use crate::{
    arith::codec::Reader,
    model::Graph,
    protocol::{ClientCorrelation, ServerCorrelation, SessionId},
};
use header::Header;

pub use error::StoreError;
pub use header::{Binding, Terms, parameters_id};
pub use inventory::{Entry, Prune, Removed, State, inventory, prune, stores_in, verify};

/// Names a store to the other party: derived from its key, all zero for none.
pub type StoreId = [u8; 16];

/// How much a store may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of all its files.
    pub bytes: Option<u64>,
    /// Correlations that are not spent.
    pub count: Option<usize>,
}

/// A point in putting or taking a correlation, as an observer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The box is in its file, under a name that nobody reads.
    Written,
    /// The same, durably.
    Synced,
    /// It has its name.
    Named,
    /// Durably: the correlation is there.
    Put,
    /// A correlation is renamed to spent.
    Marked,
    /// Durably: it may be read now.
    Spent,
    /// It was read.
    Read,
    /// Its file is gone.
    Removed,
}

/// Is told of every step, in the thread that takes it.
pub type Observer = Box<dyn Fn(Step) + Send + Sync>;

/// A directory of sealed correlations of one party.
pub struct CorrelationStore {
    dir: PathBuf,
    key: Zeroizing<[u8; 32]>,
    quota: Quota,
    observer: Option<Observer>,
}

impl CorrelationStore {
    /// Opens a store, making the directory and its key if they are not there.
    ///
    /// # Errors
    /// A directory that cannot be made or written, or a key that is damaged or readable by others.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        make_dir(dir).map_err(StoreError::io("create", dir))?;
        let key = match read_key(dir)? {
            Some(key) => key,
            None => make_key(dir)?,
        };
        Ok(Self { dir: dir.to_path_buf(), key, quota: Quota::default(), observer: None })
    }

    /// Opens a store that is there.
    ///
    /// # Errors
    /// As [`Self::open`], and [`StoreError::NotAStore`].
    pub fn open_existing(dir: &Path) -> Result<Self, StoreError> {
        let key = read_key(dir)?.ok_or_else(|| StoreError::NotAStore { dir: dir.to_path_buf() })?;
        Ok(Self { dir: dir.to_path_buf(), key, quota: Quota::default(), observer: None })
    }

    /// Refuses what would go over `quota`.
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Tells `observer` of every step.
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name to the other party. It says nothing of the key.
    pub fn id(&self) -> StoreId {
        let mut hash = blake3::Hasher::new_derive_key("heliostat store identity 1");
        hash.update(&*self.key);
        header::first_half(hash.finalize())
    }

    fn path(&self, session: &SessionId, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", session_name(session)))
    }

    fn step(&self, step: Step) {
        if let Some(observer) = &self.observer {
            observer(step);
        }
    }

    /// Whether one more correlation with `more` bytes may come.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub fn room(&self, more: u64) -> Result<(), StoreError> {
        self.check_quota(1, more)
    }

    fn check_quota(&self, count: usize, more: u64) -> Result<(), StoreError> {
        let full = |what: String| StoreError::Full { dir: self.dir.clone(), what };
        if self.quota == Quota::default() {
            return Ok(());
        }
        let (mut held, mut bytes) = (0, more);
        for entry in fs::read_dir(&self.dir).map_err(StoreError::io("read", &self.dir))? {
            let entry = entry.map_err(StoreError::io("read", &self.dir))?;
            // A file that goes while it is looked at takes no room.
            bytes += entry.metadata().map_or(0, |m| m.len());
            let name = entry.file_name();
            held +=
                usize::from(matches!(Path::new(&name).extension().and_then(|e| e.to_str()), Some("client" | "server")));
        }
        match (self.quota.count, self.quota.bytes) {
            (Some(most), _) if held + count > most => {
                Err(full(format!("{held} correlations are kept and {most} are allowed")))
            }
            (_, Some(most)) if bytes > most => Err(full(format!("it would hold {bytes} bytes and {most} are allowed"))),
            _ => Ok(()),
        }
    }

    /// A file for the tables of a session that is being prepared; it goes when it is dropped before
    /// [`Self::put_client`] has kept it. `written` counts its bytes.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn tables(&self, session: &SessionId, written: Arc<AtomicU64>) -> Result<Arc<FileTables>, StoreError> {
        Ok(Arc::new(FileTables::create(&self.path(session, "tables-part"), written)?))
    }

    /// Unspent correlations of these terms, the oldest first; where there are none, the error says what there is.
    ///
    /// # Errors
    /// [`StoreError::Nothing`], or a directory that cannot be read.
    pub fn fitting(&self, terms: &Terms, party: Party) -> Result<Vec<Binding>, StoreError> {
        let mut found = Vec::new();
        let mut others: [(usize, &str); 6] = [
            (0, "cannot be read"),
            (0, "of another model, or of the model before it changed"),
            (0, "made with other parameters"),
            (0, "made with another peer, or before its store was replaced"),
            (0, "of another bucket"),
            (0, "with other settings"),
        ];
        for entry in fs::read_dir(&self.dir).map_err(StoreError::io("read", &self.dir))? {
            let path = entry.map_err(StoreError::io("read", &self.dir))?.path();
            if path.extension().and_then(|s| s.to_str()) != Some(suffix(party)) {
                continue;
            }
            let header = File::open(&path).map_err(StoreError::io("open", &path));
            let why = match header.and_then(|mut file| Header::read(&mut file, &path)) {
                Ok((header, _)) => {
                    let has = &header.binding.terms;
                    let same = [
                        true,
                        has.digest == terms.digest,
                        has.parameters == terms.parameters,
                        has.peer == terms.peer,
                        has.tokens == terms.tokens,
                        has.settings == terms.settings,
                    ];
                    match same.iter().position(|same| !same) {
                        None => {
                            found.push((header.created, header.binding));
                            continue;
                        }
                        Some(why) => why,
                    }
                }
                Err(_) => 0,
            };
            others[why].0 += 1;
        }
        if found.is_empty() {
            let there: Vec<_> = others.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect();
            let there =
                if there.is_empty() { "it holds none".into() } else { format!("it holds {}", there.join(", ")) };
            return Err(StoreError::Nothing { dir: self.dir.clone(), reason: there });
        }
        found.sort_unstable_by_key(|(created, binding)| (*created, binding.session));
        Ok(found.into_iter().map(|(_, binding)| binding).collect())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.key).into())
    }

    fn seal(&self, binding: &Binding, party: Party, tables: u64, payload: &[u8]) -> Result<(), StoreError> {
        binding.terms.settings.check_kept()?;
        let path = self.path(&binding.session, suffix(party));
        let mut nonce = [0u8; 24];
        getrandom::fill(&mut nonce).map_err(|e| StoreError::Entropy(e.to_string()))?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let header = Header { binding: *binding, party, created, tables, nonce }.to_bytes();
        let too_large = |_| StoreError::Damaged { path: path.clone(), what: "it is too large for a box".into() };
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), Payload { msg: payload, aad: &header });
        let sealed = sealed.map_err(too_large)?;
        let part = self.path(&binding.session, &format!("{}-part", suffix(party)));
        let leftover = Leftover::new(part.clone());
        let mut file = open_private(&part)?;
        file.write_all(&header).and_then(|()| file.write_all(&sealed)).map_err(StoreError::io("write", &part))?;
        self.step(Step::Written);
        file.sync_all().map_err(StoreError::io("write", &part))?;
        self.step(Step::Synced);
        let _naming = self.lock()?;
        self.check_quota(1, 0)?;
        fs::rename(&part, &path).map_err(StoreError::io("rename", &part))?;
        leftover.keep();
        self.step(Step::Named);
        sync_dir(&self.dir).map_err(StoreError::io("write", &self.dir))?;
        self.step(Step::Put);
        Ok(())
    }

    /// So that of two processes that count only one at a time adds; until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join(KEY);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        file.lock().map_err(StoreError::io("lock", &path))?;
        Ok(file)
    }

    /// Spends a correlation: renames it durably, then reads and removes it. What is bound otherwise stays.
    fn unseal(&self, binding: &Binding, party: Party) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let path = self.path(&binding.session, suffix(party));
        let gone = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => StoreError::Spent,
            _ => StoreError::Io { doing: "spend", path: path.clone(), source: e },
        };
        let mut file = File::open(&path).map_err(gone)?;
        let (header, aad) = Header::read(&mut file, &path)?;
        if (header.binding, header.party) != (*binding, party) {
            return Err(StoreError::Bound);
        }
        let spent = self.path(&binding.session, &format!("{}-spent", suffix(party)));
        fs::rename(&path, &spent).map_err(gone)?;
        self.step(Step::Marked);
        sync_dir(&self.dir).map_err(StoreError::io("write", &self.dir))?;
        self.step(Step::Spent);
        let opened = self.open_box(&path, file, &header, &aad);
        self.step(Step::Read);
        match fs::remove_file(&spent) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", &spent)(e)),
            _ => Ok(()),
        }?;
        self.step(Step::Removed);
        opened
    }

    /// Reads the box that follows a header.
    fn open_box(
        &self,
        path: &Path,
        mut file: File,
        header: &Header,
        aad: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let mut sealed = Vec::new();
        file.read_to_end(&mut sealed).map_err(StoreError::io("read", path))?;
        let opened = self.cipher().decrypt(&XNonce::from(header.nonce), Payload { msg: &sealed, aad });
        let what = || "its box does not open".to_string();
        opened.map(Zeroizing::new).map_err(|_| StoreError::Damaged { path: path.to_path_buf(), what: what() })
    }

    /// Seals the client's side and keeps the tables with it.
    ///
    /// # Errors
    /// A full disk or a quota, mostly; nothing is then left.
    pub fn put_client(
        &self,
        binding: &Binding,
        graph: &Graph,
        correlation: &ClientCorrelation,
        tables: &FileTables,
    ) -> Result<(), StoreError> {
        let payload = payload::write_client(graph, correlation, &tables.index())?;
        tables.rename(&self.path(&binding.session, "tables"))?;
        self.seal(binding, Party::Client, tables.len(), &payload)?;
        tables.keep();
        Ok(())
    }

    /// Spends the client's side. The tables lose their name, too; they stay readable until the correlation is dropped.
    ///
    /// # Errors
    /// [`StoreError::Spent`] if there is none (any more), or a damaged file.
    pub fn take_client(&self, binding: &Binding, graph: &Graph) -> Result<ClientCorrelation, StoreError> {
        let payload = self.unseal(binding, Party::Client)?;
        let mut r = Reader::new("correlation", &payload);
        let index = payload::read_index(&mut r)?;
        let path = self.path(&binding.session, "tables");
        let tables = FileTables::open(&path, index)?;
        // Best effort: tables alone are worthless, and `prune` finds them.
        let _ = fs::remove_file(&path);
        Ok(payload::read_client(r, binding.session, graph, Box::new(tables))?)
    }

    /// Seals the server's side.
    ///
    /// # Errors
    /// A full disk or a quota, mostly; nothing is then left.
    pub fn put_server(&self, binding: &Binding, correlation: &ServerCorrelation) -> Result<(), StoreError> {
        self.seal(binding, Party::Server, 0, &payload::write_server(correlation))
    }

    /// Spends the server's side.
    ///
    /// # Errors
    /// [`StoreError::Spent`] if there is none (any more), or a damaged file.
    pub fn take_server(&self, binding: &Binding) -> Result<ServerCorrelation, StoreError> {
        let payload = self.unseal(binding, Party::Server)?;
        Ok(payload::read_server(&payload, binding.session)?)
    }

    /// Removes the client's half of a session of which the server has kept none.
    pub fn discard_client(&self, session: &SessionId) {
        // Best effort: the server refuses it, should it stay.
        let _ = fs::remove_file(self.path(session, suffix(Party::Client)));
        let _ = fs::remove_file(self.path(session, "tables"));
    }
}

/// A session as files and tables of the program name it.
pub fn session_name(session: &SessionId) -> String {
    session.iter().map(|b| format!("{b:02x}")).collect()
}

fn suffix(party: Party) -> &'static str {
    match party {
        Party::Client => "client",
        Party::Server => "server",
    }
}

/// Name of the key.
const KEY: &str = "key";
/// How the names of keys begin that are not ready.
const KEY_PART: &str = "key-part-";

/// Removes a file when it is dropped, unless that is kept.
struct Leftover(Option<PathBuf>);

impl Leftover {
    fn new(path: PathBuf) -> Self {
        Self(Some(path))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn make_dir(dir: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// The key, or `None` if there is none yet.
fn read_key(dir: &Path) -> Result<Option<Zeroizing<[u8; 32]>>, StoreError> {
    let path = dir.join(KEY);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("open", &path)(e)),
    };
    let metadata = file.metadata().map_err(StoreError::io("read", &path))?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            return Err(StoreError::KeyMode { path, mode });
        }
    }
    if metadata.len() != 32 {
        return Err(StoreError::KeyLength { path, length: metadata.len() });
    }
    let mut key = Zeroizing::new([0u8; 32]);
    file.read_exact(key.as_mut()).map_err(StoreError::io("read", &path))?;
    Ok(Some(key))
}

/// A new key, or that of a process that was faster. It is there whole or not at all.
fn make_key(dir: &Path) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let path = dir.join(KEY);
    let mut key = Zeroizing::new([0u8; 32]);
    getrandom::fill(key.as_mut()).map_err(|e| StoreError::Entropy(e.to_string()))?;
    let write = || -> std::io::Result<bool> {
        // For its owner's eyes only from the beginning.
        let mut file = tempfile::Builder::new().prefix(KEY_PART).tempfile_in(dir)?;
        file.write_all(key.as_ref())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(&path) {
            Ok(_) => sync_dir(dir).map(|()| true),
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e.error),
        }
    };
    if write().map_err(StoreError::io("write", &path))? {
        return Ok(key);
    }
    read_key(dir)?.ok_or_else(|| StoreError::NotAStore { dir: dir.to_path_buf() })
}

/// A new file that only its owner can read, locked as long as it is open.
fn open_private(path: &Path) -> Result<File, StoreError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(StoreError::io("create", path))?;
    file.lock().map_err(StoreError::io("lock", path))?;
    Ok(file)
}

/// Makes a renaming durable.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{header::tests::binding, *};
    use crate::{
        arith::sample::SecureRng,
        protocol::{Methods, Settings},
    };

    fn server(rng: &mut SecureRng) -> ServerCorrelation {
        ServerCorrelation::draw([9; 16], rng)
    }

    #[test]
    fn a_server_correlation_is_sealed_and_spent_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = CorrelationStore::open(dir.path()).unwrap();
        let mut rng = SecureRng::from_os().unwrap();
        let correlation = server(&mut rng);
        let delta = correlation.secrets.delta;
        store.put_server(&binding(), &correlation).unwrap();
        assert_eq!(store.fitting(&binding().terms, Party::Server).unwrap(), vec![binding()]);
        let terms = binding().terms;
        let shared = Settings { methods: Methods::SHARED, ..Settings::EXACT };
        for (other, words) in [
            (Terms { digest: [8; 32], ..terms }, "1 of another model"),
            (Terms { parameters: [8; 16], ..terms }, "1 made with other parameters"),
            (Terms { peer: [8; 16], ..terms }, "1 made with another peer"),
            (Terms { tokens: 16, ..terms }, "1 of another bucket"),
            (Terms { settings: shared, ..terms }, "1 with other settings"),
        ] {
            let error = store.fitting(&other, Party::Server).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            // It is refused and stays.
            let bound = store.take_server(&Binding { terms: other, ..binding() });
            assert!(matches!(bound, Err(StoreError::Bound)));
        }
        assert!(store.fitting(&terms, Party::Client).unwrap_err().to_string().contains("holds none"));
        // Neither the offset nor its parts are in the file.
        let bytes = fs::read(store.path(&[9; 16], "server")).unwrap();
        assert!(!bytes.windows(8).any(|w| w == &delta.to_bytes()[..8]));
        // Another process, same key.
        let again = CorrelationStore::open(dir.path()).unwrap();
        assert_eq!(again.id(), store.id());
        let back = again.take_server(&binding()).unwrap();
        assert!(back.secrets.delta == delta);
        assert!(matches!(again.take_server(&binding()), Err(StoreError::Spent)));
    }

    #[test]
    fn a_flipped_byte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = CorrelationStore::open(dir.path()).unwrap();
        let mut rng = SecureRng::from_os().unwrap();
        let path = store.path(&[9; 16], "server");
        store.put_server(&binding(), &server(&mut rng)).unwrap();
        let length = fs::metadata(&path).unwrap().len() as usize;
        for at in (0..length).step_by(7) {
            store.put_server(&binding(), &server(&mut rng)).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(store.take_server(&binding()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn quotas_refuse_in_a_sentence_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = SecureRng::from_os().unwrap();
        let quota = Quota { count: Some(1), bytes: None };
        let store = CorrelationStore::open(dir.path()).unwrap().with_quota(quota);
        store.room(u64::MAX / 2).unwrap();
        store.put_server(&binding(), &server(&mut rng)).unwrap();
        let another = Binding { session: [1; 16], ..binding() };
        for result in [store.room(0), store.put_server(&another, &server(&mut rng))] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("1 correlations are kept and 1 are allowed"), "{error}");
        }
        let store = store.with_quota(Quota { count: None, bytes: Some(400) });
        assert!(matches!(store.room(400), Err(StoreError::Full { .. })));
        assert!(matches!(store.put_server(&another, &server(&mut rng)), Err(StoreError::Full { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "key and one correlation");
        store.take_server(&binding()).unwrap();
        store.put_server(&another, &server(&mut rng)).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn the_key_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join(KEY);
        assert!(matches!(CorrelationStore::open_existing(dir.path()), Err(StoreError::NotAStore { .. })));
        CorrelationStore::open(dir.path()).unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            let error = CorrelationStore::open(dir.path()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:03o}")) && error.contains("600"), "{error}");
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&key, [0; 31]).unwrap();
        assert!(matches!(CorrelationStore::open(dir.path()), Err(StoreError::KeyLength { length: 31, .. })));
    }
}
