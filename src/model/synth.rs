//! Model folders with random weights, to measure what shapes cost. Answers of such a model mean nothing.
//!
//! A folder is a `BertForSequenceClassification` with two labels, in the form that [`super::Checkpoint::read`] imports:
//! `config.json`, `model.safetensors` in bf16, `vocab.txt`, `tokenizer_config.json`. Linear maps have deviation
//! `0.55 / sqrt(inputs)`, that of BERT-base as it is initialised (0.02 at 768 inputs), so that scores, activations and
//! residuals stay of the order of 1 behind every LayerNorm. Each tensor has a public generator of its own, named by seed and
//! tensor, and is written as it is drawn.

use std::{
    fs::{self, File},
    io::{BufWriter, Error, ErrorKind, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use half::bf16;
use rand_core::Rng;
use serde_json::json;

use super::ModelError;
use crate::arith::sample::xof;

/// Rows of the word table, as BERT's.
const VOCABULARY: usize = 30522;
/// Rows of the position table.
const POSITIONS: usize = 512;

/// Sizes of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 2 layers of 128, 2 heads, 512 in the feed-forward.
    Tiny,
    /// 4 layers of 512, 8 heads, 2048.
    Small,
    /// 12 layers of 768, 12 heads, 3072.
    Base,
    /// 24 layers of 1024, 16 heads, 4096.
    Large,
}

impl Shape {
    /// Layers, hidden size, heads, size of the feed-forward.
    fn sizes(self) -> (usize, usize, usize, usize) {
        match self {
            Self::Tiny => (2, 128, 2, 512),
            Self::Small => (4, 512, 8, 2048),
            Self::Base => (12, 768, 12, 3072),
            Self::Large => (24, 1024, 16, 4096),
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("bert-").unwrap_or(text) {
            "tiny" => Ok(Self::Tiny),
            "small" => Ok(Self::Small),
            "base" => Ok(Self::Base),
            "large" => Ok(Self::Large),
            _ => Err(format!("no shape {text}: there are bert-tiny, small, base and large")),
        }
    }
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// Numbers in the checkpoint.
    pub parameters: u64,
    /// Bytes of the checkpoint.
    pub bytes: u64,
}

/// How the numbers of a tensor are distributed.
#[derive(Clone, Copy)]
enum Kind {
    /// Around 0 with this deviation.
    Around(f32),
    /// A LayerNorm's gain: around 1 with deviation 0.05.
    Gain,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Makes the folder `dir`, whole or not at all, with `layers` instead of the shape's own number; equal seeds give equal
/// folders.
///
/// # Errors
/// A folder that is there and not empty, or a disk that is full.
pub fn synthesise(dir: &Path, shape: Shape, layers: Option<usize>, seed: u64) -> Result<Synthetic, ModelError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source: Error| ModelError::Io { path, source }
    };
    if dir.exists() && fs::read_dir(dir).map_err(failed(dir))?.next().is_some() {
        let there = Error::new(ErrorKind::AlreadyExists, "it is there and not empty, and is not overwritten");
        return Err(failed(dir)(there));
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from);
    fs::create_dir_all(&parent).map_err(failed(&parent))?;
    let made = tempfile::Builder::new().prefix(".heliostat-synth-").tempdir_in(&parent).map_err(failed(&parent))?;
    let (own_layers, hidden, heads, ffn) = shape.sizes();
    let layers = layers.unwrap_or(own_layers);
    let tensors = tensors(layers, hidden, ffn);
    let config = json!({
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "synthetic_seed": seed,
    });
    let tokenizer = json!({
        "do_lower_case": true, "tokenizer_class": "BertTokenizer", "model_max_length": POSITIONS,
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    });
    let path = |name: &str| made.path().join(name);
    for (name, text) in [
        ("config.json", format!("{config:#}\n")),
        ("tokenizer_config.json", format!("{tokenizer:#}\n")),
        ("vocab.txt", vocabulary()),
    ] {
        fs::write(path(name), text).map_err(failed(dir))?;
    }
    let bytes = write_tensors(&path("model.safetensors"), &tensors, seed).map_err(failed(dir))?;
    #[cfg(unix)]
    {
        // Temporary folders are for their owner's eyes only; a model is a folder like any other.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(made.path(), mode).map_err(failed(dir))?;
    }
    // An empty folder gives way.
    let _ = fs::remove_dir(dir);
    fs::rename(made.path(), dir).map_err(failed(dir))?;
    Ok(Synthetic { parameters: tensors.iter().map(|t| t.len() as u64).sum(), bytes })
}

/// The tensors of a checkpoint, in the order of the file.
fn tensors(layers: usize, hidden: usize, ffn: usize) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize], kind| all.push(Tensor { name, shape: shape.to_vec(), kind });
    let embeddings = "bert.embeddings";
    for (table, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)] {
        add(format!("{embeddings}.{table}_embeddings.weight"), &[rows, hidden], Kind::Around(0.04));
    }
    let norm = |name: String| [(format!("{name}.weight"), Kind::Gain), (format!("{name}.bias"), Kind::Around(0.05))];
    for (name, kind) in norm(format!("{embeddings}.LayerNorm")) {
        add(name, &[hidden], kind);
    }
    let linear = |name: String, inputs: usize, outputs: usize| {
        let deviation = 0.55 / (inputs as f32).sqrt();
        [
            (format!("{name}.weight"), vec![outputs, inputs], Kind::Around(deviation)),
            (format!("{name}.bias"), vec![outputs], Kind::Around(0.02)),
        ]
    };
    for i in 0..layers {
        let at = |part: &str| format!("bert.encoder.layer.{i}.{part}");
        for (part, inputs, outputs) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", hidden, ffn),
            ("output.dense", ffn, hidden),
        ] {
            for (name, shape, kind) in linear(at(part), inputs, outputs) {
                add(name, &shape, kind);
            }
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            for (name, kind) in norm(at(part)) {
                add(name, &[hidden], kind);
            }
        }
    }
    for (name, outputs) in [("bert.pooler.dense", hidden), ("classifier", 2)] {
        for (name, shape, kind) in linear(name.into(), hidden, outputs) {
            add(name, &shape, kind);
        }
    }
    all
}

