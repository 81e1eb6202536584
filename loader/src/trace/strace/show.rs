//! The arguments of a call, as a line has them.
#![forbid(unsafe_code)]

use super::CAPTURED;
use super::signatures::{self, Kind, Parameter};
use crate::trace::calls::text_of;
use crate::trace::wire::{Field, Value};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest text of an argument, and longest list of arguments, in bytes; the rest is left out.
const MAX_TEXT: usize = 256;
const MAX_ARGS: usize = 2048;
/// As much is shown of data that is read or written.
const MAX_DATA: usize = 64;
const REGISTERS: [&str; 6] = ["arg1", "arg2", "arg3", "arg4", "arg5", "arg6"];

pub fn find<'a>(fields: &'a [Field], name: &str) -> Option<&'a Value> {
    fields.iter().find(|field| field.name == name).map(|field| &field.value)
}

/// Whether there is nothing in it, as when the memory that held it could not be read, or its descriptor is closed.
pub fn unread(field: &Field) -> bool {
    match &field.value {
        Value::Text(text) if field.name == "fd_path" => text.is_empty() || text.starts_with("[err: "),
        Value::Text(text) => text.is_empty(),
        Value::Texts(texts) => texts.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        _ => false,
    }
}

/// The arguments of a call, each with its name; registers by their values where nothing is known of the call.
pub fn arguments(call: &str, fields: &[Field]) -> String {
    let shown = match (signatures::parameters(call), find(fields, REGISTERS[0])) {
        (Some(parameters), Some(_)) => registers(parameters, fields),
        _ => named(call, fields),
    };
    let all = shown.join(", ");
    match cut(&all, MAX_ARGS) {
        begin if begin.len() < all.len() => format!("{begin}..."),
        _ => all,
    }
}

/// Of a call that has a message of its own, or of which nothing is known.
fn named(call: &str, fields: &[Field]) -> Vec<String> {
    let positioned = !matches!(find(fields, "has_offset"), Some(Value::Bool(false)));
    let mut shown = Vec::new();
    for Field { name, value, .. } in fields.iter().filter(|f| !unread(f)) {
        match (*name, value) {
            ("exit" | "fd_path" | "has_offset", _) => {}
            ("offset", _) if !positioned => {}
            ("address", Value::Bytes(bytes)) => shown.push(format!("address: {}", address(bytes))),
            (name, Value::Uint(n)) if REGISTERS.contains(&name) => shown.push(format!("{n:#x}")),
            (name, Value::Bytes(bytes)) if CAPTURED.contains(&name) => {
                let most = match find(fields, "count") {
                    Some(Value::Uint(count)) => transferred(fields).map_or(*count, |n| n.min(*count)),
                    _ => 0,
                };
                shown.push(format!("data: {}", data(bytes, most)));
            }
            ("fd" | "old_fd", Value::Int(n)) => shown.push(format!("{name}: {}", descriptor(*n, fields))),
            (name, value) => shown.push(match signatures::names(call, name) {
                Some(names) => format!("{name}: {}", names.show(number(value))),
                None => format!("{name}: {}", show(name, value)),
            }),
        }
    }
    shown
}

/// Of a call that is told by its registers.
fn registers(parameters: &[Parameter], fields: &[Field]) -> Vec<String> {
    let mut captured = CAPTURED.into_iter();
    let mut path = true;
    let register = |n: usize| REGISTERS.get(n).and_then(|name| find(fields, name)).map_or(0, number);
    let shown = parameters.iter().enumerate().map(|(n, (name, kind))| {
        let value = register(n);
        let mut bytes = || match captured.next().and_then(|name| find(fields, name)) {
            Some(Value::Bytes(bytes)) if !bytes.is_empty() => Some(bytes.as_slice()),
            _ => None,
        };
        let text = match kind {
            Kind::Int => (value as i32).to_string(),
            Kind::Long => (value as i64).to_string(),
            Kind::Unsigned => value.to_string(),
            Kind::Octal => format!("{:#o}", value as u32),
            Kind::Hex => pointer(value),
            Kind::Named(names) => names.show(value & 0xffff_ffff),
            Kind::Descriptor => {
                let number = i64::from(value as i32);
                // The path is that of the first.
                let fields = if std::mem::take(&mut path) { fields } else { &[] };
                descriptor(number, fields)
            }
            Kind::Text => match bytes() {
                Some(bytes) => quoted(&text_of(bytes).escape_debug().to_string()),
                None => pointer(value),
            },
            Kind::Written => match bytes() {
                Some(bytes) => data(bytes, register(n + 1)),
                None => pointer(value),
            },
            Kind::Read => match (bytes(), transferred(fields)) {
                (Some(bytes), Some(count)) => data(bytes, count),
                _ => pointer(value),
            },
            Kind::Address => bytes().map_or_else(|| pointer(value), address),
        };
        format!("{name}: {text}")
    });
    shown.collect()
}

