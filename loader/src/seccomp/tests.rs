//! The compiled program, run by an interpreter, must agree with a plain reading of the profile.

pub(super) mod kernel;
pub(super) mod naive;

use super::arch::{AUDIT_AARCH64, AUDIT_I386, AUDIT_X86_64, X32_BIT};
use super::*;
use naive::{Call, evaluate, run};
use proptest::prelude::*;
use serde_json::{Value, json};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;

pub(super) fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

pub(super) fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).expect("a profile")
}

pub(super) fn fixture(name: &str) -> LinuxSeccomp {
    let path = format!("{}/../tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).expect("a profile")
}

fn number(name: &str, column: usize) -> u32 {
    let call = syscalls::lookup(name).unwrap_or_else(|| panic!("{name} is unknown"));
    call.number(column).unwrap_or_else(|| panic!("{name} has no number in column {column}")).into()
}

fn native(name: &str, args: [u64; 6]) -> Call {
    Call { arch: AUDIT_X86_64, nr: number(name, 0), args }
}

/// Compiles, runs, and compares with the naive reading before it returns the action.
fn answer(profile: &LinuxSeccomp, call: Call) -> u32 {
    let program = compile(profile, &Options::default()).expect("compiles");
    let action = run(&program.filter, &call);
    assert_eq!(action, evaluate(profile, &call), "{call:x?}");
    action
}

/// Calls around everything that `profile` can tell apart, with each of `args`.
fn calls(profile: &LinuxSeccomp, args: &[[u64; 6]]) -> Vec<Call> {
    let mut numbers =
        vec![0, 1, 500, 999, X32_BIT - 1, X32_BIT, X32_BIT + 999, 0x7fff_ffff, u32::MAX - 1, u32::MAX];
    for name in profile.syscalls().iter().flatten().flat_map(|rule| rule.names()) {
        let Some(call) = syscalls::lookup(name) else { continue };
        for column in 0..4 {
            let Some(nr) = call.number(column).map(u32::from) else { continue };
            for nr in [nr.saturating_sub(1), nr, nr + 1] {
                numbers.extend([nr, nr | X32_BIT]);
            }
        }
    }
    numbers.extend([102, 117]);
    numbers.sort_unstable();
    numbers.dedup();
    let archs = [AUDIT_X86_64, AUDIT_I386, AUDIT_AARCH64, 0];
    archs
        .into_iter()
        .flat_map(|arch| numbers.iter().map(move |&nr| (arch, nr)))
        .flat_map(|(arch, nr)| args.iter().map(move |&args| Call { arch, nr, args }))
        .collect()
}

#[test]
fn real_profiles_mean_what_they_say() {
    for name in ["seccomp-docker-default.json", "seccomp-podman-default.json"] {
        let profile = fixture(name);
        let program = compile(&profile, &Options::default()).expect("compiles");
        codegen::check(&program.filter).expect("is well formed");
        assert!(program.filter.len() < 900, "{name}: {} instructions", program.filter.len());
        let values =
            [0, 1, 8, 9, 11, 12, 16, 38, 40, 0x2_0008, 0x7e02_0000, u64::from(u32::MAX), 1 << 32, u64::MAX];
        let args: Vec<[u64; 6]> =
            values.iter().flat_map(|&a| [[a, 0, 0, 0, 0, 0], [a, 0, 9, 0, 0, 0]]).collect();
        for call in calls(&profile, &args) {
            assert_eq!(run(&program.filter, &call), evaluate(&profile, &call), "{name}: {call:x?}");
        }
    }
}

#[test]
fn docker_default_in_particular() {
    let docker = fixture("seccomp-docker-default.json");
    assert_eq!(answer(&docker, native("read", [0; 6])), ALLOW);
    assert_eq!(answer(&docker, native("mount", [0; 6])), errno(libc::EPERM));
    assert_eq!(answer(&docker, native("clone3", [0; 6])), errno(libc::ENOSYS));
    assert_eq!(answer(&docker, native("clone", [libc::SIGCHLD as u64, 0, 0, 0, 0, 0])), ALLOW);
    let newuser = [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0];
    assert_eq!(answer(&docker, native("clone", newuser)), errno(libc::EPERM));
    assert_eq!(answer(&docker, native("socket", [2, 1, 0, 0, 0, 0])), ALLOW);
    assert_eq!(answer(&docker, native("socket", [40, 1, 0, 0, 0, 0])), errno(libc::EPERM));
    assert_eq!(answer(&docker, native("socket", [2 | 1 << 32, 1, 0, 0, 0, 0])), errno(libc::EPERM));
    let newer = Call { arch: AUDIT_X86_64, nr: 468, args: [0; 6] };
    assert_eq!(answer(&docker, newer), errno(libc::ENOSYS), "newer than setxattrat");
    let arm = Call { arch: AUDIT_AARCH64, nr: 0, args: [0; 6] };
    assert_eq!(answer(&docker, arm), KILL);
}

#[test]
fn podman_default_in_particular() {
    let podman = fixture("seccomp-podman-default.json");
    // CAP_AUDIT_WRITE is not among podman's capabilities: audit sockets get EINVAL, others are allowed.
    assert_eq!(answer(&podman, native("socket", [16, 3, 9, 0, 0, 0])), errno(libc::EINVAL));
    assert_eq!(answer(&podman, native("socket", [16, 3, 0, 0, 0, 0])), ALLOW);
    assert_eq!(answer(&podman, native("kexec_load", [0; 6])), errno(libc::EPERM));
    assert_eq!(answer(&podman, native("mseal", [0; 6])), errno(libc::ENOSYS));
}

#[test]
fn every_action_becomes_the_kernels() {
    for (name, value, data) in [
        ("SCMP_ACT_KILL", KILL, None),
        ("SCMP_ACT_KILL_THREAD", KILL, None),
        ("SCMP_ACT_KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS, None),
        ("SCMP_ACT_TRAP", libc::SECCOMP_RET_TRAP, None),
        ("SCMP_ACT_ERRNO", errno(libc::EPERM), None),
        ("SCMP_ACT_ERRNO", errno(libc::EINVAL), Some(libc::EINVAL)),
        ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE | 1, None),
        ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE | 7, Some(7)),
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG, None),
        ("SCMP_ACT_NOTIFY", libc::SECCOMP_RET_USER_NOTIF, None),
    ] {
        let mut rule = json!({"names": ["getppid"], "action": name});
        if let Some(data) = data {
            rule["errnoRet"] = data.into();
        }
        let one = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
        assert_eq!(answer(&one, native("getppid", [0; 6])), value, "{name}");
        assert_eq!(answer(&one, native("getpid", [0; 6])), ALLOW, "{name}");
        let program = compile(&one, &Options::default()).expect("compiles");
        assert_eq!(program.needs_listener, name == "SCMP_ACT_NOTIFY");
    }
}

