//! Links: interfaces of the sandbox whose other side are descriptors that the caller donated. The task makes them, gives
//! them what the caller says (addresses, routes, neighbours), and goes on as their [`pump`].
//!
//! An interface is one end of a veth pair in the sandbox's network namespace, in which every worker begins. The other end
//! is in a namespace of this process' own, with the pump's packet sockets ([`port`]): when the process ends, all of it is
//! gone.
#![forbid(unsafe_code)]

mod configure;
mod nat;
pub mod offload;
mod peer;
mod port;
mod pump;
mod trace;
mod xdp;

use super::{Done, Task, Worker};
use crate::boot::logging;
use airlock_wire::api::network::{CreateLinksAndRoutesArgs, FdBasedLink, XdpLink};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use configure::Configuration;
use nat::Nat;
use peer::Peer;
use port::Port;
use pump::{Channel, Shared};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use trace::Trace;

/// Stack of a pump's thread in bytes; its buffers are on the heap.
const STACK: usize = 256 << 10;

/// Makes links and goes on as their pump; see [`Control`] for what it hears then.
///
/// Descriptors: the sandbox's log if `log`, then those of the call.
#[derive(Debug, Serialize, Deserialize)]
pub struct Links {
    /// What to make.
    pub args: CreateLinksAndRoutesArgs,
    /// The sandbox's log is among the descriptors, of this level (0 off … 5 trace).
    pub log: Option<u8>,
    /// ID of the sandbox, for the log.
    pub id: String,
}

/// What the loader says to a pump.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Control {
    /// Write a line about every frame, or do so no more.
    LogPackets(bool),
    /// Drop every frame, or move them again.
    Stop(bool),
}

impl Task for Links {
    type Reply = ();

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let mut fds = fds.into_iter();
        if let Some(level) = self.log {
            logging::init(fds.next(), None, level, &self.id);
        }
        let mut fds: Vec<Option<OwnedFd>> = fds.map(Some).collect();
        let args = self.args;
        let layout = args.layout(fds.len())?;
        refuse(&args)?;
        let of_xdp = args.xdp_links.iter().map(FdBasedLink::from);
        let links: Vec<FdBasedLink> = args.fd_based_links.iter().cloned().chain(of_xdp).collect();
        let mut peers = Vec::new();
        for (link, channels) in args.fd_based_links.iter().zip(layout.fd_based) {
            let donated = fds[channels].iter_mut().filter_map(Option::take);
            let of_link = donated.map(Peer::identify).collect::<Result<Vec<_>>>();
            let of_link = of_link.map_err(|e| e.context(format!("link {:?}", link.name)))?;
            check_kinds(link, &of_link)?;
            peers.push(of_link);
        }
        for (link, channels) in args.xdp_links.iter().zip(layout.xdp) {
            let donated = fds[channels].iter_mut().filter_map(Option::take).collect();
            let peer = xdp::peer(link, donated, &worker.procfs);
            peers.push(vec![peer.map_err(|e| e.context(format!("link {:?}", link.name)))?]);
        }
        let nat = layout.nat.and_then(|i| fds.get_mut(i)?.take()).map(Nat::read).transpose()?;
        let capture = layout.pcap.and_then(|i| fds.get_mut(i)?.take());
        let shared = Arc::new(Shared {
            trace: Trace::new(capture, args.log_packets)
                .map_err(|e| Error::from(e).context("writing to the PCAP file"))?,
            stopped: args.pause_external_networking.into(),
        });

        let mut configuration = Configuration::begin(&args, &links, worker)?;
        let mut channels = Vec::new();
        for (link, peers) in links.iter().zip(peers) {
            let ports = Port::open(configuration.link(link)?, peers.len())?;
            peer::spread(peers.iter().filter(|p| p.kind == peer::Kind::Packet).map(|p| p.fd.as_fd()))?;
            let living = Arc::new(AtomicUsize::new(peers.len()));
            channels.extend(ports.into_iter().zip(peers).map(|(port, peer)| Channel {
                name: link.name.clone(),
                port,
                peer,
                living: living.clone(),
                ended: false.into(),
                shared: shared.clone(),
            }));
        }
        nat.map_or(Ok(()), |nat| nat.apply())?;
        configuration.finish()?;
        let channels: Vec<_> = channels.into_iter().map(Arc::new).collect();
        channels.iter().try_for_each(start)?;
        let then = move |worker: &Worker| {
            let result = control(worker, &shared);
            channels.iter().for_each(|channel| channel.report());
            result
        };
        Ok(Done { then: Some(Box::new(then)), ..Done::with(()) })
    }
}

/// What cannot work here, by name.
fn refuse(args: &CreateLinksAndRoutesArgs) -> Result<()> {
    let too_large = |link: &&XdpLink| u32::try_from(link.mtu).is_ok_and(|mtu| mtu > xdp::MTU_MAX);
    if let Some(link) = args.xdp_links.iter().find(too_large) {
        return Err(Error::unsupported(format!(
            "link {:?}: MTU {}: a frame of an AF_XDP socket has room for {}",
            link.name,
            link.mtu,
            xdp::MTU_MAX
        )));
    }
    Ok(())
}

fn check_kinds(link: &FdBasedLink, peers: &[Peer]) -> Result<()> {
    let wrong =
        link.is_packet.iter().zip(peers).position(|(said, peer)| *said != (peer.kind == peer::Kind::Packet));
    match wrong {
        Some(i) => Err(Error::invalid_argument(format!(
            "link {:?}: descriptor {i} is {} packet socket, but IsPacket says otherwise",
            link.name,
            if link.is_packet[i] { "no" } else { "a" }
        ))),
        None => Ok(()),
    }
}

/// Starts both directions of a channel.
fn start(channel: &Arc<Channel>) -> Result<()> {
    for (name, direction) in [("links-out", Channel::outward as fn(&Channel)), ("links-in", Channel::inward)]
    {
        let channel = channel.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || direction(&channel))
            .map_err(|e| {
                Error::from(e).context("starting a thread of the pump (is the pids limit reached?)")
            })?;
    }
    Ok(())
}

/// Listens to the loader until it is gone or wants no links any more.
fn control(worker: &Worker, shared: &Shared) -> Result<()> {
    loop {
        match binary::recv::<Control>(&worker.channel) {
            Ok((Control::LogPackets(on), _)) => shared.trace.set_logs(on),
            Ok((Control::Stop(on), _)) => shared.stopped.store(on, Ordering::Relaxed),
            Err(e) if e.kind == Kind::Disconnected => return Ok(()),
            Err(e) => return Err(e),
        }
        binary::send(&worker.channel, &(), &[])?;
    }
}
