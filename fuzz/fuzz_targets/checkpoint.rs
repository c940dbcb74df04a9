//! A checkpoint folder: configuration, tensors, vocabulary.
#![no_main]

use std::{cell::RefCell, fs};

use heliostat::model::Checkpoint;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new(tempfile::tempdir().unwrap());
}

/// A model small enough for tensors of a few bytes.
const CONFIG: &str = r#"{
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 2, "num_hidden_layers": 1,
    "num_attention_heads": 1, "intermediate_size": 2, "vocab_size": 5, "max_position_embeddings": 8, "type_vocab_size": 2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0
}"#;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    FOLDER.with_borrow(|folder| {
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let (config, tensors) = if choice & 1 == 0 { (data, &[][..]) } else { (CONFIG.as_bytes(), data) };
        write("config.json", config);
        write("model.safetensors", tensors);
        write("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n");
        let _ = Checkpoint::read(folder.path());
    });
});
