//! A function of a shared number on a circle of `2^n`, by a short table with linear interpolation.
//!
//! The client's share is cut to its `k` highest bits, the table's index, and `t` more bits `low`; the server's share is
//! used whole, up to [`Interpolation::SUB_BITS`] bits below a cell. For each index the server knows where the cell begins
//! and so enters a line `a + slope * low` that fits the function over just this cell: there is no carry to be computed, and
//! no cell border. Then `slope_C * low` is the client's own product, and `slope_S * low` takes `t` COTs.
//!
//! Where the function jumps a line fits nothing, over one cell to either side; so where `f(0)` does not follow smoothly on
//! `f(2^n - 1)`, leave two cells of the circle unused and put the jump in their middle.

use super::SharedError;
use super::cot::Batch;
use super::fields::{Fields, generate, low_mask};
use super::lookup::{Lookup, equal};
use super::meter::Cost;
use super::party::{Party, Role, Shares};

/// A function by lines; see the module.
#[derive(Clone, Debug)]
pub(super) struct Interpolation {
    /// Bits of the circle.
    circle: u32,
    /// Bits of the index.
    index: u32,
    /// Bits of `low`.
    low: u32,
    /// Bits of the server's share below a cell that choose the lines.
    sub: u32,
    /// Bits of the result's ring.
    ring: u32,
    /// `[sub][index]`: value in the low `ring` bits, slope in the next `ring`.
    lines: Vec<u64>,
    /// Largest distance from the function, in units of the result.
    error: f64,
}

impl Interpolation {
    /// Most bits of the server's share that are told apart within a cell.
    const SUB_BITS: u32 = 6;

    /// Lines for `f`, which maps positions `[0, 2^circle)` to values in units of the result; these count modulo `2^ring`.
    /// [`Self::error`] is taken over positions below `used`; none if the caller measures it otherwise.
    pub(super) fn new(
        circle: u32,
        index: u32,
        low: u32,
        ring: u32,
        used: u64,
        f: impl Fn(f64) -> f64,
    ) -> Result<Self, SharedError> {
        if !(1..=8).contains(&index) || circle > 32 || index + low > circle || !(1..=32).contains(&ring) {
            return Err(SharedError::Range { what: "bits of an interpolated table", value: circle.into() });
        }
        let cell = circle - index;
        let sub = cell.min(Self::SUB_BITS);
        let (step, rest) = (1u64 << (cell - low), 1u64 << (cell - sub));
        let size = 1u64 << circle;
        let points = 1u64 << low;
        // Positions in half units: the middle of a step may be one.
        let direct = |half: u64| f(half as f64 / 2.0);
        // Long tables ask for every position many times.
        let known: Vec<f64> =
            if sub + index + low + 2 > circle + 1 { (0..2 * size).map(direct).collect() } else { Vec::new() };
        let wrapped = |half: u64| {
            let half = half % (2 * size);
            known.get(half as usize).copied().unwrap_or_else(|| direct(half))
        };
        let mut lines = Vec::with_capacity(1 << (sub + index));
        let mut error = 0f64;
        for s in 0..1u64 << sub {
            for v in 0..1u64 << index {
                let first = (v << cell) + s * rest;
                let middle = |j: u64| wrapped(2 * (first + j * step) + (step - 1) + (rest - 1));
                let values: Vec<f64> = (0..points).map(middle).collect();
                let (a, slope) = fit(&values);
                lines.push(a as u64 & low_mask(ring) | (slope as u64 & low_mask(ring)) << ring);
                for j in 0..if used > 0 { points } else { 0 } {
                    let line = a as f64 + slope as f64 * j as f64;
                    // The interval that this line and step stand for.
                    let (start, end) = (first + j * step, first + (j + 1) * step + rest - 2);
                    for half in [2 * start, start + end, 2 * end] {
                        if half % (2 * size) < 2 * used {
                            error = error.max((line - wrapped(half)).abs());
                        }
                    }
                }
            }
        }
        Ok(Self { circle, index, low, sub, ring, lines, error })
    }

    /// Largest distance from the function, in units of the result.
    pub(super) fn error(&self) -> f64 {
        // Between the ends and the middle of a step a smooth function does not move by more.
        self.error * 1.02 + 0.1
    }

    /// Bits of the result's ring.
    pub(super) fn ring(&self) -> u32 {
        self.ring
    }

    fn line(&self, line: u64) -> (u64, u64) {
        (line & low_mask(self.ring), line >> self.ring)
    }

    fn cell(&self) -> u32 {
        self.circle - self.index
    }

    fn low_bits(&self, x: u64) -> u64 {
        (x >> (self.cell() - self.low)) & low_mask(self.low)
    }

    /// The server's lines for all indices of the client: row `sub` of the table, turned by the cells of its share. Passes
    /// over the whole table, and turns by every power of two, whatever the share.
    fn fill(&self, share: u64, entries: &mut [u64]) {
        let row = (share >> (self.cell() - self.sub)) & low_mask(self.sub);
        entries.fill(0);
        for (s, lines) in (0u64..).zip(self.lines.chunks_exact(1 << self.index)) {
            let chosen = equal(s, row);
            for (entry, line) in entries.iter_mut().zip(lines) {
                *entry |= line & chosen;
            }
        }
        let turn = share >> self.cell();
        let mut turned = [0; 256];
        let turned = &mut turned[..entries.len()];
        for bit in 0..self.index {
            let chosen = super::fields::select(turn >> bit);
            let (head, tail) = entries.split_at(1 << bit);
            let (body, end) = turned.split_at_mut(tail.len());
            body.copy_from_slice(tail);
            end.copy_from_slice(head);
            for (entry, turned) in entries.iter_mut().zip(&*turned) {
                *entry ^= (*entry ^ turned) & chosen;
            }
        }
    }

