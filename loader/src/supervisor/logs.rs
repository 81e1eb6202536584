//! Managed logging: what processes write, cut into records, on its way to the descriptor of a topic.
//!
//! Each process has pipes of its own, which are read as fast as they fill, whatever the topic's reader does; so a process
//! waits for nobody. Records — lines, or frames as AWS Lambda's runtime clients write them — go out whole.
#![forbid(unsafe_code)]

use super::outlet::{Outlet, TellLoss};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::SystemTime;

/// The variable that names a process the number of the descriptor for its messages.
pub(super) const MESSAGE_VARIABLE: &str = "_LAMBDA_TELEMETRY_LOG_FD";

/// The longest line that stays one record, without its end; longer ones are cut. Lambda's limit, too.
const MAX_LINE: usize = 256 << 10;
/// The longest message of a frame.
const MAX_MESSAGE: usize = 256 << 10;
/// Type (4 bytes, of which the last says what kind of message it is), length (4), time in microseconds (8), big-endian.
const HEADER: usize = 16;
/// What every type begins with. No line does: UTF-8 has no such first byte.
const MAGIC: [u8; 3] = [0xa5, 0x5a, 0x00];

/// Tells the readers of a topic of a loss as Lambda's Telemetry API does.
pub(super) fn tell_loss() -> TellLoss {
    Box::new(|records, bytes| {
        let record = serde_json::json!({
            "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "type": "platform.logsDropped",
            "record": {"droppedRecords": records, "droppedBytes": bytes, "reason": "the reader of this topic is too slow"},
        });
        format!("{record}\n").into_bytes()
    })
}

/// Where records of one process come from.
#[derive(Debug)]
pub(super) enum Source {
    Lines(PipeReader),
    Messages(PipeReader),
}

/// Cuts what is read into records.
#[derive(Debug, Default)]
struct Cutter {
    messages: bool,
    rest: Vec<u8>,
    /// What came was no frame, and where the next one begins cannot be known.
    broken: bool,
}

impl Cutter {
    /// Takes bytes in; gives records to `out`, and to `lose` the length of what is none.
    fn take(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8]), lose: &mut dyn FnMut(usize)) {
        if self.broken {
            return lose(bytes.len());
        }
        self.rest.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            let rest = &self.rest[done..];
            let next = if self.messages { frame(rest) } else { line(rest) };
            match next {
                Cut::Record(length) if self.messages => out(&rest[..length]),
                Cut::Record(length) => out_line(&rest[..length], out),
                Cut::Piece(_) if self.messages => {
                    self.broken = true;
                    lose(rest.len());
                    self.rest = Vec::new();
                    return;
                }
                Cut::Piece(length) => out_line(&rest[..length], out),
                Cut::Incomplete => break,
            }
            done += match next {
                Cut::Record(length) | Cut::Piece(length) => length,
                Cut::Incomplete => 0,
            };
        }
        self.rest.drain(..done);
    }

    /// The process is gone: what is left is a line without an end, or half a frame.
    fn end(&mut self, out: &mut dyn FnMut(&[u8]), lose: &mut dyn FnMut(usize)) {
        match std::mem::take(&mut self.rest) {
            rest if rest.is_empty() => {}
            rest if self.messages => lose(rest.len()),
            rest => out_line(&rest, out),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The first bytes are a record.
    Record(usize),
    /// They are a part of a line that is too long; of frames: they are none.
    Piece(usize),
    /// More has to come.
    Incomplete,
}

fn line(bytes: &[u8]) -> Cut {
    match bytes.iter().take(MAX_LINE + 1).position(|b| *b == b'\n') {
        Some(end) => Cut::Record(end + 1),
        None if bytes.len() > MAX_LINE => Cut::Piece(MAX_LINE),
        None => Cut::Incomplete,
    }
}

/// Lines have an end, and cannot be taken for frames.
fn out_line(line: &[u8], out: &mut dyn FnMut(&[u8])) {
    if line.first() != Some(&MAGIC[0]) && line.last() == Some(&b'\n') {
        return out(line);
    }
    let mut line = line.to_vec();
    if let Some(first) = line.first_mut().filter(|b| **b == MAGIC[0]) {
        *first = b'?';
    }
    if line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    out(&line);
}

fn frame(bytes: &[u8]) -> Cut {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Cut::Piece(bytes.len());
    }
    let Some(length) = bytes.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) else {
        return Cut::Incomplete;
    };
    match length as usize {
        length if length > MAX_MESSAGE => Cut::Piece(bytes.len()),
        length if bytes.len() < HEADER + length => Cut::Incomplete,
        length => Cut::Record(HEADER + length),
    }
}

