//! Stores of random correlated OTs: made in bulk by IKNP or by silent OT, taken in order, each once.
//!
//! All COTs here are in one normal form: the sender's block has its lowest bit clear, and so the receiver's choice is the
//! lowest bit of its own block (`delta` is odd). Any COT with a random choice has it: where `q` is odd, the sender takes
//! `q ^ delta` instead, which flips the choice and leaves the receiver's block as it is.

use std::collections::VecDeque;

use zeroize::{Zeroize, Zeroizing};

use super::OtError;
use crate::arith::bits::{BitsError, is_padded};
use crate::mpc::block::Block;

/// Random COTs of the party that knows `delta`: `q_j`, even, while the receiver holds `t_j = q_j ^ b_j * delta`.
pub struct CotSenderPool {
    delta: Block,
    blocks: Blocks,
}

impl CotSenderPool {
    /// A pool of the sender's blocks, whatever their lowest bits.
    ///
    /// # Errors
    /// If `delta` is even.
    pub fn new(delta: Block, mut q: Vec<Block>) -> Result<Self, OtError> {
        if !delta.lsb() {
            return Err(OtError::Delta);
        }
        for q in &mut q {
            *q ^= Block::mask(q.lsb()) & delta;
        }
        Ok(Self { delta, blocks: Blocks::new(q) })
    }

    /// A pool of runs of blocks that are even already.
    pub(super) fn of_even_runs(delta: Block, runs: Vec<Zeroizing<Vec<Block>>>) -> Self {
        Self { delta, blocks: Blocks::of_runs(runs) }
    }

    /// A pool without COTs.
    ///
    /// # Errors
    /// If `delta` is even.
    pub fn empty(delta: Block) -> Result<Self, OtError> {
        Self::new(delta, Vec::new())
    }

    /// The offset of all its COTs.
    pub fn delta(&self) -> Block {
        self.delta
    }

    /// COTs that are left.
    pub fn len(&self) -> usize {
        self.blocks.len
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the blocks that are left, for a sealed store.
    pub fn left(&self) -> Zeroizing<Vec<Block>> {
        self.blocks.left()
    }

    /// The next `count` blocks `q_j`.
    ///
    /// # Errors
    /// If fewer are left; none is then used up.
    pub fn take(&mut self, count: usize) -> Result<Zeroizing<Vec<Block>>, OtError> {
        self.blocks.take(count)
    }

    /// The next `count` COTs with choices of the receiver's: from its [`CotReceiverPool::choose`] message the blocks `q_j`
    /// of `t_j = q_j ^ choice_j * delta`, like those of [`CotSender::extend`](super::CotSender::extend).
    ///
    /// # Errors
    /// If the message is not `count` packed bits or fewer COTs are left; none is then used up.
    pub fn correct(&mut self, message: &[u8], count: usize) -> Result<Zeroizing<Vec<Block>>, OtError> {
        check_bits(message, count)?;
        let mut q = self.take(count)?;
        for (run, byte) in q.chunks_mut(8).zip(message) {
            for (j, q) in run.iter_mut().enumerate() {
                *q ^= Block::mask(byte >> j & 1 == 1) & self.delta;
            }
        }
        Ok(q)
    }

    /// Moves the next `count` COTs to a pool of their own, for work that goes on at the same time.
    ///
    /// # Errors
    /// If fewer are left; none is then used up.
    pub fn split(&mut self, count: usize) -> Result<Self, OtError> {
        Ok(Self { delta: self.delta, blocks: self.blocks.split(count)? })
    }

    /// Appends COTs of the same `delta`.
    ///
    /// # Errors
    /// If `delta` is another one.
    pub fn append(&mut self, mut other: Self) -> Result<(), OtError> {
        if self.delta != other.delta {
            return Err(OtError::OtherDelta);
        }
        self.blocks.append(std::mem::take(&mut other.blocks));
        Ok(())
    }
}

impl Drop for CotSenderPool {
    fn drop(&mut self) {
        self.delta.zeroize();
    }
}

/// Random COTs of the party with choices: `t_j = q_j ^ b_j * delta`, `b_j` being the lowest bit of `t_j`.
pub struct CotReceiverPool {
    blocks: Blocks,
}

/// COTs that were taken from a [`CotReceiverPool`].
pub struct ReceiverCots {
    /// `t_j`; [`Block::lsb`] is the choice `b_j`.
    pub t: Zeroizing<Vec<Block>>,
}

impl ReceiverCots {
    /// The choices, packed: `b_j` is bit `j % 8` of byte `j / 8`, padding zero.
    pub fn choices(&self) -> Zeroizing<Vec<u8>> {
        let byte = |run: &[Block]| run.iter().enumerate().fold(0, |byte, (j, t)| byte | u8::from(t.lsb()) << j);
        Zeroizing::new(self.t.chunks(8).map(byte).collect())
    }
}

impl CotReceiverPool {
    /// A pool of the receiver's blocks. The choices that they were made with, which must have been random, are forgotten:
    /// those of the normal form take their place.
    pub fn new(t: Vec<Block>) -> Self {
        Self { blocks: Blocks::new(t) }
    }

