//! A session: programs in the kernel, the ring that they fill, and the sinks that it is emptied into.
#![forbid(unsafe_code)]

use super::afterwards::{Afterwards, Found};
use super::bpf::{self, Btf, Kernel, Maps, Scope, record};
use super::config::{Plan, plan};
use super::event::Event;
use super::message::{Known, Start, Teller};
use super::sink::Sink;
use super::strace;
use crate::procfs::ProcFs;
use crate::sys::tracing::{self, MapKind, Ring};
use airlock_wire::api::trace::SessionConfig;
use airlock_wire::error::{Error, Kind, Result};
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of the ring; they count as memory of the sandbox.
const RING: usize = 4 << 20;
/// Containers of a sandbox that a session knows at a time.
const MAX_CONTAINERS: u32 = 4096;
/// Records after which [`Session::tell`] lets the caller do something else.
pub const AT_ONCE: usize = 4096;

/// A session that runs.
#[derive(Debug)]
pub struct Session {
    ring: Ring,
    /// Shared with the programs.
    maps: Shared,
    /// The programs, and what keeps them attached.
    programs: Vec<(OwnedFd, OwnedFd)>,
    teller: Teller,
    /// Looks up what the programs cannot note, if that is wanted.
    afterwards: Option<Afterwards>,
    sinks: Vec<Sink>,
    /// Records that the programs could not leave, as far as the sinks have been told.
    missed: u64,
    /// When the machine was booted, in nanoseconds since 1970.
    epoch: i64,
}

#[derive(Debug)]
struct Shared {
    containers: OwnedFd,
    dropped: OwnedFd,
}

impl Session {
    /// Begins. Descriptors are those of the sinks, in their order; `procfs` is of the sandbox. Containers have their cgroups in the hierarchy of v2,
    /// or in v1's freezer.
    ///
    /// # Errors
    /// As [`plan`]; `creating event sink: …`; `trace sessions need …`.
    pub fn begin(
        config: &SessionConfig,
        descriptors: Vec<Option<OwnedFd>>,
        containers: Vec<Known>,
        v2: bool,
        procfs: &ProcFs,
    ) -> Result<Self> {
        /// Files whose hashes are remembered unless the session says otherwise, and at most.
        const HASHES: usize = 1024;
        const MAX_HASHES: usize = 65_536;
        let (plan, kinds) = plan(config)?;
        let mut descriptors = descriptors.into_iter();
        let mut sinks = Vec::new();
        for (kind, config) in kinds.iter().zip(&*config.sinks) {
            match Sink::new(kind, descriptors.next().flatten()) {
                Ok(sink) => sinks.push(sink),
                Err(e) if config.ignore_setup_error => log::warn!("sink {:?}: {e}", config.name),
                Err(e) => return Err(e),
            }
        }
        let asked = config.options.map_or(0, |options| options.execve_hash_cache_capacity);
        let capacity = usize::try_from(asked).ok().filter(|n| *n > 0).unwrap_or(HASHES).min(MAX_HASHES);
        let afterwards = Afterwards::new(&plan, procfs, capacity)?;
        Ok(Self { afterwards, ..Self::watching(plan, sinks, containers, v2)? })
    }

    /// Begins one that writes the system calls with these numbers into a log. Containers as in [`Session::begin`].
    ///
    /// # Errors
    /// `trace sessions need …`.
    pub fn strace(calls: &BTreeSet<u32>, log: OwnedFd, containers: Vec<Known>, v2: bool) -> Result<Self> {
        Self::watching(strace::plan(calls), vec![Sink::log(log)], containers, v2)
    }

    fn watching(plan: Plan, sinks: Vec<Sink>, containers: Vec<Known>, v2: bool) -> Result<Self> {
        watch(plan, sinks, containers, v2).map_err(|e| match e.kind {
            Kind::Permission | Kind::Unsupported => Error::unsupported(format!(
                "trace sessions need BPF with the kernel's types (CONFIG_BPF_SYSCALL, CONFIG_DEBUG_INFO_BTF, Linux 5.15), \
                 and CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN in the initial user namespace: {e}"
            )),
            _ => e.context("setting up tracing in the kernel"),
        })
    }

