//! `Logging`: the log of the loader.

use airlock_wire::api::logging::{Change, LogLevel};
use airlock_wire::error::Error;
use airlock_wire::registry::Registry;

pub(crate) fn register(registry: &mut Registry) {
    registry.on::<Change>(|_, args| {
        // Refused before anything is changed, so that a call is carried out whole or not at all.
        if (args.set_strace && args.enable_strace) || args.set_event_strace {
            return Err(Error::unsupported(
                "error configuring strace: programs run on the host's kernel, not in the loader; trace them with a trace session",
            ));
        }
        if args.set_log_packets && args.log_packets {
            return Err(Error::unsupported(
                "LogPackets: packets pass through the host's kernel, not through the loader",
            ));
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
