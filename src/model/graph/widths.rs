//! Fraction bits of attention and LayerNorm, which give way where rings would be too wide.

use super::{Boundary, GraphOptions, MERGED_RING_LIMIT, PRIME_RING_AIM, PRODUCT_RING_LIMIT, Rings, ceil_log2};
use crate::model::{LayerSpec, ModelSpec};

/// Bits of a signed ring for values of magnitude `2^log2` at `frac` fraction bits, one bit of room for rounding.
pub(super) fn signed_bits(log2: i32, frac: u32) -> u32 {
    (log2 + frac as i32 + 2).max(2) as u32
}

/// Magnitude of a normalised row: `|y| <= sqrt(d)`.
pub(super) fn hidden_log2(spec: &ModelSpec) -> i32 {
    (ceil_log2(spec.hidden) as i32 + 1) / 2
}

/// In whole units of the score: far enough below every real score that `2^-distance` is 0.
pub(super) fn mask_distance(spec: &ModelSpec, l: &LayerSpec) -> i64 {
    (2i64 << l.score_log2.max(0)) + spec.precision.exp_frac as i64 + 2
}

/// Bits of the scores, of queries and keys at `frac` fraction bits each.
pub(super) fn score_bits(spec: &ModelSpec, l: &LayerSpec, frac: u32) -> u32 {
    // From the lowest masked score to the highest: differences within a row fit, as comparisons on shares need.
    let spread = 2 * (1i64 << l.score_log2.max(0)) + mask_distance(spec, l);
    ceil_log2(spread as usize + 1) + 2 * frac + 1
}

/// Fraction bits of the attention's second half, which depend on the number of tokens.
pub(super) struct ContextWidths {
    pub value_frac: u32,
    pub exp_frac: u32,
    pub reciprocal_frac: u32,
    /// Fraction bits of the products with the values when they are scaled.
    pub scaled_frac: u32,
    /// Most bits of the product's ring.
    pub limit: u32,
}

impl ContextWidths {
    /// The reciprocal needs `log2 n` more fraction bits for long rows; exponentials and values give way where a ring would be
    /// too wide. Merged values keep the fraction bits `raw_frac` of the linear map.
    pub(super) fn new(spec: &ModelSpec, l: &LayerSpec, tokens: usize, options: &GraphOptions, raw_frac: u32) -> Self {
        let p = &spec.precision;
        let rows = ceil_log2(tokens);
        let values = options.merge.contains(Boundary::Values);
        let context = options.merge.contains(Boundary::Context);
        let limit = if values || context { MERGED_RING_LIMIT } else { PRODUCT_RING_LIMIT };
        let scaled = |v: u32, e: u32| match options.rings {
            Rings::Pow2 => v + e,
            // Truncated on the way out of the prime ring: what the rounding of the context does not see may go.
            Rings::Prime => (v + e).min(p.hidden_frac + 4),
        };
        let bits = |v: u32, e: u32, r: u32| {
            let product = match options.rings {
                Rings::Pow2 => signed_bits(l.value_log2, v + e + r).max(r + 3),
                Rings::Prime => signed_bits(l.value_log2 + rows as i32, v + e),
            };
            let output = if context { signed_bits(l.attention_log2, v + e + r + l.attention_weight_frac) } else { 0 };
            product.max(output).max(e + rows + 2)
        };
        let aim = match options.rings {
            Rings::Prime if !values => PRIME_RING_AIM,
            _ => limit,
        };
        let mut value_frac = if values { raw_frac } else { p.value_frac };
        let (mut exp_frac, mut reciprocal_frac) = (p.exp_frac, 11 + rows);
        while bits(value_frac, exp_frac, reciprocal_frac) > aim {
            if exp_frac > 11 {
                exp_frac -= 1;
            } else if value_frac > 8 && !values {
                value_frac -= 1;
            } else if reciprocal_frac > 9 + rows && options.rings == Rings::Pow2 {
                reciprocal_frac -= 1;
            } else if value_frac > 4 && !values {
                value_frac -= 1;
            } else {
                break;
            }
        }
        Self { value_frac, exp_frac, reciprocal_frac, scaled_frac: scaled(value_frac, exp_frac), limit }
    }
}

/// Fraction bits of a LayerNorm, and bits of its edges.
pub(super) struct NormWidths {
    pub frac: u32,
    pub scale_frac: u32,
    pub squares_bits: u32,
    pub squares_min_bits: u32,
    /// Of the rows, before squares are taken.
    pub rows_bits: u32,
    /// Of the scaled rows: each party reduces its share of the rows, which costs nothing, and products cost less.
    pub scaled_bits: u32,
}

/// Magnitudes of a LayerNorm's input: of an element, of a row's sum of squares, and the least of these.
#[derive(Clone, Copy)]
pub(super) struct NormMagnitudes {
    pub log2: i32,
    pub squares_log2: i32,
    pub squares_min_log2: i32,
}

impl NormWidths {
    /// Fraction bits give way where the sum of squares would need a wide ring, unless the rows keep the fraction bits
    /// `merged` of the linear map before.
    pub(super) fn new(spec: &ModelSpec, m: NormMagnitudes, merged: Option<u32>) -> Self {
        let hidden = ceil_log2(spec.hidden) as i32;
        let frac = merged.unwrap_or_else(|| {
            let mut frac = spec.precision.hidden_frac;
            while frac > 10 && m.squares_log2 + 2 * frac as i32 > 44 {
                frac -= 1;
            }
            frac
        });
        // The largest row deviates by 2^((squares - log2 d)/2); its scale keeps 11 bits.
        let deviation_log2 = (m.squares_log2 - hidden + 2) / 2;
        let scale_frac = (11 + deviation_log2).max(11) as u32;
        let squares_bits = (m.squares_log2 + 2 * frac as i32).max(2) as u32;
        // The scale of the smallest row that the table covers.
        let scale_log2 = (hidden - m.squares_min_log2 + 1) / 2;
        let scaled_bits =
            signed_bits(hidden_log2(spec), frac + scale_frac).max(signed_bits(scale_log2, scale_frac)) + 1;
        let squares_min_bits = (m.squares_min_log2 + 2 * frac as i32).clamp(0, squares_bits as i32 - 1) as u32;
        let rows_bits = signed_bits(m.log2, frac);
        Self { frac, scale_frac, squares_bits, squares_min_bits, rows_bits, scaled_bits }
    }
}
