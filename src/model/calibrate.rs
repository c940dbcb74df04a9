//! Calibration: magnitudes narrowed from what is proven to what sample texts show, with headroom.
//!
//! The oracle runs every sample in the worst-case description, so that nothing wraps while it is being measured. Padding rows
//! count like any other, because they flow through the same rings; of the scores only the unmasked ones count. Where the
//! narrowed description then overflows, [`Calibration::widen`] puts the magnitudes responsible back.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    BUCKETS, Encoded, Graph, GraphOptions, LayerSpec, Model, ModelError, ModelSpec, Op, OracleRun, tensors::read,
};

/// The file beside a checkpoint that calibration writes and loading reads.
pub const CALIBRATION_FILE: &str = "heliostat.json";

/// Version of the file.
const VERSION: u32 = 1;

/// Largest file that is read.
const FILE_LIMIT: usize = 16 << 20;

/// Bits added to the largest magnitude seen; sums of squares get twice as many.
pub const HEADROOM_BITS: u32 = 1;

/// Bits taken from the smallest sum of squares seen, which costs a few gates a row only.
pub const LEAST_SQUARES_HEADROOM_BITS: u32 = 4;

/// A calibrated description, bound to a checkpoint by its digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Version of the form.
    pub version: u32,
    /// Digest of the checkpoint, in hexadecimal.
    pub checkpoint: String,
    /// Number of sample texts.
    pub samples: usize,
    /// Bits added to the largest magnitudes seen.
    pub headroom_bits: u32,
    /// The description.
    pub spec: ModelSpec,
    /// What was seen on every edge.
    pub edges: Vec<EdgeReport>,
}

/// What calibration saw on an edge, and what it has room for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeReport {
    /// `layer.name`.
    pub name: String,
    /// Bits of the ring, in the bucket where it is widest.
    pub ring_bits: u32,
    /// Fraction bits in that bucket.
    pub frac: u32,
    /// Largest magnitude seen, as a real number.
    pub observed: f64,
    /// Bits between that and the ring's signed range, in the bucket where there are fewest.
    pub headroom_bits: f64,
}

/// Largest and smallest magnitude of an edge's real values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    least: f64,
    largest: f64,
}

/// Gathers the ranges of a model's edges.
pub struct Calibrator<'a> {
    model: &'a Model,
    ranges: BTreeMap<String, Range>,
    samples: usize,
}

impl<'a> Calibrator<'a> {
    /// For a model with a worst-case description.
    pub fn new(model: &'a Model) -> Self {
        Self { model, ranges: BTreeMap::new(), samples: 0 }
    }

    /// Runs one sample.
    ///
    /// # Errors
    /// [`ModelError::Input`] if the text does not belong to the model.
    pub fn add(&mut self, text: &Encoded) -> Result<(), ModelError> {
        let run = self.model.oracle(text)?;
        self.observe(&run, text.len());
        Ok(())
    }

    /// Takes the ranges of a run of this model's oracle on a text of `len` real tokens.
    pub fn observe(&mut self, run: &OracleRun, len: usize) {
        self.samples += 1;
        let masked =
            |id| run.graph.nodes.iter().any(|n| n.output == id && matches!(n.op, Op::Product { mask: Some(_), .. }));
        for (i, edge) in run.graph.edges.iter().enumerate() {
            let id = super::EdgeId(i);
            let skip = if masked(id) { len } else { edge.cols };
            let values = run.execution.edge(id).chunks(edge.cols.max(1)).flat_map(|row| &row[..skip.min(row.len())]);
            let (mut least, mut largest) = (u64::MAX, 0);
            for x in values {
                let x = x.unsigned_abs();
                (least, largest) = (least.min(x), largest.max(x));
            }
            let real = |x: u64| x as f64 * libm::exp2(-(edge.frac as f64));
            let seen = Range { least: real(least), largest: real(largest) };
            self.ranges
                .entry(edge.name.clone())
                .and_modify(|r| {
                    r.least = r.least.min(seen.least);
                    r.largest = r.largest.max(seen.largest);
                })
                .or_insert(seen);
        }
    }

