//! The built program as a user meets it: the demo, reports, two processes, and every bad input in one sentence.

// Helpers of tests, which the lint does not count as tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_heliostat");
/// Six tokens in BERT's vocabulary, so that the bucket is 8.
const TEXT: &str = "a very good film";
/// A run that takes longer is stuck.
const STUCK: Duration = Duration::from_secs(300);

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end, killing a process that is stuck.
fn finish(mut child: Child) -> Output {
    fn drain(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut from) = from {
                let _ = from.read_to_end(&mut bytes);
            }
            bytes
        })
    }
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > STUCK => {
                child.kill().unwrap();
                panic!("stuck for {STUCK:?}");
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn run(args: &[&str]) -> Output {
    finish(command(args).spawn().unwrap())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exactly one line, which holds `part`, and a code that says failure.
fn one_sentence(output: &Output, part: &str) {
    let text = stderr(output);
    assert!(!output.status.success(), "succeeded: {}", stdout(output));
    assert!(output.status.code().is_some(), "killed by a signal: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("heliostat: ") && text.contains(part), "no {part:?} in: {text}");
    assert!(!text.contains("internal error"), "{text}");
}

fn local(model: &Path) -> Output {
    run(&["local", "--model", model.to_str().unwrap(), "--text", TEXT, "--backend", "cpu", "--quiet"])
}

/// A copy of the model that `spoil` has changed.
fn spoilt(spoil: impl Fn(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let from = entry.unwrap().path();
        let to = dir.path().join(from.file_name().unwrap());
        fs::write(to, fs::read(from).unwrap()).unwrap();
    }
    spoil(dir.path());
    dir
}

/// Changes the checkpoint's header and data.
fn edit_weights(dir: &Path, edit: impl Fn(&mut Value, &mut Vec<u8>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    edit(&mut header, &mut data);
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    fs::write(path, [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()).unwrap();
}

/// The name of the first query's weights, whatever the checkpoint's prefix is.
fn query(header: &Value) -> String {
    let names = header.as_object().unwrap().keys();
    names.filter(|n| n.ends_with("attention.self.query.weight")).min().unwrap().clone()
}

#[test]
fn a_model_that_cannot_be_read_is_one_sentence() {
    one_sentence(&local(Path::new("/nowhere/model")), "/nowhere/model");
    let no_weights = spoilt(|d| fs::remove_file(d.join("model.safetensors")).unwrap());
    one_sentence(&local(no_weights.path()), "model.safetensors");
    let truncated = spoilt(|d| {
        let path = d.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    one_sentence(&local(truncated.path()), "model.safetensors");
    let architecture = spoilt(|d| {
        let path = d.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["model_type"] = "gpt2".into();
        config["architectures"] = serde_json::json!(["GPT2LMHeadModel"]);
        fs::write(path, config.to_string()).unwrap();
    });
    one_sentence(&local(architecture.path()), "not supported");
    let nan = spoilt(|d| {
        edit_weights(d, |header, data| {
            let start = header[query(header)]["data_offsets"][0].as_u64().unwrap() as usize;
            // The bits of a bf16 NaN.
            data[start..start + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        });
    });
    one_sentence(&local(nan.path()), "query.weight");
    let dtype = spoilt(|d| {
        edit_weights(d, |header, _| {
            let name = query(header);
            header[name]["dtype"] = "I16".into();
        });
    });
    one_sentence(&local(dtype.path()), "query.weight");
    let tokenizer = spoilt(|d| fs::remove_file(d.join("vocab.txt")).unwrap());
    one_sentence(&local(tokenizer.path()), "vocab.txt");
}

#[test]
fn bad_arguments_are_one_sentence() {
    let dir = model();
    let model = dir.to_str().unwrap();
    let bad = |args: &[&str], part: &str| {
        one_sentence(&run(&[&["local", "--model", model, "--backend", "cpu"], args].concat()), part);
    };
    one_sentence(&run(&["local", "--model", model, "--text", TEXT, "--backend", "tpu"]), "tpu");
    one_sentence(&run(&[]), "say what to do");
    bad(&[], "--text");
    bad(&["--text", TEXT, "--link", "slow"], "slow");
    bad(&["--text", TEXT, "--threads", "0"], "threads");
    bad(&["--text", TEXT, "--text", TEXT, "--text-pair", TEXT], "2 --text but 1 --text-pair");
    bad(&["--input", "/nowhere/texts.txt"], "/nowhere/texts.txt");
    bad(&["--text", TEXT, "--phase", "online"], "--store");
    bad(&["--text", TEXT, "--spool", "/nowhere/spool", "--quiet"], "/nowhere/spool");
    bad(&["--text", TEXT, "--report", "/nowhere/report.json", "--quiet"], "/nowhere/report.json");
    let infer = ["infer", "--backend", "cpu", "--text", TEXT];
    one_sentence(&run(&[&infer[..], &["--server", "127.0.0.1:1"]].concat()), "nobody listens");
    one_sentence(&run(&[&infer[..], &["--server", "192.0.2.1:7443"]].concat()), "loopback");
    one_sentence(&run(&[&infer[..], &["--model-digest", "12"]].concat()), "64 hexadecimal digits");
    one_sentence(&run(&["serve", "--model", model, "--listen", "0.0.0.0:0"]), "loopback");
}

#[test]
#[cfg(target_os = "linux")]
fn no_adapter_is_one_sentence() {
    let model = model();
    let args = ["local", "--model", model.to_str().unwrap(), "--text", TEXT, "--backend", "gpu"];
    let mut without = command(&args);
    // The Vulkan loader then finds no driver, whatever is installed.
    without.env("VK_DRIVER_FILES", "/nowhere").env("VK_ICD_FILENAMES", "/nowhere");
    one_sentence(&finish(without.spawn().unwrap()), "no usable GPU adapter");
}

#[test]
fn the_demo_answers_and_agrees_with_the_oracle() {
    let output = run(&["demo", "--backend", "cpu"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    assert_eq!(text.matches("oracle equal").count(), 3, "{text}");
    for part in ["score", "offline", "online", "rounds", "what each side learnt", "backend  cpu"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(stderr(&output), "");
}

#[test]
fn the_report_has_its_fields_and_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let (texts, report, trace) =
        (dir.path().join("in.tsv"), dir.path().join("report.json"), dir.path().join("trace.json"));
    fs::write(&texts, format!("label\tsentence\n1\t{TEXT}\n0\t\"dull\n")).unwrap();
    let model = model();
    let args = [
        "local",
        "--backend",
        "cpu",
        "--threads",
        "2",
        "--model",
        model.to_str().unwrap(),
        "--input",
        texts.to_str().unwrap(),
        "--report",
        report.to_str().unwrap(),
        "--trace",
        trace.to_str().unwrap(),
        "--json",
    ];
    let printed = json(&run(&args));
    let written: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(printed, written);
    let r = &written;
    for field in [
        "model",
        "digest",
        "backend",
        "threads",
        "link",
        "calibration",
        "inputs",
        "offline",
        "online",
        "phases",
        "ops",
        "garbled",
        "he",
        "ot",
        "overlap",
        "spool_bytes",
        "peak_rss_bytes",
        "reveals",
    ] {
        assert!(!r[field].is_null(), "{field}");
    }
    assert_eq!(
        (r["model"].as_str(), r["link"].as_str(), r["threads"].as_u64()),
        (Some("bert-tiny-sst2"), Some("unlimited"), Some(2))
    );
    assert_eq!((r["backend"]["kind"].as_str(), r["digest"].as_str().unwrap().len()), (Some("cpu"), 64));
    let inputs = r["inputs"].as_array().unwrap();
    let texts: Vec<_> = inputs.iter().map(|i| i["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [TEXT, "\"dull"]);
    for input in inputs {
        assert_eq!((&input["oracle_equal"], &input["error"]), (&Value::Bool(true), &Value::Null));
        assert_eq!(input["outputs"], input["oracle_outputs"]);
        assert_eq!(input["float_outputs"].as_array().unwrap().len(), input["outputs"].as_array().unwrap().len());
        assert_eq!(input["bucket"].as_u64(), Some(8));
        assert!(input["label"].is_string() && input["score"].as_f64().unwrap() >= 0.5);
    }
    for phase in ["offline", "online"] {
        for field in ["bytes_up", "bytes_down", "rounds"] {
            let sum: u64 = inputs.iter().map(|i| i[phase][field].as_u64().unwrap()).sum();
            assert_eq!(r[phase][field].as_u64(), Some(sum), "{phase} {field}");
            assert!(sum > 0, "{phase} {field}");
        }
        // Payloads of the steps and the bytes of the lanes differ by framing and by the control lane.
        let total = r[phase]["bytes_up"].as_f64().unwrap() + r[phase]["bytes_down"].as_f64().unwrap();
        let steps = r["phases"].as_array().unwrap().iter().filter(|p| p["phase"] == phase);
        let sum: f64 = steps.map(|p| p["bytes_up"].as_f64().unwrap() + p["bytes_down"].as_f64().unwrap()).sum();
        assert!((total - sum).abs() < 0.02 * total, "{phase}: {total} and {sum}");
    }
    assert!(r["garbled"]["and_gates"].as_u64().unwrap() > 0);
    assert_eq!(r["garbled"]["bytes"], r["spool_bytes"]);
    assert!(r["he"]["products"].as_u64().unwrap() > 0 && r["he"]["ciphertexts_down"].as_u64().unwrap() > 0);
    assert!(r["ot"]["count"].as_u64().unwrap() > 0);
    assert!(r["statistical_distance_log2"].as_f64().unwrap() < -20.0);
    assert!(r["overlap"].as_f64().unwrap() > 0.0);
    let ops = r["ops"].as_array().unwrap();
    assert!(ops.iter().all(|op| op["gpu"] == 0) && ops.iter().any(|op| op["cpu"].as_u64() > Some(0)));
    let events: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    assert!(events["traceEvents"].as_array().unwrap().len() > 10);
    let interleaved = json(&run(&[
        "local",
        "--backend",
        "cpu",
        "--model",
        model.to_str().unwrap(),
        "--text",
        TEXT,
        "--interleaved",
        "--json",
    ]));
    assert_eq!((interleaved["spool_bytes"].as_u64(), interleaved["tables"].as_str()), (Some(0), Some("interleaved")));
    assert_eq!(interleaved["inputs"][0]["outputs"], inputs[0]["outputs"]);
    for report in [r, &interleaved] {
        for phase in ["offline", "online"] {
            assert_eq!(report["predicted"][phase]["bytes_up"], report[phase]["bytes_up"], "{phase}");
            assert_eq!(report["predicted"][phase]["bytes_down"], report[phase]["bytes_down"], "{phase}");
        }
    }
}

/// A plan tells bytes, products, key switches, gates and OTs of what runs, and a run's report says so too.
#[test]
fn a_plan_is_what_runs() {
    let model = model();
    let base = ["--backend", "cpu", "--model", model.to_str().unwrap(), "--json"];
    let exact = |predicted: &Value, report: &Value, what: &str| {
        for (phase, field) in ["offline", "online"].into_iter().flat_map(|p| [(p, "bytes_up"), (p, "bytes_down")]) {
            assert_eq!(predicted[phase][field], report[phase][field], "{what}: {phase} {field}");
        }
        let rounds = |of: &Value| of["online"]["rounds"].as_f64().unwrap();
        assert!((rounds(predicted) / rounds(report) - 1.0).abs() < 0.25, "{what}: {predicted}");
        for field in ["products", "key_switches"] {
            assert_eq!(predicted[field], report["he"][field], "{what}: {field}");
        }
        assert_eq!(
            (&predicted["and_gates"], &predicted["ots"]),
            (&report["garbled"]["and_gates"], &report["ot"]["count"])
        );
    };
    for layers in
        [&["--nonlinear", "garbled"][..], &["--nonlinear", "shared"], &["--nonlinear", "auto", "--link", "lan"]]
    {
        let plan = json(&run(&[&["plan", "--tokens", "6"], &base[..], layers].concat()));
        let report = json(&run(&[&["local", "--text", TEXT], &base[..], layers].concat()));
        exact(&report["predicted"], &report, &layers.join(" "));
        assert_eq!(plan["bucket"], report["inputs"][0]["bucket"]);
        assert!(plan["nodes"].as_array().unwrap().len() > 40);
        // What is chosen by measured costs may differ from run to run.
        if !layers.contains(&"auto") {
            exact(&plan["predicted"], &report, &layers.join(" "));
        }
    }
    one_sentence(&run(&["plan", "--model", "nowhere"]), "nowhere");
}

/// Every variant answers as the oracle of its own graph, says what it did, and sends what was predicted.
#[test]
fn variants_are_exact_and_as_predicted() {
    let model = model();
    let base = ["local", "--backend", "cpu", "--model", model.to_str().unwrap(), "--text", TEXT, "--json"];
    for (options, client_learns) in [
        (&["--merge", "on"][..], "embedding block, which is public"),
        (&["--products", "fhgs"], "embedding block, which is public"),
        (&["--linear", "online", "--products", "fhgs"], "embedding block, which is public"),
        (&["--lookup", "private"], "no weight leaves the server"),
    ] {
        let report = json(&run(&[&base[..], options].concat()));
        assert_eq!(report["inputs"][0]["oracle_equal"], Value::Bool(true), "{options:?}");
        for phase in ["offline", "online"] {
            assert_eq!(report["predicted"][phase]["bytes_up"], report[phase]["bytes_up"], "{options:?} {phase}");
            assert_eq!(report["predicted"][phase]["bytes_down"], report[phase]["bytes_down"], "{options:?} {phase}");
        }
        assert!(report["reveals"].to_string().contains(client_learns), "{options:?}");
        let he = |phase: &str| report["he"][phase]["products"].as_u64().unwrap();
        assert_eq!(he("online") > 0, options.contains(&"fhgs"), "{options:?}");
        assert_eq!(he("offline") > 0, !options.contains(&"--linear"), "{options:?}");
        let reasons = report["nonlinear"]["reasons"].to_string();
        assert_eq!(
            reasons.contains("merged, as the rings have room: scores"),
            options.contains(&"--merge"),
            "{reasons}"
        );
    }
    for (wrong, part) in [
        (["--merge", "maybe"], "no merge maybe"),
        (["--packing", "rows"], "no packing rows"),
        (["--lookup", "hidden"], "no token lookup hidden"),
    ] {
        one_sentence(&run(&[&base[..], &wrong].concat()), part);
    }
}

/// Needs a Vulkan adapter; software (lavapipe) will do.
#[test]
#[cfg(target_os = "linux")]
fn dual_compares_every_operation() {
    let model = model();
    let output = run(&["local", "--backend", "dual", "--model", model.to_str().unwrap(), "--text", TEXT, "--json"]);
    assert!(output.status.success(), "install mesa-vulkan-drivers and libvulkan1: {}", stderr(&output));
    let report = json(&output);
    assert_eq!(
        (report["backend"]["kind"].as_str(), &report["inputs"][0]["oracle_equal"]),
        (Some("dual"), &true.into())
    );
    let ops = report["ops"].as_array().unwrap();
    for needed in
        ["ntt_forward", "ntt_inverse", "expand_matrix", "matmul_plain", "gather", "rotate", "mod_switch", "ring_gemm"]
    {
        assert!(ops.iter().any(|op| op["name"] == needed), "{needed}: {ops:?}");
    }
    for op in ops {
        let count = |field: &str| op[field].as_u64().unwrap();
        assert!(count("gpu") > 0 && count("gpu") == count("cpu") && count("compared") > 0, "{op}");
    }
}

#[test]
fn phases_run_apart_and_a_correlation_serves_once() {
    let (dir, model) = (tempfile::tempdir().unwrap(), model());
    let base =
        ["local", "--backend", "cpu", "--model", model.to_str().unwrap(), "--store", dir.path().to_str().unwrap()];
    let run = |more: &[&str]| run(&[&base[..], more].concat());
    let prepared = json(&run(&["--phase", "offline", "--bucket", "8", "--json"]));
    assert_eq!((prepared["prepared"].as_array().unwrap().len(), &prepared["prepared"][0]["bucket"]), (1, &8.into()));
    let online = ["--phase", "online", "--text", TEXT];
    let report = json(&run(&[&online[..], &["--json"]].concat()));
    assert_eq!((&report["inputs"][0]["oracle_equal"], &report["tables"]), (&true.into(), &"kept".into()));
    let offline = report["offline"]["bytes_down"].as_u64().unwrap();
    assert!(
        offline * 10 < prepared["prepared"][0]["bytes_down"].as_u64().unwrap(),
        "{offline} bytes after the offline phase"
    );
    one_sentence(&run(&[&online[..], &["--quiet"]].concat()), "it holds none");
}

/// What inferences share is sent as planned, and each is spent for itself, in the default packing too.
#[test]
fn inferences_share_ciphertexts_as_planned() {
    let (dir, model) = (tempfile::tempdir().unwrap(), model());
    let store = dir.path().to_str().unwrap();
    let base = ["--backend", "cpu", "--model", model.to_str().unwrap()];
    let columns = ["--count", "2", "--packing", "batch-column", "--json"];
    let plan = json(&run(&[&["plan", "--tokens", "6"], &base[..], &columns].concat()));
    let prepared = json(&run(&[&["offline", "--bucket", "8", "--store", store], &base[..], &columns].concat()));
    let joint = &prepared["joint"][0];
    for field in ["inferences", "bytes_up", "bytes_down"] {
        assert_eq!(plan["joint"][field], joint[field], "{field}");
    }
    assert_eq!((prepared["joint"].as_array().unwrap().len(), prepared["prepared"].as_array().unwrap().len()), (1, 2));
    let reasons = plan["reasons"].to_string();
    assert!(reasons.contains("2 inferences share the ciphertexts of linear layers"), "{reasons}");
    let online = ["local", "--phase", "online", "--store", store, "--text", TEXT, "--text", "so so", "--json"];
    let report = json(&run(&[&online[..], &base].concat()));
    for input in report["inputs"].as_array().unwrap() {
        assert_eq!(input["oracle_equal"], Value::Bool(true));
    }
    assert_eq!(report["tables"], Value::from("kept"));
    let plan = json(&run(&[&["plan", "--tokens", "64", "--count", "64", "--json"], &base[..]].concat()));
    let reasons = plan["reasons"].to_string();
    assert!(reasons.contains("no slots") && reasons.contains("linear layers: "), "{reasons}");
}

#[test]
fn the_oracle_stands_beside_the_float_model() {
    let model = model();
    let args = ["oracle", "--model", model.to_str().unwrap(), "--text", TEXT, "--text", "", "--json"];
    let entries = json(&run(&args));
    let entries = entries.as_array().unwrap();
    assert_eq!((entries.len(), entries[1]["tokens"].as_u64()), (2, Some(2)));
    for entry in entries {
        assert!(entry["largest_difference"].as_f64().unwrap() < 0.1, "{entry}");
        assert_eq!(entry["overflows"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn calibration_is_written_and_used() {
    let copy = spoilt(|_| ());
    let model = copy.path().to_str().unwrap();
    let output = run(&["calibrate", "--model", model, "--samples", "4", "--max-tokens", "16"]);
    assert!(output.status.success() && stdout(&output).contains("headroom"), "{}", stderr(&output));
    assert!(copy.path().join("heliostat.json").is_file());
    assert_eq!(json(&run(&["oracle", "--model", model, "--text", TEXT, "--json"])).as_array().unwrap().len(), 1);
    fs::write(copy.path().join("heliostat.json"), "{}").unwrap();
    one_sentence(&local(copy.path()), "heliostat.json");
}

#[test]
fn doctor_and_version() {
    assert!(stdout(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    assert!(json(&run(&["doctor", "--json"]))["cpu"].is_string());
}

/// Nobody reads: the program ends without a word.
#[test]
#[cfg(unix)]
fn a_broken_pipe_ends_quietly() {
    let model = model();
    let mut child = command(&["oracle", "--model", model.to_str().unwrap(), "--text", TEXT]).spawn().unwrap();
    drop(child.stdout.take());
    let output = finish(child);
    assert_eq!((stderr(&output).as_str(), output.status.code()), ("", Some(141)));
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (model, report) = (model(), dir.path().join("report.json"));
    let args = [
        "local",
        "--backend",
        "cpu",
        "--model",
        model.to_str().unwrap(),
        "--text",
        TEXT,
        "--report",
        report.to_str().unwrap(),
        "--spool",
        dir.path().to_str().unwrap(),
        // So slow that it is still at the manifest when the signal comes.
        "--link",
        "100kbps,1ms",
    ];
    let child = command(&args).spawn().unwrap();
    thread::sleep(Duration::from_secs(3));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    one_sentence(&output, "interrupted");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A disk of 256 KiB under the spool.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs", path]).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("NOT RUN: a full disk under the spool: this user may not mount a file system");
        return;
    }
    let model = model();
    let output = run(&[
        "local",
        "--backend",
        "cpu",
        "--model",
        model.to_str().unwrap(),
        "--text",
        TEXT,
        "--spool",
        path,
        "--quiet",
    ]);
    assert!(Command::new("umount").arg(path).status().unwrap().success());
    one_sentence(&output, "--spool");
}

/// A `heliostat serve` on a free port; ends with the value.
struct Serving {
    child: Arc<Mutex<Child>>,
    address: SocketAddr,
    digest: String,
    log: Arc<Mutex<String>>,
}

impl Serving {
    fn start() -> Self {
        let model = model();
        let args = ["serve", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0", "--backend", "cpu"];
        let mut child = command(&args).spawn().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let logged = log.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut buffer) {
                logged.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let mut text = String::new();
        let mut byte = [0];
        while !text.contains("digest ") || !text.ends_with('\n') {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{text} {}", log.lock().unwrap());
            text.push(byte[0] as char);
        }
        thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}")).to_string()
        };
        let (address, digest) = (field("listening on ").parse().unwrap(), field("digest "));
        Self { child: Arc::new(Mutex::new(child)), address, digest, log }
    }

    /// Waits until the log holds `part`.
    fn logged(&self, part: &str) {
        let start = Instant::now();
        while !self.log.lock().unwrap().contains(part) {
            assert!(start.elapsed() < STUCK, "no {part:?} in: {}", self.log.lock().unwrap());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Up is to the server.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Up,
    Down,
}

type Hook = Box<dyn Fn(Way, u64, &mut [u8]) + Send + Sync>;

/// Takes connections to the server and counts their bytes. The hook sees each piece and how many bytes went before it.
struct Proxy {
    address: SocketAddr,
    counts: Arc<[AtomicU64; 2]>,
}

impl Proxy {
    fn start(server: SocketAddr, hook: Hook) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let (counted, hook) = (counts.clone(), Arc::new(hook));
        thread::spawn(move || {
            for client in listener.incoming() {
                // A server that is gone cuts the client.
                let (client, Ok(server)) = (client.unwrap(), TcpStream::connect(server)) else { continue };
                for (way, mut from, mut to) in
                    [(Way::Up, client.try_clone().unwrap(), server.try_clone().unwrap()), (Way::Down, server, client)]
                {
                    let (counted, hook) = (counted.clone(), hook.clone());
                    thread::spawn(move || {
                        let mut buffer = vec![0; 1 << 16];
                        while let Ok(n @ 1..) = from.read(&mut buffer) {
                            let before = counted[way as usize].fetch_add(n as u64, Ordering::SeqCst);
                            hook(way, before, &mut buffer[..n]);
                            if to.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { address, counts }
    }

    fn count(&self, way: Way) -> u64 {
        self.counts[way as usize].load(Ordering::SeqCst)
    }
}

/// A client in an empty directory, with an empty cache of its own unless `home` is shared.
fn infer(home: &Path, server: SocketAddr, more: &[&str]) -> Child {
    let server = server.to_string();
    let args = ["infer", "--server", &server, "--text", TEXT, "--backend", "cpu"];
    let mut client = command(&[&args, more].concat());
    client.current_dir(home).env("XDG_CACHE_HOME", home.join("cache")).env("HOME", home);
    client.spawn().unwrap()
}

#[test]
fn two_processes_through_a_counting_proxy() {
    let serving = Serving::start();
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(serving.address, Box::new(|_, _, _| ()));
    let report = json(&finish(infer(home.path(), proxy.address, &["--model-digest", &serving.digest, "--json"])));
    let expected = json(&run(&["oracle", "--model", model().to_str().unwrap(), "--text", TEXT, "--json"]));
    let input = &report["inputs"][0];
    assert_eq!(input["outputs"], expected[0]["oracle_outputs"]);
    for field in ["oracle_outputs", "float_outputs", "oracle_equal", "error"] {
        assert!(input[field].is_null(), "{field}");
    }
    for (way, field) in [(Way::Up, "bytes_up"), (Way::Down, "bytes_down")] {
        let sum: u64 = ["setup", "offline", "online"].iter().map(|p| report[*p][field].as_u64().unwrap()).sum();
        let counted = proxy.count(way);
        assert!(sum.abs_diff(counted) * 100 <= counted, "{field}: reported {sum}, counted {counted}");
    }
    serving.logged("finished");
    // The manifest is kept, so that the second connection takes fewer bytes; its digest is asked for.
    let again = json(&finish(infer(home.path(), serving.address, &["--json"])));
    assert_eq!(again["inputs"][0]["outputs"], input["outputs"]);
    // Only the server's address was another one.
    let third = json(&finish(infer(home.path(), serving.address, &["--json"])));
    assert!(third["setup"]["bytes_down"].as_u64().unwrap() * 10 < again["setup"]["bytes_down"].as_u64().unwrap());
    let wrong = "0".repeat(64);
    one_sentence(&finish(infer(home.path(), serving.address, &["--model-digest", &wrong])), "digest");
    // The port is taken.
    let (model, address) = (model(), serving.address.to_string());
    let second = run(&["serve", "--model", model.to_str().unwrap(), "--listen", &address, "--backend", "cpu"]);
    one_sentence(&second, "already in use");
}

#[test]
fn a_server_outlives_strangers_and_clients() {
    let serving = Serving::start();
    let home = tempfile::tempdir().unwrap();
    // A stranger.
    let mut stranger = TcpStream::connect(serving.address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    serving.logged("does not speak the Heliostat protocol");
    // A client that is killed in its offline phase.
    let client: Arc<Mutex<Option<Child>>> = Arc::default();
    let killed = client.clone();
    let kill: Hook = Box::new(move |way, before, _| {
        if way == Way::Up
            && before > 1 << 20
            && let Some(client) = killed.lock().unwrap().as_mut()
        {
            let _ = client.kill();
        }
    });
    let proxy = Proxy::start(serving.address, kill);
    *client.lock().unwrap() = Some(infer(home.path(), proxy.address, &[]));
    let start = Instant::now();
    while client.lock().unwrap().as_mut().unwrap().try_wait().unwrap().is_none() {
        assert!(start.elapsed() < STUCK);
        thread::sleep(Duration::from_millis(10));
    }
    // One byte flipped on the way, each way: after the manifest and the keys, in the offline phase.
    let flip = |flipped: Way| -> Hook {
        let at = if flipped == Way::Up { 8_000_000 } else { 20_000_000 };
        Box::new(move |way, before, bytes| {
            if way == flipped && (before..before + bytes.len() as u64).contains(&at) {
                bytes[(at - before) as usize] ^= 1;
            }
        })
    };
    let proxy = Proxy::start(serving.address, flip(Way::Up));
    one_sentence(&finish(infer(home.path(), proxy.address, &["--quiet"])), "corrupted");
    // With two texts, the second one goes on over a new connection.
    let proxy = Proxy::start(serving.address, flip(Way::Down));
    let output = finish(infer(home.path(), proxy.address, &["--text", "dull", "--json"]));
    one_sentence(&output, "1 of 2 inputs failed");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (first, second) = (&report["inputs"][0], &report["inputs"][1]);
    assert!(first["error"].as_str().unwrap().contains("corrupted") && first["outputs"].is_null(), "{first}");
    assert!(second["error"].is_null() && second["outputs"].is_array(), "{second}");
    assert!(report["notices"].to_string().contains("made anew"), "{}", report["notices"]);
    // It still serves.
    let report = json(&finish(infer(home.path(), serving.address, &["--json"])));
    assert!(report["inputs"][0]["outputs"].is_array());
}

#[test]
fn a_client_whose_server_dies_says_so() {
    let serving = Serving::start();
    let home = tempfile::tempdir().unwrap();
    let server = serving.child.clone();
    let kill: Hook = Box::new(move |way, before, _| {
        if way == Way::Up && before > 1 << 20 {
            let _ = server.lock().unwrap().kill();
        }
    });
    let proxy = Proxy::start(serving.address, kill);
    let output = finish(infer(home.path(), proxy.address, &["--quiet"]));
    one_sentence(&output, "");
    let text = stderr(&output);
    assert!(["gone", "closed", "middle of a frame"].iter().any(|part| text.contains(part)), "{text}");
}
