//! Takes inputs one after another through a session.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use super::{
    ReportError,
    fields::{
        BackendReport, Calibration, GarbledReport, HePhaseReport, HeReport, InputReport, NonlinearReport, OpReport,
        OtReport, PhaseTotals, Predicted, Report, StepReport,
    },
    inputs::TextInput,
    measure,
    plan::{Making, predict},
};
use crate::{
    engine::{Backend, OpCount},
    he::HeCounters,
    model::{ClientModel, Encoded, Exact, GraphOptions, Lookup, Model, Outputs, Prediction, Provenance},
    net::{
        Traffic,
        session::{
            ClientSession, CorrelationStore, Party, Phase, Prepared, Recorder, SessionError, Span, StoreError, Tables,
            busy, overlap,
        },
    },
    protocol::{Circumstances, Decision, OtPlan, Plan, ProtocolError, Settings, Wishes},
};

/// How garbled tables are kept between the phases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChoice {
    /// In a nameless file of this directory.
    Spool(PathBuf),
    /// Made, sent and used layer by layer, in memory.
    Interleaved,
    /// Taken from the client's store.
    Kept {
        /// Its directory.
        store: PathBuf,
        /// How an inference is made for which the store has nothing; without it, that is an error.
        otherwise: Option<Box<TableChoice>>,
    },
}

impl TableChoice {
    /// The offline half of an inference: made now, or taken from the store. Also how, and why not from the store.
    fn prepare(
        &self,
        session: &mut ClientSession,
        bucket: usize,
        settings: Settings,
    ) -> Result<(Prepared, Making, Option<String>), SessionError> {
        match self {
            Self::Spool(dir) => {
                Ok((session.offline(bucket, settings, Tables::Spool(dir.clone()))?, Making::Offline, None))
            }
            Self::Interleaved => {
                Ok((session.offline(bucket, settings, Tables::Interleaved)?, Making::Interleaved, None))
            }
            Self::Kept { store, otherwise } => {
                let kept = CorrelationStore::open_existing(store).map_err(SessionError::from);
                match (kept.and_then(|store| session.resume(&store, bucket, settings)), otherwise) {
                    (Ok(prepared), _) => Ok((prepared, Making::Before, None)),
                    (Err(e), Some(otherwise)) if is_want(&e) => {
                        let (prepared, how, _) = otherwise.prepare(session, bucket, settings)?;
                        Ok((prepared, how, Some(format!("prepared while it was waited for, since {e}"))))
                    }
                    (Err(e), _) => Err(e),
                }
            }
        }
    }
}

/// Whether an error only says that there is no correlation to spend.
fn is_want(e: &SessionError) -> bool {
    matches!(
        e,
        SessionError::Store(StoreError::Nothing { .. } | StoreError::NotAStore { .. })
            | SessionError::Protocol(ProtocolError::NotKept)
            | SessionError::Refused { .. }
    )
}

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Longer texts are cut.
    pub max_tokens: usize,
    /// Where garbled tables go.
    pub tables: TableChoice,
    /// How inferences are to be run. Where tokens become vectors, follows from the server's manifest.
    pub wishes: Wishes,
    /// The link and the machine, where something is to be chosen.
    pub circumstances: Circumstances,
    /// Whether spans are kept for a trace.
    pub keep_spans: bool,
}

/// A session ready for inferences, and what the client makes of the manifest.
pub struct Connected {
    /// The session, its keys sent.
    pub session: ClientSession,
    /// The client's view of the model.
    pub model: ClientModel,
}

/// Makes sessions: the first one, and another one when a connection has died.
pub trait Connect {
    /// Connects, takes the manifest and sends keys.
    ///
    /// # Errors
    /// Whatever is in the way, in one sentence.
    fn connect(&mut self) -> Result<Connected, ReportError>;

    /// The server's homomorphic work so far, where it runs in this process.
    fn server_counters(&self) -> Option<HeCounters> {
        None
    }

    /// What the report says about the connection.
    fn link(&self) -> String;

