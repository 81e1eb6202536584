//! Programs with much memory: saved, restored, restored while they run.

use crate::calls::restore;
use crate::running::{Files, Running, checkpoint, memory_bundle, save, tmpfs};
use crate::runsc::Runsc;
use crate::{PAUSE, large, ms, title};
use airlock_tests::State;
use airlock_tests::bench::{Goal, Times, score, show};
use airlock_wire::api::container_manager::WaitRestore;
use airlock_wire::api::types::Empty;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROUNDS: usize = 7;

/// Random memory into images on a tmpfs and back, whole commands and calls, beside `cp` of the same file there and runsc.
pub fn copy() {
    let runsc = Runsc::find();
    for mb in [large() / 4, large()] {
        let theirs = runsc.as_ref().map(|runsc| measure_runsc(runsc, mb));
        for huge in [false, true] {
            let pages = if huge { "huge" } else { "4 KiB" };
            let name = format!("{mb} MB in {pages} pages");
            title(&name);
            let ours = measure(mb, huge);
            for t in [&ours.saved, &ours.save_call, &ours.restored, &ours.restore_call, &ours.cp] {
                let rate = (mb << 20) as f64 / t.median().as_secs_f64() / 1e9;
                println!(
                    "{}: median {}, lower quartile {}, {rate:.2} GB/s",
                    t.name,
                    show(t.median()),
                    show(t.quartile())
                );
            }
            let ratio = |a: &Times, b: &Times| ms(a.median()) / ms(b.median());
            score(
                &format!("checkpoint, {name}, rate / cp"),
                ratio(&ours.cp, &ours.saved),
                "x",
                Goal::AtLeast(0.9),
            );
            score(
                &format!("restore, {name}, rate / cp"),
                ratio(&ours.cp, &ours.restored),
                "x",
                Goal::AtLeast(1.2),
            );
            println!(
                "calls alone: Checkpoint {:.2} x, Restore {:.2} x the rate of cp",
                ratio(&ours.cp, &ours.save_call),
                ratio(&ours.cp, &ours.restore_call)
            );
            if let Some([saved, restored]) = &theirs {
                println!("runsc: checkpoint {}, restore {}", show(saved.median()), show(restored.median()));
                let name = |what: &str| format!("{what}, {name}, time / runsc");
                score(&name("checkpoint"), ratio(&ours.saved, saved), "x", Goal::AtMost(0.3));
                score(&name("restore"), ratio(&ours.restored, restored), "x", Goal::AtMost(0.5));
            }
        }
    }
}

struct Copied {
    saved: Times,
    save_call: Times,
    restored: Times,
    restore_call: Times,
    cp: Times,
}

fn measure(mb: u64, huge: bool) -> Copied {
    let (state, dir, bundle) = (State::new(), tmpfs(), memory_bundle(mb, huge));
    let image = dir.path().join("image");
    let (mut saved, mut save_call, mut restored, mut restore_call, mut cp) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut running = Running::start(&state, dir.path(), &bundle);
    let sum = running.tell("s", "sum");
    for _ in 0..ROUNDS {
        std::thread::sleep(PAUSE);
        saved.push(checkpoint(&running, &image, &[]));
        drop(running);
        std::thread::sleep(PAUSE);
        let (source, target) = (image.join("pages.img"), dir.path().join("copy"));
        let start = Instant::now();
        assert!(Command::new("cp").args([&source, &target]).status().unwrap().success());
        cp.push(start.elapsed());
        std::fs::remove_file(target).unwrap();
        std::thread::sleep(PAUSE);
        let args =
            ["restore", "--detach", "--bundle", bundle.text(), "--image-path", image.to_str().unwrap()];
        let copy = Running::launch(&state, dir.path(), &args, "");
        restored.push(copy.took);
        std::fs::remove_dir_all(&image).unwrap();
        std::thread::sleep(PAUSE);
        let files = Files::new(dir.path());
        save_call.push(save(&mut copy.client(), &files, false).0);
        drop(copy);
        running = Running::launch(&state, dir.path(), &["create", "--bundle", bundle.text()], "");
        std::thread::sleep(PAUSE);
        restore_call.push(restore(&running, &files, false));
    }
    assert_eq!(running.tell("s", "sum"), sum, "memory after {ROUNDS} rounds");
    Copied {
        saved: Times::new("checkpoint", saved),
        save_call: Times::new("Checkpoint call", save_call),
        restored: Times::new("restore --detach", restored),
        restore_call: Times::new("Restore call", restore_call),
        cp: Times::new("cp", cp),
    }
}

