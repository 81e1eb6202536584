//! The loader's log and panic log: donated files, written line by line.
#![forbid(unsafe_code)]

use crate::container::lock;
use log::{LevelFilter, Log, Metadata, Record};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

struct Logger {
    file: Option<Mutex<File>>,
    id: String,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        self.file.is_some()
    }

    fn log(&self, record: &Record<'_>) {
        let Some(file) = &self.file else { return };
        let line = format!(
            "{} {} [{}] {}: {}\n",
            humantime::format_rfc3339_micros(SystemTime::now()),
            record.level(),
            self.id,
            record.target(),
            record.args()
        );
        // A full disk must not stop a sandbox.
        let _ = lock(file).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// A descriptor of the log for another process of the sandbox; `None` if there is no log.
pub(crate) fn file() -> Option<OwnedFd> {
    let file = LOGGER.get()?.file.as_ref()?;
    lock(file).try_clone().ok().map(OwnedFd::from)
}

/// Sends log lines to `log` from `level` on (0 off … 5 trace) and panics to `panic_log` (else to the log).
pub(crate) fn init(log: Option<OwnedFd>, panic_log: Option<OwnedFd>, level: u8, id: &str) {
    let logger =
        LOGGER.get_or_init(|| Logger { file: log.map(|fd| Mutex::new(File::from(fd))), id: id.to_owned() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(match level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        });
    }
    let panic_log = panic_log.map(|fd| Mutex::new(File::from(fd)));
    std::panic::set_hook(Box::new(move |info| {
        let trace = std::backtrace::Backtrace::force_capture();
        let text = format!("{} {info}\n{trace}\n", humantime::format_rfc3339_micros(SystemTime::now()));
        match &panic_log {
            Some(file) => {
                let _ = lock(file).write_all(text.as_bytes());
            }
            None => log::error!("{text}"),
        }
    }));
}
