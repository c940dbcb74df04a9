//! A scheduler for the host: keeps the device, the CPU's threads and the link busy at the same time.
//!
//! Work is a [`TaskGraph`]: tasks with dependencies, the resources that each wants, an estimate of its time and the memory
//! that it holds until the last task that reads its result has run. [`run`] executes a graph, a [`Scheduler`] any number of
//! graphs one after another and side by side on threads of its own, and [`simulate`] plays the same policy on a clock of its
//! own, for plans and tests. [`CostModel`] gives the estimates, measured on the machine.
//!
//! The policy, in `policy.rs`: of the tasks whose dependencies are done and whose resources are free, the one with the most
//! work behind it (itself and the longest chain of what depends on it) starts first. Memory holds tasks back: what is held
//! stays within the budget, or within what running the tasks one by one in the order of their submission would need, if
//! that is more. There is no deadlock, because that order always remains possible. Section "Scheduling" of
//! `ARCHITECTURE.md` has the argument.

mod cache;
mod cost;
mod error;
mod execute;
mod policy;
mod simulate;
mod task;

pub use cache::{CacheOutcome, CostCache};
pub use cost::{CostKey, CostModel, HostRates, Work};
pub use error::ScheduleError;
pub use execute::{Job, Scheduler, run};
pub use simulate::simulate;
#[cfg(feature = "protocol")]
pub(crate) use task::covered;
pub use task::{Capacity, Demand, Resource, Schedule, Slot, Task, TaskGraph, TaskId, TaskSpan};
