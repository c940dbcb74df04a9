//! A run: stage after stage, resumable at any update.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use candle_core::Tensor;
use serde::Serialize;

use super::{
    ApproxError,
    batch::{Batch, Examples, Task, gaussian, order},
    bert::{Bert, FormActivation, Outcome, Pass},
    estimator, evaluate,
    evaluate::Metric,
    export,
    loss::{from_hidden, from_targets, from_teacher},
    normalise,
    ops::{Bounds, Penalty},
    optimiser::{AdamW, schedule},
    report::{RunReport, StageReport},
    stages::{SCORES, SUMS, Stage, updates},
    state::{self, Best, Position},
};
use crate::{
    model::{Checkpoint, OutputKind, Tokenizer},
    report::{
        dataset::{self, Columns},
        file::write_whole,
    },
};

/// Rows that ranges and first guesses are taken from.
const SAMPLE: usize = 256;
/// Evaluations in the last stage.
const EVALUATIONS: usize = 4;
/// Time between two states on disk.
const SAVE_EVERY: Duration = Duration::from_secs(120);
/// The report's name in the folder of the result.
pub const REPORT_FILE: &str = "stages.json";

/// What a run is to do. All that its result depends on is part of its fingerprint.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Whether operations are replaced.
    pub approximate: bool,
    /// Folder of the model to start from.
    #[serde(skip)]
    pub model: PathBuf,
    /// Table to train on.
    #[serde(skip)]
    pub train: PathBuf,
    /// Table to evaluate on, never trained on.
    #[serde(skip)]
    pub eval: PathBuf,
    /// Columns of both, if they are not to be found.
    #[serde(skip)]
    pub columns: Option<Columns>,
    /// The task; by default that of the model's head.
    pub task: Option<Task>,
    /// The metric that chooses the best epoch; by default accuracy or Spearman's correlation.
    pub metric: Option<Metric>,
    /// Folder of the result.
    #[serde(skip)]
    pub out: PathBuf,
    /// Seed of the order of rows and of a new head.
    pub seed: u64,
    /// Passes over the training rows, all stages together.
    pub epochs: f64,
    /// Rows of an update.
    pub batch: usize,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Longer texts are cut.
    pub max_tokens: usize,
    /// Only so many training rows.
    pub limit: Option<usize>,
    /// Hidden units of an estimator.
    pub hidden_units: usize,
    /// Stop after so many seconds, to be continued.
    #[serde(skip)]
    pub max_seconds: Option<u64>,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Name of the stage.
    pub stage: &'static str,
    /// Updates made in all stages.
    pub done: usize,
    /// Updates of all stages.
    pub of: usize,
    /// Mean loss of the latest updates.
    pub loss: f64,
    /// Time left at the present speed.
    pub left: Duration,
    /// Metric after a stage or an epoch, when there is a new one.
    pub score: Option<f64>,
}

/// How a run ended.
pub enum End {
    /// The folder holds the result.
    Finished(Box<RunReport>),
    /// The time is up; the same command continues.
    Paused(Box<Position>),
}

struct Data {
    train: Examples,
    eval: Examples,
}

/// A run under way.
struct Run<'a> {
    settings: &'a Settings,
    checkpoint: Checkpoint,
    data: Data,
    task: Task,
    metric: Metric,
    stages: &'static [Stage],
    steps: Vec<usize>,
    model: Bert,
    teacher: Option<Bert>,
    optimiser: AdamW,
    position: Position,
    best: Option<Best>,
    started: Instant,
    stage_started: Instant,
    saved: Instant,
}

/// Runs from the start, or from where an unfinished run in the folder of the result stopped.
///
/// # Errors
/// An [`ApproxError`] with one sentence; what was saved is then still there.
pub fn run(settings: &Settings, progress: &mut dyn FnMut(&Progress)) -> Result<End, ApproxError> {
    let mut run = Run::open(settings)?;
    run.go(progress)
}

