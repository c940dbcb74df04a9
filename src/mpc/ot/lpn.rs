//! Learning parity with noise (LPN) with regular noise: parameter sets, and the linear code that stretches `k` COTs to `n`.
//!
//! The sets are those of emp-ot 1.0.0-alpha.1 (July 2026), chosen for about 128 bits against the published attacks on
//! regular LPN: Gaussian elimination, statistical decoding and information set decoding (Liu, Wang, Yang, Yu, EUROCRYPT
//! 2024), regular information set decoding (Esser, Santini, CRYPTO 2024), the algebraic attacks (Briaud, Oygarden,
//! EUROCRYPT 2023, and its successor, ePrint 2025/1476) and the hybrid of both kinds (ePrint 2025/1284). The sets of the
//! Ferret paper are older than most of these. `SECURITY.md` gives the estimates.

use bytemuck::Pod;

use crate::mpc::block::Block;
use crate::mpc::prg::Prg;

/// Entries of the short vector that each row of the code adds up.
const ROW_WEIGHT: usize = 10;

/// Rows whose indices are made together, a multiple of 4: 4 rows take 5 or 10 whole blocks of the index stream.
const ROWS: usize = 128;

/// A parameter set of regular LPN over bits: `n = trees * 2^depth` samples of `k = 2^log_k` secret bits, with one noise bit
/// in every tree, i.e. in `2^depth` samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LpnParams {
    pub(super) log_k: u32,
    pub(super) trees: usize,
    pub(super) depth: u32,
    /// Trees that are expanded side by side; divides `trees`.
    pub(super) lanes: usize,
}

impl LpnParams {
    /// n = 870,400, k = 2^16, 850 noise bits. Least of the estimates: 128 bits (information set decoding).
    pub const N20: Self = Self { log_k: 16, trees: 850, depth: 10, lanes: 5 };
    /// n = 2,396,160, k = 2^17, 1170 noise bits. Least of the estimates: 128 bits (hybrid attack).
    pub const N21: Self = Self { log_k: 17, trees: 1170, depth: 11, lanes: 5 };
    /// n = 6,225,920, k = 2^18, 1520 noise bits. Least of the estimates: 136 bits (information set decoding).
    pub const N22: Self = Self { log_k: 18, trees: 1520, depth: 12, lanes: 4 };
    /// n = 15,564,800, k = 2^19, 1900 noise bits. Least of the estimates: 140 bits (information set decoding).
    pub const N24: Self = Self { log_k: 19, trees: 1900, depth: 13, lanes: 2 };
    /// Far too small to be secure: for tests.
    #[cfg(test)]
    pub(crate) const TOY: Self = Self { log_k: 10, trees: 30, depth: 7, lanes: 5 };

    /// Bits of the LPN secret.
    pub fn k(&self) -> usize {
        1 << self.log_k
    }

    /// Noise bits: trees, each with one.
    pub fn noise(&self) -> usize {
        self.trees
    }

    /// Samples: COTs that an iteration makes.
    pub fn n(&self) -> usize {
        self.trees << self.depth
    }

    /// COTs that an iteration uses up: the secret, and one for every level of every tree.
    pub fn base_cots(&self) -> usize {
        self.k() + self.trees * self.depth as usize
    }
}

/// The code of one iteration: rows of `k` bits, ten of them drawn uniformly by a public seed. All rows of all iterations
/// under a seed are different parts of its stream.
pub(super) struct LocalCode {
    stream: Prg,
    first_block: u64,
    log_k: u32,
}

impl LocalCode {
    /// The code of iteration `iteration` (below 2^24) under a public seed, for `k = 2^log_k`.
    pub(super) fn new(seed: Block, iteration: u64, log_k: u32) -> Self {
        Self { stream: Prg::new(seed), first_block: iteration << 40, log_k }
    }

