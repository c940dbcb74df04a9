//! A trained model as a checkpoint folder of the form that it was read in.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::{
    ApproxError,
    batch::Task,
    bert::{Bert, Dense, FormActivation},
    estimator,
    ops::Bounds,
};
use crate::{
    model::{Approximation, Checkpoint, ModelError, Pooling},
    report::file::write_whole,
};

/// Files that are taken over as they are.
const COPIED: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// What a folder needs besides the model.
pub struct Meaning<'a> {
    /// The task of the head.
    pub task: Task,
    /// Names of the labels, of classification.
    pub labels: &'a [String],
    /// Ranges of an approximated model: scores and sums of each layer.
    pub ranges: Option<&'a [(Bounds, Bounds)]>,
}

/// Tensors by name: sizes and little-endian bytes.
#[derive(Default)]
pub struct TensorMap(BTreeMap<String, (Vec<usize>, Vec<u8>)>);

impl TensorMap {
    /// Adds a tensor of single precision.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], values: &[f32]) {
        self.0.insert(name.into(), (shape.to_vec(), values.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }

    /// The bytes of a `safetensors` file.
    ///
    /// # Errors
    /// What the format's library reports.
    pub fn to_bytes(
        &self,
        metadata: Option<std::collections::HashMap<String, String>>,
    ) -> Result<Vec<u8>, ApproxError> {
        let failed = |e: safetensors::SafeTensorError| ApproxError::Unsuitable(format!("cannot write tensors: {e}"));
        let views = self
            .0
            .iter()
            .map(|(name, (shape, bytes))| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
        let views = views.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        safetensors::serialize(views, metadata).map_err(failed)
    }
}

/// Writes the folder; `config.json`, without which it is none, comes last.
///
/// # Errors
/// A disk that is full, or a model between two forms.
pub fn write(
    out: &Path,
    source: &Path,
    checkpoint: &Checkpoint,
    model: &Bert,
    meaning: &Meaning<'_>,
) -> Result<(), ApproxError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ApproxError::Model(ModelError::Io { path, source })
    };
    fs::create_dir_all(out).map_err(failed(out))?;
    for name in COPIED {
        let from = source.join(name);
        if from.is_file() {
            write_whole(&out.join(name), &fs::read(&from).map_err(failed(&from))?)?;
        }
    }
    let modules = source.join("modules.json").is_file();
    let mut tensors = encoder(model, if modules { "" } else { "bert." })?;
    let values = |i: usize| -> Result<Vec<f32>, ApproxError> { Ok(model.parameters[i].var.flatten_all()?.to_vec1()?) };
    if modules {
        let kinds = |i: usize, kind: &str, path: String| json!({ "idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}") });
        let mut list = vec![kinds(0, "Transformer", String::new()), kinds(1, "Pooling", "1_Pooling".into())];
        let pooling = out.join("1_Pooling");
        fs::create_dir_all(&pooling).map_err(failed(&pooling))?;
        let mean = model.pooling == Pooling::Mean;
        let config = json!({
            "word_embedding_dimension": model.hidden(),
            "pooling_mode_cls_token": !mean,
            "pooling_mode_mean_tokens": mean,
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
        });
        write_whole(&pooling.join("config.json"), &bytes(&config)?)?;
        for (i, dense) in model.head.iter().enumerate() {
            let path = format!("{}_Dense", i + 2);
            let folder = out.join(&path);
            fs::create_dir_all(&folder).map_err(failed(&folder))?;
            let (outputs, inputs) = model.parameters[dense.weight].var.dims2()?;
            let mut map = TensorMap::default();
            map.add("linear.weight", &[outputs, inputs], &values(dense.weight)?);
            map.add("linear.bias", &[outputs], &values(dense.bias)?);
            write_whole(&folder.join("model.safetensors"), &map.to_bytes(None)?)?;
            let activation = if dense.tanh { "activation.Tanh" } else { "linear.Identity" };
            let config = json!({
                "in_features": inputs,
                "out_features": outputs,
                "bias": true,
                "activation_function": format!("torch.nn.modules.{activation}"),
            });
            write_whole(&folder.join("config.json"), &bytes(&config)?)?;
            list.push(kinds(i + 2, "Dense", path));
        }
        write_whole(&out.join("modules.json"), &bytes(&Value::Array(list))?)?;
    } else {
        let mut add = |name: &str, dense: &Dense| -> Result<(), ApproxError> {
            let (outputs, inputs) = model.parameters[dense.weight].var.dims2()?;
            tensors.add(format!("{name}.weight"), &[outputs, inputs], &values(dense.weight)?);
            tensors.add(format!("{name}.bias"), &[outputs], &values(dense.bias)?);
            Ok(())
        };
        match &model.head[..] {
            [pooler, classifier] if pooler.tanh && !classifier.tanh => {
                add("bert.pooler.dense", pooler)?;
                add("classifier", classifier)?;
            }
            [classifier] if !classifier.tanh => add("classifier", classifier)?,
            _ => {
                return Err(ApproxError::Unsuitable("the head is neither a classifier nor one behind a pooler".into()));
            }
        }
    }
    write_whole(&out.join("model.safetensors"), &tensors.to_bytes(None)?)?;
    let config = configuration(source, checkpoint, model, meaning, modules)?;
    Ok(write_whole(&out.join("config.json"), &bytes(&config)?)?)
}

