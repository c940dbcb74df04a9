//! What is in a store: correlations, and what crashes have left. Listing reads names and public headers, never the key.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use super::{
    CorrelationStore, KEY, KEY_PART, StoreError, Terms,
    header::Header,
    payload::{read_index, read_server},
};
use crate::{
    arith::codec::Reader,
    net::session::{Party, spool::FileTables},
    protocol::SessionId,
};

/// What an entry is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Can be spent.
    Ready,
    /// A process is writing it.
    InWork,
    /// A process was writing it when it ended.
    HalfWritten,
    /// Was marked spent by a process that ended before it had removed it.
    Spent,
    /// Tables without their correlation.
    TablesAlone,
    /// Cannot be used, and why.
    Damaged(String),
}

impl State {
    /// Name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::InWork => "in work",
            Self::HalfWritten => "half written",
            Self::Spent => "spent",
            Self::TablesAlone => "tables alone",
            Self::Damaged(_) => "damaged",
        }
    }

    /// Whether it is what a process left that ended early: worthless, and no sign of damage.
    pub fn is_remnant(&self) -> bool {
        matches!(self, Self::HalfWritten | Self::Spent | Self::TablesAlone)
    }
}

/// One correlation, or one remnant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of its file.
    pub name: String,
    /// The session, if the name has one.
    pub session: Option<SessionId>,
    /// Whose half it is, where that can be seen.
    pub party: Option<Party>,
    /// What it is good for, if its header can be read.
    pub terms: Option<Terms>,
    /// When it was made, in seconds since 1970.
    pub created: Option<u64>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// State.
    pub state: State,
    /// Its files; the one that makes it usable first.
    files: Vec<PathBuf>,
}

/// The stores at a path: itself, or those of the two parties in it that `local` and `offline --model` keep.
///
/// # Errors
/// [`StoreError::NotAStore`] if there is none.
pub fn stores_in(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let is_store = |dir: &PathBuf| dir.join(KEY).is_file() || inventory(dir).is_ok_and(|entries| !entries.is_empty());
    let found: Vec<PathBuf> =
        [dir.to_path_buf(), dir.join("client"), dir.join("server")].into_iter().filter(is_store).collect();
    if found.is_empty() { Err(StoreError::NotAStore { dir: dir.to_path_buf() }) } else { Ok(found) }
}

/// Everything in a store but the key, by name. Files that no store makes are left out.
///
/// # Errors
/// A directory that cannot be read.
pub fn inventory(dir: &Path) -> Result<Vec<Entry>, StoreError> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names.iter().filter_map(|name| entry(dir, name, &names)).collect())
}

fn entry(dir: &Path, name: &str, names: &BTreeSet<String>) -> Option<Entry> {
    let path = dir.join(name);
    // A file that has gone meanwhile is not in the store.
    let bytes = fs::metadata(&path).ok().filter(|m| m.is_file())?.len();
    let mut entry = Entry {
        name: name.into(),
        session: None,
        party: None,
        terms: None,
        created: None,
        bytes,
        state: State::HalfWritten,
        files: vec![path.clone()],
    };
    if name.starts_with(KEY_PART) {
        return Some(entry);
    }
    let (stem, suffix) = name.split_once('.')?;
    entry.session = Some(session_of(stem)?);
    let (party, rest) = match suffix.split_once('-') {
        Some((party, rest)) => (party, rest),
        None => (suffix, ""),
    };
    entry.party = match party {
        "client" | "tables" => Some(Party::Client),
        "server" => Some(Party::Server),
        // Formats before the third.
        "part" => None,
        _ => return None,
    };
    let tables = format!("{stem}.tables");
    entry.state = match (party, rest) {
        ("tables", "") if names.contains(&format!("{stem}.client")) => return None,
        ("tables", "") => in_work_or(&path, State::TablesAlone),
        ("client" | "server", "") => {
            let length = fs::metadata(dir.join(&tables)).ok().map(|m| m.len());
            if party == "client" && length.is_some() {
                entry.files.push(dir.join(&tables));
                entry.bytes += length.unwrap_or(0);
            }
            match read_header(&path) {
                Ok(header) => {
                    entry.terms = Some(header.binding.terms);
                    entry.created = Some(header.created);
                    state_of(&header, entry.session, entry.party, length)
                }
                Err(e) => State::Damaged(reason(&e)),
            }
        }
        (_, "spent") => State::Spent,
        (_, "part") | ("part", "") => in_work_or(&path, State::HalfWritten),
        _ => return None,
    };
    Some(entry)
}

