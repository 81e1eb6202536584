//! `/proc/<pid>/mountinfo`, and how a mount that a program made can be made again.
#![forbid(unsafe_code)]

use super::state::MountState;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;

/// The mounts that the calling thread sees.
///
/// # Errors
/// When `/proc` does not tell.
pub fn own(procfs: &ProcFs) -> Result<Vec<MountState>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let fd = openat(procfs.root(), "thread-self/mountinfo", flags, Mode::empty())
        .map_err(|e| Error::from(e).context("looking at the mounts of a container"))?;
    let mut bytes = Vec::new();
    File::from(fd).read_to_end(&mut bytes)?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// Parses mountinfo (proc_pid_mountinfo(5)). Lines that cannot be read are left out.
pub fn parse(text: &str) -> Vec<MountState> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<MountState> {
    // Between the two are tags, as many as there are.
    let (first, second) = text.split_once(" - ")?;
    let mut words = first.split(' ');
    let mut next = || words.next();
    let (id, parent) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let (major, minor) = next()?.split_once(':')?;
    let (root, path, options) = (unescape(next()?), unescape(next()?), next()?.to_owned());
    let propagation = words.collect::<Vec<_>>().join(" ");
    let mut rest = second.split(' ');
    Some(MountState {
        id,
        parent,
        path,
        root,
        fstype: rest.next()?.to_owned(),
        source: unescape(rest.next()?),
        options,
        super_options: rest.next().unwrap_or_default().to_owned(),
        propagation,
        device: (major.parse().ok()?, minor.parse().ok()?),
        own: false,
    })
}

/// A path as the kernel writes it in its tables: spaces, tabs, line feeds and backslashes are octal numbers there.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How a mount is made: the arguments of mount(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// A new filesystem.
    New {
        /// Its options.
        data: String,
    },
    /// What is at this path of the container already.
    Bind {
        /// The path.
        from: String,
    },
}

/// Options of a tmpfs that mount(2) takes as mountinfo shows them.
const TMPFS_OPTIONS: &[&str] =
    &["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol", "inode32", "inode64", "noswap"];

/// How mount number `index` of `mounts`, which a program made, can be made again when those before it are there.
///
/// # Errors
/// Why not, in words.
pub fn how(mounts: &[MountState], index: usize) -> std::result::Result<How, String> {
    let Some(mount) = mounts.get(index) else { return Err("there is no such mount".to_owned()) };
    if mount.root.ends_with("//deleted") {
        return Err("what is mounted there was deleted".to_owned());
    }
    let source = mounts.iter().take(index).filter(|m| m.device == mount.device).find_map(|m| {
        let below = mount.root.strip_prefix(m.root.trim_end_matches('/'))?;
        let inside = below.is_empty() || below.starts_with('/');
        inside.then(|| format!("{}{below}", m.path.trim_end_matches('/')))
    });
    // The same filesystem is mounted elsewhere, too. (procfs has one instance for each mount, and one device for each.)
    if let Some(from) = source {
        return Ok(How::Bind { from: if from.is_empty() { "/".to_owned() } else { from } });
    }
    let whole = mount.root == "/";
    match mount.fstype.as_str() {
        "tmpfs" if whole => {
            let known = |o: &&str| TMPFS_OPTIONS.contains(&o.split('=').next().unwrap_or_default());
            let data: Vec<&str> = mount.super_options.split(',').filter(known).collect();
            Ok(How::New { data: data.join(",") })
        }
        "proc" | "sysfs" | "mqueue" if whole => Ok(How::New { data: String::new() }),
        _ if !whole => Err(format!("it shows {:?} of a filesystem that is mounted nowhere else", mount.root)),
        other => Err(format!("a {other} that was mounted inside the container cannot be mounted again")),
    }
}

/// Has the owners that tmpfs mounts were given be told as whoever mounts them again has to: the kernel's table has the
/// machine's ids, mount(2) takes those of the caller's user namespace. `maps` are its `uid_map` and `gid_map`, which say the
/// machine's if that namespace is a child of the first one. An id that is not in them stays as it is.
pub fn ids_of_namespace(mounts: &mut [MountState], maps: (&str, &str)) {
    for mount in mounts.iter_mut().filter(|m| m.fstype == "tmpfs") {
        let inside = |option: &str| -> Option<String> {
            let (name, id) = option.split_once('=')?;
            let map = match name {
                "uid" => maps.0,
                "gid" => maps.1,
                _ => return None,
            };
            Some(format!("{name}={}", id_inside(map, id.parse().ok()?)?))
        };
        let options: Vec<String> =
            mount.super_options.split(',').map(|o| inside(o).unwrap_or_else(|| o.to_owned())).collect();
        mount.super_options = options.join(",");
    }
}

