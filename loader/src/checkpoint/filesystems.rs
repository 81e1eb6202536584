//! Images of filesystems alone: what containers have written, without their processes (gVisor's `fscheckpoint`).
//!
//! Two files: a manifest (JSON), and the trees ([`super::content`]) as the sections of an image ([`super::image`]), with
//! its checksums. The manifest names the image by its generation ID and is written last: without it there is no image.
#![forbid(unsafe_code)]

use super::content::{self, Options};
use super::dump::fs::{self as dump, Content};
use super::image::{Generation, Metadata, Reader, Writer, WriterOptions, fs_section};
use super::inside;
use super::mountinfo;
use super::restore::fs as restore;
use super::state::FilesystemState;
use crate::init::mounts::GENERATION;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a manifest says it is.
const FORMAT: &str = "airlock filesystems 1";
/// Longest manifest, bytes.
const MANIFEST_MAX: u64 = 16 << 20;
/// Stands for every tmpfs that a container has by its spec.
pub const ALL_TMPFS: &str = "all-tmpfs";

/// What is in an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Always the same.
    pub format: String,
    /// Of the file with the trees.
    pub generation: Generation,
    /// Names of the containers, as a checkpoint has them.
    pub containers: Vec<String>,
    /// The trees; `container` is an index into `containers`.
    pub filesystems: Vec<FilesystemState>,
}

/// A container whose filesystems are looked at.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Place {
    /// ID, for messages.
    pub cid: String,
    /// Name by which it is found in an image.
    pub name: String,
    /// OCI spec as JSON text.
    pub spec: String,
    /// Overlays: where, and whether the layer is on a disk.
    pub upper: Vec<(String, bool)>,
}

/// A filesystem to be saved: one of a container (of every one for an empty name), or [`ALL_TMPFS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Name or ID of the container; empty for all.
    pub container: String,
    /// Where it is mounted.
    pub path: String,
}

/// Trees that were found, with the index of their container.
#[derive(Debug)]
pub struct Found(Vec<(usize, Content)>);

impl Found {
    /// Finds what is `wanted` in the container `index`, which is that of the pidfd `target`. `layers` are those of
    /// `place.upper`.
    ///
    /// # Errors
    /// The container's mounts cannot be looked at.
    pub fn look(
        &mut self,
        procfs: &ProcFs,
        index: usize,
        place: &Place,
        (target, layers): (BorrowedFd<'_>, &[OwnedFd]),
        wanted: &[Wanted],
    ) -> Result<()> {
        let of_this =
            |w: &&Wanted| w.container.is_empty() || w.container == place.name || w.container == place.cid;
        let paths: BTreeSet<&str> = wanted.iter().filter(of_this).map(|w| w.path.as_str()).collect();
        if paths.is_empty() {
            return Ok(());
        }
        let spec: Spec = parse(&place.spec)?;
        let found = inside::run(target, libc::CLONE_NEWNS, || {
            let mut found = Vec::new();
            for ((path, on_disk), fd) in place.upper.iter().zip(layers) {
                if paths.contains(path.as_str()) {
                    let layer = if *on_disk { upper_of(fd)? } else { fd.try_clone()? };
                    found.push(dump::layer(index as u32, path, layer.as_fd())?);
                }
            }
            for mount in mountinfo::own(procfs)?.iter().filter(|m| m.fstype == "tmpfs" && m.root == "/") {
                let wanted = paths.contains(mount.path.as_str())
                    || (paths.contains(ALL_TMPFS) && dump::is_of_spec(mount, &spec));
                if wanted && !found.iter().any(|c| c.path == mount.path) {
                    found.push(
                        dump::tmpfs(index as u32, mount).map_err(|e| Error::from(e).context(&mount.path))?,
                    );
                }
            }
            Ok(found)
        })?;
        self.0.extend(found.into_iter().map(|content| (index, content)));
        Ok(())
    }

    /// None.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes it may be: the used part of filesystems in memory. `None` for layers on a disk, of which nothing
    /// tells without reading them.
    pub fn size(&self) -> Option<u64> {
        let mut devices = BTreeSet::new();
        let mut size = 0u64;
        for (_, content) in &self.0 {
            let status = fstatfs(&content.root).ok()?;
            if status.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
                return None;
            }
            if devices.insert(nix::sys::stat::fstat(&content.root).ok()?.st_dev) {
                let used = status.blocks().saturating_sub(status.blocks_free());
                size = size.saturating_add(used.saturating_mul(status.block_size() as u64));
            }
        }
        Some(size)
    }

