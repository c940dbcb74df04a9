//! The fixed-point model beside the floating-point one over a labelled file.
//!
//! [`Evaluation`] holds the encoded rows; its runs differ in what computes the fixed-point outputs. Rows are independent, so
//! that the oracle and the simulator take them on all cores at once; the private protocol takes one after another.

mod fields;
mod print;
mod private;
mod summarise;

use std::{fmt, path::Path, time::Instant};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    ReportError,
    dataset::{Dataset, Row, TextInput},
};
use crate::model::{Encoded, Model, OracleRun, OutputKind, Outputs, Prediction, Simulator};

pub use fields::{AccuracyReport, Agreement, Changed, ErrorStats, Loss, OverflowReport, PrivateReport, Scores};
pub use print::summary;

/// What an output means and how it is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The most probable label: accuracy and Matthews correlation.
    #[serde(rename = "cls")]
    Classification,
    /// A single value: Spearman's and Pearson's correlation with the score.
    Regression,
    /// The cosine of two texts' embeddings: Spearman's and Pearson's correlation with the score.
    Embedding,
    /// The most probable label of every token: agreement only.
    Tokens,
}

/// What computes the fixed-point model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The plaintext oracle: exactly what the garbled path computes.
    Oracle,
    /// The bit-true simulator of the shared non-linear layers.
    Simulator,
    /// The protocol itself, both parties in this process.
    Private,
}

/// Which rows and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvaluationOptions {
    /// The task; by default the one of the model's head.
    pub task: Option<Task>,
    /// Only so many rows from the start.
    pub limit: Option<usize>,
    /// Longer texts are cut.
    pub max_tokens: usize,
}

/// The outputs of one text in fixed point.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedOutputs {
    /// As the client decodes them.
    pub outputs: Outputs,
    /// Edges that overflowed, with the number of values.
    pub overflows: Vec<(String, u64)>,
}

impl From<OracleRun> for FixedOutputs {
    fn from(run: OracleRun) -> Self {
        let edge = |o: &crate::model::Overflow| (run.graph.edge(o.edge).name.clone(), o.count);
        Self { overflows: run.execution.overflows.iter().map(edge).collect(), outputs: run.outputs }
    }
}

/// What a row should give.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    None,
    Label(usize),
    Score(f64),
}

/// An encoded row: one text or pair, or two texts whose embeddings are compared.
struct Prepared {
    line: usize,
    texts: Vec<(TextInput, Encoded)>,
    target: Target,
}

/// What a row gave.
struct Measured {
    float: Vec<Outputs>,
    fixed: Vec<FixedOutputs>,
}

/// Rows of a file, encoded for a model.
pub struct Evaluation<'a> {
    model: &'a Model,
    task: Task,
    data: String,
    columns: String,
    rows_in_file: usize,
    rows: Vec<Prepared>,
    labelled: bool,
    notices: Vec<String>,
}

impl<'a> Evaluation<'a> {
    /// Encodes the rows and checks labels or scores against the model's head.
    ///
    /// # Errors
    /// [`ReportError::Task`] for a task that the head does not have; [`ReportError::Inputs`] with the line of a label, score or
    /// text that cannot be used.
    pub fn new(model: &'a Model, data: &Dataset, options: &EvaluationOptions) -> Result<Self, ReportError> {
        let task = task(model, options.task)?;
        let rows = &data.rows[..data.rows.len().min(options.limit.unwrap_or(usize::MAX))];
        let (mut labelled, mut notices) = (data.is_labelled()?, Vec::new());
        let single = task == Task::Embedding && !data.is_paired();
        if labelled && (single || task == Task::Tokens) {
            labelled = false;
            let what = if single { "embeddings of single texts" } else { "labels of tokens" };
            notices.push(format!("{what} are compared with the floating-point model only: the labels are not used"));
        }
        let prepare = |row: &Row| -> Result<Prepared, ReportError> {
            let split = |t: &TextInput| match &t.pair {
                Some(pair) if task == Task::Embedding => vec![TextInput::new(&*t.text), TextInput::new(pair)],
                _ => vec![t.clone()],
            };
            let encode = |t: TextInput| match model.client().encode(&t.text, t.pair.as_deref(), options.max_tokens) {
                Ok(encoded) => Ok((t, encoded)),
                Err(e) => Err(data.fault(row, e)),
            };
            let target =
                if labelled { target(model, task, row).map_err(|e| data.fault(row, e))? } else { Target::None };
            let texts = split(&row.input).into_iter().map(encode).collect::<Result<_, _>>()?;
            Ok(Prepared { line: row.line, texts, target })
        };
        let rows: Vec<Prepared> = rows.iter().map(prepare).collect::<Result<_, _>>()?;
        Ok(Self {
            model,
            task,
            data: data.path.display().to_string(),
            columns: data.columns.clone(),
            rows_in_file: data.rows.len(),
            rows,
            labelled,
            notices,
        })
    }

