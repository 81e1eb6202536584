//! Overlay mounts: which entries get a writable layer, where it lives, and how the kernel is told.

#![forbid(unsafe_code)]

pub(super) mod layers;

use super::missing;
use airlock_loader::oci::mounts::MountOptions;
use airlock_wire::error::{Error, Kind, Result};
use layers::{Layer, Layers, Upper};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where an upper layer lives (gVisor: `OverlayMedium`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// In a tmpfs of its own.
    Memory,
    /// In a hidden directory beside the mount's source, on the host's file system. (gVisor keeps a file *in* the
    /// source; overlayfs refuses an upper layer inside a lower one.)
    SelfBacked,
    /// In a hidden directory in this one.
    Directory(PathBuf),
}

impl Medium {
    /// As in [`airlock_wire::api::types::GoferMountConf::upper`].
    pub(super) fn number(&self) -> u8 {
        match self {
            Self::Memory => 1,
            Self::SelfBacked => 2,
            Self::Directory(_) => 3,
        }
    }
}

/// A writable layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Where it lives.
    pub medium: Medium,
    /// Limit in bytes, for [`Medium::Memory`] only.
    pub size: Option<u64>,
}

/// Which mounts get a writable layer, as in runsc's `--overlay2`: `none`, or `root:MEDIUM` or `all:MEDIUM` with
/// `memory`, `self` or `dir=/path` as medium, and `,size=N[kmg]` behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayConfig {
    /// For the root filesystem.
    pub root: Option<Overlay>,
    /// For every writable bind mount.
    pub mounts: Option<Overlay>,
}

impl FromStr for OverlayConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: &str| {
            Err(Error::invalid_argument(format!(
                "overlay {text:?}: {why}; say none, or root:MEDIUM or all:MEDIUM with memory, self or dir=/path, \
                 for example root:memory,size=1g"
            )))
        };
        if text.is_empty() || text == "none" {
            return Ok(Self::default());
        }
        let Some((which, rest)) = text.split_once(':') else { return fail("no colon") };
        let mut parts = rest.split(',');
        let medium = match parts.next().unwrap_or("") {
            "memory" => Medium::Memory,
            "self" => Medium::SelfBacked,
            other => match other.strip_prefix("dir=").map(PathBuf::from) {
                Some(dir) if dir.is_absolute() => Medium::Directory(dir),
                Some(_) => return fail("the directory has to be absolute"),
                None => return fail("unknown medium"),
            },
        };
        let mut size = None;
        for part in parts {
            match part.strip_prefix("size=").and_then(parse_size) {
                Some(n) if medium == Medium::Memory => size = Some(n),
                Some(_) => return fail("size is for memory only"),
                None => return fail("the only option is size"),
            }
        }
        let overlay = Overlay { medium, size };
        match which {
            "root" => Ok(Self { root: Some(overlay), mounts: None }),
            "all" => Ok(Self { root: Some(overlay.clone()), mounts: Some(overlay) }),
            _ => fail("neither root nor all"),
        }
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let n: u64 = plain.then(|| digits.parse().ok())??;
    n.checked_mul(1 << shift).filter(|n| *n > 0)
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Makes the directory for an upper layer of the mount of `source`; `None` for memory.
pub(super) fn filestore(medium: &Medium, source: &Path) -> Result<Option<PathBuf>> {
    let place = match medium {
        Medium::Memory => return Ok(None),
        Medium::Directory(dir) => dir.clone(),
        Medium::SelfBacked => {
            let source = std::fs::canonicalize(source).map_err(missing)?;
            match source.parent() {
                Some(parent) => parent.to_owned(),
                None => {
                    return Err(Error::invalid_argument(
                        "overlay medium self: the root directory has no place beside it; use memory or dir=/path",
                    ));
                }
            }
        }
    };
    loop {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = place.join(format!(".airlock.filestore.{}-{now:x}-{n}", std::process::id()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&path) {
            Ok(()) => return Ok(Some(path)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(missing(e).context(format!("overlay layer in {}", place.display()))),
        }
    }
}

/// An overlay mount of the spec, whose layers are in its options. Every layer is opened here, so that no length of
/// text and no escaping matters to the kernel.
pub(super) fn from_spec(options: &MountOptions) -> Result<OwnedFd> {
    let value = |key: &str| options.data_value(key).flatten().filter(|v| !v.is_empty());
    let Some(lowerdir) = value("lowerdir") else {
        return Err(Error::invalid_argument("overlay: the option lowerdir is missing"));
    };
    let (lowers, data_only) = split_layers(lowerdir);
    let upper = match (value("upperdir"), value("workdir")) {
        (Some(upper), Some(work)) => {
            Upper::Pair { upper: unescape(upper).into(), work: unescape(work).into() }
        }
        (None, _) => Upper::None,
        (Some(_), None) => return Err(Error::invalid_argument("overlay: upperdir needs a workdir")),
    };
    let to_layers = |list: Vec<String>| list.into_iter().map(|p| Layer::Path(p.into())).collect();
    let rest: Vec<_> = options
        .data
        .iter()
        .filter(|(key, _)| !["lowerdir", "upperdir", "workdir"].contains(&key.as_str()))
        .cloned()
        .chain(options.superblock.iter().map(|flag| ((*flag).to_owned(), None)))
        .collect();
    let layers = Layers { lowers: to_layers(lowers), data_only: to_layers(data_only), upper };
    if layers.lowers.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "overlay: the option lowerdir names no directory"));
    }
    layers::mount(&layers, &rest).map(|(fd, _)| fd)
}

