//! Garbled tables on the evaluator's disk: written in the order they arrive, read back in the order of the layers.
//!
//! Tables are pseudorandom to whoever holds them without the wire labels, which stay in memory (`SECURITY.md`). The file of
//! [`FileTables::temporary`] has no name: it goes with the process, however it ends.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    model::NodeId,
    protocol::{ProtocolError, TableStore},
};

/// A spool file.
pub struct FileTables {
    dir: PathBuf,
    inner: Mutex<Inner>,
    written: Arc<AtomicU64>,
    /// Whether chunks have digests: those of a file that another process reads.
    checked: bool,
}

struct Inner {
    file: File,
    end: u64,
    index: HashMap<(NodeId, usize), TableChunk>,
    /// The name of a file that is not kept yet.
    leftover: Option<PathBuf>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(path) = &self.leftover {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where a chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChunk {
    /// Its node.
    pub node: NodeId,
    /// Its number within the node.
    pub chunk: usize,
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: usize,
    /// The first half of the blake3 of its bytes; zero in a nameless file.
    pub digest: [u8; 16],
}

impl FileTables {
    /// A nameless file in `dir`; `written` counts its bytes.
    ///
    /// # Errors
    /// A directory that does not exist or cannot be written.
    pub fn temporary(dir: &Path, written: Arc<AtomicU64>) -> Result<Self, ProtocolError> {
        let file = tempfile::tempfile_in(dir).map_err(|e| failed("create the spool for garbled tables", dir, &e))?;
        Ok(Self::over(dir, file, HashMap::new(), written, false))
    }

    /// A file for an online phase in another process, locked while it is open. It goes when this is dropped, unless
    /// [`Self::keep`] is called.
    ///
    /// # Errors
    /// A path that cannot be written.
    pub fn create(path: &Path, written: Arc<AtomicU64>) -> Result<Self, ProtocolError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).and_then(|file| file.lock().map(|()| file));
        let file = file.map_err(|e| unkept("create", path, &e))?;
        let own = Self::over(path, file, HashMap::new(), written, true);
        own.lock().leftover = Some(path.to_path_buf());
        Ok(own)
    }

    /// Opens what [`Self::create`] wrote; `index` is what [`Self::index`] gave then.
    ///
    /// # Errors
    /// A missing file, or one shorter than the index says.
    pub fn open(path: &Path, index: Vec<TableChunk>) -> Result<Self, ProtocolError> {
        let file = File::open(path).map_err(|e| unkept("open", path, &e))?;
        let length = file.metadata().map_err(|e| unkept("read", path, &e))?.len();
        if index.iter().any(|c| c.at.checked_add(c.len as u64).is_none_or(|end| end > length)) {
            return Err(ProtocolError::Spool(format!(
                "the garbled tables in {} are truncated; run the offline phase again",
                path.display()
            )));
        }
        let map: HashMap<_, _> = index.into_iter().map(|c| ((c.node, c.chunk), c)).collect();
        Ok(Self::over(path, file, map, Arc::default(), true))
    }

    fn over(
        dir: &Path,
        file: File,
        index: HashMap<(NodeId, usize), TableChunk>,
        written: Arc<AtomicU64>,
        checked: bool,
    ) -> Self {
        let inner = Mutex::new(Inner { file, end: 0, index, leftover: None });
        Self { dir: dir.to_path_buf(), inner, written, checked }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each chunk is, in the order of the file.
    pub fn index(&self) -> Vec<TableChunk> {
        let mut chunks: Vec<TableChunk> = self.lock().index.values().cloned().collect();
        chunks.sort_unstable_by_key(|c| c.at);
        chunks
    }

    /// Bytes put so far.
    pub fn len(&self) -> u64 {
        self.lock().end
    }

    /// Whether nothing was put.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the file durable and gives it another name, under which it still goes with this.
    ///
    /// # Errors
    /// A full disk, mostly.
    pub fn rename(&self, to: &Path) -> Result<(), ProtocolError> {
        let mut inner = self.lock();
        let from = inner.leftover.clone().unwrap_or_else(|| self.dir.clone());
        inner.file.sync_all().and_then(|()| std::fs::rename(&from, to)).map_err(|e| unkept("keep", to, &e))?;
        inner.leftover = Some(to.to_path_buf());
        Ok(())
    }

    /// Lets the file stay.
    pub fn keep(&self) {
        self.lock().leftover = None;
    }

    /// Reads every chunk and compares it with its digest.
    ///
    /// # Errors
    /// A chunk that is not what was written.
    pub fn verify(&self) -> Result<(), ProtocolError> {
        let mut inner = self.lock();
        let chunks: Vec<TableChunk> = inner.index.values().cloned().collect();
        chunks.iter().try_for_each(|chunk| self.read(&mut inner, chunk).map(drop))
    }

    fn read(&self, inner: &mut Inner, chunk: &TableChunk) -> Result<Vec<u8>, ProtocolError> {
        let mut tables = vec![0; chunk.len];
        let read = inner.file.seek(SeekFrom::Start(chunk.at)).and_then(|_| inner.file.read_exact(&mut tables));
        read.map_err(|e| failed("read garbled tables from", &self.dir, &e))?;
        if self.checked && digest(&tables) != chunk.digest {
            return Err(ProtocolError::Spool(format!(
                "the garbled tables in {} are damaged; run the offline phase again",
                self.dir.display()
            )));
        }
        Ok(tables)
    }
}

/// The first half of a chunk's blake3.
fn digest(tables: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(tables).as_bytes()[..16]);
    half
}

