//! Progress bars, one a lane or one for rows, when somebody watches.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
};

use heliostat::{
    net::session::{Phase, Progress, Recorder},
    report::print,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The bars of the phase under way.
#[derive(Clone, Default)]
pub struct Bars {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    screen: Option<MultiProgress>,
    phase: Option<Phase>,
    bars: BTreeMap<&'static str, ProgressBar>,
}

impl Bars {
    /// Bars on stderr if it is a terminal and `quiet` is not set, and a recorder that moves them.
    pub fn new(quiet: bool) -> (Self, Recorder) {
        if quiet || !std::io::stderr().is_terminal() {
            return (Self::default(), Recorder::new(None));
        }
        let bars = Self::default();
        bars.lock().screen = Some(MultiProgress::new());
        let moved = bars.clone();
        (bars, Recorder::new(Some(Box::new(move |p| moved.lock().show(p)))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bars away, before anything is printed.
    pub fn clear(&self) {
        self.lock().clear();
    }
}

/// A bar for the rows of a file.
pub struct RowBar(Option<ProgressBar>);

impl RowBar {
    /// A bar on stderr if it is a terminal and `quiet` is not set.
    pub fn new(rows: usize, quiet: bool) -> Self {
        let watched = !quiet && std::io::stderr().is_terminal();
        Self(watched.then(|| {
            let template = "{prefix:>12} {bar:24} {pos} of {len}  {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(rows as u64).with_style(style).with_prefix("rows")
        }))
    }

    /// One row more is done.
    pub fn advance(&self) {
        self.0.iter().for_each(|bar| bar.inc(1));
    }
}

impl Drop for RowBar {
    fn drop(&mut self) {
        self.0.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl Inner {
    fn clear(&mut self) {
        for bar in std::mem::take(&mut self.bars).into_values() {
            bar.finish_and_clear();
        }
        self.phase = None;
    }

    fn show(&mut self, p: &Progress) {
        if self.phase != Some(p.phase) {
            self.clear();
            self.phase = Some(p.phase);
        }
        let Some(screen) = &self.screen else { return };
        let bar = self.bars.entry(p.lane).or_insert_with(|| {
            let template = "{prefix:>12} {bar:24} {percent:>3} %  {msg}  {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let phase = match p.phase {
                Phase::Setup => "set-up",
                Phase::Offline => "offline",
                Phase::Online => "online",
            };
            let prefix = if phase == p.lane { phase.to_string() } else { format!("{phase} {}", p.lane) };
            screen.add(ProgressBar::new(p.total).with_style(style).with_prefix(prefix))
        });
        bar.set_length(p.total);
        bar.set_message(format!("{} ({})", p.name, print::bytes(p.bytes)));
        bar.set_position(p.done);
    }
}
