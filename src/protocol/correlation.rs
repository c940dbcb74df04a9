//! What each party keeps between the offline and the online phase of one inference.
//!
//! Each correlation serves one inference. [`ClientCorrelation::spend`] and [`ServerCorrelation::spend`] mark it used before
//! the first byte that depends on it is revealed; a second use is an error.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{ClientLinear, PackedShare, Plan, ProtocolError, Result, SecretVec, ShareBoard};
use crate::{
    arith::sample::SecureRng,
    model::{Graph, NodeId},
    mpc::{
        block::Block,
        ot::{CotReceiverPool, CotSenderPool},
    },
};

/// Identifies one inference of a connection; part of every frame and of every hash key.
pub type SessionId = [u8; 16];

/// A chunk of a node.
pub type ChunkKey = (NodeId, usize);

/// Where the evaluator keeps garbled tables until they are used. Tables alone reveal nothing to their holder: they are
/// pseudorandom without the labels of both parties (see `SECURITY.md`).
pub trait TableStore: Send + Sync {
    /// Appends a chunk.
    fn put(&self, node: NodeId, chunk: usize, tables: Vec<u8>) -> Result<()>;

    /// Takes a chunk out; each is taken once.
    fn take(&self, node: NodeId, chunk: usize) -> Result<Vec<u8>>;
}

/// Tables in memory: for tests and for the interleaved mode, in which a chunk lives for one layer.
#[derive(Default)]
pub struct MemoryTables(Mutex<HashMap<ChunkKey, Vec<u8>>>);

impl TableStore for MemoryTables {
    fn put(&self, node: NodeId, chunk: usize, tables: Vec<u8>) -> Result<()> {
        lock(&self.0).insert((node, chunk), tables);
        Ok(())
    }

    fn take(&self, node: NodeId, chunk: usize) -> Result<Vec<u8>> {
        lock(&self.0)
            .remove(&(node, chunk))
            .ok_or_else(|| ProtocolError::Missing { what: format!("the tables of node {} chunk {chunk}", node.0) })
    }
}

/// A lock whose holder panicked still guards consistent data here: every critical section is one map operation.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wire labels or other secret blocks, wiped when dropped.
pub struct SecretBlocks(Vec<Block>);

impl SecretBlocks {
    /// Takes ownership of secret blocks.
    pub fn new(blocks: Vec<Block>) -> Self {
        Self(blocks)
    }
}

impl std::ops::Deref for SecretBlocks {
    type Target = [Block];
    fn deref(&self) -> &[Block] {
        &self.0
    }
}

impl ZeroizeOnDrop for SecretBlocks {}

impl Drop for SecretBlocks {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Random COTs of both directions for the layers that are evaluated on shares, as one party holds them.
pub struct CotPools {
    /// As the party that chooses.
    pub receives: CotReceiverPool,
    /// As the party with the offset.
    pub sends: CotSenderPool,
}

impl CotPools {
    /// COTs of both directions.
    pub fn len(&self) -> usize {
        self.receives.len() + self.sends.len()
    }

    /// From the blocks that are left of both directions.
    ///
    /// # Errors
    /// An even offset.
    pub fn restore(delta: Block, sends: Vec<Block>, receives: Vec<Block>) -> Result<Self> {
        Ok(Self { receives: CotReceiverPool::new(receives), sends: CotSenderPool::new(delta, sends)? })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves COTs of both directions to pools of their own.
    pub(super) fn split(&mut self, receives: usize, sends: usize) -> Result<Self> {
        Ok(Self { receives: self.receives.split(receives)?, sends: self.sends.split(sends)? })
    }
}

/// The client's side.
pub struct ClientCorrelation {
    /// The inference.
    pub session: SessionId,
    /// The client's shares of all edges.
    pub board: ShareBoard,
    /// What the offline phase adds to the client's share of a product, in the shape of its output.
    products: Mutex<HashMap<NodeId, SecretVec>>,
    /// Labels of the client's input bits.
    labels: Mutex<HashMap<ChunkKey, SecretBlocks>>,
    pools: Mutex<Option<CotPools>>,
    /// Where the garbled tables are.
    pub tables: Box<dyn TableStore>,
    spent: AtomicBool,
}

impl ClientCorrelation {
    /// Draws the client's masks; everything else is filled in by the offline lanes.
    pub fn draw(session: SessionId, plan: &Plan, tables: Box<dyn TableStore>, rng: &mut SecureRng) -> Self {
        Self::with_board(session, ShareBoard::draw(plan, rng), tables)
    }

