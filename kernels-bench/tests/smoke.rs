//! The harness in its quickest mode: every kernel runs, and gives the expected result.

use std::{collections::BTreeSet, fs, process::Command};

#[test]
fn quick_run_is_right_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut harness = Command::new(env!("CARGO_BIN_EXE_kernels-bench"));
    let output = harness.arg("--quick").arg("--out").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = fs::read_to_string(folder.path().join("kernels.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(!report["machine"]["cpu"].as_str().unwrap().is_empty());
    let results = report["results"].as_array().unwrap();
    let kernels: BTreeSet<_> = results.iter().map(|row| row["kernel"].as_str().unwrap()).collect();
    let expected = ["encrypted_matmul", "key_switch", "matmul_plain", "mul", "ntt_forward", "ntt_inverse"];
    assert_eq!(kernels, BTreeSet::from(expected));
    for row in results {
        assert_eq!(row["verified"], true, "{row}");
        assert!(row["median_ns"].as_f64().unwrap() > 0.0 && row["runs"].as_u64().unwrap() >= 3, "{row}");
    }
}

#[test]
fn an_unknown_adapter_is_one_clear_sentence() {
    let mut harness = Command::new(env!("CARGO_BIN_EXE_kernels-bench"));
    let output = harness.args(["--quick", "--adapter", "no such adapter"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    // Drivers may have written lines of their own before.
    let sentence = message.lines().last().unwrap_or_default();
    assert!(!output.status.success() && sentence.starts_with("error: no adapter 'no such adapter'"), "{message}");
}
