//! Parsers of option values that are more than a number or a path. Each refuses what it does not understand
//! entirely: a value that is read only in part has given other runtimes wrong users (CVE-2026-30892).

#![forbid(unsafe_code)]

use airlock::container::Frames;
use airlock_wire::api::supervisor::{Deadline, Format, ManagedLogging, Topic};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A `NAME=VALUE` pair in the form that a process takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar(pub String);

/// Reads `NAME=VALUE`; the name must not be empty, the value may be.
pub fn parse_env(text: &str) -> Result<EnvVar, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(EnvVar(text.to_owned())),
        _ => Err(format!("'{text}' is not of the form NAME=VALUE")),
    }
}

/// runsc's `--EXPERIMENTAL-xdp`, as far as it can be had.
pub fn parse_xdp(text: &str) -> Result<Frames, String> {
    match text {
        "off" => Ok(Frames::PacketSockets),
        "ns" => Ok(Frames::Xdp),
        _ if text.starts_with("redirect:") || text.starts_with("tunnel:") => Err(
            "an interface of the host is not taken over, and programs of others are not used: 'off' or 'ns'; a caller \
             of the control API can give any AF_XDP socket (XDPLinks)"
                .to_owned(),
        ),
        _ => Err(format!("{text:?} is none of 'off' and 'ns'")),
    }
}

/// An id in decimal: digits only, no sign, no leading zero, and not the -1 that means "leave as it is".
fn parse_id(text: &str, what: &str) -> Result<u32, String> {
    let plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    if !plain {
        return Err(format!("the {what} '{text}' is not a plain number"));
    }
    match text.parse::<u32>() {
        Ok(u32::MAX) | Err(_) => Err(format!("the {what} '{text}' is out of range: 0 to {}", u32::MAX - 1)),
        Ok(id) => Ok(id),
    }
}

/// Reads `UID[:GID]`.
pub fn parse_user(text: &str) -> Result<(u32, Option<u32>), String> {
    match text.split_once(':') {
        None => Ok((parse_id(text, "user")?, None)),
        Some((user, group)) => Ok((parse_id(user, "user")?, Some(parse_id(group, "group")?))),
    }
}

/// Reads `HOST:GUEST`, two descriptor numbers; `N` alone keeps the number.
pub fn parse_pass_fd(text: &str) -> Result<(i32, i32), String> {
    let number = |part: &str| {
        parse_id(part, "descriptor")
            .and_then(|n| i32::try_from(n).map_err(|_| format!("the descriptor '{part}' is out of range")))
    };
    match text.split_once(':') {
        None => number(text).map(|n| (n, n)),
        Some((host, guest)) => Ok((number(host)?, number(guest)?)),
    }
}

/// Reads a signal: a number from 0 to 64, or a name with or without `SIG`, also `RTMIN+n` and `RTMAX-n`.
pub fn parse_signal(text: &str) -> Result<i32, String> {
    let refuse = || format!("unknown signal '{text}': give a number from 0 to 64 or a name such as TERM");
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (0..=64).contains(n)).ok_or_else(refuse);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return realtime(34, offset).ok_or_else(refuse);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return realtime(64, offset).ok_or_else(refuse);
    }
    let name = match name {
        "IOT" => "ABRT",
        "POLL" => "IO",
        "CLD" => "CHLD",
        other => other,
    };
    nix::sys::signal::Signal::from_str(&format!("SIG{name}")).map(|s| s as i32).map_err(|_| refuse())
}

/// glibc's SIGRTMIN is 34: the two below are its own.
fn realtime(base: i32, offset: &str) -> Option<i32> {
    let offset: i32 = match offset {
        "" => 0,
        text => text.parse().ok()?,
    };
    Some(base.checked_add(offset)?).filter(|n| (34..=64).contains(n))
}

/// Reads a time as Go writes it (`5s`, `1m30s`, `500ms`, `1.5s`) or as a plain number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("'{text}' is not a time: write 5s, 500ms or 1m30s");
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map(Duration::from_secs).map_err(|_| refuse());
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(refuse()),
        };
        total += number.parse::<f64>().map_err(|_| refuse())? * unit;
        rest = next;
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Duration::try_from_secs_f64(total).map_err(|_| refuse())
}

/// Reads a time from now (as [`parse_duration`] does), or a moment (RFC 3339).
pub fn parse_deadline(text: &str) -> Result<Deadline, String> {
    match parse_duration(text) {
        Ok(duration) => Ok(Deadline::after(duration)),
        Err(e) => text.parse().map_err(|_| format!("{e}, or a moment as 2026-11-28T12:00:00Z")),
    }
}

fn parse_topic(text: &str) -> Result<Topic, String> {
    match text {
        "runtime" => Ok(Topic::Runtime),
        "runtime_extension" => Ok(Topic::RuntimeExtension),
        _ => Err(format!("'{text}' is no topic of logs: runtime or runtime_extension")),
    }
}

/// Reads `TOPIC=FILE`.
pub fn parse_log_target(text: &str) -> Result<(Topic, PathBuf), String> {
    match text.split_once('=') {
        Some((topic, file)) if !file.is_empty() => Ok((parse_topic(topic)?, file.into())),
        _ => Err(format!("'{text}' is not of the form TOPIC=FILE")),
    }
}

/// Reads `TOPIC` or `TOPIC:FORMAT,FORMAT`; without formats, lines are meant.
pub fn parse_log_config(text: &str) -> Result<ManagedLogging, String> {
    let (topic, formats) = text.split_once(':').unwrap_or((text, "line"));
    let format = |word: &str| match word {
        "line" => Ok(Format::Line),
        "message" => Ok(Format::Message),
        _ => Err(format!("'{word}' is no format of logs: line or message")),
    };
    let formats = formats.split(',').map(format).collect::<Result<Vec<_>, _>>()?;
    Ok(ManagedLogging { topic: parse_topic(topic)?, formats: formats.into() })
}

