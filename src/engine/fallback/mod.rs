//! A backend that goes on with another one when its device fails.

mod lineage;
mod recipe;

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use self::{
    lineage::{Account, Node},
    recipe::Recipe,
};
use super::{
    Backend, BackendInfo, Buffer, EngineError, ExpandShape, GatherItem, GemmShape, KeySwitchShape, MatmulShape,
    MemoryUse, Op, OpCount, Result, RingGemmShape, RingOperand, RnsRing, Rotation, Shape, check::foreign_buffer,
    ops::merged,
};

/// [`Backend`] on `A` (the GPU) as long as that works, and on `B` (the CPU) where it does not.
///
/// When `A` reports a lost device, an operation and everything after it run on `B`. When it runs out of memory, refuses
/// something (validation) or lacks something, that operation runs on `B` and the next one tries `A` again. Errors that are the
/// caller's ([`EngineError::Shape`]) and differences found by a `DualBackend` come out unchanged. Results do not depend on
/// any of this: backends agree word by word.
///
/// Inputs that `B` needs are downloaded, or, when the device is gone, made again from their *lineage*: the words that were
/// uploaded, kept on the host and wiped on drop, and the operations since. Lineages hold no device memory. Their host memory
/// is what is uploaded and still in use; beyond that a buffer that is in use keeps at most [`FallbackLimits::kept_bytes`] of
/// uploads that are not, and at most [`FallbackLimits::chain`] operations: a result beyond either is downloaded once, when it
/// is made, and becomes the start of a new lineage.
pub struct FallbackBackend<A, B> {
    id: u64,
    first: A,
    second: B,
    limits: FallbackLimits,
    host: Account,
    lost: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
}

/// How long lineages may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackLimits {
    /// Operations that may have to be repeated one after another to make a buffer again.
    pub chain: usize,
    /// Bytes of uploads that a buffer in use may keep on the host although they are themselves no longer in use.
    pub kept_bytes: u64,
}

impl Default for FallbackLimits {
    /// 64 operations, 256 MiB.
    fn default() -> Self {
        Self { chain: 64, kept_bytes: 256 << 20 }
    }
}

/// Uploads of any size that one lineage may refer to.
const MOST_PIECES: usize = 1024;

/// What went wrong first, the loss if there was one, and how often the second backend stepped in.
struct Trouble {
    first: String,
    lost: Option<String>,
    operations: u64,
}

/// What is behind a buffer: its history, and its copy on the first backend where there is one.
struct Handle {
    owner: u64,
    node: Arc<Node>,
    first: Mutex<Option<Buffer>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.node.release();
    }
}

impl Handle {
    fn first(&self) -> Option<Buffer> {
        lock(&self.first).clone()
    }
}

impl<A: Backend, B: Backend> FallbackBackend<A, B> {
    /// Computes on `first`, and on `second` where that fails.
    pub fn new(first: A, second: B) -> Self {
        Self::with_limits(first, second, FallbackLimits::default())
    }

