//! A matrix product `X W` where the client encrypts X and the server has W, against the product in the clear.
//!
//!     cargo run --release --example encrypted_matmul -- [--backend auto|cpu|gpu|dual] [--adapter NAME|INDEX]

mod common;

use std::time::Instant;

use heliostat::{
    arith::{ShareModulus, sample::SecureRng},
    engine::Engine,
    he::{BfvContext, HeClient, HeServer, MATMUL_8192, ParameterSet},
    packing::{ClientMatrix, CoefficientPacking},
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    run(&common::engine(std::env::args().skip(1))?)
}

/// The example on a device.
pub fn run(engine: &Engine) -> Result<(), Failure> {
    // X is 32 x 128, W is 128 x 64 with weights of 11 bits, results are integers modulo 2^32.
    let (rows, inner, cols, weight) = (32, 128, 64, 1023);
    let t = ShareModulus::pow2(32).ok_or("1 to 64 bits")?;
    let x: Vec<i64> = (0..rows * inner).map(|i| (i * 31 % 257) as i64 - 128).collect();
    let w: Vec<i64> = (0..inner * cols).map(|i| (i * 57 % 2047) as i64 - 1023).collect();

    // Both sides know the sizes, and derive parameters and layout from them.
    let params = ParameterSet::new(MATMUL_8192)?;
    let packing = CoefficientPacking::for_matmul(&params, t, rows, inner, cols, weight)?;
    let context = BfvContext::new(engine.backend().clone(), params);
    let mut rng = SecureRng::from_os()?;

    // The client: keys, and the encrypted matrix.
    let client = HeClient::generate(context.clone(), &mut rng);
    let public_key = client.public_key(&mut rng)?;
    let galois_keys = client.galois_keys(packing.block(), &mut rng)?;
    let residues: Vec<u64> = x.iter().map(|&x| t.from_signed(x)).collect();
    let encrypted = client.encrypt_matrix(t, &packing.inputs()[0], &residues, &mut rng)?;

    // The server: the product. It keeps a uniform mask, and the client learns the product minus the mask.
    let server = HeServer::new(context.clone(), &public_key, Some(&galois_keys))?;
    let start = Instant::now();
    let (response, mask) = packing.multiply(&server, &[(&encrypted, &w)], &mut rng)?;
    println!("product of {rows}x{inner} and {inner}x{cols}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);

    // Together they have the result.
    let share = client.decrypt_matrix(&packing, &response)?;
    for (at, (&share, &mask)) in share.iter().zip(&mask).enumerate() {
        let expected: i64 = (0..inner).map(|k| x[at / cols * inner + k] * w[k * cols + at % cols]).sum();
        if t.to_signed(t.add(share, mask)) != expected {
            return Err(format!("entry {at} differs from the product in the clear").into());
        }
    }
    println!("verified: {} entries of the encrypted product equal the product in the clear", share.len());
    Ok(())
}
