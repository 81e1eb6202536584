//! Foreign programs that drive airlock, or that airlock drives: podman, containerd, runsc.
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

mod containerd;
mod podman;
mod relay;

pub use containerd::Containerd;
pub use podman::Podman;
pub use relay::{Relay, RunscView};

/// How a command ended, with its output as text.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The exit status as a shell shows it: 128 + n for signal n.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    fn new(output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let signal = output.status.signal().map_or(-1, |s| 128 + s);
        Self {
            code: output.status.code().unwrap_or(signal),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Standard output, if the command was successful.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }

    /// Standard error, if the command failed.
    #[track_caller]
    pub fn fails(self) -> String {
        assert_ne!(self.code, 0, "stdout: {}", self.out);
        self.err
    }
}

/// Runs a command to its end, but kills it after a minute: a hang is a failure that has to be seen.
#[track_caller]
pub fn finish(command: &mut Command) -> Ended {
    finish_with_input(command, "")
}

/// As [`finish`], with `input` on standard input.
#[track_caller]
pub fn finish_with_input(command: &mut Command, input: &str) -> Ended {
    use std::io::{Seek, Write};
    let mut stdin = tempfile::tempfile().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    stdin.rewind().unwrap();
    // Not pipes: what a command leaves behind may hold its output open.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(stdin).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let status = wait_or_kill(&mut child, Duration::from_secs(60));
    let ended = Ended::new(&Output { status, stdout: slurp(&mut out), stderr: slurp(&mut err) });
    assert_ne!(ended.code, -1, "{command:?}");
    ended
}

fn slurp(file: &mut std::fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[track_caller]
fn wait_or_kill(child: &mut std::process::Child, limit: Duration) -> std::process::ExitStatus {
    let deadline = std::time::Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if std::time::Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{child:?} did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The command on a terminal of 40 rows and 132 columns, which script(1) makes. What the command prints comes out on
/// standard output, with the terminal's line ends; the exit status is the command's.
pub fn on_terminal(command: &Command) -> Command {
    let mut line = String::from("stty rows 40 cols 132; exec");
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        line.push(' ');
        line.push_str(&quoted(word));
    }
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh");
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            script.env(key, value);
        }
    }
    script
}

fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"))
}

/// Processes whose command line has `text` in it.
pub fn processes_with(text: &str) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
        })
        .collect();
    found.sort_unstable();
    found
}

/// Whether a process exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// A control file of the v1 cgroup in which process `pid` is, trimmed; `None` where the hierarchy is not mounted.
pub fn cgroup_value(pid: i32, controller: &str, file: &str) -> Option<String> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = all.lines().find_map(|line| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        names.split(',').any(|n| n == controller).then(|| path.trim_start_matches('/').to_owned())
    })?;
    let file = Path::new("/sys/fs/cgroup").join(controller).join(path).join(file);
    Some(
        std::fs::read_to_string(&file)
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()))
            .trim()
            .to_owned(),
    )
}

fn quiet(command: &mut Command) {
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
