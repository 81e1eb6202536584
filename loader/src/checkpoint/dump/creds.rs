//! Who a thread is: ids, capabilities, secure bits.
#![forbid(unsafe_code)]

use super::status::Status;
use crate::checkpoint::state::Creds;
use crate::procfs::ProcFs;

/// Credentials from a thread's status; `securebits` are what PR_GET_SECUREBITS answered.
pub fn collect(procfs: &ProcFs, tid: i32, status: &Status, securebits: u32) -> Creds {
    Creds {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        caps: status.caps,
        securebits,
        no_new_privs: status.no_new_privs,
        label: label(procfs, tid),
    }
}

/// The security module's label; empty where there is none, or no module.
pub fn label(procfs: &ProcFs, tid: i32) -> String {
    let text = procfs.read(tid, "attr/current").unwrap_or_default();
    text.trim_end_matches(['\0', '\n']).to_owned()
}
