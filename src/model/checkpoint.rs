//! Import of a BERT encoder from a Hugging Face or sentence-transformers folder.
//!
//! | folder | head | output |
//! |---|---|---|
//! | `BertForSequenceClassification` | pooler (dense, tanh) of `[CLS]`, classifier | label, or values if regression |
//! | `BertForTokenClassification` | classifier of every token | a label a token |
//! | `modules.json` | mean or `[CLS]`, dense layers, normalisation | embedding, or label if the configuration names as many |
//! | plain `BertModel` | pooler of `[CLS]` | embedding |
//!
//! An approximated encoder has `heliostat.approximation` in `config.json`, the estimators' tensors in its layers
//! (`attention.self.estimator.hidden` and `.output`), and the factors and summands of affine maps under the names of LayerNorm.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    Config, DenseActivation, ModelError, Pooling, TokenizerFiles,
    config::Modules,
    embedding::EmbeddingBlock,
    tensors::{Linear, Norm, TensorFiles, Tensors, read},
};

/// What the outputs mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// Logits of one label.
    Classification,
    /// Values.
    Regression,
    /// Logits of one label a token.
    TokenClassification,
    /// A vector.
    Embedding {
        /// Whether the client divides it by its length.
        normalize: bool,
    },
}

/// The weights of one encoder layer.
#[derive(Clone, PartialEq)]
pub struct EncoderLayer {
    /// `d -> d`.
    pub query: Linear,
    /// `d -> d`.
    pub key: Linear,
    /// `d -> d`.
    pub value: Linear,
    /// `d -> d`.
    pub attention_output: Linear,
    /// After the attention's residual.
    pub attention_norm: Norm,
    /// `d -> ffn`.
    pub up: Linear,
    /// `ffn -> d`.
    pub down: Linear,
    /// After the feed-forward's residual.
    pub output_norm: Norm,
    /// What stands for the reciprocal of softmax, of an approximated model. Its norms are then affine maps.
    pub estimator: Option<Estimator>,
}

/// A perceptron of one hidden layer from a number to a number, `sum_m output_m ReLU(hidden_m x + hidden_bias_m) + output_bias`:
/// the softmax estimator's reciprocal.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimator {
    /// Weights of the hidden layer.
    pub hidden: Vec<f32>,
    /// Its biases.
    pub hidden_bias: Vec<f32>,
    /// Weights of the output.
    pub output: Vec<f32>,
    /// Its bias.
    pub output_bias: f32,
}

impl Estimator {
    /// Most hidden units.
    pub const MAX_HIDDEN: usize = 1024;

    /// The perceptron's value.
    pub fn value(&self, x: f64) -> f64 {
        let units = self.hidden.iter().zip(&self.hidden_bias).zip(&self.output);
        let sum: f64 = units.map(|((&w, &b), &o)| f64::from(o) * (f64::from(w) * x + f64::from(b)).max(0.0)).sum();
        sum + f64::from(self.output_bias)
    }
}

/// A dense layer of the head.
#[derive(Clone, PartialEq)]
pub struct HeadLayer {
    /// The map.
    pub linear: Linear,
    /// What follows.
    pub activation: DenseActivation,
}

/// A checkpoint as it was trained, in real numbers. Everything but the embedding block is the server's secret.
pub struct Checkpoint {
    /// The folder's name.
    pub name: String,
    /// Shapes and switches.
    pub config: Config,
    /// Tables and the first LayerNorm.
    pub embedding: EmbeddingBlock,
    /// Encoder layers.
    pub layers: Vec<EncoderLayer>,
    /// Which rows feed the head.
    pub pooling: Pooling,
    /// The head; empty for a pooled embedding without dense layer.
    pub head: Vec<HeadLayer>,
    /// What the outputs mean.
    pub output: OutputKind,
    /// Names of the outputs, if they are logits.
    pub labels: Vec<String>,
    /// Most tokens, `[CLS]` and `[SEP]` included.
    pub max_tokens: usize,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// blake3 of all files that were read.
    pub digest: [u8; 32],
}

