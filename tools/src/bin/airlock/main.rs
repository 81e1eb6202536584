//! The `airlock` command line: what container engines expect of an OCI runtime, and what people need to try and to
//! debug sandboxes.

#![forbid(unsafe_code)]

mod argv;
mod cli;
mod commands;
mod global;
mod logging;
mod output;
mod progress;
mod values;

/// The system's, and in sandboxes that are to be profiled one that remembers.
#[global_allocator]
static HEAP: airlock_loader::sys::heap::Allocator = airlock_loader::sys::heap::Allocator;

use airlock_wire::error::{Error, Result};
use argv::Tail;
use clap::{Args, CommandFactory, FromArgMatches};
use cli::{Cli, GlobalArgs};
use global::Global;
use std::ffi::OsString;
use std::process::ExitCode;

/// Exit status of `exec` when the program could not be started: any other could be the program's own.
const EXEC_FAILED: u8 = 255;

/// Exit status of `statefile` when an image cannot be read: 1 says that it is damaged, or not as another.
const UNREADABLE: u8 = 2;

/// The OCI runtime specification that `--version` and `features` name.
const OCI_VERSION: &str = "1.2.1";

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    words.next();
    let words: Vec<OsString> = words.collect();
    // The internal commands are started with every sandbox: nothing may come before them.
    match words.first().and_then(|word| word.to_str()) {
        Some("boot") => return commands::boot::run(&words[1..]),
        Some("proxy") => return commands::proxy::run(&words[1..]),
        _ => {}
    }
    airlock::inherited::snapshot();
    std::panic::set_hook(Box::new(|info| {
        let error = Error::failure(format!("airlock has a defect and stops: {info}"));
        logging::report(None, &error);
    }));
    let globals = GlobalArgs::augment_args(clap::Command::new("airlock"));
    let mut parsed = None;
    let mut failed = 1;
    match run(&globals, words, &mut parsed, &mut failed) {
        Ok(code) => code,
        Err(error) => {
            logging::report(parsed.as_ref(), &error);
            ExitCode::from(failed)
        }
    }
}

/// Runs the command that `words` name. Leaves the global options in `parsed` as soon as they are known, so that an
/// error finds its log, and the exit status for an error in `failed`.
fn run(
    globals: &clap::Command,
    words: Vec<OsString>,
    parsed: &mut Option<GlobalArgs>,
    failed: &mut u8,
) -> Result<ExitCode> {
    let split = argv::split(globals, words)?;
    if split.version {
        return version();
    }
    let Some(command) = split.command.as_ref().map(|c| c.to_string_lossy().into_owned()) else {
        if split.help {
            return help(&[]);
        }
        return Err(Error::invalid_argument("no command given; 'airlock --help' lists all"));
    };
    if split.help {
        return help(&[OsString::from(command)]);
    }
    let args: GlobalArgs = parse(globals.clone(), split.globals)?;
    *parsed = Some(args.clone());
    match command.as_str() {
        "exec" => *failed = EXEC_FAILED,
        "statefile" => *failed = UNREADABLE,
        _ => {}
    }
    dispatch(globals, &command, args, split.rest)
}

