//! What client and server share: a parameter set on a backend, and counters.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{ParameterSet, Result};
use crate::engine::{Backend, Buffer, RnsRing, Shape};

/// A parameter set on a device.
pub struct BfvContext {
    backend: Arc<dyn Backend>,
    params: ParameterSet,
    tile_words: usize,
    counts: AtomicCounters,
}

/// Words of intermediate batches on a GPU: 256 MiB, launches that fill it.
const GPU_TILE: usize = 1 << 26;

/// On a CPU: 16 MiB, below the size from which the allocator returns memory to the system and faults it in again.
const CPU_TILE: usize = 1 << 22;

/// Tiles that make up a device's memory budget.
const BUDGET_TILES: u64 = 8;

/// How much homomorphic work a context has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct HeCounters {
    /// Plaintext-ciphertext products.
    pub products: u64,
    /// Key switches.
    pub key_switches: u64,
    /// Transforms of one limb of one polynomial, those inside key switches included; key generation is not.
    pub ntts: u64,
    /// Ciphertexts encrypted.
    pub encrypted: u64,
    /// Ciphertexts finished for the wire by the server.
    pub responded: u64,
    /// Ciphertexts decrypted.
    pub decrypted: u64,
}

#[derive(Default)]
pub(super) struct AtomicCounters {
    pub products: AtomicU64,
    pub key_switches: AtomicU64,
    pub ntts: AtomicU64,
    pub encrypted: AtomicU64,
    pub responded: AtomicU64,
    pub decrypted: AtomicU64,
}

impl BfvContext {
    /// The set `params` on `backend`.
    pub fn new(backend: Arc<dyn Backend>, params: ParameterSet) -> Arc<Self> {
        let most = if backend.info().kind == "cpu" { CPU_TILE } else { GPU_TILE };
        // Several tiles are alive at a time (a step's input and output, the digits of a key switch), beside operands and keys.
        let share = backend.memory().budget.map_or(u64::MAX, |bytes| bytes / (4 * BUDGET_TILES));
        let tile_words = usize::try_from(share).map_or(most, |share| share.clamp(1, most));
        Arc::new(Self { backend, params, tile_words, counts: AtomicCounters::default() })
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The parameter set.
    pub fn params(&self) -> &ParameterSet {
        &self.params
    }

    /// The ring, the special prime last where there is one.
    pub fn ring(&self) -> &Arc<RnsRing> {
        self.params.ring()
    }

    /// Words that a batch of intermediates (expanded weights, unpacked outputs) should stay below on this device: at most an
    /// eighth of its memory budget.
    pub fn tile_words(&self) -> usize {
        self.tile_words
    }

    /// Work done so far.
    pub fn counters(&self) -> HeCounters {
        let get = |x: &AtomicU64| x.load(Ordering::Relaxed);
        let c = &self.counts;
        HeCounters {
            products: get(&c.products),
            key_switches: get(&c.key_switches),
            ntts: get(&c.ntts),
            encrypted: get(&c.encrypted),
            responded: get(&c.responded),
            decrypted: get(&c.decrypted),
        }
    }

    pub(super) fn count(&self, counter: impl Fn(&AtomicCounters) -> &AtomicU64, by: usize) {
        counter(&self.counts).fetch_add(by as u64, Ordering::Relaxed);
    }

    /// [`Backend::ntt_forward`], counted.
    pub(super) fn ntt_forward(&self, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.count(|c| &c.ntts, shape.polys * shape.limbs);
        Ok(self.backend.ntt_forward(self.ring(), x, shape)?)
    }

    /// [`Backend::ntt_inverse`], counted.
    pub(super) fn ntt_inverse(&self, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.count(|c| &c.ntts, shape.polys * shape.limbs);
        Ok(self.backend.ntt_inverse(self.ring(), x, shape)?)
    }
}
