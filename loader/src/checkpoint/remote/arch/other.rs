//! An architecture that nobody has written the code for: says so by name.

use airlock_wire::error::{Error, Result};

/// No instruction is known.
pub const GADGET: &[u8] = &[];
/// See [`GADGET`].
pub const BLOB_GADGET: u64 = 0;
/// See [`GADGET`].
pub const BLOB_TRAP: u64 = 0;
/// See [`GADGET`].
pub const BLOB: &[u8] = &[];

/// General purpose registers of a thread: there can be none here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regs {}

impl Regs {
    /// Size of the set in bytes.
    pub const SIZE: usize = 0;
    /// Names of the registers.
    pub const NAMES: &'static [&'static str] = &[];

    /// Always fails.
    ///
    /// # Errors
    /// `Unsupported`, naming the architecture.
    pub fn from_bytes(_: &[u8]) -> Result<Self> {
        Err(Error::unsupported(format!(
            "checkpoint and restore are not implemented for {}",
            std::env::consts::ARCH
        )))
    }

    /// As the kernel lays the set out.
    pub fn to_bytes(&self) -> Vec<u8> {
        match *self {}
    }
    /// Instruction pointer.
    pub fn ip(&self) -> u64 {
        match *self {}
    }
    /// Sets the instruction pointer.
    pub fn set_ip(&mut self, _: u64) {
        match *self {}
    }
    /// Stack pointer.
    pub fn sp(&self) -> u64 {
        match *self {}
    }
    /// What a call just returned.
    pub fn returned(&self) -> u64 {
        match *self {}
    }
    /// Number of the system call that the thread is in.
    pub fn in_syscall(&self) -> Option<u64> {
        match *self {}
    }
    /// Where the instruction of that call lies.
    pub fn call_site(&self) -> u64 {
        match *self {}
    }
    /// Fails for a thread of another mode.
    ///
    /// # Errors
    /// None.
    pub fn check_mode(&self) -> Result<()> {
        match *self {}
    }
    /// Registers that make a call.
    pub fn for_call(&self, _: u64, _: i64, _: [u64; 6]) -> Self {
        match *self {}
    }
    /// Registers that run the blob.
    pub fn for_blob(&self, _: u64, _: u64, _: u64) -> Self {
        match *self {}
    }
    /// How far the blob came.
    pub fn blob_progress(&self) -> u64 {
        match *self {}
    }
    /// True when a call is to be restarted.
    pub fn wants_restart(&self) -> bool {
        match *self {}
    }
    /// True when the kernel holds state of the interrupted call.
    pub fn in_restart_block(&self) -> bool {
        match *self {}
    }
    /// See the module for x86-64.
    pub fn undo_spurious_eintr(&mut self) {
        match *self {}
    }
    /// The registers as an image keeps them.
    pub fn for_image(&self) -> Self {
        match *self {}
    }
    /// As `for_image`, with the instruction pointer back at the call.
    pub fn restarted(&self) -> Self {
        match *self {}
    }
}
