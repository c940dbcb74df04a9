//! Smooth activations `max(x, 0) - g(|x|)` and ReLU on shares.
//!
//! 1. Each party drops the fraction bits that the output does not have: `x'`, rounded down or up, in a narrow ring.
//! 2. Sign of `x'`, and whether `g` is not 0 there: [`Range`].
//! 3. `max(x', 0)` by selection, hence `|x'|` without another message; `g` by [`Interpolation`]; selection by the range.
//! 4. Both parts, non-negative, are extended to the output's ring.
//!
//! Why lines: with constants alone an error of 0.008 takes 128 cells of 8 bits, 128 bytes; 32 lines of 2 x 11 bits take 85
//! and are within 0.005. A polynomial per piece would need the same lookup for its coefficients, and then products.

use super::SharedError;
use super::coins::Coins;
use super::fields::{generate, low_mask};
use super::interpolate::Interpolation;
use super::logic::{Mux, mux, mux_cost, sign, sign_cost};
use super::meter::Cost;
use super::party::{Party, Shares};
use super::range::Range;
use super::truncate::{Extend, extend};
use crate::arith::fixed::{Activation, ActivationTable, error};

/// Fraction bits of `g` beyond the output's.
const GUARD: u32 = 2;

/// An activation in given rings.
#[derive(Clone, Debug)]
pub(super) struct SharedActivation {
    input: u32,
    output: u32,
    /// Bits dropped at the beginning.
    shift: u32,
    smooth: Option<Smooth>,
}

#[derive(Clone, Debug)]
struct Smooth {
    /// Bits of `x'` below the range's end.
    range: u32,
    /// `|x'|` times `2^stretch - 1` is the position on the table's circle of `range + stretch` bits, which leaves at least two
    /// cells between the range's end and 0: there the slope of `g` jumps.
    stretch: u32,
    /// `g` with [`GUARD`] more fraction bits than the output.
    table: Interpolation,
    /// What makes results of the table non-negative.
    lift: u64,
    /// Distance from the oracle's pieces, in units of the output.
    error: f64,
}

impl Smooth {
    fn range(&self, kept: u32) -> Range {
        Range { ring: kept, bits: self.range }
    }

    /// The position on the circle for a magnitude (or a share of one); not reduced.
    fn position(&self, magnitude: u64) -> u64 {
        magnitude.wrapping_mul(((1 << self.stretch) - 1u64).max(1))
    }
}

impl SharedActivation {
    pub(super) fn new(f: &ActivationTable, input: u32, output: u32) -> Result<Self, SharedError> {
        let shift = f.in_frac.saturating_sub(f.out_frac);
        if f.in_frac < f.out_frac || shift + 3 > input || input > 64 {
            return Err(SharedError::Range { what: "bits of an activation's input", value: input.into() });
        }
        let mut this = Self { input, output, shift, smooth: None };
        if f.activation == Activation::Relu {
            return Ok(this);
        }
        let range = f.out_frac + f.range_log2;
        if range + 1 > this.kept() {
            let value = this.kept().into();
            return Err(SharedError::Range { what: "bits of an activation's input after truncation", value });
        }
        let scale = libm::exp2(f64::from(f.out_frac + GUARD));
        let real = |x: f64| -f.activation.real(-x * libm::exp2(-f64::from(f.out_frac))) * scale;
        let largest = (0..64u32 << f.range_log2).map(|i| real(f64::from(i) * libm::exp2(f64::from(f.out_frac)) / 64.0));
        let largest = largest.fold(0.0, f64::max);
        // Lines of an eighth are within 0.005, and a fourfold error takes half as many.
        let lines = libm::ceil(-libm::log2(30.0 * error(f.error_ppm))).max(0.0) as u32;
        let index = (f.range_log2 + lines).clamp(2, 8).min(range);
        let stretch = match (index - 1).min(this.kept() - range) {
            1 => 0,
            stretch => stretch,
        };
        let circle = range + stretch;
        let (factor, size) = (f64::from((1u32 << stretch) - u32::from(stretch > 0)), libm::exp2(f64::from(circle)));
        let jump = size - libm::exp2(f64::from(circle - index));
        let g = |position: f64| real(if stretch > 0 && position > jump { position - size } else { position } / factor);
        let used = (((1u64 << stretch) - 1).max(1) << range) + 1;
        // Lines may run below zero, by a quarter of the largest value at the very most.
        let lift = libm::ceil(largest / f64::from(4 << GUARD)) as u64;
        // A clear highest bit for the extension.
        let ring = libm::ceil(libm::log2(largest * 1.25 + f64::from(4 << GUARD))) as u32 + 1;
        let table = Interpolation::new(circle, index, (circle - index).min(4), ring, used, g)?;
        // The oracle's pieces are off by what they are allowed.
        let exact = f.pieces();
        let error = (0..1usize << range)
            .map(|p| {
                let entry = exact.as_ref().map_or(0, |g| g.eval((p as u64) << (f.in_frac - f.out_frac)));
                (entry as f64 - real(p as f64) / f64::from(1 << GUARD)).abs()
            })
            .fold(0.0, f64::max);
        this.smooth = Some(Smooth { range, stretch, table, lift, error });
        Ok(this)
    }

    /// Bits of `x'`.
    fn kept(&self) -> u32 {
        self.input - self.shift
    }