    /// What a reader should know about the connection.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// How far from the oracle, as a part of its largest output or of 1, a result may be where layers were evaluated on shares:
/// errors of a unit here and there do not add up to more, a wrong protocol gives anything.
const SHARED_TOLERANCE: f64 = 0.1;

/// The private result of one text, before it is compared.
struct Private {
    values: Vec<i64>,
    outputs: Outputs,
    /// Whether every layer was garbled.
    exact: bool,
    /// What the graph was built with.
    graph: GraphOptions,
}

/// Runs inputs and gathers the report. The oracle is asked where the whole model is at hand.
pub struct Runner<'a, C: Connect> {
    connect: C,
    oracle: Option<&'a Model>,
    recorder: Recorder,
    options: RunOptions,
    backend: &'a dyn Backend,
    ops_before: Vec<OpCount>,
    current: Option<Connected>,
    model: String,
    lookup: Lookup,
    digest: String,
    connections: usize,
    report: Totals,
    decisions: BTreeMap<usize, Decision>,
    spans: Vec<Span>,
}

#[derive(Default)]
struct Totals {
    inputs: Vec<InputReport>,
    setup: PhaseTotals,
    predicted: Predicted,
    steps: Vec<StepReport>,
    and_gates: u64,
    table_bytes: u64,
    /// Elements and bytes of layers on shares.
    shared: (u64, u64),
    ots: u64,
    /// The server's homomorphic work, offline and online.
    he: [HePhaseReport; 2],
    /// Inferences by how their tables were kept.
    tables: BTreeMap<&'static str, usize>,
    /// Sum of the inferences' statistical distances.
    distance: f64,
    client: HeCounters,
    spool_bytes: u64,
    /// Sum of overlap times wall time, and of wall time, of the offline phases.
    overlap: (f64, f64),
    /// Likewise for each lane and resource.
    busy: BTreeMap<String, f64>,
    notices: Vec<String>,
}

impl<'a, C: Connect> Runner<'a, C> {
    /// Connects.
    ///
    /// # Errors
    /// Whatever [`Connect::connect`] reports.
    pub fn new(
        connect: C,
        oracle: Option<&'a Model>,
        backend: &'a dyn Backend,
        recorder: Recorder,
        options: RunOptions,
    ) -> Result<Self, ReportError> {
        let mut runner = Self {
            connect,
            oracle,
            recorder,
            options,
            backend,
            ops_before: backend.ops(),
            current: None,
            model: String::new(),
            lookup: Lookup::Public,
            digest: String::new(),
            connections: 0,
            report: Totals::default(),
            decisions: BTreeMap::new(),
            spans: Vec::new(),
        };
        let connected = runner.connected()?;
        runner.current = Some(connected);
        Ok(runner)
    }

    /// The client's view of the model, while there is a connection.
    pub fn model(&self) -> Option<&ClientModel> {
        self.current.as_ref().map(|c| &c.model)
    }

    fn connected(&mut self) -> Result<Connected, ReportError> {
        if let Some(connected) = self.current.take() {
            return Ok(connected);
        }
        let start = Instant::now();
        let connected = self.connect.connect()?;
        self.report.setup += totals(start.elapsed().as_secs_f64(), &connected.session.cut());
        let digest = hex(&connected.model.digest());
        if self.connections > 0 {
            self.report.notices.push("the connection was lost and made anew, with new keys".into());
            if digest != self.digest {
                self.report.notices.push(format!("the server's model is now another one: {digest}"));
            }
        }
        self.connections += 1;
        self.digest = digest;
        self.model.clone_from(&connected.model.manifest().name);
        self.lookup = connected.model.manifest().options().lookup;
        self.absorb(false);
        Ok(connected)
    }

    /// Runs one input; what fails is in its entry.
    pub fn run(&mut self, input: &TextInput) -> &InputReport {
        let mut entry = InputReport {
            text: input.text.clone(),
            text_pair: input.pair.clone(),
            tokens: None,
            bucket: None,
            label: None,
            score: None,
            token_labels: None,
            outputs: None,
            oracle_outputs: None,
            float_outputs: None,
            oracle_equal: None,
            oracle_difference: None,
            error: None,
            offline: None,
            online: None,
        };
        if let Err(e) = self.try_run(input, &mut entry) {
            entry.error = Some(e.to_string());
        }
        let index = self.report.inputs.len();
        self.report.inputs.push(entry);
        &self.report.inputs[index]
    }

