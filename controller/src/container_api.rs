//! `ContainerApi` and `Container`: lmctfy's interface, over a [`Machine`]. The same handlers serve a sandbox and
//! `airlock machine serve`.

use airlock_loader::loader::Loader;
use airlock_loader::machine::{Machine, Name, Program};
use airlock_wire::api::container::api::{Create, Destroy, Detect, Get, InitMachine};
use airlock_wire::api::container::spec::FdPolicy;
use airlock_wire::api::container::status::{Code, coded};
use airlock_wire::api::container::{
    ContainerName, Enter, Exec, GetInitPid, KillAll, ListProcesses, ListSubcontainers, ListThreads, Pause,
    Pid, RegisterNotification, Resume, Run, RunArgs, Spec, Stats, UnregisterNotification, Update, Wait,
};
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::error::Result;
use airlock_wire::method::Method;
use airlock_wire::registry::{Call, Registry};
use std::sync::Arc;

/// Finds the tree; a sandbox makes its own at the first call.
pub type Source = Arc<dyn Fn() -> Result<Arc<Machine>> + Send + Sync>;

pub(crate) fn register_sandbox(registry: &mut Registry, loader: &Arc<Loader>) {
    let loader = loader.clone();
    let source: Source = Arc::new(move || loader.machine());
    register(registry, &source);
}

/// Answers `M`; its errors get lmctfy's codes.
fn on<M: Method + 'static>(
    registry: &mut Registry,
    source: &Source,
    handler: impl Fn(&Machine, &mut Call<'_>, M::Arg) -> Result<M::Reply> + Send + Sync + 'static,
) {
    let source = source.clone();
    registry.on::<M>(move |call, arg| {
        let answer = source().and_then(|machine| handler(&machine, call, arg));
        answer.map_err(coded)
    });
}

/// Answers the methods of both receivers for the tree of `source`.
pub fn register(registry: &mut Registry, source: &Source) {
    on::<InitMachine>(registry, source, |m, _, Json(spec)| m.init(&spec).map(|()| Empty {}));
    on::<Get>(registry, source, |m, call, args| {
        let name = named(m, call, &args.name)?;
        m.get(&name).map(|()| answer(&name))
    });
    on::<Create>(registry, source, |m, call, Json(args)| {
        let name = named(m, call, &args.name)?;
        m.create(&name, &args.spec).map(|()| answer(&name))
    });
    on::<Destroy>(registry, source, |m, call, args| done(m.destroy(&named(m, call, &args.name)?)));
    on::<Detect>(registry, source, |m, call, args| {
        let tid = if args.tid == 0 { caller(call)? } else { args.tid };
        m.detect(tid).map(|name| answer(&name))
    });
    on::<Update>(registry, source, |m, call, Json(args)| {
        done(m.update(&named(m, call, &args.name)?, &args.spec, args.policy))
    });
    on::<Enter>(registry, source, |m, call, args| {
        let name = named(m, call, &args.name)?;
        let (own, tids): (Vec<i32>, Vec<i32>) = args.tids.into_iter().partition(|tid| *tid == 0);
        m.enter(&name, &tids)?;
        if own.is_empty() { Ok(Empty {}) } else { done(m.enter_process(&name, caller(call)?)) }
    });
    on::<Run>(registry, source, |m, call, Json(args)| run(m, call, args));
    on::<Wait>(registry, source, |m, call, args| m.wait(args.pid, &|fd| call.wait_readable(fd)));
    on::<Exec>(registry, source, |m, call, args| {
        done(m.enter_process(&named(m, call, &args.name)?, caller(call)?))
    });
    on::<Spec>(registry, source, |m, call, args| m.spec(&named(m, call, &args.name)?).map(Json));
    on::<ListSubcontainers>(registry, source, |m, call, args| {
        let names = m.subcontainers(&named(m, call, &args.name)?, args.policy)?;
        Ok(names.iter().map(Name::to_string).collect())
    });
    on::<ListThreads>(registry, source, |m, call, args| m.threads(&named(m, call, &args.name)?, args.policy));
    on::<ListProcesses>(registry, source, |m, call, args| {
        m.processes(&named(m, call, &args.name)?, args.policy)
    });
    on::<Pause>(registry, source, |m, call, args| done(m.pause(&named(m, call, &args.name)?, true)));
    on::<Resume>(registry, source, |m, call, args| done(m.pause(&named(m, call, &args.name)?, false)));
    on::<Stats>(registry, source, |m, call, args| m.stats(&named(m, call, &args.name)?, args.kind).map(Json));
    on::<RegisterNotification>(registry, source, |m, call, Json(args)| {
        if call.fd_count() != 1 {
            return Err(Code::InvalidArgument.error(format_args!(
                "{} descriptors came: a notification needs one to write to",
                call.fd_count()
            )));
        }
        let out = call.take_fd(0)?;
        m.register(&named(m, call, &args.name)?, &args.spec, out)
    });
    on::<UnregisterNotification>(registry, source, |m, call, args| {
        done(m.unregister(&named(m, call, &args.name)?, args.notification_id))
    });
    on::<KillAll>(registry, source, |m, call, args| done(m.kill_all(&named(m, call, &args.name)?)));
    on::<GetInitPid>(registry, source, |m, call, args| m.init_pid(&named(m, call, &args.name)?));
}

fn named(machine: &Machine, call: &Call<'_>, name: &str) -> Result<Name> {
    machine.resolve(call.peer().pid, name)
}

fn answer(name: &Name) -> ContainerName {
    ContainerName { name: name.to_string() }
}

fn done(result: Result<()>) -> Result<Empty> {
    result.map(|()| Empty {})
}

fn caller(call: &Call<'_>) -> Result<i32> {
    match call.peer().pid {
        pid @ 1.. => Ok(pid),
        _ => Err(Code::FailedPrecondition
            .error("the server cannot see the calling process: it is outside of its pid namespace")),
    }
}

fn run(machine: &Machine, call: &mut Call<'_>, args: RunArgs) -> Result<Pid> {
    let refused = [
        (
            "console",
            args.spec.console.is_some(),
            "lmctfy never implemented it; donate a terminal's descriptors",
        ),
        (
            "apparmor_profile",
            args.spec.apparmor_profile.is_some(),
            "no machine at hand has AppArmor to show that it works",
        ),
    ];
    if let Some((field, _, why)) = refused.iter().find(|(_, given, _)| *given) {
        return Err(Code::Unimplemented.error(format_args!("{field}: {why}; leave it out")));
    }
    let count = call.fd_count();
    let stdio = match args.spec.fd_policy.unwrap_or(FdPolicy::Inherit) {
        FdPolicy::Unknown => return Err(Code::InvalidArgument.error("fd_policy UNKNOWN is no policy")),
        FdPolicy::Inherit => Some(<[_; 3]>::try_from(call.take_fds()).map_err(|_| {
            Code::InvalidArgument
                .error(format_args!("{count} descriptors came: INHERIT needs stdin, stdout and stderr"))
        })?),
        FdPolicy::Detached if count > 0 => {
            return Err(
                Code::InvalidArgument.error(format_args!("{count} descriptors came: DETACHED takes none"))
            );
        }
        FdPolicy::Detached => None,
    };
    let name = named(machine, call, &args.name)?;
    let program = Program { command: args.command, env: args.env, cwd: args.cwd, stdio };
    let running = machine.run(&name, program)?;
    call.reply_fd(running.pidfd);
    Ok(Pid { pid: running.pid })
}
