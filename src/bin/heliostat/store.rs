//! `store`: what is in a store of prepared inferences.

use std::time::{SystemTime, UNIX_EPOCH};

use heliostat::{
    model::{GraphOptions, Lookup, Rings},
    net::session::{Entry, Party, Prune, State, inventory, prune, session_name, stores_in, verify},
    protocol::Settings,
    report::{print, run::hex},
};

use crate::{
    args::{Store, StoreCommand, StoreLs, StorePrune},
    failure::Failure,
    output,
};

/// `heliostat store`.
pub fn store(args: Store) -> Result<(), Failure> {
    match args.command {
        StoreCommand::Ls(args) => list(&args, false),
        StoreCommand::Verify(args) => list(&args, true),
        StoreCommand::Prune(args) => remove(&args),
    }
}

fn list(args: &StoreLs, open: bool) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for dir in stores_in(&args.dir)? {
        entries.extend(if open { verify(&dir)? } else { inventory(&dir)? });
    }
    if args.json {
        output::json(&entries.iter().map(json).collect::<Vec<_>>())?;
    } else {
        output::text(&table(&entries))?;
    }
    let damaged: Vec<&Entry> = entries.iter().filter(|e| matches!(e.state, State::Damaged(_))).collect();
    match damaged.as_slice() {
        [first, ..] if open => Err(Failure::new(format!(
            "{} of {} entries are damaged, the first {}: {}; `heliostat store prune --damaged` removes them",
            damaged.len(),
            entries.len(),
            first.name,
            why(first)
        ))),
        _ => Ok(()),
    }
}

fn remove(args: &StorePrune) -> Result<(), Failure> {
    let older_than = args.older_than.map(|age| age.as_secs());
    let remnants = args.spent || !(args.damaged || args.all || older_than.is_some());
    let what = Prune { remnants, damaged: args.damaged, older_than, all: args.all };
    let mut removed = Vec::new();
    for dir in stores_in(&args.dir)? {
        removed.extend(prune(&dir, &what, now())?);
    }
    let (gone, left): (Vec<_>, Vec<_>) = removed.iter().partition(|r| r.gone);
    if args.json {
        output::json(&gone.iter().map(|r| json(&r.entry)).collect::<Vec<_>>())?;
    } else {
        let mut text = String::new();
        for r in &gone {
            text += &format!("removed {} ({}), {}\n", r.entry.name, r.entry.state.name(), print::bytes(r.entry.bytes));
        }
        let bytes: u64 = gone.iter().map(|r| r.entry.bytes).sum();
        text += &format!("{} removed, {} freed\n", gone.len(), print::bytes(bytes));
        output::text(&text)?;
    }
    match left.first() {
        None => Ok(()),
        Some(r) => Err(Failure::new(format!(
            "{} files could not be removed, the first {}: check the permissions of {}",
            left.len(),
            r.entry.name,
            args.dir.display()
        ))),
    }
}

fn table(entries: &[Entry]) -> String {
    let mut rows =
        vec![["session", "party", "bucket", "model", "peer", "bytes", "age", "state", "settings"].map(String::from)];
    for e in entries {
        let terms = |f: fn(&heliostat::net::session::Terms) -> String| e.terms.as_ref().map_or("-".into(), f);
        let mut state = e.state.name().to_string();
        if let State::Damaged(why) = &e.state {
            state += &format!(": {why}");
        }
        rows.push([
            e.session.map_or_else(|| e.name.clone(), |s| session_name(&s)[..12].to_string()),
            e.party.map_or("-", party).into(),
            terms(|t| t.tokens.to_string()),
            terms(|t| hex(&t.digest)[..8].to_string()),
            terms(|t| session_name(&t.peer)[..8].to_string()),
            print::bytes(e.bytes),
            e.created.map_or("-".into(), |at| age(now().saturating_sub(at))),
            state,
            terms(|t| settings(&t.settings)),
        ]);
    }
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    let ready = entries.iter().filter(|e| e.state == State::Ready).count();
    let remnants = entries.iter().filter(|e| e.state.is_remnant()).count();
    text += &format!("{ready} ready, {}", print::bytes(entries.iter().map(|e| e.bytes).sum()));
    if remnants > 0 {
        text += &format!("; {remnants} left by processes that ended early, which `heliostat store prune` removes");
    }
    text.push('\n');
    text
}

fn json(e: &Entry) -> serde_json::Value {
    serde_json::json!({
        "name": e.name,
        "session": e.session.map(|s| session_name(&s)),
        "party": e.party.map(party),
        "bucket": e.terms.map(|t| t.tokens),
        "settings": e.terms.map(|t| settings(&t.settings)),
        "model": e.terms.map(|t| hex(&t.digest)),
        "peer": e.terms.map(|t| session_name(&t.peer)),
        "bytes": e.bytes,
        "created": e.created,
        "state": e.state.name(),
        "why": match &e.state { State::Damaged(_) => Some(why(e)), _ => None },
    })
}

fn why(e: &Entry) -> &str {
    match &e.state {
        State::Damaged(why) => why,
        state => state.name(),
    }
}

fn party(party: Party) -> &'static str {
    match party {
        Party::Client => "client",
        Party::Server => "server",
    }
}

fn settings(s: &Settings) -> String {
    let mut text = format!("{}, {} OTs, {}", s.methods, s.ot.name(), s.layout.name());
    let GraphOptions { merge, rings, lookup } = s.graph;
    if !merge.is_empty() {
        text += &format!(", merged {merge}");
    }
    if rings != Rings::default() {
        text += ", prime rings";
    }
    if lookup != Lookup::default() {
        text += ", private lookup";
    }
    text
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} m", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
