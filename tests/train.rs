//! `heliostat finetune` and `heliostat approximate` on small models and made-up texts, in seconds.

// Helpers of tests, which the lint does not count as tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use heliostat::{
    approx::{Bert, Examples, Pass, RunReport, Task},
    model::{Checkpoint, OutputKind, Shape, Tokenizer, synthesise},
    report::dataset,
};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_heliostat");

fn run(args: &[&str]) -> Output {
    Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap()
}

fn fine(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// One sentence that holds `part`, and a code that says failure.
fn refused(output: &Output, part: &str) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "succeeded");
    assert!(text.lines().count() == 1 && text.contains(part), "no {part:?} in: {text}");
}

/// Texts of which those with `good` have label 1; pairs with a score where asked.
fn table(rows: usize, pairs: bool) -> String {
    let words = ["film", "plot", "actor", "scene", "end"];
    let mut text = String::from(if pairs { "sentence1\tsentence2\tscore\n" } else { "sentence\tlabel\n" });
    for i in 0..rows {
        let (a, b, good) = (words[i % 5], words[i / 5 % 5], i * 7 % 3 == 0);
        let word = if good { "good" } else { "bad" };
        text += &match pairs {
            true => format!("the {a} {word}\tone {b} more\t{}\n", if good { 4.5 } else { 1.0 }),
            false => format!("the {a} is {word} {b}\t{}\n", u8::from(good)),
        };
    }
    text
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        synthesise(&dir.path().join("model"), Shape::Tiny, Some(1), 1).unwrap();
        for (name, pairs) in [("train.tsv", false), ("pairs.tsv", true)] {
            fs::write(dir.path().join(name), table(48, pairs)).unwrap();
        }
        fs::write(dir.path().join("eval.tsv"), table(15, false)).unwrap();
        fs::write(dir.path().join("eval-pairs.tsv"), table(15, true)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }

    fn train(&self, command: &str, model: &str, out: &str, more: &[&str]) -> Output {
        let pairs = more.contains(&"regression") || model.starts_with("values");
        let (train, eval) = if pairs { ("pairs.tsv", "eval-pairs.tsv") } else { ("train.tsv", "eval.tsv") };
        let paths = [model, train, eval, out].map(|p| self.path(p));
        let args = [command, "--model", &paths[0], "--train", &paths[1], "--eval", &paths[2], "--out", &paths[3]];
        run(&[&args[..], &["--quiet", "--batch", "8", "--learning-rate", "1e-3"], more].concat())
    }

    fn report(&self, out: &str) -> RunReport {
        serde_json::from_slice(&fs::read(self.dir.path().join(out).join("stages.json")).unwrap()).unwrap()
    }

    fn checkpoint(&self, out: &str) -> Checkpoint {
        Checkpoint::read(&self.dir.path().join(out)).unwrap()
    }
}

fn weights(dir: &str) -> Vec<u8> {
    fs::read(Path::new(dir).join("model.safetensors")).unwrap()
}

