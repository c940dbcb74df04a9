//! Random OTs from correlated ones: the sender gets all the pads of an instance, the receiver the pad of its random index.
//!
//! **1 of 2.** Pads are `H(q)` and `H(q ^ delta)`; the receiver has `H(t)`.
//!
//! **1 of 2^k** (Naor and Pinkas, STOC 1999; Kolesnikov and Kumaresan, CRYPTO 2013, compare it). COT `b` of an instance is
//! bit `b` of the index. Two forms, by the length of all pads of an instance (its *string*):
//! * at most 128 bits: label `x` of COT `b` gives the string `H(x)`, and pad `j` is the sum (XOR), over `b`, of piece `j` of
//!   the string of label `j_b`: `2k` hashes for the sender, `k` for the receiver, whatever the number of entries;
//! * longer: the lower and the upper half of the index each have a key per value, the XOR of hashes of their labels, and
//!   `pad_j = G(low key of j)[high half of j] ^ G(high key of j)[low half of j]` with `G` from the same hash. That takes
//!   about `2 sqrt(2^k)` times the longer string instead of `2^k` hashes of their own.
//!
//! In both, an index other than the receiver's differs in a label (a key) that the receiver lacks, and every piece of a
//! string serves one index. Hashes are re-keyed every [`CHUNK`] instances and never see a tweak twice under a key but for
//! the two labels of one COT, as [`CrHash`] allows.

use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::{CotReceiverPool, CotSenderPool, OtError};
use crate::mpc::block::Block;
use crate::mpc::prg::CrHash;

/// Instances under one hash key, and the unit of parallel work.
const CHUNK: usize = 1024;

/// Blocks of scratch that a run of instances takes at most: 32 KiB.
const SCRATCH: usize = 2048;

/// Tweaks of the second hash of the longer form have this bit.
const SECOND: u64 = 1 << 63;

/// 1-of-2^k OTs with entries of some bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PadShape {
    k: u32,
    bits: u32,
    lane: u32,
}

impl PadShape {
    /// 1-of-`2^k` OTs with pads of `bits` bits.
    ///
    /// # Errors
    /// Unless `k` is from 1 to 8 and `bits` from 1 to 64.
    pub fn new(k: u32, bits: u32) -> Result<Self, OtError> {
        if !(1..=8).contains(&k) || !(1..=64).contains(&bits) {
            return Err(OtError::PadShape { k, bits });
        }
        let lane = bits.next_power_of_two();
        let lane = if lane << k > 128 { lane.max(8) } else { lane };
        Ok(Self { k, bits, lane })
    }

    /// Binary logarithm of the number of entries; COTs that an instance takes.
    pub fn k(&self) -> u32 {
        self.k
    }

    /// Entries of an instance.
    pub fn entries(&self) -> usize {
        1 << self.k
    }

    /// Bits of an entry.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bits from one entry to the next where the pads of an instance lie packed: the power of two from `bits` up, at
    /// least 8 where the entries take over 128 bits.
    pub fn lane(&self) -> u32 {
        self.lane
    }

    /// Words that the pads of an instance take.
    pub fn words(&self) -> usize {
        (self.entries() * self.lane as usize).div_ceil(64)
    }

    /// COTs that `count` instances take.
    ///
    /// # Errors
    /// If that overflows.
    pub fn cots(&self, count: usize) -> Result<usize, OtError> {
        count.checked_mul(self.k as usize).ok_or(OtError::Exhausted)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Bits of the index in its lower and its upper half, if the string is over 128 bits.
    fn halves(&self) -> Option<[Half; 2]> {
        let (low, high) = (self.k / 2, self.k - self.k / 2);
        let blocks = |others: u32| ((self.lane as usize) << others).div_ceil(128);
        let half = |first, bits, others, tweak| Half { first, bits, blocks: blocks(others), tweak };
        ((self.lane << self.k) > 128).then(|| [half(0, low, high, 0), half(low, high, low, 1 << 31)])
    }
}

/// Bits `first .. first + bits` of the index, each value of which has a key that stretches to `blocks` blocks.
#[derive(Clone, Copy)]
struct Half {
    first: u32,
    bits: u32,
    blocks: usize,
    tweak: u64,
}

impl Half {
    /// Blocks of the strings of all keys of an instance.
    fn size(&self) -> usize {
        self.blocks << self.bits
    }

