//! `statefile show`: the metadata, and what sections there are.

#![forbid(unsafe_code)]

use super::image::Opened;
use super::lists::printable;
use super::what::size;
use crate::cli::TableFormat;
use crate::output;
use airlock_loader::checkpoint::image::{Digest, Form, Metadata, PagesIn, Section, Sums, Trust};
use airlock_wire::error::Result;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Serialize)]
struct Shown<'a> {
    statefile: String,
    size: u64,
    checksum: Digest,
    sealed: bool,
    /// Whether the seal was checked.
    authentic: bool,
    metadata: &'a Metadata,
    sections: Vec<ShownSection>,
}

#[derive(Serialize)]
struct ShownSection {
    name: String,
    form: &'static str,
    offset: u64,
    stored: u64,
    size: u64,
}

impl ShownSection {
    fn of(section: &Section) -> Self {
        Self {
            name: section.tag.clone(),
            form: match &section.form {
                Form::Raw => "raw",
                Form::Chunked { compression, .. } => compression.name(),
            },
            offset: section.offset,
            stored: section.stored,
            size: section.len,
        }
    }
}

pub fn run(image: &Opened, format: TableFormat) -> Result<ExitCode> {
    let reader = &image.reader;
    let shown = Shown {
        statefile: image.path.display().to_string(),
        size: reader.size(),
        checksum: reader.checksum(),
        sealed: reader.trust() != Trust::Unsealed,
        authentic: reader.trust() == Trust::Sealed,
        metadata: reader.metadata(),
        sections: reader.sections().iter().map(ShownSection::of).collect(),
    };
    match format {
        TableFormat::Json => output::print_json(&shown)?,
        TableFormat::Table => output::print(&text(&shown))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(shown: &Shown<'_>) -> String {
    let m = shown.metadata;
    let mut rows: Vec<(&str, String)> = vec![
        ("statefile", format!("{}, {}", shown.statefile, size(shown.size))),
        ("format", m.format.clone()),
        ("made by", format!("airlock {}", m.airlock_version)),
        ("created", m.created.clone()),
        ("generation", m.generation.to_string()),
        ("checksum", shown.checksum.to_string()),
        ("seal", seal(shown).to_owned()),
        ("sandbox", m.sandbox.clone()),
        ("containers", m.container_count.clone().unwrap_or_default()),
    ];
    for container in &m.containers {
        rows.push(("", format!("{} ({})", container.id, container.name)));
    }
    rows.push(("processes", format!("{}, {} threads", m.processes, m.threads)));
    let machine = &m.machine;
    rows.push(("machine", format!("Linux {}, {}, {} CPUs", machine.kernel, machine.arch, machine.cpus)));
    rows.push(("CPU features", machine.cpu_features.join(" ")));
    rows.push(("uptime", format!("{:.3} s (CLOCK_BOOTTIME)", m.clocks.boottime_ns as f64 / 1e9)));
    rows.push(("memory", pages(m)));
    for parent in &m.parents {
        rows.push(("builds upon", format!("{} {}", parent.generation, parent.path)));
    }
    if m.resumed {
        rows.push(("afterwards", "the programs ran on".to_owned()));
    }
    if m.pre_dump {
        rows.push((
            "pre-dump",
            "memory only: a parent for another image, which cannot be restored".to_owned(),
        ));
    }
    rows.extend(m.user.iter().map(|(name, value)| ("metadata", format!("{name}={value}"))));
    let lines = rows.iter().map(|(name, value)| format!("{name:<13} {}\n", printable(value).trim_end()));
    let mut text: String = lines.collect();
    text.push('\n');
    let header = ["SECTION", "FORM", "OFFSET", "STORED", "SIZE"].map(str::to_owned).to_vec();
    let cells = |s: &ShownSection| {
        vec![
            s.name.clone(),
            s.form.to_owned(),
            s.offset.to_string(),
            s.stored.to_string(),
            s.size.to_string(),
        ]
    };
    let table: Vec<Vec<String>> = std::iter::once(header).chain(shown.sections.iter().map(cells)).collect();
    text + &output::table(&table, output::Layout::Ps)
}

fn seal(shown: &Shown<'_>) -> &'static str {
    match (shown.sealed, shown.authentic) {
        (false, _) => "none",
        (true, true) => "fits the key",
        (true, false) => "not checked (--key-file): what is shown here is what the file says",
    }
}

fn pages(m: &Metadata) -> String {
    let place = match m.pages.location {
        PagesIn::Nowhere => return "none".to_owned(),
        PagesIn::Statefile => "in the statefile",
        PagesIn::Files => "in files of its own",
    };
    let sums = match m.pages.sums {
        Sums::None => "no checksums",
        Sums::Xxh3 => "XXH3 checksums",
        Sums::Blake3 => "BLAKE3 checksums",
    };
    format!(
        "{} pages stored, {} {place}, compression {}, {sums}",
        m.pages.count,
        size(m.pages.size),
        m.compression.name()
    )
}
