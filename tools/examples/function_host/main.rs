//! A host for functions, as AWS Lambda is one: runs Amazon's own Python runtime in a domain, freezes it between requests,
//! and starts instances from a snapshot that was taken behind the initialisation.
//!
//! ```text
//! pip install --target PACKAGES --only-binary :all: awslambdaric
//! cargo run --example function_host -- --packages PACKAGES '{"hello":"world"}' '{"do":"fail"}'
//! ```
//!
//! Needs root, and a Python that the packages are for. What is done is told on standard output, a JSON object a line; what the
//! function writes comes out on standard error.
//!
//! ```text
//! function_host (this program)                        host: opens, donates, invokes, measures
//!   │ JSON lines on stdin and stdout (link.rs)
//!   └─ sandbox
//!        ├─ parent domain: function_host --serve      the Runtime API on 127.0.0.1:9001 (runtime_api.rs, http.rs)
//!        └─ domain "function": python3 -m awslambdaric app.handler
//! ```

#![forbid(unsafe_code)]

mod bundle;
mod function;
mod http;
mod link;
mod logs;
mod runtime_api;
mod sandbox;
mod snapshot;

use airlock::client::Airlock;
use bundle::Files;
use clap::Parser;
use function::Function;
use sandbox::Host;
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Runs a Python function in a domain of a sandbox, as AWS Lambda does
#[derive(Debug, Parser)]
struct Options {
    /// Folder with the package awslambdaric ('pip install --target')
    #[arg(long, value_name = "DIR")]
    packages: PathBuf,
    /// Folder with the function's module
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/function_host/functions"))]
    function: PathBuf,
    /// The function, as MODULE.NAME
    #[arg(long, default_value = "app.handler")]
    handler: String,
    /// The Python interpreter, below /usr
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/python3")]
    python: String,
    /// The airlock program [default: the one that is built beside this]
    #[arg(long, value_name = "PATH")]
    airlock: Option<PathBuf>,
    /// State directory of airlock: what is left when this program is killed is found there
    #[arg(long, value_name = "DIR", default_value = "/run/airlock")]
    root: PathBuf,
    /// How many seconds an invocation may take
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    timeout: f64,
    /// How many instances are started from a snapshot afterwards
    #[arg(long, value_name = "N", default_value_t = 1)]
    instances: usize,
    /// Events to invoke the function with, one after the other
    #[arg(value_name = "EVENT", default_value = r#"{"hello":"world"}"#)]
    events: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((word, runtime)) if word == "--serve" => runtime_api::serve(runtime).map_err(Into::into),
        _ => run(&Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("function_host: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let timeout = Duration::try_from_secs_f64(options.timeout)?;
    let files = Files::new(&options.packages, &options.function, &options.python, &options.handler)?;
    let scratch = tempfile::tempdir()?;
    let host = Host {
        airlock: Airlock::open(&options.root)?,
        binary: options.airlock.clone().map_or_else(beside, Ok)?,
    };

    let (mut function, report) = Function::start(&host, &files, timeout)?;
    tell(report);
    tell(json!({ "step": "initialisation", "cycle_delta_metrics": function.freeze()? }));
    for event in &options.events {
        let begin = Instant::now();
        function.thaw()?;
        let thawed = begin.elapsed();
        let invoked = function.invoke(event)?;
        let begin = Instant::now();
        let metrics = function.freeze()?;
        let frozen = begin.elapsed();
        let (key, answer) = match invoked.answer {
            Ok(answer) => ("response", answer),
            Err(error) => ("error", error),
        };
        tell(json!({ "step": "invocation", "thaw_ms": ms(thawed), "invoke_ms": ms(invoked.took),
            "freeze_ms": ms(frozen), key: answer, "cycle_delta_metrics": metrics }));
    }
    tell(json!({ "step": "stop", "cycle_delta_metrics": function.stop()? }));

    if options.instances > 0 {
        let image = scratch.path().join("snapshot");
        snapshot::run(&host, &files, &image, &options.events[0], options.instances, timeout)?
            .into_iter()
            .for_each(tell);
    }
    Ok(())
}

/// `airlock` is in the folder above that of the examples.
fn beside() -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let binary = own.parent().and_then(Path::parent).unwrap_or(Path::new("")).join("airlock");
    if !binary.is_file() {
        return Err(format!(
            "there is no {}: 'cargo build --bin airlock', or --airlock PATH",
            binary.display()
        )
        .into());
    }
    Ok(binary)
}

fn tell(report: Value) {
    println!("{report}");
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// A name that no other sandbox of this program has.
fn id(what: &str) -> String {
    format!("function-host-{}-{what}", std::process::id())
}

/// A new request's id.
fn request_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("00000000-0000-4000-8000-{:012}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What a runtime answered: JSON as a rule.
fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
