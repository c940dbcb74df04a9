//! One direction of correlated OTs with chosen choices, whichever way they are made.

use zeroize::Zeroizing;

use crate::{
    mpc::{
        block::Block,
        ot::{CotReceiver, CotReceiverPool, CotSender, CotSenderPool},
    },
    protocol::Result,
};

/// The end that chooses.
pub(super) enum Receiving {
    /// An extension makes them on demand.
    Extension(CotReceiver),
    /// Random ones were made before; each choice costs a bit on the line.
    Pool(CotReceiverPool),
}

impl Receiving {
    /// `count` COTs for packed choices: the message to the other end, and the keys `t_j`.
    pub fn choose(&mut self, choices: &[u8], count: usize) -> Result<(Vec<u8>, Zeroizing<Vec<Block>>)> {
        match self {
            Self::Extension(receiver) => {
                let (message, keys) = receiver.extend(choices, count)?;
                Ok((message, Zeroizing::new(keys)))
            }
            Self::Pool(pool) => Ok(pool.choose(choices, count)?),
        }
    }
}

/// The end that knows the offset.
pub(super) enum Sending {
    /// An extension makes them on demand.
    Extension(CotSender),
    /// Random ones were made before.
    Pool(CotSenderPool),
}

impl Sending {
    /// The keys `q_j = t_j ^ choice_j * delta` of `count` COTs for the other end's message.
    pub fn transfer(&mut self, message: &[u8], count: usize) -> Result<Zeroizing<Vec<Block>>> {
        match self {
            Self::Extension(sender) => Ok(Zeroizing::new(sender.extend(message, count)?)),
            Self::Pool(pool) => Ok(pool.correct(message, count)?),
        }
    }
}
