//! Waiting for the parent's word while it runs `prestart` and `createRuntime` hooks.
#![forbid(unsafe_code)]

use airlock_wire::api::airlock::Continue;
use airlock_wire::binary::{self, FrameKind, Limits};
use airlock_wire::codec;
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::method::Method;
use std::os::unix::net::UnixStream;

/// Blocks until the parent calls `Airlock.Continue` and answers it. There is no server on the socket yet: the
/// sandbox has nothing to serve.
///
/// # Errors
/// [`Kind::Disconnected`] when the parent gives up (a hook failed), [`Kind::Protocol`] for anything else it says.
pub(super) fn wait_for_continue(socket: &UnixStream) -> Result<()> {
    let frame = binary::recv_frame(socket, Limits::default())?;
    let method = match frame.kind {
        FrameKind::Request => codec::decode_prefix::<String>(&frame.body)?.0,
        other => {
            return Err(Error::new(Kind::Protocol, format!("a {other:?} frame while the sandbox is held")));
        }
    };
    if method != Continue::NAME {
        return Err(Error::invalid_state(format!(
            "{method}: the sandbox is held; call {} first",
            Continue::NAME
        )));
    }
    binary::send_frame(socket, FrameKind::Reply, &[], &[])
}
