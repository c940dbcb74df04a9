//! The commands and their options.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use heliostat::{
    engine::{BackendChoice, OnGpuLoss, OpenOptions},
    model::{Lookup, Shape},
    net::{Link, session::Quota},
    protocol::{LinearMode, Merge, Nonlinear, OtChoice, PackingChoice, ProductMode, Wishes},
    report::{dataset::Columns, inputs::TextInput},
};

use crate::failure::Failure;

/// Private Transformer inference: a client's text and a server's model, and neither sees the other's.
#[derive(Parser)]
#[command(name = "heliostat", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Both parties in this process, with the shipped model and built-in sentences.
    Demo(Demo),
    /// Both parties in this process, compared with the plaintext oracle.
    Local(Local),
    /// Serve a model to clients on this machine.
    Serve(Serve),
    /// Ask a server, which learns neither text nor result.
    Infer(Infer),
    /// What an inference will cost, layer by layer, and how it would be done: nothing runs.
    Plan(Plan),
    /// Prepare inferences ahead of their texts, and keep them in a store.
    Offline(Offline),
    /// List, verify and prune a store of prepared inferences.
    Store(Store),
    /// The fixed-point model in the clear, beside the floating-point one.
    Oracle(Oracle),
    /// The fixed-point model beside the floating-point one over a labelled file.
    Accuracy(Accuracy),
    /// Choose the rings of every edge from sample texts.
    Calibrate(Calibrate),
    /// Train a model on a task.
    Finetune(crate::train::Train),
    /// Turn a model into one of additions, multiplications and ReLU.
    Approximate(crate::train::Approximate),
    /// Make a model folder with random weights, to measure what shapes cost.
    Synth(Synth),
    /// From homomorphic encryption online to the default, step by step, measured.
    Ablation(Ablation),
    /// What this machine can compute on, and what stands in the way.
    Doctor(Doctor),
}

/// Where to compute.
#[derive(Args)]
pub struct Engine {
    /// auto, cpu, gpu, or dual (both, every result compared)
    #[arg(long, default_value = "auto")]
    pub backend: BackendChoice,
    /// GPU adapter: its number or a part of its name, as `doctor` lists them
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,
    /// CPU threads [default: all]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Measure what operations cost here anew, instead of taking what an earlier run measured
    #[arg(long)]
    pub recalibrate: bool,
    /// Most device memory to use, such as 512M or 4G [default: what the driver gives]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub vram: Option<u64>,
    /// When the GPU is lost, out of memory or refuses something: fail, or finish on the cpu
    #[arg(long, value_name = "fail|cpu", default_value = "fail")]
    pub on_gpu_loss: OnGpuLoss,
}

impl Engine {
    /// The options as the library takes them.
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            choice: self.backend,
            adapter: self.adapter.clone(),
            threads: self.threads.map(usize::from),
            vram_bytes: self.vram,
            on_gpu_loss: self.on_gpu_loss,
        }
    }
}

/// A number of bytes, with K, M or G for the powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((end, 'k' | 'K')) => (&text[..end], 10),
        Some((end, 'm' | 'M')) => (&text[..end], 20),
        Some((end, 'g' | 'G')) => (&text[..end], 30),
        _ => (text, 0),
    };
    let count =
        digits.parse::<u64>().ok().filter(|&count| count > 0 && digits.starts_with(|c: char| c.is_ascii_digit()));
    let bytes = count.and_then(|count| count.checked_mul(1 << shift));
    bytes.ok_or_else(|| "not a number of bytes such as 1000000, 512M or 4G".into())
}

/// A span of time: seconds, or with m, h or d for minutes, hours and days.
fn age(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((end, 's')) => (&text[..end], 1),
        Some((end, 'm')) => (&text[..end], 60),
        Some((end, 'h')) => (&text[..end], 3600),
        Some((end, 'd')) => (&text[..end], 86400),
        _ => (text, 1),
    };
    let count = digits.parse::<u64>().ok().filter(|_| digits.starts_with(|c: char| c.is_ascii_digit()));
    let seconds = count.and_then(|count| count.checked_mul(unit)).map(Duration::from_secs);
    seconds.ok_or_else(|| "not a span of time such as 90s, 30m, 12h or 7d".into())
}

