//! Trace sessions, as the parent sees them: reading their configuration, and opening their sinks, which the sandbox
//! cannot.
#![forbid(unsafe_code)]

use airlock_wire::api::trace::{SessionConfig, SinkConfig};
use airlock_wire::error::{Error, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest configuration file, in bytes.
const MAX_CONFIG: u64 = 4 << 20;
/// Version of gVisor's remote protocol that we speak, and the least that a peer must.
const VERSION: u64 = 1;
/// Longest handshake, without it.
const MAX_HANDSHAKE: usize = 10_240;
/// Seconds that a peer has for its handshake.
const HANDSHAKE_SECONDS: i64 = 10;

/// A session with what was opened for it.
#[derive(Debug, Default)]
pub struct Session {
    /// Its configuration, without the sinks that may be missing and are.
    pub config: SessionConfig,
    /// For each sink that needs one, in their order.
    pub fds: Vec<OwnedFd>,
}

/// Reads the file of a session: `{"trace_session": {…}}`, or with `bare` also what would be in there.
///
/// # Errors
/// It cannot be read, is longer than 4 MiB, is malformed, or has keys that do not belong there.
pub fn read_config(path: &Path, bare: bool) -> Result<SessionConfig> {
    let context = |e: Error| e.context(format!("trace session {}", path.display()));
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CONFIG + 1).read_to_end(&mut text));
    read.map_err(|e| context(e.into()))?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(context(Error::invalid_argument(format!("longer than {MAX_CONFIG} bytes"))));
    }
    parse_config(&text, bare).map_err(context)
}

/// Parses what [`read_config`] reads.
///
/// # Errors
/// As there.
pub fn parse_config(text: &[u8], bare: bool) -> Result<SessionConfig> {
    let malformed = |e: serde_json::Error| Error::invalid_argument(e.to_string());
    let mut whole: Value = serde_json::from_slice(text).map_err(malformed)?;
    let session = match whole.get_mut("trace_session") {
        Some(session) => {
            let session = session.take();
            check_keys(&whole, &["trace_session"])?;
            session
        }
        None if bare => whole,
        None => {
            return Err(Error::invalid_argument("the file has no \"trace_session\""));
        }
    };
    check_keys(&session, &["name", "points", "ignore_missing", "sinks", "options"])?;
    for point in items(&session, "points") {
        check_keys(point, &["name", "optional_fields", "context_fields"])?;
    }
    for sink in items(&session, "sinks") {
        check_keys(sink, &["name", "config", "ignore_setup_error", "status"])?;
    }
    serde_json::from_value(session).map_err(malformed)
}

fn items<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A key that is misspelt would change what is traced without a word.
fn check_keys(value: &Value, known: &[&str]) -> Result<()> {
    let unknown =
        value.as_object().into_iter().flat_map(Map::keys).find(|key| !known.contains(&key.as_str()));
    match unknown {
        // In the words of Go's encoding/json, which runsc uses.
        Some(key) => Err(Error::invalid_argument(format!("json: unknown field {key:?}"))),
        None => Ok(()),
    }
}

/// Opens the sinks of a session: connects to the peers of remote ones, and opens the files of file sinks for appending.
/// Blocks until the peers have answered, for ten seconds each.
///
/// # Errors
/// What is wrong with the first sink that cannot be opened, unless it says `ignore_setup_error`; then it is left out, and
/// the log says why.
pub fn open_sinks(config: SessionConfig) -> Result<Session> {
    let mut session =
        Session { config: SessionConfig { sinks: Vec::new().into(), ..config.clone() }, fds: Vec::new() };
    for sink in config.sinks.0 {
        match open(&sink) {
            Ok(fd) => {
                session.fds.extend(fd);
                session.config.sinks.0.push(sink);
            }
            Err(e) if sink.ignore_setup_error => log::warn!("trace sink {:?} is left out: {e}", sink.name),
            Err(e) => return Err(e.context(format!("setting up sink {:?}", sink.name))),
        }
    }
    Ok(session)
}

