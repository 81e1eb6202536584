//! Tables of iptables' legacy interface (linux/netfilter_ipv4/ip_tables.h), as bytes that the kernel checks.

use super::net;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

const IPT_SO_SET_REPLACE: i32 = 64;
const IPT_SO_GET_INFO: i32 = 64;
const IPT_SO_GET_ENTRIES: i32 = 65;

/// Bytes of a table's name, with zeros behind it.
pub const NAME_LEN: usize = 32;
/// Bytes of `struct ipt_replace`, before the entries.
pub const HEADER_LEN: usize = 96;
/// Where its length of the entries is, a native-endian `u32`.
pub const SIZE_AT: usize = 40;
const COUNTERS_AT: usize = 84;
/// Bytes of `struct ipt_getinfo`, and where its number of entries is.
const INFO_LEN: usize = 84;
const INFO_COUNT_AT: usize = 76;
/// Bytes of `struct xt_counters`.
const COUNTER_LEN: usize = 16;

/// A socket by which the tables of the calling thread's network namespace are changed.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW.
pub fn socket() -> Result<OwnedFd> {
    net::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)
}

/// Reads a table as [`replace`] takes it, without counters.
///
/// # Errors
/// `ENOPROTOOPT`, `ENOENT`, `EPERM` as there; `EAGAIN`: somebody changes it at the same time.
pub fn read(socket: BorrowedFd<'_>, table: &str) -> Result<Vec<u8>> {
    let mut info = [0u8; INFO_LEN];
    let name = info.get_mut(..table.len()).filter(|_| table.len() < NAME_LEN).ok_or(Errno::EINVAL)?;
    name.copy_from_slice(table.as_bytes());
    net::get(socket, libc::SOL_IP, IPT_SO_GET_INFO, &mut info)?;
    let (hooks, count_and_size) = info.split_at(INFO_COUNT_AT);
    let (head, hooks) = hooks.split_at(NAME_LEN + 4);
    let [_, _, _, _, a, b, c, d] = *count_and_size.first_chunk().ok_or(Errno::EINVAL)?;
    let size = u32::from_ne_bytes([a, b, c, d]) as usize;
    // struct ipt_get_entries: the name, the entries' size, padding; then they.
    let mut entries = [&head[..NAME_LEN], &[a, b, c, d], &[0; 4], &vec![0; size]].concat();
    net::get(socket, libc::SOL_IP, IPT_SO_GET_ENTRIES, &mut entries)?;
    let entries = entries.get(NAME_LEN + 8..).unwrap_or_default();
    Ok([head, count_and_size, hooks, &[0; HEADER_LEN - COUNTERS_AT], entries].concat())
}

/// Replaces the table that `replace`, a `struct ipt_replace` with its entries, names; its own numbers of old counters are
/// not looked at.
///
/// # Errors
/// `EINVAL` and others: it is none; `ENOPROTOOPT`: a kernel without this interface; `ENOENT`: it has no such table, match
/// or target; `EPERM` without CAP_NET_ADMIN.
pub fn replace(socket: BorrowedFd<'_>, replace: &[u8]) -> Result<()> {
    let mut replace = replace.to_vec();
    let mut info = [0u8; INFO_LEN];
    let name = replace.get(..NAME_LEN).filter(|_| replace.len() >= HEADER_LEN).ok_or(Errno::EINVAL)?;
    info[..NAME_LEN].copy_from_slice(name);
    net::get(socket.as_fd(), libc::SOL_IP, IPT_SO_GET_INFO, &mut info)?;
    // The kernel wants a place for the old rules' counters, and that their number is known.
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| info[INFO_COUNT_AT + i]);
    let old = u32::from_ne_bytes([a, b, c, d]);
    let mut counters = vec![0u8; old as usize * COUNTER_LEN];
    replace[COUNTERS_AT..COUNTERS_AT + 4].copy_from_slice(&old.to_ne_bytes());
    let place = counters.as_mut_ptr() as u64;
    replace[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&place.to_ne_bytes());
    // SAFETY: `replace` is readable for its length. The one pointer in it, the last field of its header, is to `counters`,
    // which has room for as many as the field before it says, and is initialized whatever the kernel writes there.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            IPT_SO_SET_REPLACE,
            replace.as_ptr().cast(),
            replace.len() as libc::socklen_t,
        )
    };
    drop(counters);
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_table_is_told() {
        assert_eq!(HEADER_LEN, 32 + 3 * 4 + 2 * 5 * 4 + 4 + 8);
        let Ok(socket) = socket() else { return };
        assert_eq!(replace(socket.as_fd(), &[0; HEADER_LEN - 1]), Err(Errno::EINVAL));
        let mut unknown = [0; HEADER_LEN];
        unknown[..5].copy_from_slice(b"never");
        assert!(replace(socket.as_fd(), &unknown).is_err());
    }
}
