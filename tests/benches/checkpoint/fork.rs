//! N sandboxes of one.

use crate::running::{tmpfs, undisturbed};
use crate::{PAUSE, ms, title};
use airlock_tests::bench::{Goal, Times, score, show};
use airlock_tests::{Bundle, State, programs, unique, wait};
use std::path::Path;
use std::time::Instant;

const FORKS: usize = 50;
const ROUNDS: usize = 9;

/// A python3 with modules and 100 MB of random data.
const WARMED: &str = "
import asyncio, decimal, email, http.client, json, os, sqlite3, threading, time
data = [os.urandom(1 << 20) for _ in range(90)]
print('ready', flush=True)
while True: time.sleep(1000)
";

/// Proportional share of the memory of a process, and what it would be if nothing of it were shared, KiB.
fn memory_of(pid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_ascii_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    (field("Pss:"), field("Rss:"))
}

/// The sandbox process and all below its spawner, which has its pid namespace.
fn processes_of(state: &State, id: &str) -> Vec<i32> {
    let loader = state.state(id)["pid"].as_i64().unwrap() as i32;
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let all: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let mut found: Vec<i32> = all.iter().copied().filter(|p| namespace(*p) == namespace(loader)).collect();
    // A container's own namespace begins with its init, a child of the spawner.
    loop {
        let more: Vec<i32> = all
            .iter()
            .copied()
            .filter(|p| !found.contains(p) && parent(*p).is_some_and(|parent| found.contains(&parent)))
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Shared memory of the machine (images in memory are), KiB.
fn shmem() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("Shmem:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn start(state: &State, dir: &Path) -> (String, Bundle) {
    let bundle = programs::host_bundle(&["/usr/bin/python3", "-c", WARMED], undisturbed);
    let (id, output) = (unique("bench-fork"), dir.join("output"));
    let mut run = state.command(["run", "--detach", "--bundle", bundle.text(), &id]);
    let out = std::fs::File::create(&output).unwrap();
    assert!(run.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap().success());
    wait::until("python3 is warm", || {
        std::fs::read_to_string(&output).unwrap().contains("ready").then_some(())
    });
    (id, bundle)
}

pub fn fork() {
    title(&format!("fork of a warmed python3: one, and N = {FORKS}"));
    let (state, dir) = (State::new(), tmpfs());
    // The bundle is needed as long as there are forks.
    let (id, _bundle) = start(&state, dir.path());
    let (_, full) = processes_of(&state, &id).into_iter().map(memory_of).max_by_key(|(_, rss)| *rss).unwrap();
    println!("the program has {:.1} MB resident", full as f64 / 1024.0);
    let fork = |name: &str, n: usize| {
        let start = Instant::now();
        state.detached(&["fork", &id, name, "-n", &n.to_string()]);
        start.elapsed()
    };
    let mut one = Vec::new();
    for i in 0..ROUNDS {
        std::thread::sleep(PAUSE);
        let name = format!("one{i}");
        one.push(fork(&name, 1));
        state.ok(["delete", "--force", &name]);
    }
    let one = Times::new("one fork", one);
    let (mut further, mut extra) = (Vec::new(), Vec::new());
    for round in 0..3 {
        std::thread::sleep(PAUSE);
        let (name, before) = (format!("many{round}"), shmem());
        let took = fork(&name, FORKS);
        further.push(took.saturating_sub(one.median()) / (FORKS as u32 - 1));
        let names: Vec<String> = (1..=FORKS).map(|i| format!("{name}-{i}")).collect();
        let pss: u64 = names.iter().flat_map(|n| processes_of(&state, n)).map(|pid| memory_of(pid).0).sum();
        let image = shmem().saturating_sub(before);
        println!("{FORKS} forks: {}, PSS {pss} KiB, shared memory of the machine + {image} KiB", show(took));
        // Nobody maps the image, so nothing is counted twice.
        extra.push((pss + image) as f64 / (full * FORKS as u64) as f64 * 100.0);
        for name in &names {
            state.ok(["delete", "--force", name]);
        }
    }
    extra.sort_by(f64::total_cmp);
    let further = Times::new("each further", further);
    for t in [&one, &further] {
        println!("{}: median {}, lower quartile {}", t.name, show(t.median()), show(t.quartile()));
    }
    score("fork of a warmed python3 (100 MB)", ms(one.median()), "ms", Goal::AtMost(25.0));
    score(&format!("each further of N = {FORKS}"), ms(further.median()), "ms", Goal::AtMost(15.0));
    score(&format!("extra memory of N = {FORKS}"), extra[1], "% of full copies", Goal::AtMost(20.0));
}
