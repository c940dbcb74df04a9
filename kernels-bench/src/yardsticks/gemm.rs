//! Matrix products of doubles by the `gemm` crate, of the shape of a modular GEMM.

use std::hint::black_box;

use gemm::Parallelism;
use rayon::ThreadPoolBuilder;

use crate::{
    Result,
    devices::Label,
    measure::Contender,
    operands::{Random, sample},
    stats::Operation,
};

/// `outputs x inputs` times `inputs x columns`, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the left factor.
    pub outputs: usize,
    /// Columns of the left factor.
    pub inputs: usize,
    /// Columns of the right factor.
    pub columns: usize,
}

/// The operands, small integers, so that every sum is exact.
pub struct Matrices {
    sizes: Sizes,
    left: Vec<f64>,
    right: Vec<f64>,
}

impl Matrices {
    /// Random ones.
    pub fn new(sizes: Sizes) -> Self {
        let mut random = Random(1);
        let mut matrix = |count: usize| (0..count).map(|_| f64::from(random.small())).collect();
        Self { sizes, left: matrix(sizes.outputs * sizes.inputs), right: matrix(sizes.inputs * sizes.columns) }
    }

    /// The product on so many threads, verified at sampled positions.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn contender(&self, threads: usize) -> Result<Contender<'_>> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut out = vec![0.0; self.sizes.outputs * self.sizes.columns];
        pool.install(|| multiply(self.sizes, &self.left, &self.right, &mut out, threads));
        let verified = self.is_product(&out);
        let operation: Operation = Box::new(move |repeats| {
            pool.install(|| {
                for _ in 0..repeats {
                    multiply(self.sizes, &self.left, &self.right, black_box(&mut out), threads);
                }
            });
            Ok(())
        });
        Ok(Contender { label: Label::library("gemm f64", threads), verified, ceilings: None, operation, again: None })
    }

    fn is_product(&self, out: &[f64]) -> bool {
        let Sizes { outputs, inputs, columns } = self.sizes;
        sample(outputs * columns, 64).into_iter().all(|at| {
            let (row, column) = (at / columns, at % columns);
            let term = |k: usize| self.left[row * inputs + k] * self.right[k * columns + column];
            out[at] == (0..inputs).map(term).sum::<f64>()
        })
    }
}

/// `out = left * right`.
#[allow(unsafe_code, reason = "the library's only interface takes pointers; the lengths are asserted here")]
fn multiply(sizes: Sizes, left: &[f64], right: &[f64], out: &mut [f64], threads: usize) {
    let Sizes { outputs, inputs, columns } = sizes;
    assert!(left.len() == outputs * inputs && right.len() == inputs * columns && out.len() == outputs * columns);
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    // SAFETY: every index `row * row stride + column`, row-major, is below the lengths asserted above; `out` is borrowed
    // mutably and so overlaps neither operand, and with `read_dst` false it is only written.
    unsafe {
        gemm::gemm(
            outputs,
            columns,
            inputs,
            out.as_mut_ptr(),
            1,
            columns as isize,
            false,
            left.as_ptr(),
            1,
            inputs as isize,
            right.as_ptr(),
            1,
            columns as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_multiplies_and_a_wrong_product_is_seen() {
        let matrices = Matrices::new(Sizes { outputs: 5, inputs: 7, columns: 12 });
        for threads in [1, 2] {
            assert!(matrices.contender(threads).unwrap().verified);
        }
        let mut out = vec![0.0; 60];
        multiply(matrices.sizes, &matrices.left, &matrices.right, &mut out, 1);
        assert!(matrices.is_product(&out));
        out[59] += 1.0;
        assert!(!matrices.is_product(&out));
    }
}
