//! The accuracy report for people.

use std::fmt::{self, Write};

use super::{
    AccuracyReport, Mode, Task,
    fields::{ErrorStats, Scores},
};
use crate::report::print::totals;

/// Rows with changed labels that are listed.
const SHOWN: usize = 10;

/// The whole report.
pub fn summary(report: &AccuracyReport) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_summary(&mut out, report);
    out
}

fn write_summary(out: &mut String, r: &AccuracyReport) -> fmt::Result {
    writeln!(out, "model      {} (digest {})", r.model, r.digest)?;
    let of = if r.rows < r.rows_in_file { format!(" of {}", r.rows_in_file) } else { String::new() };
    writeln!(out, "data       {}: {}{of} rows, {}", r.data, r.rows, r.columns)?;
    writeln!(out, "task       {}, fixed point by {}", r.task.words(), r.mode.words())?;
    if r.labelled {
        write_scores(out, "float", r.task, &r.float)?;
        write_scores(out, r.mode.name(), r.task, &r.fixed)?;
    }
    if let Some(loss) = &r.loss {
        let (verb, points) = if loss.points < 0.0 { ("gains", -loss.points) } else { ("loses", loss.points) };
        writeln!(out, "loss       the fixed-point model {verb} {points:.3} points of {}", loss.of)?;
    }
    if let Some(a) = &r.agreement {
        let (low, high) = (a.interval.0 * 100.0, a.interval.1 * 100.0);
        writeln!(
            out,
            "agreement  {} of {} labels ({:.2} %; 95 % interval {low:.2} to {high:.2} %)",
            a.compared - a.changed,
            a.compared,
            a.part * 100.0
        )?;
        write!(out, "           {} changed", a.changed)?;
        if let (Some(lost), Some(gained)) = (a.lost, a.gained) {
            write!(out, ": {lost} from right to wrong, {gained} from wrong to right")?;
        }
        if let Some(surest) = a.surest_changed {
            write!(out, "; the float model was at most {:.1} % sure of them", surest * 100.0)?;
        }
        writeln!(out)?;
    }
    for c in r.changed.iter().take(SHOWN) {
        let label = c.label.as_ref().map(|l| format!(", labelled {l}")).unwrap_or_default();
        let ((float, p), (fixed, q)) = (&c.float, &c.fixed);
        writeln!(out, "           line {}: {float} ({p:.4}) became {fixed} ({q:.4}){label}", c.line)?;
    }
    if r.changed.len() > SHOWN {
        writeln!(out, "           and {} more lines", r.changed.len() - SHOWN)?;
    }
    write_errors(out, "outputs", &r.output_error)?;
    write_errors(out, r.task.answer(), &r.answer_error)?;
    if let Some(cosine) = r.mean_cosine {
        writeln!(out, "embeddings {cosine:.6} mean cosine with the float model's")?;
    }
    if r.overflows.rows == 0 {
        writeln!(out, "overflows  none")?;
    } else {
        let (values, rows) = (r.overflows.values(), r.overflows.rows);
        writeln!(out, "OVERFLOWS  {values} values in {rows} rows: calibrate with texts like these")?;
        for (edge, count) in &r.overflows.edges {
            writeln!(out, "           {edge}: {count}")?;
        }
    }
    if let Some(p) = &r.private {
        let (equal, all) = (p.equal, p.equal + p.differing);
        writeln!(out, "private    {equal} of {all} texts equal the oracle bit for bit ({})", p.backend)?;
        if let Some(difference) = p.largest_difference {
            writeln!(out, "           with layers on shares the outputs differ by at most {difference:.6}")?;
        }
        for (bucket, methods) in &p.nonlinear {
            writeln!(out, "           {bucket} tokens: {methods}")?;
        }
        for (name, phase) in [("set-up ", &p.setup), ("offline", &p.offline), ("online ", &p.online)] {
            writeln!(out, "  {name}  {}", totals(phase))?;
        }
    }
    writeln!(out, "time       {:.1} s", r.seconds)?;
    for notice in &r.notices {
        writeln!(out, "notice: {notice}")?;
    }
    Ok(())
}

fn write_scores(out: &mut String, name: &str, task: Task, s: &Scores) -> fmt::Result {
    let figure = |name: &str, value: Option<f64>, percent: &str| match (value, s.undefined.get(name)) {
        (Some(value), _) => format!("{name} {:.2}{percent}", value * 100.0),
        (None, Some(reason)) => format!("{name} undefined ({reason})"),
        (None, None) => format!("{name} undefined"),
    };
    let figures = match task {
        Task::Classification | Task::Tokens => {
            [figure("accuracy", s.accuracy, " %"), figure("matthews", s.matthews, "")]
        }
        Task::Regression | Task::Embedding => [figure("spearman", s.spearman, ""), figure("pearson", s.pearson, "")],
    };
    writeln!(out, "{name:<10} {}", figures.join(", "))
}

fn write_errors(out: &mut String, name: &str, e: &ErrorStats) -> fmt::Result {
    if e.count == 0 {
        return Ok(());
    }
    writeln!(out, "{name:<10} {:.6} mean, {:.6} largest difference of {} values", e.mean, e.max, e.count)
}

impl Task {
    fn words(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Regression => "regression",
            Self::Embedding => "sentence embedding",
            Self::Tokens => "token classification",
        }
    }

    /// What is made of the outputs.
    fn answer(self) -> &'static str {
        match self {
            Self::Classification | Self::Tokens => "confidence",
            Self::Regression => "value",
            Self::Embedding => "similarity",
        }
    }
}

impl Mode {
    /// As it is given on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oracle => "oracle",
            Self::Simulator => "simulator",
            Self::Private => "private",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Oracle => "the oracle",
            Self::Simulator => "the simulator of the shared layers",
            Self::Private => "the private protocol, both parties in this process",
        }
    }
}