    /// Encoded texts without labels.
    ///
    /// # Errors
    /// [`ReportError::Task`] for a head that has no task.
    pub fn of_texts(model: &'a Model, texts: Vec<Encoded>) -> Result<Self, ReportError> {
        let prepare =
            |(i, encoded)| Prepared { line: i + 1, texts: vec![(TextInput::new(""), encoded)], target: Target::None };
        Ok(Self {
            model,
            task: task(model, None)?,
            data: "random tokens".into(),
            columns: "no labels".into(),
            rows_in_file: texts.len(),
            rows: texts.into_iter().enumerate().map(prepare).collect(),
            labelled: false,
            notices: Vec::new(),
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row, which a limit of 0 gives.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn texts(&self) -> impl Iterator<Item = &Encoded> {
        self.rows.iter().flat_map(|r| r.texts.iter().map(|(_, encoded)| encoded))
    }

    /// Runs the oracle over all rows on all cores; `progress` hears of every row done.
    ///
    /// # Errors
    /// [`ReportError::Model`] for a text that does not belong to the model.
    pub fn oracle(&self, progress: &(dyn Fn() + Sync)) -> Result<AccuracyReport, ReportError> {
        let fixed = |_, encoded: &Encoded| Ok(self.model.oracle(encoded)?.into());
        self.run(Mode::Oracle, &fixed, progress)
    }

    /// Runs the simulator of the shared layers over all rows on all cores; its randomness comes from `seed` and the number of
    /// the text.
    ///
    /// # Errors
    /// [`ReportError::Model`] for a text that does not belong to the model, or a ring that a shared function does not take.
    pub fn simulator(&self, seed: u32, progress: &(dyn Fn() + Sync)) -> Result<AccuracyReport, ReportError> {
        let fixed = |text: usize, encoded: &Encoded| {
            let mut simulator = Simulator::seeded((u64::from(seed) << 32) + text as u64);
            Ok(self.model.oracle_with(encoded, &mut simulator)?.into())
        };
        self.run(Mode::Simulator, &fixed, progress)
    }

    /// Runs `fixed` over all rows on all cores. It gets the number of the text, which is the same in every run.
    ///
    /// # Errors
    /// What `fixed` reports, and [`ReportError::Model`] of the floating-point model.
    pub fn run(
        &self,
        mode: Mode,
        fixed: &(dyn Fn(usize, &Encoded) -> Result<FixedOutputs, ReportError> + Sync),
        progress: &(dyn Fn() + Sync),
    ) -> Result<AccuracyReport, ReportError> {
        let start = Instant::now();
        let row = |(i, row): (usize, &Prepared)| {
            let both = |(j, (_, encoded)): (usize, &(TextInput, Encoded))| {
                Ok((self.model.float(encoded)?, fixed(2 * i + j, encoded)?))
            };
            let both = row.texts.iter().enumerate().map(both).collect::<Result<Vec<_>, ReportError>>()?;
            progress();
            let (float, fixed) = both.into_iter().unzip();
            Ok(Measured { float, fixed })
        };
        let measured = self.rows.par_iter().enumerate().map(row).collect::<Result<Vec<_>, ReportError>>()?;
        Ok(self.summarise(mode, &measured, start.elapsed().as_secs_f64()))
    }

    /// Runs `fixed` over one text after another, as a session needs it.
    ///
    /// # Errors
    /// What `fixed` reports, with the line of the row.
    pub fn run_in_order(
        &self,
        mode: Mode,
        fixed: &mut dyn FnMut(&TextInput, &Encoded) -> Result<FixedOutputs, ReportError>,
        progress: &dyn Fn(),
    ) -> Result<AccuracyReport, ReportError> {
        let start = Instant::now();
        let mut measured = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let (mut floats, mut fixeds) = (Vec::new(), Vec::new());
            for (input, encoded) in &row.texts {
                floats.push(self.model.float(encoded)?);
                let of_line = |e: ReportError| ReportError::Inputs {
                    path: Path::new(&self.data).to_path_buf(),
                    reason: format!("line {}: {e}", row.line),
                };
                fixeds.push(fixed(input, encoded).map_err(of_line)?);
            }
            progress();
            measured.push(Measured { float: floats, fixed: fixeds });
        }
        Ok(self.summarise(mode, &measured, start.elapsed().as_secs_f64()))
    }
}

impl fmt::Display for Task {
    /// As it is given on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classification => "cls",
            Self::Regression => "regression",
            Self::Embedding => "embedding",
            Self::Tokens => "tokens",
        })
    }
}

