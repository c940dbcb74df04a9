//! A model over the evaluation file: the task's metrics, and the ranges that its values take.

use std::sync::Arc;

use candle_core::Result;
use serde::{Deserialize, Serialize};

use super::{
    batch::{Batch, Examples, Task},
    bert::{Bert, Pass},
    estimator,
    ops::{Bounds, Watch, with},
};
use crate::report::metrics;

/// Texts of a pass.
const ROWS: usize = 32;

/// Metrics over a file; absent where their definition gives none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Part of right labels.
    pub accuracy: Option<f64>,
    /// Matthews correlation.
    pub matthews: Option<f64>,
    /// Pearson's correlation.
    pub pearson: Option<f64>,
    /// Spearman's rank correlation.
    pub spearman: Option<f64>,
}

/// Which metric chooses the best epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Part of right labels.
    Accuracy,
    /// Matthews correlation.
    Matthews,
    /// Spearman's rank correlation.
    Spearman,
}

impl Score {
    /// The metric, 0 where it has no value.
    pub fn get(&self, metric: Metric) -> f64 {
        let value = match metric {
            Metric::Accuracy => self.accuracy,
            Metric::Matthews => self.matthews,
            Metric::Spearman => self.spearman,
        };
        value.unwrap_or(0.0)
    }
}

/// Runs all examples.
///
/// # Errors
/// What the tensor library reports.
pub fn score(model: &Bert, examples: &Examples, task: Task) -> Result<Score> {
    let (mut outputs, mut targets) = (Vec::new(), Vec::new());
    for batch in examples.in_order(ROWS) {
        let batch = batch?;
        outputs.extend(model.forward(&batch, &Pass::PLAIN)?.output.to_vec2::<f32>()?);
        targets.extend_from_slice(&batch.targets);
    }
    Ok(match task {
        Task::Classification => {
            let best = |row: &Vec<f32>| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            let predicted: Vec<usize> = outputs.iter().map(best).collect();
            let labels: Vec<usize> = targets.iter().map(|&t| t as usize).collect();
            Score {
                accuracy: metrics::accuracy(&predicted, &labels).ok(),
                matthews: metrics::matthews(&predicted, &labels).ok(),
                ..Score::default()
            }
        }
        Task::Regression => {
            let values: Vec<f64> = outputs.iter().map(|row| row.first().copied().unwrap_or(0.0).into()).collect();
            let targets: Vec<f64> = targets.iter().map(|&t| t.into()).collect();
            Score {
                pearson: metrics::pearson(&values, &targets).ok(),
                spearman: metrics::spearman(&values, &targets).ok(),
                ..Score::default()
            }
        }
    })
}

/// Smallest and largest value of an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeRange {
    /// What it is.
    pub edge: String,
    /// Smallest value.
    pub low: f64,
    /// Largest value.
    pub high: f64,
}

/// The estimator of one layer on its range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimatorReport {
    /// The layer.
    pub layer: usize,
    /// Range of the sums.
    pub sums: [f64; 2],
    /// Root of the mean square relative error over that range.
    pub mean_error: f64,
    /// Largest relative error.
    pub largest_error: f64,
}

/// What the values of a model are over some texts.
pub struct Survey {
    /// Scores of each layer.
    pub scores: Vec<Bounds>,
    /// Sums of each layer's numerators, and their range.
    pub sums: Vec<(Bounds, Vec<f32>)>,
    /// All edges.
    pub edges: Vec<EdgeRange>,
}

/// Looks at a model's values over a batch.
///
/// # Errors
/// What the tensor library reports.
pub fn survey(model: &Bert, batch: &Batch) -> Result<Survey> {
    let watches: Vec<Arc<Watch>> = model.layers.iter().map(|_| Arc::default()).collect();
    let outcome = model.forward(batch, &Pass { watches: &watches, ..Pass::PLAIN })?;
    let range = |values: &[f32]| values.iter().fold(Bounds::EMPTY, |range, &x| range.with(x));
    let mut edges = Vec::new();
    let mut add = |edge: String, b: Bounds| {
        if b.low <= b.high {
            edges.push(EdgeRange { edge, low: b.low.into(), high: b.high.into() });
        }
    };
    let seen: Vec<_> = watches.iter().map(|w| w.seen()).collect();
    for n in 0..model.norms() {
        let name = match n {
            0 => "embeddings".to_string(),
            n => format!("layer {} {}", (n - 1) / 2, if n % 2 == 1 { "attention" } else { "output" }),
        };
        if n % 2 == 1 {
            let (layer, seen) = ((n - 1) / 2, &seen[(n - 1) / 2]);
            add(format!("layer {layer} scores"), seen.score);
            add(format!("layer {layer} sums"), seen.sum);
        }
        let (z, residual) = &outcome.before[n];
        let before = with([z, residual, model.norm(n).as_tensor()], |[z, residual, p]| {
            let d = p.len() / 5;
            let sum = |(i, (z, r)): (usize, (&f32, &f32))| z + r + p[i % d];
            z.iter().zip(residual).enumerate().map(sum).fold(Bounds::EMPTY, Bounds::with)
        })?;
        add(format!("{name} before normalisation"), before);
        add(format!("{name} after normalisation"), with([&outcome.hidden[n]], |[x]| range(x))?);
    }
    add("output".into(), with([&outcome.output.contiguous()?], |[x]| range(x))?);
    Ok(Survey {
        scores: seen.iter().map(|s| s.score).collect(),
        sums: seen.into_iter().map(|s| (s.sum, s.sums)).collect(),
        edges,
    })
}

/// The estimators of a model over the given ranges.
///
/// # Errors
/// What the tensor library reports.
pub fn estimators(model: &Bert, sums: &[Bounds]) -> Result<Vec<EstimatorReport>> {
    let one = |(layer, (t, range)): (usize, (&candle_core::Tensor, &Bounds))| -> Result<EstimatorReport> {
        let e = estimator::unflatten(&t.to_vec1::<f32>()?);
        let (low, high) = (f64::from(range.low), f64::from(range.high));
        let (mean_error, largest_error) = estimator::relative_error(&e, low, high);
        Ok(EstimatorReport { layer, sums: [low, high], mean_error, largest_error })
    };
    model.estimators.iter().zip(sums).enumerate().map(one).collect()
}
