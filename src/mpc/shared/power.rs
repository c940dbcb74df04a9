//! Reciprocal and inverse square root of positive values on shares: one per row, so bytes matter little.
//!
//! 1. Comparisons with `2^(L - u j)`, all at once, `u` = 1 for the reciprocal and 2 for the root, give the bucket `b` of the
//!    leading one; neighbours' XOR is one-hot.
//! 2. By selection of the shifted shares the value is normalised: `y` in `[1/2, 1)` or `[1/4, 1)`.
//! 3. `y^-1` or `y^(-1/2)` by [`Interpolation`]; the unused part of the circle takes the jump.
//! 4. The result is `2^b` times that, either way: extension, selection of the shifted shares, truncation.

use super::SharedError;
use super::coins::Coins;
use super::fields::{generate, low_mask};
use super::interpolate::Interpolation;
use super::logic::{Mux, mux, mux_cost, sign, sign_cost};
use super::meter::Cost;
use super::party::{Party, Shares};
use super::truncate::{Extend, Truncate};
use crate::arith::fixed::{PowerTable, RowPower, error};

/// Bits of the normalised value that count.
const CIRCLE: u32 = 16;
/// Bits of the table's index.
const INDEX: u32 = 7;
/// Bits of the client's share below the index that count.
const LOW: u32 = 6;
/// Bits of a table value.
const VALUE_BITS: u32 = 19;

/// A power of a positive value, in given rings.
#[derive(Clone, Debug)]
pub(super) struct SharedPower {
    /// Values are below `2^width`.
    width: u32,
    /// Bits from bucket to bucket.
    step: u32,
    /// Buckets.
    buckets: u32,
    /// Bits of the normalised value.
    circle: u32,
    /// `2^guard` times the result of bucket 0.
    table: Interpolation,
    /// Ring of the shifted result.
    wide: u32,
    /// Drops the guard.
    last: Truncate,
    /// Largest relative distance from the real function, but for rounding.
    relative: f64,
    /// That of the exact function.
    exact_relative: f64,
}

impl SharedPower {
    pub(super) fn new(
        f: &PowerTable,
        numerator: f64,
        in_frac: u32,
        out_frac: u32,
        input: u32,
        output: u32,
    ) -> Result<Self, SharedError> {
        let width = f.max_log2.saturating_add(1);
        if width < 4 || width >= input || f.min_log2 > f.max_log2 || !numerator.is_finite() || numerator <= 0.0 {
            return Err(SharedError::Range { what: "bits of the operand of a row's scale", value: width.into() });
        }
        let (step, exponent) = match f.power {
            RowPower::Reciprocal => (1, 1.0),
            RowPower::InverseSqrt => (2, 0.5),
        };
        let buckets = (width - f.min_log2).div_ceil(step);
        // The result for y is factor * y^-exponent * 2^bucket; y^-exponent is at most 2.
        let scale = (f64::from(in_frac) - f64::from(width)) * exponent + f64::from(out_frac);
        let factor = numerator * libm::exp2(scale);
        let guard = (f64::from(VALUE_BITS) - 1.0 - libm::ceil(libm::log2(factor))).clamp(0.0, 40.0) as u32;
        let largest = 2.0 * factor * libm::exp2(f64::from(guard));
        let value_bits = libm::ceil(libm::log2(largest * 1.01)).max(2.0) as u32;
        let ring = value_bits + 1;
        let wide = value_bits + buckets - 1 + 2;
        if ring > 32 || wide > 64 || guard + 2 > wide {
            return Err(SharedError::Range { what: "bits of a row's scale", value: wide.into() });
        }
        let circle = width.min(CIRCLE);
        let index = INDEX.min(circle - 1);
        let low = LOW.min(circle - index);
        let size = libm::exp2(f64::from(circle));
        // Positions in the lower half of the unused part continue the function above 1.
        let first = libm::exp2(-f64::from(step));
        let value = |position: f64| {
            let y = position / size;
            let y = if y < first / 2.0 { y + 1.0 } else { y.max(first * 0.9) };
            factor * libm::exp2(f64::from(guard)) * libm::pow(y, -exponent)
        };
        let table = Interpolation::new(circle, index, low, ring, 0, value)?;
        // Where bits are dropped to normalise, the position is off by one.
        let dropped = if width > circle { libm::exp2(1.0 - f64::from(circle)) } else { 0.0 };
        let relative = Self::relative_error(&table, value, circle, first) + dropped;
        let exact_relative = error(f.error_ppm) + libm::exp2(1.0 - f64::from(f.entry_bits));
        Ok(Self {
            width,
            step,
            buckets,
            circle,
            table,
            wide,
            last: Truncate::new(guard, wide, output)?,
            relative,
            exact_relative,
        })
    }

    /// The table's largest relative error over the positions that occur, for a spread of shares.
    fn relative_error(table: &Interpolation, value: impl Fn(f64) -> f64, circle: u32, first: f64) -> f64 {
        let start = (first * libm::exp2(f64::from(circle))) as u64;
        let mut worst = 0f64;
        for position in (start..1 << circle).step_by(11) {
            let real = value(position as f64);
            for turn in 0..4u64 {
                let client = position.wrapping_mul(0x9e37 + 2 * turn).wrapping_add(turn * 0x1fff) & low_mask(circle);
                worst = worst.max((table.simulate(position, client) as f64 - real).abs() / real);
            }
        }
        // The extremes need not be among them.
        worst * 1.25
    }

