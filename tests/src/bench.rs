//! Measuring alternatives against each other in one run: interleaved, medians, ratios.
use std::time::{Duration, Instant};

/// One alternative: a name and what to time. The closure returns false when it failed.
pub struct Alternative<'a> {
    pub name: String,
    pub run: Box<dyn FnMut() -> bool + 'a>,
}

impl<'a> Alternative<'a> {
    pub fn new(name: &str, run: impl FnMut() -> bool + 'a) -> Self {
        Self { name: name.to_owned(), run: Box::new(run) }
    }
}

/// Times of one alternative, ascending.
pub struct Times {
    pub name: String,
    pub sorted: Vec<Duration>,
}

impl Times {
    pub fn median(&self) -> Duration {
        self.sorted[self.sorted.len() / 2]
    }

    pub fn quartile(&self) -> Duration {
        self.sorted[self.sorted.len() / 4]
    }
}

/// Runs all alternatives in turn, `rounds` times, `pause` of idleness before each (callers of runtimes do not call
/// in a loop, and an idle machine has other costs than a busy one). The first two rounds are not counted.
pub fn interleave(alternatives: &mut [Alternative<'_>], rounds: usize, pause: Duration) -> Vec<Times> {
    let mut times: Vec<Vec<Duration>> = alternatives.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds + 2 {
        for (alternative, times) in alternatives.iter_mut().zip(&mut times) {
            std::thread::sleep(pause);
            let start = Instant::now();
            let ok = (alternative.run)();
            let elapsed = start.elapsed();
            assert!(ok, "{} failed", alternative.name);
            if round >= 2 {
                times.push(elapsed);
            }
        }
    }
    alternatives
        .iter()
        .zip(times)
        .map(|(a, mut t)| {
            t.sort_unstable();
            Times { name: a.name.clone(), sorted: t }
        })
        .collect()
}

/// Prints medians, and the first one's ratio to each of the others.
pub fn report(title: &str, times: &[Times]) {
    println!("\n## {title}\n");
    println!("| what | median | lower quartile | {} / this (medians) |", times[0].name);
    println!("| --- | --- | --- | --- |");
    let first = times[0].median().as_secs_f64();
    for t in times {
        println!(
            "| {} | {} | {} | {:.2} |",
            t.name,
            show(t.median()),
            show(t.quartile()),
            first / t.median().as_secs_f64()
        );
    }
}

/// A duration in the unit that suits it.
pub fn show(d: Duration) -> String {
    if d < Duration::from_micros(1000) {
        format!("{:.1} µs", d.as_secs_f64() * 1e6)
    } else {
        format!("{:.2} ms", d.as_secs_f64() * 1e3)
    }
}
