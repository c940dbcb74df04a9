//! A model of one narrow layer with random weights, for tests that run whole inferences in many settings.

use std::{fs, path::Path};

use rand_core::Rng;
use serde_json::json;

use crate::{arith::sample::SecureRng, model::Model};

const HIDDEN: usize = 32;
const FFN: usize = 48;

/// Loads it from a folder that goes at once.
pub(super) fn small_model() -> Model {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    Model::load(dir.path()).unwrap()
}

fn write(dir: &Path) {
    let mut words: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from).into();
    words.extend(('a'..='z').map(String::from));
    words.extend(('a'..='z').map(|c| format!("##{c}")));
    let config = json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": HIDDEN,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": FFN, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "max_position_embeddings": 16, "type_vocab_size": 2, "vocab_size": words.len(),
        "pad_token_id": 0, "id2label": {"0": "no", "1": "yes"},
    });
    let tokenizer = json!({"do_lower_case": true, "tokenizer_class": "BertTokenizer", "model_max_length": 16});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("vocab.txt"), words.join("\n")).unwrap();

    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut rng = SecureRng::from_seed([3; 32]);
    // Uniform around a centre.
    let mut add = |name: String, shape: &[usize], centre: f32, deviation: f32| {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            let x = (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 12f32.sqrt();
            data.extend_from_slice(&(centre + deviation * x).to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    };
    for (table, rows) in [("word", words.len()), ("position", 16), ("token_type", 2)] {
        add(format!("bert.embeddings.{table}_embeddings.weight"), &[rows, HIDDEN], 0.0, 0.04);
    }
    let at = "bert.encoder.layer.0";
    for name in ["bert.embeddings", &format!("{at}.attention.output"), &format!("{at}.output")] {
        add(format!("{name}.LayerNorm.weight"), &[HIDDEN], 1.0, 0.05);
        add(format!("{name}.LayerNorm.bias"), &[HIDDEN], 0.0, 0.05);
    }
    for (name, inputs, outputs) in [
        (format!("{at}.attention.self.query"), HIDDEN, HIDDEN),
        (format!("{at}.attention.self.key"), HIDDEN, HIDDEN),
        (format!("{at}.attention.self.value"), HIDDEN, HIDDEN),
        (format!("{at}.attention.output.dense"), HIDDEN, HIDDEN),
        (format!("{at}.intermediate.dense"), HIDDEN, FFN),
        (format!("{at}.output.dense"), FFN, HIDDEN),
        ("bert.pooler.dense".into(), HIDDEN, HIDDEN),
        ("classifier".into(), HIDDEN, 2),
    ] {
        add(format!("{name}.weight"), &[outputs, inputs], 0.0, 0.55 / (inputs as f32).sqrt());
        add(format!("{name}.bias"), &[outputs], 0.0, 0.02);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(dir.join("model.safetensors"), file).unwrap();
}
