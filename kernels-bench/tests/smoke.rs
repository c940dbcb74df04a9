//! The harness in its quickest mode on the smallest ring: every kernel runs and gives the expected result, and what it writes is
//! what it promises.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{collections::BTreeSet, fs, process::Command};

use kernels_bench::{composed, garbling, kernels::Kernel, report::Report};
use serde_json::Value;

/// All but the layers of BERT-base, whose smallest product takes seconds without a release build.
fn names() -> Vec<&'static str> {
    Kernel::NAMES
        .into_iter()
        .chain(composed::NAMES)
        .chain(garbling::NAMES)
        .filter(|name| *name != composed::BERT)
        .collect()
}

#[test]
fn quick_run_is_right_everywhere_and_its_files_are_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new").join("results");
    let mut harness = Command::new(env!("CARGO_BIN_EXE_kernels-bench"));
    harness.args(["--quick", "--sizes", "1024,2048", "--kernels", &names().join(","), "--out"]).arg(&out);
    let output = harness.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("| kernel | N |") && text.contains("| bar | required |") && !text.contains("WRONG"),
        "{text}"
    );

    let json = fs::read_to_string(out.join("kernels.json")).unwrap();
    schema(&serde_json::from_str(&json).unwrap());
    let report = Report::read(&out.join("kernels.json")).unwrap();
    let kernels: BTreeSet<_> = report.results.iter().map(|row| row.kernel.as_str()).collect();
    assert_eq!(kernels, names().into_iter().collect());
    for row in &report.results {
        assert!(row.verified && row.runs >= 3 && row.median_ns > 0.0, "{row:?}");
        assert!(row.backend != "cpu" || row.limit_fraction.is_some_and(|f| f > 0.0), "{row:?}");
    }
    let keys: BTreeSet<_> = report.results.iter().map(|row| row.key()).collect();
    assert_eq!(keys.len(), report.results.len(), "no measurement comes twice");
    let library = |form: &str| report.results.iter().any(|row| row.backend == "library" && row.form == form);
    assert!(["tfhe-ntt", "concrete-ntt", "gemm f64"].into_iter().all(library));

    let mut pictures = 0;
    for file in fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "svg") {
            let svg = fs::read_to_string(&file).unwrap();
            let document = roxmltree::Document::parse(&svg).unwrap();
            assert!(document.descendants().filter(|node| node.is_element()).count() > 20, "{}", file.display());
            pictures += 1;
        }
    }
    assert!(pictures >= 3);
    page(&fs::read_to_string(out.join("kernels.html")).unwrap(), pictures);
}

/// The promised names, and no other ones in a row.
fn schema(report: &Value) {
    for name in ["version", "commit", "machine", "ceilings", "results", "bars", "audit"] {
        assert!(!report[name].is_null(), "{name}");
    }
    let required = [
        "kernel",
        "n",
        "limbs",
        "batch",
        "backend",
        "form",
        "threads",
        "runs",
        "median_ns",
        "iqr_ns",
        "verified",
        "limit_fraction",
    ];
    for row in report["results"].as_array().unwrap() {
        let row = row.as_object().unwrap();
        let names: BTreeSet<_> = row.keys().map(String::as_str).collect();
        assert!(required.iter().all(|name| names.contains(name)), "{row:?}");
        assert!(names.iter().all(|name| required.contains(name) || ["size", "adapter"].contains(name)), "{row:?}");
        assert!(row["median_ns"].is_f64() && row["iqr_ns"].is_f64() && row["verified"].is_boolean(), "{row:?}");
        assert!(row["limit_fraction"].is_f64() || row["limit_fraction"].is_null(), "{row:?}");
        assert!(["n", "limbs", "batch", "threads", "runs"].into_iter().all(|name| row[name].is_u64()), "{row:?}");
    }
}

/// One page that needs nothing else, for light and dark, with every picture in it.
fn page(html: &str, pictures: usize) {
    let foreign = html.replace("http://www.w3.org/2000/svg", "");
    for reference in ["http:", "https:", "src=", "<link", "@import", "url(", "<script"] {
        assert!(!foreign.contains(reference), "{reference}");
    }
    assert!(html.contains("prefers-color-scheme:dark") && html.contains("name=\"viewport\""));
    let inline: Vec<_> = html.match_indices("<svg ").map(|(at, _)| &html[at..]).collect();
    assert_eq!(inline.len(), pictures);
    for svg in inline {
        let end = svg.find("</svg>").unwrap() + "</svg>".len();
        roxmltree::Document::parse(&svg[..end]).unwrap();
    }
}
