//! Rows picked from the position and type tables, and rows of the last hidden state for the head.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::{Primitive, Spans, slice, with};
use crate::model::Pooling;

/// The sum of a token's rows in the position table (its place in the text) and in the table of types.
pub struct PositionRows {
    /// The batch's texts.
    pub spans: Arc<Spans>,
    /// One type a token.
    pub types: Arc<Vec<u32>>,
}

impl PositionRows {
    /// Row of the position table and of the type table for every token.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let positions = self.spans.iter().flat_map(|(_, rows)| 0..rows);
        positions.zip(self.types.iter().map(|&t| t as usize))
    }
}

impl CustomOp2 for PositionRows {
    fn name(&self) -> &'static str {
        "position-rows"
    }

    fn cpu_fwd(&self, p: &CpuStorage, lp: &Layout, t: &CpuStorage, lt: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((positions, d), (types, _)) = (lp.shape().dims2()?, lt.shape().dims2()?);
        let (p, t) = (slice(p, lp)?, slice(t, lt)?);
        let mut out = Vec::with_capacity(self.types.len() * d);
        for (position, kind) in self.rows() {
            if position >= positions || kind >= types {
                bail!("position {position} or token type {kind} is outside the model's tables");
            }
            let (p, t) = (&p[position * d..(position + 1) * d], &t[kind * d..(kind + 1) * d]);
            out.extend(p.iter().zip(t).map(|(p, t)| p + t));
        }
        Ok((CpuStorage::F32(out), (self.types.len(), d).into()))
    }

    fn bwd(&self, p: &Tensor, t: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, d) = p.dims2()?;
        let (mut p_grad, mut t_grad) = (vec![0.0f32; p.elem_count()], vec![0.0f32; t.elem_count()]);
        with([grad], |[grad]| {
            for ((position, kind), g) in self.rows().zip(grad.chunks_exact(d)) {
                p_grad[position * d..(position + 1) * d].iter_mut().zip(g).for_each(|(s, g)| *s += g);
                t_grad[kind * d..(kind + 1) * d].iter_mut().zip(g).for_each(|(s, g)| *s += g);
            }
        })?;
        let tensor = |values, of: &Tensor| Tensor::from_vec(values, of.dims(), of.device());
        Ok((Some(tensor(p_grad, p)?), Some(tensor(t_grad, t)?)))
    }
}

/// One row a text: that of its first token, or the mean of its rows.
pub struct Pool {
    /// The batch's texts.
    pub spans: Arc<Spans>,
    /// Which rows.
    pub pooling: Pooling,
}

impl Pool {
    /// What it is built of. The mean's weights are inputs: a text's length is known where it is read.
    pub const PRIMITIVES: [Primitive; 2] = [Primitive::Add, Primitive::Multiply];

    /// The rows of a text that count, and the weight of each.
    fn weights(&self) -> impl Iterator<Item = (std::ops::Range<usize>, f32)> + '_ {
        self.spans.iter().map(|(start, rows)| match self.pooling {
            Pooling::First => (start..start + 1, 1.0),
            Pooling::Mean | Pooling::Tokens => (start..start + rows, 1.0 / rows.max(1) as f32),
        })
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, d) = lx.shape().dims2()?;
        let x = slice(x, lx)?;
        let mut out = vec![0.0f32; self.spans.texts() * d];
        for (out, (rows, weight)) in out.chunks_exact_mut(d).zip(self.weights()) {
            for row in rows {
                out.iter_mut().zip(&x[row * d..(row + 1) * d]).for_each(|(o, x)| *o += weight * x);
            }
        }
        Ok((CpuStorage::F32(out), (self.spans.texts(), d).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, d) = x.dims2()?;
        let mut out = vec![0.0f32; x.elem_count()];
        with([grad], |[grad]| {
            for (g, (rows, weight)) in grad.chunks_exact(d).zip(self.weights()) {
                for row in rows {
                    out[row * d..(row + 1) * d].iter_mut().zip(g).for_each(|(o, g)| *o = weight * g);
                }
            }
        })?;
        Ok(Some(Tensor::from_vec(out, x.dims(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn gradients_are_the_differences() {
        let spans = Spans::new([2, 3]);
        let (p, t, x) = (noise(&[4, 3], 8), noise(&[2, 3], 9), noise(&[5, 3], 10));
        let types = Arc::new(vec![0, 1, 0, 0, 1]);
        let rows = || PositionRows { spans: spans.clone(), types: types.clone() };
        check_gradient(&[&p, &t], || p.apply_op2(&t, rows()).unwrap(), 1e-2);
        for pooling in [Pooling::First, Pooling::Mean] {
            check_gradient(&[&x], || x.apply_op1(Pool { spans: spans.clone(), pooling }).unwrap(), 1e-2);
        }
        let few = noise(&[2, 3], 1);
        assert!(few.apply_op2(&t, rows()).is_err(), "a third position");
    }
}