    /// Readable when something happened; see [`Ring::ready`].
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ring.ready()
    }

    /// Tells the sinks what has happened, up to a limit. Returns how many events that were. Blocks as long as the sinks'
    /// retries take.
    pub fn tell(&mut self) -> usize {
        self.set_epoch();
        let epoch = self.epoch;
        let (teller, sinks, mut left) = (&self.teller, &mut self.sinks, AT_ONCE);
        let afterwards = &mut self.afterwards;
        let listens = sinks.iter().any(Sink::listens);
        let told = self.ring.drain(|bytes| {
            left -= 1;
            if listens && let Some(event) = Event::parse(bytes) {
                let found = match afterwards {
                    Some(afterwards) => afterwards.look(&event, teller.init(event.container)),
                    None => Found::default(),
                };
                for message in teller.tell(&event, &found, epoch) {
                    sinks.iter_mut().for_each(|sink| sink.tell(&message));
                }
            }
            left > 0
        });
        self.count_missed();
        self.sinks.iter_mut().for_each(Sink::flush);
        told
    }

    /// Takes note of a container.
    ///
    /// # Errors
    /// There are too many.
    pub fn know(&mut self, container: Known) -> Result<()> {
        tracing::set(
            self.maps.containers.as_fd(),
            &container.cgroup.to_ne_bytes(),
            &container.number.to_ne_bytes(),
        )
        .map_err(|e| Error::from(e).context(format!("tracing container {:?}", container.cid)))?;
        self.teller.know(container);
        Ok(())
    }

    /// Forgets a container.
    pub fn forget(&mut self, number: u32) {
        if let Some(cgroup) = self.teller.forget(number) {
            // It may never have got there.
            let _ = tracing::remove(self.maps.containers.as_fd(), &cgroup.to_ne_bytes());
        }
    }

    /// A container is about to start.
    pub fn start(&mut self, start: &Start) {
        self.set_epoch();
        let now = clock(ClockId::CLOCK_BOOTTIME) as u64;
        if let Some(message) = self.teller.start(start, now, self.epoch) {
            self.sinks.iter_mut().for_each(|sink| sink.tell(&message));
            self.sinks.iter_mut().for_each(Sink::flush);
        }
    }

    /// What each sink did not get.
    pub fn dropped(&self) -> Vec<u64> {
        self.sinks.iter().map(Sink::dropped).collect()
    }

    /// Stops looking, and tells what has happened until then.
    pub fn end(mut self) {
        // What is left is finite now.
        self.count_missed();
        self.programs.clear();
        while self.tell() > 0 {}
    }

    /// One moment is to be told as one number, so that the small difference between two readings of clocks does not count;
    /// a clock that was set does.
    fn set_epoch(&mut self) {
        const SAME: u64 = 10_000_000;
        let now = epoch();
        if now.abs_diff(self.epoch) > SAME {
            self.epoch = now;
        }
    }

    /// Counts for every sink what the programs could not leave.
    fn count_missed(&mut self) {
        let missed = tracing::get(self.maps.dropped.as_fd(), 0).unwrap_or(0)
            + self
                .programs
                .iter()
                .filter_map(|(p, _)| tracing::recursion_misses(p.as_fd()).ok())
                .sum::<u64>();
        let new = missed.saturating_sub(self.missed);
        if new > 0 {
            self.missed = missed;
            self.sinks.iter_mut().for_each(|sink| sink.miss(new));
        }
    }
}

/// Loads and attaches what the plan needs.
fn watch(plan: Plan, sinks: Vec<Sink>, containers: Vec<Known>, v2: bool) -> Result<Session> {
    let btf =
        Btf::parse(&tracing::kernel_types().map_err(|e| Error::from(e).context("the kernel's types"))?)?;
    let kernel = Kernel::new(&btf)?;
    let (level, program) = bpf::survey(&kernel)?;
    let (ring_size, entries) = (RING as u32, bpf::SYSCALLS);
    let maps = Maps {
        containers: tracing::create_map(MapKind::Hash, 8, 4, MAX_CONTAINERS)?,
        ring: tracing::create_map(MapKind::RingBuffer, 0, 0, ring_size)?,
        dropped: tracing::create_map(MapKind::Array, 4, 8, 1)?,
        syscalls: tracing::create_map(MapKind::Array, 4, bpf::ENTRY as u32, entries)?,
    };
    for (number, entry) in plan.syscalls() {
        tracing::set(maps.syscalls.as_fd(), &number.to_ne_bytes(), &entry.encode())?;
    }
    let ring = Ring::new(maps.ring.try_clone()?, RING)?;
    let shared = Shared { containers: maps.containers.try_clone()?, dropped: maps.dropped.try_clone()? };
    let (needs, probes) = (plan.needs(), plan.probes());
    let mut session = Session {
        ring,
        maps: shared,
        programs: Vec::new(),
        teller: Teller::new(plan),
        afterwards: None,
        sinks,
        missed: 0,
        epoch: epoch(),
    };
    for container in containers {
        session.know(container)?;
    }
    for probe in probes {
        session.programs.push(bpf::assemble(
            probe,
            &btf,
            &kernel,
            &maps,
            Scope { level, program, v2 },
            needs,
        )?);
    }
    Ok(session)
}

fn clock(id: ClockId) -> i64 {
    // These clocks are always there.
    clock_gettime(id).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// When the machine was booted, in nanoseconds since 1970.
fn epoch() -> i64 {
    clock(ClockId::CLOCK_REALTIME) - clock(ClockId::CLOCK_BOOTTIME)
}

/// A record never is longer than the ring.
const _: () = assert!(RING > record::ROOM as usize);
