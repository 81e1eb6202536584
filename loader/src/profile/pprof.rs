//! The file format of profiles that `go tool pprof`, Speedscope, Grafana and others read: the protocol buffer `Profile` of
//! <https://github.com/google/pprof/blob/main/proto/profile.proto>, gzipped.
#![forbid(unsafe_code)]

use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// A function in a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The file of its code; empty if there is none.
    pub file: String,
    /// How far into the function.
    pub offset: u64,
}

/// What is counted: its name and its unit.
pub type Counted = (&'static str, &'static str);

/// A profile in the making.
#[derive(Debug)]
pub struct Profile {
    counted: Vec<Counted>,
    period: (Counted, i64),
    begun: SystemTime,
    took: Duration,
    comments: Vec<String>,
    strings: Table<String>,
    /// By name and file, as indexes into `strings`.
    functions: Table<(u64, u64)>,
    /// Index of a file's name.
    mappings: Table<u64>,
    /// Function, file and offset.
    locations: Table<(u64, u64, u64)>,
    samples: Vec<u8>,
}

/// Things with numbers from 1 on.
#[derive(Debug)]
struct Table<T>(HashMap<T, u64>, Vec<T>);

impl<T: Hash + Eq + Clone> Table<T> {
    fn new() -> Self {
        Self(HashMap::new(), Vec::new())
    }

    fn id(&mut self, item: T) -> u64 {
        let next = self.1.len() as u64 + 1;
        *self.0.entry(item).or_insert_with_key(|item| {
            self.1.push(item.clone());
            next
        })
    }
}

impl Profile {
    /// A profile of `counted`, in which one sample stands for `period`.
    pub fn new(counted: &[Counted], period: (Counted, i64)) -> Self {
        let mut strings = Table::new();
        // Number 0 of the file's string table is the empty string; see `string`.
        strings.id(String::new());
        Self {
            counted: counted.to_vec(),
            period,
            begun: SystemTime::now(),
            took: Duration::ZERO,
            comments: Vec::new(),
            strings,
            functions: Table::new(),
            mappings: Table::new(),
            locations: Table::new(),
            samples: Vec::new(),
        }
    }

    /// When it began, and how long it took.
    pub fn set_time(&mut self, begun: SystemTime, took: Duration) {
        (self.begun, self.took) = (begun, took);
    }

    /// Adds a remark for whoever reads it (`pprof -comments`).
    pub fn comment(&mut self, text: impl Into<String>) {
        self.comments.push(text.into());
    }

    /// Adds a stack, innermost function first, with one value for each thing that is counted. `labels` tell stacks of different
    /// origin apart: a name and a text or a number.
    pub fn add(&mut self, stack: &[Function], values: &[i64], labels: &[(&str, Label)]) {
        let mut sample = Vec::new();
        let locations: Vec<u64> = stack.iter().map(|function| self.location(function)).collect();
        packed(&mut sample, 1, &locations);
        packed(&mut sample, 2, &values.iter().map(|v| v.cast_unsigned()).collect::<Vec<_>>());
        for (key, value) in labels {
            let mut label = Vec::new();
            number(&mut label, 1, self.string(key));
            match value {
                Label::Text(text) => number(&mut label, 2, self.string(text)),
                Label::Number(n) => number(&mut label, 3, n.cast_unsigned()),
            }
            bytes(&mut sample, 3, &label);
        }
        bytes(&mut self.samples, 2, &sample);
    }

    fn string(&mut self, text: &str) -> u64 {
        self.strings.id(text.to_owned()) - 1
    }

    fn location(&mut self, function: &Function) -> u64 {
        let (name, file) = (self.string(&function.name), self.string(&function.file));
        let id = self.functions.id((name, file));
        // The first mapping is taken for the program; the kernel, in brackets, is none.
        let mapping = if file == 0 || function.file.starts_with('[') { 0 } else { self.mappings.id(file) };
        self.locations.id((id, mapping, function.offset))
    }

