//! The roofline (Williams, Waterman, Patterson, CACM 2009) with multiplies where others have floating-point operations.

use super::{
    Picture,
    axis::{Frame, LogScale, si},
    distinct,
};
use crate::{
    ceilings::Ceilings,
    measure::{Finding, Group},
    report::{
        Report, Row,
        svg::{Anchor, COLOURS, Svg},
    },
};

const WIDTH: f64 = 720.0;
const AREA: (f64, f64, f64, f64) = (84.0, 16.0, WIDTH - 16.0, 400.0);

/// A kernel's point of one device.
struct Point<'a> {
    series: usize,
    letter: char,
    finding: &'a Finding,
    intensity: f64,
    rate: f64,
}

/// The picture of the CPU on all threads and of each form of a GPU, each kernel where it comes nearest to its limit; `None`
/// if no limits are known.
pub fn picture(report: &Report, groups: &[Group]) -> Option<Picture> {
    let devices: Vec<&Ceilings> = devices(report);
    let findings = || groups.iter().flatten().filter(|f| f.row.limit_fraction.is_some());
    let kernels = distinct(findings().filter(|f| f.cost.intensity().is_some()).map(|f| f.row.kernel.as_str()));
    let mut points = Vec::new();
    for (series, device) in devices.iter().enumerate() {
        for (kernel, letter) in kernels.iter().zip(('a'..='z').chain('A'..='Z')) {
            let of_device = |f: &&Finding| f.row.backend == device.backend && f.row.threads == device.threads;
            let rows = findings().filter(of_device).filter(|f| f.row.kernel == *kernel && f.cost.intensity().is_some());
            let best = rows.max_by(|a, b| fraction(&a.row).total_cmp(&fraction(&b.row)));
            if let Some((finding, intensity)) = best.and_then(|f| Some((f, f.cost.intensity()?))) {
                let rate = finding.cost.multiplies / finding.row.median_ns * 1e9;
                points.push(Point { series, letter, finding, intensity, rate });
            }
        }
    }
    let (left, top, right, bottom) = AREA;
    let x = LogScale::new(points.iter().map(|p| p.intensity), left, right)?;
    let peaks = devices.iter().filter_map(|d| d.multiplies_per_second);
    let y = LogScale::new(points.iter().map(|p| p.rate).chain(peaks), bottom, top)?;

    let mut svg = Svg::new(WIDTH, 560.0);
    let frame = Frame { area: AREA };
    let ticks: Vec<_> = x.ticks().into_iter().map(|t| (x.at(t), si(t))).collect();
    frame.horizontal(&mut svg, &ticks, "32-bit multiplies for each byte that must move");
    let ticks: Vec<_> = y.ticks().into_iter().map(|t| (y.at(t), si(t))).collect();
    frame.vertical(&mut svg, &ticks, "32-bit multiplies a second");
    for (series, device) in devices.iter().enumerate() {
        roofs(&mut svg, series, device, x, y);
    }
    place(&mut svg, &points, x, y);
    let height = key(&mut svg, &devices, &kernels, bottom + 62.0);
    svg.grow(height);
    Some(Picture {
        name: "roofline",
        title: "Roofline".into(),
        caption: "Solid: memory bandwidth, then the multiply rate, as measured. Dashed: bandwidth of the fastest cache. Each \
                  kernel at the size where it comes nearest to its limit; kernels that do not multiply are in the picture of \
                  the fraction of the limit."
            .into(),
        svg,
    })
}

fn fraction(row: &Row) -> f64 {
    row.limit_fraction.unwrap_or(0.0)
}

/// The CPU on all threads, and GPUs; a GPU's forms share its limits.
fn devices(report: &Report) -> Vec<&Ceilings> {
    let most = report.ceilings.iter().filter(|c| c.backend == "cpu").max_by_key(|c| c.threads);
    let mut devices: Vec<&Ceilings> = most.into_iter().collect();
    for ceilings in report.ceilings.iter().filter(|c| c.backend != "cpu" && c.multiplies_per_second.is_some()) {
        if devices.iter().all(|known| known.backend != ceilings.backend) {
            devices.push(ceilings);
        }
    }
    devices
}

