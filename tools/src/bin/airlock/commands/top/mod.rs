//! `top`: a view of all sandboxes, their containers and processes, on a terminal.
//!
//! | file | does |
//! | --- | --- |
//! | `collect` | reads what there is, every interval, on a thread of its own: a sandbox that does not answer holds up nothing else |
//! | `app` | what is selected, unfolded, sorted, typed; what a key does |
//! | `view` | draws it |
#![forbid(unsafe_code)]

mod app;
mod collect;
mod view;

use crate::cli::TopArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use app::{Action, App};
use collect::{Collector, Snapshot};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::isatty;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How long a change of something other than the keyboard may take to be seen, milliseconds.
const GLANCE: u8 = 200;

/// What the threads tell the one that draws.
enum News {
    Snapshot(Snapshot),
    /// What came of a key: shown at the bottom.
    Said(String),
}

/// Shows the view until `q` is typed or a signal ends it. The terminal is as before then, after a panic too.
pub fn run(global: &Global, args: TopArgs) -> Result<ExitCode> {
    let has_terminal =
        isatty(std::io::stdout()).unwrap_or(false) && isatty(std::io::stdin()).unwrap_or(false);
    if !has_terminal {
        return Err(Error::invalid_argument(
            "top draws on a terminal, and there is none: 'list', 'ps' and 'events --stats' tell the same to programs",
        ));
    }
    // Before there are threads, which inherit it.
    let mut ends = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT].into_iter().for_each(|s| ends.add(s));
    ends.thread_block()?;
    let ends = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let (tell, news) = channel();
    collect(&global.root, args.interval, tell.clone())?;
    on_terminal(|terminal| show(terminal, &global.root, &ends, &news, &tell)).map(|()| ExitCode::SUCCESS)
}

/// Takes over the terminal for `work`, and gives it back. A panic, on whatever thread, gives it back too, and ends the program:
/// the others would go on drawing.
fn on_terminal(work: impl FnOnce(&mut ratatui::DefaultTerminal) -> Result<()>) -> Result<()> {
    /// What Rust's programs end with after a panic.
    const PANICKED: i32 = 101;
    let mut terminal = ratatui::try_init().map_err(|e| Error::from(e).context("taking over the terminal"))?;
    // It restores the terminal, and then tells.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        told(info);
        std::process::exit(PANICKED);
    }));
    let done = work(&mut terminal);
    ratatui::restore();
    done
}

/// Starts the thread that looks; it ends with the program.
fn collect(root: &Path, interval: Duration, tell: Sender<News>) -> Result<()> {
    let mut collector = Collector::new(root)?;
    let look = move || {
        loop {
            let found = match collector.look() {
                Ok(snapshot) => News::Snapshot(snapshot),
                Err(e) => News::Said(e.to_string()),
            };
            if tell.send(found).is_err() {
                return;
            }
            std::thread::sleep(interval);
        }
    };
    std::thread::Builder::new().name("look".to_owned()).spawn(look)?;
    Ok(())
}

/// Waits for a key. True when the view is to end: a signal came, or the terminal is gone (of which the library that reads
/// keys takes no notice).
fn is_over(ends: &SignalFd, limit: u8) -> Result<bool> {
    let keys = std::io::stdin();
    let mut fds =
        [PollFd::new(ends.as_fd(), PollFlags::POLLIN), PollFd::new(keys.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(limit)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(Error::from(e).context("waiting for keys")),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok(fds[0].any() == Some(true) || fds[1].revents().is_some_and(|r| r.intersects(gone)))
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    root: &Path,
    ends: &SignalFd,
    news: &Receiver<News>,
    tell: &Sender<News>,
) -> Result<()> {
    let mut app = App::new(root);
    let mut changed = true;
    // There may be more keys that were read with the last one.
    let mut typed = false;
    loop {
        while let Ok(news) = news.try_recv() {
            changed = true;
            match news {
                News::Snapshot(snapshot) => app.update(snapshot),
                News::Said(text) => app.say(text),
            }
        }
        if changed {
            // Only what differs from the last picture is sent.
            terminal.draw(|frame| view::draw(frame, &mut app))?;
            changed = false;
        }
        if is_over(ends, if typed { 0 } else { GLANCE })? {
            return Ok(());
        }
        typed = event::poll(Duration::ZERO)?;
        if !typed {
            continue;
        }
        changed = true;
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match app.key(key) {
            None => {}
            Some(Action::Quit) => return Ok(()),
            Some(Action::Work(work)) => {
                // Some take long: a checkpoint is written meanwhile.
                let (tell, root) = (tell.clone(), root.to_owned());
                let run = move || {
                    let _ = tell.send(News::Said(work.run(&root)));
                };
                std::thread::Builder::new().name("work".to_owned()).spawn(run)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Output};
    use std::time::Instant;

    /// Set where this program is to panic on a terminal, on this thread or another.
    const PANIC: &str = "AIRLOCK_TEST_PANIC_ON_TERMINAL";

    #[test]
    fn panics_on_the_terminal_that_it_is_given() {
        let Some(thread) = std::env::var_os(PANIC) else { return };
        let defect = || panic!("a defect of a test");
        let _ = on_terminal(|terminal| {
            terminal.draw(|frame| frame.render_widget("drawn by a test", frame.area()))?;
            if thread == "other" {
                let _ = std::thread::spawn(defect).join();
                panic!("nobody goes on");
            }
            defect()
        });
    }

    fn screen_after_panic_on(thread: &str) -> String {
        let socket = format!("airlock-top-panic-{thread}-{}", std::process::id());
        let tmux = |args: &[&str]| -> Output {
            let mut tmux = Command::new("tmux");
            tmux.args(["-L", &socket]).args(args).env("LC_ALL", "C.UTF-8").output().unwrap()
        };
        let program = std::env::current_exe().unwrap();
        let name = "commands::top::tests::panics_on_the_terminal_that_it_is_given";
        let line = format!(
            "PS1='$ ' sh -c '{PANIC}={thread} RUST_BACKTRACE=0 {} --exact {name} --nocapture; echo left with $?; exec sh'",
            program.display()
        );
        assert!(
            tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "24", &line]).status.success()
        );
        let shown = |text: &str| {
            let begun = Instant::now();
            loop {
                let screen = String::from_utf8_lossy(&tmux(&["capture-pane", "-p"]).stdout).into_owned();
                if screen.contains(text) || begun.elapsed() > Duration::from_secs(30) {
                    return screen;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        shown("left with");
        // The terminal shows what is typed, and ends lines.
        tmux(&["send-keys", "echo se''en", "Enter"]);
        let screen = shown("\nseen\n");
        tmux(&["kill-server"]);
        screen
    }

    #[test]
    fn the_terminal_is_restored_after_a_panic() {
        if Command::new("tmux").arg("-V").output().is_err() {
            eprintln!("SKIPPED: needs tmux");
            return;
        }
        for thread in ["this", "other"] {
            let screen = screen_after_panic_on(thread);
            assert!(screen.contains("a defect of a test") && screen.contains("left with 101"), "{screen}");
            assert!(screen.contains("echo se''en\nseen\n"), "{screen}");
            assert!(!screen.contains("drawn by a test") && !screen.contains("nobody goes on"), "{screen}");
        }
    }
}
