//! The policy on a clock of its own: every task takes exactly its estimate.

use std::time::Duration;

use super::{
    Capacity, Schedule, ScheduleError, TaskGraph, TaskId, TaskSpan,
    policy::{Order, Policy},
};

/// What [`super::run`] would do if all estimates were right. No closure is called, no real time passes, and the same graph
/// always gives the same schedule.
///
/// # Errors
/// [`ScheduleError::UnknownDependency`].
pub fn simulate<E: std::error::Error + 'static>(
    graph: &TaskGraph<'_, E>,
    capacity: Capacity,
) -> Result<Schedule, ScheduleError<E>> {
    simulate_in(Order::CriticalPath, graph, capacity)
}

fn simulate_in<E: std::error::Error + 'static>(
    order: Order,
    graph: &TaskGraph<'_, E>,
    capacity: Capacity,
) -> Result<Schedule, ScheduleError<E>> {
    if let Some(task) = graph.dangling() {
        return Err(ScheduleError::UnknownDependency { task: task.name.clone() });
    }
    let mut policy = Policy::new(order, capacity);
    policy.submit(0, &graph.tasks);
    let (mut now, mut peak_bytes) = (0.0f64, 0);
    let mut running: Vec<(f64, usize)> = Vec::new();
    let mut spans = Vec::with_capacity(graph.len());
    loop {
        while let Some(id) = policy.start() {
            let task = &graph.tasks[id];
            let end = now + task.seconds;
            peak_bytes = policy.held().max(peak_bytes);
            running.push((end, id));
            spans.push(TaskSpan {
                task: TaskId(id),
                name: task.name.clone(),
                resource: task.demand.resource(),
                start: seconds(now),
                end: seconds(end),
                bytes: task.bytes,
            });
        }
        let Some(end) = running.iter().map(|&(end, _)| end).min_by(f64::total_cmp) else { break };
        now = end;
        running.retain(|&(end, id)| {
            if end <= now {
                policy.finish(id);
            }
            end > now
        });
    }
    Ok(Schedule { spans, makespan: seconds(now), peak_bytes })
}