    /// As [`Self::new`], with other limits of lineages.
    pub fn with_limits(first: A, second: B, limits: FallbackLimits) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            first,
            second,
            limits,
            host: Account::default(),
            lost: AtomicBool::new(false),
            trouble: Mutex::new(None),
        }
    }

    /// The backend that computes while it can.
    pub fn first(&self) -> &A {
        &self.first
    }

    /// The backend that steps in.
    pub fn second(&self) -> &B {
        &self.second
    }

    /// Whether the first backend's device is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Bytes of uploads and of operands of operations that are kept on the host.
    pub fn host_bytes(&self) -> u64 {
        self.host.load(Ordering::Relaxed)
    }

    /// Runs an operation that has one result.
    fn one(&self, recipe: Recipe, inputs: &[&Buffer]) -> Result<Buffer> {
        let op = recipe.op();
        self.run(recipe, inputs)?.pop().ok_or_else(|| no_result(op))
    }

    fn run(&self, recipe: Recipe, inputs: &[&Buffer]) -> Result<Vec<Buffer>> {
        let op = recipe.op();
        let handles = inputs.iter().map(|x| self.handle(op, x)).collect::<Result<Vec<_>>>()?;
        if !self.is_lost() {
            match self.run_first(&recipe, &handles) {
                Ok(made) => return self.remember(recipe, &handles, made),
                Err(e) => self.note(e)?,
            }
        }
        let inputs = handles.iter().map(|handle| self.input_on_second(handle)).collect::<Result<Vec<_>>>()?;
        let made = recipe.run(&self.second, &inputs)?;
        self.count();
        Ok(made.into_iter().map(|buffer| self.wrap(Node::second(buffer.clone()), buffer.words(), None)).collect())
    }

    fn run_first(&self, recipe: &Recipe, handles: &[&Handle]) -> Result<Vec<Buffer>> {
        let inputs = handles.iter().map(|handle| self.input_on_first(handle)).collect::<Result<Vec<_>>>()?;
        recipe.run(&self.first, &inputs)
    }

    fn input_on_first(&self, handle: &Handle) -> Result<Buffer> {
        if let Some(buffer) = handle.first() {
            return Ok(buffer);
        }
        let words = self.second.download(&handle.node.on_second(&self.second)?)?;
        let buffer = self.first.upload(&words)?;
        *lock(&handle.first) = Some(buffer.clone());
        Ok(buffer)
    }

    fn input_on_second(&self, handle: &Handle) -> Result<Buffer> {
        if !handle.node.is_root()
            && !self.is_lost()
            && let Some(buffer) = handle.first()
        {
            match self.first.download(&buffer) {
                Ok(words) => handle.node.move_to_second(self.second.upload(&words)?),
                Err(e) => self.note(e)?,
            }
        }
        handle.node.on_second(&self.second)
    }

    /// Wraps results of the first backend with their lineage, or with their words where that has grown too long.
    fn remember(&self, recipe: Recipe, handles: &[&Handle], made: Vec<Buffer>) -> Result<Vec<Buffer>> {
        let inputs = handles.iter().map(|handle| Arc::clone(&handle.node)).collect();
        let nodes = Node::made(recipe, inputs, made.len(), &self.host);
        let wrap = |(node, buffer): (Arc<Node>, Buffer)| {
            let (bytes, pieces) = node.kept();
            let long = node.chain() > self.limits.chain || bytes > self.limits.kept_bytes || pieces > MOST_PIECES;
            let node = if long { self.cut(node, &buffer)? } else { node };
            let words = buffer.words();
            Ok(self.wrap(node, words, Some(buffer)))
        };
        nodes.into_iter().zip(made).map(wrap).collect()
    }

    /// A lineage for `buffer` that does not reach back.
    fn cut(&self, node: Arc<Node>, buffer: &Buffer) -> Result<Arc<Node>> {
        match self.first.download(buffer) {
            Ok(words) => Ok(Node::words(&words, &self.host)),
            Err(e) => {
                self.note(e)?;
                node.on_second(&self.second)?;
                Ok(node)
            }
        }
    }

    /// Takes note of a failure of the first backend, or gives it back if it is not the device's.
    fn note(&self, e: EngineError) -> Result<()> {
        let (what, lost) = match &e {
            EngineError::DeviceLost { operation, reason } => {
                (format!("the GPU was lost during {operation} ({reason})"), true)
            }
            EngineError::OutOfMemory { operation, .. } => (format!("{operation} ran out of device memory"), false),
            EngineError::Validation { operation, reason } => (format!("the GPU refused {operation}: {reason}"), false),
            EngineError::Unsupported { operation, what, .. } => {
                (format!("the GPU lacks what {operation} needs: {what}"), false)
            }
            _ => return Err(e),
        };
        let mut trouble = lock(&self.trouble);
        let known = trouble.is_some();
        let entry = trouble.get_or_insert_with(|| Trouble { first: what.clone(), lost: None, operations: 0 });
        if lost && entry.lost.is_none() {
            entry.lost = Some(what.clone());
            self.lost.store(true, Ordering::Release);
            log::warn!("{what}; the work goes on on the CPU");
        } else if !known {
            log::warn!("{what}; the CPU does it instead");
        }
        Ok(())
    }

    /// Counts an operation that the second backend did.
    fn count(&self) {
        if let Some(trouble) = lock(&self.trouble).as_mut() {
            trouble.operations += 1;
        }
    }

    fn handle<'a>(&self, op: Op, x: &'a Buffer) -> Result<&'a Handle> {
        let found = x.downcast::<Handle>().filter(|handle| handle.owner == self.id);
        found.ok_or_else(|| foreign_buffer(op))
    }

    fn wrap(&self, node: Arc<Node>, words: usize, first: Option<Buffer>) -> Buffer {
        Buffer::new(words, Handle { owner: self.id, node, first: Mutex::new(first) })
    }
}

