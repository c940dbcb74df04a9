//! `finetune` and `approximate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use heliostat::report::dataset::Columns;

/// What both commands take.
#[derive(Args)]
pub struct Train {
    /// Model folder to start from
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Table to train on: .tsv or .csv
    #[arg(long, value_name = "FILE")]
    pub train: PathBuf,
    /// Table to evaluate on; it chooses the best epoch and is never trained on
    #[arg(long, value_name = "FILE")]
    pub eval: PathBuf,
    /// Folder of the result; a run that was stopped there is continued
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Columns of both tables, as for `accuracy` [default: found]
    #[arg(long, value_name = "COLUMNS")]
    pub columns: Option<Columns>,
    /// Labels or values [default: as the model's head]
    #[arg(long, value_enum)]
    pub task: Option<TaskName>,
    /// What the best epoch is chosen by [default: accuracy, or spearman for values]
    #[arg(long, value_enum)]
    pub metric: Option<MetricName>,
    /// Passes over the training rows, all stages together
    #[arg(long, default_value_t = 5.0, value_parser = epochs)]
    pub epochs: f64,
    /// Rows of an update
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
    /// Largest learning rate
    #[arg(long, default_value_t = 5e-5, value_parser = rate)]
    pub learning_rate: f64,
    /// Only the first rows of the training table
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Longer texts are cut
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(3..=512))]
    pub max_tokens: u16,
    /// Seed of the order of rows and of a new head
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Stop after so many seconds; the same command continues
    #[arg(long, value_name = "SECONDS")]
    pub max_seconds: Option<u64>,
    /// CPU threads [default: all]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `approximate`.
#[derive(Args)]
pub struct Approximate {
    #[command(flatten)]
    pub train: Train,
    /// Hidden units of the softmax estimator
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(4..=256))]
    pub hidden_units: u16,
}

/// A task.
#[derive(Clone, Copy, ValueEnum)]
pub enum TaskName {
    /// Labels.
    Cls,
    /// One value.
    Regression,
}

/// A metric.
#[derive(Clone, Copy, ValueEnum)]
pub enum MetricName {
    /// Part of right labels.
    Accuracy,
    /// Matthews correlation.
    Matthews,
    /// Spearman's rank correlation.
    Spearman,
}

fn epochs(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|e| (0.0..=1000.0).contains(e)).ok_or_else(|| "not a number from 0 to 1000".into())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| *r > 0.0 && *r <= 1.0).ok_or_else(|| "not a number above 0 and up to 1".into())
}

#[cfg(not(feature = "finetune"))]
mod absent {
    use super::{Approximate, Train};
    use crate::failure::Failure;

    fn refuse() -> Result<(), Failure> {
        Err(Failure::new(
            "this program is built without training: build it with `cargo build --release --features finetune`",
        ))
    }

    /// `heliostat finetune`.
    pub fn finetune(_: Train) -> Result<(), Failure> {
        refuse()
    }

    /// `heliostat approximate`.
    pub fn approximate(_: Approximate) -> Result<(), Failure> {
        refuse()
    }
}

#[cfg(feature = "finetune")]
mod present {
    use std::{io::IsTerminal, time::Instant};

    use heliostat::approx::{End, Metric, Progress, Settings, Task, run};
    use indicatif::{ProgressBar, ProgressStyle};

    use super::{Approximate, MetricName, TaskName, Train};
    use crate::{failure::Failure, output};

    /// `heliostat finetune`.
    pub fn finetune(args: Train) -> Result<(), Failure> {
        train(args, None)
    }

    /// `heliostat approximate`.
    pub fn approximate(args: Approximate) -> Result<(), Failure> {
        train(args.train, Some(args.hidden_units.into()))
    }

    fn train(args: Train, hidden_units: Option<usize>) -> Result<(), Failure> {
        if let Some(threads) = args.threads {
            rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
        }
        let settings = Settings {
            approximate: hidden_units.is_some(),
            model: args.model,
            train: args.train,
            eval: args.eval,
            columns: args.columns,
            task: args.task.map(|t| match t {
                TaskName::Cls => Task::Classification,
                TaskName::Regression => Task::Regression,
            }),
            metric: args.metric.map(|m| match m {
                MetricName::Accuracy => Metric::Accuracy,
                MetricName::Matthews => Metric::Matthews,
                MetricName::Spearman => Metric::Spearman,
            }),
            out: args.out,
            seed: args.seed,
            epochs: args.epochs,
            batch: args.batch.into(),
            learning_rate: args.learning_rate,
            max_tokens: args.max_tokens.into(),
            limit: args.limit.map(|l| l as usize),
            hidden_units: hidden_units.unwrap_or(0),
            max_seconds: args.max_seconds,
        };
        let mut shown = Shown::new(args.quiet);
        let end = run(&settings, &mut |p| shown.show(p));
        shown.clear();
        match end? {
            End::Finished(report) if args.json => output::json(&report),
            End::Finished(report) => {
                output::text(&format!("{}written to {}\n", report.table(), settings.out.display()))
            }
            End::Paused(position) => output::line(&format!(
                "stopped after {} updates: the same command continues in {}",
                position.total,
                settings.out.display()
            )),
        }
    }

    /// A bar where somebody watches, else a line now and then on stderr.
    struct Shown {
        bar: Option<ProgressBar>,
        quiet: bool,
        latest: Instant,
    }

    impl Shown {
        fn new(quiet: bool) -> Self {
            let watched = !quiet && std::io::stderr().is_terminal();
            let bar = watched.then(|| {
                let template = "{prefix:>12} {bar:24} {pos} of {len}  {msg}";
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new(0).with_style(style)
            });
            Self { bar, quiet, latest: Instant::now() }
        }

        fn show(&mut self, p: &Progress) {
            let score = p.score.map(|s| format!(", score {:.2}", 100.0 * s)).unwrap_or_default();
            let message = format!("loss {:.4}{score}, {} s left", p.loss, p.left.as_secs());
            if let Some(bar) = &self.bar {
                bar.set_length(p.of as u64);
                bar.set_position(p.done as u64);
                bar.set_prefix(p.stage);
                bar.set_message(message);
            } else if !self.quiet && (p.score.is_some() || self.latest.elapsed().as_secs() >= 30) {
                self.latest = Instant::now();
                eprintln!("{} {} of {}: {message}", p.stage, p.done, p.of);
            }
        }

        fn clear(&self) {
            self.bar.iter().for_each(ProgressBar::finish_and_clear);
        }
    }
}

#[cfg(not(feature = "finetune"))]
pub use absent::{approximate, finetune};
#[cfg(feature = "finetune")]
pub use present::{approximate, finetune};
