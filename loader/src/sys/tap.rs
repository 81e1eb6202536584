//! Tap devices (Documentation/networking/tuntap.rst): frames that a network namespace sends are read from a descriptor,
//! and what is written to it arrives there.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

type Result<T> = std::result::Result<T, Errno>;

/// Frames, not packets.
pub const IFF_TAP: u16 = 0x0002;
/// Nothing but the frame (and the offload header).
pub const IFF_NO_PI: u16 = 0x1000;
/// An offload header (`struct virtio_net_hdr`) before each frame.
pub const IFF_VNET_HDR: u16 = 0x4000;

/// The reader completes checksums.
pub const TUN_F_CSUM: u32 = 0x01;
/// The reader cuts TCP packets of IPv4 into segments.
pub const TUN_F_TSO4: u32 = 0x02;
/// Likewise of IPv6.
pub const TUN_F_TSO6: u32 = 0x04;
/// Segments may carry congestion marks.
pub const TUN_F_TSO_ECN: u32 = 0x08;
/// The reader cuts UDP packets of IPv4 into datagrams (Linux 6.2).
pub const TUN_F_USO4: u32 = 0x20;
/// Likewise of IPv6.
pub const TUN_F_USO6: u32 = 0x40;

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;

fn request(name: &str, flags: u16) -> Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.bytes().any(|b| b == 0) {
        return Err(Errno::EINVAL);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(request)
}

/// Makes the tap `name` (or its next queue), in the network namespace in which `tun`, an open `/dev/net/tun`, was opened.
/// It lasts as long as its descriptors.
///
/// # Errors
/// `EBUSY`, `EINVAL`: there is an interface of this name; `EPERM` without CAP_NET_ADMIN; `EBADFD`: not this device.
pub fn create(tun: BorrowedFd<'_>, name: &str, flags: u16) -> Result<()> {
    let request = request(name, flags)?;
    // SAFETY: `request` has the kernel's layout and outlives the call.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &raw const request) }).map(drop)
}

/// The `IFF_*` flags of a tap, tun or macvtap descriptor.
///
/// # Errors
/// `ENOTTY` and others where it is none; `EBADFD` where no interface belongs to it.
pub fn flags(fd: BorrowedFd<'_>) -> Result<u16> {
    let mut request = request("", 0)?;
    // SAFETY: `request` has the kernel's layout and outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF as _, &raw mut request) })?;
    // SAFETY: the kernel has written the flags.
    Ok(unsafe { request.ifr_ifru.ifru_flags } as u16)
}

/// Says what the reader of a tap does itself, `TUN_F_*`.
///
/// # Errors
/// `EINVAL`: something that this kernel does not know.
pub fn set_offload(fd: BorrowedFd<'_>, offload: u32) -> Result<()> {
    // SAFETY: the request takes its argument by value.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, u64::from(offload)) }).map(drop)
}

/// Size of the offload header in bytes.
///
/// # Errors
/// As [`flags`].
pub fn header_size(fd: BorrowedFd<'_>) -> Result<i32> {
    super::files::ioctl_get(fd, TUNGETVNETHDRSZ)
}

/// Sets it.
///
/// # Errors
/// `EINVAL`: too small.
pub fn set_header_size(fd: BorrowedFd<'_>, size: i32) -> Result<()> {
    super::files::ioctl_set(fd, TUNSETVNETHDRSZ, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_no_tap_is_told() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(flags(null.as_fd()).is_err() && create(null.as_fd(), "x", IFF_TAP).is_err());
        assert_eq!(create(null.as_fd(), "a-name-that-is-too-long", IFF_TAP), Err(Errno::EINVAL));
    }
}