#[test]
fn rules_without_arguments_win_and_the_first_of_them() {
    let value = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["socket"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
        {"names": ["socket"], "action": "SCMP_ACT_LOG"},
    ]});
    assert_eq!(answer(&profile(value), native("socket", [1, 0, 0, 0, 0, 0])), errno(5));
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_others_conjunctive() {
    let args = |second: u32| json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": second, "value": 2, "op": "SCMP_CMP_EQ"}]);
    let rule = |second| {
        profile(json!({"defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args(second)}]}))
    };
    let both = rule(1);
    assert_eq!(answer(&both, native("socket", [1, 2, 0, 0, 0, 0])), ALLOW);
    assert_eq!(answer(&both, native("socket", [1, 3, 0, 0, 0, 0])), errno(libc::EPERM));
    let either = rule(0);
    for first in [1, 2] {
        assert_eq!(answer(&either, native("socket", [first, 9, 0, 0, 0, 0])), ALLOW);
    }
    assert_eq!(answer(&either, native("socket", [3, 9, 0, 0, 0, 0])), errno(libc::EPERM));
}

#[test]
fn i386_cannot_go_around_a_rule_by_multiplexing() {
    let value = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
        {"names": ["socket", "semop", "send"], "action": "SCMP_ACT_ERRNO"},
    ]});
    let denied = profile(value);
    let call = |nr, first| Call { arch: AUDIT_I386, nr, args: [first, 0, 0, 0, 0, 0] };
    let (socketcall, ipc) = (number("socketcall", 1), number("ipc", 1));
    for (nr, first) in [(359, 0), (socketcall, 1), (socketcall, 9), (ipc, 1), (ipc, 1 | 3 << 16)] {
        assert_eq!(answer(&denied, call(nr, first)), errno(libc::EPERM), "{nr} {first}");
    }
    assert_eq!(answer(&denied, call(socketcall, 2)), ALLOW);
    assert_eq!(answer(&denied, call(ipc, 2)), ALLOW);
}

