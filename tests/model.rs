//! Real checkpoints: the float model against an independent implementation, the oracle against the float model, and what is
//! said about folders that cannot be loaded.
// Helpers of tests, which the lint does not count as tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use heliostat::{
    arith::ShareModulus,
    model::{
        Calibration, Calibrator, Checkpoint, ClientModel, Edge, Encoded, Exact, Graph, GraphOptions, HEADROOM_BITS,
        Lookup, MergeSet, Model, ModelError, PRIME_RING_AIM, Precision, Prediction, Provenance, Rings, WeightId,
        random_samples,
    },
};
use proptest::prelude::*;
use serde::Deserialize;

/// A folder named by a variable, else a default; `None`, said plainly, if only the default is absent.
fn folder(variable: &str, default: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        assert!(path.is_dir(), "{variable} names {}, which is absent", path.display());
        return Some(path);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(default);
    if path.is_dir() {
        return Some(path);
    }
    println!("NOT RUN: {default} absent ({variable} is not set)");
    None
}

fn model_folder(name: &str) -> Option<PathBuf> {
    Some(folder("HELIOSTAT_MODELS", "../shared/models")?.join(name))
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")
}

fn worst_case(dir: &Path) -> Model {
    Model::worst_case(Checkpoint::read(dir).unwrap(), &Precision::default()).unwrap()
}

#[derive(Deserialize)]
struct Fixture {
    max_tokens: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    pair: Option<String>,
    ids: Vec<u32>,
    types: Vec<u32>,
    values: Vec<f64>,
}

fn matches_fixture(dir: &Path, name: &str, oracle_tolerance: f64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.json"));
    let fixture: Fixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(fixture.cases.len() >= 8);
    let model = worst_case(dir);
    let manifest = model.manifest().to_bytes().unwrap();
    let client = ClientModel::from_manifest(&manifest).unwrap();
    assert_eq!(client.digest(), model.client().digest());
    for case in fixture.cases {
        let text = client.encode(&case.text, case.pair.as_deref(), fixture.max_tokens).unwrap();
        assert_eq!((&text.ids, &text.types), (&case.ids, &case.types), "{:?}", case.text);
        assert_eq!(text.truncated, case.ids.len() == fixture.max_tokens);
        let float = model.float(&text).unwrap();
        let oracle = model.oracle(&text).unwrap();
        assert_eq!(oracle.execution.overflow_count(), 0, "{:?}", case.text);
        for ((float, oracle), expected) in float.rows[0].iter().zip(&oracle.outputs.rows[0]).zip(&case.values) {
            assert!((float - expected).abs() < 1e-4, "{:?}: {float} {expected}", case.text);
            assert!((oracle - expected).abs() < oracle_tolerance, "{:?}: oracle {oracle}, {expected}", case.text);
        }
        // What the server computes and what a client makes of the manifest alone is the same.
        let inputs = client.inputs(&text).unwrap();
        assert_eq!(inputs, model.client().inputs(&text).unwrap());
        let graph = client.graph(text.bucket).unwrap();
        assert_eq!(graph, oracle.graph);
        let outputs = client.decode(&text, &graph, oracle.execution.edge(graph.output)).unwrap();
        assert_eq!(outputs, oracle.outputs);
    }
}

#[test]
fn bert_tiny_matches_the_reference() {
    matches_fixture(&shipped(), "bert-tiny-sst2", 0.05);
}

#[test]
fn minilm_with_a_head_matches_the_reference() {
    if let Some(dir) = model_folder("minilm-sst2") {
        matches_fixture(&dir, "minilm-sst2", 0.1);
    }
}

#[test]
fn minilm_embeddings_match_the_reference() {
    if let Some(dir) = model_folder("all-minilm-l6-v2") {
        matches_fixture(&dir, "all-minilm-l6-v2", 0.01);
    }
}

fn sentences(count: usize) -> Option<Vec<String>> {
    let path = folder("HELIOSTAT_DATA", "../shared/data")?.join("sst2/dev-visible.tsv");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Some(text.lines().skip(1).take(count).map(|l| l.split('\t').next().unwrap_or_default().to_string()).collect())
}

