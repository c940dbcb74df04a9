//! `serve`: the server's half.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use heliostat::{
    model::Model,
    net::{
        Server, ServerOptions,
        session::{CorrelationStore, Recorder, SessionError, serve_connection},
    },
    report::{
        local::server_context,
        print,
        run::{hex, provenance_notice},
    },
};

use crate::{
    args::Serve,
    failure::{Failure, complain},
    local::Machine,
    output,
};

/// `heliostat serve`.
pub fn serve(args: Serve) -> Result<(), Failure> {
    let store = match &args.store {
        Some(dir) => Some(CorrelationStore::open(dir)?.with_quota(args.quota.quota())),
        None if args.quota.is_empty() => None,
        None => return Err(Failure::new("--max-disk and --max-count limit a store: give --store DIR, too")),
    };
    let model = Model::load_with(&args.model, args.calibration.as_deref())?;
    // The port before the device: what is taken is told at once.
    let server = Server::bind(&args.listen, ServerOptions::default())?;
    let machine = Machine::open(&args.engine)?;
    let mut context = server_context(&model, machine.backend.clone(), args.max_tokens.into(), args.lookup.lookup)?
        .with_costs(machine.costs.clone());
    if let Some(store) = store {
        context = context.with_store(store);
    }
    stop_on_interrupt(server.stop())?;
    output::text(&format!(
        "listening on {}\nmodel {}\ndigest {}\nbackend {}: {}\nnotice: plain TCP, for clients on this machine only: nothing \
         is encrypted or authenticated on the line\n",
        server.address(),
        model.manifest().name,
        hex(&context.digest()),
        machine.backend.info().kind,
        machine.environment.reason,
    ))?;
    if let Some(dir) = &args.store {
        output::line(&format!("store {}", dir.display()))?;
    }
    if let Some(notice) = provenance_notice(Some(&model)) {
        output::line(&format!("notice: {notice}"))?;
    }
    let log = |line: &str| log(line);
    server.run(&log, &|connection| {
        let peer = connection.peer;
        if !args.quiet {
            log(&format!("{peer}: connected ({})", connection.agreed.release));
        }
        let (start, meter) = (Instant::now(), connection.meter.clone());
        let result: Result<(), SessionError> = serve_connection(
            &context,
            connection.channel,
            connection.agreed.session,
            connection.meter,
            &Recorder::default(),
        );
        if let Some(notice) = machine.backend.degraded() {
            log(&format!("{peer}: {notice}"));
        }
        let traffic = meter.snapshot();
        if !args.quiet && result.is_ok() {
            log(&format!(
                "{peer}: finished after {:.1} s, {} up, {} down",
                start.elapsed().as_secs_f64(),
                print::bytes(traffic.bytes_up),
                print::bytes(traffic.bytes_down),
            ));
        }
        result
    });
    log("stopped");
    Ok(())
}

/// One line on stderr with the time in UTC seconds.
fn log(line: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    complain(&format!("[{now:.3}] {line}"));
}

/// The first Ctrl-C lets connections finish, the second one ends the program.
fn stop_on_interrupt(stop: heliostat::net::server::Stop) -> Result<(), Failure> {
    let asked = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        log("stopping: connections may finish within 30 s; interrupt again to stop at once");
        stop.request();
    })
    .map_err(|e| Failure::new(format!("cannot handle Ctrl-C: {e}")))
}
