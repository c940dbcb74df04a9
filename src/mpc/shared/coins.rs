//! How the simulator learns the randomness of a run.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// The client's shares at the points inside a function where a result's last bits depend on them.
///
/// Inside the protocol such shares are pseudorandom: pads of oblivious transfers. The simulator draws them from a seed,
/// which gives results of the same distribution; a test that records them from a run gets the run's results bit for bit.
pub struct Coins(Source);

enum Source {
    Seeded(Box<ChaCha20Rng>),
    #[cfg(test)]
    Recorded(std::collections::VecDeque<Vec<u64>>),
}

impl Coins {
    /// Coins from a seed. They decide roundings of a simulation and are not secret.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Box::new(ChaCha20Rng::seed_from_u64(seed))))
    }

    #[cfg(test)]
    pub(super) fn recorded(shares: Vec<Vec<u64>>) -> Self {
        Self(Source::Recorded(shares.into()))
    }

    /// The client's shares of `count` values modulo `2^bits`.
    pub(super) fn draw(&mut self, count: usize, bits: u32) -> Vec<u64> {
        let mask = super::fields::low_mask(bits);
        match &mut self.0 {
            Source::Seeded(rng) => (0..count).map(|_| rng.next_u64() & mask).collect(),
            #[cfg(test)]
            Source::Recorded(shares) => {
                let shares = shares.pop_front().unwrap();
                assert!(shares.len() == count && shares.iter().all(|s| s & !mask == 0));
                shares
            }
        }
    }
}
