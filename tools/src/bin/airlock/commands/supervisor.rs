//! `supervisor`: domains of a sandbox and the processes in them.

#![forbid(unsafe_code)]

use crate::EXEC_FAILED;
use crate::cli::{SupervisorAction as Action, SupervisorArgs};
use crate::global::Global;
use crate::{logging, output};
use airlock::client::Airlock;
use airlock::console::{Foreground, SignalBlock};
use airlock::podspec::{Bundle, read_bounded};
use airlock::supervisor::{DefineOptions, Ending, Events, ExecFds, Supervisor};
use airlock_wire::api::supervisor::{
    ConfigureRequest, ExecRequest, Format, FreezeResponse, Logging, StopResponse, Topic,
};
use airlock_wire::error::{Error, Result};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A longer configuration is none.
const MAX_CONFIG: u64 = 1 << 20;

/// Runs one of the actions.
pub fn run(global: &Global, args: SupervisorArgs) -> Result<ExitCode> {
    check(&args)?;
    let airlock = global.airlock()?;
    if args.action == Action::Exec {
        // Any other status could be the process' own.
        return exec(&airlock, args).or_else(|e| {
            logging::report(Some(&global.args), &e);
            Ok(ExitCode::from(EXEC_FAILED))
        });
    }
    let supervisor = airlock.supervisor(&args.id)?;
    // The parser has made sure that they are there where they are needed.
    let (domain, name) =
        (args.domain.as_deref().unwrap_or_default(), args.name.as_deref().unwrap_or_default());
    match args.action {
        Action::Define => {
            let bundle = Bundle::load(args.bundle.as_deref().unwrap_or(Path::new("")))?;
            let options =
                DefineOptions { overlay: args.overlay2, systemd_cgroup: global.args.systemd_cgroup };
            supervisor.define(domain, &bundle, &options)?;
        }
        Action::Configure => {
            let request = configuration(args.config.as_deref().unwrap_or(Path::new("-")), domain)?;
            supervisor.configure(request, open_logs(&args.log_to)?)?;
        }
        Action::Start => supervisor.start(domain)?,
        Action::Stop => {
            let cycle_delta_metrics = supervisor.stop(domain, args.deadline)?;
            output::print_json_line(&StopResponse { cycle_delta_metrics })?;
        }
        Action::Freeze => {
            let cycle_delta_metrics = supervisor.freeze(domain)?;
            output::print_json_line(&FreezeResponse { cycle_delta_metrics })?;
        }
        Action::Thaw => supervisor.thaw(domain)?,
        Action::Exit => supervisor.exit()?,
        Action::Exec => {}
        Action::Terminate => supervisor.terminate(domain, name)?,
        Action::Kill => supervisor.kill(domain, name, args.deadline)?,
        Action::Events => {
            for event in supervisor.events(domain)? {
                output::print_json_line(&event?)?;
            }
        }
        Action::Ping => supervisor.ping()?,
        Action::Domains => output::print_json(&supervisor.domains()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses words that the action has no use for: they are a misunderstanding.
fn check(args: &SupervisorArgs) -> Result<()> {
    let (domain, name) = match args.action {
        Action::Exit | Action::Ping | Action::Domains => (false, false),
        Action::Exec | Action::Terminate | Action::Kill => (true, true),
        _ => (true, false),
    };
    let spare = match (&args.domain, &args.name, args.command.first()) {
        (_, _, Some(word)) if args.action != Action::Exec => word,
        (_, Some(word), _) if !name => word,
        (Some(word), ..) if !domain => word,
        _ => return Ok(()),
    };
    Err(Error::invalid_argument(format!(
        "'{spare}' is one word too many ('airlock supervisor --help' explains)"
    )))
}

/// Reads a ConfigureRequest; `-` stands for standard input.
fn configuration(path: &Path, domain: &str) -> Result<ConfigureRequest> {
    let bad = |what: String| Error::invalid_argument(format!("--config {}: {what}", path.display()));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        let mut stdin = std::io::stdin().lock().take(MAX_CONFIG);
        stdin.read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
        text
    } else {
        read_bounded(path).map_err(|e| e.context("--config"))?
    };
    // A list would be taken for the members in their order.
    if !text.trim_start().starts_with('{') {
        return Err(bad("not a JSON object".to_owned()));
    }
    let mut request: ConfigureRequest = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if request.domain.is_empty() {
        domain.clone_into(&mut request.domain);
    } else if request.domain != domain {
        return Err(bad(format!("it is for domain {:?}, not {domain:?}", request.domain)));
    }
    Ok(request)
}

fn open_logs(targets: &[(Topic, PathBuf)]) -> Result<Vec<(Topic, OwnedFd)>> {
    let open = |path: &Path| {
        if path == Path::new("-") {
            return std::io::stdout().as_fd().try_clone_to_owned();
        }
        OpenOptions::new().write(true).open(path).map(OwnedFd::from)
    };
    let open = |(topic, path): &(Topic, PathBuf)| match open(path) {
        Ok(fd) => Ok((*topic, fd)),
        Err(e) => Err(Error::from(e).context(format!("--log-to {}", path.display()))),
    };
    targets.iter().map(open).collect()
}

fn exec(airlock: &Airlock, args: SupervisorArgs) -> Result<ExitCode> {
    let supervisor = airlock.supervisor(&args.id)?;
    let (domain, name) = (args.domain.unwrap_or_default(), args.name.unwrap_or_default());
    let managed = args.log_config.unwrap_or_default();
    let logs_output = managed.formats.contains(&Format::Line);
    let mut command = args.command.into_iter();
    let env = args.env.iter().filter_map(|e| e.0.split_once('='));
    let request = ExecRequest {
        name: name.clone(),
        domain: domain.clone(),
        path: command.next().unwrap_or_default(),
        args: command.collect::<Vec<_>>().into(),
        cwd: args.cwd,
        env: Some(env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()),
        logging: Logging { managed },
        ..ExecRequest::default()
    };
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let extra = args.extra_fd.iter().map(|fd| airlock::inherited::duplicate(*fd));
    let extra = extra.collect::<Result<Vec<_>>>().map_err(|e| e.context("--extra-fd"))?;
    let fds = ExecFds {
        stdout: (!logs_output).then(|| stdout.as_fd()),
        stderr: (!logs_output).then(|| stderr.as_fd()),
        extra: extra.iter().map(AsFd::as_fd).collect(),
    };
    if args.detach {
        supervisor.exec(request, fds)?;
        return Ok(ExitCode::SUCCESS);
    }
    // From here on signals are for the process.
    let block = SignalBlock::forwardable()?;
    let events = supervisor.events(&domain)?;
    supervisor.exec(request, fds)?;
    let ending = wait(&supervisor, &domain, &name, events, Foreground::new(block, None)?)?;
    Ok(ExitCode::from(u8::try_from(ending.code()).unwrap_or(u8::MAX)))
}

/// Waits for the end of a process, while signals that would end this program terminate that one.
fn wait(
    supervisor: &Supervisor<'_>,
    domain: &str,
    name: &str,
    mut events: Events,
    foreground: Foreground,
) -> Result<Ending> {
    let (ended, end) = std::io::pipe().map_err(|e| Error::from(e).context("make a pipe"))?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            // Closed when it is over, however it came out.
            let _end = end;
            events.wait_for(domain, name, || supervisor.domains())
        });
        let terminate = |signal: i32| {
            if [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM].contains(&signal)
                && let Err(e) = supervisor.terminate(domain, name)
            {
                log::warn!("terminate {name}: {e}");
            }
        };
        foreground.wait(ended.as_fd(), terminate)?;
        waiter.join().map_err(|_| Error::failure("the thread that waits for events has a defect"))?
    })
}