/// A bucket of tokens.
fn bucket(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|b| heliostat::model::BUCKETS.contains(b));
    found.ok_or_else(|| {
        format!("not a bucket; there are {}", heliostat::model::BUCKETS.map(|b| b.to_string()).join(", "))
    })
}

/// Points from 0 to 100.
fn points(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p| (0.0..=100.0).contains(p))
        .ok_or_else(|| "not points from 0 to 100, such as 0.3".into())
}

/// What to run.
#[derive(Args)]
pub struct Texts {
    /// A text; may be repeated
    #[arg(long, required_unless_present = "input", conflicts_with = "input")]
    pub text: Vec<String>,
    /// The second text of a pair, one for each --text
    #[arg(long, requires = "text")]
    pub text_pair: Vec<String>,
    /// A file with one text a line, or a .tsv whose header has `sentence` or `text`
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
}

impl Texts {
    /// The texts in their order.
    pub fn read(&self) -> Result<Vec<TextInput>, Failure> {
        if let Some(path) = &self.input {
            return Ok(heliostat::report::inputs::read(path)?);
        }
        let (texts, pairs) = (self.text.len(), self.text_pair.len());
        if pairs != 0 && pairs != texts {
            return Err(Failure::new(format!("{texts} --text but {pairs} --text-pair: give one for each, or none")));
        }
        let pair = |i: usize| self.text_pair.get(i).cloned();
        Ok(self.text.iter().enumerate().map(|(i, t)| TextInput { text: t.clone(), pair: pair(i) }).collect())
    }
}

/// How garbled tables are kept.
#[derive(Args)]
pub struct TableArgs {
    /// Directory for garbled tables [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Make, send and use garbled tables layer by layer, without the disk
    #[arg(long, conflicts_with = "spool")]
    pub interleaved: bool,
}

/// How much a store may hold.
#[derive(Args, Clone, Copy)]
pub struct QuotaArgs {
    /// Most bytes that the store may hold, such as 512M or 4G; more is refused
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub max_disk: Option<u64>,
    /// Most prepared inferences that the store may hold; more are refused
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_count: Option<u32>,
}

impl QuotaArgs {
    /// As the library takes it.
    pub fn quota(self) -> Quota {
        Quota { bytes: self.max_disk, count: self.max_count.map(|count| count as usize) }
    }

    /// Whether nothing is limited.
    pub fn is_empty(self) -> bool {
        self.quota() == Quota::default()
    }
}

/// How inferences are run.
#[derive(Args, Clone, Copy)]
pub struct LayerArgs {
    /// Non-linear layers garbled (exact), on shares (fewer bytes, more rounds, a small error), or for each kind what is faster
    #[arg(long, value_name = "garbled|shared|auto", default_value = "garbled")]
    pub nonlinear: Nonlinear,
    /// OTs by the IKNP extension (16 bytes each) or silent (more work), or what is faster
    #[arg(long, value_name = "iknp|silent|auto", default_value = "auto")]
    pub ot: OtChoice,
    /// Leave out the truncation between linear layers: where rings have room, nowhere, or where it saves time
    #[arg(long, value_name = "on|off|auto", default_value = "off")]
    pub merge: Merge,
    /// Products of two private matrices by masks made offline, or encrypted online as Primer has them
    #[arg(long, value_name = "masked|fhgs", default_value = "masked")]
    pub products: ProductMode,
    /// Homomorphic work of linear layers before the text is known, or after it, as it was before Primer
    #[arg(long, value_name = "offline|online", default_value = "offline")]
    pub linear: LinearMode,
    /// How matrices lie in ciphertexts: coefficient, tokens-first, tokens-first-plain, features-first or batch-column, or for each
    /// linear layer what is faster
    #[arg(long, value_name = "NAME|auto", default_value = "auto")]
    pub packing: PackingChoice,
}

