//! The command line: exit codes and one clear sentence.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn harness(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kernels-bench")).args(arguments).output().unwrap()
}

/// The last line of the error output; drivers may have written lines of their own before.
fn sentence(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn wrong_arguments_exit_2() {
    for arguments in [&["--sizes", "1000"][..], &["--kernels", "nothing"], &["--threads", "none"], &["--what"]] {
        let output = harness(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_unknown_adapter_is_one_clear_sentence() {
    let output = harness(&["--quick", "--adapter", "no such adapter"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(sentence(&output).starts_with("error: no adapter 'no such adapter'"), "{}", sentence(&output));
}

#[test]
fn a_folder_that_cannot_be_is_seen_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "here").unwrap();
    let output = harness(&["--quick", "--out", file.join("below").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(sentence(&output).starts_with("error: cannot make the folder"), "{}", sentence(&output));
    assert!(output.stdout.is_empty());
}

/// A report with one result.
fn write(path: &Path, median_ns: f64) {
    let report = format!(
        r#"{{"version": "1", "commit": "abc", "ceilings": [], "machine": {{"cpu": "", "instructions": [], "threads": 1, "os": "",
            "gpu": "", "profile": "release", "load": ""}}, "results": [{{"kernel": "mul", "n": 1024, "limbs": 1, "batch": 1,
            "backend": "cpu", "form": "plain", "threads": 1, "runs": 5, "median_ns": {median_ns:?}, "iqr_ns": 1.0,
            "verified": true, "limit_fraction": null}}]}}"#
    );
    fs::write(path, report).unwrap();
}

#[test]
fn comparisons_say_what_changed_and_fail_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (before, after, broken) = (path("a.json"), path("b.json"), path("broken.json"));
    write(Path::new(&before), 100.0);
    write(Path::new(&after), 200.0);
    fs::write(&broken, "{").unwrap();

    let output = harness(&["--compare", &before, &after]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("| 0.500 | slower |"), "{text}");
    let output = harness(&["--compare", &before, &after, "--fail-on-slower"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(sentence(&output).starts_with("error: something is slower"), "{}", sentence(&output));
    assert!(harness(&["--compare", &after, &before, "--fail-on-slower"]).status.success());

    for bad in [&broken, &path("absent.json")] {
        let output = harness(&["--compare", &before, bad]);
        assert_eq!(output.status.code(), Some(1));
        assert!(sentence(&output).contains(bad.as_str()), "{}", sentence(&output));
    }
}
