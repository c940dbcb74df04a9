//! Words to the device and back.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use super::{
    context::{Context, lock},
    memory::{Memory, Pool, Reserved},
};
use crate::engine::backend::Result;

/// Largest piece of one transfer.
const PIECE_BYTES: u64 = 64 << 20;
/// Smallest piece that a budget cuts transfers into.
const LEAST_PIECE_BYTES: u64 = 1 << 16;
/// Uploads that are put on the account of memory, where pieces are not smaller anyway.
const COUNTED_BYTES: u64 = 1 << 20;
/// Uploads that are worth mapping memory for.
const LEAST_MAPPED_BYTES: u64 = 1 << 12;
/// Readback buffers kept for the next download.
const STAGING_KEPT: usize = 3;

/// Host-visible buffers between downloads.
#[derive(Default)]
pub(super) struct Staging {
    kept: Mutex<Vec<(wgpu::Buffer, Reserved)>>,
}

impl Staging {
    /// Frees all of them, wiped as `pool` wipes.
    pub fn clear(&self, pool: &Pool) {
        let kept = std::mem::take(&mut *lock(&self.kept));
        pool.wipe(&kept.iter().map(|(buffer, _)| buffer.clone()).collect::<Vec<_>>());
    }
}

/// Words copied to a buffer, from word `from.1` of a buffer on; cleared where there is none.
pub(super) struct CopyWords<'a> {
    pub from: Option<(&'a wgpu::Buffer, usize)>,
    pub to: usize,
    pub words: usize,
}

impl Context {
    /// Copies words to new device memory.
    pub fn upload(&self, operation: &'static str, words: &[u32]) -> Result<Memory> {
        let memory = self.allocate(operation, words.len())?;
        if self.zero_copy
            && 4 * words.len() as u64 >= LEAST_MAPPED_BYTES
            && self.write_mapped(operation, &memory, words)?
        {
            return Ok(memory);
        }
        let piece = self.piece_bytes();
        for (i, part) in words.chunks((piece / 4) as usize).enumerate() {
            let bytes = 4 * part.len() as u64;
            // wgpu copies what is written into memory of its own until the device has taken it.
            let reserved =
                if bytes >= piece.min(COUNTED_BYTES) { Some(self.reserve(operation, bytes, true)?) } else { None };
            self.submission(operation, bytes, || {
                self.queue.write_buffer(memory.buffer(), i as u64 * piece, bytemuck::cast_slice(part));
                if let Some(reserved) = reserved {
                    // Sends it off, instead of holding it until the next launch.
                    self.queue.submit([]);
                    self.queue.on_submitted_work_done(move || drop(reserved));
                }
            })?;
        }
        Ok(memory)
    }

    /// Writes words straight into memory that nobody else has yet; says whether that could be done without waiting for work
    /// that still uses it.
    fn write_mapped(&self, operation: &'static str, memory: &Memory, words: &[u32]) -> Result<bool> {
        // Counts as a submission where faults are injected.
        self.submission(operation, 0, || ())?;
        let slice = memory.buffer().slice(..4 * words.len() as u64);
        let mapped = Arc::new(AtomicBool::new(false));
        let report = Arc::clone(&mapped);
        self.scoped(operation, 0, || {
            slice.map_async(wgpu::MapMode::Write, move |result| report.store(result.is_ok(), Ordering::Release));
        })?;
        self.poll(operation, wgpu::PollType::Poll)?;
        let free = mapped.load(Ordering::Acquire);
        if free {
            let bytes: &[u8] = bytemuck::cast_slice(words);
            let mut view = slice.get_mapped_range_mut().map_err(|e| self.refused(operation, e.to_string()))?;
            view.copy_from_slice(bytes);
        }
        // Also takes the request back.
        self.scoped(operation, 0, || memory.buffer().unmap())?;
        Ok(free)
    }

    /// Copies the first `words` words of memory back, without a copy on the device where it can be mapped.
    pub fn download_memory(&self, operation: &'static str, memory: &Memory, words: usize) -> Result<Vec<u32>> {
        let bytes = 4 * words as u64;
        let mappable = memory.buffer().usage().contains(wgpu::BufferUsages::MAP_READ) && !memory.is_shared();
        if !mappable || words == 0 {
            return self.download(operation, memory.buffer(), words);
        }
        let mut out = Vec::new();
        out.try_reserve_exact(words).map_err(|_| self.out_of_memory(operation, bytes))?;
        self.submission(operation, 0, || ())?;
        let _alone = self.alone();
        self.map_and_read(operation, memory.buffer(), bytes, wgpu::PollType::wait_indefinitely(), &mut out)?;
        Ok(out)
    }

