//! `Profile`: of the loader itself, only in a sandbox that was booted for it; and `Airlock.ProfileContainer`.

use crate::debug;
use airlock_loader::loader::Loader;
use airlock_loader::profile::own::{self, Heap, LOOK_EVERY, Stacks, Waits};
use airlock_loader::profile::{pprof, trace};
use airlock_loader::worker::{CpuProfile, Sampled};
use airlock_wire::Call;
use airlock_wire::api::airlock::ProfileContainer;
use airlock_wire::api::profile::{self as api, Block, CPU, ContainerProfileArgs, Goroutine, Mutex, Trace};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::method::Method;
use airlock_wire::registry::Registry;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{self, Arc, PoisonError};
use std::time::{Duration, Instant};

/// Samples a second of processor time when nobody says how many: not what programs do at regular times.
const FREQUENCY: u32 = 99;
/// Processor time between two samples of the loader; gVisor's profiles of itself have the same.
const OWN_PERIOD: Duration = Duration::from_millis(10);

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<ProfileContainer>(move |call, args| container(&l, call, &args));
    if !loader.can_be_profiled() {
        return;
    }
    on::<CPU>(registry, loader, 2, |loader, call, args, files| {
        let duration = Duration::from_nanos(nanoseconds(args.duration));
        let cpu = own::cpu(OWN_PERIOD, duration, || call.client_gone())?;
        let names = own::names(loader, &cpu)?;
        let mut files = files.into_iter();
        files.next().map_or(Ok(()), |file| write_profile(cpu.profile(&names), file))?;
        let title = format!("airlock: sandbox process of {}", loader.id());
        files.next().map_or(Ok(()), |file| write(file, &cpu.flame(&names, &title)))
    });
    on::<api::Heap>(registry, loader, 1, |loader, call, args, files| {
        let until = Instant::now() + Duration::from_nanos(nanoseconds(args.delay));
        while !call.client_gone() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        write_stacks(loader, &Heap::now(), files)
    });
    on::<Block>(registry, loader, 1, |loader, call, args, files| {
        waits(loader, call, Waits::All, args.duration, files)
    });
    on::<Mutex>(registry, loader, 1, |loader, call, args, files| {
        waits(loader, call, Waits::Locks, args.duration, files)
    });
    on::<Trace>(registry, loader, 1, |loader, call, args, files| {
        let duration = Duration::from_nanos(nanoseconds(args.duration));
        let trace = trace::record(loader, duration, || call.client_gone())?;
        let json = trace.to_json(&own::names(loader, &trace)?);
        files.into_iter().try_for_each(|file| write(file, &json))
    });
    on::<Goroutine>(registry, loader, 1, |loader, _, _, files| {
        let text = debug::own_threads(loader)?;
        files.into_iter().try_for_each(|file| write(file, &text))
    });
}

/// Registers one kind of profile of the loader: one call at a time, the others wait; nothing is done without a file, and
/// `most` files may come.
fn on<M: Method<Reply = Empty> + 'static>(
    registry: &mut Registry,
    loader: &Arc<Loader>,
    most: usize,
    profile: impl Fn(&Loader, &Call<'_>, M::Arg, Vec<OwnedFd>) -> Result<()> + Send + Sync + 'static,
) {
    let (loader, turn) = (loader.clone(), sync::Mutex::new(()));
    registry.on::<M>(move |call, args| {
        let files = call.take_fds();
        if files.is_empty() {
            return Ok(Empty {});
        }
        check(&files, most)?;
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        profile(&loader, call, args, files).map(|()| Empty {})
    });
}

fn container(loader: &Loader, call: &mut Call<'_>, args: &ContainerProfileArgs) -> Result<api::Sampled> {
    let (container, _) = loader.running(&args.cid)?;
    let files = call.take_fds();
    if files.is_empty() {
        return Err(Error::invalid_argument(
            "no file came for the profile: donate one, and a second one for a flame graph",
        ));
    }
    check(&files, 2)?;
    let task = CpuProfile {
        pids: loader.pids_of(&container)?,
        duration: nanoseconds(args.duration),
        frequency: if args.frequency == 0 { FREQUENCY } else { args.frequency },
        flame: (files.len() > 1).then(|| format!("container {}", args.cid)),
    };
    let Sampled { samples, lost } = sample(loader, call, task, &files)?;
    Ok(api::Sampled { samples, lost })
}

/// Has a worker sample. Ends without a profile when the client hangs up.
fn sample(loader: &Loader, call: &Call<'_>, task: CpuProfile, files: &[OwnedFd]) -> Result<Sampled> {
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let ((), _, working) = loader.work(task, &fds)?;
    call.wait_readable(working.channel.as_fd())?;
    working.finish()
}

fn waits(loader: &Loader, call: &Call<'_>, which: Waits, duration: i64, files: Vec<OwnedFd>) -> Result<()> {
    let duration = Duration::from_nanos(nanoseconds(duration));
    let waited = own::waits(loader.procfs(), which, duration, || call.client_gone())?;
    write_stacks(loader, &waited, files)
}

fn write_stacks(loader: &Loader, stacks: &impl Stacks, files: Vec<OwnedFd>) -> Result<()> {
    let profile = stacks.profile(&own::names(loader, stacks)?);
    files.into_iter().next().map_or(Ok(()), |file| write_profile(profile, file))
}

fn write_profile(profile: pprof::Profile, file: OwnedFd) -> Result<()> {
    profile.write(File::from(file)).map_err(not_written)
}

fn write(file: OwnedFd, text: &str) -> Result<()> {
    File::from(file).write_all(text.as_bytes()).map_err(not_written)
}

fn not_written(e: std::io::Error) -> Error {
    Error::from(e).context("writing the profile")
}

/// Negative durations are over at once, as in Go.
fn nanoseconds(duration: i64) -> u64 {
    u64::try_from(duration).unwrap_or(0)
}

/// Before a profile of minutes is taken: can it be written?
fn check(files: &[OwnedFd], most: usize) -> Result<()> {
    if files.len() > most {
        return Err(Error::invalid_argument(format!(
            "{} files came, at most {most} can be used",
            files.len()
        )));
    }
    for file in files {
        let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_PATH) || flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            return Err(Error::new(
                Kind::InvalidArgument,
                "the file for the profile is not open for writing",
            ));
        }
    }
    Ok(())
}
