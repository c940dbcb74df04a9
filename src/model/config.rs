//! `config.json` and the module list of a sentence-transformers folder, checked against what this program runs.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, de::DeserializeOwned};

use crate::arith::fixed::Activation;

use super::{DenseActivation, ModelError, Pooling, tensors::read};

/// Shapes and switches of a BERT encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Hidden size d.
    pub hidden: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Feed-forward size.
    pub ffn: usize,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// Added to LayerNorm's variance.
    pub epsilon: f64,
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token type table.
    pub types: usize,
    /// Token id of padding.
    pub pad_id: u32,
    /// Names of the labels, if the configuration has them.
    pub labels: Option<Vec<String>>,
    /// Number of labels (2 where the configuration is silent).
    pub label_count: usize,
    /// The class that the checkpoint was saved from.
    pub architecture: String,
    /// Whether the outputs are values, not logits.
    pub regression: bool,
    /// What the encoder computes instead of softmax and LayerNorm, if it was approximated.
    pub approximation: Option<Approximation>,
    /// Whether the head reads `[CLS]` without the pooler's dense layer and tanh.
    pub drops_pooler: bool,
}

/// An encoder of additions, multiplications and ReLU: attention by the softmax estimator, affine maps in the places of
/// LayerNorm (T. Chen et al., THE-X, Findings of ACL 2022). Ranges are those of training, one a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Approximation {
    /// Attention scores, after the division by the root of the head's size.
    pub score_range: Vec<[f64; 2]>,
    /// Sums of a row's numerators, which the estimator's perceptron reads.
    pub sum_range: Vec<[f64; 2]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeliostat {
    approximation: Option<RawApproximation>,
    pooler: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApproximation {
    version: u32,
    softmax: String,
    layer_norm: String,
    score_range: Vec<[f64; 2]>,
    sum_range: Vec<[f64; 2]>,
}

impl Approximation {
    /// The only version of the form.
    pub const VERSION: u32 = 1;

    fn check(raw: RawApproximation, layers: usize, activation: Activation) -> Result<Self, ModelError> {
        let RawApproximation { version, softmax, layer_norm, score_range, sum_range } = raw;
        if version != Self::VERSION {
            return unsupported(format!(
                "heliostat.approximation has version {version}, only {} is read",
                Self::VERSION
            ));
        }
        if (softmax.as_str(), layer_norm.as_str()) != ("estimator", "affine") || activation != Activation::Relu {
            return unsupported(format!(
                "the approximation has softmax {softmax:?}, layer_norm {layer_norm:?} and hidden_act {activation:?}; only \
                 \"estimator\", \"affine\" and \"relu\" are run together"
            ));
        }
        for (name, ranges) in [("score_range", &score_range), ("sum_range", &sum_range)] {
            let sound = ranges.iter().all(|[low, high]| low.is_finite() && high.is_finite() && low < high);
            if ranges.len() != layers || !sound {
                return unsupported(format!("heliostat.approximation.{name} is not {layers} ranges of finite numbers"));
            }
        }
        Ok(Self { score_range, sum_range })
    }
}

#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    vocab_size: usize,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
    problem_type: Option<String>,
    num_labels: Option<usize>,
    id2label: Option<BTreeMap<String, String>>,
    heliostat: Option<RawHeliostat>,
}

/// Parses a JSON file of the model folder.
pub(crate) fn json<T: DeserializeOwned>(dir: &Path, file: &str) -> Result<T, ModelError> {
    serde_json::from_slice(&read(&dir.join(file))?)
        .map_err(|e| ModelError::Malformed { file: file.into(), reason: e.to_string() })
}

fn unsupported<T>(what: String) -> Result<T, ModelError> {
    Err(ModelError::Unsupported { what })
}

