//! `tanh` on shares: lines within its range, a constant of the right sign outside.

use super::SharedError;
use super::coins::Coins;
use super::fields::{generate, low_mask};
use super::interpolate::Interpolation;
use super::logic::{Mux, mux, mux_cost};
use super::meter::Cost;
use super::party::{Party, Shares};
use super::range::Range;
use super::truncate::Extend;
use crate::arith::fixed::{TanhTable, error};

/// Most fraction bits kept of the input.
const FRACTION: u32 = 12;
/// Fraction bits of table values beyond the output's.
const GUARD: u32 = 2;

/// `tanh` in given rings.
#[derive(Clone, Debug)]
pub(super) struct SharedTanh {
    input: u32,
    output: u32,
    /// Bits dropped at the beginning.
    shift: u32,
    /// Bits of the range, and of the circle of twice its length.
    range: u32,
    circle: u32,
    /// `1 + tanh` with [`GUARD`] more fraction bits than the output.
    table: Interpolation,
    out_frac: u32,
    /// The result far out.
    limit: u64,
    /// Distances from the exact and the real function, in units of the output.
    error: f64,
    real_error: f64,
}

impl SharedTanh {
    pub(super) fn new(f: &TanhTable, input: u32, output: u32) -> Result<Self, SharedError> {
        let fraction = f.in_frac.min(FRACTION);
        let shift = f.in_frac - fraction;
        let range = fraction + f.range_log2;
        let circle = range + 2;
        if shift + circle > input || input > 64 || !(2..=16).contains(&f.out_frac) || f.range_log2 > 4 || circle < 10 {
            return Err(SharedError::Range { what: "bits of the input of tanh", value: input.into() });
        }
        let size = libm::exp2(f64::from(circle));
        let one = libm::exp2(f64::from(f.out_frac + GUARD));
        let real = |position: f64| {
            let x = if position < size / 2.0 { position } else { position - size };
            (1.0 + libm::tanh(x * libm::exp2(-f64::from(fraction)))) * one
        };
        let ring = f.out_frac + GUARD + 3;
        let table = Interpolation::new(circle, 8, (circle - 8).min(5), ring, 1 << range, real)?;
        let limit = f.limit() as u64;
        // What is left to 1 at the range's end.
        let end = libm::exp2(f64::from(f.out_frac)) * (1.0 - libm::tanh(f64::from(1u32 << f.range_log2)));
        let exact = error(f.error_ppm) * libm::exp2(f64::from(f.out_frac));
        let error = 3.5 + table.error() / f64::from(1 << GUARD) + exact;
        let real_error = 2.5 + end + table.error() / f64::from(1 << GUARD);
        Ok(Self { input, output, shift, range, circle, table, out_frac: f.out_frac, limit, error, real_error })
    }

    pub(super) fn error_bound(&self) -> u64 {
        self.error.ceil() as u64
    }

    pub(super) fn real_error(&self) -> f64 {
        self.real_error
    }

    fn ranges(&self) -> Range {
        Range { ring: self.input - self.shift, bits: self.range }
    }

    /// Ring of the result before its extension: a sign and twice the range.
    fn ring(&self) -> u32 {
        self.out_frac + 3
    }

    pub(super) fn cost(&self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        self.ranges().cost(count, cost)?;
        self.table.cost(count, cost)?;
        mux_cost(count, &[self.ring()], cost)?;
        mux_cost(count, &[self.ring()], cost)?;
        Extend { from: self.ring(), to: self.output }.cost(count, cost)
    }

    pub(super) async fn run(&self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let (count, ring) = (x.len(), self.ring());
        let unit = party.constant(u64::from(self.shift > 0));
        let kept = self.input - self.shift;
        let x = generate(count, |i| (x[i] >> self.shift).wrapping_add(unit) & low_mask(kept));
        let state = self.ranges().run(party, &x).await?;
        let fine = self.table.run(party, &x).await?;
        party.coin(&fine);
        let constant = party.constant(self.constant());
        let near = generate(count, |i| self.near(fine[i], constant));
        // Outside: the limit, less twice the limit for a negative value.
        let change = party.constant((2 * self.limit).wrapping_neg() & low_mask(ring));
        let change = generate(count, |_| change);
        let outside = mux(party, &[Mux { bit: &state, value: &change, ring }]).await?;
        let outside = outside.first().ok_or(SharedError::Internal { what: "a selection" })?;
        let limit = party.constant(self.limit);
        let outside = generate(count, |i| outside[i].wrapping_add(limit) & low_mask(ring));
        let difference = generate(count, |i| near[i].wrapping_sub(outside[i]) & low_mask(ring));
        let inside = generate(count, |i| state[i] >> 1);
        let chosen = mux(party, &[Mux { bit: &inside, value: &difference, ring }]).await?;
        let chosen = chosen.first().ok_or(SharedError::Internal { what: "a selection" })?;
        let lift = party.constant(1 << (ring - 2));
        let y = generate(count, |i| outside[i].wrapping_add(chosen[i]).wrapping_add(lift) & low_mask(ring));
        let y = Extend { from: ring, to: self.output }.run(party, &y).await?;
        Ok(generate(count, |i| y[i].wrapping_sub(lift) & low_mask(self.output)))
    }

    /// A table value (or a share of one) without its guard bits.
    fn near(&self, fine: u64, constant: u64) -> u64 {
        (fine >> GUARD).wrapping_add(constant) & low_mask(self.ring())
    }

    /// One unit for the carry, less the table's 1.
    fn constant(&self) -> u64 {
        1u64.wrapping_sub(1 << self.out_frac)
    }

    pub(super) fn simulate(&self, client: &[u64], server: &[u64], coins: &mut Coins) -> Vec<u64> {
        let kept = self.input - self.shift;
        let reduce = |x: u64| (x & low_mask(self.input)) >> self.shift;
        let first = coins.draw(client.len(), self.circle);
        let second = coins.draw(client.len(), self.table.ring());
        (0..client.len())
            .map(|i| {
                let x = reduce(client[i]) + reduce(server[i]) + u64::from(self.shift > 0);
                let x = ((x << (64 - kept)) as i64) >> (64 - kept);
                let limit = 1i64 << self.range;
                let y = if (-limit..limit).contains(&x) {
                    let fine = self.table.simulate(x as u64 & low_mask(self.circle), first[i]);
                    let rest = fine.wrapping_sub(second[i]) & low_mask(self.table.ring());
                    let near = (second[i] >> GUARD) + (rest >> GUARD);
                    let near = near.wrapping_add(self.constant()) & low_mask(self.ring());
                    ((near << (64 - self.ring())) as i64) >> (64 - self.ring())
                } else if x < 0 {
                    -(self.limit as i64)
                } else {
                    self.limit as i64
                };
                y as u64 & low_mask(self.output)
            })
            .collect()
    }
}
