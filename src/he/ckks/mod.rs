//! CKKS on the engine: arithmetic on encrypted vectors of real numbers, to a stated precision.
//!
//! A ciphertext is `(c0, c1)` with `c0 + c1 s = round(scale m) + error`, `m` the polynomial whose values at `N/2` roots of unity
//! are the slots ([`CkksEncoder`]); keys, sampling, seeds, key switching and wire forms are those of [`super`]. Every operation
//! of [`CkksServer`] works on a batch and runs on the engine's operations alone, so that all backends give the same words.
//!
//! **Levels.** A ciphertext has a number of limbs, a prefix of the primes of q. A product multiplies scales;
//! [`CkksServer::rescale`] divides by the last prime, which is about the scale that [`CkksContext::scale`] gives for fresh
//! ciphertexts: one prime of 30 bits a level. The last level needs as many limbs as the message has bits: two, for values up to
//! `2^28`.
//!
//! **Precision.** Each batch carries its scale, a bound on its slots and a bound on their error ([`Ledger`]).
//!
//! **Decrypted results are secret.** A decrypted approximate number contains the error of its ciphertext, and whoever sees it
//! beside the ciphertext can compute the secret key (Li, Micciancio, EUROCRYPT 2021: IND-CPA is not IND-CPA-D). So the rule here:
//! *only the holder of the secret key sees decrypted values, and nothing computed from them goes to anybody, except encrypted
//! again*. There is no interface for a result that is shared; it would have to be flooded first.
//!
//! ```
//! use heliostat::{
//!     arith::sample::SecureRng,
//!     engine::Engine,
//!     he::{ParameterSet, ckks::{CKKS_8192, CkksClient, CkksContext, CkksServer}},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = CkksContext::new(Engine::cpu().backend().clone(), ParameterSet::new(CKKS_8192)?);
//! let mut rng = SecureRng::from_os()?;
//! let client = CkksClient::generate(context.clone(), &mut rng);
//! let keys = client.keys(&[1], &mut rng)?;
//!
//! let server = CkksServer::new(context.clone(), &keys)?;
//! let form = context.fresh(3, 2.0);
//! let x = server.load(&client.encrypt(&[0.5, -1.5], form, &mut rng)?, form)?;
//! let square = server.rescale(&server.relinearise(&server.multiply(&x, &x)?)?)?;
//! let turned = server.rotate(&square, &[(0, 1)])?;
//!
//! let slots = client.decrypt(&server.respond(&turned, 2, &mut rng)?)?;
//! assert!((slots[0] - 2.25).abs() < turned.ledger().error && turned.ledger().error < 0.01);
//! # Ok(())
//! # }
//! ```

mod ciphertext;
mod client;
mod context;
mod encode;
mod fft;
mod key_switch;
mod ledger;
mod products;
mod real;
mod response;
mod server;
#[cfg(test)]
mod tests;

pub use ciphertext::{CkksCiphertexts, CkksPlaintexts};
pub use client::{CkksClient, CkksKeys};
pub use context::{CKKS_8192, CKKS_16384, CKKS_32768, CKKS_SPECS, CkksContext, Fresh};
pub use encode::{CkksEncoder, conjugation_element, rotation_element};
pub use fft::Complex;
pub use ledger::Ledger;
pub use real::{DoubleDouble, Real};
pub use response::CkksResponse;
pub use server::CkksServer;