    /// Units of the last place that the result may be off by rounding.
    pub(super) fn error_bound(&self) -> u64 {
        2
    }

    /// Relative distance from the exact function, beside [`Self::error_bound`].
    pub(super) fn relative_error_bound(&self) -> f64 {
        self.relative + self.exact_relative
    }

    /// Relative distance from the real function, beside one unit.
    pub(super) fn real_relative_error(&self) -> f64 {
        self.relative
    }

    /// The ring in which values are compared.
    fn ring(&self) -> u32 {
        self.width + 1
    }

    /// The lower end of bucket `b`.
    fn threshold(&self, bucket: u32) -> u64 {
        1 << (self.width - self.step * (bucket + 1))
    }

    fn extension(&self) -> Extend {
        Extend { from: self.table.ring(), to: self.wide }
    }

    pub(super) fn cost(&self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let others = self.buckets as usize - 1;
        if others > 0 {
            sign_cost(self.ring(), count * others, cost)?;
        }
        mux_cost(count, &vec![self.circle; others + 1], cost)?;
        self.table.cost(count, cost)?;
        self.extension().cost(count, cost)?;
        mux_cost(count, &vec![self.wide; others + 1], cost)?;
        self.last.cost(count, cost)
    }

    pub(super) async fn run(&self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let count = x.len();
        let one_hot = self.buckets_of(party, x).await?;
        let shifted: Vec<Shares> =
            (0..self.buckets).map(|b| generate(count, |i| self.normalised(x[i], b, party.constant(1)))).collect();
        let position = self.chosen(party, &one_hot, &shifted, self.circle).await?;
        let value = self.table.run(party, &position).await?;
        let value = self.extension().run(party, &value).await?;
        let shifted: Vec<Shares> =
            (0..self.buckets).map(|b| generate(count, |i| (value[i] << b) & low_mask(self.wide))).collect();
        let result = self.chosen(party, &one_hot, &shifted, self.wide).await?;
        party.coin(&result);
        self.last.run(party, &result).await
    }

    /// Shares of the one-hot form of the bucket.
    async fn buckets_of(&self, party: &mut Party, x: &[u64]) -> Result<Vec<Shares>, SharedError> {
        let (count, others) = (x.len(), self.buckets as usize - 1);
        let one = party.constant(1);
        // Whether x reaches the lower end of bucket 0, 1, ...; the last bucket has all that is left.
        let mut reached = Shares::default();
        if others > 0 {
            let server = party.constant(1);
            let difference = generate(count * others, |i| {
                x[i / others].wrapping_sub(server * self.threshold((i % others) as u32)) & low_mask(self.ring())
            });
            let negative = sign(party, self.ring(), &difference).await?;
            reached = generate(count * others, |i| negative[i] ^ one);
        }
        let reaches = |i: usize, b: usize| if b < others { reached[i * others + b] } else { one };
        Ok((0..=others)
            .map(|b| generate(count, |i| reaches(i, b) ^ if b > 0 { reaches(i, b - 1) } else { 0 }))
            .collect())
    }

    /// A share of `x * 2^(step * bucket)`, the highest `circle` of its `width` bits; `unit` is added where bits are dropped.
    fn normalised(&self, x: u64, bucket: u32, unit: u64) -> u64 {
        let (x, up, down) = (x & low_mask(self.width), self.step * bucket, self.width - self.circle);
        if up >= down {
            (x << (up - down)) & low_mask(self.circle)
        } else {
            ((x >> (down - up)) + unit) & low_mask(self.circle)
        }
    }

    /// The sum of the selected values.
    async fn chosen(
        &self,
        party: &mut Party,
        one_hot: &[Shares],
        values: &[Shares],
        ring: u32,
    ) -> Result<Shares, SharedError> {
        let terms: Vec<Mux<'_>> = one_hot.iter().zip(values).map(|(bit, value)| Mux { bit, value, ring }).collect();
        let chosen = mux(party, &terms).await?;
        let count = one_hot.first().map_or(0, |b| b.len());
        Ok(generate(count, |i| chosen.iter().fold(0u64, |sum, c| sum.wrapping_add(c[i])) & low_mask(ring)))
    }

    pub(super) fn simulate(&self, client: &[u64], server: &[u64], coins: &mut Coins) -> Vec<u64> {
        let first = coins.draw(client.len(), self.circle);
        let second = coins.draw(client.len(), self.wide);
        (0..client.len())
            .map(|i| {
                let x = client[i].wrapping_add(server[i]) & low_mask(self.ring());
                let bucket = (0..self.buckets - 1).find(|&b| {
                    // As the protocol compares: by the highest bit of the difference.
                    x.wrapping_sub(self.threshold(b)) >> (self.ring() - 1) & 1 == 0
                });
                let bucket = bucket.unwrap_or(self.buckets - 1);
                let position = self.normalised(client[i], bucket, 0) + self.normalised(server[i], bucket, 1);
                let value = self.table.simulate(position & low_mask(self.circle), first[i]);
                let result = (value << bucket) & low_mask(self.wide);
                self.last.simulate(second[i], result.wrapping_sub(second[i]) & low_mask(self.wide))
            })
            .collect()
    }
}
