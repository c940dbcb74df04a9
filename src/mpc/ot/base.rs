//! Base OTs: the "simplest OT" of Chou and Orlandi (LATINCRYPT 2015) over Ristretto.
//!
//! Sender: `A = a G`. Receiver, per OT: `B = b G + c A`, key `b A`. Sender: key 0 is `a B`, key 1 is `a (B - A)`.
//! `B` is uniform whatever the choice `c`, so choices are hidden without any assumption; the other key is hidden from a
//! semi-honest receiver under the computational Diffie-Hellman assumption with the key derivation as a random oracle.
//! Every key is bound to the session, to the index of its OT and to both points, so that nothing can be replayed across
//! indices or sessions.

use blake3::Hasher;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity;
use rand_core::CryptoRng;
use subtle::{Choice, ConditionallySelectable};
use zeroize::{Zeroize, Zeroizing};

use super::OtError;
use crate::arith::bits;
use crate::mpc::block::{BLOCK_BYTES, Block};

/// Bytes of a group element on the wire.
pub const POINT_BYTES: usize = 32;

const KEY_CONTEXT: &str = "heliostat v1 mpc base OT key";

/// The sender of base OTs between its two messages.
pub struct BaseSender {
    secret: Scalar,
    point: CompressedRistretto,
    session: Vec<u8>,
}

impl BaseSender {
    /// Starts base OTs in a session (any bytes that both parties agree on and never use twice). Returns the state and
    /// message A: one group element, [`POINT_BYTES`] bytes.
    pub fn new<R: CryptoRng>(session: &[u8], rng: &mut R) -> (Self, Vec<u8>) {
        let secret = random_scalar(rng);
        let point = RistrettoPoint::mul_base(&secret).compress();
        (Self { secret: *secret, point, session: session.to_vec() }, point.as_bytes().to_vec())
    }

    /// Both keys of each of `count` OTs from message B.
    ///
    /// # Errors
    /// If message B has not `32 * count` bytes or an element of it does not decode.
    pub fn keys(self, message_b: &[u8], count: usize) -> Result<Zeroizing<Vec<[Block; 2]>>, OtError> {
        let expected = count.checked_mul(POINT_BYTES).ok_or(OtError::Exhausted)?;
        if message_b.len() != expected {
            return Err(OtError::Length { what: "the base OT reply", expected, found: message_b.len() });
        }
        let own = RistrettoPoint::mul_base(&self.secret);
        let mut shift = own * self.secret;
        let mut keys = Zeroizing::new(Vec::with_capacity(count));
        for (index, bytes) in message_b.chunks_exact(POINT_BYTES).enumerate() {
            let (reply, point) = decode("base OT reply", index, bytes)?;
            let mut shared = point * self.secret;
            let derive = |shared: &RistrettoPoint| derive_key(&self.session, index, &self.point, &reply, shared);
            keys.push([derive(&shared), derive(&(shared - shift))]);
            shared.zeroize();
        }
        shift.zeroize();
        Ok(keys)
    }
}

