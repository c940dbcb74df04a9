//! The accuracy report: the form of `heliostat accuracy --report`.
//!
//! *Fixed* is the fixed-point model in the mode of the run: oracle, simulator or the private protocol. Parts are in `[0, 1]`,
//! points are hundredths. A figure that its definition does not give is null, and [`Scores::undefined`] says why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Mode, Task};
use crate::report::fields::PhaseTotals;

/// A model over a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccuracyReport {
    /// Release of this program.
    pub version: String,
    /// The model's name.
    pub model: String,
    /// Digest of the model's manifest, hexadecimal.
    pub digest: String,
    /// The file of texts.
    pub data: String,
    /// Its columns, in words.
    pub columns: String,
    /// What an output means.
    pub task: Task,
    /// How the fixed-point model was run.
    pub mode: Mode,
    /// Rows that were run.
    pub rows: usize,
    /// Rows of the file.
    pub rows_in_file: usize,
    /// Whether they have labels or scores that the task uses.
    pub labelled: bool,
    /// Texts that were longer than the limit and were cut.
    pub texts_cut: usize,
    /// The floating-point model against the labels.
    pub float: Scores,
    /// The fixed-point model against the labels.
    pub fixed: Scores,
    /// Points that the fixed-point model loses; negative where it gains.
    pub loss: Option<Loss>,
    /// Whether both models give the same labels, for tasks that have labels.
    pub agreement: Option<Agreement>,
    /// Fixed-point outputs less floating-point outputs (logits, values or embeddings as the client sees them).
    pub output_error: ErrorStats,
    /// The same of what is made of them: the probability of the floating-point model's label, the value of a regression, the
    /// cosine of a pair.
    pub answer_error: ErrorStats,
    /// Mean cosine between the two models' embeddings of the same text.
    pub mean_cosine: Option<f64>,
    /// Values that left their rings.
    pub overflows: OverflowReport,
    /// The protocol's part, in private mode.
    pub private: Option<PrivateReport>,
    /// Rows whose label changed.
    pub changed: Vec<Changed>,
    /// Wall time of the rows, floating-point model included.
    pub seconds: f64,
    /// What a reader should know besides.
    pub notices: Vec<String>,
}

/// Metrics of one model against the labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Part of right labels.
    pub accuracy: Option<f64>,
    /// Matthews correlation.
    pub matthews: Option<f64>,
    /// Pearson's correlation.
    pub pearson: Option<f64>,
    /// Spearman's rank correlation.
    pub spearman: Option<f64>,
    /// Metrics of the task that have no value here, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub undefined: BTreeMap<String, String>,
}

/// What the fixed-point model loses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Of which figure: `accuracy`, `spearman`, `label agreement`, `rank agreement` or `cosine`.
    pub of: String,
    /// In points, hundredths of the figure.
    pub points: f64,
}

/// Labels of the two models side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Labels compared: one a row, or one a token.
    pub compared: usize,
    /// Labels that differ.
    pub changed: usize,
    /// Changed from right to wrong, where labels are known.
    pub lost: Option<usize>,
    /// Changed from wrong to right.
    pub gained: Option<usize>,
    /// Part of equal labels.
    pub part: f64,
    /// Wilson interval at 95 % of that part, for other texts like these.
    pub interval: (f64, f64),
    /// Largest probability that the floating-point model gave to a label that changed.
    pub surest_changed: Option<f64>,
}

/// Absolute differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorStats {
    /// Values compared.
    pub count: usize,
    /// Mean absolute difference; 0 without values.
    pub mean: f64,
    /// Largest absolute difference.
    pub max: f64,
}

/// Overflows of the fixed-point run, as the oracle counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverflowReport {
    /// Rows with an overflow.
    pub rows: usize,
    /// Values by edge.
    pub edges: BTreeMap<String, u64>,
}

/// What the protocol did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrivateReport {
    /// Texts whose private output equals the oracle's in every ring value.
    pub equal: usize,
    /// Texts whose output differs, which layers on shares do by a little.
    pub differing: usize,
    /// Largest difference of an output from the oracle's, where layers are on shares.
    pub largest_difference: Option<f64>,
    /// How non-linear layers were evaluated in each bucket.
    pub nonlinear: BTreeMap<usize, String>,
    /// `cpu`, `gpu` or `dual`.
    pub backend: String,
    /// Connecting, manifest and keys.
    pub setup: PhaseTotals,
    /// Offline phases, summed over the texts.
    pub offline: PhaseTotals,
    /// Online phases, summed over the texts.
    pub online: PhaseTotals,
}

/// A row whose label is another one in fixed point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Line of the file.
    pub line: usize,
    /// The floating-point model's label and its probability.
    pub float: (String, f64),
    /// The fixed-point model's label and its probability.
    pub fixed: (String, f64),
    /// The label in the file.
    pub label: Option<String>,
}

impl ErrorStats {
    /// Of all differences.
    pub fn of(differences: impl IntoIterator<Item = f64>) -> Self {
        let mut stats = Self::default();
        let mut sum = 0.0;
        for difference in differences {
            let size = difference.abs();
            stats.count += 1;
            sum += size;
            // NaN, which no sound run gives, must show.
            stats.max = if size > stats.max || size.is_nan() { size } else { stats.max };
        }
        stats.mean = if stats.count == 0 { 0.0 } else { sum / stats.count as f64 };
        stats
    }
}

impl OverflowReport {
    /// Values on all edges.
    pub fn values(&self) -> u64 {
        self.edges.values().sum()
    }
}
