//! `ablation`: the variants of the protocol from before Primer to the default, measured on one text.

use heliostat::{
    model::{Lookup, Model},
    protocol::Wishes,
    report::{
        RunOptions, Runner,
        ablation::{AblationReport, AblationRow, text, variants},
        file::{check_writable, write_whole},
        inputs::TextInput,
        local::{LocalConnect, server_context},
        run::TableChoice,
    },
};

use crate::{
    args,
    failure::Failure,
    local::{Machine, json_bytes},
    output,
    progress::Bars,
};

/// Words of a text that is cut where it has enough tokens.
const WORDS: &str = "a warm and very funny film that never finds its way home but keeps its heart and its head ";

/// `heliostat ablation`.
pub fn ablation(args: args::Ablation) -> Result<(), Failure> {
    args.report.iter().try_for_each(|path| check_writable(path))?;
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    let tokens = usize::from(args.tokens);
    let input = TextInput::new(WORDS.repeat(tokens));
    let encoded = model.client().encode(&input.text, None, tokens)?;
    let machine = Machine::open(&args.engine)?;
    let server =
        server_context(&model, machine.backend.clone(), tokens, Lookup::Public)?.with_costs(machine.costs.clone());
    let mut rows = Vec::new();
    for (name, base) in variants(model.spec(), encoded.bucket)? {
        let (bars, recorder) = Bars::new(args.quiet);
        let options = RunOptions {
            max_tokens: tokens,
            tables: TableChoice::Spool(args.spool.clone().unwrap_or_else(std::env::temp_dir)),
            wishes: Wishes { variant: Some(base), ..Wishes::default() },
            circumstances: machine.circumstances(args.link, 2),
            keep_spans: false,
        };
        let report = std::thread::scope(|scope| -> Result<_, Failure> {
            let connect = LocalConnect::new(scope, &server, machine.backend.clone(), args.link, recorder.clone());
            let mut runner = Runner::new(connect, Some(&model), &*machine.backend, recorder, options)?;
            runner.run(&input);
            bars.clear();
            Ok(runner.finish(machine.environment.clone())?.0)
        })?;
        rows.push(AblationRow::new(name, &base, &report)?);
    }
    let info = machine.backend.info();
    let report = AblationReport {
        version: env!("CARGO_PKG_VERSION").into(),
        model: model.manifest().name.clone(),
        tokens: encoded.len(),
        bucket: encoded.bucket,
        link: args.link.to_string(),
        backend: format!("{}: {} [{}]", info.kind, info.adapter, info.form),
        threads: machine.environment.threads,
        rows,
    };
    if let Some(path) = &args.report {
        write_whole(path, &json_bytes(&report)?)?;
    }
    if args.json { output::json(&report) } else { output::text(&text(&report)) }
}
