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
        Arc, Mutex, PoisonError,
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
}

struct Inner {
    file: File,
    end: u64,
    index: HashMap<(NodeId, usize), (u64, usize)>,
}

impl FileTables {
    /// A nameless file in `dir`; `written` counts its bytes.
    ///
    /// # Errors
    /// A directory that does not exist or cannot be written.
    pub fn temporary(dir: &Path, written: Arc<AtomicU64>) -> Result<Self, ProtocolError> {
        let file = tempfile::tempfile_in(dir).map_err(|e| failed("create the spool for garbled tables", dir, &e))?;
        Ok(Self::over(dir, file, HashMap::new(), written))
    }

    /// A file that stays, for an online phase in another process.
    ///
    /// # Errors
    /// A path that cannot be written.
    pub fn create(path: &Path, written: Arc<AtomicU64>) -> Result<Self, ProtocolError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(|e| failed("create the spool for garbled tables", path, &e))?;
        Ok(Self::over(path, file, HashMap::new(), written))
    }

    /// Opens what [`Self::create`] wrote; `index` is what [`Self::index`] gave then.
    ///
    /// # Errors
    /// A missing file, or one shorter than the index says.
    pub fn open(path: &Path, index: Vec<(NodeId, usize, u64, usize)>) -> Result<Self, ProtocolError> {
        let file = File::open(path).map_err(|e| failed("open the garbled tables", path, &e))?;
        let length = file.metadata().map_err(|e| failed("read the garbled tables", path, &e))?.len();
        let map: HashMap<_, _> = index.into_iter().map(|(n, c, at, len)| ((n, c), (at, len))).collect();
        if map.values().any(|&(at, len)| at.checked_add(len as u64).is_none_or(|end| end > length)) {
            return Err(ProtocolError::Spool(format!(
                "the garbled tables in {} are truncated; run the offline phase again",
                path.display()
            )));
        }
        Ok(Self::over(path, file, map, Arc::default()))
    }

    fn over(dir: &Path, file: File, index: HashMap<(NodeId, usize), (u64, usize)>, written: Arc<AtomicU64>) -> Self {
        Self { dir: dir.to_path_buf(), inner: Mutex::new(Inner { file, end: 0, index }), written }
    }

    /// Where each chunk is: node, chunk, offset, length.
    pub fn index(&self) -> Vec<(NodeId, usize, u64, usize)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.index.iter().map(|(&(n, c), &(at, len))| (n, c, at, len)).collect()
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// A full disk, mostly.
    pub fn sync(&self) -> Result<(), ProtocolError> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.file.sync_all().map_err(|e| failed("write garbled tables to", &self.dir, &e))
    }
}

fn failed(what: &str, path: &Path, e: &std::io::Error) -> ProtocolError {
    ProtocolError::Spool(format!(
        "cannot {what} {}: {e}; give --spool a directory with enough room, or use --interleaved",
        path.display()
    ))
}

impl TableStore for FileTables {
    fn put(&self, node: NodeId, chunk: usize, tables: Vec<u8>) -> Result<(), ProtocolError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let at = inner.end;
        let write = inner.file.seek(SeekFrom::Start(at)).and_then(|_| inner.file.write_all(&tables));
        write.map_err(|e| failed("write garbled tables to", &self.dir, &e))?;
        inner.end += tables.len() as u64;
        inner.index.insert((node, chunk), (at, tables.len()));
        self.written.fetch_add(tables.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn take(&self, node: NodeId, chunk: usize) -> Result<Vec<u8>, ProtocolError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, len) = inner
            .index
            .remove(&(node, chunk))
            .ok_or_else(|| ProtocolError::Missing { what: format!("the tables of node {} chunk {chunk}", node.0) })?;
        let mut tables = vec![0; len];
        let read = inner.file.seek(SeekFrom::Start(at)).and_then(|_| inner.file.read_exact(&mut tables));
        read.map_err(|e| failed("read garbled tables from", &self.dir, &e))?;
        Ok(tables)
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
        let path = dir.path().join("tables");
        let index = {
            let tables = FileTables::create(&path, Arc::default()).unwrap();
            tables.put(NodeId(0), 0, vec![7; 10]).unwrap();
            tables.put(NodeId(1), 0, vec![8; 20]).unwrap();
            tables.sync().unwrap();
            tables.index()
        };
        let tables = FileTables::open(&path, index.clone()).unwrap();
        assert_eq!(tables.take(NodeId(1), 0).unwrap(), vec![8; 20]);
        std::fs::write(&path, [0; 29]).unwrap();
        assert!(FileTables::open(&path, index).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_one_sentence() {
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let tables = FileTables::over(Path::new("/dev/full"), full, HashMap::new(), Arc::default());
        let error = tables.put(NodeId(0), 0, vec![1; 10]).unwrap_err().to_string();
        assert!(error.contains("--spool") && error.contains("space"), "{error}");
    }
}
