//! How well predictions fit labels or scores: accuracy, Matthews correlation, Pearson and Spearman correlation.
//!
//! All functions are pure. A figure that its definition does not give, because there is nothing to compare or one side never
//! varies, is an [`Undefined`] with its reason and never NaN.

use thiserror::Error;

/// Why a metric has no value.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Undefined {
    /// Fewer pairs than the definition needs.
    #[error("there are too few rows")]
    TooFew,
    /// One of the two sides is the same everywhere, so that nothing can vary with it.
    #[error("one side is the same in every row")]
    Constant,
    /// A value is not a finite number.
    #[error("a value is not finite")]
    NotFinite,
    /// The two sides have different lengths.
    #[error("the two sides differ in length")]
    Lengths,
}

/// The part of predictions that are the label, in `[0, 1]`.
///
/// # Errors
/// [`Undefined::TooFew`] without rows, [`Undefined::Lengths`].
pub fn accuracy(predicted: &[usize], labels: &[usize]) -> Result<f64, Undefined> {
    enough(predicted.len(), labels.len(), 1)?;
    let right = predicted.iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok(right as f64 / labels.len() as f64)
}

/// The Matthews correlation of predictions and labels, in `[-1, 1]`; for more than two classes Gorodkin's `R_K`
/// (J. Gorodkin, Computational Biology and Chemistry 28, 2004).
///
/// # Errors
/// [`Undefined::Constant`] if all predictions or all labels are one class, besides the errors of [`accuracy`].
pub fn matthews(predicted: &[usize], labels: &[usize]) -> Result<f64, Undefined> {
    enough(predicted.len(), labels.len(), 1)?;
    let classes = predicted.iter().chain(labels).max().map_or(0, |&c| c + 1);
    let (mut p, mut t) = (vec![0u64; classes], vec![0u64; classes]);
    let mut right = 0u64;
    for (&a, &b) in predicted.iter().zip(labels) {
        p[a] += 1;
        t[b] += 1;
        right += u64::from(a == b);
    }
    let n = labels.len() as u64;
    let dot = |x: &[u64], y: &[u64]| x.iter().zip(y).map(|(&x, &y)| x as i128 * y as i128).sum::<i128>();
    let square = (n as i128) * (n as i128);
    let (varied_p, varied_t) = (square - dot(&p, &p), square - dot(&t, &t));
    if varied_p == 0 || varied_t == 0 {
        return Err(Undefined::Constant);
    }
    let covariance = right as i128 * n as i128 - dot(&p, &t);
    Ok(covariance as f64 / ((varied_p as f64).sqrt() * (varied_t as f64).sqrt()))
}

/// Pearson's correlation, in `[-1, 1]`.
///
/// # Errors
/// [`Undefined`] for fewer than two rows, a constant side or values that are not finite.
pub fn pearson(a: &[f64], b: &[f64]) -> Result<f64, Undefined> {
    enough(a.len(), b.len(), 2)?;
    if !a.iter().chain(b).all(|x| x.is_finite()) {
        return Err(Undefined::NotFinite);
    }
    // Compared as they are: a rounded mean would make a constant side vary.
    let constant = |x: &[f64]| x.windows(2).all(|w| w[0] == w[1]);
    if constant(a) || constant(b) {
        return Err(Undefined::Constant);
    }
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b).map(|(x, y)| (x - mean_a, y - mean_b)) {
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    let r: f64 = ab / (aa.sqrt() * bb.sqrt());
    if r.is_finite() { Ok(r.clamp(-1.0, 1.0)) } else { Err(Undefined::Constant) }
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of their ranks.
///
/// # Errors
/// As [`pearson`].
pub fn spearman(a: &[f64], b: &[f64]) -> Result<f64, Undefined> {
    if !a.iter().chain(b).all(|x| x.is_finite()) {
        return Err(Undefined::NotFinite);
    }
    pearson(&ranks(a), &ranks(b))
}

/// Ranks from 1; equal values share the mean of the ranks that they take up.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let end = start + order[start..].iter().take_while(|&&i| values[i] == value).count().max(1);
        // Ranks start + 1 to end.
        let shared = (start + 1 + end) as f64 / 2.0;
        order[start..end].iter().for_each(|&i| ranks[i] = shared);
        start = end;
    }
    ranks
}

/// The cosine of two vectors' angle.
///
/// # Errors
/// [`Undefined::Constant`] if one has no length; [`Undefined::Lengths`].
pub fn cosine(a: &[f64], b: &[f64]) -> Result<f64, Undefined> {
    enough(a.len(), b.len(), 1)?;
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let length = dot(a, a).sqrt() * dot(b, b).sqrt();
    if length > 0.0 { Ok((dot(a, b) / length).clamp(-1.0, 1.0)) } else { Err(Undefined::Constant) }
}

