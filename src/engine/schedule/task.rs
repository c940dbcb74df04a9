//! Tasks, what they want, and what became of them.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// What a task occupies while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Demand {
    /// Places on the device's queue.
    pub device: usize,
    /// CPU threads.
    pub threads: usize,
    /// Places on the link.
    pub link: usize,
}

impl Demand {
    /// One place on the device's queue.
    pub const fn device() -> Self {
        Self { device: 1, threads: 0, link: 0 }
    }

    /// `count` CPU threads.
    pub const fn threads(count: usize) -> Self {
        Self { device: 0, threads: count, link: 0 }
    }

    /// The link.
    pub const fn link() -> Self {
        Self { device: 0, threads: 0, link: 1 }
    }

    /// The resource that the task is shown under.
    pub const fn resource(&self) -> Resource {
        match self {
            Self { device: 1.., .. } => Resource::Device,
            Self { link: 1.., .. } => Resource::Link,
            _ => Resource::Cpu,
        }
    }
}

/// A resource, as traces and reports name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// The device's queue.
    Device,
    /// CPU threads.
    Cpu,
    /// The link.
    Link,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Device, Self::Cpu, Self::Link];

    /// `device`, `cpu` or `link`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Cpu => "cpu",
            Self::Link => "link",
        }
    }
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Places on the device's queue; 0 where CPU threads do the device's work.
    pub device: usize,
    /// CPU threads.
    pub threads: usize,
    /// Places on the link.
    pub link: usize,
    /// Bytes that tasks may hold together.
    pub bytes: u64,
}

impl Capacity {
    /// One device queue, one link, `threads` CPU threads, `bytes` of memory.
    pub const fn new(threads: usize, bytes: u64) -> Self {
        Self { device: 1, threads, link: 1, bytes }
    }

    /// Most tasks that can run at once, so many that none waits for a thread to run in.
    pub(super) fn workers(&self) -> usize {
        (self.device + self.threads + self.link).max(1)
    }

    /// `demand` cut to what there is: a task that wants more takes all.
    pub(super) fn clamp(&self, demand: Demand) -> Demand {
        Demand {
            device: demand.device.min(self.device),
            threads: demand.threads.min(self.threads),
            link: demand.link.min(self.link),
        }
    }
}

/// A task of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub(super) usize);

/// What the scheduler knows of a task.
#[derive(Clone, Debug)]
pub struct Task {
    pub(super) name: String,
    pub(super) demand: Demand,
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) after: Vec<TaskId>,
}

impl Task {
    /// A task that wants `demand` while it runs, more than there is meaning all there is.
    pub fn new(name: impl Into<String>, demand: Demand) -> Self {
        Self { name: name.into(), demand, seconds: 0.0, bytes: 0, after: Vec::new() }
    }

    /// How long it will take, in seconds. Only the order of tasks depends on it.
    pub fn seconds(mut self, estimate: f64) -> Self {
        self.seconds = if estimate.is_finite() { estimate.max(0.0) } else { 0.0 };
        self
    }

    /// Memory that it takes when it starts and holds until the last task that depends on it has run.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Tasks of the same graph that must be done before.
    pub fn after(mut self, tasks: impl IntoIterator<Item = TaskId>) -> Self {
        self.after.extend(tasks);
        self.after.sort_unstable();
        self.after.dedup();
        self
    }
}

pub(super) type Closure<'a, E> = Box<dyn FnOnce() -> Result<(), E> + Send + 'a>;

/// Tasks and their work. A task can depend on earlier ones only, so that there are no cycles.
pub struct TaskGraph<'a, E> {
    pub(super) tasks: Vec<Task>,
    pub(super) work: Vec<Closure<'a, E>>,
}

impl<E> Default for TaskGraph<'_, E> {
    fn default() -> Self {
        Self { tasks: Vec::new(), work: Vec::new() }
    }
}

impl<'a, E> TaskGraph<'a, E> {
    /// No tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task. The order of additions is the one that memory is planned by: add tasks in an order in which they could
    /// run one by one.
    pub fn add(&mut self, task: Task, work: impl FnOnce() -> Result<(), E> + Send + 'a) -> TaskId {
        self.tasks.push(task);
        self.work.push(Box::new(work));
        TaskId(self.tasks.len() - 1)
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The first task with a dependency that was not added before it.
    pub(super) fn dangling(&self) -> Option<&Task> {
        self.tasks.iter().enumerate().find(|(i, t)| t.after.iter().any(|d| d.0 >= *i)).map(|(_, t)| t)
    }
}

/// When a task ran.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSpan {
    /// The task.
    pub task: TaskId,
    /// Its name.
    pub name: String,
    /// The resource that it is shown under.
    pub resource: Resource,
    /// Since the graph was handed over.
    pub start: Duration,
    /// Since the graph was handed over.
    pub end: Duration,
    /// Memory that it held.
    pub bytes: u64,
}

/// What became of a graph.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Schedule {
    /// Every task, in the order of their starts.
    pub spans: Vec<TaskSpan>,
    /// From handing the graph over to its last end.
    pub makespan: Duration,
    /// Most memory that all tasks together, those of other graphs included, held meanwhile.
    pub peak_bytes: u64,
}

impl Schedule {
    /// Time in which at least one task of `resource` ran, over the makespan: from 0 to 1.
    pub fn busy(&self, resource: Resource) -> f64 {
        let spans = self.spans.iter().filter(|s| s.resource == resource).map(|s| (s.start, s.end));
        let covered = covered(spans.collect()).as_secs_f64();
        if self.makespan.is_zero() { 0.0 } else { covered / self.makespan.as_secs_f64() }
    }
}

/// Length of the union of intervals.
pub(crate) fn covered(mut intervals: Vec<(Duration, Duration)>) -> Duration {
    intervals.sort_unstable();
    let (mut sum, mut reached) = (Duration::ZERO, Duration::ZERO);
    for (start, end) in intervals {
        sum += end.saturating_sub(start.max(reached));
        reached = reached.max(end);
    }
    sum
}

/// Where a task leaves a result for a task that depends on it.
#[derive(Debug)]
pub struct Slot<T>(Mutex<Option<T>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Slot<T> {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves a result, replacing one that is there.
    pub fn put(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    /// Takes the result, `None` if there is none (any more).
    pub fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<T: Clone> Slot<T> {
    /// A copy of the result, which stays.
    pub fn get(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_of_intervals() {
        let ms = Duration::from_millis;
        assert_eq!(covered(vec![]), ms(0));
        assert_eq!(covered(vec![(ms(5), ms(7)), (ms(0), ms(3)), (ms(1), ms(2)), (ms(2), ms(4))]), ms(6));
    }

    #[test]
    fn a_slot_gives_once() {
        let slot = Slot::new();
        assert_eq!(slot.take(), None);
        slot.put(7);
        assert_eq!((slot.get(), slot.take(), slot.take()), (Some(7), Some(7), None));
    }

    #[test]
    fn estimates_are_numbers() {
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(Task::new("x", Demand::link()).seconds(bad).seconds, 0.0);
        }
    }
}
