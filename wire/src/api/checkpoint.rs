//! Arguments and results of checkpoint and restore, which several receivers share.

use super::types::Base64;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The metadata key by which callers choose how an image is compressed.
pub const COMPRESSION_KEY: &str = "compression";

/// Argument of `containerManager.Checkpoint` and `State.Save` (gVisor's `control.SaveOpts`), in every spelling since
/// 2022, which had the first two fields alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaveOpts {
    /// The image gets a checksum keyed with these bytes; only who has them can restore it.
    pub key: Option<Base64>,
    /// Kept in the image. `compression` says how it is compressed: `none` (the default), `lz4`, `zstd`, or gVisor's
    /// `flate-best-speed`.
    pub metadata: Option<BTreeMap<String, String>>,
    /// gVisor looks for pages of zeros among those it has committed; airlock never stores one.
    #[serde(alias = "AppMFExcludeCommittedZeroPages")]
    pub app_mf_exclude_committed_zero_pages: bool,
    /// Pages go into files of their own, whose descriptors come.
    #[serde(alias = "HavePagesFile")]
    pub have_pages_file: bool,
    /// The containers go on after the checkpoint; otherwise the sandbox ends with exit status 0.
    #[serde(rename = "Resume")]
    pub resume: bool,
    /// A program that gVisor executes around the checkpoint.
    #[serde(rename = "ExecOpts")]
    pub exec_opts: SaveRestoreExecOpts,
    /// The descriptor is a socket of gVisor's checkpoint gofer.
    pub use_checkpoint_gofer: bool,
    /// Program that saves the state of CUDA devices.
    pub cuda_checkpoint_path: String,
    /// It saves one process after the other.
    pub cuda_checkpoint_sequential: bool,
}

/// gVisor's save/restore program (`SaveOpts.ExecOpts`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaveRestoreExecOpts {
    /// The program and its arguments, separated by blanks; empty for none.
    #[serde(rename = "Argv")]
    pub argv: String,
    /// How long it may take, nanoseconds.
    #[serde(rename = "Timeout")]
    pub timeout: i64,
    /// Container that it runs in.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
}

impl SaveOpts {
    /// How the image is to be compressed; `none` unless the metadata says otherwise.
    pub fn compression(&self) -> &str {
        let named = self.metadata.as_ref().and_then(|m| m.get(COMPRESSION_KEY));
        named.map_or("none", String::as_str)
    }

    /// Number of descriptors that belong to these options: the statefile, and the two of the pages.
    pub fn files(&self) -> usize {
        if self.have_pages_file { 3 } else { 1 }
    }

    /// Checks what does not depend on the sandbox: the number of descriptors, and that nothing is asked for that airlock
    /// does not do.
    ///
    /// # Errors
    /// gVisor's `got N files, wanted M`; `Unsupported`, naming the field.
    pub fn check(&self, files: usize) -> Result<()> {
        if self.use_checkpoint_gofer {
            return Err(Error::unsupported(
                "use_checkpoint_gofer: airlock writes images to files; pass their descriptors instead of a gofer's socket",
            ));
        }
        if files != self.files() {
            return Err(Error::invalid_argument(format!("got {files} files, wanted {}", self.files())));
        }
        if !self.exec_opts.argv.trim().is_empty() {
            return Err(Error::unsupported(
                "ExecOpts: airlock runs no program around a checkpoint; call ExecuteAsync before and after it",
            ));
        }
        if !self.cuda_checkpoint_path.is_empty() || self.cuda_checkpoint_sequential {
            return Err(Error::unsupported(
                "cuda_checkpoint_path, cuda_checkpoint_sequential: the state of CUDA devices cannot be saved",
            ));
        }
        Ok(())
    }
}

