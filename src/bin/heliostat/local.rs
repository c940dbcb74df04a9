//! `local` and `demo`: both parties in this process.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use heliostat::{
    engine::{Backend, schedule::CostModel, select},
    model::{Lookup, Model},
    net::{
        Link,
        session::{CorrelationStore, Quota, Recorder, ServerContext, Span, chrome_trace},
    },
    protocol::Circumstances,
    report::{
        Report, RunOptions, Runner,
        file::{check_writable, write_whole},
        inputs::TextInput,
        local::{LocalConnect, server_context},
        measure, print,
        remote::ManifestCache,
        run::{Connect, Environment, TableChoice},
    },
};

use crate::{
    args::{Demo, Engine, LayerArgs, Local, OutputArgs, PhaseChoice, TableArgs},
    failure::Failure,
    offline::{self, Fill},
    output,
    progress::Bars,
};

/// Set to anything, it measures the machine anew, like `--recalibrate`.
const RECALIBRATE: &str = "HELIOSTAT_RECALIBRATE";

const DEMO_MODEL: &str = "models/bert-tiny-sst2";
const DEMO_TEXTS: [&str; 3] =
    ["a gripping and quietly funny film", "the plot never finds its way home", "my doctor says the results are good"];

/// A backend, why it was chosen, and what it costs.
pub struct Machine {
    pub backend: Arc<dyn Backend>,
    pub costs: CostModel,
    pub environment: Environment,
}

impl Machine {
    /// Opens what the options ask for.
    pub fn open(engine: &Engine) -> Result<Self, Failure> {
        use_threads(engine)?;
        let opened = select::open_with(&engine.options())?;
        let threads = rayon::current_num_threads();
        let again = engine.recalibrate || std::env::var_os(RECALIBRATE).is_some_and(|value| !value.is_empty());
        let costs = measure::costs(&*opened.backend, threads, ManifestCache::default_dir().as_deref(), again)?;
        let environment = Environment { reason: opened.reason, threads, calibration: measure::calibration(&costs) };
        Ok(Self { backend: opened.backend, costs, environment })
    }

    /// What a choice of the way of non-linear layers depends on. Here both parties share the threads.
    pub fn circumstances(&self, link: Link, parties: usize) -> Circumstances {
        Circumstances {
            byte: link.serialisation(1 << 20).as_secs_f64() / f64::from(1 << 20),
            round_trip: link.round_trip.as_secs_f64(),
            aes_block: self.costs.aes_block,
            ntt: self.costs.ntt,
            threads: (self.environment.threads / parties).max(1),
        }
    }
}

/// Takes as many CPU threads as the options say.
pub fn use_threads(engine: &Engine) -> Result<(), Failure> {
    if let Some(threads) = engine.threads.map(usize::from) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    Ok(())
}

/// What is printed while a run goes on, and written at its end.
pub struct Teller<'a> {
    pub args: &'a OutputArgs,
    pub bars: Bars,
    pub recorder: Recorder,
}

impl<'a> Teller<'a> {
    /// Bars and a recorder for them; finds out whether the files can be written.
    pub fn new(args: &'a OutputArgs) -> Result<Self, Failure> {
        args.report.iter().chain(&args.trace).try_for_each(|path| check_writable(path))?;
        let (bars, recorder) = Bars::new(args.quiet);
        Ok(Self { args, bars, recorder })
    }

    /// Runs all inputs, prints each, then prints and writes the report.
    pub fn run<C: Connect>(
        &self,
        mut runner: Runner<'_, C>,
        inputs: &[TextInput],
        environment: Environment,
    ) -> Result<(), Failure> {
        for input in inputs {
            let entry = runner.run(input);
            self.bars.clear();
            if !self.args.json {
                output::line(&print::input(entry))?;
            }
        }
        let (report, spans) = runner.finish(environment)?;
        self.finish(&report, &spans)
    }

    fn finish(&self, report: &Report, spans: &[Span]) -> Result<(), Failure> {
        if let Some(path) = &self.args.report {
            write_whole(path, &json_bytes(report)?)?;
        }
        if let Some(path) = &self.args.trace {
            write_whole(path, &serde_json::to_vec(&chrome_trace(spans))?)?;
        }
        if self.args.json {
            output::json(report)?;
        } else if !self.args.quiet {
            output::text(&print::summary(report))?;
        }
        let failed = report.inputs.iter().filter(|i| i.error.is_some()).count();
        match (failed, report.inputs.as_slice()) {
            (0, _) => Ok(()),
            (_, [only]) => Err(Failure::new(only.error.as_deref().unwrap_or_default())),
            (_, all) => {
                let first = all.iter().find_map(|i| i.error.as_deref()).unwrap_or_default();
                Err(Failure::new(format!("{failed} of {} inputs failed, the first because: {first}", all.len())))
            }
        }
    }
}

