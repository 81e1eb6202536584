use super::image::Opened;
use super::{diff, lists, what};
use airlock_loader::checkpoint::image::{ContainerName, Metadata, STATEFILE, Writer, WriterOptions};
use airlock_loader::checkpoint::state::*;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;

fn process(pid: i32, comm: &str) -> ProcessState {
    ProcessState {
        pid,
        mm: Some(0),
        threads: vec![ThreadState { tid: pid, comm: comm.as_bytes().into(), ..ThreadState::default() }],
        ..ProcessState::default()
    }
}

fn path(path: &str) -> FileState {
    let file = PathFile { path: path.to_owned(), mode: libc::S_IFREG | 0o644, ..PathFile::default() };
    FileState {
        kind: FileKind::Path(file),
        flags: libc::O_RDWR | libc::O_APPEND,
        pos: 7,
        ..FileState::default()
    }
}

fn state() -> SandboxState {
    let pipe = FileKind::Pipe {
        pipe: 9,
        write: false,
        size: 65536,
        data: Bytes(vec![0; 3]),
        packets: vec![],
        owner: (0, 0),
    };
    let vma = |start: u64, kind| Vma { start, end: start + 0x2000, prot: 5, kind, ..Vma::default() };
    SandboxState {
        containers: vec![ContainerState {
            cid: "c1".to_owned(),
            name: "web".to_owned(),
            ..ContainerState::default()
        }],
        processes: vec![
            process(1, "init"),
            ProcessState { ppid: 1, life: Life::Zombie { status: 9 }, mm: None, ..process(5, "gone\x1b[2J") },
        ],
        mms: vec![MmState {
            vmas: vec![
                vma(0x1000, VmaKind::File(0)),
                vma(0x7000, VmaKind::Anonymous),
                vma(0x9000, VmaKind::Vdso),
            ],
            exe: Some(0),
            ..MmState::default()
        }],
        fd_tables: vec![FdTable {
            fds: vec![FdEntry { fd: 3, cloexec: true, file: 0 }, FdEntry { fd: 4, cloexec: false, file: 1 }],
        }],
        files: vec![path("/bin/init"), FileState { kind: pipe, ..FileState::default() }],
        fs: vec![FsState::default()],
        ..SandboxState::default()
    }
}

fn image(dir: &Path, state: &SandboxState) -> Opened {
    let file = File::create(dir.join(STATEFILE)).unwrap();
    let mut writer = Writer::create(file, WriterOptions::default()).unwrap();
    writer.put_json("state", state).unwrap();
    let containers = vec![ContainerName { id: "c1".to_owned(), name: "web".to_owned() }];
    writer.finish(Metadata { containers, processes: 2, ..Metadata::default() }).unwrap();
    Opened::open(dir, None).unwrap()
}

#[test]
fn processes_descriptors_and_mappings_are_listed() {
    use lists::Row;
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), &state());
    let rows = lists::processes(&image, None).unwrap();
    let cells = rows[0].cells();
    assert_eq!(cells, ["c1", "1", "0", "0", "0", "R", "0", "1", "24K", "-", "init", "/bin/init"]);
    let cells = rows[1].cells();
    assert_eq!((cells[5].as_str(), cells[10].as_str()), ("Z", "gone?[2J"), "nothing acts on the terminal");
    let rows = lists::descriptors(&image, None).unwrap();
    let cells: Vec<String> = rows.iter().map(|row| row.cells().join(" ")).collect();
    assert_eq!(
        cells,
        ["c1 1 3 file rw,append,cloexec 7 0 /bin/init", "c1 1 4 pipe r 0 1 [9], read end, 3 bytes wait"]
    );
    let rows = lists::mappings(&image, Some(1)).unwrap();
    let cells: Vec<String> = rows.iter().map(|row| row.cells().join(" ")).collect();
    assert_eq!(
        cells,
        [
            "c1 1 000000001000-000000003000 r-xp 8K - 0 /bin/init",
            "c1 1 000000007000-000000009000 r-xp 8K - 0 ",
            "c1 1 000000009000-00000000b000 r-xp 8K - 0 [vdso]",
        ]
    );
    assert!(lists::mappings(&image, Some(5)).unwrap().is_empty());
    assert!(lists::descriptors(&image, Some(6)).unwrap_err().message.contains("no process 6"));
}

#[test]
fn a_state_that_refers_to_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bad = state();
    bad.processes[0].mm = Some(7);
    let image = image(dir.path(), &bad);
    assert!(lists::processes(&image, None).unwrap_err().message.contains("address space 7 of 1"));
}

#[test]
fn images_are_found_by_folder_and_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = Opened::open(dir.path(), None).unwrap_err().message;
    assert!(error.contains("there is no image in") && error.contains(STATEFILE), "{error}");
    image(dir.path(), &state());
    Opened::open(&dir.path().join(STATEFILE), None).unwrap();
    assert!(Opened::open(&dir.path().join("no"), None).unwrap_err().message.contains("No such file"));
    std::fs::write(dir.path().join("x"), "gVisorSF").unwrap();
    assert!(Opened::open(&dir.path().join("x"), None).unwrap_err().message.contains("statefile of gVisor"));
}

