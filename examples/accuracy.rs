//! Oracle against the floating-point model over a file of sentences: `accuracy MODEL FILE [COUNT]`.

use heliostat::model::{Checkpoint, Model, Precision, Prediction};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let get = |i: usize| args.get(i).cloned().unwrap_or_default();
    let text = std::fs::read_to_string(get(2))?;
    let count = get(3).parse().unwrap_or(usize::MAX);
    let mut precision = Precision::default();
    for a in args.iter().skip(4) {
        let (k, v) = a.split_once('=').ok_or("KEY=VALUE")?;
        let v: u32 = v.parse()?;
        match k {
            "hidden" => precision.hidden_frac = v,
            "qk" => precision.query_key_frac = v,
            "value" => precision.value_frac = v,
            "exp" => precision.exp_frac = v,
            "exptab" => precision.exp_table_bits = v,
            "act" => precision.activation_table_bits = v,
            "range" => precision.activation_range_log2 = v,
            "row" => precision.row_table_bits = v,
            "tanh" => precision.tanh_table_bits = v,
            _ => return Err("key".into()),
        }
    }
    let clock = std::time::Instant::now();
    let model = Model::worst_case(Checkpoint::read(get(1).as_ref())?, &precision)?;
    println!("loaded in {:?}: {:?}", clock.elapsed(), model.provenance());
    println!("{:?}", model.spec());
    let clock = std::time::Instant::now();
    let (mut n, mut agree, mut right, mut oright, mut worst, mut cosine, mut overflows) =
        (0, 0, 0, 0, 0f64, 0f64, 0u64);
    let (mut tf, mut to) = (0.0, 0.0);
    for line in text.lines().skip(1).take(count) {
        let mut columns = line.split('\t');
        let sentence = columns.next().unwrap_or_default();
        let label: usize = columns.next().and_then(|c| c.parse().ok()).unwrap_or(9);
        let e = model.client().encode(sentence, None, 128)?;
        let c = std::time::Instant::now();
        let f = model.float(&e)?;
        tf += c.elapsed().as_secs_f64();
        let c = std::time::Instant::now();
        let o = model.oracle(&e)?;
        to += c.elapsed().as_secs_f64();
        overflows += o.execution.overflow_count();
        if n < 3 {
            for x in &o.execution.overflows {
                println!("overflow {} x{}", o.graph.edge(x.edge).name, x.count);
            }
        }
        n += 1;
        for (a, b) in f.rows[0].iter().zip(&o.outputs.rows[0]) {
            worst = worst.max((a - b).abs());
        }
        match (&f.prediction, &o.outputs.prediction) {
            (Prediction::Label(a), Prediction::Label(b)) => {
                agree += usize::from(a.index == b.index);
                right += usize::from(a.index == label);
                oright += usize::from(b.index == label);
            }
            (Prediction::Embedding(a), Prediction::Embedding(b)) => {
                cosine += a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            }
            _ => {}
        }
    }
    println!(
        "{n} texts, {agree} agree, float right {right}, oracle right {oright}, max difference {worst:.4}, cosine {:.6}, \
         overflows {overflows}, {:?} (float {tf:.1} s, oracle {to:.1} s)",
        cosine / n as f64,
        clock.elapsed()
    );
    Ok(())
}
