//! Masked refreshment: the server's values go through the client without it seeing them.
//!
//! The server adds a mask uniform over `[-2^87, 2^87)` in every coefficient; the client decrypts, perhaps brings the slots into
//! another layout, encrypts and sends back; the server takes off the mask, in that layout. Messages are polynomials of integers,
//! at most about `2^40` in magnitude, so that what the client sees is within a statistical distance of
//! `sum |m_j| / 2^88 <= N 2^(40 - 88) = 2^-35` a ciphertext of uniform, and about `2^-45` at the magnitudes of real models
//! (`sum |m_j| <= sqrt(N) |m|_2`, and `|m|_2` is the scale times the root mean square of the slots). Slots of masked polynomials
//! have about 100 bits, hence the pairs of doubles.

use rand_core::Rng;
use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{Layout, ModelShape};
use crate::{
    arith::sample::SecureRng,
    he::ckks::{CkksEncoder, DoubleDouble},
};

/// Bits of a mask's coefficients.
pub const MASK_BITS: u32 = 88;

/// `count` mask polynomials, `[count][N]`.
pub(super) fn masks(n: usize, count: usize, rng: &mut SecureRng) -> Zeroizing<Vec<i128>> {
    let mut out = Zeroizing::new(vec![0i128; count * n]);
    for x in out.iter_mut() {
        let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        *x = (bits >> (128 - MASK_BITS)) as i128 - (1 << (MASK_BITS - 1));
    }
    out
}

/// Queries, keys and values in the layouts of attention, as polynomials of integers.
pub(super) struct Projections {
    /// Halves.
    pub queries: Zeroizing<Vec<i128>>,
    /// Skewed.
    pub keys: Zeroizing<Vec<i128>>,
    /// Skewed.
    pub values: Zeroizing<Vec<i128>>,
}

/// From dense features `[queries | keys | values]` (polynomials `[count][N]`) to the layouts of attention. The client does it to
/// masked values and the server to masks: it is linear but for roundings of a coefficient.
pub(super) fn relayout(encoder: &CkksEncoder, shape: &ModelShape, layout: &Layout, dense: &[i128]) -> Projections {
    let slots: Vec<Vec<DoubleDouble>> = dense.par_chunks(2 * layout.slots).map(|m| encoder.decode_wide(m)).collect();
    let (zero, heads) = (DoubleDouble::new(0.0), (shape.heads, shape.head_dim));
    let value = |part: usize| {
        let slots = &slots;
        move |token: usize, head: usize, column: usize| {
            let feature = part * shape.hidden + head * shape.head_dim + column;
            let (ciphertext, block) = (feature / layout.dense(), feature % layout.dense());
            slots[ciphertext][block * layout.tokens + token]
        }
    };
    let encode = |slots: Vec<DoubleDouble>| -> Zeroizing<Vec<i128>> {
        let polys: Vec<Vec<i128>> = slots.par_chunks(layout.slots).map(|slots| encoder.encode_wide(slots)).collect();
        Zeroizing::new(polys.into_iter().flatten().collect())
    };
    Projections {
        queries: encode(layout.to_halves(zero, heads, value(0))),
        keys: encode(layout.to_skewed(zero, heads, value(1))),
        values: encode(layout.to_skewed(zero, heads, value(2))),
    }
}