/// Argument of `containerManager.Restore` (gVisor's `RestoreOpts`), in every spelling since 2022, which had nothing but
/// `SandboxID`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreOpts {
    /// Pages are in files of their own, whose descriptors come.
    #[serde(rename = "HavePagesFile", alias = "have_pages_file")]
    pub have_pages_file: bool,
    /// The last descriptor is a device: gVisor's platform device, here `/dev/userfaultfd`.
    #[serde(rename = "HaveDeviceFile", alias = "have_device_file")]
    pub have_device_file: bool,
    /// The programs run first, their memory follows.
    #[serde(rename = "Background")]
    pub background: bool,
    /// The descriptor is a socket of gVisor's checkpoint gofer.
    pub use_checkpoint_gofer: bool,
    /// The sandbox's ID, in 2022; not needed.
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    /// What the image's checksum is keyed with; gVisor has no such field.
    pub key: Option<Base64>,
}

/// Which of the descriptors of a restore is what, as indices into them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreLayout {
    /// The pages' metadata and the pages; empty when they are in the statefile (which is the first descriptor).
    pub pages: Range<usize>,
    /// The device.
    pub device: Option<usize>,
    /// Number of descriptors described here.
    pub count: usize,
}

impl RestoreOpts {
    /// Assigns `count` descriptors to their purposes; `more` of them, at the end, are not these options' business.
    ///
    /// In 2022 a device came without being announced: two descriptors without any option are taken so.
    ///
    /// # Errors
    /// gVisor's texts: none at all, too few, too many.
    pub fn layout(&self, count: usize, more: usize) -> Result<RestoreLayout> {
        if self.use_checkpoint_gofer {
            return Err(Error::unsupported(
                "use_checkpoint_gofer: airlock reads images from files; pass their descriptors instead of a gofer's socket",
            ));
        }
        if count == 0 {
            return Err(Error::invalid_argument("at least one file must be passed to Restore"));
        }
        let pages = 1..if self.have_pages_file { 3 } else { 1 };
        let old = count == 2 && more == 0 && !self.have_pages_file && !self.sandbox_id.is_empty();
        let device = (self.have_device_file || old).then_some(pages.end);
        let known = pages.end + usize::from(device.is_some());
        match (count - more.min(count)).cmp(&known) {
            std::cmp::Ordering::Less => Err(Error::invalid_argument(format!(
                "got {count} files, wanted {}: HavePagesFile needs two and HaveDeviceFile one besides the statefile",
                known + more
            ))),
            std::cmp::Ordering::Greater => {
                Err(Error::invalid_argument("more files passed to Restore than expected"))
            }
            std::cmp::Ordering::Equal => Ok(RestoreLayout { pages, device, count: known }),
        }
    }
}

/// Result of `containerManager.GetSavings`: what a restore has saved. Zero unless the sandbox was restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Savings {
    /// CPU time that the processes had used when they were saved, nanoseconds.
    #[serde(rename = "CPUTimeSaved")]
    pub cpu_time_saved: u64,
    /// Time from their start to their checkpoint, nanoseconds.
    #[serde(rename = "WallTimeSaved")]
    pub wall_time_saved: u64,
}

/// Argument of `Airlock.Checkpoint`: gVisor's options and airlock's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointArgs {
    /// gVisor's options.
    pub save: SaveOpts,
    /// Only find out what could not be saved. No descriptor is needed, and nothing stops for longer than it takes to
    /// look.
    pub dry_run: bool,
    /// Pages are written past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Keep TCP connections that leave the sandbox.
    pub tcp_established: bool,
    /// Save unix sockets that are connected to the outside; they are connected again by path.
    pub ext_unix_sk: bool,
    /// Save file locks.
    pub file_locks: bool,
    /// Save memory alone, let the containers go on, and remember which pages change: a parent for a later checkpoint.
    pub pre_dump: bool,
    /// Store only pages that changed since a parent image. Three more descriptors come behind those of `save`: the
    /// parent's statefile, pages' metadata and pages.
    pub parent: bool,
    /// Images that the parent builds upon, nearest first: two more descriptors for each, pages' metadata and pages.
    pub ancestors: u32,
    /// The last descriptor is a stream socket on which the sandbox says with one byte that the image is complete; the
    /// containers end only when the caller answers with a byte, and go on if it closes the socket instead. So whoever
    /// gives files their final names meanwhile loses neither image nor program if it dies.
    pub commit: bool,
}