/// Builds the parser of the one command that is asked for, parses, and runs it.
fn dispatch(
    globals: &clap::Command,
    command: &str,
    global_args: GlobalArgs,
    rest: Vec<OsString>,
) -> Result<ExitCode> {
    macro_rules! command {
        ($name:literal, $module:ident, $args:ident, $tail:expr) => {
            command!($name, $module::run, $args, $tail)
        };
        ($name:literal, $module:ident::$run:ident, $args:ident, $tail:expr) => {{
            let parser =
                cli::$args::augment_args(clap::Command::new($name)).bin_name(concat!("airlock ", $name));
            let rest = argv::normalise(&parser, globals, rest, $tail)?;
            match try_parse::<cli::$args>(parser, rest)? {
                Parsed::Args(args) => {
                    logging::init(&global_args, $name)?;
                    let global = Global::new(global_args)?;
                    log::debug!(
                        "{} {}: state directory {}",
                        $name,
                        env!("CARGO_PKG_VERSION"),
                        global.root.display()
                    );
                    commands::$module::$run(&global, args)
                }
                Parsed::Help(text) => output::print(&text).map(|()| ExitCode::SUCCESS),
            }
        }};
    }
    match command {
        "do" => command!("do", do_, DoArgs, Tail::After(0)),
        "run" => command!("run", run, RunArgs, Tail::None),
        "create" => command!("create", create, CreateArgs, Tail::None),
        "start" => command!("start", start, StartArgs, Tail::None),
        "state" => command!("state", state, StateArgs, Tail::None),
        "list" => command!("list", list, ListArgs, Tail::None),
        "ps" => command!("ps", ps, PsArgs, Tail::Ps),
        "exec" => command!("exec", exec, ExecArgs, Tail::After(1)),
        "kill" => command!("kill", kill, KillArgs, Tail::None),
        "delete" => command!("delete", delete, DeleteArgs, Tail::None),
        "wait" => command!("wait", wait, WaitArgs, Tail::None),
        "pause" => command!("pause", pause, PauseArgs, Tail::None),
        "fscheckpoint" => command!("fscheckpoint", fscheckpoint, FscheckpointArgs, Tail::None),
        "mount" => command!("mount", mount, MountArgs, Tail::None),
        "umount" => command!("umount", umount, UmountArgs, Tail::None),
        "read" => command!("read", read, ReadArgs, Tail::None),
        "tar" => command!("tar", tar, TarArgs, Tail::None),
        "port-forward" => command!("port-forward", port_forward, PortForwardArgs, Tail::None),
        "resume" => command!("resume", resume, ResumeArgs, Tail::None),
        "checkpoint" => command!("checkpoint", checkpoint, CheckpointArgs, Tail::None),
        "restore" => command!("restore", restore, RestoreArgs, Tail::None),
        "fork" => command!("fork", fork, ForkArgs, Tail::None),
        "events" => command!("events", events, EventsArgs, Tail::None),
        "trace" => command!("trace", trace, TraceArgs, Tail::None),
        "supervisor" => command!("supervisor", supervisor, SupervisorArgs, Tail::After(4)),
        "top" => command!("top", top, TopArgs, Tail::None),
        "debug" => command!("debug", debug, DebugArgs, Tail::None),
        "update" => command!("update", update, UpdateArgs, Tail::None),
        "spec" => command!("spec", spec, SpecArgs, Tail::After(0)),
        "features" => command!("features", features, FeaturesArgs, Tail::None),
        "statefile" => command!("statefile", statefile, StatefileArgs, Tail::None),
        "usage" => command!("usage", usage, UsageArgs, Tail::None),
        "read-control" => command!("read-control", read_control, ReadControlArgs, Tail::None),
        "write-control" => command!("write-control", write_control, WriteControlArgs, Tail::None),
        "export-metrics" | "metric-export" => {
            command!("export-metrics", export_metrics, ExportMetricsArgs, Tail::None)
        }
        "metric-metadata" => command!("metric-metadata", metric_metadata, MetricMetadataArgs, Tail::None),
        "metric-server" => command!("metric-server", metric_server, MetricServerArgs, Tail::None),
        "container" | "machine" => of_group(globals, command, global_args, rest),
        "container init" => command!("container init", container::init, ContainerInitArgs, Tail::None),
        "container create" => {
            command!("container create", container::create, ContainerCreateArgs, Tail::None)
        }
        "container destroy" => {
            command!("container destroy", container::destroy, ContainerDestroyArgs, Tail::None)
        }
        "container list" => command!("container list", container::list, ContainerListArgs, Tail::None),
        "container run" => command!("container run", container::run, ContainerRunArgs, Tail::After(1)),
        "container exec" => command!("container exec", container::exec, ContainerExecArgs, Tail::After(1)),
        "container enter" => command!("container enter", container::enter, ContainerEnterArgs, Tail::None),
        "container detect" => {
            command!("container detect", container::detect, ContainerDetectArgs, Tail::None)
        }
        "container update" => {
            command!("container update", container::update, ContainerUpdateArgs, Tail::None)
        }
        "container killall" => {
            command!("container killall", container::killall, ContainerKillallArgs, Tail::None)
        }
        "container pause" => command!("container pause", container::pause, ContainerPauseArgs, Tail::None),
        "container resume" => {
            command!("container resume", container::resume, ContainerResumeArgs, Tail::None)
        }
        "container stats" => command!("container stats", container::stats, ContainerStatsArgs, Tail::None),
        "container spec" => command!("container spec", container::spec, ContainerSpecArgs, Tail::None),
        "container notify" => {
            command!("container notify", container::notify, ContainerNotifyArgs, Tail::None)
        }
        "container init-pid" => {
            command!("container init-pid", container::init_pid, ContainerInitPidArgs, Tail::None)
        }
        "machine serve" => command!("machine serve", machine, MachineServeArgs, Tail::None),
        "call" => command!("call", call, CallArgs, Tail::None),
        "completions" => command!("completions", completions, CompletionsArgs, Tail::None),
        "man" => command!("man", man, ManArgs, Tail::None),
        "help" => help(&rest),
        "version" => version(),
        other => {
            let tree = Cli::command();
            let names = tree.get_subcommands().map(clap::Command::get_name);
            let hint = match argv::near(other, names).as_slice() {
                [] => "'airlock --help' lists all".to_owned(),
                found => format!("did you mean {}?", found.join(" or ")),
            };
            Err(Error::invalid_argument(format!("unknown command '{other}': {hint}")))
        }
    }
}

