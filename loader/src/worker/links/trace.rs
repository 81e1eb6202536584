//! What is written about frames: a capture file and lines in the log.
#![forbid(unsafe_code)]

use crate::container::lock;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Longest part of a frame that is captured, which is all of it but for what no link lets through.
const SNAP_LEN: u32 = 65_535;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out of the sandbox.
    Out,
    /// Into it.
    In,
}

/// Where frames are written, if they are.
#[derive(Debug, Default)]
pub struct Trace {
    capture: Option<Mutex<File>>,
    captures: AtomicBool,
    logs: AtomicBool,
}

impl Trace {
    /// With a capture in pcap(5) form to `capture`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(capture: Option<OwnedFd>, logs: bool) -> std::io::Result<Self> {
        let mut capture = capture.map(File::from);
        if let Some(file) = &mut capture {
            file.write_all(&file_header())?;
        }
        let captures = capture.is_some();
        Ok(Self { capture: capture.map(Mutex::new), captures: captures.into(), logs: logs.into() })
    }

    /// Begins or ends the lines in the log.
    pub fn set_logs(&self, logs: bool) {
        self.logs.store(logs, Ordering::Relaxed);
    }

    /// Frames have to be shown to [`Trace::frame`].
    pub fn active(&self) -> bool {
        self.captures.load(Ordering::Relaxed) || self.logs.load(Ordering::Relaxed)
    }

    /// Writes of a frame of link `name`. A capture file that cannot be written any more ends the capture, not the network.
    pub fn frame(&self, name: &str, way: Way, frame: &[u8]) {
        if self.logs.load(Ordering::Relaxed) {
            log::info!("{name} {} {}", if way == Way::Out { "send" } else { "recv" }, summary(frame));
        }
        let Some(capture) = self.capture.as_ref().filter(|_| self.captures.load(Ordering::Relaxed)) else {
            return;
        };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Header and data in one write, so that a reader who comes meanwhile sees whole records.
        let record = record(since, frame);
        if let Err(e) = lock(capture).write_all(&record) {
            self.captures.store(false, Ordering::Relaxed);
            log::warn!("the capture of packets ends: writing its file: {e}");
        }
    }
}

/// The file's header: version 2.4, microseconds, frames of Ethernet.
fn file_header() -> [u8; 24] {
    const LINKTYPE_ETHERNET: u32 = 1;
    let mut header = [0; 24];
    header[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
    header[4..8].copy_from_slice(&[2, 0, 4, 0]);
    header[16..20].copy_from_slice(&SNAP_LEN.to_le_bytes());
    header[20..].copy_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
    header
}

fn record(time: Duration, frame: &[u8]) -> Vec<u8> {
    let kept = &frame[..frame.len().min(SNAP_LEN as usize)];
    let words = [time.as_secs() as u32, time.subsec_micros(), kept.len() as u32, frame.len() as u32];
    let mut record: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    record.extend_from_slice(kept);
    record
}

/// One line for people.
pub fn summary(frame: &[u8]) -> String {
    let mut line = String::new();
    let _ = described(frame, &mut line);
    let _ = write!(line, " len {}", frame.len());
    line
}

/// As far as the frame can be understood; `None` where it ends.
fn described(frame: &[u8], line: &mut String) -> Option<()> {
    let kind = u16::from_be_bytes(*frame.get(12..14)?.first_chunk()?);
    let (source, target, protocol, rest) = match kind {
        0x0800 => {
            let ip = frame.get(14..34)?;
            let source = Ipv4Addr::from(*ip[12..].first_chunk::<4>()?).to_string();
            let target = Ipv4Addr::from(*ip[16..].first_chunk::<4>()?).to_string();
            (source, target, ip[9], frame.get(14 + usize::from(ip[0] & 15) * 4..)?)
        }
        0x86dd => {
            let ip = frame.get(14..54)?;
            let source = Ipv6Addr::from(*ip[8..].first_chunk::<16>()?).to_string();
            let target = Ipv6Addr::from(*ip[24..].first_chunk::<16>()?).to_string();
            (source, target, ip[6], frame.get(54..)?)
        }
        0x0806 => {
            let arp = frame.get(14..42)?;
            let verb = if arp[7] == 1 { "who has" } else { "is at, answered to" };
            let [who, whose] =
                [24, 14].map(|at| Ipv4Addr::from([arp[at], arp[at + 1], arp[at + 2], arp[at + 3]]));
            let _ = write!(line, "arp {verb} {who} from {whose}");
            return Some(());
        }
        other => {
            let _ = write!(line, "ethertype {other:#06x}");
            return Some(());
        }
    };
    let name = match protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmp6",
        _ => "ip",
    };
    let _ = write!(line, "{name} {source}");
    if let (6 | 17, Some([a, b, c, d])) = (protocol, rest.first_chunk::<4>()) {
        let [from, to] = [[*a, *b], [*c, *d]].map(u16::from_be_bytes);
        let _ = write!(line, ":{from} -> {target}:{to}");
    } else {
        let _ = write!(line, " -> {target}");
    }
    if let (6, Some(flags)) = (protocol, rest.get(13)) {
        let set = "FSRPAUEC".chars().enumerate().filter(|(i, _)| flags & 1 << i != 0).map(|(_, c)| c);
        let _ = write!(line, " flags {}", set.collect::<String>());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_say_who_talks_to_whom() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0]);
        assert_eq!(summary(&frame), "tcp 10.0.0.1:80 -> 10.0.0.2:256 flags SA len 54");
        assert_eq!(summary(&frame[..20]), " len 20");
        frame[13] = 6;
        assert!(summary(&frame).starts_with("arp "), "{}", summary(&frame));
        assert_eq!(summary(&[0xff; 20]), "ethertype 0xffff len 20");
    }

    #[test]
    fn a_full_disk_ends_the_capture_alone() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(Trace::new(Some(full.into()), false).is_err());
        let file = tempfile::tempfile().unwrap();
        let trace = Trace::new(Some(file.try_clone().unwrap().into()), false).unwrap();
        assert!(trace.active());
        trace.frame("x", Way::Out, &[7; 70_000]);
        assert_eq!(file.metadata().unwrap().len(), 24 + 16 + 65_535);
        let read_only =
            Trace { capture: Some(Mutex::new(File::open("/dev/null").unwrap())), ..Trace::default() };
        read_only.captures.store(true, Ordering::Relaxed);
        read_only.frame("x", Way::In, &[7; 60]);
        assert!(!read_only.active());
    }

    proptest! {
        #[test]
        fn any_frame_has_a_line(frame: Vec<u8>) {
            let end = format!("len {}", frame.len());
            prop_assert!(summary(&frame).ends_with(&end));
        }
    }
}
