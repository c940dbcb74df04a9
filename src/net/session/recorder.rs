//! What ran when: spans of every lane of both parties, for progress, reports and traces.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

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
    /// `setup`, `he`, `ot`, `online`.
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
    /// Whether the lane waited for its peer or for another lane instead of computing.
    pub waiting: bool,
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

    /// Adds a span; neighbours of one lane with the same name are merged.
    pub fn add(&self, span: Span) {
        let mut spans = self.inner.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |s: &Span| s.party == span.party && s.lane == span.lane;
        if let Some(last) = spans.iter_mut().rev().find(|s| same(s))
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

/// Busy time of all lanes over the wall time they cover: above 1 where work overlapped.
pub fn overlap(spans: &[Span]) -> f64 {
    let busy: f64 = spans.iter().filter(|s| !s.waiting).map(|s| s.duration.as_secs_f64()).sum();
    let start = spans.iter().map(|s| s.start).min();
    let end = spans.iter().map(|s| s.start + s.duration).max();
    match (start, end) {
        (Some(start), Some(end)) if end > start => busy / (end - start).as_secs_f64(),
        _ => 0.0,
    }
}

/// The spans as a Chrome trace (`chrome://tracing`, Perfetto): a process a party, a thread a lane.
pub fn chrome_trace(spans: &[Span]) -> serde_json::Value {
    let pid = |p: Party| if p == Party::Client { 1 } else { 2 };
    let tid = |lane: &str| match lane {
        "setup" => 0,
        "he" => 1,
        "ot" => 2,
        _ => 3,
    };
    let mut events: Vec<serde_json::Value> = Vec::new();
    for (party, name) in [(Party::Client, "client"), (Party::Server, "server")] {
        events.push(serde_json::json!({"ph": "M", "name": "process_name", "pid": pid(party), "args": {"name": name}}));
        for lane in ["setup", "he", "ot", "online"] {
            let args = serde_json::json!({"name": lane});
            events.push(serde_json::json!({"ph": "M", "name": "thread_name", "pid": pid(party), "tid": tid(lane), "args": args}));
        }
    }
    events.extend(spans.iter().map(|s| {
        serde_json::json!({
            "ph": "X", "pid": pid(s.party), "tid": tid(s.lane),
            "cat": if s.waiting { "wait" } else { "work" },
            "name": if s.waiting { format!("wait: {}", s.name) } else { s.name.clone() },
            "ts": s.start.as_secs_f64() * 1e6, "dur": s.duration.as_secs_f64() * 1e6,
            "args": {"layer": s.layer, "bytes_up": s.bytes_up, "bytes_down": s.bytes_down},
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