/// Every kind of graph of a bucket: rings, lookups, and of merged boundaries none, each alone, all that fit.
fn options(model: &Model, tokens: usize) -> Vec<GraphOptions> {
    let mut all = Vec::new();
    for (rings, lookup) in [
        (Rings::Pow2, Lookup::Public),
        (Rings::Pow2, Lookup::Private),
        (Rings::Prime, Lookup::Public),
        (Rings::Prime, Lookup::Private),
    ] {
        let options = |merge| GraphOptions { merge, rings, lookup };
        all.push(options(MergeSet::NONE));
        let alone = Graph::merge_candidates(model.spec(), tokens, &options(MergeSet::NONE));
        all.extend(alone.iter().map(|(_, g)| g.options));
        all.push(options(Graph::largest_merge(model.spec(), tokens, rings, lookup).unwrap()));
    }
    all
}

/// Outputs within `tolerance` of the float model's, whatever the options; fewer roundings do not make them worse.
fn options_agree(model: &Model, texts: &[String], tolerance: f64) {
    let encode = |text: &String| model.client().encode(text, None, 32).unwrap();
    let floats: Vec<_> = texts.iter().map(|t| model.float(&encode(t)).unwrap().rows[0].clone()).collect();
    let mut unmerged = 0.0;
    for options in options(model, 32) {
        let mut sum = 0.0;
        for (text, float) in texts.iter().zip(&floats) {
            let text = encode(text);
            let run = model.oracle_for(&text, &options, &mut Exact).unwrap();
            assert_eq!(run.execution.overflow_count(), 0, "{options:?}");
            for (a, b) in run.outputs.rows[0].iter().zip(float) {
                assert!((a - b).abs() < tolerance, "{options:?}: {a} {b}");
                sum += (a - b).abs();
            }
        }
        if options == GraphOptions::default() {
            unmerged = sum;
        }
        assert!(sum < 1.5 * unmerged, "{options:?}: {sum} where the default has {unmerged}");
    }
}

#[test]
fn graphs_of_all_options_agree_with_the_float_model() {
    let Some(texts) = sentences(24) else { return };
    options_agree(&Model::load(&shipped()).unwrap(), &texts, 0.05);
    let Some(dir) = model_folder("all-minilm-l6-v2") else { return };
    options_agree(&Model::load(&dir).unwrap(), &texts[..2], 0.01);
}

#[test]
fn prime_rings_fit_slots_without_digits() {
    let mut models = vec![shipped()];
    models.extend(["minilm-sst2", "all-minilm-l6-v2"].into_iter().filter_map(model_folder));
    for dir in models {
        let model = Model::load(&dir).unwrap();
        for tokens in [8, 32, 128, 512].into_iter().filter(|&n| n <= model.manifest().positions()) {
            let graph =
                model.client().graph_with(tokens, &GraphOptions { rings: Rings::Prime, ..Default::default() }).unwrap();
            let prime = |e: &&Edge| matches!(e.ring, ShareModulus::Prime(_));
            let widest = graph.edges.iter().filter(prime).max_by_key(|e| e.ring.bits()).unwrap();
            assert!(widest.ring.bits() <= PRIME_RING_AIM, "{dir:?}, {tokens}: {widest:?}");
            assert!(graph.edges.iter().filter(prime).all(|e| e.ring.largest() % 32768 == 0));
        }
    }
}