    /// Maps the first `bytes` bytes of a buffer, once `until` is over, and appends them to `out`.
    fn map_and_read(
        &self,
        operation: &'static str,
        buffer: &wgpu::Buffer,
        bytes: u64,
        until: wgpu::PollType,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let failed = |reason: String| self.refused(operation, reason);
        let (sender, receiver) = mpsc::channel();
        let slice = buffer.slice(..bytes);
        self.scoped(operation, bytes, || {
            slice.map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only if this download has failed already.
                let _ = sender.send(result);
            });
        })?;
        self.poll(operation, until)?;
        match receiver.recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(e) => return Err(failed(e.to_string())),
        }
        {
            let view = slice.get_mapped_range().map_err(|e| failed(e.to_string()))?;
            match bytemuck::try_cast_slice::<u8, u32>(&view) {
                Ok(words) => out.extend_from_slice(words),
                Err(_) => out.extend(bytemuck::pod_collect_to_vec::<u8, u32>(&view)),
            }
        }
        self.scoped(operation, 0, || buffer.unmap())
    }

    /// Copies the first `words` words of a buffer back.
    pub fn download(&self, operation: &'static str, buffer: &wgpu::Buffer, words: usize) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        let total = 4 * words as u64;
        out.try_reserve_exact(words).map_err(|_| self.out_of_memory(operation, total))?;
        let mut start = 0;
        while start < total {
            let bytes = self.piece_bytes().min(total - start);
            self.read_piece(operation, buffer, start, bytes, &mut out)?;
            start += bytes;
        }
        Ok(out)
    }

    /// Copies and clears parts of `to`, none of which may come from `to` itself.
    pub fn copy_all(&self, operation: &'static str, to: &wgpu::Buffer, copies: &[CopyWords<'_>]) -> Result<()> {
        self.submission(operation, 0, || {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(operation) });
            for copy in copies {
                let (at, bytes) = (4 * copy.to as u64, 4 * copy.words as u64);
                match copy.from {
                    Some((from, start)) => encoder.copy_buffer_to_buffer(from, 4 * start as u64, to, at, bytes),
                    None => encoder.clear_buffer(to, at, Some(bytes)),
                }
            }
            self.queue.submit([encoder.finish()]);
        })
    }

    /// A copy of `words` words from word `start` on, in memory of its own.
    pub fn copy_words(
        &self,
        operation: &'static str,
        buffer: &wgpu::Buffer,
        start: usize,
        words: usize,
    ) -> Result<Memory> {
        let memory = self.allocate(operation, words)?;
        self.submission(operation, 4 * words as u64, || {
            let mut encoder = self.encoder(operation);
            encoder.copy_buffer_to_buffer(buffer, 4 * start as u64, memory.buffer(), 0, 4 * words as u64);
            self.queue.submit([encoder.finish()]);
        })?;
        Ok(memory)
    }

    /// A sixteenth of the budget, within reason, in whole words.
    fn piece_bytes(&self) -> u64 {
        let share = self.pool.budget().map_or(PIECE_BYTES, |budget| budget / 16);
        share.clamp(LEAST_PIECE_BYTES, PIECE_BYTES) & !255
    }

    fn read_piece(
        &self,
        operation: &'static str,
        buffer: &wgpu::Buffer,
        start: u64,
        bytes: u64,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let class = Pool::class(bytes);
        let kept = {
            let mut kept = lock(&self.staging.kept);
            kept.iter().position(|(b, _)| b.size() == class).map(|i| kept.swap_remove(i))
        };
        let (staging, reserved) = match kept {
            Some(kept) => kept,
            None => {
                let reserved = self.reserve(operation, class, true)?;
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                (self.create(operation, "readback", &reserved, usage)?, reserved)
            }
        };
        let submitted = self.submission(operation, bytes, || {
            let mut encoder = self.encoder(operation);
            encoder.copy_buffer_to_buffer(buffer, start, &staging, 0, bytes);
            self.queue.submit([encoder.finish()])
        })?;
        let until = wgpu::PollType::Wait { submission_index: Some(submitted), timeout: None };
        self.map_and_read(operation, &staging, bytes, until, out)?;
        let mut kept = lock(&self.staging.kept);
        let gone = (kept.len() >= STAGING_KEPT).then(|| kept.remove(0));
        kept.push((staging, reserved));
        drop(kept);
        if let Some((buffer, _)) = gone {
            self.pool.wipe(&[buffer]);
        }
        Ok(())
    }
}
