//! The client's shares, all fixed offline: the invariant of the protocol.
//!
//! Shares of the client's inputs, of garbled outputs and of restored products are masks, uniform over the edge's ring and
//! drawn at the start. Shares of linear outputs come from HE. Shares of row sums follow from those of the rows.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Plan, ProtocolError, Result, pack_ring, unpack_ring};
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

/// What all masks of one inference are derived from, each edge's by a generator of its own. Wiped when dropped.
pub struct MaskSeed([u8; 32]);

impl MaskSeed {
    /// A fresh one.
    pub fn draw(rng: &mut SecureRng) -> Self {
        Self(rng.bytes32())
    }

    /// The mask of an edge, uniform over its ring.
    fn mask(&self, graph: &Graph, id: EdgeId) -> SecretVec {
        let mut seed = *blake3::keyed_hash(&self.0, &(id.0 as u64).to_le_bytes()).as_bytes();
        let mut rng = SecureRng::from_seed(seed);
        seed.zeroize();
        let edge = graph.edge(id);
        SecretVec(uniform(edge.ring, edge.len(), &mut rng))
    }
}

impl ZeroizeOnDrop for MaskSeed {}

impl Drop for MaskSeed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Secret ring elements at the bits of their ring, wiped when dropped: for what waits.
pub struct PackedShare {
    bytes: Zeroizing<Vec<u8>>,
    count: usize,
    ring: ShareModulus,
}

impl PackedShare {
    /// Packs elements of a ring.
    pub fn new(values: &[u64], ring: ShareModulus) -> Self {
        Self { bytes: Zeroizing::new(pack_ring(values, ring)), count: values.len(), ring }
    }

    /// Bytes that `count` elements of a ring take.
    pub fn bytes(count: usize, ring: ShareModulus) -> u64 {
        count as u64 * u64::from(ring.bits()) / 8 + 1
    }

    /// The elements.
    ///
    /// # Errors
    /// None, as nothing but [`Self::new`] makes one.
    pub fn unpack(&self) -> Result<SecretVec> {
        Ok(SecretVec(unpack_ring(&self.bytes, self.count, self.ring)?))
    }
}

/// Where the client's shares come from that it encrypts.
pub trait ShareSource {
    /// The share of an edge in one of the inferences that are prepared together, the first where there is one.
    ///
    /// # Errors
    /// [`ProtocolError::Missing`] if it is not known yet.
    fn share(&self, graph: &Graph, edge: EdgeId, inference: usize) -> Result<Arc<SecretVec>>;
}

impl ShareSource for ShareBoard {
    fn share(&self, graph: &Graph, edge: EdgeId, _: usize) -> Result<Arc<SecretVec>> {
        self.expect(graph, edge)
    }
}

/// The client's part of the linear layers that were prepared together, for one inference: the seed of its masks, and its shares
/// of the results.
pub struct ClientLinear {
    seed: MaskSeed,
    results: Vec<(EdgeId, PackedShare)>,
}

impl ClientLinear {
    /// An inference of which nothing is known but that its masks will be drawn.
    pub fn draw(rng: &mut SecureRng) -> Self {
        Self { seed: MaskSeed::draw(rng), results: Vec::new() }
    }

    /// Keeps its share of a linear result.
    pub(super) fn put(&mut self, graph: &Graph, edge: EdgeId, share: &[u64]) {
        self.results.push((edge, PackedShare::new(share, graph.edge(edge).ring)));
    }

    /// The share of an edge as [`ShareBoard`] would have it.
    fn share(&self, graph: &Graph, edge: EdgeId) -> Result<SecretVec> {
        if let Some((_, share)) = self.results.iter().find(|(known, _)| *known == edge) {
            return share.unpack();
        }
        match graph.nodes.iter().find(|node| node.output == edge).map(|node| &node.op) {
            Some(Op::Linear { .. }) => {
                Err(ProtocolError::Missing { what: format!("the share of {}", graph.edge(edge).name) })
            }
            Some(op @ (Op::RowSum { input } | Op::ShiftLeft { input, .. })) => {
                Ok(SecretVec(local(graph, op, *input, &self.share(graph, *input)?)))
            }
            _ => Ok(self.seed.mask(graph, edge)),
        }
    }
}

impl ShareSource for Vec<ClientLinear> {
    fn share(&self, graph: &Graph, edge: EdgeId, inference: usize) -> Result<Arc<SecretVec>> {
        let missing = || ProtocolError::Missing { what: format!("inference {inference} of those prepared together") };
        Ok(Arc::new(self.get(inference).ok_or_else(missing)?.share(graph, edge)?))
    }
}

/// What each party computes alone from its share of `input`, without weights.
fn local(graph: &Graph, op: &Op, input: EdgeId, values: &[u64]) -> Vec<u64> {
    let edge = graph.edge(input);
    match op {
        Op::ShiftLeft { bits, .. } => shifted(values, *bits, edge.ring),
        _ => row_sums(values, edge.cols, edge.ring),
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
        Self::from_seed(plan, &MaskSeed::draw(rng))
    }

    /// The same masks as the seed gives everywhere else.
    fn from_seed(plan: &Plan, seed: &MaskSeed) -> Self {
        let graph = &plan.graph;
        let mut shares: Vec<Option<Arc<SecretVec>>> = vec![None; graph.edges.len()];
        let mut mask = |id: EdgeId| shares[id.0] = Some(Arc::new(seed.mask(graph, id)));
        mask(graph.embedding);
        graph.pool.into_iter().for_each(&mut mask);
        graph.iter().filter(|(id, _)| !plan.is_local(*id)).for_each(|(_, n)| mask(n.output));
        let board = Self { state: Mutex::new(State { shares, version: 0, failed: false }), changed: Condvar::new() };
        board.follow(graph);
        board
    }

    /// The masks of an inference whose linear layers were prepared before, and its shares of their results.
    ///
    /// # Errors
    /// As [`PackedShare::unpack`].
    pub fn after(plan: &Plan, linear: &ClientLinear) -> Result<Self> {
        let board = Self::from_seed(plan, &linear.seed);
        for (edge, share) in &linear.results {
            board.publish(&plan.graph, *edge, share.unpack()?.to_vec());
        }
        Ok(board)
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
                state.shares[node.output.0] = Some(Arc::new(SecretVec(local(graph, &node.op, input, &values))));
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
