//! `call`: any method of a sandbox, ours or gVisor's, by name.

#![forbid(unsafe_code)]

use crate::cli::CallArgs;
use crate::global::Global;
use crate::output;
use airlock::{client, inherited};
use airlock_wire::api;
use airlock_wire::client::Dialect;
use airlock_wire::error::{Error, Kind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

/// Calls the method and prints its result, or lists the methods.
pub fn run(global: &Global, args: CallArgs) -> Result<ExitCode> {
    let client = match (&args.sandbox, &args.socket) {
        (Some(id), _) => Some(global.airlock()?.connect(id, Dialect::Json)?),
        (None, Some(socket)) => Some(client::connect(socket, Dialect::Json)?),
        (None, None) => None,
    };
    let Some(mut client) = client else {
        if args.list && args.markdown {
            return output::print(&airlock_wire::markdown::document(&api::all_methods()))
                .map(|()| ExitCode::SUCCESS);
        }
        if args.list {
            return output::print_json(&api::all_methods()).map(|()| ExitCode::SUCCESS);
        }
        return Err(Error::invalid_argument("name the sandbox: --sandbox ID, or --socket PATH"));
    };
    client.set_timeout(args.timeout)?;
    if args.list {
        let methods =
            client.call_raw("Airlock.Methods", &serde_json::Value::Null, &[]).map_err(|e| match e.kind {
                Kind::UnknownMethod => {
                    e.context("this sandbox cannot list its methods (it is not one of airlock's)")
                }
                _ => e,
            })?;
        return output::print_json(&methods.value).map(|()| ExitCode::SUCCESS);
    }
    let method = args.method.as_deref().unwrap_or_default();
    let argument: serde_json::Value = serde_json::from_str(&args.argument).map_err(|e| {
        Error::invalid_argument(format!(
            "the argument is not JSON ({e}): {:?}; a string needs its quotes",
            args.argument
        ))
    })?;
    let fds: Vec<OwnedFd> = args.fd.iter().map(|fd| inherited::duplicate(*fd)).collect::<Result<_>>()?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let reply = client.call_raw(method, &argument, &borrowed).map_err(|e| e.context(method))?;
    output::print_json(&reply.value).map(|()| ExitCode::SUCCESS)
}