fn open(sink: &SinkConfig) -> Result<Option<OwnedFd>> {
    let text = |name: &str| sink.config.as_ref().and_then(|c| c.get(name)).and_then(Value::as_str);
    match sink.name.as_str() {
        "remote" => {
            let endpoint = text("endpoint")
                .ok_or_else(|| Error::invalid_argument("endpoint not present in configuration"))?;
            connect_remote(endpoint).map(Some)
        }
        "file" => {
            let path =
                text("path").ok_or_else(|| Error::invalid_argument("path not present in configuration"))?;
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .map_err(|e| Error::from(e).context(format!("open({path:?})")))?;
            Ok(Some(file.into()))
        }
        // The sandbox knows which there are.
        _ => Ok(None),
    }
}

/// Connects to a peer of gVisor's remote sink and exchanges versions with it.
fn connect_remote(endpoint: &str) -> Result<OwnedFd> {
    let failed = |e| Error::from(e).context(format!("connect({endpoint:?})"));
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let address = UnixAddr::new(endpoint).map_err(failed)?;
    connect(socket.as_raw_fd(), &address).map_err(failed)?;
    let limit = TimeVal::new(HANDSHAKE_SECONDS, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    let context = |e| Error::from(e).context(format!("handshake with {endpoint:?}"));
    let mut hello = vec![0x08];
    airlock_loader::trace::wire::varint(VERSION, &mut hello);
    send(socket.as_raw_fd(), &hello, MsgFlags::MSG_NOSIGNAL).map_err(context)?;
    let mut answer = [0; MAX_HANDSHAKE];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_TRUNC).map_err(context)?;
    let Some(answer) = answer.get(..len).filter(|a| a.len() < MAX_HANDSHAKE) else {
        return Err(Error::failure("handshake message too big"));
    };
    let version = peer_version(answer).ok_or_else(|| {
        Error::failure(format!("handshake with {endpoint:?}: the answer is no Handshake message"))
    })?;
    if version < VERSION {
        return Err(Error::failure(format!(
            "remote version ({version}) is smaller than minimum supported ({VERSION})"
        )));
    }
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(socket)
}

/// Field 1 of a protobuf message `Handshake`; other fields are skipped, as those of later versions.
fn peer_version(message: &[u8]) -> Option<u64> {
    let mut rest = message;
    let mut version = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let skipped = match (key >> 3, key & 7) {
            (1, 0) => {
                version = varint(&mut rest)?;
                0
            }
            (_, 0) => {
                varint(&mut rest)?;
                0
            }
            (_, 1) => 8,
            (_, 2) => usize::try_from(varint(&mut rest)?).ok()?,
            (_, 5) => 4,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
    }
    Some(version)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn configurations_are_read_strictly() {
        let session = r#"{"name":"Default","points":[{"name":"sentry/clone"}],"sinks":[{"name":"null"}]}"#;
        let whole = format!(r#"{{"trace_session":{session}}}"#);
        let read = parse_config(whole.as_bytes(), false).unwrap();
        assert_eq!(parse_config(session.as_bytes(), true).unwrap(), read);
        assert_eq!(read.points[0].name, "sentry/clone");
        let refused = |text: &str, bare| parse_config(text.as_bytes(), bare).unwrap_err().message;
        assert!(refused(session, false).contains("trace_session"));
        assert_eq!(refused(r#"{"name":"Default","pionts":[]}"#, true), r#"json: unknown field "pionts""#);
        assert_eq!(refused(r#"{"trace_session":{},"x":1}"#, false), r#"json: unknown field "x""#);
        let nested = r#"{"trace_session":{"points":[{"name":"a","optional":[]}]}}"#;
        assert_eq!(refused(nested, false), r#"json: unknown field "optional""#);
        assert!(refused("{", true).contains("EOF"));
        assert!(refused(r#"{"name":5}"#, true).contains("invalid type"));
    }

    #[test]
    fn versions_are_found() {
        assert_eq!(peer_version(&[8, 1]), Some(1));
        assert_eq!(peer_version(&[]), Some(0));
        assert_eq!(peer_version(&[0x12, 2, 9, 9, 8, 0x85, 1]), Some(133));
        for broken in [&[8][..], &[0x12, 5, 1], &[0x0f, 1], &[8, 0xff]] {
            assert_eq!(peer_version(broken), None, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), bare: bool) {
            let _ = (peer_version(&bytes), parse_config(&bytes, bare));
        }
    }
}
