//! One line a kernel, one mark a measurement: GPU over CPU, and the fraction of the limit.

use super::{
    Picture,
    axis::{Frame, LogScale, legend, si},
    distinct,
};
use crate::report::{
    Row,
    svg::{Anchor, CHARACTER, Svg},
    table::cpu_reference,
};

const WIDTH: f64 = 720.0;
const LINE: f64 = 22.0;

/// Marks of one line.
struct Line {
    name: String,
    /// Series, value, hint.
    marks: Vec<(usize, f64, String)>,
}

/// Speed of the GPU where the CPU's fastest row has 1, by ring dimension; `None` without GPU rows.
pub fn ratio(results: &[Row]) -> Option<Picture> {
    let is_gpu = |row: &&Row| row.backend.starts_with("gpu");
    let software = results.iter().filter(is_gpu).all(|row| row.backend != "gpu");
    let mut dimensions = distinct(results.iter().filter(is_gpu).map(|row| row.n));
    dimensions.sort_unstable();
    let mut lines: Vec<Line> = Vec::new();
    for kernel in distinct(results.iter().map(|row| &row.kernel)) {
        let mut marks = Vec::new();
        for gpu in results.iter().filter(is_gpu).filter(|row| row.kernel == *kernel) {
            let same =
                |row: &&Row| (row.n, row.limbs, row.batch, &row.size) == (gpu.n, gpu.limbs, gpu.batch, &gpu.size);
            let rows = results.iter().filter(|row| row.kernel == *kernel).filter(same);
            let Some(cpu) = cpu_reference(rows) else { continue };
            let (series, value) = (dimensions.iter().position(|n| *n == gpu.n)?, cpu.median_ns / gpu.median_ns);
            let size = gpu.size.as_deref().unwrap_or_default();
            let Row { n, limbs, batch, .. } = gpu;
            let hint = format!("{kernel} {size}, N = {n}, {limbs} limbs, batch {batch}, {}: {value:.3}", gpu.place());
            marks.push((series, value, hint));
        }
        if !marks.is_empty() {
            lines.push(Line { name: kernel.clone(), marks });
        }
    }
    let names: Vec<_> =
        dimensions.iter().map(|n| if *n == 0 { "no ring".into() } else { format!("N = {n}") }).collect();
    let what = if software { "software adapter" } else { "GPU" };
    let svg = chart(&lines, &names, &format!("speed of the {what} over the CPU on all threads"), Some(1.0), si)?;
    Some(Picture {
        name: "gpu-over-cpu",
        title: if software { "Software adapter over CPU (not a GPU)".into() } else { "GPU over CPU".into() },
        caption: format!(
            "Median of the fastest CPU row over that of the {what}, same work, same run. Right of the line the {what} is faster."
        ),
        svg,
    })
}

/// Least possible time over measured time, by device, each kernel at its largest dimension; `None` without limits.
pub fn fraction(results: &[Row]) -> Option<Picture> {
    let known = || results.iter().filter(|row| row.limit_fraction.is_some());
    let places = distinct(known().map(Row::place));
    let mut lines = Vec::new();
    for kernel in distinct(known().map(|row| &row.kernel)) {
        let rows = || known().filter(|row| row.kernel == *kernel);
        let largest = rows().map(|row| row.n).max()?;
        let mut marks = Vec::new();
        for (series, place) in places.iter().enumerate() {
            let best = rows().filter(|row| row.n == largest && row.place() == *place);
            let best = best
                .max_by(|a, b| a.limit_fraction.partial_cmp(&b.limit_fraction).unwrap_or(std::cmp::Ordering::Equal));
            if let Some((row, value)) = best.and_then(|row| Some((row, row.limit_fraction?))) {
                let hint = format!("{kernel}, N = {}, {place}: {:.1} %", row.n, 100.0 * value);
                marks.push((series, 100.0 * value, hint));
            }
        }
        lines.push(Line { name: kernel.clone(), marks });
    }
    let percent = |value: f64| format!("{} %", si(value));
    let svg = chart(&lines, &places, "least possible time over measured time", Some(100.0), percent)?;
    Some(Picture {
        name: "limit",
        title: "Fraction of the machine's limit".into(),
        caption:
            "The limit is the slower of moving the operands once at the measured copy bandwidth and doing the 32-bit \
                  multiplies at the measured rate. Each kernel at its largest N."
                .into(),
        svg,
    })
}

fn chart(
    lines: &[Line],
    series: &[String],
    name: &str,
    reference: Option<f64>,
    label: impl Fn(f64) -> String,
) -> Option<Svg> {
    let longest = lines.iter().map(|line| line.name.chars().count()).max()? as f64;
    let (left, top, right) = (longest * CHARACTER + 20.0, 12.0, WIDTH - 24.0);
    let bottom = top + lines.len() as f64 * LINE + 6.0;
    let values = lines.iter().flat_map(|line| &line.marks).map(|mark| mark.1).chain(reference);
    let scale = LogScale::new(values, left, right)?;
    let mut svg = Svg::new(WIDTH, bottom + 60.0);
    let frame = Frame { area: (left, top, right, bottom) };
    let ticks: Vec<_> = scale.ticks().into_iter().map(|tick| (scale.at(tick), label(tick))).collect();
    frame.horizontal(&mut svg, &ticks, name);
    if let Some(reference) = reference {
        svg.line("axis dash", (scale.at(reference), top), (scale.at(reference), bottom));
    }
    for (k, line) in lines.iter().enumerate() {
        let y = top + (k as f64 + 0.5) * LINE + 3.0;
        svg.text("t", (left - 8.0, y + 4.0), Anchor::End, &line.name);
        svg.line("grid", (left, y), (right, y));
        for (series, value, hint) in &line.marks {
            svg.mark(*series, (scale.at(*value), y), 5.0, hint);
        }
    }
    let height = legend(&mut svg, (20.0, bottom + 66.0), series);
    svg.grow(bottom + 66.0 + height);
    Some(svg)
}