/// The task of a head.
fn task_of(checkpoint: &Checkpoint, asked: Option<Task>, approximate: bool) -> Result<Task, ApproxError> {
    let own = match checkpoint.output {
        OutputKind::Classification => Some(Task::Classification),
        OutputKind::Regression => Some(Task::Regression),
        OutputKind::TokenClassification => {
            return Err(ApproxError::Unsuitable(
                "labels of tokens cannot be trained, only labels or values of texts".into(),
            ));
        }
        OutputKind::Embedding { .. } => None,
    };
    match (asked, own) {
        (Some(asked), Some(own)) if approximate && asked != own => {
            Err(ApproxError::Unsuitable("this model's head has another task: run `heliostat finetune` first".into()))
        }
        (_, None) if approximate => Err(ApproxError::Unsuitable(
            "this model gives embeddings and has no head for a task: run `heliostat finetune` first".into(),
        )),
        (Some(task), _) | (None, Some(task)) => Ok(task),
        (None, None) => Err(ApproxError::Unsuitable("this model has no head: say which one to train by --task".into())),
    }
}

impl<'a> Run<'a> {
    fn open(settings: &'a Settings) -> Result<Self, ApproxError> {
        let checkpoint = Checkpoint::read(&settings.model)?;
        if checkpoint.config.approximation.is_some() && settings.approximate {
            return Err(ApproxError::Unsuitable("this model is approximated already".into()));
        }
        let task = task_of(&checkpoint, settings.task, settings.approximate)?;
        let tokenizer = Tokenizer::new(&checkpoint.tokenizer)?;
        let examples = |path: &Path, known: &[String], limit| {
            let data = dataset::read(path, settings.columns.as_ref())?;
            Examples::new(&data, &checkpoint, &tokenizer, task, known, settings.max_tokens, limit)
        };
        let own = matches!(checkpoint.output, OutputKind::Classification);
        let train = examples(&settings.train, if own { &checkpoint.labels } else { &[] }, settings.limit)?;
        let eval = examples(&settings.eval, &train.labels, None)?;
        if settings.approximate && own && train.labels != checkpoint.labels {
            return Err(ApproxError::Unsuitable(
                "the file's labels are not the model's: run `heliostat finetune` first".into(),
            ));
        }
        let data = Data { train, eval };
        let metric = settings.metric.unwrap_or(match task {
            Task::Classification => Metric::Accuracy,
            Task::Regression => Metric::Spearman,
        });
        let fingerprint = fingerprint(settings, &checkpoint)?;
        let mut model = Bert::new(&checkpoint)?;
        let teacher = settings.approximate.then(|| Bert::new(&checkpoint)).transpose()?;
        let stages = if settings.approximate { Stage::APPROXIMATE } else { Stage::FINETUNE };
        let total = (settings.epochs * data.train.len() as f64 / settings.batch.max(1) as f64).ceil() as usize;
        let out = &settings.out;
        let occupied = |e: fs::ReadDir| e.flatten().any(|e| e.file_name() != state::FILE);
        if !out.join(state::FILE).is_file() && fs::read_dir(out).is_ok_and(occupied) {
            let reason = "it is there and not empty, and is not overwritten".into();
            return Err(ApproxError::Run { path: out.clone(), reason });
        }
        fs::create_dir_all(out).map_err(|e| ApproxError::Run { path: out.clone(), reason: e.to_string() })?;
        let now = Instant::now();
        let found = state::load(&out.join(state::FILE), &fingerprint, &mut model)?;
        let (position, optimiser, best) = match found {
            Some(found) => found,
            None => {
                let wanted = if task == Task::Classification { data.train.labels.len() } else { 1 };
                let fits = matches!(
                    (checkpoint.output, task),
                    (OutputKind::Classification, Task::Classification) | (OutputKind::Regression, Task::Regression)
                );
                if !fits || checkpoint.head.last().map(|l| l.linear.outputs) != Some(wanted) {
                    new_head(&mut model, wanted, task, &data.train, settings.seed)?;
                }
                let position = Position {
                    fingerprint,
                    stage: 0,
                    entered: false,
                    step: 0,
                    total: 0,
                    moments: 0,
                    seconds: (0.0, 0.0),
                    tokens: (0, 0.0),
                    form: model.form.clone(),
                    head: Vec::new(),
                    bounds: vec![(SCORES, SUMS); model.layers.len()],
                    original: None,
                    replaced: None,
                    best: None,
                    losses: (0.0, 0),
                    stages: Vec::new(),
                };
                let optimiser = AdamW::new(&model.parameters);
                (position, optimiser, None)
            }
        };
        let steps = updates(stages, total);
        Ok(Self {
            settings,
            checkpoint,
            data,
            task,
            metric,
            stages,
            steps,
            model,
            teacher,
            optimiser,
            position,
            best,
            started: now,
            stage_started: now,
            saved: now,
        })
    }

