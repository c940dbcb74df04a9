//! The numerators of softmax on shares: `2^-D` of the distance `D` to the row's maximum.
//!
//! 1. Each party drops low bits of its shares of the scores, to `p` fraction bits; a tree of comparisons and selections
//!    gives the maximum of the row, in the narrow ring.
//! 2. Of `D = max - s`, shared modulo `2^w`, a party splits its share into a whole part `k` and a fraction `f` of its own.
//!    Then `2^-D = 2^-(k_C + k_S + 1) * 2^-f_C * 2^(1 - f_S)`, whether the fractions carry or not, and the sum of the whole
//!    parts is exact in its ring: neither a carry of fractions nor a table of `2^-x` is needed.
//! 3. One lookup by the lowest bits of `k_C` in the server's `2^(1 - f_S - j)` gives shares of `2^-(k_C + k_S + 1) * 2^(1 - f_S)`,
//!    and the carry of those bits; the client multiplies by its `2^-f_C` with COTs.
//! 4. Zero digits of the upper bits say whether the result is not 0 altogether; a selection, an extension to the output ring.
//!
//! The garbled function leaves the fraction of the row's maximum in all numerators of a row, a factor in `[1, 2)`, which saves
//! it comparisons; here it would cost carries. The quotient of softmax does not see the factor.
//!
//! A 1-of-64 table of `2^-x` after an exact carry of the fraction, then two 1-of-16 lookups for the shift, would take 80 + 12 +
//! 88 bytes where this takes 52 + 28, and would be coarser.

use super::SharedError;
use super::coins::Coins;
use super::cot::Batch;
use super::fields::{Fields, generate, low_mask};
use super::logic::{And, Mux, Zero, and, and_cost, mux, mux_cost, sign, sign_cost};
use super::lookup::{Lookup, equal};
use super::meter::Cost;
use super::party::{Party, Role, Shares};
use super::truncate::Extend;
use crate::arith::fixed::{ExpTable, error};

/// Least fraction bits kept of a score, if it has so many.
const FRACTION: u32 = 10;

/// Fraction bits of the powers of two that factors are made from.
const FACTOR_BITS: u32 = 30;

/// The numerators of rows, in given rings.
#[derive(Clone, Debug)]
pub(super) struct SharedExp {
    input: u32,
    output: u32,
    columns: usize,
    /// Bits dropped of a score.
    shift: u32,
    /// Fraction bits kept.
    fraction: u32,
    /// Fraction bits of the result.
    out_frac: u32,
    /// Bits of the whole part by which the lookup shifts.
    near: u32,
    /// Fraction bits of the client's factor.
    factor: u32,
    /// `2^(-i / 2^fraction)` for the upper and the lower bits of `i`.
    powers: [Vec<u64>; 2],
    /// Fraction bits of the exact function's scores.
    score_frac: u32,
    /// Relative error of the exact function's mantissas.
    exact_error: f64,
}

