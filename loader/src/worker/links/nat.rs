//! Address translation of the sandbox: the rules of iptables' table `nat`, as gVisor's command line reads them out of a
//! network namespace (`NATBlob`).
#![forbid(unsafe_code)]

use crate::sys::iptables::{self, HEADER_LEN, NAME_LEN, SIZE_AT};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Most bytes of rules: some ten thousand of them.
const MAX: u32 = 4 << 20;
/// How long the next bytes may take to come, in milliseconds.
const PATIENCE: u16 = 10_000;

/// Rules, and the network namespace that they are for.
#[derive(Debug)]
pub struct Nat {
    rules: Vec<u8>,
    socket: OwnedFd,
}

impl Nat {
    /// Reads rules for the calling thread's network namespace.
    ///
    /// # Errors
    /// They are not what they should be: `struct ipt_replace` for the table `nat`, then the entries.
    pub fn read(fd: OwnedFd) -> Result<Self> {
        let mut file = File::from(fd);
        let mut rules = read(&mut file, HEADER_LEN)?;
        let name = rules.get(..NAME_LEN).unwrap_or_default();
        if name.split(|b| *b == 0).next() != Some(b"nat") {
            return Err(wrong("it is not for the table nat"));
        }
        let size = rules.get(SIZE_AT..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_ne_bytes);
        let size = size.filter(|size| *size <= MAX).ok_or_else(|| wrong("it has more than 4 MiB"))?;
        rules.extend(read(&mut file, size as usize)?);
        Ok(Self { rules, socket: iptables::socket()? })
    }

    /// Puts the rules in the place of those that are there.
    ///
    /// # Errors
    /// The kernel has no such table, or does not understand the rules.
    pub fn apply(&self) -> Result<()> {
        iptables::replace(self.socket.as_fd(), &self.rules).map_err(|e| match e {
            Errno::ENOPROTOOPT | Errno::ENOENT => Error::unsupported(
                "NATBlob: this kernel lacks iptables' legacy table nat, or one of the rules' matches and targets; set rules \
                 up with nft in the sandbox's network namespace",
            ),
            e => Error::from(e).context("NATBlob: setting the rules of iptables' table nat"),
        })
    }
}

fn wrong(what: &str) -> Error {
    Error::invalid_argument(format!(
        "NATBlob: {what}: it is struct ipt_replace for the table nat with its entries"
    ))
}

/// Reads exactly `length` bytes.
fn read(file: &mut File, length: usize) -> Result<Vec<u8>> {
    let (mut bytes, mut at) = (vec![0; length], 0);
    while at < length {
        let ready = &mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        if poll(ready, PollTimeout::from(PATIENCE))? == 0 {
            return Err(wrong("the rest of it does not come"));
        }
        match file.read(&mut bytes[at..]) {
            Ok(0) => return Err(wrong("it ends too early")),
            Ok(n) => at += n,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(e) => return Err(Error::from(e).context("reading NATBlob")),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn told(bytes: &[u8]) -> String {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        drop(writer);
        Nat::read(reader.into()).unwrap_err().message
    }

    #[test]
    fn hostile_rules_are_refused() {
        let mut rules = vec![0; HEADER_LEN];
        assert!(told(&rules[..50]).contains("it ends too early"));
        assert!(told(&rules).contains("not for the table nat"));
        rules[..6].copy_from_slice(b"filter");
        assert!(told(&rules).contains("not for the table nat"));
        rules[..6].copy_from_slice(b"nat\0er");
        rules[SIZE_AT..SIZE_AT + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(told(&rules).contains("more than 4 MiB"));
        rules[SIZE_AT..SIZE_AT + 4].copy_from_slice(&100u32.to_ne_bytes());
        assert!(told(&rules).contains("it ends too early"));
    }
}
