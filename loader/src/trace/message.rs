//! What is told of an event: gVisor's messages (`pkg/sentry/seccheck/points/*.proto`).
#![forbid(unsafe_code)]

use super::afterwards::{Found, Other};
use super::bpf::Capture;
use super::bpf::record::{Kind, tag};
use super::calls::{CALLS, Call, Seen, text_of};
use super::config::{BINARY_INFO, FD_INFO, Plan, Wanted};
use super::event::{Event, File, Socket};
use super::points::Point;
use super::strace;
use super::wire::{Field, Value};
use crate::seccomp::syscalls::native_number;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Types of messages that are not of system calls (gVisor's `MessageType`).
mod kind {
    pub const CONTAINER_START: u16 = 1;
    pub const CLONE: u16 = 2;
    pub const EXECVE: u16 = 3;
    pub const EXIT_NOTIFY_PARENT: u16 = 4;
    pub const TASK_EXIT: u16 = 5;
    pub const NUMBERED_CALL: u16 = 6;
    pub const MMAP: u16 = 35;
}

/// A message for the sinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: u16,
    /// What it tells of.
    pub point: Point,
    /// What it says.
    pub fields: Vec<Field>,
}

/// A container of the sandbox, as a session knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its number in records.
    pub number: u32,
    /// Its ID.
    pub cid: String,
    /// The sandbox's root container.
    pub root: bool,
    /// ID of its cgroup leaf.
    pub cgroup: u64,
    /// Its init in the sandbox's pid namespace, once there is one.
    pub init: Option<i32>,
}

/// What `container/start` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Number of the container.
    pub number: u32,
    /// Its init in the sandbox's pid namespace.
    pub init: i32,
    /// When that was made, nanoseconds since boot.
    pub made: u64,
    /// Current folder.
    pub cwd: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// It has a terminal.
    pub terminal: bool,
    /// User and group.
    pub user: (u32, u32),
}

/// Puts messages together.
#[derive(Debug)]
pub struct Teller {
    plan: Plan,
    /// Calls with a message of their own, by number: indexes into [`CALLS`].
    named: HashMap<u32, usize>,
    containers: HashMap<u32, Known>,
}

/// What the context fields of a message say.
struct Context<'a> {
    time: u64,
    tid: i32,
    thread_start: u64,
    tgid: i32,
    group_start: u64,
    container: u32,
    credentials: [u32; 6],
    cwd: String,
    name: String,
    parent: i32,
    ancestor: i32,
    containers: &'a HashMap<u32, Known>,
}

impl Teller {
    /// For a plan, without containers yet.
    pub fn new(plan: Plan) -> Self {
        let named = CALLS.iter().enumerate().filter_map(|(index, call)| Some((call.number()?, index)));
        Self { plan, named: named.collect(), containers: HashMap::new() }
    }

    /// Takes note of a container, or of its init.
    pub fn know(&mut self, container: Known) {
        self.containers.insert(container.number, container);
    }

    /// The init of a container, once there is one.
    pub fn init(&self, number: u32) -> Option<i32> {
        self.containers.get(&number)?.init
    }

    /// Forgets a container. Returns the ID of its cgroup.
    pub fn forget(&mut self, number: u32) -> Option<u64> {
        self.containers.remove(&number).map(|known| known.cgroup)
    }

