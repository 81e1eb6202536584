//! Sockets that receive descriptors, as containerd, conmon and seccomp agents have them.
use airlock_wire::scm::recv_with_fds;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A listening socket in a folder of its own.
pub struct FdSocket {
    listener: UnixListener,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

/// One message: its bytes and descriptors, up to the sender's closing.
pub struct Message {
    pub text: String,
    pub fds: Vec<OwnedFd>,
}

impl FdSocket {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        Self { listener: UnixListener::bind(&path).unwrap(), path, _dir: dir }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Takes the next connection and reads it to its end; blocks until there is one.
    pub fn receive(&self) -> Message {
        let (stream, _) = self.listener.accept().unwrap();
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        loop {
            bytes.reserve(4096);
            if recv_with_fds(&stream, &mut bytes, 4096, &mut fds).unwrap() == 0 {
                return Message { text: String::from_utf8(bytes).unwrap(), fds };
            }
        }
    }
}

impl Default for FdSocket {
    fn default() -> Self {
        Self::new()
    }
}
