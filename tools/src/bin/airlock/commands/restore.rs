//! `restore`: a container from an image.

#![forbid(unsafe_code)]

use super::checkpoint::check_criu_options;
use super::create::options;
use super::run::{Fate, run_to_end};
use crate::cli::RestoreArgs;
use crate::global::Global;
use airlock::container::CreateOptions;
use airlock::container::restore::RestoreOptions;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Restores the container; its exit status becomes ours unless it is detached.
pub fn run(global: &Global, args: RestoreArgs) -> Result<ExitCode> {
    check_criu_options(&args.criu)?;
    if args.auto_dedup {
        return Err(Error::unsupported("--auto-dedup: a complete image is never changed"));
    }
    for (name, label) in
        [("--lsm-profile", &args.lsm_profile), ("--lsm-mount-context", &args.lsm_mount_context)]
    {
        if let Some(label) = label.as_deref().filter(|l| !l.is_empty()) {
            return Err(Error::unsupported(format!(
                "{name} {label}: AppArmor profiles and SELinux labels are not supported; leave the option away"
            )));
        }
    }
    let restore = RestoreOptions {
        image: args.image_path,
        background: args.background,
        key_file: args.key_file,
        tcp_established: args.tcp_established,
        work_path: args.work_path,
    };
    let options = CreateOptions { restore: Some(restore), ..options(global, &args.container)? };
    let fate = Fate { detach: args.detach, keep: args.keep };
    run_to_end(global, &args.container, options, fate)
}
