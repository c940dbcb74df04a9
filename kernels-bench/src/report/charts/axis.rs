//! Logarithmic axes: a scale, its ticks and their labels.

use crate::report::svg::{Anchor, CHARACTER, Svg};

/// Maps values to pixels by their logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogScale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl LogScale {
    /// Covers the values with room at both ends; pixels from `from` to `to`. `None` if no value is positive.
    pub fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let (low, high) = values
            .filter(|v| v.is_finite() && *v > 0.0)
            .fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
        (high > 0.0).then(|| {
            let room = (high / low).powf(0.05).max(1.15);
            Self { low: low / room, high: high * room, from, to }
        })
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.low).ln() / (self.high / self.low).ln()
    }

    /// The ends.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Powers of ten, with their 2 and 5 where there are few and thinned out where there are many.
    pub fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = ((decades / 8.0).ceil() as i32).max(1);
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let powers = (first..=last).filter(|power| power.rem_euclid(every) == 0);
        let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

/// A number with its SI prefix: `20 k`, `1.5 G`, `5 m`, `0.2`.
pub fn si(value: f64) -> String {
    let prefixes =
        [(1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"), (0.01, ""), (1e-6, " u"), (1e-9, " n")];
    let (unit, prefix) = prefixes.into_iter().find(|(unit, _)| value >= unit * 0.9999).unwrap_or((1e-9, " n"));
    let unit = if unit == 0.01 { 1.0 } else { unit };
    let scaled = format!("{:.2}", value / unit);
    format!("{}{prefix}", scaled.trim_end_matches('0').trim_end_matches('.'))
}

/// The frame of a picture: plot area and axes.
pub struct Frame {
    /// Left, top, right, bottom of the plot area.
    pub area: (f64, f64, f64, f64),
}

impl Frame {
    /// A vertical grid line with its label below for each tick, and the axis' name.
    pub fn horizontal(&self, svg: &mut Svg, ticks: &[(f64, String)], name: &str) {
        let (left, top, right, bottom) = self.area;
        let mut free = f64::NEG_INFINITY;
        for (x, label) in ticks {
            svg.line("grid", (*x, top), (*x, bottom));
            // A label that would touch its neighbour is left out; its line stays.
            let half = label.chars().count() as f64 * CHARACTER / 2.0;
            if x - half > free {
                svg.text("m", (*x, bottom + 17.0), Anchor::Middle, label);
                free = x + half + 6.0;
            }
        }
        svg.line("axis", (left, bottom), (right, bottom));
        svg.text("m", ((left + right) / 2.0, bottom + 37.0), Anchor::Middle, name);
    }

    /// A horizontal grid line with its label at the left for each tick, and the axis' name.
    pub fn vertical(&self, svg: &mut Svg, ticks: &[(f64, String)], name: &str) {
        let (left, top, right, bottom) = self.area;
        for (y, label) in ticks {
            svg.line("grid", (left, *y), (right, *y));
            svg.text("m", (left - 8.0, y + 4.0), Anchor::End, label);
        }
        svg.line("axis", (left, top), (left, bottom));
        svg.upward("m", (16.0, (top + bottom) / 2.0), name);
    }
}

/// A legend from `at` on: marks with names, in lines that fit the picture; the height it took.
pub fn legend(svg: &mut Svg, at: (f64, f64), names: &[String]) -> f64 {
    let (mut x, mut y) = at;
    for (series, name) in names.iter().enumerate() {
        let width = 24.0 + name.chars().count() as f64 * CHARACTER;
        if x > at.0 && x + width > svg.width() - 8.0 {
            (x, y) = (at.0, y + 20.0);
        }
        svg.mark(series, (x + 6.0, y - 4.0), 5.0, name);
        svg.text("t", (x + 16.0, y), Anchor::Start, name);
        x += width + 14.0;
    }
    y + 20.0 - at.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_map_ends_inside_and_ticks_are_few() {
        let scale = LogScale::new([1.0, 1000.0, f64::NAN, 0.0].into_iter(), 100.0, 500.0).unwrap();
        assert!(scale.at(1.0) > 100.0 && scale.at(1000.0) < 500.0 && scale.at(1.0) < scale.at(10.0));
        assert_eq!(scale.ticks(), [1.0, 10.0, 100.0, 1000.0]);
        let narrow = LogScale::new([10.0, 40.0].into_iter(), 0.0, 1.0).unwrap();
        assert_eq!(narrow.ticks(), [10.0, 20.0]);
        let wide = LogScale::new([1e-9, 1e12].into_iter(), 0.0, 1.0).unwrap();
        assert!((4..10).contains(&wide.ticks().len()));
        assert_eq!(LogScale::new([0.0].into_iter(), 0.0, 1.0), None);
    }

    #[test]
    fn numbers_have_prefixes() {
        let cases =
            [(20e3, "20 k"), (1.5e9, "1.5 G"), (0.2, "0.2"), (0.01, "0.01"), (5e-6, "5 u"), (1.0, "1"), (999.0, "999")];
        for (value, text) in cases {
            assert_eq!(si(value), text);
        }
    }
}