    fn go(&mut self, progress: &mut dyn FnMut(&Progress)) -> Result<End, ApproxError> {
        let before = self.position.seconds;
        if self.position.original.is_none() {
            self.position.original = Some(evaluate::score(&self.model, &self.data.eval, self.task)?);
        }
        let mut recent = Recent::default();
        while self.position.stage < self.stages.len() {
            let stage = self.stages[self.position.stage];
            let steps = self.steps[self.position.stage];
            let carried = if self.position.entered { self.position.seconds.1 } else { 0.0 };
            self.stage_started = Instant::now();
            if !self.position.entered {
                self.enter(stage)?;
                self.position.entered = true;
            }
            while self.position.step < steps {
                if stage == Stage::LayerNorm {
                    self.replace_norms(self.position.step * self.model.norms() / steps)?;
                }
                let at = Instant::now();
                let (loss, tokens) = self.step(stage, steps)?;
                self.position.step += 1;
                self.position.total += 1;
                self.position.tokens.0 += tokens as u64;
                self.position.tokens.1 += at.elapsed().as_secs_f64();
                recent.add(loss, at.elapsed());
                if self.position.step * 10 > steps * 9 {
                    self.position.losses.0 += loss;
                    self.position.losses.1 += 1;
                }
                let last = self.position.stage + 1 == self.stages.len();
                let score = if last && self.is_evaluation(steps) { Some(self.judge()?) } else { None };
                self.position.seconds.1 = carried + self.stage_started.elapsed().as_secs_f64();
                self.position.seconds.0 = before.0 + self.started.elapsed().as_secs_f64();
                let of: usize = self.steps.iter().sum();
                progress(&Progress {
                    stage: stage.name(),
                    done: self.position.total,
                    of,
                    loss: recent.loss,
                    left: Duration::from_secs_f64(recent.seconds * (of - self.position.total) as f64),
                    score,
                });
                let over = self.settings.max_seconds.is_some_and(|s| self.started.elapsed().as_secs() >= s);
                if over || self.saved.elapsed() > SAVE_EVERY {
                    self.save()?;
                }
                if over {
                    return Ok(End::Paused(Box::new(self.position.clone())));
                }
            }
            self.leave(stage, steps, carried, before.0)?;
            let score = self.position.stages.last().map(|s| s.score.get(self.metric));
            let of = self.steps.iter().sum();
            let (done, loss, left) = (self.position.total, recent.loss, Duration::ZERO);
            progress(&Progress { stage: stage.name(), done, of, loss, left, score });
        }
        self.finish()
    }

    /// Replaces the stage's operations.
    fn enter(&mut self, stage: Stage) -> Result<(), ApproxError> {
        let mut replaced = true;
        match stage {
            Stage::Pooler => {
                if self.model.head.len() > 1 || self.model.head.iter().any(|d| d.tanh) {
                    let rows = order(self.data.train.len(), self.settings.seed, u64::MAX);
                    let rows: Vec<usize> = rows.into_iter().take(8 * SAMPLE).collect();
                    let batches = rows.chunks(32).map(|rows| self.data.train.batch(rows));
                    let (weight, bias) = normalise::straighten_head(&self.model, batches)?;
                    self.model.set_head(weight, bias)?;
                }
            }
            Stage::Relu => self.model.form.activation = FormActivation::Relu,
            Stage::Softmax => {
                self.estimators(&vec![SUMS; self.model.layers.len()], &[])?;
                self.model.form.estimator = true;
            }
            Stage::LayerNorm => {
                normalise::absorb(&mut self.model)?;
                replaced = false;
            }
            Stage::Final => self.calibrate()?,
            Stage::Finetune | Stage::Task | Stage::Range => replaced = false,
        }
        self.position.replaced = match replaced {
            true => Some(evaluate::score(&self.model, &self.data.eval, self.task)?),
            false => None,
        };
        self.position.losses = (0.0, 0);
        self.optimiser = AdamW::new(&self.model.parameters);
        Ok(())
    }

