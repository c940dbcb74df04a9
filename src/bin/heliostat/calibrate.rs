//! `calibrate`: rings and fraction bits of every edge from sample texts.

use heliostat::{
    model::{CALIBRATION_FILE, Calibrator, Checkpoint, HEADROOM_BITS, Model, Precision, random_samples},
    report::{file::write_whole, inputs},
};

use crate::{args::Calibrate, failure::Failure, local::json_bytes, output};

/// `heliostat calibrate`.
pub fn calibrate(args: Calibrate) -> Result<(), Failure> {
    // Samples are measured in the worst-case description, so that nothing wraps meanwhile.
    let model = Model::worst_case(Checkpoint::read(&args.model)?, &Precision::default())?;
    let (count, max_tokens) = (args.samples as usize, usize::from(args.max_tokens));
    let samples = match &args.data {
        Some(path) => {
            let texts = inputs::read(path)?;
            let texts = texts.iter().take(count);
            texts.map(|t| model.client().encode(&t.text, t.pair.as_deref(), max_tokens)).collect::<Result<_, _>>()?
        }
        None => random_samples(&model, count.min(64), max_tokens),
    };
    let mut calibrator = Calibrator::new(&model);
    samples.iter().try_for_each(|sample| calibrator.add(sample))?;
    let calibration = calibrator.finish(args.headroom_bits.unwrap_or(HEADROOM_BITS))?;
    let path = args.out.unwrap_or_else(|| args.model.join(CALIBRATION_FILE));
    write_whole(&path, &json_bytes(&calibration)?)?;
    if args.json {
        return output::json(&calibration);
    }
    let mut text = format!("{:<40} {:>4} {:>8} {:>12} {:>8}\n", "edge", "ring", "fraction", "seen", "headroom");
    for e in &calibration.edges {
        let (ring, frac, seen, headroom) = (e.ring_bits, e.frac, e.observed, e.headroom_bits);
        text += &format!("{:<40} {ring:>4} {frac:>8} {seen:>12.4} {headroom:>8.2}\n", e.name);
    }
    text += &format!("{} texts; written to {}\n", calibration.samples, path.display());
    output::text(&text)
}
