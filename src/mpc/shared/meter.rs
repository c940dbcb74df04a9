//! What a computation on shares costs, counted before it runs.

use super::SharedError;
use super::fields::packed_len;

/// Random COTs of each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cots {
    /// Those in which the client is the sender.
    pub client_sends: usize,
    /// Those in which the server is the sender.
    pub server_sends: usize,
}

/// What a function of shares costs; the same for all inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// COTs used up.
    pub cots: Cots,
    /// Bytes from the client to the server.
    pub up: usize,
    /// Bytes from the server to the client.
    pub down: usize,
    /// Flights: messages one after the other; messages of both parties at the same time count as one.
    pub rounds: usize,
    /// Messages of each party, the client first.
    pub messages: [usize; 2],
    /// Flights that each party has seen, the client first: a party sends one later than what it has received.
    clocks: [usize; 2],
}

/// `(elements, bits of an element)` of a batch.
pub(super) type BatchSize = (usize, u32);

impl Cost {
    /// A flight of products: batches in which the client, and in which the server, has the elements.
    pub(super) fn products(&mut self, client: &[BatchSize], server: &[BatchSize]) -> Result<(), SharedError> {
        for &(count, bits) in client {
            self.cots.client_sends += count;
            self.up += packed_len(count, bits)?;
            self.down += packed_len(count, 1)?;
        }
        for &(count, bits) in server {
            self.cots.server_sends += count;
            self.down += packed_len(count, bits)?;
            self.up += packed_len(count, 1)?;
        }
        let [client, server] = self.clocks;
        self.message(0, client);
        self.message(1, server);
        Ok(())
    }

    /// Lookups of `count` elements in the server's tables of `2^k` entries of `bits` bits, as `(k, bits)`: choices up, then
    /// tables down.
    pub(super) fn lookups(&mut self, count: usize, tables: &[(u32, u32)]) -> Result<(), SharedError> {
        for &(k, bits) in tables {
            let entries =
                count.checked_mul((1 << k) - 1).ok_or(SharedError::TooLarge { rows: count, width: 1 << k })?;
            self.cots.server_sends += count * k as usize;
            self.up += packed_len(count, k)?;
            self.down += packed_len(entries, bits)?;
        }
        for side in 0..2 {
            self.message(side, self.clocks[side]);
        }
        Ok(())
    }

    /// The client's share goes up, less its mask.
    pub(super) fn restore(&mut self, count: usize, bits: u32) -> Result<(), SharedError> {
        self.up += packed_len(count, bits)?;
        self.message(0, self.clocks[0]);
        Ok(())
    }

    /// A message of a party that had seen `clock` flights.
    fn message(&mut self, side: usize, clock: usize) {
        self.messages[side] += 1;
        self.clocks[1 - side] = self.clocks[1 - side].max(clock + 1);
        self.rounds = self.rounds.max(clock + 1);
    }
}