    /// One whose linear layers were prepared together with those of other inferences.
    ///
    /// # Errors
    /// As [`ShareBoard::after`].
    pub fn after(session: SessionId, plan: &Plan, tables: Box<dyn TableStore>, linear: &ClientLinear) -> Result<Self> {
        Ok(Self::with_board(session, ShareBoard::after(plan, linear)?, tables))
    }

    fn with_board(session: SessionId, board: ShareBoard, tables: Box<dyn TableStore>) -> Self {
        Self {
            session,
            board,
            products: Mutex::default(),
            labels: Mutex::default(),
            pools: Mutex::default(),
            tables,
            spent: AtomicBool::new(false),
        }
    }

    /// Puts a correlation back together, as read from a store.
    pub fn restore(
        session: SessionId,
        shares: Vec<Vec<u64>>,
        products: Vec<(NodeId, Vec<u64>)>,
        labels: Vec<(ChunkKey, Vec<Block>)>,
        pools: Option<CotPools>,
        tables: Box<dyn TableStore>,
    ) -> Self {
        Self {
            session,
            board: ShareBoard::restore(shares),
            products: Mutex::new(products.into_iter().map(|(k, v)| (k, SecretVec::new(v))).collect()),
            labels: Mutex::new(labels.into_iter().map(|(k, v)| (k, SecretBlocks::new(v))).collect()),
            pools: Mutex::new(pools),
            tables,
            spent: AtomicBool::new(false),
        }
    }

    /// Adds to the offline part of a product of `len` elements (its pieces come from several chunks), modulo 2^64.
    pub(super) fn with_product(&self, node: NodeId, len: usize, f: impl FnOnce(&mut [u64])) {
        with_sum(&self.products, node, len, f);
    }

    /// Takes the offline part of a product.
    pub(super) fn take_product(&self, node: NodeId) -> Result<SecretVec> {
        lock(&self.products)
            .remove(&node)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the product of node {}", node.0) })
    }

    pub(super) fn put_pools(&self, pools: CotPools) {
        *lock(&self.pools) = Some(pools);
    }

    /// Reads the COTs of the layers on shares, if there are any.
    pub fn with_pools<T>(&self, f: impl FnOnce(Option<&CotPools>) -> T) -> T {
        f(lock(&self.pools).as_ref())
    }

    /// Takes them.
    pub(super) fn take_pools(&self) -> Option<CotPools> {
        lock(&self.pools).take()
    }

    pub(super) fn put_labels(&self, key: ChunkKey, labels: Vec<Block>) {
        lock(&self.labels).insert(key, SecretBlocks::new(labels));
    }

    pub(super) fn take_labels(&self, key: ChunkKey) -> Result<SecretBlocks> {
        lock(&self.labels)
            .remove(&key)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the labels of node {} chunk {}", key.0.0, key.1) })
    }

    /// Marks the correlation used.
    ///
    /// # Errors
    /// [`ProtocolError::Spent`] the second time.
    pub fn spend(&self) -> Result<()> {
        if self.spent.swap(true, Ordering::SeqCst) { Err(ProtocolError::Spent) } else { Ok(()) }
    }