    /// Tweak of block 0 of the string of key 0 in instance `i` of a chunk; those of the string's other blocks, the other
    /// keys and the other instances follow.
    fn tweak(&self, i: usize) -> u64 {
        SECOND | self.tweak | (i * self.size()) as u64
    }
}

/// All pads of a run of instances.
pub struct SenderPads {
    shape: PadShape,
    words: Vec<u64>,
}

impl SenderPads {
    /// Their shape.
    pub fn shape(&self) -> PadShape {
        self.shape
    }

    /// Instances.
    pub fn count(&self) -> usize {
        self.words.len() / self.shape.words()
    }

    /// Pad `j` of instance `i`.
    pub fn get(&self, i: usize, j: usize) -> u64 {
        let bit = j * self.shape.lane as usize;
        self.instance(i)[bit / 64] >> (bit % 64) & self.shape.mask()
    }

    /// The pads of instance `i`, packed: pad `j` is bits `j * lane ..` of the [`PadShape::words`] words; bits between
    /// pads are noise.
    pub fn instance(&self, i: usize) -> &[u64] {
        &self.words[i * self.shape.words()..][..self.shape.words()]
    }

    /// Adds (XOR) pad `j ^ shift` of instance `i` to entry `j` of `table`, packed like [`SenderPads::instance`], for every
    /// `j`. With the receiver's public correction `shift = index ^ random index` this hides a table for the sender's
    /// message. `table` has [`PadShape::words`] words; surplus ones stay as they are.
    pub fn hide(&self, i: usize, shift: usize, table: &mut [u64]) {
        let lane = self.shape.lane as usize;
        let per_word = 64 / lane;
        for (w, entry) in table.iter_mut().take(self.shape.words()).enumerate() {
            let mut pads = self.instance(i)[(w ^ (shift / per_word)) % self.shape.words()];
            for distance in (0..per_word.ilog2()).map(|b| lane << b) {
                if (shift * lane) & distance != 0 {
                    let low = u64::MAX / ((1u64 << distance) + 1);
                    pads = (pads & low) << distance | pads >> distance & low;
                }
            }
            *entry ^= pads;
        }
    }
}

impl Drop for SenderPads {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

/// The receiver's random index and pad of each instance.
pub struct ReceiverPads {
    /// Indices below `2^k`.
    pub indices: Zeroizing<Vec<u8>>,
    /// Pads.
    pub pads: Zeroizing<Vec<u64>>,
}

/// The pads of `count` 1-of-2^k OTs. `seed` keys the hashes: public, the same for both parties, fresh for each call.
///
/// # Errors
/// If the pool has fewer than [`PadShape::cots`].
pub fn sender_pads(
    pool: &mut CotSenderPool,
    seed: Block,
    shape: PadShape,
    count: usize,
) -> Result<SenderPads, OtError> {
    let q = pool.take(shape.cots(count)?)?;
    let (k, delta) = (shape.k as usize, pool.delta());
    let mut words = vec![0u64; count.checked_mul(shape.words()).ok_or(OtError::Exhausted)?];
    words.par_chunks_mut(CHUNK * shape.words()).zip(q.par_chunks(CHUNK * k)).enumerate().for_each_init(
        || Zeroizing::new(vec![Block::ZERO; 2 * SCRATCH]),
        |scratch, (c, (words, q))| {
            let hash = CrHash::derive(seed, c as u64);
            match shape.halves() {
                None => short_strings(shape, &hash, delta, q, words, scratch),
                Some(halves) => long_strings(shape, halves, &hash, delta, q, words, scratch),
            }
        },
    );
    Ok(SenderPads { shape, words })
}

/// The receiver's side of [`sender_pads`]. Takes the same time for all indices.
///
/// # Errors
/// If the pool has fewer than [`PadShape::cots`].
pub fn receiver_pads(
    pool: &mut CotReceiverPool,
    seed: Block,
    shape: PadShape,
    count: usize,
) -> Result<ReceiverPads, OtError> {
    let cots = pool.take(shape.cots(count)?)?;
    let k = shape.k as usize;
    let mut out = ReceiverPads { indices: Zeroizing::new(vec![0; count]), pads: Zeroizing::new(vec![0; count]) };
    let runs = out.pads.par_chunks_mut(CHUNK).zip(out.indices.par_chunks_mut(CHUNK)).zip(cots.t.par_chunks(CHUNK * k));
    runs.enumerate().for_each_init(
        || Zeroizing::new(vec![Block::ZERO; CHUNK * k.max(2)]),
        |scratch, (c, ((pads, indices), t))| {
            let hash = CrHash::derive(seed, c as u64);
            for (index, t) in indices.iter_mut().zip(t.chunks_exact(k)) {
                *index = t.iter().enumerate().fold(0, |index, (b, t)| index | u8::from(t.lsb()) << b);
            }
            let hashed = &mut scratch[..t.len()];
            hash.hash_blocks(t, hashed, |at| at as u64);
            match shape.halves() {
                None => {
                    for ((pad, index), hashed) in pads.iter_mut().zip(&*indices).zip(hashed.chunks_exact(k)) {
                        *pad = piece(sum(hashed), shape, usize::from(*index));
                    }
                }
                Some(halves) => {
                    let index = |i: usize, half: Half| u64::from(indices[i] >> half.first) & ((1 << half.bits) - 1);
                    // Of each instance the low and the high key, each hashed to the block that holds its piece.
                    for i in 0..pads.len() {
                        let key = halves.map(|h| sum(&hashed[i * k + h.first as usize..][..h.bits as usize]));
                        hashed[2 * i..][..2].copy_from_slice(&key);
                    }
                    let keys = &mut hashed[..2 * pads.len()];
                    let per_block = (128 / shape.lane).ilog2();
                    hash.hash_in_place(keys, |at| {
                        let half = halves[at % 2];
                        let [own, other] = [half, halves[1 - at % 2]].map(|h| index(at / 2, h));
                        half.tweak(at / 2) + own * half.blocks as u64 + (other >> per_block)
                    });
                    for (i, (pad, keys)) in pads.iter_mut().zip(keys.chunks_exact(2)).enumerate() {
                        let [low, high] = halves.map(|half| index(i, half) as usize & ((1 << per_block) - 1));
                        *pad = piece(keys[0], shape, high) ^ piece(keys[1], shape, low);
                    }
                }
            }
        },
    );
    Ok(out)
}

/// Single bits by 1-of-2 OT: both pads of each of `count` OTs, packed 64 to a word, unused bits zero. `seed` as in
/// [`sender_pads`].
///
/// # Errors
/// If the pool has fewer COTs.
pub fn sender_bits(pool: &mut CotSenderPool, seed: Block, count: usize) -> Result<[Zeroizing<Vec<u64>>; 2], OtError> {
    let mut q = pool.take(count)?;
    let zero = hashed_bits(seed, &q);
    q.iter_mut().for_each(|q| *q ^= pool.delta());
    Ok([zero, hashed_bits(seed, &q)])
}

/// The receiver's side of [`sender_bits`]: its random choices and pads, packed 64 to a word, unused bits zero.
///
/// # Errors
/// If the pool has fewer COTs.
pub fn receiver_bits(
    pool: &mut CotReceiverPool,
    seed: Block,
    count: usize,
) -> Result<[Zeroizing<Vec<u64>>; 2], OtError> {
    let t = pool.take(count)?.t;
    let choices = Zeroizing::new(t.chunks(64).map(pack_lowest).collect());
    Ok([choices, hashed_bits(seed, &t)])
}

/// The lowest bits of `H(x)`, packed.
fn hashed_bits(seed: Block, x: &[Block]) -> Zeroizing<Vec<u64>> {
    let mut out = Zeroizing::new(vec![0u64; x.len().div_ceil(64)]);
    out.par_chunks_mut(CHUNK / 64).zip(x.par_chunks(CHUNK)).enumerate().for_each_init(
        || Zeroizing::new([Block::ZERO; CHUNK]),
        |scratch, (c, (out, x))| {
            let hashed = &mut scratch[..x.len()];
            CrHash::derive(seed, c as u64).hash_blocks(x, hashed, |at| at as u64);
            for (word, run) in out.iter_mut().zip(hashed.chunks(64)) {
                *word = pack_lowest(run);
            }
        },
    );
    out
}

fn pack_lowest(run: &[Block]) -> u64 {
    run.iter().enumerate().fold(0, |word, (j, x)| word | u64::from(x.lsb()) << j)
}

fn sum(blocks: &[Block]) -> Block {
    blocks.iter().fold(Block::ZERO, |sum, &x| sum ^ x)
}

/// Piece `j` of a string of one block.
fn piece(string: Block, shape: PadShape, j: usize) -> u64 {
    (string.0 >> (j * shape.lane as usize)) as u64 & shape.mask()
}

/// `H(q)` and `H(q ^ delta)` of every COT, side by side, the first COT being number `first` of its chunk.
fn hash_both(hash: &CrHash, delta: Block, q: &[Block], first: usize, out: &mut [Block]) {
    for (pair, &q) in out.chunks_exact_mut(2).zip(q) {
        pair.copy_from_slice(&[q, q ^ delta]);
    }
    hash.hash_in_place(out, |at| (first + at / 2) as u64);
}

/// The sender's pads of a chunk where the string of an instance fits a block.
fn short_strings(shape: PadShape, hash: &CrHash, delta: Block, q: &[Block], out: &mut [u64], scratch: &mut [Block]) {
    let (k, words) = (shape.k as usize, shape.words());
    // Lanes whose index has bit b set.
    let mut ones = [Block::ZERO; 8];
    for (b, ones) in ones.iter_mut().enumerate().take(k) {
        for j in (0..shape.entries()).filter(|j| j >> b & 1 == 1) {
            ones.0 |= (u128::MAX >> (128 - shape.lane)) << (j * shape.lane as usize);
        }
    }
    let run = SCRATCH / (2 * k);
    for (r, (out, q)) in out.chunks_mut(run * words).zip(q.chunks(run * k)).enumerate() {
        let hashed = &mut scratch[..2 * q.len()];
        hash_both(hash, delta, q, r * run * k, hashed);
        for (out, hashed) in out.chunks_exact_mut(words).zip(hashed.chunks_exact(2 * k)) {
            let string = hashed
                .chunks_exact(2)
                .zip(&ones)
                .fold(Block::ZERO, |sum, (pair, &ones)| sum ^ pair[0] ^ (ones & (pair[0] ^ pair[1])));
            out.copy_from_slice(&[string.0 as u64, (string.0 >> 64) as u64][..words]);
        }
    }
}

/// The sender's pads of a chunk where the string of an instance is longer than a block.
fn long_strings(
    shape: PadShape,
    halves: [Half; 2],
    hash: &CrHash,
    delta: Block,
    q: &[Block],
    out: &mut [u64],
    scratch: &mut [Block],
) {
    let (k, words) = (shape.k as usize, shape.words());
    let [low_size, high_size] = halves.map(|half| half.size());
    let run = (SCRATCH / (low_size + high_size).max(2 * k)).max(1);
    let (hashed, strings) = scratch.split_at_mut(SCRATCH);
    for (r, (out, q)) in out.chunks_mut(run * words).zip(q.chunks(run * k)).enumerate() {
        let (first, count) = (r * run, q.len() / k);
        let hashed = &mut hashed[..2 * q.len()];
        hash_both(hash, delta, q, first * k, hashed);
        let (low, high) = strings.split_at_mut(count * low_size);
        let mut parts = [low, &mut high[..count * high_size]];
        for (half, strings) in halves.iter().zip(&mut parts) {
            let tweak = half.tweak(first);
            for (strings, hashed) in strings.chunks_exact_mut(half.size()).zip(hashed.chunks_exact(2 * k)) {
                let labels = &hashed[2 * half.first as usize..][..2 * half.bits as usize];
                // Keys by doubling, then each in all the places of its string.
                let mut keys = [Block::ZERO; 16];
                for (b, pair) in labels.chunks_exact(2).enumerate() {
                    let (low, high) = keys[..2 << b].split_at_mut(1 << b);
                    for (low, high) in low.iter_mut().zip(high) {
                        (*low, *high) = (*low ^ pair[0], *low ^ pair[1]);
                    }
                }
                for (string, &key) in strings.chunks_exact_mut(half.blocks).zip(&keys) {
                    string.fill(key);
                }
            }
            hash.hash_in_place(strings, |at| tweak + at as u64);
        }
        let [low, high] = &parts;
        let strings = low.chunks_exact(low_size).zip(high.chunks_exact(high_size));
        for (out, (low, high)) in out.chunks_exact_mut(words).zip(strings) {
            match shape.lane {
                8 => join::<u8>(halves, low, high, out),
                16 => join::<u16>(halves, low, high, out),
                32 => join::<u32>(halves, low, high, out),
                _ => join::<u64>(halves, low, high, out),
            }
        }
    }
}

/// `out[h * L + l] = low_l[h] ^ high_h[l]`, `L` low keys.
fn join<W: bytemuck::Pod + std::ops::BitXor<Output = W>>(
    [l, h]: [Half; 2],
    low: &[Block],
    high: &[Block],
    out: &mut [u64],
) {
    let out = bytemuck::cast_slice_mut::<u64, W>(out);
    let (low, high) = (bytemuck::cast_slice::<Block, W>(low), bytemuck::cast_slice::<Block, W>(high));
    let (low_stride, high_stride) = (low.len() >> l.bits, high.len() >> h.bits);
    for (h, (out, high)) in out.chunks_exact_mut(1 << l.bits).zip(high.chunks_exact(high_stride)).enumerate() {
        for ((out, &high), low) in out.iter_mut().zip(high).zip(low.chunks_exact(low_stride)) {
            *out = low[h] ^ high;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::deal;
    use super::*;

    fn check(k: u32, bits: u32, count: usize) {
        let shape = PadShape::new(k, bits).unwrap();
        let cots = shape.cots(count).unwrap();
        let (mut sender, mut receiver) = deal(u64::from(k * 100 + bits), cots + 1);
        let all = sender_pads(&mut sender, Block(9), shape, count).unwrap();
        let one = receiver_pads(&mut receiver, Block(9), shape, count).unwrap();
        assert_eq!((sender.len(), receiver.len(), all.count(), one.pads.len()), (1, 1, count, count));
        for i in 0..count {
            let index = usize::from(one.indices[i]);
            assert!(index < shape.entries());
            assert_eq!(all.get(i, index), one.pads[i], "k {k}, {bits} bits, instance {i}, index {index}");
        }
    }

    #[test]
    fn the_receiver_has_the_pad_of_its_index() {
        for k in 1..=8 {
            for bits in [1, 2, 3, 7, 8, 13, 16, 17, 32, 33, 64] {
                check(k, bits, 70);
            }
        }
        check(4, 2, 3000);
        check(8, 32, 1100);
    }

    #[test]
    fn pads_of_an_instance_are_independent() {
        // Every pair of indices differs in about half of the bits, over enough instances to be sure.
        for (k, bits) in [(1, 64), (3, 16), (4, 8), (2, 64), (5, 8), (7, 2), (8, 64)] {
            let shape = PadShape::new(k, bits).unwrap();
            let count = 8192 / bits as usize;
            let (mut sender, _) = deal(5, shape.cots(count).unwrap());
            let all = sender_pads(&mut sender, Block(1), shape, count).unwrap();
            for j in 0..shape.entries() {
                for other in 0..j {
                    let differ: u32 = (0..count).map(|i| (all.get(i, j) ^ all.get(i, other)).count_ones()).sum();
                    // 8192 coins: eight deviations of 45.
                    assert!(differ.abs_diff(4096) < 363, "k {k}, {bits} bits, {j} and {other}: {differ}");
                }
            }
        }
    }

    #[test]
    fn calls_differ_by_their_seed() {
        let shape = PadShape::new(2, 64).unwrap();
        let pads = |seed| sender_pads(&mut deal(1, 2).0, Block(seed), shape, 1).unwrap();
        assert_ne!(pads(1).get(0, 0), pads(2).get(0, 0));
    }

    #[test]
    fn hide_permutes_by_the_correction() {
        for (k, bits) in [(1, 1), (1, 64), (4, 2), (3, 16), (2, 32), (6, 2), (7, 1), (8, 5), (8, 64), (5, 16)] {
            let shape = PadShape::new(k, bits).unwrap();
            let all = sender_pads(&mut deal(3, 2 * k as usize).0, Block(2), shape, 2).unwrap();
            for shift in 0..shape.entries() {
                let mut table = vec![0; shape.words() + 1];
                all.hide(1, shift, &mut table);
                assert_eq!(table[shape.words()], 0);
                for j in 0..shape.entries() {
                    let bit = j * shape.lane() as usize;
                    let entry = table[bit / 64] >> (bit % 64) & (u64::MAX >> (64 - bits));
                    assert_eq!(entry, all.get(1, j ^ shift), "k {k}, {bits} bits, shift {shift}, {j}");
                }
            }
        }
    }

    #[test]
    fn bits_come_packed() {
        for count in [0usize, 1, 63, 64, 65, 1024, 1100, 5000] {
            let (mut sender, mut receiver) = deal(7, count);
            let [zero, one] = sender_bits(&mut sender, Block(4), count).unwrap();
            let [choices, got] = receiver_bits(&mut receiver, Block(4), count).unwrap();
            assert_eq!((zero.len(), got.len()), (count.div_ceil(64), count.div_ceil(64)));
            for w in 0..got.len() {
                assert_eq!(got[w], zero[w] ^ (choices[w] & (zero[w] ^ one[w])));
            }
            let differ: u32 = zero.iter().zip(&*one).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert!(count < 1000 || differ.abs_diff(count as u32 / 2) < 4 * (count as f64).sqrt() as u32);
        }
    }

    #[test]
    fn shapes_and_pools_are_checked() {
        for (k, bits) in [(0, 1), (9, 1), (1, 0), (1, 65)] {
            assert_eq!(PadShape::new(k, bits), Err(OtError::PadShape { k, bits }));
        }
        let shape = PadShape::new(3, 4).unwrap();
        let (mut sender, mut receiver) = deal(1, 5);
        let error = OtError::PoolEmpty { wanted: 6, left: 5 };
        assert_eq!(sender_pads(&mut sender, Block(0), shape, 2).err(), Some(error));
        assert_eq!(receiver_pads(&mut receiver, Block(0), shape, 2).err(), Some(error));
        assert_eq!(sender_pads(&mut sender, Block(0), shape, usize::MAX).err(), Some(OtError::Exhausted));
    }
}
