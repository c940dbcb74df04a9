//! `heliostat accuracy` and the gate of `calibrate` on the shipped model and on models made from it.

// Helpers of tests, which the lint does not count as tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use heliostat::{
    arith::ShareModulus,
    model::{Edge, Evaluator, Exact, Function, Model, NonLinear, Op, Simulator},
    report::accuracy::AccuracyReport,
};
use serde_json::{Value, json};

const BIN: &str = env!("CARGO_BIN_EXE_heliostat");

/// Short texts, so that buckets are 8 or 16; the last label is wrong.
const TABLE: &str = "sentence\tlabel\n\
    a very good film\t1\n\
    a \"gripping\" , funny and moving story\t1\n\
    dull and boring\t0\n\
    an awful , tedious waste of time\t0\n\
    a wonderful film\t0\n";

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")
}

fn run(args: &[&str]) -> Output {
    Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap()
}

/// `heliostat accuracy` over a file of this name and content.
fn over(model: &Path, name: &str, content: &str, more: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join(name);
    fs::write(&data, content).unwrap();
    let args = ["accuracy", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--quiet"];
    run(&[&args[..], more].concat())
}

fn report(output: &Output) -> AccuracyReport {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exactly one line, which holds `part`, and a code that says failure.
fn one_sentence(output: &Output, part: &str) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "succeeded: {}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("heliostat: ") && text.contains(part), "no {part:?} in: {text}");
    assert!(!text.contains("internal error"), "{text}");
}

/// A copy of the shipped model, without its calibration, whose configuration `edit` has changed.
fn variant(edit: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(shipped()).unwrap() {
        let from = entry.unwrap().path();
        if from.file_name().unwrap() != "heliostat.json" {
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
    dir
}

/// Keeps the first row of the classifier, which makes a regression.
fn cut_classifier(dir: &Path) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut new, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in header.as_object().unwrap() {
        let Some(offsets) = tensor.get("data_offsets") else { continue };
        let at = |i: usize| 8 + length + offsets[i].as_u64().unwrap() as usize;
        let (mut tensor, mut part) = (tensor.clone(), &bytes[at(0)..at(1)]);
        if name.starts_with("classifier.") {
            part = &part[..part.len() / 2];
            tensor["shape"][0] = json!(1);
        }
        tensor["data_offsets"] = json!([data.len(), data.len() + part.len()]);
        new.insert(name.clone(), tensor);
        data.extend_from_slice(part);
    }
    let mut header = Value::Object(new).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    fs::write(path, [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()).unwrap();
}

#[test]
fn a_classification_is_counted() {
    let r = report(&over(&shipped(), "a.tsv", TABLE, &["--json"]));
    assert_eq!((r.rows, r.rows_in_file, r.labelled, r.texts_cut), (5, 5, true, 0));
    assert_eq!(r.float.accuracy, Some(0.8));
    assert_eq!(r.fixed, r.float);
    let agreement = r.agreement.unwrap();
    assert_eq!((agreement.compared, agreement.changed, agreement.lost, agreement.gained), (5, 0, Some(0), Some(0)));
    assert_eq!(r.loss.unwrap().points, 0.0);
    assert_eq!((r.output_error.count, r.answer_error.count), (10, 5));
    assert!(r.output_error.mean > 0.0 && r.output_error.mean <= r.output_error.max && r.output_error.max < 0.2);
    assert!(r.overflows.edges.is_empty() && r.changed.is_empty() && r.private.is_none());
    // The same by names of labels, by indices without a header, and as comma-separated values.
    let named = "id\tlabel\ttext\n7\tpositive\ta very good film\n8\tNEGATIVE\tdull and boring\n";
    let indices = "7\t1\ta very good film\n8\t0\tdull and boring\n";
    let commas = "text,label\n\"a very good film\",1\ndull and boring,0.0\n";
    let outputs = [
        over(&shipped(), "a.tsv", named, &["--json"]),
        over(&shipped(), "a.tsv", indices, &["--json", "--columns", "text=2,label=1"]),
        over(&shipped(), "a.csv", commas, &["--json"]),
        over(&shipped(), "a.tsv", TABLE, &["--json", "--limit", "2"]),
    ];
    for output in &outputs {
        let r = report(output);
        assert_eq!((r.rows, r.float.accuracy), (2, Some(1.0)), "{}", r.columns);
    }
    // Texts alone.
    let r = report(&over(&shipped(), "a.txt", "good\nbad\n", &["--json"]));
    assert!(!r.labelled && r.float.accuracy.is_none());
    assert_eq!(r.loss.unwrap().of, "label agreement");
}

#[test]
fn the_report_is_for_people_and_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    // All labels equal: no correlation, which is said instead of a number.
    let table = "sentence\tlabel\ngood\t1\nbad\t1\n";
    let output = over(&shipped(), "a.tsv", table, &["--report", path.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for part in ["2 rows, text `sentence`", "accuracy 50.00 %", "undefined (one side is the same", "2 of 2 labels"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let r: AccuracyReport = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!((r.float.accuracy, r.float.matthews), (Some(0.5), None));
    assert!(r.float.undefined.contains_key("matthews"));
}

#[test]
fn the_protocol_gives_what_the_oracle_gives() {
    let options = ["--json", "--limit", "2", "--backend", "cpu"];
    let oracle = report(&over(&shipped(), "a.tsv", TABLE, &options));
    let private = report(&over(&shipped(), "a.tsv", TABLE, &[&options[..], &["--mode", "private"]].concat()));
    let cost = private.private.clone().unwrap();
    assert_eq!((cost.equal, cost.differing), (2, 0));
    assert!(cost.online.bytes_up > 0 && cost.offline.bytes_down > 0);
    assert_eq!(private.output_error, oracle.output_error);
    assert_eq!((private.fixed, private.agreement), (oracle.fixed, oracle.agreement));
}

#[test]
fn the_simulator_is_near_the_oracle_and_repeatable() {
    let oracle = report(&over(&shipped(), "a.tsv", TABLE, &["--json"]));
    let simulator =
        |seed: &str| report(&over(&shipped(), "a.tsv", TABLE, &["--json", "--mode", "simulator", "--seed", seed]));
    let (one, again, other) = (simulator("1"), simulator("1"), simulator("2"));
    assert_eq!((one.fixed.clone(), one.output_error), (again.fixed, again.output_error));
    assert_ne!(one.output_error, other.output_error);
    assert_eq!(one.fixed, oracle.fixed);
    assert!(one.output_error != oracle.output_error && one.output_error.max < 0.3, "{:?}", one.output_error);
    assert!(one.overflows.edges.is_empty(), "{:?}", one.overflows);
}

#[test]
fn pairs_scores_and_embeddings() {
    let sts = "g\tf\t2012\t0\t5.000\ta good film\ta very good film\n\
        g\tf\t2012\t1\t1.5\ta good film\tdull and boring\n\
        g\tf\t2012\t2\t0.25\ta cat \"sat\ta wonderful song\n";
    let embedding = variant(|c| c["architectures"] = json!(["BertModel"]));
    let r = report(&over(embedding.path(), "sts.csv", sts, &["--json"]));
    assert_eq!(r.task.to_string(), "embedding");
    assert!(r.float.spearman.is_some() && r.float.pearson.is_some() && r.float.accuracy.is_none());
    assert_eq!((r.output_error.count, r.answer_error.count), (3 * 2 * 128, 3));
    assert!(r.mean_cosine.unwrap() > 0.99 && r.answer_error.max < 0.05);
    assert_eq!(r.loss.unwrap().of, "spearman");
    let single = report(&over(embedding.path(), "a.tsv", TABLE, &["--json"]));
    assert!(!single.labelled && single.notices[0].contains("labels are not used"));
    assert_eq!(single.loss.unwrap().of, "cosine");

    let regression = variant(|c| {
        c["id2label"] = json!({"0": "score"});
        c["label2id"] = json!({"score": 0});
        c["problem_type"] = json!("regression");
    });
    cut_classifier(regression.path());
    let r = report(&over(regression.path(), "sts.csv", sts, &["--json", "--task", "regression"]));
    assert!(r.float.spearman.is_some() && r.agreement.is_none());
    assert_eq!((r.output_error.count, r.answer_error.count), (3, 3));
    one_sentence(&over(regression.path(), "a.tsv", "text\tscore\nx\tmuch\n", &[]), "line 2: the score \"much\"");

    let tokens = variant(|c| c["architectures"] = json!(["BertForTokenClassification"]));
    let r = report(&over(tokens.path(), "a.txt", "a good film\n", &["--json"]));
    assert_eq!(r.agreement.unwrap().compared, 5);
}

#[test]
fn wrong_input_is_one_sentence() {
    let model = shipped();
    let bad = |content: &str, more: &[&str], part: &str| one_sentence(&over(&model, "a.tsv", content, more), part);
    bad(TABLE, &["--columns", "text=review,label=label"], "a.tsv: line 1 names no column `review`");
    bad("a\tb\nc\td\n", &[], "line 1 names no column of texts");
    bad("sentence\tlabel\ngood\n", &[], "line 2 has no column `label`");
    bad("", &[], "it holds no row");
    bad("sentence\tlabel\n", &[], "it holds no row");
    bad("sentence\tlabel\ngood\t7\n", &[], "line 2: the label \"7\" is none of the model's 2");
    bad("sentence\tlabel\ngood\t-1\n", &[], "line 2: the label \"-1\"");
    bad("sentence\tlabel\ngood\t1\nbad\t\n", &[], "line 3: its label is empty");
    bad(TABLE, &["--task", "regression"], "the model's head is for the task cls, not regression");
    bad(TABLE, &["--columns", "colour=1"], "colour");
    bad(TABLE, &["--mode", "guess"], "guess");
    bad(TABLE, &["--report", "/nowhere/report.json"], "/nowhere/report.json");
    let args = ["accuracy", "--model", model.to_str().unwrap(), "--data", "/nowhere/data.tsv"];
    one_sentence(&run(&args), "/nowhere/data.tsv");
    one_sentence(&over(Path::new("/nowhere/model"), "a.tsv", TABLE, &[]), "/nowhere/model");
}

/// `heliostat calibrate` over a file; the folder that it may write to.
fn calibrate(model: &Path, content: &str, more: &[&str]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("a.tsv"), dir.path().join("out.json"));
    fs::write(&data, content).unwrap();
    let args = ["--model", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    (run(&[&["calibrate"], &args[..], more].concat()), dir)
}

#[test]
fn a_calibration_that_loses_too_much_is_refused() {
    // Cosines always lose something.
    let embedding = variant(|c| c["architectures"] = json!(["BertModel"]));
    let (output, dir) = calibrate(embedding.path(), TABLE, &["--max-loss", "0"]);
    one_sentence(&output, "points of cosine are lost over 5 rows, more than the 0 of --max-loss");
    assert!(!dir.path().join("out.json").exists());
    // Few bits lose between 0.1 and 0.2 points, which the default admits.
    let coarse = ["hidden_frac=6", "weight_frac=5", "query_key_frac=4", "value_frac=4"];
    let coarse: Vec<&str> = coarse.iter().flat_map(|field| ["--precision", field]).collect();
    let (output, dir) = calibrate(embedding.path(), TABLE, &[&coarse[..], &["--max-loss", "0.1"]].concat());
    one_sentence(&output, "more than the 0.1 of --max-loss");
    assert!(!dir.path().join("out.json").exists());
    let (output, dir) = calibrate(embedding.path(), TABLE, &coarse);
    assert!(output.status.success() && dir.path().join("out.json").exists());
    for wrong in ["hidden_frac", "hidden_frac=x", "colour=3"] {
        one_sentence(&calibrate(&shipped(), TABLE, &["--precision", wrong]).0, "is not FIELD=BITS");
    }
    one_sentence(&calibrate(&shipped(), TABLE, &["--max-loss=-1"]).0, "points from 0 to 100");
    one_sentence(&calibrate(&shipped(), "sentence\tlabel\ngood\t9\n", &[]).0, "line 2: the label \"9\"");
}

#[test]
fn a_calibration_keeps_rings_that_later_rows_need() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["--samples", "1", "--headroom-bits", "0", "--report", dir.path().join("r.json").to_str().unwrap()]
        .map(String::from);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let table = "sentence\na\nan awful , tedious , incoherent waste of \"everyone 's\" time and money , 1234 !!!\n";
    let (output, out) = calibrate(&shipped(), table, &more);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("kept wide") && text.contains("overflows  none") && text.contains("1 texts; written"),
        "{text}"
    );
    let checked: AccuracyReport = serde_json::from_slice(&fs::read(dir.path().join("r.json")).unwrap()).unwrap();
    assert_eq!((checked.rows, checked.overflows.rows), (2, 0));
    let calibration = out.path().join("out.json");
    let after = over(&shipped(), "a.tsv", table, &["--json", "--calibration", calibration.to_str().unwrap()]);
    assert!(report(&after).overflows.edges.is_empty());
}

fn edge(bits: u32, cols: usize) -> Edge {
    Edge { name: "e".into(), rows: 1, cols, ring: ShareModulus::pow2(bits).unwrap(), frac: 4 }
}

#[test]
fn truncation_is_within_one_unit_and_repeatable() {
    for (from, to, shift) in [(32, 24, 8), (32, 40, 8), (48, 33, 20), (64, 20, 30), (20, 20, 0)] {
        let x: Vec<i64> =
            (0..4000).map(|i: i64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> (66 - from)).collect();
        let (input, output) = (edge(from, x.len()), edge(to, x.len()));
        let function = Function::Truncate { shift };
        let node = NonLinear { name: "t", function: &function, input: &input, output: &output };
        let (y, outside) = Simulator::seeded(5).evaluate(node, &x).unwrap();
        assert_eq!(outside, 0);
        let (exact, _) = Exact.evaluate(node, &x).unwrap();
        let wrap = |x: i128| output.ring.to_signed(output.ring.from_signed(x as i64));
        let off = |(a, b): (&i128, &i128)| wrap(a - b).abs();
        let (worst, changed) = y.iter().zip(&exact).map(off).fold((0, 0), |(w, c), d| (w.max(d), c + i64::from(d > 0)));
        assert_eq!(worst, i64::from(shift > 0), "{from} {to} {shift}");
        assert!(shift == 0 || (500..3500).contains(&changed), "{changed}");
        assert_eq!(Simulator::seeded(5).evaluate(node, &x).unwrap().0, y);
        assert!(shift == 0 || Simulator::seeded(6).evaluate(node, &x).unwrap().0 != y);
    }
}

#[test]
fn values_of_unknown_sign_are_counted() {
    let (input, output, function) = (edge(20, 4), edge(20, 4), Function::Truncate { shift: 2 });
    let node = NonLinear { name: "t", function: &function, input: &input, output: &output };
    let quarter = 1 << 18;
    let (_, outside) = Simulator::seeded(1).evaluate(node, &[quarter, quarter - 1, -quarter, -quarter - 1]).unwrap();
    assert_eq!(outside, 2);
    // Softmax takes rows whose scores differ by less than half of the ring.
    let graph = Model::load(&shipped()).unwrap().client().graph(8).unwrap();
    let exp = graph.nodes.iter().find_map(|n| match &n.op {
        Op::Garbled { function: f @ Function::Exp(_), input } => Some((f, graph.edge(*input), graph.edge(n.output))),
        _ => None,
    });
    let (exp, scores, numerators) = exp.unwrap();
    let half = 1 << (scores.ring.bits() - 1);
    let (input, output) =
        (Edge { rows: 3, cols: 2, ..scores.clone() }, Edge { rows: 3, cols: 2, ..numerators.clone() });
    let node = NonLinear { name: "e", function: exp, input: &input, output: &output };
    assert_eq!(Simulator::seeded(1).evaluate(node, &[half - 1, 0, half / 2, -half / 2, -1, 3]).unwrap().1, 2);
}
