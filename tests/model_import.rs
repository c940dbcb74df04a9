//! Small made-up checkpoints of every form that is imported: each loads, and its oracle agrees with its float model.
// Helpers of tests, which the lint does not count as tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeMap, path::Path};

use half::{bf16, f16};
use heliostat::model::{ClientModel, Encoded, Model, ModelError, OutputKind, Outputs, Pooling, Prediction};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

const HIDDEN: usize = 16;
const FFN: usize = 24;
const VOCABULARY: [&str; 12] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sun", "mirror", "field", "##s", "turns", "bright", "!"];

/// Numbers between -1 and 1, always the same for one seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn linear(t: &mut Tensors, n: &mut Numbers, name: &str, inputs: usize, outputs: usize) {
    let scale = (1.5 / inputs as f32).sqrt();
    t.insert(
        format!("{name}.weight"),
        (vec![outputs, inputs], (0..inputs * outputs).map(|_| scale * n.next()).collect()),
    );
    t.insert(format!("{name}.bias"), (vec![outputs], (0..outputs).map(|_| 0.2 * n.next()).collect()));
}

fn norm(t: &mut Tensors, n: &mut Numbers, name: &str, [gain, bias]: [&str; 2]) {
    t.insert(format!("{name}.{gain}"), (vec![HIDDEN], (0..HIDDEN).map(|_| 1.0 + 0.3 * n.next()).collect()));
    t.insert(format!("{name}.{bias}"), (vec![HIDDEN], (0..HIDDEN).map(|_| 0.3 * n.next()).collect()));
}