#[test]
fn a_manifest_without_tables_is_enough_for_a_private_lookup() {
    let model = worst_case(&shipped());
    let block = model.manifest().embedding.block().unwrap().clone();
    let public = model.manifest().to_bytes().unwrap();
    let client = model.private_client().unwrap();
    let bytes = client.manifest().to_bytes().unwrap();
    assert!(bytes.len() + block.word.bytes().len() + block.position.bytes().len() < public.len());
    let row = &block.word.bytes()[1000 * 128 * block.word.dtype().size()..][..64];
    assert!(public.windows(64).any(|w| w == row) && !bytes.windows(64).any(|w| w == row));

    let client = ClientModel::from_manifest(&bytes).unwrap();
    assert_eq!(client.digest(), model.private_client().unwrap().digest());
    assert_ne!(client.digest(), model.client().digest());
    let text = client.encode("a fine film", None, 32).unwrap();
    let graph = client.graph(text.bucket).unwrap();
    let options = GraphOptions { lookup: Lookup::Private, ..Default::default() };
    let run = model.oracle_for(&text, &options, &mut Exact).unwrap();
    assert_eq!(run.graph, graph);
    let inputs = client.inputs(&text).unwrap();
    assert_eq!(inputs, model.client().inputs_for(&text, Lookup::Private).unwrap());
    assert_eq!(inputs.embedding.iter().sum::<i64>(), 2 * text.bucket as i64);
    assert_eq!(run.execution.edge(graph.embedding), inputs.embedding);
    assert!(matches!(client.inputs_for(&text, Lookup::Public), Err(ModelError::Input { .. })));
    assert!(model.weights().get(WeightId::Tokens).is_none());
    assert!(model.weights_for(Lookup::Private).unwrap().get(WeightId::Tokens).is_some());
    // Pairs have types of their own.
    let pair = client.encode("a fine film", Some("it is"), 32).unwrap();
    let run = model.oracle_for(&pair, &options, &mut Exact).unwrap();
    assert_eq!(run.execution.overflow_count(), 0);
    let float = model.float(&pair).unwrap();
    assert!(run.outputs.rows[0].iter().zip(&float.rows[0]).all(|(a, b)| (a - b).abs() < 0.1));
    // Tokens outside the tables, and a manifest whose shape is not the description's.
    let wrong = Encoded { ids: vec![30522], types: vec![0], tokens: vec![String::new()], bucket: 8, truncated: false };
    assert!(matches!(client.inputs(&wrong), Err(ModelError::Input { .. })));
    let mut other = client.manifest().clone();
    other.spec.lookup = None;
    assert!(ClientModel::from_manifest(&other.to_bytes().unwrap()).is_err());
}

/// Share of equal labels, or mean cosine, of oracle and float model.
fn agreement(model: &Model, texts: &[String]) -> f64 {
    let mut sum = 0.0;
    for text in texts {
        let text = model.client().encode(text, None, 128).unwrap();
        let oracle = model.oracle(&text).unwrap();
        assert_eq!(oracle.execution.overflow_count(), 0, "{:?}", oracle.execution.overflows);
        sum += match (model.float(&text).unwrap().prediction, oracle.outputs.prediction) {
            (Prediction::Label(a), Prediction::Label(b)) => f64::from(a.index == b.index),
            (Prediction::Embedding(a), Prediction::Embedding(b)) => a.iter().zip(&b).map(|(a, b)| a * b).sum(),
            (a, b) => panic!("{a:?} {b:?}"),
        };
    }
    sum / texts.len() as f64
}

#[test]
fn the_oracle_agrees_with_the_float_model() {
    let Some(texts) = sentences(436) else { return };
    let model = Model::load(&shipped()).unwrap();
    assert!(matches!(model.provenance(), Provenance::Calibrated { .. }));
    let calibrated = agreement(&model, &texts);
    let worst_case = agreement(&worst_case(&shipped()), &texts);
    assert!(calibrated >= 0.99 && worst_case >= 0.99, "{calibrated} {worst_case}");
    for (name, bound) in [("minilm-sst2", 0.99), ("all-minilm-l6-v2", 0.999)] {
        let Some(dir) = model_folder(name) else { return };
        let found = agreement(&Model::load(&dir).unwrap(), &texts[..12]);
        assert!(found >= bound, "{name}: {found}");
    }
}

