//! The command line of Heliostat: parse, call the library, print.

mod ablation;
mod accuracy;
mod args;
mod calibrate;
mod failure;
mod infer;
mod local;
mod offline;
mod oracle;
mod output;
mod plan;
mod progress;
mod serve;
mod store;
mod synth;
mod train;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    failure::quiet_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return failure::usage(&e),
    };
    // A panic is a defect; the hook has said so in one sentence.
    let result = std::panic::catch_unwind(|| run(cli.command)).unwrap_or(Err(Failure::Told(101)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match &command {
        Command::Serve(_) => {}
        command => failure::exit_on_interrupt(offline::leaves(command))?,
    }
    match command {
        Command::Demo(args) => local::demo(args),
        Command::Local(args) => local::local(args),
        Command::Serve(args) => serve::serve(args),
        Command::Infer(args) => infer::infer(args),
        Command::Plan(args) => plan::plan(args),
        Command::Offline(args) => offline::offline(args),
        Command::Store(args) => store::store(args),
        Command::Synth(args) => synth::synth(args),
        Command::Oracle(args) => oracle::oracle(args),
        Command::Accuracy(args) => accuracy::accuracy(args),
        Command::Calibrate(args) => calibrate::calibrate(args),
        Command::Ablation(args) => ablation::ablation(args),
        Command::Finetune(args) => train::finetune(args),
        Command::Approximate(args) => train::approximate(args),
        Command::Doctor(args) => doctor(args),
    }
}

fn doctor(args: args::Doctor) -> Result<(), Failure> {
    let report = heliostat::engine::doctor::report();
    if args.json { output::json(&report) } else { output::text(&report.to_string()) }
}