/// A value as indented JSON with a line end.
pub fn json_bytes(value: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Where garbled tables go.
pub fn tables(args: &TableArgs) -> TableChoice {
    match (&args.spool, args.interleaved) {
        (_, true) => TableChoice::Interleaved,
        (Some(dir), _) => TableChoice::Spool(dir.clone()),
        (None, _) => TableChoice::Spool(std::env::temp_dir()),
    }
}

/// How inferences are run.
pub struct How {
    pub max_tokens: usize,
    pub link: Link,
    pub tables: TableChoice,
    pub layers: LayerArgs,
    /// Where both parties are in this process.
    pub lookup: Lookup,
}

impl How {
    /// As the library takes it; `parties` of the protocol share this machine.
    pub fn options(&self, machine: &Machine, parties: usize, keep_spans: bool) -> RunOptions {
        RunOptions {
            max_tokens: self.max_tokens,
            tables: self.tables.clone(),
            wishes: self.layers.wishes(),
            circumstances: machine.circumstances(self.link, parties),
            keep_spans,
        }
    }
}

/// `heliostat local`.
pub fn local(args: Local) -> Result<(), Failure> {
    match args.phase {
        PhaseChoice::Both => {}
        PhaseChoice::Offline | PhaseChoice::Online => return one_phase(args),
    }
    if args.text.is_empty() && args.input.is_none() {
        return Err(Failure::new("there is nothing to run: give --text or --input"));
    }
    if !args.bucket.is_empty() {
        return Err(Failure::new("--bucket belongs to --phase offline, and to `heliostat offline`"));
    }
    if args.store.is_some() {
        return one_phase(args);
    }
    let texts = crate::args::Texts { text: args.text, text_pair: args.text_pair, input: args.input };
    let inputs = texts.read()?;
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    let machine = Machine::open(&args.engine)?;
    let how = How {
        max_tokens: args.max_tokens.into(),
        link: args.link,
        tables: tables(&args.tables),
        layers: args.layers,
        lookup: args.lookup.lookup,
    };
    run(&model, machine, &inputs, how, &args.output)
}

/// With a store: correlations made in one run of the program and spent in another. The two parties keep theirs apart.
fn one_phase(args: Local) -> Result<(), Failure> {
    let Some(store) = args.store else {
        return Err(Failure::new("--phase offline and --phase online need --store DIR"));
    };
    let texts = crate::args::Texts { text: args.text, text_pair: args.text_pair, input: args.input };
    let inputs = texts.read()?;
    if inputs.is_empty() && args.phase != PhaseChoice::Offline {
        return Err(Failure::new("there is nothing to run: give --text or --input"));
    }
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    let machine = Machine::open(&args.engine)?;
    let max_tokens = args.max_tokens.into();
    let server = server_context(&model, machine.backend.clone(), max_tokens, args.lookup.lookup)?
        .with_costs(machine.costs.clone())
        .with_store(CorrelationStore::open(&store.join("server"))?);
    let client = store.join("client");
    if args.phase == PhaseChoice::Offline {
        let mut buckets = args.bucket;
        for input in &inputs {
            buckets.push(model.client().encode(&input.text, input.pair.as_deref(), max_tokens)?.bucket);
        }
        if buckets.is_empty() {
            return Err(Failure::new("there is nothing to prepare: give --bucket, --text or --input"));
        }
        let fill = Fill { store: &client, quota: Quota::default(), buckets, count: 1, layers: args.layers };
        return offline::locally(fill, &server, machine, args.link, &args.output);
    }
    let otherwise = (args.phase == PhaseChoice::Both).then(|| Box::new(tables(&args.tables)));
    let tables = TableChoice::Kept { store: client, otherwise };
    run_on(
        &server,
        &model,
        machine,
        &inputs,
        How { max_tokens, link: args.link, tables, layers: args.layers, lookup: args.lookup.lookup },
        &args.output,
    )
}

fn run(model: &Model, machine: Machine, inputs: &[TextInput], how: How, output: &OutputArgs) -> Result<(), Failure> {
    let server =
        server_context(model, machine.backend.clone(), how.max_tokens, how.lookup)?.with_costs(machine.costs.clone());
    run_on(&server, model, machine, inputs, how, output)
}

fn run_on(
    server: &ServerContext,
    model: &Model,
    machine: Machine,
    inputs: &[TextInput],
    how: How,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let options = how.options(&machine, 2, output.trace.is_some());
    let Machine { backend, environment, .. } = machine;
    let teller = Teller::new(output)?;
    std::thread::scope(|scope| {
        let connect = LocalConnect::new(scope, server, backend.clone(), how.link, teller.recorder.clone());
        let runner = Runner::new(connect, Some(model), &*backend, teller.recorder.clone(), options)?;
        teller.run(runner, inputs, environment)
    })
}

/// `heliostat demo`.
pub fn demo(args: Demo) -> Result<(), Failure> {
    let dir = demo_model()?;
    let model = Model::load(&dir)?;
    let machine = Machine::open(&args.engine)?;
    let talk = !args.output.json && !args.output.quiet;
    if talk {
        output::text(&format!(
            "A client has {} sentences, a server has the sentiment model {}.\nThe client learns the sentiment and nothing \
             of the weights; the server learns the padded length and nothing of the words.\nBoth run in this process, as \
             two parties that talk over a channel.\n\n",
            DEMO_TEXTS.len(),
            model.manifest().name,
        ))?;
    }
    let inputs: Vec<TextInput> = DEMO_TEXTS.into_iter().map(TextInput::new).collect();
    let how = How {
        max_tokens: 128,
        link: args.link,
        tables: tables(&args.tables),
        layers: args.layers,
        lookup: Lookup::Public,
    };
    run(&model, machine, &inputs, how, &args.output)?;
    if talk {
        output::text(
            "\nThe server computed on ciphertexts, masked numbers and garbled circuits only; the oracle, which sees \
             everything,\nconfirms every answer. Your own text: heliostat local --model DIR --text \"...\"\n",
        )?;
    }
    Ok(())
}

/// The shipped model: below the working directory, beside the program, or where the program was built.
fn demo_model() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().ok();
    let beside = program.iter().flat_map(|p| p.ancestors().skip(1).map(Path::to_path_buf));
    let places = std::iter::once(PathBuf::from(".")).chain(beside).chain([PathBuf::from(env!("CARGO_MANIFEST_DIR"))]);
    let found = places.map(|p| p.join(DEMO_MODEL)).find(|p| p.join("config.json").is_file());
    found.ok_or_else(|| Failure::new(format!("{DEMO_MODEL} is not here: run from the folder of the project")))
}
