//! The sandbox's interfaces, as far as they are the caller's descriptors ([`crate::worker::links`]).
#![forbid(unsafe_code)]

use super::{Loader, Working};
use crate::boot::logging;
use crate::container::{State, lock};
use crate::worker::Links;
use crate::worker::links::Control;
use airlock_wire::api::network::CreateLinksAndRoutesArgs;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

/// What there is of links.
#[derive(Debug, Default)]
pub(super) struct Network(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// As they were given, made or not.
    args: Option<CreateLinksAndRoutesArgs>,
    /// The descriptors of links that are to be made yet.
    waiting: Option<Vec<OwnedFd>>,
    made: bool,
    pump: Option<Working>,
}

impl Loader {
    /// Whether the sandbox's network is its own to set up.
    pub fn has_own_network(&self) -> bool {
        self.config.own_network
    }

    fn own_network(&self) -> Result<()> {
        if self.has_own_network() {
            return Ok(());
        }
        Err(Error::unsupported(
            "the sandbox shares the network namespace of its caller (its configuration lists none): it gets no links of its own",
        ))
    }

    /// Keeps links until the root container is started or restored (gVisor's `SetNetworkArgs`). Later they are ignored with
    /// a warning.
    ///
    /// # Errors
    /// `cannot set nil networkArgs`, `insufficient FDs provided for link "L"`; a sandbox without a network of its own.
    pub fn set_network_args(&self, args: Option<CreateLinksAndRoutesArgs>, fds: Vec<OwnedFd>) -> Result<()> {
        let args = args.ok_or_else(|| Error::invalid_argument("cannot set nil networkArgs"))?;
        self.own_network()?;
        let root = self.root()?.state();
        if root.runs() || root == State::Stopped {
            log::warn!("network arguments are ignored: the root container is {}", root.name());
            return Ok(());
        }
        args.check_sufficient(fds.len())?;
        args.layout(fds.len())?;
        let mut links = lock(&self.network.0);
        links.args = Some(args);
        links.waiting = Some(fds);
        Ok(())
    }

    /// The links as they were given; empty if none were.
    pub fn network_config(&self) -> CreateLinksAndRoutesArgs {
        lock(&self.network.0).args.clone().unwrap_or_default()
    }

    /// Makes links at once (gVisor's `CreateLinksAndRoutes`); blocks until they are there.
    ///
    /// # Errors
    /// gVisor's, for what is wrong with the arguments; a second call.
    pub fn create_links(&self, args: CreateLinksAndRoutesArgs, fds: Vec<OwnedFd>) -> Result<()> {
        self.own_network()?;
        let mut links = lock(&self.network.0);
        self.make_links(&mut links, &args, fds)?;
        links.args = Some(args);
        links.waiting = None;
        Ok(())
    }

    /// Makes the links that were kept, if there are any: the root container is about to run.
    pub(super) fn create_kept_links(&self) -> Result<()> {
        let mut links = lock(&self.network.0);
        match (links.args.clone(), links.waiting.take()) {
            (Some(args), Some(fds)) => {
                self.make_links(&mut links, &args, fds).map_err(|e| e.context("network"))
            }
            _ => Ok(()),
        }
    }

    fn make_links(&self, links: &mut Kept, args: &CreateLinksAndRoutesArgs, fds: Vec<OwnedFd>) -> Result<()> {
        if links.made {
            return Err(Error::invalid_state("the sandbox's links were made before: that is done once"));
        }
        // What is wrong with the call is told without a process for it.
        args.layout(fds.len())?;
        let log = logging::file();
        let task = Links {
            args: args.clone(),
            log: log.is_some().then(|| log::max_level() as u8),
            id: self.id().to_owned(),
        };
        let all: Vec<_> = log.iter().chain(&fds).map(AsFd::as_fd).collect();
        let ((), _, pump) = self.work(task, &all)?;
        links.made = true;
        links.pump = Some(pump);
        Ok(())
    }

    /// Has a line written to the log about every frame of the sandbox's links, or no more. Without links, for those that
    /// come.
    ///
    /// # Errors
    /// The pump has ended; the sandbox has no network of its own.
    pub fn log_packets(&self, on: bool) -> Result<()> {
        self.own_network()?;
        self.tell_pump(Control::LogPackets(on), |args| args.log_packets = on)
    }

    /// Stops all frames of the sandbox's links, or lets them go on.
    ///
    /// # Errors
    /// As [`Loader::log_packets`].
    pub fn stop_links(&self, stop: bool) -> Result<()> {
        self.own_network()?;
        self.tell_pump(Control::Stop(stop), |args| args.pause_external_networking = stop)
    }

    fn tell_pump(&self, control: Control, note: impl FnOnce(&mut CreateLinksAndRoutesArgs)) -> Result<()> {
        let mut links = lock(&self.network.0);
        if let Some(pump) = &links.pump {
            let gone = |e: Error| e.context("the process that moves the sandbox's packets has ended");
            binary::send(&pump.channel, &control, &[]).map_err(gone)?;
            binary::recv::<()>(&pump.channel).map_err(gone)?;
        }
        if let Some(args) = &mut links.args {
            note(args);
        }
        Ok(())
    }
}