    /// What is to be told of an event, with what was found out about it since. `epoch` is when the machine was booted, in nanoseconds since 1970.
    pub fn tell(&self, event: &Event<'_>, found: &Found, epoch: i64) -> Vec<Message> {
        let context = |wanted: Wanted, leader: bool| self.context(event, wanted, leader, epoch);
        let mut messages = Vec::new();
        let mut add = |point: Point, kind: u16, leader: bool, make: &dyn Fn(Wanted) -> Vec<Field>| {
            if let Some(wanted) = self.plan.wants(point) {
                let fields = context(wanted, leader).into_iter().chain(make(wanted)).collect();
                messages.push(Message { kind, point, fields });
            }
        };
        match event.kind {
            Kind::Clone => add(Point::Clone, kind::CLONE, false, &|_| cloned(event, epoch)),
            Kind::Exec => {
                add(Point::Mmap, kind::MMAP, false, &|_| {
                    event
                        .file(tag::FILE)
                        .flatten()
                        .map_or_else(Vec::new, |file| mapped(event.file_path(tag::FILE), &file, true))
                });
                add(Point::Execve, kind::EXECVE, false, &|wanted| {
                    let mut fields = executed(event, found, wanted);
                    for (n, name, other) in
                        [(21, "pipe_input_proc", &found.input), (22, "pipe_output_proc", &found.output)]
                    {
                        fields.extend(other.as_ref().map(|other| {
                            let context = self.other(event, other, wanted, epoch);
                            Field::new(n, name, Value::Message(context.into_iter().collect()))
                        }));
                    }
                    fields
                });
            }
            Kind::Exit => {
                let [code, alive, flags, group_code, ..] = event.args;
                add(Point::TaskExit, kind::TASK_EXIT, false, &|_| vec![exit_status(code)]);
                let of_root = self
                    .containers
                    .get(&event.container)
                    .is_some_and(|c| c.root && c.init == Some(event.tgid));
                // The sandbox's first process has no parent whom that would concern.
                if alive == 0 && !of_root {
                    /// `SIGNAL_GROUP_EXIT`
                    const GROUP_EXIT: u64 = 4;
                    let code = if flags & GROUP_EXIT != 0 { group_code } else { code };
                    add(Point::ExitNotifyParent, kind::EXIT_NOTIFY_PARENT, true, &|_| {
                        vec![exit_status(code)]
                    });
                }
            }
            Kind::Enter | Kind::Leave => {
                let leave = event.kind == Kind::Leave;
                let [number, args @ .., result, _, _, _] = event.args;
                let result = leave.then_some(result as i64);
                let Ok(number) = u32::try_from(number) else { return messages };
                let named = self.named.get(&number).and_then(|index| Some((*index, CALLS.get(*index)?)));
                if let Some((index, call)) = named {
                    add(Point::Call(index, leave), call.message, false, &|wanted| {
                        let mut fields = named_call(event, call, number, args, result, wanted);
                        fields.extend(self.extra(event, number, leave, false));
                        fields
                    });
                    if call.name == "mmap"
                        && args[2] & libc::PROT_EXEC as u64 != 0
                        && result.is_some_and(|r| !(-4095..0).contains(&r))
                        && let Some(Some(file)) = event.file(tag::FD)
                    {
                        add(Point::Mmap, kind::MMAP, false, &|_| {
                            mapped(event.file_path(tag::FD), &file, false)
                        });
                    }
                }
                add(Point::Number(number, leave), kind::NUMBERED_CALL, false, &|_| {
                    const NAMES: [&str; 6] = ["arg1", "arg2", "arg3", "arg4", "arg5", "arg6"];
                    let mut fields: Vec<Field> = result.map(ended).into_iter().collect();
                    fields.push(Field::new(4, "sysno", Value::Uint(number.into())));
                    fields.extend(
                        (5..)
                            .zip(NAMES)
                            .zip(args)
                            .map(|((n, name), arg)| Field::new(n, name, Value::Uint(arg))),
                    );
                    fields.extend(self.extra(event, number, leave, true));
                    fields
                });
            }
        }
        messages
    }

    /// `container/start`, if it is to be told. Takes note of the init.
    pub fn start(&mut self, start: &Start, now: u64, epoch: i64) -> Option<Message> {
        let known = self.containers.get_mut(&start.number)?;
        known.init = Some(start.init);
        let wanted = self.plan.wants(Point::ContainerStart)?;
        let (uid, gid) = start.user;
        let name = start.args.first().and_then(|a| a.rsplit('/').next()).unwrap_or_default();
        let context = Context {
            time: now,
            tid: start.init,
            thread_start: start.made,
            tgid: start.init,
            group_start: start.made,
            container: start.number,
            credentials: [uid, gid, uid, gid, uid, gid],
            cwd: start.cwd.clone(),
            // The kernel's names have 15 bytes.
            name: name.chars().take(15).collect(),
            parent: 0,
            ancestor: start.init,
            containers: &self.containers,
        };
        let env = if wanted.optional.has(0) { start.env.clone() } else { Vec::new() };
        let id = self.containers.get(&start.number).map(|k| k.cid.clone()).unwrap_or_default();
        let fields = context.fields(wanted, epoch).into_iter().chain([
            Field::new(2, "id", Value::Text(id)),
            Field::new(3, "cwd", Value::Text(start.cwd.clone())),
            Field::new(4, "args", Value::Texts(start.args.clone())),
            Field::new(5, "env", Value::Texts(env)),
            Field::new(6, "terminal", Value::Bool(start.terminal)),
        ]);
        Some(Message { kind: kind::CONTAINER_START, point: Point::ContainerStart, fields: fields.collect() })
    }

