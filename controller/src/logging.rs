//! `Logging`: the log of the loader.

use airlock_loader::loader::Loader;
use airlock_wire::api::logging::{Change, LogLevel};
use airlock_wire::error::Error;
use airlock_wire::registry::Registry;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let loader = loader.clone();
    registry.on::<Change>(move |_, args| {
        // Refused before anything is changed, so that a call is carried out whole or not at all.
        if args.set_event_strace {
            return Err(Error::unsupported(
                "error configuring event strace: there is no event log; use a trace session ('airlock trace create')",
            ));
        }
        if args.set_log_packets && (args.log_packets || loader.has_own_network()) {
            loader.log_packets(args.log_packets).map_err(|e| e.context("LogPackets"))?;
        }
        if args.set_strace {
            let calls = args.strace_allowlist.unwrap_or_default();
            let calls = args.enable_strace.then_some(calls.as_slice());
            loader.strace(calls).map_err(|e| e.context("error configuring strace"))?;
        }
        if args.set_level {
            log::set_max_level(match args.level {
                LogLevel::Warning => log::LevelFilter::Warn,
                LogLevel::Info => log::LevelFilter::Info,
                LogLevel::Debug => log::LevelFilter::Debug,
            });
        }
        Ok(0)
    });
}
