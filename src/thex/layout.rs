//! Where values stand in slots. All layouts are tokens first: a block holds one feature's tokens side by side.
//!
//! With `S` slots and `T` tokens (padded to a power of two, see [`Layout::new`]):
//!
//! * *dense*: `K = S/T` blocks of `T`; feature `aK + k` of token `i` is in ciphertext `a`, slot `kT + i`.
//! * *halves*: `B = K/2` blocks of `2T`, of which the first `T` slots are used and the rest are zero.
//! * *skewed*: halves for keys and values, both halves used: block `k`, slot `i < 2T` holds token `(i + Ck) mod T` of feature `k`,
//!   `C = T/B`. A rotation by `r < T` then gives, in the first half of block `k`, token `i + r + Ck`, without a mask.
//! * *diagonals*: attention scores; ciphertext `(head, c)`, block `b`, slot `i < T` holds the score of `i` with
//!   `(i + Cb + c) mod T`.
//!
//! `k -> Ck` maps the group of blocks into the group of tokens, which is why sums over a head's features come out in
//! diagonals: `score_c = sum_s Rot_(2Ts)(Q . rot_(c - Cs)(K))`, all `T` rotations of K used once (and likewise
//! `sum_(s,c) Rot_(2Ts)(E_c) . rot_(Cs + c)(V)` for the product with the values).

use super::{Result, ThexError};

/// The sizes of the layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Slots of a ciphertext, S.
    pub slots: usize,
    /// Tokens, T: a power of two.
    pub tokens: usize,
}

impl Layout {
    /// The layout of up to `tokens` tokens: the next power of two, but at least `B`, so that `T >= sqrt(S/2)`.
    ///
    /// # Errors
    /// If fewer than two blocks of `2T` fit.
    pub fn new(slots: usize, tokens: usize) -> Result<Self> {
        let mut padded = tokens.max(1).next_power_of_two();
        while 2 * padded * padded < slots {
            padded *= 2;
        }
        if 4 * padded > slots {
            return Err(ThexError::Sequence(format!(
                "{tokens} tokens do not fit {slots} slots; at most {} do",
                slots / 4
            )));
        }
        Ok(Self { slots, tokens: padded })
    }

    /// Features of a dense ciphertext, K.
    pub fn dense(&self) -> usize {
        self.slots / self.tokens
    }

    /// Blocks of `2T`, B.
    pub fn blocks(&self) -> usize {
        self.dense() / 2
    }

    /// Tokens between neighbouring blocks of a skewed layout, C; ciphertexts of a head's scores.
    pub fn stride(&self) -> usize {
        self.tokens / self.blocks()
    }

    /// Ciphertexts of `features` dense features.
    pub fn dense_count(&self, features: usize) -> usize {
        features.div_ceil(self.dense())
    }

    /// Ciphertexts in halves of a head of width `head_dim`.
    pub fn head_count(&self, head_dim: usize) -> usize {
        head_dim.div_ceil(self.blocks())
    }

    /// Dense ciphertexts that `halves` ciphertexts in halves merge into: the second of a pair goes to the second halves, its
    /// block `k + 1` to block `k`.
    pub fn merged_count(&self, halves: usize) -> usize {
        halves.div_ceil(2)
    }

    /// Which ciphertext in halves, and which block of it, block `block` of the merged ciphertext `index` holds.
    pub fn merged_source(&self, index: usize, block: usize) -> (usize, usize) {
        if block.is_multiple_of(2) { (2 * index, block / 2) } else { (2 * index + 1, (block / 2 + 1) % self.blocks()) }
    }

    /// Slots of dense features; `value(token, feature)`.
    pub fn to_dense<V: Copy>(&self, zero: V, features: usize, value: impl Fn(usize, usize) -> V) -> Vec<V> {
        let mut out = vec![zero; self.dense_count(features) * self.slots];
        for feature in 0..features {
            let block = &mut out[feature * self.tokens..][..self.tokens];
            block.iter_mut().enumerate().for_each(|(token, out)| *out = value(token, feature));
        }
        out
    }

