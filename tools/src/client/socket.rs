//! Connecting to control sockets by name.

#![forbid(unsafe_code)]

use crate::files::connect_stream;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Result};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

/// Connects to a control socket, airlock's or gVisor's: a path of any length, or an abstract name behind `@`. runsc of
/// 2022 has a NUL byte at the end of its abstract names; it need not be given.
///
/// # Errors
/// Nobody listens there, or the caller may not connect.
pub fn connect(socket: &Path, dialect: Dialect) -> Result<Client> {
    open(socket)
        .map(|stream| Client::from_stream(stream, dialect))
        .map_err(|e| Error::from(e).context(format!("connect to {}", socket.display())))
}

fn open(socket: &Path) -> std::io::Result<UnixStream> {
    let Some(name) = socket.as_os_str().as_bytes().strip_prefix(b"@") else {
        return connect_stream(socket);
    };
    let to = |name: &[u8]| {
        SocketAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address))
    };
    to(name).or_else(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => to(&[name, b"\0"].concat()),
        _ => Err(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn abstract_names_with_and_without_a_final_nul() {
        let name = format!("airlock-test-{}", std::process::id());
        let at = format!("@{name}");
        assert!(open(Path::new(&at)).is_err());
        let with_nul = format!("{name}\0");
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&with_nul).unwrap()).unwrap();
        open(Path::new(&at)).unwrap();
        drop(listener);
        let _plain = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        open(Path::new(&at)).unwrap();
    }
}
