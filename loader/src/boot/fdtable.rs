//! The descriptors of a message, taken by index, each once.
#![forbid(unsafe_code)]

use airlock_wire::api::boot::Fd;
use airlock_wire::error::{Error, Result};
use std::os::fd::OwnedFd;

/// Owns the descriptors of one message; what nobody takes is closed with it.
#[derive(Debug)]
pub struct FdTable(Vec<Option<OwnedFd>>);

impl FdTable {
    /// Takes over `fds` in message order.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Takes descriptor `fd`.
    ///
    /// # Errors
    /// When the index is out of range or was taken before.
    pub fn take(&mut self, fd: Fd) -> Result<OwnedFd> {
        let count = self.0.len();
        self.0
            .get_mut(usize::from(fd.0))
            .ok_or_else(|| Error::invalid_argument(format!("descriptor #{} of {count} is named", fd.0)))?
            .take()
            .ok_or_else(|| Error::invalid_argument(format!("descriptor #{} is named twice", fd.0)))
    }

    /// Takes `fd` if there is one.
    ///
    /// # Errors
    /// As [`FdTable::take`].
    pub fn take_option(&mut self, fd: Option<Fd>) -> Result<Option<OwnedFd>> {
        fd.map(|fd| self.take(fd)).transpose()
    }

    /// Takes all of `fds`.
    ///
    /// # Errors
    /// As [`FdTable::take`].
    pub fn take_all(&mut self, fds: &[Fd]) -> Result<Vec<OwnedFd>> {
        fds.iter().map(|fd| self.take(*fd)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_taken_once_and_only_in_range() {
        let mut table = FdTable::new(vec![std::fs::File::open("/dev/null").unwrap().into()]);
        assert!(table.take(Fd(1)).unwrap_err().message.contains("#1 of 1"));
        assert!(table.take(Fd(0)).is_ok());
        assert!(table.take(Fd(0)).unwrap_err().message.contains("twice"));
    }
}
