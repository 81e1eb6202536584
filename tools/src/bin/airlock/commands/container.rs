//! `container …`: the container API, of `machine serve` or of a sandbox.

#![forbid(unsafe_code)]

use crate::cli::{
    ContainerCreateArgs, ContainerDestroyArgs, ContainerDetectArgs, ContainerEnterArgs, ContainerExecArgs,
    ContainerInitArgs, ContainerInitPidArgs, ContainerKillallArgs, ContainerListArgs, ContainerNotifyArgs,
    ContainerPauseArgs, ContainerResumeArgs, ContainerRunArgs, ContainerSpecArgs, ContainerStatsArgs,
    ContainerUpdateArgs, Listing, ServerArgs,
};
use crate::global::Global;
use crate::output;
use airlock::client::connect;
use airlock::machine::{SOCKET, exec_in};
use airlock::state::exit_code;
use airlock_wire::api::container as api;
use airlock_wire::api::container::api as of_all;
use airlock_wire::api::container::spec::{
    ContainerEmpty, EventSpec, FdPolicy, MemoryThreshold, OomEvent, RunSpec,
};
use airlock_wire::api::container::text::{MAX_TEXT, from_json_or_text, to_text};
use airlock_wire::api::container::{ContainerName, ListArgs, ListPolicy, Notification};
use airlock_wire::api::types::Json;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

fn client(global: &Global, server: &ServerArgs) -> Result<Client> {
    match (&server.sandbox, &server.socket) {
        (Some(id), _) => global.airlock()?.connect(id, Dialect::Binary),
        (None, Some(socket)) => connect(socket, Dialect::Binary),
        (None, None) => connect(&global.root.join(SOCKET), Dialect::Binary).map_err(|e| {
            e.context("no server of this machine's containers ('airlock machine serve' is one)")
        }),
    }
}

fn named(name: String) -> ContainerName {
    ContainerName { name }
}

const DONE: Result<ExitCode> = Ok(ExitCode::SUCCESS);

/// A message from the command line, standard input or a file.
fn message<T: DeserializeOwned>(spec: &str, file: Option<&Path>) -> Result<T> {
    let limit = MAX_TEXT as u64 + 1;
    let mut text = String::new();
    match (file, spec) {
        (Some(path), _) => {
            let read = std::fs::File::open(path).and_then(|f| f.take(limit).read_to_string(&mut text));
            read.map_err(|e| Error::from(e).context(format!("reading {}", path.display())))?;
        }
        (None, "-") => {
            let read = std::io::stdin().take(limit).read_to_string(&mut text);
            read.map_err(|e| Error::from(e).context("reading standard input"))?;
        }
        (None, spec) => spec.clone_into(&mut text),
    }
    from_json_or_text(&text)
}

fn print_message(message: &impl Serialize, json: bool) -> Result<ExitCode> {
    if json { output::print_json(message) } else { output::print(&to_text(message)?) }
        .map(|()| ExitCode::SUCCESS)
}

/// `init`
pub fn init(global: &Global, args: ContainerInitArgs) -> Result<ExitCode> {
    let spec = Json(message(&args.spec, None)?);
    client(global, &args.server)?.call::<of_all::InitMachine>(&spec, &[])?;
    DONE
}

/// `create`
pub fn create(global: &Global, args: ContainerCreateArgs) -> Result<ExitCode> {
    let spec = message(&args.spec, args.config.as_deref())?;
    let create = Json(of_all::CreateArgs { name: args.name, spec });
    client(global, &args.server)?.call::<of_all::Create>(&create, &[])?;
    DONE
}

/// `destroy`
pub fn destroy(global: &Global, args: ContainerDestroyArgs) -> Result<ExitCode> {
    client(global, &args.server)?.call::<of_all::Destroy>(&named(args.name), &[])?;
    DONE
}

/// `list`
pub fn list(global: &Global, args: ContainerListArgs) -> Result<ExitCode> {
    let mut client = client(global, &args.server)?;
    let policy = if args.recursive { ListPolicy::ListRecursive } else { ListPolicy::ListSelf };
    let list = ListArgs { name: args.name, policy };
    let ids = match args.what {
        Listing::Pids => client.call::<api::ListProcesses>(&list, &[])?.value,
        Listing::Threads => client.call::<api::ListThreads>(&list, &[])?.value,
        Listing::Containers => {
            let names = client.call::<api::ListSubcontainers>(&list, &[])?.value;
            let own = client.call::<of_all::Get>(&named(list.name), &[])?.value.name;
            let prefix = if own == "/" { own } else { own + "/" };
            let shown = |name: String| match name.strip_prefix(&prefix) {
                Some(relative) if !args.absolute => relative.to_owned(),
                _ => name,
            };
            return output::print(&lines(names.into_iter().map(shown))).map(|()| ExitCode::SUCCESS);
        }
    };
    output::print(&lines(ids.iter())).map(|()| ExitCode::SUCCESS)
}

fn lines(items: impl Iterator<Item = impl std::fmt::Display>) -> String {
    items.map(|item| format!("{item}\n")).collect()
}

/// `run`
pub fn run(global: &Global, args: ContainerRunArgs) -> Result<ExitCode> {
    let mut client = client(global, &args.server)?;
    let policy = if args.no_wait { FdPolicy::Detached } else { FdPolicy::Inherit };
    // Files and environment of a sandbox are its own.
    let elsewhere = args.server.sandbox.is_some() || {
        let named = ContainerName { name: args.name.clone() };
        client.call::<api::Spec>(&named, &[])?.value.0.virtual_host.is_some()
    };
    let (mut cwd, mut env) = (String::new(), Vec::new());
    if !elsewhere {
        cwd = std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default();
        env = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    }
    let run = Json(api::RunArgs {
        name: args.name,
        command: args.command,
        spec: RunSpec { fd_policy: Some(policy), ..RunSpec::default() },
        env,
        cwd,
    });
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let donated = if args.no_wait { &[][..] } else { &streams[..] };
    let pid = client.call::<api::Run>(&run, donated)?.value.pid;
    if args.no_wait {
        return output::print(&format!("{pid}\n")).map(|()| ExitCode::SUCCESS);
    }
    let status = client.call::<api::Wait>(&api::WaitArgs { pid }, &[])?.value;
    Ok(ExitCode::from(u8::try_from(exit_code(status.cast_signed())).unwrap_or(u8::MAX)))
}