impl Config {
    /// Reads and checks `config.json`.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such model folder");
            return Err(ModelError::Io { path: dir.to_path_buf(), source });
        }
        if !dir.join("config.json").is_file() {
            return Err(ModelError::Missing { dir: dir.to_path_buf(), file: "config.json" });
        }
        Self::check(json(dir, "config.json")?)
    }

    fn check(raw: RawConfig) -> Result<Self, ModelError> {
        let architecture = raw.architectures.and_then(|a| a.into_iter().next()).unwrap_or_else(|| "BertModel".into());
        let kind = raw.model_type.as_deref().unwrap_or(if architecture.starts_with("Bert") { "bert" } else { "" });
        if kind != "bert" {
            return unsupported(format!("model_type is {kind:?} ({architecture}), only \"bert\" encoders are run"));
        }
        if let Some(position) = raw.position_embedding_type.filter(|p| p != "absolute") {
            return unsupported(format!("position_embedding_type is {position:?}, only \"absolute\" is"));
        }
        if raw.is_decoder || raw.add_cross_attention {
            return unsupported("is_decoder or add_cross_attention is set, only encoders are run".into());
        }
        let activation = match raw.hidden_act.as_deref().unwrap_or("gelu") {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                return unsupported(format!(
                    "hidden_act is {other:?}; gelu, gelu_new, gelu_pytorch_tanh and relu are supported"
                ));
            }
        };
        let range = |what: &str, value: usize, high: usize| match value {
            v if (1..=high).contains(&v) => Ok(()),
            v => unsupported(format!("{what} is {v}, outside 1 to {high}")),
        };
        range("hidden_size", raw.hidden_size, 8192)?;
        range("num_hidden_layers", raw.num_hidden_layers, 128)?;
        range("num_attention_heads", raw.num_attention_heads, 256)?;
        range("intermediate_size", raw.intermediate_size, 32768)?;
        range("max_position_embeddings", raw.max_position_embeddings, 1 << 20)?;
        range("vocab_size", raw.vocab_size, 1 << 24)?;
        let types = raw.type_vocab_size.unwrap_or(2);
        range("type_vocab_size", types, 1024)?;
        if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return unsupported(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                raw.hidden_size, raw.num_attention_heads
            ));
        }
        let epsilon = raw.layer_norm_eps.unwrap_or(1e-12);
        // The encoder's LayerNorms in fixed point leave epsilon out, which a larger one would show.
        if !(0.0..=1e-4).contains(&epsilon) {
            return unsupported(format!("layer_norm_eps is {epsilon}, outside 0 to 1e-4"));
        }
        let labels = raw.id2label.map(labels).transpose()?;
        let label_count = labels.as_ref().map(Vec::len).or(raw.num_labels).unwrap_or(2);
        range("number of labels", label_count, 65536)?;
        let regression = match raw.problem_type.as_deref() {
            None => label_count == 1,
            Some("single_label_classification") => false,
            Some("regression") => true,
            Some(other) => return unsupported(format!("problem_type is {other:?}")),
        };
        let (approximation, pooler) = raw.heliostat.map_or((None, None), |h| (h.approximation, h.pooler));
        let approximation =
            approximation.map(|a| Approximation::check(a, raw.num_hidden_layers, activation)).transpose()?;
        let drops_pooler = match pooler.as_deref() {
            None => false,
            Some("none") => true,
            Some(other) => return unsupported(format!("heliostat.pooler is {other:?}, only \"none\" is")),
        };
        Ok(Self {
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            ffn: raw.intermediate_size,
            activation,
            epsilon,
            vocabulary: raw.vocab_size,
            positions: raw.max_position_embeddings,
            types,
            pad_id: raw.pad_token_id.unwrap_or(0),
            labels,
            label_count,
            architecture,
            regression,
            approximation,
            drops_pooler,
        })
    }
}

/// `id2label` in order of the ids, which must be 0, 1, ...
fn labels(map: BTreeMap<String, String>) -> Result<Vec<String>, ModelError> {
    (0..map.len())
        .map(|i| {
            map.get(&i.to_string()).cloned().ok_or_else(|| ModelError::Malformed {
                file: "config.json".into(),
                reason: format!("id2label has {} entries but none for {i}", map.len()),
            })
        })
        .collect()
}

/// What a sentence-transformers folder does after the encoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Modules {
    pub pooling: Pooling,
    pub dense: Vec<DenseModule>,
    pub normalize: bool,
    /// Most tokens that the model was made for.
    pub max_tokens: Option<usize>,
}

