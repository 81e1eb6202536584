//! Measuring alternatives against each other in one run: interleaved, medians, ratios.
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Has the benchmark run as root, with the release binary, in a mount namespace without the unified tree of cgroups (crun
/// 1.8 refuses hybrid set-ups); runs the groups that the command line names, or all.
///
/// # Panics
/// When the binary does not build.
pub fn run(groups: &[(&str, fn())]) {
    if !crate::is_root() {
        println!("skipped: needs root");
        std::process::exit(0);
    }
    if std::env::var_os("AIRLOCK_BENCH_INSIDE").is_none() {
        let inner = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"";
        let status = Command::new("unshare")
            .args(["-m", "sh", "-c", inner])
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args().skip(1))
            .env("AIRLOCK_BENCH_INSIDE", "1")
            .env("AIRLOCK_BINARY", release_binary())
            .status()
            .unwrap();
        std::process::exit(status.code().unwrap_or(1));
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, group) in groups {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            group();
        }
    }
    let scores = std::mem::take(&mut *SCORES.lock().unwrap());
    if !scores.is_empty() {
        println!("\n## Targets\n\n| what | must reach | reached | |\n| --- | --- | --- | --- |");
        scores.iter().for_each(|row| println!("{row}"));
    }
}

/// Rows of the table at the end.
static SCORES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a figure must reach.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// Compares a figure with its target: prints it, and again in the table at the end of the run.
pub fn score(what: &str, figure: f64, unit: &str, goal: Goal) {
    let (sign, limit, reached) = match goal {
        Goal::AtMost(limit) => ('≤', limit, figure <= limit),
        Goal::AtLeast(limit) => ('≥', limit, figure >= limit),
    };
    let verdict = if reached { "reached" } else { "missed" };
    println!("{what}: {figure:.2} {unit} (target {sign} {limit}): {verdict}");
    SCORES
        .lock()
        .unwrap()
        .push(format!("| {what} | {sign} {limit} {unit} | {figure:.2} {unit} | {verdict} |"));
}

/// How busy the machine is: its load average, for reports.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().take(1).collect()
}

fn release_binary() -> PathBuf {
    let root = crate::workspace();
    let built =
        Command::new("cargo").args(["build", "--release", "-q", "-p", "airlock"]).current_dir(&root).status();
    assert!(built.unwrap().success());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    target.join("release/airlock")
}

/// Runs a command without standard streams; true when it succeeds.
pub fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

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
    pub fn new(name: &str, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { name: name.to_owned(), sorted: times }
    }

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
    alternatives.iter().zip(times).map(|(a, t)| Times::new(&a.name, t)).collect()
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
