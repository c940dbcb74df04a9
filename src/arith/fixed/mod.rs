//! The exact integer meaning of the non-linear functions.
//!
//! Every function here maps fixed-point integers to fixed-point integers. The plaintext oracle evaluates them as written;
//! the garbled gadgets compute the same bits. Smooth parts are [`Piecewise`] fits within an error that is stated in parts
//! per million (`error_ppm`); they are made with `libm`, whose results do not depend on the platform, so that both
//! parties of a protocol derive identical circuits.
//!
//! * [`activation`]: GELU, ReLU, tanh; [`exp`]: the numerators of softmax; [`power`]: reciprocal and inverse square root;
//! * [`piecewise`]: functions by few pieces; here: rounding, saturation, the position of a row's maximum.
//!
//! Notation: `f` fraction bits mean that the integer `v` stands for `v / 2^f`. Rounding is half up: `(v + 2^(s-1)) >> s`.

pub mod activation;
pub mod exp;
pub mod piecewise;
pub mod power;

pub use activation::{Activation, ActivationTable, TanhTable};
pub use exp::ExpTable;
pub use piecewise::Piecewise;
pub use power::{PowerTable, RowPower};

use super::memo::Memo;

/// A fit by the text of its parameters: it takes up to a tenth of a second, and an oracle asks for it at every node.
fn remembered(key: String, fit: impl FnOnce() -> Piecewise) -> Piecewise {
    static FITS: Memo<Piecewise> = Memo::new();
    match FITS.get(key, || Ok::<_, std::convert::Infallible>(fit())) {
        Ok(pieces) => pieces,
        Err(never) => match never {},
    }
}

/// `error_ppm` as a real number.
pub(crate) fn error(ppm: u32) -> f64 {
    ppm as f64 * 1e-6
}

/// `(x + 2^(shift-1)) >> shift`: division by `2^shift` rounded half up; the identity for `shift = 0`.
#[inline]
pub const fn round_shift(x: i128, shift: u32) -> i128 {
    if shift == 0 { x } else { (x + (1 << (shift - 1))) >> shift }
}

/// What is added to `x` before bits are dropped, so that dropping them rounds half up: `2^(shift-1)`, or 0.
#[inline]
pub const fn rounding_offset(shift: u32) -> u64 {
    if shift == 0 { 0 } else { 1 << (shift - 1) }
}

/// `x` clipped to the signed range of `bits` bits.
#[inline]
pub const fn saturate(x: i128, bits: u32) -> i128 {
    let high = (1 << (bits - 1)) - 1;
    if x > high {
        high
    } else if x < !high {
        !high
    } else {
        x
    }
}

/// The position of the largest element, the first of several; 0 of an empty row.
pub fn argmax(row: &[i128]) -> usize {
    (0..row.len()).fold(0, |best, j| if row[j] > row[best] { j } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_and_maxima() {
        for (x, bits, y) in
            [(7, 4, 7), (8, 4, 7), (-8, 4, -8), (-9, 4, -8), (5, 1, 0), (-5, 1, -1), (1 << 70, 64, i64::MAX.into())]
        {
            assert_eq!(saturate(x, bits), y, "{x} in {bits} bits");
        }
        assert_eq!(argmax(&[3, 9, 9, -1]), 1);
        assert_eq!(argmax(&[-3]), 0);
        assert_eq!(argmax(&[]), 0);
    }
}