    /// New estimators for these ranges of sums.
    fn estimators(&mut self, ranges: &[Bounds], seen: &[Vec<f32>]) -> Result<(), ApproxError> {
        for (i, range) in ranges.iter().enumerate() {
            let seen = seen.get(i).map_or(&[][..], |s| s);
            let e = estimator::fit(range.low.into(), range.high.into(), self.settings.hidden_units, seen);
            let flat = estimator::flatten(&e);
            let n = flat.len();
            self.model.estimators[i] = Tensor::from_vec(flat, n, &candle_core::Device::Cpu)?;
        }
        Ok(())
    }

    /// Ranges of scores and sums over the sample, with room, and estimators for them.
    fn calibrate(&mut self) -> Result<(), ApproxError> {
        let survey = evaluate::survey(&self.model, &self.sample()?)?;
        let room = |b: Bounds| Bounds { low: (b.low * 0.8).max(1e-2), high: (b.high * 1.25).max(1.0) };
        let sums: Vec<Bounds> = survey.sums.iter().map(|(range, _)| room(*range)).collect();
        let scores = survey.scores.iter().map(|b| {
            let margin = 0.1 * (b.high - b.low).max(1e-3);
            Bounds { low: b.low - margin, high: b.high + margin }
        });
        self.position.bounds = scores.zip(sums.iter().copied()).collect();
        let seen: Vec<Vec<f32>> = survey.sums.into_iter().map(|(_, seen)| seen).collect();
        self.estimators(&sums, &seen)
    }

    /// Training rows that ranges are taken from.
    fn sample(&self) -> Result<Batch, ApproxError> {
        let rows: Vec<usize> =
            order(self.data.train.len(), self.settings.seed, u64::MAX).into_iter().take(SAMPLE).collect();
        Ok(self.data.train.batch(&rows)?)
    }

    /// Replaces normalisations up to number `n`.
    fn replace_norms(&mut self, n: usize) -> Result<(), ApproxError> {
        let first = self.model.form.blend.iter().position(|&b| b < 1.0).unwrap_or(usize::MAX);
        if first > n {
            return Ok(());
        }
        let sample = self.sample()?;
        let Some(teacher) = &self.teacher else { return Ok(()) };
        let targets = teacher.forward(&sample, &Pass::PLAIN)?.hidden;
        for n in first..=n.min(self.model.norms() - 1) {
            normalise::fit(&mut self.model, n, &sample, &targets[n])?;
        }
        Ok(())
    }

    /// One update; its loss and tokens.
    fn step(&mut self, stage: Stage, steps: usize) -> Result<(f64, usize), ApproxError> {
        let recipe = stage.recipe();
        let batch = self.next_batch()?;
        let penalties: Vec<Penalty> =
            self.position.bounds.iter().map(|&(score, sum)| Penalty { strength: recipe.penalty, score, sum }).collect();
        let active = self.model.form.blend.iter().rposition(|&b| b > 0.0).unwrap_or(0);
        let trained = |part| stage.trains(part, active);
        let outcome = self.model.forward(&batch, &Pass { trained: &trained, penalties: &penalties, watches: &[] })?;
        let loss = self.loss(stage, &batch, &outcome)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let diverged = || ApproxError::Diverged { stage: stage.name(), step: self.position.step };
        if !value.is_finite() {
            return Err(diverged());
        }
        let grads = loss.backward()?;
        let rate = self.settings.learning_rate as f32 * recipe.rate * schedule(self.position.step, steps);
        let length = self.optimiser.update(&self.model.parameters, &grads, &|_| rate)?;
        if !length.is_finite() {
            return Err(diverged());
        }
        Ok((value, batch.spans.rows()))
    }

