//! `Supervisor`: domains and the named processes in them (`docs/SUPERVISOR.md`).
#![forbid(unsafe_code)]

use crate::container_manager::killer;
use airlock_loader::boot::FdTable;
use airlock_loader::loader::{ContainerParts, DeliveryMode, Loader};
use airlock_wire::api::supervisor::{
    Configure, Define, DefineArgs, Domains, Events, Exec, Exit, Freeze, FreezeResponse, Kill, Ping, Start,
    Stop, StopResponse, Terminate, Thaw,
};
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::{Call, Registry};
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Define>(move |call, args| define(&l, call, args));
    let l = loader.clone();
    registry.on::<Configure>(move |call, Json(request)| {
        l.configure_domain(request, call.take_fds()).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Start>(move |call, args| {
        l.start_domain(&args.domain, &|fd, until| call.wait_readable_until(fd, until)).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Stop>(move |call, args| {
        let cycle_delta_metrics = l.stop_domain(&args, &|fd, until| call.wait_readable_until(fd, until))?;
        Ok(StopResponse { cycle_delta_metrics })
    });
    let l = loader.clone();
    registry.on::<Freeze>(move |_, args| {
        Ok(FreezeResponse { cycle_delta_metrics: l.freeze_domain(&args.domain)? })
    });
    let l = loader.clone();
    registry.on::<Thaw>(move |_, args| l.thaw_domain(&args.domain).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<Exit>(move |call, Empty {}| {
        l.root()?.asked(killer::<Exit>(call, libc::SIGKILL));
        // The sandbox ends as its root container ends.
        l.signal(l.id(), 0, libc::SIGKILL, DeliveryMode::Process).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Exec>(move |call, Json(request)| {
        l.exec_in_domain(&request, call.take_fds()).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Terminate>(move |_, args| l.terminate_in_domain(&args).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<Kill>(move |call, args| {
        l.kill_in_domain(&args, &|fd, until| call.wait_readable_until(fd, until)).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Events>(move |call, args| {
        let to = match call.fd_count() {
            0 => {
                let (reader, writer) = std::io::pipe()?;
                call.reply_fd(reader.into());
                writer.into()
            }
            1 => call.take_fd(0)?,
            n => return Err(Error::invalid_argument(format!("{n} descriptors came, want one at most"))),
        };
        l.supervisor().events(&args.domain, to).map(|()| Empty {})
    });
    registry.on::<Ping>(|_, Empty {}| Ok(Empty {}));
    let l = loader.clone();
    registry.on::<Domains>(move |_, Empty {}| Ok(l.supervisor().domains()));
}

fn define(loader: &Loader, call: &mut Call<'_>, args: DefineArgs) -> Result<Empty> {
    let DefineArgs { domain, spec, bundle, fds, gofer_mount_confs } = args;
    let spec = spec.0.ok_or_else(|| Error::invalid_argument("Supervisor.Define: spec is missing"))?;
    let mut table = FdTable::new(call.take_fds());
    let mut parts = ContainerParts::take(&fds, &mut table)?;
    parts.confs = gofer_mount_confs;
    loader.define_domain(&domain, &spec, bundle, parts).map(|()| Empty {})
}