    /// Distance from [`ActivationTable::eval`] in units of the output.
    pub(super) fn error_bound(&self) -> u64 {
        // x' is off by one; g by its lines, one rounding, and half a unit for the unit of x' (its slope is below 1/2).
        match &self.smooth {
            None => 1,
            Some(s) => (2.5 + s.error + s.table.error() / f64::from(1 << GUARD)).ceil() as u64,
        }
    }

    /// Distance from the real function in units of the output.
    pub(super) fn real_error(&self) -> f64 {
        match &self.smooth {
            None => 1.0,
            Some(s) => 2.5 + s.table.error() / f64::from(1 << GUARD),
        }
    }

    pub(super) fn cost(&self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let kept = self.kept();
        let Some(smooth) = &self.smooth else {
            sign_cost(kept, count, cost)?;
            mux_cost(count, &[kept], cost)?;
            return Extend { from: kept, to: self.output }.cost(count, cost);
        };
        smooth.range(kept).cost(count, cost)?;
        mux_cost(count, &[kept], cost)?;
        smooth.table.cost(count, cost)?;
        let ring = smooth.table.ring() - GUARD;
        mux_cost(count, &[ring], cost)?;
        Extend::cost_many(
            &[Extend { from: kept, to: self.output }, Extend { from: ring, to: self.output }],
            count,
            cost,
        )
    }

    pub(super) async fn run(&self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let (kept, count) = (self.kept(), x.len());
        let unit = party.constant(u64::from(self.shift > 0));
        let x = generate(count, |i| (x[i] >> self.shift).wrapping_add(unit) & low_mask(kept));
        let Some(smooth) = &self.smooth else {
            let negative = sign(party, kept, &x).await?;
            let relu = self.relu(party, &negative, &x).await?;
            return Extend { from: kept, to: self.output }.run(party, &relu).await;
        };
        let state = smooth.range(kept).run(party, &x).await?;
        let inside = generate(count, |i| state[i] >> 1);
        // Both parts.
        let relu = self.relu(party, &state, &x).await?;
        let position = generate(count, |i| smooth.position((relu[i] << 1).wrapping_sub(x[i])));
        let fine = smooth.table.run(party, &position).await?;
        party.coin(&fine);
        let ring = smooth.table.ring() - GUARD;
        let unit = party.constant(1);
        let coarse = generate(count, |i| (fine[i] >> GUARD).wrapping_add(unit) & low_mask(ring));
        let bump = mux(party, &[Mux { bit: &inside, value: &coarse, ring }]).await?;
        let bump = bump.first().ok_or(SharedError::Internal { what: "a selection" })?;
        let lift = party.constant(smooth.lift);
        let bump = generate(count, |i| bump[i].wrapping_add(lift) & low_mask(ring));
        let parts =
            [(Extend { from: kept, to: self.output }, &relu[..]), (Extend { from: ring, to: self.output }, &bump[..])];
        let parts = extend(party, &parts).await?;
        let [relu, bump] = &parts[..] else { return Err(SharedError::Internal { what: "an extension" }) };
        Ok(generate(count, |i| relu[i].wrapping_sub(bump[i]).wrapping_add(lift) & low_mask(self.output)))
    }

    /// `max(x, 0)` from shares of the sign.
    async fn relu(&self, party: &mut Party, negative: &[u64], x: &[u64]) -> Result<Shares, SharedError> {
        let flip = party.constant(1);
        let positive = generate(x.len(), |i| negative[i] ^ flip);
        let mut relu = mux(party, &[Mux { bit: &positive, value: x, ring: self.kept() }]).await?;
        relu.pop().ok_or(SharedError::Internal { what: "a selection" })
    }

    pub(super) fn simulate(&self, client: &[u64], server: &[u64], coins: &mut Coins) -> Vec<u64> {
        let kept = self.kept();
        let signed = |x: u64| ((x << (64 - kept)) as i64) >> (64 - kept);
        let reduce = |x: u64| (x & low_mask(self.input)) >> self.shift;
        let unit = u64::from(self.shift > 0);
        let values = client.iter().zip(server).map(|(&c, &s)| signed(reduce(c) + reduce(s) + unit));
        let Some(smooth) = &self.smooth else {
            return values.map(|x| x.max(0) as u64 & low_mask(self.output)).collect();
        };
        let ring = smooth.table.ring();
        let first = coins.draw(client.len(), smooth.range + smooth.stretch);
        let second = coins.draw(client.len(), ring);
        values
            .zip(first.into_iter().zip(second))
            .map(|(x, (first, second))| {
                let position = smooth.position(x.unsigned_abs()) & low_mask(smooth.range + smooth.stretch);
                let fine = smooth.table.simulate(position, first);
                let rest = fine.wrapping_sub(second) & low_mask(ring);
                let coarse = ((second >> GUARD) + (rest >> GUARD) + 1) & low_mask(ring - GUARD);
                let limit = 1i64 << smooth.range;
                let bump = if (-limit..limit).contains(&x) { coarse } else { 0 };
                // The extension takes the lifted value for a non-negative one.
                let bump = bump.wrapping_add(smooth.lift) & low_mask(ring - GUARD);
                (x.max(0) as u64).wrapping_sub(bump).wrapping_add(smooth.lift) & low_mask(self.output)
            })
            .collect()
    }
}
