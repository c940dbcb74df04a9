//! Measures the engine kernel by kernel, CPU against GPU, and checks every result in the same run.
//!
//! ```text
//! cargo run --release -p kernels-bench -- [--quick] [--out DIR] [--adapter NAME|INDEX] [--kernel NAME]
//! ```
//!
//! Wall time of whole batched operations on data that is already on the device, median and interquartile range. The expected
//! result of every case is computed apart, by plain arithmetic; a row that differs is marked and makes the run fail.

mod cases;
mod composed;
mod devices;
mod reference;
mod report;
mod stats;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{
    cases::{Case, Prepared},
    devices::Device,
    report::{Machine, Report, Row},
    stats::Effort,
};

/// Benches of Heliostat's compute engine: every kernel on one CPU thread, on all of them, and on the best GPU.
#[derive(Parser)]
struct Arguments {
    /// Small cases and few runs: to see that everything works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Writes kernels.json there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// This adapter, by index or part of its name, instead of the best hardware GPU (the only way to a software adapter).
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Only kernels whose name contains this.
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: results differ from the expected ones, see the rows marked WRONG");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all cases on all devices; whether every result was right.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    if cfg!(debug_assertions) && !arguments.quick {
        eprintln!("note: this is not a release build; its figures mean nothing");
    }
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let (devices, gpu_note) = devices::all(arguments.adapter.as_deref(), arguments.quick)?;
    let machine = Machine::here(gpu_note);
    println!("{machine}\n");

    let wanted = |name: &str| arguments.kernel.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut rows = Vec::new();
    report::print_header();
    for case in Case::all(arguments.quick).iter().filter(|case| wanted(case.kernel.name())) {
        let prepared = case.prepare()?;
        let first = rows.len();
        rows.extend(reference::tfhe_ntt(case, &prepared, effort)?);
        for device in &devices {
            rows.push(measure(case, &prepared, device, effort)?);
        }
        report::print_rows(&rows[first..]);
    }
    if wanted(composed::KERNEL) {
        composed::all(arguments.quick, &devices, effort, |layer| {
            report::print_rows(&layer);
            rows.extend(layer);
        })?;
    }
    let verified = rows.iter().all(|row| row.verified);
    if let Some(folder) = &arguments.out {
        let path = Report { machine, results: rows }.write(folder)?;
        println!("\nwritten to {}", path.display());
    }
    Ok(verified)
}

/// One case on one device.
fn measure(case: &Case, prepared: &Prepared, device: &Device, effort: Effort) -> Result<Row, Box<dyn Error>> {
    device.install(|| {
        let inputs = prepared.upload(device.backend())?;
        let output = prepared.run(device.backend(), &inputs)?;
        let verified = device.backend().download(&output)? == prepared.expected;
        let timing = stats::measure(effort, |repeats| {
            (0..repeats).try_for_each(|_| prepared.run(device.backend(), &inputs).map(drop))?;
            device.wait()
        })?;
        Ok(Row::new(case.work(), device.label(), device.form(), device.threads(), timing, verified))
    })
}
