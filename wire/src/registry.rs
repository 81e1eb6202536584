//! Methods and their handlers.

#![forbid(unsafe_code)]

use crate::calls::{Calls, Counter};
use crate::client::Dialect;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::json;
use crate::method::{ErrorText, Method, MethodInfo};
use crate::scm::PeerCred;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One call, as its handler sees it. Descriptors that the handler does not take are closed when it returns.
#[derive(Debug)]
pub struct Call<'a> {
    pub(crate) peer: &'a PeerCred,
    pub(crate) dialect: Dialect,
    pub(crate) stream: &'a UnixStream,
    pub(crate) fds: Vec<Option<OwnedFd>>,
    pub(crate) reply_fds: Vec<OwnedFd>,
    pub(crate) dependents: &'a mut Dependents,
}

/// Something that lives only as long as the connection which it was made on.
pub trait Dependent: Send {
    /// True when it has ended by itself, and needs no connection any more.
    fn has_ended(&self) -> bool;
    /// Ends it: the client has hung up, or the server stops.
    fn hung_up(&self);
}

/// What depends on a connection; ended when this is dropped.
#[derive(Default)]
pub(crate) struct Dependents(Vec<Box<dyn Dependent>>);

impl fmt::Debug for Dependents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dependents", self.0.len())
    }
}

impl Drop for Dependents {
    fn drop(&mut self) {
        self.0.iter().for_each(|dependent| dependent.hung_up());
    }
}

impl Call<'_> {
    /// Who calls, as of the time when the connection was made.
    pub fn peer(&self) -> &PeerCred {
        self.peer
    }

    /// The dialect of the request; the reply is in the same.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Number of descriptors that came with the call, taken or not.
    pub fn fd_count(&self) -> usize {
        self.fds.len()
    }

    /// Takes the descriptor with this index in the message.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none, or it was taken already.
    pub fn take_fd(&mut self, index: usize) -> Result<OwnedFd> {
        let count = self.fds.len();
        match self.fds.get_mut(index) {
            Some(fd) => fd.take().ok_or_else(|| {
                Error::invalid_argument(format!(
                    "the descriptor with index {index} is named twice in this call"
                ))
            }),
            None => Err(Error::invalid_argument(format!(
                "there is no descriptor with index {index}: {count} came with this call"
            ))),
        }
    }

    /// Takes all descriptors that were not taken yet, in order. Indices stay as they are.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.fds.iter_mut().filter_map(Option::take).collect()
    }

    /// Adds a descriptor to those that the reply carries if the handler succeeds; it is closed in any case.
    pub fn reply_fd(&mut self, fd: OwnedFd) {
        self.reply_fds.push(fd);
    }

    /// Has `dependent` ended with the connection, also when the reply to this call cannot be delivered.
    pub fn ends_with_connection(&mut self, dependent: Box<dyn Dependent>) {
        self.dependents.0.retain(|other| !other.has_ended());
        self.dependents.0.push(dependent);
    }

    /// Blocks until `fd` is readable, or at its end, or in error: whatever would make read(2) return.
    ///
    /// A client that only shuts down its sending half still waits for the reply and does not count as gone.
    ///
    /// # Errors
    /// `Disconnected` when the client hangs up first, or the server's grace period ends; `InvalidArgument` when `fd` is
    /// not open.
    pub fn wait_readable(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.wait_readable_until(fd, None).map(drop)
    }

    /// As [`Call::wait_readable`], at most until `deadline`: false when that has passed first.
    ///
    /// # Errors
    /// As [`Call::wait_readable`].
    pub fn wait_readable_until(&self, fd: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
        let mut fds =
            [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        loop {
            let timeout = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => PollTimeout::NONE,
                // Rounded up, so that the deadline has passed when nothing has come; a long wait is done in parts.
                Some(left) => PollTimeout::try_from(left.saturating_add(Duration::from_micros(999)))
                    .unwrap_or(PollTimeout::MAX),
            };
            match poll(&mut fds, timeout) {
                Ok(0) if deadline.is_some_and(|d| Instant::now() >= d) => return Ok(false),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(Error::from(e).context("waiting for a descriptor")),
            }
            match [0, 1].map(|i: usize| fds[i].revents().unwrap_or(PollFlags::empty())) {
                [fd, _] if fd.contains(PollFlags::POLLNVAL) => {
                    return Err(Error::invalid_argument("waiting for a descriptor that is not open"));
                }
                [fd, _] if !fd.is_empty() => return Ok(true),
                [_, client] if !client.is_empty() => {
                    return Err(Error::new(
                        Kind::Disconnected,
                        "the client is gone, or the sandbox is ending",
                    ));
                }
                _ => {}
            }
        }
    }

    /// True once the client has hung up.
    pub fn client_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }
}