fn measure_runsc(runsc: &Runsc, mb: u64) -> [Times; 2] {
    let (dir, bundle) = (tmpfs(), memory_bundle(mb, false));
    let image = dir.path().join("image");
    let (mut saved, mut restored) = (vec![], vec![]);
    let mut id = runsc.run(bundle.text(), "ready");
    for _ in 0..3 {
        std::thread::sleep(PAUSE);
        saved.push(runsc.checkpoint(&id, &image));
        std::thread::sleep(PAUSE);
        let took;
        (id, took) = runsc.restore(bundle.text(), &image);
        restored.push(took);
        std::fs::remove_dir_all(&image).unwrap();
    }
    runsc.delete(&id);
    [Times::new("runsc checkpoint", saved), Times::new("runsc restore", restored)]
}

/// Until a restored program says `now`, and until all its pages are there. The letter that makes it say so is in its
/// input already.
pub fn background() {
    for (mb, huge) in [(large() / 16, false), (large(), false), (large(), true)] {
        let pages = if huge { "huge" } else { "4 KiB" };
        title(&format!("Background restore of {mb} MB in {pages} pages"));
        let (state, dir, bundle) = (State::new(), tmpfs(), memory_bundle(mb, huge));
        let mut first = Running::start(&state, dir.path(), &bundle);
        let sum = first.tell("s", "sum");
        let image = dir.path().join("image");
        checkpoint(&first, &image, &[]);
        drop(first);
        let files = Files(
            ["checkpoint.img", "pages_meta.img", "pages.img"]
                .map(|name| std::fs::File::open(image.join(name)).unwrap().into()),
        );
        let (mut call, mut command, mut all) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let created = Running::launch(&state, dir.path(), &["create", "--bundle", bundle.text()], "n");
            std::thread::sleep(PAUSE);
            let (before, start) = (SystemTime::now(), Instant::now());
            restore(&created, &files, true);
            created.client().call::<WaitRestore>(&Empty {}, &[]).unwrap();
            all.push(start.elapsed());
            call.push(said_now(&created, before));
            drop(created);
            std::thread::sleep(PAUSE);
            let before = SystemTime::now();
            let image = image.to_str().unwrap();
            let args =
                ["restore", "--detach", "--background", "--bundle", bundle.text(), "--image-path", image];
            let mut restored = Running::launch(&state, dir.path(), &args, "n");
            command.push(said_now(&restored, before));
            assert_eq!(restored.tell("s", "sum"), sum);
        }
        let [call, command, all] =
            [("from the call", call), ("from the command", command), ("from the call to all pages in", all)]
                .map(|(name, times)| Times::new(name, times));
        for t in [&call, &command, &all] {
            println!("{}: median {}, lower quartile {}", t.name, show(t.median()), show(t.quartile()));
        }
        let name = format!("background restore, {mb} MB in {pages} pages");
        score(&format!("{name}: first instruction"), ms(call.median()), "ms", Goal::AtMost(15.0));
        if mb == large() {
            let rate = (mb << 20) as f64 / all.median().as_secs_f64() / 1e9;
            score(&format!("{name}: all pages in"), rate, "GB/s", Goal::AtLeast(2.0));
        }
    }
}

fn said_now(running: &Running<'_>, before: SystemTime) -> Duration {
    let then = Duration::from_nanos(running.answer("now").parse().unwrap());
    then.saturating_sub(before.duration_since(UNIX_EPOCH).unwrap())
}
