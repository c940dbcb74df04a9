//! `plan`: what an inference will cost, before anything runs.

use heliostat::{
    model::{Model, bucket},
    protocol::{Plan, Wishes, parameter_set},
    report::{
        file::{check_writable, write_whole},
        plan::{Names, PlanReport, text},
    },
};

use crate::{
    args,
    failure::Failure,
    local::{Machine, json_bytes},
    output,
};

/// `heliostat plan`.
pub fn plan(args: args::Plan) -> Result<(), Failure> {
    args.report.iter().try_for_each(|path| check_writable(path))?;
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    let positions = model.manifest().positions();
    let tokens = bucket(args.tokens.into(), positions).ok_or_else(|| {
        Failure::new(format!("{} tokens are over the model's {positions} positions: give fewer --tokens", args.tokens))
    })?;
    let machine = Machine::open(&args.engine)?;
    // Both parties on a machine such as this one, as `local` runs them.
    let circumstances = machine.circumstances(args.link, 2);
    let wishes = Wishes { lookup: args.lookup.lookup, count: args.count as usize, ..args.layers.wishes() };
    let decision = wishes.settle(model.spec(), tokens, &circumstances)?;
    let graph = model.client().graph_with(tokens, &decision.settings.graph)?;
    let plan = Plan::new(graph, &parameter_set()?, decision.settings)?;
    let info = machine.backend.info();
    let names = Names {
        model: model.manifest().name.clone(),
        link: args.link.to_string(),
        backend: format!("{}: {} [{}], {}", info.kind, info.adapter, info.form, machine.environment.reason),
        reasons: decision.reasons,
    };
    let report = PlanReport::new(&plan, &circumstances, names)?;
    if let Some(path) = &args.report {
        write_whole(path, &json_bytes(&report)?)?;
    }
    if args.json { output::json(&report) } else { output::text(&text(&report)) }
}
