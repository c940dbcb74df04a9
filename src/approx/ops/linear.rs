//! A linear map without its bias, which the operation behind it adds.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, backend::BackendStorage};

use super::Primitive;

/// `x w^T` for `x` of `rows x inputs` and `w` of `outputs x inputs`, as checkpoints store it.
pub struct Linear {
    /// Whether the gradient of `w` is wanted.
    pub trained: bool,
}

impl Linear {
    /// What it is built of.
    pub const PRIMITIVES: [Primitive; 2] = [Primitive::Add, Primitive::Multiply];
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, inputs), (outputs, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let z = x.matmul(w, (1, rows, outputs, inputs), lx, &lw.transpose(0, 1)?)?;
        Ok((z, (rows, outputs).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let w_grad = if self.trained { Some(grad.t()?.matmul(x)?) } else { None };
        let x_grad = if x.track_op() { Some(grad.matmul(w)?) } else { None };
        Ok((x_grad, w_grad))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn gradients_are_the_differences() {
        let (x, w) = (noise(&[3, 4], 1), noise(&[2, 4], 2));
        check_gradient(&[&x, &w], || x.apply_op2(&w, Linear { trained: true }).unwrap(), 1e-2);
    }
}