/// What the header of a correlation says of it, with the length of the tables beside it.
fn state_of(header: &Header, session: Option<SessionId>, party: Option<Party>, tables: Option<u64>) -> State {
    let tables = if header.party == Party::Client { tables } else { Some(0) };
    match tables {
        _ if (Some(header.binding.session), Some(header.party)) != (session, party) => {
            State::Damaged("its name is another one's".into())
        }
        None => State::Damaged("its tables are missing".into()),
        Some(length) if length != header.tables => {
            State::Damaged(format!("its tables have {length} bytes, not {}", header.tables))
        }
        Some(_) => State::Ready,
    }
}

fn read_header(path: &Path) -> Result<Header, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    Ok(Header::read(&mut file, path)?.0)
}

/// A few words for a table.
fn reason(e: &StoreError) -> String {
    match e {
        StoreError::Damaged { what, .. } => what.clone(),
        StoreError::Format { found, .. } => format!("format {found}, of another release"),
        e => e.to_string(),
    }
}

/// Writers hold a lock on their file, which ends with their process.
fn in_work_or(path: &Path, otherwise: State) -> State {
    match File::open(path).map(|file| file.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => State::InWork,
        _ => otherwise,
    }
}

fn session_of(stem: &str) -> Option<SessionId> {
    let mut session = [0; 16];
    if stem.len() != 32 || !stem.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    for (byte, digits) in session.iter_mut().zip(stem.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(session)
}

/// The inventory after every box was opened and every chunk of tables compared with its digest.
///
/// # Errors
/// A directory that cannot be read, or no usable key.
pub fn verify(dir: &Path) -> Result<Vec<Entry>, StoreError> {
    let store = CorrelationStore::open_existing(dir)?;
    let mut entries = inventory(dir)?;
    for entry in entries.iter_mut().filter(|e| e.state == State::Ready) {
        if let Err(e) = store.check(entry) {
            // One that was spent meanwhile is not damaged.
            entry.state = if entry.files[0].exists() { State::Damaged(reason(&e)) } else { State::Spent };
        }
    }
    Ok(entries)
}

impl CorrelationStore {
    /// Opens the box of an entry and leaves it where it is.
    fn check(&self, entry: &Entry) -> Result<(), StoreError> {
        let path = &entry.files[0];
        let mut file = File::open(path).map_err(StoreError::io("open", path))?;
        let (header, aad) = Header::read(&mut file, path)?;
        let payload = self.open_box(path, file, &header, &aad)?;
        match (header.party, entry.files.get(1)) {
            (Party::Client, Some(tables)) => {
                let index = read_index(&mut Reader::new("correlation", &payload))?;
                Ok(FileTables::open(tables, index)?.verify()?)
            }
            (Party::Client, None) => Ok(()),
            (Party::Server, _) => Ok(read_server(&payload, header.binding.session).map(drop)?),
        }
    }
}

/// What to remove. Nothing that a process is writing is ever removed, nor the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prune {
    /// What crashes have left: half written, marked spent, tables alone.
    pub remnants: bool,
    /// What [`verify`] finds damaged.
    pub damaged: bool,
    /// Correlations made this many seconds ago or earlier.
    pub older_than: Option<u64>,
    /// Everything.
    pub all: bool,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// What it was.
    pub entry: Entry,
    /// Whether all of its files are gone.
    pub gone: bool,
}

