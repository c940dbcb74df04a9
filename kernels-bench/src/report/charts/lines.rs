//! Time of one transform against the ring dimension.

use super::{
    Picture,
    axis::{Frame, LogScale, legend, si},
    distinct,
};
use crate::report::{Row, svg::Svg};

const WIDTH: f64 = 720.0;
const AREA: (f64, f64, f64, f64) = (84.0, 16.0, WIDTH - 16.0, 360.0);

/// The picture; `None` without transforms at two dimensions.
pub fn picture(results: &[Row]) -> Option<Picture> {
    let transforms = results.iter().filter(|row| row.kernel == "ntt_forward");
    let places = distinct(transforms.clone().map(Row::place));
    let dimensions = distinct(transforms.clone().map(|row| row.n));
    if dimensions.len() < 2 {
        return None;
    }
    // At each dimension the batch with the most transforms of the usual number of limbs: that of most dimensions.
    let usual = most_frequent(transforms.clone().map(|row| row.limbs))?;
    let time = |place: &str, n: usize| {
        let rows = transforms.clone().filter(|row| row.n == n && row.limbs == usual && row.place() == place);
        rows.max_by_key(|row| row.batch).map(|row| row.median_ns / (row.limbs * row.batch) as f64)
    };
    let mut series = Vec::new();
    for place in &places {
        let mut points: Vec<(f64, f64)> =
            dimensions.iter().filter_map(|&n| Some((n as f64, time(place, n)? / 1e3))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(points);
    }
    let (left, top, right, bottom) = AREA;
    let x = LogScale::new(series.iter().flatten().map(|p| p.0), left, right)?;
    let y = LogScale::new(series.iter().flatten().map(|p| p.1), bottom, top)?;

    let mut svg = Svg::new(WIDTH, 440.0);
    let frame = Frame { area: AREA };
    let mut ticks = dimensions.clone();
    ticks.sort_unstable();
    let ticks: Vec<_> = ticks.iter().map(|&n| (x.at(n as f64), n.to_string())).collect();
    frame.horizontal(&mut svg, &ticks, "ring dimension N");
    let ticks: Vec<_> = y.ticks().into_iter().map(|t| (y.at(t), si(t))).collect();
    frame.vertical(&mut svg, &ticks, "microseconds a transform of one limb");
    for (k, points) in series.iter().enumerate() {
        let pixels: Vec<_> = points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        svg.polyline(&format!("l s{}", k % crate::report::svg::COLOURS), &pixels);
        for (point, &at) in points.iter().zip(&pixels) {
            svg.mark(k, at, 4.5, &format!("{}: N = {}, {:.2} us", places[k], point.0, point.1));
        }
    }
    let height = legend(&mut svg, (left - 60.0, bottom + 66.0), &places);
    svg.grow(bottom + 66.0 + height);
    Some(Picture {
        name: "scaling",
        title: "Forward NTT: time against N".into(),
        caption: format!(
            "Median wall time of a batch over its number of transforms ({usual} limbs of 30 bits). Both axes are logarithmic; \
             lower is better."
        ),
        svg,
    })
}

fn most_frequent(values: impl Iterator<Item = usize> + Clone) -> Option<usize> {
    distinct(values.clone()).into_iter().max_by_key(|v| values.clone().filter(|w| w == v).count())
}
