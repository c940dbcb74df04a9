//! Both parties in one process: a server on a thread for each connection, over a channel in memory.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::Scope,
};

use super::{
    ReportError,
    run::{Connect, Connected},
};
use crate::{
    engine::Backend,
    he::HeCounters,
    model::{ClientModel, Lookup, Manifest, Model},
    net::{
        Link, Meter, NetError, Role, SessionId,
        memory::DEFAULT_QUEUE_BYTES,
        memory_pair,
        session::{ClientConnection, ClientSession, Recorder, ServerContext, SessionError, serve_connection},
        shape::shape,
    },
};

/// The session's name on a channel in memory, which carries one session only.
const SESSION: SessionId = *b"heliostat  local";

/// Connects to a server of this process.
pub struct LocalConnect<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    server: &'env ServerContext,
    backend: Arc<dyn Backend>,
    link: Link,
    recorder: Recorder,
}

/// What a server needs to serve `model`: buckets up to that of `max_tokens`. With a private lookup its clients get a manifest
/// without the embedding block.
///
/// # Errors
/// A model whose description cannot be built.
pub fn server_context(
    model: &Model,
    backend: Arc<dyn Backend>,
    max_tokens: usize,
    lookup: Lookup,
) -> Result<ServerContext, ReportError> {
    let positions = model.manifest().positions();
    let limit = max_tokens.min(model.manifest().max_tokens);
    // The model's own limit may lie between two buckets; the text's bucket is then the wider one, if it has positions.
    let largest = crate::model::bucket(limit, positions).unwrap_or(positions);
    let context = |manifest: Manifest| -> Result<ServerContext, ReportError> {
        let manifest = manifest.to_bytes()?;
        Ok(ServerContext::new(model.spec().clone(), model.weights().clone(), manifest, backend, largest)?)
    };
    Ok(match lookup {
        Lookup::Public => context(model.manifest().clone())?,
        Lookup::Private => {
            context(model.manifest().without_tables())?.with_private_lookup(model.weights_for(Lookup::Private)?)
        }
    })
}

impl<'scope, 'env> LocalConnect<'scope, 'env> {
    /// Connections to `server` over `link`; its threads live in `scope`.
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        server: &'env ServerContext,
        backend: Arc<dyn Backend>,
        link: Link,
        recorder: Recorder,
    ) -> Self {
        Self { scope, server, backend, link, recorder }
    }
}

impl Connect for LocalConnect<'_, '_> {
    fn connect(&mut self) -> Result<Connected, ReportError> {
        let (client, server) = memory_pair(DEFAULT_QUEUE_BYTES);
        let client = if self.link == Link::UNLIMITED { client } else { shape(client, self.link)? };
        let (context, recorder) = (self.server, self.recorder.clone());
        let serve = move || {
            // A panic drops the channel, which the client reports. Other errors reach the client in the server's words.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                serve_connection(context, server, SESSION, Meter::new(Role::Server), &recorder)
            }));
        };
        std::thread::Builder::new()
            .name("server".into())
            .spawn_scoped(self.scope, serve)
            .map_err(|e| SessionError::Thread(e.to_string()))?;
        let recorder = self.recorder.clone();
        let (connection, offer) = ClientConnection::open(client, SESSION, Meter::new(Role::Client), None, recorder)?;
        let manifest = offer.manifest.ok_or(NetError::Closed { reason: "no manifest came".into() })?;
        let model = ClientModel::from_manifest(&manifest)?;
        let session = ClientSession::new(connection, model.manifest().spec.clone(), self.backend.clone())?;
        Ok(Connected { session, model })
    }

    fn server_counters(&self) -> Option<HeCounters> {
        Some(self.server.he_counters())
    }

    fn link(&self) -> String {
        self.link.to_string()
    }
}
