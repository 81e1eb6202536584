//! The part of [`super::super::fuzzing`] that is about files.
#![forbid(unsafe_code)]

use super::fdinfo::{EpollTarget, Lock, Watch};
use super::scan::Mount;
use super::unix::diag;
use crate::checkpoint::mountinfo::unescape;

/// Lines of `fdinfo`, of `mountinfo`, and answers about Unix sockets.
pub fn files(data: &[u8], text: &str) {
    for line in text.lines() {
        let _ = (Lock::parse(line), EpollTarget::parse(line), Watch::parse(line), Mount::parse(line));
        assert!(unescape(line).len() <= line.len());
    }
    let _ = diag::parse(data);
}