/// The head's task, if it is the one that was asked for.
fn task(model: &Model, asked: Option<Task>) -> Result<Task, ReportError> {
    let own = match model.manifest().output {
        OutputKind::Classification => Task::Classification,
        OutputKind::Regression => Task::Regression,
        OutputKind::TokenClassification => Task::Tokens,
        OutputKind::Embedding { .. } => Task::Embedding,
    };
    match asked {
        Some(asked) if asked != own => {
            Err(ReportError::Task { reason: format!("the model's head is for the task {own}, not {asked}") })
        }
        _ => Ok(own),
    }
}

/// The label or score of a row, in the task's form.
fn target(model: &Model, task: Task, row: &Row) -> Result<Target, String> {
    let Some(written) = &row.target else { return Ok(Target::None) };
    let number = written.parse::<f64>().ok().filter(|x| x.is_finite());
    let outputs = model.manifest().labels.len();
    if task == Task::Regression && outputs != 1 {
        return Err(format!("a score is one value, but the model gives {outputs}: --columns text=NAME leaves it out"));
    }
    if matches!(task, Task::Regression | Task::Embedding) {
        return number.map(Target::Score).ok_or_else(|| format!("the score {written:?} is not a number"));
    }
    let labels = &model.manifest().labels;
    let by_name = labels.iter().position(|l| l.eq_ignore_ascii_case(written));
    // `1` and `1.0` are the same label; names win, since they may be numbers in another order.
    let by_number = number.filter(|x| x.fract() == 0.0 && *x >= 0.0 && *x < labels.len() as f64).map(|x| x as usize);
    by_name.or(by_number).map(Target::Label).ok_or_else(|| {
        let names = labels.iter().map(|l| if l.is_empty() { "unnamed" } else { l }).collect::<Vec<_>>().join(", ");
        format!(
            "the label {written:?} is none of the model's {} (0 to {}: {names})",
            labels.len(),
            labels.len().max(1) - 1
        )
    })
}

/// The label of a classification, or of every token, with its probability.
fn labels(outputs: &Outputs) -> Vec<(usize, &str, f64)> {
    match &outputs.prediction {
        Prediction::Label(l) => vec![(l.index, &l.name, l.score)],
        Prediction::Tokens(tokens) => tokens.iter().map(|(_, l)| (l.index, &*l.name, l.score)).collect(),
        Prediction::Values(_) | Prediction::Embedding(_) => Vec::new(),
    }
}
