//! Puts the words of a command line into the one form that the parser understands.
//!
//! Callers write options in several ways: as GNU has them (`--pid-file F`, `--pid-file=F`, `-b F`, `-bF`), as Go's
//! flag package has them (`-pid-file F`, `-pid-file=F`, `--detach=true`), before the container's id or after it.
//! Here all of them become `--name=value`, and whatever is no option goes behind `--`, so that nothing is left to
//! guess: an option's value may start with a dash, and a command's own options stay its own.

#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use clap::{Arg, ArgAction};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Where a command's own words end and another program's begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Never: options may stand anywhere.
    None,
    /// After this many words that are no options, the next such word and everything behind it is one program's.
    After(usize),
    /// After the id only `--format` is still an option; the rest is for ps(1).
    Ps,
}

/// What was found before the command's name.
#[derive(Debug, PartialEq, Eq)]
pub struct Split {
    /// Global options, normalised.
    pub globals: Vec<OsString>,
    /// The command, if there is one.
    pub command: Option<OsString>,
    /// The words behind it, as they were.
    pub rest: Vec<OsString>,
    /// `--help` stood before the command.
    pub help: bool,
    /// `--version` stood before the command.
    pub version: bool,
}

/// Splits the words (without the program's own name) at the command.
///
/// # Errors
/// An unknown global option, or one without the value that it needs.
pub fn split(globals: &clap::Command, words: impl IntoIterator<Item = OsString>) -> Result<Split> {
    let mut split =
        Split { globals: Vec::new(), command: None, rest: Vec::new(), help: false, version: false };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let Some(option) = as_option(&word) else {
            split.command = Some(word);
            split.rest = words.collect();
            break;
        };
        match option {
            b"-v" | b"-V" | b"--version" | b"-version" => split.version = true,
            b"-h" | b"--help" | b"-help" | b"-?" => split.help = true,
            b"--" => {}
            _ => take_option(globals, None, &word, &mut words, &mut split.globals)?,
        }
    }
    Ok(split)
}

/// Normalises the words behind a command's name.
///
/// # Errors
/// An unknown option, or one without the value that it needs.
pub fn normalise(
    command: &clap::Command,
    globals: &clap::Command,
    words: Vec<OsString>,
    tail: Tail,
) -> Result<Vec<OsString>> {
    let mut options = Vec::new();
    let mut plain: Vec<OsString> = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let in_ps_tail = tail == Tail::Ps && !plain.is_empty();
        match as_option(&word) {
            Some(b"--") => {
                plain.extend(words);
                break;
            }
            Some(option) if in_ps_tail && !is_format(option, words.peek()) => {
                plain.push(word);
                plain.extend(words);
                break;
            }
            Some(b"-h" | b"--help" | b"-help" | b"-?") => options.push("--help".into()),
            Some(option) if is_negative_number(option) => plain.push(word),
            Some(_) => take_option(command, Some(globals), &word, &mut words, &mut options)?,
            None => {
                plain.push(word);
                let ends = match tail {
                    Tail::None => false,
                    Tail::After(own) => plain.len() > own,
                    Tail::Ps => plain.len() > 1,
                };
                if ends {
                    plain.extend(words);
                    break;
                }
            }
        }
    }
    if !plain.is_empty() {
        options.push("--".into());
        options.extend(plain);
    }
    Ok(options)
}

/// The word's bytes, if it looks like an option.
fn as_option(word: &OsStr) -> Option<&[u8]> {
    let bytes = word.as_bytes();
    (bytes.len() > 1 && bytes[0] == b'-').then_some(bytes)
}

fn is_negative_number(word: &[u8]) -> bool {
    word.len() > 1 && word[1].is_ascii_digit()
}

/// `-f` is also ps(1)'s own, so that only `-f json` and `-f table` mean ours behind the id.
fn is_format(option: &[u8], next: Option<&OsString>) -> bool {
    let name = option.split(|b| *b == b'=').next().unwrap_or_default();
    match name {
        b"--format" | b"-format" => true,
        b"-f" if option.len() > 2 => true,
        b"-f" => next.is_some_and(|n| n == "json" || n == "table"),
        _ => false,
    }
}

