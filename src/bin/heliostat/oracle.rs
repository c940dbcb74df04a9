//! `oracle`: the fixed-point model in the clear beside the floating-point one.

use heliostat::{model::Model, report::print};
use serde::Serialize;

use crate::{args::Oracle, failure::Failure, output};

#[derive(Serialize)]
struct Entry {
    text: String,
    tokens: usize,
    bucket: usize,
    truncated: bool,
    oracle_outputs: Vec<f64>,
    float_outputs: Vec<f64>,
    largest_difference: f64,
    overflows: Vec<Overflow>,
}

#[derive(Serialize)]
struct Overflow {
    edge: String,
    count: u64,
}

/// `heliostat oracle`.
pub fn oracle(args: Oracle) -> Result<(), Failure> {
    let inputs = args.texts.read()?;
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    let (mut entries, mut failures) = (Vec::new(), Vec::new());
    for input in &inputs {
        let text = model.client().encode(&input.text, input.pair.as_deref(), args.max_tokens.into());
        let text = match text {
            Ok(text) => text,
            Err(e) => {
                failures.push(e.to_string());
                continue;
            }
        };
        let run = model.oracle(&text)?;
        let (fixed, float) = (run.outputs.rows.concat(), model.float(&text)?.rows.concat());
        let difference = fixed.iter().zip(&float).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let edge = |o: &heliostat::model::Overflow| run.graph.edge(o.edge).name.clone();
        let overflows: Vec<Overflow> =
            run.execution.overflows.iter().map(|o| Overflow { edge: edge(o), count: o.count }).collect();
        let entry = Entry {
            text: input.text.clone(),
            tokens: text.len(),
            bucket: text.bucket,
            truncated: text.truncated,
            oracle_outputs: fixed,
            float_outputs: float,
            largest_difference: difference,
            overflows,
        };
        if !entry.overflows.is_empty() {
            failures.push(format!("{:?} overflows its rings: calibrate with texts like this", input.text));
        }
        if !args.json {
            print_entry(&entry)?;
        }
        entries.push(entry);
    }
    if args.json {
        output::json(&entries)?;
    }
    match failures.as_slice() {
        [] => Ok(()),
        [one] => Err(Failure::new(one)),
        [first, ..] => Err(Failure::new(format!("{} texts failed, the first because: {first}", failures.len()))),
    }
}

fn print_entry(e: &Entry) -> Result<(), Failure> {
    let cut = if e.truncated { ", cut" } else { "" };
    let mut text = format!(
        "{:?}\n  {} tokens in a bucket of {}{cut}\n  oracle     {}\n  float      {}\n  difference {:.6} at most\n",
        e.text,
        e.tokens,
        e.bucket,
        print::numbers(&e.oracle_outputs),
        print::numbers(&e.float_outputs),
        e.largest_difference,
    );
    for overflow in &e.overflows {
        text += &format!("  OVERFLOW   {}: {} values\n", overflow.edge, overflow.count);
    }
    if e.overflows.is_empty() {
        text += "  overflows  none\n";
    }
    output::text(&text)
}
