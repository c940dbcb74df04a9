//! A product of two polynomials in `Z_q[X]/(X^N + 1)` by number-theoretic transforms, against the schoolbook.
//!
//!     cargo run --release --example ntt_product -- [--backend auto|cpu|gpu|dual] [--adapter NAME|INDEX]

pub mod common;

use heliostat::engine::{BigInt, Coeff, Engine, Poly};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    run(&common::engine(std::env::args().skip(1))?)
}

/// The example on a device.
pub fn run(engine: &Engine) -> Result<(), Failure> {
    let n: usize = 2048;
    let ring = engine.ring(n, 30, 3)?; // q is the product of three primes of 30 bits
    let a: Vec<i64> = (0..n as i64).map(|i| i * i % 2003 - 1000).collect();
    let b: Vec<i64> = (0..n as i64).map(|i| i * 7919 % 4001 - 2000).collect();

    let pa = Poly::<Coeff>::from_signed(engine, &ring, 3, &a)?;
    let pb = Poly::<Coeff>::from_signed(engine, &ring, 3, &b)?;
    let product = pa.forward()?.mul(&pb.forward()?)?.inverse()?.to_integers()?;

    let mut expected = vec![0i64; n];
    for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
        expected[(i + j) % n] += if i + j < n { a[i] * b[j] } else { -a[i] * b[j] };
    }
    if product != expected.into_iter().map(BigInt::from).collect::<Vec<_>>() {
        return Err("the product differs from the schoolbook".into());
    }
    println!("verified: {n} coefficients of a product modulo X^{n} + 1 equal the schoolbook's");
    Ok(())
}
