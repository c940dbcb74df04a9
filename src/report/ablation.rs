//! What each step from homomorphic encryption online to this program's own mode brings: `heliostat ablation`.
//!
//! The steps are those of Primer (Zheng, Lou, Jiang, DAC 2023). All rows run on the same kernels, garble offline and take one
//! inference of the same text.

use std::fmt::{self, Write};

use serde::Serialize;

use super::{
    Report, ReportError,
    fields::PhaseTotals,
    print::{bytes, totals},
};
use crate::{
    model::{Boundary, Graph, GraphOptions, Lookup, MergeSet, ModelError, ModelSpec, Rings},
    protocol::{LinearMode, PackingKind, ProductMode, Settings},
};

/// The table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AblationReport {
    /// Release of this program.
    pub version: String,
    /// The model's name.
    pub model: String,
    /// Tokens of the text.
    pub tokens: usize,
    /// Public length.
    pub bucket: usize,
    /// The link that the channel was shaped to.
    pub link: String,
    /// Where both parties compute.
    pub backend: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// From the state before Primer to the default.
    pub rows: Vec<AblationRow>,
}

/// One variant of the protocol.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AblationRow {
    /// What is done, or what is added to the row before.
    pub name: String,
    /// Before the text is known.
    pub offline: PhaseTotals,
    /// After.
    pub online: PhaseTotals,
    /// Key switches of the server in both phases.
    pub rotations: u64,
    /// AND gates.
    pub and_gates: u64,
    /// Whether the result is that of the oracle of the row's own graph, bit for bit.
    pub oracle_equal: bool,
    /// Products of plaintexts and ciphertexts in both phases.
    pub products: u64,
    /// Connecting and keys, in neither phase.
    pub setup: PhaseTotals,
    /// Boundaries without a garbled truncation.
    pub merged: String,
}

/// The rows' names and settings for a bucket.
///
/// # Errors
/// A model that has no graph in prime rings.
pub fn variants(spec: &ModelSpec, bucket: usize) -> Result<Vec<(&'static str, Settings)>, ReportError> {
    let prime = GraphOptions { rings: Rings::Prime, ..GraphOptions::default() };
    let before = Settings {
        linear: LinearMode::Online,
        products: ProductMode::Fhgs,
        packing: PackingKind::FeaturesFirst,
        graph: prime,
        ..Settings::EXACT
    };
    let offline = Settings { linear: LinearMode::Offline, ..before };
    let tokens_first = Settings { packing: PackingKind::TokensFirst, ..offline };
    let merge = merge(spec, bucket)?;
    let merged = Settings { graph: GraphOptions { merge, ..prime }, ..tokens_first };
    Ok(vec![
        ("HE online, features first", before),
        ("+ HGS/FHGS", offline),
        ("+ tokens-first", tokens_first),
        ("+ merge", merged),
        ("Heliostat", Settings::EXACT),
    ])
}

/// What Primer merges, as far as this model's rings have room: the attention's products with the projections before them.
fn merge(spec: &ModelSpec, bucket: usize) -> Result<MergeSet, ReportError> {
    let largest = Graph::largest_merge(spec, bucket, Rings::Prime, Lookup::Public).map_err(ModelError::from)?;
    Ok([Boundary::Scores, Boundary::Values].into_iter().filter(|&b| largest.contains(b)).collect())
}

impl AblationRow {
    /// A row from the report of its run, which had one input.
    ///
    /// # Errors
    /// What made the input fail.
    pub fn new(name: &str, settings: &Settings, report: &Report) -> Result<Self, ReportError> {
        let input = report.inputs.first();
        if let Some(reason) = input.and_then(|input| input.error.clone()) {
            return Err(ReportError::Task { reason: format!("{name}: {reason}") });
        }
        Ok(Self {
            name: name.into(),
            offline: report.offline,
            online: report.online,
            rotations: report.he.offline.rotations + report.he.online.rotations,
            and_gates: report.garbled.and_gates,
            oracle_equal: input.and_then(|input| input.oracle_equal) == Some(true),
            products: report.he.offline.products + report.he.online.products,
            setup: report.setup,
            merged: settings.graph.merge.to_string(),
        })
    }
}

/// The table for people.
pub fn text(report: &AblationReport) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, r: &AblationReport) -> fmt::Result {
    writeln!(out, "model    {}, {} tokens in a bucket of {}", r.model, r.tokens, r.bucket)?;
    writeln!(out, "backend  {}, {} threads", r.backend, r.threads)?;
    writeln!(out, "link     {}", r.link)?;
    let width = r.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in &r.rows {
        let equal = if row.oracle_equal { "oracle equal" } else { "ORACLE DIFFERS" };
        writeln!(out, "{:<width$}  offline {}", row.name, totals(&row.offline))?;
        writeln!(out, "{:<width$}  online  {}", "", totals(&row.online))?;
        writeln!(
            out,
            "{:<width$}  {} rotations, {} products, {} AND gates, {equal}, merged: {}, keys {}",
            "",
            row.rotations,
            row.products,
            row.and_gates,
            row.merged,
            bytes(row.setup.bytes_up)
        )?;
    }
    if let (Some(first), Some(last)) = (r.rows.first(), r.rows.last()) {
        let less = |row: &AblationRow| 100.0 * (1.0 - row.online.seconds / first.online.seconds);
        for row in r.rows.iter().skip(1) {
            writeln!(out, "online latency of {:<width$} {:>6.1} % below the first row's", row.name, less(row))?;
        }
        let whole = |row: &AblationRow| row.offline.seconds + row.online.seconds;
        let share = 100.0 * whole(last) / whole(first);
        writeln!(out, "both phases of {} take {share:.1} % of the first row's", last.name)?;
    }
    Ok(())
}
