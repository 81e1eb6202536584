//! One connection: reads calls, runs their handlers, sends replies.

use super::Shared;
use crate::binary::{self, FrameKind};
use crate::client::Dialect;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::json;
use crate::observe;
use crate::reader::{Message, Reader, Shape};
use crate::registry::{Call, Dependents};
use crate::scm::{self, PeerCred};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};

/// No call is in flight.
const IDLE: u8 = 0;
/// A handler runs, or its reply is being sent.
const BUSY: u8 = 1;
/// The connection takes no further call.
const CLOSING: u8 = 2;

/// Longest result in bytes: what a client accepts by default.
const MAX_RESULT: usize = binary::DEFAULT_MAX_BODY;

/// A connection as its thread and a stopping server share it.
#[derive(Debug)]
pub(super) struct Conn {
    stream: UnixStream,
    peer: PeerCred,
    state: AtomicU8,
}

impl Conn {
    pub(super) fn new(stream: UnixStream, peer: PeerCred) -> Self {
        Self { stream, peer, state: AtomicU8::new(IDLE) }
    }

    pub(super) fn peer(&self) -> &PeerCred {
        &self.peer
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Ends the connection unless a call is in flight.
    pub(super) fn close_if_idle(&self) {
        if self.change(IDLE, CLOSING) {
            // Wakes the thread up, which then reads an end of file.
            self.shut_down(Shutdown::Read);
        }
    }

    /// Ends the connection, and what a handler waits for on it.
    pub(super) fn abort(&self) {
        self.state.store(CLOSING, Ordering::SeqCst);
        self.shut_down(Shutdown::Both);
    }

    fn shut_down(&self, how: Shutdown) {
        if let Err(e) = self.stream.shutdown(how) {
            log::debug!("rpc: shutting a connection down: {e}");
        }
    }
}

/// Serves calls until the peer hangs up or the server stops.
pub(super) fn serve(shared: &Shared, conn: &Conn) -> Result<()> {
    let mut reader = Reader::new(shared.options.max_body);
    let mut out = Vec::new();
    let mut dependents = Dependents::default();
    loop {
        let mut message = match reader.next(&conn.stream) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(e) => {
                last_words(conn, reader.dialect(), &e, &mut out);
                return Err(e);
            }
        };
        if !conn.change(IDLE, BUSY) {
            return Ok(());
        }
        let fds = std::mem::take(&mut message.fds);
        answer(shared, conn, &message, reader.body(&message), fds, &mut dependents, &mut out)?;
        out.clear();
        out.shrink_to(64 << 10);
        if !conn.change(BUSY, IDLE) || shared.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

/// Tells a peer that broke the rules why its connection is closed, if it can be told without blocking.
fn last_words(conn: &Conn, dialect: Option<Dialect>, e: &Error, out: &mut Vec<u8>) {
    match (e.kind, dialect) {
        (Kind::Protocol, Some(dialect)) => {
            encode_error(dialect, e, out);
            scm::send_best_effort(&conn.stream, out);
        }
        _ => log::debug!("rpc: nothing to tell pid {}: {e}", conn.peer.pid),
    }
}

fn answer(
    shared: &Shared,
    conn: &Conn,
    message: &Message,
    body: &[u8],
    fds: Vec<OwnedFd>,
    dependents: &mut Dependents,
    out: &mut Vec<u8>,
) -> Result<()> {
    let dialect = message.shape.dialect();
    let mut call = Call {
        peer: &conn.peer,
        dialect,
        stream: &conn.stream,
        fds: fds.into_iter().map(Some).collect(),
        reply_fds: Vec::new(),
        dependents,
    };
    let outcome = match message.shape {
        Shape::Json => json::decode_request(body).map(|request| run_json(shared, &mut call, request, out)),
        Shape::Binary(FrameKind::Request) => {
            codec::split_str(body).map(|(method, arg)| run_binary(shared, &mut call, method, arg, out))
        }
        Shape::Binary(kind) => {
            Err(Error::new(Kind::Protocol, format!("a {kind:?} frame came where a request was due")))
        }
    };
    // Whatever the handler left must be closed before the client learns that the call is over.
    call.fds.clear();
    let result = match outcome {
        Ok(result) => result,
        Err(broken) => {
            let broken = Error::new(Kind::Protocol, broken.message);
            last_words(conn, Some(dialect), &broken, out);
            return Err(broken);
        }
    };
    if let Err(e) = result.and_then(|()| finish_reply(dialect, call.reply_fds.len(), out)) {
        encode_error(dialect, &e, out);
        call.reply_fds.clear();
    }
    let fds: Vec<BorrowedFd<'_>> = call.reply_fds.iter().map(AsFd::as_fd).collect();
    if fds.len() > scm::GROUP {
        return binary::send_start(&conn.stream, out, &fds);
    }
    match scm::send_some(&conn.stream, out, &fds) {
        Ok(sent) => scm::send_all(&conn.stream, &out[sent..]),
        Err(e) if e.kind == Kind::Disconnected || fds.is_empty() => Err(e),
        Err(e) => {
            // Nothing was sent yet: the descriptors were refused, so say why.
            encode_error(dialect, &e, out);
            scm::send_all(&conn.stream, out)
        }
    }
}

fn run_json(
    shared: &Shared,
    call: &mut Call<'_>,
    request: json::Request<'_>,
    out: &mut Vec<u8>,
) -> Result<()> {
    out.clear();
    out.extend_from_slice(json::SUCCESS);
    shared.registry().counted(&request.method, |handler| {
        guarded(&request.method, || {
            let arg = request.arg.ok_or_else(|| Error::new(Kind::Serde, "unexpected end of JSON input"))?;
            handler.json(call, arg, out)
        })
    })
}

fn run_binary(
    shared: &Shared,
    call: &mut Call<'_>,
    method: &str,
    arg: &[u8],
    out: &mut Vec<u8>,
) -> Result<()> {
    binary::begin(out);
    shared.registry().counted(method, |handler| guarded(method, || handler.binary(call, arg, out)))
}

/// Runs a handler; a panic becomes an error.
fn guarded(method: &str, handler: impl FnOnce() -> Result<()>) -> Result<()> {
    let handler = || observe::call(method, handler);
    let result = catch_unwind(AssertUnwindSafe(handler)).unwrap_or_else(|panic| {
        let why = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Err(Error::new(Kind::Panic, format!("the handler of {method} panicked: {why}; the sandbox goes on")))
    });
    match &result {
        Ok(()) => log::debug!("rpc: {method} succeeded"),
        Err(e) => log::debug!("rpc: {method} failed: {e}"),
    }
    result
}

/// Completes a successful reply that is encoded in `out`.
fn finish_reply(dialect: Dialect, fds: usize, out: &mut Vec<u8>) -> Result<()> {
    if out.len() > MAX_RESULT {
        return Err(Error::failure(format!("the result is longer than {MAX_RESULT} bytes")));
    }
    match dialect {
        Dialect::Json if fds > scm::GROUP => Err(scm::too_many_files()),
        Dialect::Json => {
            out.push(b'}');
            Ok(())
        }
        Dialect::Binary => binary::finish(out, FrameKind::Reply, fds),
    }
}

/// Replaces what is in `out` by an error reply.
fn encode_error(dialect: Dialect, e: &Error, out: &mut Vec<u8>) {
    out.clear();
    match dialect {
        Dialect::Json => json::encode_error(&e.message, out),
        Dialect::Binary => {
            binary::begin(out);
            let encoded = codec::encode_into(e, out).and_then(|()| binary::finish(out, FrameKind::Error, 0));
            if let Err(e) = encoded {
                log::error!("rpc: an error cannot be encoded: {e}");
            }
        }
    }
}