    fn try_run(&mut self, input: &TextInput, entry: &mut InputReport) -> Result<(), ReportError> {
        let mut connected = self.connected()?;
        let reading = Instant::now();
        let encoded = connected.model.encode(&input.text, input.pair.as_deref(), self.options.max_tokens);
        let reading = reading.elapsed().as_secs_f64();
        let encoded = match encoded {
            Ok(encoded) => encoded,
            Err(e) => {
                // The connection knows nothing of a text that cannot be read.
                self.current = Some(connected);
                return Err(e.into());
            }
        };
        (entry.tokens, entry.bucket) = (Some(encoded.len()), Some(encoded.bucket));
        if encoded.truncated {
            let place = self.report.inputs.len() + 1;
            let notice = format!("text {place} was longer than {} tokens and was cut", encoded.len());
            self.report.notices.push(notice);
        }
        let before = (connected.session.he_counters(), connected.session.spooled_bytes(), connected.session.ot_count());
        let result = self.infer(&mut connected, &encoded, reading, entry);
        let after = (connected.session.he_counters(), connected.session.spooled_bytes(), connected.session.ot_count());
        add_counters(&mut self.report.client, &after.0, &before.0);
        self.report.spool_bytes += after.1 - before.1;
        self.report.ots += after.2 - before.2;
        self.absorb(true);
        // After an error the session's lanes are no longer in step: the next input gets a new one.
        let private = result?;
        fill(entry, &connected.model, &private.outputs);
        self.current = Some(connected);
        self.compare(&encoded, &private, entry)
    }

    fn infer(
        &mut self,
        connected: &mut Connected,
        encoded: &Encoded,
        reading: f64,
        entry: &mut InputReport,
    ) -> Result<Private, ReportError> {
        let Connected { session, model } = connected;
        let decision = self.decision(model, encoded.bucket)?;
        if !matches!(self.options.tables, TableChoice::Kept { .. }) {
            let (before, start) = (session.cut(), Instant::now());
            session.ensure_keys(encoded.bucket, decision.settings)?;
            self.report.setup += totals(start.elapsed().as_secs_f64(), &session.cut().since(&before));
        }
        let before = session.cut();
        let start = Instant::now();
        let counted = self.connect.server_counters();
        let (prepared, making, notice) = self.options.tables.prepare(session, encoded.bucket, decision.settings)?;
        let kept = match making {
            Making::Offline => "spooled",
            Making::Interleaved => "interleaved",
            Making::Before => "kept",
        };
        *self.report.tables.entry(kept).or_insert(0) += 1;
        self.report.notices.extend(notice.filter(|n| !self.report.notices.contains(n)));
        let made = session.cut();
        entry.offline = Some(totals(start.elapsed().as_secs_f64(), &made.since(&before)));
        let plan = prepared.plan().clone();
        self.report.predicted += predict(&plan, &self.options.circumstances, making)?;
        self.report.and_gates += plan.and_gates();
        self.report.table_bytes += plan.table_bytes();
        for (id, _) in plan.graph.iter() {
            if let Some(OtPlan::Shared(s)) = plan.ot(id) {
                let (up, down) = s.bytes();
                self.report.shared.0 += s.elements as u64;
                self.report.shared.1 += up + down;
            }
        }
        let half = self.connect.server_counters();
        let start = Instant::now();
        let values = session.online(prepared, model.inputs_for(encoded, decision.settings.graph.lookup)?)?;
        let outputs = model.decode(encoded, &plan.graph, &values)?;
        let seconds = reading + start.elapsed().as_secs_f64();
        entry.online = Some(totals(seconds, &session.cut().since(&made)));
        self.account_for_he(&plan, [counted, half, self.connect.server_counters()])?;
        Ok(Private { values, outputs, exact: decision.settings.methods.is_exact(), graph: decision.settings.graph })
    }

    /// What is to be done for a bucket; chosen once.
    fn decision(&mut self, model: &ClientModel, bucket: usize) -> Result<Decision, ReportError> {
        if let Some(decision) = self.decisions.get(&bucket) {
            return Ok(decision.clone());
        }
        let RunOptions { wishes, circumstances, .. } = &self.options;
        // A server that keeps its embedding block leaves no choice.
        let wishes = Wishes { lookup: model.manifest().options().lookup, ..*wishes };
        let decision = wishes.settle(&model.manifest().spec, bucket, circumstances)?;
        self.decisions.insert(bucket, decision.clone());
        Ok(decision)
    }

