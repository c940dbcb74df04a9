//! The report as one page that needs nothing else: light and dark, wide screens and phones.

use std::fmt::Write;

use super::{
    Report, Row,
    charts::Picture,
    svg::{self, escape},
    table::{cpu_reference, figure, percent},
};
use crate::bars::Verdict;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2127;--muted:#5b6470;--line:#dfe3e8;--paper:#fff;--soft:#f4f6f8;--good:#0f7a55;--bad:#b42318}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaed;--muted:#a2abb6;--line:#343b44;--paper:#15191e;--soft:#1d232a;--good:#4fd1a1;--bad:#ff8a7a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:72rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}
p{margin:.4rem 0;max-width:60rem}.muted{color:var(--muted)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.5rem 0}dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
figure{margin:1rem 0;overflow-x:auto}figure svg{display:block;width:100%;min-width:34rem;max-width:60rem;height:auto}
figcaption{color:var(--muted);font-size:.9rem;max-width:60rem;margin-bottom:.5rem}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;width:100%;font-size:.85rem}
th,td{padding:.3rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{background:var(--soft);font-weight:600;text-align:right}
td.w,th.w{text-align:left}td.wrap{white-space:normal;min-width:18rem;text-align:left}
tr.first td{border-top:2px solid var(--line)}tbody tr:last-child td{border-bottom:0}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}
details{margin:.5rem 0}summary{cursor:pointer}
";

