//! `/proc/pid/smaps`, as far as address spaces need it (proc_pid_smaps(5)).
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};

/// One mapping as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawVma {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// PROT_*.
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device number of the file, 0: none.
    pub dev: u64,
    /// Inode of the file, 0: none.
    pub inode: u64,
    /// Path or name, without `(deleted)`.
    pub name: String,
    /// The path no longer leads to the file.
    pub deleted: bool,
    /// Page size, bytes.
    pub page_size: u64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Transparent huge pages in it, bytes.
    pub anon_huge: u64,
    /// Protection key.
    pub pkey: i32,
    /// Two-letter flags.
    pub flags: Vec<[u8; 2]>,
}

impl RawVma {
    /// Whether VmFlags has `flag`.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
}

/// Reads the whole file.
///
/// # Errors
/// A line that cannot be understood, by its text.
pub fn parse(text: &str) -> Result<Vec<RawVma>> {
    let mut vmas: Vec<RawVma> = Vec::new();
    for line in text.lines() {
        // Only keys start with a capital letter; addresses are in lower-case hexadecimal.
        if line.as_bytes().first().is_some_and(u8::is_ascii_uppercase) {
            let Some((key, value)) = line.split_once(':') else { continue };
            let Some(vma) = vmas.last_mut() else { return Err(bad(line)) };
            let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10;
            match key {
                "KernelPageSize" => vma.page_size = kib(),
                "Rss" => vma.rss = kib(),
                "AnonHugePages" => vma.anon_huge = kib(),
                "ProtectionKey" => vma.pkey = value.trim().parse().unwrap_or(0),
                "VmFlags" => {
                    vma.flags = value
                        .split_ascii_whitespace()
                        .filter_map(|f| <[u8; 2]>::try_from(f.as_bytes()).ok())
                        .collect();
                }
                _ => {}
            }
        } else {
            vmas.push(head(line).ok_or_else(|| bad(line))?);
        }
    }
    Ok(vmas)
}

fn bad(line: &str) -> Error {
    Error::failure(format!("reading smaps: {line:?} is not understood"))
}

/// `start-end perms offset major:minor inode   name`.
fn head(line: &str) -> Option<RawVma> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_start_matches(' ');
        let end = rest.find(' ').unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail;
        field
    };
    let (start, end) = field().split_once('-')?;
    let perms = field().as_bytes();
    let offset = u64::from_str_radix(field(), 16).ok()?;
    let (major, minor) = field().split_once(':')?;
    let inode = field().parse().ok()?;
    let name = unescape(rest.trim_start_matches(' '));
    let (name, deleted) = match name.strip_suffix(" (deleted)") {
        Some(name) if name.starts_with('/') => (name.to_owned(), true),
        _ => (name, false),
    };
    let number = |s| u32::from_str_radix(s, 16).ok();
    let prot = |at: usize, c: u8, bit: u32| if perms.get(at) == Some(&c) { bit } else { 0 };
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    if start >= end || perms.len() != 4 {
        return None;
    }
    Some(RawVma {
        start,
        end,
        prot: prot(0, b'r', 1) | prot(1, b'w', 2) | prot(2, b'x', 4),
        shared: perms[3] == b's',
        offset,
        dev: libc::makedev(number(major)?, number(minor)?),
        inode,
        name,
        deleted,
        page_size: 4096,
        ..RawVma::default()
    })
}

/// The kernel writes a newline in a name as `\012`, and a backslash as itself.
fn unescape(name: &str) -> String {
    name.replace("\\012", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
5581d4a00000-5581d4a21000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
KernelPageSize:        4 kB
Rss:                  16 kB
AnonHugePages:         0 kB
ProtectionKey:         0
VmFlags: rd wr mr mw me ac sd
7f1c00000000-7f1c00200000 r-xs 00001000 08:10 1234                       /a b/c\\012d (deleted)
KernelPageSize:     2048 kB
VmFlags: rd ex mr mw me ms hg dd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn fields_are_found() {
        let vmas = parse(TEXT).unwrap();
        assert_eq!(vmas.len(), 3);
        assert_eq!((vmas[0].start, vmas[0].end, vmas[0].prot), (0x5581_d4a0_0000, 0x5581_d4a2_1000, 3));
        assert_eq!((vmas[0].name.as_str(), vmas[0].rss, vmas[0].shared), ("[heap]", 16 << 10, false));
        assert_eq!((vmas[1].name.as_str(), vmas[1].deleted, vmas[1].shared), ("/a b/c\nd", true, true));
        assert_eq!((vmas[1].offset, vmas[1].dev, vmas[1].inode), (0x1000, libc::makedev(8, 16), 1234));
        assert_eq!((vmas[1].page_size, vmas[1].prot), (2 << 20, 5));
        assert!(vmas[1].has(b"hg") && vmas[1].has(b"dd") && !vmas[1].has(b"gd"));
        assert_eq!(vmas[2].name, "[vsyscall]");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[0-9a-fA-Z :\\-rwxps\n/()]{0,200}") {
            let _ = parse(&text);
        }
    }
}
