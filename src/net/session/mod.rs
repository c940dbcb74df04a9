//! Sessions: the protocol's machines driven over the lanes of a connection, at both ends.
//!
//! A connection begins with the manifest and the client's keys and then carries any number of inferences. Offline, the HE
//! and the OT lane run on threads of their own at both ends, so that the server's device computes one layer while its
//! CPU garbles another and the link carries a third. The online lane follows.

mod client;
mod control;
mod drive;
mod error;
mod recorder;
mod server;
mod spool;
mod store;

pub use client::{ClientConnection, ClientSession, Offer, Prepared, Tables};
pub use control::{joint_opening, opening};
pub use error::SessionError;
pub use recorder::{Party, Phase, Progress, Recorder, Span, busy, chrome_trace, overlap};
pub use server::{ServerContext, serve_connection};
pub use spool::{FileTables, TableChunk};
pub use store::{
    Binding, CorrelationStore, Entry, Observer, Prune, Quota, Removed, State, Step, StoreError, StoreId, Terms,
    inventory, parameters_id, prune, session_name, stores_in, verify,
};

use super::{Lane, NetError};
use crate::{
    he::HeCounters,
    protocol::{Plan, ProtocolError, SetId},
};

/// Lanes of a connection: control, HE, OT, online.
const LANES: u8 = 4;

/// Plans that a side remembers; settings are many, and a peer could ask for all of them.
const MOST_PLANS: usize = 64;

/// Why a plan asks too much of linear layers that are prepared together, within `memory` bytes.
fn too_many_together(plan: &Plan, memory: u64) -> Option<String> {
    let together = plan.settings.together;
    let most = plan.most_together();
    let over = |limit: String| Some(format!("{together} inferences prepared together are over the limit of {limit}"));
    match plan.joint_bytes() {
        _ if plan.joint_lane().is_empty() => None,
        _ if usize::from(together) > most => over(format!("{most}, which fill the ciphertexts")),
        bytes if bytes > memory => over(format!("{memory} bytes in memory, as they take {bytes}")),
        _ => None,
    }
}

struct Lanes {
    control: Lane,
    he: Lane,
    ot: Lane,
    online: Lane,
}

impl Lanes {
    fn new(lanes: Vec<Lane>) -> Result<Self, SessionError> {
        let [control, he, ot, online] = <[Lane; LANES as usize]>::try_from(lanes)
            .map_err(|_| SessionError::Thread("the connection has the wrong number of lanes".into()))?;
        Ok(Self { control, he, ot, online })
    }
}

/// Most bytes of switching keys in one message, well below the limit of a frame.
const KEY_PART: usize = 32 << 20;

/// Parameter sets and Galois elements of a plan for which there are no keys yet, in the order in which both ends take them.
fn missing_keys(plan: &Plan, have: &[(SetId, Vec<usize>)]) -> Vec<(SetId, Vec<usize>)> {
    let serves = |(set, needed): &(SetId, Vec<usize>)| have.iter().any(|(s, has)| serves(*s, has, *set, needed));
    plan.rotation_elements().into_iter().filter(|wanted| !serves(wanted)).collect()
}

/// Whether keys of one set for the elements `has` serve what needs `needed` of another.
fn serves(set: SetId, has: &[usize], wanted: SetId, needed: &[usize]) -> bool {
    set == wanted && needed.iter().all(|g| has.contains(g))
}

/// The work of several contexts.
fn sum_counters(all: impl Iterator<Item = HeCounters>) -> HeCounters {
    all.fold(HeCounters::default(), |a, b| HeCounters {
        products: a.products + b.products,
        scalar_products: a.scalar_products + b.scalar_products,
        key_switches: a.key_switches + b.key_switches,
        ntts: a.ntts + b.ntts,
        encrypted: a.encrypted + b.encrypted,
        responded: a.responded + b.responded,
        decrypted: a.decrypted + b.decrypted,
    })
}

/// Of two lanes' results, the error that came first: one that only says that the other failed gives way.
fn first_cause(a: Result<(), SessionError>, b: Result<(), SessionError>) -> Result<(), SessionError> {
    match (a, b) {
        (Err(a), Err(b)) => Err(if a.is_consequence() { b } else { a }),
        (a, b) => a.and(b),
    }
}

/// What the peer is told of an error: nothing that names this machine's files.
fn public_reason(e: &SessionError) -> String {
    match e {
        SessionError::Store(StoreError::Spent) => "it does not have its half of the correlation (any more)".into(),
        SessionError::Store(StoreError::Bound) => StoreError::Bound.to_string(),
        SessionError::Store(StoreError::Full { .. }) => "its store of correlations is full".into(),
        SessionError::Store(_) | SessionError::Protocol(ProtocolError::Spool(_)) => {
            "the peer could not store or read what it must keep".into()
        }
        e => e.to_string(),
    }
}

fn setup_span(recorder: &Recorder, party: Party, name: &str, start: std::time::Duration) {
    recorder.add(Span {
        party,
        phase: Phase::Setup,
        lane: "setup",
        name: name.into(),
        layer: None,
        start,
        duration: recorder.now().saturating_sub(start),
        bytes_up: 0,
        bytes_down: 0,
        held_bytes: 0,
        waiting: false,
    });
}

/// Whether an error is the peer's going away, which a server logs but outlives.
pub fn is_peer_gone(e: &SessionError) -> bool {
    matches!(e, SessionError::Net(NetError::Closed { .. } | NetError::Peer { .. }))
}