impl CheckpointArgs {
    /// Checks the options, and the number of descriptors.
    ///
    /// # Errors
    /// As [`SaveOpts::check`]; combinations that make no sense.
    pub fn check(&self, files: usize) -> Result<()> {
        let ancestors = (self.ancestors as usize).saturating_mul(2);
        let own = if self.parent { 3 + ancestors } else { 0 } + usize::from(self.commit);
        if self.dry_run && files == 0 {
            return self.save.check(self.save.files());
        }
        if self.parent && !self.save.have_pages_file {
            return Err(Error::invalid_argument(
                "a checkpoint with a parent needs have_pages_file: both images keep their pages in files of their own",
            ));
        }
        if files < own + 1 {
            return Err(Error::invalid_argument(format!(
                "got {files} files, wanted {}",
                self.save.files() + own
            )));
        }
        self.save.check(files - own)
    }
}

/// Something that cannot be saved. All of them are found before anything is disturbed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// Container.
    pub cid: String,
    /// Pid in the container.
    pub pid: i32,
    /// Command name.
    pub comm: String,
    /// Descriptor number, if it is about one.
    pub fd: Option<i32>,
    /// What kind of thing it is: `io_uring`, `device mapping`, `socket to the outside`, …
    pub kind: String,
    /// What it is exactly, and what can be done.
    pub what: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({:?}) of container {:?}", self.pid, self.comm, self.cid)?;
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {}: {}", self.kind, self.what)
    }
}

/// Result of `Airlock.Checkpoint` and `Airlock.Restore`: what was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Pages of 4096 bytes stored or brought back.
    pub pages: u64,
    /// Pages that were not stored because they are zero.
    pub zero_pages: u64,
    /// Pages that are in a parent image.
    pub parent_pages: u64,
    /// Bytes written or read.
    pub bytes: u64,
    /// How long the programs stood still, microseconds.
    pub pause_us: u64,
    /// Phases and their durations, microseconds.
    pub phases: Vec<(String, u64)>,
    /// What was left out or will be different, in words.
    pub warnings: Vec<String>,
    /// What cannot be saved: only after a dry run, others fail.
    pub refusals: Vec<Refusal>,
    /// Containers that are still to come (`Airlock.Restore` of one of several containers): nothing runs yet.
    pub missing: u32,
}

/// Argument of `Airlock.Restore`: gVisor's options and airlock's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreArgs {
    /// gVisor's options.
    pub restore: RestoreOpts,
    /// Keep TCP connections that leave the sandbox; otherwise they are closed with a reset.
    pub tcp_established: bool,
    /// Number of parent images, nearest first. Two descriptors for each come behind those of `restore`: its pages'
    /// metadata and its pages.
    pub parents: u32,
    /// With `Background`: only pages that the programs ask for are brought in, until `WaitRestore` or a checkpoint wants
    /// all of them. Sandboxes that are restored so from one image in memory share what none of them touches.
    pub on_demand: bool,
    /// With `Background`: the last descriptor is a file, open for reading and writing, which records the pages that the
    /// programs ask for; later restores of the image that get the same file bring these in first. A hint: what is not a
    /// record of this image is replaced.
    pub working_set: bool,
}

