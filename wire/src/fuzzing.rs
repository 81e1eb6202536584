//! What the fuzz targets in `fuzz/` run, kept here so that `cargo test` compiles it and replays the corpus.
//!
//! Each function takes arbitrary bytes and panics if a rule of the protocol's implementation is broken.

#![forbid(unsafe_code)]
// A panic is how a fuzz target reports.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

use crate::api::boot::{BootArgs, BootReply};
use crate::api::types::{Empty, Json};
use crate::api::{
    self, airlock, container_manager as cm, fs, lifecycle, logging, network, proc, supervisor, usage,
};
use crate::binary::{FrameKind, HEADER_LEN, Header};
use crate::error::Error;
use crate::method::{Method, Visitor};
use crate::{Registry, Server, ServerOptions, codec, json, scm};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

crate::methods! {
    receiver "Fuzz";
    /// Gives back a string.
    Echo: String => String;
    /// Gives back every descriptor.
    Bounce: Empty => u32, fds "in: any; out: the same";
    /// Takes a structure with every kind of field.
    Prepare: airlock::PrepareArgs => airlock::Prepared;
}

/// A server of this module's methods.
pub fn server() -> Server {
    let mut registry = Registry::new();
    registry.on::<Echo>(|_, text| Ok(text));
    registry.on::<Bounce>(|call, _| {
        let fds = call.take_fds();
        let count = fds.len() as u32;
        fds.into_iter().for_each(|fd| call.reply_fd(fd));
        Ok(count)
    });
    registry.on::<Prepare>(|_, _| Ok(airlock::Prepared::default()));
    Server::new(registry, ServerOptions { max_body: 1 << 20, ..ServerOptions::default() })
}

/// Parses `data` as the text form of messages of the container API; what can be read must survive being written.
pub fn container(data: &[u8]) {
    use crate::api::container::spec::{ContainerSpec, EventSpec, InitSpec};
    use crate::api::container::stats::ContainerStats;
    use crate::api::container::text::{from_json_or_text, from_text, to_text};
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) {
        let Ok(value) = from_json_or_text::<T>(text) else { return };
        assert_eq!(from_text::<T>(&to_text(&value).unwrap()).unwrap(), value);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    check::<ContainerSpec>(text);
    check::<ContainerStats>(text);
    check::<EventSpec>(text);
    check::<InitSpec>(text);
}

/// Parses `data` as a JSON message and as every argument; what can be read must survive being written.
pub fn json(data: &[u8]) {
    if let Ok(request) = json::decode_request(data)
        && let Some(arg) = request.arg
    {
        drop(json::from_node::<cm::StartArgs>(arg));
    }
    drop(json::decode_reply(data));
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
        let Ok(value) = json::from_slice::<T>(data) else { return };
        let mut text = Vec::new();
        json::encode(&value, &mut text).unwrap();
        assert_eq!(json::from_slice::<T>(&text).unwrap(), value);
    }
    check::<String>(data);
    check::<cm::SignalArgs>(data);
    check::<cm::ExecArgs>(data);
    check::<cm::PortForwardOpts>(data);
    check::<cm::MountArgs>(data);
    check::<cm::FsSaveOpts>(data);
    check::<fs::ReadOpts>(data);
    check::<fs::MountOpts>(data);
    check::<fs::UmountOpts>(data);
    check::<Json<cm::EventOut>>(data);
    check::<Vec<cm::Process>>(data);
    check::<Vec<crate::api::procfs::ProcessProcfsDump>>(data);
    check::<logging::LoggingArgs>(data);
    check::<lifecycle::SignalContainerArgs>(data);
    check::<proc::PsArgs>(data);
    check::<usage::MemoryUsage>(data);
    check::<airlock::ContainerInfo>(data);
    check::<network::CreateLinksAndRoutesArgs>(data);
    check::<supervisor::ConfigureRequest>(data);
    check::<supervisor::ExecRequest>(data);
    check::<supervisor::KillRequest>(data);
    check::<supervisor::Event>(data);
    if let Ok(links) = json::from_slice::<network::CreateLinksAndRoutesArgs>(data) {
        drop(links.layout(8));
        drop(links.check_sufficient(8));
    }
    // A spec's text may come back with other spaces and another order: only reading twice must agree.
    if let Ok(start) = json::from_slice::<cm::StartArgs>(data) {
        drop(start.layout(false, 8));
        let mut text = Vec::new();
        json::encode(&start, &mut text).unwrap();
        assert_eq!(json::from_slice::<cm::StartArgs>(&text).unwrap().cid, start.cid);
    }
    drop(json::from_slice::<airlock::PrepareArgs>(data));
}