/// Takes in what comes from `sources` and gives it to `outlet`, on a thread of its own, until all their writers are gone.
///
/// # Errors
/// No thread can be started.
pub(super) fn pump(sources: Vec<Source>, outlet: Arc<Outlet>) -> Result<()> {
    let sources: Vec<(PipeReader, Cutter)> = sources
        .into_iter()
        .map(|source| match source {
            Source::Lines(pipe) => (pipe, Cutter::default()),
            Source::Messages(pipe) => (pipe, Cutter { messages: true, ..Cutter::default() }),
        })
        .collect();
    let thread = std::thread::Builder::new().name("logs".to_owned()).stack_size(192 << 10);
    thread
        .spawn(move || run(sources, &outlet))
        .map(drop)
        .map_err(|e| Error::from(e).context("starting a thread for a process' logs"))
}

fn run(mut sources: Vec<(PipeReader, Cutter)>, outlet: &Outlet) {
    let mut buffer = vec![0; 64 << 10];
    let mut out = |record: &[u8]| {
        outlet.push(record);
    };
    let mut lose = |bytes: usize| outlet.lose(bytes);
    while !sources.is_empty() {
        let mut fds: Vec<_> =
            sources.iter().map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        sources.retain_mut(|(pipe, cutter)| {
            if ready.next() != Some(true) {
                return true;
            }
            match pipe.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    cutter.take(&buffer[..n], &mut out, &mut lose);
                    true
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => true,
                _ => {
                    cutter.end(&mut out, &mut lose);
                    false
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(messages: bool, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
        let mut cutter = Cutter { messages, ..Cutter::default() };
        let (mut records, mut lost) = (Vec::new(), 0);
        for piece in pieces {
            cutter.take(piece, &mut |r| records.push(r.to_vec()), &mut |n| lost += n);
        }
        cutter.end(&mut |r| records.push(r.to_vec()), &mut |n| lost += n);
        (records, lost)
    }

    fn framed(kind: u8, message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xa5, 0x5a, 0, kind];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(7u64.to_be_bytes());
        frame.extend(message);
        frame
    }

    #[test]
    fn lines_end_where_they_end_and_the_last_one_gets_an_end() {
        let (records, lost) = cut(false, &[b"a\nb", b"c\n\n", b"d"]);
        assert_eq!(records, [&b"a\n"[..], b"bc\n", b"\n", b"d\n"]);
        assert_eq!(lost, 0);
        let (records, _) = cut(false, &[&[0xa5, b'x', b'\n'], &[0xa5]]);
        assert_eq!(records, [b"?x\n", &b"?\n"[..]]);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let long = vec![b'x'; MAX_LINE + 10];
        let (records, lost) = cut(false, &[&long, b"\n"]);
        assert_eq!(records.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_LINE + 1, 11]);
        assert_eq!(lost, 0);
    }

    #[test]
    fn frames_are_passed_on_as_they_are() {
        let (one, two) = (framed(3, b"hello\nworld"), framed(0x13, b""));
        let all = [one.clone(), two.clone()].concat();
        let bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(cut(true, &bytes), (vec![one.clone(), two], 0));
        assert_eq!(cut(true, &[&all[..20]]), (vec![], 20));
        let (records, lost) = cut(true, &[&one, b"no frame", b"nor this"]);
        assert_eq!((records, lost), (vec![one], 16));
        let mut huge = framed(3, b"");
        huge[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(cut(true, &[&huge]), (vec![], HEADER));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_records_are_the_same(lines in proptest::collection::vec("[a-z]{0,50}", 0..40), at in 1usize..64) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(at).collect();
            let (records, lost) = cut(false, &pieces);
            prop_assert_eq!(records.concat(), text.as_bytes());
            prop_assert_eq!((records.len(), lost), (lines.len(), 0));
            let frames: Vec<Vec<u8>> = lines.iter().map(|line| framed(3, line.as_bytes())).collect();
            let bytes = frames.concat();
            prop_assert_eq!(cut(true, &bytes.chunks(at).collect::<Vec<_>>()), (frames, 0));
        }
    }
}
