//! `accuracy`: the fixed-point model beside the floating-point one over a labelled file.

use heliostat::{
    model::{Lookup, Model},
    net::{Link, session::Recorder},
    protocol::Nonlinear,
    report::{
        Runner,
        accuracy::{AccuracyReport, Evaluation, EvaluationOptions, Task, summary},
        dataset,
        file::{check_writable, write_whole},
        local::{LocalConnect, server_context},
    },
};

use crate::{
    args::{Accuracy, ModeChoice, TaskChoice},
    failure::Failure,
    local::{How, Machine, json_bytes, tables, use_threads},
    output,
    progress::RowBar,
};

/// `heliostat accuracy`.
pub fn accuracy(args: Accuracy) -> Result<(), Failure> {
    args.report.iter().try_for_each(|path| check_writable(path))?;
    let data = dataset::read(&args.data, args.columns.as_ref())?;
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    let options = EvaluationOptions {
        task: args.task.map(|task| match task {
            TaskChoice::Cls => Task::Classification,
            TaskChoice::Regression => Task::Regression,
            TaskChoice::Embedding => Task::Embedding,
            TaskChoice::Tokens => Task::Tokens,
        }),
        limit: args.limit.map(|limit| limit as usize),
        max_tokens: args.max_tokens.into(),
    };
    let evaluation = Evaluation::new(&model, &data, &options)?;
    let report = match args.mode {
        ModeChoice::Oracle => {
            use_threads(&args.engine)?;
            let bar = RowBar::new(evaluation.len(), args.quiet);
            evaluation.oracle(&|| bar.advance())?
        }
        ModeChoice::Simulator => {
            use_threads(&args.engine)?;
            let bar = RowBar::new(evaluation.len(), args.quiet);
            evaluation.simulator(args.seed, &|| bar.advance())?
        }
        ModeChoice::Private => private(&args, &model, &evaluation)?,
    };
    if let Some(path) = &args.report {
        write_whole(path, &json_bytes(&report)?)?;
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::text(&summary(&report))?;
    }
    if args.layers.nonlinear == Nonlinear::Garbled { differing(&report) } else { Ok(()) }
}

/// Both parties in this process, one session.
fn private(args: &Accuracy, model: &Model, evaluation: &Evaluation<'_>) -> Result<AccuracyReport, Failure> {
    let machine = Machine::open(&args.engine)?;
    let max_tokens = args.max_tokens.into();
    let how = How {
        max_tokens,
        link: Link::UNLIMITED,
        tables: tables(&args.tables),
        layers: args.layers,
        lookup: Lookup::Public,
    };
    let options = how.options(&machine, 2, false);
    let Machine { backend, costs, environment } = machine;
    let server = server_context(model, backend.clone(), max_tokens, Lookup::Public)?.with_costs(costs);
    let bar = RowBar::new(evaluation.len(), args.quiet);
    std::thread::scope(|scope| {
        let recorder = Recorder::new(None);
        let connect = LocalConnect::new(scope, &server, backend.clone(), Link::UNLIMITED, recorder.clone());
        let runner = Runner::new(connect, Some(model), &*backend, recorder, options)?;
        Ok(evaluation.private(runner, environment, &|| bar.advance())?)
    })
}

/// A private result that is not the oracle's is a failure, whatever the metric says.
fn differing(report: &AccuracyReport) -> Result<(), Failure> {
    match &report.private {
        Some(p) if p.differing > 0 => Err(Failure::new(format!(
            "the private output of {} of {} texts differs from the oracle's: please report this",
            p.differing,
            p.equal + p.differing
        ))),
        _ => Ok(()),
    }
}
