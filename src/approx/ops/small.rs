//! Products of the small matrices of one attention head, vectorised along the columns of the right operand.

/// `out += a * b` for `a` of `m x k` and `b` of `k x n`, row-major.
#[inline(always)]
pub(super) fn multiply_add(out: &mut [f32], a: &[f32], b: &[f32], m: usize, k: usize, n: usize) {
    for i in 0..m {
        let (out, a) = (&mut out[i * n..(i + 1) * n], &a[i * k..(i + 1) * k]);
        combine(out, |r| a[r], b, k, n);
    }
}

/// `out += a^T * b` for `a` of `k x m` and `b` of `k x n`, row-major.
#[inline(always)]
pub(super) fn multiply_add_transposed(out: &mut [f32], a: &[f32], b: &[f32], m: usize, k: usize, n: usize) {
    for i in 0..m {
        combine(&mut out[i * n..(i + 1) * n], |r| a[r * m + i], b, k, n);
    }
}

/// Adds the rows of `b` times their factors; four at once, so that `out` is read and written less often.
#[inline(always)]
fn combine(out: &mut [f32], factor: impl Fn(usize) -> f32, b: &[f32], k: usize, n: usize) {
    let row = |r: usize| &b[r * n..(r + 1) * n];
    let mut r = 0;
    while r + 4 <= k {
        let (x0, x1, x2, x3) = (factor(r), factor(r + 1), factor(r + 2), factor(r + 3));
        let (b0, b1, b2, b3) = (row(r), row(r + 1), row(r + 2), row(r + 3));
        for c in 0..n {
            out[c] += (x0 * b0[c] + x1 * b1[c]) + (x2 * b2[c] + x3 * b3[c]);
        }
        r += 4;
    }
    while r < k {
        let (x, b) = (factor(r), row(r));
        for c in 0..n {
            out[c] += x * b[c];
        }
        r += 1;
    }
}

/// `b` of `rows x cols` transposed into `out`.
#[inline(always)]
pub(super) fn transpose(out: &mut [f32], b: &[f32], rows: usize, cols: usize) {
    for r in 0..rows {
        for c in 0..cols {
            out[c * rows + r] = b[r * cols + c];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition() {
        let (m, k, n) = (3, 6, 5);
        let a: Vec<f32> = (0..m * k).map(|x| x as f32 - 4.0).collect();
        let b: Vec<f32> = (0..k * n).map(|x| (x * x % 11) as f32).collect();
        let expected: Vec<f32> =
            (0..m * n).map(|o| (0..k).map(|r| a[o / n * k + r] * b[r * n + o % n]).sum()).collect();
        let mut out = vec![0.0; m * n];
        multiply_add(&mut out, &a, &b, m, k, n);
        assert_eq!(out, expected);
        let mut turned = vec![0.0; m * k];
        transpose(&mut turned, &a, m, k);
        let mut out = vec![0.0; m * n];
        multiply_add_transposed(&mut out, &turned, &b, m, k, n);
        assert_eq!(out, expected);
    }
}
