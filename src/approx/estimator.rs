//! The perceptron that stands for the reciprocal in the softmax estimator.
//!
//! Its hidden unit `m` is `ReLU(1 - s / k_m)` at the start: the piecewise linear function of the knots `k_m`, which lie at equal
//! ratios, so that the relative error is the same in all pieces. Units vanish to the right of their knots, and values of large sums
//! are not differences of large numbers. The output layer is then learnt on the sums that the model shows, by least squares
//! of the relative error.

use super::solve::{normal_equations, solve};
use crate::model::Estimator;

/// The perceptron as [`super::ops::Attention`] takes it.
pub fn flatten(e: &Estimator) -> Vec<f32> {
    [&e.hidden[..], &e.hidden_bias, &e.output, &[e.output_bias]].concat()
}

/// The perceptron as a checkpoint has it.
pub fn unflatten(t: &[f32]) -> Estimator {
    let h = t.len() / 3;
    Estimator {
        hidden: t[..h].to_vec(),
        hidden_bias: t[h..2 * h].to_vec(),
        output: t[2 * h..3 * h].to_vec(),
        output_bias: t[3 * h..].first().copied().unwrap_or(0.0),
    }
}

/// A perceptron of `h` units for sums from `low` to `high`, learnt on the sums `seen` besides.
pub fn fit(low: f64, high: f64, h: usize, seen: &[f32]) -> Estimator {
    let knot = |m: usize| low * (high / low).powf(m as f64 / h as f64);
    let ratio = knot(1) / knot(0);
    // The chord lies above by (1 + r)^2 / 4r - 1 at most: half of that is taken off everywhere.
    let over = (1.0 + ratio) * (1.0 + ratio) / (4.0 * ratio) - 1.0;
    let scale = 1.0 / (1.0 + over / 2.0);
    let slope = |m: usize| if m > h { 0.0 } else { -scale / (knot(m - 1) * knot(m)) };
    let output: Vec<f64> = (1..=h).map(|m| knot(m) * (slope(m + 1) - slope(m))).collect();
    let mut e = Estimator {
        hidden: (1..=h).map(|m| (-1.0 / knot(m)) as f32).collect(),
        hidden_bias: vec![1.0; h],
        output: output.iter().map(|&o| o as f32).collect(),
        output_bias: (scale / high) as f32,
    };
    learn(&mut e, &grid(low, high), seen);
    e
}

/// Sums at equal ratios.
fn grid(low: f64, high: f64) -> Vec<f64> {
    const POINTS: usize = 1024;
    (0..=POINTS).map(|i| low * (high / low).powf(i as f64 / POINTS as f64)).collect()
}

/// Output weights of least mean square relative error over the grid and, weighing as much, over the sums seen on it.
fn learn(e: &mut Estimator, grid: &[f64], seen: &[f32]) {
    let (low, high) = (grid[0], grid[grid.len() - 1]);
    let seen: Vec<f64> = seen.iter().map(|&s| f64::from(s)).filter(|s| (low..=high).contains(s)).collect();
    let step = (seen.len() / grid.len()).max(1);
    let seen = seen.iter().step_by(step).copied();
    // (T(s) - 1/s) s = sum_m o_m ReLU(..) s + c s - 1, for the change of o and c from the start.
    let at = |e: &Estimator, s: f64| -> Vec<f64> {
        let unit = |(&w, &b): (&f32, &f32)| (f64::from(w) * s + f64::from(b)).max(0.0) * s;
        e.hidden.iter().zip(&e.hidden_bias).map(unit).chain([s]).collect()
    };
    let points: Vec<f64> = grid.iter().copied().chain(seen).collect();
    let rows: Vec<Vec<f64>> = points.iter().map(|&s| at(e, s)).collect();
    let targets: Vec<Vec<f64>> = points.iter().map(|&s| vec![1.0 - e.value(s) * s]).collect();
    let (a, b, n) = normal_equations(&rows, &targets, 1e-10);
    let change = solve(a, b, n);
    let mut learnt = e.clone();
    learnt.output.iter_mut().zip(&change).for_each(|(o, c)| *o += *c as f32);
    learnt.output_bias += change.last().copied().unwrap_or(0.0) as f32;
    if relative_error(&learnt, low, high).0 < relative_error(e, low, high).0 {
        *e = learnt;
    }
}

/// Root of the mean square, and the largest, of `|T(s) s - 1|` over sums at equal ratios.
pub fn relative_error(e: &Estimator, low: f64, high: f64) -> (f64, f64) {
    let errors: Vec<f64> = grid(low, high).iter().map(|&s| (e.value(s) * s - 1.0).abs()).collect();
    let square = errors.iter().map(|x| x * x).sum::<f64>() / errors.len() as f64;
    (square.sqrt(), errors.iter().copied().fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reciprocal_is_near_over_the_whole_range() {
        let e = fit(1.0, 600.0, 32, &[]);
        let (mean, largest) = relative_error(&e, 1.0, 600.0);
        assert!(mean < 0.003 && largest < 0.01, "{mean} {largest}");
        let fewer = relative_error(&fit(1.0, 600.0, 16, &[]), 1.0, 600.0);
        assert!(fewer.0 > mean && fewer.1 < 0.05, "{fewer:?}");
        // Bounded outside.
        assert!(e.value(0.0) < 3.0 && e.value(0.0) > 1.0);
        assert!(e.value(1e6) > 0.0 && e.value(1e6) < 2.0 / 600.0);
        let flat = flatten(&e);
        assert_eq!(unflatten(&flat), e);
        for s in [0.5, 1.0, 30.0, 599.0] {
            let (value, _) = super::super::ops::perceptron(&flat, s);
            assert!((f64::from(value) / e.value(s.into()) - 1.0).abs() < 1e-4, "{s}");
        }
    }

    #[test]
    fn the_estimator_is_near_a_softmax_of_small_scores() {
        // The published error of 1e-6 is over scores in [-3, 3] of 128 columns, here by the same formula.
        let e = fit(1.0, 1000.0, 32, &[]);
        let mut square = 0.0;
        let n = 128;
        let rng = super::super::batch::gaussian(1, "scores", n * 50, 1.0);
        for row in rng.chunks(n) {
            let s: Vec<f64> = row.iter().map(|&x| f64::from(x.clamp(-3.0, 3.0))).collect();
            let exp: f64 = s.iter().map(|x| x.exp()).sum();
            let u = |x: f64| (x / 2.0 + 1.0).max(0.0).powi(3);
            let t = e.value(s.iter().map(|&x| u(x)).sum());
            square += s.iter().map(|&x| (x.exp() / exp - u(x) * t).powi(2)).sum::<f64>() / n as f64;
        }
        assert!(square / 50.0 < 1e-5, "{}", square / 50.0);
    }
}
