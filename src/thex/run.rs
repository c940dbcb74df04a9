//! Both parties in one process.

use std::{sync::Arc, time::Instant};

use super::{Answer, ApproxModel, Result, Seen, ThexClient, ThexServer};
use crate::{
    arith::sample::SecureRng,
    engine::Backend,
    he::{
        HeCounters, ParameterSet,
        ckks::{CkksContext, CkksKeys},
    },
};

/// A client and a server in one process, their messages as bytes.
pub struct ClientAided {
    ctx: Arc<CkksContext>,
    client: ThexClient,
    server: ThexServer,
    key_bytes: u64,
}

/// One evaluation.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ClientAidedRun {
    /// Outputs of the head, as the client has them.
    pub outputs: Vec<f64>,
    /// Messages of the server; each follows one of the client.
    pub rounds: u64,
    /// Bytes from client to server, without keys.
    pub bytes_up: u64,
    /// Bytes from server to client.
    pub bytes_down: u64,
    /// Bytes of the client's keys, sent once for all evaluations.
    pub key_bytes: u64,
    /// Every value that the client has decrypted.
    pub seen: Vec<Seen>,
    /// Seconds of the server.
    pub server_seconds: f64,
    /// Seconds of the client.
    pub client_seconds: f64,
    /// Homomorphic work of both.
    pub counters: HeCounters,
}

impl ClientAided {
    /// Makes both parties, for sequences of up to `tokens` rows; keys go over the wire form.
    ///
    /// # Errors
    /// If model, parameters and sequence do not fit each other.
    pub fn new(
        backend: Arc<dyn Backend>,
        params: ParameterSet,
        model: Arc<ApproxModel>,
        tokens: usize,
        rng: &mut SecureRng,
    ) -> Result<Self> {
        let ctx = CkksContext::new(backend, params);
        let mut client = ThexClient::new(ctx.clone(), model.shape()?, tokens, rng.fork())?;
        let bytes = client.keys()?.to_bytes(ctx.params());
        let keys = CkksKeys::from_bytes(ctx.params(), &client.steps(), &bytes)?;
        let server = ThexServer::new(ctx.clone(), model, tokens, &keys, rng.fork())?;
        Ok(Self { ctx, client, server, key_bytes: bytes.len() as u64 })
    }

    /// Evaluates `rows`, `[length][hidden]`: sums of the embeddings before their norm.
    ///
    /// # Errors
    /// If a value leaves the range of the approximation, or there are too many rows.
    pub fn evaluate(&mut self, rows: &[f32]) -> Result<ClientAidedRun> {
        let before = self.ctx.counters();
        let (mut rounds, mut bytes_up, mut bytes_down) = (0, 0, 0);
        let (mut server_seconds, mut client_seconds) = (0.0, 0.0);
        let started = Instant::now();
        let mut message = self.client.start(rows)?.to_bytes();
        client_seconds += started.elapsed().as_secs_f64();
        let outputs = loop {
            bytes_up += message.len() as u64;
            let started = Instant::now();
            let answer = self.server.receive(&message)?.to_bytes();
            server_seconds += started.elapsed().as_secs_f64();
            (rounds, bytes_down) = (rounds + 1, bytes_down + answer.len() as u64);
            let started = Instant::now();
            let reply = self.client.receive(&answer)?;
            client_seconds += started.elapsed().as_secs_f64();
            match reply {
                Answer::Reply(next) => message = next.to_bytes(),
                Answer::Done(outputs) => break outputs,
            }
        };
        Ok(ClientAidedRun {
            outputs,
            rounds,
            bytes_up,
            bytes_down,
            key_bytes: self.key_bytes,
            seen: self.client.seen().to_vec(),
            server_seconds,
            client_seconds,
            counters: self.ctx.counters().since(&before),
        })
    }
}
