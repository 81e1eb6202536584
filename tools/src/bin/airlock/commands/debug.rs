//! `debug`: looks into a live sandbox.

#![forbid(unsafe_code)]

use crate::cli::{DebugArgs, StacksOf};
use crate::global::Global;
use crate::output;
use airlock::client::Airlock;
use airlock::state::State;
use airlock_wire::api::airlock::ProfileContainer;
use airlock_wire::api::container_manager as cm;
use airlock_wire::api::debug::{Stacks, StacksArgs};
use airlock_wire::api::logging::{Change, LogLevel, LoggingArgs};
use airlock_wire::api::profile::{self, ContainerProfileArgs};
use airlock_wire::client::Dialect;
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::method::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Does what the options ask for, in runsc's order. What fails ends the command.
pub fn run(global: &Global, args: DebugArgs) -> Result<ExitCode> {
    let target = Target::find(global.airlock()?, &args)?;
    let logging = logging(&args)?;
    if let Some(signal) = args.signal {
        target.signal(signal)?;
    }
    if let Some(of @ (StacksOf::True | StacksOf::All)) = args.stacks {
        let arg = StacksArgs { all: of == StacksOf::All, ..StacksArgs::default() };
        output::print(&target.call::<Stacks>(&arg, &[])?)?;
    }
    if let Some(change) = logging {
        target.call::<Change>(&change, &[])?;
    }
    if args.ps {
        output::print_json(&target.call::<cm::Processes>(&target.state.id.clone(), &[])?)?;
    }
    target.profile(&args)?;
    if let Some(mount) = &args.mount {
        target.mount(mount)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One profile being taken.
type Taking<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

struct Target {
    airlock: Airlock,
    state: State,
}

impl Target {
    fn find(airlock: Airlock, args: &DebugArgs) -> Result<Self> {
        let states = airlock.states();
        let state = match (&args.id, args.pid) {
            (Some(id), _) => states.load(id)?,
            (None, Some(pid)) => {
                let loaded = states.list()?.into_iter().filter_map(|id| states.load(&id).ok());
                loaded.into_iter().find(|s| s.loader.pid == pid && s.loader.is_alive()).ok_or_else(|| {
                    Error::no_such_entity(format!("no sandbox below --root has the process {pid}"))
                })?
            }
            (None, None) => return Err(Error::invalid_argument("name the container")),
        };
        Ok(Self { airlock, state })
    }

    fn call<M: Method>(&self, arg: &M::Arg, fds: &[BorrowedFd<'_>]) -> Result<M::Reply> {
        let states = self.airlock.states();
        let answered = states.connect(&self.state).and_then(|mut client| client.call::<M>(arg, fds));
        answered.map(|reply| reply.value).map_err(|e| states.or_ended(&self.state, e))
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let loader = &self.state.loader;
        if !loader.is_alive() {
            return Err(Error::invalid_state(format!("container {:?} is not running", self.state.id)));
        }
        let signal =
            if signal == 0 {
                None
            } else {
                let known = Signal::try_from(signal);
                Some(known.map_err(|_| {
                    Error::invalid_argument(format!("signal {signal} cannot be sent this way"))
                })?)
            };
        kill(Pid::from_raw(loader.pid), signal)
            .map_err(|e| Error::from(e).context(format!("signalling the sandbox process {}", loader.pid)))
    }

    /// Mounts an image, given as `IMAGE:PATH`.
    fn mount(&self, text: &str) -> Result<()> {
        let (image, path) = match text.rsplit_once(':') {
            Some((image, path)) if !image.is_empty() && path.starts_with('/') => (image, path),
            _ => {
                return Err(Error::invalid_argument(format!(
                    "--mount {text}: give IMAGE:PATH, the path absolute"
                )));
            }
        };
        let file =
            File::open(image).map_err(|e| Error::from(e).context(format!("open the image {image}")))?;
        let arg = serde_json::json!({
            "ContainerID": self.state.id, "Source": image, "Destination": path, "FsType": "erofs",
        });
        let mut client = self.airlock.connect(&self.state.id, Dialect::Json)?;
        let mounted = client.call_raw("containerManager.Mount", &arg, &[file.as_fd()]);
        mounted.map(drop).map_err(|e| e.context(format!("mount {image} at {path}")))
    }

    /// Takes the profiles that are asked for, all at the same time, each on a connection of its own.
    fn profile(&self, args: &DebugArgs) -> Result<()> {
        let duration = nanoseconds(args.duration);
        let (cpu, flame) = (&args.profile_cpu, &args.flamegraph);
        let mut kinds: Vec<(&str, Taking<'_>)> = Vec::new();
        if cpu.is_some() || flame.is_some() {
            let mut files = vec![create(cpu.as_deref().unwrap_or(Path::new("/dev/null")))?];
            files.extend(flame.as_deref().map(create).transpose()?);
            kinds.push(("--profile-cpu", Box::new(move || self.cpu(args, duration, &files))));
        } else if args.container {
            return Err(Error::invalid_argument("--container goes with --profile-cpu or --flamegraph"));
        }
        if let Some(path) = &args.profile_heap {
            let (file, arg) = (create(path)?, profile::HeapArgs { delay: nanoseconds(args.delay) });
            kinds.push(("--profile-heap", Box::new(move || self.to::<profile::Heap>(&arg, &file))));
        }
        if let Some(path) = &args.profile_block {
            let (file, arg) = (create(path)?, profile::BlockArgs { duration, rate: 0 });
            kinds.push(("--profile-block", Box::new(move || self.to::<profile::Block>(&arg, &file))));
        }
        if let Some(path) = &args.profile_mutex {
            let (file, arg) = (create(path)?, profile::MutexArgs { duration, fraction: 0 });
            kinds.push(("--profile-mutex", Box::new(move || self.to::<profile::Mutex>(&arg, &file))));
        }
        if let Some(path) = &args.trace {
            let (file, arg) = (create(path)?, profile::TraceArgs { duration });
            kinds.push(("--trace", Box::new(move || self.to::<profile::Trace>(&arg, &file))));
        }
        std::thread::scope(|scope| {
            let all: Vec<_> = kinds.into_iter().map(|(name, take)| (name, scope.spawn(take))).collect();
            let results = all.into_iter().map(|(name, thread)| {
                let panicked = |_| Err(Error::failure("a thread panicked"));
                thread.join().unwrap_or_else(panicked).map_err(|e| e.context(name))
            });
            // All of them are waited for: one that fails does not take the others with it.
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn to<M: Method>(&self, arg: &M::Arg, file: &File) -> Result<()> {
        self.call::<M>(arg, &[file.as_fd()]).map(drop).map_err(explained)
    }

    fn cpu(&self, args: &DebugArgs, duration: i64, files: &[File]) -> Result<()> {
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        if !args.container {
            return self
                .call::<profile::CPU>(&profile::CpuArgs { duration }, &fds)
                .map(drop)
                .map_err(explained);
        }
        let arg = ContainerProfileArgs { cid: self.state.id.clone(), duration, frequency: args.frequency };
        let sampled = self.call::<ProfileContainer>(&arg, &fds)?;
        let lost = if sampled.lost > 0 { format!(", {} lost", sampled.lost) } else { String::new() };
        eprintln!("{} samples of container {:?}{lost}", sampled.samples, self.state.id);
        Ok(())
    }
}

/// An error of a method that only sandboxes with `--profile` have.
fn explained(e: Error) -> Error {
    match e.kind {
        Kind::UnknownMethod => e.context(
            "this sandbox cannot be profiled: start it with the global option --profile ('airlock --profile run …'), or \
             profile its programs with --container",
        ),
        _ => e,
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|e| Error::from(e).context(format!("make {}", path.display())))
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// The changes of what is logged, if any are asked for.
fn logging(args: &DebugArgs) -> Result<Option<LoggingArgs>> {
    let mut change = LoggingArgs::default();
    if let Some(level) = &args.log_level {
        change.set_level = true;
        change.level = match level.as_str() {
            "0" => LogLevel::Warning,
            "1" => LogLevel::Info,
            "2" => LogLevel::Debug,
            name => LogLevel::from_name(name).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "--log-level: '{name}' is none of warning (0), info (1), debug (2)"
                ))
            })?,
        };
    }
    if let Some(on) = args.log_packets {
        (change.set_log_packets, change.log_packets) = (true, on);
    }
    match args.strace.as_deref().map(str::trim) {
        None => {}
        Some("off" | "none" | "") => change.set_strace = true,
        Some("all") => (change.set_strace, change.enable_strace) = (true, true),
        Some(names) => {
            (change.set_strace, change.enable_strace) = (true, true);
            let names = names.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned);
            change.strace_allowlist = Some(names.collect());
        }
    }
    Ok((change != LoggingArgs::default()).then_some(change))
}
