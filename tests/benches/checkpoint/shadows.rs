//! Programs that go on while they are saved: how long they stand still, and what is saved again.

use crate::running::{Files, Running, checkpoint, memory_bundle, save, tmpfs};
use crate::{PAUSE, large, ms, title};
use airlock_tests::State;
use airlock_tests::bench::{Goal, Times, score, show};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const ROUNDS: usize = 9;

/// How long a program stands still that goes on while its memory is written, beside a fork that it does itself.
pub fn pause() {
    for (huge, limit) in [(false, 30.0), (true, 8.0)] {
        let pages = if huge { "huge" } else { "4 KiB" };
        let name = format!("Resume, {} MB in {pages} pages", large());
        title(&name);
        let (state, dir, bundle) = (State::new(), tmpfs(), memory_bundle(large(), huge));
        let mut running = Running::start(&state, dir.path(), &bundle);
        let (mut pauses, mut calls, mut forks, mut phases) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            std::thread::sleep(PAUSE);
            running.clear();
            forks.push(Duration::from_nanos(running.tell("f", "forked").parse().unwrap()));
            std::thread::sleep(PAUSE);
            let (took, report) = save(&mut running.client(), &Files::new(dir.path()), true);
            calls.push(took);
            pauses.push(Duration::from_micros(report.pause_us));
            phases.push(report);
        }
        let [pauses, calls, forks] = [("stands still", pauses), ("whole call", calls), ("bare fork", forks)]
            .map(|(name, times)| Times::new(name, times));
        for t in [&pauses, &calls, &forks] {
            println!("{}: median {}, lower quartile {}", t.name, show(t.median()), show(t.quartile()));
        }
        phases.sort_by_key(|r| r.pause_us);
        let until = phases[ROUNDS / 2].phases.iter().take_while(|(name, _)| name != "resume");
        let parts: Vec<String> = until
            .filter(|(name, us)| *us >= 100 && name != "early look")
            .map(|(n, us)| format!("{n} {:.1}", *us as f64 / 1e3))
            .collect();
        println!("of a median pause, ms: {}", parts.join(", "));
        score(&format!("pause with {name}"), ms(pauses.median()), "ms", Goal::AtMost(limit));
        println!("against the bare fork: {:.2} x", ms(pauses.median()) / ms(forks.median()));
    }
}

/// Bytes of an image's files that take room.
fn size(image: &Path) -> u64 {
    let files = ["checkpoint.img", "pages_meta.img", "pages.img"];
    files.iter().map(|name| std::fs::metadata(image.join(name)).unwrap().blocks() * 512).sum()
}

/// A checkpoint that builds upon another, after one page of a hundred was written to.
pub fn incremental() {
    title(&format!("Incremental checkpoint, {} MB with 1 % dirty", large()));
    let (state, dir, bundle) = (State::new(), tmpfs(), memory_bundle(large(), false));
    let mut running = Running::start(&state, dir.path(), &bundle);
    let (mut times, mut pauses, mut shares, mut parts) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let (full, changed) = (dir.path().join("full"), dir.path().join("changed"));
        checkpoint(&running, &full, &["--pre-dump"]);
        running.clear();
        running.tell("t", "touched");
        std::thread::sleep(PAUSE);
        let log = dir.path().join("log");
        let work = ["--leave-running", "--parent-path", "../full", "--work-path", log.to_str().unwrap()];
        times.push(checkpoint(&running, &changed, &work));
        let text = std::fs::read_to_string(log.join("dump.log")).unwrap();
        pauses.push(pause_of(&text));
        parts = parts_of(&text);
        shares.push(size(&changed) as f64 / size(&full) as f64 * 100.0);
        std::fs::remove_dir_all(full).unwrap();
        std::fs::remove_dir_all(changed).unwrap();
    }
    shares.sort_by(f64::total_cmp);
    let [times, pauses] = [("checkpoint", times), ("stands still", pauses)].map(|(n, t)| Times::new(n, t));
    for t in [&times, &pauses] {
        println!("{}: median {}, lower quartile {}", t.name, show(t.median()), show(t.quartile()));
    }
    println!("the last one, by dump.log, from 1 ms: {}", parts.join(", "));
    score("incremental, 1 % dirty: whole command", ms(times.median()), "ms", Goal::AtMost(60.0));
    score("incremental, 1 % dirty: size", shares[ROUNDS / 2], "% of the full image", Goal::AtMost(2.0));
}

/// Steps that took a millisecond or more, from `dump.log`.
fn parts_of(log: &str) -> Vec<String> {
    let part = |line: &str| {
        let (us, name) = line.strip_prefix('(')?.split_once(" us) ")?;
        let us: u64 = us.trim().parse().ok()?;
        (us >= 1000).then(|| format!("{name} {:.1} ms", us as f64 / 1e3))
    };
    log.lines().filter_map(part).collect()
}

/// How long the programs stood still, from `dump.log`.
fn pause_of(log: &str) -> Duration {
    let us = log.lines().find_map(|l| l.split_once("stood still for ")?.1.strip_suffix(" us")?.parse().ok());
    Duration::from_micros(us.unwrap())
}
