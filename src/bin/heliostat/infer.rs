//! `infer`: the client's half.

use heliostat::report::{
    Runner,
    remote::{ManifestCache, RemoteConnect, parse_digest},
    run::TableChoice,
};

use crate::{
    args::Infer,
    failure::Failure,
    local::{How, Machine, Teller, tables},
};

/// `heliostat infer`.
pub fn infer(args: Infer) -> Result<(), Failure> {
    let inputs = args.texts.read()?;
    let expected = args.model_digest.as_deref().map(parse_digest).transpose()?;
    let cache = args.cache.clone().or_else(ManifestCache::default_dir);
    let teller = Teller::new(&args.output)?;
    let machine = Machine::open(&args.engine)?;
    let connect = RemoteConnect {
        server: args.server,
        expected,
        cache: cache.as_deref().map(ManifestCache::new),
        backend: machine.backend.clone(),
        recorder: teller.recorder.clone(),
        notices: Vec::new(),
    };
    let made = tables(&args.tables);
    let tables = match args.store {
        Some(store) => TableChoice::Kept { store, otherwise: Some(Box::new(made)) },
        None => made,
    };
    let how = How {
        max_tokens: args.max_tokens.into(),
        link: args.link,
        tables,
        layers: args.layers,
        lookup: heliostat::model::Lookup::Public,
    };
    let options = how.options(&machine, 1, args.output.trace.is_some());
    let runner = Runner::new(connect, None, &*machine.backend, teller.recorder.clone(), options)?;
    teller.run(runner, &inputs, machine.environment)
}
