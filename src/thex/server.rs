//! The server of a client-aided evaluation: everything but ReLU, on encrypted values.
//!
//! Levels (limbs before -> after), with fresh values of six or five limbs and two left at the end:
//!
//! * hidden state: `(r W2 + b2 + h) gamma + beta` 5 -> 4, projections 4 -> 3 (masked);
//! * scores: `q k` 5 -> 4, square 4 -> 3, cube 3 -> 2;
//! * estimator's units: 3 -> 2;
//! * context: `T` and `E V` 6 -> 5, their product 5 -> 4, attention's output with the residual 4 -> 3 (masked), feed-forward
//!   3 -> 2.
//!
//! A LayerNorm that is affine is folded into the map before it, and the factor `1 / 2 sqrt(d)` of a score into the query.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{
    ApproxModel, Layout, Message, ModelShape, Pooling, Result, Step, ThexError,
    client::{Forms, checked_layout},
    linear::Slots,
    message::{LAST, MASKED},
    model::{AffineNorm, ApproxLayer, Dense, cube},
    refresh::{MASK_BITS, masks, relayout},
};
use crate::{
    arith::sample::SecureRng,
    he::{
        SeededCiphertexts,
        ckks::{CkksCiphertexts, CkksContext, CkksKeys, CkksServer, Fresh},
    },
};

/// The server's state machine; it does no I/O.
pub struct ThexServer {
    he: CkksServer,
    model: Arc<ApproxModel>,
    shape: ModelShape,
    layout: Layout,
    /// What was sent last, whose answer comes next.
    step: Step,
    state: State,
    rng: SecureRng,
}

/// What is kept between messages.
#[derive(Default)]
struct State {
    /// The layer's input, four limbs.
    hidden: Option<CkksCiphertexts>,
    values: Option<CkksCiphertexts>,
    numerators: Option<CkksCiphertexts>,
    pooling: Option<CkksCiphertexts>,
    /// Masks of what was sent last, and its scale.
    masks: Zeroizing<Vec<i128>>,
    scale: f64,
}

impl ThexServer {
    /// A server of `model` for a client with `keys`, for sequences of up to `tokens` rows.
    ///
    /// # Errors
    /// If model, parameters and sequence do not fit.
    pub fn new(
        ctx: Arc<CkksContext>,
        model: Arc<ApproxModel>,
        tokens: usize,
        keys: &CkksKeys,
        rng: SecureRng,
    ) -> Result<Self> {
        let (shape, layout) = (model.shape()?, checked_layout(&ctx, tokens)?);
        let he = CkksServer::new(ctx, keys)?;
        Ok(Self { he, model, shape, layout, step: Step::Output, state: State::default(), rng })
    }