    fn loss(&self, stage: Stage, batch: &Batch, outcome: &Outcome) -> Result<Tensor, ApproxError> {
        let recipe = stage.recipe();
        let mut loss = (from_targets(&outcome.output, &batch.targets, self.task)? * f64::from(recipe.task))?;
        if let Some(teacher) = &self.teacher {
            let told = teacher.forward(batch, &Pass::PLAIN)?;
            loss = (loss + (from_teacher(&outcome.output, &told.output, self.task)? * f64::from(recipe.teacher))?)?;
            let weight = f64::from(recipe.hidden) / told.hidden.len() as f64;
            for (x, y) in outcome.hidden.iter().zip(&told.hidden) {
                loss = (loss + (from_hidden(x, y)? * weight)?)?;
            }
        }
        Ok(loss)
    }

    /// The rows of the next update; an epoch's last ones join the next epoch's first.
    fn next_batch(&self) -> Result<Batch, ApproxError> {
        let (n, size) = (self.data.train.len(), self.settings.batch);
        let start = self.position.total * size;
        let mut rows = Vec::with_capacity(size);
        let mut epoch = (usize::MAX, Vec::new());
        for at in start..start + size {
            if epoch.0 != at / n {
                epoch = (at / n, order(n, self.settings.seed, (at / n) as u64));
            }
            rows.push(epoch.1[at % n]);
        }
        Ok(self.data.train.batch(&rows)?)
    }

    /// Whether the model is evaluated after this update: at the end of every epoch, at least four times.
    fn is_evaluation(&self, steps: usize) -> bool {
        let rows = self.data.train.len().div_ceil(self.settings.batch).max(1);
        let every = rows.min(steps.div_ceil(EVALUATIONS)).max(1);
        self.position.step.is_multiple_of(every) || self.position.step == steps
    }

    /// Evaluates, and keeps the parameters if they are the best so far.
    fn judge(&mut self) -> Result<f64, ApproxError> {
        let score = evaluate::score(&self.model, &self.data.eval, self.task)?;
        let value = score.get(self.metric);
        if self.position.best.is_none_or(|best| value > best.get(self.metric)) {
            self.position.best = Some(score);
            let values = self.model.parameters.iter().map(|p| p.var.flatten_all()?.to_vec1::<f32>());
            self.best = Some(values.collect::<candle_core::Result<_>>()?);
        }
        Ok(value)
    }

    fn leave(&mut self, stage: Stage, steps: usize, carried: f64, before: f64) -> Result<(), ApproxError> {
        if stage == Stage::LayerNorm {
            self.replace_norms(self.model.norms() - 1)?;
        }
        let last = self.position.stage + 1 == self.stages.len();
        if last {
            if self.best.is_none() {
                self.judge()?;
            }
            for (p, values) in self.model.parameters.iter().zip(self.best.iter().flatten()) {
                p.var.set(&Tensor::from_slice(values, p.var.dims(), &candle_core::Device::Cpu)?)?;
            }
        }
        let score = evaluate::score(&self.model, &self.data.eval, self.task)?;
        let survey = evaluate::survey(&self.model, &self.sample()?)?;
        let estimators = if self.model.form.estimator {
            let sums: Vec<Bounds> = self.position.bounds.iter().map(|b| b.1).collect();
            evaluate::estimators(&self.model, &sums)?
        } else {
            Vec::new()
        };
        self.position.seconds.1 = carried + self.stage_started.elapsed().as_secs_f64();
        self.position.seconds.0 = before + self.started.elapsed().as_secs_f64();
        let (sum, count) = self.position.losses;
        self.position.stages.push(StageReport {
            stage: stage.name().into(),
            steps,
            seconds: self.position.seconds.1,
            replaced: self.position.replaced,
            score,
            loss: (count > 0).then(|| sum / count as f64),
            ranges: survey.edges,
            estimators,
        });
        self.position.stage += 1;
        self.position.entered = false;
        self.position.step = 0;
        self.position.seconds.1 = 0.0;
        self.save()
    }

