//! `State`: gVisor's older name of the checkpoint (`pkg/sentry/control`).

use super::checkpoint::SaveOpts;
use super::types::{Empty, RawJson};

crate::methods! {
    receiver "State", from "gVisor pkg/sentry/control/state.go; seed 001";
    /// Saves the sandbox, as containerManager.Checkpoint does.
    Save: SaveOpts => Empty, fds "in: the statefile; with have_pages_file the pages' metadata and the pages", errors "as containerManager.Checkpoint", blocks "until the image is written";
    /// Refused: its argument in gVisor is made of pointers into its kernel, which no message can carry.
    SaveWithOpts: RawJson => Empty, errors "always: `SaveWithOpts is not supported`, and what to use instead";
}