    /// Shares modulo `2^ring` of the function of `x`, shared modulo `2^circle` (reduced here).
    pub(super) async fn run(&self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let reduced = |i: usize| x[i] & low_mask(self.circle);
        party.coin(&generate(x.len(), reduced));
        let lookup = Lookup {
            k: self.index,
            fields: Fields::new(&[self.ring, self.ring])?,
            fill: Box::new(|i, entries| self.fill(reduced(i), entries)),
            choice: Box::new(|i| reduced(i) >> self.cell()),
        };
        let lines = party.lookup(x.len(), &[lookup]).await?;
        let lines = lines.first().ok_or(SharedError::Internal { what: "a looked up line" })?;
        let own = |i: usize| match party.role {
            Role::Client => self.low_bits(reduced(i)),
            Role::Server => 0,
        };
        let mut sum = generate(x.len(), |i| {
            let (a, slope) = self.line(lines[i]);
            a.wrapping_add(slope.wrapping_mul(own(i)))
        });
        // Bit j of `low` multiplies the slope modulo 2^(ring - j).
        let widths = self.slope_widths();
        let words: Vec<Shares> = (0..self.low)
            .map(|j| match party.role {
                Role::Client => generate(x.len(), |i| self.low_bits(reduced(i)) >> j),
                Role::Server => generate(x.len(), |i| self.line(lines[i]).1 & low_mask(self.ring - j)),
            })
            .collect();
        let fields = widths.iter().map(|&w| Fields::ring(w)).collect::<Result<Vec<_>, _>>()?;
        let batches: Vec<_> = fields.iter().zip(&words).map(|(&f, w)| Batch::new(f, w)).collect();
        if !batches.is_empty() {
            let (sent, received) = match party.role {
                Role::Client => party.products(&[], &batches).await?,
                Role::Server => party.products(&batches, &[]).await?,
            };
            for (j, products) in sent.iter().chain(&received).enumerate() {
                for (sum, product) in sum.iter_mut().zip(&**products) {
                    *sum = sum.wrapping_add(product << j);
                }
            }
        }
        sum.iter_mut().for_each(|x| *x &= low_mask(self.ring));
        Ok(sum)
    }

    fn slope_widths(&self) -> Vec<u32> {
        (0..self.low).map(|j| self.ring - j).collect()
    }

    pub(super) fn cost(&self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        cost.lookups(count, &[(self.index, 2 * self.ring)])?;
        let batches: Vec<_> = self.slope_widths().into_iter().map(|w| (count, w)).collect();
        if batches.is_empty() { Ok(()) } else { cost.products(&[], &batches) }
    }

    /// The result for a value and the client's share of it, both modulo `2^circle`.
    pub(super) fn simulate(&self, value: u64, client: u64) -> u64 {
        let server = value.wrapping_sub(client) & low_mask(self.circle);
        let v = client >> self.cell();
        let cell = ((server >> self.cell()) + v) & low_mask(self.index);
        let sub = (server >> (self.cell() - self.sub)) & low_mask(self.sub);
        let (a, slope) = self.line(self.lines[((sub << self.index) + cell) as usize]);
        a.wrapping_add(slope.wrapping_mul(self.low_bits(client))) & low_mask(self.ring)
    }
}

/// The line `a + slope * j` of integers with about the least largest distance from the values.
fn fit(values: &[f64]) -> (i64, i64) {
    let last = values.len() - 1;
    let chord = (values[last] - values[0]) / last.max(1) as f64;
    let mut best = (0, 0, f64::INFINITY);
    for slope in [libm::floor(chord), libm::ceil(chord)] {
        let rests = values.iter().enumerate().map(|(j, v)| v - slope * j as f64);
        let (low, high) = rests.clone().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), r| (l.min(r), h.max(r)));
        let a = libm::round((low + high) / 2.0);
        let error = rests.map(|r| (r - a).abs()).fold(0.0, f64::max);
        if error < best.2 {
            best = (a as i64, slope as i64, error);
        }
    }
    (best.0, best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_turns_the_right_row() {
        let f = Interpolation::new(12, 5, 4, 14, 4096, |x| 1000.0 + x).unwrap();
        let mut entries = vec![0; 32];
        for share in (0..4096).step_by(37).chain([0, 4095]) {
            f.fill(share, &mut entries);
            for (v, &entry) in entries.iter().enumerate() {
                let cell = ((share >> 7) as usize + v) % 32;
                assert_eq!(entry, f.lines[((share >> 1) as usize % 64) * 32 + cell], "{share} {v}");
            }
        }
    }

    #[test]
    fn lines_fit_a_smooth_function() {
        let size = 4096.0;
        let f = |x: f64| 2100.0 + 2000.0 * libm::sin(x / size * std::f64::consts::TAU);
        let table = Interpolation::new(12, 6, 6, 14, 4096, f).unwrap();
        assert!(table.error() < 20.0, "{}", table.error());
        for value in 0..4096 {
            for client in [0, 1, 77, 2048, 4095, (value * 13) % 4096] {
                let got = table.simulate(value, client) as f64;
                assert!((got - f(value as f64)).abs() <= table.error() + 1e-9, "{value} {client}");
            }
        }
    }
}
