//! Sizes, noise and cost of a product, and the choice of block width.

use super::{
    InputLayout,
    layout::{OutputLayout, Pack},
    split,
};
use crate::{
    arith::ShareModulus,
    he::{HeError, NoiseBound, ParameterSet, Response, ResponsePlan, Result},
    packing::Counts,
};

/// Largest absolute value of the plaintext operand, a public number that the noise ledger builds on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OperandBound {
    /// Fixed-point weights below a power of two or any other bound.
    Weights {
        /// Largest absolute value.
        max_abs: u64,
    },
    /// Uniform elements of the ring of shares, centred.
    Uniform,
}

impl OperandBound {
    /// Largest absolute value in the ring `t`.
    pub fn max_abs(self, t: ShareModulus) -> u64 {
        match self {
            Self::Weights { max_abs } => max_abs,
            Self::Uniform => match t {
                ShareModulus::PowerOfTwo(bits) => 1 << (bits - 1),
                ShareModulus::Prime(p) => p.value() / 2,
            },
        }
    }
}

/// A product to plan: per head, `sum_k X_k W_k` with `X_k` of `rows x inner[k]` and `W_k` of `inner[k] x cols`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatmulSpec {
    /// Ring of the shares.
    pub t: ShareModulus,
    /// Independent products; a linear layer has one.
    pub heads: usize,
    /// Rows of inputs and output.
    pub rows: usize,
    /// Features of every summed input.
    pub inner: Vec<usize>,
    /// Columns of the output.
    pub cols: usize,
    /// Size of the plaintext operand.
    pub operand: OperandBound,
}

/// What [`CoefficientPacking::choose`] minimises, in units of one plaintext-ciphertext product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostWeights {
    /// One key switch.
    pub key_switch: f64,
    /// Sending (and encrypting) one input ciphertext.
    pub upload: f64,
    /// Sending one output ciphertext.
    pub download: f64,
    /// Widest block that the client's switching keys serve.
    pub max_block: usize,
    /// Most levels of output packing that may be done on the inputs; they need switching keys of their own
    /// ([`crate::packing::Packing::rotation_elements`]).
    pub max_split: u32,
    /// Whether ciphertexts have the fewest limbs that the noise ledger allows, and not all. Then an input serves only products
    /// that take as many ([`CoefficientPacking::limbs`]).
    pub fewest_limbs: bool,
}

impl Default for CostWeights {
    fn default() -> Self {
        Self { key_switch: 12.0, upload: 20.0, download: 15.0, max_block: 256, max_split: 0, fewest_limbs: false }
    }
}

/// How a product is laid out, where [`CoefficientPacking::choose`] is not to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoefficientLayout {
    /// S: distance of consecutive rows, a power of two with `rows * S <= N`.
    pub stride: usize,
    /// K: features a ciphertext, a power of two up to S.
    pub block: usize,
    /// Levels of output packing that are done on the inputs instead of the outputs, up to `log2 K`.
    pub split: u32,
    /// Limbs of all ciphertexts; `None` is the fewest that the noise ledger allows.
    pub limbs: Option<usize>,
}

/// A planned product: layouts, noise and the cut of the response. Both parties derive it from public numbers.
#[derive(Clone, Debug)]
pub struct CoefficientPacking {
    pub(super) spec: MatmulSpec,
    pub(super) inputs: Vec<InputLayout>,
    pub(super) output: OutputLayout,
    pub(super) packs: Vec<Pack>,
    /// Levels of output packing on the inputs.
    pub(super) split: u32,
    /// What the other levels pack; `packs` where no level is on the inputs.
    pub(super) merged: Vec<Pack>,
    /// Limbs of the whole parameter set.
    whole: usize,
    pub(super) response: ResponsePlan,
    pub(super) counts: Counts,
}

impl CoefficientPacking {
    /// The cheapest layout of one product `X W` modulo `t`: X of `rows x inner` is encrypted, W of `inner x cols` has integers of
    /// absolute value at most `max_abs`. The client's switching keys are those of [`Self::block`].
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn for_matmul(
        params: &ParameterSet,
        t: ShareModulus,
        rows: usize,
        inner: usize,
        cols: usize,
        max_abs: u64,
    ) -> Result<Self> {
        let operand = OperandBound::Weights { max_abs };
        let spec = MatmulSpec { t, heads: 1, rows, inner: vec![inner], cols, operand };
        Self::choose(params, &spec, &CostWeights { fewest_limbs: true, ..CostWeights::default() })
    }

