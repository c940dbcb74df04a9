//! Rows of a file as batches: encoded once, shuffled anew in every epoch, without padding.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand_core::Rng;

use super::{ApproxError, ops::Spans};
use crate::{
    arith::sample::xof,
    model::{Checkpoint, Tokenizer},
    report::dataset::Dataset,
};

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One of so many labels.
    #[serde(rename = "cls")]
    Classification,
    /// A value.
    Regression,
}

/// An encoded row.
struct Row {
    ids: Vec<u32>,
    types: Vec<u32>,
    target: f32,
}

/// The encoded rows of a file.
pub struct Examples {
    rows: Vec<Row>,
    /// Texts that were longer than the limit and were cut.
    pub cut: usize,
    /// Names of the labels in the order of their numbers, of classification.
    pub labels: Vec<String>,
}

/// Some rows, side by side.
pub struct Batch {
    /// Token ids of all texts.
    pub ids: Tensor,
    /// Token types.
    pub types: Arc<Vec<u32>>,
    /// Where texts start.
    pub spans: Arc<Spans>,
    /// Number of the label, or the score, of every text.
    pub targets: Vec<f32>,
}

/// The labels of a file: those of the model where they fit by name or number, else the file's own, sorted.
fn label_names(data: &Dataset, known: &[String]) -> Result<Vec<String>, ApproxError> {
    let mut own: Vec<String> = data.rows.iter().filter_map(|r| r.target.clone()).collect();
    own.sort();
    own.dedup();
    let by_number = |l: &String| l.parse::<usize>().is_ok_and(|i| i < known.len());
    if own.len() <= known.len() && (own.iter().all(|l| known.contains(l)) || own.iter().all(by_number)) {
        return Ok(known.to_vec());
    }
    match own.len() {
        2..=1000 => Ok(own),
        n => {
            Err(ApproxError::Data(format!("{} has {n} different labels: 2 to 1000 can be learnt", data.path.display())))
        }
    }
}

impl Examples {
    /// Encodes the rows of `data`, the first `limit` of them. For classification `known` are the names that labels may have;
    /// without any they are taken from the file.
    ///
    /// # Errors
    /// A row without a label, with another label, or a text that cannot be encoded: the sentence has file and line.
    pub fn new(
        data: &Dataset,
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        task: Task,
        known: &[String],
        max_tokens: usize,
        limit: Option<usize>,
    ) -> Result<Self, ApproxError> {
        if !data.is_labelled()? {
            return Err(ApproxError::Data(format!(
                "{} has no labels: say which column by --columns",
                data.path.display()
            )));
        }
        let labels = if task == Task::Classification { label_names(data, known)? } else { Vec::new() };
        let limits = (max_tokens.min(checkpoint.max_tokens), checkpoint.config.positions);
        let mut out = Self { rows: Vec::new(), cut: 0, labels };
        for row in data.rows.iter().take(limit.unwrap_or(usize::MAX)) {
            let pair = row.input.pair.as_deref();
            if pair.is_some() && checkpoint.config.types < 2 {
                return Err(data.fault(row, "this model takes no pairs of texts").into());
            }
            let encoded =
                tokenizer.encode(&row.input.text, pair, limits.0, limits.1).map_err(|e| data.fault(row, e))?;
            let given = row.target.as_deref().unwrap_or_default();
            let target = match task {
                Task::Regression => given.parse::<f32>().ok().filter(|x| x.is_finite()),
                Task::Classification => {
                    let number = || given.parse::<usize>().ok().filter(|&i| i < out.labels.len());
                    out.labels.iter().position(|l| l == given).or_else(number).map(|i| i as f32)
                }
            };
            let Some(target) = target else {
                let what = if task == Task::Regression { "no number" } else { "none of the labels" };
                return Err(data.fault(row, format!("`{given}` is {what}")).into());
            };
            out.cut += usize::from(encoded.truncated);
            out.rows.push(Row { ids: encoded.ids, types: encoded.types, target });
        }
        if out.rows.is_empty() {
            return Err(ApproxError::Data(format!("{} has no row to use", data.path.display())));
        }
        Ok(out)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row, which [`Self::new`] refuses.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|r| r.ids.len()).sum()
    }

    /// Mean of the targets.
    pub fn mean_target(&self) -> f32 {
        self.rows.iter().map(|r| r.target).sum::<f32>() / self.rows.len() as f32
    }

    /// The given rows as a batch.
    ///
    /// # Errors
    /// What the tensor library reports.
    pub fn batch(&self, rows: &[usize]) -> candle_core::Result<Batch> {
        let rows: Vec<&Row> = rows.iter().filter_map(|&i| self.rows.get(i)).collect();
        let ids: Vec<u32> = rows.iter().flat_map(|r| r.ids.iter().copied()).collect();
        let n = ids.len();
        Ok(Batch {
            ids: Tensor::from_vec(ids, n, &Device::Cpu)?,
            types: Arc::new(rows.iter().flat_map(|r| r.types.iter().copied()).collect()),
            spans: Spans::new(rows.iter().map(|r| r.ids.len())),
            targets: rows.iter().map(|r| r.target).collect(),
        })
    }

    /// All rows in their order, cut into batches.
    pub fn in_order(&self, size: usize) -> impl Iterator<Item = candle_core::Result<Batch>> + '_ {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let parts: Vec<Vec<usize>> = all.chunks(size.max(1)).map(<[usize]>::to_vec).collect();
        parts.into_iter().map(|part| self.batch(&part))
    }
}

/// The order in which an epoch takes `n` rows: a permutation that seed and epoch fix.
pub fn order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let Some(mut rng) = generator(seed, "order", epoch) else { return order };
    for i in (1..n).rev() {
        // The bias of the remainder is below 2^-40.
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}

/// A public generator for one purpose.
pub fn generator(seed: u64, purpose: &str, counter: u64) -> Option<impl Rng> {
    let key = blake3::Hasher::new_derive_key("heliostat training 1")
        .update(&seed.to_le_bytes())
        .update(purpose.as_bytes())
        .finalize();
    xof(key.as_bytes(), 0, counter)
}

/// Random numbers around 0 with the given deviation.
pub fn gaussian(seed: u64, purpose: &str, n: usize, deviation: f32) -> Vec<f32> {
    let Some(mut rng) = generator(seed, purpose, 0) else { return vec![0.0; n] };
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    // Twelve uniform numbers less 6 have deviation 1.
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32 * deviation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_that_seed_and_epoch_fix() {
        let mut a = order(100, 1, 0);
        assert_eq!(a, order(100, 1, 0));
        assert!(a != order(100, 2, 0) && a != order(100, 1, 1));
        a.sort_unstable();
        assert_eq!(a, (0..100).collect::<Vec<_>>());
        assert!(order(0, 1, 0).is_empty());
    }

    #[test]
    fn gaussians_have_their_deviation() {
        let x = gaussian(1, "test", 10_000, 2.0);
        let square = x.iter().map(|x| x * x).sum::<f32>() / 1e4;
        assert!((square - 4.0).abs() < 0.2, "{square}");
    }
}
