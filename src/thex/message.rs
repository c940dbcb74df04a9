//! Messages between client and server, and what they cost.

use super::{Layout, ModelShape, Pooling, Result, ThexError};
use crate::he::{ParameterSet, SeededCiphertexts, ckks::CkksResponse};

/// Where an evaluation stands. Each step but the last is a message of the server and the client's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client's encrypted rows; no message of the server before it.
    Input,
    /// Queries, keys and values of a layer, masked; back in the layouts of attention.
    Projections(usize),
    /// Cubes of a layer's scores; back as `ReLU` of them.
    Scores(usize),
    /// Inputs of the estimator's hidden units; back as `ReLU` of them.
    Estimator(usize),
    /// Inputs of the feed-forward network's ReLU, and the hidden state, masked; back as `ReLU`, and the masked state as it is.
    Hidden(usize),
    /// The outputs.
    Output,
}

/// A batch of ciphertexts within a message: how many, and of how many limbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Ciphertexts.
    pub count: usize,
    /// Limbs.
    pub limbs: usize,
}

/// A message: a step and the bytes of its batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it belongs to.
    pub step: Step,
    /// Its batches one after the other.
    pub payload: Vec<u8>,
}

/// Bytes before the payload: kind, layer (2), length (5).
pub const HEADER: usize = 8;

/// Limbs of fresh ciphertexts that the longest stretch between two refreshments needs: four levels and the last two limbs.
pub const NEEDED_LIMBS: usize = 6;

/// Limbs of a result.
pub(super) const LAST: usize = 2;

/// Limbs of a masked result, which has room for the mask.
pub(super) const MASKED: usize = 3;

impl Step {
    fn code(self) -> (u8, usize) {
        match self {
            Self::Input => (0, 0),
            Self::Projections(layer) => (1, layer),
            Self::Scores(layer) => (2, layer),
            Self::Estimator(layer) => (3, layer),
            Self::Hidden(layer) => (4, layer),
            Self::Output => (5, 0),
        }
    }

    /// The step that follows.
    pub fn next(self, layers: usize) -> Option<Self> {
        Some(match self {
            Self::Input => Self::Projections(0),
            Self::Projections(layer) => Self::Scores(layer),
            Self::Scores(layer) => Self::Estimator(layer),
            Self::Estimator(layer) => Self::Hidden(layer),
            Self::Hidden(layer) if layer + 1 < layers => Self::Projections(layer + 1),
            Self::Hidden(_) => Self::Output,
            Self::Output => return None,
        })
    }

    /// What the server sends.
    pub fn down(self, shape: &ModelShape, layout: &Layout) -> Vec<Batch> {
        let batch = |count, limbs| Batch { count, limbs };
        match self {
            Self::Input => vec![],
            Self::Projections(_) => vec![batch(layout.dense_count(3 * shape.hidden), MASKED)],
            Self::Scores(_) => vec![batch(layout.merged_count(shape.heads * layout.stride()), LAST)],
            Self::Estimator(_) => vec![batch(shape.heads * layout.dense_count(shape.estimator), LAST)],
            Self::Hidden(_) => vec![
                batch(layout.dense_count(shape.intermediate), LAST),
                batch(layout.dense_count(shape.hidden), MASKED),
            ],
            Self::Output => vec![batch(layout.dense_count(shape.outputs), LAST)],
        }
    }

    /// What the client answers.
    pub fn up(self, shape: &ModelShape, layout: &Layout) -> Vec<Batch> {
        let batch = |count, limbs| Batch { count, limbs };
        let heads = shape.heads * layout.head_count(shape.head_dim);
        // The mean over tokens takes a level more after the last layer.
        let state = |last: bool| if last && shape.pooling == Pooling::Mean { 6 } else { 5 };
        match self {
            Self::Input => {
                let mut batches = vec![batch(layout.dense_count(shape.hidden), state(false))];
                if shape.pooling == Pooling::Mean {
                    batches.push(batch(1, 4));
                }
                batches
            }
            Self::Projections(_) => vec![batch(heads, 5), batch(heads, 5), batch(heads, 6)],
            Self::Scores(_) => vec![batch(shape.heads * layout.stride(), 6)],
            Self::Estimator(_) => vec![batch(shape.heads * layout.dense_count(shape.estimator), 6)],
            Self::Hidden(layer) => {
                let limbs = state(layer + 1 == shape.layers);
                vec![
                    batch(layout.dense_count(shape.intermediate), limbs),
                    batch(layout.dense_count(shape.hidden), limbs),
                ]
            }
            Self::Output => vec![],
        }
    }
}

