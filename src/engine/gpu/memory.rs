//! Device memory: buffers that go back to a bounded pool when their last handle is dropped, and the account of all bytes
//! against a budget.
//!
//! Reuse spares the driver an allocation and wgpu the clearing of fresh memory. It is safe without fences: all work goes
//! through one queue, in order, and a buffer comes back only after the launches that use it have been submitted.
//!
//! What leaves the pool for the driver is overwritten with zeros first, where [`super::GpuOptions::wipe`] says so. What stays
//! in the pool is not: the next user overwrites it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::engine::MemoryUse;

/// The words of one [`crate::engine::Buffer`] on the GPU.
pub(super) struct GpuBuffer {
    /// The context that owns it.
    pub context: u64,
    /// `None` for an empty buffer.
    pub memory: Option<Memory>,
}

/// A piece of device memory of at least the size asked for.
pub(super) struct Memory {
    buffer: wgpu::Buffer,
    /// `None` for memory of the host program.
    pool: Option<Arc<Pool>>,
    shared: AtomicBool,
}

impl Memory {
    /// Memory of the host program: neither counted nor reused.
    pub fn of_host(buffer: wgpu::Buffer) -> Self {
        Self { buffer, pool: None, shared: AtomicBool::new(true) }
    }

    /// The wgpu buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Whether the host program may use the buffer too.
    pub fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// The wgpu buffer for somebody who may keep it longer than this: it will not be reused.
    pub fn share(&self) -> wgpu::Buffer {
        self.shared.store(true, Ordering::Relaxed);
        self.buffer.clone()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.give(&self.buffer, self.shared.load(Ordering::Relaxed));
        }
    }
}

/// Bytes of the account that have no buffer yet, or whose buffer is no [`Memory`]; returned on drop.
pub(super) struct Reserved {
    pool: Arc<Pool>,
    bytes: u64,
    staging: bool,
}

impl Reserved {
    /// Size to create the buffer with.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The buffer that the bytes were reserved for, of that size.
    pub fn fill(mut self, buffer: wgpu::Buffer) -> Memory {
        // From here on the bytes are the memory's, which gives them back by its size.
        self.bytes = 0;
        Memory { buffer, pool: Some(Arc::clone(&self.pool)), shared: AtomicBool::new(false) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let account = if self.staging { &mut state.staging } else { &mut state.live };
        *account = account.saturating_sub(self.bytes);
    }
}

/// Overwrites buffers that are about to go back to the driver.
pub(super) struct Wiper {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Why the device is lost, if it is.
    pub lost: Arc<Mutex<Option<String>>>,
}

impl Wiper {
    /// Clears the buffers in one submission. Errors are dropped: there is nobody to tell, and a device that fails here fails
    /// at its next use as well.
    pub fn wipe(&self, buffers: &[wgpu::Buffer]) {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if buffers.is_empty() || lost {
            return;
        }
        let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal]
            .map(|filter| self.device.push_error_scope(filter));
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wipe") });
        for buffer in buffers {
            encoder.clear_buffer(buffer, 0, None);
        }
        self.queue.submit([encoder.finish()]);
        scopes.into_iter().rev().for_each(|scope| drop(pollster::block_on(scope.pop())));
    }
}

/// Free buffers by size, and the account.
pub(super) struct Pool {
    capacity: u64,
    budget: Option<u64>,
    wiper: Option<Wiper>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: u64,
    pooled: u64,
    staging: u64,
    peak: u64,
    free: BTreeMap<u64, Vec<wgpu::Buffer>>,
}

impl State {
    fn held(&self) -> u64 {
        self.live + self.pooled + self.staging
    }
}

impl Pool {
    /// A pool that keeps up to `capacity` bytes; with all that is in use, `budget` at most. Without a wiper nothing is wiped.
    pub fn new(capacity: u64, budget: Option<u64>, wiper: Option<Wiper>) -> Self {
        Self { capacity, budget, wiper, state: Mutex::default() }
    }

