//! Where errors and debug messages go.
//!
//! An error is always one line on standard error, because conmon and go-runc read it there, and with `--log` one line
//! in that file too. Nothing else is written without `--debug` or `--debug-log`: podman reads a failed command's whole log as one
//! JSON object, and the container shares our standard error.

#![forbid(unsafe_code)]

use crate::cli::{GlobalArgs, LogFormat};
use airlock_wire::error::{Error, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// One line of a JSON log, as logrus writes it: callers parse these three keys.
#[derive(Serialize)]
struct JsonLine<'a> {
    level: &'a str,
    msg: &'a str,
    time: &'a str,
}

/// Formats one line, with its newline, of a message that may itself have several.
pub fn line(format: LogFormat, level: &str, message: &str, time: &str) -> String {
    let message = one_line(message);
    match format {
        LogFormat::Json => {
            let json = serde_json::to_string(&JsonLine { level, msg: &message, time });
            // A struct of three strings always encodes.
            json.unwrap_or_default() + "\n"
        }
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
    }
}

/// Joins the lines of a message: whoever reads a log counts on one line a message.
pub fn one_line(message: &str) -> String {
    let parts: Vec<&str> =
        message.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// The present time in RFC 3339, seconds, UTC.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Reports the error that ends this command: on standard error and in the log.
pub fn report(global: Option<&GlobalArgs>, error: &Error) {
    let message = one_line(&error.message);
    // There is nobody left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{message}");
    let Some(global) = global else { return };
    if let Some(path) = &global.log
        && let Ok(mut file) = append_to(path)
    {
        let _ = file.write_all(line(global.log_format, "error", &message, &now()).as_bytes());
    }
    log::logger().flush();
}

/// Opens a log file for appending, 0600 when it is new.
fn append_to(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Opens the file of a log whose name is a pattern, as `--debug-log` and `--panic-log` have it. `None` without pattern.
///
/// `%TIMESTAMP%`, `%COMMAND%` and `%ID%` are filled in; a pattern that ends in `/` names a folder, in which
/// `airlock.log.%TIMESTAMP%.%COMMAND%.txt` is made.
///
/// # Errors
/// The file (or its folder) cannot be made.
pub fn open_pattern(pattern: Option<&str>, command: &str, id: &str) -> Result<Option<File>> {
    let Some(pattern) = pattern else { return Ok(None) };
    let path = fill_pattern(pattern, command, id, &timestamp());
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .map_err(|e| Error::from(e).context(format!("make the log folder {}", parent.display())))?;
    }
    append_to(&path).map(Some).map_err(|e| Error::from(e).context(format!("open the log {}", path.display())))
}

fn timestamp() -> String {
    let text = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    text.chars()
        .map(|c| if c.is_ascii_digit() { c } else { '-' })
        .collect::<String>()
        .trim_matches('-')
        .to_owned()
}

fn fill_pattern(pattern: &str, command: &str, id: &str, timestamp: &str) -> PathBuf {
    let mut pattern = pattern.to_owned();
    if pattern.ends_with('/') {
        pattern += "airlock.log.%TIMESTAMP%.%COMMAND%.txt";
    }
    // An id or command with a slash would name another folder.
    let (command, id) = (command.replace('/', "_"), id.replace('/', "_"));
    PathBuf::from(
        pattern.replace("%TIMESTAMP%", timestamp).replace("%COMMAND%", &command).replace("%ID%", &id),
    )
}

/// The logger behind the `log` macros; only set up when somebody wants debug messages.
struct Debug {
    format: LogFormat,
    /// `--log`, or standard error.
    main: Option<File>,
    /// Write to `main` (or standard error) at all.
    to_main: bool,
    /// `--debug-log`.
    extra: Option<File>,
}

static LOGGER: OnceLock<Debug> = OnceLock::new();

impl Log for Debug {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let text = line(self.format, level, &record.args().to_string(), &now());
        // A log that cannot be written must not stop the work.
        if self.to_main {
            let _ = match &self.main {
                Some(file) => (&*file).write_all(text.as_bytes()),
                None => std::io::stderr().write_all(text.as_bytes()),
            };
        }
        if let Some(mut file) = self.extra.as_ref() {
            let _ = file.write_all(text.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sets up debug messages if `--debug` or `--debug-log` ask for them; does nothing otherwise.
///
/// # Errors
/// A log file cannot be opened.
pub fn init(global: &GlobalArgs, command: &str) -> Result<()> {
    if !global.debug && global.debug_log.is_none() {
        return Ok(());
    }
    let main = match &global.log {
        Some(path) if global.debug => Some(
            append_to(path)
                .map_err(|e| Error::from(e).context(format!("open the log {}", path.display())))?,
        ),
        _ => None,
    };
    let extra = open_pattern(global.debug_log.as_deref(), command, "")?;
    let debug =
        LOGGER.get_or_init(|| Debug { format: global.log_format, main, to_main: global.debug, extra });
    if log::set_logger(debug).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-02T03:04:05Z";

    #[test]
    fn json_lines_have_the_keys_that_callers_read() {
        let text = line(LogFormat::Json, "error", "a \"b\"\n  c\u{1}", TIME);
        assert_eq!(
            text,
            "{\"level\":\"error\",\"msg\":\"a \\\"b\\\" c\\u0001\",\"time\":\"2026-01-02T03:04:05Z\"}\n"
        );
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn text_lines_are_quoted() {
        assert_eq!(
            line(LogFormat::Text, "error", "no \"x\"\r\nhere", TIME),
            "time=\"2026-01-02T03:04:05Z\" level=error msg=\"no \\\"x\\\" here\"\n"
        );
    }

    #[test]
    fn errors_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        std::fs::write(&path, "before\n").unwrap();
        let mut file = append_to(&path).unwrap();
        file.write_all(line(LogFormat::Json, "error", "x", TIME).as_bytes()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "before");
        let json: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!((json["level"].as_str(), json["msg"].as_str()), (Some("error"), Some("x")));
        assert!(humantime::parse_rfc3339(json["time"].as_str().unwrap()).is_ok());
    }

    #[test]
    fn patterns_are_filled_in() {
        let path = |pattern| fill_pattern(pattern, "run", "a/b", "T").to_string_lossy().into_owned();
        assert_eq!(path("/d/"), "/d/airlock.log.T.run.txt");
        assert_eq!(path("/d/%ID%-%COMMAND%-%TIMESTAMP%.log"), "/d/a_b-run-T.log");
        assert_eq!(path("plain"), "plain");
        assert!(!timestamp().contains(['/', ':', '.']));
    }
}
