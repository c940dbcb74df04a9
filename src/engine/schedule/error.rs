//! Why a graph of tasks did not finish.

use thiserror::Error;

/// What ended a graph: the first failure. Tasks that had not started by then were cancelled.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScheduleError<E: std::error::Error + 'static> {
    /// A task returned an error.
    #[error("task `{task}`: {source}")]
    Task {
        /// Its name.
        task: String,
        /// What it returned.
        source: E,
    },
    /// A task panicked, which is a bug.
    #[error("task `{task}` panicked: {message}; please report this")]
    Panicked {
        /// Its name.
        task: String,
        /// The panic's message.
        message: String,
    },
    /// A task depends on one that was not added before it.
    #[error("task `{task}` depends on a task that is not in its graph")]
    UnknownDependency {
        /// Its name.
        task: String,
    },
    /// The scheduler was dropped before the graph was done.
    #[error("the scheduler was stopped before its work was done")]
    Stopped,
    /// The system gives no threads.
    #[error("the scheduler cannot start a thread ({reason}): free some, or lower --threads")]
    Threads {
        /// The system's reason.
        reason: String,
    },
}

impl<E: std::error::Error + 'static> ScheduleError<E> {
    /// What the task returned, or else the whole sentence made into an error by `other`.
    pub fn into_source(self, other: impl FnOnce(String) -> E) -> E {
        match self {
            Self::Task { source, .. } => source,
            error => other(error.to_string()),
        }
    }
}