/// Reads a size in bytes, with an optional suffix (`k`, `m`, `g`, `t`, `p`, each 1024 times the one before, and
/// an optional `b` or `ib`); -1 stands for "no limit".
pub fn parse_size(text: &str) -> Result<i64, String> {
    let refuse = || format!("'{text}' is not a size: write bytes, or a number with k, m, g or t, or -1");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(refuse()),
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift).ok_or_else(refuse);
    }
    let parsed: f64 = number.parse().map_err(|_| refuse())?;
    let bytes = parsed * (1i64 << shift) as f64;
    if bytes.is_finite() && bytes < i64::MAX as f64 { Ok(bytes as i64) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn logs_and_deadlines_are_read() {
        assert_eq!(parse_log_target("runtime=/a=b"), Ok((Topic::Runtime, "/a=b".into())));
        for bad in ["", "runtime", "runtime=", "x=/a", "=/a"] {
            assert!(parse_log_target(bad).is_err(), "{bad}");
        }
        let lines = ManagedLogging { topic: Topic::Runtime, formats: vec![Format::Line].into() };
        assert_eq!(parse_log_config("runtime"), Ok(lines));
        let formats = vec![Format::Message, Format::Line].into();
        let both = ManagedLogging { topic: Topic::RuntimeExtension, formats };
        assert_eq!(parse_log_config("runtime_extension:message,line"), Ok(both));
        for bad in ["", "x", "runtime:", "runtime:x", "runtime:line,"] {
            assert!(parse_log_config(bad).is_err(), "{bad}");
        }
        assert!(parse_deadline("10s").unwrap().left().unwrap() > Duration::from_secs(9));
        assert_eq!(parse_deadline("1999-01-01T00:00:00+01:00").unwrap().left(), None);
        for bad in ["", "soon", "2026-11-28", "-1s"] {
            assert!(parse_deadline(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_that_other_runtimes_misread_are_refused() {
        for text in [
            "",
            ":",
            "1:",
            ":1",
            "01",
            "+1",
            "-1",
            "1:01",
            "1:+1",
            " 1",
            "1 ",
            "1:1:1",
            "root",
            "0x1",
            "1_0",
            "4294967295",
            "4294967296",
            "1:4294967295",
            "18446744073709551616",
            "1\n",
            "１",
        ] {
            assert!(parse_user(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(parse_user("0"), Ok((0, None)));
        assert_eq!(parse_user("1000:0"), Ok((1000, Some(0))));
        assert_eq!(parse_user("4294967294:4294967294"), Ok((u32::MAX - 1, Some(u32::MAX - 1))));
    }

    #[test]
    fn signals_by_number_and_name() {
        for (text, expected) in [
            ("9", 9),
            ("0", 0),
            ("64", 64),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("term", 15),
            ("WINCH", 28),
            ("RTMIN", 34),
            ("RTMIN+1", 35),
            ("SIGRTMAX-2", 62),
            ("USR1", 10),
            ("POLL", 29),
        ] {
            assert_eq!(parse_signal(text), Ok(expected), "{text}");
        }
        for text in
            ["", "65", "-9", "SIG", "NOPE", "RTMIN-1", "RTMAX+1", "RTMIN+99999999999", "9 ", "SIGSIGKILL"]
        {
            assert!(parse_signal(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "s", "5x", "-5s", "1.2.3s", "99999999999999999999h", "5s5"] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(parse_size("-1"), Ok(-1));
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("1.5k"), Ok(1536));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for text in ["", "m", "-2", "9e9", "99999999999999999999", "9999999p", "1q", "1.2.3"] {
            assert!(parse_size(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn descriptors_and_environment() {
        assert_eq!(parse_pass_fd("5:3"), Ok((5, 3)));
        assert_eq!(parse_pass_fd("5"), Ok((5, 5)));
        for text in ["", "a:b", "5:", ":5", "-1:3", "5:2147483648", "1:2:3"] {
            assert!(parse_pass_fd(text).is_err(), "{text:?} was accepted");
        }
        assert!(parse_env("A=").is_ok());
        assert!(parse_env("A=b=c").is_ok());
        assert!(parse_env("A").is_err());
        assert!(parse_env("=b").is_err());
    }

    #[test]
    fn modes_of_xdp_are_read() {
        assert_eq!(parse_xdp("off"), Ok(Frames::PacketSockets));
        assert_eq!(parse_xdp("ns"), Ok(Frames::Xdp));
        for bad in ["", "on", "NS", "redirect:eth0", "tunnel:eth0"] {
            assert!(parse_xdp(bad).unwrap_err().contains("'ns'"), "{bad}");
        }
    }

    proptest! {
        /// Whatever is accepted reads back as the very text that was given.
        #[test]
        fn a_user_that_is_accepted_is_written_the_same(text in "[0-9:+ -]{0,24}") {
            if let Ok((user, group)) = parse_user(&text) {
                let again = match group {
                    Some(group) => format!("{user}:{group}"),
                    None => user.to_string(),
                };
                prop_assert_eq!(again, text);
            }
        }

        #[test]
        fn every_valid_user_is_accepted(user in 0..u32::MAX, group in proptest::option::of(0..u32::MAX)) {
            let text = group.map_or(user.to_string(), |g| format!("{user}:{g}"));
            prop_assert_eq!(parse_user(&text), Ok((user, group)));
        }

        #[test]
        fn no_parser_panics(text in "\\PC{0,40}") {
            let _ = (parse_user(&text), parse_signal(&text), parse_duration(&text), parse_size(&text));
            let _ = (parse_pass_fd(&text), parse_env(&text));
        }
    }
}
