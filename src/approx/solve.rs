//! Least squares in double precision.

/// `x` of `a x = b` for a symmetric positive `a` of `n x n` and `b` of `n x m`, by Cholesky's factors. A pivot that rounding
/// made small counts as infinite, so that its unknown is 0.
pub fn solve(mut a: Vec<f64>, mut b: Vec<f64>, n: usize) -> Vec<f64> {
    let m = b.len() / n.max(1);
    for j in 0..n {
        for k in 0..j {
            let factor = a[j * n + k];
            for i in j..n {
                a[i * n + j] -= a[i * n + k] * factor;
            }
        }
        let pivot = a[j * n + j];
        let root = if pivot > 0.0 { pivot.sqrt() } else { f64::INFINITY };
        for i in j..n {
            a[i * n + j] /= root;
        }
        a[j * n + j] = root;
    }
    for c in 0..m {
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| a[i * n + k] * b[k * m + c]).sum();
            b[i * m + c] = (b[i * m + c] - sum) / a[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k * m + c]).sum();
            b[i * m + c] = (b[i * m + c] - sum) / a[i * n + i];
        }
    }
    b
}

/// Normal equations of `rows x n` features and `rows x m` targets: the matrix, ready for [`solve`], and the right sides.
/// `ridge` times the matrix's mean diagonal is added to the diagonal.
pub fn normal_equations(rows: &[Vec<f64>], targets: &[Vec<f64>], ridge: f64) -> (Vec<f64>, Vec<f64>, usize) {
    let (n, m) = (rows.first().map_or(0, Vec::len), targets.first().map_or(0, Vec::len));
    let (mut a, mut b) = (vec![0.0; n * n], vec![0.0; n * m]);
    for (x, y) in rows.iter().zip(targets) {
        for i in 0..n {
            for j in 0..=i {
                a[i * n + j] += x[i] * x[j];
            }
            for c in 0..m {
                b[i * m + c] += x[i] * y[c];
            }
        }
    }
    let mean = (0..n).map(|i| a[i * n + i]).sum::<f64>() / n.max(1) as f64;
    for i in 0..n {
        a[i * n + i] += ridge * mean;
        for j in 0..i {
            a[j * n + i] = a[i * n + j];
        }
    }
    (a, b, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_map_that_made_the_targets() {
        let rows: Vec<Vec<f64>> = (0..20).map(|i| vec![1.0, f64::from(i), f64::from(i * i % 7)]).collect();
        let map = |x: &Vec<f64>| vec![2.0 * x[0] - x[1], 0.5 * x[2]];
        let targets: Vec<Vec<f64>> = rows.iter().map(map).collect();
        let (a, b, n) = normal_equations(&rows, &targets, 0.0);
        let x = solve(a, b, n);
        for (x, expected) in x.iter().zip([2.0, 0.0, -1.0, 0.0, 0.0, 0.5]) {
            assert!((x - expected).abs() < 1e-9, "{x} {expected}");
        }
        assert_eq!(solve(vec![0.0], vec![1.0], 1), [0.0], "a feature that is always 0");
    }
}