    /// The file's bytes.
    pub fn encode(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for counted in self.counted.clone() {
            let kind = self.value_type(counted);
            bytes(&mut out, 1, &kind);
        }
        out.append(&mut self.samples);
        for (i, file) in self.mappings.1.iter().enumerate() {
            let mut mapping = Vec::new();
            number(&mut mapping, 1, i as u64 + 1);
            // Readers tell mappings apart by their addresses.
            number(&mut mapping, 2, (i as u64 + 1) << 40);
            number(&mut mapping, 3, (i as u64 + 2) << 40);
            number(&mut mapping, 5, *file);
            // It has the functions' names: readers need not look for symbols.
            number(&mut mapping, 7, 1);
            bytes(&mut out, 3, &mapping);
        }
        for (i, (function, mapping, offset)) in self.locations.1.iter().enumerate() {
            let (mut location, mut line) = (Vec::new(), Vec::new());
            number(&mut location, 1, i as u64 + 1);
            number(&mut location, 2, *mapping);
            number(&mut location, 3, (mapping << 40) + (function << 20) + (offset & 0xf_ffff));
            number(&mut line, 1, *function);
            bytes(&mut location, 4, &line);
            bytes(&mut out, 4, &location);
        }
        for (i, (name, file)) in self.functions.1.iter().enumerate() {
            let mut function = Vec::new();
            number(&mut function, 1, i as u64 + 1);
            number(&mut function, 2, *name);
            // Without a name for linkers: pprof takes this one apart otherwise, and Rust's generics with it.
            number(&mut function, 4, *file);
            bytes(&mut out, 5, &function);
        }
        let (kind, period) = self.period;
        let kind = self.value_type(kind);
        let comments: Vec<u64> = std::mem::take(&mut self.comments).iter().map(|c| self.string(c)).collect();
        let begun = self.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for string in &self.strings.1 {
            bytes(&mut out, 6, string.as_bytes());
        }
        number(&mut out, 9, begun.as_nanos() as u64);
        number(&mut out, 10, self.took.as_nanos() as u64);
        bytes(&mut out, 11, &kind);
        number(&mut out, 12, period.cast_unsigned());
        packed(&mut out, 13, &comments);
        out
    }

    fn value_type(&mut self, (name, unit): Counted) -> Vec<u8> {
        let mut kind = Vec::new();
        number(&mut kind, 1, self.string(name));
        number(&mut kind, 2, self.string(unit));
        kind
    }

    /// Writes the file, gzipped. Blocks as `to` does.
    ///
    /// # Errors
    /// Those of `to`; what was written by then stays.
    pub fn write(self, to: impl Write) -> std::io::Result<()> {
        let mut gzip = GzEncoder::new(to, Compression::fast());
        gzip.write_all(&self.encode())?;
        gzip.finish()?.flush()
    }
}

/// Value of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
}

// The three kinds of fields that are used of protocol buffers' encoding.

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn number(to: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        varint(to, field << 3);
        varint(to, value);
    }
}

fn bytes(to: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(to, field << 3 | 2);
    varint(to, value.len() as u64);
    to.extend_from_slice(value);
}

fn packed(to: &mut Vec<u8>, field: u64, values: &[u64]) {
    if !values.is_empty() {
        let mut all = Vec::new();
        values.iter().for_each(|v| varint(&mut all, *v));
        bytes(to, field, &all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number and content of each field: a number, or bytes.
    fn fields(mut from: &[u8]) -> Vec<(u64, u64, &[u8])> {
        fn varint(from: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = from[0];
                *from = &from[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !from.is_empty() {
            let tag = varint(&mut from);
            let value = varint(&mut from);
            let (content, rest) = from.split_at(if tag & 7 == 2 { value as usize } else { 0 });
            found.push((tag >> 3, value, content));
            from = rest;
        }
        found
    }

    #[test]
    fn what_is_written_is_there() {
        let mut profile =
            Profile::new(&[("samples", "count"), ("cpu", "nanoseconds")], (("cpu", "nanoseconds"), 10));
        let function =
            |name: &str, offset| Function { name: name.to_owned(), file: "/bin/x".to_owned(), offset };
        let stack = [function("inner", 1), function("outer", 2)];
        profile.add(
            &stack,
            &[1, 10],
            &[("pid", Label::Number(300)), ("process", Label::Text("x".to_owned()))],
        );
        profile.add(&stack[1..], &[2, 20], &[]);
        profile.comment("said");
        let file = profile.encode();
        let all = fields(&file);
        let count = |n| all.iter().filter(|f| f.0 == n).count();
        assert_eq!((count(1), count(2), count(3), count(4), count(5)), (2, 2, 1, 2, 2));
        let strings: Vec<_> =
            all.iter().filter(|f| f.0 == 6).map(|f| std::str::from_utf8(f.2).unwrap()).collect();
        assert_eq!(strings[0], "");
        for expected in
            ["inner", "outer", "/bin/x", "samples", "cpu", "nanoseconds", "pid", "process", "said"]
        {
            assert_eq!(strings.iter().filter(|s| **s == expected).count(), 1, "{expected}");
        }
        let sample = fields(all.iter().find(|f| f.0 == 2).unwrap().2);
        assert_eq!(sample[0].2, [1, 2]);
        assert_eq!(sample[1].2, [1, 10]);
        assert_eq!(sample.len(), 4);
    }
}
