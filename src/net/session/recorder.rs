//! What ran when: spans of every lane of both parties, for progress, reports and traces.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::engine::schedule::{Resource, covered};

/// Whose work a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// Which phase of an inference a span belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Handshake, manifest, keys.
    Setup,
    /// Before the text is known.
    Offline,
    /// After.
    Online,
}

/// One piece of work of one lane.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// Whose.
    pub party: Party,
    /// When in the protocol.
    pub phase: Phase,
    /// A lane of the connection, `setup`, `he`, `ot` or `online`; or a resource of the host's scheduler on which a task of
    /// the HE lane ran, `device`, `cpu` or `link`.
    pub lane: &'static str,
    /// Node name, or what else was done.
    pub name: String,
    /// Encoder layer, if it belongs to one.
    pub layer: Option<usize>,
    /// Since the recorder's start.
    pub start: Duration,
    /// How long.
    pub duration: Duration,
    /// Payload bytes sent by the client within the span.
    pub bytes_up: u64,
    /// Payload bytes sent by the server within the span.
    pub bytes_down: u64,
    /// Memory that a task held.
    pub held_bytes: u64,
    /// Whether the lane waited for its peer or for another lane instead of computing.
    pub waiting: bool,
}

impl Span {
    /// Whether this is a task of the HE lane on the host's scheduler, which the lane's own spans may cover as well.
    pub fn is_task(&self) -> bool {
        Resource::ALL.iter().any(|r| r.name() == self.lane)
    }
}

/// How far a phase is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Lane that moved.
    pub lane: &'static str,
    /// Node under work.
    pub name: String,
    /// Done and total, summed over the phase's lanes.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// Bytes both ways so far in this phase.
    pub bytes: u64,
}

type ProgressSink = Box<dyn Fn(&Progress) + Send + Sync>;

