//! Calibration with a gate: rings are narrowed only as far as the sample texts do not pay for it.
//!
//! The oracle runs the sample texts in the worst-case description, which gives the ranges, and once more in the narrowed one.
//! Edges that overflow then get their worst-case ring back; a loss above the limit refuses the calibration. Texts of the same
//! file beyond the samples, up to as many again, take part in the second run only: what they show was not fitted to them.

use std::sync::{Mutex, PoisonError};

use super::{
    ReportError,
    accuracy::{AccuracyReport, Evaluation, EvaluationOptions, Mode},
    dataset::Dataset,
};
use crate::model::{Calibration, Calibrator, Checkpoint, Encoded, Model, Precision, random_samples};

/// Texts made of random tokens where there is no file, at most.
const RANDOM_TEXTS: usize = 64;

/// Times that edges are widened before the calibration is refused: a widened ring can move an overflow further on.
const ROUNDS: usize = 6;

/// What to calibrate with and what it may cost.
#[derive(Clone, Debug)]
pub struct GateOptions {
    /// Fraction bits and tables.
    pub precision: Precision,
    /// Most rows that ranges are taken from.
    pub samples: usize,
    /// Longer texts are cut.
    pub max_tokens: usize,
    /// Bits added to the largest magnitudes seen.
    pub headroom_bits: u32,
    /// Points of the task's metric, or without labels of the agreement with the floating-point model, that may be lost.
    pub max_loss: Option<f64>,
}

/// A calibration that passed.
#[derive(Clone, Debug)]
pub struct Gated {
    /// The narrowed description.
    pub calibration: Calibration,
    /// The oracle in it, beside the floating-point model.
    pub report: AccuracyReport,
    /// Edges that overflowed and have their worst-case ring back.
    pub widened: Vec<String>,
}

/// Calibrates on a file's rows, or on random tokens of the model without one. `progress` hears the number of rows of a pass
/// when it begins and 0 for every row done.
///
/// # Errors
/// [`ReportError::Loss`] if more is lost than allowed, [`ReportError::Overflow`] if an edge overflows in its widest ring
/// too, besides what is wrong with model or data.
pub fn calibrate(
    checkpoint: Checkpoint,
    data: Option<&Dataset>,
    options: &GateOptions,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Gated, ReportError> {
    let model = Model::worst_case(checkpoint, &options.precision)?;
    let (worst, positions) = (model.spec().clone(), model.manifest().positions());
    let (calibration, widest) = {
        let samples = evaluation(&model, data, options, options.samples)?;
        progress(samples.len());
        let calibrator = Mutex::new(Calibrator::new(&model));
        let observed = |_, text: &Encoded| {
            let run = model.oracle(text)?;
            calibrator.lock().unwrap_or_else(PoisonError::into_inner).observe(&run, text.len());
            Ok(run.into())
        };
        let report = samples.run(Mode::Oracle, &observed, &|| progress(0))?;
        let calibrator = calibrator.into_inner().unwrap_or_else(PoisonError::into_inner);
        (calibrator.finish(options.headroom_bits)?, report)
    };
    let (mut checkpoint, mut calibration) = (model.into_checkpoint(), calibration);
    let mut widened = Vec::new();
    for _ in 0..ROUNDS {
        let model = Model::calibrated(checkpoint, calibration.clone())?;
        let check = evaluation(&model, data, options, options.samples.saturating_mul(2))?;
        progress(check.len());
        let report = check.oracle(&|| progress(0))?;
        let edges: Vec<String> = report.overflows.edges.keys().cloned().collect();
        if edges.is_empty() {
            refuse_loss(&report, &widest, options.max_loss)?;
            return Ok(Gated { calibration, report, widened });
        }
        if !calibration.widen(&worst, positions, &edges)? {
            return Err(ReportError::Overflow { count: report.overflows.values(), edges: edges.join(", ") });
        }
        widened.extend(edges.into_iter().filter(|e| !widened.contains(e)).collect::<Vec<_>>());
        checkpoint = model.into_checkpoint();
    }
    Err(ReportError::Overflow { count: 1, edges: widened.join(", ") })
}

fn evaluation<'a>(
    model: &'a Model,
    data: Option<&Dataset>,
    options: &GateOptions,
    rows: usize,
) -> Result<Evaluation<'a>, ReportError> {
    let choice = EvaluationOptions { task: None, limit: Some(rows), max_tokens: options.max_tokens };
    match data {
        Some(data) => Evaluation::new(model, data, &choice),
        None => {
            let count = options.samples.min(RANDOM_TEXTS);
            Evaluation::of_texts(model, random_samples(model, count, options.max_tokens))
        }
    }
}

fn refuse_loss(narrow: &AccuracyReport, widest: &AccuracyReport, limit: Option<f64>) -> Result<(), ReportError> {
    let (Some(limit), Some(loss)) = (limit, &narrow.loss) else { return Ok(()) };
    // A sum of rounded figures may exceed the limit by its last bit.
    if loss.points <= limit + 1e-9 {
        return Ok(());
    }
    Err(ReportError::Loss {
        points: loss.points,
        of: loss.of.clone(),
        rows: narrow.rows,
        limit,
        widest: widest.loss.as_ref().map_or(0.0, |l| l.points),
    })
}
