#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use std::io::{Read, Seek};

fn message(point: &str, tid: i64, fields: Vec<Field>) -> Message {
    let context = vec![
        Field::new(1, "time_ns", Value::Int(1_000)),
        Field::new(2, "thread_id", Value::Int(tid)),
        Field::new(6, "container_id", Value::Text("c".to_owned())),
        Field::new(9, "process_name", Value::Text("a\nb".to_owned())),
    ];
    let context = Field::new(1, "context_data", Value::Message(context));
    let fields = std::iter::once(context).chain(fields).collect();
    Message { kind: 7, point: Point::from_name(point).unwrap(), fields }
}

fn exit(result: i64) -> Field {
    let errno = if result < 0 { -result } else { 0 };
    let fields =
        vec![Field::new(1, "result", Value::Int(result)), Field::new(2, "errorno", Value::Int(errno))];
    Field::new(2, "exit", Value::Message(fields))
}

fn open(path: &str) -> Vec<Field> {
    vec![
        Field::new(4, "fd", Value::Int(libc::AT_FDCWD.into())),
        Field::new(5, "fd_path", Value::Text("/cwd".to_owned())),
        Field::new(6, "pathname", Value::Text(path.to_owned())),
        Field::new(7, "flags", Value::Uint(0x80000)),
        Field::new(8, "mode", Value::Uint(0o644)),
    ]
}

fn written(file: &mut std::fs::File) -> Vec<String> {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let line =
        |l: &str| l.strip_prefix("1970-01-01T00:00:00.000001Z INFO [c] strace: ").unwrap_or(l).to_owned();
    text.lines().map(line).collect()
}

#[test]
fn a_call_is_one_line_once_it_has_ended() {
    let mut file = tempfile::tempfile().unwrap();
    let mut strace = Strace::new(file.try_clone().unwrap().into());
    strace.tell(&message("syscall/openat/enter", 7, open("/x\"")));
    strace.tell(&message("syscall/read/enter", 8, vec![Field::new(4, "fd", Value::Int(3))]));
    // The text was lost meanwhile.
    strace.tell(&message("syscall/openat/exit", 7, [vec![exit(-2)], open("")].concat()));
    assert_eq!(strace.settle(0), 0);
    let opened = r#"[7] a\nb: openat(fd: AT_FDCWD, pathname: "/x\"", flags: O_RDONLY|O_CLOEXEC, mode: 0o644) = -1 ENOENT (No such file or directory)"#;
    assert_eq!(written(&mut file), [opened]);
    assert_eq!(strace.settle(0), 0);
    let path = Field::new(5, "fd_path", Value::Text("/f".to_owned()));
    strace.tell(&message("syscall/read/exit", 8, vec![exit(5), Field::new(4, "fd", Value::Int(3)), path]));
    assert_eq!(strace.settle(2), 0);
    let lines = written(&mut file);
    assert_eq!(lines[1..3], ["[8] a\\nb: read(fd: 3) <unfinished ...>", "[8] a\\nb: read(fd: 3</f>) = 5"]);
    assert!(lines[3].ends_with("WARN [] strace: 2 events are missing until here"), "{lines:?}");
    assert_eq!(lines.len(), 4);
    assert_eq!(strace.settle(2), 0);
    assert_eq!(written(&mut file).len(), 4, "said once");
}

#[test]
fn what_the_end_does_not_know_is_from_the_beginning() {
    let mut file = tempfile::tempfile().unwrap();
    let mut strace = Strace::new(file.try_clone().unwrap().into());
    let of = |path: &str| {
        vec![Field::new(4, "fd", Value::Int(3)), Field::new(5, "fd_path", Value::Text(path.to_owned()))]
    };
    let gone = || [vec![exit(0)], of("[err: FD not found]")].concat();
    strace.tell(&message("syscall/close/enter", 1, of("/f")));
    strace.tell(&message("syscall/close/exit", 1, gone()));
    strace.tell(&message("syscall/close/exit", 1, gone()));
    let nothing = Field::new(7, "argv", Value::Texts(Vec::new()));
    strace.tell(&message("syscall/execve/exit", 1, vec![exit(0), nothing]));
    strace.settle(0);
    assert_eq!(
        written(&mut file),
        ["[1] a\\nb: close(fd: 3</f>) = 0", "[1] a\\nb: close(fd: 3) = 0", "[1] a\\nb: execve() = 0"]
    );
}

