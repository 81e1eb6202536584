use super::*;

fn parser_of(name: &str) -> (clap::Command, Tail) {
    let tail = match name {
        "do" | "spec" => Tail::After(0),
        "exec" => Tail::After(1),
        "supervisor" => Tail::After(4),
        "ps" => Tail::Ps,
        _ => Tail::None,
    };
    let tree = Cli::command();
    (tree.find_subcommand(name).unwrap().clone(), tail)
}

fn globals() -> clap::Command {
    GlobalArgs::augment_args(clap::Command::new("airlock"))
}

/// Splits and parses a command line as `main` does; the command's name and its matches.
fn parse_line(line: &str) -> Result<(GlobalArgs, String, clap::ArgMatches)> {
    let words = line.split(' ').map(|word| OsString::from(word.replace("\\s", " ").replace("''", "")));
    let split = argv::split(&globals(), words)?;
    let global: GlobalArgs = parse(globals(), split.globals)?;
    let name = split.command.unwrap().into_string().unwrap();
    let (parser, tail) = parser_of(&name);
    let rest = argv::normalise(&parser, &globals(), split.rest, tail)?;
    let parser = parser.no_binary_name(true).args_override_self(true);
    let matches = parser
        .try_get_matches_from(rest)
        .map_err(|e| Error::invalid_argument(usage_message(&e.to_string())))?;
    Ok((global, name, matches))
}

fn args_of<T: FromArgMatches>(line: &str) -> T {
    T::from_arg_matches(&parse_line(line).unwrap().2).unwrap()
}

/// Every command line of `oci-runtime-cli.md` and seed 004.
#[test]
fn command_lines_of_real_callers_parse() {
    for line in [
        // containerd's shim
        "--root /run/containerd/runc/ns --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid c1",
        "--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --console-socket /s \
         --no-pivot --no-new-keyring c1",
        "start c1",
        "delete c1",
        "delete --force c1",
        "kill c1 9",
        "kill --all c1 9",
        "exec --process /f --console-socket /s --detach --pid-file /p c1",
        "pause c1",
        "resume c1",
        "ps --format json c1",
        "update --resources=- c1",
        "update --resources - c1",
        "features",
        // go-runc
        "state c1",
        "list --format=json",
        "events --stats c1",
        "events --interval=5s c1",
        "ps --format table c1 -ef",
        "ps --format table c1 -o pid,comm",
        "run --bundle /b --detach --pid-file /p --no-subreaper c1",
        "run --bundle /b -no-subreaper c1",
        "run --pidfd-socket /s --bundle /b c1",
        "create --pidfd-socket /s --bundle /b c1",
        "exec --pidfd-socket /s --process /p c1",
        // conmon
        "--systemd-cgroup create --bundle /b --pid-file /p --no-pivot --no-new-keyring --console-socket /s c1",
        "exec --pid-file /p --process /j --detach --preserve-fds 3 --console-socket /s c1",
        // podman
        "kill --all c1 15",
        "update --resources=/f c1",
        // runc's own
        "exec --cwd / -e A=b -t -u 1:2 -g 3 --process-label l --apparmor p --no-new-privs --cap CAP_KILL --cgroup a/b \
         --ignore-paused --preserve-fds 1 c1 sh -c true",
        "run --keep --no-subreaper -d c1",
        "spec -b /b --rootless",
        "list -q",
        "delete -f c1",
        "kill c1",
        "kill c1 TERM",
        "kill c1 SIGKILL",
        "update --memory 512m --memory-reservation 1g --memory-swap -1 --cpu-period 1000 --cpu-quota -1 --cpu-share 2 \
         --cpu-burst 3 --cpu-idle 1 --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit 10 c1",
        "update -r - c1",
        // seed 004
        "--root=/r --log=/l --log-format=json --panic-log=/p list --format=json",
        "create --bundle /b --pid-file /p --console-socket /s --user-log /u c1",
        "exec --process /f --console-socket /s --detach --pid-file /p --internal-pid-file /i c1",
        "kill --pid 5 c1 9",
        "wait c1",
        "wait -pid 5 c1",
        // Go spellings and odd orders
        "-root /r -log-format=json state c1",
        "--debug=true --systemd-cgroup=false state c1",
        "create c1 -bundle /b -pid-file=/p",
        "run c1 --detach=false -keep",
        "exec c1 -t sh -c true",
        "exec -user 1 -cwd=/ c1 ls -l --color",
        "exec c1 -- ls -l",
        "delete c1 -force",
        "kill -all c1 KILL",
        "list -format json",
        "create --pass-fd 5:3 --pass-fd=6 --exec-fd 7 c1",
        "do ls -l /",
        "do --cwd /tmp -e A=b -network host -- ls --help",
        "call --list",
        "call --sandbox c1 containerManager.Processes \"c1\"",
        "call --socket @runsc-sandbox.c1 --fd 3 --fd 4 debug.Stacks",
        "call --socket /s A.B -1",
        "completions bash",
        "man",
    ] {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Err(e) = parse_line(&line) {
            panic!("{line}: {e}");
        }
    }
}

