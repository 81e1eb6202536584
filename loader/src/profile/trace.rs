//! What the loader did, in the order of time: its calls, its threads, its containers. As JSON in the Trace Event Format, which
//! chrome://tracing and <https://ui.perfetto.dev> show.
#![forbid(unsafe_code)]

use super::own::{Named, Unnamed, functions, look};
use crate::loader::{Event, Loader};
use airlock_wire::error::Result;
use airlock_wire::observe::{Calls, Seen};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Most things that are recorded; what comes later is left out.
const MOST: usize = 1 << 20;

/// What a thread did from one time to another.
#[derive(Debug)]
struct Span {
    tid: i32,
    from: Duration,
    length: Duration,
    /// What it waited for; `None` when it ran.
    wait: Option<Vec<usize>>,
}

/// A recording.
#[derive(Debug)]
pub struct Trace {
    begun: Instant,
    threads: BTreeMap<i32, String>,
    spans: Vec<Span>,
    calls: Vec<Seen>,
    events: Vec<(Duration, Event)>,
}

/// Records for `duration`, or until `stop` says so. Blocks for that time.
///
/// # Errors
/// The threads cannot be listed.
pub fn record(loader: &Loader, duration: Duration, stop: impl Fn() -> bool) -> Result<Trace> {
    let (calls, events) = (Calls::watch(), loader.subscribe());
    let begun = Instant::now();
    let mut trace =
        Trace { begun, threads: BTreeMap::new(), spans: Vec::new(), calls: Vec::new(), events: Vec::new() };
    // The last span of each thread.
    let mut last: BTreeMap<i32, usize> = BTreeMap::new();
    look(loader.procfs(), duration, stop, |thread, passed| {
        let from = begun.elapsed().saturating_sub(passed);
        let room = trace.spans.len() < MOST;
        match last.get(&thread.tid).filter(|_| !thread.changed).and_then(|i| trace.spans.get_mut(*i)) {
            Some(span) => span.length = begun.elapsed().saturating_sub(span.from),
            None if room => {
                last.insert(thread.tid, trace.spans.len());
                let wait = thread.wait.map(<[usize]>::to_vec);
                trace.spans.push(Span { tid: thread.tid, from, length: passed, wait });
            }
            None => {}
        }
        trace.threads.insert(thread.tid, thread.name);
        trace.events.extend(events.try_iter().map(|event| (begun.elapsed(), event)));
        let room = MOST.saturating_sub(trace.calls.len());
        trace.calls.extend(calls.ended().take(room));
    })?;
    trace.events.extend(events.try_iter().map(|event| (begun.elapsed(), event)));
    trace.calls.extend(calls.ended());
    Ok(trace)
}

impl Unnamed for Trace {
    fn addresses(&self) -> BTreeSet<usize> {
        self.spans.iter().filter_map(|s| s.wait.as_ref()).flatten().copied().collect()
    }
}

impl Trace {
    /// The recording as JSON; times are microseconds since its begin.
    pub fn to_json(&self, names: &Named) -> String {
        let pid = std::process::id();
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let since = |time: Instant| micros(time.saturating_duration_since(self.begun));
        let mut all: Vec<Value> =
            vec![json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": "airlock-loader"}})];
        let named = |(tid, name): (&i32, &String)| json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}});
        all.extend(self.threads.iter().map(named));
        all.extend(self.spans.iter().map(|span| {
            let stack = span.wait.as_ref().map(|stack| functions(names, stack, &["backtrace::on_signal"], 1));
            let stack: Vec<String> = stack.unwrap_or_default().into_iter().map(|f| f.name).collect();
            let name = match (&span.wait, stack.first()) {
                (None, _) => "runs".to_owned(),
                (Some(_), Some(inner)) => format!("waits in {inner}"),
                (Some(_), None) => "waits".to_owned(),
            };
            json!({"ph": "X", "cat": "thread", "name": name, "ts": micros(span.from), "dur": micros(span.length),
                "pid": pid, "tid": span.tid, "args": {"stack": stack}})
        }));
        all.extend(self.calls.iter().map(|call| {
            json!({"ph": "X", "cat": "call", "name": call.method, "ts": since(call.begin),
                "dur": since(call.end) - since(call.begin), "pid": pid, "tid": call.thread,
                "args": {"failed": call.failed}})
        }));
        all.extend(self.events.iter().map(|(at, event)| {
            let (name, args) = match event {
                Event::Started { cid } => ("container started", json!({"id": cid})),
                Event::Exited { cid, status } => ("container ended", json!({"id": cid, "wait status": status})),
            };
            json!({"ph": "i", "s": "p", "cat": "container", "name": name, "ts": micros(*at), "pid": pid, "tid": pid,
                "args": args})
        }));
        json!({"traceEvents": all, "displayTimeUnit": "ms"}).to_string()
    }
}