/// Bandwidth roofs of memory and of the fastest cache, under the multiply rate.
fn roofs(svg: &mut Svg, series: usize, device: &Ceilings, x: LogScale, y: LogScale) {
    let Some(peak) = device.multiplies_per_second else { return };
    let (low, high) = x.ends();
    let bottom = y.ends().0;
    let mut roof = |bandwidth: f64, dash: &str| {
        let ridge = (peak / bandwidth).clamp(low, high);
        let start = low.max(bottom / bandwidth).min(ridge);
        let mut points = vec![(start, (start * bandwidth).min(peak)), (ridge, (ridge * bandwidth).min(peak))];
        if dash.is_empty() {
            points.push((high, peak.min(high * bandwidth)));
        }
        let pixels: Vec<_> = points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        svg.polyline(&format!("l s{}{dash}", series % COLOURS), &pixels);
    };
    if let Some(memory) = device.memory_bandwidth() {
        roof(memory, "");
        let cache = device.copy.iter().map(|rate| rate.bytes_per_second).fold(0.0, f64::max);
        if cache > 1.2 * memory {
            roof(cache, " dash");
        }
    }
}

/// Discs beside their points where the points themselves are too close, with a line to the point.
fn place(svg: &mut Svg, points: &[Point], x: LogScale, y: LogScale) {
    let mut taken: Vec<(f64, f64)> = Vec::new();
    let mut discs = Vec::new();
    for point in points {
        let (px, py) = (x.at(point.intensity), y.at(point.rate));
        let free = |at: (f64, f64)| taken.iter().all(|t| (t.0 - at.0).hypot(t.1 - at.1) >= 17.0);
        // Rings of places around the point, the nearest first.
        let around = (0..6).flat_map(|ring| {
            let radius = 18.0 * f64::from(ring);
            (0..8).map(move |turn| {
                let angle = f64::from(turn) * std::f64::consts::FRAC_PI_4;
                (px + radius * angle.cos(), py + radius * angle.sin())
            })
        });
        let (left, top, right, bottom) = AREA;
        let inside =
            |at: &(f64, f64)| at.0 > left + 8.0 && at.0 < right - 8.0 && at.1 > top + 8.0 && at.1 < bottom - 8.0;
        let at = around.clone().filter(inside).find(|&at| free(at)).unwrap_or((px, py));
        if at != (px, py) {
            // Under all discs.
            svg.line(&format!("l s{}", point.series % COLOURS), (px, py), at);
        }
        let row = &point.finding.row;
        let hint = format!(
            "{} {}, N = {}, {}: {}multiplies/s, {:.1} % of the limit",
            row.kernel,
            row.size.as_deref().unwrap_or_default(),
            row.n,
            row.place(),
            si(point.rate),
            100.0 * fraction(row)
        );
        discs.push((point.series, at, point.letter, hint));
        taken.push(at);
    }
    for (series, at, letter, hint) in discs {
        svg.disc(series, at, letter, &hint);
    }
}

/// Names of devices and letters; the bottom of it.
fn key(svg: &mut Svg, devices: &[&Ceilings], kernels: &[&str], top: f64) -> f64 {
    let mut y = top;
    for (series, device) in devices.iter().enumerate() {
        let threads = if device.backend == "cpu" { format!(", {} threads", device.threads) } else { String::new() };
        svg.disc(series, (32.0, y - 4.0), ' ', &device.backend);
        svg.text("t", (46.0, y), Anchor::Start, &format!("{}{threads}", device.backend));
        y += 22.0;
    }
    let columns = 4;
    for (k, (kernel, letter)) in kernels.iter().zip(('a'..='z').chain('A'..='Z')).enumerate() {
        let (column, line) = (k % columns, k / columns);
        let at = (24.0 + column as f64 * (WIDTH - 40.0) / columns as f64, y + line as f64 * 20.0);
        svg.text("h", at, Anchor::Middle, &letter.to_string());
        svg.text("t", (at.0 + 12.0, at.1), Anchor::Start, kernel);
    }
    y + kernels.len().div_ceil(columns) as f64 * 20.0
}
