//! Measures the engine, CPU against GPU, and checks every result in the same run.
//!
//! ```text
//! cargo run --release -p kernels-bench -- [--quick] [--kernels a,b] [--sizes 1024,8192] [--out DIR] [--adapter NAME|INDEX]
//!                                         [--threads COUNT] [--vram BYTES] [--compare A.json B.json [--fail-on-slower]]
//! ```

use std::process::ExitCode;

use clap::Parser;
use kernels_bench::{
    args::Arguments,
    run::{Outcome, run},
};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(Outcome::Right) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => {
            eprintln!("error: results differ from the expected ones, see the rows marked WRONG");
            ExitCode::FAILURE
        }
        Ok(Outcome::Slower) => {
            eprintln!("error: something is slower outside noise, see the rows marked slower");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