/// An encoder of two layers; `prefix` in front of every name, LayerNorm's tensors by the given names.
fn encoder(prefix: &str, names: [&str; 2]) -> Tensors {
    let mut n = Numbers(7);
    let mut t = Tensors::new();
    for (table, rows) in [("word", VOCABULARY.len()), ("position", 40), ("token_type", 2)] {
        let values = (0..rows * HIDDEN).map(|_| n.next()).collect();
        t.insert(format!("embeddings.{table}_embeddings.weight"), (vec![rows, HIDDEN], values));
    }
    norm(&mut t, &mut n, "embeddings.LayerNorm", names);
    for i in 0..2 {
        let layer = format!("encoder.layer.{i}");
        for part in ["query", "key", "value"] {
            linear(&mut t, &mut n, &format!("{layer}.attention.self.{part}"), HIDDEN, HIDDEN);
        }
        linear(&mut t, &mut n, &format!("{layer}.attention.output.dense"), HIDDEN, HIDDEN);
        norm(&mut t, &mut n, &format!("{layer}.attention.output.LayerNorm"), names);
        linear(&mut t, &mut n, &format!("{layer}.intermediate.dense"), HIDDEN, FFN);
        linear(&mut t, &mut n, &format!("{layer}.output.dense"), FFN, HIDDEN);
        norm(&mut t, &mut n, &format!("{layer}.output.LayerNorm"), names);
    }
    t.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

fn save(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = match dtype {
                Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = bytes.iter().map(|(n, s, b)| (n.clone(), TensorView::new(dtype, s.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn config(architecture: &str, extra: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture], "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": FFN, "hidden_act": "gelu", "max_position_embeddings": 40,
        "vocab_size": VOCABULARY.len(), "layer_norm_eps": 1e-12
    });
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn write(dir: &Path, file: &str, value: &Value) {
    let path = dir.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

fn folder(config: &Value, tensors: &Tensors, dtype: Dtype) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config.json", config);
    std::fs::write(dir.path().join("vocab.txt"), VOCABULARY.join("\n")).unwrap();
    save(&dir.path().join("model.safetensors"), tensors, dtype);
    dir
}

/// Loads, runs a few texts through oracle and float model, and returns the last text's outputs.
fn run(dir: &Path) -> (Model, Encoded, Outputs) {
    let model = Model::load(dir).unwrap_or_else(|e| panic!("{e}"));
    let client = ClientModel::from_manifest(&model.manifest().to_bytes().unwrap()).unwrap();
    let mut last = None;
    for (text, pair) in
        [("", None), ("Sun", None), ("mirrors", Some("field")), ("the bright SUN turns mirrors !", None)]
    {
        let text = client.encode(text, pair, 32).unwrap();
        let (oracle, float) = (model.oracle(&text).unwrap(), model.float(&text).unwrap());
        assert_eq!(oracle.execution.overflow_count(), 0, "{:?}", oracle.execution.overflows);
        assert_eq!(oracle.outputs.rows.len(), float.rows.len());
        for (a, b) in oracle.outputs.rows.iter().flatten().zip(float.rows.iter().flatten()) {
            assert!((a - b).abs() < 0.05, "{a} {b}");
        }
        last = Some((text, oracle.outputs));
    }
    let (text, outputs) = last.unwrap();
    (model, text, outputs)
}

#[test]
fn sequence_classification_with_labels() {
    let mut tensors = encoder("bert.", ["weight", "bias"]);
    linear(&mut tensors, &mut Numbers(1), "bert.pooler.dense", HIDDEN, HIDDEN);
    linear(&mut tensors, &mut Numbers(2), "classifier", HIDDEN, 3);
    let labels = json!({"id2label": {"0": "dim", "1": "lit", "2": "dark"}, "hidden_act": "gelu_new"});
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let dir = folder(&config("BertForSequenceClassification", labels.clone()), &tensors, dtype);
        let (model, _, outputs) = run(dir.path());
        assert_eq!((model.manifest().output, model.spec().pooling), (OutputKind::Classification, Pooling::First));
        let Prediction::Label(label) = outputs.prediction else { panic!() };
        assert_eq!(label.name, ["dim", "lit", "dark"][label.index]);
        assert!(label.score > 1.0 / 3.0 && label.score < 1.0);
    }
}

#[test]
fn a_single_output_is_a_regression_and_relu_runs() {
    let mut tensors = encoder("bert.", ["gamma", "beta"]);
    linear(&mut tensors, &mut Numbers(1), "bert.pooler.dense", HIDDEN, HIDDEN);
    linear(&mut tensors, &mut Numbers(2), "classifier", HIDDEN, 1);
    let extra = json!({"id2label": {"0": "LABEL_0"}, "hidden_act": "relu"});
    let dir = folder(&config("BertForSequenceClassification", extra), &tensors, Dtype::F32);
    let (_, _, outputs) = run(dir.path());
    assert!(matches!(outputs.prediction, Prediction::Values(v) if v.len() == 1));
}

#[test]
fn token_classification_has_a_label_a_token() {
    let mut tensors = encoder("bert.", ["weight", "bias"]);
    linear(&mut tensors, &mut Numbers(2), "classifier", HIDDEN, 4);
    let extra = json!({"id2label": {"0": "O", "1": "A", "2": "B", "3": "C"}});
    let dir = folder(&config("BertForTokenClassification", extra), &tensors, Dtype::F32);
    let (model, text, outputs) = run(dir.path());
    assert_eq!(model.spec().pooling, Pooling::Tokens);
    assert_eq!(outputs.rows.len(), text.len());
    let Prediction::Tokens(tokens) = outputs.prediction else { panic!() };
    let words: Vec<&str> = tokens.iter().map(|(t, _)| t.as_str()).collect();
    assert_eq!(words, ["[CLS]", "[UNK]", "bright", "sun", "turns", "mirror", "##s", "!", "[SEP]"]);
}

#[test]
fn a_plain_encoder_with_a_pooler_is_an_embedding() {
    let mut tensors = encoder("", ["weight", "bias"]);
    let dir = folder(&config("BertModel", json!({})), &tensors, Dtype::F32);
    assert!(matches!(Model::load(dir.path()), Err(ModelError::Unsupported { .. })), "no pooler, no modules.json");
    linear(&mut tensors, &mut Numbers(1), "pooler.dense", HIDDEN, HIDDEN);
    let dir = folder(&config("BertModel", json!({})), &tensors, Dtype::F32);
    let (_, _, outputs) = run(dir.path());
    assert!(matches!(outputs.prediction, Prediction::Embedding(v) if v.len() == HIDDEN));
}

fn sentence_transformer(pooling: &str, dense: &[(&str, usize, usize)], normalize: bool) -> tempfile::TempDir {
    let dir = folder(&config("BertModel", json!({})), &encoder("", ["weight", "bias"]), Dtype::F32);
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let mut modules = vec![module("", "Transformer"), module("1_Pooling", "Pooling")];
    write(dir.path(), "1_Pooling/config.json", &json!({format!("pooling_mode_{pooling}"): true}));
    for (i, (activation, inputs, outputs)) in dense.iter().enumerate() {
        let path = format!("{}_Dense", i + 2);
        modules.push(module(&path, "Dense"));
        let activation = format!("torch.nn.modules.{activation}");
        let value =
            json!({"in_features": inputs, "out_features": outputs, "bias": true, "activation_function": activation});
        write(dir.path(), &format!("{path}/config.json"), &value);
        let mut tensors = Tensors::new();
        linear(&mut tensors, &mut Numbers(i as u64), "linear", *inputs, *outputs);
        // An identity that enlarges: the ring of the layer after it must hold it.
        tensors.get_mut("linear.weight").unwrap().1.iter_mut().for_each(|w| *w *= 3.0);
        save(&dir.path().join(&path).join("model.safetensors"), &tensors, Dtype::F32);
    }
    if normalize {
        modules.push(module("9_Normalize", "Normalize"));
    }
    write(dir.path(), "modules.json", &Value::Array(modules));
    dir
}

#[test]
fn sentence_transformers_pool_map_and_normalise() {
    let (_, _, outputs) = run(sentence_transformer("mean_tokens", &[], true).path());
    let Prediction::Embedding(v) = outputs.prediction else { panic!() };
    assert!((v.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12);

    let dense = [("activation.Tanh", HIDDEN, 10), ("linear.Identity", 10, 7)];
    let (model, _, outputs) = run(sentence_transformer("cls_token", &dense, false).path());
    assert_eq!(model.spec().pooling, Pooling::First);
    assert!(matches!(outputs.prediction, Prediction::Embedding(v) if v.len() == 7));

    let dense = [("linear.Identity", HIDDEN, 10), ("linear.Identity", 10, 3)];
    run(sentence_transformer("mean_tokens", &dense, true).path());
}

#[test]
fn sentence_transformers_of_another_form_are_refused() {
    let load = |dir: tempfile::TempDir| Model::load(dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(load(sentence_transformer("max_tokens", &[], false)).contains("max_tokens"));
    assert!(load(sentence_transformer("mean_tokens", &[("activation.ReLU", HIDDEN, 4)], false)).contains("ReLU"));
    assert!(load(sentence_transformer("mean_tokens", &[("linear.Identity", 9, 4)], false)).contains("9 features"));
    let dir = sentence_transformer("mean_tokens", &[], false);
    write(dir.path(), "modules.json", &json!([{"path": "../..", "type": "x.Transformer"}]));
    assert!(load(dir).contains("leaves the model folder"));
}

#[test]
fn weights_in_several_files() {
    let tensors = encoder("bert.", ["weight", "bias"]);
    let mut head = Tensors::new();
    linear(&mut head, &mut Numbers(2), "classifier", HIDDEN, 2);
    let mut whole = tensors.clone();
    whole.extend(head.clone());
    let single = folder(&config("BertForTokenClassification", json!({})), &whole, Dtype::F32);
    let split = folder(&config("BertForTokenClassification", json!({})), &tensors, Dtype::F32);
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    std::fs::rename(split.path().join("model.safetensors"), split.path().join(first)).unwrap();
    save(&split.path().join(second), &head, Dtype::F32);
    let map: BTreeMap<&str, &str> =
        tensors.keys().map(|k| (k.as_str(), first)).chain(head.keys().map(|k| (k.as_str(), second))).collect();
    write(split.path(), "model.safetensors.index.json", &json!({"weight_map": map}));
    assert_eq!(run(single.path()).2, run(split.path()).2);
    let outside = json!({"weight_map": {"a": "../model.safetensors"}});
    write(split.path(), "model.safetensors.index.json", &outside);
    assert!(matches!(Model::load(split.path()), Err(ModelError::Malformed { .. })));
}
