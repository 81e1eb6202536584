//! `/proc/<pid>/maps` (proc_pid_maps(5)).
#![forbid(unsafe_code)]

use crate::procfs::ProcFs;
use airlock_wire::error::Result;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Code in it can be executed.
    pub executable: bool,
    /// Where in the file it begins.
    pub offset: u64,
    /// Device of the file as the kernel prints it (`08:01`), `00:00` without a file.
    pub device: String,
    /// Inode of the file; 0 without one.
    pub inode: u64,
    /// Path, or a name in brackets; control characters replaced. Empty for anonymous memory.
    pub path: String,
}

/// Mappings that are looked at; a process may have more (`vm.max_map_count`).
const MOST: usize = 1 << 17;

/// The executable mappings of a process, ascending.
///
/// # Errors
/// The process is gone, or may not be looked at.
pub fn executable(procfs: &ProcFs, pid: i32) -> Result<Vec<Mapping>> {
    let bytes = procfs.read_whole(pid, "maps")?;
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .filter_map(parse)
        .filter(|m| m.executable)
        .take(MOST)
        .collect())
}

/// Parses one line.
pub fn parse(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_start_matches(' ');
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        field
    };
    let (start, end) = field().split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let permissions = field();
    let offset = u64::from_str_radix(field(), 16).ok()?;
    let device = field().to_owned();
    let inode = field().parse().ok()?;
    let path = rest.trim_start_matches(' ');
    (start < end && permissions.len() >= 4).then(|| Mapping {
        start,
        end,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset,
        device,
        inode,
        path: path.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_the_kernel() {
        let line =
            "7f00a000-7f00b000 r-xp 00002000 fe:01 1234                       /usr/lib/a b.so (deleted)";
        let m = parse(line).unwrap();
        assert_eq!((m.start, m.end, m.offset, m.inode), (0x7f00_a000, 0x7f00_b000, 0x2000, 1234));
        assert!(m.executable);
        assert_eq!((m.device.as_str(), m.path.as_str()), ("fe:01", "/usr/lib/a b.so (deleted)"));
        let anonymous = parse("7f00-7f10 rw-p 00000000 00:00 0 ").unwrap();
        assert!(!anonymous.executable && anonymous.path.is_empty());
        assert!(parse("7f10-7f00 rw-p 00000000 00:00 0").is_none());
        assert!(parse("").is_none());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line in ".{0,120}") {
            let _ = parse(&line);
        }
    }
}
