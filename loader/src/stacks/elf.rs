//! Unwind tables and function names of the files that processes have mapped.
#![forbid(unsafe_code)]

use super::maps::Mapping;
use crate::procfs::ProcFs;
use crate::sys::ptrace;
use framehop::ExplicitModuleSectionInfo;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache, ReadRef, SegmentFlags, SymbolKind,
};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::ops::Range;
use std::rc::Rc;

/// Longest unwind table that is read; Chromium's is 8 MiB.
const LONGEST_TABLE: u64 = 64 << 20;
/// Most functions that are read of a file.
const MOST_FUNCTIONS: usize = 1 << 20;
/// Longest function name kept, in bytes.
const LONGEST_NAME: usize = 4096;
/// Most files that are kept open.
const MOST_FILES: usize = 4096;
/// Largest picture of a file that is read from memory, where there is no file (the vDSO).
const LONGEST_PICTURE: u64 = 1 << 20;

/// A function: first address, size, and name as it is in the file.
type Function = (u64, u64, String);

enum Source {
    File(File),
    Memory(Vec<u8>),
}

/// One file with code.
pub struct Elf {
    /// Path as the first process that had it mapped knows it, or a name in brackets.
    pub path: String,
    source: Source,
    /// Parts with code: offset in the file, its size there, address.
    segments: Vec<(u64, u64, u64)>,
    text: Option<Range<u64>>,
    eh_frame: Option<(Range<u64>, Rc<[u8]>)>,
    eh_frame_hdr: Option<(Range<u64>, Rc<[u8]>)>,
    functions: OnceCell<Vec<Function>>,
}

impl std::fmt::Debug for Elf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elf")
            .field("path", &self.path)
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

impl Source {
    fn cache(&self) -> ReadCache<Box<dyn ReadSeek + '_>> {
        match self {
            Self::File(file) => ReadCache::new(Box::new(file)),
            Self::Memory(bytes) => ReadCache::new(Box::new(Cursor::new(bytes))),
        }
    }
}

impl Elf {
    fn new(path: String, source: Source) -> Option<Self> {
        let cache = source.cache();
        let file = object::File::parse(&cache).ok()?;
        // Only these: the page at which one begins may be the last of the one before it, too.
        let executable = |flags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags.0 & object::elf::PF_X.0 != 0);
        let segments = file.segments().filter(|s| executable(s.flags()));
        let segments =
            segments.map(|s| (s.file_range().0, s.file_range().1, s.address())).take(1024).collect();
        let text =
            file.section_by_name(".text").and_then(|s| Some(s.address()..s.address().checked_add(s.size())?));
        let (eh_frame, eh_frame_hdr) = (section(&file, ".eh_frame"), section(&file, ".eh_frame_hdr"));
        drop(file);
        drop(cache);
        Some(Self { path, source, segments, text, eh_frame, eh_frame_hdr, functions: OnceCell::new() })
    }

    /// A file that is in memory.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_memory(path: String, bytes: &[u8]) -> Option<Self> {
        Self::new(path, Source::Memory(bytes.to_vec()))
    }

    /// One that has nothing but unwind tables, at this address of the file.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_tables(path: String, bytes: &[u8], at: u64) -> Self {
        Self {
            path,
            source: Source::Memory(Vec::new()),
            segments: Vec::new(),
            text: None,
            eh_frame: Some((at..at + bytes.len() as u64, Rc::from(bytes))),
            eh_frame_hdr: None,
            functions: OnceCell::new(),
        }
    }

    /// What an address in `mapping` must be lowered by to get the address that the file gives it.
    pub fn bias(&self, mapping: &Mapping) -> Option<u64> {
        let (offset, _, address) = self
            .segments
            .iter()
            // Mappings begin at a page, segments need not.
            .find(|(offset, size, _)| {
                (offset & !0xfff..=offset.saturating_add(*size)).contains(&mapping.offset) && *size > 0
            })?;
        let at = address.wrapping_add(mapping.offset).wrapping_sub(*offset);
        Some(mapping.start.wrapping_sub(at))
    }

    /// What an unwinder needs.
    pub fn unwind_info(&self) -> ExplicitModuleSectionInfo<Rc<[u8]>> {
        let split = |found: &Option<(Range<u64>, Rc<[u8]>)>| {
            (found.as_ref().map(|f| f.0.clone()), found.as_ref().map(|f| f.1.clone()))
        };
        let (eh_frame_svma, eh_frame) = split(&self.eh_frame);
        // Without an index the unwinder makes one.
        let sound = |index: &&(Range<u64>, Rc<[u8]>)| {
            self.eh_frame.as_ref().is_some_and(|table| points_into(&index.1, index.0.start, &table.0))
        };
        let (eh_frame_hdr_svma, eh_frame_hdr) = split(&self.eh_frame_hdr.as_ref().filter(sound).cloned());
        ExplicitModuleSectionInfo {
            text_svma: self.text.clone(),
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..Default::default()
        }
    }

    /// The function at an address of the file, as the file names it, and how far into it the address is.
    pub fn function(&self, address: u64) -> Option<(&str, u64)> {
        let functions = self.functions.get_or_init(|| {
            let cache = self.source.cache();
            object::File::parse(&cache).map(|file| functions(&file)).unwrap_or_default()
        });
        let i = functions.partition_point(|(start, ..)| *start <= address);
        let (start, size, name) = functions.get(i.checked_sub(1)?)?;
        let into = address - start;
        // Hand-written assembly has symbols without a size: they reach to the next one.
        (into < *size || *size == 0).then_some((name.as_str(), into))
    }

    /// Where the function at an address of the file begins, by the index of the unwind tables.
    pub fn function_start(&self, address: u64) -> Option<u64> {
        let (range, header) = self.eh_frame_hdr.as_ref()?;
        start_in_header(header, range.start, address)
    }
}