    /// The size to allocate for `bytes`: rounded up to an eighth of an octave, so that similar requests share buffers.
    pub fn class(bytes: u64) -> u64 {
        let bytes = bytes.max(256);
        let step = (1u64 << (63 - bytes.leading_zeros())) / 8;
        bytes.div_ceil(step) * step
    }

    /// The budget, if there is one.
    pub fn budget(&self) -> Option<u64> {
        self.budget
    }

    /// The account.
    pub fn usage(&self) -> MemoryUse {
        let state = self.lock();
        MemoryUse {
            live: state.live,
            pooled: state.pooled,
            staging: state.staging,
            peak: state.peak,
            budget: self.budget,
        }
    }

    /// The smallest free buffer of `least` to `most` bytes.
    pub fn take(self: &Arc<Self>, least: u64, most: u64) -> Option<Memory> {
        let mut state = self.lock();
        let (&size, buffers) =
            state.free.range_mut(least..=most.max(least)).find(|(_, buffers)| !buffers.is_empty())?;
        let buffer = buffers.pop()?;
        state.pooled -= size;
        state.live += size;
        Some(Memory { buffer, pool: Some(Arc::clone(self)), shared: AtomicBool::new(false) })
    }

    /// Puts bytes on the account of buffers, or of staging, if the budget has room for them.
    pub fn reserve(self: &Arc<Self>, bytes: u64, staging: bool) -> Option<Reserved> {
        let mut state = self.lock();
        if self.budget.is_some_and(|budget| state.held().saturating_add(bytes) > budget) {
            return None;
        }
        *(if staging { &mut state.staging } else { &mut state.live }) += bytes;
        state.peak = state.peak.max(state.held());
        Some(Reserved { pool: Arc::clone(self), bytes, staging })
    }

    /// Frees everything that the pool keeps.
    pub fn clear(&self) {
        let free = {
            let mut state = self.lock();
            state.pooled = 0;
            std::mem::take(&mut state.free)
        };
        self.wipe(&free.into_values().flatten().collect::<Vec<_>>());
    }

    /// Wipes buffers that will not be used again, if that is wanted.
    pub fn wipe(&self, buffers: &[wgpu::Buffer]) {
        if let Some(wiper) = &self.wiper {
            wiper.wipe(buffers);
        }
    }

    fn give(&self, buffer: &wgpu::Buffer, shared: bool) {
        let size = buffer.size();
        let kept = {
            let mut state = self.lock();
            state.live = state.live.saturating_sub(size);
            let kept = !shared && state.pooled + size <= self.capacity;
            if kept {
                state.pooled += size;
                state.free.entry(size).or_default().push(buffer.clone());
            }
            kept
        };
        // Memory that the host uses too is the host's to wipe.
        if !kept && !shared {
            self.wipe(std::slice::from_ref(buffer));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held; the contents are plain data in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_and_waste_little() {
        for bytes in [1, 255, 256, 257, 1000, 4096, 4097, 1 << 20, (1 << 20) + 4, 3_000_000_000] {
            let class = Pool::class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4), "{bytes}");
            assert!(bytes < 256 || class as f64 <= bytes as f64 * 1.125, "{bytes}");
            assert_eq!(Pool::class(class), class);
        }
    }

    #[test]
    fn the_account_keeps_to_the_budget() {
        let pool = Arc::new(Pool::new(1 << 20, Some(1000), None));
        let live = pool.reserve(600, false).unwrap();
        let staging = pool.reserve(400, true).unwrap();
        assert!(pool.reserve(1, false).is_none() && pool.reserve(u64::MAX, true).is_none());
        drop(live);
        let usage = pool.usage();
        assert_eq!((usage.live, usage.staging, usage.peak, usage.budget), (0, 400, 1000, Some(1000)));
        drop(staging);
        assert!(pool.reserve(1000, false).is_some());
        let boundless = Arc::new(Pool::new(0, None, None));
        assert!(boundless.reserve(1 << 50, false).is_some());
    }
}
