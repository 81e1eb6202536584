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
    let opened = r#"[7] a\nb: openat(fd: AT_FDCWD, pathname: "/x\"", flags: 0x80000, mode: 0o644) = -1 ENOENT (No such file or directory)"#;
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
    assert!(first.ends_with("(0x10) <unfinished ...>"), "{first}");
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
            Field::new(8, "address", Value::Bytes(text.into_bytes())),
        ];
        let line = line(&message("syscall/execve/enter", 1, fields)).unwrap();
        prop_assert!(line.len() <= AT_ONCE, "{}", line.len());
        prop_assert_eq!(line.matches(['\n', '\r']).count(), 1);
    }
}