    /// Adds the server's work: between its counters before, between and after the phases, or as planned where they are not known.
    fn account_for_he(&mut self, plan: &Plan, counters: [Option<HeCounters>; 3]) -> Result<(), ReportError> {
        let costs = plan.he_costs()?;
        let planned = [costs.offline, costs.online].map(|c| HePhaseReport {
            rotations: c.key_switches,
            products: c.products,
            scalar_products: c.scalar_products,
        });
        for (phase, sum) in self.report.he.iter_mut().enumerate() {
            *sum += match (&counters[phase], &counters[phase + 1]) {
                (Some(before), Some(after)) => HePhaseReport {
                    rotations: after.key_switches - before.key_switches,
                    products: after.products - before.products,
                    scalar_products: after.scalar_products - before.scalar_products,
                },
                _ => planned[phase],
            };
        }
        for packing in plan.he.iter().flat_map(|(_, item)| item.packings()) {
            let distance = packing.response_plan().statistical_distance_log2(packing.counts().ciphertexts_down);
            self.report.distance += distance.exp2();
        }
        Ok(())
    }

    fn compare(&mut self, encoded: &Encoded, private: &Private, entry: &mut InputReport) -> Result<(), ReportError> {
        let Some(model) = self.oracle else { return Ok(()) };
        let run = model.oracle_for(encoded, &private.graph, &mut Exact)?;
        let expected = run.execution.edge(run.graph.output);
        entry.oracle_outputs = Some(run.outputs.rows.concat());
        entry.float_outputs = Some(model.float(encoded)?.rows.concat());
        let differing = expected.iter().zip(&private.values).filter(|(a, b)| a != b).count();
        entry.oracle_equal = Some(differing == 0 && expected.len() == private.values.len());
        let count = run.execution.overflow_count();
        if count > 0 {
            let names = run.execution.overflows.iter().map(|o| run.graph.edge(o.edge).name.as_str());
            return Err(ReportError::Overflow { count, edges: names.collect::<Vec<_>>().join(", ") });
        }
        if entry.oracle_equal == Some(true) {
            return Ok(());
        }
        if private.exact || expected.len() != private.values.len() {
            return Err(ReportError::Differs { differing, values: expected.len() });
        }
        let (ours, theirs) = (private.outputs.rows.concat(), run.outputs.rows.concat());
        let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        entry.oracle_difference = Some(difference);
        let scale = theirs.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        if difference > SHARED_TOLERANCE * scale {
            return Err(ReportError::Far { difference });
        }
        Ok(())
    }

    /// Takes the recorder's spans into the report.
    fn absorb(&mut self, inference: bool) {
        let spans = self.recorder.take();
        if inference {
            let offline: Vec<Span> = spans.iter().filter(|s| s.phase == Phase::Offline).cloned().collect();
            let wall = wall_seconds(&offline);
            self.report.overlap.0 += overlap(&offline) * wall;
            self.report.overlap.1 += wall;
            for (lane, share) in busy(&offline) {
                *self.report.busy.entry(lane).or_insert(0.0) += share * wall;
            }
        }
        add_steps(&mut self.report.steps, &spans);
        if self.options.keep_spans {
            self.spans.extend(spans);
        }
    }

    /// Says goodbye and closes the report. Also gives the spans that were kept.
    ///
    /// # Errors
    /// None of the inputs' errors, which are in their entries; only what keeps the report from being made.
    pub fn finish(mut self, environment: Environment) -> Result<(Report, Vec<Span>), ReportError> {
        if let Some(connected) = self.current.take() {
            // Every result is there: a server that is gone by now changes nothing.
            let _ = connected.session.close();
        }
        let server = self.connect.server_counters();
        let info = self.backend.info();
        let r = self.report;
        let sum = |phase: fn(&InputReport) -> Option<PhaseTotals>| {
            r.inputs.iter().filter_map(phase).fold(PhaseTotals::default(), |mut sum, p| {
                sum += p;
                sum
            })
        };
        let mut notices = self.connect.notices();
        notices.extend(provenance_notice(self.oracle));
        notices.extend(r.notices);
        let degraded = self.backend.degraded();
        notices.extend(degraded.clone());
        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            model: self.model,
            digest: self.digest,
            backend: BackendReport {
                kind: info.kind.into(),
                adapter: info.adapter,
                driver: info.driver,
                form: info.form.into(),
                reason: [Some(environment.reason), degraded].into_iter().flatten().collect::<Vec<_>>().join("; "),
            },
            threads: environment.threads,
            link: self.connect.link(),
            tables: table_names(&r.tables),
            calibration: environment.calibration,
            offline: sum(|i| i.offline),
            online: sum(|i| i.online),
            inputs: r.inputs,
            setup: r.setup,
            predicted: r.predicted,
            phases: r.steps,
            ops: ops_since(&self.ops_before, &self.backend.ops()),
            nonlinear: NonlinearReport {
                methods: self.decisions.iter().map(|(&b, d)| (b, d.settings.methods.to_string())).collect(),
                reasons: self
                    .decisions
                    .iter()
                    .flat_map(|(b, d)| d.reasons.iter().map(move |r| format!("bucket {b}, {r}")))
                    .collect(),
                shared_elements: r.shared.0,
                shared_bytes: r.shared.1,
            },
            garbled: GarbledReport { and_gates: r.and_gates, bytes: r.table_bytes },
            he: HeReport {
                products: r.he.iter().map(|phase| phase.products).sum(),
                key_switches: r.he.iter().map(|phase| phase.rotations).sum(),
                ntts: r.client.ntts + server.as_ref().map_or(0, |s| s.ntts),
                ciphertexts_up: r.client.encrypted,
                ciphertexts_down: r.client.decrypted,
                offline: r.he[0],
                online: r.he[1],
            },
            ot: OtReport {
                count: r.ots,
                methods: self.decisions.iter().map(|(&b, d)| (b, d.settings.ot.name().into())).collect(),
            },
            overlap: if r.overlap.1 > 0.0 { r.overlap.0 / r.overlap.1 } else { 0.0 },
            busy: r.busy.iter().map(|(lane, seconds)| (lane.clone(), seconds / r.overlap.1)).collect(),
            spool_bytes: r.spool_bytes,
            peak_rss_bytes: measure::peak_rss_bytes(),
            reveals: reveals(self.lookup),
            statistical_distance_log2: (r.distance > 0.0).then(|| r.distance.log2()),
            notices,
        };
        Ok((report, self.spans))
    }
}

