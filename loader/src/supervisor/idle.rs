//! The init of a domain or virtual host: a program that does nothing, for ever.
//!
//! It is PID 1 of a pid namespace: it has the kernel reap what is left to it, and when it is killed, the kernel
//! kills all others. It is built here, some 160 bytes of an ELF file in sealed memory, so that a domain needs no program for
//! it in its root filesystem, and a checkpoint finds all that it is in an image.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

/// What it is called; processes of a domain see it as PID 1.
pub const NAME: &str = "airlock-domain";

/// Where it is mapped.
const BASE: u64 = 0x40_0000;
const EHDR: usize = 64;
const PHDR: usize = 56;

/// Length of the `struct sigaction` of the kernel, the same on both architectures: handler, flags, restorer (x86_64), mask.
const SIGACTION: usize = 32;

/// rt_sigaction(SIGCHLD, {SIG_IGN}, NULL, 8); then pause() again and again.
#[cfg(target_arch = "x86_64")]
fn code(sigaction: u64) -> Vec<u8> {
    let mut code = vec![0xb8, 13, 0, 0, 0]; // mov eax, SYS_rt_sigaction
    code.extend([0xbf, 17, 0, 0, 0]); // mov edi, SIGCHLD
    code.push(0xbe); // mov esi, sigaction
    code.extend((sigaction as u32).to_le_bytes());
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 34, 0, 0, 0]); // mov eax, SYS_pause
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xeb, 0xf7]); // jmp to the mov
    code
}

/// rt_sigaction(SIGCHLD, {SIG_IGN}, NULL, 8); then ppoll(NULL, 0, NULL, NULL) again and again.
#[cfg(target_arch = "aarch64")]
fn code(sigaction: u64) -> Vec<u8> {
    let movz = |register: u32, value: u32| 0xd280_0000 | value << 5 | register;
    let movk16 = |register: u32, value: u32| 0xf2a0_0000 | value << 5 | register;
    const SVC: u32 = 0xd400_0001;
    let words = [
        movz(0, 17),
        movz(1, sigaction as u32 & 0xffff),
        movk16(1, (sigaction >> 16) as u32),
        movz(2, 0),
        movz(3, 8),
        movz(8, 134), // rt_sigaction
        SVC,
        movz(0, 0),
        movz(1, 0),
        movz(2, 0),
        movz(3, 0),
        movz(8, 73), // ppoll
        SVC,
        0x17ff_fffa, // back to the zeros
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// The ELF file: its header, one segment that is the whole file, the `struct sigaction`, the code.
fn elf() -> Vec<u8> {
    const IGNORE: u64 = 1; // SIG_IGN
    let sigaction = (EHDR + PHDR) as u64;
    let entry = BASE + sigaction + SIGACTION as u64;
    let code = code(BASE + sigaction);
    let size = (EHDR + PHDR + SIGACTION + code.len()) as u64;
    let mut file = Vec::with_capacity(size as usize);
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(&2u16.to_le_bytes()); // ET_EXEC
    put(&MACHINE.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&entry.to_le_bytes());
    put(&(EHDR as u64).to_le_bytes()); // program headers
    put(&0u64.to_le_bytes()); // no sections
    put(&0u32.to_le_bytes());
    for half in [EHDR, PHDR, 1, 0, 0, 0] {
        put(&(half as u16).to_le_bytes());
    }
    put(&1u32.to_le_bytes()); // PT_LOAD
    put(&5u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        put(&word.to_le_bytes());
    }
    put(&IGNORE.to_le_bytes());
    put(&[0; SIGACTION - 8]);
    put(&code);
    file
}

/// The program, in sealed memory.
///
/// # Errors
/// No descriptor or memory is left.
pub fn program() -> Result<OwnedFd> {
    let failed = |e| Error::from(e).context("making the init of a domain");
    let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(failed)?;
    let mut file = File::from(fd);
    file.write_all(&elf()).map_err(|e| Error::from(e).context("making the init of a domain"))?;
    let seals =
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn it_runs_ignores_its_children_and_does_not_end() {
        let program = program().unwrap();
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let mut child = Command::new(&path).spawn().unwrap();
        // It is there once it ignores SIGCHLD and sleeps.
        loop {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let field =
                |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
            let ignored = u64::from_str_radix(&field("SigIgn:"), 16).unwrap();
            if ignored & 1 << 16 != 0 && field("State:").starts_with('S') {
                break;
            }
            assert!(child.try_wait().unwrap().is_none());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(File::options().write(true).open(&path).and_then(|mut f| f.write_all(b"x")).is_err());
    }
}