/// Result of `Airlock.CheckpointProgress`: how far a checkpoint or restore is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// `checkpoint` or `restore` while one is in progress; empty otherwise.
    pub work: String,
    /// What is being done now.
    pub phase: String,
    /// Pages of 4096 bytes moved so far.
    pub pages: u64,
    /// Pages in all, as far as known.
    pub total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> T {
        crate::json::from_slice(text.as_bytes()).unwrap()
    }

    #[test]
    fn every_spelling_of_a_checkpoint_is_read() {
        let old: SaveOpts = from_json(r#"{"key":null,"metadata":null}"#);
        assert_eq!((old.compression(), old.files(), old.resume), ("none", 1, false));
        let new: SaveOpts = from_json(
            r#"{"key":"c2VjcmV0","metadata":{"compression":"zstd"},"app_mf_exclude_committed_zero_pages":true,
            "have_pages_file":true,"Resume":true,"ExecOpts":{"Argv":"","Timeout":600000000000,"ContainerID":"c"},
            "use_checkpoint_gofer":false,"cuda_checkpoint_path":"","cuda_checkpoint_sequential":false}"#,
        );
        assert_eq!((new.compression(), new.files(), new.resume), ("zstd", 3, true));
        assert_eq!(new.key, Some(Base64(b"secret".to_vec())));
        assert!(new.check(3).is_ok());
        for text in [r#"{"HavePagesFile":true,"resume":true}"#, r#"{"have_pages_file":true,"Resume":true}"#] {
            let opts: SaveOpts = from_json(text);
            assert!(opts.have_pages_file && opts.resume, "{text}");
        }
        assert!(crate::json::from_slice::<SaveOpts>(br#"{"key":"!"}"#).is_err());
    }

    #[test]
    fn what_a_checkpoint_cannot_do_is_refused_by_name() {
        for (text, files, error) in [
            ("{}", 0, "got 0 files, wanted 1"),
            ("{}", 3, "got 3 files, wanted 1"),
            (r#"{"have_pages_file":true}"#, 1, "got 1 files, wanted 3"),
            (r#"{"use_checkpoint_gofer":true}"#, 1, "use_checkpoint_gofer"),
            (r#"{"ExecOpts":{"Argv":"/bin/true"}}"#, 1, "ExecOpts"),
            (r#"{"cuda_checkpoint_path":"/c"}"#, 1, "cuda_checkpoint_path"),
        ] {
            let refused = from_json::<SaveOpts>(text).check(files).unwrap_err();
            assert!(refused.message.starts_with(error), "{text}: {refused}");
        }
        let mut args = CheckpointArgs { parent: true, ..CheckpointArgs::default() };
        assert!(args.check(4).unwrap_err().message.contains("have_pages_file"));
        args.save.have_pages_file = true;
        assert_eq!(args.check(3).unwrap_err().message, "got 3 files, wanted 6");
        args.commit = true;
        assert!(args.check(7).is_ok() && args.check(6).is_err() && args.check(8).is_err());
        assert!(CheckpointArgs { dry_run: true, ..CheckpointArgs::default() }.check(0).is_ok());
    }

    #[test]
    fn files_of_a_restore_are_counted() {
        let plain: RestoreOpts = from_json(r#"{"SandboxID":"x"}"#);
        assert_eq!(plain.layout(1, 0).unwrap(), RestoreLayout { pages: 1..1, device: None, count: 1 });
        assert_eq!(plain.layout(2, 0).unwrap().device, Some(1));
        let all: RestoreOpts = from_json(
            r#"{"HavePagesFile":true,"HaveDeviceFile":true,"Background":true,"use_checkpoint_gofer":false}"#,
        );
        assert_eq!(all.layout(4, 0).unwrap(), RestoreLayout { pages: 1..3, device: Some(3), count: 4 });
        assert_eq!(all.layout(6, 2).unwrap().count, 4);
        for (opts, count, more, error) in [
            (RestoreOpts::default(), 0, 0, "at least one file must be passed to Restore"),
            (RestoreOpts::default(), 2, 0, "more files passed to Restore than expected"),
            (all.clone(), 3, 0, "got 3 files, wanted 4"),
            (all.clone(), 5, 0, "more files passed to Restore than expected"),
            (all.clone(), 4, 2, "got 4 files, wanted 6"),
            (RestoreOpts { use_checkpoint_gofer: true, ..all }, 1, 0, "use_checkpoint_gofer"),
        ] {
            let refused = opts.layout(count, more).unwrap_err();
            assert!(refused.message.starts_with(error), "{count} {more}: {refused}");
        }
    }
}
