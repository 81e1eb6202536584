//! The calling end: blocking, one call at a time.

#![forbid(unsafe_code)]

use crate::addr;
use crate::binary::{self, FrameKind};
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::json;
use crate::method::{ErrorText, Method};
use crate::reader::{Message, Reader, Shape};
use crate::scm;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How a message is encoded. Both may be used on one connection; a reply has the dialect of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// gVisor's urpc: for sandboxes of runsc, and for people.
    Json,
    /// airlock's own frames.
    Binary,
}

/// A successful reply: the result, and the descriptors that came with it (owned by the receiver, close-on-exec).
#[derive(Debug)]
pub struct Reply<T> {
    /// The result.
    pub value: T,
    /// The descriptors, in the order that the method documents.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a sandbox. Calls block until the reply is there; dropping it (or the death of this process) ends
/// a call that waits on the other side.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    dialect: Dialect,
    reader: Reader,
    out: Vec<u8>,
    broken: bool,
}

impl Client {
    /// Connects to the socket at `path`, however long that is; `@name` is an abstract name (see [`addr::connect`]).
    ///
    /// # Errors
    /// `NoSuchEntity` when there is no socket, `Disconnected` when nobody listens, `Permission`.
    pub fn connect(path: &Path, dialect: Dialect) -> Result<Self> {
        Ok(Self::from_stream(addr::connect(path)?, dialect))
    }

    /// Uses a connected stream, which must be in blocking mode.
    pub fn from_stream(stream: UnixStream, dialect: Dialect) -> Self {
        let reader = Reader::new(binary::DEFAULT_MAX_BODY);
        Self { stream, dialect, reader, out: Vec::new(), broken: false }
    }