    /// Slots in halves, a head after the other; `value(token, head, column)`.
    pub fn to_halves<V: Copy>(
        &self,
        zero: V,
        (heads, head_dim): (usize, usize),
        value: impl Fn(usize, usize, usize) -> V,
    ) -> Vec<V> {
        self.fill(zero, heads, head_dim, self.tokens, value)
    }

    /// Skewed slots, a head after the other; `value(token, head, column)`.
    pub fn to_skewed<V: Copy>(
        &self,
        zero: V,
        (heads, head_dim): (usize, usize),
        value: impl Fn(usize, usize, usize) -> V,
    ) -> Vec<V> {
        let (stride, blocks, tokens) = (self.stride(), self.blocks(), self.tokens);
        self.fill(zero, heads, head_dim, 2 * tokens, |i, head, column| {
            value((i + stride * (column % blocks)) % tokens, head, column)
        })
    }

    fn fill<V: Copy>(
        &self,
        zero: V,
        heads: usize,
        head_dim: usize,
        used: usize,
        value: impl Fn(usize, usize, usize) -> V,
    ) -> Vec<V> {
        let per_head = self.head_count(head_dim);
        let mut out = vec![zero; heads * per_head * self.slots];
        for head in 0..heads {
            for column in 0..head_dim {
                // A head's ciphertexts are blocks one after the other.
                let first = (head * per_head * self.blocks() + column) * 2 * self.tokens;
                out[first..][..used].iter_mut().enumerate().for_each(|(i, out)| *out = value(i, head, column));
            }
        }
        out
    }

    /// Slots of diagonals in halves, a head after the other; `value(head, row, column)`.
    pub fn to_diagonals<V: Copy>(&self, zero: V, heads: usize, value: impl Fn(usize, usize, usize) -> V) -> Vec<V> {
        let stride = self.stride();
        let mut out = vec![zero; heads * stride * self.slots];
        for (index, block) in out.chunks_mut(2 * self.tokens).enumerate() {
            let (half, b) = (index / self.blocks(), index % self.blocks());
            let (head, c) = (half / stride, half % stride);
            for (i, out) in block[..self.tokens].iter_mut().enumerate() {
                *out = value(head, i, (i + stride * b + c) % self.tokens);
            }
        }
        out
    }

    /// The slot of a merged ciphertext (index, slot) as `(head, row, column)` of the scores, `None` for a pair without partner.
    pub fn score_at(&self, heads: usize, index: usize, slot: usize) -> Option<(usize, usize, usize)> {
        let (half, b) = self.merged_source(index, slot / self.tokens);
        let (head, c) = (half / self.stride(), half % self.stride());
        let row = slot % self.tokens;
        (head < heads).then_some((head, row, (row + self.stride() * b + c) % self.tokens))
    }

    /// Baby steps of a sum over all rotations by blocks: the power of two not below `sqrt(K)`.
    pub fn babies(&self) -> usize {
        1 << self.dense().trailing_zeros().div_ceil(2)
    }

    /// Every rotation that the server makes, in slots: those by blocks (babies and giants), then those by tokens.
    pub fn steps(&self) -> Vec<usize> {
        let (babies, blocks) = (self.babies(), self.dense());
        let mut steps: Vec<usize> =
            (1..babies).chain((babies..blocks).step_by(babies)).map(|k| k * self.tokens).collect();
        let digits = self.low_digits().into_iter().chain(self.high_digits());
        steps.extend(digits.flat_map(|(unit, count)| (1..count).map(move |digit| digit * unit)));
        steps
    }

    /// Rotations by fewer than `C` tokens as sums of digits, highest unit first: unit and number of digits.
    pub fn low_digits(&self) -> Vec<(usize, usize)> {
        digits(1, self.stride())
    }

    /// Rotations by multiples of `C` tokens below `T`, likewise.
    pub fn high_digits(&self) -> Vec<(usize, usize)> {
        digits(self.stride(), self.tokens)
    }
}

