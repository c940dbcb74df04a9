//! The report for people.

use std::fmt::{self, Write};

use super::fields::{HePhaseReport, InputReport, PhaseTotals, Report};

/// Numbers of an output that are shown; an embedding has hundreds.
const SHOWN: usize = 6;

/// One input: text, answer, agreement with the oracle, cost.
pub fn input(entry: &InputReport) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_input(&mut out, entry);
    out
}

fn write_input(out: &mut String, entry: &InputReport) -> fmt::Result {
    write!(out, "{:?}", entry.text)?;
    if let Some(pair) = &entry.text_pair {
        write!(out, " / {pair:?}")?;
    }
    writeln!(out)?;
    match (&entry.label, entry.score, &entry.token_labels, &entry.outputs) {
        (Some(label), Some(score), _, _) => writeln!(out, "  {label} (score {score:.4})")?,
        (_, _, Some(tokens), _) => {
            for (token, label, score) in tokens {
                writeln!(out, "  {token:<20} {label} (score {score:.4})")?;
            }
        }
        (label, _, _, Some(values)) => {
            let label = label.as_ref().map(|l| format!("{l} ")).unwrap_or_default();
            writeln!(out, "  {label}{}", numbers(values))?;
        }
        _ => {}
    }
    if let Some(outputs) = entry.outputs.as_ref().filter(|_| entry.score.is_some()) {
        writeln!(out, "  outputs {}", numbers(outputs))?;
    }
    if let (Some(equal), Some(float)) = (entry.oracle_equal, &entry.float_outputs) {
        let equal = match entry.oracle_difference {
            _ if equal => "oracle equal".to_string(),
            Some(difference) => format!("within {difference:.4} of the oracle"),
            None => "ORACLE DIFFERS".to_string(),
        };
        writeln!(out, "  {equal}; float model {}", numbers(float))?;
    }
    if let (Some(tokens), Some(bucket)) = (entry.tokens, entry.bucket) {
        writeln!(out, "  {tokens} tokens, hidden in a bucket of {bucket}")?;
    }
    for (name, phase) in [("offline", &entry.offline), ("online ", &entry.online)] {
        if let Some(phase) = phase {
            writeln!(out, "  {name} {}", totals(phase))?;
        }
    }
    if let Some(error) = &entry.error {
        writeln!(out, "  error: {error}")?;
    }
    Ok(())
}

/// What holds for the whole run.
pub fn summary(report: &Report) -> String {
    let mut out = String::new();
    let _ = write_summary(&mut out, report);
    out
}

fn write_summary(out: &mut String, r: &Report) -> fmt::Result {
    writeln!(out, "model    {} (digest {})", r.model, r.digest)?;
    writeln!(out, "backend  {}: {} [{}]", r.backend.kind, r.backend.adapter, r.backend.form)?;
    writeln!(out, "         {}", r.backend.reason)?;
    writeln!(out, "threads  {}", r.threads)?;
    writeln!(out, "link     {}", r.link)?;
    writeln!(out, "set-up   {}", totals(&r.setup))?;
    if r.inputs.len() > 1 {
        writeln!(out, "offline  {}", totals(&r.offline))?;
        writeln!(out, "online   {}", totals(&r.online))?;
    }
    writeln!(out, "plan     offline {}", totals(&r.predicted.offline))?;
    writeln!(out, "         online  {}", totals(&r.predicted.online))?;
    for (bucket, methods) in &r.nonlinear.methods {
        writeln!(out, "layers   {methods} (bucket {bucket})")?;
    }
    for reason in &r.nonlinear.reasons {
        writeln!(out, "         {reason}")?;
    }
    writeln!(out, "garbled  {} AND gates, {}", r.garbled.and_gates, bytes(r.garbled.bytes))?;
    writeln!(
        out,
        "HE       {} ciphertexts up, {} down, {} products, {} key switches",
        r.he.ciphertexts_up, r.he.ciphertexts_down, r.he.products, r.he.key_switches
    )?;
    if r.he.online != HePhaseReport::default() {
        let online = r.he.online;
        writeln!(out, "         {} products and {} key switches of these online", online.products, online.rotations)?;
    }
    if r.nonlinear.shared_elements > 0 {
        let shared = &r.nonlinear;
        writeln!(out, "shared   {} elements, {}", shared.shared_elements, bytes(shared.shared_bytes))?;
    }
    let kinds: Vec<&str> = r.ot.methods.values().map(String::as_str).collect();
    writeln!(out, "OT       {} {}", r.ot.count, kinds.join(", "))?;
    if !r.busy.is_empty() {
        let shares: Vec<String> = r.busy.iter().map(|(lane, share)| format!("{lane} {:.0} %", share * 100.0)).collect();
        writeln!(out, "busy     {} of the offline time", shares.join(", "))?;
    }
    writeln!(out, "tables   {}, {} on disk", r.tables, bytes(r.spool_bytes))?;
    if let Some(peak) = r.peak_rss_bytes {
        writeln!(out, "memory   {} at most", bytes(peak))?;
    }
    writeln!(out, "what each side learnt")?;
    for line in &r.reveals {
        writeln!(out, "  * {line}")?;
    }
    for notice in &r.notices {
        writeln!(out, "notice: {notice}")?;
    }
    Ok(())
}

/// `1.234 s, 12.3 MB up, 45.6 MB down, 7 rounds`.
pub fn totals(p: &PhaseTotals) -> String {
    format!("{:.3} s, {} up, {} down, {} rounds", p.seconds, bytes(p.bytes_up), bytes(p.bytes_down), p.rounds)
}

/// Bytes in decimal units, as links are rated.
pub fn bytes(n: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.into_iter().find(|(size, _)| n as f64 >= *size);
    unit.map_or_else(|| format!("{n} B"), |(size, name)| format!("{:.1} {name}", n as f64 / size))
}

/// The first numbers of a row in brackets, and how many there are if there are more.
pub fn numbers(values: &[f64]) -> String {
    let shown: Vec<String> = values.iter().take(SHOWN).map(|x| format!("{x:.4}")).collect();
    let more = if values.len() > SHOWN { format!(", ... {} in all", values.len()) } else { String::new() };
    format!("[{}{more}]", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_says_everything_on_it() {
        let cost = PhaseTotals { seconds: 1.5, bytes_up: 999, bytes_down: 12_345_678, rounds: 3 };
        let mut entry = InputReport {
            text: "say \"hi\"".into(),
            text_pair: None,
            tokens: Some(5),
            bucket: Some(8),
            label: Some("positive".into()),
            score: Some(0.75),
            token_labels: None,
            outputs: Some(vec![-1.0, 1.0]),
            oracle_outputs: Some(vec![-1.0, 1.0]),
            float_outputs: Some(vec![-1.01, 1.0]),
            oracle_equal: Some(true),
            oracle_difference: None,
            error: None,
            offline: Some(cost),
            online: None,
        };
        let text = input(&entry);
        for part in
            ["positive (score 0.7500)", "oracle equal", "5 tokens", "bucket of 8", "999 B up, 12.3 MB down, 3 rounds"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        (entry.oracle_equal, entry.error) = (Some(false), Some("no luck".into()));
        assert!(input(&entry).contains("ORACLE DIFFERS") && input(&entry).contains("error: no luck"));
    }

    #[test]
    fn long_rows_are_cut() {
        assert_eq!(numbers(&[0.5; 8]), "[0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, ... 8 in all]");
        assert_eq!((bytes(0), bytes(1500)), ("0 B".into(), "1.5 kB".into()));
    }
}
