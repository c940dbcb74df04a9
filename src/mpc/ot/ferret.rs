//! Silent correlated OT: Ferret (Yang, Weng, Lan, Zhang, Wang, CCS 2020), semi-honest, with regular noise and with the
//! single-point COTs of half trees, so that nothing but one short message of the sender's passes for each iteration.
//!
//! With `k` COTs whose choices are the LPN secret `u`, and the leaves of all trees, COTs whose choices are the noise `e`,
//! the code's rows give `n` COTs whose choices are the samples `A u + e`: each party adds up its own blocks. `base_cots()` of
//! them are kept for the next iteration; the first one's come from IKNP. All blocks are in the normal form of the pools, which
//! these sums keep, and so choices need no work of their own.

use rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::ggm::Forest;
use super::lpn::LocalCode;
use super::{CotReceiverPool, CotSenderPool, LpnParams, OtError};
use crate::mpc::block::{BLOCK_BYTES, Block, blocks_from_bytes};
use crate::mpc::prg::Prg;

/// Iterations of one session at most.
const MAX_ITERATIONS: u64 = 1 << 24;

/// One iteration: its parameters and how many of its COTs are kept for iterations to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilentStep {
    /// Parameters.
    pub params: LpnParams,
    /// COTs held back, at most `params.n()`: [`LpnParams::base_cots`] of the step that follows, 0 if none does.
    pub keep: usize,
}

impl SilentStep {
    /// COTs that it yields.
    pub fn outputs(&self) -> usize {
        self.params.n().saturating_sub(self.keep)
    }

    /// Bytes of its message, from the sender to the receiver.
    pub fn message_len(&self) -> usize {
        self.params.trees * self.params.depth as usize * BLOCK_BYTES
    }
}

/// The iterations that make a number of COTs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SilentPlan {
    steps: Vec<SilentStep>,
}

impl SilentPlan {
    /// The steps for at least `count` COTs by [`LpnParams::N20`], whose secret stays in the second-level cache: the fastest
    /// set, and the one with the fewest base COTs.
    pub fn new(count: usize) -> Self {
        Self::with(LpnParams::N20, count)
    }

    /// The steps for at least `count` COTs by a set of one's choice; the larger ones take fewer bytes a COT and more time.
    /// The first step is by the smallest set, since IKNP makes its base COTs.
    pub fn with(set: LpnParams, count: usize) -> Self {
        let mut steps: Vec<SilentStep> = Vec::new();
        let mut left = count;
        while left > 0 {
            let mut params = LpnParams::N20;
            if let Some(last) = steps.last_mut() {
                params = set;
                last.keep = params.base_cots();
                left += last.keep;
            }
            steps.push(SilentStep { params, keep: 0 });
            left = left.saturating_sub(params.n());
        }
        Self { steps }
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[SilentStep] {
        &self.steps
    }

    /// COTs that IKNP has to make first, with random choices.
    pub fn base_cots(&self) -> usize {
        self.steps.first().map_or(0, |step| step.params.base_cots())
    }

    /// COTs that all steps yield.
    pub fn outputs(&self) -> usize {
        self.steps.iter().map(SilentStep::outputs).sum()
    }

    /// Bytes from the sender to the receiver, over all steps.
    pub fn message_len(&self) -> usize {
        self.steps.iter().map(SilentStep::message_len).sum()
    }
}

/// The party that knows `delta`.
pub struct FerretSender {
    public: Public,
    base: CotSenderPool,
}

impl FerretSender {
    /// From a public `session` seed, the same for both parties and used for nothing else, and base COTs: those of the
    /// plan's [`SilentPlan::base_cots`].
    pub fn new(session: Block, base: CotSenderPool) -> Self {
        Self { public: Public::new(session), base }
    }

