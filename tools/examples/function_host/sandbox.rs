//! A sandbox with the Runtime API in its root container.

use super::link::{Invocation, News, Order, send};
use airlock::client::Airlock;
use airlock::container::restore::RestoreOptions;
use airlock::container::{CreateOptions, DeleteOptions, Stdio};
use airlock::podspec::Bundle;
use airlock::sandbox::SandboxOptions;
use std::error::Error;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything but the function may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where sandboxes are made.
#[derive(Debug)]
pub struct Host {
    /// The state directory.
    pub airlock: Airlock,
    /// The `airlock` program.
    pub binary: PathBuf,
}

/// A sandbox that is deleted with this.
pub struct Sandbox<'a> {
    host: &'a Host,
    /// Its id.
    pub id: String,
    orders: PipeWriter,
    news: Receiver<News>,
    /// For those who have news besides the server; dropped, [`Self::hear`] tells when all of them have ended.
    pub teller: Option<Sender<News>>,
}

/// How an invocation came out.
#[derive(Debug)]
pub enum Answer {
    /// With a result.
    Result(String),
    /// With an error of the function.
    Error(String),
    /// With the end of the runtime.
    Ended(String),
    /// Not in time.
    Late,
}

impl<'a> Sandbox<'a> {
    /// Boots a sandbox with this root container, and waits until the Runtime API listens.
    pub fn boot(host: &'a Host, id: &str, bundle: &Bundle) -> Result<Self, Box<dyn Error>> {
        let sandbox = Self::make(host, id, |options| {
            host.airlock.create(id, bundle, options)?;
            Ok(host.airlock.start(id)?)
        })?;
        sandbox.expect(&News::Listening)?;
        Ok(sandbox)
    }

    /// Makes a sandbox of an image.
    pub fn restore(host: &'a Host, id: &str, bundle: &Bundle, image: &Path) -> Result<Self, Box<dyn Error>> {
        let restore = RestoreOptions { image: image.to_owned(), ..RestoreOptions::default() };
        Self::make(host, id, |options| Ok(host.airlock.restore(id, bundle, options, restore)?))
    }

    fn make(
        host: &'a Host,
        id: &str,
        create: impl FnOnce(CreateOptions) -> Result<(), Box<dyn Error>>,
    ) -> Result<Self, Box<dyn Error>> {
        let (stdin, orders) = std::io::pipe()?;
        let (output, stdout) = std::io::pipe()?;
        let stderr: OwnedFd = std::io::stderr().as_fd().try_clone_to_owned()?;
        let options = CreateOptions {
            stdio: Some(Stdio { fds: [stdin.into(), stdout.into(), stderr] }),
            sandbox: SandboxOptions { airlock_binary: Some(host.binary.clone()) },
            ..CreateOptions::default()
        };
        let (teller, news) = channel();
        listen(output, teller.clone());
        let sandbox = Self { host, id: id.to_owned(), orders, news, teller: Some(teller) };
        create(options)?;
        Ok(sandbox)
    }

    /// Tells the server something.
    pub fn tell(&mut self, order: &Order) -> Result<(), Box<dyn Error>> {
        send(&mut self.orders, order).map_err(|e| format!("the sandbox does not listen any more: {e}").into())
    }

    /// The next news; `None` when there are none in time. What the function prints is printed.
    pub fn hear(&self, until: Instant) -> Result<Option<News>, Box<dyn Error>> {
        loop {
            match self.news.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(News::Log { line }) => eprintln!("line: {line}"),
                Ok(news) => return Ok(Some(news)),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err("the sandbox has ended".into()),
            }
        }
    }

    /// Waits for these news; others are an error.
    pub fn expect(&self, expected: &News) -> Result<(), Box<dyn Error>> {
        match self.hear(Instant::now() + PATIENCE)? {
            Some(news) if news == *expected => Ok(()),
            news => Err(format!("the sandbox said {news:?} instead of {expected:?}").into()),
        }
    }

    /// Hands an event to the runtime of that name and waits for what comes of it, until `timeout` is over.
    pub fn invoke(
        &mut self,
        runtime: &str,
        id: &str,
        event: &str,
        timeout: Duration,
    ) -> Result<Answer, Box<dyn Error>> {
        let until = Instant::now() + timeout;
        let deadline_ms = (SystemTime::now() + timeout).duration_since(UNIX_EPOCH)?.as_millis() as u64;
        self.tell(&Order::Invoke(Invocation { id: id.to_owned(), event: event.to_owned(), deadline_ms }))?;
        loop {
            match self.hear(until)? {
                None => return Ok(Answer::Late),
                Some(News::Response { body, .. }) => return Ok(Answer::Result(body)),
                Some(News::FunctionError { body, .. }) => return Ok(Answer::Error(body)),
                Some(News::Ended { name, status }) if name == runtime => return Ok(Answer::Ended(status)),
                Some(_) => {}
            }
        }
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.host.airlock.delete(&self.id, DeleteOptions { force: true }) {
            eprintln!("delete sandbox {}: {e}", self.id);
        }
    }
}

/// Reads what a server says until it ends.
fn listen(output: PipeReader, teller: Sender<News>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(news) => {
                    if teller.send(news).is_err() {
                        return;
                    }
                }
                Err(e) => eprintln!("the sandbox said {line:?}: {e}"),
            }
        }
    });
}
