//! The client's half against a server over TCP, with a cache of manifests.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    ReportError, file,
    run::{Connect, Connected, hex},
};
use crate::{
    engine::Backend,
    model::ClientModel,
    net::{
        Meter, Role, Versions,
        handshake::greet,
        session::{ClientConnection, ClientSession, Recorder, SessionError},
        tcp::{TcpOptions, connect},
    },
};

/// Time for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connects to a server.
pub struct RemoteConnect {
    /// Its address, HOST:PORT.
    pub server: String,
    /// The digest that the model must have.
    pub expected: Option<[u8; 32]>,
    /// Where manifests are kept; `None` keeps none.
    pub cache: Option<ManifestCache>,
    /// Where the client computes.
    pub backend: Arc<dyn Backend>,
    /// Collects spans.
    pub recorder: Recorder,
    /// What went on, for the report.
    pub notices: Vec<String>,
}

impl Connect for RemoteConnect {
    fn connect(&mut self) -> Result<Connected, ReportError> {
        let meter = Meter::new(Role::Client);
        let mut channel = connect(&self.server, &TcpOptions::default())?;
        let agreed = greet(&mut channel, &meter, Versions::CURRENT, HANDSHAKE)?;
        let cached = self.cache.as_ref().and_then(|c| c.get(self.expected, &self.server));
        let digest = cached.as_ref().map(|bytes| *blake3::hash(bytes).as_bytes());
        let (connection, offer) =
            ClientConnection::open(channel, agreed.session, meter, digest, self.recorder.clone())?;
        if let Some(expected) = self.expected.filter(|e| *e != offer.digest) {
            return Err(SessionError::Digest { expected: hex(&expected), found: hex(&offer.digest) }.into());
        }
        let manifest = match (offer.manifest, cached) {
            (Some(manifest), _) => {
                if let Some(Err(e)) = self.cache.as_ref().map(|c| c.put(&manifest, &self.server)) {
                    self.notices.push(format!("the manifest is not kept: {e}"));
                }
                manifest
            }
            (None, Some(cached)) => cached,
            (None, None) => return Err(SessionError::Manifest { reason: "it did not come".into() }.into()),
        };
        let model = ClientModel::from_manifest(&manifest)?;
        let session = ClientSession::new(connection, model.manifest().spec.clone(), self.backend.clone())?;
        Ok(Connected { session, model })
    }

    fn link(&self) -> String {
        format!("tcp {}", self.server)
    }

    fn notices(&self) -> Vec<String> {
        self.notices.clone()
    }
}

/// A directory of manifests by digest, and of the digest that each server last had.
pub struct ManifestCache {
    dir: PathBuf,
}

impl ManifestCache {
    /// A cache in `dir`, which is made when the first manifest is kept.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// The user's cache directory: `heliostat` in `XDG_CACHE_HOME` or in `~/.cache`.
    pub fn default_dir() -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache"))).map(|p| p.join("heliostat"))
    }

    fn manifest_path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.manifest"))
    }

    fn pointer_path(&self, server: &str) -> PathBuf {
        let name: String =
            server.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
        self.dir.join(format!("{name}.server"))
    }

    /// The manifest of this digest, or else the one that the server had last. One whose bytes do not have the digest of its
    /// name is not there.
    pub fn get(&self, digest: Option<[u8; 32]>, server: &str) -> Option<Vec<u8>> {
        let name = match digest {
            Some(digest) => hex(&digest),
            None => hex(&parse_digest(std::fs::read_to_string(self.pointer_path(server)).ok()?.trim()).ok()?),
        };
        let bytes = std::fs::read(self.manifest_path(&name)).ok()?;
        (blake3::hash(&bytes).to_hex().as_str() == name).then_some(bytes)
    }

    /// Keeps a manifest.
    ///
    /// # Errors
    /// [`ReportError::Write`].
    pub fn put(&self, manifest: &[u8], server: &str) -> Result<(), ReportError> {
        let failed = |source| ReportError::Write { path: self.dir.clone(), source };
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let digest = blake3::hash(manifest).to_hex();
        file::write_whole(&self.manifest_path(&digest), manifest)?;
        file::write_whole(&self.pointer_path(server), digest.as_bytes())
    }
}

/// Reads 64 hexadecimal digits.
///
/// # Errors
/// [`ReportError::BadDigest`].
pub fn parse_digest(text: &str) -> Result<[u8; 32], ReportError> {
    blake3::Hash::from_hex(text).map(|h| *h.as_bytes()).map_err(|_| ReportError::BadDigest { given: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_found_by_digest_and_by_server_and_never_when_altered() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ManifestCache::new(&dir.path().join("new"));
        assert!(cache.get(None, "[::1]:7").is_none());
        cache.put(b"manifest", "[::1]:7").unwrap();
        let digest = *blake3::hash(b"manifest").as_bytes();
        assert_eq!(cache.get(None, "[::1]:7").unwrap(), b"manifest");
        assert_eq!(cache.get(Some(digest), "elsewhere:1").unwrap(), b"manifest");
        assert!(cache.get(None, "elsewhere:1").is_none());
        std::fs::write(cache.manifest_path(&hex(&digest)), b"manifesT").unwrap();
        assert!(cache.get(None, "[::1]:7").is_none() && cache.get(Some(digest), "[::1]:7").is_none());
    }

    #[test]
    fn digests() {
        assert_eq!(parse_digest(&"0a".repeat(32)).unwrap(), [10; 32]);
        for bad in ["", "xyz", &"0".repeat(63), "../../etc/passwd"] {
            assert!(parse_digest(bad).unwrap_err().to_string().contains("64 hexadecimal digits"));
        }
    }
}
