//! Which task starts next: one piece of code for the executor and the simulation. It knows no clock and no closures.
//!
//! Order: graphs in the order of their submission, and within a graph the task with the longest remaining estimate, its own
//! and that of the longest chain of what depends on it (the "upward rank" of list scheduling: Topcuoglu, Hariri, Wu,
//! "Performance-effective and low-complexity task scheduling for heterogeneous computing", 2002). A task that does not fit
//! does not hold up one of less weight that does.
//!
//! Memory: call *serial continuation* what would happen if from now on the tasks that are left ran one by one in the order
//! of their submission. A task may start if what is held then stays within the budget and the peak of the serial
//! continuation does not rise above what it was or the budget, whichever is more. The first task that is left may start
//! whenever nothing runs. So the memory held never exceeds the larger of the budget and the peak of running everything one
//! by one, and some task can always start when none runs.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::task::{Capacity, Demand, Task};

/// Which of the ready tasks goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The most remaining work.
    CriticalPath,
    /// The first submitted; for comparison.
    #[cfg(test)]
    Submission,
}

/// All tasks of all graphs that are not over yet.
pub(super) struct Policy {
    order: Order,
    capacity: Capacity,
    free: Capacity,
    /// In the order of submission.
    nodes: BTreeMap<usize, Node>,
    /// Tasks that may start: graph, remaining work (the bits of a number that is not negative sort like the number), task.
    ready: BTreeSet<(usize, Reverse<u64>, usize)>,
    next: usize,
    running: usize,
    held: u64,
    /// Bytes of tasks that have not started.
    to_come: u64,
}

struct Node {
    graph: usize,
    demand: Demand,
    bytes: u64,
    rank: f64,
    inputs: Vec<usize>,
    dependants: Vec<usize>,
    /// Dependencies that are not done.
    missing: usize,
    /// Dependants that are not done.
    users: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Done,
}