/// Runs the command of a group (`container`) that the words begin with.
fn of_group(
    globals: &clap::Command,
    group: &str,
    global_args: GlobalArgs,
    mut words: Vec<OsString>,
) -> Result<ExitCode> {
    let tree = Cli::command();
    let names: Vec<&str> = tree
        .find_subcommand(group)
        .map_or_else(Vec::new, |group| group.get_subcommands().map(clap::Command::get_name).collect());
    let first = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    match first.as_str() {
        "-h" | "--help" | "-help" | "help" => help(&[OsString::from(group)]),
        name if names.contains(&name) => {
            words.remove(0);
            dispatch(globals, &format!("{group} {name}"), global_args, words)
        }
        other => Err(Error::invalid_argument(format!(
            "{group}: {other:?} is none of its commands, which are {}",
            names.join(", ")
        ))),
    }
}

/// What a command's words came to.
enum Parsed<T> {
    /// Its options.
    Args(T),
    /// They ask for help, which is this.
    Help(String),
}

fn try_parse<T: FromArgMatches>(parser: clap::Command, words: Vec<OsString>) -> Result<Parsed<T>> {
    let name = parser.get_bin_name().unwrap_or("airlock").to_owned();
    let parser = parser.no_binary_name(true).args_override_self(true);
    let result = parser.try_get_matches_from(words).and_then(|matches| T::from_arg_matches(&matches));
    match result {
        Ok(args) => Ok(Parsed::Args(args)),
        Err(e) if e.kind() == clap::error::ErrorKind::DisplayHelp => Ok(Parsed::Help(e.to_string())),
        Err(e) => {
            let wrong = usage_message(&e.to_string());
            Err(Error::invalid_argument(format!("{wrong} ('{name} --help' explains)")))
        }
    }
}

fn parse<T: FromArgMatches>(parser: clap::Command, words: Vec<OsString>) -> Result<T> {
    match try_parse(parser, words)? {
        Parsed::Args(args) => Ok(args),
        Parsed::Help(_) => Err(Error::invalid_argument("help is not an option here")),
    }
}

/// The parser's explanation as one line: what is wrong, without the usage that follows.
fn usage_message(rendered: &str) -> String {
    let wrong = rendered.split("\n\nUsage:").next().unwrap_or(rendered);
    let wrong = wrong.split("\n\nFor more information").next().unwrap_or(wrong);
    logging::one_line(wrong.strip_prefix("error: ").unwrap_or(wrong))
}

fn version() -> Result<ExitCode> {
    let commit = option_env!("AIRLOCK_COMMIT").unwrap_or("unknown");
    let text =
        format!("airlock version {}\ncommit: {commit}\nspec: {OCI_VERSION}\n", env!("CARGO_PKG_VERSION"));
    output::print(&text).map(|()| ExitCode::SUCCESS)
}

/// Help of airlock, or of the command that `words` begin with.
fn help(words: &[OsString]) -> Result<ExitCode> {
    let mut tree = Cli::command();
    tree.build();
    let text = match words.first() {
        None => tree.render_long_help().to_string(),
        Some(name) => {
            let name = name.to_string_lossy();
            let command = tree.find_subcommand_mut(&*name).ok_or_else(|| {
                Error::invalid_argument(format!("unknown command '{name}': 'airlock --help' lists all"))
            })?;
            command.render_long_help().to_string()
        }
    };
    output::print(&text).map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
