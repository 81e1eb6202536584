//! What the OCI runtime spec demands of a configuration before anything is made for it.
//!
//! Every item is honoured, ignored because the spec says so, or refused by name: an error begins with the JSON path
//! of what it is about. `docs/OCI.md` lists them all. Nothing here looks at the machine but [`validate_host`], so
//! that a sandbox can check what it is given, too. What only the kernel or the container's image can tell (whether
//! an id is mapped, a program exists, a limit is accepted) is told by them, later.
#![forbid(unsafe_code)]

mod host;
mod linux;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod sysctl;

pub use host::validate_host;

use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{Hook, LinuxIdMapping, LinuxNamespaceType, Process, Spec};
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest host and domain name (`__NEW_UTS_LEN` of the kernel).
const MAX_UTS_NAME: usize = 64;

/// Checks what the OCI runtime spec 1.2, and the additions of 1.3, demand of a configuration.
///
/// Sections for other platforms (`windows`, `solaris`, `vm`, `zos`) are ignored. Does not block.
///
/// # Errors
/// [`airlock_wire::error::Kind::InvalidArgument`] for what makes no sense and
/// [`airlock_wire::error::Kind::Unsupported`] for what airlock or the machine cannot do, each with the JSON path.
pub fn validate(spec: &Spec) -> Result<()> {
    version(spec.version())?;
    match spec.process() {
        Some(process) => validate_process(process)?,
        None => return Err(invalid("process", "is missing: a container needs a program to run")),
    }
    match spec.root() {
        Some(root) => path_text("root.path", root.path())?,
        None => return Err(invalid("root", "is missing: a container needs a root filesystem")),
    }
    let linux = spec.linux().as_ref();
    let namespaces = namespaces::check(linux)?;
    for (name, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            uts_name(name, value)?;
            if !namespaces.has(LinuxNamespaceType::Uts) {
                return Err(invalid(name, "unable to set it without a private UTS namespace"));
            }
        }
    }
    mounts::check(spec.mounts().as_deref().unwrap_or_default(), &namespaces)?;
    hooks(spec)?;
    for (key, value) in spec.annotations().iter().flatten() {
        if key.is_empty() {
            return Err(invalid("annotations", "a key is empty"));
        }
        text(format_args!("annotations[{key:?}]"), key)?;
        text(format_args!("annotations[{key:?}]"), value)?;
    }
    linux.map_or(Ok(()), |l| linux::check(l, &namespaces))
}

/// Checks a `process` object: that of a configuration, or the one that `exec` gets.
///
/// # Errors
/// As [`validate`]; the JSON paths begin with `process`.
pub fn validate_process(process: &Process) -> Result<()> {
    process::check(process)
}

/// `ociVersion`: semantic versioning 2.0.0, and of the spec's first major version, whose minor ones are compatible.
fn version(version: &str) -> Result<()> {
    const PATH: &str = "ociVersion";
    if version.is_empty() {
        return Err(invalid(PATH, "is missing; \"1.2.0\" is what airlock implements"));
    }
    match semver_major(version) {
        Some(1) => Ok(()),
        Some(_) => Err(unsupported(
            PATH,
            format_args!("{version:?} is not supported: airlock implements version 1 of the runtime spec"),
        )),
        None => {
            Err(invalid(PATH, format_args!("{version:?} is not a version such as \"1.2.0\" (SemVer 2.0.0)")))
        }
    }
}

/// The major number of a semantic version, if that is what `text` is.
fn semver_major(text: &str) -> Option<u64> {
    let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(t, p)| (t, Some(p)));
    let identifier = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let number = |id: &str| {
        let plain =
            !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) && (id == "0" || !id.starts_with('0'));
        plain.then(|| id.parse::<u64>().ok()).flatten()
    };
    let pre_identifier =
        |id: &str| identifier(id) && (!id.bytes().all(|b| b.is_ascii_digit()) || number(id).is_some());
    if !build.is_none_or(|b| b.split('.').all(identifier))
        || !pre.is_none_or(|p| p.split('.').all(pre_identifier))
    {
        return None;
    }
    let mut numbers = core.split('.').map(number);
    let major = numbers.next()??;
    let rest = [numbers.next()??, numbers.next()??];
    (rest.len() == 2 && numbers.next().is_none()).then_some(major)
}

