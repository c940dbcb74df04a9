//! The pictures of a run: roofline, scaling, GPU over CPU, fraction of the limit.

mod axis;
mod dots;
mod lines;
mod roofline;

use super::{Report, svg::Svg};
use crate::measure::Group;

/// A picture with its words.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Stem of its file.
    pub name: &'static str,
    /// Heading.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The picture.
    pub svg: Svg,
}

impl Picture {
    /// A file of its own.
    pub fn standalone(&self) -> String {
        self.svg.standalone(&self.title)
    }
}

/// All that the findings suffice for.
pub fn all(report: &Report, groups: &[Group]) -> Vec<Picture> {
    let pictures = [
        roofline::picture(report, groups),
        lines::picture(&report.results),
        dots::ratio(&report.results),
        dots::fraction(&report.results),
    ];
    pictures.into_iter().flatten().collect()
}

/// Distinct values in the order of their first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}