    fn save(&mut self) -> Result<(), ApproxError> {
        self.position.form = self.model.form.clone();
        self.position.head = self.model.head.iter().map(|d| d.tanh).collect();
        self.position.moments = self.optimiser.step;
        let word = self.model.form.blend[0] > 0.0 || self.stages.get(self.position.stage) == Some(&Stage::LayerNorm);
        let path = self.settings.out.join(state::FILE);
        state::save(&path, &self.position, &self.model, &self.optimiser, self.best.as_ref(), word)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Writes the result and its report.
    fn finish(&mut self) -> Result<End, ApproxError> {
        let out = &self.settings.out;
        let result = evaluate::score(&self.model, &self.data.eval, self.task)?;
        let primitives = self.model.forward(&self.data.eval.batch(&[0])?, &Pass::PLAIN)?.primitives;
        let report = RunReport {
            version: env!("CARGO_PKG_VERSION").into(),
            command: if self.settings.approximate { "approximate" } else { "finetune" }.into(),
            model: self.checkpoint.name.clone(),
            task: self.task,
            metric: self.metric,
            seed: self.settings.seed,
            train_rows: self.data.train.len(),
            eval_rows: self.data.eval.len(),
            texts_cut: self.data.train.cut + self.data.eval.cut,
            steps: self.position.total,
            seconds: self.position.seconds.0,
            original: self.position.original.unwrap_or_default(),
            stages: self.position.stages.clone(),
            result,
            primitives: primitives.iter().map(|p| format!("{p:?}").to_lowercase()).collect(),
            tokens_per_second: self.position.tokens.0 as f64 / self.position.tokens.1.max(1e-9),
        };
        let json = serde_json::to_vec_pretty(&report)
            .map_err(|e| ApproxError::Run { path: out.clone(), reason: e.to_string() })?;
        let meaning = export::Meaning {
            task: self.task,
            labels: &self.data.train.labels,
            ranges: self.model.form.estimator.then_some(&self.position.bounds),
        };
        export::write(out, &self.settings.model, &self.checkpoint, &self.model, &meaning)?;
        write_whole(&out.join(REPORT_FILE), &json)?;
        let path = out.join(state::FILE);
        if path.is_file() {
            fs::remove_file(&path).map_err(|e| ApproxError::Run { path, reason: e.to_string() })?;
        }
        Ok(End::Finished(Box::new(report)))
    }
}

/// A head with random weights for another task; what leads to it stays. Values start at the mean of the targets.
fn new_head(model: &mut Bert, outputs: usize, task: Task, train: &Examples, seed: u64) -> Result<(), ApproxError> {
    let d = model.hidden();
    let weight = gaussian(seed, "head", outputs * d, 0.02);
    let bias = match task {
        Task::Classification => vec![0.0; outputs],
        Task::Regression => vec![train.mean_target(); outputs],
    };
    Ok(model.set_head(weight, bias)?)
}

/// Digest of all that the result depends on.
fn fingerprint(settings: &Settings, checkpoint: &Checkpoint) -> Result<String, ApproxError> {
    let mut hasher = blake3::Hasher::new_derive_key("heliostat run 1");
    let failed = |path: &Path, e: &dyn std::fmt::Display| ApproxError::Run { path: path.into(), reason: e.to_string() };
    let json = serde_json::to_vec(settings).map_err(|e| failed(&settings.out, &e))?;
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes()).update(&json).update(&checkpoint.digest);
    hasher.update(format!("{:?}", settings.columns).as_bytes());
    for path in [&settings.train, &settings.eval] {
        let digest = blake3::hash(&fs::read(path).map_err(|e| failed(path, &e))?);
        hasher.update(digest.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Loss and time of the latest updates, older ones counting less.
#[derive(Default)]
struct Recent {
    loss: f64,
    seconds: f64,
    updates: u32,
}

impl Recent {
    fn add(&mut self, loss: f64, time: Duration) {
        self.updates = (self.updates + 1).min(50);
        let weight = 1.0 / f64::from(self.updates);
        self.loss += weight * (loss - self.loss);
        self.seconds += weight * (time.as_secs_f64() - self.seconds);
    }
}