impl Checkpoint {
    /// Reads and checks a folder.
    ///
    /// # Errors
    /// A [`ModelError`] whose sentence names the file, field or tensor that is absent, damaged or not supported.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let config = Config::read(dir)?;
        let modules = Modules::read(dir)?;
        let files = TensorFiles::read(dir)?;
        let tokenizer = TokenizerFiles::read(dir)?;
        let mut digest = Digest::new();
        for (name, bytes) in &files.files {
            digest.add(name, bytes);
        }
        for name in ["config.json", "modules.json", "sentence_bert_config.json"] {
            if dir.join(name).is_file() {
                digest.add(name, &read(&dir.join(name))?);
            }
        }
        for (name, bytes) in tokenizer.iter() {
            digest.add(name, bytes);
        }

        let mut tensors = files.open()?;
        if tensors.has("bert.embeddings.word_embeddings.weight") {
            tensors.set_prefix("bert.");
        }
        let embedding = embedding(&tensors, &config)?;
        let layers = (0..config.layers).map(|i| layer(&tensors, &config, i)).collect::<Result<_, _>>()?;
        let pooler = tensors
            .has("pooler.dense.weight")
            .then(|| tensors.linear("pooler.dense", config.hidden, config.hidden, true));
        tensors.set_prefix("");
        let default_labels = || (0..config.label_count).map(|i| format!("LABEL_{i}")).collect::<Vec<_>>();
        let labels = config.labels.clone().unwrap_or_else(default_labels);

        let mut max_tokens = config.positions.min(512);
        let (pooling, head, output, labels) = match (modules, config.architecture.as_str()) {
            (Some(modules), _) => {
                max_tokens = max_tokens.min(modules.max_tokens.unwrap_or(max_tokens)).max(2);
                let mut head = Vec::new();
                let mut width = config.hidden;
                for module in &modules.dense {
                    let folder = dir.join(&module.path);
                    if module.inputs != width {
                        return Err(ModelError::Unsupported {
                            what: format!("{} takes {} features after {width}", module.path, module.inputs),
                        });
                    }
                    let files = TensorFiles::read(&folder)?;
                    for (name, bytes) in &files.files {
                        digest.add(&format!("{}/{name}", module.path), bytes);
                    }
                    let linear = files.open()?.linear("linear", module.inputs, module.outputs, module.bias)?;
                    head.push(HeadLayer { linear, activation: module.activation });
                    digest.add(&format!("{}/config.json", module.path), &read(&folder.join("config.json"))?);
                    width = module.outputs;
                }
                let classifies = !modules.normalize
                    && !head.is_empty()
                    && config.labels.as_ref().is_some_and(|labels| labels.len() == width);
                match (classifies, config.regression) {
                    (true, true) => (modules.pooling, head, OutputKind::Regression, labels),
                    (true, false) => (modules.pooling, head, OutputKind::Classification, labels),
                    _ => (modules.pooling, head, OutputKind::Embedding { normalize: modules.normalize }, Vec::new()),
                }
            }
            (None, "BertForSequenceClassification") => {
                let classifier = tensors.linear("classifier", config.hidden, labels.len(), true)?;
                let mut head = Vec::new();
                if !config.drops_pooler {
                    let pooler = pooler.unwrap_or_else(|| Err(missing("bert.pooler.dense.weight")))?;
                    head.push(HeadLayer { linear: pooler, activation: DenseActivation::Tanh });
                }
                head.push(HeadLayer { linear: classifier, activation: DenseActivation::Identity });
                let kind = if config.regression { OutputKind::Regression } else { OutputKind::Classification };
                (Pooling::First, head, kind, labels)
            }
            (None, "BertForTokenClassification") => {
                let linear = tensors.linear("classifier", config.hidden, labels.len(), true)?;
                let head = vec![HeadLayer { linear, activation: DenseActivation::Identity }];
                (Pooling::Tokens, head, OutputKind::TokenClassification, labels)
            }
            (None, "BertModel") => {
                let Some(pooler) = pooler else {
                    return Err(ModelError::Unsupported {
                        what: "BertModel has neither a pooler nor a modules.json that says how to pool".into(),
                    });
                };
                let head = vec![HeadLayer { linear: pooler?, activation: DenseActivation::Tanh }];
                (Pooling::First, head, OutputKind::Embedding { normalize: false }, Vec::new())
            }
            (None, other) => {
                return Err(ModelError::Unsupported {
                    what: format!(
                        "architecture {other}; BertForSequenceClassification, BertForTokenClassification, BertModel and \
                         sentence-transformers folders are"
                    ),
                });
            }
        };
        let name = dir.canonicalize().ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
        Ok(Self {
            name: name.unwrap_or_else(|| "model".into()),
            config,
            embedding,
            layers,
            pooling,
            head,
            output,
            labels,
            max_tokens,
            tokenizer,
            digest: digest.finish(),
        })
    }
}