impl Drop for BaseSender {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// The receiver's whole part: from message A and its packed choice bits (OT `i` takes bit `i % 8` of byte `i / 8`) the key
/// of its choice in each of `count` OTs, and message B, [`POINT_BYTES`] bytes an OT. Takes the same time for all choices.
///
/// # Errors
/// If message A is not one valid group element other than the identity, or the choice bits are malformed.
pub fn receive<R: CryptoRng>(
    session: &[u8],
    message_a: &[u8],
    choices: &[u8],
    count: usize,
    rng: &mut R,
) -> Result<(Zeroizing<Vec<Block>>, Vec<u8>), OtError> {
    let choices = Zeroizing::new(bits::unpack(choices, 1, count)?);
    if message_a.len() != POINT_BYTES {
        return Err(OtError::Length { what: "the base OT opening", expected: POINT_BYTES, found: message_a.len() });
    }
    let (opening, point) = decode("base OT opening", 0, message_a)?;
    let mut message = Vec::with_capacity(count * POINT_BYTES);
    let mut keys = Zeroizing::new(Vec::with_capacity(count));
    for (index, &choice) in choices.iter().enumerate() {
        let secret = random_scalar(rng);
        let offset =
            RistrettoPoint::conditional_select(&RistrettoPoint::identity(), &point, Choice::from((choice & 1) as u8));
        let reply = (RistrettoPoint::mul_base(&secret) + offset).compress();
        let mut shared = point * *secret;
        keys.push(derive_key(session, index, &opening, &reply, &shared));
        shared.zeroize();
        message.extend_from_slice(reply.as_bytes());
    }
    Ok((keys, message))
}

fn decode(what: &'static str, index: usize, bytes: &[u8]) -> Result<(CompressedRistretto, RistrettoPoint), OtError> {
    let error = OtError::Point { what, index };
    let compressed = CompressedRistretto::from_slice(bytes).map_err(|_| error)?;
    let point = compressed.decompress().ok_or(error)?;
    // The identity as an opening would make every key public, and an honest party sends it with probability 2^-252.
    if point == RistrettoPoint::identity() { Err(error) } else { Ok((compressed, point)) }
}

fn random_scalar<R: CryptoRng>(rng: &mut R) -> Zeroizing<Scalar> {
    let mut wide = Zeroizing::new([0; 64]);
    rng.fill_bytes(&mut *wide);
    Zeroizing::new(Scalar::from_bytes_mod_order_wide(&wide))
}

fn derive_key(
    session: &[u8],
    index: usize,
    opening: &CompressedRistretto,
    reply: &CompressedRistretto,
    shared: &RistrettoPoint,
) -> Block {
    let mut compressed = shared.compress();
    let mut hasher = Hasher::new_derive_key(KEY_CONTEXT);
    hasher.update(&(session.len() as u64).to_le_bytes()).update(session);
    hasher.update(&(index as u64).to_le_bytes()).update(opening.as_bytes()).update(reply.as_bytes());
    hasher.update(compressed.as_bytes());
    let mut key = Zeroizing::new([0; BLOCK_BYTES]);
    hasher.finalize_xof().fill(&mut *key);
    hasher.zeroize();
    compressed.zeroize();
    Block::from_bytes(*key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn rng(seed: u8) -> ChaCha20Rng {
        ChaCha20Rng::from_seed([seed; 32])
    }

    #[test]
    fn receiver_gets_the_chosen_key_and_only_that() {
        let choices = [0b1010_0110, 0b0000_0001];
        let (sender, a) = BaseSender::new(b"s", &mut rng(1));
        let (got, b) = receive(b"s", &a, &choices, 13, &mut rng(2)).unwrap();
        let keys = sender.keys(&b, 13).unwrap();
        let mut all: Vec<u128> = keys.iter().flatten().map(|k| k.0).collect();
        for (i, key) in got.iter().enumerate() {
            let c = (choices[i / 8] >> (i % 8) & 1) as usize;
            assert!(*key == keys[i][c] && *key != keys[i][1 - c], "{i}");
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 26);
    }

    #[test]
    fn sessions_separate_keys() {
        let (sender, a) = BaseSender::new(b"s", &mut rng(1));
        let (got, b) = receive(b"t", &a, &[0], 1, &mut rng(2)).unwrap();
        let keys = sender.keys(&b, 1).unwrap();
        assert!(got[0] != keys[0][0] && got[0] != keys[0][1]);
    }

    #[test]
    fn malformed_messages_are_refused() {
        let (_, a) = BaseSender::new(b"", &mut rng(1));
        let go = |a: &[u8], c: &[u8], n| receive(b"", a, c, n, &mut rng(2)).map(|_| ());
        assert!(go(&a, &[1], 8).is_ok());
        assert!(matches!(go(&a[1..], &[1], 8), Err(OtError::Length { .. })));
        assert!(matches!(go(&[0xff; 32], &[1], 8), Err(OtError::Point { .. })));
        assert!(matches!(go(&[0; 32], &[1], 8), Err(OtError::Point { .. })));
        assert!(matches!(go(&a, &[1], 9), Err(OtError::Choices(_))));
        assert!(matches!(go(&a, &[0x80], 7), Err(OtError::Choices(_))));
        let reply = receive(b"", &a, &[1], 3, &mut rng(2)).unwrap().1;
        let sender = || BaseSender::new(b"", &mut rng(1)).0;
        assert!(sender().keys(&reply, 3).is_ok());
        assert!(matches!(sender().keys(&reply, 2), Err(OtError::Length { .. })));
        assert!(matches!(sender().keys(&[], usize::MAX), Err(OtError::Exhausted)));
        let mut bad = reply.clone();
        bad[32..64].fill(0xff);
        assert_eq!(sender().keys(&bad, 3).err(), Some(OtError::Point { what: "base OT reply", index: 1 }));
    }
}
