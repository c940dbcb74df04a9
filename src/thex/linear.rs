//! Rotations and matrix products of the server, in the layouts of [`super::layout`].

use super::{Layout, Result};
use crate::he::ckks::{CkksCiphertexts, CkksServer};

/// The server's side of a layout.
pub(super) struct Slots<'a> {
    pub he: &'a CkksServer,
    pub layout: &'a Layout,
}

/// Which row of a matrix an input block holds, and which column an output block: `(ciphertext, block)`, `None` for nothing.
pub(super) type Place<'a> = &'a (dyn Fn(usize, usize) -> Option<usize> + Sync);

/// A matrix `[rows][columns]` by function of row and column.
pub(super) type Entry<'a> = &'a (dyn Fn(usize, usize) -> f64 + Sync);

impl Slots<'_> {
    /// `X W` for dense ciphertexts: block `k` of output `b` is the sum over all blocks of all inputs times `entry(row, column)`.
    /// Comes out a limb lower, at `scale`.
    ///
    /// Baby steps and giant steps (Halevi, Shoup, CRYPTO 2018) over the rotations by blocks: with `n` babies,
    /// `Y_b = sum_g Rot_(gn)(sum_(a,j) Rot_j(x_a) P_(b,g,a,j))`, where block `k` of `P` has the entry of input block `k + j` and
    /// output block `k - gn`.
    pub fn multiply(
        &self,
        x: &CkksCiphertexts,
        outputs: usize,
        (row, column): (Place<'_>, Place<'_>),
        entry: Entry<'_>,
        scale: f64,
    ) -> Result<CkksCiphertexts> {
        let (he, layout) = (self.he, self.layout);
        let (blocks, babies, tokens) = (layout.dense(), layout.babies(), layout.tokens);
        let giants = blocks / babies;
        let turned = self.block_rotations(x, &(0..babies).collect::<Vec<_>>())?;
        let plain_scale = he.context().prime(x.limbs()) * scale / x.ledger().scale;
        // Plaintexts of a few inputs at a time: on a CPU these stay where the allocator keeps them.
        let step = self.tile(x.len(), blocks, x.limbs());
        let mut sums = Vec::with_capacity(outputs);
        for first in (0..x.len()).step_by(step) {
            let inputs = step.min(x.len() - first);
            let part = he.select(&turned, &(first * babies..(first + inputs) * babies).collect::<Vec<_>>())?;
            for b in 0..outputs {
                let plain = he.encode(x.limbs(), plain_scale, (giants, inputs * babies), |giant, input| {
                    let (a, baby) = (first + input / babies, input % babies);
                    let mut slots = vec![0.0; layout.slots];
                    for (k, block) in slots.chunks_mut(tokens).enumerate() {
                        let places = (row(a, (k + baby) % blocks), column(b, (k + blocks - giant * babies) % blocks));
                        if let (Some(row), Some(column)) = places {
                            block.fill(entry(row, column));
                        }
                    }
                    slots
                })?;
                let sum = he.multiply_plain(&part, &plain)?;
                match sums.get_mut(b) {
                    Some(earlier) => *earlier = he.add(earlier, &sum)?,
                    None => sums.push(sum),
                }
            }
        }
        // [outputs][giants]
        let sums = he.concat(&sums.iter().collect::<Vec<_>>())?;
        let layer = |giant: usize| (0..outputs).map(|b| b * giants + giant).collect::<Vec<_>>();
        let mut out = he.select(&sums, &layer(0))?;
        for giant in 1..giants {
            let part = he.select(&sums, &layer(giant))?;
            let turns: Vec<_> = (0..outputs).map(|b| (b, giant * babies * tokens)).collect();
            out = he.add(&out, &he.rotate(&part, &turns)?)?;
        }
        Ok(he.rescale(&out)?)
    }

    /// Rotations by `multiples` of a block, ascending, for every ciphertext: `[ciphertexts][multiples]`.
    pub fn block_rotations(&self, x: &CkksCiphertexts, multiples: &[usize]) -> Result<CkksCiphertexts> {
        let babies = self.layout.babies();
        let mut giants: Vec<usize> = multiples.iter().map(|m| m / babies * babies).collect();
        giants.dedup();
        let start = self.rotated(x, &giants)?;
        // Babies of every giant: from the giant's ciphertext.
        let mut turns = Vec::new();
        for input in 0..x.len() {
            for &multiple in multiples {
                let giant = giants.iter().position(|&g| g == multiple / babies * babies).unwrap_or(0);
                turns.push((input * giants.len() + giant, multiple % babies * self.layout.tokens));
            }
        }
        self.turned(&start, &turns)
    }

    /// Rotations by multiples of a block that have keys of their own.
    fn rotated(&self, x: &CkksCiphertexts, multiples: &[usize]) -> Result<CkksCiphertexts> {
        let turns = (0..x.len()).flat_map(|input| multiples.iter().map(move |m| (input, m * self.layout.tokens)));
        self.turned(x, &turns.collect::<Vec<_>>())
    }

    /// Rotations by steps that have keys or are 0, in one batch.
    fn turned(&self, x: &CkksCiphertexts, turns: &[(usize, usize)]) -> Result<CkksCiphertexts> {
        let real: Vec<_> = turns.iter().copied().filter(|&(_, steps)| steps != 0).collect();
        let still: Vec<usize> = turns.iter().filter(|&&(_, steps)| steps == 0).map(|&(input, _)| input).collect();
        let he = self.he;
        let still_batch = he.select(x, &still)?;
        if real.is_empty() {
            return Ok(still_batch);
        }
        let rotated = he.rotate(x, &real)?;
        if still.is_empty() {
            return Ok(rotated);
        }
        let all = he.concat(&[&rotated, &still_batch])?;
        let (mut moved, mut kept) = (0, real.len());
        let order: Vec<usize> = turns
            .iter()
            .map(|&(_, steps)| {
                let counter = if steps != 0 { &mut moved } else { &mut kept };
                *counter += 1;
                *counter - 1
            })
            .collect();
        Ok(he.select(&all, &order)?)
    }

    /// Rotations by all sums of digits ([`Layout::low_digits`], [`Layout::high_digits`]), ascending, of every ciphertext:
    /// `[ciphertexts][rotations]`.
    pub fn token_rotations(&self, x: &CkksCiphertexts, digits: &[(usize, usize)]) -> Result<CkksCiphertexts> {
        let mut current = x.clone();
        for &(unit, count) in digits {
            let turns = (0..current.len()).flat_map(|input| (0..count).map(move |digit| (input, digit * unit)));
            current = self.turned(&current, &turns.collect::<Vec<_>>())?;
        }
        Ok(current)
    }

    /// How many of `count` items of `ciphertexts` ciphertexts of `limbs` limbs are worked on at a time on this device.
    pub fn tile(&self, count: usize, ciphertexts: usize, limbs: usize) -> usize {
        let words = 4 * ciphertexts * limbs * self.layout.slots;
        (self.he.context().tile_words() / words.max(1)).clamp(1, count.max(1))
    }

    /// The sum of all rotations by `unit` blocks (a power of two) up to the whole: every such block then holds the sum over them.
    pub fn sum_blocks(&self, x: &CkksCiphertexts, unit: usize) -> Result<CkksCiphertexts> {
        let mut sum = x.clone();
        let mut blocks = unit;
        while blocks < self.layout.dense() {
            sum = self.he.add(&sum, &self.rotated(&sum, &[blocks])?)?;
            blocks *= 2;
        }
        Ok(sum)
    }

    /// `out_k = sum_s Rot_(s unit blocks)(x[k][s])` for `[outputs][terms]`, `terms` a power of two: pairs, then pairs of pairs.
    pub fn sum_turned(&self, x: &CkksCiphertexts, terms: usize, unit: usize) -> Result<CkksCiphertexts> {
        let (mut x, mut blocks) = (x.clone(), unit);
        let mut left = terms;
        while left > 1 {
            let half = |odd: usize| (0..x.len() / 2).map(|k| 2 * k + odd).collect::<Vec<_>>();
            let (even, odd) = (self.he.select(&x, &half(0))?, self.he.select(&x, &half(1))?);
            x = self.he.add(&even, &self.rotated(&odd, &[blocks])?)?;
            (left, blocks) = (left / 2, 2 * blocks);
        }
        Ok(x)
    }

    /// Ciphertexts in halves, two by two in one ([`Layout::merged_source`]).
    pub fn merge(&self, x: &CkksCiphertexts) -> Result<CkksCiphertexts> {
        let he = self.he;
        let first: Vec<usize> = (0..x.len()).step_by(2).collect();
        let second: Vec<usize> = (1..x.len()).step_by(2).collect();
        let firsts = he.select(x, &first)?;
        if second.is_empty() {
            return Ok(firsts);
        }
        let seconds = self.rotated(&he.select(x, &second)?, &[1])?;
        let paired = he.add(&he.select(&firsts, &(0..second.len()).collect::<Vec<_>>())?, &seconds)?;
        if first.len() == second.len() {
            return Ok(paired);
        }
        // The last has no partner.
        let last = he.select(&firsts, &[first.len() - 1])?;
        Ok(he.concat(&[&paired, &last])?)
    }
}
