//! How long each step of a dump or restore takes.
#![forbid(unsafe_code)]

use std::time::Instant;

/// Measures steps, one after the other.
#[derive(Debug)]
pub(super) struct Watch {
    begun: Instant,
    last: Instant,
    phases: Vec<(String, u64)>,
}

impl Watch {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, phases: Vec::new() }
    }

    /// Ends a step.
    pub fn step(&mut self, name: &str) {
        let now = Instant::now();
        self.phases.push((name.to_owned(), (now - self.last).as_micros() as u64));
        self.last = now;
    }

    /// What went before does not count in [`Watch::elapsed_us`].
    pub fn begin_again(&mut self) {
        self.begun = self.last;
    }

    /// Steps so far and their microseconds.
    pub fn phases(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.phases)
    }

    /// Microseconds since the beginning, or [`Watch::begin_again`].
    pub fn elapsed_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }
}