    /// Writes the trees to `trees`. Nobody should change them meanwhile.
    ///
    /// # Errors
    /// What cannot be read; I/O.
    pub fn write(&self, trees: File, places: &[Place], sync: bool) -> Result<Manifest> {
        let options = WriterOptions { sync, ..WriterOptions::default() };
        let mut writer = Writer::create(trees, options)?;
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            generation: writer.generation(),
            containers: places.iter().map(|p| p.name.clone()).collect(),
            filesystems: Vec::new(),
        };
        for (n, (index, content)) in self.0.iter().enumerate() {
            let n = n as u32;
            let mut section = writer.section(&fs_section(n))?;
            let skip: &[&str] = if content.path == "/dev" { &[GENERATION] } else { &[] };
            let options = Options { merged: content.merged.as_ref().map(AsFd::as_fd), skip };
            let saved = content::save(content.root.as_fd(), options, &mut section)
                .map_err(|e| e.context(format!("content of the filesystem at {}", content.path)))?;
            section.finish()?;
            manifest.filesystems.push(FilesystemState {
                container: *index as u32,
                path: content.path.clone(),
                kind: content.kind.to_owned(),
                section: Some(n),
                digest: String::new(),
                files: saved.files,
                bytes: saved.bytes,
            });
        }
        writer.finish(Metadata::default())?;
        Ok(manifest)
    }
}

impl Default for Found {
    fn default() -> Self {
        Self::new()
    }
}

impl Manifest {
    /// Writes it to an empty file.
    ///
    /// # Errors
    /// I/O.
    pub fn write(&self, mut to: &File) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::failure(format!("the manifest: {e}")))?;
        to.set_len(0)?;
        to.rewind()?;
        to.write_all(&text)?;
        Ok(to.sync_data()?)
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidArgument`] for what is none.
    pub fn read(from: &mut dyn Read) -> Result<Self> {
        let mut text = Vec::new();
        from.take(MANIFEST_MAX).read_to_end(&mut text)?;
        let wrong = |what: String| Error::invalid_argument(format!("the manifest cannot be used: {what}"));
        if text.is_empty() {
            return Err(wrong("it is empty: the filesystem checkpoint was not completed".to_owned()));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!("it is of format {:?}, and not {FORMAT:?}", manifest.format)));
        }
        let count = manifest.containers.len();
        match manifest.filesystems.iter().find(|f| f.container as usize >= count || f.section.is_none()) {
            Some(bad) => Err(wrong(format!("the filesystem at {:?}", bad.path))),
            None => Ok(manifest),
        }
    }

    /// The filesystems of the container `name`.
    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a FilesystemState> {
        let is =
            move |f: &&FilesystemState| self.containers.get(f.container as usize).is_some_and(|n| n == name);
        self.filesystems.iter().filter(is)
    }
}

/// Makes the filesystems of a container, in which nothing runs yet, what an image says. Answers what could not be made the
/// same.
///
/// # Errors
/// The image is damaged, or not that of the manifest; it has nothing for this container; the container has no such place.
pub fn restore(
    manifest: &Manifest,
    trees: File,
    place: &Place,
    target: BorrowedFd<'_>,
) -> Result<Vec<String>> {
    let reader = Reader::open(trees, None)?;
    if reader.generation() != manifest.generation {
        return Err(Error::invalid_argument(
            "the manifest and the trees are not of the same filesystem checkpoint",
        ));
    }
    let devices = restore::devices(&place.spec);
    inside::run(target, libc::CLONE_NEWNS, || {
        let mut warnings = Vec::new();
        for saved in manifest.of(&place.name) {
            let failed = |e: Error| e.context(format!("filesystem at {}", saved.path));
            let upper: Vec<String> = place.upper.iter().map(|(path, _)| path.clone()).collect();
            warnings.extend(restore::one(&reader, saved, &devices, &upper).map_err(failed)?);
        }
        Ok(warnings)
    })
}

/// Checks manifests without an image: what the property test and the fuzz target run.
pub fn check(bytes: &[u8]) -> bool {
    Manifest::read(&mut BufReader::new(bytes)).is_ok()
}

fn parse(spec: &str) -> Result<Spec> {
    serde_json::from_str(spec).map_err(|e| Error::failure(format!("the container's spec: {e}")))
}

fn upper_of(base: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(base, "upper", flags, Mode::empty()).map_err(|e| Error::from(e).context("opening the layer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            generation: Generation([7; 16]),
            containers: vec!["a".to_owned()],
            filesystems: vec![FilesystemState {
                path: "/".to_owned(),
                section: Some(0),
                ..Default::default()
            }],
        }
    }

    #[test]
    fn a_manifest_comes_back_and_others_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let saved = manifest();
        saved.write(&file).unwrap();
        (&file).rewind().unwrap();
        assert_eq!(Manifest::read(&mut &file).unwrap(), saved);
        assert_eq!((saved.of("a").count(), saved.of("b").count()), (1, 0));
        let refused = |change: fn(&mut Manifest)| {
            let mut other = manifest();
            change(&mut other);
            Manifest::read(&mut serde_json::to_vec(&other).unwrap().as_slice()).unwrap_err().message
        };
        assert!(refused(|m| m.format.clear()).contains("format"));
        assert!(refused(|m| m.filesystems[0].container = 1).contains("filesystem at"));
        assert!(refused(|m| m.filesystems[0].section = None).contains("filesystem at"));
        assert!(Manifest::read(&mut &b""[..]).unwrap_err().message.contains("not completed"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_good(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            check(&bytes);
        }

        #[test]
        fn damaged_manifests_are_refused_or_good(at in 0usize..200, byte: u8) {
            let mut text = serde_json::to_vec(&manifest()).unwrap();
            let at = at % text.len();
            text[at] = byte;
            check(&text);
        }
    }
}
