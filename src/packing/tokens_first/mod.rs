//! Packings in slots: matrix products by rotations, modulo a prime `t = 1 mod 2N`.
//!
//! The N slots of a plaintext are two rows of `N/2`; the automorphism `X -> X^(3^s)` rotates both rows by `s` to the left, and
//! `X -> X^-1` swaps them ([`slots`]). With one token's features (or one feature's tokens) side by side, a matrix product is a
//! sum over rotations of the input times plaintexts that hold weights where a token meets itself, and zero elsewhere.
//!
//! **Tokens first**: rows padded to `T`, a power of two; `M = N/T`, `K = M/2`. Feature `r K + k` of a ciphertext sits in row `r`,
//! its token `i` in slot `k T + i`: ciphertext `a` holds the features `a M ..`. All turns `(swap, s T)`, `s < K`, of every input
//! ciphertext meet every output ciphertext: `M - 1` key switches an input ciphertext, or by baby steps and giant steps about
//! `sqrt(M)` for an input and for an output. The result has the layout of the input.
//!
//! Where `I` features and `C` columns (padded to powers of two) do not both fill `M`, as in the products of one head, columns are
//! spare: the input is repeated in them, each repetition further along the features, every repetition does other terms of the
//! product, and who has the result sums the columns that are congruent modulo `C`. `I C / M` turns are left of M: 8 instead of
//! 256 for 32 x 64 times 64 x 32 at N = 8192.
//!
//! **Features first**, what tokens first is measured against: a token's features side by side, padded to `F`, a power of two,
//! `N/F` tokens a ciphertext. A feature reaches an output by a rotation by their difference: `inner + cols - 2` key switches an
//! input ciphertext, plain.
//!
//! Sources: Primer (Zheng, Lou, Jiang, DAC 2023) for tokens first; Halevi and Shoup (CRYPTO 2014, 2018) for diagonals, baby
//! steps and hoisting.

mod layout;
mod multiply;
mod plan;
mod slots;
mod turns;

pub(super) use multiply::{SlotInput, SlotWeights};
pub use plan::{SlotMethod, SlotPacking};
pub use slots::SlotEncoder;
