//! The tensors of a checkpoint: one `safetensors` file or several with an index.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{
    ModelError,
    embedding::{Table, TableType},
    matmul::transpose,
};

/// A linear map with its bias, transposed from the checkpoint's layout: `weight` is `inputs x outputs`, row-major.
#[derive(Clone, PartialEq)]
pub struct Linear {
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// `inputs x outputs`.
    pub weight: Vec<f32>,
    /// One number an output.
    pub bias: Vec<f32>,
}

/// Gain and bias of a LayerNorm.
#[derive(Clone, PartialEq)]
pub struct Norm {
    /// Factor of each feature.
    pub gain: Vec<f32>,
    /// Added to each feature.
    pub bias: Vec<f32>,
}

/// The bytes of the weight files of one folder.
pub(crate) struct TensorFiles {
    /// Name and bytes, in the order of their names.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Reads a file of a model folder.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_path_buf(), source })
}

impl TensorFiles {
    /// Reads `model.safetensors` or the files that `model.safetensors.index.json` names.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        const SINGLE: &str = "model.safetensors";
        const INDEX: &str = "model.safetensors.index.json";
        if dir.join(SINGLE).is_file() {
            return Ok(Self { files: vec![(SINGLE.into(), read(&dir.join(SINGLE))?)] });
        }
        if dir.join(INDEX).is_file() {
            #[derive(Deserialize)]
            struct Index {
                weight_map: BTreeMap<String, String>,
            }
            let malformed = |reason: String| ModelError::Malformed { file: INDEX.into(), reason };
            let index: Index =
                serde_json::from_slice(&read(&dir.join(INDEX))?).map_err(|e| malformed(e.to_string()))?;
            let names: BTreeSet<String> = index.weight_map.into_values().collect();
            let mut files = Vec::new();
            for name in names {
                // An index may name files of its own folder only.
                if Path::new(&name).file_name() != Some(name.as_ref()) || !name.ends_with(".safetensors") {
                    return Err(malformed(format!(
                        "it names {name:?}, which is not a safetensors file of this folder"
                    )));
                }
                let bytes = read(&dir.join(&name))?;
                files.push((name, bytes));
            }
            return Ok(Self { files });
        }
        for file in ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"] {
            if dir.join(file).is_file() {
                return Err(ModelError::Pickle { dir: dir.to_path_buf(), file });
            }
        }
        Err(ModelError::Missing { dir: dir.to_path_buf(), file: SINGLE })
    }

    /// Parses the headers. Every length is checked against the file's before a tensor is read.
    pub fn open(&self) -> Result<Tensors<'_>, ModelError> {
        let mut files = Vec::new();
        for (name, bytes) in &self.files {
            let malformed = |e: safetensors::SafeTensorError| ModelError::Malformed {
                file: name.clone(),
                reason: format!("it is truncated or not a safetensors file ({e})"),
            };
            files.push(SafeTensors::deserialize(bytes).map_err(malformed)?);
        }
        Ok(Tensors { files, prefix: String::new() })
    }
}

/// Named tensors with their checks.
pub(crate) struct Tensors<'a> {
    files: Vec<SafeTensors<'a>>,
    prefix: String,
}

impl Tensors<'_> {
    /// Names are looked up behind `prefix` from now on.
    pub fn set_prefix(&mut self, prefix: &str) {
        self.prefix = prefix.into();
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        let name = format!("{}{name}", self.prefix);
        self.files.iter().any(|f| f.tensor(&name).is_ok())
    }

    /// Sizes of a tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        let name = format!("{}{name}", self.prefix);
        let view = self.files.iter().find_map(|f| f.tensor(&name).ok());
        let absent = || ModelError::Tensor { name: name.clone(), reason: "it is missing from the checkpoint".into() };
        Ok(view.ok_or_else(absent)?.shape().to_vec())
    }

    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(TableType, &[u8]), ModelError> {
        let name = format!("{}{name}", self.prefix);
        let error = |reason: String| ModelError::Tensor { name: name.clone(), reason };
        let Some(view) = self.files.iter().find_map(|f| f.tensor(&name).ok()) else {
            return Err(error("it is missing from the checkpoint".into()));
        };
        let dtype = match view.dtype() {
            Dtype::F32 => TableType::F32,
            Dtype::F16 => TableType::F16,
            Dtype::BF16 => TableType::Bf16,
            other => return Err(error(format!("numbers of type {other:?} are not supported; use F32, F16 or BF16"))),
        };
        if view.shape() != shape {
            return Err(error(format!("its shape is {:?}, where the configuration asks for {shape:?}", view.shape())));
        }
        // `view` borrows from the file's bytes, not from itself.
        Ok((dtype, view.data()))
    }

    /// A tensor of finite numbers of the given shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let (dtype, bytes) = self.bytes(name, shape)?;
        let values = dtype.decode(bytes);
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => Err(ModelError::Tensor {
                name: format!("{}{name}", self.prefix),
                reason: format!("element {i} is {}", values[i]),
            }),
        }
    }

    /// A table in its stored form.
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Table, ModelError> {
        let (dtype, bytes) = self.bytes(name, &[rows, cols])?;
        Table::new(rows, cols, dtype, bytes.to_vec()).ok_or_else(|| ModelError::Tensor {
            name: format!("{}{name}", self.prefix),
            reason: "it has numbers that are not finite".into(),
        })
    }

    /// `name.weight` (`outputs x inputs`) and `name.bias`; a bias that is allowed to be absent counts as 0.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear, ModelError> {
        let weight = self.get(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = if bias { self.get(&format!("{name}.bias"), &[outputs])? } else { vec![0.0; outputs] };
        Ok(Linear { inputs, outputs, weight: transpose(&weight, outputs, inputs), bias })
    }

    /// `name.weight` and `name.bias`, or `gamma` and `beta` as in the oldest checkpoints.
    pub fn norm(&self, name: &str, features: usize) -> Result<Norm, ModelError> {
        let (gain, bias) = if self.has(&format!("{name}.gamma")) { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            gain: self.get(&format!("{name}.{gain}"), &[features])?,
            bias: self.get(&format!("{name}.{bias}"), &[features])?,
        })
    }
}