/// Outputs of the trainable model and of the float model over some texts differ by less than this.
fn close(checkpoint: &Checkpoint, texts: &Path, task: Task, tolerance: f64) {
    let tokenizer = Tokenizer::new(&checkpoint.tokenizer).unwrap();
    let data = dataset::read(texts, None).unwrap();
    let examples = Examples::new(&data, checkpoint, &tokenizer, task, &checkpoint.labels, 128, Some(12)).unwrap();
    let rows: Vec<usize> = (0..examples.len()).collect();
    let outcome = Bert::new(checkpoint).unwrap().forward(&examples.batch(&rows).unwrap(), &Pass::PLAIN).unwrap();
    let found: Vec<Vec<f32>> = outcome.output.to_vec2().unwrap();
    for (row, found) in data.rows.iter().zip(&found) {
        let text =
            tokenizer.encode(&row.input.text, row.input.pair.as_deref(), 128, checkpoint.config.positions).unwrap();
        let expected = checkpoint.forward(&text.ids, &text.types).unwrap().concat();
        for (a, b) in found.iter().zip(&expected) {
            assert!((f64::from(*a) - b).abs() < tolerance, "{a} instead of {b}: {:?}", row.input);
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn the_trainable_model_is_the_float_model() {
    let place = Place::new();
    let texts = place.dir.path().join("train.tsv");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2");
    close(&Checkpoint::read(&shipped).unwrap(), &texts, Task::Classification, 1e-4);
    close(&place.checkpoint("model"), &texts, Task::Classification, 1e-4);
    let set = std::env::var_os("HELIOSTAT_MODELS").map(PathBuf::from);
    let models = set.clone().unwrap_or_else(|| PathBuf::from("../shared/models"));
    if set.is_none() && !models.is_dir() {
        println!("NOT RUN: minilm-sst2, {} absent", models.display());
        return;
    }
    close(&Checkpoint::read(&models.join("minilm-sst2")).unwrap(), &texts, Task::Classification, 1e-4);
}

#[test]
fn a_task_is_learnt_and_approximated_in_pieces() {
    let place = Place::new();
    fine(&place.train("finetune", "model", "tuned", &["--epochs", "8"]));
    let report = place.report("tuned");
    assert!(report.result.accuracy.unwrap() > 0.9, "{}", report.table());
    assert_eq!(place.checkpoint("tuned").output, OutputKind::Classification);
    close(&place.checkpoint("tuned"), &place.dir.path().join("eval.tsv"), Task::Classification, 1e-4);

    // One run at once, the other stopped after every update or evaluation.
    let more = ["--epochs", "6", "--hidden-units", "16"];
    fine(&place.train("approximate", "tuned", "whole", &more));
    let mut pieces = 0;
    while !place.dir.path().join("pieces/config.json").is_file() {
        let said = fine(&place.train("approximate", "tuned", "pieces", &[&more[..], &["--max-seconds", "0"]].concat()));
        pieces += 1;
        assert!(pieces < 100, "{said}");
    }
    assert!(pieces > 20, "{pieces}");
    assert!(weights(&place.path("whole")) == weights(&place.path("pieces")), "pieces give another model");
    assert!(!place.dir.path().join("pieces/unfinished-run.safetensors").exists());

    let report = place.report("whole");
    let names: Vec<&str> = report.stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(names, ["pooler", "relu", "softmax", "task", "layer-norm", "range", "final"]);
    // The approximated pass is of these and of nothing else.
    assert_eq!(report.primitives, ["add", "multiply", "relu"]);
    assert!(report.result.accuracy.unwrap() > 0.9, "{}", report.table());
    for e in &report.stages.last().unwrap().estimators {
        assert!(e.largest_error < 0.2 && e.sums[0] < e.sums[1], "{e:?}");
    }

    let checkpoint = place.checkpoint("whole");
    assert!(checkpoint.config.approximation.is_some() && checkpoint.config.drops_pooler);
    assert_eq!((checkpoint.head.len(), checkpoint.layers[0].estimator.as_ref().unwrap().hidden.len()), (1, 16));
    close(&checkpoint, &place.dir.path().join("eval.tsv"), Task::Classification, 1e-3);
    let config: Value = serde_json::from_slice(&fs::read(place.path("whole/config.json")).unwrap()).unwrap();
    assert_eq!((&config["hidden_act"], &config["heliostat"]["pooler"]), (&"relu".into(), &"none".into()));
    refused(&run(&["oracle", "--model", &place.path("whole"), "--text", "a film"]), "it is approximated");
    refused(&place.train("approximate", "whole", "again", &[]), "approximated already");
}

#[test]
fn values_of_pairs_are_learnt() {
    let place = Place::new();
    fine(&place.train("finetune", "model", "values", &["--task", "regression", "--epochs", "10"]));
    assert!(place.report("values").result.spearman.unwrap() > 0.7, "{}", place.report("values").table());
    assert_eq!(place.checkpoint("values").output, OutputKind::Regression);
    close(&place.checkpoint("values"), &place.dir.path().join("eval-pairs.tsv"), Task::Regression, 1e-3);
}

#[test]
fn wrong_use_is_one_sentence() {
    let place = Place::new();
    fine(&place.train("finetune", "model", "begun", &["--epochs", "4", "--max-seconds", "0"]));
    refused(&place.train("finetune", "model", "begun", &["--epochs", "5"]), "other settings");
    refused(&place.train("finetune", "model", "model", &[]), "not empty");
    refused(&place.train("approximate", "model", "x", &["--task", "regression"]), "another task");
    let paths = ["model", "train.tsv", "eval.tsv", "wild"].map(|p| place.path(p));
    let files = ["--model", &paths[0], "--train", &paths[1], "--eval", &paths[2], "--out", &paths[3]];
    let wild = run(&[&["finetune"][..], &files, &["--learning-rate", "100"]].concat());
    refused(&wild, "not a number above 0 and up to 1");
}
