//! `offline`: inferences prepared ahead of their texts.

use std::{path::Path, time::Instant};

use heliostat::{
    model::Model,
    net::{
        Link,
        session::{CorrelationStore, Quota, ServerContext, Tables, chrome_trace},
    },
    protocol::{Circumstances, Wishes},
    report::{
        file::write_whole,
        local::{LocalConnect, server_context},
        print,
        remote::{ManifestCache, RemoteConnect, parse_digest},
        run::Connect,
    },
};
use serde::Serialize;

use crate::{
    args::{Command, LayerArgs, Offline, OutputArgs},
    failure::Failure,
    local::{Machine, Teller, json_bytes},
    output,
};

/// What to prepare, and where it goes.
pub struct Fill<'a> {
    /// The client's store.
    pub store: &'a Path,
    pub quota: Quota,
    /// Buckets, each as often as it is wanted, `count` times over.
    pub buckets: Vec<usize>,
    pub count: u32,
    pub layers: LayerArgs,
}

/// Work of one or several inferences, and what it took.
#[derive(Serialize)]
struct Prepared {
    bucket: usize,
    /// Inferences that it is for.
    inferences: usize,
    seconds: f64,
    bytes_up: u64,
    bytes_down: u64,
    rounds: u64,
}

const KEPT: &str = "the store keeps what is ready, and `heliostat store prune` removes what was in work";

/// What an interrupted command leaves behind.
pub fn leaves(command: &Command) -> &'static str {
    match command {
        Command::Offline(_) => KEPT,
        Command::Local(args) if args.store.is_some() => KEPT,
        Command::Infer(args) if args.store.is_some() => KEPT,
        Command::Finetune(_) | Command::Approximate(_) => "the same command continues where it last saved its state",
        Command::Synth(_) => "a folder `.heliostat-synth-..` may be left beside the one that was to be made",
        _ => "nothing was left behind",
    }
}

/// `heliostat offline`.
pub fn offline(args: Offline) -> Result<(), Failure> {
    let client = if args.model.is_some() { args.store.join("client") } else { args.store.clone() };
    let fill = Fill {
        store: &client,
        quota: args.quota.quota(),
        buckets: args.bucket,
        count: args.count,
        layers: args.layers,
    };
    let Some(dir) = &args.model else {
        let expected = args.model_digest.as_deref().map(parse_digest).transpose()?;
        let cache = args.cache.clone().or_else(ManifestCache::default_dir);
        // What is wrong with the store is told before the work.
        CorrelationStore::open(&client)?;
        let teller = Teller::new(&args.output)?;
        let machine = Machine::open(&args.engine)?;
        let connect = RemoteConnect {
            server: args.connect.unwrap_or_default(),
            expected,
            cache: cache.as_deref().map(ManifestCache::new),
            backend: machine.backend.clone(),
            recorder: teller.recorder.clone(),
            notices: Vec::new(),
        };
        return prepare(connect, fill, &machine.circumstances(args.link, 1), &teller);
    };
    CorrelationStore::open(&client)?;
    let server = CorrelationStore::open(&args.store.join("server"))?.with_quota(fill.quota);
    let model = Model::load_with(dir, args.calibration.as_deref())?;
    let machine = Machine::open(&args.engine)?;
    let largest = fill.buckets.iter().copied().max().unwrap_or(0);
    let server = server_context(&model, machine.backend.clone(), largest, args.lookup.lookup)?
        .with_costs(machine.costs.clone())
        .with_store(server);
    locally(fill, &server, machine, args.link, &args.output)
}

/// Prepares with a server of this process.
pub fn locally(
    fill: Fill<'_>,
    server: &ServerContext,
    machine: Machine,
    link: Link,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let teller = Teller::new(output)?;
    let circumstances = machine.circumstances(link, 2);
    std::thread::scope(|scope| {
        let connect = LocalConnect::new(scope, server, machine.backend.clone(), link, teller.recorder.clone());
        prepare(connect, fill, &circumstances, &teller)
    })
}

/// Prepares over one connection. What was prepared before a failure is kept and told.
fn prepare(
    mut connect: impl Connect,
    fill: Fill<'_>,
    circumstances: &Circumstances,
    teller: &Teller<'_>,
) -> Result<(), Failure> {
    let output = teller.args;
    let connected = connect.connect()?;
    let (mut session, model) = (connected.session, connected.model);
    let wanted = fill.buckets.len() * fill.count as usize;
    let (mut done, mut joint, mut failed) = (Vec::new(), Vec::new(), None);
    // A bucket that is named twice is wanted twice.
    let mut left: Vec<(usize, usize)> = Vec::new();
    for &bucket in &fill.buckets {
        match left.iter_mut().find(|(known, _)| *known == bucket) {
            Some((_, count)) => *count += fill.count as usize,
            None => left.push((bucket, fill.count as usize)),
        }
    }
    // In turn, so that a quota does not starve the last bucket.
    'all: while left.iter().any(|(_, count)| *count > 0) {
        for (bucket, left) in left.iter_mut().filter(|(_, count)| *count > 0) {
            let wishes = Wishes { lookup: model.manifest().options().lookup, count: *left, ..fill.layers.wishes() };
            let settings = wishes.settle(&model.manifest().spec, *bucket, circumstances)?.settings;
            let together = usize::from(settings.together);
            *left -= together.min(*left);
            if let Err(e) = session.ensure_keys(*bucket, settings) {
                failed = Some(e.to_string());
                break 'all;
            }
            for step in usize::from(together == 1)..=together {
                let (before, start) = (session.cut(), Instant::now());
                let tables = Tables::Keep { store: fill.store.to_path_buf(), quota: fill.quota };
                let (result, inferences) = match step {
                    0 => (session.joint(*bucket, settings), together),
                    _ => (session.offline(*bucket, settings, tables).map(drop), 1),
                };
                teller.bars.clear();
                if let Err(e) = result {
                    failed = Some(e.to_string());
                    break 'all;
                }
                let (seconds, traffic) = (start.elapsed().as_secs_f64(), session.cut().since(&before));
                let (bytes_up, bytes_down, rounds) = (traffic.bytes_up, traffic.bytes_down, traffic.rounds);
                if !output.json && !output.quiet {
                    let what = match step {
                        0 => format!("the linear layers of {together} inferences together"),
                        _ => "one inference".into(),
                    };
                    output::text(&format!(
                        "prepared {what} of {bucket} tokens in {seconds:.3} s, {} up, {} down, {rounds} rounds\n",
                        print::bytes(bytes_up),
                        print::bytes(bytes_down),
                    ))?;
                }
                let prepared = Prepared { bucket: *bucket, inferences, seconds, bytes_up, bytes_down, rounds };
                if step == 0 { joint.push(prepared) } else { done.push(prepared) }
            }
        }
    }
    let count = done.len();
    let json = json_bytes(&serde_json::json!({ "prepared": done, "joint": joint }))?;
    if let Some(path) = &output.report {
        write_whole(path, &json)?;
    }
    if let Some(path) = &output.trace {
        write_whole(path, &serde_json::to_vec(&chrome_trace(&teller.recorder.take()))?)?;
    }
    if output.json {
        output::text(&String::from_utf8_lossy(&json))?;
    }
    match failed {
        None => Ok(session.close()?),
        Some(why) if count == 0 => Err(Failure::new(why)),
        Some(why) => Err(Failure::new(format!("{count} of {wanted} inferences are prepared and kept; then: {why}"))),
    }
}