/// What the report says about the machine.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Why this backend.
    pub reason: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// Gauges.
    pub calibration: Calibration,
}

/// What each side learns.
pub fn reveals(lookup: Lookup) -> Vec<String> {
    let client = match lookup {
        Lookup::Public => {
            "the client learns: the result, and the model's manifest (shapes, labels, tokenizer, numeric ranges of the edges, and \
             the embedding block, which is public in this mode); none of the encoder's or the head's weights"
        }
        Lookup::Private => {
            "the client learns: the result, and the model's manifest (shapes, labels, tokenizer, numeric ranges of the edges); \
             tokens are looked up privately, and no weight leaves the server, those of the embedding block included"
        }
    };
    [
        "the server learns, of each text: its bucket (a public length that hides the number of tokens) and when it was run; \
         neither text, nor tokens, nor result",
        client,
        "who listens on the line learns: the bucket, sizes and times of messages; plain TCP authenticates nobody, and is \
         therefore bound to loopback",
        "this holds while both sides follow the protocol (semi-honest model)",
    ]
    .map(String::from)
    .to_vec()
}

/// What a user should know of where the model's ranges come from.
pub fn provenance_notice(model: Option<&Model>) -> Option<String> {
    match model?.provenance() {
        Provenance::WorstCase { clamped } if clamped.is_empty() => Some(
            "ranges are proven from the weights and wider than texts need: `heliostat calibrate` makes runs cheaper"
                .into(),
        ),
        Provenance::WorstCase { clamped } => Some(format!(
            "no ring holds the proven ranges of {}: overflow is possible there and counted; `heliostat calibrate` chooses \
             ranges from sample texts",
            clamped.join(", ")
        )),
        Provenance::Calibrated { samples, headroom_bits } => Some(format!(
            "ranges come from {samples} sample texts with {headroom_bits} bits of headroom: a text beyond them overflows, which \
             the oracle counts"
        )),
    }
}

/// How tables were kept; with numbers where not all alike.
fn table_names(counts: &BTreeMap<&'static str, usize>) -> String {
    match counts.len() {
        0 => "none".into(),
        1 => counts.keys().copied().collect(),
        _ => counts.iter().map(|(how, n)| format!("{n} {how}")).collect::<Vec<_>>().join(", "),
    }
}

/// A digest in hexadecimal.
pub fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

fn totals(seconds: f64, traffic: &Traffic) -> PhaseTotals {
    PhaseTotals { seconds, bytes_up: traffic.bytes_up, bytes_down: traffic.bytes_down, rounds: traffic.rounds }
}