/// Writes a safetensors file, drawing as it goes; gives its length.
fn write_tensors(path: &Path, tensors: &[Tensor], seed: u64) -> std::io::Result<u64> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for tensor in tensors {
        let start = end;
        end += 2 * tensor.len() as u64;
        let entry = json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        let mut key = blake3::Hasher::new_derive_key("heliostat synthetic weights 1");
        key.update(&seed.to_le_bytes()).update(tensor.name.as_bytes());
        let mut rng = xof(key.finalize().as_bytes(), 0, 0).ok_or(ErrorKind::InvalidInput)?;
        for _ in 0..tensor.len() {
            let x = match tensor.kind {
                Kind::Around(deviation) => deviation * bell(&mut rng),
                Kind::Gain => 1.0 + 0.05 * bell(&mut rng),
            };
            file.write_all(&bf16::from_f32(x).to_le_bytes())?;
        }
    }
    file.into_inner()?.sync_all()?;
    Ok(8 + header.len() as u64 + end)
}

/// Mean 0, deviation 1, at most 3.47: the sum of four uniform numbers, which is the same on every platform.
fn bell(rng: &mut impl Rng) -> f32 {
    const DEVIATION: f32 = 37836.8;
    let word = rng.next_u64();
    let sum: i32 = (0..4).map(|i| (word >> (16 * i) & 0xffff) as i32).sum();
    (sum - 131_070) as f32 / DEVIATION
}

/// A vocabulary of BERT's length: special tokens at their places, single characters, and pieces of two and three letters, so
/// that any text of ASCII characters has tokens.
fn vocabulary() -> String {
    let letters = || 'a'..='z';
    let mut words: Vec<String> = vec!["[PAD]".into()];
    words.extend((0..99).map(|i| format!("[unused{i}]")));
    words.extend(["[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from));
    words.extend(('!'..='~').filter(|c| !c.is_ascii_uppercase()).map(String::from));
    words.extend(letters().chain('0'..='9').map(|c| format!("##{c}")));
    let pairs: Vec<String> = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}"))).collect();
    let triples = || pairs.iter().flat_map(|ab| letters().map(move |c| format!("{ab}{c}")));
    words.extend(pairs.iter().cloned());
    words.extend(pairs.iter().map(|p| format!("##{p}")));
    words.extend(triples());
    words.extend(triples().map(|t| format!("##{t}")));
    words.truncate(VOCABULARY);
    words.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    #[test]
    fn a_synthetic_model_is_loaded_and_runs_within_its_rings() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("new/one"), dir.path().join("two"));
        let made = synthesise(&one, Shape::Tiny, Some(1), 7).unwrap();
        fs::create_dir(&two).unwrap();
        assert_eq!(synthesise(&two, Shape::Tiny, Some(1), 7).unwrap(), made);
        let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
        assert!(weights(&one) == weights(&two));
        assert_eq!(made.bytes, weights(&one).len() as u64);
        // Word, position and type tables, one layer, pooler, classifier.
        let tables = (30522 + 512 + 2) * 128 + 2 * 128;
        let layer = 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128 + 4 * 128;
        assert_eq!(made.parameters, tables + layer + 128 * 128 + 128 + 2 * 128 + 2);
        let again = synthesise(&one, Shape::Tiny, None, 7).unwrap_err().to_string();
        assert!(again.contains("not overwritten"), "{again}");
        synthesise(&dir.path().join("three"), Shape::Tiny, Some(1), 8).unwrap();
        assert!(weights(&one) != weights(&dir.path().join("three")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing temporary is left");

        let model = Model::load(&one).unwrap();
        let text = model.client().encode("Any text, of any words!", None, 64).unwrap();
        assert!(text.tokens.iter().all(|t| t != "[UNK]"), "{:?}", text.tokens);
        let run = model.oracle(&text).unwrap();
        assert_eq!(run.execution.overflow_count(), 0);
        let (fixed, float) = (run.outputs.rows.concat(), model.float(&text).unwrap().rows.concat());
        for (a, b) in fixed.iter().zip(&float) {
            assert!((a - b).abs() < 0.05, "{fixed:?} {float:?}");
        }
    }

    #[test]
    fn shapes_have_names_and_the_vocabulary_its_length() {
        assert_eq!(
            ["bert-tiny", "small", "bert-base", "large"].map(|s| s.parse::<Shape>().unwrap()),
            [Shape::Tiny, Shape::Small, Shape::Base, Shape::Large]
        );
        assert!("huge".parse::<Shape>().unwrap_err().contains("bert-tiny, small"));
        let words = vocabulary();
        assert_eq!(words.lines().count(), VOCABULARY);
        assert_eq!(words.lines().nth(101), Some("[CLS]"));
        let distinct: std::collections::HashSet<_> = words.lines().collect();
        assert_eq!(distinct.len(), VOCABULARY);
        let base: usize = tensors(12, 768, 3072).iter().map(Tensor::len).sum();
        assert_eq!(base, 109_483_778);
    }

    #[test]
    fn bells_have_mean_0_and_deviation_1() {
        let mut rng = xof(&[1; 32], 0, 0).unwrap();
        let draws: Vec<f32> = (0..100_000).map(|_| bell(&mut rng)).collect();
        let mean = draws.iter().sum::<f32>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
