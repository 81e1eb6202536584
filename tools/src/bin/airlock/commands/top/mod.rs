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
    let on_terminal = isatty(std::io::stdout()).unwrap_or(false) && isatty(std::io::stdin()).unwrap_or(false);
    if !on_terminal {
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
    let mut terminal = ratatui::try_init().map_err(|e| Error::from(e).context("taking over the terminal"))?;
    let shown = show(&mut terminal, &global.root, &ends, &news, &tell);
    ratatui::restore();
    shown.map(|()| ExitCode::SUCCESS)
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
