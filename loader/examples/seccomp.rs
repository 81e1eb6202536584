//! How long a seccomp profile takes to compile and to install: `cargo run --release -p airlock-loader --example
//! seccomp [PROFILE.json]`. Without an argument, Docker's default profile. Prints medians in microseconds.

use airlock_loader::seccomp::{Options, Program, compile};
use oci_spec::runtime::LinuxSeccomp;
use std::error::Error;
use std::time::{Duration, Instant};

const ROUNDS: usize = 301;

fn main() -> Result<(), Box<dyn Error>> {
    let default = format!("{}/../tests/data/seccomp-docker-default.json", env!("CARGO_MANIFEST_DIR"));
    let path = std::env::args().nth(1).unwrap_or(default);
    let text = std::fs::read_to_string(&path)?;
    let profile: LinuxSeccomp = serde_json::from_str(&text)?;
    let program = compile(&profile, &Options::default())?;
    let bytes = program.to_bytes();

    println!("{path}: {} instructions, {} bytes", program.filter.len(), bytes.len());
    let report = |what: &str, time: Duration| println!("{what:<10} {:>8.1} µs", time.as_secs_f64() * 1e6);
    report("parse", median(|| serde_json::from_str::<LinuxSeccomp>(&text).is_ok()));
    report("compile", median(|| compile(&profile, &Options::default()).is_ok()));
    report("encode", median(|| !program.to_bytes().is_empty()));
    report("decode", median(|| Program::from_bytes(&bytes).is_ok()));
    nix::sys::prctl::set_no_new_privs()?;
    let started = Instant::now();
    program.install()?;
    report("install", started.elapsed());
    Ok(())
}

fn median(mut work: impl FnMut() -> bool) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            assert!(std::hint::black_box(work()));
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}
