//! What client and server share: a parameter set on a backend, and counters.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{HeError, ParameterSet, Result};
use crate::engine::{
    Backend, Buffer, Engine, RnsRing, Shape,
    schedule::{Capacity, CostModel, Demand, Scheduler, Work},
};

/// A parameter set on a device.
pub struct BfvContext {
    backend: Arc<dyn Backend>,
    params: ParameterSet,
    tile_words: usize,
    capacity: Capacity,
    shared: Arc<Shared>,
}

/// What all levels of a parameter set have in common.
#[derive(Default)]
struct Shared {
    /// Started when first asked for.
    scheduler: Mutex<Option<Arc<Scheduler>>>,
    costs: OnceLock<CostModel>,
    counts: AtomicCounters,
}

/// Words of intermediate batches on a GPU: 256 MiB, launches that fill it.
const GPU_TILE: usize = 1 << 26;

/// On a CPU: 16 MiB, below the size from which the allocator returns memory to the system and faults it in again.
const CPU_TILE: usize = 1 << 22;

/// Tiles that make up a device's memory budget.
const BUDGET_TILES: u64 = 8;

/// Tiles of them that may lie between tasks: the products of one batch and those of the next. On a CPU, where tasks follow one
/// another, a second one would only push the first out of the caches before it is read again.
const GPU_HELD: usize = 2;
const CPU_HELD: usize = 1;

/// How much homomorphic work a context has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct HeCounters {
    /// Plaintext-ciphertext products.
    pub products: u64,
    /// Products of a ciphertext and an integer, those of a matrix of integers.
    pub scalar_products: u64,
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

impl HeCounters {
    /// What was done since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            products: self.products - before.products,
            scalar_products: self.scalar_products - before.scalar_products,
            key_switches: self.key_switches - before.key_switches,
            ntts: self.ntts - before.ntts,
            encrypted: self.encrypted - before.encrypted,
            responded: self.responded - before.responded,
            decrypted: self.decrypted - before.decrypted,
        }
    }
}

#[derive(Default)]
pub(super) struct AtomicCounters {
    pub products: AtomicU64,
    pub scalar_products: AtomicU64,
    pub key_switches: AtomicU64,
    pub ntts: AtomicU64,
    pub encrypted: AtomicU64,
    pub responded: AtomicU64,
    pub decrypted: AtomicU64,
}

impl BfvContext {
    /// The set `params` on `backend`.
    pub fn new(backend: Arc<dyn Backend>, params: ParameterSet) -> Arc<Self> {
        let (device, most, held) =
            if backend.info().kind == "cpu" { (0, CPU_TILE, CPU_HELD) } else { (1, GPU_TILE, GPU_HELD) };
        // Several tiles are alive at a time (a step's input and output, the digits of a key switch), beside operands and keys.
        let share = backend.memory().budget.map_or(u64::MAX, |bytes| bytes / (4 * BUDGET_TILES));
        let tile_words = usize::try_from(share).map_or(most, |share| share.clamp(1, most));
        let bytes = (held * tile_words) as u64 * 4;
        let capacity = Capacity { device, threads: rayon::current_num_threads(), link: 1, bytes };
        Self::with_limits(backend, params, tile_words, capacity)
    }

    /// As [`Self::new`] with tiles of `tile_words` words and graphs of tasks within `capacity`, where no place on a device's
    /// queue means that CPU threads do its work. Results do not depend on either.
    pub fn with_limits(
        backend: Arc<dyn Backend>,
        params: ParameterSet,
        tile_words: usize,
        capacity: Capacity,
    ) -> Arc<Self> {
        Arc::new(Self { backend, params, tile_words, capacity, shared: Arc::default() })
    }

    /// The same device for ciphertexts of the first `limbs` primes ([`ParameterSet::at_level`]); scheduler and counters are shared.
    ///
    /// # Errors
    /// If there are no such ciphertexts.
    pub fn at_level(self: &Arc<Self>, limbs: usize) -> Result<Arc<Self>> {
        if limbs == self.params.limbs() {
            return Ok(self.clone());
        }
        Ok(Arc::new(Self {
            backend: self.backend.clone(),
            params: self.params.at_level(limbs)?,
            tile_words: self.tile_words,
            capacity: self.capacity,
            shared: self.shared.clone(),
        }))
    }

    /// The device as an engine, for typed polynomials.
    pub fn engine(&self) -> Engine {
        Engine::with_backend(Arc::clone(&self.backend))
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

    /// What graphs of tasks on this device may use: its queue, or all threads where those do its work.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What a task on the device wants.
    pub fn device_demand(&self) -> Demand {
        if self.capacity.device == 0 { Demand::threads(self.capacity.threads) } else { Demand::device() }
    }

    /// The scheduler of this device, one for all that use the context; its threads start with the first call.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn scheduler(&self) -> Result<Arc<Scheduler>> {
        let mut scheduler = self.shared.scheduler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scheduler) = &*scheduler {
            return Ok(scheduler.clone());
        }
        let failed = |e: std::io::Error| HeError::Task { detail: format!("the scheduler cannot start a thread: {e}") };
        let started = Arc::new(Scheduler::new(self.capacity).map_err(failed)?);
        *scheduler = Some(started.clone());
        Ok(started)
    }

    /// Estimates from now on follow `costs`; the first call counts. Only the order of tasks depends on them.
    pub fn set_costs(&self, costs: CostModel) {
        self.shared.costs.get_or_init(|| costs);
    }

    /// Seconds that `work` on this set's ring will take.
    pub fn estimate(&self, work: Work) -> f64 {
        let (n, limbs) = (self.params.n(), self.params.limbs());
        self.shared.costs.get_or_init(|| CostModel::nominal(n, limbs)).estimate(&Work { n, limbs, ..work })
    }

    /// Work done so far.
    pub fn counters(&self) -> HeCounters {
        let get = |x: &AtomicU64| x.load(Ordering::Relaxed);
        let c = &self.shared.counts;
        HeCounters {
            products: get(&c.products),
            scalar_products: get(&c.scalar_products),
            key_switches: get(&c.key_switches),
            ntts: get(&c.ntts),
            encrypted: get(&c.encrypted),
            responded: get(&c.responded),
            decrypted: get(&c.decrypted),
        }
    }

    pub(super) fn count(&self, counter: impl Fn(&AtomicCounters) -> &AtomicU64, by: usize) {
        counter(&self.shared.counts).fetch_add(by as u64, Ordering::Relaxed);
    }

    /// [`Backend::ntt_forward`], counted.
    pub(crate) fn ntt_forward(&self, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.count(|c| &c.ntts, shape.polys * shape.limbs);
        Ok(self.backend.ntt_forward(self.ring(), x, shape)?)
    }

    /// [`Backend::ntt_inverse`], counted.
    pub(crate) fn ntt_inverse(&self, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.count(|c| &c.ntts, shape.polys * shape.limbs);
        Ok(self.backend.ntt_inverse(self.ring(), x, shape)?)
    }
}
