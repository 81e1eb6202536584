//! An architecture that nobody has written the code for: says so by name.

use airlock_wire::error::{Error, Result};

/// No instruction is known.
pub const GADGET: &[u8] = &[];
/// See [`GADGET`].
pub const BLOB_GADGET: u64 = 0;
/// See [`GADGET`].
pub const BLOB_DONE: u64 = 0;
/// See [`GADGET`].
pub const BLOB_TRAPPED: u64 = 0;
/// See [`GADGET`].
pub const BLOB: &[u8] = &[];
/// Size of what [`Regs::save_block`] returns.
pub const SAVE_BLOCK: usize = 0;

/// General purpose registers of a thread: none are ever made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regs(());

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
        Vec::new()
    }
    /// Instruction pointer.
    pub fn ip(&self) -> u64 {
        0
    }
    /// Sets the instruction pointer.
    pub fn set_ip(&mut self, _: u64) {}
    /// Stack pointer.
    pub fn sp(&self) -> u64 {
        0
    }
    /// What a call just returned.
    pub fn returned(&self) -> u64 {
        0
    }
    /// Number of the system call that the thread is in.
    pub fn in_syscall(&self) -> Option<u64> {
        None
    }
    /// Where the instruction of that call lies.
    pub fn call_site(&self) -> u64 {
        0
    }
    /// Fails for a thread of another mode.
    ///
    /// # Errors
    /// None.
    pub fn check_mode(&self) -> Result<()> {
        Ok(())
    }
    /// Registers that make a call.
    pub fn for_call(&self, _: u64, _: i64, _: [u64; 6], _: u64) -> Self {
        *self
    }
    /// Registers that run the blob.
    pub fn for_blob(&self, _: u64, _: u64, _: u64) -> Self {
        *self
    }
    /// See the module for x86-64.
    pub fn save_block(&self, _: u64) -> [u8; SAVE_BLOCK] {
        []
    }
    /// How far the blob came.
    pub fn blob_progress(&self) -> u64 {
        0
    }
    /// True when a call is to be restarted.
    pub fn wants_restart(&self) -> bool {
        false
    }
    /// True when the kernel holds state of the interrupted call.
    pub fn in_restart_block(&self) -> bool {
        false
    }
    /// See the module for x86-64.
    pub fn undo_spurious_eintr(&mut self) {}
    /// The registers as an image keeps them.
    pub fn for_image(&self) -> Self {
        *self
    }
    /// As `for_image`, with the instruction pointer back at the call.
    pub fn restarted(&self) -> Self {
        *self
    }
}
