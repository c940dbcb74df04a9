//! Which token and feature a slot holds.

use zeroize::Zeroizing;

use super::SlotEncoder;
use crate::he::Result;

/// The order of tokens and features in the slots of a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A feature's tokens side by side; the features of row 0, then those of row 1.
    Tokens,
    /// A token's features side by side; the tokens of row 0, then those of row 1.
    Features,
}

/// Layouts of a product's inputs and outputs in the `[2][N/2]` slots of a ciphertext: `[tokens][width]` columns, each of which holds
/// a feature of the input, and a part of one of the output. All sizes are powers of two.
///
/// Where the product is narrow, columns are spare. Inputs are repeated there, each repetition `shift` features further, and an
/// output is the sum of the columns that are congruent to it: every repetition does other terms of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotLayout {
    pub order: Order,
    /// Ring dimension N.
    pub n: usize,
    /// Tokens of a ciphertext.
    pub tokens: usize,
    /// Columns of a token, `N / tokens`.
    pub width: usize,
    /// Features of an input ciphertext.
    pub features: usize,
    /// Features of an output ciphertext.
    pub outputs: usize,
    /// Features by which a repetition is ahead of the one before; the row rotations that bring every feature to every output.
    pub shift: usize,
}

impl SlotLayout {
    /// A feature's tokens side by side, for the product of `rows` tokens, `inner` features and `cols` outputs.
    pub fn tokens_first(n: usize, rows: usize, inner: usize, cols: usize) -> Self {
        let power = |x: usize| x.checked_next_power_of_two().unwrap_or(n);
        let tokens = power(rows).min(n / 2);
        let width = n / tokens;
        let (features, outputs) = (power(inner).min(width), power(cols).min(width));
        let mut layout = Self { order: Order::Tokens, n, tokens, width, features, outputs, shift: 1 };
        layout.shift = (features.min(outputs) / layout.repetitions()).max(1).min(width / 2);
        layout
    }

    /// A token's features side by side, for `features` features.
    pub fn features_first(n: usize, features: usize) -> Self {
        let width = features.checked_next_power_of_two().unwrap_or(n).min(n / 2);
        Self { order: Order::Features, n, tokens: n / width, width, features: width, outputs: width, shift: 1 }
    }

    /// Times that inputs are there, each ahead of the one before.
    fn repetitions(&self) -> usize {
        self.width / self.features.max(self.outputs)
    }

    /// Whether rows have to be swapped, besides `shift` row rotations, to bring every feature to every output: only where both
    /// fill all columns.
    pub fn swaps(&self) -> bool {
        self.features.min(self.outputs) == self.width
    }

    /// What tells input ciphertexts of two layouts of one ring apart.
    pub fn input_key(&self) -> usize {
        let numbers = [self.width, self.features, self.features.max(self.outputs), self.shift];
        numbers.iter().fold(0, |key, x| key << 5 | x.ilog2() as usize)
    }

    /// The feature of an input ciphertext in a column.
    #[inline]
    pub fn feature(&self, column: usize) -> usize {
        (column + self.repetition(column) * self.shift) & (self.features - 1)
    }

    /// The feature of an output ciphertext that a column is a part of.
    #[inline]
    pub fn output(&self, column: usize) -> usize {
        column & (self.outputs - 1)
    }

    /// Whether a column takes part: with more repetitions than terms, some are idle.
    #[inline]
    pub fn active(&self, column: usize) -> bool {
        self.repetition(column) < self.features.min(self.outputs)
    }

    #[inline]
    fn repetition(&self, column: usize) -> usize {
        column >> self.features.max(self.outputs).trailing_zeros()
    }

    /// Token and column of slot `row N/2 + j`.
    #[inline]
    pub fn place(&self, slot: usize) -> (usize, usize) {
        // All sizes are powers of two; divisions would take longer than the transform of the plaintext.
        let half = self.n / 2;
        let (row, j) = (usize::from(slot >= half), slot & (half - 1));
        match self.order {
            Order::Tokens => (j & (self.tokens - 1), row * (self.width / 2) + (j >> self.tokens.trailing_zeros())),
            Order::Features => (row * (self.tokens / 2) + (j >> self.width.trailing_zeros()), j & (self.width - 1)),
        }
    }

    /// Ciphertexts that `rows` tokens take for the same features.
    pub fn groups(&self, rows: usize) -> usize {
        rows.div_ceil(self.tokens)
    }

    /// Ciphertexts that `inner` features of an input take for the same tokens.
    pub fn input_blocks(&self, inner: usize) -> usize {
        inner.div_ceil(self.features)
    }