#[test]
fn calibration_narrows_and_is_bound_to_the_checkpoint() {
    let model = worst_case(&shipped());
    let mut calibrator = Calibrator::new(&model);
    for text in random_samples(&model, 6, 60) {
        calibrator.add(&text).unwrap();
    }
    let calibration = calibrator.finish(HEADROOM_BITS).unwrap();
    assert!(calibration.edges.iter().all(|e| e.headroom_bits >= HEADROOM_BITS as f64), "{:?}", calibration.edges);
    let sum =
        |m: &heliostat::model::ModelSpec| m.layers.iter().map(|l| l.score_log2 + l.attention_squares_log2).sum::<i32>();
    assert!(sum(&calibration.spec) < sum(model.spec()));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heliostat.json");
    calibration.write(&path).unwrap();
    let digest = model.checkpoint().digest;
    assert_eq!(Calibration::read(&path, &digest).unwrap(), calibration);
    let loaded = Model::load_with(&shipped(), Some(&path)).unwrap();
    assert_eq!(loaded.spec(), &calibration.spec);
    assert!(matches!(Calibration::read(&path, &[0; 32]), Err(ModelError::Calibration { .. })));
    let mut other = calibration.clone();
    other.spec.ffn = 256;
    other.write(&path).unwrap();
    assert!(matches!(Model::load_with(&shipped(), Some(&path)), Err(ModelError::Calibration { .. })));
    std::fs::write(&path, b"{").unwrap();
    assert!(matches!(Model::load_with(&shipped(), Some(&path)), Err(ModelError::Calibration { .. })));
    // What overflows gets its proven magnitudes back, and nothing else does.
    let (mut wide, positions) = (calibration.clone(), model.manifest().positions());
    assert!(wide.widen(model.spec(), positions, &["layer1.up".into(), "layer0.scores".into()]).unwrap());
    let mut expected = calibration.spec.clone();
    let worst = model.spec();
    expected.layers[1].up_log2 = worst.layers[1].up_log2;
    expected.layers[0].query_log2 = worst.layers[0].query_log2;
    expected.layers[0].key_log2 = worst.layers[0].key_log2;
    expected.layers[0].score_log2 = worst.layers[0].score_log2;
    assert_eq!(wide.spec, expected);
    let ring = |c: &Calibration| c.edges.iter().find(|e| e.name == "layer1.up").unwrap().ring_bits;
    assert!(ring(&wide) > ring(&calibration));
    assert!(!wide.widen(model.spec(), positions, &["layer1.up".into()]).unwrap());
    let all: Vec<String> = calibration.edges.iter().map(|e| e.name.clone()).collect();
    wide.widen(model.spec(), positions, &all).unwrap();
    assert_eq!(&wide.spec, model.spec());
    // Nothing to calibrate with.
    assert!(matches!(Calibrator::new(&model).finish(1), Err(ModelError::Input { .. })));
}