/// The page.
pub fn page(report: &Report, pictures: &[Picture]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>Heliostat: kernels</title>\n<style>{STYLE}{}</style>\n</head>\n<body>\n",
        svg::style()
    );
    head(&mut out, report);
    bars(&mut out, report);
    for picture in pictures {
        // Writing to a string cannot fail.
        _ = writeln!(
            out,
            "<h2>{}</h2>\n<figure><figcaption>{}</figcaption>\n{}\n</figure>",
            escape(&picture.title),
            escape(&picture.caption),
            picture.svg.inline(&picture.title)
        );
    }
    ceilings(&mut out, report);
    results(&mut out, report);
    audit(&mut out, report);
    out.push_str("</body>\n</html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    let machine = &report.machine;
    let wrong = report.results.iter().filter(|row| !row.verified).count();
    let verdict = match wrong {
        0 => format!("<span class=\"good\">All {} results were verified in this run.</span>", report.results.len()),
        _ => format!("<span class=\"bad\">{wrong} of {} results are WRONG.</span>", report.results.len()),
    };
    let software = if report.results.iter().any(|row| row.backend == "gpu (software)") {
        "<p><strong>The rows <q>gpu (software)</q> come from a driver that computes on the CPU. They show that the kernels are \
         right, not how fast a GPU is.</strong></p>\n"
    } else {
        ""
    };
    _ = writeln!(out, "<h1>Heliostat: kernels, GPU beside CPU</h1>\n<p>{verdict}</p>\n{software}<dl>");
    let sets = machine.instructions.join(" ");
    let profile = format!("{}, version {}, {} profile", report.commit, report.version, machine.profile);
    let cpu = format!("{} ({sets}), {} threads, {}", machine.cpu, machine.threads, machine.os);
    let facts = [("CPU", &cpu), ("GPU", &machine.gpu), ("commit", &profile), ("load at the start", &machine.load)];
    for (name, value) in facts {
        _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    out.push_str("</dl>\n");
    if !machine.not_run.is_empty() {
        _ = writeln!(out, "<details><summary>{} not run on some device</summary><ul>", machine.not_run.len());
        machine.not_run.iter().for_each(|note| _ = writeln!(out, "<li>{}</li>", escape(note)));
        out.push_str("</ul></details>\n");
    }
}

fn table(out: &mut String, heads: &[(&str, bool)], body: impl FnOnce(&mut String)) {
    out.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for (head, words) in heads {
        _ = write!(out, "<th{}>{}</th>", if *words { " class=\"w\"" } else { "" }, escape(head));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    body(out);
    out.push_str("</tbody></table></div>\n");
}

fn bars(out: &mut String, report: &Report) {
    out.push_str("<h2>Bars</h2>\n");
    let heads = [("bar", true), ("required", false), ("measured", false), ("verdict", true), ("remark", true)];
    table(out, &heads, |out| {
        for bar in &report.bars {
            let class = match bar.verdict {
                Verdict::Pass => "good",
                Verdict::Miss => "bad",
                Verdict::Open => "muted",
            };
            let sign = if bar.at_most { "≤" } else { "≥" };
            let measured = bar.measured.map_or("–".into(), |value| format!("{} {}", figure(value), bar.unit));
            _ = writeln!(
                out,
                "<tr><td class=\"wrap\">{}</td><td>{sign} {} {}</td><td>{}</td><td class=\"w {class}\">{}</td>\
                 <td class=\"wrap muted\">{}</td></tr>",
                escape(&bar.name),
                figure(bar.required),
                escape(&bar.unit),
                escape(&measured),
                bar.verdict.name(),
                escape(&bar.remark)
            );
        }
    });
}

fn ceilings(out: &mut String, report: &Report) {
    out.push_str("<h2>Limits of the machine</h2>\n");
    let heads = [
        ("device", true),
        ("threads", false),
        ("copy GB/s, by working set", true),
        ("32-bit multiplies G/s", false),
        ("round trip us", false),
        ("dispatch us", false),
        ("upload GB/s", false),
        ("readback GB/s", false),
    ];
    table(out, &heads, |out| {
        for c in &report.ceilings {
            let size = |bytes: f64| match bytes {
                b if b >= 1048576.0 => format!("{:.0} MiB", b / 1048576.0),
                b => format!("{:.0} KiB", b / 1024.0),
            };
            let copies: Vec<_> =
                c.copy.iter().map(|r| format!("{:.1} ({})", r.bytes_per_second / 1e9, size(r.bytes))).collect();
            let copies = if copies.is_empty() { "not measured".into() } else { copies.join(", ") };
            let giga = |rate: f64| format!("{:.1}", rate / 1e9);
            _ = writeln!(
                out,
                "<tr><td class=\"w\">{}</td><td>{}</td><td class=\"wrap\">{copies}</td><td>{}</td><td>{:.1}</td><td>{:.1}</td>\
                 <td>{}</td><td>{}</td></tr>",
                escape(&c.backend),
                c.threads,
                c.multiplies_per_second.map_or("–".into(), giga),
                c.round_trip_ns / 1e3,
                c.dispatch_ns / 1e3,
                giga(c.upload_bytes_per_second),
                giga(c.readback_bytes_per_second)
            );
        }
    });
}

fn results(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Results</h2>\n<p class=\"muted\">Wall time of a whole batch on data that is on the device. Speed is against the \
         engine's fastest CPU row of the same work: for a GPU the GPU/CPU ratio.</p>\n",
    );
    let heads = [
        ("kernel", true),
        ("N", false),
        ("limbs", false),
        ("batch", false),
        ("size", true),
        ("where", true),
        ("median us", false),
        ("IQR us", false),
        ("runs", false),
        ("speed", false),
        ("of limit", false),
        ("result", true),
    ];
    let work = |row: &Row| (row.kernel.clone(), row.n, row.limbs, row.batch, row.size.clone());
    table(out, &heads, |out| {
        for group in report.results.chunk_by(|a, b| work(a) == work(b)) {
            let base = cpu_reference(group.iter()).map_or(f64::NAN, |row| row.median_ns);
            for (k, row) in group.iter().enumerate() {
                let (class, verdict) = if row.verified { ("good", "right") } else { ("bad", "WRONG") };
                let speed = base / row.median_ns;
                let speed = if speed.is_finite() { format!("{speed:.2}") } else { "–".into() };
                let dash = |n: usize| if n == 0 { "–".into() } else { n.to_string() };
                _ = writeln!(
                    out,
                    "<tr{}><td class=\"w\">{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"w\">{}</td><td class=\"w\">{}</td>\
                     <td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{speed}</td><td>{}</td><td class=\"w {class}\">{verdict}</td></tr>",
                    if k == 0 { " class=\"first\"" } else { "" },
                    escape(&row.kernel),
                    dash(row.n),
                    dash(row.limbs),
                    row.batch,
                    escape(row.size.as_deref().unwrap_or("–")),
                    escape(&row.place()),
                    row.median_ns / 1e3,
                    row.iqr_ns / 1e3,
                    row.runs,
                    percent(row.limit_fraction)
                );
            }
        }
    });
}

fn audit(out: &mut String, report: &Report) {
    if report.audit.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Kernels by their source</h2>\n<p class=\"muted\">Counted in the shaders, not measured: 32-bit integer operations, \
         multiplies and bytes of device memory for each coefficient of the result.</p>\n",
    );
    let heads = [
        ("kernel", true),
        ("launch", false),
        ("entry", true),
        ("form", true),
        ("N", false),
        ("size", true),
        ("operations", false),
        ("multiplies", false),
        ("bytes", false),
        ("barriers", false),
        ("workgroup bytes", false),
    ];
    table(out, &heads, |out| {
        for row in &report.audit {
            _ = writeln!(
                out,
                "<tr><td class=\"w\">{}</td><td>{}</td><td class=\"w\">{}</td><td class=\"w\">{}</td><td>{}</td>\
                 <td class=\"w\">{}</td><td>{:.1}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{}</td></tr>",
                escape(&row.kernel),
                row.launch,
                escape(&row.entry),
                escape(&row.form),
                row.n,
                escape(&row.size),
                row.operations,
                row.multiplies,
                row.bytes,
                row.barriers,
                row.workgroup_bytes
            );
        }
    });
}