fn bytes(value: &Value) -> Result<Vec<u8>, ApproxError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| ApproxError::Unsuitable(format!("cannot write JSON: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The encoder under the names of Hugging Face.
fn encoder(model: &Bert, prefix: &str) -> Result<TensorMap, ApproxError> {
    let mut map = TensorMap::default();
    let d = model.hidden();
    let values = |i: usize| -> Result<Vec<f32>, ApproxError> { Ok(model.parameters[i].var.flatten_all()?.to_vec1()?) };
    let affine = model.form.estimator;
    if model.form.blend.iter().any(|&b| b != if affine { 1.0 } else { 0.0 }) {
        return Err(ApproxError::Unsuitable("the model is between two forms: let the run finish".into()));
    }
    // Bias before the normalisation, then its two rows.
    let norm = |i: usize| -> Result<[Vec<f32>; 3], ApproxError> {
        let p = values(i)?;
        let row = |r: usize| p[r * d..(r + 1) * d].to_vec();
        Ok(if affine { [row(0), row(3), row(4)] } else { [row(0), row(1), row(2)] })
    };
    let name = |part: &str| format!("{prefix}embeddings.{part}");
    let [bias, gain, shift] = norm(model.embedding_norm)?;
    map.add(name("word_embeddings.weight"), model.word.dims(), &model.word.flatten_all()?.to_vec1::<f32>()?);
    let positions = values(model.positions)?;
    map.add(name("position_embeddings.weight"), &[positions.len() / d, d], &positions);
    // The checkpoint has no bias here: the types carry it.
    let types: Vec<f32> = values(model.types)?.iter().enumerate().map(|(i, x)| x + bias[i % d]).collect();
    map.add(name("token_type_embeddings.weight"), &[types.len() / d, d], &types);
    map.add(name("LayerNorm.weight"), &[d], &gain);
    map.add(name("LayerNorm.bias"), &[d], &shift);
    for (i, l) in model.layers.iter().enumerate() {
        let name = |part: &str| format!("{prefix}encoder.layer.{i}.{part}");
        let (qkv, qkv_bias) = (values(l.qkv)?, values(l.qkv_bias)?);
        for (j, part) in ["query", "key", "value"].into_iter().enumerate() {
            let part = name(&format!("attention.self.{part}"));
            map.add(format!("{part}.weight"), &[d, d], &qkv[j * d * d..(j + 1) * d * d]);
            map.add(format!("{part}.bias"), &[d], &qkv_bias[j * d..(j + 1) * d]);
        }
        if affine {
            let e = estimator::unflatten(&model.estimators[i].to_vec1::<f32>()?);
            let part = |part: &str| name(&format!("attention.self.estimator.{part}"));
            let h = e.hidden.len();
            map.add(part("hidden.weight"), &[h, 1], &e.hidden);
            map.add(part("hidden.bias"), &[h], &e.hidden_bias);
            map.add(part("output.weight"), &[1, h], &e.output);
            map.add(part("output.bias"), &[1], &[e.output_bias]);
        }
        let up_bias = values(l.up_bias)?;
        let f = up_bias.len();
        map.add(name("intermediate.dense.weight"), &[f, d], &values(l.up)?);
        map.add(name("intermediate.dense.bias"), &[f], &up_bias);
        for (part, weight, inputs, at) in
            [("attention.output", l.mix, d, l.attention_norm), ("output", l.down, f, l.output_norm)]
        {
            let [bias, gain, shift] = norm(at)?;
            map.add(name(&format!("{part}.dense.weight")), &[d, inputs], &values(weight)?);
            map.add(name(&format!("{part}.dense.bias")), &[d], &bias);
            map.add(name(&format!("{part}.LayerNorm.weight")), &[d], &gain);
            map.add(name(&format!("{part}.LayerNorm.bias")), &[d], &shift);
        }
    }
    Ok(map)
}

/// The source's configuration with what training changed.
fn configuration(
    source: &Path,
    checkpoint: &Checkpoint,
    model: &Bert,
    meaning: &Meaning<'_>,
    modules: bool,
) -> Result<Value, ApproxError> {
    let path = source.join("config.json");
    let malformed = |reason: String| ApproxError::Run { path: path.clone(), reason };
    let read = fs::read(&path).map_err(|e| malformed(e.to_string()))?;
    let mut config: Value = serde_json::from_slice(&read).map_err(|e| malformed(e.to_string()))?;
    let Some(fields) = config.as_object_mut() else { return Err(malformed("it is no object".into())) };
    let names = match meaning.task {
        Task::Classification => meaning.labels.to_vec(),
        Task::Regression => vec!["score".into()],
    };
    let numbered = |i: usize, name: &String| (i.to_string(), json!(name));
    let by_number: serde_json::Map<String, Value> = names.iter().enumerate().map(|(i, n)| numbered(i, n)).collect();
    let by_name: serde_json::Map<String, Value> =
        names.iter().enumerate().map(|(i, n)| (n.clone(), json!(i))).collect();
    let problem = match meaning.task {
        Task::Classification => "single_label_classification",
        Task::Regression => "regression",
    };
    fields.insert("id2label".into(), Value::Object(by_number));
    fields.insert("label2id".into(), Value::Object(by_name));
    fields.insert("num_labels".into(), json!(names.len()));
    fields.insert("problem_type".into(), json!(problem));
    fields.insert("torch_dtype".into(), json!("float32"));
    if !modules {
        fields.insert("architectures".into(), json!(["BertForSequenceClassification"]));
    }
    if model.form.activation == FormActivation::Relu {
        fields.insert("hidden_act".into(), json!("relu"));
    }
    fields.remove("heliostat");
    let mut own = serde_json::Map::new();
    if let Some(ranges) = meaning.ranges {
        let pairs = |pick: fn(&(Bounds, Bounds)) -> Bounds| -> Vec<[f32; 2]> {
            ranges.iter().map(|r| [pick(r).low, pick(r).high]).collect()
        };
        let approximation = json!({
            "version": Approximation::VERSION,
            "softmax": "estimator",
            "layer_norm": "affine",
            "score_range": pairs(|r| r.0),
            "sum_range": pairs(|r| r.1),
        });
        own.insert("approximation".into(), approximation);
    }
    if !modules && model.head.len() == 1 {
        own.insert("pooler".into(), json!("none"));
    }
    if !own.is_empty() {
        fields.insert("heliostat".into(), Value::Object(own));
    }
    debug_assert_eq!(checkpoint.config.hidden, model.hidden());
    Ok(config)
}
