//! Memory of the CPU backend: recycled, aligned to lines of the cache, wiped before the system gets it back.
//!
//! Fresh memory costs a page fault for every 4 KiB, which takes longer than most operations on it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytemuck::{Pod, Zeroable};
use zeroize::Zeroize;

/// One line of the cache: vectors of 512 bits never cross two of them.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

const LINE_BYTES: usize = size_of::<Line>();

/// Lines below which memory is not kept: the allocator recycles small pieces well.
const SMALLEST: usize = 64;

/// Memory that buffers have given back, kept for the next ones.
///
/// Operations overwrite all of their output, so recycled memory is not cleared: it holds residues of earlier operations
/// of the same backend until then. It is wiped when it goes back to the system.
#[derive(Clone)]
pub(super) struct Pool {
    limit: usize,
    free: Arc<Mutex<Free>>,
}

#[derive(Default)]
struct Free {
    bytes: usize,
    /// Counts what came back.
    clock: u64,
    /// By size in lines; each with the time when it came back, the oldest first. The rest of a vector's capacity is unused.
    lines: BTreeMap<usize, VecDeque<(u64, Vec<Line>)>>,
}

impl Pool {
    /// A pool that keeps at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, free: Arc::default() }
    }

    /// `words` words that hold anything; the caller writes them all.
    pub(super) fn take(&self, words: usize) -> Words {
        let class = size_class(words.div_ceil(16));
        let recycled = (class >= SMALLEST).then(|| self.lock().take(class)).flatten();
        let fresh = recycled.is_none();
        let lines = recycled.unwrap_or_else(|| vec![Line::zeroed(); class]);
        let mut taken = Words { lines, words, free: Arc::downgrade(&self.free), limit: self.limit };
        if cfg!(debug_assertions) && !fresh {
            // Whoever relies on zeros or leaves a word as it was shall notice.
            taken.fill(0xdead_beef);
        }
        taken
    }

    /// `words` zeros.
    pub(super) fn zeros(&self, words: usize) -> Words {
        let mut taken = self.take(words);
        taken.fill(0);
        taken
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, class: usize) -> Option<Vec<Line>> {
        let (_, lines) = self.lines.get_mut(&class)?.pop_back()?;
        self.bytes -= class * LINE_BYTES;
        Some(lines)
    }

    /// Keeps `lines`; returns what no longer fits, the oldest first.
    fn put(&mut self, lines: Vec<Line>, limit: usize) -> Vec<Vec<Line>> {
        if lines.len() * LINE_BYTES > limit {
            return vec![lines];
        }
        self.clock += 1;
        self.bytes += lines.len() * LINE_BYTES;
        self.lines.entry(lines.len()).or_default().push_back((self.clock, lines));
        let mut evicted = Vec::new();
        while self.bytes > limit {
            let oldest = self.lines.iter().filter_map(|(&class, kept)| Some((kept.front()?.0, class))).min();
            let Some((_, class)) = oldest else { break };
            let Some((_, lines)) = self.lines.get_mut(&class).and_then(VecDeque::pop_front) else { break };
            self.bytes -= class * LINE_BYTES;
            evicted.push(lines);
        }
        evicted
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        self.lines.values_mut().flatten().for_each(|(_, lines)| wipe(lines));
    }
}

/// The next size that memory is kept in: eight to an octave, so that at most an eighth is wasted.
fn size_class(lines: usize) -> usize {
    let step = (lines.max(1).next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}

fn wipe(lines: &mut [Line]) {
    bytemuck::cast_slice_mut::<Line, u32>(lines).zeroize();
}

/// Words of a buffer. They go back to their pool when they are dropped.
pub(super) struct Words {
    lines: Vec<Line>,
    words: usize,
    free: Weak<Mutex<Free>>,
    limit: usize,
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.lines)[..self.words]
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.words]
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        match self.free.upgrade() {
            Some(free) if lines.len() >= SMALLEST => {
                let evicted = free.lock().unwrap_or_else(PoisonError::into_inner).put(lines, self.limit);
                evicted.into_iter().for_each(|mut lines| wipe(&mut lines));
            }
            _ => wipe(&mut lines),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_bounded() {
        let pool = Pool::new(64 * 1024);
        let mut words = pool.take(2000);
        assert!(words.len() == 2000 && words.iter().all(|&w| w == 0));
        words.fill(7);
        let at = words.as_ptr();
        assert!((at as usize).is_multiple_of(LINE_BYTES));
        drop(words);
        assert_eq!(pool.lock().bytes, 8 * 1024);
        assert_eq!(pool.zeros(1990).as_ptr(), at, "another length of the same class");
        assert!(pool.zeros(2000).iter().all(|&w| w == 0));

        // Five times 16 KiB do not fit: the oldest go.
        let many: Vec<Words> = (0..5).map(|_| pool.take(4096)).collect();
        drop(many);
        assert_eq!(pool.lock().bytes, 64 * 1024);
        drop(pool.take(1 << 20));
        assert_eq!(pool.lock().bytes, 64 * 1024, "larger than the pool: not kept");
    }

    #[test]
    fn memory_outlives_its_pool() {
        let pool = Pool::new(1 << 20);
        let mut words = pool.take(5000);
        drop(pool);
        words.fill(1);
        assert_eq!(words.iter().sum::<u32>(), 5000);
    }

    #[test]
    fn classes_waste_at_most_an_eighth() {
        for lines in (0..5000).chain([1 << 20, (1 << 20) + 1, (1 << 26) - 1]) {
            let class = size_class(lines);
            assert!(class >= lines && class - lines <= lines / 8, "{lines} {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
