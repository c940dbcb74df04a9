//! An unfinished run on disk: one file, written whole or not at all.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{Device, Tensor, Var};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{
    ApproxError,
    bert::{Bert, Dense, Form, Parameter, Part},
    evaluate::Score,
    export::TensorMap,
    ops::Bounds,
    optimiser::AdamW,
    report::StageReport,
};
use crate::report::file::write_whole;

/// The file's name in the folder of the result.
pub const FILE: &str = "unfinished-run.safetensors";
const KEY: &str = "run";

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Digest of settings, model and data.
    pub fingerprint: String,
    /// Index of the stage.
    pub stage: usize,
    /// Whether the stage's operations have been replaced.
    pub entered: bool,
    /// Updates made in it.
    pub step: usize,
    /// Updates made in all stages.
    pub total: usize,
    /// Updates since the optimiser's memory was cleared.
    pub moments: u64,
    /// Seconds so far, of the run and of its stage.
    pub seconds: (f64, f64),
    /// Tokens trained on, and the seconds that it took.
    pub tokens: (u64, f64),
    /// Which operations the model uses.
    pub form: Form,
    /// Whether layers of the head are followed by tanh.
    pub head: Vec<bool>,
    /// Ranges of scores and sums of each layer.
    pub bounds: Vec<(Bounds, Bounds)>,
    /// Metrics before anything was changed.
    pub original: Option<Score>,
    /// Metrics right after the stage's replacement.
    pub replaced: Option<Score>,
    /// Metrics of the best evaluation of the last stage.
    pub best: Option<Score>,
    /// Sum and number of losses of the stage's last tenth.
    pub losses: (f64, usize),
    /// Finished stages.
    pub stages: Vec<StageReport>,
}

/// The best parameters of the last stage, one vector a parameter.
pub type Best = Vec<Vec<f32>>;

fn failed(path: &Path) -> impl Fn(&str) -> ApproxError + '_ {
    move |reason| ApproxError::Run { path: path.to_path_buf(), reason: reason.into() }
}

/// Writes the state.
///
/// # Errors
/// A disk that is full.
pub fn save(
    path: &Path,
    position: &Position,
    model: &Bert,
    optimiser: &AdamW,
    best: Option<&Best>,
    word: bool,
) -> Result<(), ApproxError> {
    let mut map = TensorMap::default();
    for (i, (p, (m, v))) in model.parameters.iter().zip(&optimiser.moments).enumerate() {
        let shape = p.var.dims();
        map.add(format!("value.{}", p.name), shape, &p.var.flatten_all()?.to_vec1::<f32>()?);
        map.add(format!("mean.{}", p.name), shape, m);
        map.add(format!("square.{}", p.name), shape, v);
        if let Some(best) = best.and_then(|b| b.get(i)) {
            map.add(format!("best.{}", p.name), shape, best);
        }
    }
    for (i, t) in model.estimators.iter().enumerate() {
        map.add(format!("estimator.{i}"), t.dims(), &t.to_vec1::<f32>()?);
    }
    if word {
        map.add("word", model.word.dims(), &model.word.flatten_all()?.to_vec1::<f32>()?);
    }
    let json = serde_json::to_string(position).map_err(|e| failed(path)(&e.to_string()))?;
    Ok(write_whole(path, &map.to_bytes(Some(HashMap::from([(KEY.to_string(), json)])))?)?)
}

/// Reads a state into a model that was made from the same checkpoint; `None` if there is no file.
///
/// # Errors
/// A damaged file, or one of another run.
pub fn load(
    path: &Path,
    fingerprint: &str,
    model: &mut Bert,
) -> Result<Option<(Position, AdamW, Option<Best>)>, ApproxError> {
    if !path.is_file() {
        return Ok(None);
    }
    let failed = failed(path);
    let bytes = fs::read(path).map_err(|e| failed(&e.to_string()))?;
    let damaged = |e: &dyn std::fmt::Display| failed(&format!("it is damaged ({e}): delete it to start anew"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
    let json = header.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(|| damaged(&"no position"))?;
    let position: Position = serde_json::from_str(json).map_err(|e| damaged(&e))?;
    if position.fingerprint != fingerprint {
        return Err(failed(
            "this folder has an unfinished run with other settings, model or data: continue with those, or delete the file",
        ));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
    let get = |name: &str| -> Result<(Vec<usize>, Vec<f32>), ApproxError> {
        let view = file.tensor(name).map_err(|e| damaged(&format!("{name}: {e}")))?;
        let numbers = view.data().as_chunks::<4>().0.iter().map(|&c| f32::from_le_bytes(c)).collect();
        Ok((view.shape().to_vec(), numbers))
    };
    // The head may have another form than the checkpoint's.
    model.parameters.retain(|p| p.part != Part::Head);
    model.head.clear();
    for (i, &tanh) in position.head.iter().enumerate() {
        let at = model.parameters.len();
        for part in ["weight", "bias"] {
            let name = format!("head.{i}.{part}");
            let (shape, _) = get(&format!("value.{name}"))?;
            let var = Var::zeros(shape, candle_core::DType::F32, &Device::Cpu)?;
            model.parameters.push(Parameter { name, var, part: Part::Head });
        }
        model.head.push(Dense { weight: at, bias: at + 1, tanh });
    }
    let (mut moments, mut best) = (Vec::new(), Vec::new());
    for p in &model.parameters {
        let (shape, values) = get(&format!("value.{}", p.name))?;
        p.var.set(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        moments.push((get(&format!("mean.{}", p.name))?.1, get(&format!("square.{}", p.name))?.1));
        if position.best.is_some() {
            best.push(get(&format!("best.{}", p.name))?.1);
        }
    }
    for (i, t) in model.estimators.iter_mut().enumerate() {
        let (shape, values) = get(&format!("estimator.{i}"))?;
        *t = Tensor::from_vec(values, shape, &Device::Cpu)?;
    }
    if file.tensor("word").is_ok() {
        let (shape, values) = get("word")?;
        model.word = Tensor::from_vec(values, shape, &Device::Cpu)?;
    }
    model.form.clone_from(&position.form);
    let best = position.best.is_some().then_some(best);
    let step = position.moments;
    Ok(Some((position, AdamW { moments, step }, best)))
}
