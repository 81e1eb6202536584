//! `Events`: gVisor's feed of events to a debugger, which its own runsc does not offer.

use super::types::Empty;

crate::methods! {
    receiver "Events", from "gVisor pkg/sentry/control/events.go; not registered by runsc";
    /// Refused: airlock tells events by Airlock.Watch and by trace sessions.
    AttachDebugEmitter: Empty => Empty, fds "in: a socket", errors "always: `AttachDebugEmitter is not supported`, and what to use instead";
}