impl SharedExp {
    pub(super) fn new(f: &ExpTable, columns: usize, input: u32, output: u32) -> Result<Self, SharedError> {
        let range = |what, value| Err(SharedError::Range { what, value });
        if f.frac_bits > f.in_frac || !(2..=20).contains(&f.out_frac) || columns == 0 {
            return range("fraction bits of the numerators", f.out_frac.into());
        }
        let fraction = FRACTION.max(f.frac_bits + 2).min(f.in_frac).min(14);
        let shift = f.in_frac - fraction;
        if fraction < f.frac_bits || fraction < 2 || input < shift + fraction + 2 || input > 64 {
            return range("bits of the scores", input.into());
        }
        // 2^-2^near is nothing in the result.
        let near = (f.out_frac + 2).next_power_of_two().ilog2().min(input - shift - fraction);
        let low = fraction / 2;
        let power =
            |i: u64| libm::round(libm::exp2(f64::from(FACTOR_BITS) - i as f64 / f64::from(1u32 << fraction))) as u64;
        let powers =
            [(0..1u64 << (fraction - low)).map(|i| power(i << low)).collect(), (0..1u64 << low).map(power).collect()];
        Ok(Self {
            input,
            output,
            columns,
            shift,
            fraction,
            out_frac: f.out_frac,
            near,
            factor: f.out_frac.max(8),
            powers,
            score_frac: f.frac_bits,
            exact_error: error(f.error_ppm),
        })
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Bits of a score after the first step.
    fn width(&self) -> u32 {
        self.input - self.shift
    }

    /// Fraction bits of the server's factor.
    fn server_factor(&self) -> u32 {
        self.out_frac + 1
    }

    /// Ring of the product: below 2 in `factor + server_factor` fraction bits, highest bit clear.
    fn product_ring(&self) -> u32 {
        self.factor + self.server_factor() + 2
    }

    /// Bits dropped of the product.
    fn drop(&self) -> u32 {
        self.factor + self.server_factor() - self.out_frac
    }

    /// Ring of the result before its extension.
    fn result_ring(&self) -> u32 {
        self.out_frac + 2
    }

    /// The upper bits of the whole part.
    fn far(&self) -> Zero {
        Zero { bits: self.width() - self.fraction - self.near, targets: 2 }
    }

    /// Distance from the real function in units of the output: two units of the distance, one of rounding, and those of the
    /// factors.
    pub(super) fn real_error(&self) -> f64 {
        let distance = libm::exp2(2.0 / f64::from(1u32 << self.fraction)) - 1.0;
        distance * f64::from(1u32 << self.out_frac) + 3.5
    }

    /// Distance from [`ExpTable::eval_row`] over [`ExpTable::row_factor`]: its scores are rounded, so it is off by one unit
    /// of the distance, and its mantissas by their error.
    pub(super) fn error_bound(&self) -> u64 {
        let distance = libm::exp2(1.0 / f64::from(1u32 << self.score_frac)) - 1.0 + self.exact_error;
        (self.real_error() + distance * f64::from(1u32 << self.out_frac) + 1.5).ceil() as u64
    }

    pub(super) fn cost(&self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let (rows, width) = (count / self.columns, self.width());
        let mut left = self.columns;
        while left > 1 {
            sign_cost(width, rows * (left / 2), cost)?;
            mux_cost(rows * (left / 2), &[width], cost)?;
            left = left.div_ceil(2);
        }
        let mut sizes = vec![(self.near, self.product_ring() + 1)];
        sizes.extend(self.far().leaf_sizes());
        cost.lookups(count, &sizes)?;
        let batches: Vec<_> = (0..self.factor - 1).map(|j| (count, self.product_ring() - j)).collect();
        cost.products(&[], &batches)?;
        if self.far().bits > 0 {
            self.far().join_cost(count, cost)?;
            and_cost(count, &[1], cost)?;
            mux_cost(count, &[self.result_ring()], cost)?;
        }
        Extend { from: self.result_ring(), to: self.output }.cost(count, cost)
    }

    pub(super) async fn run(&self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let width = self.width();
        let count = x.len();
        let x = generate(count, |i| x[i] >> self.shift);
        let max = self.maximum(party, &x).await?;
        let distance = generate(count, |i| max[i / self.columns].wrapping_sub(x[i]) & low_mask(width));
        party.coin(&distance);
        let one = party.constant(1);
        let whole = |i: usize| ((distance[i] >> self.fraction) + one) & low_mask(width - self.fraction);
        let fraction = |i: usize| distance[i] & low_mask(self.fraction);

        let ring = self.product_ring();
        let mut lookups = vec![Lookup {
            k: self.near,
            fields: Fields::new(&[ring, 1])?,
            fill: Box::new(|i, entries| self.fill(whole(i), fraction(i), entries)),
            choice: Box::new(|i| whole(i) & low_mask(self.near)),
        }];
        lookups.extend(self.far().leaves(|i| whole(i) >> self.near)?);
        let mut looked = party.lookup(count, &lookups).await?.into_iter();
        let shifted = looked.next().ok_or(SharedError::Internal { what: "the lookup of a power of two" })?;
        let carry = generate(count, |i| shifted[i] >> ring);
        let shifted = generate(count, |i| shifted[i] & low_mask(ring));

        let product = self.multiply(party, &shifted, fraction).await?;
        party.coin(&product);
        let (drop, result) = (self.drop(), self.result_ring());
        let mut power = generate(count, |i| ((product[i] >> drop) + one) & low_mask(result));
        if self.far().bits > 0 {
            let zero = self.far().join(party, looked.collect()).await?;
            let change = generate(count, |i| zero[i] ^ (zero[i] >> 1));
            let alive = and(party, &[And { bit: &carry, bits: &change, width: 1 }]).await?;
            let alive = alive.first().ok_or(SharedError::Internal { what: "a conjunction" })?;
            let alive = generate(count, |i| (alive[i] ^ zero[i]) & 1);
            let mut chosen = mux(party, &[Mux { bit: &alive, value: &power, ring: result }]).await?;
            power = chosen.pop().ok_or(SharedError::Internal { what: "a selection" })?;
        }
        Extend { from: result, to: self.output }.run(party, &power).await
    }

    /// Shares of each row's maximum.
    async fn maximum(&self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let (rows, width) = (x.len() / self.columns, self.width());
        let mut left = self.columns;
        let mut values = generate(x.len(), |i| x[i]);
        while left > 1 {
            let pairs = left / 2;
            let at = |i: usize| i / pairs * left + i % pairs * 2;
            let difference =
                generate(rows * pairs, |i| values[at(i) + 1].wrapping_sub(values[at(i)]) & low_mask(width));
            let negative = sign(party, width, &difference).await?;
            let flip = party.constant(1);
            let greater = generate(rows * pairs, |i| negative[i] ^ flip);
            let rise = mux(party, &[Mux { bit: &greater, value: &difference, ring: width }]).await?;
            let rise = rise.first().ok_or(SharedError::Internal { what: "a selection" })?;
            let next = left.div_ceil(2);
            values = generate(rows * next, |i| {
                let (row, column) = (i / next, i % next);
                let value = values[row * left + 2 * column];
                let rise = if column < pairs { rise[row * pairs + column] } else { 0 };
                value.wrapping_add(rise) & low_mask(width)
            });
            left = next;
        }
        Ok(values)
    }

    /// `2^(bits - fraction)`, rounded: the product of two entries, found by passing over the tables.
    fn power(&self, fraction: u64, bits: u32) -> u64 {
        let low = self.fraction / 2;
        let pick =
            |table: &[u64], index: u64| (0u64..).zip(table).fold(0, |sum, (i, &entry)| sum | entry & equal(i, index));
        let product = pick(&self.powers[0], fraction >> low) * pick(&self.powers[1], fraction & low_mask(low));
        (product + (1 << (2 * FACTOR_BITS - bits - 1))) >> (2 * FACTOR_BITS - bits)
    }

    /// The client's factor `2^-f_C`, from `2^(factor-1) + 1` on.
    fn client_factor(&self, fraction: u64) -> u64 {
        self.power(fraction, self.factor).max((1 << (self.factor - 1)) + 1)
    }

    /// For each value of the client's low bits: the server's factor, shifted, and the carry of the low bits.
    fn fill(&self, whole: u64, fraction: u64, entries: &mut [u64]) {
        let own = self.power(fraction, self.server_factor() + 1);
        for (v, entry) in (0u64..).zip(entries) {
            let sum = (whole & low_mask(self.near)) + v;
            *entry = Self::shift(own, sum & low_mask(self.near)) | (sum >> self.near) << self.product_ring();
        }
    }

    /// `x / 2^by`, rounded half up.
    fn shift(x: u64, by: u64) -> u64 {
        ((x << 1 >> by) + 1) >> 1
    }

    /// Shares of `value` times the client's factor.
    async fn multiply(
        &self,
        party: &mut Party,
        value: &[u64],
        fraction: impl Fn(usize) -> u64 + Sync,
    ) -> Result<Shares, SharedError> {
        let (ring, count) = (self.product_ring(), value.len());
        // The factor's highest bit, and one more, are there always: the server multiplies by them alone.
        let known = (1 << (self.factor - 1)) + 1;
        let own = match party.role {
            Role::Client => generate(count, |i| self.client_factor(fraction(i))),
            Role::Server => generate(count, |_| known),
        };
        let mut sum = generate(count, |i| value[i].wrapping_mul(own[i]));
        let bits = self.factor - 1;
        let words: Vec<Shares> = (0..bits)
            .map(|j| match party.role {
                Role::Client => generate(count, |i| own[i].wrapping_sub(known) >> j),
                Role::Server => generate(count, |i| value[i] & low_mask(ring - j)),
            })
            .collect();
        let fields = (0..bits).map(|j| Fields::ring(ring - j)).collect::<Result<Vec<_>, _>>()?;
        let batches: Vec<_> = fields.iter().zip(&words).map(|(&f, w)| Batch::new(f, w)).collect();
        let (sent, received) = match party.role {
            Role::Client => party.products(&[], &batches).await?,
            Role::Server => party.products(&batches, &[]).await?,
        };
        for (j, products) in sent.iter().chain(&received).enumerate() {
            for (sum, product) in sum.iter_mut().zip(&**products) {
                *sum = sum.wrapping_add(product << j);
            }
        }
        sum.iter_mut().for_each(|x| *x &= low_mask(ring));
        Ok(sum)
    }

    pub(super) fn simulate(&self, client: &[u64], server: &[u64], coins: &mut Coins) -> Vec<u64> {
        let width = self.width();
        let reduce = |x: u64| (x & low_mask(self.input)) >> self.shift;
        let x: Vec<u64> = client.iter().zip(server).map(|(&c, &s)| (reduce(c) + reduce(s)) & low_mask(width)).collect();
        let max: Vec<u64> = x.chunks(self.columns).map(|row| self.simulate_maximum(row)).collect();
        let first = coins.draw(x.len(), width);
        let second = coins.draw(x.len(), self.product_ring());
        (0..x.len())
            .map(|i| {
                let distance = max[i / self.columns].wrapping_sub(x[i]) & low_mask(width);
                let own = [first[i], distance.wrapping_sub(first[i]) & low_mask(width)];
                let fraction = own.map(|d| d & low_mask(self.fraction));
                let whole = (own[0] >> self.fraction) + (own[1] >> self.fraction) + 1;
                let whole = whole & low_mask(width - self.fraction);
                let factor = self.power(fraction[1], self.server_factor() + 1);
                let shifted = Self::shift(factor, whole & low_mask(self.near));
                let product = (shifted * self.client_factor(fraction[0])) & low_mask(self.product_ring());
                let rest = product.wrapping_sub(second[i]) & low_mask(self.product_ring());
                let power = (second[i] >> self.drop()) + (rest >> self.drop()) + 1;
                if whole >> self.near == 0 { power & low_mask(self.result_ring()) & low_mask(self.output) } else { 0 }
            })
            .collect()
    }

    fn simulate_maximum(&self, row: &[u64]) -> u64 {
        let width = self.width();
        let mut values = row.to_vec();
        while values.len() > 1 {
            values = values
                .chunks(2)
                .map(|pair| match pair {
                    [a, b] if b.wrapping_sub(*a) >> (width - 1) & 1 == 0 => *b,
                    _ => pair[0],
                })
                .collect();
        }
        values.first().copied().unwrap_or(0)
    }
}
