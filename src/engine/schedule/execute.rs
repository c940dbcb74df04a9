//! Runs graphs on threads. Waiting is on a condition variable; nothing spins.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Capacity, Schedule, ScheduleError, TaskGraph, TaskId, TaskSpan,
    policy::{Order, Policy},
    task::Closure,
};

/// Runs a graph on threads that live as long as the call, and returns when every task has ended.
///
/// # Errors
/// The first failure of a task: those that have not started are then cancelled, those that run are waited for.
pub fn run<'a, E: std::error::Error + Send + 'static>(
    graph: TaskGraph<'a, E>,
    capacity: Capacity,
) -> Result<Schedule, ScheduleError<E>> {
    let workers = capacity.workers().min(graph.len());
    let core: Core<'a> = Core::new(capacity);
    let failure = Failure::default();
    let number = core.submit(graph, &failure)?;
    core.lock().closed = true;
    thread::scope(|scope| {
        // This thread works as well.
        for i in 1..workers {
            let spawned = thread::Builder::new().name(format!("schedule {i}")).spawn_scoped(scope, || core.work());
            if let Err(e) = spawned {
                log::warn!("a graph of tasks runs on {i} threads instead of {workers}: {e}");
                break;
            }
        }
        core.work();
    });
    core.collect(number, &failure)
}

/// Runs graphs on threads of its own: one graph begins when another one still runs, in the order of their submission where
/// they want the same resource. Dropping it cancels what has not started and waits for what runs.
pub struct Scheduler {
    core: Arc<Core<'static>>,
    threads: Vec<JoinHandle<()>>,
    capacity: Capacity,
}

impl Scheduler {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no thread. If it gives fewer than there could be tasks at once, a warning is logged.
    pub fn new(capacity: Capacity) -> std::io::Result<Self> {
        let core = Arc::new(Core::new(capacity));
        let mut threads = Vec::new();
        for i in 0..capacity.workers() {
            let core = core.clone();
            match thread::Builder::new().name(format!("schedule {i}")).spawn(move || core.work()) {
                Ok(thread) => threads.push(thread),
                Err(e) if i == 0 => return Err(e),
                Err(e) => {
                    log::warn!("the scheduler has {i} threads instead of {}: {e}", capacity.workers());
                    break;
                }
            }
        }
        Ok(Self { core, threads, capacity })
    }

    /// What it was made for.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Hands a graph over.
    ///
    /// # Errors
    /// [`ScheduleError::UnknownDependency`].
    pub fn submit<E: std::error::Error + Send + 'static>(
        &self,
        graph: TaskGraph<'static, E>,
    ) -> Result<Job<E>, ScheduleError<E>> {
        let failure = Failure::default();
        let number = self.core.submit(graph, &failure)?;
        Ok(Job { core: self.core.clone(), number, failure, collected: false })
    }

    /// Hands a graph over and waits for its end.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run<E: std::error::Error + Send + 'static>(
        &self,
        graph: TaskGraph<'static, E>,
    ) -> Result<Schedule, ScheduleError<E>> {
        self.submit(graph)?.wait()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.core.close();
        for thread in self.threads.drain(..) {
            // A task may own the last handle of the scheduler that runs it.
            if thread.thread().id() != thread::current().id() {
                // Workers do not panic: they catch the panics of tasks.
                let _ = thread.join();
            }
        }
    }
}

/// A graph under way. Dropping it cancels the tasks that have not started.
pub struct Job<E: std::error::Error + 'static> {
    core: Arc<Core<'static>>,
    number: usize,
    failure: Arc<Failure<E>>,
    collected: bool,
}

impl<E: std::error::Error + 'static> Job<E> {
    /// Whether every task has ended.
    pub fn is_done(&self) -> bool {
        self.core.lock().graphs.get(&self.number).is_none_or(|g| g.left == 0)
    }

    /// Waits until every task has ended or was cancelled.
    ///
    /// # Errors
    /// As [`run`]; [`ScheduleError::Stopped`] if the scheduler was dropped.
    pub fn wait(mut self) -> Result<Schedule, ScheduleError<E>> {
        self.core.wait_for(self.number);
        self.collected = true;
        self.core.collect(self.number, &self.failure)
    }
}

impl<E: std::error::Error + 'static> Drop for Job<E> {
    fn drop(&mut self) {
        if !self.collected {
            self.core.abandon(self.number);
        }
    }
}

/// The first failure of a graph.
struct Failure<E: std::error::Error + 'static>(Mutex<Option<ScheduleError<E>>>);