/// What an id outside of a user namespace is inside, by its map: lines of first id inside, first id outside, count.
fn id_inside(map: &str, outside: u64) -> Option<u64> {
    map.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().map_while(|word| word.parse::<u64>().ok());
        let (inside, from, count) = (words.next()?, words.next()?, words.next()?);
        let offset = outside.checked_sub(from).filter(|offset| *offset < count)?;
        inside.checked_add(offset)
    })
}

/// mount(2)'s flags for the options of a mount.
pub fn flags(options: &str) -> MsFlags {
    let flag = |option: &str| match option {
        "ro" => MsFlags::MS_RDONLY,
        "nosuid" => MsFlags::MS_NOSUID,
        "nodev" => MsFlags::MS_NODEV,
        "noexec" => MsFlags::MS_NOEXEC,
        "noatime" => MsFlags::MS_NOATIME,
        "nodiratime" => MsFlags::MS_NODIRATIME,
        "relatime" => MsFlags::MS_RELATIME,
        _ => MsFlags::empty(),
    };
    options.split(',').map(flag).fold(MsFlags::empty(), |all, one| all | one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = r"100 99 0:5 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/x
101 100 0:6 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1024k,mode=1777,seclabel
102 101 0:6 /a\040b /mnt/x ro,noexec shared:3 - tmpfs tmpfs rw,size=1024k
103 100 0:7 / /data rw - tmpfs none rw,size=2048k,uid=5,huge=always
104 100 8:1 /vol /vol rw - ext4 /dev/sda1 rw
105 100 8:1 /vol/sub/dir /here rw - ext4 /dev/sda1 rw
106 100 0:9 / /proc2 rw - proc proc rw
107 100 0:10 / /f rw - fuse.x x rw
108 100 0:5 /etc /etc2 rw - overlay overlay rw
109 100 8:1 /gone//deleted /g rw - ext4 /dev/sda1 rw
110 100 8:1 /other /o rw - ext4 /dev/sda1 rw
";

    #[test]
    fn mounts_can_be_made_again_or_not() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 11);
        assert_eq!((mounts[2].root.as_str(), mounts[2].propagation.as_str()), ("/a b", "shared:3"));
        assert_eq!(mounts[0].propagation, "master:1");
        let bind = |from: &str| Ok(How::Bind { from: from.to_owned() });
        let new = |data: &str| Ok(How::New { data: data.to_owned() });
        assert_eq!(how(&mounts, 2), bind("/tmp/a b"));
        assert_eq!(how(&mounts, 3), new("size=2048k,uid=5,huge=always"));
        let options = |maps: (&str, &str)| {
            let mut mounts = mounts.clone();
            ids_of_namespace(&mut mounts, maps);
            mounts[3].super_options.clone()
        };
        let whole = "         0          0 4294967295\n";
        assert_eq!(options((whole, whole)), mounts[3].super_options);
        assert!(options(("0 1 3\n10 5 1\n", "")).contains("uid=10,"));
        assert!(options(("0 1 3\n10 6 1\n", "")).contains("uid=5,"), "not in the namespace");
        assert!(options(("18446744073709551615 5 9\nx y z", "")).contains("uid=18446744073709551615,"));
        assert_eq!(how(&mounts, 5), bind("/vol/sub/dir"));
        assert_eq!(how(&mounts, 6), new(""));
        assert_eq!(how(&mounts, 8), bind("/etc"));
        for bad in [7, 9, 10, 99] {
            assert!(how(&mounts, bad).is_err(), "{bad}");
        }
        assert_eq!(flags("ro,noexec,strictatime"), MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC);
    }

    proptest! {
        #[test]
        fn hostile_mountinfo_never_panics(text in r"([0-9: /\\é,-]|x - y| - )*") {
            let mounts = parse(&text);
            for i in 0..mounts.len() {
                let _ = how(&mounts, i);
            }
        }
    }
}
