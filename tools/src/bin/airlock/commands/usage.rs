//! `usage`: memory of a sandbox by category.

#![forbid(unsafe_code)]

use crate::cli::UsageArgs;
use crate::global::Global;
use crate::output;
use airlock_wire::api::usage::{Collect, MemoryUsageOpts, UsageFD, UsageFdOpts, UsagePage};
use airlock_wire::client::Dialect;
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

/// Prints the usage as one JSON object, or with `--fd` as runsc prints what it reads from the page.
pub fn run(global: &Global, args: UsageArgs) -> Result<ExitCode> {
    let mut client = global.airlock()?.connect(&args.id, Dialect::Binary)?;
    if !args.fd {
        let usage = client.call::<Collect>(&MemoryUsageOpts { full: args.full }, &[])?.value;
        return output::print_json_line(&usage).map(|()| ExitCode::SUCCESS);
    }
    let reply = client.call::<UsageFD>(&UsageFdOpts { version: 1 }, &[])?;
    let page = reply.fds.into_iter().next().ok_or_else(|| Error::failure("no page came with the reply"))?;
    let page = read_page(&File::from(page))?;
    output::print(&format!(
        "Mapped {}, Unknown {}, Total {}\n",
        page.mapped,
        page.total.saturating_sub(page.mapped),
        page.total
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the page when it is not just being written.
fn read_page(file: &File) -> Result<UsagePage> {
    for _ in 0..1000 {
        let mut bytes = [0; 128];
        file.read_exact_at(&mut bytes, 0)?;
        if let Some(page) = UsagePage::from_bytes(&bytes) {
            return Ok(page);
        }
        std::thread::yield_now();
    }
    Err(Error::failure("the usage page is never at rest"))
}