    /// Calls a method with descriptors, which the caller keeps, and waits for the reply.
    ///
    /// # Errors
    /// What the handler answered: with its kind in the binary dialect, with the message alone (`Failure`, or
    /// `UnknownMethod`) in JSON. `Disconnected`, `Protocol` and `Timeout` when the connection failed; it is of no
    /// further use then, and the call may or may not have been executed. `InvalidArgument` for too many descriptors (128
    /// in JSON, 512 in binary), before anything is sent.
    pub fn call<M: Method>(&mut self, arg: &M::Arg, fds: &[BorrowedFd<'_>]) -> Result<Reply<M::Reply>> {
        self.start::<M>(arg, fds)?;
        self.finish::<M>()
    }

    /// The first half of [`Client::call`]: sends the request. Whoever waits for more than one thing polls
    /// [`Client::stream`] for reading, and then (or at once, to block) calls [`Client::finish`]. Nothing else may happen
    /// on the connection between the two, but it may change hands: another process can finish the call on the stream.
    ///
    /// # Errors
    /// As [`Client::call`]'s, but for the handler's.
    pub fn start<M: Method>(&mut self, arg: &M::Arg, fds: &[BorrowedFd<'_>]) -> Result<()> {
        match self.dialect {
            Dialect::Json => self.send_json(M::NAME, arg, fds),
            Dialect::Binary => {
                binary::begin(&mut self.out);
                codec::encode_into(M::NAME, &mut self.out)?;
                codec::encode_into(arg, &mut self.out)?;
                binary::finish(&mut self.out, FrameKind::Request, fds.len())?;
                self.usable()?;
                let sent = binary::send_start(&self.stream, &self.out, fds);
                self.checked(sent)
            }
        }
    }

    /// The second half of [`Client::call`]: waits for the reply to what [`Client::start`] has sent.
    ///
    /// # Errors
    /// As [`Client::call`]'s.
    pub fn finish<M: Method>(&mut self) -> Result<Reply<M::Reply>> {
        let message = self.receive()?;
        match self.dialect {
            Dialect::Json => self.finish_json(M::NAME, message).map_err(|e| match e.kind {
                Kind::Failure => M::Errors::error(&e.message),
                _ => e,
            }),
            Dialect::Binary => self.finish_binary(M::NAME, message),
        }
    }

    /// Calls any method by name, in the JSON dialect whatever the connection's own is.
    ///
    /// # Errors
    /// As [`Client::call`]'s.
    pub fn call_raw(
        &mut self,
        method: &str,
        arg: &serde_json::Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply<serde_json::Value>> {
        self.send_json(method, arg, fds)?;
        let message = self.receive()?;
        self.finish_json(method, message)
    }

    /// Limits how long a call may wait each time for the peer to take or send bytes; `None`, the default, waits for
    /// ever. After a `Timeout` the connection is of no further use.
    ///
    /// # Errors
    /// For a duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.stream.set_read_timeout(timeout).and_then(|()| self.stream.set_write_timeout(timeout))?;
        Ok(())
    }

    /// The connection, for its options and for poll(2); reading from it or writing to it breaks the framing.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Gives the connection back. It stands between two messages unless a call failed.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    fn send_json<T: serde::Serialize>(
        &mut self,
        method: &str,
        arg: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        if fds.len() > scm::GROUP {
            return Err(scm::too_many_files());
        }
        self.out.clear();
        json::encode_request(method, arg, &mut self.out)?;
        self.usable()?;
        let sent = scm::send_with_fds(&self.stream, &self.out, fds);
        self.checked(sent)
    }

    fn usable(&self) -> Result<()> {
        if self.broken {
            return Err(Error::new(
                Kind::Disconnected,
                "an earlier call broke this connection: make a new one",
            ));
        }
        Ok(())
    }

    /// Remembers that the connection is broken if `result` is an error.
    fn checked<T>(&mut self, result: Result<T>) -> Result<T> {
        self.broken |= result.is_err();
        result
    }

    fn receive(&mut self) -> Result<Message> {
        let received = self.reader.next(&self.stream).and_then(|message| {
            message.ok_or_else(|| {
                Error::new(Kind::Disconnected, "the sandbox closed the connection without a reply")
            })
        });
        let received = received.and_then(|message| match self.reader.has_leftover() {
            true => Err(Error::new(Kind::Protocol, "the sandbox sent more than one reply to one call")),
            false => Ok(message),
        });
        self.out.clear();
        self.out.shrink_to(64 << 10);
        self.checked(received)
    }

    fn finish_json<T: serde::de::DeserializeOwned>(
        &mut self,
        method: &str,
        message: Message,
    ) -> Result<Reply<T>> {
        let result = match message.shape {
            Shape::Json => json::decode_reply(self.reader.body(&message)),
            Shape::Binary(_) => Err(wrong_dialect()),
        };
        match result {
            Ok(node) => match json::from_node(node) {
                Ok(value) => Ok(Reply { value, fds: message.fds }),
                Err(e) => Err(e.context(format_args!("result of {method}"))),
            },
            Err(e) => {
                self.broken |= e.kind == Kind::Protocol;
                Err(e)
            }
        }
    }

    fn finish_binary<T: serde::de::DeserializeOwned>(
        &mut self,
        method: &str,
        message: Message,
    ) -> Result<Reply<T>> {
        let body = self.reader.body(&message);
        match message.shape {
            Shape::Binary(FrameKind::Reply) => match codec::decode(body) {
                Ok(value) => Ok(Reply { value, fds: message.fds }),
                Err(e) => Err(e.context(format_args!("result of {method}"))),
            },
            Shape::Binary(FrameKind::Error) => Err(codec::decode(body).unwrap_or_else(|e| e)),
            Shape::Binary(kind) => {
                self.broken = true;
                Err(Error::new(Kind::Protocol, format!("a {kind:?} frame came where a reply was due")))
            }
            Shape::Json => {
                self.broken = true;
                Err(wrong_dialect())
            }
        }
    }
}

fn wrong_dialect() -> Error {
    Error::new(Kind::Protocol, "the reply is in another dialect than the request")
}