    /// Everything but the tables, for a store: shares by edge, products, labels.
    #[allow(clippy::type_complexity)]
    pub fn export(
        &self,
        graph: &Graph,
    ) -> Result<(Vec<Vec<u64>>, Vec<(NodeId, Vec<u64>)>, Vec<(ChunkKey, Vec<Block>)>)> {
        let shares = (0..graph.edges.len())
            .map(|i| Ok(self.board.expect(graph, crate::model::EdgeId(i))?.to_vec()))
            .collect::<Result<_>>()?;
        let products = lock(&self.products).iter().map(|(k, v)| (*k, v.to_vec())).collect();
        let labels = lock(&self.labels).iter().map(|(k, v)| (*k, v.to_vec())).collect();
        Ok((shares, products, labels))
    }
}

/// The server's side of a product: masks of its operands and its share of the offline part.
pub struct ServerProduct {
    /// Mask of the server's share of the left operand.
    pub left_mask: SecretVec,
    /// Mask of the server's share of the right operand; empty for squares.
    pub right_mask: SecretVec,
}

/// Secrets of the garbler: everything else of a garbling is derived from them.
pub struct GarblerSecrets {
    /// The free-XOR offset, fresh for each inference; also the correlation of the client's OTs.
    pub delta: Block,
    /// Seed of the labels of the server's input wires.
    pub label_seed: Block,
}

impl ZeroizeOnDrop for GarblerSecrets {}

impl Drop for GarblerSecrets {
    fn drop(&mut self) {
        self.delta.zeroize();
        self.label_seed.zeroize();
    }
}

/// The server's side.
pub struct ServerCorrelation {
    /// The inference.
    pub session: SessionId,
    /// Garbler's secrets.
    pub secrets: GarblerSecrets,
    /// Masks subtracted from linear results.
    linear: Mutex<HashMap<NodeId, SecretVec>>,
    masks: Mutex<HashMap<NodeId, ServerProduct>>,
    products: Mutex<HashMap<NodeId, SecretVec>>,
    permute: Mutex<HashMap<ChunkKey, Zeroizing<Vec<u8>>>>,
    pools: Mutex<Option<CotPools>>,
    spent: AtomicBool,
}

/// The server's part of the linear layers that were prepared together, for one inference: what it subtracted.
#[derive(Default)]
pub struct ServerLinear(Vec<(NodeId, PackedShare)>);

impl ServerLinear {
    /// Keeps the mask of a linear result.
    pub(super) fn put(&mut self, node: NodeId, mask: PackedShare) {
        self.0.push((node, mask));
    }
}

impl ServerCorrelation {
    /// Draws the garbler's secrets.
    pub fn draw(session: SessionId, rng: &mut SecureRng) -> Self {
        let secrets = GarblerSecrets { delta: Block::random(rng).with_lsb_set(), label_seed: Block::random(rng) };
        Self::with_secrets(session, secrets)
    }

    fn with_secrets(session: SessionId, secrets: GarblerSecrets) -> Self {
        Self {
            session,
            secrets,
            linear: Mutex::default(),
            masks: Mutex::default(),
            products: Mutex::default(),
            permute: Mutex::default(),
            pools: Mutex::default(),
            spent: AtomicBool::new(false),
        }
    }

    /// Takes what was subtracted from its linear results, where they were prepared together with others.
    ///
    /// # Errors
    /// As [`PackedShare::unpack`].
    pub fn absorb(&self, linear: ServerLinear) -> Result<()> {
        linear.0.iter().try_for_each(|(node, mask)| {
            self.put_linear(*node, mask.unpack()?);
            Ok(())
        })
    }

    pub(super) fn put_linear(&self, node: NodeId, share: SecretVec) {
        lock(&self.linear).insert(node, share);
    }

    pub(super) fn take_linear(&self, node: NodeId) -> Result<SecretVec> {
        lock(&self.linear)
            .remove(&node)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the mask of node {}", node.0) })
    }

    pub(super) fn put_masks(&self, node: NodeId, masks: ServerProduct) {
        lock(&self.masks).insert(node, masks);
    }

    pub(super) fn take_masks(&self, node: NodeId) -> Result<ServerProduct> {
        lock(&self.masks)
            .remove(&node)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the masks of node {}", node.0) })
    }

    /// Reads a part of a product's masks.
    pub(super) fn with_masks<T>(&self, node: NodeId, f: impl FnOnce(&ServerProduct) -> T) -> Result<T> {
        lock(&self.masks)
            .get(&node)
            .map(f)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the masks of node {}", node.0) })
    }

    /// As at the client.
    pub(super) fn with_product(&self, node: NodeId, len: usize, f: impl FnOnce(&mut [u64])) {
        with_sum(&self.products, node, len, f);
    }

    pub(super) fn take_product(&self, node: NodeId) -> Result<SecretVec> {
        lock(&self.products)
            .remove(&node)
            .ok_or_else(|| ProtocolError::Missing { what: format!("the product of node {}", node.0) })
    }

