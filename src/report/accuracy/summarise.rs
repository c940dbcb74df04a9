//! From the outputs of all rows to the report.

use std::collections::BTreeMap;

use super::{
    AccuracyReport, Agreement, Changed, ErrorStats, Evaluation, FixedOutputs, Loss, Measured, Mode, OverflowReport,
    Scores, Target, Task, labels,
};
use crate::{
    model::{Outputs, Prediction},
    report::{
        metrics::{self, Undefined},
        run::{hex, provenance_notice},
    },
};

impl Evaluation<'_> {
    pub(super) fn summarise(&self, mode: Mode, measured: &[Measured], seconds: f64) -> AccuracyReport {
        let texts = || measured.iter().flat_map(|m| m.float.iter().zip(&m.fixed));
        let float: Vec<Option<f64>> = measured.iter().map(|m| value(&m.float.iter().collect::<Vec<_>>())).collect();
        let fixed: Vec<Option<f64>> =
            measured.iter().map(|m| value(&m.fixed.iter().map(|f| &f.outputs).collect::<Vec<_>>())).collect();
        let pairs: Vec<(f64, f64)> = float.iter().zip(&fixed).filter_map(|(a, b)| a.zip(*b)).collect();
        let outputs = texts().flat_map(|(a, b)| a.rows.iter().flatten().zip(b.outputs.rows.iter().flatten()));
        let confidence = texts().flat_map(|(a, b)| confidence(a, &b.outputs));
        let differences = pairs.iter().map(|(a, b)| b - a).chain(confidence);
        let cosines: Vec<f64> = texts().filter_map(|(a, b)| embeddings(a, &b.outputs)).collect();
        let mean_cosine = (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64);
        let predicted = |of: fn(&Measured) -> Vec<usize>| measured.iter().flat_map(of).collect::<Vec<_>>();
        let float_labels = predicted(|m| m.float.iter().flat_map(labels).map(|l| l.0).collect());
        let fixed_labels = predicted(|m| m.fixed.iter().flat_map(|f| labels(&f.outputs)).map(|l| l.0).collect());
        let score = |found: &[usize], values: &[Option<f64>]| {
            if self.labelled { self.scores(found, values) } else { Scores::default() }
        };
        let (float_scores, fixed_scores) = (score(&float_labels, &float), score(&fixed_labels, &fixed));
        let agreement = (!float_labels.is_empty()).then(|| self.agreement(measured, &float_labels, &fixed_labels));
        let loss = loss(&float_scores, &fixed_scores, agreement.as_ref(), &pairs, mean_cosine);
        let notices = self.notices.iter().cloned().chain(provenance_notice(Some(self.model))).collect();
        AccuracyReport {
            version: env!("CARGO_PKG_VERSION").into(),
            model: self.model.manifest().name.clone(),
            digest: hex(&self.model.client().digest()),
            data: self.data.clone(),
            columns: self.columns.clone(),
            task: self.task,
            mode,
            rows: self.rows.len(),
            rows_in_file: self.rows_in_file,
            labelled: self.labelled,
            texts_cut: self.texts().filter(|t| t.truncated).count(),
            float: float_scores,
            fixed: fixed_scores,
            loss,
            agreement,
            output_error: ErrorStats::of(outputs.map(|(a, b)| b - a)),
            answer_error: ErrorStats::of(differences),
            mean_cosine,
            overflows: overflows(measured),
            private: None,
            changed: self.changed(measured),
            seconds,
            notices,
        }
    }

    fn scores(&self, found: &[usize], values: &[Option<f64>]) -> Scores {
        let mut scores = Scores::default();
        let mut keep = |name: &str, result: Result<f64, Undefined>| match result {
            Ok(value) => Some(value),
            Err(reason) => {
                scores.undefined.insert(name.into(), reason.to_string());
                None
            }
        };
        match self.task {
            Task::Classification => {
                let right: Vec<usize> = self.rows.iter().filter_map(|r| r.target.label()).collect();
                let accuracy = keep("accuracy", metrics::accuracy(found, &right));
                let matthews = keep("matthews", metrics::matthews(found, &right));
                (scores.accuracy, scores.matthews) = (accuracy, matthews);
            }
            Task::Regression | Task::Embedding => {
                let right: Vec<f64> = self.rows.iter().filter_map(|r| r.target.score()).collect();
                // An embedding without a length has no cosine, which must not pass for 0.
                let values: Vec<f64> = values.iter().map(|v| v.unwrap_or(f64::NAN)).collect();
                let spearman = keep("spearman", metrics::spearman(&values, &right));
                let pearson = keep("pearson", metrics::pearson(&values, &right));
                (scores.spearman, scores.pearson) = (spearman, pearson);
            }
            Task::Tokens => {}
        }
        scores
    }

    fn agreement(&self, measured: &[Measured], float: &[usize], fixed: &[usize]) -> Agreement {
        let changed = float.iter().zip(fixed).filter(|(a, b)| a != b).count();
        let compared = float.len();
        let turned = |right: fn(usize, usize, usize) -> bool| {
            (self.labelled && self.task == Task::Classification).then(|| {
                let targets = self.rows.iter().filter_map(|r| r.target.label());
                float.iter().zip(fixed).zip(targets).filter(|((a, b), t)| right(**a, **b, *t)).count()
            })
        };
        let surest = measured.iter().flat_map(|m| m.float.iter().zip(&m.fixed)).flat_map(|(a, b)| {
            let pairs: Vec<f64> =
                labels(a).iter().zip(labels(&b.outputs)).filter(|(a, b)| a.0 != b.0).map(|(a, _)| a.2).collect();
            pairs
        });
        Agreement {
            compared,
            changed,
            lost: turned(|a, b, t| a == t && b != t),
            gained: turned(|a, b, t| a != t && b == t),
            part: (compared - changed) as f64 / compared.max(1) as f64,
            interval: metrics::wilson(compared - changed, compared),
            surest_changed: surest.reduce(f64::max),
        }
    }

    fn changed(&self, measured: &[Measured]) -> Vec<Changed> {
        let name = |(index, name, score): &(usize, &str, f64)| {
            (if name.is_empty() { format!("LABEL_{index}") } else { (*name).to_string() }, *score)
        };
        let labels_of = &self.model.manifest().labels;
        let row = |(row, m): (&super::Prepared, &Measured)| {
            let both = m.float.iter().zip(&m.fixed).flat_map(|(a, b)| {
                let pairs: Vec<_> = labels(a).into_iter().zip(labels(&b.outputs)).collect();
                pairs
            });
            let (float, fixed) = both.into_iter().find(|(a, b)| a.0 != b.0)?;
            let label = row.target.label().map(|i| match labels_of.get(i).filter(|l| !l.is_empty()) {
                Some(label) => label.clone(),
                None => format!("LABEL_{i}"),
            });
            Some(Changed { line: row.line, float: name(&float), fixed: name(&fixed), label })
        };
        self.rows.iter().zip(measured).filter_map(row).collect()
    }
}