/// Parses `data` as a frame and as every kind of body; what can be read must survive being written.
pub fn binary(data: &[u8]) {
    if let Some(Ok(header)) = data.first_chunk::<HEADER_LEN>().map(|h| Header::decode(h, 1 << 20)) {
        assert!(header.body <= 1 << 20 && header.fds <= crate::binary::MAX_FDS);
    }
    if let Ok((method, arg)) = codec::split_str(data) {
        assert!(method.len() + arg.len() < data.len());
    }
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
        let Ok(value) = codec::decode::<T>(data) else { return };
        let mut bytes = Vec::new();
        codec::encode_into(&value, &mut bytes).unwrap();
        assert_eq!(codec::decode::<T>(&bytes).unwrap(), value);
    }
    check::<String>(data);
    check::<Error>(data);
    check::<BootArgs>(data);
    check::<BootReply>(data);
    check::<cm::StartArgs>(data);
    check::<cm::ExecArgs>(data);
    check::<cm::SignalArgs>(data);
    check::<Json<cm::EventOut>>(data);
    check::<Vec<cm::Process>>(data);
    check::<logging::LoggingArgs>(data);
    check::<airlock::PrepareArgs>(data);
    check::<network::CreateLinksAndRoutesArgs>(data);
    check::<Vec<airlock::ContainerInfo>>(data);
}

/// Reads `data` as a method's name, a newline and an argument of that method, in either dialect; of every method when the
/// name is none. What can be read must stay the same when it is written and read again.
pub fn arguments(data: &[u8]) {
    struct Argument<'a> {
        of: Option<&'a str>,
        bytes: &'a [u8],
    }
    impl Visitor for Argument<'_> {
        fn visit<M: Method + 'static>(&mut self) {
            if self.of.is_some_and(|name| name != M::NAME) {
                return;
            }
            if let Ok(arg) = json::from_slice::<M::Arg>(self.bytes) {
                stays_the_same(&arg);
            }
            if let Ok(arg) = codec::decode::<M::Arg>(self.bytes) {
                stays_the_same(&arg);
            }
        }
    }
    let at = data.iter().position(|b| *b == b'\n').unwrap_or(0);
    let (name, rest) = data.split_at(at);
    let of = std::str::from_utf8(name).ok().filter(|name| api::all_methods().iter().any(|m| m.name == *name));
    api::visit_methods(&mut Argument { of, bytes: rest.strip_prefix(b"\n").unwrap_or(rest) });
}

/// Writing a value, reading that and writing it again comes to the same, in both dialects.
pub fn stays_the_same<T: Serialize + DeserializeOwned>(value: &T) {
    let bytes = |value: &T| {
        let mut bytes = Vec::new();
        codec::encode_into(value, &mut bytes).unwrap();
        bytes
    };
    let text = |value: &T| {
        let mut text = Vec::new();
        json::encode(value, &mut text).unwrap();
        text
    };
    let written = bytes(value);
    assert_eq!(bytes(&codec::decode(&written).unwrap()), written);
    let written = text(value);
    assert_eq!(text(&json::from_slice(&written).unwrap()), written, "{}", String::from_utf8_lossy(&written));
}

/// Plays `data` to a server as a script of sends: each step is a byte for the number of descriptors, a byte for the
/// number of bytes, and those bytes. The server must answer or hang up, and close every descriptor.
pub fn stream(data: &[u8]) {
    let server = server();
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve_blocking(theirs));
        // Replies must be taken, or the server blocks.
        let draining = scope.spawn(|| {
            let (mut replies, mut fds) = (Vec::new(), Vec::new());
            loop {
                replies.reserve(4096);
                match scm::recv_with_fds(&ours, &mut replies, 4096, &mut fds) {
                    Ok(1..) => {}
                    _ => return replies,
                }
                fds.clear();
            }
        });
        send_script(&ours, data);
        // A server that has hung up already has shut it down.
        drop(ours.shutdown(Shutdown::Write));
        // Whether the script was good does not matter here, only that both ends come to an end.
        drop(serving.join().unwrap());
        assert!(draining.join().unwrap().len() < 64 << 20);
    });
    assert_eq!(server.connections(), 0);
}

fn send_script(stream: &UnixStream, mut script: &[u8]) {
    while let [fds, length, rest @ ..] = script {
        let (bytes, rest) = rest.split_at(rest.len().min(1 + usize::from(*length)));
        script = rest;
        if bytes.is_empty() {
            return;
        }
        let fds: Vec<BorrowedFd<'_>> = (0..usize::from(*fds % 129)).map(|_| stream.as_fd()).collect();
        if scm::send_with_fds(stream, bytes, &fds).is_err() {
            return;
        }
    }
}

/// Turns whole messages into a script for [`stream`]: `fds` descriptors with the first byte of each.
pub fn script(messages: &[(Vec<u8>, u8)]) -> Vec<u8> {
    let mut script = Vec::new();
    for (bytes, fds) in messages {
        for (i, chunk) in bytes.chunks(256).enumerate() {
            script.push(if i == 0 { *fds } else { 0 });
            script.push((chunk.len() - 1) as u8);
            script.extend_from_slice(chunk);
        }
    }
    script
}

/// A whole request frame, for seeds.
pub fn request(method: &str, arg: &impl Serialize, fds: usize) -> Vec<u8> {
    let mut out = Vec::new();
    crate::binary::begin(&mut out);
    codec::encode_into(method, &mut out).unwrap();
    codec::encode_into(arg, &mut out).unwrap();
    crate::binary::finish(&mut out, FrameKind::Request, fds).unwrap();
    out
}

#[cfg(test)]
mod tests;
