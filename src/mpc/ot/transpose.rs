//! Transposition of a 128-row bit matrix, the inner step of the OT extension.

use pulp::{Arch, Simd, WithSimd};

use crate::mpc::block::Block;

/// Tiles of 128 x 128 bits that go through the butterfly together: a row of a strip is then two AVX-512 registers, and the
/// strip (16 KiB) stays in the first-level cache.
const STRIP: usize = 8;

/// Rows of the matrix.
const ROWS: usize = 128;

type Strip = [[u64; 2 * STRIP]; ROWS];

/// Transposes a matrix of 128 rows and `128 * width` columns. Row `i` is `rows[i * width .. (i + 1) * width]`, column `j`
/// being bit `j % 128` of its block `j / 128`; then bit `i` of `out[j]` is the entry of row `i` and column `j`.
///
/// `rows` and `out` hold `128 * width` blocks each; surplus blocks of either are ignored.
pub(crate) fn transpose(rows: &[Block], width: usize, out: &mut [Block]) {
    let arch = Arch::new();
    let mut strip: Strip = [[0; 2 * STRIP]; ROWS];
    for (s, out) in out.chunks_mut(ROWS * STRIP).enumerate() {
        let first = s * STRIP;
        let tiles = STRIP.min(width - first);
        for (slot, row) in strip.iter_mut().zip(rows.chunks_exact(width)) {
            slot[..2 * tiles].copy_from_slice(bytemuck::cast_slice(&row[first..first + tiles]));
        }
        arch.dispatch(Butterfly(&mut strip));
        for (t, tile) in out.chunks_exact_mut(ROWS).enumerate() {
            for (block, row) in tile.iter_mut().zip(&strip) {
                *block = Block(u128::from(row[2 * t]) | u128::from(row[2 * t + 1]) << 64);
            }
        }
    }
    zeroize::Zeroize::zeroize(&mut strip);
}

/// Eklundh's recursion: at distance `s`, entry (i, b + s) changes places with entry (i + s, b).
struct Butterfly<'a>(&'a mut Strip);

impl WithSimd for Butterfly<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let strip = self.0;
        let (low, high) = strip.split_at_mut(ROWS / 2);
        for (x, y) in low.iter_mut().zip(high) {
            for t in 0..STRIP {
                std::mem::swap(&mut x[2 * t + 1], &mut y[2 * t]);
            }
        }
        let mut distance = 32;
        let mut mask = 0x0000_0000_ffff_ffffu64;
        while distance > 0 {
            for group in strip.chunks_exact_mut(2 * distance) {
                let (low, high) = group.split_at_mut(distance);
                for (x, y) in low.iter_mut().zip(high) {
                    for (x, y) in x.iter_mut().zip(y) {
                        let t = ((*x >> distance) ^ *y) & mask;
                        *y ^= t;
                        *x ^= t << distance;
                    }
                }
            }
            distance /= 2;
            mask ^= mask << distance;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpc::prg::Prg;

    #[test]
    fn matches_the_definition() {
        for width in [1, 2, 7, 8, 9, 16, 19] {
            let mut rows = vec![Block::ZERO; ROWS * width];
            Prg::new(Block(width as u128)).fill_blocks(&mut rows);
            let mut out = vec![Block::ZERO; ROWS * width];
            transpose(&rows, width, &mut out);
            for (j, column) in out.iter().enumerate() {
                for i in 0..ROWS {
                    assert_eq!(column.bit(i), rows[i * width + j / 128].bit(j % 128), "{width} {i} {j}");
                }
            }
        }
    }
}