fn uts_name(name: &str, value: &str) -> Result<()> {
    text(name, value)?;
    if value.len() > MAX_UTS_NAME {
        return Err(invalid(
            name,
            format_args!("has {} bytes, at most {MAX_UTS_NAME} are possible", value.len()),
        ));
    }
    Ok(())
}

fn hooks(spec: &Spec) -> Result<()> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    // Deprecated in the spec, and still what most callers use.
    #[allow(deprecated)]
    let prestart = hooks.prestart();
    let kinds = [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (index, one) in list.iter().flatten().enumerate() {
            hook(one).map_err(|e| e.context(format_args!("hooks.{kind}[{index}]")))?;
        }
    }
    Ok(())
}

fn hook(hook: &Hook) -> Result<()> {
    absolute("path", hook.path())?;
    texts("args", hook.args().as_deref())?;
    texts("env", hook.env().as_deref())?;
    match hook.timeout() {
        Some(seconds) if seconds <= 0 => {
            Err(invalid("timeout", format_args!("is {seconds} seconds: it must be greater than zero")))
        }
        _ => Ok(()),
    }
}

/// An error about the item at `path`.
fn invalid(path: impl Display, why: impl Display) -> Error {
    Error::invalid_argument(format!("{path}: {why}"))
}

/// An error about the item at `path`, which makes sense, but not here.
fn unsupported(path: impl Display, why: impl Display) -> Error {
    Error::unsupported(format!("{path}: {why}"))
}

/// Texts end up as C strings.
fn text(path: impl Display, value: &str) -> Result<()> {
    if value.contains('\0') { Err(invalid(path, "contains a NUL byte")) } else { Ok(()) }
}

fn texts(path: &str, values: Option<&[String]>) -> Result<()> {
    values
        .into_iter()
        .flatten()
        .enumerate()
        .try_for_each(|(i, value)| text(format_args!("{path}[{i}]"), value))
}

/// A path that is not empty.
fn path_text(path: impl Display, value: &Path) -> Result<()> {
    let bytes = value.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(invalid(path, "is empty"));
    }
    if bytes.contains(&0) {
        return Err(invalid(path, "contains a NUL byte"));
    }
    Ok(())
}

fn absolute(path: impl Display, value: &Path) -> Result<()> {
    path_text(&path, value)?;
    if value.is_absolute() {
        Ok(())
    } else {
        Err(invalid(path, format_args!("{:?} must be an absolute path", value.display().to_string())))
    }
}

/// The kernel takes this many lines in an id map (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_MAPPINGS: usize = 340;

/// Id mappings: each range has a size, stays below 2³², and shares no id with another one on either side.
fn id_mappings(path: &str, mappings: &[LinuxIdMapping]) -> Result<()> {
    if mappings.len() > MAX_MAPPINGS {
        return Err(invalid(
            path,
            format_args!("has {} entries, the kernel takes {MAX_MAPPINGS}", mappings.len()),
        ));
    }
    let side = |name: &str, start: fn(&LinuxIdMapping) -> u32| {
        let mut ranges = Vec::with_capacity(mappings.len());
        for (i, mapping) in mappings.iter().enumerate() {
            let (first, size) = (u64::from(start(mapping)), u64::from(mapping.size()));
            if size == 0 {
                return Err(invalid(format_args!("{path}[{i}].size"), "must be greater than zero"));
            }
            if first + size > u64::from(u32::MAX) {
                return Err(invalid(
                    format_args!("{path}[{i}]"),
                    format_args!("{name} {first} and {} more go beyond the largest id", size - 1),
                ));
            }
            ranges.push((first, first + size, i));
        }
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(invalid(
                format_args!("{path}[{}]", pair[1].2),
                format_args!("overlaps with {path}[{}] ({name})", pair[0].2),
            )),
            None => Ok(()),
        }
    };
    side("containerID", LinuxIdMapping::container_id)?;
    side("hostID", LinuxIdMapping::host_id)
}

#[cfg(test)]
mod tests;