/// The last of the function starts in a `.eh_frame_hdr` (Linux Standard Base, 10.6.2) that is not behind `address`; `at` is the
/// address of the section. Only the form that linkers write is read: starts relative to the section, 4 bytes each, sorted.
pub(super) fn start_in_header(header: &[u8], at: u64, address: u64) -> Option<u64> {
    let (_, entries) = header_entries(header)?;
    let entry = |i: usize| {
        let (start, _) = entries.get(8 * i..)?.split_first_chunk::<4>()?;
        Some(at.wrapping_add_signed(i32::from_le_bytes(*start).into()))
    };
    let (mut low, mut high) = (0, entries.len() / 8);
    while low < high {
        let middle = low + (high - low) / 2;
        match entry(middle)? <= address {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    entry(low.checked_sub(1)?)
}

/// Whether an index, which is at `at`, is about the table at `table` and about nothing before or behind it: unwinders compute with
/// the differences.
fn points_into(header: &[u8], at: u64, table: &Range<u64>) -> bool {
    // The pointer to the table is relative to itself.
    let from = |base: u64, offset: i32| base.wrapping_add_signed(offset.into());
    header_entries(header).is_some_and(|(pointer, entries)| {
        from(at.wrapping_add(4), pointer) == table.start
            && entries.chunks_exact(8).all(|entry| {
                let pointer = entry.last_chunk().map_or(0, |b| i32::from_le_bytes(*b));
                table.contains(&from(at, pointer))
            })
    })
}

/// The pointer to the table, and the entries: start of a function and where the table tells of it, 4 bytes each.
fn header_entries(header: &[u8]) -> Option<(i32, &[u8])> {
    const FORM: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
    let (form, rest) = header.split_first_chunk::<4>()?;
    let (pointer, rest) = rest.split_first_chunk::<4>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = (u32::from_le_bytes(*count) as usize).min(rest.len() / 8);
    (*form == FORM).then_some((i32::from_le_bytes(*pointer), rest.get(..8 * count)?))
}

type Table = Option<(Range<u64>, Rc<[u8]>)>;

fn section<'a, R: ReadRef<'a>>(file: &object::File<'a, R>, name: &str) -> Table {
    let section = file.section_by_name(name)?;
    if section.size() > LONGEST_TABLE {
        return None;
    }
    let bytes = section.data().ok()?;
    Some((section.address()..section.address().checked_add(section.size())?, Rc::from(bytes)))
}

fn functions<'a, R: ReadRef<'a>>(file: &object::File<'a, R>) -> Vec<Function> {
    let mut all: Vec<Function> = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|s| s.kind() == SymbolKind::Text && s.is_definition())
        .filter_map(|s| {
            let name = s.name().ok().filter(|n| !n.is_empty() && n.len() <= LONGEST_NAME)?;
            Some((s.address(), s.size(), name.to_owned()))
        })
        .take(MOST_FUNCTIONS)
        .collect();
    // Of several names for one function the one with a size, and of those the first in the alphabet.
    all.sort_unstable_by(|a, b| (a.0, b.1, &a.2).cmp(&(b.0, a.1, &b.2)));
    all.dedup_by_key(|f| f.0);
    all
}

/// The files that were looked at, by device and inode: containers of one image share most of them.
#[derive(Debug, Default)]
pub struct Files {
    known: HashMap<(String, u64), Option<Rc<Elf>>>,
    vdso: Option<Rc<Elf>>,
}

impl Files {
    /// The file behind a mapping of process `pid`; `None` for anonymous memory, what cannot be opened, and what is no ELF
    /// file.
    pub fn of(&mut self, procfs: &ProcFs, pid: i32, mapping: &Mapping) -> Option<Rc<Elf>> {
        if mapping.path == "[vdso]" {
            if self.vdso.is_none() {
                self.vdso = picture(pid, mapping);
            }
            return self.vdso.clone();
        }
        if mapping.inode == 0 {
            return None;
        }
        let key = (mapping.device.clone(), mapping.inode);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        if self.known.len() >= MOST_FILES {
            return None;
        }
        let path = mapping.path.strip_suffix(" (deleted)").unwrap_or(&mapping.path);
        let elf = open(procfs, pid, mapping)
            .and_then(|file| Elf::new(path.to_owned(), Source::File(file)))
            .map(Rc::new);
        self.known.insert(key, elf.clone());
        elf
    }
}

/// Opens the file behind a mapping: what is mapped itself where the kernel allows it (CAP_CHECKPOINT_RESTORE in the initial
/// user namespace), else the file of that name that the process sees, if it is the same.
fn open(procfs: &ProcFs, pid: i32, mapping: &Mapping) -> Option<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let name = format!("{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let fd = openat(procfs.root(), name.as_str(), flags, Mode::empty())
        .or_else(|_| procfs.open_inside(pid, &mapping.path, flags | OFlag::O_NOFOLLOW))
        .ok()?;
    let stat = fstat(&fd).ok()?;
    let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    (regular && stat.st_ino == mapping.inode).then(|| fd.into())
}

/// What is mapped, where it is a whole ELF file by itself.
fn picture(pid: i32, mapping: &Mapping) -> Option<Rc<Elf>> {
    let length = (mapping.end - mapping.start).min(LONGEST_PICTURE) as usize;
    let mut bytes = vec![0; length];
    let read = ptrace::read_memory(pid, mapping.start, &mut bytes).ok()?;
    bytes.truncate(read);
    Elf::new(mapping.path.clone(), Source::Memory(bytes)).map(Rc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::maps;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_function_of_this_binary_is_found_by_its_mapping() {
        let proc: OwnedFd = File::open("/proc").unwrap().into();
        let (procfs, pid) = (ProcFs::new(proc), std::process::id() as i32);
        let here = a_function_of_this_binary_is_found_by_its_mapping as *const () as u64;
        let all = maps::executable(&procfs, pid).unwrap();
        let mapping = all.iter().find(|m| (m.start..m.end).contains(&here)).unwrap();
        let mut files = Files::default();
        let elf = files.of(&procfs, pid, mapping).unwrap();
        let (name, into) = elf.function(here - elf.bias(mapping).unwrap()).unwrap();
        assert!(name.contains("a_function_of_this_binary") && into == 0, "{name}+{into}");
        assert!(Rc::ptr_eq(&elf, &files.of(&procfs, pid, mapping).unwrap()));
        let vdso = all.iter().find(|m| m.path == "[vdso]").unwrap();
        assert!(files.of(&procfs, pid, vdso).unwrap().unwind_info().eh_frame.is_some());
    }

    /// Not by the first page alone: where segments share one in the file, the last address tells.
    #[test]
    fn every_mapping_with_code_is_placed_as_the_loader_did() {
        let proc: OwnedFd = File::open("/proc").unwrap().into();
        let (procfs, pid) = (ProcFs::new(proc), std::process::id() as i32);
        let mut files = Files::default();
        let mut placed = 0;
        for mapping in maps::executable(&procfs, pid).unwrap() {
            let Some(elf) = files.of(&procfs, pid, &mapping) else { continue };
            let bias = elf.bias(&mapping).unwrap();
            assert_eq!(bias & 0xfff, 0, "{mapping:?}");
            let Some(text) = elf.text.clone() else { continue };
            assert!(
                (mapping.start - bias..mapping.end - bias).contains(&text.start),
                "{mapping:?} {text:x?}"
            );
            placed += 1;
        }
        assert!(placed >= 2, "this program and its C library");
    }

    #[test]
    fn starts_of_functions_in_the_index() {
        let mut header = vec![1, 0x1b, 0x03, 0x3b, 0, 0, 0, 0, 3, 0, 0, 0];
        for start in [-0x100i32, 0, 0x40] {
            header.extend(start.to_le_bytes());
            header.extend([0; 4]);
        }
        let start = |address| start_in_header(&header, 0x1000, address);
        assert_eq!(start(0xeff), None);
        assert_eq!(start(0xf00), Some(0xf00));
        assert_eq!(start(0x103f), Some(0x1000));
        assert_eq!(start(u64::MAX), Some(0x1040));
        for length in 0..header.len() {
            let _ = start_in_header(&header[..length], 0x1000, 0x1020);
        }
    }

    #[test]
    fn an_index_that_leads_elsewhere_is_not_used() {
        let mut header = vec![1, 0x1b, 0x03, 0x3b];
        // From 0x1004 to 0x2000; one entry, for what is at 0x2010.
        header.extend(0xffc_i32.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        header.extend([0x10, 0, 0, 0]);
        header.extend(0x1010_i32.to_le_bytes());
        assert!(points_into(&header, 0x1000, &(0x2000..0x3000)));
        assert!(!points_into(&header, 0x1000, &(0x1ff0..0x3000)), "another table");
        assert!(!points_into(&header, 0x1000, &(0x2000..0x2010)), "behind it");
        header[7] = 0xff;
        assert!(!points_into(&header, 0x1000, &(0x2000..0x3000)));
    }

    #[test]
    fn what_is_no_elf_file_is_none() {
        assert!(Elf::new(String::new(), Source::Memory(b"\x7fELF".to_vec())).is_none());
        assert!(Elf::new(String::new(), Source::Memory(Vec::new())).is_none());
    }
}
