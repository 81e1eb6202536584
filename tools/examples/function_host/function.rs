//! A function in a domain: what Lambda does with one between its cold start and its end.

use super::bundle::{Files, USER};
use super::link::{News, Order};
use super::logs;
use super::sandbox::{Answer, Host, PATIENCE, Sandbox};
use airlock::supervisor::{DefineOptions, Ending, ExecFds, Supervisor};
use airlock_wire::api::supervisor::{
    CgroupProfile, CgroupProfiles, ConfigureRequest, CycleDeltaMetrics, Deadline, EventType, ExecRequest,
    ExecUser, Format, Logging, ManagedLogging, ProfileName, Topic,
};
use serde_json::{Value, json};
use std::error::Error;
use std::time::{Duration, Instant};

/// The domain that the function runs in.
const DOMAIN: &str = "function";
/// How long a runtime may take to be initialised, as in Lambda.
const INITIALISATION: Duration = Duration::from_secs(10);
/// How long killed processes may take to end.
const KILL: Duration = Duration::from_secs(5);
/// What the function may use at once.
const MEMORY: u64 = 256 << 20;

/// A function that is there to be invoked.
pub struct Function<'a> {
    sandbox: Sandbox<'a>,
    supervisor: Supervisor<'a>,
    environment: Vec<(String, String)>,
    command: Vec<String>,
    timeout: Duration,
    /// How many runtimes there have been: their names are numbers.
    runtimes: u32,
    /// The last of them lives and is initialised.
    initialised: bool,
}

/// How an invocation went.
#[derive(Debug)]
pub struct Invoked {
    /// The result, or else the error, both as JSON.
    pub answer: Result<Value, Value>,
    /// From the request to the answer, without thawing.
    pub took: Duration,
}

impl<'a> Function<'a> {
    /// Boots a sandbox with the Runtime API, makes a domain in it, and has the function initialised there. The report tells how
    /// long each took.
    pub fn start(host: &'a Host, files: &Files, timeout: Duration) -> Result<(Self, Value), Box<dyn Error>> {
        let begin = Instant::now();
        let server = files.bundle(&files.server(&[]), &[])?;
        let mut sandbox = Sandbox::boot(host, &crate::id("function"), &server)?;
        let booted = begin.elapsed();

        let supervisor = host.airlock.supervisor(&sandbox.id)?;
        supervisor.define(DOMAIN, &files.bundle(&files.runtime, &[])?, &DefineOptions::default())?;
        let profile = |cpu_limit| CgroupProfile { cpu_limit, memory_limit_bytes: MEMORY };
        let request = ConfigureRequest {
            domain: DOMAIN.to_owned(),
            // All the machine has while the function is initialised, its share from the first thaw on.
            cgroup_profiles: Some(CgroupProfiles { throttled: profile(0.5), unthrottled: profile(0.0) }),
            start_profile: ProfileName::Unthrottled,
            exec_user: Some(ExecUser { uid: Some(USER.0), gid: Some(USER.1) }),
            ..ConfigureRequest::default()
        };
        let (logs, log) = std::io::pipe()?;
        std::thread::spawn(move || logs::print(logs));
        supervisor.configure(request, vec![(Topic::Runtime, log.into())])?;
        supervisor.start(DOMAIN)?;
        watch(&supervisor, &mut sandbox)?;
        let started = begin.elapsed();

        let mut function = Self {
            sandbox,
            supervisor,
            environment: files.environment(&[("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")]),
            command: files.runtime.clone(),
            timeout,
            runtimes: 0,
            initialised: false,
        };
        let outcome = function.initialise()?;
        let report = json!({ "step": "cold start", "sandbox_ms": crate::ms(booted),
            "domain_ms": crate::ms(started - booted), "initialise_ms": crate::ms(begin.elapsed() - started),
            "error": outcome.err() });
        Ok((function, report))
    }

    fn runtime(&self) -> String {
        format!("runtime-{}", self.runtimes)
    }

    /// Executes a new runtime and waits until it asks for work; what it says if it cannot be initialised is the inner error.
    fn initialise(&mut self) -> Result<Result<(), Value>, Box<dyn Error>> {
        self.runtimes += 1;
        let name = self.runtime();
        let (program, arguments) = self.command.split_first().ok_or("no runtime")?;
        let request = ExecRequest {
            name: name.clone(),
            domain: DOMAIN.to_owned(),
            path: program.clone(),
            args: arguments.to_vec().into(),
            cwd: Some("/var/task".to_owned()),
            env: Some(self.environment.iter().cloned().collect()),
            logging: Logging {
                managed: ManagedLogging {
                    topic: Topic::Runtime,
                    formats: vec![Format::Message, Format::Line].into(),
                },
            },
            ..ExecRequest::default()
        };
        self.supervisor.exec(request, ExecFds::default())?;
        let (until, mut said) = (Instant::now() + INITIALISATION, None);
        loop {
            match self.sandbox.hear(until)? {
                Some(News::Idle) => {
                    self.initialised = true;
                    return Ok(Ok(()));
                }
                Some(News::InitError { body, .. }) => said = Some(crate::json_or_text(&body)),
                Some(News::Ended { name: ended, status }) if ended == name => {
                    self.reset()?;
                    return Ok(Err(said.unwrap_or_else(|| exit_error("", &status))));
                }
                Some(_) => {}
                None => {
                    self.kill()?;
                    let error = json!({ "errorType": "Sandbox.Timedout",
                        "errorMessage": format!("Init timed out after {} seconds", INITIALISATION.as_secs()) });
                    return Ok(Err(said.unwrap_or(error)));
                }
            }
        }
    }

