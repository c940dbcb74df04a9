//! Correlations on disk: sealed, bound to model, bucket and session, and spent durably before they are used.
//!
//! A store is a directory with a key of its own (`key`, readable by its owner alone) and, for each correlation, a file
//! `SESSION.client` or `SESSION.server`: a public header, then an XChaCha20-Poly1305 box whose associated data is the
//! header. Garbled tables are beside it in `SESSION.tables`, in clear: without labels they are pseudorandom.
//!
//! Taking a correlation out renames its file and makes the renaming durable before anything is read, so that a crash can
//! waste a correlation but never spend one twice.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use super::spool::FileTables;
use crate::{
    arith::codec::{CodecError, Reader, Writer},
    model::{EdgeId, Graph, NodeId},
    mpc::block::{Block, blocks_as_bytes, blocks_from_bytes},
    protocol::{ClientCorrelation, CotPools, ProtocolError, ServerCorrelation, ServerExport, SessionId, Settings},
};

const MAGIC: &[u8; 8] = b"HELIOCOR";
const VERSION: u16 = 3;
/// Most entries of one kind in a file.
const MAX_ENTRIES: usize = 1 << 22;

/// A directory of sealed correlations of one party.
pub struct CorrelationStore {
    dir: PathBuf,
    key: Zeroizing<[u8; 32]>,
}

/// What a correlation is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Digest of the manifest.
    pub digest: [u8; 32],
    /// Tokens of the bucket.
    pub tokens: u32,
    /// What the parties agreed on.
    pub settings: Settings,
    /// The session that it was made in.
    pub session: SessionId,
}

fn failed(what: &str, path: &Path, e: impl std::fmt::Display) -> ProtocolError {
    ProtocolError::Spool(format!(
        "cannot {what} {}: {e}; check the --store directory and its free space",
        path.display()
    ))
}

fn damaged(path: &Path) -> ProtocolError {
    ProtocolError::Spool(format!(
        "the correlation in {} is damaged, or of another model, bucket or key; run the offline phase again",
        path.display()
    ))
}

impl CorrelationStore {
    /// Opens a store, making the directory and its key if they are not there.
    ///
    /// # Errors
    /// A directory that cannot be made or written, or a key file of the wrong length.
    pub fn open(dir: &Path) -> Result<Self, ProtocolError> {
        fs::create_dir_all(dir).map_err(|e| failed("create", dir, e))?;
        let path = dir.join("key");
        let mut key = Zeroizing::new([0u8; 32]);
        match fs::read(&path).map(Zeroizing::new) {
            Ok(bytes) if bytes.len() == 32 => key.copy_from_slice(&bytes),
            Ok(_) => return Err(damaged(&path)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                getrandom::fill(key.as_mut()).map_err(|e| ProtocolError::Entropy(e.to_string()))?;
                write_private(&path, key.as_ref())?;
            }
            Err(e) => return Err(failed("read", &path, e)),
        }
        Ok(Self { dir: dir.to_path_buf(), key })
    }

    fn path(&self, session: &SessionId, suffix: &str) -> PathBuf {
        let name: String = session.iter().map(|b| format!("{b:02x}")).collect();
        self.dir.join(format!("{name}.{suffix}"))
    }

    /// Where the tables of a session go.
    pub fn tables_path(&self, session: &SessionId) -> PathBuf {
        self.path(session, "tables")
    }

