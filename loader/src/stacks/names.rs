//! Addresses in words.
#![forbid(unsafe_code)]

use super::space::{Space, Where};
use crate::procfs::{ProcFs, parse_nspid};
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

/// Longest map of a just-in-time compiler that is read.
const LONGEST_MAP: u64 = 64 << 20;
/// Longest name shown, in characters.
const LONGEST_NAME: usize = 512;

/// A place in a program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The function, demangled; without symbols `file+0x…`, and the address where there is no file.
    pub function: String,
    /// How far into the function.
    pub offset: u64,
    /// The file; empty when there is none.
    pub file: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.function)?;
        if self.offset > 0 {
            write!(f, " +{:#x}", self.offset)?;
        }
        if !self.function.starts_with('[') && !self.file.is_empty() {
            write!(f, " ({})", self.file)?;
        }
        Ok(())
    }
}

/// Functions of a just-in-time compiler: start, end, name.
type Compiled = Vec<(u64, u64, String)>;

/// Names of addresses, with the maps that just-in-time compilers leave for profilers (`/tmp/perf-PID.map`).
#[derive(Debug, Default)]
pub struct Names {
    compiled: HashMap<i32, Rc<Compiled>>,
}

impl Names {
    /// The place at `address`.
    pub fn place(&mut self, procfs: &ProcFs, space: &Space, address: u64) -> Place {
        self.of(procfs, space.pid(), &space.find(address), address)
    }

    /// The place at `address` of process `pid`, where `at` lies.
    pub fn of(&mut self, procfs: &ProcFs, pid: i32, at: &Where, address: u64) -> Place {
        match at {
            Where::File(elf, at) => match elf.function(*at) {
                Some((name, offset)) => Place { function: demangle(name), offset, file: elf.path.clone() },
                None => {
                    // Functions without a name have a beginning at least, in the unwind tables.
                    let start = elf.function_start(*at).unwrap_or(*at);
                    let short = elf.path.rsplit('/').next().unwrap_or(&elf.path);
                    Place {
                        function: format!("[{short}+{start:#x}]"),
                        offset: at - start,
                        file: elf.path.clone(),
                    }
                }
            },
            Where::Anonymous => self.compiled(procfs, pid, address),
            Where::Nowhere => Place { function: format!("[{address:#x}]"), offset: 0, file: String::new() },
        }
    }

    fn compiled(&mut self, procfs: &ProcFs, pid: i32, address: u64) -> Place {
        let map =
            self.compiled.entry(pid).or_insert_with(|| Rc::new(read_map(procfs, pid).unwrap_or_default()));
        let i = map.partition_point(|(start, ..)| *start <= address);
        match i.checked_sub(1).and_then(|i| map.get(i)) {
            Some((start, end, name)) if address < *end => {
                Place { function: name.clone(), offset: address - start, file: String::new() }
            }
            _ => Place { function: format!("[compiled {address:#x}]"), offset: 0, file: String::new() },
        }
    }
}

/// What a just-in-time compiler in process `pid` wrote about its code, under the pid that it knows itself by.
fn read_map(procfs: &ProcFs, pid: i32) -> Option<Compiled> {
    let own = parse_nspid(&procfs.status_field(pid, "NSpid").ok()??).last().copied()?;
    // Whatever else lies there under that name must not make us wait.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let fd = procfs.open_inside(pid, &format!("/tmp/perf-{own}.map"), flags).ok()?;
    let kind = SFlag::from_bits_truncate(fstat(&fd).ok()?.st_mode) & SFlag::S_IFMT;
    (kind == SFlag::S_IFREG).then(|| parse_map(BufReader::new(File::from(fd).take(LONGEST_MAP))))
}

/// Lines `START SIZE NAME`, numbers in hexadecimal. Of two entries for an address the later one counts: memory is used again.
pub(super) fn parse_map(text: impl BufRead) -> Compiled {
    let mut by_start = std::collections::BTreeMap::new();
    for line in text.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let mut fields = line.splitn(3, ' ');
        let hex = |field: Option<&str>| u64::from_str_radix(field?.trim_start_matches("0x"), 16).ok();
        if let (Some(start), Some(size), Some(name)) = (hex(fields.next()), hex(fields.next()), fields.next())
        {
            by_start.insert(start, (start.saturating_add(size), shown(name)));
        }
    }
    by_start.into_iter().map(|(start, (end, name))| (start, end, name)).collect()
}

/// A function's name as its programmer wrote it, from Rust or C++; any other stays as it is.
pub fn demangle(name: &str) -> String {
    // A version behind `@` belongs to the library, not to the function.
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return shown(&format!("{rust:#}"));
    }
    if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && let Some(text) = written(&symbol)
    {
        return shown(&text);
    }
    shown(name)
}

/// A C++ name in full, as far as it is shown. Of one that refers to its own parts there is no end in sight: each may double it.
fn written<T: AsRef<[u8]>>(symbol: &cpp_demangle::Symbol<T>) -> Option<String> {
    struct Beginning(String);
    impl std::fmt::Write for Beginning {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            if self.0.len() > 4 * LONGEST_NAME {
                return Err(std::fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut text = Beginning(String::new());
    let whole = symbol.structured_demangle(&mut text, &cpp_demangle::DemangleOptions::default()).is_ok();
    (whole || text.0.len() > 4 * LONGEST_NAME).then_some(text.0)
}

/// Without what could break a line or a terminal, and not too long.
fn shown(name: &str) -> String {
    let mut all = name.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut text: String = all.by_ref().take(LONGEST_NAME).collect();
    if all.next().is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_three_languages() {
        assert_eq!(
            demangle("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"),
            "core::fmt::Write::write_fmt"
        );
        assert_eq!(
            demangle("_ZNSt6vectorIiSaIiEE9push_backEOi"),
            "std::vector<int, std::allocator<int> >::push_back(int&&)"
        );
        assert_eq!(demangle("memcpy@@GLIBC_2.14"), "memcpy");
        assert_eq!(demangle("main\n\x1b[2J"), "main??[2J");
    }

    /// Each of these types has the one before it twice.
    #[test]
    fn names_that_double_have_an_end() {
        let base36 = |mut n: usize| {
            let mut digits = Vec::new();
            loop {
                digits.insert(0, b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[n % 36] as char);
                n /= 36;
                if n == 0 {
                    return digits.into_iter().collect::<String>();
                }
            }
        };
        let mut name = "_Z1f1AIiiE".to_owned();
        for n in 0..200 {
            let last = base36(n);
            name += &format!("S_IS{last}_S{last}_E");
        }
        let shown = demangle(&name);
        assert!(shown.starts_with("f(A<int, int>, A<A<int, int>, A<int, int> >, "), "{shown}");
        assert_eq!(shown.chars().count(), LONGEST_NAME + 1);
    }

    #[test]
    fn maps_of_compilers() {
        let map = parse_map(&b"1000 20 first\n2000 10 LazyCompile:~a b x.js:1\nnonsense\n1000 30 later\nffffffffffffffff 10 end\n"[..]);
        assert_eq!(map[0], (0x1000, 0x1030, "later".to_owned()));
        assert_eq!(map[1].2, "LazyCompile:~a b x.js:1");
        assert_eq!(map.len(), 3);
    }

    proptest! {
        #[test]
        fn nothing_panics(name in ".{0,80}", map in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = demangle(&name);
            let _ = demangle(&format!("_Z{name}"));
            let _ = parse_map(&map[..]);
        }
    }
}