    /// One iteration: the message for [`FerretReceiver::extend`], [`SilentStep::message_len`] bytes, and
    /// [`SilentStep::outputs`] COTs. It depends on nothing that the receiver sends.
    ///
    /// # Errors
    /// If fewer base COTs are left than the step takes, or it keeps more than it makes.
    pub fn extend<R: CryptoRng>(&mut self, step: SilentStep, rng: &mut R) -> Result<(Vec<u8>, CotSenderPool), OtError> {
        let SilentStep { params, keep } = step;
        check_keep(step)?;
        let base = self.base.take(params.base_cots())?;
        let (secret, q) = base.split_at(params.k());
        let (delta, lanes) = (self.base.delta(), params.lanes);
        let iteration = self.public.next(params)?;
        let mut seeds = Zeroizing::new(vec![Block::ZERO; params.trees]);
        seeds.iter_mut().for_each(|seed| *seed = Block::random(rng));
        let mut message = vec![Block::ZERO; q.len()];
        let group = lanes * params.depth as usize;
        let work = message.par_chunks_mut(group).zip(q.par_chunks(group)).zip(seeds.par_chunks(lanes)).enumerate();
        let leaves = |g: usize, message: &mut [Block], q: &[Block], seeds: &[Block]| {
            let mut leaves = Zeroizing::new(vec![Block::ZERO; lanes << params.depth]);
            iteration.forest(g).send(delta, seeds, q, message, &mut leaves);
            iteration.code.add_rows(secret, g * leaves.len(), &mut leaves);
            leaves
        };
        let runs = work.map(|(g, ((message, q), seeds))| leaves(g, message, q, seeds)).collect();
        let mut out = CotSenderPool::of_even_runs(delta, runs);
        self.base.append(out.split(keep)?)?;
        Ok((bytemuck::cast_slice(&message).to_vec(), out))
    }
}

/// The party with (random) choices.
pub struct FerretReceiver {
    public: Public,
    base: CotReceiverPool,
}

impl FerretReceiver {
    /// As [`FerretSender::new`].
    pub fn new(session: Block, base: CotReceiverPool) -> Self {
        Self { public: Public::new(session), base }
    }

    /// One iteration from the sender's message: [`SilentStep::outputs`] COTs. Takes the same time for all choices.
    ///
    /// # Errors
    /// If the message has not [`SilentStep::message_len`] bytes (nothing is then used up), fewer base COTs are left than
    /// the step takes, or it keeps more than it makes.
    pub fn extend(&mut self, step: SilentStep, message: &[u8]) -> Result<CotReceiverPool, OtError> {
        let SilentStep { params, keep } = step;
        check_keep(step)?;
        let error =
            OtError::Length { what: "the silent OT message", expected: step.message_len(), found: message.len() };
        let message = blocks_from_bytes(message).filter(|_| message.len() == step.message_len()).ok_or(error)?;
        let base = self.base.take(params.base_cots())?.t;
        let (secret, t) = base.split_at(params.k());
        let lanes = params.lanes;
        let iteration = self.public.next(params)?;
        let group = lanes * params.depth as usize;
        let leaves = |(g, (message, t)): (usize, (&[Block], &[Block]))| {
            let mut leaves = Zeroizing::new(vec![Block::ZERO; lanes << params.depth]);
            iteration.forest(g).receive(t, message, &mut leaves);
            iteration.code.add_rows(secret, g * leaves.len(), &mut leaves);
            leaves
        };
        let work = message.par_chunks(group).zip(t.par_chunks(group)).enumerate();
        let mut out = CotReceiverPool::of_runs(work.map(leaves).collect());
        self.base.append(out.split(keep)?);
        Ok(out)
    }
}

/// What both parties derive from the session's seed.
struct Public {
    hash_keys: Prg,
    code_seed: Block,
    iteration: u64,
}

struct Iteration {
    number: u64,
    params: LpnParams,
    hash_keys: Prg,
    code: LocalCode,
}

impl Public {
    fn new(session: Block) -> Self {
        let mut seeds = [Block::ZERO; 2];
        Prg::new(session).fill_blocks(&mut seeds);
        Self { hash_keys: Prg::new(seeds[0]), code_seed: seeds[1], iteration: 0 }
    }