#[test]
fn a_call_whose_end_was_not_seen_is_unfinished() {
    let mut file = tempfile::tempfile().unwrap();
    let mut strace = Strace::new(file.try_clone().unwrap().into());
    strace.tell(&message("syscall/sysno/231/enter", 7, vec![Field::new(5, "arg1", Value::Uint(16))]));
    strace.tell(&message("syscall/sysno/9/enter", 7, Vec::new()));
    strace.tell(&message("syscall/sysno/9/exit", 7, vec![exit(0x7fff_0000_0000)]));
    strace.settle(0);
    let [first, second] = &written(&mut file)[..] else { panic!() };
    assert!(first.ends_with("exit_group(status: 16) <unfinished ...>"), "{first}");
    assert!(second.ends_with("() = 0x7fff00000000"), "{second}");
}

#[test]
fn a_log_that_nobody_reads_costs_lines_not_time() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut strace = Strace::new(writer.into());
    let (mut told, mut lost) = (0, 0);
    while lost == 0 {
        lost += strace.tell(&message("syscall/openat/exit", 7, [vec![exit(3)], open("/x")].concat()));
        told += 1;
    }
    let mut drained = vec![0; 1 << 20];
    let n = reader.read(&mut drained).unwrap();
    lost += strace.settle(lost);
    drop(strace);
    let mut text = String::from_utf8(drained[..n].to_vec()).unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().filter(|l| l.ends_with(" = 3")).count() as u64 + lost, told);
    assert!(text.trim_end().ends_with(&format!("{lost} events are missing until here")), "{text}");
}

/// A call by its number, with registers and what they point to.
fn numbered(name: &str, args: &[u64], captured: &[&[u8]], result: Option<i64>) -> String {
    let sysno = native_number(name).unwrap();
    let mut fields: Vec<Field> = result.map(exit).into_iter().collect();
    let registers = ["arg1", "arg2", "arg3", "arg4", "arg5", "arg6"];
    let args = args.iter().copied().chain(std::iter::repeat(0));
    fields
        .extend((5..).zip(registers).zip(args).map(|((n, name), arg)| Field::new(n, name, Value::Uint(arg))));
    fields.push(Field::new(11, "fd_path", Value::Text("/dir".to_owned())));
    let items =
        CAPTURED.iter().zip(captured).map(|(name, bytes)| Field::new(12, name, Value::Bytes(bytes.to_vec())));
    fields.extend(items);
    let side = if result.is_some() { "exit" } else { "enter" };
    let line = line(&message(&format!("syscall/sysno/{sysno}/{side}"), 7, fields)).unwrap();
    line.trim_end().rsplit_once("a\\nb: ").unwrap().1.to_owned()
}