    /// Ciphertexts that `cols` features of the output take for the same tokens.
    pub fn output_blocks(&self, cols: usize) -> usize {
        cols.div_ceil(self.outputs)
    }

    /// Plaintext polynomials `[groups][blocks][N]` of an input `x`, `[rows][inner]` residues; what is not there is zero.
    pub fn encode(&self, encoder: &SlotEncoder, rows: usize, inner: usize, x: &[u64]) -> Result<Zeroizing<Vec<u64>>> {
        let (groups, blocks) = (self.groups(rows), self.input_blocks(inner));
        let mut out = Zeroizing::new(Vec::with_capacity(groups * blocks * self.n));
        for k in 0..groups * blocks {
            let value = |slot| {
                let (token, column) = self.place(slot);
                let (i, f) = (k / blocks * self.tokens + token, k % blocks * self.features + self.feature(column));
                if i < rows && f < inner { x[i * inner + f] } else { 0 }
            };
            let slots: Zeroizing<Vec<u64>> = Zeroizing::new((0..self.n).map(value).collect());
            out.extend_from_slice(&encoder.encode(&slots)?);
        }
        Ok(out)
    }

    /// The output `[rows][cols]` of polynomials `[groups][blocks][N]`.
    pub fn decode(&self, encoder: &SlotEncoder, rows: usize, cols: usize, polynomials: &[u64]) -> Result<Vec<u64>> {
        let blocks = self.output_blocks(cols);
        let mut out = vec![0; rows * cols];
        for (k, polynomial) in polynomials.chunks(self.n).enumerate() {
            for (slot, &value) in encoder.decode(polynomial)?.iter().enumerate() {
                let (token, column) = self.place(slot);
                let (i, f) = (k / blocks * self.tokens + token, k % blocks * self.outputs + self.output(column));
                if i < rows && f < cols {
                    let sum = &mut out[i * cols + f];
                    *sum = encoder.add(*sum, value);
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::ShareModulus;
    use proptest::prelude::*;

    /// Columns after a rotation of both rows by `steps` features and perhaps a swap, by where their content was.
    fn turned(layout: &SlotLayout, column: usize, steps: usize, swap: bool) -> usize {
        let half = layout.width / 2;
        let row = (column / half) ^ usize::from(swap);
        row * half + (column + steps) % half
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Every feature meets every output in exactly one column of one turn.
        #[test]
        fn terms_are_done_once(rows in 1usize..64, inner in 1usize..100, cols in 1usize..100) {
            let layout = SlotLayout::tokens_first(64, rows, inner, cols);
            let mut met = vec![0; layout.features * layout.outputs];
            for swap in 0..=usize::from(layout.swaps()) {
                for steps in 0..layout.shift {
                    for column in (0..layout.width).filter(|&column| layout.active(column)) {
                        let from = turned(&layout, column, steps, swap == 1);
                        met[layout.feature(from) * layout.outputs + layout.output(column)] += 1;
                    }
                }
            }
            prop_assert!(met.iter().all(|&count| count == 1), "{:?}: {:?}", layout, met);
        }

        #[test]
        fn matrices_come_back(rows in 1usize..100, features in 1usize..70, tokens_first: bool) {
            let n = 64;
            let t = ShareModulus::slots(31, n).unwrap();
            let encoder = SlotEncoder::new(n, t).unwrap();
            let layout = match tokens_first {
                true => SlotLayout::tokens_first(n, rows, features, n),
                false => SlotLayout::features_first(n, features),
            };
            prop_assert_eq!(layout.tokens * layout.width, n);
            let mut seen: Vec<_> = (0..n).map(|slot| layout.place(slot)).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert!(seen.len() == n && seen.iter().all(|&(i, f)| i < layout.tokens && f < layout.width));
            let x: Vec<u64> = (1..=(rows * features) as u64).collect();
            let polynomials = layout.encode(&encoder, rows, features, &x).unwrap();
            prop_assert_eq!(polynomials.len(), layout.groups(rows) * layout.input_blocks(features) * n);
            // What an input holds more than once is a sum as an output.
            let alone = SlotLayout { outputs: layout.features, ..layout };
            let copies = if tokens_first { (layout.width / layout.features) as u64 } else { 1 };
            let expected: Vec<u64> = x.iter().map(|x| x * copies).collect();
            prop_assert_eq!(alone.decode(&encoder, rows, features, &polynomials).unwrap(), expected);
        }
    }
}