/// Reads one option word, with its value from `words` when it needs one, and appends the normal form to `out`.
fn take_option(
    command: &clap::Command,
    globals: Option<&clap::Command>,
    word: &OsStr,
    words: &mut impl Iterator<Item = OsString>,
    out: &mut Vec<OsString>,
) -> Result<()> {
    let bytes = word.as_bytes();
    let double = bytes.starts_with(b"--");
    let body = &bytes[if double { 2 } else { 1 }..];
    let (name, value) = match body.iter().position(|b| *b == b'=') {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    if let Some(arg) = find_long(command, name) {
        return push(arg, value.map(<[u8]>::to_vec), words, out);
    }
    if double || !body.is_ascii() {
        return Err(unknown(command, globals, word, name));
    }
    // A cluster of short options: flags, of which the last may take a value.
    let mut rest = body;
    while let Some((&letter, after)) = rest.split_first() {
        let Some(arg) = find_short(command, letter as char) else {
            return Err(unknown(command, globals, word, name));
        };
        if takes_value(arg) {
            let value = match after.strip_prefix(b"=") {
                Some(value) => Some(value),
                None if after.is_empty() => None,
                None => Some(after),
            };
            return push(arg, value.map(<[u8]>::to_vec), words, out);
        }
        if let Some(value) = after.strip_prefix(b"=") {
            return push(arg, Some(value.to_vec()), words, out);
        }
        push(arg, None, words, out)?;
        rest = after;
    }
    Ok(())
}

fn takes_value(arg: &Arg) -> bool {
    !matches!(
        arg.get_action(),
        ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count | ArgAction::Help | ArgAction::Version
    )
}

fn find_long<'c>(command: &'c clap::Command, name: &[u8]) -> Option<&'c Arg> {
    let name = std::str::from_utf8(name).ok()?;
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

fn find_short(command: &clap::Command, letter: char) -> Option<&Arg> {
    command.get_arguments().find(|arg| arg.get_short() == Some(letter))
}

fn push(
    arg: &Arg,
    value: Option<Vec<u8>>,
    words: &mut impl Iterator<Item = OsString>,
    out: &mut Vec<OsString>,
) -> Result<()> {
    let name = arg.get_long().unwrap_or_default();
    if !takes_value(arg) {
        let on = match value.as_deref() {
            None => true,
            Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => true,
            Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => false,
            Some(other) => {
                return Err(Error::invalid_argument(format!(
                    "--{name} is a switch: it takes true or false, not '{}'",
                    String::from_utf8_lossy(other)
                )));
            }
        };
        // The last one counts, as in Go: a later false takes an earlier true back.
        let flag = OsString::from(format!("--{name}"));
        out.retain(|word| *word != flag);
        if on {
            out.push(flag);
        }
        return Ok(());
    }
    let value = match value {
        Some(value) => value,
        None if arg.is_require_equals_set() => {
            out.push(OsString::from(format!("--{name}")));
            return Ok(());
        }
        None => words
            .next()
            .ok_or_else(|| Error::invalid_argument(format!("--{name} needs a value: --{name}=…")))?
            .into_vec(),
    };
    let mut word = OsString::from(format!("--{name}="));
    word.push(OsString::from_vec(value));
    out.push(word);
    Ok(())
}

fn unknown(command: &clap::Command, globals: Option<&clap::Command>, word: &OsStr, name: &[u8]) -> Error {
    let shown = String::from_utf8_lossy(word.as_bytes().split(|b| *b == b'=').next().unwrap_or_default())
        .into_owned();
    let name = String::from_utf8_lossy(name).into_owned();
    let place = match globals {
        None => String::new(),
        Some(_) => format!(" of '{}'", command.get_name()),
    };
    let mut text = format!("unknown option '{shown}'{place}");
    if let Some(globals) = globals
        && find_long(globals, name.as_bytes()).is_some()
    {
        text += &format!(
            ": it is a global option and goes before the command, as 'airlock --{name} … {}'",
            command.get_name()
        );
        return Error::invalid_argument(text);
    }
    let longs = command.get_arguments().filter_map(Arg::get_long);
    match near(&name, longs).as_slice() {
        [] => {
            let which = if globals.is_some() {
                format!("{} --help", command.get_name())
            } else {
                "--help".to_owned()
            };
            text += &format!("; 'airlock {which}' lists what there is");
        }
        found => {
            let list: Vec<String> = found.iter().map(|n| format!("--{n}")).collect();
            text += &format!(": did you mean {}?", list.join(" or "));
        }
    }
    Error::invalid_argument(text)
}

/// The names that are close to `name`, best first, at most three.
pub fn near<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    let mut found: Vec<(usize, &str)> = names
        .filter_map(|candidate| {
            let distance = edits(name, candidate);
            let related = name.len() > 2 && (candidate.starts_with(name) || name.starts_with(candidate));
            (distance <= limit || related).then_some((distance, candidate))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, candidate)| candidate).take(3).collect()
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let up = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y)).min(up + 1).min(row[j] + 1);
            diagonal = up;
        }
    }
    row[b.len()]
}