fn missing(name: &str) -> ModelError {
    ModelError::Tensor { name: name.into(), reason: "it is missing from the checkpoint".into() }
}

fn embedding(tensors: &Tensors, config: &Config) -> Result<EmbeddingBlock, ModelError> {
    let d = config.hidden;
    let norm = tensors.norm("embeddings.LayerNorm", d)?;
    let block = EmbeddingBlock {
        word: tensors.table("embeddings.word_embeddings.weight", config.vocabulary, d)?,
        position: tensors.table("embeddings.position_embeddings.weight", config.positions, d)?,
        token_type: tensors.table("embeddings.token_type_embeddings.weight", config.types, d)?,
        gain: norm.gain,
        bias: norm.bias,
        epsilon: config.epsilon,
        pad_id: config.pad_id,
        affine: config.approximation.is_some(),
    };
    if !block.is_consistent() {
        return Err(ModelError::Unsupported {
            what: format!("pad_token_id {} is outside the vocabulary", config.pad_id),
        });
    }
    Ok(block)
}

fn layer(tensors: &Tensors, config: &Config, i: usize) -> Result<EncoderLayer, ModelError> {
    let (d, f) = (config.hidden, config.ffn);
    let name = |part: &str| format!("encoder.layer.{i}.{part}");
    let linear = |part: &str, inputs, outputs| tensors.linear(&name(part), inputs, outputs, true);
    Ok(EncoderLayer {
        query: linear("attention.self.query", d, d)?,
        key: linear("attention.self.key", d, d)?,
        value: linear("attention.self.value", d, d)?,
        attention_output: linear("attention.output.dense", d, d)?,
        attention_norm: tensors.norm(&name("attention.output.LayerNorm"), d)?,
        up: linear("intermediate.dense", d, f)?,
        down: linear("output.dense", f, d)?,
        output_norm: tensors.norm(&name("output.LayerNorm"), d)?,
        estimator: config.approximation.as_ref().map(|_| estimator(tensors, i)).transpose()?,
    })
}

fn estimator(tensors: &Tensors, i: usize) -> Result<Estimator, ModelError> {
    let name = |part: &str| format!("encoder.layer.{i}.attention.self.estimator.{part}");
    let hidden = name("hidden.weight");
    let h = tensors.shape(&hidden)?.first().copied().unwrap_or(0);
    if !(1..=Estimator::MAX_HIDDEN).contains(&h) {
        let reason = format!("{h} hidden units are outside 1 to {}", Estimator::MAX_HIDDEN);
        return Err(ModelError::Tensor { name: hidden, reason });
    }
    Ok(Estimator {
        hidden: tensors.get(&hidden, &[h, 1])?,
        hidden_bias: tensors.get(&name("hidden.bias"), &[h])?,
        output: tensors.get(&name("output.weight"), &[1, h])?,
        output_bias: tensors.get(&name("output.bias"), &[1])?[0],
    })
}

/// blake3 over named byte strings.
struct Digest(blake3::Hasher);

impl Digest {
    fn new() -> Self {
        Self(blake3::Hasher::new_derive_key("heliostat checkpoint 1"))
    }

    fn add(&mut self, name: &str, bytes: &[u8]) {
        for part in [name.as_bytes(), bytes] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    fn finish(&self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
