//! Settings below `/proc/sys`, which for `net`, `kernel` and `fs.mqueue` are those of the calling thread's namespaces.
#![forbid(unsafe_code)]

use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// Reads `name` (`net.core.somaxconn`), without the end of the line.
///
/// # Errors
/// [`airlock_wire::error::Kind::NoSuchEntity`] where the kernel has no such setting.
pub fn read(procfs: &ProcFs, name: &str) -> Result<String> {
    Ok(procfs.read_path(&path(name))?.trim_end().to_owned())
}

/// Writes `name`.
///
/// # Errors
/// With the name and the kernel's reason.
pub fn write(procfs: &ProcFs, name: &str, value: &str) -> Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let write = || {
        let file = openat(procfs.root(), path(name).as_str(), flags, Mode::empty())?;
        nix::unistd::write(&file, value.as_bytes())
    };
    match write() {
        Ok(n) if n == value.len() => Ok(()),
        Ok(_) => Err(Error::failure(format!("setting {name}: {value:?} was not taken as a whole"))),
        Err(e) => Err(Error::from(e).context(format!("setting {name} to {value:?}"))),
    }
}

/// Sets those of `saved` that are in `known` and differ. What does not work is told in `warnings`.
pub fn restore(
    procfs: &ProcFs,
    saved: &[(String, String)],
    known: impl Fn(&str) -> bool,
    warnings: &mut Vec<String>,
) {
    for (name, value) in saved.iter().filter(|(name, _)| known(name)) {
        match read(procfs, name) {
            Ok(now) if now == *value => {}
            Ok(_) => {
                if let Err(e) = write(procfs, name, value) {
                    warnings.push(e.message);
                }
            }
            Err(e) => warnings.push(format!("{name} was {value:?} and is not known here: {e}")),
        }
    }
}

fn path(name: &str) -> String {
    format!("sys/{}", name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inet::testing::in_netns;

    #[test]
    fn what_differs_is_set() {
        in_netns("what_differs_is_set", || {
            let procfs = ProcFs::new(std::fs::File::open("/proc").unwrap().into());
            let name = "net.ipv4.tcp_fin_timeout".to_owned();
            let saved = [(name.clone(), "31".to_owned()), ("net.none".to_owned(), "1".to_owned())];
            let mut warnings = Vec::new();
            restore(&procfs, &saved, |_| true, &mut warnings);
            assert_eq!(read(&procfs, &name).unwrap(), "31");
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            restore(&procfs, &[(name.clone(), "32".to_owned())], |_| false, &mut warnings);
            assert_eq!(read(&procfs, &name).unwrap(), "31");
            assert!(write(&procfs, &name, "x").unwrap_err().message.contains(&name));
        });
    }
}