impl<E: std::error::Error + 'static> Failure<E> {
    fn default() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<ScheduleError<E>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task; whether it went well. Only the first failure is kept.
    fn watch(&self, task: &str, work: Closure<'_, E>) -> bool {
        let error = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => return true,
            Ok(Err(source)) => ScheduleError::Task { task: task.to_owned(), source },
            Err(panic) => ScheduleError::Panicked { task: task.to_owned(), message: message(&*panic) },
        };
        self.lock().get_or_insert(error);
        false
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// What threads and submitters share.
struct Core<'a> {
    state: Mutex<State<'a>>,
    changed: Condvar,
}

/// A task's work and whether it went well.
type Work<'a> = Box<dyn FnOnce() -> bool + Send + 'a>;

struct State<'a> {
    policy: Policy,
    /// By task.
    waiting: BTreeMap<usize, Entry<'a>>,
    /// By number.
    graphs: BTreeMap<usize, Progress>,
    next_graph: usize,
    /// No more graphs will come.
    closed: bool,
}

struct Entry<'a> {
    graph: usize,
    span: TaskSpan,
    work: Work<'a>,
}

struct Progress {
    submitted: Instant,
    /// Tasks that have neither ended nor been cancelled.
    left: usize,
    cancelled: usize,
    /// Nobody waits for it.
    abandoned: bool,
    schedule: Schedule,
}

impl<'a> Core<'a> {
    fn new(capacity: Capacity) -> Self {
        let state = State {
            policy: Policy::new(Order::CriticalPath, capacity),
            waiting: BTreeMap::new(),
            graphs: BTreeMap::new(),
            next_graph: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'b>(&self, state: MutexGuard<'b, State<'a>>) -> MutexGuard<'b, State<'a>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn submit<E: std::error::Error + Send + 'static>(
        &self,
        graph: TaskGraph<'a, E>,
        failure: &Arc<Failure<E>>,
    ) -> Result<usize, ScheduleError<E>> {
        if let Some(task) = graph.dangling() {
            return Err(ScheduleError::UnknownDependency { task: task.name.clone() });
        }
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.closed {
            return Err(ScheduleError::Stopped);
        }
        let number = state.next_graph;
        state.next_graph += 1;
        let first = state.policy.submit(number, &graph.tasks);
        let left = graph.tasks.len();
        for (i, (task, work)) in graph.tasks.into_iter().zip(graph.work).enumerate() {
            let span = TaskSpan {
                task: TaskId(i),
                name: task.name.clone(),
                resource: task.demand.resource(),
                start: Duration::ZERO,
                end: Duration::ZERO,
                bytes: task.bytes,
            };
            let failure = failure.clone();
            let work = Box::new(move || failure.watch(&task.name, work));
            state.waiting.insert(first + i, Entry { graph: number, span, work });
        }
        let schedule = Schedule::default();
        let progress = Progress { submitted: Instant::now(), left, cancelled: 0, abandoned: false, schedule };
        state.graphs.insert(number, progress);
        self.changed.notify_all();
        Ok(number)
    }

    /// A worker's life: takes tasks until no more will come.
    fn work(&self) {
        let mut guard = self.lock();
        loop {
            let state = &mut *guard;
            let Some(id) = state.policy.start() else {
                if state.closed && state.waiting.is_empty() {
                    // Others may be waiting for the same end.
                    self.changed.notify_all();
                    return;
                }
                guard = self.wait(guard);
                continue;
            };
            let entry = state.waiting.remove(&id);
            let held = state.policy.held();
            for progress in state.graphs.values_mut().filter(|p| p.left > 0) {
                progress.schedule.peak_bytes = progress.schedule.peak_bytes.max(held);
            }
            let Some(Entry { graph, mut span, work }) = entry else {
                // Every task of the policy has an entry; one without has nothing to do.
                state.policy.finish(id);
                continue;
            };
            let submitted = state.graphs.get(&graph).map(|p| p.submitted);
            let since = |submitted: Option<Instant>| submitted.map_or(Duration::ZERO, |s| s.elapsed());
            span.start = since(submitted);
            drop(guard);
            let well = work();
            guard = self.lock();
            let state = &mut *guard;
            span.end = since(submitted);
            state.policy.finish(id);
            let cancelled = if well { Vec::new() } else { state.cancel(graph) };
            if let Some(progress) = state.graphs.get_mut(&graph) {
                progress.left -= 1;
                progress.schedule.makespan = progress.schedule.makespan.max(span.end);
                progress.schedule.spans.push(span);
            }
            state.forget(graph);
            self.changed.notify_all();
            if !cancelled.is_empty() {
                drop(guard);
                drop(cancelled);
                guard = self.lock();
            }
        }
    }

    fn wait_for(&self, graph: usize) {
        let mut guard = self.lock();
        while guard.graphs.get(&graph).is_some_and(|p| p.left > 0) {
            guard = self.wait(guard);
        }
    }

    /// The account of a graph that is over.
    fn collect<E: std::error::Error>(&self, graph: usize, failure: &Failure<E>) -> Result<Schedule, ScheduleError<E>> {
        let progress = self.lock().graphs.remove(&graph);
        if let Some(error) = failure.lock().take() {
            return Err(error);
        }
        match progress {
            Some(mut progress) if progress.cancelled == 0 => {
                progress.schedule.spans.sort_by_key(|s| (s.start, s.task));
                Ok(progress.schedule)
            }
            _ => Err(ScheduleError::Stopped),
        }
    }

    /// Cancels a graph that nobody waits for.
    fn abandon(&self, graph: usize) {
        let mut state = self.lock();
        let cancelled = state.cancel(graph);
        if let Some(progress) = state.graphs.get_mut(&graph) {
            progress.abandoned = true;
        }
        state.forget(graph);
        self.changed.notify_all();
        drop(state);
        drop(cancelled);
    }

    /// Cancels everything that has not started and lets the workers go.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let graphs: Vec<usize> = state.graphs.keys().copied().collect();
        let cancelled: Vec<_> = graphs.into_iter().map(|graph| state.cancel(graph)).collect();
        self.changed.notify_all();
        drop(state);
        drop(cancelled);
    }
}

impl<'a> State<'a> {
    /// Cancels what has not started. The closures are for the caller to drop without the lock: they may own anything.
    #[must_use]
    fn cancel(&mut self, graph: usize) -> Vec<Entry<'a>> {
        let cancelled = self.policy.cancel(graph);
        if let Some(progress) = self.graphs.get_mut(&graph) {
            progress.left -= cancelled.len();
            progress.cancelled += cancelled.len();
        }
        cancelled.iter().filter_map(|id| self.waiting.remove(id)).collect()
    }

