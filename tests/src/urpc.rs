//! Clients of a sandbox's control socket.
//!
//! [`Urpc`] speaks gVisor's JSON dialect and shares no code with airlock: what it sends and expects was taken from
//! recorded exchanges with runsc. [`Caller`] calls by name in either dialect, so that one test checks both.
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::Kind;
use airlock_wire::method::{Method, Visitor};
use airlock_wire::scm;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A foreign connection.
pub struct Urpc {
    pub stream: UnixStream,
}

/// What came back: the three keys of every reply.
#[derive(Debug)]
pub struct Reply {
    pub success: bool,
    pub err: String,
    pub result: Value,
    pub fds: Vec<OwnedFd>,
}

impl Urpc {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        // A test that hangs is worse than one that fails.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream }
    }

    /// Sends one request: descriptors on its first byte, as gVisor's client does.
    pub fn send(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) {
        let text = format!(r#"{{"method":{},"arg":{arg}}}"#, json!(method));
        self.send_bytes(text.as_bytes(), fds).unwrap();
    }

    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        self.stream.write_all(&bytes[sent..])
    }

    /// Reads one reply; `None` when the sandbox closed the connection.
    pub fn receive(&mut self) -> Option<Reply> {
        let (mut text, mut fds) = (Vec::new(), Vec::new());
        loop {
            text.reserve(1535);
            // Only this much of airlock is in here: safe code cannot own descriptors that recvmsg(2) brings.
            match scm::recv_with_fds(&self.stream, &mut text, 1535, &mut fds) {
                Ok(0) if text.is_empty() => return None,
                Ok(0) => panic!("closed in the middle of {:?}", String::from_utf8_lossy(&text)),
                Ok(_) => {}
                Err(e) if e.kind == Kind::Disconnected => return None,
                Err(e) => panic!("no reply: {e}"),
            }
            if let Ok(reply) = serde_json::from_slice::<Value>(&text) {
                let order = String::from_utf8(text).unwrap();
                assert!(order.starts_with(r#"{"success":"#), "order of keys: {order}");
                return Some(Reply {
                    success: reply["success"].as_bool().unwrap(),
                    err: reply["err"].as_str().unwrap().to_owned(),
                    result: reply.get("result").unwrap().clone(),
                    fds,
                });
            }
        }
    }

    #[track_caller]
    pub fn call(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Reply {
        self.send(method, arg, fds);
        self.receive().unwrap_or_else(|| panic!("{method}: the connection was closed"))
    }
}

/// A connection in either dialect, called by method name with JSON values.
pub enum Caller {
    Json(Urpc),
    Binary(Client),
}

impl Caller {
    /// One of each.
    pub fn both(socket: &Path) -> [Self; 2] {
        [Self::json(socket), Self::binary(socket)]
    }

    pub fn json(socket: &Path) -> Self {
        Self::Json(Urpc::connect(socket))
    }

    pub fn binary(socket: &Path) -> Self {
        let mut client = Client::connect(socket, Dialect::Binary).unwrap();
        client.set_timeout(Some(Duration::from_secs(60))).unwrap();
        Self::Binary(client)
    }

    /// Calls `method`: its result, or the text of its error. Descriptors of the reply are closed.
    #[track_caller]
    pub fn call(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Result<Value, String> {
        self.call_for_fds(method, arg, fds).map(|(result, _)| result)
    }

    /// As [`Caller::call`], with the descriptors of the reply.
    #[track_caller]
    pub fn call_for_fds(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Called {
        match self {
            Self::Json(urpc) => {
                let reply = urpc.call(method, arg, fds);
                if reply.success {
                    assert_eq!(reply.err, "");
                    Ok((reply.result, reply.fds))
                } else {
                    assert_eq!(reply.result, Value::Null, "{method}");
                    Err(reply.err)
                }
            }
            Self::Binary(client) => binary(client, method, arg, fds),
        }
    }

    #[track_caller]
    pub fn ok(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Value {
        self.call(method, arg, fds).unwrap_or_else(|e| panic!("{method} {arg}: {e}"))
    }

    #[track_caller]
    pub fn fails(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> String {
        match self.call(method, arg, fds) {
            Ok(result) => panic!("{method} {arg} succeeded: {result}"),
            Err(text) => text,
        }
    }
}

/// A result with the descriptors of the reply, or the text of an error.
type Called = Result<(Value, Vec<OwnedFd>), String>;

fn typed<M: Method>(client: &mut Client, arg: &Value, fds: &[BorrowedFd<'_>]) -> Called {
    let arg = match arg {
        Value::Null => M::Arg::default(),
        arg => serde_json::from_value(arg.clone()).map_err(|e| format!("not an argument: {e}"))?,
    };
    let reply = client.call::<M>(&arg, fds).map_err(|e| e.message)?;
    Ok((serde_json::to_value(reply.value).unwrap(), reply.fds))
}

/// Calls the method whose name is `method`.
fn binary(client: &mut Client, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Called {
    struct ByName<'a> {
        client: &'a mut Client,
        method: &'a str,
        arg: &'a Value,
        fds: &'a [BorrowedFd<'a>],
        called: Option<Called>,
    }
    impl Visitor for ByName<'_> {
        fn visit<M: Method + 'static>(&mut self) {
            if M::NAME == self.method {
                self.called = Some(typed::<M>(self.client, self.arg, self.fds));
            }
        }
    }
    let mut call = ByName { client, method, arg, fds, called: None };
    airlock_wire::api::visit_methods(&mut call);
    call.called.unwrap_or_else(|| panic!("{method} is not declared"))
}
