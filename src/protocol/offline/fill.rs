//! Random COTs of both directions, made before there is anything to choose: pools for layers on shares, and with silent OT
//! for everything else too.
//!
//! Each direction has its own list of steps, which follows from the demand alone: chunks of the IKNP extension, in which the
//! receiver speaks, and iterations of silent OT, in which the sender does. The two ends take turns, the client first; the
//! message of a turn has what that end has to say for the current step of either direction.

use rand_core::Rng;
use zeroize::Zeroizing;

use super::cots::{Receiving, Sending};
use crate::{
    arith::sample::SecureRng,
    mpc::{
        block::Block,
        ot::{
            CotReceiver, CotReceiverPool, CotSender, CotSenderPool, FerretReceiver, FerretSender, SilentPlan,
            SilentStep, iknp::extend_len,
        },
    },
    protocol::{CotDemand, CotPools, OtMethod, Plan, ProtocolError, Result, SessionId},
};

/// COTs of one step of the extension: 2 MiB.
const STEP_COTS: usize = 1 << 17;

/// What a filled store is divided into.
pub(super) struct Filled {
    /// For chosen OTs, as the party that chooses.
    pub receiving: Receiving,
    /// For chosen OTs, as the party with the offset.
    pub sending: Sending,
    /// For the layers on shares; `None` if there are none.
    pub shared: Option<CotPools>,
}

/// Iterations of silent OT in one step: 2 MiB. They depend on nothing that the receiver says, so a step of many saves round
/// trips.
const STEP_ITERATIONS: usize = 16;

/// A step of one direction.
enum Step {
    /// The receiver sends an extension matrix for so many COTs.
    Extension(usize),
    /// The sender sends messages of silent OT.
    Silent(Vec<SilentStep>),
}

/// The steps of one direction for `wanted` COTs.
fn steps(method: OtMethod, wanted: usize) -> Vec<Step> {
    let extension =
        |count: usize| (0..count).step_by(STEP_COTS).map(move |first| Step::Extension((count - first).min(STEP_COTS)));
    match method {
        OtMethod::Iknp => extension(wanted).collect(),
        OtMethod::Silent => {
            let plan = SilentPlan::new(wanted);
            let silent = plan.steps().chunks(STEP_ITERATIONS).map(|steps| Step::Silent(steps.to_vec()));
            extension(plan.base_cots()).chain(silent).collect()
        }
    }
}

/// Bytes of the client's and of the server's message of each turn.
pub(in crate::protocol) fn turns(plan: &Plan) -> Vec<(usize, usize)> {
    let demand = plan.pooled_cots();
    let lists = [demand.client_receives, demand.client_sends].map(|wanted| steps(plan.settings.ot, wanted));
    // What the end that chooses says, and the other one.
    let said = |step: Option<&Step>| match step {
        Some(&Step::Extension(count)) => (extend_len(count).unwrap_or(0), 0),
        Some(Step::Silent(steps)) => (0, steps.iter().map(SilentStep::message_len).sum()),
        None => (0, 0),
    };
    let turn = |turn: usize| {
        let [down, up] = [0, 1].map(|direction: usize| said(lists[direction].get(turn)));
        (down.0 + up.1, down.1 + up.0)
    };
    (0..lists[0].len().max(lists[1].len())).map(turn).collect()
}

/// The direction in which this party chooses.
struct Receives {
    steps: Vec<Step>,
    extension: CotReceiver,
    /// Of silent OT, once its base is there.
    silent: Option<FerretReceiver>,
    pool: CotReceiverPool,
    shared: usize,
    seed: Block,
}

/// The direction in which the other party chooses.
struct Sends {
    steps: Vec<Step>,
    extension: CotSender,
    silent: Option<FerretSender>,
    pool: CotSenderPool,
    shared: usize,
    seed: Block,
}

/// One end of the filling.
pub(super) struct Fill {
    receives: Receives,
    sends: Sends,
    method: OtMethod,
    turn: usize,
    rng: SecureRng,
}

impl Fill {
    /// The client's end, from the base OTs of both directions.
    pub fn client(
        plan: &Plan,
        session: &SessionId,
        receiver: CotReceiver,
        sender: CotSender,
        rng: SecureRng,
    ) -> Result<Self> {
        let (down, up) = seeds(session);
        let (all, shared) = (plan.pooled_cots(), plan.shared_cots());
        Self::new(plan.settings.ot, all, shared, (receiver, down), (sender, up), rng)
    }

    /// The server's end.
    pub fn server(
        plan: &Plan,
        session: &SessionId,
        receiver: CotReceiver,
        sender: CotSender,
        rng: SecureRng,
    ) -> Result<Self> {
        let (down, up) = seeds(session);
        let (all, shared) = (plan.pooled_cots().reversed(), plan.shared_cots().reversed());
        Self::new(plan.settings.ot, all, shared, (receiver, up), (sender, down), rng)
    }

    fn new(
        method: OtMethod,
        all: CotDemand,
        shared: CotDemand,
        (receiver, receiver_seed): (CotReceiver, Block),
        (sender, sender_seed): (CotSender, Block),
        rng: SecureRng,
    ) -> Result<Self> {
        let receives = Receives {
            steps: steps(method, all.client_receives),
            extension: receiver,
            silent: None,
            pool: CotReceiverPool::new(Vec::new()),
            shared: shared.client_receives,
            seed: receiver_seed,
        };
        let sends = Sends {
            steps: steps(method, all.client_sends),
            pool: CotSenderPool::empty(sender.delta())?,
            extension: sender,
            silent: None,
            shared: shared.client_sends,
            seed: sender_seed,
        };
        Ok(Self { receives, sends, method, turn: 0, rng })
    }