impl Policy {
    pub fn new(order: Order, capacity: Capacity) -> Self {
        Self {
            order,
            capacity,
            free: capacity,
            nodes: BTreeMap::new(),
            ready: BTreeSet::new(),
            next: 0,
            running: 0,
            held: 0,
            to_come: 0,
        }
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Adds graph number `graph`, whose dependencies have been checked, and returns the number of its first task; the others
    /// follow.
    pub fn submit(&mut self, graph: usize, tasks: &[Task]) -> usize {
        let first = self.next;
        self.next += tasks.len();
        let mut dependants = vec![Vec::new(); tasks.len()];
        for (i, task) in tasks.iter().enumerate() {
            task.after.iter().for_each(|d| dependants[d.0].push(i));
        }
        let mut ranks = vec![0.0f64; tasks.len()];
        for i in (0..tasks.len()).rev() {
            let longest = dependants[i].iter().map(|&d| ranks[d]).fold(0.0, f64::max);
            ranks[i] = tasks[i].seconds + longest;
        }
        for (i, (task, dependants)) in tasks.iter().zip(dependants).enumerate() {
            let node = Node {
                graph,
                demand: self.capacity.clamp(task.demand),
                bytes: task.bytes,
                rank: ranks[i],
                inputs: task.after.iter().map(|d| first + d.0).collect(),
                missing: task.after.len(),
                users: dependants.len(),
                dependants: dependants.into_iter().map(|d| first + d).collect(),
                state: State::Waiting,
            };
            self.to_come = self.to_come.saturating_add(task.bytes);
            if node.missing == 0 {
                self.ready.insert(self.key(first + i, &node));
            }
            self.nodes.insert(first + i, node);
        }
        first
    }

    fn key(&self, id: usize, node: &Node) -> (usize, Reverse<u64>, usize) {
        match self.order {
            Order::CriticalPath => (node.graph, Reverse(node.rank.to_bits()), id),
            #[cfg(test)]
            Order::Submission => (node.graph, Reverse(0), id),
        }
    }

    /// The task to start now, which then counts as running, or `None` if all must wait.
    pub fn start(&mut self) -> Option<usize> {
        let found = self.ready.iter().copied().find(|&(_, _, id)| {
            self.nodes.get(&id).is_some_and(|node| self.has_room(node.demand) && self.may_hold(id, node.bytes))
        })?;
        self.ready.remove(&found);
        let id = found.2;
        let node = self.nodes.get_mut(&id)?;
        node.state = State::Running;
        self.free.device -= node.demand.device;
        self.free.threads -= node.demand.threads;
        self.free.link -= node.demand.link;
        self.held = self.held.saturating_add(node.bytes);
        self.to_come = self.to_come.saturating_sub(node.bytes);
        self.running += 1;
        Some(id)
    }

    /// Counts a running task as done: gives its resources back, releases memory that nobody reads any more, and makes ready
    /// what waited for it only.
    pub fn finish(&mut self, id: usize) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.state == State::Running) else { return };
        node.state = State::Done;
        let (demand, inputs, dependants) = (node.demand, node.inputs.clone(), node.dependants.clone());
        self.running -= 1;
        self.free.device += demand.device;
        self.free.threads += demand.threads;
        self.free.link += demand.link;
        for d in dependants {
            if let Some(node) = self.nodes.get_mut(&d) {
                node.missing -= 1;
                if node.missing == 0 && node.state == State::Waiting {
                    let key = (d, &self.nodes[&d]);
                    let key = self.key(key.0, key.1);
                    self.ready.insert(key);
                }
            }
        }
        self.release_inputs(&inputs);
        self.forget_unused(id);
    }

    /// Removes the tasks of a graph that have not started; returns their numbers.
    pub fn cancel(&mut self, graph: usize) -> Vec<usize> {
        let waiting = |(&id, n): (&usize, &Node)| (n.graph == graph && n.state == State::Waiting).then_some(id);
        let cancelled: Vec<usize> = self.nodes.iter().filter_map(waiting).collect();
        for id in &cancelled {
            if let Some(node) = self.nodes.remove(id) {
                self.ready.remove(&self.key(*id, &node));
                self.to_come = self.to_come.saturating_sub(node.bytes);
                self.release_inputs(&node.inputs);
            }
        }
        cancelled
    }

    /// One reader less for each of `inputs`.
    fn release_inputs(&mut self, inputs: &[usize]) {
        for &input in inputs {
            if let Some(node) = self.nodes.get_mut(&input) {
                node.users = node.users.saturating_sub(1);
            }
            self.forget_unused(input);
        }
    }

    /// Releases a task that is done and has no readers left.
    fn forget_unused(&mut self, id: usize) {
        if self.nodes.get(&id).is_some_and(|n| n.state == State::Done && n.users == 0)
            && let Some(node) = self.nodes.remove(&id)
        {
            self.held = self.held.saturating_sub(node.bytes);
        }
    }

    fn has_room(&self, demand: Demand) -> bool {
        let free = &self.free;
        demand.device <= free.device && demand.threads <= free.threads && demand.link <= free.link
    }

    fn may_hold(&self, id: usize, bytes: u64) -> bool {
        let budget = self.capacity.bytes;
        let held = self.held.saturating_add(bytes);
        if self.held.saturating_add(self.to_come) <= budget {
            return true;
        }
        let first_left = || self.nodes.iter().find(|(_, n)| n.state == State::Waiting).map(|(&first, _)| first);
        if self.running == 0 && first_left() == Some(id) {
            return true;
        }
        held <= budget && self.serial_peak(Some(id)) <= self.serial_peak(None).max(budget)
    }

    /// Most memory held if `starting` started now and then all that is left ran one by one in the order of submission.
    fn serial_peak(&self, starting: Option<usize>) -> u64 {
        let mut held = self.held.saturating_add(starting.and_then(|id| self.nodes.get(&id)).map_or(0, |n| n.bytes));
        let mut peak = held;
        let mut users: BTreeMap<usize, usize> = self.nodes.iter().map(|(&id, n)| (id, n.users)).collect();
        for (&id, node) in self.nodes.iter().filter(|(_, n)| n.state != State::Done) {
            if node.state == State::Waiting && starting != Some(id) {
                held = held.saturating_add(node.bytes);
                peak = peak.max(held);
            }
            for input in &node.inputs {
                let Some(left) = users.get_mut(input) else { continue };
                *left = left.saturating_sub(1);
                if *left == 0 {
                    held = held.saturating_sub(self.nodes.get(input).map_or(0, |n| n.bytes));
                }
            }
            if node.users == 0 {
                held = held.saturating_sub(node.bytes);
            }
        }
        peak
    }
}