    /// What is taken for the log alone.
    fn extra(&self, event: &Event<'_>, number: u32, leave: bool, with_path: bool) -> Vec<Field> {
        let Some(extra) = self.plan.extra.get(&number) else { return Vec::new() };
        let side = if leave { &extra.leaving } else { &extra.entering };
        let mut fields = Vec::new();
        if with_path && extra.fd.is_some() {
            fields.push(Field::new(11, "fd_path", Value::Text(event.file_path(tag::FD).unwrap_or_default())));
        }
        for (n, (name, capture)) in (0..).zip(strace::CAPTURED.into_iter().zip(side)) {
            if *capture != Capture::None
                && let Some(item) = event.item(tag::CAPTURE + n)
            {
                fields.push(Field::new(12 + u32::from(n), name, Value::Bytes(item.to_vec())));
            }
        }
        fields
    }

    /// What the context fields say of a process at the other end of a pipe; whether it is an exec session is not known.
    fn other(&self, event: &Event<'_>, other: &Other, mut wanted: Wanted, epoch: i64) -> Option<Field> {
        const SESSION: usize = 10;
        wanted.context = wanted.context.without(SESSION);
        Context {
            time: event.time,
            tid: other.pid,
            thread_start: other.start,
            tgid: other.pid,
            group_start: other.start,
            container: event.container,
            credentials: other.credentials,
            cwd: other.cwd.clone(),
            name: other.name.clone(),
            parent: other.parent,
            ancestor: 0,
            containers: &self.containers,
        }
        .fields(wanted, epoch)
    }

    fn context(&self, event: &Event<'_>, wanted: Wanted, leader: bool, epoch: i64) -> Option<Field> {
        if wanted.context.0 == 0 {
            return None;
        }
        let name = event.name.split(|b| *b == 0).next().unwrap_or_default();
        Context {
            time: event.time,
            tid: if leader { event.tgid } else { event.tid },
            thread_start: if leader { event.group_start } else { event.thread_start },
            tgid: event.tgid,
            group_start: event.group_start,
            container: event.container,
            credentials: event.credentials,
            cwd: if wanted.context.has(7) { event.path(tag::CWD).unwrap_or_default() } else { String::new() },
            name: String::from_utf8_lossy(name).into_owned(),
            parent: event.parent,
            ancestor: event.ancestor,
            containers: &self.containers,
        }
        .fields(wanted, epoch)
    }
}