fn differences(a: &SandboxState, b: &SandboxState) -> Vec<(String, Value, Value)> {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (image(one.path(), a), image(two.path(), b));
    let found = diff::differences(&one, &two).unwrap();
    found.into_iter().map(|d| (d.path, d.first, d.second)).collect()
}

#[test]
fn differences_are_named_by_what_things_are() {
    let a = state();
    assert_eq!(differences(&a, &a), []);
    // Only the numbers inside the image change: nothing.
    let mut b = state();
    b.files.insert(0, path("/unused"));
    b.fd_tables[0].fds.iter_mut().for_each(|fd| fd.file += 1);
    b.mms[0].exe = Some(1);
    b.mms[0].vmas[0].kind = VmaKind::File(1);
    assert_eq!(differences(&a, &b), []);

    let mut b = state();
    b.processes[0].pgid = 4;
    b.files[0].pos = 8;
    b.processes.remove(1);
    b.warnings.push("left out".to_owned());
    b.machine.cpu_features.push("avx".to_owned());
    let found = differences(&a, &b);
    let paths: Vec<&str> = found.iter().map(|(path, _, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "machine/cpu_features",
            "processes/web/1/descriptors/3/pos",
            "processes/web/1/pgid",
            "processes/web/5",
            "warnings"
        ]
    );
    assert_eq!((&found[1].1, &found[1].2), (&json!(7), &json!(8)));
    assert_eq!((&found[0].1, &found[0].2), (&Value::Null, &json!("avx")));
    assert_eq!((&found[3].1["comm"], &found[3].2), (&json!("gone\x1b[2J"), &Value::Null));
}

#[test]
fn lists_of_values_are_compared() {
    let compare = |a: Value, b: Value| {
        let mut found = Vec::new();
        diff::compare("x", &a, &b, &mut found);
        found.into_iter().map(|d| (d.path, d.first, d.second)).collect::<Vec<_>>()
    };
    assert_eq!(compare(json!([1, 2]), json!([1, 3])), [("x/1".to_owned(), json!(2), json!(3))]);
    assert_eq!(compare(json!([1]), json!([1, 2])).len(), 1);
    assert_eq!(compare(json!(["a", "b"]), json!(["b", "c"])).len(), 2);
    // The same words in another order or number are a difference too.
    assert_eq!(compare(json!(["a", "b"]), json!(["b", "a"])).len(), 1);
    assert_eq!(compare(json!(["a"]), json!(["a", "a"])).len(), 1);
    assert_eq!(compare(json!({"a": null}), json!({})).len(), 0);
}

#[test]
fn kinds_of_files_have_words() {
    let s = state();
    let describe = |kind| what::file(&s, &FileState { kind, ..FileState::default() });
    let address = |bytes: &[u8]| Bytes(bytes.to_vec());
    let tcp = SocketState {
        family: libc::AF_INET,
        kind: libc::SOCK_STREAM,
        local: address(&[2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        listen: Some(5),
        ..SocketState::default()
    };
    assert_eq!(describe(FileKind::Socket(tcp)), ("tcp", "127.0.0.1:80 listens".to_owned()));
    let unix = |local: &[u8]| SocketState {
        family: libc::AF_UNIX,
        kind: libc::SOCK_STREAM,
        inode: 3,
        local: address(local),
        unix: Some(UnixSocket { peer: 4, ..UnixSocket::default() }),
        ..SocketState::default()
    };
    assert_eq!(describe(FileKind::Socket(unix(b"\x01\0\0abc"))).1, "stream [3] @abc to [4]");
    assert_eq!(describe(FileKind::Socket(unix(b"\x01\0/run/x\0junk"))).1, "stream [3] /run/x to [4]");
    assert_eq!(describe(FileKind::Socket(unix(b""))).1, "stream [3] to [4]");
    assert_eq!(describe(FileKind::Signalfd { mask: 1 << 1 | 1 << 14 }).1, "signals 2,15");
    assert_eq!(describe(FileKind::Pidfd { pid: 0, thread: false }).1, "of a process that has ended");
    assert_eq!(describe(FileKind::Memfd(99)).0, "memfd");
    let timer = FileKind::Timerfd {
        clock: 1,
        settime_flags: 0,
        ticks: 0,
        remaining_ns: 1_500_000_000,
        interval_ns: 0,
        expires_ns: None,
    };
    assert_eq!(describe(timer).1, "clock 1, in 1.500 s");
    for (bytes, text) in
        [(0, "0 B"), (10239, "10239 B"), (10240, "10.0 KiB"), (1 << 30, "1.0 GiB"), (1023 << 10, "1.0 MiB")]
    {
        assert_eq!(what::size(bytes), text);
    }
}