    /// Sessions for which this party has an unspent correlation of a model and a bucket.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn unspent(
        &self,
        digest: &[u8; 32],
        tokens: u32,
        settings: Settings,
        client: bool,
    ) -> Result<Vec<SessionId>, ProtocolError> {
        let suffix = if client { "client" } else { "server" };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| failed("read", &self.dir, e))? {
            let path = entry.map_err(|e| failed("read", &self.dir, e))?.path();
            if path.extension().and_then(|s| s.to_str()) != Some(suffix) {
                continue;
            }
            let mut head = [0u8; HEADER];
            let read = File::open(&path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut head));
            if read.is_ok()
                && let Ok(binding) = read_header(&head, client)
                && (binding.digest, binding.tokens, binding.settings) == (*digest, tokens, settings)
            {
                found.push(binding.session);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn seal(&self, binding: &Binding, client: bool, payload: Zeroizing<Vec<u8>>) -> Result<(), ProtocolError> {
        binding.settings.check_kept()?;
        let path = self.path(&binding.session, if client { "client" } else { "server" });
        let mut nonce = [0u8; 24];
        getrandom::fill(&mut nonce).map_err(|e| ProtocolError::Entropy(e.to_string()))?;
        let header = write_header(binding, client, &nonce);
        let cipher = XChaCha20Poly1305::new((&*self.key).into());
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &payload, aad: &header })
            .map_err(|_| failed("seal", &path, "the correlation is too large"))?;
        let part = path.with_extension("part");
        let mut file = open_private(&part)?;
        file.write_all(&header)
            .and_then(|()| file.write_all(&sealed))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&part, &path))
            .and_then(|()| sync_dir(&self.dir))
            .map_err(|e| failed("write", &path, e))
    }

    /// Spends a correlation: renames it durably, then reads and removes it.
    fn unseal(&self, binding: &Binding, client: bool) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
        let path = self.path(&binding.session, if client { "client" } else { "server" });
        let spent = path.with_extension(if client { "client-spent" } else { "server-spent" });
        fs::rename(&path, &spent).and_then(|()| sync_dir(&self.dir)).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ProtocolError::Spent,
            _ => failed("spend", &path, e),
        })?;
        let bytes = fs::read(&spent).map_err(|e| failed("read", &spent, e))?;
        fs::remove_file(&spent).map_err(|e| failed("remove", &spent, e))?;
        let (header, sealed) = bytes.split_at_checked(HEADER).ok_or_else(|| damaged(&path))?;
        if read_header(header, client).ok().as_ref() != Some(binding) {
            return Err(damaged(&path));
        }
        let mut nonce = [0u8; 24];
        nonce.copy_from_slice(&header[HEADER - 24..]);
        let cipher = XChaCha20Poly1305::new((&*self.key).into());
        cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: sealed, aad: header })
            .map(Zeroizing::new)
            .map_err(|_| damaged(&path))
    }

    /// Seals the client's side; `tables` is the file its tables are in.
    ///
    /// # Errors
    /// A full disk, mostly.
    pub fn put_client(
        &self,
        binding: &Binding,
        graph: &Graph,
        correlation: &ClientCorrelation,
        index: &[(NodeId, usize, u64, usize)],
    ) -> Result<(), ProtocolError> {
        let (shares, products, labels) = correlation.export(graph)?;
        let mut w = Writer::new();
        for (i, share) in shares.iter().enumerate() {
            w.packed("share", share, graph.edge(EdgeId(i)).ring.bits())?;
        }
        write_vectors(&mut w, &products);
        w.u64(labels.len() as u64);
        for ((node, chunk), blocks) in &labels {
            w.u32(node.0 as u32).u32(*chunk as u32).bytes(blocks_as_bytes(blocks));
        }
        w.u64(index.len() as u64);
        for (node, chunk, at, len) in index {
            w.u32(node.0 as u32).u32(*chunk as u32).u64(*at).u64(*len as u64);
        }
        correlation.with_pools(|pools| write_pools(&mut w, pools));
        self.seal(binding, true, Zeroizing::new(w.finish()))
    }

    /// Spends the client's side.
    ///
    /// # Errors
    /// [`ProtocolError::Spent`] if there is none (any more), or a damaged file.
    pub fn take_client(&self, binding: &Binding, graph: &Graph) -> Result<ClientCorrelation, ProtocolError> {
        let payload = self.unseal(binding, true)?;
        let mut r = Reader::new("correlation", &payload);
        let shares = graph
            .edges
            .iter()
            .map(|e| r.packed("share", e.len(), e.ring.bits()))
            .collect::<Result<Vec<_>, CodecError>>()?;
        let products = read_vectors(&mut r)?;
        let count = r.count("labels", MAX_ENTRIES)?;
        let labels = (0..count)
            .map(|_| {
                let key = (NodeId(r.u32("node")? as usize), r.u32("chunk")? as usize);
                let blocks = blocks_from_bytes(r.bytes("labels")?).ok_or(CodecError::Invalid { what: "labels" })?;
                Ok((key, blocks))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let count = r.count("index", MAX_ENTRIES)?;
        let index = (0..count)
            .map(|_| {
                Ok((NodeId(r.u32("node")? as usize), r.u32("chunk")? as usize, r.u64("at")?, r.u64("len")? as usize))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let pools = read_pools(&mut r)?;
        r.finish()?;
        let tables = FileTables::open(&self.tables_path(&binding.session), index)?;
        Ok(ClientCorrelation::restore(binding.session, shares, products, labels, pools, Box::new(tables)))
    }

    /// Seals the server's side.
    ///
    /// # Errors
    /// A full disk, mostly.
    pub fn put_server(&self, binding: &Binding, correlation: &ServerCorrelation) -> Result<(), ProtocolError> {
        let export = correlation.export();
        let mut w = Writer::new();
        w.raw(&export.delta.to_bytes()).raw(&export.label_seed.to_bytes());
        write_vectors(&mut w, &export.linear);
        write_vectors(&mut w, &export.products);
        w.u64(export.masks.len() as u64);
        for (node, left, right) in &export.masks {
            w.u32(node.0 as u32);
            write_words(&mut w, left);
            write_words(&mut w, right);
        }
        w.u64(export.permute.len() as u64);
        for ((node, chunk), bits) in &export.permute {
            w.u32(node.0 as u32).u32(*chunk as u32).bytes(bits);
        }
        correlation.with_pools(|pools| write_pools(&mut w, pools));
        self.seal(binding, false, Zeroizing::new(w.finish()))
    }

    /// Spends the server's side.
    ///
    /// # Errors
    /// [`ProtocolError::Spent`] if there is none (any more), or a damaged file.
    pub fn take_server(&self, binding: &Binding) -> Result<ServerCorrelation, ProtocolError> {
        let payload = self.unseal(binding, false)?;
        let mut r = Reader::new("correlation", &payload);
        let (delta, label_seed) = (Block::from_bytes(r.array("delta")?), Block::from_bytes(r.array("seed")?));
        let (linear, products) = (read_vectors(&mut r)?, read_vectors(&mut r)?);
        let count = r.count("masks", MAX_ENTRIES)?;
        let masks = (0..count)
            .map(|_| Ok((NodeId(r.u32("node")? as usize), read_words(&mut r)?, read_words(&mut r)?)))
            .collect::<Result<Vec<_>, CodecError>>()?;
        let count = r.count("permute bits", MAX_ENTRIES)?;
        let permute = (0..count)
            .map(|_| {
                let key = (NodeId(r.u32("node")? as usize), r.u32("chunk")? as usize);
                Ok((key, r.bytes("permute bits")?.to_vec()))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let pools = read_pools(&mut r)?;
        r.finish()?;
        let export = ServerExport { delta, label_seed, linear, products, masks, permute };
        Ok(ServerCorrelation::restore(binding.session, export, pools))
    }

    /// Removes the tables of a session that is over.
    pub fn remove_tables(&self, session: &SessionId) {
        // Best effort: tables alone are worthless, and a missing file is what is wanted.
        let _ = fs::remove_file(self.tables_path(session));
    }
}

/// Magic, version, party, digest, tokens, settings, session, nonce.
const HEADER: usize = 8 + 2 + 1 + 32 + 4 + Settings::BYTES + 16 + 24;

fn write_header(binding: &Binding, client: bool, nonce: &[u8; 24]) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(MAGIC)
        .u16(VERSION)
        .u8(client as u8)
        .raw(&binding.digest)
        .u32(binding.tokens)
        .raw(&binding.settings.to_bytes())
        .raw(&binding.session)
        .raw(nonce);
    w.finish()
}

fn read_header(bytes: &[u8], client: bool) -> Result<Binding, CodecError> {
    let mut r = Reader::new("correlation header", bytes);
    if &r.array::<8>("magic")? != MAGIC || r.u16("version")? != VERSION || r.u8("party")? != client as u8 {
        return Err(CodecError::Invalid { what: "the header of a correlation" });
    }
    Ok(Binding {
        digest: r.array("digest")?,
        tokens: r.u32("tokens")?,
        settings: Settings::from_bytes(r.array("settings")?)?,
        session: r.array("session")?,
    })
}

fn write_words(w: &mut Writer, values: &[u64]) {
    w.u64(values.len() as u64);
    values.iter().for_each(|&v| {
        w.u64(v);
    });
}

fn read_words(r: &mut Reader<'_>) -> Result<Vec<u64>, CodecError> {
    let count = r.count("a vector", r.remaining() / 8)?;
    (0..count).map(|_| r.u64("a vector")).collect()
}

/// 0, or 1 and what is left of the COTs of both directions.
fn write_pools(w: &mut Writer, pools: Option<&CotPools>) {
    w.u8(u8::from(pools.is_some()));
    if let Some(CotPools { receives, sends }) = pools {
        w.raw(&sends.delta().to_bytes()).bytes(blocks_as_bytes(&sends.left())).bytes(blocks_as_bytes(&receives.left()));
    }
}

fn read_pools(r: &mut Reader<'_>) -> Result<Option<CotPools>, ProtocolError> {
    if r.u8("whether there are OTs")? == 0 {
        return Ok(None);
    }
    let delta = Block::from_bytes(r.array("delta")?);
    let mut blocks = || blocks_from_bytes(r.bytes("OTs")?).ok_or(CodecError::Invalid { what: "OTs" });
    Ok(Some(CotPools::restore(delta, blocks()?, blocks()?)?))
}

fn write_vectors(w: &mut Writer, vectors: &[(NodeId, Vec<u64>)]) {
    w.u64(vectors.len() as u64);
    for (node, values) in vectors {
        w.u32(node.0 as u32);
        write_words(w, values);
    }
}

fn read_vectors(r: &mut Reader<'_>) -> Result<Vec<(NodeId, Vec<u64>)>, CodecError> {
    let count = r.count("vectors", MAX_ENTRIES)?;
    (0..count).map(|_| Ok((NodeId(r.u32("node")? as usize), read_words(r)?))).collect()
}

/// A new file that only its owner can read.
fn open_private(path: &Path) -> Result<File, ProtocolError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|e| failed("create", path, e))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ProtocolError> {
    let mut file = open_private(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| failed("write", path, e))
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
    use super::*;
    use crate::arith::sample::SecureRng;

    fn binding() -> Binding {
        Binding { digest: [7; 32], tokens: 8, settings: Settings::EXACT, session: [9; 16] }
    }

    #[test]
    fn a_server_correlation_is_sealed_and_spent_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = CorrelationStore::open(dir.path()).unwrap();
        let mut rng = SecureRng::from_os().unwrap();
        let correlation = ServerCorrelation::draw([9; 16], &mut rng);
        let delta = correlation.secrets.delta;
        store.put_server(&binding(), &correlation).unwrap();
        assert_eq!(store.unspent(&[7; 32], 8, Settings::EXACT, false).unwrap(), vec![[9; 16]]);
        let shared = Settings { methods: crate::protocol::Methods::SHARED, ..Settings::EXACT };
        assert!(store.unspent(&[8; 32], 8, Settings::EXACT, false).unwrap().is_empty());
        assert!(store.unspent(&[7; 32], 8, shared, false).unwrap().is_empty());
        // Neither the offset nor its parts are in the file.
        let bytes = fs::read(store.path(&[9; 16], "server")).unwrap();
        assert!(!bytes.windows(8).any(|w| w == &delta.to_bytes()[..8]));
        // Another process, same key.
        let store = CorrelationStore::open(dir.path()).unwrap();
        let back = store.take_server(&binding()).unwrap();
        assert!(back.secrets.delta == delta);
        assert!(matches!(store.take_server(&binding()), Err(ProtocolError::Spent)));
    }

    #[test]
    fn a_flipped_byte_or_another_binding_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = CorrelationStore::open(dir.path()).unwrap();
        let mut rng = SecureRng::from_os().unwrap();
        let path = store.path(&[9; 16], "server");
        for at in [0, 12, HEADER - 1, HEADER, HEADER + 5] {
            store.put_server(&binding(), &ServerCorrelation::draw([9; 16], &mut rng)).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(store.take_server(&binding()).is_err(), "byte {at}");
        }
        store.put_server(&binding(), &ServerCorrelation::draw([9; 16], &mut rng)).unwrap();
        assert!(store.take_server(&Binding { tokens: 16, ..binding() }).is_err());
    }

    #[test]
    #[cfg(unix)]
    fn the_key_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        CorrelationStore::open(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join("key"), [0; 31]).unwrap();
        assert!(CorrelationStore::open(dir.path()).is_err());
    }
}