    /// The cheapest layout that the width rule admits, over all strides and blocks.
    ///
    /// # Errors
    /// The width error of the least noisy layout if none is admitted.
    pub fn choose(params: &ParameterSet, spec: &MatmulSpec, weights: &CostWeights) -> Result<Self> {
        let limbs = if weights.fewest_limbs { None } else { Some(params.limbs()) };
        let mut best: Option<(f64, Self)> = None;
        let mut refusal = HeError::shape("packing", format!("{} rows do not fit N = {}", spec.rows, params.n()));
        let mut stride = params.n() / spec.rows.max(1).next_power_of_two();
        while stride > 0 {
            let mut block =
                stride.min(weights.max_block.max(1)).min(if params.special().is_some() { stride } else { 1 });
            while block > 0 {
                let most = if spec.heads == 1 { weights.max_split.min(block.ilog2()) } else { 0 };
                for split in (0..=most).rev() {
                    match Self::with_layout(params, spec, &CoefficientLayout { stride, block, split, limbs }) {
                        Ok(plan) => {
                            let cost = plan.cost(weights);
                            if best.as_ref().is_none_or(|(c, _)| cost < *c) {
                                best = Some((cost, plan));
                            }
                        }
                        Err(e) => refusal = e,
                    }
                }
                block /= 2;
            }
            stride /= 2;
        }
        best.map(|(_, plan)| plan).ok_or(refusal)
    }

    /// The layout with the given stride and block, ciphertexts of all limbs and no level on the inputs, so that products that differ
    /// in columns and weights can share inputs.
    ///
    /// # Errors
    /// If the sizes do not fit, or the noise breaks the width rule.
    pub fn with_block(params: &ParameterSet, spec: &MatmulSpec, stride: usize, block: usize) -> Result<Self> {
        Self::with_layout(params, spec, &CoefficientLayout { stride, block, split: 0, limbs: Some(params.limbs()) })
    }

    /// The given layout.
    ///
    /// # Errors
    /// If the sizes do not fit, levels are to be done on the inputs of a product with several heads, or the noise breaks the width
    /// rule.
    pub fn with_layout(params: &ParameterSet, spec: &MatmulSpec, layout: &CoefficientLayout) -> Result<Self> {
        let fewest = layout.limbs.is_none() && params.limbs() > 1;
        if fewest && let Ok(plan) = Self::with_layout(&params.at_level(params.limbs() - 1)?, spec, layout) {
            return Ok(plan);
        }
        let params = &params.at_level(layout.limbs.unwrap_or(params.limbs()))?;
        let CoefficientLayout { stride, block, split, .. } = *layout;
        let MatmulSpec { t, heads, rows, cols, operand, .. } = *spec;
        if cols == 0 || spec.inner.is_empty() || !t.is_valid() {
            return Err(HeError::shape("packing", format!("nothing to multiply in {spec:?}")));
        }
        if operand.max_abs(t) > 1 << 63 {
            return Err(HeError::shape("packing", "operands are signed 64-bit integers"));
        }
        let splits = heads == 1 && 1usize.checked_shl(split).is_some_and(|turns| turns <= block);
        if split > 0 && (!splits || operand.max_abs(t) > 1 << 47) {
            let detail =
                "levels of packing on the inputs take one head, at most log2 of the block and operands of 48 bits";
            return Err(HeError::shape("packing", detail));
        }
        let layout = |&inner: &usize| {
            let layout = InputLayout { n: params.n(), heads, rows, inner, stride, block, limbs: params.limbs() };
            layout.check().map(|()| layout)
        };
        let inputs = spec.inner.iter().map(layout).collect::<Result<Vec<_>>>()?;
        let output = OutputLayout { heads, rows, cols, stride, block };
        let packs = output.packs(1 << split);
        let merged = split::merged(&packs, split);
        let largest = merged.iter().map(|p| p.outputs).max().unwrap_or(1);

        // A coefficient of a product sums all weights of its polynomials: `m` columns of every feature.
        let terms = output.columns().min(cols) as f64 * spec.inner.iter().sum::<usize>() as f64;
        let products = NoiseBound::fresh().weighted_sum(terms, operand.max_abs(t) as f64);
        let turns = turned_inputs(params, terms, operand, operand.max_abs(t) as f64, split);
        let response = params.check(t, &products.plus(&turns).packed(params, largest))?;

        let counts = Counts::default();
        let whole = params.key_limbs();
        let mut plan = Self { spec: spec.clone(), inputs, output, packs, split, merged, whole, response, counts };
        plan.counts = plan.count(params).ok_or_else(|| HeError::shape("packing", "the product is too large"))?;
        Ok(plan)
    }