/// A copy of the shipped folder in which a test breaks something.
fn broken(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(shipped()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let _ = std::fs::remove_file(dir.path().join("heliostat.json"));
    change(dir.path());
    match Model::load(dir.path()) {
        Ok(_) => panic!("a broken folder was loaded"),
        Err(e) => {
            let sentence = e.to_string();
            assert!(!sentence.contains('\n'), "{sentence}");
            sentence
        }
    }
}

fn edit(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

fn set(dir: &Path, key: &str, value: serde_json::Value) {
    edit(dir.join("config.json"), |bytes| {
        let mut config: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        config[key] = value;
        *bytes = serde_json::to_vec(&config).unwrap();
    });
}

/// Overwrites the first number of a tensor, or its stored type.
fn tensor(dir: &Path, name: &str, number: Option<[u8; 2]>, dtype: Option<&str>) {
    edit(dir.join("model.safetensors"), |bytes| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = std::str::from_utf8(&bytes[8..8 + header]).unwrap();
        let at = text.find(&format!("\"{name}\"")).unwrap();
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        let start = json[name]["data_offsets"][0].as_u64().unwrap() as usize + 8 + header;
        if let Some(dtype) = dtype {
            let place = 8 + at + text[at..].find("\"BF16\"").unwrap();
            bytes[place..place + 6].copy_from_slice(dtype.as_bytes());
        }
        if let Some(number) = number {
            bytes[start..start + 2].copy_from_slice(&number);
        }
    });
}

#[test]
fn broken_folders_are_refused_in_one_sentence() {
    let mentions = |sentence: String, words: &[&str]| {
        for word in words {
            assert!(sentence.contains(word), "{sentence:?} does not mention {word}");
        }
    };
    let remove = |name: &'static str| broken(|dir| std::fs::remove_file(dir.join(name)).unwrap());
    mentions(remove("config.json"), &["config.json"]);
    mentions(remove("model.safetensors"), &["model.safetensors"]);
    mentions(remove("vocab.txt"), &["vocab.txt", "tokenizer.json"]);
    mentions(
        broken(|dir| std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap()),
        &["pytorch_model.bin", "convert"],
    );
    mentions(
        broken(|dir| edit(dir.join("model.safetensors"), |b| b.truncate(b.len() - 1000))),
        &["model.safetensors", "truncated"],
    );
    mentions(broken(|dir| edit(dir.join("model.safetensors"), |b| b.truncate(5))), &["model.safetensors"]);
    mentions(broken(|dir| edit(dir.join("model.safetensors"), |b| b[7] = 0xff)), &["model.safetensors"]);
    mentions(broken(|dir| set(dir, "model_type", "roberta".into())), &["roberta"]);
    mentions(broken(|dir| set(dir, "architectures", serde_json::json!(["BertForMaskedLM"]))), &["BertForMaskedLM"]);
    mentions(broken(|dir| set(dir, "hidden_act", "silu".into())), &["hidden_act", "silu"]);
    mentions(broken(|dir| set(dir, "position_embedding_type", "relative_key".into())), &["relative_key"]);
    mentions(broken(|dir| set(dir, "num_attention_heads", 3.into())), &["num_attention_heads"]);
    mentions(broken(|dir| set(dir, "num_hidden_layers", 3.into())), &["encoder.layer.2", "missing"]);
    mentions(broken(|dir| set(dir, "intermediate_size", 256.into())), &["intermediate.dense.weight", "shape"]);
    mentions(broken(|dir| set(dir, "layer_norm_eps", 0.5.into())), &["layer_norm_eps"]);
    mentions(broken(|dir| edit(dir.join("config.json"), |b| b.truncate(40))), &["config.json"]);
    let name = "bert.encoder.layer.1.output.dense.weight";
    mentions(broken(|dir| tensor(dir, name, Some([0xc0, 0x7f]), None)), &[name, "NaN"]);
    mentions(broken(|dir| tensor(dir, name, Some([0x80, 0x7f]), None)), &[name, "inf"]);
    mentions(broken(|dir| tensor(dir, name, None, Some("\"I16\" "))), &[name, "I16"]);
    mentions(
        broken(|dir| tensor(dir, "bert.embeddings.word_embeddings.weight", Some([0xc0, 0x7f]), None)),
        &["word_embeddings", "finite"],
    );
    mentions(broken(|dir| edit(dir.join("vocab.txt"), |b| b.clear())), &["vocab.txt"]);
    mentions(broken(|dir| std::fs::remove_dir_all(dir).unwrap()), &["no such model folder"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Flipped and cut bytes of the text files and of the tensors' header: an error or a model, never a panic.
    #[test]
    fn damaged_files_never_panic(file in 0usize..3, at: prop::sample::Index, flip in 1u8.., cut: bool) {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(shipped()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let name = ["config.json", "heliostat.json", "model.safetensors"][file];
        edit(dir.path().join(name), |bytes| {
            let at = at.index(bytes.len().min(6000));
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        });
        if let Err(e) = Model::load(dir.path()) {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }
}

#[test]
fn a_damaged_manifest_is_refused_or_harmless() {
    let model = worst_case(&shipped());
    let bytes = model.manifest().to_bytes().unwrap();
    let back = heliostat::model::Manifest::from_bytes(&bytes).unwrap();
    assert!(&back == model.manifest());
    assert_eq!(back.digest().unwrap(), model.client().digest());
    for cut in [0, 3, 5, 6, 13, 14, 200, bytes.len() / 2, bytes.len() - 1] {
        assert!(ClientModel::from_manifest(&bytes[..cut]).is_err(), "{cut}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(ClientModel::from_manifest(&longer).is_err());
    // Every byte of magic, version, lengths and header: an error, or another digest and no panic.
    for at in (0..14).chain((14..1600).step_by(31)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x11;
        if let Ok(client) = ClientModel::from_manifest(&flipped) {
            assert_ne!(client.digest(), model.client().digest());
        }
    }
}
