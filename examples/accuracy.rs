//! The fixed-point model beside the floating-point model over a file of sentences.
//!
//!     cargo run --release --example accuracy -- MODEL FILE.tsv [count=N] [calibrate=FILE.tsv] [samples=N] [out=FILE.json] [KEY=BITS]...
//!
//! FILE.tsv has a header, then a sentence and, if there is one, its label on each line. Without `calibrate` the magnitudes are
//! the worst case; with it they come from the first N sentences of that file and are written to `out`. KEY is a field of `Precision`. The count of
//! AND gates is an estimate for 32 tokens: ring widths in and out, and the tables.

use heliostat::model::{
    Calibrator, Checkpoint, Function, Graph, HEADROOM_BITS, Model, Op, Precision, Prediction, random_samples,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(file)) = (args.next(), args.next()) else {
        return Err(
            "usage: accuracy MODEL FILE.tsv [count=N] [calibrate=FILE.tsv] [samples=N] [out=FILE.json] [KEY=BITS]..."
                .into(),
        );
    };
    let (mut count, mut samples, mut calibrate, mut out) = (usize::MAX, 400, None, None);
    let mut precision = Precision::default();
    for argument in args {
        let (key, value) = argument.split_once('=').ok_or("options have the form KEY=VALUE")?;
        match key {
            "count" => count = value.parse()?,
            "samples" => samples = value.parse()?,
            "out" => out = Some(value.to_string()),
            "calibrate" => calibrate = Some(value.to_string()),
            _ => *field(&mut precision, key).ok_or(format!("no field {key}"))? = value.parse()?,
        }
    }
    let mut model = Model::worst_case(Checkpoint::read(folder.as_ref())?, &precision)?;
    if let Some(file) = calibrate {
        let mut calibrator = Calibrator::new(&model);
        for (text, _) in read(&file)?.iter().take(samples) {
            calibrator.add(&model.client().encode(text, None, 128)?)?;
        }
        for text in random_samples(&model, 16, 128) {
            calibrator.add(&text)?;
        }
        let calibration = calibrator.finish(HEADROOM_BITS)?;
        if let Some(out) = out {
            calibration.write(out.as_ref())?;
        }
        model = Model::calibrated(Checkpoint::read(folder.as_ref())?, calibration)?;
    }
    println!("{:?}; about {} AND gates", model.provenance(), and_gates(&model.client().graph(32)?));

    let (mut n, mut agree, mut float_right, mut oracle_right, mut overflows) = (0, 0, 0, 0, 0);
    let (mut difference, mut cosine) = (0f64, 0f64);
    for (text, label) in read(&file)?.iter().take(count) {
        let text = model.client().encode(text, None, 128)?;
        let (float, oracle) = (model.float(&text)?, model.oracle(&text)?);
        n += 1;
        overflows += oracle.execution.overflow_count();
        for (a, b) in float.rows.iter().flatten().zip(oracle.outputs.rows.iter().flatten()) {
            difference = difference.max((a - b).abs());
        }
        match (&float.prediction, &oracle.outputs.prediction) {
            (Prediction::Label(a), Prediction::Label(b)) => {
                agree += u32::from(a.index == b.index);
                float_right += u32::from(Some(a.index) == *label);
                oracle_right += u32::from(Some(b.index) == *label);
            }
            (Prediction::Embedding(a), Prediction::Embedding(b)) => {
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                cosine += dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            }
            _ => {}
        }
    }
    println!("{n} texts, largest difference of an output {difference:.4}, {overflows} overflows");
    if cosine > 0.0 {
        println!("mean cosine {:.6}", cosine / n as f64);
    } else {
        println!("{agree} labels agree; right: float {float_right}, oracle {oracle_right}");
    }
    Ok(())
}

/// Sentences and labels of a file with tabs and a header.
fn read(file: &str) -> Result<Vec<(String, Option<usize>)>, Failure> {
    let text = std::fs::read_to_string(file)?;
    let row = |line: &str| {
        let mut columns = line.split('\t');
        let text = columns.next().unwrap_or_default().to_string();
        (text, columns.next().and_then(|label| label.parse().ok()))
    };
    Ok(text.lines().skip(1).map(row).collect())
}

fn field<'a>(p: &'a mut Precision, key: &str) -> Option<&'a mut u32> {
    Some(match key {
        "hidden_frac" => &mut p.hidden_frac,
        "weight_frac" => &mut p.weight_frac,
        "query_key_frac" => &mut p.query_key_frac,
        "value_frac" => &mut p.value_frac,
        "exp_frac" => &mut p.exp_frac,
        "exp_table_bits" => &mut p.exp_table_bits,
        "activation_table_bits" => &mut p.activation_table_bits,
        "activation_range_log2" => &mut p.activation_range_log2,
        "row_table_bits" => &mut p.row_table_bits,
        "tanh_table_bits" => &mut p.tanh_table_bits,
        _ => return None,
    })
}

/// Recombination and masking cost a gate a bit, a table about one a cell.
fn and_gates(graph: &Graph) -> u64 {
    let gates = |op: &Op, output| {
        let Op::Garbled { input, function } = op else { return 0 };
        let (input, output) = (graph.edge(*input), graph.edge(output));
        let table = match function {
            Function::Truncate { .. } => 0,
            Function::Activation(f) => (1 << f.table_bits) + f.out_frac as u64,
            Function::Exp(f) => (1 << f.frac_bits) + 100,
            Function::Power { table, .. } => 1 << (table.table_bits + 1),
            Function::Tanh(f) => 1 << f.table_bits,
        };
        (input.ring.bits() as u64 + output.ring.bits() as u64 + table) * input.len() as u64
    };
    graph.nodes.iter().map(|n| gates(&n.op, n.output)).sum()
}