    /// The product.
    pub fn spec(&self) -> &MatmulSpec {
        &self.spec
    }

    /// Layouts of the inputs.
    pub fn inputs(&self) -> &[InputLayout] {
        &self.inputs
    }

    /// S.
    pub fn stride(&self) -> usize {
        self.output.stride
    }

    /// K, the block that the client's switching keys must serve.
    pub fn block(&self) -> usize {
        self.output.block
    }

    /// Limbs of the ciphertexts.
    pub fn limbs(&self) -> usize {
        self.inputs.first().map_or(self.whole, |input| input.limbs)
    }

    /// Levels of output packing that are done on the inputs.
    pub fn split(&self) -> u32 {
        self.split
    }

    /// Noise and cut of the response.
    pub fn response_plan(&self) -> &ResponsePlan {
        &self.response
    }

    /// Elements of the result, `[heads][rows][cols]`.
    pub fn outputs(&self) -> usize {
        self.spec.heads * self.spec.rows * self.spec.cols
    }

    /// Exact length of the response on the wire.
    pub fn response_len(&self) -> usize {
        self.counts.bytes_down as usize
    }

    /// The cost in the units of `weights`, which are those of all limbs; fewer cost less.
    pub fn cost(&self, weights: &CostWeights) -> f64 {
        let (c, part) = (&self.counts, self.limbs() as f64 / self.whole as f64);
        (c.products as f64 + c.key_switches as f64 * weights.key_switch + c.ciphertexts_up as f64 * weights.upload)
            * part
            + c.ciphertexts_down as f64 * weights.download
    }

    fn count(&self, params: &ParameterSet) -> Option<Counts> {
        let limbs = params.limbs() as u64;
        let blocks: usize = self.inputs.iter().map(InputLayout::blocks).sum();
        let turns = 1u64 << self.split;
        let groups: u64 = self.merged.iter().map(|p| p.used as u64).sum();
        let products = groups.checked_mul(blocks as u64)?.checked_mul(turns)?;
        let packing: u64 = self.merged.iter().map(|p| p.outputs as u64 - 1).sum();
        let packed: u64 = self.merged.iter().map(|p| p.outputs as u64).sum();
        let (up, down) =
            (self.inputs.iter().map(InputLayout::ciphertexts).sum::<usize>() as u64, self.packs.len() as u64);
        // Inputs to coefficients, decomposed, turned, and transformed again.
        let turning = match turns {
            1 => 0,
            _ => up * (2 * limbs + (limbs + 2 * (turns - 1)) * (limbs + 1) + 2 * limbs * (turns - 1)),
        };
        let bytes_up = self.inputs.iter().try_fold(0, |sum, x| Some(sum + x.byte_len(params)? as u64))?;
        Some(Counts {
            products,
            scalar_products: 0,
            key_switches: up * (turns - 1) + packing,
            // Weights, products back to coefficients, key switches, and per response u forward and two parts back.
            server_ntts: turning + (products + 2 * packed + 3 * down) * limbs + packing * (limbs + 1) * (limbs + 2),
            client_ntts: up * limbs + down * 2 * self.response.limbs as u64,
            ciphertexts_up: up,
            ciphertexts_down: down,
            bytes_up,
            bytes_down: Response::byte_len(params, &self.response, self.packs.len(), self.outputs())? as u64,
        })
    }
}

/// Noise that the key switches of inputs bring to a coefficient of a product of `terms` weights: with levels on the inputs, `A`
/// times as many. Bounded weights may all have one sign; uniform ones are independent of each other.
fn turned_inputs(params: &ParameterSet, terms: f64, operand: OperandBound, magnitude: f64, split: u32) -> NoiseBound {
    let turns = (1u64 << split) as f64;
    let sum = turns * terms * magnitude;
    let square = match operand {
        OperandBound::Weights { .. } => sum * sum,
        OperandBound::Uniform => turns * terms * magnitude * magnitude,
    };
    NoiseBound::turned_products(params, turns, sum, square)
}