/// How many bytes a call has read or written, if it has.
fn transferred(fields: &[Field]) -> Option<u64> {
    let Some(Value::Message(exit)) = find(fields, "exit") else { return None };
    match find(exit, "result") {
        Some(Value::Int(n)) => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Int(n) => *n as u64,
        Value::Uint(n) => *n,
        _ => 0,
    }
}

fn pointer(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

/// A descriptor, with what is behind it if that is known.
fn descriptor(number: i64, fields: &[Field]) -> String {
    let path = fields.iter().find(|f| f.name == "fd_path" && !unread(f)).map(|f| &f.value);
    match path {
        _ if number == i64::from(libc::AT_FDCWD) => "AT_FDCWD".to_owned(),
        Some(Value::Text(path)) => format!("{number}<{}>", path.escape_debug()),
        _ => number.to_string(),
    }
}

/// The beginning of `length` bytes.
fn data(bytes: &[u8], length: u64) -> String {
    let there = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    let shown = bytes.get(..there.min(MAX_DATA)).unwrap_or_default();
    let more = if (shown.len() as u64) < length { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

/// A socket address (`struct sockaddr`).
fn address(bytes: &[u8]) -> String {
    let word = |at: usize| bytes.get(at..).and_then(|b| b.first_chunk::<2>()).copied();
    let rest = |at: usize| bytes.get(at..).unwrap_or_default();
    let family = word(0).map(u16::from_ne_bytes).map_or(-1, i32::from);
    let port = word(2).map(u16::from_be_bytes).unwrap_or_default();
    match (family, rest(4).first_chunk::<4>(), rest(8).first_chunk::<16>()) {
        (libc::AF_INET, Some(ip), _) => format!("{}:{port}", Ipv4Addr::from(*ip)),
        (libc::AF_INET6, _, Some(ip)) => format!("[{}]:{port}", Ipv6Addr::from(*ip)),
        (libc::AF_UNIX, ..) => match rest(2) {
            // In no folder; its name may have zeros.
            [0, name @ ..] => format!("unix:@{}", name.escape_ascii()),
            path => {
                format!("unix:{}", path.split(|b| *b == 0).next().unwrap_or_default().escape_ascii())
            }
        },
        _ => quoted(&bytes.escape_ascii().to_string()),
    }
}

fn show(name: &str, value: &Value) -> String {
    match (value, name) {
        (Value::Uint(n), "mode") => format!("{n:#o}"),
        (Value::Uint(n), "addr" | "flags" | "prot" | "mask" | "stack" | "tls" | "new_tid" | "sigset") => {
            format!("{n:#x}")
        }
        (Value::Int(n), "flags") => format!("{n:#x}"),
        (Value::Int(n), _) => n.to_string(),
        (Value::Uint(n), _) => n.to_string(),
        (Value::Bool(b), _) => b.to_string(),
        (Value::Text(text), _) => quoted(&text.escape_debug().to_string()),
        (Value::Bytes(bytes), _) => quoted(&bytes.escape_ascii().to_string()),
        (Value::Texts(texts), _) => {
            let texts: Vec<String> = texts.iter().map(|t| quoted(&t.escape_debug().to_string())).collect();
            format!("[{}]", texts.join(", "))
        }
        (Value::Message(fields), _) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name, show(f.name, &f.value))).collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

fn quoted(escaped: &str) -> String {
    match cut(escaped, MAX_TEXT) {
        all if all.len() == escaped.len() => format!("\"{all}\""),
        begin => format!("\"{begin}\"..."),
    }
}

/// As much of a text as goes into `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= max).last().unwrap_or(0);
    text.get(..end).unwrap_or_default()
}
