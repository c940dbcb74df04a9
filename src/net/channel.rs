//! What carries frames: two halves for two threads, and a handle that stops both.

use std::sync::Arc;
use std::time::Instant;

use super::error::NetError;
use super::frame::Frame;

/// The half of a channel that sends.
pub trait Sender: Send {
    /// Sends one frame, waiting while the way is full. The frame is on its way when this returns; nothing stays in a
    /// buffer of this side.
    ///
    /// # Errors
    /// [`NetError::TooLong`] leaves the channel usable; after any other error it is broken.
    fn send(&mut self, frame: Frame) -> Result<(), NetError>;

    /// Says that nothing more will be sent. What was sent still arrives; then the peer sees [`NetError::Closed`].
    /// Dropping the half does the same.
    fn close(&mut self);
}

/// The half of a channel that receives.
pub trait Receiver: Send {
    /// Waits for the next frame.
    ///
    /// # Errors
    /// [`NetError::Closed`] when the peer has closed in order; after any error the channel is broken.
    fn recv(&mut self) -> Result<Frame, NetError>;

    /// Changes the longest payload accepted from now on, in bytes.
    fn set_payload_limit(&mut self, bytes: u64);
}

/// A handle on a channel for a thread that holds neither half.
pub trait Control: Send + Sync {
    /// Ends both directions at once: calls that are waiting in either half return an error soon.
    fn close(&self);

    /// From now on a receipt that is not complete at `deadline` fails with [`NetError::Timeout`]; `None` lifts it. It
    /// holds for reads that begin after the call. A channel within one process has none.
    fn set_deadline(&self, deadline: Option<Instant>);
}

/// A connection to the peer.
pub struct Channel {
    /// Sends to the peer.
    pub sender: Box<dyn Sender>,
    /// Receives from the peer.
    pub receiver: Box<dyn Receiver>,
    /// Stops both halves.
    pub control: Arc<dyn Control>,
}

impl Channel {
    /// As [`Sender::send`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send(&mut self, frame: Frame) -> Result<(), NetError> {
        self.sender.send(frame)
    }

    /// As [`Receiver::recv`].
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn recv(&mut self) -> Result<Frame, NetError> {
        self.receiver.recv()
    }

    /// Says that nothing more will be sent, as [`Sender::close`].
    pub fn close(&mut self) {
        self.sender.close();
    }
}
