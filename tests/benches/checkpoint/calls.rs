//! A `sleep` container: calls inside running sandboxes, and whole commands.

use crate::running::{Files, Running, checkpoint, save, tmpfs, undisturbed};
use crate::runsc::Runsc;
use crate::{PAUSE, ms, title};
use airlock_tests::bench::{Goal, Times, report, score, show};
use airlock_tests::{Bundle, State};
use airlock_wire::api::checkpoint::RestoreOpts;
use airlock_wire::api::container_manager as cm;
use std::time::{Duration, Instant};

const ROUNDS: usize = 20;

fn sleeping() -> Bundle {
    Bundle::with(&["/bin/sleep", "100000"], undisturbed)
}

/// Restores a created container by a call; how long it took until the answer.
pub fn restore(created: &Running<'_>, files: &Files, background: bool) -> Duration {
    let mut client = created.client();
    let device =
        background.then(|| std::fs::File::options().read(true).write(true).open("/dev/userfaultfd").unwrap());
    let opts = RestoreOpts {
        have_pages_file: true,
        have_device_file: device.is_some(),
        background,
        ..RestoreOpts::default()
    };
    let mut fds = files.fds();
    fds.extend(device.iter().map(std::os::fd::AsFd::as_fd));
    let start = Instant::now();
    client.call::<cm::Restore>(&opts, &fds).unwrap();
    start.elapsed()
}

/// Checkpoint and Restore over the control socket.
pub fn calls() {
    title("`sleep`: Checkpoint and Restore calls inside running sandboxes");
    let (state, dir, bundle) = (State::new(), tmpfs(), sleeping());
    let (mut resumed, mut pauses, mut saved, mut restored) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let first = Running::launch(&state, dir.path(), &["run", "--detach", "--bundle", bundle.text()], "");
        std::thread::sleep(PAUSE);
        let (took, answer) = save(&mut first.client(), &Files::new(dir.path()), true);
        resumed.push(took);
        pauses.push(Duration::from_micros(answer.pause_us));
        std::thread::sleep(PAUSE);
        let files = Files::new(dir.path());
        saved.push(save(&mut first.client(), &files, false).0);
        drop(first);
        let second = Running::launch(&state, dir.path(), &["create", "--bundle", bundle.text()], "");
        std::thread::sleep(PAUSE);
        restored.push(restore(&second, &files, false));
    }
    let [resumed, pauses, saved, restored] = [
        ("Checkpoint with Resume", resumed),
        ("of that the program stands still", pauses),
        ("Checkpoint", saved),
        ("Restore", restored),
    ]
    .map(|(name, times)| Times::new(name, times));
    for t in [&resumed, &pauses, &saved, &restored] {
        println!("{}: median {}, lower quartile {}", t.name, show(t.median()), show(t.quartile()));
    }
    score("Checkpoint call, sleep", ms(saved.median()), "ms", Goal::AtMost(12.0));
    score("Restore call, sleep", ms(restored.median()), "ms", Goal::AtMost(10.0));
}

/// Whole commands, beside `run` and runsc.
pub fn commands() {
    title("`sleep`: whole commands");
    let (state, dir, bundle, runsc) = (State::new(), tmpfs(), sleeping(), Runsc::find());
    let run = ["run", "--detach", "--bundle", bundle.text()];
    let image = dir.path().join("image");
    let theirs = runsc.as_ref().map(|runsc| (runsc, dir.path().join("runsc")));
    let (mut ran, mut saved, mut restored) = (vec![], vec![], vec![]);
    let (mut their_saved, mut their_restored) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        std::thread::sleep(PAUSE);
        let first = Running::launch(&state, dir.path(), &run, "");
        ran.push(first.took);
        std::thread::sleep(PAUSE);
        saved.push(checkpoint(&first, &image, &[]));
        drop(first);
        std::thread::sleep(PAUSE);
        let args =
            ["restore", "--detach", "--bundle", bundle.text(), "--image-path", image.to_str().unwrap()];
        restored.push(Running::launch(&state, dir.path(), &args, "").took);
        if let Some((runsc, image)) = &theirs {
            std::thread::sleep(PAUSE);
            let id = runsc.run(bundle.text(), "");
            std::thread::sleep(PAUSE);
            their_saved.push(runsc.checkpoint(&id, image));
            std::thread::sleep(PAUSE);
            let (id, took) = runsc.restore(bundle.text(), image);
            their_restored.push(took);
            runsc.delete(&id);
            std::fs::remove_dir_all(image).unwrap();
        }
    }
    let (ran, restored) = (Times::new("run --detach", ran), Times::new("restore --detach", restored));
    let ratio = |a: &Times, b: &Times| ms(a.median()) / ms(b.median());
    let to_run = ratio(&restored, &ran);
    let mut all = vec![restored, ran, Times::new("checkpoint", saved)];
    if theirs.is_some() {
        all.push(Times::new("runsc restore", their_restored));
        all.push(Times::new("runsc checkpoint", their_saved));
    }
    report("`sleep`: whole commands", &all);
    score("restore --detach of sleep / run --detach", to_run, "x", Goal::AtMost(1.5));
    if let Some(theirs) = all.get(3) {
        score("restore --detach of sleep / runsc restore", ratio(&all[0], theirs), "x", Goal::AtMost(0.2));
    }
}