/// A dense layer in a folder of its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DenseModule {
    pub path: String,
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    pub activation: DenseActivation,
}

impl Modules {
    /// Reads `modules.json`; `None` if there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>, ModelError> {
        #[derive(Deserialize)]
        struct Module {
            #[serde(rename = "type")]
            kind: String,
            path: String,
        }
        if !dir.join("modules.json").is_file() {
            return Ok(None);
        }
        let modules: Vec<Module> = json(dir, "modules.json")?;
        let mut pooling = None;
        let (mut dense, mut normalize) = (Vec::new(), false);
        for (i, module) in modules.iter().enumerate() {
            let inside = Path::new(&module.path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
            if !inside {
                return Err(ModelError::Malformed {
                    file: "modules.json".into(),
                    reason: format!("path {:?} leaves the model folder", module.path),
                });
            }
            let kind = module.kind.rsplit('.').next().unwrap_or_default();
            if normalize {
                return unsupported(format!("module {kind} follows Normalize"));
            }
            match (i, kind, pooling) {
                (0, "Transformer", _) if module.path.is_empty() => {}
                (_, "Dropout", _) => {}
                (1, "Pooling", None) => pooling = Some(read_pooling(dir, &module.path)?),
                (_, "Dense", Some(_)) => dense.push(read_dense(dir, &module.path)?),
                (_, "Normalize", Some(_)) => normalize = true,
                _ => return unsupported(format!("module {} is {} at {:?}", i, module.kind, module.path)),
            }
        }
        let Some(pooling) = pooling else {
            return unsupported("modules.json has no Pooling".into());
        };
        #[derive(Deserialize)]
        struct Limit {
            max_seq_length: Option<usize>,
        }
        const LIMIT: &str = "sentence_bert_config.json";
        let max_tokens = if dir.join(LIMIT).is_file() { json::<Limit>(dir, LIMIT)?.max_seq_length } else { None };
        Ok(Some(Self { pooling, dense, normalize, max_tokens }))
    }
}

fn read_pooling(dir: &Path, path: &str) -> Result<Pooling, ModelError> {
    let file = format!("{path}/config.json");
    let raw: BTreeMap<String, serde_json::Value> = json(dir, &file)?;
    // One name in newer folders, one switch a mode in older ones.
    let mut modes: Vec<String> = raw
        .iter()
        .filter(|(k, v)| k.starts_with("pooling_mode_") && v.as_bool() == Some(true))
        .map(|(k, _)| k["pooling_mode_".len()..].to_string())
        .collect();
    if let Some(mode) = raw.get("pooling_mode").and_then(|m| m.as_str()) {
        modes.push(mode.to_string());
    }
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["cls_token" | "cls"] => Ok(Pooling::First),
        _ => unsupported(format!("{file} asks for pooling by {modes:?}; mean and cls are supported")),
    }
}

fn read_dense(dir: &Path, path: &str) -> Result<DenseModule, ModelError> {
    #[derive(Deserialize)]
    struct Raw {
        in_features: usize,
        out_features: usize,
        bias: Option<bool>,
        activation_function: Option<String>,
    }
    let file = format!("{path}/config.json");
    let raw: Raw = json(dir, &file)?;
    let name = raw.activation_function.unwrap_or_else(|| "Tanh".into());
    let activation = match name.rsplit('.').next().unwrap_or_default() {
        "Identity" => DenseActivation::Identity,
        "Tanh" => DenseActivation::Tanh,
        _ => return unsupported(format!("{file} has activation_function {name:?}; Identity and Tanh are supported")),
    };
    if !(1..=65536).contains(&raw.out_features) || !(1..=65536).contains(&raw.in_features) {
        return unsupported(format!("{file} is a map of {} to {} features", raw.in_features, raw.out_features));
    }
    Ok(DenseModule {
        path: path.into(),
        inputs: raw.in_features,
        outputs: raw.out_features,
        bias: raw.bias.unwrap_or(true),
        activation,
    })
}