    fn next(&mut self, params: LpnParams) -> Result<Iteration, OtError> {
        let number = self.iteration;
        if number >= MAX_ITERATIONS {
            return Err(OtError::Exhausted);
        }
        self.iteration += 1;
        let code = LocalCode::new(self.code_seed, number, params.log_k);
        Ok(Iteration { number, params, hash_keys: self.hash_keys.at(0), code })
    }
}

impl Iteration {
    fn forest(&self, group: usize) -> Forest {
        let mut key = [Block::ZERO];
        self.hash_keys.fill_blocks_at(self.number << 32 | group as u64, &mut key);
        Forest::new(key[0], self.params.lanes, self.params.depth)
    }
}

fn check_keep(step: SilentStep) -> Result<(), OtError> {
    let (wanted, left) = (step.keep, step.params.n());
    if wanted > left { Err(OtError::PoolEmpty { wanted, left }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::mpc::ot::deal;

    fn pair(cots: usize) -> (FerretSender, FerretReceiver) {
        let (q, t) = deal(11, cots);
        (FerretSender::new(Block(1), q), FerretReceiver::new(Block(1), t))
    }

    #[test]
    fn iterations_make_cots_that_do_not_repeat() {
        let params = LpnParams::TOY;
        let (mut sender, mut receiver) = pair(params.base_cots());
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut seen = Vec::new();
        let mut ones = 0;
        for keep in [params.base_cots(), params.base_cots() + 5, 0] {
            let step = SilentStep { params, keep };
            let (message, mut q) = sender.extend(step, &mut rng).unwrap();
            assert_eq!(message.len(), step.message_len());
            let mut t = receiver.extend(step, &message).unwrap();
            assert_eq!((q.len(), t.len()), (params.n() - keep, params.n() - keep));
            let delta = q.delta();
            let (q, t) = (q.take(q.len()).unwrap(), t.take(t.len()).unwrap().t);
            for (q, t) in q.iter().zip(t.iter()) {
                assert!(*t == *q ^ (Block::mask(t.lsb()) & delta) && !q.lsb());
                ones += usize::from(t.lsb());
            }
            seen.extend(q.iter().map(|q| q.0));
        }
        let total = seen.len();
        // Six deviations of a fair coin.
        assert!((2 * ones).abs_diff(total) < 6 * (total as f64).sqrt() as usize, "{ones} of {total}");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), total, "an output repeated");
        assert_eq!((sender.base.len(), receiver.base.len()), (5, 5));
    }

    #[test]
    fn wrong_messages_and_empty_reserves_are_errors() {
        let params = LpnParams::TOY;
        let step = SilentStep { params, keep: 0 };
        let (mut sender, mut receiver) = pair(params.base_cots());
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let (message, _) = sender.extend(step, &mut rng).unwrap();
        for bad in [&message[1..], &message[16..], &[]] {
            assert!(matches!(receiver.extend(step, bad), Err(OtError::Length { .. })));
        }
        assert!(receiver.extend(step, &message).is_ok());
        let empty = OtError::PoolEmpty { wanted: params.base_cots(), left: 0 };
        assert_eq!(receiver.extend(step, &message).err(), Some(empty));
        assert_eq!(sender.extend(step, &mut rng).err(), Some(empty));
        let greedy = SilentStep { params, keep: params.n() + 1 };
        assert!(matches!(pair(params.base_cots()).0.extend(greedy, &mut rng), Err(OtError::PoolEmpty { .. })));
    }

    #[test]
    fn plans_meet_the_demand() {
        for count in [0usize, 1, 1000, 870_400, 870_401, 5_000_000, 40_000_000] {
            for set in [LpnParams::N20, LpnParams::N22, LpnParams::N24] {
                check_plan(&SilentPlan::with(set, count), count);
            }
        }
        let one = SilentPlan::new(1000);
        assert_eq!((one.steps().len(), one.base_cots(), one.message_len()), (1, 74_036, 136_000));
    }

    fn check_plan(plan: &SilentPlan, count: usize) {
        assert!(plan.outputs() >= count);
        let mut base = plan.base_cots();
        for step in plan.steps() {
            assert_eq!(step.params.base_cots(), base);
            base = step.keep;
        }
        assert_eq!((base, plan.steps().is_empty()), (0, count == 0));
    }
}
