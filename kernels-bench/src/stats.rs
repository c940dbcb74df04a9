//! Timing: repeated runs, median and interquartile range.

use std::time::{Duration, Instant};

/// How long to measure a row.
#[derive(Clone, Copy)]
pub struct Effort {
    /// A sample repeats the operation until it lasts at least this long.
    sample: Duration,
    /// Samples wanted.
    runs: usize,
    /// Samples taken however slow the operation is.
    least_runs: usize,
    /// Time after which no further sample is begun.
    budget: Duration,
}

impl Effort {
    /// Enough to see that it works.
    pub const QUICK: Self = Self { sample: Duration::ZERO, runs: 3, least_runs: 3, budget: Duration::from_millis(200) };
    /// For figures to quote.
    pub const FULL: Self =
        Self { sample: Duration::from_millis(10), runs: 31, least_runs: 5, budget: Duration::from_secs(3) };
}

/// Time of one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Samples taken.
    pub runs: usize,
    /// Median over the samples.
    pub median_ns: f64,
    /// Third quartile less the first.
    pub iqr_ns: f64,
}

/// Times `operation`, which does the work as many times as it is told and returns when that is done.
pub fn measure<E>(effort: Effort, mut operation: impl FnMut(usize) -> Result<(), E>) -> Result<Timing, E> {
    // The first runs fill caches and pools, and tell how many make a sample.
    let mut repeats = 1;
    loop {
        let start = Instant::now();
        operation(repeats)?;
        let elapsed = start.elapsed();
        if elapsed >= effort.sample {
            break;
        }
        let wanted = effort.sample.as_secs_f64() / elapsed.as_secs_f64().max(1e-9) * repeats as f64;
        repeats = (wanted.ceil() as usize).clamp(repeats + 1, repeats * 100);
    }
    let begun = Instant::now();
    let mut samples = Vec::with_capacity(effort.runs);
    while samples.len() < effort.least_runs || (samples.len() < effort.runs && begun.elapsed() < effort.budget) {
        let start = Instant::now();
        operation(repeats)?;
        samples.push(start.elapsed().as_secs_f64() * 1e9 / repeats as f64);
    }
    Ok(Timing::of(&mut samples))
}

impl Timing {
    /// Of at least one sample, in nanoseconds.
    fn of(samples: &mut [f64]) -> Self {
        samples.sort_by(f64::total_cmp);
        let [first, median, third] = [0.25, 0.5, 0.75].map(|q| quantile(samples, q));
        Self { runs: samples.len(), median_ns: median, iqr_ns: third - first }
    }
}

/// The quantile `q` of sorted samples, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles() {
        let timing = Timing::of(&mut [5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(timing, Timing { runs: 5, median_ns: 3.0, iqr_ns: 2.0 });
        assert_eq!(Timing::of(&mut [1.0, 2.0]).median_ns, 1.5);
        assert_eq!(Timing::of(&mut [7.0]), Timing { runs: 1, median_ns: 7.0, iqr_ns: 0.0 });
    }

    #[test]
    fn samples_last_as_long_as_asked_and_errors_pass() {
        let effort =
            Effort { sample: Duration::from_micros(200), runs: 4, least_runs: 2, budget: Duration::from_secs(60) };
        let mut calls = Vec::new();
        let timing = measure(effort, |repeats| {
            calls.push(repeats);
            std::thread::sleep(Duration::from_micros(50) * repeats as u32);
            Ok::<(), ()>(())
        });
        assert_eq!(timing.map(|t| t.runs), Ok(4));
        assert!(calls.len() >= 5 && calls[calls.len() - 4..].iter().all(|c| c == &calls[calls.len() - 1]));
        assert_eq!(measure(effort, |_| Err("lost")), Err("lost"));
    }
}
