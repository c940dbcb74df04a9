//! Moduli, primes, CRT, samplers and the exact integer meaning of the non-linear functions. Depends on nothing of ours.

pub mod bits;
pub mod codec;
pub mod crt;
#[cfg(feature = "protocol")]
pub mod fixed;
#[cfg(feature = "protocol")]
pub(crate) mod memo;
mod modulus;
mod prime_modulus;
pub mod primes;
pub mod sample;
mod share_modulus;

pub use modulus::Modulus;
pub use prime_modulus::PrimeModulus;
pub use share_modulus::ShareModulus;