fn fill(entry: &mut InputReport, model: &ClientModel, outputs: &Outputs) {
    entry.outputs = Some(outputs.rows.concat());
    let name = |label: &crate::model::Label| match label.name.as_str() {
        "" => format!("LABEL_{}", label.index),
        name => name.to_owned(),
    };
    match &outputs.prediction {
        Prediction::Label(label) => (entry.label, entry.score) = (Some(name(label)), Some(label.score)),
        Prediction::Tokens(tokens) => {
            entry.token_labels = Some(tokens.iter().map(|(t, l)| (t.clone(), name(l), l.score)).collect());
        }
        Prediction::Values(_) => entry.label = model.manifest().labels.first().cloned(),
        Prediction::Embedding(_) => {}
    }
}

fn add_counters(sum: &mut HeCounters, after: &HeCounters, before: &HeCounters) {
    sum.products += after.products - before.products;
    sum.scalar_products += after.scalar_products - before.scalar_products;
    sum.key_switches += after.key_switches - before.key_switches;
    sum.ntts += after.ntts - before.ntts;
    sum.encrypted += after.encrypted - before.encrypted;
    sum.responded += after.responded - before.responded;
    sum.decrypted += after.decrypted - before.decrypted;
}

fn wall_seconds(spans: &[Span]) -> f64 {
    let start = spans.iter().map(|s| s.start).min();
    let end = spans.iter().map(|s| s.start + s.duration).max();
    start.zip(end).map_or(0.0, |(start, end)| end.saturating_sub(start).as_secs_f64())
}

fn add_steps(steps: &mut Vec<StepReport>, spans: &[Span]) {
    for span in spans.iter().filter(|s| !s.is_task()) {
        let phase = match span.phase {
            Phase::Setup => "setup",
            Phase::Offline => "offline",
            Phase::Online => "online",
        };
        let same =
            |s: &StepReport| s.phase == phase && s.name == span.name && s.layer == span.layer && s.lane == span.lane;
        let index = steps.iter().position(same).unwrap_or_else(|| {
            steps.push(StepReport {
                phase: phase.into(),
                name: span.name.clone(),
                layer: span.layer,
                lane: span.lane.into(),
                seconds: 0.0,
                waiting_seconds: 0.0,
                server_seconds: None,
                bytes_up: 0,
                bytes_down: 0,
            });
            steps.len() - 1
        });
        let (step, seconds) = (&mut steps[index], span.duration.as_secs_f64());
        match span.party {
            Party::Client => {
                step.seconds += seconds;
                step.waiting_seconds += if span.waiting { seconds } else { 0.0 };
                step.bytes_up += span.bytes_up;
                step.bytes_down += span.bytes_down;
            }
            Party::Server if !span.waiting => *step.server_seconds.get_or_insert(0.0) += seconds,
            Party::Server => {}
        }
    }
}

fn ops_since(before: &[OpCount], after: &[OpCount]) -> Vec<OpReport> {
    let earlier = |name: &str| before.iter().find(|op| op.name == name).cloned().unwrap_or_default();
    after
        .iter()
        .map(|op| {
            let old = earlier(op.name);
            OpReport {
                name: op.name.into(),
                gpu: op.gpu.saturating_sub(old.gpu),
                cpu: op.cpu.saturating_sub(old.cpu),
                compared: op.compared.saturating_sub(old.compared),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn steps_sum_by_name_lane_and_party() {
        let span = |party, waiting, ms| Span {
            party,
            phase: Phase::Online,
            lane: "online",
            name: "softmax".into(),
            layer: Some(1),
            start: Duration::ZERO,
            duration: Duration::from_millis(ms),
            bytes_up: 5,
            bytes_down: 7,
            held_bytes: 0,
            waiting,
        };
        let mut steps = Vec::new();
        add_steps(&mut steps, &[span(Party::Client, false, 10), span(Party::Server, false, 30)]);
        add_steps(&mut steps, &[span(Party::Client, true, 20), span(Party::Server, true, 100)]);
        assert_eq!(steps.len(), 1);
        let step = &steps[0];
        assert!((step.seconds - 0.03).abs() < 1e-9 && (step.waiting_seconds - 0.02).abs() < 1e-9);
        assert!((step.server_seconds.unwrap() - 0.03).abs() < 1e-9);
        assert_eq!((step.bytes_up, step.bytes_down), (10, 14));
    }

    #[test]
    fn operations_before_the_run_do_not_count() {
        let op = |gpu, cpu| OpCount { name: "add", gpu, cpu, compared: gpu };
        let ops = ops_since(&[op(1, 2)], &[op(4, 2)]);
        assert_eq!((ops[0].gpu, ops[0].cpu, ops[0].compared), (3, 0, 3));
    }
}
