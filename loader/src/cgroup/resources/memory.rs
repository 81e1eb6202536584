//! Memory and swap limits.
#![forbid(unsafe_code)]

use crate::cgroup::files::{Files, explain, number, set};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use oci_spec::runtime::LinuxMemory;

/// A limit as the spec gives it: 0 is "not given", negative is "no limit".
fn given(limit: Option<i64>) -> Option<i64> {
    limit.filter(|n| *n != 0).map(|n| n.max(-1))
}

/// Limits that the kernel dropped: they are accepted and do nothing, as in runc.
#[allow(deprecated)]
fn note_obsolete(memory: &LinuxMemory) {
    if given(memory.kernel()).is_some() {
        log::debug!("linux.resources.memory.kernel is ignored: the kernel dropped kernel memory limits");
    }
    if memory.use_hierarchy() == Some(false) {
        log::debug!(
            "linux.resources.memory.useHierarchy is ignored: the kernel accounts hierarchically always"
        );
    }
}

/// Whether something is given that v1 writes to the memory hierarchy.
pub(super) fn any_v1(memory: &LinuxMemory) -> bool {
    given(memory.limit()).or(given(memory.swap())).or(given(memory.reservation())).is_some()
        || memory.swappiness().is_some()
        || memory.disable_oom_killer() == Some(true)
}

/// `checkBeforeUpdate`: refuses a limit below what is in use.
fn check_usage(files: &dyn Files, memory: &LinuxMemory, file: &str) -> Result<()> {
    let Some(limit) = given(memory.limit()).and_then(|l| u64::try_from(l).ok()) else { return Ok(()) };
    if memory.check_before_update() == Some(true) {
        let usage = number(files, file)?;
        if usage >= limit {
            return Err(Error::invalid_state(format!(
                "memory limit {limit} is below the {usage} bytes in use, and checkBeforeUpdate asks to refuse that"
            )));
        }
    }
    Ok(())
}

/// Sets the v1 limit; says how much is in use when that is why it fails.
fn set_limit_v1(files: &dyn Files, file: &str, limit: i64) -> Result<()> {
    match files.write(file, &limit.to_string()) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => {
            let usage = number(files, "memory.usage_in_bytes").unwrap_or_default();
            Err(Error::new(
                Kind::InvalidState,
                format!(
                    "cgroup: writing {limit} to {file}: {usage} bytes are in use and cannot be reclaimed; raise the \
                     limit or stop processes"
                ),
            ))
        }
        Err(e) => Err(explain(&format!("writing {limit} to {file}"), file, e)),
    }
}

/// v1 memory. `memsw` must never be below `limit`, so the order depends on the direction of the change.
///
/// # Errors
/// The kernel's refusal, naming file and value; a swappiness above 100.
pub fn v1(files: &dyn Files, memory: &LinuxMemory) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    note_obsolete(memory);
    check_usage(files, memory, "memory.usage_in_bytes")?;
    let limit = given(memory.limit());
    let mut swap = given(memory.swap());
    if limit == Some(-1) && swap.is_none() && files.exists(SWAP) {
        // No limit on memory is only possible without one on memory and swap together.
        swap = Some(-1);
    }
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap >= 0
        && (limit < 0 || swap < limit)
    {
        return Err(Error::invalid_argument(format!(
            "linux.resources.memory.swap {swap} counts memory and swap together: it must not be below limit {limit}"
        )));
    }
    match (limit, swap) {
        (Some(limit), Some(swap)) => {
            let now = number(files, LIMIT)?;
            if u64::try_from(swap).is_ok_and(|swap| swap <= now) {
                set_limit_v1(files, LIMIT, limit)?;
                set_limit_v1(files, SWAP, swap)?;
            } else {
                set_limit_v1(files, SWAP, swap)?;
                set_limit_v1(files, LIMIT, limit)?;
            }
        }
        (Some(limit), None) => set_limit_v1(files, LIMIT, limit)?,
        (None, Some(swap)) => set_limit_v1(files, SWAP, swap)?,
        (None, None) => {}
    }
    if let Some(reservation) = given(memory.reservation()) {
        set(files, "memory.soft_limit_in_bytes", reservation)?;
    }
    if let Some(tcp) = given(memory.kernel_tcp()) {
        // Deprecated in 6.12; absent without CONFIG_MEMCG_V1.
        match files.write("memory.kmem.tcp.limit_in_bytes", &tcp.to_string()) {
            Ok(()) => {}
            Err(e) => log::debug!("linux.resources.memory.kernelTCP is ignored: {}", e.desc()),
        }
    }
    match memory.swappiness() {
        None => {}
        Some(n) if n <= 100 => set(files, "memory.swappiness", n)?,
        Some(n) => {
            return Err(Error::invalid_argument(format!(
                "linux.resources.memory.swappiness is {n}: it goes from 0 to 100"
            )));
        }
    }
    if memory.disable_oom_killer() == Some(true) {
        set(files, "memory.oom_control", 1)?;
    }
    Ok(())
}

/// The v2 swap limit, which counts swap alone, of the spec's, which counts memory and swap together. `None`: leave
/// it.
///
/// # Errors
/// [`Kind::InvalidArgument`] for a sum without a memory limit, or below it.
pub fn swap_alone(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    match (given(limit), given(swap)) {
        (Some(-1), None) | (_, Some(-1)) => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (Some(limit), Some(swap)) if limit >= 0 && swap >= limit => Ok(Some((swap - limit).to_string())),
        (None | Some(-1), Some(swap)) => Err(Error::invalid_argument(format!(
            "linux.resources.memory.swap {swap} counts memory and swap together: it needs a limit as well"
        ))),
        (Some(limit), Some(swap)) => Err(Error::invalid_argument(format!(
            "linux.resources.memory.swap {swap} counts memory and swap together: it must not be below limit {limit}"
        ))),
    }
}

/// v2 memory.
///
/// # Errors
/// The kernel's refusal; swappiness and `disableOOMKiller`, which v2 does not have.
pub fn v2(files: &dyn Files, memory: &LinuxMemory) -> Result<()> {
    note_obsolete(memory);
    if memory.swappiness().is_some() {
        return Err(Error::unsupported(
            "linux.resources.memory.swappiness: cgroup v2 has no swappiness of its own; leave it out",
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(Error::unsupported(
            "linux.resources.memory.disableOOMKiller: cgroup v2 cannot switch the OOM killer off; leave it out",
        ));
    }
    check_usage(files, memory, "memory.current")?;
    if let Some(swap) = swap_alone(memory.limit(), memory.swap())? {
        match files.write("memory.swap.max", &swap) {
            Ok(()) => {}
            // A kernel without swap accounting: no swap is what it gives anyway, and it cannot limit it.
            Err(Errno::ENOENT) if swap == "max" || swap == "0" => {}
            Err(e) => {
                return Err(explain(&format!("writing {swap:?} to memory.swap.max"), "memory.swap.max", e));
            }
        }
    }
    let text = |n: i64| if n < 0 { "max".to_owned() } else { n.to_string() };
    if let Some(limit) = given(memory.limit()) {
        set(files, "memory.max", text(limit))?;
    }
    if let Some(reservation) = given(memory.reservation()) {
        set(files, "memory.low", text(reservation))?;
    }
    Ok(())
}
