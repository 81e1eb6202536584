//! Clients of a sandbox's control socket.
//!
//! [`Urpc`] speaks gVisor's JSON dialect and shares no code with airlock: what it sends and expects was taken from
//! recorded exchanges with runsc. [`Caller`] calls by name in either dialect, so that one test checks both.
use airlock_wire::client::{Client, Dialect};
use airlock_wire::method::Method;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
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

    /// Reads one reply; `None` when the sandbox closed the connection. No method of gVisor's that is called here
    /// answers with descriptors.
    pub fn receive(&mut self) -> Option<Reply> {
        let mut text = Vec::new();
        let mut buffer = [0; 1535];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if text.is_empty() => return None,
                Ok(0) => panic!("closed in the middle of {:?}", String::from_utf8_lossy(&text)),
                Ok(n) => text.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                // A read with a time limit is not restarted when a child of another test ends.
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("no reply: {e}"),
            }
            if let Ok(reply) = serde_json::from_slice::<Value>(&text) {
                let order = String::from_utf8(text).unwrap();
                assert!(order.starts_with(r#"{"success":"#), "order of keys: {order}");
                return Some(Reply {
                    success: reply["success"].as_bool().unwrap(),
                    err: reply["err"].as_str().unwrap().to_owned(),
                    result: reply.get("result").unwrap().clone(),
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

    /// Calls `method`: its result, or the text of its error.
    #[track_caller]
    pub fn call(&mut self, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Result<Value, String> {
        match self {
            Self::Json(urpc) => {
                let reply = urpc.call(method, arg, fds);
                if reply.success {
                    assert_eq!(reply.err, "");
                    Ok(reply.result)
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

fn typed<M: Method>(client: &mut Client, arg: &Value, fds: &[BorrowedFd<'_>]) -> Result<Value, String> {
    let arg = match arg {
        Value::Null => M::Arg::default(),
        arg => serde_json::from_value(arg.clone()).map_err(|e| format!("not an argument: {e}"))?,
    };
    let reply = client.call::<M>(&arg, fds).map_err(|e| e.message)?;
    Ok(serde_json::to_value(reply.value).unwrap())
}

fn binary(client: &mut Client, method: &str, arg: &Value, fds: &[BorrowedFd<'_>]) -> Result<Value, String> {
    use airlock_wire::api::{
        airlock as a, container_manager as cm, debug, lifecycle as lc, logging, proc, state, usage,
    };
    macro_rules! dispatch {
        ($($method:ty),+ $(,)?) => {
            match method {
                $( <$method as Method>::NAME => typed::<$method>(client, arg, fds), )+
                other => panic!("{other} is not in this list"),
            }
        };
    }
    dispatch!(
        cm::StartRoot,
        cm::CreateSubcontainer,
        cm::StartSubcontainer,
        cm::DestroySubcontainer,
        cm::ExecuteAsync,
        cm::Processes,
        cm::ProcfsDump,
        cm::Signal,
        cm::Wait,
        cm::WaitPID,
        cm::Pause,
        cm::Resume,
        cm::Event,
        cm::ContainerRuntimeState,
        cm::Checkpoint,
        cm::Restore,
        cm::RestoreSubcontainer,
        cm::WaitCheckpoint,
        cm::WaitRestore,
        cm::GetSavings,
        cm::PortForward,
        state::Save,
        lc::Pause,
        lc::Resume,
        lc::Shutdown,
        lc::GetExitStatus,
        lc::IsContainerRunning,
        lc::SignalContainer,
        lc::Reap,
        proc::Exec,
        proc::Ps,
        proc::SignalProcess,
        logging::Change,
        usage::Collect,
        debug::Stacks,
        a::Info,
        a::List,
        a::StartContainer,
        a::Methods,
        a::Checkpoint,
        a::Restore,
        a::RestoreContainer,
        a::CheckpointProgress,
    )
}