impl Target {
    fn label(self) -> Option<usize> {
        match self {
            Self::Label(label) => Some(label),
            _ => None,
        }
    }

    fn score(self) -> Option<f64> {
        match self {
            Self::Score(score) => Some(score),
            _ => None,
        }
    }
}

/// The value of a regression, or the cosine of a pair.
fn value(outputs: &[&Outputs]) -> Option<f64> {
    match outputs {
        [one] => match &one.prediction {
            Prediction::Values(values) => values.first().copied(),
            _ => None,
        },
        [a, b] => metrics::cosine(a.rows.first()?, b.rows.first()?).ok(),
        _ => None,
    }
}

/// The differences of the probability that the two models give to the float model's label, one a label.
fn confidence(float: &Outputs, fixed: &Outputs) -> Vec<f64> {
    let probability = |row: &[f64], label: usize| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| libm::exp(x - max)).sum();
        row.get(label).map_or(0.0, |x| libm::exp(x - max) / sum)
    };
    let found = labels(float);
    found.iter().zip(&fixed.rows).map(|(&(label, _, score), row)| probability(row, label) - score).collect()
}

/// The cosine between two embeddings of one text.
fn embeddings(float: &Outputs, fixed: &Outputs) -> Option<f64> {
    match (&float.prediction, &fixed.prediction) {
        (Prediction::Embedding(a), Prediction::Embedding(b)) => Some(metrics::cosine(a, b).unwrap_or(0.0)),
        _ => None,
    }
}

fn overflows(measured: &[Measured]) -> OverflowReport {
    let mut edges = BTreeMap::new();
    for (edge, count) in measured.iter().flat_map(|m| &m.fixed).flat_map(|f| &f.overflows) {
        *edges.entry(edge.clone()).or_insert(0) += count;
    }
    let overflown = |f: &FixedOutputs| !f.overflows.is_empty();
    OverflowReport { rows: measured.iter().filter(|m| m.fixed.iter().any(overflown)).count(), edges }
}

/// Points of the task's metric, or without one of what the models have in common.
fn loss(
    float: &Scores,
    fixed: &Scores,
    agreement: Option<&Agreement>,
    pairs: &[(f64, f64)],
    mean_cosine: Option<f64>,
) -> Option<Loss> {
    let points = |of: &str, a: f64, b: f64| Some(Loss { of: of.into(), points: (a - b) * 100.0 });
    if let Some((a, b)) = float.accuracy.zip(fixed.accuracy) {
        return points("accuracy", a, b);
    }
    if let Some((a, b)) = float.spearman.zip(fixed.spearman) {
        return points("spearman", a, b);
    }
    if let Some(agreement) = agreement {
        return points("label agreement", 1.0, agreement.part);
    }
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    match (metrics::spearman(&a, &b), mean_cosine) {
        (Ok(same), _) => points("rank agreement", 1.0, same),
        (Err(_), Some(cosine)) => points("cosine", 1.0, cosine),
        (Err(_), None) => None,
    }
}
