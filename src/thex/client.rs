//! The client of a client-aided evaluation: decrypts, computes ReLU, encrypts again.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{
    Layout, Message, ModelShape, Pooling, Result, Step, ThexError,
    message::{MASKED, NEEDED_LIMBS},
    model::cube,
    refresh::{MASK_BITS, relayout},
};
use crate::{
    arith::sample::SecureRng,
    he::{
        SeededCiphertexts,
        ckks::{CkksClient, CkksContext, CkksKeys, CkksResponse, Fresh},
    },
};

/// A value that the client has decrypted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Seen {
    /// Layer, `None` for the outputs.
    pub layer: Option<usize>,
    /// What it is.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it was masked, so that the client learns nothing by it.
    pub masked: bool,
}

/// What a client does with a message.
#[derive(Debug)]
pub enum Answer {
    /// Sends another.
    Reply(Message),
    /// Is done: the outputs of the head.
    Done(Vec<f64>),
}

/// The client's state machine; it does no I/O.
pub struct ThexClient {
    he: CkksClient,
    shape: ModelShape,
    layout: Layout,
    /// Rows that are not padding.
    length: usize,
    step: Step,
    seen: Vec<Seen>,
    rng: SecureRng,
}

/// The forms of the client's fresh ciphertexts, which the server knows as well.
pub(super) struct Forms<'a> {
    pub ctx: &'a CkksContext,
    pub shape: &'a ModelShape,
    pub layout: &'a Layout,
}

impl Forms<'_> {
    /// ReLU of activations, and rows.
    pub fn activation(&self, limbs: usize) -> Fresh {
        self.ctx.fresh(limbs, self.shape.activation_limit)
    }

    /// Numerators of softmax.
    pub fn numerator(&self, limbs: usize) -> Fresh {
        self.ctx.fresh(limbs, cube(self.shape.score_limit))
    }

    /// Hidden units of the estimator: the largest that the server's estimator can give is not public, so the range is wide.
    pub fn units(&self, limbs: usize) -> Fresh {
        self.ctx.fresh(limbs, self.layout.tokens as f64 * cube(self.shape.score_limit))
    }

    /// Masked polynomials, whose coefficients are bounded and not their slots.
    pub fn masked(&self, limbs: usize) -> Fresh {
        self.ctx.fresh(limbs, 2f64.powi(MASK_BITS as i32 + 8) / self.ctx.scale())
    }

    /// Weights of the rows in the mean.
    pub fn pooling(&self, limbs: usize) -> Fresh {
        self.ctx.fresh(limbs, 1.0)
    }
}

impl ThexClient {
    /// A client with a new key, for sequences of up to `tokens` rows.
    ///
    /// # Errors
    /// [`ThexError::Depth`] or [`ThexError::Sequence`] if the parameters cannot carry the evaluation.
    pub fn new(ctx: Arc<CkksContext>, shape: ModelShape, tokens: usize, mut rng: SecureRng) -> Result<Self> {
        let layout = checked_layout(&ctx, tokens)?;
        let he = CkksClient::generate(ctx, &mut rng);
        Ok(Self { he, shape, layout, length: 0, step: Step::Output, seen: Vec::new(), rng })
    }

    /// The server's keys.
    ///
    /// # Errors
    /// If the parameters have no special prime.
    pub fn keys(&mut self) -> Result<CkksKeys> {
        Ok(self.he.keys(&self.layout.steps(), &mut self.rng)?)
    }

    /// The rotations that [`Self::keys`] has keys for.
    pub fn steps(&self) -> Vec<usize> {
        self.layout.steps()
    }