#[test]
fn calls_without_a_message_have_named_arguments() {
    let here = libc::AT_FDCWD as u32 as u64;
    /// Name, registers, what they point to, result, the line.
    type Case<'a> = (&'a str, &'a [u64], &'a [&'a [u8]], Option<i64>, &'a str);
    let cases: [Case<'_>; 10] = [
        (
            "renameat2",
            &[here, 1, 5, 2, 1],
            &[b"/a\0", b"/b\0"],
            Some(0),
            "renameat2(olddirfd: AT_FDCWD, oldpath: \"/a\", newdirfd: 5, newpath: \"/b\", flags: RENAME_NOREPLACE) = 0",
        ),
        (
            "newfstatat",
            &[4, 0x10, 0x20, 0x100],
            &[b"x\0"],
            Some(-2),
            "newfstatat(fd: 4</dir>, pathname: \"x\", stat: 0x20, flags: AT_SYMLINK_NOFOLLOW) = -1 ENOENT (No such file or directory)",
        ),
        (
            "lseek",
            &[3, -5i64 as u64, 2],
            &[],
            Some(7),
            "lseek(fd: 3</dir>, offset: -5, whence: SEEK_END) = 7",
        ),
        (
            "ioctl",
            &[1, 0x5413, 0x7f00],
            &[],
            Some(0),
            "ioctl(fd: 1</dir>, request: TIOCGWINSZ, arg: 0x7f00) = 0",
        ),
        (
            "mprotect",
            &[0x1000, 4096, 5],
            &[],
            Some(0),
            "mprotect(addr: 0x1000, length: 4096, prot: PROT_READ|PROT_EXEC) = 0",
        ),
        ("kill", &[-1i64 as u64, 15], &[], None, "kill(pid: -1, sig: SIGTERM) <unfinished ...>"),
        (
            "sendto",
            &[3, 0x10, 100, 0x4000, 0x20, 16],
            &[b"he\nllo", &[2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
            Some(100),
            "sendto(fd: 3</dir>, buf: \"he\\nllo\"..., len: 100, flags: MSG_NOSIGNAL, addr: 127.0.0.1:80, addrlen: 16) = 100",
        ),
        (
            "readlink",
            &[0x10, 0x20, 4096],
            &[b"/l\0", b"targetxxxx"],
            Some(6),
            "readlink(pathname: \"/l\", buf: \"target\", size: 4096) = 6",
        ),
        ("unlink", &[0], &[], Some(-14), "unlink(pathname: 0) = -1 EFAULT (Bad address)"),
        ("getpid", &[1, 2, 3], &[], Some(9), "getpid() = 9"),
    ];
    for (name, args, captured, result, expected) in cases {
        // Some are not on every architecture.
        if native_number(name).is_some() {
            assert_eq!(numbered(name, args, captured, result), expected);
        }
    }
    let unknown = numbered("bpf", &[5], &[], Some(3));
    assert_eq!(unknown, "bpf(0x5, 0x0, 0x0, 0x0, 0x0, 0x0) = 3");
}

#[test]
fn data_is_shown_as_much_as_was_moved() {
    let read = |bytes: &[u8], count: u64, result: i64| {
        let fields = vec![
            exit(result),
            Field::new(4, "fd", Value::Int(3)),
            Field::new(6, "count", Value::Uint(count)),
            Field::new(12, CAPTURED[0], Value::Bytes(bytes.to_vec())),
        ];
        line(&message("syscall/read/exit", 1, fields))
            .unwrap()
            .trim_end()
            .rsplit_once(": read")
            .unwrap()
            .1
            .to_owned()
    };
    assert_eq!(read(b"abcdefgh", 4096, 3), "(fd: 3, count: 4096, data: \"abc\") = 3");
    let long = read(&[b'x'; 128], 4096, 4096);
    assert!(long.contains(&format!("data: \"{}\"...)", "x".repeat(64))), "{long}");
    let unix: &[u8] = b"\x01\0/run/s\0";
    let connect =
        vec![Field::new(4, "fd", Value::Int(3)), Field::new(6, "address", Value::Bytes(unix.to_vec()))];
    assert!(
        line(&message("syscall/connect/enter", 1, connect))
            .unwrap()
            .contains("connect(fd: 3, address: unix:/run/s)")
    );
}

#[test]
fn names_are_known_or_refused() {
    let texts = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert!(numbers(&[]).unwrap().len() > 300);
    let calls = numbers(&texts(&["openat", "statx", "openat"])).unwrap();
    assert_eq!(plan(&calls).points.len(), 4);
    assert_eq!(plan(&calls).syscalls().len(), 2);
    let error = numbers(&texts(&["read", "reed"])).unwrap_err();
    assert!(error.message.starts_with("syscall \"reed\" not found"), "{error}");
}

proptest! {
    #[test]
    fn lines_are_whole_and_short(text in "\\PC{0,3000}|[\n\r\u{0}-\u{ff}]{0,3000}", many in 0usize..40) {
        let fields = vec![
            Field::new(6, "pathname", Value::Text(text.clone())),
            Field::new(7, "argv", Value::Texts(vec![text.clone(); many])),
            Field::new(8, "address", Value::Bytes(text.clone().into_bytes())),
        ];
        let line = line(&message("syscall/execve/enter", 1, fields)).unwrap();
        let captured: Vec<&[u8]> = vec![text.as_bytes(); 2];
        let raw = numbered("renameat2", &[1, 2, 3], &captured, Some(0));
        prop_assert!(raw.len() < AT_ONCE && !raw.contains(['\n', '\r']));
        prop_assert!(line.len() <= AT_ONCE, "{}", line.len());
        prop_assert_eq!(line.matches(['\n', '\r']).count(), 1);
    }
}
