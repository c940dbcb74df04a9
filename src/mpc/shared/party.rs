//! A party of a computation on shares, and the resumable form in which it runs.
//!
//! A gadget is a straight-line `async fn` over a [`Party`]: it queues messages and awaits the peer's. There is no
//! executor and no I/O: a [`Task`] polls its future by hand and says what it wants next, so that a test, a socket or a
//! simulator of a slow link can drive it. Both parties may have messages under way at the same time.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use zeroize::Zeroizing;

use super::SharedError;
use crate::mpc::block::Block;
use crate::mpc::ot::{CotReceiverPool, CotSenderPool};
use crate::mpc::prg::Prg;

/// Shares, wiped when they go out of scope.
pub(crate) type Shares = Zeroizing<Vec<u64>>;

/// Which of the two parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the text; its share of every result is fixed beforehand.
    Client,
    /// Holds the weights.
    Server,
}

/// One party of one computation: its random COTs of both directions, its hash keys and its mailbox.
pub struct Party {
    pub(super) role: Role,
    pub(super) sender: CotSenderPool,
    pub(super) receiver: CotReceiverPool,
    seeds: Prg,
    mailbox: Mailbox,
    /// The shares at each point whose error depends on them, for the comparison with the simulator.
    #[cfg(test)]
    pub(super) trace: Arc<Mutex<Vec<Vec<u64>>>>,
}

impl Party {
    /// A party with the COTs that it may use up: `sender` are those in which it is the sender.
    ///
    /// `session` is a public block that both parties agreed on before the inputs were known; it keys the hashes together
    /// with `node` and `chunk`, a pair that must occur once a session.
    pub fn new(
        role: Role,
        sender: CotSenderPool,
        receiver: CotReceiverPool,
        session: Block,
        node: u32,
        chunk: u32,
    ) -> Self {
        let number = u64::from(node) << 32 | u64::from(chunk);
        let mut key = [Block::ZERO];
        Prg::new(session).fill_blocks_at(number, &mut key);
        Self {
            role,
            sender,
            receiver,
            seeds: Prg::new(key[0]),
            mailbox: Mailbox::default(),
            #[cfg(test)]
            trace: Arc::default(),
        }
    }

    /// Which party this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// `value` at the server, 0 at the client: how a public constant is added to a shared value.
    pub(super) fn constant(&self, value: u64) -> u64 {
        match self.role {
            Role::Client => 0,
            Role::Server => value,
        }
    }

    /// A public hash seed for the next use of COTs: the same at both parties, never the same twice.
    pub(super) fn next_seed(&mut self) -> Block {
        self.seeds.next_block()
    }

    /// Queues a message.
    pub(super) fn send(&mut self, message: Vec<u8>) {
        self.mailbox.lock().outbox.push_back(message);
    }

    /// The peer's next message, which must have `len` bytes.
    pub(super) async fn receive(&mut self, len: usize) -> Result<Vec<u8>, SharedError> {
        let message = Receive { mailbox: self.mailbox.clone() }.await;
        if message.len() == len {
            Ok(message)
        } else {
            Err(SharedError::MessageLength { expected: len, found: message.len() })
        }
    }

    /// Marks a point where the error of the result depends on how the value is shared.
    pub(super) fn coin(&self, _shares: &[u64]) {
        #[cfg(test)]
        self.trace.lock().unwrap().push(_shares.to_vec());
    }
}

#[derive(Clone, Default)]
struct Mailbox(Arc<Mutex<Queues>>);

#[derive(Default)]
struct Queues {
    outbox: VecDeque<Vec<u8>>,
    inbox: VecDeque<Vec<u8>>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Nothing panics while it holds the lock, and queues have no invariant to break.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Receive {
    mailbox: Mailbox,
}

impl Future for Receive {
    type Output = Vec<u8>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Vec<u8>> {
        match self.mailbox.lock().inbox.pop_front() {
            Some(message) => Poll::Ready(message),
            None => Poll::Pending,
        }
    }
}

/// What a [`Task`] wants next.
pub enum Step<T> {
    /// Hand this message to the peer's task, then resume with nothing.
    Send(Vec<u8>),
    /// Resume with the peer's next message.
    Receive,
    /// The result; the task has ended.
    Done(T),
}

type Body<T> = Pin<Box<dyn Future<Output = Result<T, SharedError>> + Send>>;

/// A party's computation, to be resumed step by step.
pub struct Task<T> {
    future: Option<Body<T>>,
    mailbox: Mailbox,
    waiting: bool,
    result: Option<T>,
}

impl<T> Task<T> {
    pub(super) fn new<F, B>(party: Party, body: B) -> Self
    where
        B: FnOnce(Party) -> F,
        F: Future<Output = Result<T, SharedError>> + Send + 'static,
    {
        let mailbox = party.mailbox.clone();
        Self { future: Some(Box::pin(body(party))), mailbox, waiting: false, result: None }
    }

    /// Computes on until a message must leave or come in. Messages that come in early wait in order.
    ///
    /// # Errors
    /// What the computation reports, after which it is over; [`SharedError::Finished`] if it was over before.
    pub fn resume(&mut self, incoming: Option<Vec<u8>>) -> Result<Step<T>, SharedError> {
        if let Some(message) = incoming {
            self.mailbox.lock().inbox.push_back(message);
            self.waiting = false;
        }
        if !self.waiting
            && let Some(future) = &mut self.future
        {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.waiting = true,
                Poll::Ready(result) => {
                    self.future = None;
                    self.result = Some(result?);
                }
            }
        }
        if let Some(message) = self.mailbox.lock().outbox.pop_front() {
            return Ok(Step::Send(message));
        }
        if let Some(result) = self.result.take() {
            return Ok(Step::Done(result));
        }
        if self.future.is_some() { Ok(Step::Receive) } else { Err(SharedError::Finished) }
    }
}