fn seconds(x: f64) -> Duration {
    Duration::try_from_secs_f64(x).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::schedule::{Demand, Task};

    type Graph = TaskGraph<'static, Infallible>;

    fn add(graph: &mut Graph, name: &str, demand: Demand, seconds: f64, bytes: u64, after: &[TaskId]) -> TaskId {
        graph.add(Task::new(name, demand).seconds(seconds).bytes(bytes).after(after.iter().copied()), || Ok(()))
    }

    fn span<'a>(schedule: &'a Schedule, name: &str) -> &'a TaskSpan {
        schedule.spans.iter().find(|s| s.name == name).unwrap()
    }

    /// Short independent tasks were submitted before a long chain: submission order starts the chain last.
    #[test]
    fn the_critical_path_goes_first() {
        let mut graph = Graph::new();
        for i in 0..6 {
            add(&mut graph, &format!("short {i}"), Demand::threads(1), 1.0, 0, &[]);
        }
        let mut last = Vec::new();
        for i in 0..5 {
            last = vec![add(&mut graph, &format!("chain {i}"), Demand::threads(1), 1.0, 0, &last)];
        }
        let capacity = Capacity::new(2, u64::MAX);
        let best = simulate(&graph, capacity).unwrap();
        let fifo = simulate_in(Order::Submission, &graph, capacity).unwrap();
        // 11 s of work on two threads, a chain of 5 s.
        assert_eq!((best.makespan.as_secs(), fifo.makespan.as_secs()), (6, 8));
        assert_eq!(span(&best, "chain 0").start, Duration::ZERO);
        assert!(best.busy(super::super::Resource::Cpu) > 0.99 && best.busy(super::super::Resource::Link) == 0.0);
    }

    /// The pipeline that the scheduler is for: sample on the CPU, compute on the device, cut on the CPU, for every batch.
    #[test]
    fn stages_of_different_batches_overlap() {
        let mut graph = Graph::new();
        for i in 0..4 {
            let sample = add(&mut graph, &format!("sample {i}"), Demand::threads(1), 1.0, 10, &[]);
            let multiply = add(&mut graph, &format!("multiply {i}"), Demand::device(), 1.0, 10, &[]);
            let blind = add(&mut graph, &format!("blind {i}"), Demand::device(), 1.0, 10, &[sample, multiply]);
            add(&mut graph, &format!("cut {i}"), Demand::threads(1), 1.0, 0, &[blind]);
        }
        let schedule = simulate(&graph, Capacity::new(1, u64::MAX)).unwrap();
        // 8 s of the device, then one cut; one by one it would be 16 s.
        assert_eq!(schedule.makespan.as_secs(), 9);
        // A budget of one batch makes it one after another, but for the cuts.
        let tight = simulate(&graph, Capacity::new(1, 30)).unwrap();
        assert!(tight.peak_bytes <= 30 && tight.makespan > schedule.makespan);
    }

    #[test]
    fn what_exceeds_the_budget_runs_alone() {
        let mut graph = Graph::new();
        let big = add(&mut graph, "big", Demand::threads(1), 1.0, 500, &[]);
        for i in 0..3 {
            add(&mut graph, &format!("small {i}"), Demand::threads(1), 1.0, 40, &[]);
        }
        add(&mut graph, "reads big", Demand::threads(1), 1.0, 0, &[big]);
        let schedule = simulate(&graph, Capacity::new(4, 100)).unwrap();
        let big = span(&schedule, "big");
        let overlaps = |s: &&TaskSpan| s.task != big.task && s.start < big.end && big.start < s.end;
        assert_eq!(schedule.spans.iter().filter(overlaps).count(), 0);
        assert_eq!(schedule.spans.len(), 5);
    }

    /// Two chains that each fit, but whose first halves together would leave no room for either second half.
    #[test]
    fn memory_is_not_given_away_that_a_started_chain_needs() {
        let mut graph = Graph::new();
        for name in ["a", "b"] {
            let first = add(&mut graph, &format!("{name} 1"), Demand::threads(1), 1.0, 50, &[]);
            let second = add(&mut graph, &format!("{name} 2"), Demand::threads(1), 1.0, 50, &[first]);
            add(&mut graph, &format!("{name} 3"), Demand::threads(1), 1.0, 0, &[second]);
        }
        let schedule = simulate(&graph, Capacity::new(4, 100)).unwrap();
        assert_eq!((schedule.spans.len(), schedule.peak_bytes), (6, 100));
        assert!(span(&schedule, "b 1").start >= span(&schedule, "a 2").end);
    }

    #[test]
    fn wide_tasks_take_what_there_is() {
        let mut graph = Graph::new();
        add(&mut graph, "wide", Demand::threads(64), 1.0, 0, &[]);
        add(&mut graph, "on a device that is not there", Demand::device(), 1.0, 0, &[]);
        let schedule = simulate(&graph, Capacity { device: 0, threads: 2, link: 1, bytes: 0 }).unwrap();
        assert_eq!(schedule.spans.len(), 2);
    }

    #[test]
    fn a_task_of_another_graph_is_an_error() {
        let mut other = Graph::new();
        add(&mut other, "x", Demand::link(), 1.0, 0, &[]);
        let foreign = add(&mut other, "y", Demand::link(), 1.0, 0, &[]);
        let mut graph = Graph::new();
        add(&mut graph, "lost", Demand::link(), 1.0, 0, &[foreign]);
        let error = simulate(&graph, Capacity::new(1, 0)).unwrap_err();
        assert!(error.to_string().contains("lost"), "{error}");
    }

    #[derive(Debug, Clone)]
    struct Spec {
        kind: u8,
        threads: usize,
        seconds: u8,
        bytes: u64,
        after: Vec<usize>,
    }

    fn specs() -> impl Strategy<Value = Vec<Spec>> {
        let spec = (0u8..4, 1usize..5, 0u8..6, 0u64..120, prop::collection::vec(any::<prop::sample::Index>(), 0..4));
        prop::collection::vec(spec, 1..40).prop_map(|specs| {
            let build = |(i, (kind, threads, seconds, bytes, after)): (usize, (u8, usize, u8, u64, Vec<_>))| Spec {
                kind,
                threads,
                seconds,
                bytes,
                after: if i == 0 {
                    Vec::new()
                } else {
                    after.iter().map(|at: &prop::sample::Index| at.index(i)).collect()
                },
            };
            specs.into_iter().enumerate().map(build).collect()
        })
    }

    fn build(specs: &[Spec]) -> Graph {
        let mut graph = Graph::new();
        let mut ids = Vec::new();
        for (i, s) in specs.iter().enumerate() {
            let demand = match s.kind {
                0 => Demand::device(),
                1 => Demand::link(),
                _ => Demand::threads(s.threads),
            };
            let after: Vec<TaskId> = s.after.iter().map(|&d| ids[d]).collect();
            ids.push(add(&mut graph, &i.to_string(), demand, s.seconds as f64, s.bytes, &after));
        }
        graph
    }

    /// Most memory of running the tasks one by one in their order, counted plainly.
    fn one_by_one(specs: &[Spec]) -> u64 {
        let last_reader = |i: usize| (i..specs.len()).rev().find(|&j| specs[j].after.contains(&i)).unwrap_or(i);
        let held = |now: usize| -> u64 { (0..=now).filter(|&i| last_reader(i) >= now).map(|i| specs[i].bytes).sum() };
        (0..specs.len()).map(held).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn every_graph_runs_within_its_limits(specs in specs(), threads in 1usize..5, budget in 0u64..400) {
            let graph = build(&specs);
            let capacity = Capacity::new(threads, budget);
            let schedule = simulate(&graph, capacity).unwrap();
            prop_assert_eq!(schedule.spans.len(), specs.len(), "no deadlock");
            prop_assert_eq!(&simulate(&graph, capacity).unwrap(), &schedule, "deterministic");

            let mut at = vec![(Duration::ZERO, Duration::ZERO); specs.len()];
            schedule.spans.iter().for_each(|s| at[s.task.0] = (s.start, s.end));
            for (i, spec) in specs.iter().enumerate() {
                for &d in &spec.after {
                    prop_assert!(at[d].1 <= at[i].0, "{} ran before its dependency {}", i, d);
                }
            }
            // At every start: resources, and memory counted plainly.
            for &(now, _) in &at {
                let running: Vec<usize> = (0..specs.len()).filter(|&i| at[i].0 <= now && now < at[i].1).collect();
                let sum = |kind: fn(u8) -> bool, width: fn(&Spec) -> usize| -> usize {
                    running.iter().filter(|&&i| kind(specs[i].kind)).map(|&i| width(&specs[i])).sum()
                };
                prop_assert!(sum(|k| k == 0, |_| 1) <= 1);
                prop_assert!(sum(|k| k == 1, |_| 1) <= 1);
                // A task that wants more than there is takes all.
                let used: usize = running.iter().filter(|&&i| specs[i].kind > 1).map(|&i| specs[i].threads.min(threads)).sum();
                prop_assert!(used <= threads);
            }
            prop_assert!(schedule.peak_bytes <= budget.max(one_by_one(&specs)));
            let work: u64 = specs.iter().map(|s| s.seconds as u64).sum();
            prop_assert!(schedule.makespan.as_secs() <= work, "never slower than one by one");
        }

        /// Memory that the schedule reports is what its spans say, where no task takes no time.
        #[test]
        fn memory_is_counted_from_start_to_last_reader(mut specs in specs(), budget in 0u64..400) {
            specs.iter_mut().for_each(|s| s.seconds += 1);
            let schedule = simulate(&build(&specs), Capacity::new(3, budget)).unwrap();
            let mut at = vec![(Duration::ZERO, Duration::ZERO); specs.len()];
            schedule.spans.iter().for_each(|s| at[s.task.0] = (s.start, s.end));
            let released = |i: usize| {
                let readers = (0..specs.len()).filter(|&j| specs[j].after.contains(&i));
                readers.map(|j| at[j].1).max().unwrap_or(at[i].1)
            };
            let held = |now: Duration| -> u64 {
                (0..specs.len()).filter(|&i| at[i].0 <= now && now < released(i)).map(|i| specs[i].bytes).sum()
            };
            prop_assert_eq!(at.iter().map(|&(start, _)| held(start)).max().unwrap_or(0), schedule.peak_bytes);
        }
    }
}
