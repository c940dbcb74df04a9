//! A blocked matrix product for the float model and, exactly, for the oracle.

use std::ops::{Add, AddAssign, Mul};

use rayon::prelude::*;

/// Columns whose accumulators stay in the first-level cache.
const TILE: usize = 128;

/// Rows that share one pass over the right operand.
const ROWS: usize = 4;

/// `a * b` for `a` of `m x k` and `b` of `k x n`, row-major. Terms are added in no particular order.
pub(crate) fn matmul<T, B>(a: &[T], b: &[B], m: usize, k: usize, n: usize) -> Vec<T>
where
    T: Copy + Default + Send + Sync + Add<Output = T> + Mul<Output = T> + AddAssign,
    B: Copy + Sync + Into<T>,
{
    debug_assert_eq!(a.len(), m * k);
    debug_assert_eq!(b.len(), k * n);
    let mut out = vec![T::default(); m * n];
    if n > 0 {
        out.par_chunks_mut(ROWS * n).enumerate().for_each(|(block, out)| {
            let rows = out.len() / n;
            let a = &a[block * ROWS * k..(block * ROWS + rows) * k];
            for j in (0..n).step_by(TILE) {
                tile(a, b, out, k, n, j, (n - j).min(TILE));
            }
        });
    }
    out
}

/// Columns `j .. j + width` of up to [`ROWS`] rows.
fn tile<T, B>(a: &[T], b: &[B], out: &mut [T], k: usize, n: usize, j: usize, width: usize)
where
    T: Copy + Default + Add<Output = T> + Mul<Output = T> + AddAssign,
    B: Copy + Into<T>,
{
    let rows = out.len() / n;
    let at = |r: usize, i: usize| if r < rows { a[r * k + i] } else { T::default() };
    let mut sums = [[T::default(); TILE]; ROWS];
    let [s0, s1, s2, s3] = &mut sums;
    let (s0, s1, s2, s3) = (&mut s0[..width], &mut s1[..width], &mut s2[..width], &mut s3[..width]);
    let mut i = 0;
    while i + 2 <= k {
        let (x0, x1, x2, x3) = (at(0, i), at(1, i), at(2, i), at(3, i));
        let (y0, y1, y2, y3) = (at(0, i + 1), at(1, i + 1), at(2, i + 1), at(3, i + 1));
        let (v, w) = (&b[i * n + j..][..width], &b[(i + 1) * n + j..][..width]);
        for c in 0..width {
            let (v, w): (T, T) = (v[c].into(), w[c].into());
            s0[c] += x0 * v + y0 * w;
            s1[c] += x1 * v + y1 * w;
            s2[c] += x2 * v + y2 * w;
            s3[c] += x3 * v + y3 * w;
        }
        i += 2;
    }
    if i < k {
        let (x0, x1, x2, x3) = (at(0, i), at(1, i), at(2, i), at(3, i));
        let v = &b[i * n + j..][..width];
        for c in 0..width {
            let v: T = v[c].into();
            s0[c] += x0 * v;
            s1[c] += x1 * v;
            s2[c] += x2 * v;
            s3[c] += x3 * v;
        }
    }
    for (r, sums) in sums.iter().enumerate().take(rows) {
        out[r * n + j..][..width].copy_from_slice(&sums[..width]);
    }
}

/// The transpose of an `m x n` matrix.
pub(crate) fn transpose<T: Copy>(a: &[T], m: usize, n: usize) -> Vec<T> {
    (0..n).flat_map(|j| (0..m).map(move |i| a[i * n + j])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_definition() {
        for (m, k, n) in [(1, 1, 1), (3, 2, 5), (4, 7, 128), (5, 8, 129), (9, 33, 300), (2, 0, 3)] {
            let a: Vec<f64> = (0..m * k).map(|i| ((i * 37) % 101) as f64 - 50.0).collect();
            let b: Vec<i32> = (0..k * n).map(|i| ((i * 53) % 97) as i32 - 48).collect();
            let c = matmul::<f64, i32>(&a, &b, m, k, n);
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|l| a[i * k + l] * b[l * n + j] as f64).sum();
                    assert_eq!(c[i * n + j], sum, "{m} {k} {n}");
                }
            }
        }
    }

    #[test]
    fn transposes() {
        assert_eq!(transpose(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
    }
}