    /// Whether there is nothing (more) to make.
    pub fn is_full(&self) -> bool {
        self.turn >= self.receives.steps.len().max(self.sends.steps.len())
    }

    /// This end's message of a turn. Comes before [`Self::absorb`] at both ends.
    pub fn message(&mut self) -> Result<Vec<u8>> {
        let mut message = match self.receives.steps.get(self.turn) {
            Some(&Step::Extension(count)) => self.receives.ask(count, &mut self.rng)?,
            _ => Vec::new(),
        };
        if let Some(Step::Silent(steps)) = self.sends.steps.get(self.turn) {
            for step in steps.clone() {
                message.extend_from_slice(&self.sends.say(step, &mut self.rng)?);
            }
        }
        Ok(message)
    }

    /// The other end's message of the turn, which ends it.
    pub fn absorb(&mut self, message: &[u8]) -> Result<()> {
        let asked = match self.sends.steps.get(self.turn) {
            Some(&Step::Extension(count)) => extend_len(count).unwrap_or(usize::MAX),
            _ => 0,
        };
        let said = match self.receives.steps.get(self.turn) {
            Some(Step::Silent(steps)) => steps.iter().map(SilentStep::message_len).sum(),
            _ => 0,
        };
        if asked.checked_add(said) != Some(message.len()) {
            let expected = asked.saturating_add(said);
            let detail = format!("{} bytes of random OTs where {expected} are due", message.len());
            return Err(ProtocolError::Mismatch { detail });
        }
        let (asked, said) = message.split_at(asked);
        if let Some(&Step::Extension(count)) = self.sends.steps.get(self.turn) {
            self.sends.answer(asked, count)?;
        }
        if let Some(Step::Silent(steps)) = self.receives.steps.get(self.turn) {
            let mut said = said;
            for step in steps.clone() {
                let (message, rest) = said.split_at(step.message_len());
                self.receives.hear(step, message)?;
                said = rest;
            }
        }
        self.turn += 1;
        Ok(())
    }

    /// Divides what was made.
    pub fn finish(self) -> Result<Filled> {
        let Self { mut receives, mut sends, method, .. } = self;
        let shared = if receives.shared + sends.shared > 0 {
            let (receives, sends) = (receives.pool.split(receives.shared)?, sends.pool.split(sends.shared)?);
            Some(CotPools { receives, sends })
        } else {
            None
        };
        let (receiving, sending) = match method {
            OtMethod::Iknp => (Receiving::Extension(receives.extension), Sending::Extension(sends.extension)),
            OtMethod::Silent => (Receiving::Pool(receives.pool), Sending::Pool(sends.pool)),
        };
        Ok(Filled { receiving, sending, shared })
    }
}

impl Receives {
    /// Random choices of an extension.
    fn ask(&mut self, count: usize, rng: &mut SecureRng) -> Result<Vec<u8>> {
        let mut choices = Zeroizing::new(vec![0; count.div_ceil(8)]);
        rng.fill_bytes(&mut choices);
        // Bits beyond the last choice must be zero.
        if let (Some(last), rest @ 1..) = (choices.last_mut(), count % 8) {
            *last &= (1 << rest) - 1;
        }
        let (message, keys) = self.extension.extend(&choices, count)?;
        self.pool.append(CotReceiverPool::new(keys));
        Ok(message)
    }

    fn hear(&mut self, step: SilentStep, message: &[u8]) -> Result<()> {
        let (pool, seed) = (&mut self.pool, self.seed);
        // What is in the pool when silent OT begins is its base.
        let base = || FerretReceiver::new(seed, std::mem::replace(pool, CotReceiverPool::new(Vec::new())));
        let made = self.silent.get_or_insert_with(base).extend(step, message)?;
        self.pool.append(made);
        Ok(())
    }
}

impl Sends {
    fn answer(&mut self, message: &[u8], count: usize) -> Result<()> {
        let keys = self.extension.extend(message, count)?;
        Ok(self.pool.append(CotSenderPool::new(self.extension.delta(), keys)?)?)
    }

    fn say(&mut self, step: SilentStep, rng: &mut SecureRng) -> Result<Vec<u8>> {
        if self.silent.is_none() {
            let empty = CotSenderPool::empty(self.extension.delta())?;
            self.silent = Some(FerretSender::new(self.seed, std::mem::replace(&mut self.pool, empty)));
        }
        let Some(silent) = &mut self.silent else {
            return Err(ProtocolError::Missing { what: "the base of silent OT".into() });
        };
        let (message, made) = silent.extend(step, rng)?;
        self.pool.append(made)?;
        Ok(message)
    }
}

/// Public seeds of silent OT: of the direction in which the client chooses, and of the other one.
fn seeds(session: &SessionId) -> (Block, Block) {
    let seed = |context| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::derive_key(context, session)[..16]);
        Block::from_bytes(bytes)
    };
    (seed("heliostat silent OT, the client chooses"), seed("heliostat silent OT, the server chooses"))
}