#[test]
fn skipped_calls_get_the_default_action() {
    let value = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]});
    let call = |nr| Call { arch: AUDIT_X86_64, nr, args: [0; 6] };
    assert_eq!(answer(&profile(value.clone()), call(u32::MAX)), ALLOW);
    assert_eq!(answer(&profile(value), call(X32_BIT | 39)), KILL, "x32 is not covered");
}

#[test]
fn flags_are_the_kernels() {
    let flags = |value: Value| {
        let mut text = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]});
        if !value.is_null() {
            text["flags"] = value;
        }
        compile(&profile(text), &Options::default()).expect("compiles").flags
    };
    assert_eq!(flags(Value::Null), 4, "SPEC_ALLOW unless the profile says something");
    assert_eq!(flags(json!([])), 0);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"])), 2);
    assert_eq!(
        flags(json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
        4 | 32
    );
}

#[test]
fn bad_profiles_are_refused_by_name() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
    let cases = [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "defaultErrnoRet"),
        (json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}), "defaultErrnoRet"),
        (rule(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})), "write syscall"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1})), "syscalls[0].errnoRet"),
        (rule(json!({"names": [""], "action": "SCMP_ACT_ALLOW"})), "syscalls[0].names"),
        (rule(json!({"names": [], "action": "SCMP_ACT_ALLOW"})), "syscalls[0].names"),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "args[0].index",
        ),
    ];
    for (value, part) in cases {
        let error = compile(&profile(value.clone()), &Options::default()).expect_err(part).to_string();
        assert!(error.contains(part), "{value}: {error}");
    }
    let unknown = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_VAX"]});
    assert!(serde_json::from_value::<LinuxSeccomp>(unknown).is_err(), "unknown names fail already as JSON");
}

#[test]
fn a_profile_that_the_kernel_would_refuse_is_refused() {
    let rules: Vec<Value> = (0..2000)
        .map(|i| {
            json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": i * 7 + (1u64 << 40), "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let value = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules});
    let error = compile(&profile(value), &Options::default()).expect_err("is too large");
    assert!(matches!(error, SeccompError::TooLarge { instructions } if instructions > 4096));
}

