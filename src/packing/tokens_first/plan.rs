//! Sizes, noise and cost of a product in slots.

use std::sync::Arc;

use super::{
    SlotEncoder,
    layout::{Order, SlotLayout},
    turns::{Swap, Turns},
};
use crate::{
    arith::ShareModulus,
    he::{GaloisKeys, HeError, NoiseBound, ParameterSet, Response, ResponsePlan, Result, SeededCiphertexts},
    packing::{Counts, MatmulSpec, OperandBound},
};

/// How a product in slots is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotMethod {
    /// Tokens first, every rotation of every input.
    TokensFirstPlain,
    /// Tokens first, baby steps and giant steps: the split with the fewest key switches.
    TokensFirst,
    /// Features first, every rotation of every input: what the others are measured against.
    FeaturesFirst,
}

/// Most digits of a plaintext.
const MAX_DIGITS: usize = 3;

/// A planned product in slots. Both parties derive it from public numbers.
#[derive(Clone)]
pub struct SlotPacking {
    pub(super) method: SlotMethod,
    pub(super) spec: MatmulSpec,
    pub(super) layout: SlotLayout,
    pub(super) turns: Arc<Turns>,
    pub(super) encoder: Arc<SlotEncoder>,
    pub(super) digits: Digits,
    pub(super) response: ResponsePlan,
    pub(super) counts: Counts,
}

