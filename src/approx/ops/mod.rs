//! Operations of the encoder with their gradients, each one pass over memory, on all cores.
//!
//! A batch has no padding: its token rows lie one text after another, and [`Spans`] says where each text starts. Every
//! operation names the [`Primitive`]s that it is built of, so that a forward pass can prove what it computes with.

mod activation;
mod attention;
mod gather;
mod linear;
mod norm;
mod small;

use std::sync::Arc;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

pub use activation::BiasAct;
pub use attention::{Attention, Bounds, Penalty, Watch, Weighting, perceptron};
pub use gather::{Pool, PositionRows};
pub use linear::Linear;
pub use norm::AddNorm;

/// What a forward pass is built of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Primitive {
    /// Sums, also with constants.
    Add,
    /// Products of two values, or with a constant.
    Multiply,
    /// `max(x, 0)`.
    Relu,
    /// The Gaussian error linear unit, or its approximation by tanh.
    Gelu,
    /// `exp`, of softmax.
    Exp,
    /// A quotient of two values.
    Divide,
    /// `1 / sqrt`, of LayerNorm.
    InverseRoot,
    /// `tanh`, of the pooler.
    Tanh,
}

/// First rows of the texts of a batch, and the number of rows at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans(Vec<usize>);

impl Spans {
    /// Of the texts' lengths.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Arc<Self> {
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            starts.push(end);
        }
        Arc::new(Self(starts))
    }

    /// Number of texts.
    pub fn texts(&self) -> usize {
        self.0.len() - 1
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    /// First row and number of rows of each text.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.0.windows(2).map(|w| (w[0], w[1] - w[0]))
    }

    /// `x` of `width` numbers a row, cut into its texts.
    fn split<'a, T>(&self, mut x: &'a mut [T], width: usize) -> Vec<&'a mut [T]> {
        let mut parts = Vec::with_capacity(self.texts());
        for (_, rows) in self.iter() {
            let (part, rest) = std::mem::take(&mut x).split_at_mut(rows * width);
            parts.push(part);
            x = rest;
        }
        parts
    }
}

/// Runs `f` compiled for the widest vector instructions of this machine; everything in it must be `#[inline(always)]`.
#[inline(always)]
fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The numbers of a contiguous tensor in main memory.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a tensor is not contiguous"),
    }
}

/// Calls `f` with the numbers of contiguous tensors in main memory.
pub(crate) fn with<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (out, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *out = match &**storage {
            Storage::Cpu(storage) => slice(storage, layout)?,
            _ => bail!("a tensor is not in main memory"),
        };
    }
    Ok(f(slices))
}

/// `exp(x)` to about 1e-7, without branches so that loops of it vectorise; at least `exp(-87)`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // x = n ln 2 + r, n rounded by adding and subtracting 1.5 * 2^23.
    const MAGIC: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` are n.
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    p * scale
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// A tensor of numbers between -1 and 1 that look random.
    pub fn noise(shape: &[usize], seed: u32) -> Var {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Compares the gradient of a weighted sum of `f`'s outputs with finite differences, for every element of `args`.
    pub fn check_gradient(args: &[&Var], f: impl Fn() -> Tensor, tolerance: f32) {
        let weights = noise(f().dims(), 99).as_detached_tensor();
        let value = || (f() * &weights).unwrap().sum_all().unwrap();
        let grads = value().backward().unwrap();
        for (a, var) in args.iter().enumerate() {
            let grad: Vec<f32> = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            for i in 0..values.len() {
                let at = |step: f32| {
                    let mut moved = values.clone();
                    moved[i] += step;
                    var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                    value().to_scalar::<f32>().unwrap()
                };
                let step = 1e-2;
                let difference = (at(step) - at(-step)) / (2.0 * step);
                at(0.0);
                assert!(
                    (difference - grad[i]).abs() < tolerance * (1.0 + grad[i].abs()),
                    "argument {a}, element {i}: {} instead of {difference}",
                    grad[i]
                );
            }
        }
    }

    #[test]
    fn the_exponential_is_near_the_real_one() {
        for i in -870..880 {
            let x = i as f32 / 10.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 3e-7, "{x}");
        }
        assert!(exp(-1000.0) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn spans_split_rows() {
        let spans = Spans::new([2, 0, 3]);
        assert_eq!((spans.texts(), spans.rows()), (3, 5));
        assert_eq!(spans.iter().collect::<Vec<_>>(), [(0, 2), (2, 0), (2, 3)]);
        let mut x = [0; 10];
        assert_eq!(spans.split(&mut x, 2).iter().map(|p| p.len()).collect::<Vec<_>>(), [4, 0, 6]);
    }
}