fn unkept(what: &str, path: &Path, e: &std::io::Error) -> ProtocolError {
    ProtocolError::Spool(format!(
        "cannot {what} the garbled tables {}: {e}; give --store a directory with enough room",
        path.display()
    ))
}

fn failed(what: &str, path: &Path, e: &std::io::Error) -> ProtocolError {
    ProtocolError::Spool(format!(
        "cannot {what} {}: {e}; give --spool a directory with enough room, or use --interleaved",
        path.display()
    ))
}

impl TableStore for FileTables {
    fn put(&self, node: NodeId, chunk: usize, tables: Vec<u8>) -> Result<(), ProtocolError> {
        let digest = if self.checked { digest(&tables) } else { [0; 16] };
        let mut inner = self.lock();
        let (at, len) = (inner.end, tables.len());
        let write = inner.file.seek(SeekFrom::Start(at)).and_then(|_| inner.file.write_all(&tables));
        let (unwritten, doing): (fn(&str, &Path, &std::io::Error) -> ProtocolError, _) =
            if self.checked { (unkept, "write") } else { (failed, "write garbled tables to") };
        write.map_err(|e| unwritten(doing, &self.dir, &e))?;
        inner.end += len as u64;
        inner.index.insert((node, chunk), TableChunk { node, chunk, at, len, digest });
        self.written.fetch_add(tables.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn take(&self, node: NodeId, chunk: usize) -> Result<Vec<u8>, ProtocolError> {
        let mut inner = self.lock();
        let place = inner
            .index
            .remove(&(node, chunk))
            .ok_or_else(|| ProtocolError::Missing { what: format!("the tables of node {} chunk {chunk}", node.0) })?;
        self.read(&mut inner, &place)
    }
}

impl TableStore for Arc<FileTables> {
    fn put(&self, node: NodeId, chunk: usize, tables: Vec<u8>) -> Result<(), ProtocolError> {
        (**self).put(node, chunk, tables)
    }

    fn take(&self, node: NodeId, chunk: usize) -> Result<Vec<u8>, ProtocolError> {
        (**self).take(node, chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_once_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let written = Arc::new(AtomicU64::new(0));
        let tables = FileTables::temporary(dir.path(), written.clone()).unwrap();
        for chunk in 0..5 {
            tables.put(NodeId(3), chunk, vec![chunk as u8; 100 + chunk]).unwrap();
        }
        assert_eq!(written.load(Ordering::Relaxed), 510);
        for chunk in [4, 0, 2, 1, 3] {
            assert_eq!(tables.take(NodeId(3), chunk).unwrap(), vec![chunk as u8; 100 + chunk]);
            assert!(tables.take(NodeId(3), chunk).is_err());
        }
        assert!(FileTables::temporary(&dir.path().join("absent"), written).is_err());
    }

    #[test]
    fn a_named_file_is_read_by_another_process_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (part, path) = (dir.path().join("part"), dir.path().join("tables"));
        let index = {
            let tables = FileTables::create(&part, Arc::default()).unwrap();
            tables.put(NodeId(0), 0, vec![7; 10]).unwrap();
            tables.put(NodeId(1), 0, vec![8; 20]).unwrap();
            tables.rename(&path).unwrap();
            tables.keep();
            assert_eq!((tables.len(), part.exists()), (30, false));
            tables.index()
        };
        let tables = FileTables::open(&path, index.clone()).unwrap();
        tables.verify().unwrap();
        assert_eq!(tables.take(NodeId(1), 0).unwrap(), vec![8; 20]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[29] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let tables = FileTables::open(&path, index.clone()).unwrap();
        assert!(tables.verify().unwrap_err().to_string().contains("damaged"));
        assert!(tables.take(NodeId(0), 0).is_ok() && tables.take(NodeId(1), 0).is_err());
        std::fs::write(&path, [0; 29]).unwrap();
        assert!(FileTables::open(&path, index).is_err());
    }

    #[test]
    fn a_file_that_is_not_kept_goes() {
        let dir = tempfile::tempdir().unwrap();
        for renamed in [false, true] {
            let tables = FileTables::create(&dir.path().join("part"), Arc::default()).unwrap();
            tables.put(NodeId(0), 0, vec![7; 10]).unwrap();
            if renamed {
                tables.rename(&dir.path().join("tables")).unwrap();
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            drop(tables);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_one_sentence() {
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let tables = FileTables::over(Path::new("/dev/full"), full, HashMap::new(), Arc::default(), false);
        let error = tables.put(NodeId(0), 0, vec![1; 10]).unwrap_err().to_string();
        assert!(error.contains("--spool") && error.contains("space"), "{error}");
    }
}