impl Message {
    /// Bytes of the server's message of a step.
    pub fn down_len(step: Step, params: &ParameterSet, shape: &ModelShape, layout: &Layout) -> Option<usize> {
        let batches = step.down(shape, layout);
        batches.iter().try_fold(HEADER, |sum, b| sum.checked_add(CkksResponse::byte_len(params, b.count, b.limbs)?))
    }

    /// Bytes of the client's answer.
    pub fn up_len(step: Step, params: &ParameterSet, shape: &ModelShape, layout: &Layout) -> Option<usize> {
        let batches = step.up(shape, layout);
        batches.iter().try_fold(HEADER, |sum, b| {
            sum.checked_add(SeededCiphertexts::byte_len(&params.at_level(b.limbs).ok()?, b.count)?)
        })
    }

    /// Header and payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, layer) = self.step.code();
        let mut out = vec![kind];
        out.extend(&(layer as u16).to_le_bytes());
        out.extend(&(self.payload.len() as u64).to_le_bytes()[..5]);
        out.extend(&self.payload);
        out
    }

    /// Reads the message that must come now: `step`, of `expected` bytes.
    ///
    /// # Errors
    /// If it is another step or length.
    pub fn from_bytes(step: Step, expected: Option<usize>, bytes: &[u8]) -> Result<Self> {
        let message = Self { step, payload: Vec::new() };
        let mut header = message.to_bytes();
        let length = bytes.len().saturating_sub(HEADER);
        header[3..].copy_from_slice(&(length as u64).to_le_bytes()[..5]);
        if expected != Some(bytes.len()) || bytes.get(..HEADER) != Some(&header[..]) {
            return Err(ThexError::Message(format!("{} bytes that are not the {step:?} that comes now", bytes.len())));
        }
        Ok(Self { payload: bytes[HEADER..].to_vec(), ..message })
    }

    /// Splits the payload of a server's message.
    pub(super) fn responses(&self, params: &ParameterSet, batches: &[Batch]) -> Result<Vec<CkksResponse>> {
        let mut rest = &self.payload[..];
        let mut out = Vec::with_capacity(batches.len());
        for batch in batches {
            let len = CkksResponse::byte_len(params, batch.count, batch.limbs);
            let part = take(&mut rest, len)?;
            out.push(CkksResponse::from_bytes(params, batch.count, batch.limbs, part)?);
        }
        finish(rest, out)
    }

    /// Splits the payload of a client's message.
    pub(super) fn ciphertexts(&self, params: &ParameterSet, batches: &[Batch]) -> Result<Vec<SeededCiphertexts>> {
        let mut rest = &self.payload[..];
        let mut out = Vec::with_capacity(batches.len());
        for batch in batches {
            let level = params.at_level(batch.limbs)?;
            let part = take(&mut rest, SeededCiphertexts::byte_len(&level, batch.count))?;
            out.push(SeededCiphertexts::from_bytes(&level, batch.count, part)?);
        }
        finish(rest, out)
    }
}

fn take<'a>(rest: &mut &'a [u8], len: Option<usize>) -> Result<&'a [u8]> {
    let split = len.and_then(|len| rest.split_at_checked(len));
    let (part, tail) = split.ok_or_else(|| ThexError::Message("a batch is cut short".into()))?;
    *rest = tail;
    Ok(part)
}

fn finish<T>(rest: &[u8], out: T) -> Result<T> {
    if rest.is_empty() { Ok(out) } else { Err(ThexError::Message("bytes follow the last batch".into())) }
}