/// `exec`
pub fn exec(global: &Global, args: ContainerExecArgs) -> Result<ExitCode> {
    let mut client = client(global, &args.server)?;
    Err(exec_in(&mut client, &args.name, &args.command))
}

/// `enter`
pub fn enter(global: &Global, args: ContainerEnterArgs) -> Result<ExitCode> {
    let mut tids = args.tids;
    if tids.is_empty() {
        tids.push(nix::unistd::getppid().as_raw());
    }
    client(global, &args.server)?.call::<api::Enter>(&api::EnterArgs { name: args.name, tids }, &[])?;
    DONE
}

/// `detect`
pub fn detect(global: &Global, args: ContainerDetectArgs) -> Result<ExitCode> {
    let found =
        client(global, &args.server)?.call::<of_all::Detect>(&of_all::DetectArgs { tid: args.tid }, &[])?;
    output::print(&format!("{}\n", found.value.name)).map(|()| ExitCode::SUCCESS)
}

/// `update`
pub fn update(global: &Global, args: ContainerUpdateArgs) -> Result<ExitCode> {
    let policy = if args.replace { api::UpdatePolicy::UpdateReplace } else { api::UpdatePolicy::UpdateDiff };
    let spec = message(&args.spec, args.config.as_deref())?;
    let update = Json(api::UpdateArgs { name: args.name, spec, policy });
    client(global, &args.server)?.call::<api::Update>(&update, &[])?;
    DONE
}

/// `killall`
pub fn killall(global: &Global, args: ContainerKillallArgs) -> Result<ExitCode> {
    client(global, &args.server)?.call::<api::KillAll>(&named(args.name), &[])?;
    DONE
}

/// `pause`
pub fn pause(global: &Global, args: ContainerPauseArgs) -> Result<ExitCode> {
    client(global, &args.server)?.call::<api::Pause>(&named(args.name), &[])?;
    DONE
}

/// `resume`
pub fn resume(global: &Global, args: ContainerResumeArgs) -> Result<ExitCode> {
    client(global, &args.server)?.call::<api::Resume>(&named(args.name), &[])?;
    DONE
}

/// `stats`
pub fn stats(global: &Global, args: ContainerStatsArgs) -> Result<ExitCode> {
    let (kind, name) = match args.words.as_slice() {
        [name] => (api::StatsType::StatsSummary, name),
        [kind, name] if kind == "summary" => (api::StatsType::StatsSummary, name),
        [kind, name] if kind == "full" => (api::StatsType::StatsFull, name),
        _ => return Err(Error::invalid_argument("stats: give 'summary' or 'full', and a container")),
    };
    let stats = api::StatsArgs { name: name.clone(), kind };
    let Json(found) = client(global, &args.server)?.call::<api::Stats>(&stats, &[])?.value;
    print_message(&found, args.json)
}

/// `spec`
pub fn spec(global: &Global, args: ContainerSpecArgs) -> Result<ExitCode> {
    let Json(found) = client(global, &args.server)?.call::<api::Spec>(&named(args.name), &[])?.value;
    print_message(&found, args.json)
}

/// The event that words name, and the container.
fn event(words: &[String]) -> Result<(EventSpec, String)> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut spec = EventSpec::default();
    let name = match words.as_slice() {
        ["memory", "oom", name] => {
            spec.oom = Some(OomEvent {});
            name
        }
        ["memory", "threshold", name, bytes] => {
            let usage = bytes
                .parse()
                .map_err(|_| Error::invalid_argument(format!("{bytes:?} is no number of bytes")))?;
            spec.memory_threshold = Some(MemoryThreshold { usage: Some(usage) });
            name
        }
        ["empty", name] => {
            spec.container_empty = Some(ContainerEmpty {});
            name
        }
        _ => {
            return Err(Error::invalid_argument(
                "notify: give 'memory oom NAME', 'memory threshold NAME BYTES' or 'empty NAME'",
            ));
        }
    };
    Ok((spec, (*name).to_owned()))
}

/// `notify`
pub fn notify(global: &Global, args: ContainerNotifyArgs) -> Result<ExitCode> {
    let (spec, name) = event(&args.words)?;
    let (reader, writer) = std::io::pipe()?;
    let register = Json(api::RegisterArgs { name, spec });
    client(global, &args.server)?.call::<api::RegisterNotification>(&register, &[writer.as_fd()])?;
    drop(writer);
    for line in BufReader::new(reader).lines() {
        let line = line?;
        output::print(&(line.clone() + "\n"))?;
        let record: Notification = serde_json::from_str(&line)
            .map_err(|e| Error::failure(format!("a record of the server: {e}")))?;
        if record.status != "OK" {
            return DONE;
        }
    }
    Err(Error::failure("the server has ended, and with it the notification"))
}

/// `init-pid`
pub fn init_pid(global: &Global, args: ContainerInitPidArgs) -> Result<ExitCode> {
    let pid = client(global, &args.server)?.call::<api::GetInitPid>(&named(args.name), &[])?.value;
    output::print(&format!("{pid}\n")).map(|()| ExitCode::SUCCESS)
}
