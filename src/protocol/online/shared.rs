//! The layers of a stage that are evaluated on shares: their protocols as tasks, side by side, and the way of their messages.

use std::collections::VecDeque;

use crate::{
    model::NodeId,
    mpc::shared::{Step, Task},
    protocol::{ChunkKey, Message, ProtocolError, Result},
};

/// The tasks of one stage at one party, each for a chunk of a node. `T` is what a task gives.
pub(super) struct SharedTasks<T> {
    tasks: Vec<(ChunkKey, Task<T>)>,
    /// Messages to the other party, in order.
    pub outgoing: VecDeque<Message>,
    /// What has been computed, to be taken by the machine.
    pub finished: Vec<(ChunkKey, T)>,
}

impl<T> SharedTasks<T> {
    /// No task.
    pub fn new() -> Self {
        Self { tasks: Vec::new(), outgoing: VecDeque::new(), finished: Vec::new() }
    }

    /// Whether every task has ended.
    pub fn is_done(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Starts a task, which runs until it waits for the other party.
    pub fn start(&mut self, key: ChunkKey, task: Task<T>) -> Result<()> {
        self.run(self.tasks.len(), key, task, None)
    }

    /// Hands a message to its task. Returns the node.
    pub fn deliver(&mut self, node: u32, chunk: u32, payload: Vec<u8>) -> Result<NodeId> {
        let key = (NodeId(node as usize), chunk as usize);
        let at = self.tasks.iter().position(|(k, _)| *k == key).ok_or_else(|| ProtocolError::Mismatch {
            detail: format!("a message for chunk {chunk} of node {node}, which is not being evaluated on shares"),
        })?;
        let (key, task) = self.tasks.remove(at);
        self.run(at, key, task, Some(payload))?;
        Ok(key.0)
    }

    /// Runs a task until it waits, when it goes to place `at`, or has ended.
    fn run(&mut self, at: usize, key: ChunkKey, mut task: Task<T>, mut incoming: Option<Vec<u8>>) -> Result<()> {
        loop {
            match task.resume(incoming.take())? {
                Step::Send(payload) => {
                    let (node, chunk) = (key.0.0 as u32, key.1 as u32);
                    self.outgoing.push_back(Message::Shared { node, chunk, payload });
                }
                Step::Receive => {
                    self.tasks.insert(at, (key, task));
                    return Ok(());
                }
                Step::Done(result) => {
                    self.finished.push((key, result));
                    return Ok(());
                }
            }
        }
    }
}
