//! What comes out of the logging descriptor: messages in frames, and lines.

use std::io::Read;

/// The two bytes that all kinds of frames begin with.
const MAGIC: [u8; 2] = [0xa5, 0x5a];
/// Kind (4 bytes), length of the message (4), microseconds of the Unix epoch (8), all big-endian.
const HEADER: usize = 16;

/// A record of the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// A message that was sent as one, of as many lines as it likes.
    Message(String),
    /// A line of output.
    Line(String),
}

/// Prints all records until nobody writes any more.
pub fn print(mut from: impl Read) {
    let (mut buffer, mut chunk) = (Vec::new(), [0; 16 << 10]);
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..n]);
        while let Some(record) = next(&mut buffer) {
            match record {
                Record::Message(text) => eprintln!("message: {:?}", text.trim_end()),
                Record::Line(text) => eprintln!("line: {text}"),
            }
        }
    }
}

/// Takes the first record out of `buffer`, if it is there as a whole.
fn next(buffer: &mut Vec<u8>) -> Option<Record> {
    let (skip, end, framed) = if buffer.starts_with(&MAGIC) {
        let length = u32::from_be_bytes(buffer.get(4..8)?.try_into().ok()?) as usize;
        (HEADER, HEADER + length, true)
    } else {
        (0, buffer.iter().position(|b| *b == b'\n')? + 1, false)
    };
    if buffer.len() < end {
        return None;
    }
    let rest = buffer.split_off(end);
    let record = std::mem::replace(buffer, rest);
    let text = String::from_utf8_lossy(&record[skip..]).into_owned();
    Some(if framed { Record::Message(text) } else { Record::Line(text.trim_end().to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_lines_are_told_apart() {
        let mut stream = b"one\n".to_vec();
        stream.extend([0xa5, 0x5a, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        stream.extend(b"a\nb\ntwo\npart");
        // However it is cut.
        for size in 1..stream.len() {
            let (mut buffer, mut records) = (Vec::new(), Vec::new());
            for piece in stream.chunks(size) {
                buffer.extend_from_slice(piece);
                records.extend(std::iter::from_fn(|| next(&mut buffer)));
            }
            let message = Record::Message("a\nb\n".to_owned());
            let line = |text: &str| Record::Line(text.to_owned());
            assert_eq!(records, [line("one"), message, line("two")], "{size}");
            assert_eq!(buffer, b"part");
        }
    }
}
