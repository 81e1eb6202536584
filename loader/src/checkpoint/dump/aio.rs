//! Contexts of asynchronous I/O: the rings that the kernel shares with the program.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::Mem;
use crate::checkpoint::state::AioRing;
use airlock_wire::error::{Error, Result};

/// Bytes before the events of a ring (`struct aio_ring`).
pub const HEADER: usize = 32;
/// Bytes of an event (`struct io_event`).
pub const EVENT: usize = 32;
const MAGIC: u32 = 0xa10a_10a1;

/// Describes the ring at `start`, which is `len` bytes long. Requests that are still under way cannot be told, and leave no
/// event behind.
///
/// # Errors
/// When it does not look like a ring, or cannot be read.
pub fn ring(mem: &Mem, start: u64, len: u64) -> Result<AioRing> {
    parse(start, &mem.bytes(start, len as usize)?).ok_or_else(|| {
        Error::unsupported(format!("the ring of asynchronous I/O at {start:#x} is not understood"))
    })
}

pub(super) fn parse(start: u64, bytes: &[u8]) -> Option<AioRing> {
    let word = |n: usize| bytes.get(4 * n..4 * n + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let (count, head, tail) = (word(1)? as usize, word(2)? as usize, word(3)? as usize);
    let fits = bytes.len().checked_sub(HEADER)? / EVENT;
    if word(4)? != MAGIC || word(7)? as usize != HEADER || count > fits || head >= count || tail >= count {
        return None;
    }
    let mut unread = Vec::new();
    let mut at = head;
    while at != tail {
        unread.extend_from_slice(bytes.get(HEADER + at * EVENT..HEADER + (at + 1) * EVENT)?);
        at = (at + 1) % count;
    }
    // The kernel doubles what is asked for and adds two, and fills the last page.
    Some(AioRing { id: start, events: (fits.checked_sub(2)? / 2) as u32, unread: unread.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(count: u32, head: u32, tail: u32) -> Vec<u8> {
        let words = [1, count, head, tail, MAGIC, 1, 0, 32];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
        bytes.extend((0..127u8).flat_map(|n| [n; EVENT]));
        bytes
    }

    #[test]
    fn events_are_taken_around_the_end_of_the_ring() {
        let ring = parse(0x1000, &made(127, 125, 2)).unwrap();
        assert_eq!((ring.id, ring.events), (0x1000, 62));
        let order: Vec<u8> = ring.unread.chunks(EVENT).map(|event| event[0]).collect();
        assert_eq!(order, [125, 126, 0, 1]);
        assert!(parse(0, &made(127, 5, 5)).unwrap().unread.is_empty());
        for (count, head, tail) in [(128, 0, 0), (127, 127, 0), (127, 0, 127), (0, 0, 0)] {
            assert_eq!(parse(0, &made(count, head, tail)), None);
        }
    }

    proptest! {
        #[test]
        fn what_a_program_wrote_into_its_ring_does_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), real in any::<bool>()) {
            if real && bytes.len() >= 32 {
                bytes[16..20].copy_from_slice(&MAGIC.to_ne_bytes());
                bytes[28..32].copy_from_slice(&32u32.to_ne_bytes());
            }
            let _ = parse(0, &bytes);
        }
    }
}
