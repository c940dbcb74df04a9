//! Heliostat: a GPU-accelerated homomorphic-encryption compute engine for private Transformer inference.
//!
//! `arith`, `engine`, `he` and `packing` are always there and are all that a program needs which embeds the engine
//! (`default-features = false, features = ["engine"]`). The other modules are private inference on top of them, behind the
//! feature `protocol`; the feature `cli` adds the program.
//!
//! [`engine::Engine`] chooses a device, [`engine::Poly`] computes with polynomials on it, [`he`] is BFV on top, and [`packing`]
//! multiplies encrypted matrices:
//!
//! ```
//! use heliostat::{
//!     arith::{ShareModulus, sample::SecureRng},
//!     engine::Engine,
//!     he::{BfvContext, HeClient, HeServer, MATMUL_8192, ParameterSet},
//!     packing::{ClientMatrix, CoefficientPacking},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // X of 4 x 8 times W of 8 x 6 with weights up to 100, modulo 2^32.
//! let t = ShareModulus::pow2(32).ok_or("1 to 64 bits")?;
//! let params = ParameterSet::new(MATMUL_8192)?;
//! let packing = CoefficientPacking::for_matmul(&params, t, 4, 8, 6, 100)?;
//! let context = BfvContext::new(Engine::cpu().backend().clone(), params);
//! let mut rng = SecureRng::from_os()?;
//!
//! let client = HeClient::generate(context.clone(), &mut rng);
//! let encrypted = client.encrypt_matrix(t, &packing.inputs()[0], &[7; 4 * 8], &mut rng)?;
//! let (public_key, galois_keys) = (client.public_key(&mut rng)?, client.galois_keys(packing.block(), &mut rng)?);
//!
//! let server = HeServer::new(context, &public_key, Some(&galois_keys))?;
//! let (response, mask) = packing.multiply(&server, &[(&encrypted, &[100; 8 * 6])], &mut rng)?;
//!
//! // The client learns X W minus the server's uniform mask.
//! let share = client.decrypt_matrix(&packing, &response)?;
//! assert!(share.iter().zip(&mask).all(|(&share, &mask)| t.add(share, mask) == 8 * 700));
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "finetune")]
pub mod approx;
pub mod arith;
pub mod engine;
pub mod he;
#[cfg(feature = "protocol")]
pub mod model;
#[cfg(feature = "protocol")]
pub mod mpc;
#[cfg(feature = "protocol")]
pub mod net;
pub mod packing;
#[cfg(feature = "protocol")]
pub mod protocol;
#[cfg(feature = "protocol")]
pub mod report;
#[cfg(any(feature = "protocol", test))]
pub mod thex;
