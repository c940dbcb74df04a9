//! Sign of a shared value, and whether it lies in `[-2^r, 2^r)`.
//!
//! From bit `r` up such a value is 0 or -1. The carry `c` of the bits below comes from a comparison. Up to [`ONE_LOOKUP`] bits
//! above are looked up at once, for both carries: 4 bits an entry. More bits go by digits: whether their sum, the sum plus 1
//! and plus 2 is zero; and the carry of all but the highest, for the sign.

use super::SharedError;
use super::fields::{Fields, generate, low_mask};
use super::logic::{And, Carry, Zero, and, and_cost};
use super::lookup::{Lookup, equal};
use super::meter::Cost;
use super::party::{Party, Shares};

/// Most bits above the range that one lookup decides about: with 6, digits would take 19 bytes less, but 13 COTs and 2 flights
/// more.
const ONE_LOOKUP: u32 = 6;

/// Values modulo `2^ring`, the range `[-2^bits, 2^bits)`; `bits < ring`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) ring: u32,
    pub(super) bits: u32,
}

impl Range {
    fn upper(self) -> u32 {
        self.ring - self.bits
    }

    fn one_lookup(self) -> bool {
        self.upper() <= ONE_LOOKUP
    }

    fn zero(self) -> Zero {
        Zero { bits: self.upper(), targets: 3 }
    }

    fn middle(self) -> Carry {
        Carry::middle(self.bits, self.upper() - 1)
    }

    pub(super) fn cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let low = Carry::low(self.bits);
        let mut sizes = low.leaf_sizes();
        if self.one_lookup() {
            sizes.push((self.upper(), 4));
            cost.lookups(count, &sizes)?;
            low.join_cost(count, cost)?;
        } else {
            sizes.extend(self.middle().leaf_sizes());
            sizes.extend(self.zero().leaf_sizes());
            cost.lookups(count, &sizes)?;
            low.join_cost(count, cost)?;
            self.middle().join_cost(count, cost)?;
            self.zero().join_cost(count, cost)?;
        }
        and_cost(count, &[2], cost)
    }

    /// Shares of: negative (bit 0), inside (bit 1).
    pub(super) async fn run(self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let count = x.len();
        let low = Carry::low(self.bits);
        let mut lookups = low.leaves(x)?;
        let low_leaves = lookups.len();
        let middle_leaves = self.middle().leaf_sizes().len();
        if self.one_lookup() {
            lookups.push(self.table(x)?);
        } else {
            lookups.extend(self.middle().leaves(x)?);
            lookups.extend(self.zero().leaves(|i| x[i] >> self.bits)?);
        }
        let mut looked = party.lookup(count, &lookups).await?;
        drop(lookups);
        let mut upper = looked.split_off(low_leaves);
        let carry = low.join(party, looked).await?;
        // The answer without a carry in bits 0 and 1, what a carry changes in bits 2 and 3.
        let table = if self.one_lookup() {
            upper.pop().ok_or(SharedError::Internal { what: "the lookup of sign and range" })?
        } else {
            let zero = upper.split_off(middle_leaves);
            let middle = self.middle().join(party, upper).await?;
            let zero = self.zero().join(party, zero).await?;
            let highest = self.ring - 1;
            generate(count, |i| {
                let negative = middle[i] ^ x[i] >> highest;
                let inside = zero[i] ^ zero[i] >> 1;
                let change = zero[i] ^ zero[i] >> 2;
                negative & 1 | (inside & 1) << 1 | (middle[i] >> 1 & 1) << 2 | (change & 1) << 3
            })
        };
        let change = generate(count, |i| table[i] >> 2);
        let chosen = and(party, &[And { bit: &carry, bits: &change, width: 2 }]).await?;
        let chosen = chosen.first().ok_or(SharedError::Internal { what: "sign and range" })?;
        Ok(generate(count, |i| (table[i] ^ chosen[i]) & 3))
    }

    fn table<'a>(self, x: &'a [u64]) -> Result<Lookup<'a>, SharedError> {
        let k = self.upper();
        let upper = move |i: usize| (x[i] >> self.bits) & low_mask(k);
        Ok(Lookup {
            k,
            fields: Fields::new(&[1; 4])?,
            fill: Box::new(move |i, entries| {
                let y = upper(i);
                let state = |sum: u64| {
                    let sum = sum & low_mask(k);
                    sum >> (k - 1) | (equal(sum, 0) | equal(sum, low_mask(k))) & 2
                };
                for (v, entry) in (0u64..).zip(entries) {
                    let (without, with) = (state(y + v), state(y + v + 1));
                    *entry = without | (without ^ with) << 2;
                }
            }),
            choice: Box::new(upper),
        })
    }
}