    pub(super) fn of_runs(runs: Vec<Zeroizing<Vec<Block>>>) -> Self {
        Self { blocks: Blocks::of_runs(runs) }
    }

    /// COTs that are left.
    pub fn len(&self) -> usize {
        self.blocks.len
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the blocks that are left, for a sealed store.
    pub fn left(&self) -> Zeroizing<Vec<Block>> {
        self.blocks.left()
    }

    /// The next `count` COTs.
    ///
    /// # Errors
    /// If fewer are left; none is then used up.
    pub fn take(&mut self, count: usize) -> Result<ReceiverCots, OtError> {
        Ok(ReceiverCots { t: self.blocks.take(count)? })
    }

    /// The next `count` COTs for packed choice bits of one's own (OT `j` takes bit `j % 8` of byte `j / 8`, padding zero).
    /// Returns the message for [`CotSenderPool::correct`], one bit a COT, and `t_j`, like
    /// [`CotReceiver::extend`](super::CotReceiver::extend). The message is the choices under a one-time pad.
    ///
    /// # Errors
    /// If the choice bits are malformed or fewer COTs are left; none is then used up.
    pub fn choose(&mut self, choices: &[u8], count: usize) -> Result<(Vec<u8>, Zeroizing<Vec<Block>>), OtError> {
        check_bits(choices, count)?;
        let cots = self.take(count)?;
        let message = cots.choices().iter().zip(choices).map(|(random, choice)| random ^ choice).collect();
        Ok((message, cots.t))
    }

    /// Moves the next `count` COTs to a pool of their own, for work that goes on at the same time.
    ///
    /// # Errors
    /// If fewer are left; none is then used up.
    pub fn split(&mut self, count: usize) -> Result<Self, OtError> {
        Ok(Self { blocks: self.blocks.split(count)? })
    }

    /// Appends COTs of the same `delta`.
    pub fn append(&mut self, other: Self) {
        self.blocks.append(other.blocks);
    }
}

/// Whether `bytes` are `count` packed bits.
fn check_bits(bytes: &[u8], count: usize) -> Result<(), OtError> {
    if bytes.len() != count.div_ceil(8) {
        return Err(BitsError::Length { count, bits: 1, found: bytes.len() }.into());
    }
    if is_padded(bytes, count) { Ok(()) } else { Err(BitsError::Padding.into()) }
}

/// Runs of blocks that are handed out from the front. What has been handed out is wiped, a used-up run freed.
#[derive(Default)]
struct Blocks {
    runs: VecDeque<Zeroizing<Vec<Block>>>,
    /// Blocks of the first run that are handed out.
    next: usize,
    len: usize,
}

impl Blocks {
    fn new(run: Vec<Block>) -> Self {
        Self::of_runs(vec![Zeroizing::new(run)])
    }

    fn of_runs(runs: Vec<Zeroizing<Vec<Block>>>) -> Self {
        let len = runs.iter().map(|run| run.len()).sum();
        Self { runs: runs.into(), next: 0, len }
    }

    fn left(&self) -> Zeroizing<Vec<Block>> {
        let mut all = Zeroizing::new(Vec::with_capacity(self.len));
        let mut skip = self.next;
        for run in &self.runs {
            all.extend_from_slice(&run[skip..]);
            skip = 0;
        }
        all
    }

    fn take(&mut self, count: usize) -> Result<Zeroizing<Vec<Block>>, OtError> {
        if count > self.len {
            return Err(OtError::PoolEmpty { wanted: count, left: self.len });
        }
        self.len -= count;
        // The usual case of a whole run moves it without copying.
        if self.next == 0
            && let Some(run) = self.runs.pop_front_if(|run| run.len() == count)
        {
            return Ok(run);
        }
        let mut taken = Zeroizing::new(Vec::with_capacity(count));
        while let Some(run) = self.runs.front_mut()
            && taken.len() < count
        {
            let end = run.len().min(self.next + count - taken.len());
            let from = &mut run[self.next..end];
            taken.extend_from_slice(from);
            from.zeroize();
            self.next = end;
            if end == run.len() {
                self.runs.pop_front();
                self.next = 0;
            }
        }
        Ok(taken)
    }

