//! Faults on demand: for tests, and for drills of what a program does when its GPU fails.
//!
//! A [`Faults`] is given to [`super::GpuOptions::faults`] and kept by who injects. Each fault takes the way of a real one as
//! far as there is a way: a lost device is destroyed, a broken shader goes through the shader compiler, memory that is
//! missing is missing on the second attempt too.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Something that goes wrong once, `after` as many events of its kind as it lets pass (0: the very next one fails).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A request for device memory fails (tables, uploads, results, intermediates, readback; reused memory counts too).
    OutOfMemory {
        /// Requests that still succeed.
        after: u64,
    },
    /// The device is lost when work is submitted (launches, copies, readback). A device of this backend's own is really
    /// destroyed and stays lost; one that the host owns is left alone and only counts as lost here.
    DeviceLost {
        /// Submissions that still succeed.
        after: u64,
    },
    /// A kernel that is about to be built has a syntax error.
    Validation {
        /// Kernels that are still built.
        after: u64,
    },
    /// The adapter lacks something. Looked at when a device is opened, and lasting.
    Adapter(Lack),
}

/// What an adapter may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// 64-bit integers in shaders.
    Int64,
    /// Workgroups of more than so many invocations.
    Invocations(u32),
    /// More workgroup memory than so many bytes.
    WorkgroupMemory(u32),
    /// A driver that gives a device.
    Device,
}

/// Faults that wait to happen, shared between the one who injects them and a backend. Without any it costs one atomic load
/// an event.
#[derive(Clone, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    list: Mutex<Vec<Fault>>,
}

/// A kind of event that can fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Allocation,
    Submission,
    Build,
}

impl Faults {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault; several of a kind count the same events side by side.
    pub fn inject(&self, fault: Fault) {
        let mut list = self.list();
        list.push(fault);
        self.shared.waiting.store(list.len(), Ordering::Release);
    }

    /// Faults that have not happened yet, and the adapter's.
    pub fn waiting(&self) -> Vec<Fault> {
        self.list().clone()
    }

    /// Counts an event and says whether it fails.
    pub(super) fn strikes(&self, event: Event) -> bool {
        if self.shared.waiting.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut list = self.list();
        let mut struck = false;
        list.retain_mut(|fault| {
            let after = match (event, fault) {
                (Event::Allocation, Fault::OutOfMemory { after })
                | (Event::Submission, Fault::DeviceLost { after })
                | (Event::Build, Fault::Validation { after }) => after,
                _ => return true,
            };
            let now = *after == 0;
            *after = after.saturating_sub(1);
            struck |= now;
            !now
        });
        self.shared.waiting.store(list.len(), Ordering::Release);
        struck
    }

    /// What the adapter is to lack.
    pub(super) fn lacks(&self) -> Vec<Lack> {
        self.list()
            .iter()
            .filter_map(|fault| if let Fault::Adapter(lack) = fault { Some(*lack) } else { None })
            .collect()
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        // Plain data, whole after every step.
        self.shared.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faults").field(&self.waiting()).finish()
    }
}

impl PartialEq for Faults {
    /// Whether both are handles of the same list.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_strikes_once_after_its_events() {
        let faults = Faults::new();
        assert!(!faults.strikes(Event::Allocation));
        faults.inject(Fault::OutOfMemory { after: 1 });
        faults.inject(Fault::OutOfMemory { after: 2 });
        faults.inject(Fault::DeviceLost { after: 0 });
        faults.inject(Fault::Adapter(Lack::Int64));
        let hits: Vec<bool> = (0..4).map(|_| faults.strikes(Event::Allocation)).collect();
        assert_eq!(hits, [false, true, true, false]);
        assert!(!faults.strikes(Event::Build));
        assert!(faults.strikes(Event::Submission) && !faults.strikes(Event::Submission));
        assert_eq!((faults.lacks(), faults.waiting().len()), (vec![Lack::Int64], 1));
    }
}