    pub(super) fn put_pools(&self, pools: CotPools) {
        *lock(&self.pools) = Some(pools);
    }

    /// As at the client.
    pub fn with_pools<T>(&self, f: impl FnOnce(Option<&CotPools>) -> T) -> T {
        f(lock(&self.pools).as_ref())
    }

    /// As at the client.
    pub(super) fn take_pools(&self) -> Option<CotPools> {
        lock(&self.pools).take()
    }

    pub(super) fn put_permute(&self, key: ChunkKey, bits: Vec<u8>) {
        lock(&self.permute).insert(key, Zeroizing::new(bits));
    }

    pub(super) fn take_permute(&self, key: ChunkKey) -> Result<Zeroizing<Vec<u8>>> {
        lock(&self.permute)
            .remove(&key)
            .ok_or_else(|| ProtocolError::Missing { what: format!("output bits of node {} chunk {}", key.0.0, key.1) })
    }

    /// Marks the correlation used.
    ///
    /// # Errors
    /// [`ProtocolError::Spent`] the second time.
    pub fn spend(&self) -> Result<()> {
        if self.spent.swap(true, Ordering::SeqCst) { Err(ProtocolError::Spent) } else { Ok(()) }
    }

    /// Everything, for a store.
    pub fn export(&self) -> ServerExport {
        let copy = |m: &Mutex<HashMap<NodeId, SecretVec>>| lock(m).iter().map(|(k, v)| (*k, v.to_vec())).collect();
        ServerExport {
            delta: self.secrets.delta,
            label_seed: self.secrets.label_seed,
            linear: copy(&self.linear),
            products: copy(&self.products),
            masks: lock(&self.masks).iter().map(|(k, m)| (*k, m.left_mask.to_vec(), m.right_mask.to_vec())).collect(),
            permute: lock(&self.permute).iter().map(|(k, v)| (*k, v.to_vec())).collect(),
        }
    }

    /// Puts a correlation back together, as read from a store.
    pub fn restore(session: SessionId, mut export: ServerExport, pools: Option<CotPools>) -> Self {
        use std::mem::take;
        let own = Self::with_secrets(session, GarblerSecrets { delta: export.delta, label_seed: export.label_seed });
        take(&mut export.linear).into_iter().for_each(|(k, v)| own.put_linear(k, SecretVec::new(v)));
        let products = take(&mut export.products).into_iter().map(|(k, v)| (k, SecretVec::new(v)));
        lock(&own.products).extend(products);
        for (node, left, right) in take(&mut export.masks) {
            own.put_masks(node, ServerProduct { left_mask: SecretVec::new(left), right_mask: SecretVec::new(right) });
        }
        take(&mut export.permute).into_iter().for_each(|(k, v)| own.put_permute(k, v));
        *lock(&own.pools) = pools;
        own
    }
}

/// The parts of a [`ServerCorrelation`], for a store that seals them.
pub struct ServerExport {
    /// Free-XOR offset.
    pub delta: Block,
    /// Seed of the server's wire labels.
    pub label_seed: Block,
    /// Masks of linear results.
    pub linear: Vec<(NodeId, Vec<u64>)>,
    /// Offline parts of products.
    pub products: Vec<(NodeId, Vec<u64>)>,
    /// Masks of products' operands.
    pub masks: Vec<(NodeId, Vec<u64>, Vec<u64>)>,
    /// Permute bits of garbled outputs.
    pub permute: Vec<(ChunkKey, Vec<u8>)>,
}

impl ZeroizeOnDrop for ServerExport {}

impl Drop for ServerExport {
    fn drop(&mut self) {
        self.delta.zeroize();
        self.label_seed.zeroize();
        self.linear.iter_mut().chain(&mut self.products).for_each(|(_, v)| v.zeroize());
        self.masks.iter_mut().for_each(|(_, l, r)| {
            l.zeroize();
            r.zeroize();
        });
        self.permute.iter_mut().for_each(|(_, bits)| bits.zeroize());
    }
}

fn with_sum(map: &Mutex<HashMap<NodeId, SecretVec>>, node: NodeId, len: usize, f: impl FnOnce(&mut [u64])) {
    f(lock(map).entry(node).or_insert_with(|| SecretVec::new(vec![0; len])));
}
