//! One direction of correlated OTs with chosen choices, whichever way they are made.

use zeroize::Zeroizing;

use crate::{
    mpc::{
        block::Block,
        ot::{CotReceiver, CotReceiverPool, CotSender, CotSenderPool, OtError},
    },
    protocol::Result,
};

/// The end that chooses.
pub(super) enum Receiving {
    /// An extension makes them on demand.
    Extension(CotReceiver),
    /// Random ones were made before; each choice costs a bit on the line.
    Pool(CotReceiverPool),
}

impl Receiving {
    /// `count` COTs for packed choices: the message to the other end, and the keys `t_j`.
    pub fn choose(&mut self, choices: &[u8], count: usize) -> Result<(Vec<u8>, Zeroizing<Vec<Block>>)> {
        match self {
            Self::Extension(receiver) => {
                let (message, keys) = receiver.extend(choices, count)?;
                Ok((message, Zeroizing::new(keys)))
            }
            Self::Pool(pool) => {
                let expected = count.div_ceil(8);
                if choices.len() != expected {
                    return Err(length("the choices of OTs", expected, choices.len()).into());
                }
                let cots = pool.take(count)?;
                let message = cots.choices().iter().zip(choices).map(|(random, choice)| random ^ choice).collect();
                Ok((message, cots.t))
            }
        }
    }
}

/// The end that knows the offset.
pub(super) enum Sending {
    /// An extension makes them on demand.
    Extension(CotSender),
    /// Random ones were made before.
    Pool(CotSenderPool),
}

impl Sending {
    /// The keys `q_j = t_j ^ choice_j * delta` of `count` COTs for the other end's message.
    pub fn transfer(&mut self, message: &[u8], count: usize) -> Result<Zeroizing<Vec<Block>>> {
        match self {
            Self::Extension(sender) => Ok(Zeroizing::new(sender.extend(message, count)?)),
            Self::Pool(pool) => {
                let expected = count.div_ceil(8);
                if message.len() != expected {
                    return Err(length("the corrections of OTs", expected, message.len()).into());
                }
                let delta = pool.delta();
                let mut keys = pool.take(count)?;
                for (j, key) in keys.iter_mut().enumerate() {
                    *key ^= Block::mask(message[j / 8] >> (j % 8) & 1 == 1) & delta;
                }
                Ok(keys)
            }
        }
    }
}

fn length(what: &'static str, expected: usize, found: usize) -> OtError {
    OtError::Length { what, expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpc::ot::deal;

    #[test]
    fn choices_are_corrected() {
        let count: usize = 203;
        let (sender, receiver) = deal(5, 1000);
        let delta = sender.delta();
        let (mut sending, mut receiving) = (Sending::Pool(sender), Receiving::Pool(receiver));
        for round in 0u32..4 {
            let mut choices: Vec<u8> = (0..count.div_ceil(8) as u32).map(|i| (i * 77 + 5 + 31 * round) as u8).collect();
            *choices.last_mut().unwrap() &= 0b111;
            let (message, t) = receiving.choose(&choices, count).unwrap();
            let q = sending.transfer(&message, count).unwrap();
            for j in 0..count {
                let choice = choices[j / 8] >> (j % 8) & 1 == 1;
                assert!(t[j] == q[j] ^ (Block::mask(choice) & delta), "{round} {j}");
            }
            assert_eq!(message.len(), 26);
        }
        assert!(sending.transfer(&[0; 3], count).is_err() && receiving.choose(&[0; 3], count).is_err());
        assert!(sending.transfer(&[0; 26], 203).is_err() && receiving.choose(&[0; 26], 203).is_err());
    }
}
