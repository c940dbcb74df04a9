//! The tables on the terminal.

use std::fmt::Write;

use super::Row;
use crate::{audit::AuditRow, bars::Bar, ceilings::Ceilings};

/// Heads the table of results.
pub const HEADER: &str = "\
| kernel | N | limbs | batch | size | backend | form | threads | median us | IQR us | runs | speed | of limit | result |
|---|---:|---:|---:|---|---|---|---:|---:|---:|---:|---:|---:|---|";

/// The rows of one group. `speed` is against the fastest CPU row of the engine: for a GPU the GPU/CPU ratio.
pub fn rows(rows: &[&Row]) -> String {
    let base = cpu_reference(rows.iter().copied()).map_or(f64::NAN, |row| row.median_ns);
    let mut out = String::new();
    for row in rows {
        // Writing to a string cannot fail.
        _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {:.1} | {} | {:.2} | {} | {} |",
            row.kernel,
            dash(row.n),
            dash(row.limbs),
            row.batch,
            row.size.as_deref().unwrap_or("-"),
            row.backend,
            row.form,
            row.threads,
            row.median_ns / 1e3,
            row.iqr_ns / 1e3,
            row.runs,
            base / row.median_ns,
            percent(row.limit_fraction),
            if row.verified { "right" } else { "WRONG" },
        );
    }
    out
}

/// The row that others are compared with: the engine's fastest on the CPU.
pub fn cpu_reference<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<&'a Row> {
    rows.filter(|row| row.backend == "cpu").min_by(|a, b| a.median_ns.total_cmp(&b.median_ns))
}

/// A share of one, as a percentage.
pub fn percent(fraction: Option<f64>) -> String {
    fraction.map_or("-".into(), |fraction| format!("{:.1} %", 100.0 * fraction))
}

fn dash(number: usize) -> String {
    if number == 0 { "-".into() } else { number.to_string() }
}

/// The limits of the devices.
pub fn ceilings(all: &[Ceilings]) -> String {
    let mut out = String::from(
        "| device | threads | copy in cache GB/s | copy in memory GB/s | 32-bit multiplies G/s | round trip us | dispatch us \
         | upload GB/s | readback GB/s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let giga = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{:.1}", rate / 1e9));
    for c in all {
        let cache = c
            .copy
            .iter()
            .map(|rate| rate.bytes_per_second)
            .fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))));
        _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {:.1} | {:.1} | {} | {} |",
            c.backend,
            c.threads,
            giga(cache),
            giga(c.memory_bandwidth()),
            giga(c.multiplies_per_second),
            c.round_trip_ns / 1e3,
            c.dispatch_ns / 1e3,
            giga(Some(c.upload_bytes_per_second)),
            giga(Some(c.readback_bytes_per_second)),
        );
    }
    out
}

/// The bars.
pub fn bars(all: &[Bar]) -> String {
    let mut out = String::from("| bar | required | measured | verdict | remark |\n|---|---:|---:|---|---|\n");
    for bar in all {
        let measured = bar.measured.map_or("-".into(), |value| format!("{} {}", figure(value), bar.unit));
        let required = format!("{} {} {}", if bar.at_most { "<=" } else { ">=" }, figure(bar.required), bar.unit);
        _ = writeln!(out, "| {} | {required} | {measured} | {} | {} |", bar.name, bar.verdict.name(), bar.remark);
    }
    out
}

/// Three significant figures.
pub fn figure(value: f64) -> String {
    let digits = 2 - value.abs().max(1e-9).log10().floor() as i32;
    format!("{value:.*}", digits.clamp(0, 6) as usize)
}

/// The static audit.
pub fn audit(all: &[AuditRow]) -> String {
    let mut out = String::from(
        "| kernel | launch | entry | form | N | size | operations a coefficient | multiplies | bytes | barriers \
         | workgroup bytes |\n|---|---:|---|---|---:|---|---:|---:|---:|---:|---:|\n",
    );
    for row in all {
        let AuditRow { kernel, launch, entry, form, n, size, operations, multiplies, bytes, barriers, workgroup_bytes } =
            row;
        _ = writeln!(
            out,
            "| {kernel} | {launch} | {entry} | {form} | {n} | {size} | {operations:.1} | {multiplies:.1} | {bytes:.1} \
             | {barriers} | {workgroup_bytes} |"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [(0.956, "0.956"), (1.234, "1.23"), (41.26, "41.3"), (1234.6, "1235"), (0.0, "0.000000")] {
            assert_eq!(figure(value), text);
        }
        assert_eq!((percent(Some(0.1234)), percent(None)), ("12.3 %".into(), "-".into()));
    }
}