impl SlotPacking {
    /// The product `X W` modulo the prime `t`: X of `rows x inner` is encrypted, W of `inner x cols` has integers of absolute value
    /// at most `max_abs`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_matmul(
        params: &ParameterSet,
        method: SlotMethod,
        t: ShareModulus,
        rows: usize,
        inner: usize,
        cols: usize,
        max_abs: u64,
    ) -> Result<Self> {
        let operand = OperandBound::Weights { max_abs };
        Self::new(params, method, &MatmulSpec { t, heads: 1, rows, inner: vec![inner], cols, operand })
    }

    /// Plans a product of one head.
    ///
    /// # Errors
    /// If there is nothing to multiply, more than one head, a ring `t` without N slots, or no special prime for key switches;
    /// [`HeError::Width`] if the noise breaks the width rule.
    pub fn new(params: &ParameterSet, method: SlotMethod, spec: &MatmulSpec) -> Result<Self> {
        let fail = |detail: String| Err(HeError::shape("packing", detail));
        let MatmulSpec { t, heads, rows, ref inner, cols, operand } = *spec;
        let n = params.n();
        // Far above any model, far below overflow.
        let sized = |x: usize| (1..1 << 24).contains(&x);
        if ![rows, cols].into_iter().chain(inner.iter().copied()).all(sized) || inner.is_empty() || inner.len() > 256 {
            return fail(format!("nothing to multiply, or too much, in {spec:?}"));
        }
        if heads != 1 {
            return fail(format!("packing in slots serves one matrix of weights, not {heads} heads"));
        }
        if params.special().is_none() {
            return fail(format!("{} has no special prime for the rotations", params.name()));
        }
        if operand.max_abs(t) > t.largest() / 2 {
            return fail(format!("weights of {} do not fit half of the ring", operand.max_abs(t)));
        }
        let encoder = Arc::new(SlotEncoder::new(n, t)?);
        let widest = inner.iter().copied().max().unwrap_or(1);
        let layout = match method {
            SlotMethod::FeaturesFirst => SlotLayout::features_first(n, widest.max(cols)),
            _ => SlotLayout::tokens_first(n, rows, widest, cols),
        };
        let planned = |digits: Digits| {
            let blocks: usize = inner.iter().map(|&inner| layout.input_blocks(inner)).sum();
            let shape = Shape {
                groups: layout.groups(rows),
                inputs: digits.count * blocks,
                outputs: layout.output_blocks(cols),
            };
            let turns = match method {
                SlotMethod::TokensFirstPlain => Turns::plain(n, layout.tokens, layout.shift, layout.swaps()),
                SlotMethod::TokensFirst => best_split(&layout, &shape),
                SlotMethod::FeaturesFirst => Turns::differences(n, widest, cols),
            };
            let response = params.check(t, &noise(params, digits.largest(t), &shape, &turns))?;
            let mut plan = Self {
                method,
                spec: spec.clone(),
                layout,
                turns: Arc::new(turns),
                encoder: encoder.clone(),
                digits,
                response,
                counts: Counts::default(),
            };
            plan.counts =
                plan.count(params, &shape).ok_or_else(|| HeError::shape("packing", "the product is too large"))?;
            Ok(plan)
        };
        for count in 1..MAX_DIGITS {
            match planned(Digits::new(t, count)) {
                Err(HeError::Width { .. }) => {}
                other => return other,
            }
        }
        planned(Digits::new(t, MAX_DIGITS))
    }

    /// Digits of the plaintexts, each with a ciphertext of its own for every input block: several where the ring is too wide for one.
    pub fn digits(&self) -> usize {
        self.digits.count
    }

    /// How the product is computed.
    pub fn method(&self) -> SlotMethod {
        self.method
    }

    /// Tokens of a ciphertext, and columns: places for a feature of each.
    pub fn slots(&self) -> (usize, usize) {
        (self.layout.tokens, self.layout.width)
    }

    /// What tells encrypted inputs of two products of one ring apart, besides their digits: those of one key serve both.
    pub fn input_key(&self) -> usize {
        self.layout.input_key()
    }

    /// Turns of the input (baby steps) and of partial sums (giant steps), the identities included: their product is the number
    /// of diagonals.
    pub fn steps(&self) -> (usize, usize) {
        (self.turns.babies.len(), self.turns.giants.len())
    }

    /// Bytes of the switching keys that the product needs.
    pub fn key_bytes(&self, params: &ParameterSet) -> Option<usize> {
        GaloisKeys::byte_len_for(params, self.turns.elements(self.layout.n).len())
    }

    pub(super) fn name_of(&self) -> &'static str {
        match (self.method, self.layout.order) {
            (SlotMethod::TokensFirstPlain, _) => "tokens_first_plain",
            (_, Order::Tokens) => "tokens_first",
            (_, Order::Features) => "features_first",
        }
    }

    fn count(&self, params: &ParameterSet, shape: &Shape) -> Option<Counts> {
        let limbs = params.limbs() as u64;
        let (babies, giants) = (self.turns.babies.len() as u64, self.turns.giants.len() as u64);
        let (groups, inputs, outputs) = (shape.groups as u64, shape.inputs as u64, shape.outputs as u64);
        let (up, down) = (groups * inputs, groups * outputs);
        // Plaintexts serve all groups.
        let plaintexts = inputs * outputs * babies * giants;
        let key_switches = up * (babies - 1) + down * (giants - 1);
        let hoisted: u64 =
            self.turns.hoists.iter().map(|hoist| (limbs + 2 * hoist.turns.len() as u64) * (limbs + 1)).sum();
        let giant = if giants > 1 { 2 * limbs * giants + (limbs + 2) * (limbs + 1) * (giants - 1) } else { 0 };
        let input = 2 * limbs + hoisted + 2 * limbs * (babies - 1);
        let bytes = |&inner: &usize| {
            SeededCiphertexts::byte_len(params, shape.groups * self.digits.count * self.layout.input_blocks(inner))
        };
        Some(Counts {
            products: groups * plaintexts,
            scalar_products: 0,
            key_switches,
            // Inputs back, turned, forward again; plaintexts; partial sums back and turned; the response.
            server_ntts: up * input + plaintexts * limbs + down * (giant + 3 * limbs),
            client_ntts: up * limbs + 2 * down * self.response.limbs as u64,
            ciphertexts_up: up,
            ciphertexts_down: down,
            bytes_up: self.spec.inner.iter().map(bytes).try_fold(0, |sum, x| Some(sum + x? as u64))?,
            bytes_down: Response::byte_len(params, &self.response, down as usize, down as usize * params.n())? as u64,
        })
    }
}

