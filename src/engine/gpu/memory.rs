//! Device memory: buffers that go back to a bounded pool when their last handle is dropped.
//!
//! Reuse spares the driver an allocation and wgpu the clearing of fresh memory. It is safe without fences: all work goes
//! through one queue, in order, and a buffer comes back only after the launches that use it have been submitted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
    pool: Arc<Pool>,
}

impl Memory {
    /// Wraps a new buffer whose size is a class of `pool`.
    pub fn new(buffer: wgpu::Buffer, pool: Arc<Pool>) -> Self {
        Self { buffer, pool }
    }

    /// The wgpu buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pool.give(self.buffer.clone());
    }
}

/// Free buffers by size.
pub(super) struct Pool {
    capacity: u64,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    bytes: u64,
    by_size: HashMap<u64, Vec<wgpu::Buffer>>,
}

impl Pool {
    /// A pool that keeps up to `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, free: Mutex::new(Free::default()) }
    }

    /// The size to allocate for `bytes`: rounded up to an eighth of an octave, so that similar requests share buffers.
    pub fn class(bytes: u64) -> u64 {
        let bytes = bytes.max(256);
        let step = (1u64 << (63 - bytes.leading_zeros())) / 8;
        bytes.div_ceil(step) * step
    }

    /// A free buffer of exactly `class` bytes.
    pub fn take(&self, class: u64) -> Option<wgpu::Buffer> {
        let mut free = self.lock();
        let buffer = free.by_size.get_mut(&class)?.pop()?;
        free.bytes -= class;
        Some(buffer)
    }

    /// Frees everything that the pool keeps.
    pub fn clear(&self) {
        *self.lock() = Free::default();
    }

    fn give(&self, buffer: wgpu::Buffer) {
        let size = buffer.size();
        let mut free = self.lock();
        if free.bytes + size <= self.capacity {
            free.bytes += size;
            free.by_size.entry(size).or_default().push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        // Nothing panics while the lock is held; the contents are plain data in any case.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
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
}
