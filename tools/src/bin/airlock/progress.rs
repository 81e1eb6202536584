//! How far a long command is, on a terminal.

#![forbid(unsafe_code)]

use airlock_wire::api::checkpoint::Progress as Now;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// One line on standard error that is written over and over.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    start: Instant,
    shown: bool,
}

impl Progress {
    /// A line about `what`; nothing is shown yet.
    pub fn new(what: &'static str) -> Self {
        Self { what, start: Instant::now(), shown: false }
    }

    /// True if somebody is there to look: in a pipe, commands are silent.
    pub fn wanted() -> bool {
        std::io::stderr().is_terminal()
    }

    /// Shows how far it is.
    pub fn show(&mut self, now: &Now) {
        let text = line(self.what, now, self.start.elapsed().as_secs_f64());
        // Nobody to tell that telling fails.
        let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        self.shown = true;
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(what: &str, now: &Now, seconds: f64) -> String {
    let mut text = format!("{what}: {}", now.phase);
    if now.pages > 0 || now.total > 0 {
        let mb = |pages: u64| (pages * PAGE) as f64 / 1e6;
        text += &format!(", {} of {} pages, {:.0} MB", now.pages, now.total.max(now.pages), mb(now.pages));
        if seconds > 0.0 {
            text += &format!(", {:.0} MB/s", mb(now.pages) / seconds);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_phase_pages_and_rate() {
        let now = |pages, total| Now { phase: "pages".into(), pages, total, ..Now::default() };
        assert_eq!(line("checkpoint", &now(0, 0), 1.0), "checkpoint: pages");
        assert_eq!(
            line("checkpoint", &now(250_000, 500_000), 2.0),
            "checkpoint: pages, 250000 of 500000 pages, 1024 MB, 512 MB/s"
        );
        assert!(line("restore", &now(3, 2), 0.0).ends_with("3 of 3 pages, 0 MB"));
    }
}
