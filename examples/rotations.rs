//! Eight rotations of an encrypted polynomial in one hoisted batch, against `f(X^g)` in the clear.
//!
//!     cargo run --release --example rotations -- [--backend auto|cpu|gpu|dual] [--adapter NAME|INDEX]
//!
//! Messages are coefficients modulo `2^l`, so that a rotation is an automorphism `X -> X^g` of the polynomial. What leaves the
//! server goes through `respond`, which masks and floods it.

mod common;

use heliostat::{
    arith::{ShareModulus, sample::SecureRng},
    engine::Engine,
    he::{BfvContext, HeClient, HeServer, MATMUL_8192, NoiseBound, ParameterSet},
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    run(&common::engine(std::env::args().skip(1))?)
}

/// The example on a device.
pub fn run(engine: &Engine) -> Result<(), Failure> {
    let params = ParameterSet::new(MATMUL_8192)?;
    let (n, t) = (params.n(), ShareModulus::pow2(32).ok_or("1 to 64 bits")?);
    let context = BfvContext::new(engine.backend().clone(), params.clone());
    let mut rng = SecureRng::from_os()?;

    // The client's keys serve the elements that the server will use: 5, 5^2, .. 5^8 modulo 2N.
    let elements: Vec<usize> = std::iter::successors(Some(5), |g| Some(g * 5 % (2 * n))).take(8).collect();
    let client = HeClient::generate(context.clone(), &mut rng);
    let public_key = client.public_key(&mut rng)?;
    let galois_keys = client.galois_keys_for(&elements, &mut rng)?;
    let message: Vec<u64> = (0..n as u64).map(|i| t.reduce(i * i * 2654435761)).collect();
    let encrypted = client.encrypt(t, &message, &mut rng)?;

    // The server rotates ciphertext 0 by every element at once.
    let server = HeServer::new(context.clone(), &public_key, Some(&galois_keys))?;
    let ciphertext = server.load(&encrypted)?.inverse()?;
    let batch: Vec<(usize, usize)> = elements.iter().map(|&element| (0, element)).collect();
    let rotated = server.rotate(&ciphertext, &batch)?;

    // Every coefficient of every rotation goes back, masked.
    let positions = vec![(0..n as u32).collect::<Vec<u32>>(); elements.len()];
    let plan = params.check(t, &NoiseBound::fresh().rotated(&params))?;
    let (response, mask) = server.respond(t, &plan, rotated.buffer(), &positions, &mut rng)?;
    let share = client.decrypt(t, &plan, &positions, &response)?;
    for (r, element) in elements.iter().enumerate() {
        for (i, &coefficient) in message.iter().enumerate() {
            let to = i * element % (2 * n);
            let expected = if to < n { coefficient } else { t.sub(0, coefficient) };
            let at = r * n + to % n;
            if t.add(share[at], mask[at]) != expected {
                return Err(format!("coefficient {to} of f(X^{element}) differs").into());
            }
        }
    }
    println!("verified: {} rotations of {n} encrypted coefficients equal those in the clear", elements.len());
    Ok(())
}
