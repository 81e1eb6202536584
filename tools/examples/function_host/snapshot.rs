//! SnapStart: a function is initialised once and saved; instances begin behind its initialisation.
//!
//! What is saved is a sandbox whose root container holds all: the Runtime API and, as its child, the runtime.

use super::bundle::Files;
use super::link::{News, OWN, Order};
use super::sandbox::{Answer, Host, Sandbox};
use airlock::container::checkpoint::CheckpointOptions;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// Initialises the function, saves it to `image`, makes `instances` of it, and invokes each with `event`. Returns a
/// report of each step.
pub fn run(
    host: &Host,
    files: &Files,
    image: &Path,
    event: &str,
    instances: usize,
    timeout: Duration,
) -> Result<Vec<Value>, Box<dyn Error>> {
    let environment = files.environment(&[("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")]);
    let bundle = files.bundle(&files.server(&files.runtime), &environment)?;
    let mut reports = Vec::new();

    let begin = Instant::now();
    let template = Sandbox::boot(host, &crate::id("template"), &bundle)?;
    template.expect(&News::ReadyForSnapshot)?;
    let initialised = begin.elapsed();
    let report = host.airlock.checkpoint(&template.id, image, &CheckpointOptions::default())?;
    drop(template);
    reports.push(json!({ "step": "snapshot", "initialise_ms": crate::ms(initialised),
        "save_ms": crate::ms(begin.elapsed() - initialised), "bytes": report.bytes, "processes": report.processes }));

    for number in 1..=instances {
        let begin = Instant::now();
        let mut instance = Sandbox::restore(host, &crate::id(&format!("instance{number}")), &bundle, image)?;
        instance.tell(&Order::Restored)?;
        instance.expect(&News::Idle)?;
        let restored = begin.elapsed();
        let answer = instance.invoke(OWN, &crate::request_id(), event, timeout)?;
        let done = begin.elapsed();
        // It stands still between requests, as a whole.
        instance.expect(&News::Idle)?;
        host.airlock.pause(&instance.id)?;
        host.airlock.resume(&instance.id)?;
        let second = instance.invoke(OWN, &crate::request_id(), event, timeout)?;
        reports.push(json!({ "step": "instance", "restore_ms": crate::ms(restored),
            "restore_to_first_response_ms": crate::ms(done),
            "response": result(answer)?, "second_response": result(second)? }));
    }
    Ok(reports)
}

fn result(answer: Answer) -> Result<Value, Box<dyn Error>> {
    match answer {
        Answer::Result(text) => Ok(crate::json_or_text(&text)),
        other => Err(format!("the restored function answered {other:?}").into()),
    }
}