impl Context<'_> {
    /// `ContextData`, with what is wanted of it, in the order of [`super::points::CONTEXT`].
    fn fields(self, wanted: Wanted, epoch: i64) -> Option<Field> {
        let [uid, gid, suid, sgid, euid, egid] = self.credentials;
        let credentials = [
            ("real_uid", uid),
            ("effective_uid", euid),
            ("saved_uid", suid),
            ("real_gid", gid),
            ("effective_gid", egid),
            ("saved_gid", sgid),
        ];
        let container = self.containers.get(&self.container);
        let is_init = self.containers.values().any(|c| c.init == Some(self.ancestor));
        let int = |n: i32| Value::Int(n.into());
        let all = [
            Field::new(1, "time_ns", since_1970(self.time, epoch)),
            Field::new(2, "thread_id", int(self.tid)),
            Field::new(3, "thread_start_time_ns", since_1970(self.thread_start, epoch)),
            Field::new(4, "thread_group_id", int(self.tgid)),
            Field::new(5, "thread_group_start_time_ns", since_1970(self.group_start, epoch)),
            Field::new(6, "container_id", Value::Text(container.map(|c| c.cid.clone()).unwrap_or_default())),
            Field::new(
                7,
                "credentials",
                Value::Message(
                    (1..)
                        .zip(credentials)
                        .map(|(n, (name, id))| Field::new(n, name, Value::Uint(id.into())))
                        .collect(),
                ),
            ),
            Field::new(8, "cwd", Value::Text(self.cwd)),
            Field::new(9, "process_name", Value::Text(self.name)),
            Field::new(10, "parent_thread_group_id", int(self.parent)),
            Field::new(11, "is_exec_session", Value::Bool(self.ancestor != 0 && !is_init)),
        ];
        let fields: Vec<Field> =
            all.into_iter().enumerate().filter(|(n, _)| wanted.context.has(*n)).map(|(_, f)| f).collect();
        (!fields.is_empty()).then(|| Field::new(1, "context_data", Value::Message(fields)))
    }
}

fn since_1970(since_boot: u64, epoch: i64) -> Value {
    Value::Int(epoch.saturating_add_unsigned(since_boot))
}

fn exit_status(code: u64) -> Field {
    Field::new(2, "exit_status", Value::Int(i64::from(code as i32)))
}

fn cloned(event: &Event<'_>, epoch: i64) -> Vec<Field> {
    let [tid, tgid, start, call, arg, behind, ..] = event.args;
    let made_by = |name: &str| native_number(name).is_some_and(|n| u64::from(n) == call);
    let flags = if made_by("clone") {
        arg
    } else if made_by("clone3") {
        // struct clone_args begins with them.
        behind
    } else if made_by("vfork") {
        (libc::CLONE_VFORK | libc::CLONE_VM | libc::SIGCHLD) as u64
    } else if made_by("fork") {
        libc::SIGCHLD as u64
    } else {
        0
    };
    vec![
        Field::new(3, "created_thread_id", Value::Int(tid as i64)),
        Field::new(4, "created_thread_group_id", Value::Int(tgid as i64)),
        Field::new(5, "created_thread_start_time_ns", since_1970(start, epoch)),
        Field::new(6, "flags", Value::Uint(flags)),
    ]
}

/// Texts with a zero behind each; the last may be cut.
fn block(item: Option<&[u8]>) -> Value {
    let item = item.unwrap_or_default();
    let item = item.strip_suffix(&[0]).unwrap_or(item);
    if item.is_empty() {
        return Value::Texts(Vec::new());
    }
    Value::Texts(item.split(|b| *b == 0).map(text_of).collect())
}

fn ctime(number: u32, name: &'static str, file: &File) -> Field {
    let (sec, nsec) = file.ctime;
    let fields = vec![Field::new(1, "sec", Value::Int(sec)), Field::new(2, "nsec", Value::Int(nsec.into()))];
    Field::new(number, name, Value::Message(fields))
}

