//! Control files: reading and writing them below a directory descriptor, and what their errors mean.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::AccessFlags;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Largest control file that is read, in bytes. Process lists are the only ones that come near it.
const MAX_FILE: u64 = 16 << 20;

/// The control files of one cgroup. The rules of [`super::resources`] are written against this trait, so that
/// tests can check the order of writes without a kernel that has the controller.
pub trait Files {
    /// The whole text of `file`.
    fn read(&self, file: &str) -> std::result::Result<String, Errno>;
    /// Writes `value` with one `write(2)`, as cgroupfs wants it.
    fn write(&self, file: &str, value: &str) -> std::result::Result<(), Errno>;
    /// Writes each of `values` to `file` in turn. The error has the index of the value that failed.
    fn write_each(&self, file: &str, values: &[String]) -> std::result::Result<(), (usize, Errno)> {
        values
            .iter()
            .enumerate()
            .try_for_each(|(index, value)| self.write(file, value).map_err(|e| (index, e)))
    }
    /// Whether `file` exists.
    fn exists(&self, file: &str) -> bool;
}

/// Control files below a cgroup's directory (any descriptor of it, `O_PATH` too).
#[derive(Debug, Clone, Copy)]
pub struct Dir<'a>(pub BorrowedFd<'a>);

impl Dir<'_> {
    /// Opens `file` with `flags`, never following a symbolic link.
    pub(crate) fn open(&self, file: &str, flags: OFlag) -> std::result::Result<OwnedFd, Errno> {
        openat(self.0, file, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
    }
}

impl Files for Dir<'_> {
    fn read(&self, file: &str) -> std::result::Result<String, Errno> {
        let file = File::from(self.open(file, OFlag::O_RDONLY)?);
        let mut bytes = Vec::with_capacity(4096);
        let read = file.take(MAX_FILE).read_to_end(&mut bytes);
        read.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
        String::from_utf8(bytes).map_err(|_| Errno::EILSEQ)
    }

    fn write(&self, file: &str, value: &str) -> std::result::Result<(), Errno> {
        let fd = self.open(file, OFlag::O_WRONLY)?;
        write_once(fd.as_fd(), value)
    }

    fn write_each(&self, file: &str, values: &[String]) -> std::result::Result<(), (usize, Errno)> {
        if values.is_empty() {
            return Ok(());
        }
        let fd = self.open(file, OFlag::O_WRONLY).map_err(|e| (0, e))?;
        let write = |(index, value): (usize, &String)| write_once(fd.as_fd(), value).map_err(|e| (index, e));
        values.iter().enumerate().try_for_each(write)
    }

    fn exists(&self, file: &str) -> bool {
        let flags = nix::fcntl::AtFlags::empty();
        nix::unistd::faccessat(self.0, file, AccessFlags::F_OK, flags).is_ok()
    }
}

/// Writes `value` to an open control file with one `write(2)`.
pub(crate) fn write_once(fd: BorrowedFd<'_>, value: &str) -> std::result::Result<(), Errno> {
    loop {
        return match nix::unistd::write(fd, value.as_bytes()) {
            Ok(n) if n == value.len() => Ok(()),
            Ok(_) => Err(Errno::EIO),
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e),
        };
    }
}

/// Writes `value` to `file` and explains a failure.
///
/// # Errors
/// See [`explain`].
pub fn set(files: &dyn Files, file: &str, value: impl std::fmt::Display) -> Result<()> {
    let value = value.to_string();
    log::trace!("cgroup: {file} = {value}");
    files.write(file, &value).map_err(|e| explain(&format!("writing {value:?} to {file}"), file, e))
}

/// Reads `file` as one number; `max` is `u64::MAX`.
///
/// # Errors
/// [`Kind::Failure`] when the text is no number, else see [`explain`].
pub fn number(files: &dyn Files, file: &str) -> Result<u64> {
    let text = files.read(file).map_err(|e| explain(&format!("reading {file}"), file, e))?;
    parse_number(&text).ok_or_else(|| Error::failure(format!("{file} holds no number: {:?}", text.trim())))
}

/// As [`number`], but `None` when the file does not exist.
pub fn number_opt(files: &dyn Files, file: &str) -> Result<Option<u64>> {
    match files.read(file) {
        Ok(text) => Ok(parse_number(&text)),
        Err(Errno::ENOENT | Errno::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(explain(&format!("reading {file}"), file, e)),
    }
}

/// A decimal number, `max` (`u64::MAX`) or a negative one (counted as `u64::MAX`: v1 writes -1 for no limit).
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text {
        "max" => Some(u64::MAX),
        _ if text.starts_with('-') => text.parse::<i64>().ok().map(|_| u64::MAX),
        _ => text.parse().ok(),
    }
}