/// Multiples of `unit` below `end`, in digits of base 8.
fn digits(mut unit: usize, end: usize) -> Vec<(usize, usize)> {
    let mut digits = Vec::new();
    while unit < end {
        let count = (end / unit).min(8);
        digits.push((unit, count));
        unit *= count;
    }
    digits.reverse();
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotate(x: &[f64], steps: usize) -> Vec<f64> {
        (0..x.len()).map(|j| x[(j + steps) % x.len()]).collect()
    }

    fn accumulate(sum: &mut [f64], a: &[f64], b: &[f64]) {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }

    #[test]
    fn sizes() {
        let layout = Layout::new(4096, 128).unwrap();
        assert_eq!((layout.dense(), layout.blocks(), layout.stride(), layout.babies()), (32, 16, 8, 8));
        assert_eq!(layout.steps().len(), 7 + 3 + 15);
        assert_eq!(Layout::new(4096, 3).unwrap().tokens, 64);
        assert!(Layout::new(4096, 1025).is_err() && Layout::new(4096, 1024).is_ok());
        let mut steps = layout.steps();
        steps.sort_unstable();
        steps.dedup();
        assert_eq!(steps.len(), 25);
    }

    /// The two products in slots, in the clear.
    #[test]
    fn attention_by_rotations() {
        for (slots, tokens, heads, head_dim) in [(32, 4, 2, 5), (128, 8, 1, 8), (256, 16, 2, 7), (128, 16, 2, 3)] {
            let layout = Layout::new(slots, tokens).unwrap();
            let (t, c_count, blocks) = (layout.tokens, layout.stride(), layout.blocks());
            let cell =
                |seed: usize| move |i: usize, h: usize, d: usize| ((i * 7 + h * 31 + d * 13 + seed) % 17) as f64 - 8.0;
            let (q, k, v) = (cell(1), cell(5), cell(11));
            let score = |h: usize, i: usize, j: usize| (0..head_dim).map(|d| q(i, h, d) * k(j, h, d)).sum::<f64>();
            let queries = layout.to_halves(0.0, (heads, head_dim), q);
            let (keys, values) =
                (layout.to_skewed(0.0, (heads, head_dim), k), layout.to_skewed(0.0, (heads, head_dim), v));
            let per_head = layout.head_count(head_dim);
            let expected = layout.to_diagonals(0.0, heads, score);
            for head in 0..heads {
                for c in 0..c_count {
                    let mut out = vec![0.0; slots];
                    for s in 0..blocks {
                        let mut product = vec![0.0; slots];
                        for f in 0..per_head {
                            let at = (head * per_head + f) * slots;
                            let turned = rotate(&keys[at..][..slots], (c + t - c_count * s % t) % t);
                            accumulate(&mut product, &queries[at..][..slots], &turned);
                        }
                        accumulate(&mut out, &rotate(&product, 2 * t * s), &vec![1.0; slots]);
                    }
                    assert_eq!(out, expected[(head * c_count + c) * slots..][..slots]);
                }
                for f in 0..per_head {
                    let mut out = vec![0.0; slots];
                    for c in 0..c_count {
                        for s in 0..blocks {
                            let weights = &expected[(head * c_count + c) * slots..][..slots];
                            let turned = rotate(&values[(head * per_head + f) * slots..][..slots], c_count * s + c);
                            accumulate(&mut out, &rotate(weights, 2 * t * s), &turned);
                        }
                    }
                    for (slot, out) in out.iter().enumerate() {
                        let (block, i) = (slot / (2 * t), slot % (2 * t));
                        let column = f * blocks + block;
                        let inside = i < t && column < head_dim;
                        let sum = (0..t).map(|j| score(head, i % t, j) * if inside { v(j, head, column) } else { 0.0 });
                        assert_eq!(*out, sum.sum::<f64>());
                    }
                }
            }
            // Merging keeps every score once.
            let merged = layout.merged_count(heads * c_count);
            let mut seen = std::collections::HashSet::new();
            for index in 0..merged {
                for slot in 0..slots {
                    if let Some(place) = layout.score_at(heads, index, slot) {
                        assert!(seen.insert(place));
                        let (half, block) = layout.merged_source(index, slot / t);
                        assert_eq!(expected[half * slots + block * 2 * t + slot % t], score(place.0, place.1, place.2));
                    }
                }
            }
            assert_eq!(seen.len(), heads * t * t);
        }
    }
}