    /// The public sizes of the model.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn slots(&self) -> Slots<'_> {
        Slots { he: &self.he, layout: &self.layout }
    }

    fn forms(&self) -> Forms<'_> {
        Forms { ctx: self.he.context(), shape: &self.shape, layout: &self.layout }
    }

    fn scale(&self) -> f64 {
        self.he.context().scale()
    }

    /// Reads the client's message and answers. [`Step::Input`] begins anew at any time.
    ///
    /// # Errors
    /// If it is not the message that comes now, or encryption fails.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Message> {
        let step = if bytes.first() == Some(&0) { Step::Input } else { self.step };
        if step == Step::Output {
            return Err(ThexError::Message("the evaluation is over".into()));
        }
        let params = self.he.context().params().clone();
        let expected = Message::up_len(step, &params, &self.shape, &self.layout);
        let message = Message::from_bytes(step, expected, bytes)?;
        let batches = message.ciphertexts(&params, &step.up(&self.shape, &self.layout))?;
        let next = step.next(self.shape.layers).ok_or_else(|| ThexError::Message("the evaluation is over".into()))?;
        let model = self.model.clone();
        let payload = match step {
            Step::Input => self.input(&model, &batches)?,
            Step::Projections(_) => self.scores(&batches)?,
            Step::Scores(layer) => self.estimator_units(&model.layers[layer], &batches)?,
            Step::Estimator(layer) => self.attention(&model.layers[layer], &batches)?,
            Step::Hidden(layer) => self.next_layer(&model, layer, &batches)?,
            Step::Output => return Err(ThexError::Message("the evaluation is over".into())),
        };
        self.step = next;
        Ok(Message { step: next, payload })
    }

    /// The embedding's norm, then the first layer's projections.
    fn input(&mut self, model: &ApproxModel, batches: &[SeededCiphertexts]) -> Result<Vec<u8>> {
        self.state = State::default();
        let up = Step::Input.up(&self.shape, &self.layout);
        let rows = self.he.load(&batches[0], self.forms().activation(up[0].limbs))?;
        if let Some(weights) = batches.get(1) {
            self.state.pooling = Some(self.he.load(weights, self.forms().pooling(up[1].limbs))?);
        }
        let hidden = self.affine(&rows, &model.embedding_norm)?;
        let hidden = self.add_bias(&hidden, |feature| model.embedding_norm.beta.get(feature).map(|&b| b.into()))?;
        self.projections(&model.layers[0], hidden)
    }

    /// Columns times gamma, a limb lower.
    fn affine(&self, x: &CkksCiphertexts, norm: &AffineNorm) -> Result<CkksCiphertexts> {
        let (layout, he) = (&self.layout, &self.he);
        let scale = he.context().prime(x.limbs()) * self.scale() / x.ledger().scale;
        let gamma = |feature: usize| norm.gamma.get(feature).map_or(0.0, |&g| f64::from(g));
        let slots =
            |index: usize| (0..layout.slots).map(|slot| gamma(index * layout.dense() + slot / layout.tokens)).collect();
        Ok(he.rescale(&he.scale_slots(x, scale, slots)?)?)
    }

    /// Adds a number to every feature of dense ciphertexts.
    fn add_bias(&self, x: &CkksCiphertexts, bias: impl Fn(usize) -> Option<f64> + Sync) -> Result<CkksCiphertexts> {
        let layout = &self.layout;
        let slots = |index: usize| {
            let at = |slot: usize| bias(index * layout.dense() + slot / layout.tokens).unwrap_or(0.0);
            (0..layout.slots).map(at).collect()
        };
        Ok(self.he.add_plain(x, slots)?)
    }

    /// `x W`, dense features to dense features, a limb lower; columns times `factors`, where there are any.
    fn dense(&self, x: &CkksCiphertexts, map: &Dense, factors: Option<&[f32]>) -> Result<CkksCiphertexts> {
        let k = self.layout.dense();
        let row = move |a: usize, block: usize| Some(a * k + block).filter(|&row| row < map.inputs);
        self.dense_from(x, &row, map, factors)
    }

    fn dense_from(
        &self,
        x: &CkksCiphertexts,
        row: &(dyn Fn(usize, usize) -> Option<usize> + Sync),
        map: &Dense,
        factors: Option<&[f32]>,
    ) -> Result<CkksCiphertexts> {
        let k = self.layout.dense();
        let column = move |b: usize, block: usize| Some(b * k + block).filter(|&column| column < map.outputs);
        let entry = |row: usize, column: usize| {
            f64::from(map.weight[row * map.outputs + column]) * factors.map_or(1.0, |f| f64::from(f[column]))
        };
        self.slots().multiply(x, self.layout.dense_count(map.outputs), (row, &column), &entry, self.scale())
    }

    /// `(x W + b + h) gamma + beta`, at the lower of both levels.
    fn sublayer(
        &self,
        product: CkksCiphertexts,
        residual: &CkksCiphertexts,
        map: &Dense,
        norm: &AffineNorm,
    ) -> Result<CkksCiphertexts> {
        let sum = self.he.add(&product, &self.affine(residual, norm)?)?;
        let bias = |feature: usize| {
            let (b, gamma, beta) = (map.bias.get(feature)?, norm.gamma.get(feature)?, norm.beta.get(feature)?);
            Some(f64::from(*b) * f64::from(*gamma) + f64::from(*beta))
        };
        Ok(self.add_bias(&sum, bias)?.with_magnitude(self.shape.activation_limit))
    }

    /// Queries, keys and values, masked.
    fn projections(&mut self, layer: &ApproxLayer, hidden: CkksCiphertexts) -> Result<Vec<u8>> {
        let width = self.shape.hidden;
        let maps = [&layer.query, &layer.key, &layer.value];
        // Half of the score, as the cube wants it.
        let factor = |map: usize| if map == 0 { 0.5 / (self.shape.head_dim as f64).sqrt() } else { 1.0 };
        let k = self.layout.dense();
        let row = move |a: usize, block: usize| Some(a * k + block).filter(|&row| row < width);
        let column = move |b: usize, block: usize| Some(b * k + block).filter(|&column| column < 3 * width);
        let entry = |row: usize, column: usize| {
            let map = column / width;
            f64::from(maps[map].weight[row * width + column % width]) * factor(map)
        };
        let outputs = self.layout.dense_count(3 * width);
        let x = self.slots().multiply(&hidden, outputs, (&row, &column), &entry, self.scale())?;
        let bias = |feature: usize| {
            Some(f64::from(maps.get(feature / width)?.bias[feature % width]) * factor(feature / width))
        };
        let x = self.add_bias(&x, bias)?.with_magnitude(self.shape.activation_limit);
        self.state.hidden = Some(hidden);
        self.send_masked(&x)
    }

    /// Masks `x`, keeps the masks and gives the bytes.
    fn send_masked(&mut self, x: &CkksCiphertexts) -> Result<Vec<u8>> {
        let n = 2 * self.layout.slots;
        let masks = masks(n, x.len(), &mut self.rng);
        let negative: Zeroizing<Vec<i128>> = Zeroizing::new(masks.iter().map(|m| -m).collect());
        let x = self.he.drop_to(x, MASKED)?;
        // Coefficients, not slots, are what must fit q.
        let magnitude = 2f64.powi(MASK_BITS as i32) / x.ledger().scale;
        let masked = self.he.sub_integers(&x, &negative, magnitude)?;
        (self.state.masks, self.state.scale) = (masks, x.ledger().scale);
        let response = self.he.respond(&masked, MASKED, &mut self.rng)?;
        Ok(response.to_bytes(self.he.context().params()))
    }

    /// A masked batch, back without its mask. Its ledger begins anew: worst cases of a whole model would say nothing, so a bound is
    /// on the error since the last refreshment, as it is for what the client encrypts.
    fn unmasked(&self, batch: &SeededCiphertexts, limbs: usize, mask: &[i128]) -> Result<CkksCiphertexts> {
        let form = Fresh { scale: self.state.scale, ..self.forms().masked(limbs) };
        Ok(self.he.sub_integers(&self.he.load(batch, form)?, mask, self.shape.activation_limit)?)
    }

    fn send(&mut self, x: &CkksCiphertexts) -> Result<Vec<u8>> {
        Ok(self.he.respond(x, LAST, &mut self.rng)?.to_bytes(self.he.context().params()))
    }

    /// `(q k / 2 sqrt(d) + 1)^3`.
    fn scores(&mut self, batches: &[SeededCiphertexts]) -> Result<Vec<u8>> {
        let dense = std::mem::take(&mut self.state.masks);
        let masks = relayout(self.he.context().encoder(), &self.shape, &self.layout, &dense);
        let queries = self.unmasked(&batches[0], 5, &masks.queries)?;
        let keys = self.unmasked(&batches[1], 5, &masks.keys)?;
        self.state.values = Some(self.unmasked(&batches[2], 6, &masks.values)?);
        let (he, layout, slots) = (&self.he, &self.layout, self.slots());
        let (per_head, blocks, stride) = (layout.head_count(self.shape.head_dim), layout.blocks(), layout.stride());
        let tile = slots.tile(stride, per_head * blocks, keys.limbs());
        let mut halves = Vec::new();
        for head in 0..self.shape.heads {
            let mine: Vec<usize> = (head * per_head..(head + 1) * per_head).collect();
            let query = he.select(&queries, &mine)?;
            let low = slots.token_rotations(&he.select(&keys, &mine)?, &layout.low_digits())?;
            for first in (0..stride).step_by(tile) {
                let count = tile.min(stride - first);
                let some = (0..count).flat_map(|c| (0..per_head).map(move |f| f * stride + first + c));
                let turned =
                    slots.token_rotations(&he.select(&low, &some.collect::<Vec<_>>())?, &layout.high_digits())?;
                // [c][s][features], the rotation of the keys by c - Cs.
                let order = (0..count).flat_map(|c| (0..blocks).map(move |s| (c, (blocks - s) % blocks)));
                let order = order.flat_map(|(c, turn)| (0..per_head).map(move |f| (c * per_head + f) * blocks + turn));
                let turned = he.select(&turned, &order.collect::<Vec<_>>())?;
                let products = he.relinearise(&he.multiply_sums(&query, &turned, 1, per_head)?)?;
                let sums = he.rescale(&slots.sum_turned(&products, blocks, 2)?)?;
                halves.push(sums.with_magnitude(self.shape.score_limit / 2.0));
            }
        }
        let y = slots.merge(&he.concat(&halves.iter().collect::<Vec<_>>())?)?;
        let limit = self.shape.score_limit / 2.0 + 1.0;
        let y = he.add_plain(&y, |_| vec![1.0; layout.slots])?.with_magnitude(limit);
        let square = he.rescale(&he.relinearise(&he.multiply(&y, &y)?)?)?;
        let cubes = he.rescale(&he.relinearise(&he.multiply(&square, &y)?)?)?;
        self.send(&cubes)
    }

    /// `w s + b` for the sums `s` of the numerators' rows.
    fn estimator_units(&mut self, layer: &ApproxLayer, batches: &[SeededCiphertexts]) -> Result<Vec<u8>> {
        let (he, layout, slots) = (&self.he, &self.layout, self.slots());
        let numerators = he.load(&batches[0], self.forms().numerator(6))?;
        let low = he.drop_to(&numerators, 3)?;
        let of_head = |c: usize| (0..self.shape.heads).map(|head| head * layout.stride() + c).collect::<Vec<_>>();
        let mut sums = he.select(&low, &of_head(0))?;
        for c in 1..layout.stride() {
            sums = he.add(&sums, &he.select(&low, &of_head(c))?)?;
        }
        let sums = slots.sum_blocks(&sums, 2)?;
        // The second halves get the sums of the first.
        let every: Vec<_> = (0..sums.len()).map(|head| (head, layout.tokens)).collect();
        let sums = he.add(&sums, &he.rotate(&sums, &every)?)?;
        let largest = layout.tokens as f64 * cube(self.shape.score_limit);
        let sums = sums.with_magnitude(largest);
        let chunks = layout.dense_count(self.shape.estimator);
        let unit = |values: &[f32], chunk: usize, slot: usize| {
            values.get(chunk * layout.dense() + slot / layout.tokens).map_or(0.0, |&w| f64::from(w))
        };
        let spread = |values: &[f32], chunk: usize| (0..layout.slots).map(|slot| unit(values, chunk, slot)).collect();
        let estimator = &layer.estimator;
        let plain = he.encode(3, he.context().prime(3), (chunks, 1), |chunk, _| spread(&estimator.hidden, chunk))?;
        let units = he.rescale(&he.multiply_plain(&sums, &plain)?)?;
        let units = he.add_plain(&units, |index| spread(&estimator.hidden_bias, index % chunks))?;
        self.state.numerators = Some(numerators);
        self.send(&units)
    }

    /// Attention with its output map, residual and norm (masked), and the first map of the feed-forward network.
    fn attention(&mut self, layer: &ApproxLayer, batches: &[SeededCiphertexts]) -> Result<Vec<u8>> {
        let missing = || ThexError::Message("the evaluation did not begin".into());
        let values = self.state.values.take().ok_or_else(missing)?;
        let numerators = self.state.numerators.take().ok_or_else(missing)?;
        let hidden = self.state.hidden.take().ok_or_else(missing)?;
        let (he, layout, slots) = (&self.he, &self.layout, self.slots());
        let factors = self.reciprocals(layer, &he.load(&batches[0], self.forms().units(6))?)?;
        let (heads, head_dim) = (self.shape.heads, self.shape.head_dim);
        let (per_head, blocks, stride) = (layout.head_count(head_dim), layout.blocks(), layout.stride());
        let tile = slots.tile(stride, per_head * blocks, values.limbs());
        let even: Vec<usize> = (0..blocks).map(|s| 2 * s).collect();
        let mut contexts = Vec::with_capacity(heads);
        for head in 0..heads {
            let mine: Vec<usize> = (head * per_head..(head + 1) * per_head).collect();
            let low = slots.token_rotations(&he.select(&values, &mine)?, &layout.low_digits())?;
            let mut sums: Option<CkksCiphertexts> = None;
            for first in (0..stride).step_by(tile) {
                let count = tile.min(stride - first);
                let mine: Vec<usize> = (0..count).map(|c| head * stride + first + c).collect();
                // [c][s]
                let weights = slots.block_rotations(&he.select(&numerators, &mine)?, &even)?;
                let some = (0..count).flat_map(|c| (0..per_head).map(move |f| f * stride + first + c));
                let turned =
                    slots.token_rotations(&he.select(&low, &some.collect::<Vec<_>>())?, &layout.high_digits())?;
                // [features][c][s], the rotation of the values by Cs + c.
                let order = (0..per_head).flat_map(|f| (0..count).map(move |c| c * per_head + f));
                let order = order.flat_map(|base| (0..blocks).map(move |s| base * blocks + s));
                let turned = he.select(&turned, &order.collect::<Vec<_>>())?;
                let part = he.multiply_sums(&weights, &turned, 1, count * blocks)?;
                sums = Some(match sums {
                    Some(earlier) => he.add(&earlier, &part)?,
                    None => part,
                });
            }
            let sums = he.relinearise(&sums.ok_or_else(missing)?)?;
            let sums = he.rescale(&sums)?.divided_by(self.balance());
            let factor = he.select(&factors, &vec![head; per_head])?;
            let context = he.rescale(&he.relinearise(&he.multiply(&sums, &factor)?)?)?;
            contexts.push(context.with_magnitude(self.shape.activation_limit));
        }
        let context = slots.merge(&he.concat(&contexts.iter().collect::<Vec<_>>())?)?;
        let row = |a: usize, block: usize| {
            let (half, block) = layout.merged_source(a, block);
            let column = half % per_head * blocks + block;
            (half < heads * per_head && column < head_dim).then(|| half / per_head * head_dim + column)
        };
        let norm = &layer.attention_norm;
        let product = self.dense_from(&context, &row, &layer.attention_output, Some(&norm.gamma))?;
        let state = self.sublayer(product, &hidden, &layer.attention_output, norm)?;
        let wide = self.dense(&state, &layer.intermediate, None)?;
        let wide = self.add_bias(&wide, |feature| layer.intermediate.bias.get(feature).map(|&b| b.into()))?;
        let wide = wide.with_magnitude(self.shape.activation_limit);
        let mut payload = self.send(&wide)?;
        payload.extend(self.send_masked(&state)?);
        Ok(payload)
    }

    /// What `T` is multiplied by, and the products with the values divided by: of the order of a sum of numerators, so that both
    /// factors are of the order of one and neither's error is blown up.
    fn balance(&self) -> f64 {
        2.0 * self.layout.tokens as f64
    }

    /// `T(s)` times [`Self::balance`], in every slot of a row: one ciphertext a head.
    fn reciprocals(&self, layer: &ApproxLayer, units: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let (he, layout) = (&self.he, &self.layout);
        let chunks = layout.dense_count(self.shape.estimator);
        let estimator = &layer.estimator;
        let weight = |chunk: usize, slot: usize| {
            let unit = estimator.output.get(chunk * layout.dense() + slot / layout.tokens);
            unit.map_or(0.0, |&w| f64::from(w) * self.balance())
        };
        let prime = he.context().prime(units.limbs());
        let plain = he.encode(units.limbs(), prime, (1, chunks), |_, chunk| {
            (0..layout.slots).map(|slot| weight(chunk, slot)).collect()
        })?;
        let sums = he.rescale(&he.multiply_plain(units, &plain)?)?.with_magnitude(self.shape.activation_limit);
        let sums = self.slots().sum_blocks(&sums, 1)?;
        let bias = f64::from(estimator.output_bias) * self.balance();
        let sums = he.add_plain(&sums, |_| vec![bias; layout.slots])?;
        // T itself is at most about one: what it multiplies has been divided.
        Ok(sums.with_magnitude(self.balance() * self.shape.activation_limit))
    }

    /// The layer's end, then the next layer's projections or the head.
    fn next_layer(&mut self, model: &ApproxModel, index: usize, batches: &[SeededCiphertexts]) -> Result<Vec<u8>> {
        let layer = &model.layers[index];
        let up = Step::Hidden(index).up(&self.shape, &self.layout);
        let wide = self.he.load(&batches[0], self.forms().activation(up[0].limbs))?;
        let masks = std::mem::take(&mut self.state.masks);
        let state = self.unmasked(&batches[1], up[1].limbs, &masks)?;
        let product = self.dense(&wide, &layer.output, Some(&layer.output_norm.gamma))?;
        let hidden = self.sublayer(product, &state, &layer.output, &layer.output_norm)?;
        match model.layers.get(index + 1) {
            Some(next) => self.projections(next, hidden),
            None => self.head(model, &hidden),
        }
    }

    /// The head on the first row or on the mean; all other slots are cleared.
    fn head(&mut self, model: &ApproxModel, hidden: &CkksCiphertexts) -> Result<Vec<u8>> {
        let (he, layout) = (&self.he, &self.layout);
        let head = &model.head;
        let mut x = self.dense(hidden, head, None)?.with_magnitude(self.shape.activation_limit);
        if model.pooling == Pooling::Mean {
            let weights = self
                .state
                .pooling
                .take()
                .ok_or_else(|| ThexError::Message("the weights of rows are missing".into()))?;
            let weights = he.select(&weights, &vec![0; x.len()])?;
            x = he.rescale(&he.relinearise(&he.multiply(&x, &weights)?)?)?;
            let mut unit = 1;
            while unit < layout.tokens {
                let every: Vec<_> = (0..x.len()).map(|k| (k, unit)).collect();
                x = he.add(&x, &he.rotate(&x, &every)?)?;
                unit *= 2;
            }
        }
        let x = x.with_magnitude(self.shape.activation_limit);
        let first = |slot: usize| if slot.is_multiple_of(layout.tokens) { 1.0 } else { 0.0 };
        let mask = |index: usize| {
            let inside = |slot: usize| index * layout.dense() + slot / layout.tokens < head.outputs;
            (0..layout.slots).map(|slot| if inside(slot) { first(slot) } else { 0.0 }).collect()
        };
        let x = he.rescale(&he.scale_slots(&x, he.context().prime(x.limbs()), mask)?)?;
        let x = self.add_bias(&x, |feature| head.bias.get(feature).map(|&b| b.into()))?;
        self.send(&x)
    }
}