    /// Narrows the model's description to what was seen plus `headroom_bits`.
    ///
    /// # Errors
    /// [`ModelError::Input`] if no sample was added; [`ModelError::Spec`] if the narrowed description has no graph.
    pub fn finish(self, headroom_bits: u32) -> Result<Calibration, ModelError> {
        if self.samples == 0 {
            return Err(ModelError::Input { reason: "there is no sample text to calibrate with".into() });
        }
        let mut spec = self.model.spec().clone();
        let largest = |name: String, value: &mut i32, headroom: u32| {
            if let Some(range) = self.ranges.get(&name) {
                *value = (*value).min(log2(range.largest) + headroom as i32);
            }
        };
        let least = |name: String, value: &mut i32| {
            if let Some(range) = self.ranges.get(&name).filter(|r| r.least > 0.0) {
                let seen = libm::floor(libm::log2(range.least)) as i32 - LEAST_SQUARES_HEADROOM_BITS as i32;
                *value = (*value).max(seen);
            }
        };
        largest("embedding".into(), &mut spec.embedding_log2, headroom_bits);
        for (i, l) in spec.layers.iter_mut().enumerate() {
            let name = |edge: &str| format!("layer{i}.{edge}");
            largest(name("query_raw"), &mut l.query_log2, headroom_bits);
            largest(name("key_raw"), &mut l.key_log2, headroom_bits);
            largest(name("value_raw"), &mut l.value_log2, headroom_bits);
            largest(name("scores"), &mut l.score_log2, headroom_bits);
            largest(name("attention_raw"), &mut l.attention_log2, headroom_bits);
            largest(name("attention_norm_squares"), &mut l.attention_squares_log2, 2 * headroom_bits);
            largest(name("up"), &mut l.up_log2, headroom_bits);
            largest(name("down_raw"), &mut l.down_log2, headroom_bits);
            largest(name("down_norm_squares"), &mut l.down_squares_log2, 2 * headroom_bits);
            least(name("attention_norm_squares"), &mut l.attention_squares_min_log2);
            least(name("down_norm_squares"), &mut l.down_squares_min_log2);
        }
        for (i, l) in spec.dense.iter_mut().enumerate() {
            largest(format!("dense{i}_raw"), &mut l.out_log2, headroom_bits);
        }
        let observed = |edge: &str| self.ranges.get(edge).map_or(0.0, |r| r.largest);
        let edges = report(&spec, self.model.manifest().positions(), observed)?;
        Ok(Calibration {
            version: VERSION,
            checkpoint: hex(&self.model.checkpoint().digest),
            samples: self.samples,
            headroom_bits,
            spec,
            edges,
        })
    }
}

/// What every edge has room for, given the largest magnitude seen on it.
fn report(spec: &ModelSpec, positions: usize, observed: impl Fn(&str) -> f64) -> Result<Vec<EdgeReport>, ModelError> {
    let mut reports: Vec<EdgeReport> = Vec::new();
    for tokens in BUCKETS.into_iter().filter(|&b| b <= positions) {
        let graph = Graph::build(spec, tokens, &GraphOptions::default())?;
        reports.resize(
            graph.edges.len(),
            EdgeReport { name: String::new(), ring_bits: 0, frac: 0, observed: 0.0, headroom_bits: f64::INFINITY },
        );
        for (report, edge) in reports.iter_mut().zip(&graph.edges) {
            let observed = observed(&edge.name);
            let used = libm::log2((observed * libm::exp2(edge.frac as f64)).max(1.0));
            let headroom = (edge.ring.bits() - 1) as f64 - used;
            report.headroom_bits = report.headroom_bits.min(libm::round(headroom * 100.0) / 100.0);
            report.name.clone_from(&edge.name);
            report.observed = observed;
            if edge.ring.bits() > report.ring_bits {
                (report.ring_bits, report.frac) = (edge.ring.bits(), edge.frac);
            }
        }
    }
    Ok(reports)
}

impl Calibration {
    /// Reads a calibration file and checks it against a checkpoint's digest.
    ///
    /// # Errors
    /// [`ModelError::Calibration`] if the file is damaged, of another version or made for another checkpoint.
    pub fn read(path: &Path, checkpoint: &[u8; 32]) -> Result<Self, ModelError> {
        let error = |reason: String| ModelError::Calibration { path: path.to_path_buf(), reason };
        let bytes = read(path)?;
        if bytes.len() > FILE_LIMIT {
            return Err(error(format!("{} bytes are too many", bytes.len())));
        }
        let calibration: Self = serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?;
        if calibration.version != VERSION {
            return Err(error(format!("version {} is not {VERSION}; calibrate again", calibration.version)));
        }
        if calibration.checkpoint != hex(checkpoint) {
            return Err(error("it was made for another checkpoint; calibrate again or remove it".into()));
        }
        Ok(calibration)
    }

