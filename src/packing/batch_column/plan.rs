//! Sizes, noise and cost of a product.

use crate::{
    arith::ShareModulus,
    he::{HeError, NoiseBound, ParameterSet, Response, ResponsePlan, Result, SeededCiphertexts},
    packing::{Counts, MatmulSpec, OperandBound},
};

/// A planned product. Both parties derive it from public numbers.
#[derive(Clone, Debug)]
pub struct BatchColumnPacking {
    pub(super) spec: MatmulSpec,
    pub(super) n: usize,
    pub(super) response: ResponsePlan,
    pub(super) counts: Counts,
}

/// Weights are below this in magnitude.
const WEIGHT_LIMIT: u64 = 1 << 15;

impl BatchColumnPacking {
    /// The product `X W` modulo `t`: X of `rows x inner` is encrypted, W of `inner x cols` has integers of absolute value at most
    /// `max_abs`, below `2^15`. `rows` counts those of all inferences; it is cheapest by the row where it is a multiple of N.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_matmul(
        params: &ParameterSet,
        t: ShareModulus,
        rows: usize,
        inner: usize,
        cols: usize,
        max_abs: u64,
    ) -> Result<Self> {
        let operand = OperandBound::Weights { max_abs };
        Self::new(params, &MatmulSpec { t, heads: 1, rows, inner: vec![inner], cols, operand })
    }

    /// Plans a product of one head.
    ///
    /// # Errors
    /// If there is nothing to multiply, or more than one head, or weights of `2^15` and more; [`HeError::Width`] if the noise
    /// breaks the width rule.
    pub fn new(params: &ParameterSet, spec: &MatmulSpec) -> Result<Self> {
        let fail = |detail: String| Err(HeError::shape("packing", detail));
        let MatmulSpec { t, heads, rows, ref inner, cols, operand } = *spec;
        let features = inner.iter().try_fold(0usize, |sum, &x| sum.checked_add(x)).unwrap_or(usize::MAX);
        if rows == 0 || cols == 0 || features == 0 || inner.contains(&0) || !t.is_valid() {
            return fail(format!("nothing to multiply in {spec:?}"));
        }
        if heads != 1 {
            return fail(format!("batch-column packing serves one matrix of weights, not {heads} heads"));
        }
        if operand.max_abs(t) >= WEIGHT_LIMIT {
            return fail("batch-column packing takes weights below 2^15 in magnitude".into());
        }
        // Far above any model, far below overflow.
        if features.checked_mul(cols).is_none_or(|x| x >= 1 << 40) || rows >= 1 << 40 {
            return fail("the product is too large".into());
        }
        let own = NoiseBound::fresh().weighted_sum(features as f64, operand.max_abs(t) as f64);
        let response = params.check(t, &own)?;
        let mut plan = Self { spec: spec.clone(), n: params.n(), response, counts: Counts::default() };
        plan.counts = plan.count(params).ok_or_else(|| HeError::shape("packing", "the product is too large"))?;
        Ok(plan)
    }

    /// Ciphertexts that a column takes: those of N rows each.
    pub fn blocks(&self) -> usize {
        self.spec.rows.div_ceil(self.n)
    }

    /// Columns of all summed inputs.
    pub fn features(&self) -> usize {
        self.spec.inner.iter().sum()
    }

    /// Part of the N coefficients that holds rows, the part of the cost that is not wasted.
    pub fn filled(&self) -> f64 {
        self.spec.rows as f64 / (self.blocks() * self.n) as f64
    }

    /// Rows of block `block`.
    pub(super) fn rows_of(&self, block: usize) -> usize {
        self.n.min(self.spec.rows - block * self.n)
    }

    fn count(&self, params: &ParameterSet) -> Option<Counts> {
        let (blocks, limbs) = (self.blocks(), params.limbs() as u64);
        let scalar_products = (blocks as u64).checked_mul((self.features() * self.spec.cols) as u64)?;
        let (up, down) = ((blocks * self.features()) as u64, (blocks * self.spec.cols) as u64);
        let bytes = |&inner: &usize| SeededCiphertexts::byte_len(params, blocks * inner);
        let bytes_up = self.spec.inner.iter().map(bytes).try_fold(0, |sum, x| Some(sum + x? as u64))?;
        let kept = self.spec.rows.checked_mul(self.spec.cols)?;
        Some(Counts {
            scalar_products,
            // Per response u forward, and both parts back together with the encryption of zero.
            server_ntts: 3 * down * limbs,
            client_ntts: up * limbs + 2 * down * self.response.limbs as u64,
            ciphertexts_up: up,
            ciphertexts_down: down,
            bytes_up,
            bytes_down: Response::byte_len(params, &self.response, down as usize, kept)? as u64,
            ..Counts::default()
        })
    }
}
