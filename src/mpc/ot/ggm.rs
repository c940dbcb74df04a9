//! Single-point COTs in batches by correlated GGM trees (Guo, Yang, Wang, Zhang, Xie, Liu, Zhao, "Half-Tree", EUROCRYPT
//! 2023, for semi-honest parties): half the hashes and half the bytes of plain GGM trees.
//!
//! A tree has `delta` as the XOR of all nodes of every level: the root's children are `s` and `s ^ delta`, those of a node
//! `x` are `H(x)` and `x ^ H(x)`. The sender's outputs are the leaves `v_j`, their lowest bits cleared. With COTs
//! `t_i = q_i ^ b_i * delta`, one a level, the sender's message `c_i = q_i ^ (XOR of the left nodes of level i)` gives the
//! receiver the XOR of the nodes on side `b_i`. So it learns all nodes but those on a path that turns to the side
//! `1 - b_i` at each level: random choices are a random path, and it has nothing to send. The XOR of all other leaves is its
//! `v_j ^ delta` at the end of the path (up to the lowest bit, which is set).
//!
//! `H(x) = pi(sigma(x)) ^ sigma(x)` with AES under a public key per group of trees.
//!
//! Some trees, the lanes, are expanded side by side: node `j` of lane `l` at a level of `m` nodes is at `j * lanes + l`, its
//! children are nodes `j` (left) and `j + m` (right). So leaf `j` has the path's first turn as its lowest bit.
//!
//! The path is the receiver's secret noise. It is only ever compared with every node's index, never used as an index.

use aes::Aes128Enc;
use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks,
};
use pulp::{Arch, Simd, WithSimd};
use zeroize::{Zeroize, Zeroizing};

use crate::mpc::block::Block;
use crate::mpc::prg::sigma;

type AesBlock = Array<u8, U16>;

/// Parents that are hashed together.
const STRIP: usize = 64;

/// Lanes of a group at most.
pub(super) const MAX_LANES: usize = 16;

/// All bits but the lowest.
const EVEN: Block = Block(!1);

/// Groups of trees under one hash key.
pub(super) struct Forest {
    cipher: Aes128Enc,
    lanes: usize,
    depth: u32,
}

impl Forest {
    /// Groups of at most [`MAX_LANES`] trees of depth at least 2 under a public key.
    pub(super) fn new(key: Block, lanes: usize, depth: u32) -> Self {
        Self { cipher: Aes128Enc::new(&key.to_bytes().into()), lanes, depth }
    }

    /// The sender's side of a group: from a fresh random seed a lane and `q` (level by level, lane by lane) the message in
    /// the same order and the leaves.
    pub(super) fn send(&self, delta: Block, seeds: &[Block], q: &[Block], message: &mut [Block], leaves: &mut [Block]) {
        let lanes = self.lanes;
        let (left, right) = leaves[..2 * lanes].split_at_mut(lanes);
        for (((left, right), &seed), (c, &q)) in left.iter_mut().zip(right).zip(seeds).zip(message.iter_mut().zip(q)) {
            (*left, *right) = (seed, seed ^ delta);
            *c = seed ^ q;
        }
        let mut nodes = 2;
        for (c, q) in message.chunks_exact_mut(lanes).zip(q.chunks_exact(lanes)).skip(1) {
            let mut sums = self.expand(nodes, leaves);
            for ((c, &q), &sum) in c.iter_mut().zip(q).zip(&sums) {
                *c = q ^ sum;
            }
            sums.zeroize();
            nodes *= 2;
        }
        leaves.iter_mut().for_each(|x| *x = *x & EVEN);
    }

