//! The client's shares, all fixed offline: the invariant of the protocol.
//!
//! Shares of the client's inputs, of garbled outputs and of restored products are masks, uniform over the edge's ring and
//! drawn at the start. Shares of linear outputs come from HE. Shares of row sums follow from those of the rows.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Plan, ProtocolError, Result};
use crate::{
    arith::{
        ShareModulus,
        sample::{SecureRng, uniform_ring},
    },
    model::{EdgeId, Graph, Op},
};

/// Shares of all edges of a graph, published as they become known; lanes wait for what they need.
pub struct ShareBoard {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    shares: Vec<Option<Arc<SecretVec>>>,
    version: u64,
    failed: bool,
}

/// Ring elements that are wiped when dropped.
pub struct SecretVec(Vec<u64>);

impl SecretVec {
    /// Takes ownership of secret values.
    pub fn new(values: Vec<u64>) -> Self {
        Self(values)
    }
}

impl std::ops::Deref for SecretVec {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl std::ops::DerefMut for SecretVec {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

impl ZeroizeOnDrop for SecretVec {}

impl Drop for SecretVec {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// `count` uniform elements of a ring.
pub fn uniform(ring: ShareModulus, count: usize, rng: &mut SecureRng) -> Vec<u64> {
    let mut out = vec![0; count];
    uniform_ring(rng, ring, &mut out);
    out
}

/// Every element times `2^bits`.
pub fn shifted(values: &[u64], bits: u32, ring: ShareModulus) -> Vec<u64> {
    let factor = ring.reduce(1 << bits.min(63));
    values.iter().map(|&x| ring.mul(x, factor)).collect()
}

/// The sum of each row.
pub fn row_sums(values: &[u64], cols: usize, ring: ShareModulus) -> Vec<u64> {
    values.chunks_exact(cols).map(|row| row.iter().fold(0, |s, &x| ring.add(s, x))).collect()
}

impl ShareBoard {
    /// Draws every mask of a graph from a CSPRNG. Only outputs of local nodes are missing afterwards.
    pub fn draw(plan: &Plan, rng: &mut SecureRng) -> Self {
        let graph = &plan.graph;
        let mut shares: Vec<Option<Arc<SecretVec>>> = vec![None; graph.edges.len()];
        let mut mask = |id: EdgeId| {
            let edge = graph.edge(id);
            shares[id.0] = Some(Arc::new(SecretVec(uniform(edge.ring, edge.len(), rng))));
        };
        mask(graph.embedding);
        graph.pool.into_iter().for_each(&mut mask);
        graph.iter().filter(|(id, _)| !plan.is_local(*id)).for_each(|(_, n)| mask(n.output));
        let board = Self { state: Mutex::new(State { shares, version: 0, failed: false }), changed: Condvar::new() };
        board.follow(graph);
        board
    }

    /// All shares at once, as read back from a store.
    pub fn restore(shares: Vec<Vec<u64>>) -> Self {
        let shares = shares.into_iter().map(|s| Some(Arc::new(SecretVec(s)))).collect();
        Self { state: Mutex::new(State { shares, version: 0, failed: false }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock means that another lane panicked; its data are still consistent (single assignments).
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The share of an edge if it is known.
    pub fn get(&self, edge: EdgeId) -> Option<Arc<SecretVec>> {
        self.lock().shares.get(edge.0).cloned().flatten()
    }

    /// The share of an edge that must be known by now.
    ///
    /// # Errors
    /// [`ProtocolError::Missing`].
    pub fn expect(&self, graph: &Graph, edge: EdgeId) -> Result<Arc<SecretVec>> {
        self.get(edge).ok_or_else(|| ProtocolError::Missing { what: format!("the share of {}", graph.edge(edge).name) })
    }

    /// Publishes the share of an edge and of what follows from it alone.
    pub fn publish(&self, graph: &Graph, edge: EdgeId, share: Vec<u64>) {
        if let Some(slot) = self.lock().shares.get_mut(edge.0) {
            *slot = Some(Arc::new(SecretVec(share)));
        }
        self.follow(graph);
    }

    /// What each party computes alone from known shares, without weights: row sums, products with powers of two.
    fn follow(&self, graph: &Graph) {
        let mut state = self.lock();
        for node in &graph.nodes {
            let (Op::RowSum { input } | Op::ShiftLeft { input, .. }) = node.op else { continue };
            if state.shares[node.output.0].is_none()
                && let Some(values) = state.shares[input.0].clone()
            {
                let edge = graph.edge(input);
                let share = match node.op {
                    Op::ShiftLeft { bits, .. } => shifted(&values, bits, edge.ring),
                    _ => row_sums(&values, edge.cols, edge.ring),
                };
                state.shares[node.output.0] = Some(Arc::new(SecretVec(share)));
            }
        }
        state.version += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes every waiting lane and makes it stop.
    pub fn fail(&self) {
        self.lock().failed = true;
        self.changed.notify_all();
    }

    /// A number that grows with every publication; for [`Self::wait`].
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Sleeps until something is published after `version`.
    ///
    /// # Errors
    /// [`ProtocolError::Stopped`] if another lane failed.
    pub fn wait(&self, version: u64) -> Result<()> {
        let mut state = self.lock();
        while state.version == version && !state.failed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed { Err(ProtocolError::Stopped) } else { Ok(()) }
    }
}