    /// Drops the account of a graph that is over and that nobody waits for.
    fn forget(&mut self, graph: usize) {
        if self.graphs.get(&graph).is_some_and(|p| p.abandoned && p.left == 0) {
            self.graphs.remove(&graph);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::engine::schedule::{Demand, Slot, Task};

    #[derive(Debug, thiserror::Error, PartialEq, Eq)]
    #[error("no good")]
    struct NoGood;

    fn task(name: &str, after: &[TaskId]) -> Task {
        Task::new(name, Demand::threads(1)).after(after.iter().copied())
    }

    #[test]
    fn results_flow_from_task_to_task() {
        let (a, b, sum) = (Slot::new(), Slot::new(), Slot::new());
        let mut graph = TaskGraph::<NoGood>::new();
        let first = graph.add(task("a", &[]), || {
            a.put(3);
            Ok(())
        });
        let second = graph.add(task("b", &[]), || {
            b.put(4);
            Ok(())
        });
        graph.add(task("sum", &[first, second]), || {
            sum.put(a.take().ok_or(NoGood)? + b.take().ok_or(NoGood)?);
            Ok(())
        });
        let schedule = run(graph, Capacity::new(2, 0)).unwrap();
        assert_eq!((sum.take(), schedule.spans.len()), (Some(7), 3));
        let last = schedule.spans.last().unwrap();
        assert!(last.name == "sum" && schedule.spans.iter().all(|s| s.end <= schedule.makespan));
    }

    #[test]
    fn independent_tasks_run_at_the_same_time() {
        // Each waits for the other two: they end only if all three are under way at once.
        let barrier = Barrier::new(3);
        let mut graph = TaskGraph::<NoGood>::new();
        for demand in [Demand::device(), Demand::threads(1), Demand::link()] {
            graph.add(Task::new("meet", demand), || {
                barrier.wait();
                Ok(())
            });
        }
        assert_eq!(run(graph, Capacity::new(1, 0)).unwrap().spans.len(), 3);
    }

    #[test]
    fn a_failure_is_named_and_cancels_what_follows() {
        let ran = AtomicUsize::new(0);
        let mut graph = TaskGraph::new();
        let count = || {
            ran.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let first = graph.add(task("first", &[]), count);
        let bad = graph.add(task("bad", &[first]), || Err(NoGood));
        let after = graph.add(task("after", &[bad]), count);
        graph.add(task("later", &[after]), count);
        let error = run(graph, Capacity::new(1, 0)).unwrap_err();
        assert!(matches!(&error, ScheduleError::Task { task, source: NoGood } if task == "bad"));
        assert_eq!(error.to_string(), "task `bad`: no good");
        assert_eq!((ran.load(Ordering::SeqCst), error.into_source(|_| NoGood)), (1, NoGood));
    }

    #[test]
    fn a_panic_is_an_error() {
        let mut graph = TaskGraph::<NoGood>::new();
        graph.add(task("bug", &[]), || std::panic::panic_any("index 3 of 2".to_string()));
        let error = run(graph, Capacity::new(2, 0)).unwrap_err();
        assert!(
            matches!(&error, ScheduleError::Panicked { task, message } if task == "bug" && message == "index 3 of 2")
        );
    }

    #[test]
    fn an_empty_graph_is_done() {
        assert_eq!(run(TaskGraph::<NoGood>::new(), Capacity::new(2, 0)).unwrap(), Schedule::default());
        let scheduler = Scheduler::new(Capacity::new(1, 0)).unwrap();
        assert_eq!(scheduler.run(TaskGraph::<NoGood>::new()).unwrap(), Schedule::default());
    }

    #[test]
    fn graphs_share_a_scheduler() {
        let scheduler = Scheduler::new(Capacity::new(1, 100)).unwrap();
        // The device's task of the first graph waits for the CPU's of the second.
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut first = TaskGraph::<NoGood>::new();
        first.add(Task::new("wait", Demand::device()).bytes(60), move || receiver.recv().map_err(|_| NoGood));
        let mut second = TaskGraph::<NoGood>::new();
        second.add(Task::new("send", Demand::threads(1)).bytes(40), move || sender.send(()).map_err(|_| NoGood));
        let (first, second) = (scheduler.submit(first).unwrap(), scheduler.submit(second).unwrap());
        assert_eq!(first.wait().unwrap().peak_bytes, 100);
        assert_eq!(second.wait().unwrap().spans.len(), 1);

        let mut failing = TaskGraph::new();
        failing.add(task("x", &[]), || Err(NoGood));
        assert!(scheduler.run(failing).is_err());
        let mut good = TaskGraph::<NoGood>::new();
        good.add(task("y", &[]), || Ok(()));
        assert!(scheduler.run(good).is_ok(), "one graph's failure is not another's");
    }

    #[test]
    fn dropping_cancels() {
        let scheduler = Scheduler::new(Capacity::new(1, 0)).unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let ran = Arc::new(AtomicUsize::new(0));
        let mut graph = TaskGraph::<NoGood>::new();
        let held = graph.add(task("held", &[]), move || {
            // Ends with an error when the other end is dropped, which is as good.
            let _ = wait.recv();
            Ok(())
        });
        let counter = ran.clone();
        graph.add(task("never", &[held]), move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let job = scheduler.submit(graph).unwrap();
        assert!(!job.is_done());
        drop(job);
        drop(go);
        let mut graph = TaskGraph::<NoGood>::new();
        graph.add(task("next", &[]), || Ok(()));
        let job = scheduler.submit(graph).unwrap();
        drop(scheduler);
        // It either ran before the end or was cancelled by it.
        assert!(matches!(job.wait(), Ok(_) | Err(ScheduleError::Stopped)));
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// On real threads, whatever their timing: every task once, after its dependencies, within resources and memory.
        #[test]
        fn random_graphs_run(
            specs in prop::collection::vec((0u8..3, 0u64..100, prop::collection::vec(any::<prop::sample::Index>(), 0..3)), 1..25),
            threads in 1usize..4,
            budget in 0u64..300,
        ) {
            let done: Vec<AtomicUsize> = specs.iter().map(|_| AtomicUsize::new(0)).collect();
            let busy: [AtomicUsize; 3] = Default::default();
            let mut graph = TaskGraph::<NoGood>::new();
            let mut ids: Vec<TaskId> = Vec::new();
            for (i, (kind, bytes, after)) in specs.iter().enumerate() {
                let demand = [Demand::device(), Demand::threads(1), Demand::link()][*kind as usize];
                let after: Vec<usize> = if i == 0 { vec![] } else { after.iter().map(|d| d.index(i)).collect() };
                let spec = Task::new(i.to_string(), demand).bytes(*bytes).after(after.iter().map(|&d| ids[d]));
                let (done, busy) = (&done, &busy[*kind as usize]);
                let limit = if *kind == 1 { threads } else { 1 };
                ids.push(graph.add(spec, move || {
                    let well = busy.fetch_add(1, Ordering::SeqCst) < limit
                        && after.iter().all(|&d| done[d].load(Ordering::SeqCst) == 1);
                    thread::yield_now();
                    busy.fetch_sub(1, Ordering::SeqCst);
                    done[i].fetch_add(1, Ordering::SeqCst);
                    if well { Ok(()) } else { Err(NoGood) }
                }));
            }
            let capacity = Capacity::new(threads, budget);
            let schedule = run(graph, capacity);
            prop_assert!(schedule.is_ok(), "{:?}", schedule);
            let schedule = schedule.unwrap();
            prop_assert!(done.iter().all(|d| d.load(Ordering::SeqCst) == 1));
            let total: u64 = specs.iter().map(|s| s.1).sum();
            prop_assert!(schedule.peak_bytes <= budget.max(total));
        }
    }
}