    /// The receiver's side of a group: from `t` and the sender's message its leaves.
    pub(super) fn receive(&self, t: &[Block], message: &[Block], leaves: &mut [Block]) {
        let lanes = self.lanes;
        let mut path = Zeroizing::new([0u64; MAX_LANES]);
        // What the first hash gives for a node that is not known, and so held as zero.
        let hole = self.hash_zero();
        // The XOR of the known nodes of a level.
        let mut totals = Zeroizing::new([Block::ZERO; MAX_LANES]);
        let (left, right) = leaves[..2 * lanes].split_at_mut(lanes);
        for l in 0..lanes {
            let side = Block::mask(t[l].lsb());
            let known = message[l] ^ t[l];
            (left[l], right[l]) = order(side, known, Block::ZERO);
            totals[l] = known;
            path[l] = u64::from(!t[l].lsb());
        }
        let mut nodes = 2;
        let mut fixes = Zeroizing::new([[Block::ZERO; MAX_LANES]; 2]);
        for (level, (t, c)) in t.chunks_exact(lanes).zip(message.chunks_exact(lanes)).enumerate().skip(1) {
            let last = level + 1 == self.depth as usize;
            let mut sums = self.expand(nodes, leaves);
            for l in 0..lanes {
                // Of the children of the unknown node, which now hold `hole`, the one on the known side gets what is missing
                // to its side's XOR, the other becomes the unknown node: zero, or at last the XOR of all others.
                let side = Block::mask(t[l].lsb());
                let other_sums = sums[l] ^ (side & totals[l]);
                let missing = c[l] ^ t[l] ^ other_sums;
                totals[l] ^= missing ^ hole;
                let (mut known, mut unknown) = (missing, hole);
                if last {
                    known = known & EVEN;
                    unknown = (unknown ^ totals[l]) & EVEN ^ Block(1);
                }
                (fixes[0][l], fixes[1][l]) = order(side, known, unknown);
            }
            sums.zeroize();
            let mask = if last { EVEN } else { Block::ONES };
            let leaves = &mut leaves[..2 * nodes * lanes];
            Arch::new().dispatch(Fix { leaves, lanes, path: &path[..lanes], fixes: &fixes, mask });
            for (l, path) in path.iter_mut().enumerate().take(lanes) {
                *path += u64::from(!t[l].lsb()) * nodes as u64;
            }
            nodes *= 2;
        }
    }

    /// Expands `nodes` nodes a lane to their children, in place. Returns the XOR of the left ones of each lane.
    fn expand(&self, nodes: usize, tree: &mut [Block]) -> [Block; MAX_LANES] {
        let (left, rest) = tree.split_at_mut(nodes * self.lanes);
        let right = &mut rest[..left.len()];
        self.cipher.encrypt_with_backend(Expand { left, right });
        let mut sums = [Block::ZERO; MAX_LANES];
        for node in left.chunks_exact(self.lanes) {
            for (sum, &x) in sums.iter_mut().zip(node) {
                *sum ^= x;
            }
        }
        sums
    }

    fn hash_zero(&self) -> Block {
        let (mut left, mut right) = ([Block::ZERO], [Block::ZERO]);
        self.cipher.encrypt_with_backend(Expand { left: &mut left, right: &mut right });
        left[0]
    }
}

/// What belongs to the left and to the right if the known side is the right one (`side` all ones) or the left one (zero).
fn order(side: Block, known: Block, unknown: Block) -> (Block, Block) {
    let exchange = side & (known ^ unknown);
    (known ^ exchange, unknown ^ exchange)
}

/// `left`, the parents, become the left children `H(x)`, `right` the right ones `x ^ H(x)`.
struct Expand<'a> {
    left: &'a mut [Block],
    right: &'a mut [Block],
}

impl BlockSizeUser for Expand<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Expand<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let mut images = [Block::ZERO; STRIP];
        for (left, right) in self.left.chunks_mut(STRIP).zip(self.right.chunks_mut(STRIP)) {
            let images = &mut images[..left.len()];
            for (image, &x) in images.iter_mut().zip(&*left) {
                *image = sigma(x);
            }
            let (blocks, _) = AesBlock::slice_as_chunks_mut(bytemuck::cast_slice_mut(images));
            let (wide, tail) = ParBlocks::<B>::slice_as_chunks_mut(blocks);
            for blocks in wide {
                backend.encrypt_par_blocks(blocks.into());
            }
            for block in tail {
                backend.encrypt_block(block.into());
            }
            for ((left, right), &image) in left.iter_mut().zip(right).zip(&*images) {
                let hash = image ^ sigma(*left);
                (*left, *right) = (hash, *left ^ hash);
            }
        }
        images.zeroize();
    }
}

