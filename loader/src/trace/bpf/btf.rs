//! The kernel's types (BTF, Documentation/bpf/btf.rst): where members of its structures are, on the kernel that runs.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
/// Structures within structures that are followed.
const MAX_DEPTH: usize = 16;

const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const TYPE_TAG: u32 = 18;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `struct`
    Struct,
    /// `enum`
    Enum,
    /// `typedef`
    Typedef,
}

/// Parsed types.
#[derive(Debug)]
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins; the first has ID 1.
    starts: Vec<u32>,
    names: HashMap<(Kind, Vec<u8>), u32>,
}

fn broken() -> Error {
    Error::failure("the kernel's type information cannot be read")
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or_else(broken)?;
    Ok(u32::from_ne_bytes(*word))
}

impl Btf {
    /// Parses what the kernel gives.
    ///
    /// # Errors
    /// It is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.first_chunk().map(|b| u16::from_ne_bytes(*b)) != Some(MAGIC) {
            return Err(broken());
        }
        let at = |offset: usize| word(bytes, offset).map(|w| w as usize);
        let header = at(4)?;
        let section = |offset: usize, len: usize| {
            let start = header.checked_add(offset).ok_or_else(broken)?;
            start.checked_add(len).and_then(|end| bytes.get(start..end)).ok_or_else(broken)
        };
        let types = section(at(8)?, at(12)?)?.to_vec();
        let strings = section(at(16)?, at(20)?)?.to_vec();
        let mut btf = Self { types, strings, starts: Vec::new(), names: HashMap::new() };
        let mut next = 0;
        while next < btf.types.len() {
            let id = btf.starts.len() as u32 + 1;
            btf.starts.push(next as u32);
            let info = word(&btf.types, next + 4)?;
            let kind = match info >> 24 & 31 {
                STRUCT => Some(Kind::Struct),
                ENUM => Some(Kind::Enum),
                TYPEDEF => Some(Kind::Typedef),
                _ => None,
            };
            if let Some(kind) = kind {
                let name = btf.name_at(word(&btf.types, next)?).to_vec();
                btf.names.entry((kind, name)).or_insert(id);
            }
            next += 12 + extra(info).ok_or_else(broken)?;
        }
        Ok(btf)
    }

    fn name_at(&self, offset: u32) -> &[u8] {
        let from = self.strings.get(offset as usize..).unwrap_or_default();
        from.split(|b| *b == 0).next().unwrap_or_default()
    }

    /// The ID of what a name stands for.
    ///
    /// # Errors
    /// The kernel has none of that name.
    pub fn id(&self, kind: Kind, name: &str) -> Result<u32> {
        let id = self.names.get(&(kind, name.as_bytes().to_vec())).copied();
        id.ok_or_else(|| Error::unsupported(format!("this kernel has no {name}")))
    }

    /// Where the type begins, and its `info`.
    fn of(&self, id: u32) -> Result<(usize, u32)> {
        let index = (id as usize).checked_sub(1).ok_or_else(broken)?;
        let start = *self.starts.get(index).ok_or_else(broken)? as usize;
        Ok((start, word(&self.types, start + 4)?))
    }

    /// Offset in bytes of a member of `struct name`: `a`, or `a.b` of a structure within it. Members of nameless
    /// structures within it count as its own.
    ///
    /// # Errors
    /// There is no such structure or member.
    pub fn offset(&self, name: &str, path: &str) -> Result<i16> {
        let missing = || Error::unsupported(format!("this kernel's struct {name} has no {path}"));
        let mut id = self.id(Kind::Struct, name)?;
        let mut bits = 0;
        for part in path.split('.') {
            let (at, member) = self.member(id, part.as_bytes(), 0)?.ok_or_else(missing)?;
            bits += at;
            id = member;
        }
        i16::try_from(bits / 8).map_err(|_| missing())
    }

    /// The member's offset in bits and its type.
    fn member(&self, id: u32, name: &[u8], depth: usize) -> Result<Option<(u32, u32)>> {
        if depth == MAX_DEPTH {
            return Ok(None);
        }
        let (start, info) = self.of(id)?;
        match info >> 24 & 31 {
            STRUCT | UNION => {}
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                return self.member(word(&self.types, start + 8)?, name, depth + 1);
            }
            _ => return Ok(None),
        }
        let bit_fields = info >> 31 == 1;
        for i in 0..(info & 0xffff) as usize {
            let at = start + 12 + 12 * i;
            let (text, kind, offset) =
                (word(&self.types, at)?, word(&self.types, at + 4)?, word(&self.types, at + 8)?);
            let offset = if bit_fields { offset & 0x00ff_ffff } else { offset };
            let member = self.name_at(text);
            if member == name {
                return Ok(Some((offset, kind)));
            }
            if member.is_empty()
                && let Some((inner, kind)) = self.member(kind, name, depth + 1)?
            {
                return Ok(Some((offset + inner, kind)));
            }
        }
        Ok(None)
    }

    /// The value of a name in `enum name`.
    ///
    /// # Errors
    /// There is no such enumeration or name.
    pub fn value(&self, name: &str, constant: &str) -> Result<u32> {
        let (start, info) = self.of(self.id(Kind::Enum, name)?)?;
        for i in 0..(info & 0xffff) as usize {
            let at = start + 12 + 8 * i;
            if self.name_at(word(&self.types, at)?) == constant.as_bytes() {
                return word(&self.types, at + 4);
            }
        }
        Err(Error::unsupported(format!("this kernel's enum {name} has no {constant}")))
    }
}

/// Bytes that follow the first twelve of a type.
fn extra(info: u32) -> Option<usize> {
    let vlen = (info & 0xffff) as usize;
    Some(match info >> 24 & 31 {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        ARRAY => 12,
        STRUCT | UNION | 15 | 19 => vlen * 12,
        ENUM | FUNC_PROTO => vlen * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_running_kernels_types_are_found() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED: this kernel has no type information");
            return;
        };
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("upid", "nr").unwrap(), 0);
        assert_eq!(btf.offset("upid", "ns").unwrap(), 8);
        assert_eq!(btf.offset("qstr", "name").unwrap(), 8);
        assert!(btf.offset("task_struct", "real_parent").unwrap() > 0);
        assert!(btf.offset("mm_struct", "arg_start").unwrap() > 0);
        assert_eq!(btf.value("pid_type", "PIDTYPE_TGID").unwrap(), 1);
        assert!(btf.id(Kind::Typedef, "btf_trace_sys_enter").is_ok());
        let error = btf.offset("task_struct", "no_such").unwrap_err();
        assert!(error.message.contains("no no_such"), "{error}");
        assert!(btf.id(Kind::Typedef, "no_such_type").is_err());
    }

    proptest! {
        #[test]
        fn broken_types_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), len in 0u32..300) {
            if bytes.len() > 24 {
                bytes[..2].copy_from_slice(&MAGIC.to_ne_bytes());
                bytes[4..8].copy_from_slice(&24u32.to_ne_bytes());
                bytes[8..12].fill(0);
                bytes[12..16].copy_from_slice(&len.to_ne_bytes());
                bytes[16..24].fill(0);
            }
            if let Ok(btf) = Btf::parse(&bytes) {
                let _ = (btf.offset("", ""), btf.value("", ""));
            }
        }
    }
}