/// The Wilson interval at 95 % of a part `hits / n`: what other rows of the same kind may show. The whole of `[0, 1]` for
/// `n = 0`.
pub fn wilson(hits: usize, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (z, n, p) = (1.959_963_984_540_054_f64, n as f64, hits as f64 / n as f64);
    let centre = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

fn enough(a: usize, b: usize, least: usize) -> Result<(), Undefined> {
    match (a == b, a >= least) {
        (false, _) => Err(Undefined::Lengths),
        (_, false) => Err(Undefined::TooFew),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: Result<f64, Undefined>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
    }

    #[test]
    fn labels_by_hand() {
        // tp 3, tn 2, fp 1, fn 2.
        let predicted = [1, 1, 1, 1, 0, 0, 0, 0];
        let labels = [1, 1, 1, 0, 0, 0, 1, 1];
        close(accuracy(&predicted, &labels), 5.0 / 8.0);
        close(matthews(&predicted, &labels), (3.0 * 2.0 - 1.0 * 2.0) / (4.0f64 * 5.0 * 3.0 * 4.0).sqrt());
        close(matthews(&labels, &labels), 1.0);
        let opposite: Vec<usize> = labels.iter().map(|l| 1 - l).collect();
        close(matthews(&opposite, &labels), -1.0);
        // Three classes: 4 of 5 right, p = (2, 2, 1), t = (2, 1, 2): (4 * 5 - 8) / sqrt(25 - 9)^2.
        close(matthews(&[0, 0, 1, 1, 2], &[0, 0, 1, 2, 2]), (20.0 - 8.0) / 16.0);
    }

    #[test]
    fn constants_and_nothing_are_undefined() {
        assert_eq!(matthews(&[1, 1, 1], &[0, 1, 0]), Err(Undefined::Constant));
        assert_eq!(matthews(&[0, 1, 0], &[1, 1, 1]), Err(Undefined::Constant));
        assert_eq!(accuracy(&[], &[]), Err(Undefined::TooFew));
        assert_eq!(matthews(&[], &[]), Err(Undefined::TooFew));
        assert_eq!(accuracy(&[1], &[]), Err(Undefined::Lengths));
        for f in [pearson, spearman] {
            assert_eq!(f(&[0.1, 0.1, 0.1], &[1.0, 2.0, 3.0]), Err(Undefined::Constant));
            assert_eq!(f(&[1.0, 2.0], &[3.0, 3.0]), Err(Undefined::Constant));
            assert_eq!(f(&[1.0], &[1.0]), Err(Undefined::TooFew));
            assert_eq!(f(&[1.0, f64::NAN], &[1.0, 2.0]), Err(Undefined::NotFinite));
            assert_eq!(f(&[1.0, 2.0], &[1.0]), Err(Undefined::Lengths));
        }
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), Err(Undefined::Constant));
        assert_eq!(Undefined::Constant.to_string(), "one side is the same in every row");
    }

    #[test]
    fn correlations_by_hand() {
        // Deviations (-2, 0, 2) and (-1, -1, 2): 6 / sqrt(8 * 6).
        close(pearson(&[1.0, 3.0, 5.0], &[2.0, 2.0, 5.0]), 6.0 / 48f64.sqrt());
        // Monotone but not straight.
        close(spearman(&[1.0, 2.0, 3.0, 4.0], &[1.0, 10.0, 11.0, 1e6]), 1.0);
        // Classic without ties: 1 - 6 sum d^2 / (n (n^2 - 1)), d = (0, 1, -1, 0, 0).
        close(spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0, 3.0, 2.0, 4.0, 5.0]), 1.0 - 12.0 / 120.0);
        // Ties: ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5).
        close(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]), 4.5 / 22.5f64.sqrt());
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
        close(cosine(&[1.0, 0.0], &[1.0, 1.0]), 0.5f64.sqrt());
    }

    #[test]
    fn wilson_by_hand() {
        let (low, high) = wilson(10, 10);
        // n / (n + z^2).
        assert!((low - 10.0 / (10.0 + 3.841_458_820_694_124)).abs() < 1e-12 && high > 1.0 - 1e-12);
        let (low, high) = wilson(5, 10);
        assert!((low + high - 1.0).abs() < 1e-12 && (low - 0.236_593).abs() < 1e-5);
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }

    proptest! {
        #[test]
        fn two_classes_are_the_product_moment(pairs in prop::collection::vec((0usize..2, 0usize..2), 2..40)) {
            let (a, b): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
            let real = |x: &[usize]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
            match (matthews(&a, &b), pearson(&real(&a), &real(&b))) {
                (Ok(x), Ok(y)) => prop_assert!((x - y).abs() < 1e-9),
                (x, y) => prop_assert_eq!(x, y),
            }
        }

        #[test]
        fn ranks_know_only_the_order(values in prop::collection::vec(-50i32..50, 2..40)) {
            let a: Vec<f64> = values.iter().map(|&x| x as f64).collect();
            let b: Vec<f64> = values.iter().map(|&x| (x as f64).powi(3) + 7.0).collect();
            prop_assert_eq!(ranks(&a), ranks(&b));
            let n = a.len() as f64;
            prop_assert!((ranks(&a).iter().sum::<f64>() - n * (n + 1.0) / 2.0).abs() < 1e-9);
        }
    }
}
