//! One address space, and the stacks in it.
#![forbid(unsafe_code)]

use super::elf::{Elf, Files};
use super::{MAX_FRAMES, maps};
use crate::procfs::ProcFs;
use airlock_wire::error::Result;
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{Module, Unwinder};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The registers that a stack is unwound from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, or [`Frame::UNKNOWN`].
    pub bp: u64,
}

impl Frame {
    /// A frame pointer that leads nowhere (0 would say that the stack ends here).
    pub const UNKNOWN: u64 = 8;
}

/// What lies at an address.
#[derive(Debug, Clone)]
pub enum Where {
    /// Code of a file, at this address of the file.
    File(Rc<Elf>, u64),
    /// Code that belongs to no file: a just-in-time compiler's.
    Anonymous,
    /// Nothing that can be executed.
    Nowhere,
}

/// A file, and what addresses are lowered by to get those of the file.
type Placed = (Rc<Elf>, u64);

/// The executable part of a process' address space.
pub struct Space {
    pid: i32,
    unwinder: UnwinderX86_64<Rc<[u8]>>,
    cache: CacheX86_64,
    /// Start of each mapping: its end, and its file with what addresses are lowered by.
    mappings: BTreeMap<u64, (u64, Option<Placed>)>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Space of {} with {} mappings", self.pid, self.mappings.len())
    }
}

impl Space {
    /// Reads the memory map of process `pid`, and the unwind tables of the files in it.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn read(procfs: &ProcFs, pid: i32, files: &mut Files) -> Result<Self> {
        let mut space = Self {
            pid,
            unwinder: UnwinderX86_64::new(),
            cache: CacheX86_64::new(),
            mappings: BTreeMap::new(),
        };
        for mapping in maps::executable(procfs, pid)? {
            let elf = files.of(procfs, pid, &mapping);
            let placed = elf.and_then(|elf| elf.bias(&mapping).map(|bias| (elf, bias)));
            if let Some((elf, bias)) = &placed {
                let range = mapping.start..mapping.end;
                add(&mut space.unwinder, elf, range, *bias);
            }
            space.mappings.insert(mapping.start, (mapping.end, placed));
        }
        Ok(space)
    }

    /// One that has nothing but one file.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_file(elf: Rc<Elf>, range: std::ops::Range<u64>) -> Self {
        let (mut unwinder, bias) = (UnwinderX86_64::new(), range.start);
        add(&mut unwinder, &elf, range.clone(), bias);
        let mappings = BTreeMap::from([(range.start, (range.end, Some((elf, bias))))]);
        Self { pid: 0, unwinder, cache: CacheX86_64::new(), mappings }
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Addresses of a stack, innermost first, at most [`MAX_FRAMES`]: the first is where the thread is, the others are one
    /// less than where calls return to, so that they lie in the call. `read_stack` reads a word of its memory.
    ///
    /// Also whether that is all of it: it ends early where neither unwind tables nor frame pointers lead on.
    pub fn unwind(
        &mut self,
        from: Frame,
        mut read_stack: impl FnMut(u64) -> Option<u64>,
    ) -> (Vec<u64>, bool) {
        let mut read = |address| read_stack(address).ok_or(());
        let registers = UnwindRegsX86_64::new(from.ip, from.sp, from.bp);
        let mut frames = self.unwinder.iter_frames(from.ip, registers, &mut self.cache, &mut read);
        let mut found = Vec::new();
        loop {
            match frames.next() {
                Ok(Some(_)) | Err(_) if found.len() >= MAX_FRAMES => return (found, false),
                Ok(Some(frame)) => found.push(frame.address_for_lookup()),
                Ok(None) => return (found, true),
                Err(_) => return (found, false),
            }
        }
    }

    /// What lies at `address`.
    pub fn find(&self, address: u64) -> Where {
        match self.mappings.range(..=address).next_back() {
            Some((_, (end, placed))) if address < *end => match placed {
                Some((elf, bias)) => Where::File(elf.clone(), address.wrapping_sub(*bias)),
                None => Where::Anonymous,
            },
            _ => Where::Nowhere,
        }
    }
}

fn add(unwinder: &mut UnwinderX86_64<Rc<[u8]>>, elf: &Elf, range: std::ops::Range<u64>, bias: u64) {
    unwinder.add_module(Module::new(elf.path.clone(), range, bias, elf.unwind_info()));
}
