//! `calibrate`: rings and fraction bits of every edge from sample texts.

use std::sync::Mutex;

use heliostat::{
    model::{CALIBRATION_FILE, Checkpoint, HEADROOM_BITS, Precision},
    report::{
        accuracy::summary,
        dataset,
        file::{check_writable, write_whole},
        gate::{GateOptions, Gated, calibrate as gated},
    },
};

use crate::{args::Calibrate, failure::Failure, local::json_bytes, output, progress::RowBar};

/// Points of loss that a calibration with a file of texts may cost where nothing else is said.
const MAX_LOSS: f64 = 0.3;

/// `heliostat calibrate`.
pub fn calibrate(args: Calibrate) -> Result<(), Failure> {
    let path = args.out.unwrap_or_else(|| args.model.join(CALIBRATION_FILE));
    [&path].into_iter().chain(&args.report).try_for_each(|path| check_writable(path))?;
    let data = args.data.as_ref().map(|path| dataset::read(path, args.columns.as_ref())).transpose()?;
    let options = GateOptions {
        precision: precision(&args.precision)?,
        samples: args.samples as usize,
        max_tokens: args.max_tokens.into(),
        headroom_bits: args.headroom_bits.unwrap_or(HEADROOM_BITS),
        max_loss: args.max_loss.or(data.is_some().then_some(MAX_LOSS)),
    };
    let bar = Mutex::new(RowBar::new(0, true));
    let progress = |rows: usize| {
        let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match rows {
            0 => bar.advance(),
            // The bar of the pass before goes first.
            rows => {
                *bar = RowBar::new(0, true);
                *bar = RowBar::new(rows, args.json);
            }
        }
    };
    let result = gated(Checkpoint::read(&args.model)?, data.as_ref(), &options, &progress);
    drop(bar.into_inner());
    let Gated { calibration, report, widened } = result?;
    write_whole(&path, &json_bytes(&calibration)?)?;
    if let Some(path) = &args.report {
        write_whole(path, &json_bytes(&report)?)?;
    }
    if args.json {
        return output::json(&calibration);
    }
    let mut text = format!("{:<40} {:>4} {:>8} {:>12} {:>8}\n", "edge", "ring", "fraction", "seen", "headroom");
    for e in &calibration.edges {
        let (ring, frac, seen, headroom) = (e.ring_bits, e.frac, e.observed, e.headroom_bits);
        text += &format!("{:<40} {ring:>4} {frac:>8} {seen:>12.4} {headroom:>8.2}\n", e.name);
    }
    text += &format!("\nin these rings:\n{}", summary(&report));
    if !widened.is_empty() {
        text += &format!("kept wide  {}: these overflowed when narrowed\n", widened.join(", "));
    }
    text += &format!("{} texts; written to {}\n", calibration.samples, path.display());
    output::text(&text)
}

/// The default with the given fields changed.
fn precision(changes: &[String]) -> Result<Precision, Failure> {
    let mut fields = serde_json::to_value(Precision::default())?;
    for change in changes {
        let wrong = || {
            let names = fields.as_object().map(|f| f.keys().cloned().collect::<Vec<_>>().join(", "));
            Failure::new(format!("`{change}` is not FIELD=BITS with one of {}", names.unwrap_or_default()))
        };
        let (name, value) = change.split_once('=').ok_or_else(wrong)?;
        let value: u32 = value.parse().map_err(|_| wrong())?;
        if !fields.get(name).is_some_and(serde_json::Value::is_u64) {
            return Err(wrong());
        }
        fields[name] = value.into();
    }
    Ok(serde_json::from_value(fields)?)
}