    /// Whole runs move without copying.
    fn split(&mut self, count: usize) -> Result<Self, OtError> {
        if count > self.len {
            return Err(OtError::PoolEmpty { wanted: count, left: self.len });
        }
        let mut part = Self::default();
        while part.len < count {
            let run = self.runs.front().map_or(0, |run| run.len() - self.next);
            let taken = self.take(run.min(count - part.len))?;
            part.len += taken.len();
            part.runs.push_back(taken);
        }
        Ok(part)
    }

    fn append(&mut self, mut other: Self) {
        if other.next > 0
            && let Some(run) = other.runs.pop_front()
        {
            self.runs.push_back(Zeroizing::new(run[other.next..].to_vec()));
        }
        self.len += other.len;
        self.runs.append(&mut other.runs);
    }
}

/// Matching pools of `count` COTs, from a seed, as a dealer would make them: for tests only.
#[cfg(test)]
pub(crate) fn deal(seed: u64, count: usize) -> (CotSenderPool, CotReceiverPool) {
    let mut prg = crate::mpc::prg::Prg::new(Block(u128::from(seed)));
    let delta = prg.next_block().with_lsb_set();
    let mut q = vec![Block::ZERO; count];
    let mut choices = vec![Block::ZERO; count];
    prg.fill_blocks(&mut q);
    prg.fill_blocks(&mut choices);
    let t = q.iter().zip(&choices).map(|(&q, b)| q ^ (Block::mask(b.lsb()) & delta)).collect();
    (CotSenderPool::new(delta, q).unwrap(), CotReceiverPool::new(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cots_are_taken_once_and_in_order() {
        let (mut sender, mut receiver) = deal(1, 1000);
        let delta = sender.delta();
        let (mut later, mut later_t) = deal(1, 1000);
        let mut seen = Vec::new();
        for count in [1usize, 0, 7, 64, 100] {
            let q = sender.take(count).unwrap();
            let cots = receiver.take(count).unwrap();
            let choices = cots.choices();
            assert_eq!(choices.len(), count.div_ceil(8));
            for j in 0..count {
                let choice = choices[j / 8] >> (j % 8) & 1 == 1;
                assert!(cots.t[j] == q[j] ^ (Block::mask(choice) & delta) && !q[j].lsb(), "{count} {j}");
            }
            seen.extend(q.iter().map(|q| q.0));
        }
        let mut part = sender.split(500).unwrap();
        let mut part_t = receiver.split(500).unwrap();
        assert_eq!((sender.len(), receiver.len(), part.len(), part_t.len()), (328, 328, 500, 500));
        part.append(sender.split(300).unwrap()).unwrap();
        part_t.append(receiver.split(300).unwrap());
        seen.extend(part.take(800).unwrap().iter().map(|q| q.0));
        assert!(*part_t.take(800).unwrap().t == later_t.take(972).unwrap().t[172..]);
        assert!(seen.iter().zip(later.take(972).unwrap().iter()).all(|(&a, b)| Block(a) == *b));
        assert_eq!(part.take(1).err(), Some(OtError::PoolEmpty { wanted: 1, left: 0 }));
        assert_eq!(receiver.take(29).err(), Some(OtError::PoolEmpty { wanted: 29, left: 28 }));
        assert!(receiver.take(28).is_ok() && receiver.is_empty() && !sender.is_empty());
    }

    #[test]
    fn choices_are_corrected() {
        let (mut sender, mut receiver) = deal(4, 100);
        let delta = sender.delta();
        for (count, choices) in [(13usize, vec![0b0110_1001, 0b0001_0110]), (8, vec![0xff]), (0, vec![])] {
            let (message, t) = receiver.choose(&choices, count).unwrap();
            assert_eq!(message.len(), choices.len());
            let q = sender.correct(&message, count).unwrap();
            for j in 0..count {
                assert!(t[j] == q[j] ^ (Block::mask(choices[j / 8] >> (j % 8) & 1 == 1) & delta));
            }
        }
        for (bad, count) in [(&[0u8, 0][..], 8), (&[0x80], 7), (&[], 1)] {
            assert!(matches!(receiver.choose(bad, count), Err(OtError::Choices(_))));
            assert!(matches!(sender.correct(bad, count), Err(OtError::Choices(_))));
        }
        assert_eq!((sender.len(), receiver.len()), (79, 79));
        assert_eq!(sender.correct(&[0; 10], 80).err(), Some(OtError::PoolEmpty { wanted: 80, left: 79 }));
    }

    #[test]
    fn offsets_are_checked() {
        assert_eq!(CotSenderPool::empty(Block(2)).err(), Some(OtError::Delta));
        let (mut one, _) = deal(1, 3);
        assert_eq!(one.append(deal(2, 3).0), Err(OtError::OtherDelta));
    }
}
