//! The simulator: the oracle with its non-linear nodes computed bit for bit as the shared layers compute them.
//!
//! On shares a truncation rounds down or up depending on the shares, and the other functions are approximated in their own
//! way. At every such node the simulator draws the client's share uniformly from the edge's ring, as the protocol's masks are
//! drawn, and asks [`SharedFunction::simulate`] what the result is. A seed fixes everything, so that a run can be repeated.

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use crate::{
    arith::{memo::Memo, sample::uniform_ring},
    mpc::shared::{Coins, SharedError, SharedFunction},
};

use super::{Edge, Evaluator, Function, NonLinear, OracleError};

/// An [`Evaluator`] that simulates the shared layers.
pub struct Simulator {
    shares: ChaCha20Rng,
    coins: Coins,
}

impl Simulator {
    /// Its randomness comes from a seed and is not secret.
    pub fn seeded(seed: u64) -> Self {
        Self { shares: ChaCha20Rng::seed_from_u64(!seed), coins: Coins::seeded(seed) }
    }
}

/// The shared form of a function from one edge to another. The protocol and the simulator take the same.
///
/// # Errors
/// [`SharedError`] if there is none for these rings.
pub fn shared_function(function: &Function, from: &Edge, to: &Edge) -> Result<SharedFunction, SharedError> {
    // Tables and their error bounds take up to tens of milliseconds; a simulator asks at every node.
    static FUNCTIONS: Memo<SharedFunction> = Memo::new();
    let key = format!("{function:?} {:?} {:?} {}", from.ring, to.ring, from.cols);
    FUNCTIONS.get(key, || make(function, from, to))
}

fn make(function: &Function, from: &Edge, to: &Edge) -> Result<SharedFunction, SharedError> {
    match function {
        Function::Truncate { shift } => SharedFunction::truncate(*shift, from.ring, to.ring),
        Function::Activation(f) => SharedFunction::activation(f, from.ring, to.ring),
        Function::Exp(f) => SharedFunction::exp(f, from.cols, from.ring, to.ring),
        Function::Power { table, numerator, in_frac, out_frac } => {
            SharedFunction::power(table, *numerator, *in_frac, *out_frac, from.ring, to.ring)
        }
        Function::Tanh(f) => SharedFunction::tanh(f, from.ring, to.ring),
    }
}

/// How many inputs are outside what a shared function is defined for: of a row of softmax, the whole row if its scores
/// differ by half of the ring; row values without a position in the table; else values whose sign is not known, because the
/// ring has no bit to spare for them.
fn outside(function: &Function, from: &Edge, x: &[i64]) -> u64 {
    let bits = from.ring.bits();
    match function {
        Function::Exp(_) => {
            let spread = |row: &&[i64]| {
                let (low, high) = (row.iter().min().copied().unwrap_or(0), row.iter().max().copied().unwrap_or(0));
                i128::from(high) - i128::from(low) >= 1 << (bits - 1)
            };
            x.chunks(from.cols.max(1)).filter(spread).map(|row| row.len() as u64).sum()
        }
        Function::Power { table, .. } => {
            // A row's largest numerator may round to a little below 1, and the sum with it: the shared table goes on for a
            // tenth below its lowest position.
            let least = (9i128 << table.min_log2) / 10;
            x.iter().filter(|&&x| i128::from(x) < least || i128::from(x) >> table.max_log2 > 1).count() as u64
        }
        Function::Truncate { .. } | Function::Activation(_) | Function::Tanh(_) => {
            let bound = 1i128 << (bits.max(2) - 2);
            x.iter().filter(|&&x| !(-bound..bound).contains(&i128::from(x))).count() as u64
        }
    }
}

impl Evaluator for Simulator {
    fn evaluate(&mut self, node: NonLinear<'_>, x: &[i64]) -> Result<(Vec<i128>, u64), OracleError> {
        let failed = |e: SharedError| OracleError::NonLinear { node: node.name.into(), reason: e.to_string() };
        let function = shared_function(node.function, node.input, node.output).map_err(failed)?;
        let (ring, out) = (node.input.ring, node.output.ring);
        let mut client = vec![0; x.len()];
        uniform_ring(&mut self.shares, ring, &mut client);
        let server: Vec<u64> =
            x.iter().zip(&client).map(|(&x, &c)| ring.from_signed(x.wrapping_sub(c as i64))).collect();
        let sums = function.simulate(&client, &server, &mut self.coins).map_err(failed)?;
        Ok((sums.iter().map(|&y| i128::from(out.to_signed(y))).collect(), outside(node.function, node.input, x)))
    }
}