/// How the coefficients of a plaintext are cut: `c = sum_j 2^(j bits) c_j`, all `c_j` but the last below `2^(bits - 1)` in
/// magnitude. Slots full of small numbers are coefficients anywhere in the ring, so that the noise of a product is that of a
/// uniform operand; digit `j` meets an encryption of the input times `2^(j bits)`, and the noise is that of a digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digits {
    pub count: usize,
    /// Bits of a digit.
    pub bits: u32,
}

impl Digits {
    fn new(t: ShareModulus, count: usize) -> Self {
        Self { count, bits: t.bits().div_ceil(count as u32) }
    }

    /// Digit `j` of a signed coefficient.
    #[inline]
    pub fn of(&self, c: i64, j: usize) -> i64 {
        let mut rest = c;
        for _ in 0..j {
            rest = (rest - self.low(rest)) >> self.bits;
        }
        if j + 1 == self.count { rest } else { self.low(rest) }
    }

    fn low(&self, c: i64) -> i64 {
        let shift = 64 - self.bits;
        c << shift >> shift
    }

    /// A bound on the digits of coefficients modulo `t`.
    fn largest(&self, t: ShareModulus) -> f64 {
        match self.count {
            1 => (t.largest() / 2) as f64,
            // The last one gets the carry.
            _ => 2f64.powi(self.bits as i32 - 1) + 1.0,
        }
    }
}

/// Ciphertexts of a product: `groups` times `inputs` there, `groups` times `outputs` back.
struct Shape {
    groups: usize,
    inputs: usize,
    outputs: usize,
}

/// Baby steps and giant steps with the fewest key switches; of equals, the swap as a baby and the fewest babies.
fn best_split(layout: &SlotLayout, shape: &Shape) -> Turns {
    let powers = (0..=layout.shift.ilog2()).map(|log| 1 << log);
    let swaps: &[Swap] = if layout.swaps() { &[Swap::Baby, Swap::Giant] } else { &[Swap::Never] };
    let splits = swaps.iter().flat_map(|&swap| powers.clone().map(move |babies| (babies, swap)));
    let turns = |(babies, swap)| Turns::baby_giant(layout.n, layout.tokens, layout.shift, babies, swap);
    let cost = |&split: &(usize, Swap)| {
        let (babies, giants) = split.1.steps(layout.shift, split.0);
        shape.inputs * (babies - 1) + shape.outputs * (giants - 1)
    };
    turns(splits.min_by_key(cost).unwrap_or((1, swaps[0])))
}

/// Noise of an output ciphertext.
///
/// Every turned input meets a plaintext of N coefficients up to `half`. What comes from one ciphertext's own error, or from one
/// switching key, is added linearly over all places where it occurs, because it is the same error; errors of different
/// ciphertexts and of different keys are independent. Coefficients of a plaintext are taken for unrelated to the digits that
/// the key switches make, as they are for any matrix that was not made from the client's public seeds.
fn noise(params: &ParameterSet, half: f64, shape: &Shape, turns: &Turns) -> NoiseBound {
    let n = params.n() as f64;
    let (inputs, giants) = (shape.inputs as f64, turns.giants.len() as f64);
    let fresh = NoiseBound::fresh().weighted_sum(inputs * n, half * turns.count() as f64);
    let switch = NoiseBound::key_switch(params);
    // Deviations of the key switches behind all babies of one ciphertext, and their deterministic parts.
    let (mut deviations, mut offsets) = (0.0, 0.0);
    for hoist in &turns.hoists {
        let (turned, depth) = (hoist.turns.len() as f64, turns.depth(hoist) as f64);
        deviations += turned.sqrt() + turned * depth.sqrt();
        offsets += turned * (1.0 + depth);
    }
    let sums = inputs * giants * half;
    let babies = NoiseBound {
        variance: switch.variance * n * (sums * deviations).powi(2),
        offset: switch.offset * n * sums * offsets,
    };
    let own = fresh.plus(&babies);
    NoiseBound {
        variance: own.variance + switch.variance * (giants - 1.0),
        offset: own.offset + switch.offset * (giants - 1.0),
    }
}
