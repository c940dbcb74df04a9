//! Timing: alternatives in turn, medians and interquartile ranges.
//!
//! Alternatives of one piece of work are measured in rounds, one sample of each a round, every round beginning with another
//! one: what loads the machine for a while then loads all of them. Ratios are of the first quartiles of such samples: other work
//! only ever adds time, so that they hold until three samples in four are disturbed.

use std::time::{Duration, Instant};

use crate::Result;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// A sample repeats the operation until it lasts at least this long; zero is one operation, without a warm-up.
    pub sample: Duration,
    /// Rounds wanted.
    pub runs: usize,
    /// Rounds done however slow the operations are.
    pub least_runs: usize,
    /// Time for each alternative after which no further round is begun.
    pub budget: Duration,
}

impl Effort {
    /// Enough to see that it works.
    pub const QUICK: Self =
        Self { sample: Duration::from_micros(300), runs: 7, least_runs: 3, budget: Duration::from_millis(100) };
    /// For figures to quote.
    pub const FULL: Self =
        Self { sample: Duration::from_millis(3), runs: 15, least_runs: 5, budget: Duration::from_millis(600) };

    /// For operations that last so long that one is a sample: fewer rounds, no warm-up but the verified run.
    pub fn heavy(self) -> Self {
        Self { sample: Duration::ZERO, runs: self.runs.min(5), least_runs: 3, ..self }
    }

    /// For operations that decide a bar: more rounds.
    pub fn careful(self) -> Self {
        Self { runs: 3 * self.runs, least_runs: 2 * self.least_runs, budget: 3 * self.budget, ..self }
    }
}

/// Work to be timed: does it as many times as it is told and returns when that is done.
pub type Operation<'a> = Box<dyn FnMut(usize) -> Result<()> + 'a>;

/// Nanoseconds of one operation, sample by sample in the order of the rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Of at least one measurement.
    pub fn new(nanoseconds: Vec<f64>) -> Self {
        Self(nanoseconds)
    }

    /// Number of samples.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// Median in nanoseconds.
    pub fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }

    /// The fastest sample in nanoseconds.
    pub fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Mean in nanoseconds.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Third quartile less the first, in nanoseconds.
    pub fn iqr(&self) -> f64 {
        quantile(&self.0, 0.75) - quantile(&self.0, 0.25)
    }

    /// First quartile of `other` over that of `self`: the speed of `self` where `other` has 1. Both from the same rounds.
    pub fn speed_against(&self, other: &Self) -> f64 {
        quantile(&other.0, 0.25) / quantile(&self.0, 0.25)
    }
}

/// Times all `operations` in rounds.
///
/// # Errors
/// The first error of an operation.
pub fn interleave(effort: Effort, operations: &mut [Operation]) -> Result<Vec<Samples>> {
    let repeats = operations.iter_mut().map(|operation| warm_up(effort, operation)).collect::<Result<Vec<_>>>()?;
    let mut samples = vec![Vec::with_capacity(effort.runs); operations.len()];
    let budget = effort.budget * operations.len() as u32;
    let begun = Instant::now();
    for round in 0..effort.runs {
        if round >= effort.least_runs && begun.elapsed() >= budget {
            break;
        }
        for turn in 0..operations.len() {
            let at = (round + turn) % operations.len();
            let start = Instant::now();
            operations[at](repeats[at])?;
            samples[at].push(start.elapsed().as_secs_f64() * 1e9 / repeats[at] as f64);
        }
    }
    Ok(samples.into_iter().map(Samples).collect())
}

/// Fills caches and pools, and tells how many operations make a sample.
fn warm_up(effort: Effort, operation: &mut Operation) -> Result<usize> {
    let mut repeats = 1;
    if effort.sample.is_zero() {
        return Ok(repeats);
    }
    loop {
        let start = Instant::now();
        operation(repeats)?;
        let elapsed = start.elapsed();
        if elapsed >= effort.sample {
            return Ok(repeats);
        }
        let wanted = effort.sample.as_secs_f64() / elapsed.as_secs_f64().max(1e-9) * repeats as f64;
        repeats = (wanted.ceil() as usize).clamp(repeats + 1, repeats * 100);
    }
}

/// The quantile `q`, linear between neighbours; not a number for no values.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new(values.to_vec())
    }

    #[test]
    fn median_and_quartiles() {
        let five = samples(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((five.runs(), five.median(), five.iqr()), (5, 3.0, 2.0));
        assert_eq!(samples(&[1.0, 2.0]).median(), 1.5);
        assert_eq!((samples(&[7.0]).median(), samples(&[7.0]).iqr()), (7.0, 0.0));
        assert!(samples(&[]).median().is_nan());
    }

    #[test]
    fn ratios_survive_disturbed_samples() {
        // The machine is ten times slower in the second half of the rounds, or most samples of one alternative are disturbed.
        let (slow, fast) = (samples(&[2.0, 2.0, 20.0, 20.0]), samples(&[1.0, 1.0, 10.0, 10.0]));
        assert_eq!((fast.speed_against(&slow), slow.speed_against(&fast)), (2.0, 0.5));
        let (slow, fast) = (samples(&[2.0; 5]), samples(&[9.0, 1.0, 9.0, 1.0, 9.0]));
        assert_eq!(fast.speed_against(&slow), 2.0);
    }

    #[test]
    fn every_round_takes_one_sample_of_each_and_begins_with_another() {
        let effort = Effort { sample: Duration::ZERO, runs: 3, least_runs: 3, budget: Duration::ZERO };
        let order = RefCell::new(String::new());
        let mut operations: Vec<Operation> = ['a', 'b']
            .map(|name| -> Operation {
                let order = &order;
                Box::new(move |_| {
                    order.borrow_mut().push(name);
                    Ok(())
                })
            })
            .into();
        let samples = interleave(effort, &mut operations).unwrap();
        drop(operations);
        assert_eq!(order.into_inner(), "abbaab");
        assert!(samples.iter().all(|s| s.runs() == 3));
    }

    #[test]
    fn samples_last_as_long_as_asked_and_errors_pass() {
        let effort = Effort { sample: Duration::from_micros(200), runs: 4, least_runs: 4, budget: Duration::ZERO };
        let calls = RefCell::new(Vec::new());
        let mut sleep: [Operation; 1] = [Box::new(|repeats| {
            calls.borrow_mut().push(repeats);
            std::thread::sleep(Duration::from_micros(50) * repeats as u32);
            Ok(())
        })];
        assert_eq!(interleave(effort, &mut sleep).unwrap()[0].runs(), 4);
        let calls = calls.borrow();
        assert!(calls.len() >= 5 && calls[calls.len() - 4..].iter().all(|c| c == &calls[calls.len() - 1]));
        let mut lost: [Operation; 1] = [Box::new(|_| Err("lost".into()))];
        assert_eq!(interleave(effort, &mut lost).unwrap_err().to_string(), "lost");
    }
}