#[test]
fn long_jumps_arrive() {
    // Each of these calls needs several hundred instructions: every jump across them is a long one.
    let rule = |name: &str, arg: u64| {
        let values =
            (0..100u64).map(|v| json!({"index": arg, "value": v * 3 + (v << 33), "op": "SCMP_CMP_EQ"}));
        json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": values.collect::<Vec<_>>()})
    };
    let far = profile(json!({"defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [rule("read", 0), rule("open", 1), rule("ioctl", 2), {"names": ["close", "mkdir"], "action": "SCMP_ACT_ALLOW"}]}));
    let program = compile(&far, &Options::default()).expect("compiles");
    assert!(program.filter.len() > 1200);
    let args: Vec<[u64; 6]> = [0, 3, 3 + (1 << 33), 297 + (99 << 33), 297, 5].map(|v| [v; 6]).to_vec();
    for call in calls(&far, &args) {
        assert_eq!(run(&program.filter, &call), evaluate(&far, &call), "{call:x?}");
    }
}

#[test]
fn jumps_of_every_length_arrive() {
    // Rules of four and of three instructions: together they make every distance around the longest jump.
    for (fours, threes) in (50..70).flat_map(|a| (0..4).map(move |b| (a, b))) {
        let four = |v: u64| json!([{"index": 0, "value": v + (v << 32), "op": "SCMP_CMP_EQ"}]);
        let three = |v: u64| json!([{"index": 1, "value": 0xff, "valueTwo": v, "op": "SCMP_CMP_MASKED_EQ"}]);
        let args = (1..=fours).map(four).chain((1..=threes).map(three));
        let mut rules: Vec<Value> =
            args.map(|a| json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": a})).collect();
        rules.push(json!({"names": ["write", "close"], "action": "SCMP_ACT_LOG"}));
        let one = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
        let program = compile(&one, &Options::default()).expect("compiles");
        for first in [0, 1 + (1 << 32), fours + (fours << 32)] {
            for call in calls(&one, &[[first, 0, 0, 0, 0, 0], [first, threes, 0, 0, 0, 0]]) {
                assert_eq!(run(&program.filter, &call), evaluate(&one, &call), "{fours} {threes} {call:x?}");
            }
        }
    }
}

#[test]
fn encoding_is_reversible_and_checked() {
    let program = compile(&fixture("seccomp-docker-default.json"), &Options::default()).expect("compiles");
    let bytes = program.to_bytes();
    let back = Program::from_bytes(&bytes).expect("decodes");
    assert_eq!(back.to_bytes(), bytes);
    assert_eq!((back.flags, back.needs_listener), (program.flags, program.needs_listener));
    for end in 0..bytes.len() {
        // Half a program is hardly ever one: its last instruction must be a return.
        if let Ok(short) = Program::from_bytes(&bytes[..end]) {
            codegen::check(&short.filter).expect("what passes is well formed");
        }
    }
    let mut listener = bytes.clone();
    listener[8] = 1;
    assert!(Program::from_bytes(&listener).is_err());
    let mut flags = bytes;
    flags[4] = 8;
    assert!(Program::from_bytes(&flags).is_err());
}

const NAMES: [&str; 16] = [
    "read",
    "write",
    "open",
    "socket",
    "socketcall",
    "accept",
    "send",
    "ipc",
    "semop",
    "mmap2",
    "clone",
    "setuid32",
    "futex",
    "mseal",
    "no_such_call",
    "execve",
];
const VALUES: [u64; 10] = [
    0,
    1,
    5,
    0xff,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0005,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_0000_0000,
    u64::MAX,
];

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => prop::sample::select(VALUES.to_vec()), 1 => any::<u64>()]
}

fn any_action() -> impl Strategy<Value = (String, Option<u32>)> {
    prop_oneof![
        Just(("SCMP_ACT_ALLOW".to_owned(), None)),
        Just(("SCMP_ACT_KILL_PROCESS".to_owned(), None)),
        Just(("SCMP_ACT_LOG".to_owned(), None)),
        prop::option::of(0u32..4096).prop_map(|e| ("SCMP_ACT_ERRNO".to_owned(), e)),
        prop::option::of(0u32..4096).prop_map(|e| ("SCMP_ACT_TRACE".to_owned(), e)),
    ]
}

fn any_arg() -> impl Strategy<Value = Value> {
    let ops = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    (0..3u32, any_value(), prop::option::of(any_value()), prop::sample::select(ops.to_vec())).prop_map(
        |(index, value, two, op)| {
            let mut arg = json!({"index": index, "value": value, "op": format!("SCMP_CMP_{op}")});
            if let Some(two) = two {
                arg["valueTwo"] = two.into();
            }
            arg
        },
    )
}

fn any_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let rule = (
        prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4),
        any_action(),
        prop::collection::vec(any_arg(), 0..4),
    )
        .prop_map(|(names, (action, errno), args)| {
            let mut rule = json!({"names": names, "action": action, "args": args});
            if let Some(errno) = errno {
                rule["errnoRet"] = errno.into();
            }
            rule
        });
    let archs = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_NATIVE"];
    (any_action(), prop::collection::vec(rule, 0..8), prop::sample::subsequence(archs.to_vec(), 0..=5))
        .prop_map(|((action, errno), syscalls, architectures)| {
            let mut value =
                json!({"defaultAction": action, "syscalls": syscalls, "architectures": architectures});
            if let Some(errno) = errno {
                value["defaultErrnoRet"] = errno.into();
            }
            profile(value)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_agree_with_profiles(
        profile in any_profile(),
        args in prop::collection::vec(prop::array::uniform6(any_value()), 1..6),
    ) {
        let program = compile(&profile, &Options::default()).expect("compiles");
        prop_assert_eq!(codegen::check(&program.filter), Ok(()));
        for call in calls(&profile, &args) {
            let expected = evaluate(&profile, &call);
            prop_assert_eq!(run(&program.filter, &call), expected, "{:x?}", call);
        }
    }

    #[test]
    fn decoding_never_panics_and_lets_only_sound_programs_through(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        header in any::<bool>(),
    ) {
        if header && bytes.len() > HEADER {
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[4..HEADER].fill(0);
        }
        if let Ok(program) = Program::from_bytes(&bytes) {
            prop_assert_eq!(codegen::check(&program.filter), Ok(()));
            run(&program.filter, &Call { arch: 0, nr: 0, args: [0; 6] });
        }
    }
}