impl LayerArgs {
    /// As the library takes them.
    pub fn wishes(self) -> Wishes {
        let Self { nonlinear, ot, merge, products, linear, packing } = self;
        Wishes { nonlinear, ot, merge, products, linear, packing, ..Wishes::default() }
    }
}

/// Where tokens become vectors; the server's choice.
#[derive(Args, Clone, Copy)]
pub struct LookupArgs {
    /// Embedding block public (sent to clients), or private (clients look their tokens up homomorphically)
    #[arg(long, value_name = "public|private", default_value = "public")]
    pub lookup: Lookup,
}

/// What to print and write.
#[derive(Args)]
pub struct OutputArgs {
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress, and only texts and answers
    #[arg(long)]
    pub quiet: bool,
}

/// Which phases to run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PhaseChoice {
    /// Make correlations for later.
    Offline,
    /// Spend correlations made before.
    Online,
    /// One after the other.
    Both,
}

/// Options of `demo`.
#[derive(Args)]
pub struct Demo {
    #[command(flatten)]
    pub engine: Engine,
    /// unlimited, lan (1 Gbps, 0.5 ms), wan (100 Mbps, 80 ms) or RATE,DELAY such as 10mbps,20ms
    #[arg(long, default_value = "unlimited")]
    pub link: Link,
    #[command(flatten)]
    pub tables: TableArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `local`.
#[derive(Args)]
pub struct Local {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A text; may be repeated
    #[arg(long, conflicts_with = "input")]
    pub text: Vec<String>,
    /// The second text of a pair, one for each --text
    #[arg(long, requires = "text")]
    pub text_pair: Vec<String>,
    /// A file with one text a line, or a .tsv whose header has `sentence` or `text`
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Longer texts are cut, with a notice
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub max_tokens: u16,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
    /// unlimited, lan (1 Gbps, 0.5 ms), wan (100 Mbps, 80 ms) or RATE,DELAY such as 10mbps,20ms
    #[arg(long, default_value = "unlimited")]
    pub link: Link,
    /// Run only one phase; needs --store
    #[arg(long, value_enum, default_value = "both")]
    pub phase: PhaseChoice,
    /// Directory of prepared inferences, as `offline --model` fills it: --phase offline fills it for the texts, --phase online
    /// spends only what is there, both prepares what is missing
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Bucket to prepare with --phase offline when no text is given; may be repeated
    #[arg(long, value_name = "TOKENS", value_parser = bucket)]
    pub bucket: Vec<usize>,
    #[command(flatten)]
    pub tables: TableArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    #[command(flatten)]
    pub lookup: LookupArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `plan`.
#[derive(Args)]
pub struct Plan {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Tokens of a text, [CLS] and [SEP] included; its bucket is what counts
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub tokens: u16,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
    /// unlimited, lan (1 Gbps, 0.5 ms), wan (100 Mbps, 80 ms) or RATE,DELAY such as 10mbps,20ms
    #[arg(long, default_value = "unlimited")]
    pub link: Link,
    /// Inferences that are prepared one after the other, as `offline --count` does: they may share ciphertexts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    #[command(flatten)]
    pub layers: LayerArgs,
    #[command(flatten)]
    pub lookup: LookupArgs,
    /// Write the plan as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `ablation`.
#[derive(Args)]
pub struct Ablation {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Tokens of the text, [CLS] and [SEP] included
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub tokens: u16,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
    /// unlimited, lan (1 Gbps, 0.5 ms), wan (100 Mbps, 80 ms) or RATE,DELAY such as 10mbps,20ms
    #[arg(long, default_value = "unlimited")]
    pub link: Link,
    /// Directory for garbled tables [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Write the table as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print the table as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `serve`.
#[derive(Args)]
pub struct Serve {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Loopback address to listen at; port 0 takes any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7443")]
    pub listen: String,
    /// Largest bucket that clients may ask for
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub max_tokens: u16,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Keep this side of inferences that clients prepare ahead, in this directory of the server's own
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    #[command(flatten)]
    pub quota: QuotaArgs,
    #[command(flatten)]
    pub lookup: LookupArgs,
    #[command(flatten)]
    pub engine: Engine,
    /// No lines for connections that come and go; errors are still logged
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `infer`.
#[derive(Args)]
pub struct Infer {
    /// Address of the server
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7443", alias = "connect")]
    pub server: String,
    /// Spend inferences that `offline` has prepared in this directory; what it does not have is prepared while it is waited for
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    #[command(flatten)]
    pub texts: Texts,
    /// Longer texts are cut, with a notice
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub max_tokens: u16,
    /// The digest that the server's model must have, as `serve` prints it
    #[arg(long, value_name = "HEX")]
    pub model_digest: Option<String>,
    /// Directory that keeps manifests [default: heliostat in the user's cache directory]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
    #[command(flatten)]
    pub tables: TableArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// The link that `auto` chooses for: unlimited, lan, wan or RATE,DELAY
    #[arg(long, default_value = "unlimited")]
    pub link: Link,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `offline`.
#[derive(Args)]
pub struct Offline {
    /// Server to prepare with
    #[arg(
        long,
        value_name = "HOST:PORT",
        alias = "server",
        required_unless_present = "model",
        conflicts_with = "model"
    )]
    pub connect: Option<String>,
    /// Model folder, to be both parties in this process, with their stores in DIR/client and DIR/server
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Directory of this client's prepared inferences; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Tokens that the texts will be padded to; may be repeated
    #[arg(long, value_name = "TOKENS", required = true, value_parser = bucket)]
    pub bucket: Vec<usize>,
    /// Inferences to prepare for each bucket; their linear layers share ciphertexts where that is faster
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    #[command(flatten)]
    pub quota: QuotaArgs,
    /// The digest that the server's model must have, as `serve` prints it
    #[arg(long, value_name = "HEX", conflicts_with = "model")]
    pub model_digest: Option<String>,
    /// Directory that keeps manifests [default: heliostat in the user's cache directory]
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pub cache: Option<PathBuf>,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE", conflicts_with = "connect")]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// The link that `auto` chooses for, and with --model the one between the parties: unlimited, lan, wan or RATE,DELAY
    #[arg(long, default_value = "unlimited")]
    pub link: Link,
    #[command(flatten)]
    pub lookup: LookupArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `store`.
#[derive(Args)]
pub struct Store {
    /// What to do.
    #[command(subcommand)]
    pub command: StoreCommand,
}

/// The commands of `store`.
#[derive(Subcommand)]
pub enum StoreCommand {
    /// What is in a store; reads no secrets.
    Ls(StoreLs),
    /// Open every box and compare every table with its digest; fails if anything is damaged.
    Verify(StoreLs),
    /// Remove what crashes have left behind, or what the options say.
    Prune(StorePrune),
}

/// Options of `store ls` and `store verify`.
#[derive(Args)]
pub struct StoreLs {
    /// Directory of the store
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `store prune`.
#[derive(Args)]
pub struct StorePrune {
    /// Directory of the store
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What crashes have left: marked spent, half written, tables without their correlation [default if nothing else is asked]
    #[arg(long)]
    pub spent: bool,
    /// Prepared inferences of this age or older, such as 12h or 7d
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: Option<Duration>,
    /// What `store verify` reports as damaged, and what other releases have made
    #[arg(long)]
    pub damaged: bool,
    /// Everything but the key
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `synth`.
#[derive(Args)]
pub struct Synth {
    /// Sizes: bert-tiny (2 layers of 128), small (4 of 512), base (12 of 768) or large (24 of 1024)
    #[arg(long, value_name = "bert-tiny|small|base|large")]
    pub shape: Shape,
    /// Another number of encoder layers
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub layers: Option<u16>,
    /// Equal seeds give equal folders
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder to make; must not be there, or be empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `oracle`.
#[derive(Args)]
pub struct Oracle {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    #[command(flatten)]
    pub texts: Texts,
    /// Longer texts are cut, with a notice
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub max_tokens: u16,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What an output means.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskChoice {
    /// Labels: accuracy and Matthews correlation.
    Cls,
    /// One value: Spearman's and Pearson's correlation with the score.
    Regression,
    /// The cosine of two texts' embeddings, likewise.
    Embedding,
    /// Labels of tokens: agreement only.
    Tokens,
}

/// What computes the fixed-point model.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    /// The plaintext oracle, which the garbled path equals bit for bit.
    Oracle,
    /// The bit-true simulator of the shared non-linear layers.
    Simulator,
    /// The protocol itself, both parties in this process.
    Private,
}

/// Options of `accuracy`.
#[derive(Args)]
pub struct Accuracy {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Table of texts: .tsv, .csv, or one text a line
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// text=NAME[,text_pair=NAME][,label=NAME] with names of the header or indices from 0, or those alone [default: found]
    #[arg(long, value_name = "COLUMNS")]
    pub columns: Option<Columns>,
    /// What an output means [default: as the model's head]
    #[arg(long, value_enum)]
    pub task: Option<TaskChoice>,
    /// What computes the fixed-point model
    #[arg(long, value_enum, default_value = "oracle")]
    pub mode: ModeChoice,
    /// Seed of the simulator's shares
    #[arg(long, default_value_t = 1)]
    pub seed: u32,
    /// Only the first rows
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Longer texts are cut
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub max_tokens: u16,
    /// Calibration file [default: heliostat.json in the model folder, if there]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
    #[command(flatten)]
    pub tables: TableArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `calibrate`.
#[derive(Args)]
pub struct Calibrate {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Sample texts: .tsv, .csv, or one text a line [default: random tokens of the model]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Columns of the sample texts, as for `accuracy` [default: found]
    #[arg(long, value_name = "COLUMNS", requires = "data")]
    pub columns: Option<Columns>,
    /// Points of the task's metric, or without labels of agreement with the floating-point model, that the result may lose on
    /// the sample texts and as many rows after them [default: 0.3 with --data, else any]
    #[arg(long, value_name = "POINTS", value_parser = points)]
    pub max_loss: Option<f64>,
    /// Where to write [default: heliostat.json in the model folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Most rows that ranges are taken from
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Longer texts are cut
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(2..=512))]
    pub max_tokens: u16,
    /// Bits added to the largest magnitudes seen
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=8))]
    pub headroom_bits: Option<u32>,
    /// A field of the numbers' precision, such as hidden_frac=11; may be repeated
    #[arg(long, value_name = "FIELD=BITS")]
    pub precision: Vec<String>,
    /// Write what the result loses as JSON, in the form of `accuracy`
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `doctor`.
#[derive(Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn ages_have_suffixes() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("3m", 180), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["", "d", "-1d", "+1d", "1w", "1.5h", "99999999999999999999", "9999999999999999999d"] {
            assert!(age(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(bucket("64"), Ok(64));
        assert!(bucket("12").unwrap_err().contains("8, 16"));
    }

    #[test]
    fn bytes_have_suffixes() {
        for (text, expected) in [("1", 1), ("4096", 4096), ("3k", 3 << 10), ("512M", 512 << 20), ("4G", 4 << 30)] {
            assert_eq!(bytes(text), Ok(expected));
        }
        for wrong in ["", "0", "G", "-1", "+1", "4T", "1.5G", "99999999999G", "4G4", " 1"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }
}
