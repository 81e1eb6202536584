//! `man`: the manual page, in roff.

#![forbid(unsafe_code)]

use crate::cli::{Cli, ManArgs};
use crate::global::Global;
use crate::output;
use airlock_wire::error::{Error, Result};
use clap::CommandFactory;
use std::process::ExitCode;

/// Prints the page of airlock with a section for each command, or of the one command that is named.
pub fn run(_global: &Global, args: ManArgs) -> Result<ExitCode> {
    let mut tree = Cli::command();
    tree.build();
    let mut page = Vec::new();
    let failed = |e: std::io::Error| Error::from(e).context("render the manual page");
    if let Some(name) = &args.command {
        let command = tree.find_subcommand(name).ok_or_else(|| {
            Error::invalid_argument(format!("unknown command '{name}': 'airlock --help' lists all"))
        })?;
        let title = format!("airlock-{name}");
        clap_mangen::Man::new(command.clone()).title(title).render(&mut page).map_err(failed)?;
    } else {
        render_all(&tree, &mut page).map_err(failed)?;
    }
    let page = String::from_utf8(page).map_err(|_| Error::failure("the manual page is not UTF-8"))?;
    output::print(&page).map(|()| ExitCode::SUCCESS)
}

/// The main page with every command's synopsis and options behind it, so that one file documents all.
fn render_all(tree: &clap::Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    let man = clap_mangen::Man::new(tree.clone()).title("airlock").section("8");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    man.render_subcommands_section(page)?;
    for command in tree.get_subcommands().filter(|c| c.get_name() != "help") {
        let heading = format!(".SH \"COMMAND: {}\"\n", command.get_name().to_uppercase());
        page.extend_from_slice(heading.as_bytes());
        let mut part = Vec::new();
        let one = clap_mangen::Man::new(command.clone());
        one.render_synopsis_section(&mut part)?;
        one.render_description_section(&mut part)?;
        one.render_options_section(&mut part)?;
        // The command's sections become subsections of its own.
        let text = String::from_utf8_lossy(&part).replace("\n.SH ", "\n.SS ");
        let text = text.strip_prefix(".SH ").map_or(text.clone(), |rest| format!(".SS {rest}"));
        page.extend_from_slice(text.as_bytes());
    }
    Ok(())
}