fn executed(event: &Event<'_>, found: &Found, wanted: Wanted) -> Vec<Field> {
    let path = event.file_path(tag::FILE).unwrap_or_default();
    let in_memfd = path.starts_with("/memfd:");
    let mut fields = vec![
        Field::new(2, "binary_path", Value::Text(path)),
        Field::new(3, "argv", block(event.item(tag::ARGV))),
        Field::new(4, "env", block(event.item(tag::ENVIRON))),
    ];
    if wanted.optional.has(BINARY_INFO)
        && let Some(Some(file)) = event.file(tag::FILE)
    {
        let uint = |n: u32| Value::Uint(n.into());
        fields.extend([
            Field::new(5, "binary_mode", uint(file.mode)),
            Field::new(6, "binary_uid", uint(file.uid)),
            Field::new(7, "binary_gid", uint(file.gid)),
            Field::new(10, "binary_ino", Value::Uint(file.inode)),
            ctime(11, "binary_ctime", &file),
            Field::new(18, "binary_size", Value::Int(file.size)),
            Field::new(19, "binary_nlink", uint(file.links)),
            Field::new(20, "binary_in_memfd", Value::Bool(in_memfd)),
        ]);
    }
    if let Some(digests) = &found.digests {
        fields.push(Field::new(8, "binary_sha256", Value::Bytes(digests.sha256.clone())));
        fields.push(Field::new(16, "binary_sha1", Value::Bytes(digests.sha1.clone())));
    }
    if wanted.optional.has(FD_INFO) {
        for (n, name) in (0u16..).zip(["stdin", "stdout", "stderr"]) {
            if let Some(Some(file)) = event.file(tag::STDIO + n) {
                let mut info = vec![
                    Field::new(1, "mode", Value::Uint(file.mode.into())),
                    Field::new(2, "ino", Value::Uint(file.inode)),
                    Field::new(3, "path", Value::Text(event.file_path(tag::STDIO + n).unwrap_or_default())),
                ];
                info.extend(
                    event.socket(tag::STDIO + n).map(|socket| Field::new(4, "socket", addresses(socket))),
                );
                fields.push(Field::new(12 + u32::from(n), name, Value::Message(info)));
            }
        }
    }
    fields.push(Field::new(
        17,
        "execfn",
        Value::Text(event.item(tag::FILENAME).map(text_of).unwrap_or_default()),
    ));
    fields
}

/// `SocketInfo`.
fn addresses(socket: Socket) -> Value {
    let uint = |n: u16| Value::Uint(n.into());
    let mut fields = vec![Field::new(1, "family", uint(socket.family))];
    for (n, name, end) in [(2, "local", socket.local), (3, "remote", socket.remote)] {
        fields.extend(end.map(|(ip, port)| {
            let address = vec![
                Field::new(1, "family", uint(socket.family)),
                Field::new(2, "ip", Value::Bytes(ip)),
                Field::new(3, "port", uint(port)),
            ];
            Field::new(n, name, Value::Message(address))
        }));
    }
    Value::Message(fields)
}

fn mapped(path: Option<String>, file: &File, initial: bool) -> Vec<Field> {
    let uint = |n: u32| Value::Uint(n.into());
    vec![
        Field::new(2, "mapped_path", Value::Text(path.unwrap_or_default())),
        Field::new(3, "mapped_ino", Value::Uint(file.inode)),
        Field::new(4, "mapped_mode", uint(file.mode)),
        Field::new(5, "mapped_uid", uint(file.uid)),
        Field::new(6, "mapped_gid", uint(file.gid)),
        Field::new(7, "is_initial_mmap", Value::Bool(initial)),
        ctime(8, "mapped_ctime", file),
    ]
}

/// `Exit`. A call that a signal interrupts says so in numbers that programs never see; they see `EINTR`.
fn ended(result: i64) -> Field {
    const RESTART: std::ops::RangeInclusive<i64> = -516..=-512;
    let result = if RESTART.contains(&result) { -i64::from(libc::EINTR) } else { result };
    let errno = if (-4095..0).contains(&result) { -result } else { 0 };
    let fields =
        vec![Field::new(1, "result", Value::Int(result)), Field::new(2, "errorno", Value::Int(errno))];
    Field::new(2, "exit", Value::Message(fields))
}

fn named_call(
    event: &Event<'_>,
    call: &Call,
    number: u32,
    args: [u64; 6],
    result: Option<i64>,
    wanted: Wanted,
) -> Vec<Field> {
    let optional =
        |name: &str| call.optional().iter().position(|f| *f == name).is_some_and(|n| wanted.optional.has(n));
    let capture = |tag: u16| Some(usize::from(tag.checked_sub(tag::CAPTURE).filter(|n| *n < 3)?));
    let seen = Seen {
        args,
        result,
        fd_path: if optional("fd_path") { event.file_path(tag::FD) } else { None },
        captured: event.items().filter_map(|(tag, item)| Some((capture(tag)?, item))).collect(),
        envv: optional("envv"),
    };
    let mut fields: Vec<Field> = result.map(ended).into_iter().collect();
    fields.push(Field::new(3, "sysno", Value::Uint(number.into())));
    fields.extend((call.tell)(&seen));
    fields
}

#[cfg(test)]
mod tests;
