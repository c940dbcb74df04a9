//! AdamW (Loshchilov and Hutter, ICLR 2019) and the learning rate over a stage.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, backprop::GradStore, bail};
use rayon::prelude::*;

use super::{
    bert::{Parameter, Part},
    ops::with,
};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPSILON: f32 = 1e-7;
const DECAY: f32 = 0.01;
/// Longest gradient.
const CLIP: f32 = 1.0;

/// First and second moments of every parameter's gradient.
pub struct AdamW {
    /// One pair a parameter.
    pub moments: Vec<(Vec<f32>, Vec<f32>)>,
    /// Updates made.
    pub step: u64,
}

/// One parameter's update.
struct Update<'a> {
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
    rate: f32,
    decay: f32,
    scale: f32,
    corrections: (f32, f32),
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, lw: &Layout, grad: &CpuStorage, lg: &Layout) -> Result<()> {
        let (Some((w0, w1)), Some((g0, g1))) = (lw.contiguous_offsets(), lg.contiguous_offsets()) else {
            bail!("a parameter or its gradient is not contiguous")
        };
        let CpuStorage::F32(w) = w else { bail!("a parameter is not in single precision") };
        let (w, grad) = (&mut w[w0..w1], &grad.as_slice::<f32>()?[g0..g1]);
        let mut guard = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (m, v) = &mut *guard;
        const BLOCK: usize = 1 << 14;
        let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
        w.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK)).zip(moments).for_each(|((w, g), (m, v))| {
            for i in 0..w.len() {
                let g = g[i] * self.scale;
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g;
                v[i] = BETA2 * v[i] + (1.0 - BETA2) * g * g;
                let direction = (m[i] * self.corrections.0) / ((v[i] * self.corrections.1).sqrt() + EPSILON);
                w[i] -= self.rate * (direction + self.decay * w[i]);
            }
        });
        Ok(())
    }
}

impl AdamW {
    /// Without memory.
    pub fn new(parameters: &[Parameter]) -> Self {
        let zeros = |p: &Parameter| vec![0.0; p.var.elem_count()];
        Self { moments: parameters.iter().map(|p| (zeros(p), zeros(p))).collect(), step: 0 }
    }

    /// Moves every parameter that has a gradient; `rate` is the learning rate of each part. Gradients longer than 1 together
    /// are shortened to 1. Returns their length.
    ///
    /// # Errors
    /// What the tensor library reports.
    pub fn update(&mut self, parameters: &[Parameter], grads: &GradStore, rate: &dyn Fn(Part) -> f32) -> Result<f32> {
        let mut square = 0.0f64;
        for p in parameters {
            if let Some(grad) = grads.get(&p.var) {
                square += with([grad], |[g]| {
                    // Added up in order, so that equal runs are equal.
                    let part = |g: &[f32]| g.iter().map(|x| f64::from(x * x)).sum::<f64>();
                    g.par_chunks(1 << 14).map(part).collect::<Vec<f64>>().into_iter().sum::<f64>()
                })?;
            }
        }
        let length = square.sqrt() as f32;
        self.step += 1;
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        let corrections = (1.0 / (1.0 - BETA1.powi(step)), 1.0 / (1.0 - BETA2.powi(step)));
        for (p, (m, v)) in parameters.iter().zip(&mut self.moments) {
            let Some(grad) = grads.get(&p.var) else { continue };
            let decays = matches!(p.part, Part::Attention | Part::FeedForward | Part::Head) && p.var.rank() == 2;
            let update = Update {
                moments: Mutex::new((m, v)),
                rate: rate(p.part),
                decay: if decays { DECAY } else { 0.0 },
                scale: if length > CLIP { CLIP / length } else { 1.0 },
                corrections,
            };
            p.var.inplace_op2(grad, &update)?;
        }
        Ok(length)
    }
}

/// The part of the learning rate at `step` of `steps`: up in the first twentieth, then down to a twentieth.
pub fn schedule(step: usize, steps: usize) -> f32 {
    let (step, steps) = (step as f32 + 1.0, steps.max(1) as f32);
    let warm = (steps / 20.0).max(1.0);
    if step < warm { step / warm } else { 0.05 + 0.95 * (steps - step) / (steps - warm).max(1.0) }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_square_is_descended() {
        let var = Var::from_vec(vec![3.0f32, -2.0], 2, &Device::Cpu).unwrap();
        let parameters = [Parameter { name: "x".into(), var, part: Part::Head }];
        let mut optimiser = AdamW::new(&parameters);
        let loss = || parameters[0].var.sqr().unwrap().sum_all().unwrap();
        for step in 0..400 {
            let grads = loss().backward().unwrap();
            optimiser.update(&parameters, &grads, &|_| 0.05 * schedule(step, 400)).unwrap();
        }
        assert!(loss().to_scalar::<f32>().unwrap() < 1e-3);
    }

    #[test]
    fn the_schedule_rises_and_falls() {
        let rates: Vec<f32> = (0..100).map(|s| schedule(s, 100)).collect();
        assert!(rates[0] < 0.3 && (rates[4] - 1.0).abs() < 0.02 && (rates[99] - 0.05).abs() < 0.01);
        assert!(rates.iter().all(|r| (0.0..=1.0).contains(r)));
        assert!(schedule(0, 1) > 0.0);
    }
}