    /// Hands an event to the function, in a new runtime if the last one has ended. The domain must not be frozen.
    pub fn invoke(&mut self, event: &str) -> Result<Invoked, Box<dyn Error>> {
        let begin = Instant::now();
        let answer = self.answer(event)?;
        let took = begin.elapsed();
        // The runtime may have things to do between its answer and its next request.
        let until = Instant::now() + PATIENCE;
        while self.initialised {
            match self.sandbox.hear(until)? {
                Some(News::Idle) => break,
                Some(News::Ended { name, .. }) if name == self.runtime() => self.reset()?,
                Some(_) => {}
                None => self.kill()?,
            }
        }
        Ok(Invoked { answer, took })
    }

    fn answer(&mut self, event: &str) -> Result<Result<Value, Value>, Box<dyn Error>> {
        if !self.initialised
            && let Err(error) = self.initialise()?
        {
            return Ok(Err(error));
        }
        let (id, runtime) = (crate::request_id(), self.runtime());
        Ok(match self.sandbox.invoke(&runtime, &id, event, self.timeout)? {
            Answer::Result(text) => Ok(crate::json_or_text(&text)),
            Answer::Error(text) => Err(crate::json_or_text(&text)),
            Answer::Ended(status) => {
                self.reset()?;
                Err(exit_error(&id, &status))
            }
            Answer::Late => {
                self.kill()?;
                let seconds = self.timeout.as_secs_f64();
                Err(json!({ "errorType": "Sandbox.Timedout",
                    "errorMessage": format!("RequestId: {id} Error: Task timed out after {seconds:.2} seconds") }))
            }
        })
    }

    /// Freezes the domain until the next request.
    pub fn freeze(&self) -> Result<CycleDeltaMetrics, Box<dyn Error>> {
        Ok(self.supervisor.freeze(DOMAIN)?)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<(), Box<dyn Error>> {
        Ok(self.supervisor.thaw(DOMAIN)?)
    }

    /// Ends the function, and with it the sandbox.
    pub fn stop(self) -> Result<CycleDeltaMetrics, Box<dyn Error>> {
        Ok(self.supervisor.stop(DOMAIN, Deadline::after(KILL))?)
    }

    /// Ends a runtime that does not answer.
    fn kill(&mut self) -> Result<(), Box<dyn Error>> {
        self.supervisor.kill(DOMAIN, &self.runtime(), Deadline::after(KILL))?;
        self.reset()
    }

    /// Has the Runtime API forget a runtime that has ended.
    fn reset(&mut self) -> Result<(), Box<dyn Error>> {
        self.initialised = false;
        self.sandbox.tell(&Order::Reset)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.sandbox.hear(until)? {
                Some(News::ResetDone) => return Ok(()),
                Some(_) => {}
                None => return Err("the Runtime API does not answer".into()),
            }
        }
    }
}

/// What Lambda tells of a runtime that ended in the midst of its work.
fn exit_error(id: &str, status: &str) -> Value {
    let how = match status {
        "exit status 0" => "Runtime exited without providing a reason".to_owned(),
        status => format!("Runtime exited with error: {status}"),
    };
    json!({ "errorType": "Runtime.ExitError", "errorMessage": format!("RequestId: {id} Error: {how}") })
}

/// Tells the ends of runtimes among what the server tells.
fn watch(supervisor: &Supervisor<'_>, sandbox: &mut Sandbox<'_>) -> Result<(), Box<dyn Error>> {
    let events = supervisor.events(DOMAIN)?;
    let teller = sandbox.teller.take().ok_or("watched twice")?;
    std::thread::spawn(move || {
        for event in events.map_while(Result::ok) {
            let event = event.event;
            if event.kind != EventType::ProcessTermination {
                eprintln!("events were lost: {event:?}");
                continue;
            }
            let ending = event.exit_status.map(Ending::Exited).or(event.signo.map(Ending::Signaled));
            let (Some(name), Some(ending)) = (event.name, ending) else { continue };
            if teller.send(News::Ended { name, status: ending.to_string() }).is_err() {
                return;
            }
        }
    });
    Ok(())
}
