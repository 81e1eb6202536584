//! Records of perf_event_open(2), as [`crate::sys::perf`] asks for them.
#![forbid(unsafe_code)]

use crate::stacks::Frame;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A thread was seen running.
    Sample(Sample),
    /// The process `pid` executes another program.
    Exec {
        /// The process.
        pid: i32,
    },
    /// So many records were lost.
    Lost(u64),
    /// Anything else.
    Other,
}

/// A thread that was seen running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// Process, in the pid namespace of whoever opened the event; 0 for one outside.
    pub pid: i32,
    /// Thread.
    pub tid: i32,
    /// Kernel addresses, innermost first.
    pub kernel: Vec<u64>,
    /// User-space registers; `None` for a kernel thread and 32-bit code.
    pub user: Option<Frame>,
    /// The stack from the stack pointer on.
    pub stack: Vec<u8>,
}

/// Takes apart one record. `callchain` tells whether samples have one. `None` for a malformed one.
pub fn parse(record: &[u8], callchain: bool) -> Option<Record> {
    const LOST: u32 = 2;
    const COMM: u32 = 3;
    const SAMPLE: u32 = 9;
    /// `PERF_RECORD_MISC_COMM_EXEC`.
    const EXEC: u16 = 1 << 13;
    let mut from = Reader(record);
    let (kind, misc, _size) = (from.u32()?, from.u16()?, from.u16()?);
    match kind {
        LOST => {
            from.u64()?;
            Some(Record::Lost(from.u64()?))
        }
        COMM if misc & EXEC != 0 => Some(Record::Exec { pid: from.u32()?.cast_signed() }),
        SAMPLE => sample(from, callchain).map(Record::Sample),
        _ => Some(Record::Other),
    }
}

fn sample(mut from: Reader<'_>, callchain: bool) -> Option<Sample> {
    const ABI_64: u64 = 2;
    let mut sample =
        Sample { pid: from.u32()?.cast_signed(), tid: from.u32()?.cast_signed(), ..Sample::default() };
    if callchain {
        /// Entries from here on say what follows, and are no addresses (`PERF_CONTEXT_MAX`).
        const CONTEXTS: u64 = -4095_i64 as u64;
        for _ in 0..from.u64()? {
            sample.kernel.push(from.u64()?);
        }
        sample.kernel.retain(|address| *address < CONTEXTS);
    }
    match from.u64()? {
        0 => {}
        abi => {
            let (bp, sp, ip) = (from.u64()?, from.u64()?, from.u64()?);
            sample.user = (abi == ABI_64).then_some(Frame { ip, sp, bp });
        }
    }
    let size = from.u64()?;
    if size > 0 {
        let stack = from.bytes(size)?;
        let filled = from.u64()?.min(size);
        sample.stack = stack.get(..filled as usize)?.to_vec();
    }
    Some(sample)
}

impl Sample {
    /// The word of the sampled stack at `address`.
    pub fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.user?.sp)?).ok()?;
        Some(u64::from_ne_bytes(self.stack.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(n).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_ne_bytes(self.bytes(2)?.try_into().ok()?))
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u32, misc: u16, body: &[u64]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend((8 + 8 * body.len() as u16).to_ne_bytes());
        body.iter().for_each(|w| bytes.extend(w.to_ne_bytes()));
        bytes
    }

    #[test]
    fn records_are_taken_apart() {
        let ids = 7 | 8 << 32;
        let body = [ids, 3, -128_i64 as u64, 0xf1, 0xf2, 2, 0xb, 0x1000, 0x1234, 16, 0xaa, 0xbb, 8];
        let Some(Record::Sample(sample)) = parse(&record(9, 0, &body), true) else { panic!("no sample") };
        assert_eq!((sample.pid, sample.tid, sample.kernel.as_slice()), (7, 8, &[0xf1, 0xf2][..]));
        assert_eq!(sample.user, Some(Frame { ip: 0x1234, sp: 0x1000, bp: 0xb }));
        assert_eq!((sample.word(0x1000), sample.word(0x1008), sample.word(0xfff)), (Some(0xaa), None, None));
        let Some(Record::Sample(kernel_thread)) = parse(&record(9, 0, &[ids, 0, 0]), false) else { panic!() };
        assert_eq!(kernel_thread.user, None);
        assert_eq!(parse(&record(2, 0, &[1, 5]), true), Some(Record::Lost(5)));
        assert_eq!(parse(&record(3, 1 << 13, &[ids]), true), Some(Record::Exec { pid: 7 }));
        assert_eq!(parse(&record(3, 0, &[ids]), true), Some(Record::Other));
    }

    proptest! {
        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), chain: bool) {
            if let Some(Record::Sample(sample)) = parse(&bytes, chain) {
                let _ = sample.word(u64::MAX);
            }
        }
    }
}
