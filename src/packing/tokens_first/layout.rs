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

/// A layout of `[tokens][width]` elements in the `[2][N/2]` slots of a ciphertext; all three are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotLayout {
    pub order: Order,
    /// Ring dimension N.
    pub n: usize,
    /// Tokens of a ciphertext.
    pub tokens: usize,
    /// Features of a ciphertext, `N / tokens`.
    pub width: usize,
}

impl SlotLayout {
    /// A feature's tokens side by side, for `rows` tokens.
    pub fn tokens_first(n: usize, rows: usize) -> Self {
        let tokens = rows.checked_next_power_of_two().unwrap_or(n).min(n / 2);
        Self { order: Order::Tokens, n, tokens, width: n / tokens }
    }

    /// A token's features side by side, for `features` features.
    pub fn features_first(n: usize, features: usize) -> Self {
        let width = features.checked_next_power_of_two().unwrap_or(n).min(n / 2);
        Self { order: Order::Features, n, tokens: n / width, width }
    }

    /// Token and feature in slot `row N/2 + j`.
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

    /// Ciphertexts that `features` features take for the same tokens.
    pub fn blocks(&self, features: usize) -> usize {
        features.div_ceil(self.width)
    }

    /// Plaintext polynomials `[groups][blocks][N]` of `x`, `[rows][features]` residues; what is not there is zero.
    pub fn encode(
        &self,
        encoder: &SlotEncoder,
        rows: usize,
        features: usize,
        x: &[u64],
    ) -> Result<Zeroizing<Vec<u64>>> {
        let (groups, blocks) = (self.groups(rows), self.blocks(features));
        let mut out = Zeroizing::new(Vec::with_capacity(groups * blocks * self.n));
        for k in 0..groups * blocks {
            let value = |slot| match self.element((k / blocks, k % blocks), slot, rows, features) {
                Some(at) => x[at],
                None => 0,
            };
            let slots: Zeroizing<Vec<u64>> = Zeroizing::new((0..self.n).map(value).collect());
            out.extend_from_slice(&encoder.encode(&slots)?);
        }
        Ok(out)
    }

    /// `[rows][features]` of polynomials `[groups][blocks][N]`.
    pub fn decode(&self, encoder: &SlotEncoder, rows: usize, features: usize, polynomials: &[u64]) -> Result<Vec<u64>> {
        let blocks = self.blocks(features);
        let mut out = vec![0; rows * features];
        for (k, polynomial) in polynomials.chunks(self.n).enumerate() {
            for (slot, &value) in encoder.decode(polynomial)?.iter().enumerate() {
                if let Some(at) = self.element((k / blocks, k % blocks), slot, rows, features) {
                    out[at] = value;
                }
            }
        }
        Ok(out)
    }

    /// Index in `[rows][features]` of a slot of ciphertext `(group, block)`.
    fn element(&self, (group, block): (usize, usize), slot: usize, rows: usize, features: usize) -> Option<usize> {
        let (token, feature) = self.place(slot);
        let (i, f) = (group * self.tokens + token, block * self.width + feature);
        (i < rows && f < features).then(|| i * features + f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::ShareModulus;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn matrices_come_back(rows in 1usize..100, features in 1usize..70, tokens_first: bool) {
            let n = 64;
            let t = ShareModulus::slots(31, n).unwrap();
            let encoder = SlotEncoder::new(n, t).unwrap();
            let layout = if tokens_first { SlotLayout::tokens_first(n, rows) } else { SlotLayout::features_first(n, features) };
            prop_assert_eq!(layout.tokens * layout.width, n);
            let mut seen: Vec<_> = (0..n).map(|slot| layout.place(slot)).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert!(seen.len() == n && seen.iter().all(|&(i, f)| i < layout.tokens && f < layout.width));
            let x: Vec<u64> = (1..=(rows * features) as u64).collect();
            let polynomials = layout.encode(&encoder, rows, features, &x).unwrap();
            prop_assert_eq!(polynomials.len(), layout.groups(rows) * layout.blocks(features) * n);
            prop_assert_eq!(layout.decode(&encoder, rows, features, &polynomials).unwrap(), x);
        }
    }
}
