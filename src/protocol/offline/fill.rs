//! Random COTs of both directions, made before there is anything to choose: pools for layers on shares, and with silent OT
//! for everything else too.
//!
//! The two ends take turns, the client first, with one message each a round; how many rounds there are follows from the
//! demand alone.

use rand_core::Rng;
use zeroize::{Zeroize, Zeroizing};

use super::cots::{Receiving, Sending};
use crate::{
    arith::sample::SecureRng,
    mpc::{
        block::Block,
        ot::{CotReceiver, CotReceiverPool, CotSender, CotSenderPool, iknp::extend_len},
    },
    protocol::{CotDemand, CotPools, OtMethod, Plan, ProtocolError, Result},
};

/// COTs of one message of the extension: 2 MiB.
const ROUND_COTS: usize = 1 << 17;

/// What a filled store is divided into.
pub(super) struct Filled {
    /// For chosen OTs, as the party that chooses.
    pub receiving: Receiving,
    /// For chosen OTs, as the party with the offset.
    pub sending: Sending,
    /// For the layers on shares; `None` if there are none.
    pub shared: Option<CotPools>,
}

/// One end of the filling.
pub(super) struct Fill {
    receiver: CotReceiver,
    sender: CotSender,
    method: OtMethod,
    /// Wanted in all, and how much of it is for the layers on shares; as this party receives and sends.
    receives: Part,
    sends: Part,
    rng: SecureRng,
}

struct Part {
    wanted: usize,
    shared: usize,
    made: Vec<Block>,
}

impl Part {
    fn new(wanted: usize, shared: usize) -> Self {
        Self { wanted, shared, made: Vec::with_capacity(wanted) }
    }

    /// COTs of the next round.
    fn next(&self) -> usize {
        (self.wanted - self.made.len()).min(ROUND_COTS)
    }
}

impl Fill {
    /// The client's end.
    pub fn client(plan: &Plan, receiver: CotReceiver, sender: CotSender, rng: SecureRng) -> Self {
        let (all, shared) = (plan.pooled_cots(), plan.shared_cots());
        Self::new(plan, receiver, sender, rng, all, shared)
    }

    /// The server's end.
    pub fn server(plan: &Plan, receiver: CotReceiver, sender: CotSender, rng: SecureRng) -> Self {
        Self::new(plan, receiver, sender, rng, plan.pooled_cots().reversed(), plan.shared_cots().reversed())
    }

    fn new(
        plan: &Plan,
        receiver: CotReceiver,
        sender: CotSender,
        rng: SecureRng,
        all: CotDemand,
        shared: CotDemand,
    ) -> Self {
        Self {
            receiver,
            sender,
            method: plan.settings.ot,
            receives: Part::new(all.client_receives, shared.client_receives),
            sends: Part::new(all.client_sends, shared.client_sends),
            rng,
        }
    }

    /// Whether there is nothing (more) to make.
    pub fn is_full(&self) -> bool {
        self.receives.next() == 0 && self.sends.next() == 0
    }

    /// This end's message of a round; the client sends it and then waits for [`Self::absorb`], the server absorbs first.
    pub fn message(&mut self) -> Result<Vec<u8>> {
        let count = self.receives.next();
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut choices = Zeroizing::new(vec![0; count.div_ceil(8)]);
        self.rng.fill_bytes(&mut choices);
        // Bits beyond the last choice must be zero.
        if let (Some(last), rest @ 1..) = (choices.last_mut(), count % 8) {
            *last &= (1 << rest) - 1;
        }
        let (message, keys) = self.receiver.extend(&choices, count)?;
        self.receives.made.extend_from_slice(&Zeroizing::new(keys));
        Ok(message)
    }

    /// The other end's message of a round.
    pub fn absorb(&mut self, message: &[u8]) -> Result<()> {
        let count = self.sends.next();
        if count == 0 {
            return if message.is_empty() { Ok(()) } else { Err(unexpected(0, message.len())) };
        }
        let expected = extend_len(count).unwrap_or(usize::MAX);
        if message.len() != expected {
            return Err(unexpected(expected, message.len()));
        }
        let keys = Zeroizing::new(self.sender.extend(message, count)?);
        self.sends.made.extend_from_slice(&keys);
        Ok(())
    }

    /// Divides what was made.
    pub fn finish(mut self) -> Result<Filled> {
        let mut receives = CotReceiverPool::new(std::mem::take(&mut self.receives.made));
        let mut sends = CotSenderPool::new(self.sender.delta(), std::mem::take(&mut self.sends.made))?;
        let shared = self.receives.shared + self.sends.shared > 0;
        let shared = if shared {
            let (receives, sends) = (receives.split(self.receives.shared)?, sends.split(self.sends.shared)?);
            Some(CotPools { receives, sends })
        } else {
            None
        };
        let (receiving, sending) = match self.method {
            OtMethod::Iknp => (Receiving::Extension(self.receiver), Sending::Extension(self.sender)),
            OtMethod::Silent => (Receiving::Pool(receives), Sending::Pool(sends)),
        };
        Ok(Filled { receiving, sending, shared })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.made.zeroize();
    }
}

fn unexpected(expected: usize, found: usize) -> ProtocolError {
    ProtocolError::Mismatch { detail: format!("{found} bytes of random OTs where {expected} are due") }
}