/// The controller that `file` belongs to (`memory.max` → `memory`).
pub(crate) fn controller_of(file: &str) -> &str {
    file.split('.').next().unwrap_or(file)
}

/// What `errno` means when it comes from a cgroup: one line that says what to do.
pub fn explain(what: &str, file: &str, errno: Errno) -> Error {
    let controller = controller_of(file);
    let (kind, hint) = match errno {
        Errno::ENOENT => (
            Kind::Unsupported,
            format!(
                "the kernel or this cgroup lacks that file: is the {controller} controller mounted (v1) or \
                 enabled in cgroup.subtree_control of every parent (v2)?"
            ),
        ),
        Errno::EACCES | Errno::EPERM => (
            Kind::Permission,
            "not permitted: run as root, or have the cgroup delegated to this user".to_owned(),
        ),
        Errno::EROFS => (
            Kind::Permission,
            "the cgroup file system is mounted read-only: remount it read-write, or give the outer container a \
             writable one"
                .to_owned(),
        ),
        Errno::ENODEV => (Kind::NoSuchEntity, "the cgroup is being removed, or the device is unknown".to_owned()),
        Errno::EINVAL | Errno::ERANGE | Errno::EOVERFLOW => {
            (Kind::InvalidArgument, "the kernel refuses that value here".to_owned())
        }
        Errno::EBUSY => (Kind::InvalidState, "it is in use".to_owned()),
        Errno::ENOSPC => (
            Kind::InvalidState,
            "no room: an empty cpuset, or too many cgroups (see cgroup.max.descendants)".to_owned(),
        ),
        Errno::EOPNOTSUPP => (Kind::Unsupported, "not supported in this kind of cgroup".to_owned()),
        _ => (Kind::Failure, String::new()),
    };
    let reason = errno.desc();
    if hint.is_empty() {
        Error::new(kind, format!("cgroup: {what}: {reason}"))
    } else {
        Error::new(kind, format!("cgroup: {what}: {reason} ({hint})"))
    }
}

/// Whether `name` can name a control file: letters, digits, `_`, `-`, `.`; no separator, no leading dot.
pub fn valid_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// A cgroup in memory that records writes and can refuse some.
    #[derive(Default)]
    pub(crate) struct Fake {
        pub files: RefCell<BTreeMap<String, String>>,
        pub log: RefCell<Vec<(String, String)>>,
        /// Asked before each write.
        #[allow(clippy::type_complexity)]
        pub refuse: Option<Box<dyn Fn(&BTreeMap<String, String>, &str, &str) -> Option<Errno>>>,
    }

    impl Fake {
        pub(crate) fn new(files: &[(&str, &str)]) -> Self {
            let map = files.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Self { files: RefCell::new(map), ..Self::default() }
        }
        pub(crate) fn log(&self) -> Vec<String> {
            self.log.borrow().iter().map(|(k, v)| format!("{k}={v}")).collect()
        }
    }

    impl Files for Fake {
        fn read(&self, file: &str) -> std::result::Result<String, Errno> {
            self.files.borrow().get(file).cloned().ok_or(Errno::ENOENT)
        }
        fn write(&self, file: &str, value: &str) -> std::result::Result<(), Errno> {
            if !self.exists(file) {
                return Err(Errno::ENOENT);
            }
            if let Some(errno) = self.refuse.as_ref().and_then(|f| f(&self.files.borrow(), file, value)) {
                return Err(errno);
            }
            self.files.borrow_mut().insert(file.to_owned(), value.to_owned());
            self.log.borrow_mut().push((file.to_owned(), value.to_owned()));
            Ok(())
        }
        fn exists(&self, file: &str) -> bool {
            self.files.borrow().contains_key(file)
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(parse_number("max\n"), Some(u64::MAX));
        assert_eq!(parse_number("-1\n"), Some(u64::MAX));
        assert_eq!(parse_number("42\n"), Some(42));
        assert_eq!(parse_number("4 2"), None);
        assert_eq!(parse_number(""), None);
    }

    #[test]
    fn file_names() {
        assert!(valid_file_name("memory.stat"));
        for bad in ["", "..", ".", "a/b", "memory\0", "mem stat", ".hidden", &"x".repeat(256)] {
            assert!(!valid_file_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn errors_name_file_and_remedy() {
        let fake = Fake::new(&[]);
        let e = set(&fake, "hugetlb.2MB.max", 4).unwrap_err();
        assert_eq!(e.kind, Kind::Unsupported);
        assert!(e.message.contains("hugetlb.2MB.max") && e.message.contains("hugetlb controller"), "{e}");
    }
}
