//! Names for addresses of the running binary, from its own symbol table.
#![forbid(unsafe_code)]

use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use object::{Object, ObjectSymbol, SymbolKind};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Function symbols by address, ascending.
#[derive(Debug)]
pub struct Symbols {
    base: u64,
    functions: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Reads the symbols of `exe`, the file this process runs, and where it was loaded from `procfs`.
    ///
    /// # Errors
    /// When the file is no ELF file or the memory map cannot be read.
    pub fn load(exe: &OwnedFd, procfs: &ProcFs) -> Result<Self> {
        let mut bytes = Vec::new();
        // The donated descriptor is an O_PATH one, which cannot be read from.
        procfs.reopen(exe.as_fd())?.read_to_end(&mut bytes)?;
        let elf =
            object::File::parse(&*bytes).map_err(|e| Error::failure(format!("airlock's own binary: {e}")))?;
        let mut functions: Vec<_> = elf
            .symbols()
            .filter(|s| s.kind() == SymbolKind::Text && s.size() > 0)
            .filter_map(|s| Some((s.address(), s.size(), s.name().ok()?.to_owned())))
            .collect();
        functions.sort_unstable();
        let anchor = Self::load as *const () as u64;
        let maps = procfs.read(nix::unistd::getpid().as_raw(), "maps")?;
        let base = load_base(&maps, anchor)
            .ok_or_else(|| Error::failure("the memory map has no entry for airlock"))?;
        Ok(Self { base, functions })
    }

    /// The function that an address lies in, and how far into it.
    pub fn function(&self, address: usize) -> Option<(String, u64)> {
        let relative = (address as u64).checked_sub(self.base)?;
        let i = self.functions.partition_point(|(start, _, _)| *start <= relative);
        let (start, size, name) = self.functions.get(i.checked_sub(1)?)?;
        (relative < start + size).then(|| (format!("{:#}", rustc_demangle::demangle(name)), relative - start))
    }

    /// `function +0xoffset` for an address, or the address itself.
    pub fn name(&self, address: usize) -> String {
        match self.function(address) {
            Some((name, offset)) => format!("{name} +{offset:#x}"),
            None => format!("{address:#x}"),
        }
    }
}

/// Where the file that contains `anchor` was loaded: the start of its first mapping.
fn load_base(maps: &str, anchor: u64) -> Option<u64> {
    let parse = |line: &str| -> Option<(u64, u64, String)> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let inode = rest.split_ascii_whitespace().nth(3)?.to_owned();
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?, inode))
    };
    let all: Vec<_> = maps.lines().filter_map(parse).collect();
    let (_, _, inode) = all.iter().find(|(start, end, _)| (*start..*end).contains(&anchor))?;
    all.iter().find(|(_, _, i)| i == inode).map(|(start, _, _)| *start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_function_of_this_binary_is_named() {
        let path_only =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open("/proc/self/exe");
        let exe: OwnedFd = path_only.unwrap().into();
        let procfs = ProcFs::new(File::open("/proc").unwrap().into());
        let symbols = Symbols::load(&exe, &procfs).unwrap();
        let name = symbols.name(load_base as *const () as usize);
        assert!(name.contains("load_base"), "{name}");
        assert_eq!(symbols.name(1), "0x1");
    }
}
