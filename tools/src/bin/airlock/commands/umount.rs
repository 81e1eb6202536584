//! `umount`: a mount of a running container goes.

#![forbid(unsafe_code)]

use crate::cli::UmountArgs;
use crate::global::Global;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Unmounts.
pub fn run(global: &Global, args: UmountArgs) -> Result<ExitCode> {
    let flag = |on: bool, flag: i32| if on { flag as u32 } else { 0 };
    let flags = flag(args.lazy, libc::MNT_DETACH) | flag(args.force, libc::MNT_FORCE);
    global.airlock()?.umount(&args.id, &args.target, flags).map(|()| ExitCode::SUCCESS)
}
