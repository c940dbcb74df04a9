//! The account of a run: `stages.json` in the folder of the result, and its form for people.

use serde::{Deserialize, Serialize};

use super::{
    batch::Task,
    evaluate::{EdgeRange, EstimatorReport, Metric, Score},
};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Release of this program.
    pub version: String,
    /// `finetune` or `approximate`.
    pub command: String,
    /// The model that it started from.
    pub model: String,
    /// What is learnt.
    pub task: Task,
    /// The metric that chooses the best epoch.
    pub metric: Metric,
    /// Seed of orders and of a new head.
    pub seed: u64,
    /// Rows that were trained on.
    pub train_rows: usize,
    /// Rows that were evaluated and never trained on.
    pub eval_rows: usize,
    /// Texts that were cut.
    pub texts_cut: usize,
    /// Updates of all stages together.
    pub steps: usize,
    /// Seconds of all pieces of the run.
    pub seconds: f64,
    /// Before anything was changed.
    pub original: Score,
    /// The stages in their order.
    pub stages: Vec<StageReport>,
    /// Of the model that was written: the best of the last stage's evaluations.
    pub result: Score,
    /// Operations that the forward pass of the result is built of.
    pub primitives: Vec<String>,
    /// Mean number of rows' tokens trained on a second.
    pub tokens_per_second: f64,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Its name.
    pub stage: String,
    /// Updates.
    pub steps: usize,
    /// Wall time.
    pub seconds: f64,
    /// Metrics right after the operations were replaced, before any training.
    pub replaced: Option<Score>,
    /// Metrics at its end.
    pub score: Score,
    /// Mean loss of its last tenth.
    pub loss: Option<f64>,
    /// Ranges over a sample of the training rows.
    pub ranges: Vec<EdgeRange>,
    /// The estimators over the ranges of their sums.
    pub estimators: Vec<EstimatorReport>,
}

fn points(score: &Score, metric: Metric) -> String {
    format!("{:.2}", 100.0 * score.get(metric))
}

impl RunReport {
    /// A table of the stages.
    pub fn table(&self) -> String {
        let name = match self.metric {
            Metric::Accuracy => "accuracy",
            Metric::Matthews => "matthews",
            Metric::Spearman => "spearman",
        };
        let mut text =
            format!("{:<12} {:>7} {:>9} {:>9} {:>9} {:>9}\n", "stage", "steps", "seconds", "replaced", name, "loss");
        text +=
            &format!("{:<12} {:>7} {:>9} {:>9} {:>9}\n", "original", "", "", "", points(&self.original, self.metric));
        for s in &self.stages {
            let replaced = s.replaced.map_or_else(String::new, |r| points(&r, self.metric));
            let loss = s.loss.map_or_else(String::new, |l| format!("{l:.4}"));
            let (steps, seconds, score) = (s.steps, s.seconds, points(&s.score, self.metric));
            text += &format!("{:<12} {steps:>7} {seconds:>9.1} {replaced:>9} {score:>9} {loss:>9}\n", s.stage);
        }
        text += &format!(
            "{:<12} {:>7} {:>9.1} {:>9} {:>9}\n",
            "result",
            self.steps,
            self.seconds,
            "",
            points(&self.result, self.metric)
        );
        if let Some(last) = self.stages.last().filter(|s| !s.estimators.is_empty()) {
            text += "\nestimator      sums from        to   mean error   largest\n";
            for e in &last.estimators {
                text += &format!(
                    "layer {:<6} {:>11.3} {:>9.1} {:>11.4} {:>9.4}\n",
                    e.layer, e.sums[0], e.sums[1], e.mean_error, e.largest_error
                );
            }
        }
        text += &format!("\nbuilt of: {}; {:.0} tokens a second\n", self.primitives.join(", "), self.tokens_per_second);
        text
    }
}
