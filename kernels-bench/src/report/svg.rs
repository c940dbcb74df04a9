//! A small SVG writer. Colours are classes, so that one picture serves a light and a dark page.

use std::fmt::Write;

/// Width and height in pixels, and elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Which end of a text its position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins there.
    Start,
    /// The text is centred there.
    Middle,
    /// The text ends there.
    End,
}

/// Colours of series, light and dark (after Okabe and Ito, distinguishable with colour blindness).
const SERIES: [(&str, &str); 7] = [
    ("#0b62a4", "#6cb6f0"),
    ("#c2410c", "#f59a61"),
    ("#0f7a55", "#4fd1a1"),
    ("#8a3ea8", "#d59bee"),
    ("#8a6d00", "#e3c34b"),
    ("#9d174d", "#f48fb5"),
    ("#475569", "#a9b6c8"),
];

/// How many series have a colour of their own.
pub const COLOURS: usize = SERIES.len();

/// Width of a character of small text, about, in pixels.
pub const CHARACTER: f64 = 6.6;

/// Classes of the pictures, without `svg` itself: for a page that holds several.
pub fn style() -> String {
    let theme = |dark: bool| {
        let pick = |pair: (&'static str, &'static str)| if dark { pair.1 } else { pair.0 };
        let (ink, muted, grid, paper) = (
            pick(("#1c2127", "#e8eaed")),
            pick(("#5b6470", "#a2abb6")),
            pick(("#dfe3e8", "#343b44")),
            pick(("#ffffff", "#15191e")),
        );
        let mut css = format!(
            ".t{{fill:{ink}}}.m,.h{{fill:{muted}}}.grid{{stroke:{grid}}}.axis{{stroke:{muted}}}.paper{{fill:{paper}}}\
             .halo{{stroke:{paper}}}"
        );
        for (i, series) in SERIES.into_iter().enumerate() {
            let colour = pick(series);
            // Writing to a string cannot fail.
            _ = write!(css, ".f{i}{{fill:{colour}}}.s{i}{{stroke:{colour}}}");
        }
        css
    };
    format!(
        "text{{font:12px system-ui,-apple-system,'Segoe UI',sans-serif}}.h{{font-weight:700}}\
         .l{{fill:none;stroke-width:2}}.dash{{stroke-dasharray:5 4}}.grid,.axis{{stroke-width:1;fill:none}}\
         .mark{{stroke-width:1}}.in{{font-size:10px;font-weight:600;text-anchor:middle}}.inside{{fill:#fff}}{}\
         @media (prefers-color-scheme:dark){{{}.inside{{fill:#000}}}}",
        theme(false),
        theme(true)
    )
}

impl Svg {
    /// An empty picture.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// Makes the picture higher if it is lower.
    pub fn grow(&mut self, height: f64) {
        self.height = self.height.max(height);
    }

    /// Width in pixels.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        self.push(&format!("<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"));
    }

    /// A line through points.
    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<_> = points.iter().map(|&(x, y)| format!("{},{}", number(x), number(y))).collect();
        self.push(&format!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")));
    }

    /// The mark of a series: its colour and shape, with a text that appears under the pointer.
    pub fn mark(&mut self, series: usize, at: (f64, f64), radius: f64, hint: &str) {
        let (x, y) = at;
        let path = match series % 4 {
            0 => {
                let [x, y, r] = [x, y, radius].map(number);
                format!("<circle class=\"mark halo f{}\" cx=\"{x}\" cy=\"{y}\" r=\"{r}\">", series % COLOURS)
            }
            shape => {
                let r = radius * if shape == 1 { 0.9 } else { 1.25 };
                let points = match shape {
                    1 => vec![(-r, -r), (r, -r), (r, r), (-r, r)],
                    2 => vec![(0.0, -r), (r, 0.0), (0.0, r), (-r, 0.0)],
                    _ => vec![(0.0, -r), (r, 0.8 * r), (-r, 0.8 * r)],
                };
                let points: Vec<_> =
                    points.iter().map(|(dx, dy)| format!("{},{}", number(x + dx), number(y + dy))).collect();
                format!("<polygon class=\"mark halo f{}\" points=\"{}\">", series % COLOURS, points.join(" "))
            }
        };
        let closing = if series.is_multiple_of(4) { "circle" } else { "polygon" };
        self.push(&format!("{path}<title>{}</title></{closing}>", escape(hint)));
    }

    /// A disc with a letter.
    pub fn disc(&mut self, series: usize, at: (f64, f64), letter: char, hint: &str) {
        let (x, y) = (number(at.0), number(at.1));
        let colour = series % COLOURS;
        let (hint, letter) = (escape(hint), escape(&letter.to_string()));
        self.push(&format!(
            "<g><title>{hint}</title><circle class=\"mark halo f{colour}\" cx=\"{x}\" cy=\"{y}\" r=\"8\"/>\
             <text class=\"in inside\" x=\"{x}\" y=\"{}\">{letter}</text></g>",
            number(at.1 + 3.5)
        ));
    }

    /// A text.
    pub fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, text) = (number(at.0), number(at.1), escape(text));
        self.push(&format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"));
    }

    /// A text that reads upwards, centred at a point.
    pub fn upward(&mut self, class: &str, at: (f64, f64), text: &str) {
        let (x, y, text) = (number(at.0), number(at.1), escape(text));
        self.push(&format!(
            "<text class=\"{class}\" text-anchor=\"middle\" transform=\"translate({x} {y}) rotate(-90)\">{text}</text>"
        ));
    }

    /// For inside a page that has [`style`].
    pub fn inline(&self, title: &str) -> String {
        let (w, h) = (number(self.width), number(self.height));
        let title = escape(title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{title}\">\n{}</svg>",
            self.body
        )
    }

    /// A file of its own.
    pub fn standalone(&self, title: &str) -> String {
        let (w, h) = (number(self.width), number(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\">\n\
             <title>{}</title>\n<style>{}</style>\n<rect class=\"paper\" width=\"{w}\" height=\"{h}\"/>\n{}</svg>\n",
            escape(title),
            style(),
            self.body
        )
    }

    fn push(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }
}

/// A coordinate with one decimal; 0 for what is no number, so that a picture is always well-formed.
fn number(x: f64) -> String {
    if x.is_finite() { format!("{:.1}", x) } else { "0".into() }
}

/// Text for XML and HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in XML, even escaped.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_well_formed_whatever_the_texts_say() {
        let mut svg = Svg::new(100.0, 50.0);
        let nasty = "a<b> & \"c\" 'd' \u{1} ]]>";
        svg.line("grid", (0.0, f64::NAN), (f64::INFINITY, 1.0));
        svg.polyline("l s0", &[(0.0, 1.0), (2.0, 3.0)]);
        (0..8).for_each(|series| svg.mark(series, (5.0, 5.0), 4.0, nasty));
        svg.disc(1, (9.0, 9.0), '<', nasty);
        svg.text("t", (1.0, 1.0), Anchor::End, nasty);
        svg.upward("t", (1.0, 1.0), nasty);
        let text = svg.standalone(nasty);
        let document = roxmltree::Document::parse(&text).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let marks = document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "polygon")));
        assert_eq!(marks.count(), 6);
        assert!(!text.contains("NaN") && !text.contains("inf"));
        roxmltree::Document::parse(&svg.inline(nasty)).unwrap();
    }
}