/// Splits a `lowerdir` text: `:` separates layers, `::` the data-only ones from the rest and from each other, and a
/// backslash takes the meaning from what follows.
fn split_layers(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut lowers, mut data_only, mut current) = (Vec::new(), Vec::new(), String::new());
    let mut in_data = false;
    let mut chars = text.chars().peekable();
    let finish = |current: &mut String, in_data: bool, lowers: &mut Vec<String>, data: &mut Vec<String>| {
        let path = std::mem::take(current);
        if !path.is_empty() {
            if in_data { data.push(path) } else { lowers.push(path) }
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' => current.extend(chars.next()),
            ':' => {
                finish(&mut current, in_data, &mut lowers, &mut data_only);
                if chars.next_if_eq(&':').is_some() {
                    in_data = true;
                }
            }
            c => current.push(c),
        }
    }
    finish(&mut current, in_data, &mut lowers, &mut data_only);
    (lowers, data_only)
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::new();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_texts_are_read_like_runsc_does() {
        let parse = |t: &str| t.parse::<OverlayConfig>();
        assert_eq!(parse("none").unwrap(), OverlayConfig::default());
        let root = parse("root:memory,size=2m").unwrap();
        assert_eq!(root.root, Some(Overlay { medium: Medium::Memory, size: Some(2 << 20) }));
        assert_eq!(root.mounts, None);
        let all = parse("all:dir=/x").unwrap();
        assert_eq!(all.mounts.unwrap().medium, Medium::Directory("/x".into()));
        assert_eq!(parse("all:self").unwrap().root.unwrap().medium, Medium::SelfBacked);
        for bad in [
            "memory",
            "root:",
            "root:disk",
            "some:memory",
            "root:dir=x",
            "root:memory,size=",
            "root:memory,size=0",
            "root:memory,size=+1",
            "root:memory,size=99999999999g",
            "root:self,size=1",
            "root:memory,x=1",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind, Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn layer_lists_are_split_and_unescaped() {
        let split = |t: &str| split_layers(t);
        assert_eq!(split("/a:/b"), (vec!["/a".to_owned(), "/b".to_owned()], vec![]));
        assert_eq!(split(r"/a\:b:/c\\d").0, [r"/a:b", r"/c\d"]);
        assert_eq!(split("/a::/d1::/d2"), (vec!["/a".to_owned()], vec!["/d1".to_owned(), "/d2".to_owned()]));
        assert_eq!(split(""), (vec![], vec![]));
        assert_eq!(unescape(r"/x\:y"), "/x:y");
    }
}
