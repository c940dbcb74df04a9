//! Two reports side by side: what became faster or slower outside noise.

use std::fmt;

use crate::report::{Report, Row};

/// How a measurement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Faster outside noise.
    Faster,
    /// Slower outside noise.
    Slower,
    /// The same within noise.
    Same,
    /// Only in the second report.
    New,
    /// Only in the first report.
    Gone,
}

impl Change {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Same => "same within noise",
            Self::New => "new",
            Self::Gone => "gone",
        }
    }
}

/// Change of the median below which nothing is said to have changed: what two runs on a quiet machine differ by.
const LEAST_CHANGE: f64 = 0.03;

/// Noise of two measurements: their interquartile ranges together.
///
/// Medians differ outside noise if they differ by more than that, and by more than 3 %.
pub fn verdict(before: &Row, after: &Row) -> Change {
    let noise = before.iqr_ns.hypot(after.iqr_ns).max(LEAST_CHANGE * before.median_ns);
    match after.median_ns - before.median_ns {
        difference if difference > noise => Change::Slower,
        difference if difference < -noise => Change::Faster,
        _ => Change::Same,
    }
}

/// A line of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The row, of the second report where it is in both.
    pub row: Row,
    /// Medians in nanoseconds.
    pub before: Option<f64>,
    /// Medians in nanoseconds.
    pub after: Option<f64>,
    /// Verdict.
    pub change: Change,
}

/// All lines, and what else differs between the runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// In the order of the second report, then what is gone.
    pub lines: Vec<Line>,
    notes: Vec<String>,
}

/// Matches results by kernel, sizes, backend, form and threads.
pub fn of(before: &Report, after: &Report) -> Comparison {
    let mut lines = Vec::new();
    for row in &after.results {
        let old = before.results.iter().find(|old| old.key() == row.key());
        let change = old.map_or(Change::New, |old| verdict(old, row));
        let (before, after) = (old.map(|old| old.median_ns), Some(row.median_ns));
        lines.push(Line { row: row.clone(), before, after, change });
    }
    for old in before.results.iter().filter(|old| after.results.iter().all(|row| old.key() != row.key())) {
        lines.push(Line { row: old.clone(), before: Some(old.median_ns), after: None, change: Change::Gone });
    }
    let mut notes = vec![format!("before: {}; after: {}", before.commit, after.commit)];
    let (a, b) = (&before.machine, &after.machine);
    for (what, a, b) in [("CPU", &a.cpu, &b.cpu), ("GPU", &a.gpu, &b.gpu), ("profile", &a.profile, &b.profile)] {
        if a != b {
            notes.push(format!("not the same {what}: {a} before, {b} after"));
        }
    }
    Comparison { lines, notes }
}

impl Comparison {
    /// Whether any line is slower.
    pub fn anything_slower(&self) -> bool {
        self.count(Change::Slower) > 0
    }

    /// Lines with that verdict.
    pub fn count(&self, change: Change) -> usize {
        self.lines.iter().filter(|line| line.change == change).count()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(
            f,
            "\n| kernel | N | limbs | batch | size | where | before us | after us | before / after | verdict |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---|---|---:|---:|---:|---|")?;
        let us = |ns: Option<f64>| ns.map_or("-".into(), |ns| format!("{:.1}", ns / 1e3));
        for Line { row, before, after, change } in &self.lines {
            let ratio = before.zip(*after).map_or("-".into(), |(before, after)| format!("{:.3}", before / after));
            let (size, place) = (row.size.as_deref().unwrap_or("-"), row.place());
            let Row { kernel, n, limbs, batch, .. } = row;
            let (before, after, verdict) = (us(*before), us(*after), change.name());
            writeln!(
                f,
                "| {kernel} | {n} | {limbs} | {batch} | {size} | {place} | {before} | {after} | {ratio} | {verdict} |"
            )?;
        }
        let all = [Change::Faster, Change::Slower, Change::Same, Change::New, Change::Gone];
        let counts: Vec<_> = all.iter().map(|change| format!("{} {}", self.count(*change), change.name())).collect();
        writeln!(f, "\n{}", counts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Machine;

    fn row(kernel: &str, median_ns: f64, iqr_ns: f64) -> Row {
        Row {
            kernel: kernel.into(),
            n: 1024,
            limbs: 2,
            batch: 3,
            size: None,
            backend: "cpu".into(),
            form: "tfhe-ntt".into(),
            threads: 1,
            adapter: String::new(),
            runs: 9,
            median_ns,
            iqr_ns,
            verified: true,
            limit_fraction: None,
        }
    }

    fn report(results: Vec<Row>) -> Report {
        let machine = Machine::here(String::new());
        let (bars, audit, ceilings) = (Vec::new(), Vec::new(), Vec::new());
        Report { version: "1".into(), commit: "c".into(), machine, ceilings, results, bars, audit }
    }

    #[test]
    fn verdicts_need_more_than_noise() {
        let cases = [
            (100.0, 1.0, 110.0, 1.0, Change::Slower),
            (100.0, 1.0, 90.0, 1.0, Change::Faster),
            (100.0, 8.0, 110.0, 8.0, Change::Same),
            (100.0, 0.0, 102.0, 0.0, Change::Same),
            (100.0, 0.0, 100.0, 0.0, Change::Same),
        ];
        for (a, noise_a, b, noise_b, change) in cases {
            assert_eq!(verdict(&row("x", a, noise_a), &row("x", b, noise_b)), change, "{a} {b}");
        }
    }

    #[test]
    fn rows_match_by_what_was_measured() {
        let before = report(vec![row("a", 100.0, 1.0), row("b", 100.0, 1.0), row("gone", 1.0, 0.0)]);
        let mut wider = row("b", 100.0, 1.0);
        wider.threads = 2;
        let after = report(vec![row("a", 200.0, 1.0), row("b", 50.0, 1.0), wider, row("new", 1.0, 0.0)]);
        let comparison = of(&before, &after);
        let changes: Vec<_> = comparison.lines.iter().map(|line| (line.row.kernel.as_str(), line.change)).collect();
        assert_eq!(
            changes,
            [
                ("a", Change::Slower),
                ("b", Change::Faster),
                ("b", Change::New),
                ("new", Change::New),
                ("gone", Change::Gone)
            ]
        );
        assert!(comparison.anything_slower() && !of(&before, &before).anything_slower());
        let text = comparison.to_string();
        assert!(text.contains("| 0.1 | 0.2 | 0.500 | slower |"), "{text}");
        assert!(text.contains("1 faster, 1 slower, 0 same within noise, 2 new, 1 gone"), "{text}");
    }
}
