//! Trace sessions, which take BPF: the worker loads the programs, and then tells the sinks what they note.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::trace::message::{Known, Start};
use crate::trace::session::{AT_ONCE, Session};
use airlock_wire::api::trace::SessionConfig;
use airlock_wire::api::types::Json;
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Events are collected for this long once there are some: waking up for each would cost more than telling it.
const COLLECT: Duration = Duration::from_millis(2);

/// Runs a session until the loader closes the channel. Afterwards it takes [`TraceRequest`]s and answers each with what
/// every sink has not got.
#[derive(Debug, Serialize, Deserialize)]
pub struct TraceSession {
    /// What is told to whom.
    pub what: Traced,
    /// The containers that there are.
    pub containers: Vec<Known>,
    /// Their cgroups are in the hierarchy of v2.
    pub v2: bool,
}

/// What a session tells, to whom.
#[derive(Debug, Serialize, Deserialize)]
pub enum Traced {
    /// A user's session. Descriptors: of those sinks that have one, in their order.
    Session {
        /// Checked by the loader already.
        config: Json<SessionConfig>,
        /// For each sink, whether there is a descriptor.
        given: Vec<bool>,
    },
    /// System calls with these numbers, to the sandbox's log, which is the descriptor.
    Strace(BTreeSet<u32>),
}

/// What the loader tells or asks a session.
#[derive(Debug, Serialize, Deserialize)]
pub enum TraceRequest {
    /// There is a new container.
    Know(Known),
    /// A container is about to start.
    Start(Start),
    /// A container is gone.
    Forget(u32),
    /// What has been dropped?
    Status,
}

impl Task for TraceSession {
    type Reply = ();

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<Self::Reply>> {
        let mut fds = fds.into_iter();
        let session = match self.what {
            Traced::Session { config, given } => {
                let descriptors = given.iter().map(|given| if *given { fds.next() } else { None }).collect();
                Session::begin(&config, descriptors, self.containers, self.v2, &worker.procfs)?
            }
            Traced::Strace(calls) => {
                let log = fds.next().ok_or_else(|| Error::invalid_argument("no log came"))?;
                Session::strace(&calls, log, self.containers, self.v2)?
            }
        };
        Ok(Done { then: Some(Box::new(move |worker| serve(worker, session))), ..Done::with(()) })
    }
}

fn serve(worker: &Worker, mut session: Session) -> Result<()> {
    loop {
        let (wait, watched) = match session.tell() {
            0 => (PollTimeout::NONE, 2),
            // There is more already.
            AT_ONCE => (PollTimeout::ZERO, 1),
            _ => (PollTimeout::try_from(COLLECT).unwrap_or(PollTimeout::ZERO), 1),
        };
        let mut fds = [
            PollFd::new(worker.channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(session.ready(), PollFlags::POLLIN),
        ];
        match poll(fds.get_mut(..watched).unwrap_or_default(), wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if fds[0].revents().is_none_or(|r| r.is_empty()) {
            continue;
        }
        match binary::recv::<TraceRequest>(&worker.channel) {
            Ok((request, _)) => {
                match request {
                    TraceRequest::Know(container) => {
                        let _ = session.know(container);
                    }
                    TraceRequest::Start(start) => session.start(&start),
                    TraceRequest::Forget(number) => session.forget(number),
                    TraceRequest::Status => {
                        session.tell();
                    }
                }
                binary::send(&worker.channel, &session.dropped(), &[])?;
            }
            Err(e) => {
                session.end();
                return if e.kind == Kind::Disconnected { Ok(()) } else { Err(e) };
            }
        }
    }
}