/// Adds `fixes[0][l]` to the left and `fixes[1][l]` to the right child of node `path[l]` of each lane, and then takes `mask`
/// of all, but for the fixes themselves. Touches all nodes alike.
struct Fix<'a> {
    leaves: &'a mut [Block],
    lanes: usize,
    path: &'a [u64],
    fixes: &'a [[Block; MAX_LANES]; 2],
    mask: Block,
}

impl WithSimd for Fix<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { leaves, lanes, path, fixes, mask } = self;
        let half = leaves.len() / 2;
        let mask = [mask.0 as u64, (mask.0 >> 64) as u64];
        for (side, fixes) in leaves.chunks_exact_mut(half).zip(fixes) {
            let fixes: &[[u64; 2]] = bytemuck::cast_slice(fixes);
            for (j, nodes) in side.chunks_exact_mut(lanes).enumerate() {
                let nodes: &mut [[u64; 2]] = bytemuck::cast_slice_mut(nodes);
                for ((node, fix), &path) in nodes.iter_mut().zip(fixes).zip(path) {
                    let here = if path == j as u64 { u64::MAX } else { 0 };
                    node[0] = node[0] & mask[0] ^ fix[0] & here;
                    node[1] = node[1] & mask[1] ^ fix[1] & here;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpc::ot::deal;
    use crate::mpc::prg::Prg;

    #[test]
    fn trees_differ_by_delta_in_one_leaf() {
        for (lanes, depth) in [(1usize, 2u32), (1, 9), (2, 5), (3, 7), (10, 3), (16, 6), (10, 10)] {
            let cots = lanes * depth as usize;
            let (mut q, mut t) = deal(u64::from(depth), cots);
            let delta = q.delta();
            let (q, t) = (q.take(cots).unwrap(), t.take(cots).unwrap().t);
            let forest = Forest::new(Block(5), lanes, depth);
            let mut seeds = vec![Block::ZERO; lanes];
            Prg::new(Block(6)).fill_blocks(&mut seeds);
            let mut message = vec![Block::ZERO; cots];
            let mut v = vec![Block::ZERO; lanes << depth];
            let mut w = vec![Block(3); lanes << depth];
            forest.send(delta, &seeds, &q, &mut message, &mut v);
            forest.receive(&t, &message, &mut w);
            for l in 0..lanes {
                let path = (0..depth as usize).map(|i| usize::from(!t[i * lanes + l].lsb()) << i).sum::<usize>();
                for j in 0..1 << depth {
                    let at = j * lanes + l;
                    assert!(!v[at].lsb());
                    let expected = v[at] ^ (Block::mask(j == path) & delta);
                    assert!(w[at] == expected, "{lanes} lanes, depth {depth}, lane {l}, leaf {j}");
                }
            }
            let mut all: Vec<u128> = v.iter().map(|x| x.0).collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), lanes << depth);
        }
    }

    #[test]
    fn levels_add_up_to_delta() {
        let forest = Forest::new(Block(5), 1, 4);
        let delta = Block(0x1234_5678_9abc_def1);
        let mut tree = vec![Block::ZERO; 16];
        tree[..2].copy_from_slice(&[Block(77), Block(77) ^ delta]);
        for nodes in [2, 4, 8] {
            let parents = tree[..nodes].to_vec();
            let sums = forest.expand(nodes, &mut tree);
            assert!(tree[..nodes].iter().fold(Block::ZERO, |a, &b| a ^ b) == sums[0]);
            assert!(tree[..2 * nodes].iter().fold(Block::ZERO, |a, &b| a ^ b) == delta);
            for (j, &x) in parents.iter().enumerate() {
                let hash = crate::mpc::prg::CrHash::new(Block(5)).hash(x, 0);
                assert!(tree[j] == hash && tree[j + nodes] == x ^ hash);
            }
        }
    }
}
