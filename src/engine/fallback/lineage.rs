//! Where a buffer came from, so that it can be made again: words kept on the host, or an operation and where its inputs came
//! from. Device buffers are not part of a lineage and are freed as if there were none.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use zeroize::Zeroizing;

use super::recipe::Recipe;
use crate::engine::{Backend, Buffer, Result};

/// Bytes of host memory that lineages hold at the moment.
pub(super) type Account = Arc<AtomicU64>;

/// The history of one buffer.
pub(super) struct Node {
    /// Whether somebody holds the buffer itself, so that its host copy is not there for the lineage of others alone.
    held: Arc<AtomicBool>,
    state: Mutex<State>,
}

struct State {
    source: Source,
    /// Operations to repeat one after another.
    chain: usize,
    /// What stays on the host because of this node, each piece once.
    kept: Vec<Arc<Piece>>,
}

#[derive(Clone)]
enum Source {
    Words(Arc<HostWords>),
    Made {
        step: Arc<Step>,
        output: usize,
    },
    /// A buffer of the second backend.
    Second(Buffer),
}

/// Words on the host, wiped on drop.
struct HostWords {
    words: Zeroizing<Vec<u32>>,
    account: Account,
}

impl Drop for HostWords {
    fn drop(&mut self) {
        self.account.fetch_sub(4 * self.words.len() as u64, Ordering::Relaxed);
    }
}

/// One run of an operation.
struct Step {
    recipe: Recipe,
    inputs: Vec<Arc<Node>>,
    account: Account,
}

impl Drop for Step {
    fn drop(&mut self) {
        self.account.fetch_sub(self.recipe.bytes(), Ordering::Relaxed);
    }
}

/// A piece of host memory in a lineage.
struct Piece {
    bytes: u64,
    held: Arc<AtomicBool>,
}

impl Node {
    /// Words kept on the host.
    pub fn words(words: &[u32], account: &Account) -> Arc<Self> {
        account.fetch_add(4 * words.len() as u64, Ordering::Relaxed);
        let words = HostWords { words: Zeroizing::new(words.to_vec()), account: Arc::clone(account) };
        let bytes = 4 * words.words.len() as u64;
        Self::root(Source::Words(Arc::new(words)), bytes)
    }

    /// A buffer of the second backend.
    pub fn second(buffer: Buffer) -> Arc<Self> {
        let bytes = 4 * buffer.words() as u64;
        Self::root(Source::Second(buffer), bytes)
    }

    fn root(source: Source, bytes: u64) -> Arc<Self> {
        let held = Arc::new(AtomicBool::new(true));
        let kept = vec![Arc::new(Piece { bytes, held: Arc::clone(&held) })];
        Arc::new(Self { held, state: Mutex::new(State { source, chain: 0, kept }) })
    }

    /// The `outputs` results of an operation on `inputs`.
    pub fn made(recipe: Recipe, inputs: Vec<Arc<Node>>, outputs: usize, account: &Account) -> Vec<Arc<Self>> {
        let (mut chain, mut kept) = (0, Vec::new());
        for input in &inputs {
            let state = input.lock();
            chain = chain.max(state.chain);
            kept.extend(state.kept.iter().cloned());
        }
        let bytes = recipe.bytes();
        if bytes > 0 {
            account.fetch_add(bytes, Ordering::Relaxed);
            kept.push(Arc::new(Piece { bytes, held: Arc::new(AtomicBool::new(false)) }));
        }
        kept.sort_unstable_by_key(|piece| Arc::as_ptr(piece).addr());
        kept.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let step = Arc::new(Step { recipe, inputs, account: Arc::clone(account) });
        let node = |output| {
            let source = Source::Made { step: Arc::clone(&step), output };
            let state = State { source, chain: chain + 1, kept: kept.clone() };
            Arc::new(Self { held: Arc::new(AtomicBool::new(true)), state: Mutex::new(state) })
        };
        (0..outputs).map(node).collect()
    }

    /// Nobody holds the buffer any more.
    pub fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
    }

    /// Operations that would be repeated one after another.
    pub fn chain(&self) -> usize {
        self.lock().chain
    }

    /// Bytes that stay on the host for the sake of lineages alone, and pieces of any kind.
    pub fn kept(&self) -> (u64, usize) {
        let state = self.lock();
        let unheld = state.kept.iter().filter(|piece| !piece.held.load(Ordering::Relaxed));
        (unheld.map(|piece| piece.bytes).sum(), state.kept.len())
    }

    /// Whether it needs no operation: it is words on the host or with the second backend already.
    pub fn is_root(&self) -> bool {
        !matches!(self.lock().source, Source::Made { .. })
    }

    /// The buffer on the second backend, made again where it is not there.
    ///
    /// No lock is held while the second backend works: its threads may come back here for another job.
    pub fn on_second(&self, second: &dyn Backend) -> Result<Buffer> {
        let source = self.lock().source.clone();
        let buffer = match source {
            Source::Second(buffer) => return Ok(buffer),
            Source::Words(host) => second.upload(&host.words)?,
            Source::Made { step, output } => {
                let inputs = step.inputs.iter().map(|input| input.on_second(second)).collect::<Result<Vec<_>>>()?;
                step.recipe.run(second, &inputs)?.swap_remove(output)
            }
        };
        self.move_to_second(buffer.clone());
        Ok(buffer)
    }

    /// Forgets the history: the second backend has the words.
    pub fn move_to_second(&self, buffer: Buffer) {
        let piece = Piece { bytes: 4 * buffer.words() as u64, held: Arc::clone(&self.held) };
        let state = State { source: Source::Second(buffer), chain: 0, kept: vec![Arc::new(piece)] };
        // The old state is dropped after the lock is.
        let _old = std::mem::replace(&mut *self.lock(), state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced in one step, so that a panic elsewhere cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
