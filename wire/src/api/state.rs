//! `State`: gVisor's older name of the checkpoint (`pkg/sentry/control`).

use super::checkpoint::SaveOpts;
use super::types::Empty;

crate::methods! {
    receiver "State";
    /// Saves the sandbox, as containerManager.Checkpoint does.
    Save: SaveOpts => Empty, fds "in: the statefile; with have_pages_file the pages' metadata and the pages";
}