    /// Every value that was decrypted since [`Self::start`].
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    fn forms(&self) -> Forms<'_> {
        Forms { ctx: self.he.context(), shape: &self.shape, layout: &self.layout }
    }

    /// Begins with `rows`, `[length][hidden]`: sums of the embeddings before their norm.
    ///
    /// # Errors
    /// [`ThexError::Sequence`] if they are no rows or too many, [`ThexError::Range`] if one is too large.
    pub fn start(&mut self, rows: &[f32]) -> Result<Message> {
        let hidden = self.shape.hidden;
        let length = rows.len() / hidden;
        if length == 0 || length > self.layout.tokens || rows.len() != length * hidden {
            let detail = format!("{} values are not 1 to {} rows of {hidden}", rows.len(), self.layout.tokens);
            return Err(ThexError::Sequence(detail));
        }
        (self.length, self.step, self.seen) = (length, Step::Input, Vec::new());
        let rows: Zeroizing<Vec<f64>> = Zeroizing::new(rows.iter().map(|&x| x.into()).collect());
        self.check_range(0, "a row", &rows)?;
        let value = |token: usize, feature: usize| if token < length { rows[token * hidden + feature] } else { 0.0 };
        let dense = Zeroizing::new(self.layout.to_dense(0.0, hidden, value));
        let up = Step::Input.up(&self.shape, &self.layout);
        let mut batches = vec![(dense, self.forms().activation(up[0].limbs))];
        if self.shape.pooling == Pooling::Mean {
            // One over the length for its rows, in every block.
            let tokens = self.layout.tokens;
            let weight = |slot: usize| if slot % tokens < length { 1.0 / length as f64 } else { 0.0 };
            let weights = (0..self.layout.slots).map(weight).collect();
            batches.push((Zeroizing::new(weights), self.forms().pooling(up[1].limbs)));
        }
        self.send(Step::Input, &batches)
    }

    /// Reads the server's message and says what comes next.
    ///
    /// # Errors
    /// If it is not the message that comes now, or a value is out of the range of the approximation.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Answer> {
        let step = self.step.next(self.shape.layers);
        let step = step.ok_or_else(|| ThexError::Message("the evaluation is over".into()))?;
        let params = self.he.context().params().clone();
        let expected = Message::down_len(step, &params, &self.shape, &self.layout);
        let message = Message::from_bytes(step, expected, bytes)?;
        let responses = message.responses(&params, &step.down(&self.shape, &self.layout))?;
        self.step = step;
        let up = step.up(&self.shape, &self.layout);
        let (hidden, heads) = (self.shape.hidden, self.shape.heads);
        let limbs = |batch: usize| up[batch].limbs;
        let reply = match step {
            Step::Input => return Err(ThexError::Message("the server does not begin".into())),
            Step::Projections(layer) => {
                self.see(Some(layer), "queries, keys, values", vec![self.length, 3 * hidden], true);
                let dense = self.he.decrypt_integers(&responses[0])?;
                let parts = relayout(self.he.context().encoder(), &self.shape, &self.layout, &dense);
                let sent = [(parts.queries, limbs(0)), (parts.keys, limbs(1)), (parts.values, limbs(2))];
                self.send_masked(step, Vec::new(), &sent, responses[0].scale())?
            }
            Step::Scores(layer) => {
                self.see(Some(layer), "cubes of scores", vec![heads, self.length, self.length], false);
                let numerators = self.numerators(layer, &responses[0])?;
                self.send(step, &[(numerators, self.forms().numerator(limbs(0)))])?
            }
            Step::Estimator(layer) => {
                self.see(
                    Some(layer),
                    "inputs of the estimator's units",
                    vec![heads, self.length, self.shape.estimator],
                    false,
                );
                let form = self.forms().units(limbs(0));
                let mut units = self.he.decrypt(&responses[0])?;
                self.clear_padding(&mut units);
                relu(&mut units);
                check(layer, "a unit of the estimator", &units, form.magnitude)?;
                self.send(step, &[(units, form)])?
            }
            Step::Hidden(layer) => {
                self.see(Some(layer), "inputs of ReLU", vec![self.length, self.shape.intermediate], false);
                self.see(Some(layer), "hidden state", vec![self.length, hidden], true);
                let mut wide = self.he.decrypt(&responses[0])?;
                self.clear_padding(&mut wide);
                self.check_range(layer, "an activation", &wide)?;
                relu(&mut wide);
                let form = self.forms().activation(limbs(0));
                let wide = self.he.encrypt(&wide, form, &mut self.rng)?;
                let state = self.he.decrypt_integers(&responses[1])?;
                self.send_masked(step, vec![(wide, limbs(0))], &[(state, limbs(1))], responses[1].scale())?
            }
            Step::Output => {
                self.see(None, "outputs", vec![self.shape.outputs], false);
                let slots = self.he.decrypt(&responses[0])?;
                let tokens = self.layout.tokens;
                return Ok(Answer::Done((0..self.shape.outputs).map(|o| slots[o * tokens]).collect()));
            }
        };
        Ok(Answer::Reply(reply))
    }

    /// `ReLU` of cubes, diagonals of scores; rows and columns of padding weigh zero.
    fn numerators(&self, layer: usize, response: &CkksResponse) -> Result<Zeroizing<Vec<f64>>> {
        let cubes = self.he.decrypt(response)?;
        let (layout, heads, length) = (&self.layout, self.shape.heads, self.length);
        let tokens = layout.tokens;
        let mut scores = Zeroizing::new(vec![0.0; heads * tokens * tokens]);
        for (at, &value) in cubes.iter().enumerate() {
            if let Some((head, row, column)) = layout.score_at(heads, at / layout.slots, at % layout.slots)
                && row < length
                && column < length
            {
                scores[(head * tokens + row) * tokens + column] = value;
            }
        }
        // The score itself, for the range: x = 2 (cube root - 1).
        let largest = scores.iter().map(|c| 2.0 * (c.cbrt() - 1.0)).fold(0.0, |most: f64, x| most.max(x.abs()));
        if largest.is_nan() || largest > self.shape.score_limit {
            return Err(ThexError::Range { layer, what: "a score", found: largest, limit: self.shape.score_limit });
        }
        relu(&mut scores);
        let [low, high] = self.shape.sum_ranges[layer];
        let row = |head: usize, row: usize| scores[(head * tokens + row) * tokens..][..length].iter().sum::<f64>();
        let sums = (0..heads).flat_map(|head| (0..length).map(move |i| (head, i))).map(|(head, i)| row(head, i));
        if let Some(found) = sums.into_iter().find(|sum| !(low..=high).contains(sum)) {
            return Err(ThexError::SumRange { layer, found, low, high });
        }
        let value = |head: usize, row: usize, column: usize| scores[(head * tokens + row) * tokens + column];
        Ok(Zeroizing::new(layout.to_diagonals(0.0, heads, value)))
    }

    fn see(&mut self, layer: Option<usize>, name: &'static str, shape: Vec<usize>, masked: bool) {
        self.seen.push(Seen { layer, name, shape, masked });
    }

    /// Rows of padding in a dense layout are zero from here on.
    fn clear_padding(&self, dense: &mut [f64]) {
        let (tokens, length) = (self.layout.tokens, self.length);
        dense.chunks_mut(tokens).for_each(|block| block[length..].fill(0.0));
    }

    fn check_range(&self, layer: usize, what: &'static str, values: &[f64]) -> Result<()> {
        check(layer, what, values, self.shape.activation_limit)
    }

    fn send(&mut self, step: Step, batches: &[(Zeroizing<Vec<f64>>, Fresh)]) -> Result<Message> {
        let mut encrypted = Vec::with_capacity(batches.len());
        for (slots, form) in batches {
            encrypted.push((self.he.encrypt(slots, *form, &mut self.rng)?, form.limbs));
        }
        self.pack(step, &encrypted)
    }

    /// Batches that are encrypted already, and masked polynomials at the scale that they came with.
    fn send_masked(
        &mut self,
        step: Step,
        mut encrypted: Vec<(SeededCiphertexts, usize)>,
        masked: &[(Zeroizing<Vec<i128>>, usize)],
        scale: f64,
    ) -> Result<Message> {
        for (integers, limbs) in masked {
            let form = Fresh { scale, ..self.forms().masked(*limbs) };
            encrypted.push((self.he.encrypt_integers(integers, form, &mut self.rng)?, *limbs));
        }
        self.pack(step, &encrypted)
    }

    fn pack(&self, step: Step, batches: &[(SeededCiphertexts, usize)]) -> Result<Message> {
        let mut payload = Vec::new();
        for (batch, limbs) in batches {
            payload.extend(batch.to_bytes(&self.he.context().params().at_level(*limbs)?));
        }
        Ok(Message { step, payload })
    }
}

fn relu(values: &mut [f64]) {
    values.iter_mut().for_each(|x| *x = x.max(0.0));
}

/// Fails if a magnitude exceeds the limit, or is no number.
fn check(layer: usize, what: &'static str, values: &[f64], limit: f64) -> Result<()> {
    let found = values.iter().fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x.abs()) });
    if found <= limit { Ok(()) } else { Err(ThexError::Range { layer, what, found, limit }) }
}

/// The layout, if the parameters carry the evaluation.
pub(super) fn checked_layout(ctx: &CkksContext, tokens: usize) -> Result<Layout> {
    let found = ctx.params().key_limbs();
    const { assert!(MASKED < NEEDED_LIMBS) };
    if found < NEEDED_LIMBS || ctx.params().specials().is_empty() {
        return Err(ThexError::Depth { set: ctx.params().name(), needed: NEEDED_LIMBS, found });
    }
    Layout::new(ctx.slots(), tokens)
}
