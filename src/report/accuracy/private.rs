//! The private protocol over all rows: one session, one inference a text, each compared with the oracle.

use super::{AccuracyReport, Evaluation, FixedOutputs, Mode, PrivateReport};
use crate::{
    model::Encoded,
    report::{
        ReportError,
        dataset::TextInput,
        fields::InputReport,
        run::{Connect, Environment, Runner},
    },
};

impl Evaluation<'_> {
    /// Takes every text through the session of `runner`, which must have the oracle at hand. A text whose output differs from
    /// the oracle's is counted in [`PrivateReport::differing`]: a sound run has none.
    ///
    /// # Errors
    /// What fails in a session, with the line of the row.
    pub fn private<C: Connect>(
        &self,
        mut runner: Runner<'_, C>,
        environment: Environment,
        progress: &dyn Fn(),
    ) -> Result<AccuracyReport, ReportError> {
        let (mut equal, mut differing, mut largest) = (0, 0, None::<f64>);
        let mut fixed = |input: &TextInput, encoded: &Encoded| {
            let entry = runner.run(input);
            match entry.oracle_equal {
                Some(true) => equal += 1,
                Some(false) => differing += 1,
                None => return Err(failed(entry)),
            }
            largest = entry.oracle_difference.into_iter().chain(largest).reduce(f64::max);
            self.outputs(entry, encoded)
        };
        let mut report = self.run_in_order(Mode::Private, &mut fixed, progress)?;
        let (run, _) = runner.finish(environment)?;
        report.private = Some(PrivateReport {
            equal,
            differing,
            largest_difference: largest,
            nonlinear: run.nonlinear.methods,
            backend: run.backend.kind,
            setup: run.setup,
            offline: run.offline,
            online: run.online,
        });
        Ok(report)
    }

    /// What the client decoded, and what the oracle counts on the same text.
    fn outputs(&self, entry: &InputReport, encoded: &Encoded) -> Result<FixedOutputs, ReportError> {
        let Some(values) = &entry.outputs else { return Err(failed(entry)) };
        let features = self.model.spec().dense.last().map_or(1, |d| d.features.max(1));
        let rows = values.chunks(features).map(<[f64]>::to_vec).collect();
        let outputs = self.model.client().interpret(encoded, rows)?;
        // A run without an error has no overflow.
        let overflows = match entry.error {
            Some(_) => FixedOutputs::from(self.model.oracle(encoded)?).overflows,
            None => Vec::new(),
        };
        Ok(FixedOutputs { outputs, overflows })
    }
}

fn failed(entry: &InputReport) -> ReportError {
    ReportError::Task { reason: entry.error.clone().unwrap_or_else(|| "the protocol gave no result".into()) }
}