/// A handler whose types are forgotten: it decodes the argument, and appends the encoded result to `out`.
pub(crate) trait Handler: Send + Sync {
    fn json(&self, call: &mut Call<'_>, arg: json::Node<'_>, out: &mut Vec<u8>) -> Result<()>;
    fn binary(&self, call: &mut Call<'_>, arg: &[u8], out: &mut Vec<u8>) -> Result<()>;
    fn info(&self) -> MethodInfo;
}

struct Typed<M, F> {
    handler: F,
    method: PhantomData<fn() -> M>,
}

impl<M, F> Handler for Typed<M, F>
where
    M: Method,
    F: Fn(&mut Call<'_>, M::Arg) -> Result<M::Reply> + Send + Sync,
{
    fn json(&self, call: &mut Call<'_>, arg: json::Node<'_>, out: &mut Vec<u8>) -> Result<()> {
        let told = |e: Error| Error::new(e.kind, M::Errors::text(&e));
        let reply = json::from_node(arg).and_then(|arg| (self.handler)(call, arg)).map_err(told)?;
        json::encode(&reply, out)
    }
    fn binary(&self, call: &mut Call<'_>, arg: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let reply = (self.handler)(call, codec::decode(arg)?)?;
        codec::encode_into(&reply, out)
    }
    fn info(&self) -> MethodInfo {
        M::info()
    }
}

/// The methods that a server answers, with their handlers.
#[derive(Default)]
pub struct Registry {
    handlers: BTreeMap<&'static str, Entry>,
    calls: Calls,
}

/// A method's handler, and what is counted of it.
struct Entry {
    handler: Box<dyn Handler>,
    counter: Arc<Counter>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `M` with `handler`; a later registration replaces an earlier one.
    ///
    /// The handler runs on its connection's thread and may block: other connections go on. If it waits, it should do
    /// so with [`Call::wait_readable`], so that a client that hangs up leaves no thread behind. A panic becomes an
    /// error of kind `Panic`.
    pub fn on<M: Method + 'static>(
        &mut self,
        handler: impl Fn(&mut Call<'_>, M::Arg) -> Result<M::Reply> + Send + Sync + 'static,
    ) {
        let handler = Box::new(Typed::<M, _> { handler, method: PhantomData });
        self.handlers.insert(M::NAME, Entry { handler, counter: self.calls.counter(M::NAME) });
    }

    /// The registered methods, by name.
    pub fn methods(&self) -> Vec<MethodInfo> {
        self.handlers.values().map(|entry| entry.handler.info()).collect()
    }

    /// What is counted of the calls that this registry answers.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Has `answer` call the handler of `method`, and counts the call with its time.
    pub(crate) fn counted(
        &self,
        method: &str,
        answer: impl FnOnce(&dyn Handler) -> Result<()>,
    ) -> Result<()> {
        let Some(entry) = self.handlers.get(method) else {
            self.calls.count_unknown();
            return Err(Error::new(Kind::UnknownMethod, json::UNKNOWN_METHOD));
        };
        let begin = Instant::now();
        let result = answer(entry.handler.as_ref());
        entry.counter.count(begin, result.is_err());
        result
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.handlers.keys()).finish()
    }
}