    /// Adds rows `first_row ..` of the code times `secret` (of `k` blocks) to `out`; `first_row` and the length are
    /// multiples of 4. The indices are public, so that memory is accessed in the same order whatever the secret is.
    pub(super) fn add_rows(&self, secret: &[Block], first_row: usize, out: &mut [Block]) {
        match self.log_k {
            16 => self.add::<u16, { 1 << 16 }>(secret, first_row, out),
            17 => self.add::<u32, { 1 << 17 }>(secret, first_row, out),
            18 => self.add::<u32, { 1 << 18 }>(secret, first_row, out),
            19 => self.add::<u32, { 1 << 19 }>(secret, first_row, out),
            #[cfg(test)]
            10 => self.add::<u16, { 1 << 10 }>(secret, first_row, out),
            _ => unreachable_params(),
        }
    }

    /// With `K` known at compile time the masked indices need no bounds check.
    fn add<I: Index, const K: usize>(&self, secret: &[Block], first_row: usize, out: &mut [Block]) {
        let Ok(secret) = <&[Block; K]>::try_from(secret) else { return unreachable_params() };
        const BLOCKS: usize = ROWS * ROW_WEIGHT * size_of::<u32>() / size_of::<Block>();
        let mut buffer = [Block::ZERO; BLOCKS];
        let row_bytes = ROW_WEIGHT * size_of::<I>();
        for (r, rows) in out.chunks_mut(ROWS).enumerate() {
            let row = first_row + r * ROWS;
            let blocks = &mut buffer[..rows.len() * row_bytes / size_of::<Block>()];
            self.stream.fill_blocks_at(self.first_block + (row * row_bytes / size_of::<Block>()) as u64, blocks);
            let (indices, _) = bytemuck::cast_slice::<Block, I>(blocks).as_chunks::<ROW_WEIGHT>();
            for (out, indices) in rows.iter_mut().zip(indices) {
                *out = indices.iter().fold(*out, |sum, i| sum ^ secret[i.index() & (K - 1)]);
            }
        }
    }
}

trait Index: Pod {
    fn index(self) -> usize;
}

impl Index for u16 {
    #[inline(always)]
    fn index(self) -> usize {
        usize::from(self)
    }
}

impl Index for u32 {
    #[inline(always)]
    fn index(self) -> usize {
        self as usize
    }
}

/// [`LpnParams`] has only the sets above.
fn unreachable_params() {
    debug_assert!(false, "an LPN parameter set without code");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_consistent() {
        for set in [LpnParams::N20, LpnParams::N21, LpnParams::N22, LpnParams::N24, LpnParams::TOY] {
            assert_eq!(set.trees % set.lanes, 0);
            assert!(set.base_cots() * 2 < set.n() && set.depth >= 2);
            // The index streams of two iterations do not meet.
            assert!((set.n() * ROW_WEIGHT * 4 / 16) < 1 << 40);
        }
    }

    #[test]
    fn rows_match_their_definition_wherever_they_start() {
        fn check<I: Index>(log_k: u32) {
            let code = LocalCode::new(Block(7), 3, log_k);
            let mut secret = vec![Block::ZERO; 1 << log_k];
            Prg::new(Block(8)).fill_blocks(&mut secret);
            let count = 3 * ROWS + 20;
            let mut indices = vec![Block::ZERO; count * ROW_WEIGHT * size_of::<I>() / 16];
            Prg::new(Block(7)).fill_blocks_at(3 << 40, &mut indices);
            let indices: &[I] = bytemuck::cast_slice(&indices);
            let mut expected = vec![Block(99); count];
            for (row, x) in expected.iter_mut().enumerate() {
                for i in &indices[row * ROW_WEIGHT..][..ROW_WEIGHT] {
                    *x ^= secret[i.index() % secret.len()];
                }
            }
            for first in [0, 4, ROWS, 300] {
                let mut out = vec![Block(99); count - first];
                code.add_rows(&secret, first, &mut out);
                assert!(out == expected[first..], "k 2^{log_k}, from row {first}");
            }
        }
        check::<u16>(10);
        check::<u16>(16);
        check::<u32>(17);
    }
}