/// Removes what `what` says; `now` is in seconds since 1970.
///
/// # Errors
/// A directory that cannot be read, or, to find what is damaged, no usable key.
pub fn prune(dir: &Path, what: &Prune, now: u64) -> Result<Vec<Removed>, StoreError> {
    let entries = if what.damaged && !what.all { verify(dir)? } else { inventory(dir)? };
    let goes = |entry: &Entry| match &entry.state {
        State::InWork => false,
        _ if what.all => true,
        State::Ready => {
            what.older_than.zip(entry.created).is_some_and(|(age, created)| created.saturating_add(age) <= now)
        }
        State::Damaged(_) => what.damaged,
        _ => what.remnants,
    };
    let remove = |entry: Entry| {
        // What is gone already is as wanted.
        let removed = |path: &PathBuf| match fs::remove_file(path) {
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        // All are tried, whatever becomes of the first.
        let gone = entry.files.iter().filter(|path| !removed(path)).count() == 0;
        Removed { entry, gone }
    };
    Ok(entries.into_iter().filter(goes).map(remove).collect())
}

#[cfg(test)]
mod tests {
    use super::{super::header::tests::binding, *};
    use crate::{arith::sample::SecureRng, net::session::store::Binding, protocol::ServerCorrelation};

    fn states(dir: &Path) -> Vec<(String, State)> {
        inventory(dir).unwrap().into_iter().map(|e| (e.name[..4].to_string(), e.state)).collect()
    }

    #[test]
    fn remnants_and_damage_are_told_apart_and_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(stores_in(dir).is_err());
        let store = CorrelationStore::open(dir).unwrap();
        let mut rng = SecureRng::from_os().unwrap();
        for i in 1..=4u8 {
            let binding = Binding { session: [i; 16], ..binding() };
            store.put_server(&binding, &ServerCorrelation::draw(binding.session, &mut rng)).unwrap();
        }
        let name = |i: u8, suffix: &str| dir.join(format!("{}.{suffix}", format!("{i:02x}").repeat(16)));
        let mut bytes = fs::read(name(2, "server")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(name(2, "server"), bytes).unwrap();
        fs::rename(name(3, "server"), name(3, "server-spent")).unwrap();
        fs::rename(name(4, "server"), name(5, "server")).unwrap();
        for suffix in ["tables", "client-part", "server-part", "tables-part", "part"] {
            fs::write(name(6, suffix), [1, 2, 3]).unwrap();
        }
        fs::write(name(7, "client"), b"HELIOCOR\x02\x00 of an older release").unwrap();
        fs::write(dir.join("notes.txt"), "not ours").unwrap();
        let damaged = |what: &str| State::Damaged(what.into());
        let mut expected = vec![
            ("0101".to_string(), State::Ready),
            ("0202".to_string(), State::Ready),
            ("0303".to_string(), State::Spent),
            ("0505".to_string(), damaged("its name is another one's")),
        ];
        let half = ("0606".to_string(), State::HalfWritten);
        expected.extend([half.clone(), half.clone(), half.clone()]);
        expected.extend([("0606".to_string(), State::TablesAlone), half]);
        expected.push(("0707".to_string(), damaged("format 2, of another release")));
        assert_eq!(states(dir), expected);
        let verified: Vec<State> = verify(dir).unwrap().into_iter().map(|e| e.state).collect();
        assert_eq!(verified[..2], [State::Ready, damaged("its box does not open")]);
        // A file that is being written stays.
        let held = File::open(name(6, "client-part")).unwrap();
        held.lock().unwrap();
        assert_eq!(prune(dir, &Prune { remnants: true, ..Prune::default() }, 0).unwrap().len(), 5);
        assert!(states(dir).contains(&("0606".to_string(), State::InWork)));
        drop(held);
        assert_eq!(prune(dir, &Prune { damaged: true, ..Prune::default() }, 0).unwrap().len(), 3);
        let created = inventory(dir).unwrap()[0].created.unwrap();
        let old = Prune { older_than: Some(60), ..Prune::default() };
        assert!(prune(dir, &old, created + 59).unwrap().is_empty());
        let removed = prune(dir, &old, created + 60).unwrap();
        assert!(removed.len() == 1 && removed[0].gone);
        prune(dir, &Prune { all: true, ..Prune::default() }, 0).unwrap();
        assert_eq!(states(dir), []);
        assert!(dir.join("notes.txt").exists() && dir.join(KEY).exists());
    }
}