#[test]
fn what_is_not_understood_is_refused_with_a_hint() {
    for (line, hint) in [
        ("--platform=kvm run c1", "unknown option '--platform'"),
        ("--debg state c1", "did you mean --debug"),
        ("--roots /x state c1", "--root"),
        ("state c1 --root /x", "goes before the command"),
        ("state --log-format=json c1", "goes before the command"),
        ("create --bundel /b c1", "--bundle"),
        ("create --bundle", "needs a value"),
        ("create --detach c1", "unknown option '--detach' of 'create'"),
        ("run --detach=maybe c1", "true or false"),
        ("state", "ID"),
        ("state c1 c2", "c2"),
        ("exec -u 01 c1 ls", "not a plain number"),
        ("kill c1 NOPE", "unknown signal"),
        ("kill --all --pid 3 c1 9", "--pid"),
        ("--rootless=maybe state c1", "maybe"),
        ("call", "METHOD"),
        ("run -dx c1", "unknown option '-dx'"),
    ] {
        let error = parse_line(line).map(|_| ()).unwrap_err();
        assert!(error.message.contains(hint), "{line}: {error}");
        assert!(!error.message.contains('\n'), "{line}: {error}");
    }
}

#[test]
fn words_after_the_command_are_the_commands_own() {
    let exec: cli::ExecArgs = args_of("exec -t c1 sh -c x --detach -u 5");
    assert_eq!(exec.command, ["sh", "-c", "x", "--detach", "-u", "5"]);
    assert!(exec.tty && !exec.detach && exec.user.is_none());
    let exec: cli::ExecArgs = args_of("exec c1 -dt -u5:6 -- -odd --detach");
    assert_eq!(exec.command, ["-odd", "--detach"]);
    assert!(exec.tty && exec.detach);
    assert_eq!(exec.user, Some((5, Some(6))));
    let exec: cli::ExecArgs = args_of("exec --process /f c1");
    assert!(exec.command.is_empty());
    let run: cli::DoArgs = args_of("do -e A=1 -e B=2 ls -e --cwd -- x");
    assert_eq!(run.command, ["ls", "-e", "--cwd", "--", "x"]);
    assert_eq!(run.env.len(), 2);
    let ps: cli::PsArgs = args_of("ps c1 -o pid,cmd --format x");
    assert_eq!(ps.options, ["-o", "pid,cmd", "--format", "x"]);
    let ps: cli::PsArgs = args_of("ps c1 --format json");
    assert!(ps.options.is_empty() && ps.format == cli::TableFormat::Json);
    let ps: cli::PsArgs = args_of("ps c1 -f");
    assert_eq!(ps.options, ["-f"]);
    let ps: cli::PsArgs = args_of("ps c1 -f json");
    assert!(ps.format == cli::TableFormat::Json);
}

#[test]
fn values_may_look_like_options_and_the_last_one_counts() {
    let update: cli::UpdateArgs = args_of("update --cpu-quota -1 --memory-swap -1 c1");
    assert_eq!((update.cpu_quota, update.memory_swap), (Some(-1), Some(-1)));
    let create: cli::CreateArgs = args_of("create -b /a --bundle=/b -b=/c c1");
    assert_eq!(create.container.bundle.to_str(), Some("/c"));
    let create: cli::CreateArgs = args_of("create --console-socket --weird -- -c1");
    assert_eq!(create.container.id, "-c1");
    assert_eq!(create.container.console_socket.unwrap().to_str(), Some("--weird"));
    let run: cli::RunArgs = args_of("run --detach --detach=false --keep=false --keep c1");
    assert!(!run.detach && run.keep);
    let kill: cli::KillArgs = args_of("kill ''");
    assert_eq!((kill.id.as_str(), kill.signal), ("", 15));
    let (global, _, _) = parse_line("--root /a --root=/b -debug state c1").unwrap();
    assert_eq!(global.root.unwrap().to_str(), Some("/b"));
    assert!(global.debug);
    let call: cli::CallArgs = args_of("call --socket /s A.B -5");
    assert_eq!(call.argument, "-5");
}

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
    globals().debug_assert();
    for command in Cli::command().get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty(), "{} has no description", command.get_name());
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {} has no help", command.get_name(), arg.get_id());
        }
    }
}

#[test]
fn version_and_help_are_found_before_the_command() {
    let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    assert!(argv::split(&globals(), words("--version")).unwrap().version);
    assert!(argv::split(&globals(), words("-v")).unwrap().version);
    let split = argv::split(&globals(), words("--root /x --help")).unwrap();
    assert!(split.help && split.command.is_none());
}