    /// Puts the magnitudes that decide the rings of these edges back to those of `worst`, the worst-case description, and
    /// says whether that changed any. An edge of a layer that no magnitude is named after puts all of its layer's back.
    ///
    /// # Errors
    /// [`ModelError::Spec`] if the wider description has no graph.
    pub fn widen(&mut self, worst: &ModelSpec, positions: usize, edges: &[String]) -> Result<bool, ModelError> {
        let before = self.spec.clone();
        for edge in edges {
            if edge == "embedding" {
                self.spec.embedding_log2 = worst.embedding_log2;
            }
            for (i, (own, wide)) in self.spec.layers.iter_mut().zip(&worst.layers).enumerate() {
                if let Some(name) = edge.strip_prefix(&format!("layer{i}.")) {
                    widen_layer(own, wide, name);
                }
            }
            // Pooled rows and the outputs of dense layers flow through the rings of the head.
            if edge.starts_with("dense") || edge.starts_with("pool") {
                for (own, wide) in self.spec.dense.iter_mut().zip(&worst.dense) {
                    own.out_log2 = wide.out_log2;
                }
            }
        }
        let seen: BTreeMap<String, f64> = self.edges.iter().map(|e| (e.name.clone(), e.observed)).collect();
        self.edges = report(&self.spec, positions, |edge| seen.get(edge).copied().unwrap_or(0.0))?;
        Ok(self.spec != before)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        let io = |source| ModelError::Io { path: path.to_path_buf(), source };
        let mut text = serde_json::to_string_pretty(self).map_err(|e| io(e.into()))?;
        text.push('\n');
        std::fs::write(path, text).map_err(io)
    }
}

/// Texts for a calibration without data: the given model's own tokens in random order, at every length up to `max_tokens`.
///
/// Random tokens reach magnitudes that language reaches too, and a little more.
pub fn random_samples(model: &Model, count: usize, max_tokens: usize) -> Vec<Encoded> {
    let vocabulary = model.manifest().embedding.shape().vocabulary;
    let limit = max_tokens.min(model.manifest().max_tokens);
    let frame = model.client().encode("", None, limit).unwrap_or_else(|_| Encoded {
        ids: vec![0],
        types: vec![0],
        tokens: vec![String::new()],
        bucket: BUCKETS[0],
        truncated: false,
    });
    // A fixed linear congruential generator: the same model always gets the same samples.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n.max(1) as u64) as usize
    };
    (0..count)
        .filter_map(|i| {
            let len = frame.len() + (limit - frame.len().min(limit)) * i / count.max(1);
            let mut ids = frame.ids.clone();
            let last = ids.len() - 1;
            let words = std::iter::repeat_with(|| next(vocabulary) as u32).take(len - frame.len());
            ids.splice(last..last, words);
            let bucket = super::bucket(ids.len(), model.manifest().positions())?;
            Some(Encoded {
                types: vec![0; ids.len()],
                tokens: vec![String::new(); ids.len()],
                ids,
                bucket,
                truncated: false,
            })
        })
        .collect()
}

/// The magnitudes behind an edge of a layer.
fn widen_layer(own: &mut LayerSpec, wide: &LayerSpec, edge: &str) {
    let starts = |names: &[&str]| names.iter().any(|name| edge.starts_with(name));
    if starts(&["query", "key", "scores"]) {
        (own.query_log2, own.key_log2, own.score_log2) = (wide.query_log2, wide.key_log2, wide.score_log2);
    } else if starts(&["value", "exp", "reciprocal", "weighted", "context"]) {
        (own.value_log2, own.attention_log2) = (wide.value_log2, wide.attention_log2);
    } else if starts(&["attention"]) {
        own.attention_log2 = wide.attention_log2;
        own.attention_squares_log2 = wide.attention_squares_log2;
        own.attention_squares_min_log2 = wide.attention_squares_min_log2;
    } else if starts(&["up", "activation"]) {
        own.up_log2 = wide.up_log2;
    } else if starts(&["down"]) {
        own.down_log2 = wide.down_log2;
        own.down_squares_log2 = wide.down_squares_log2;
        own.down_squares_min_log2 = wide.down_squares_min_log2;
    } else {
        own.clone_from(wide);
    }
}

fn log2(x: f64) -> i32 {
    libm::ceil(libm::log2(x.max(libm::exp2(-19.0)))) as i32
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}