fn no_result(op: Op) -> EngineError {
    EngineError::Shape { operation: op.name(), detail: "the backend gave no result".into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced or counted in one step, so that a panic elsewhere cannot leave it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A: Backend, B: Backend> Backend for FallbackBackend<A, B> {
    /// The first backend's, whatever has happened; [`Backend::degraded`] says what has.
    fn info(&self) -> BackendInfo {
        self.first.info()
    }

    fn ops(&self) -> Vec<OpCount> {
        merged(&[self.first.ops(), self.second.ops()])
    }

    fn memory(&self) -> MemoryUse {
        self.first.memory()
    }

    fn release(&self) -> Result<()> {
        if !self.is_lost()
            && let Err(e) = self.first.release()
        {
            self.note(e)?;
        }
        self.second.release()
    }

    fn degraded(&self) -> Option<String> {
        let trouble = lock(&self.trouble);
        trouble.as_ref().map(|Trouble { first, lost, operations }| match lost {
            Some(lost) => format!("{lost}; the CPU has done {operations} operations in its place"),
            None => format!("{first}; the CPU has done {operations} operations that the GPU could not"),
        })
    }

    fn upload(&self, words: &[u32]) -> Result<Buffer> {
        let node = Node::words(words, &self.host);
        let first = if self.is_lost() {
            None
        } else {
            self.first.upload(words).map(Some).or_else(|e| self.note(e).map(|()| None))?
        };
        if first.is_none() {
            self.count();
        }
        Ok(self.wrap(node, words.len(), first))
    }

    fn download(&self, x: &Buffer) -> Result<Vec<u32>> {
        let handle = self.handle(Op::Download, x)?;
        if !self.is_lost()
            && let Some(buffer) = handle.first()
        {
            match self.first.download(&buffer) {
                Ok(words) => return Ok(words),
                Err(e) => self.note(e)?,
            }
        }
        self.count();
        self.second.download(&handle.node.on_second(&self.second)?)
    }

    fn ntt_forward(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.one(Recipe::NttForward(Arc::clone(ring), shape), &[x])
    }

    fn ntt_inverse(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer> {
        self.one(Recipe::NttInverse(Arc::clone(ring), shape), &[x])
    }

    fn add(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.one(Recipe::Add(Arc::clone(ring), shape), &[a, b])
    }

    fn sub(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.one(Recipe::Sub(Arc::clone(ring), shape), &[a, b])
    }

    fn mul(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer> {
        self.one(Recipe::Mul(Arc::clone(ring), shape), &[a, b])
    }

    fn mul_accumulate(
        &self,
        ring: &Arc<RnsRing>,
        acc: &Buffer,
        a: &Buffer,
        b: &Buffer,
        shape: Shape,
    ) -> Result<Buffer> {
        self.one(Recipe::MulAccumulate(Arc::clone(ring), shape), &[acc, a, b])
    }

    fn mul_scalar(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, scalars: &[u32]) -> Result<Buffer> {
        self.one(Recipe::MulScalar(Arc::clone(ring), shape, scalars.to_vec()), &[x])
    }

    fn matmul_plain(&self, ring: &Arc<RnsRing>, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer> {
        self.one(Recipe::MatmulPlain(Arc::clone(ring), shape), &[ct, plain])
    }

    fn expand(&self, ring: &Arc<RnsRing>, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer> {
        self.one(Recipe::Expand(Arc::clone(ring), limbs, values.to_vec().into(), positions.to_vec()), &[])
    }

    fn pack_step(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, shift: usize) -> Result<(Buffer, Buffer)> {
        let made = self.run(Recipe::PackStep(Arc::clone(ring), shape, shift), &[x])?;
        let [sum, difference] = <[Buffer; 2]>::try_from(made).map_err(|_| no_result(Op::PackStep))?;
        Ok((sum, difference))
    }

    fn automorphism(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        self.one(Recipe::Automorphism(Arc::clone(ring), shape, g), &[x])
    }

    fn automorphism_ntt(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer> {
        self.one(Recipe::AutomorphismNtt(Arc::clone(ring), shape, g), &[x])
    }

    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: KeySwitchShape, key: &Buffer) -> Result<Buffer> {
        self.one(Recipe::KeySwitch(Arc::clone(ring), shape), &[x, key])
    }

    fn rotate(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        shape: KeySwitchShape,
        keys: &Buffer,
        rotations: &[Rotation],
    ) -> Result<Buffer> {
        self.one(Recipe::Rotate(Arc::clone(ring), shape, rotations.to_vec()), &[x, keys])
    }

    fn base_convert(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        polys: usize,
        from: Range<usize>,
        to: Range<usize>,
    ) -> Result<Buffer> {
        self.one(Recipe::BaseConvert(Arc::clone(ring), polys, from, to), &[x])
    }

    fn modular_gemm(&self, ring: &Arc<RnsRing>, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer> {
        self.one(Recipe::ModularGemm(Arc::clone(ring), shape), &[x, weights])
    }

    fn ring_gemm(&self, a: &Buffer, b: &Buffer, operand: RingOperand, shape: RingGemmShape) -> Result<Buffer> {
        self.one(Recipe::RingGemm(operand, shape), &[a, b])
    }

    fn expand_matrix(&self, ring: &Arc<RnsRing>, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        self.one(Recipe::ExpandMatrix(Arc::clone(ring), shape.clone()), &[weights])
    }

    fn gather(&self, sources: &[&Buffer], item_words: usize, items: &[GatherItem]) -> Result<Buffer> {
        self.one(Recipe::Gather(item_words, items.to_vec()), sources)
    }

    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer> {
        self.one(Recipe::ModSwitch(Arc::clone(ring), shape, target), &[x])
    }
}
