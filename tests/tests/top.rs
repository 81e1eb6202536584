//! `airlock top` on a real terminal: tmux plays it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{Bundle, State, airlock, need, unique, wait};
use std::process::{Command, Output};

/// A terminal of 80 by 24 with a program in it, on a tmux server of its own.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn new(program: &str) -> Self {
        let terminal = Self { socket: unique("airlock-top") };
        // The shell stays when the program ends, to show what it leaves behind.
        let line = format!("PS1='$ ' TERM=screen-256color sh -c '{program}; echo left with $?; exec sh'");
        let out = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &line]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        terminal
    }

    fn tmux(&self, args: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.args(["-L", &self.socket]).args(args).env("LC_ALL", "C.UTF-8").output().unwrap()
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        assert!(self.tmux(&args).status.success());
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    fn shows(&self, text: &str) -> String {
        let mut last = String::new();
        wait::until(&format!("{text:?} on the screen"), || {
            last = self.screen();
            last.contains(text).then(|| last.clone())
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn keys_do_what_they_say() {
    need!("busybox", "tmux");
    let (state, id, bundle) = (State::new(), unique("top"), Bundle::new(&["/bin/sleep", "1000"]));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let top = format!("{} --root {} top -d 200ms", airlock().display(), state.root().display());
    let terminal = Terminal::new(&top);
    let screen = terminal.shows("running");
    assert!(
        screen.contains("airlock top") && screen.contains("1 sandbox · 1 container · 1 process"),
        "{screen}"
    );
    assert!(screen.contains(&id) && screen.contains("q quit"), "{screen}");
    terminal.keys(&["Enter"]);
    terminal.shows(" sleep");
    terminal.keys(&["p"]);
    terminal.shows("paused");
    wait::until("the container is paused", || (state.status(&id) == "paused").then_some(()));
    terminal.keys(&["r"]);
    wait::until("the container runs on", || (state.status(&id) == "running").then_some(()));
    // What cannot be done is said, and nothing else happens.
    terminal.keys(&["r"]);
    terminal.shows("container not paused");
    terminal.keys(&["s"]);
    terminal.shows("MEM▾");
    terminal.keys(&["/", "n", "o", "p", "e"]);
    terminal.shows("nothing matches");
    terminal.keys(&["Escape"]);
    terminal.shows(&id);
    terminal.keys(&["c"]);
    terminal.shows("checkpoint to the folder");
    terminal.keys(&["Escape"]);
    wait::until("the question is gone", || (!terminal.screen().contains("to the folder")).then_some(()));
    terminal.keys(&["k"]);
    terminal.shows("SIGTERM");
    terminal.keys(&["Down", "Enter"]);
    wait::until("the container is killed", || (state.status(&id) == "stopped").then_some(()));
    terminal.shows("stopped");
    terminal.keys(&["q"]);
    let screen = terminal.shows("left with 0");
    assert!(!screen.contains("airlock top"), "the terminal is as before: {screen}");
}

#[test]
fn its_key_saves_a_checkpoint_that_can_be_restored() {
    need!("busybox", "tmux");
    let script = "n=0; while :; do n=$((n + 1)); echo $n >/tmp/n; sleep 0.05; done";
    let (state, id, bundle) = (State::new(), unique("top"), Bundle::new(&["/bin/sh", "-c", script]));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let count = |id: &str| {
        wait::until("a number", || state.ok(["exec", id, "cat", "/tmp/n"]).trim().parse::<u64>().ok())
    };
    let folder = state.dir.path().join("image");
    std::fs::create_dir(&folder).unwrap();
    let top = format!("{} --root {} top -d 200ms", airlock().display(), state.root().display());
    let terminal = Terminal::new(&top);
    terminal.shows("running");
    let before = count(&id);
    // One that cannot be written is said, and the container goes on.
    terminal.keys(&["c"]);
    terminal.shows("checkpoint to the folder");
    let type_path = |path: &str| {
        terminal.keys(&["C-u"]);
        terminal.keys(&["-l", path]);
        terminal.keys(&["Enter"]);
    };
    type_path("/proc/nowhere/image");
    terminal.shows("failed: ");
    assert!(count(&id) >= before);
    terminal.keys(&["c"]);
    terminal.shows("checkpoint to the folder");
    type_path(folder.to_str().unwrap());
    terminal.shows(&format!("saved {id} to "));
    wait::until("the container has ended", || (state.status(&id) == "stopped").then_some(()));
    terminal.keys(&["q"]);
    terminal.shows("left with 0");
    let copy = unique("top");
    state.detached(&[
        "restore",
        "--detach",
        "--image-path",
        folder.to_str().unwrap(),
        "--bundle",
        bundle.text(),
        &copy,
    ]);
    let first = count(&copy);
    assert!(first >= before);
    wait::until("it counts on", || (count(&copy) > first).then_some(()));
}

#[test]
fn the_terminal_is_restored_when_a_signal_ends_it() {
    need!("tmux");
    let state = State::new();
    let pid_file = state.dir.path().join("pid");
    let top = format!(
        "{{ echo \\$\\$ > {}; exec {} --root {} top; }}",
        pid_file.display(),
        airlock().display(),
        state.root().display()
    );
    let terminal = Terminal::new(&format!("sh -c \"{top}\""));
    terminal.shows("no containers below this state directory");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
    let screen = terminal.shows("left with 0");
    assert!(!screen.contains("airlock top"), "{screen}");
    terminal.keys(&["echo seen", "Enter"]);
    terminal.shows("\nseen");
}

#[test]
fn it_ends_with_its_terminal() {
    need!("tmux");
    let state = State::new();
    let pid_file = state.dir.path().join("pid");
    // As when a connection breaks: nobody passes the hang-up on as a signal.
    let top = format!(
        "{{ trap \"\" HUP; echo \\$\\$ > {}; exec {} --root {} top; }}",
        pid_file.display(),
        airlock().display(),
        state.root().display()
    );
    let terminal = Terminal::new(&format!("sh -c \"{}\"", top.replace('"', "\\\"")));
    terminal.shows("no containers below this state directory");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    drop(terminal);
    wait::until("top has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        (!stat.contains("(airlock)") || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn without_a_terminal_it_says_what_to_use_instead() {
    let state = State::new();
    assert!(state.fails(["top"]).contains("draws on a terminal"));
}