/// Collects spans; clones record into the same.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    start: Instant,
    spans: Mutex<Vec<Span>>,
    sink: Option<ProgressSink>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Recorder {
    /// A recorder that starts now and hands the client's progress to `sink`.
    pub fn new(sink: Option<ProgressSink>) -> Self {
        Self { inner: Arc::new(Inner { start: Instant::now(), spans: Mutex::default(), sink }) }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.inner.start.elapsed()
    }

    /// Time from the start to `instant`.
    pub fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.inner.start)
    }

    /// Adds a span; neighbours of one lane with the same name are merged.
    pub fn add(&self, span: Span) {
        let mut spans = self.inner.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |s: &Span| s.party == span.party && s.lane == span.lane;
        if !span.is_task()
            && let Some(last) = spans.iter_mut().rev().find(|s| same(s))
            && last.name == span.name
            && last.phase == span.phase
            && last.waiting == span.waiting
            && span.start.saturating_sub(last.start + last.duration) < Duration::from_micros(200)
        {
            last.duration = span.start + span.duration - last.start;
            last.bytes_up += span.bytes_up;
            last.bytes_down += span.bytes_down;
            return;
        }
        spans.push(span);
    }

    /// Passes progress on.
    pub fn progress(&self, progress: &Progress) {
        if let Some(sink) = &self.inner.sink {
            sink(progress);
        }
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.inner.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the spans out, for the next inference's report.
    pub fn take(&self) -> Vec<Span> {
        std::mem::take(&mut self.inner.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Busy time of all lanes over the wall time they cover: above 1 where work overlapped. A lane is busy while it computes
/// itself or tasks run for it.
pub fn overlap(spans: &[Span]) -> f64 {
    let lane = |s: &Span| (s.party, if s.is_task() { "he" } else { s.lane });
    shares(spans, lane).into_values().sum()
}

/// The busy time of every lane and of every resource that tasks ran on, over the wall time of all: from 0 to 1, by names such
/// as `server device`.
pub fn busy(spans: &[Span]) -> BTreeMap<String, f64> {
    let name = |(party, lane): (Party, &str)| match party {
        Party::Client => format!("client {lane}"),
        Party::Server => format!("server {lane}"),
    };
    shares(spans, |s| (s.party, s.lane)).into_iter().map(|(key, share)| (name(key), share)).collect()
}

/// The part of the wall time that the working spans of each key cover.
fn shares<K: Ord>(spans: &[Span], key: impl Fn(&Span) -> K) -> BTreeMap<K, f64> {
    let end = |s: &Span| s.start + s.duration;
    let wall = spans.iter().map(end).max().zip(spans.iter().map(|s| s.start).min());
    let wall = wall.map_or(0.0, |(end, start)| end.saturating_sub(start).as_secs_f64());
    let mut intervals: BTreeMap<K, Vec<(Duration, Duration)>> = BTreeMap::new();
    for span in spans.iter().filter(|s| !s.waiting && wall > 0.0) {
        intervals.entry(key(span)).or_default().push((span.start, end(span)));
    }
    intervals.into_iter().map(|(key, list)| (key, covered(list).as_secs_f64() / wall)).collect()
}

/// The spans as a Chrome trace (`chrome://tracing`, Perfetto): a process a party, a thread a lane. Tasks that ran side by side
/// on one resource are shown on as many threads as they need.
pub fn chrome_trace(spans: &[Span]) -> serde_json::Value {
    const LANES: [&str; 4] = ["setup", "he", "ot", "online"];
    let pid = |p: Party| if p == Party::Client { 1 } else { 2 };
    let mut events: Vec<serde_json::Value> = Vec::new();
    let mut name = |kind: &str, party: Party, tid: usize, name: &str| {
        let args = serde_json::json!({"name": name});
        events.push(serde_json::json!({"ph": "M", "name": kind, "pid": pid(party), "tid": tid, "args": args}));
    };
    for (party, own) in [(Party::Client, "client"), (Party::Server, "server")] {
        name("process_name", party, 0, own);
        LANES.iter().enumerate().for_each(|(tid, lane)| name("thread_name", party, tid, lane));
    }
    // Threads of tasks: whose, on what, until when it is taken.
    let mut rows: Vec<(Party, &str, Duration)> = Vec::new();
    let mut order: Vec<&Span> = spans.iter().collect();
    order.sort_by_key(|s| s.start);
    let mut tids = Vec::with_capacity(order.len());
    for s in &order {
        let tid = match LANES.iter().position(|lane| *lane == s.lane) {
            Some(tid) => tid,
            None => {
                let free = rows.iter().position(|r| (r.0, r.1) == (s.party, s.lane) && r.2 <= s.start);
                let row = free.unwrap_or_else(|| {
                    name("thread_name", s.party, LANES.len() + rows.len(), s.lane);
                    rows.push((s.party, s.lane, Duration::ZERO));
                    rows.len() - 1
                });
                rows[row].2 = s.start + s.duration;
                LANES.len() + row
            }
        };
        tids.push(tid);
    }
    events.extend(order.iter().zip(tids).map(|(s, tid)| {
        serde_json::json!({
            "ph": "X", "pid": pid(s.party), "tid": tid,
            "cat": if s.waiting { "wait" } else if s.is_task() { "task" } else { "work" },
            "name": if s.waiting { format!("wait: {}", s.name) } else { s.name.clone() },
            "ts": s.start.as_secs_f64() * 1e6, "dur": s.duration.as_secs_f64() * 1e6,
            "args": {
                "layer": s.layer, "bytes_up": s.bytes_up, "bytes_down": s.bytes_down, "held_bytes": s.held_bytes,
            },
        })
    }));
    serde_json::json!({"displayTimeUnit": "ms", "traceEvents": events})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(lane: &'static str, start: u64, ms: u64, waiting: bool) -> Span {
        Span {
            party: Party::Client,
            phase: Phase::Offline,
            lane,
            name: format!("{lane} {start}"),
            layer: None,
            start: Duration::from_millis(start),
            duration: Duration::from_millis(ms),
            bytes_up: 1,
            bytes_down: 0,
            held_bytes: 0,
            waiting,
        }
    }

    #[test]
    fn overlap_counts_work_only() {
        let spans = [span("he", 0, 100, false), span("ot", 0, 50, true), span("ot", 50, 50, false)];
        assert!((overlap(&spans) - 1.5).abs() < 1e-9);
        assert_eq!(overlap(&[]), 0.0);
    }

    #[test]
    fn tasks_count_once_beside_the_lane_that_waits_for_them() {
        let mut spans = vec![span("he", 0, 100, false), span("device", 0, 60, false), span("cpu", 50, 100, false)];
        spans.push(span("cpu", 50, 20, false));
        assert!((overlap(&spans) - 1.0).abs() < 1e-9, "the lane is busy for all of 150 ms");
        let busy = busy(&spans);
        let share = |lane: &str| (busy[lane] * 150.0).round();
        assert_eq!((share("client he"), share("client device"), share("client cpu")), (100.0, 60.0, 100.0));
        assert_eq!(busy.len(), 3);
    }

    #[test]
    fn tasks_side_by_side_get_threads_of_their_own() {
        let spans = [span("cpu", 0, 10, false), span("cpu", 5, 10, false), span("cpu", 12, 1, false)];
        let trace = chrome_trace(&spans);
        let events = trace["traceEvents"].as_array().unwrap();
        let tids: Vec<_> = events.iter().filter(|e| e["ph"] == "X").map(|e| e["tid"].as_u64().unwrap()).collect();
        assert_eq!(tids, [4, 5, 4]);
        assert_eq!(events.iter().filter(|e| e["ph"] == "M" && e["args"]["name"] == "cpu").count(), 2);
    }

    #[test]
    fn a_trace_names_processes_and_threads() {
        let trace = chrome_trace(&[span("he", 3, 4, false)]);
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.iter().filter(|e| e["ph"] == "M").count(), 10);
        let x = events.iter().find(|e| e["ph"] == "X").unwrap();
        assert_eq!((x["tid"].as_u64(), x["ts"].as_f64()), (Some(1), Some(3000.0)));
    }

    #[test]
    fn neighbours_merge() {
        let r = Recorder::default();
        let mut a = span("he", 0, 10, false);
        a.name = "same".into();
        let mut b = span("he", 10, 5, false);
        b.name = "same".into();
        r.add(a);
        r.add(b);
        r.add(span("he", 15, 5, false));
        let spans = r.take();
        assert_eq!(spans.len(), 2);
        assert_eq!((spans[0].duration.as_millis(), spans[0].bytes_up), (15, 2));
    }
}
