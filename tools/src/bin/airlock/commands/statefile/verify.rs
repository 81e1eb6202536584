//! `statefile verify`: every checksum of an image.

#![forbid(unsafe_code)]

use super::image::Opened;
use crate::cli::TableFormat;
use crate::output;
use crate::progress::Progress;
use airlock_loader::checkpoint::image::{PAGES_META, PagesIn};
use airlock_loader::checkpoint::pages::PAGE;
use airlock_wire::api::checkpoint::Progress as Now;
use airlock_wire::error::{Error, Kind, Result};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often a terminal is told.
const TELL: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize)]
struct Part {
    part: String,
    size: u64,
    /// `ok`, `damaged`, or `not checked`.
    result: &'static str,
    /// What was compared, or what is wrong.
    why: String,
}

impl Part {
    fn new(part: impl Into<String>, size: u64, how: &str, result: std::result::Result<(), String>) -> Self {
        let unknown = how.starts_with("not checked");
        let (result, why) = match result {
            Err(why) => ("damaged", why),
            Ok(()) if unknown => ("not checked", how.trim_start_matches("not checked: ").to_owned()),
            Ok(()) => ("ok", how.to_owned()),
        };
        Self { part: part.into(), size, result, why }
    }
}

/// Checks everything, and ends with status 1 if something is wrong.
pub fn run(image: &Path, key: Option<&[u8]>, format: TableFormat) -> Result<ExitCode> {
    let parts = match Opened::open(image, key) {
        Ok(opened) => check(&opened)?,
        // One that is not there is trouble; a bad one is what was asked about.
        Err(e) if matches!(e.kind, Kind::InvalidArgument | Kind::Serde | Kind::Permission) => {
            vec![Part::new("frame", 0, "", Err(e.message))]
        }
        Err(e) => return Err(e),
    };
    let good = parts.iter().all(|part| part.result != "damaged");
    match format {
        TableFormat::Json => output::print_json_line(&parts)?,
        TableFormat::Table => {
            let header = ["PART", "SIZE", "RESULT", "CHECKED"].map(str::to_owned).to_vec();
            let cells =
                |p: &Part| vec![p.part.clone(), p.size.to_string(), p.result.to_owned(), p.why.clone()];
            let table: Vec<Vec<String>> = std::iter::once(header).chain(parts.iter().map(cells)).collect();
            output::print(&output::table(&table, output::Layout::List))?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(image: &Opened) -> Result<Vec<Part>> {
    let progress = Told::new(image.reader.metadata().pages.size);
    let files = image.reader.metadata().pages.location == PagesIn::Files;
    let index = if files { image.beside(PAGES_META)? } else { None };
    let findings = image.reader.verify(index.as_ref(), &|bytes| progress.add(bytes));
    let mut parts: Vec<Part> = findings
        .into_iter()
        .map(|f| Part::new(f.part, f.size, &f.how, f.error.map_or(Ok(()), |e| Err(e.to_string()))))
        .collect();
    if parts.iter().all(|part| part.result != "damaged") {
        // Only what has its checksums is worth looking into.
        parts.push(state_part(image));
        parts.extend(pages_part(image, &progress));
    }
    Ok(parts)
}

fn state_part(image: &Opened) -> Part {
    Part::new(
        "references",
        0,
        "what the state refers to is in it",
        image.state().map(drop).map_err(|e| e.message),
    )
}

/// Page data, page by page.
fn pages_part(image: &Opened, progress: &Told) -> Option<Part> {
    let metadata = image.reader.metadata();
    if metadata.pages.location == PagesIn::Nowhere {
        return None;
    }
    let read = || -> Result<Option<u64>> {
        let Some(chain) = image.chain()? else { return Ok(None) };
        let mut before = 0;
        let pages = chain.verify(|pages| {
            progress.add((pages - before) * PAGE);
            before = pages;
        })?;
        Ok(Some(pages))
    };
    let part = |how: &str, result| Some(Part::new("page data", metadata.pages.size, how, result));
    match read() {
        Ok(Some(pages)) => part(&format!("{pages} pages"), Ok(())),
        Ok(None) => part("not checked: the files with the pages are not there", Ok(())),
        Err(Error { kind: Kind::NoSuchEntity, message }) if metadata.pages.location == PagesIn::Files => {
            part(&format!("not checked: {message}"), Ok(()))
        }
        Err(e) => part("", Err(e.message)),
    }
}

/// Shows on a terminal how far it is.
struct Told {
    bytes: Cell<u64>,
    total: u64,
    last: Cell<Instant>,
    line: RefCell<Progress>,
}

impl Told {
    fn new(total: u64) -> Self {
        let line = RefCell::new(Progress::new("verify"));
        Self { bytes: Cell::new(0), total, last: Cell::new(Instant::now()), line }
    }

    fn add(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
        if self.last.get().elapsed() < TELL || !Progress::wanted() {
            return;
        }
        self.last.set(Instant::now());
        let now = Now {
            phase: "checksums".to_owned(),
            pages: self.bytes.get() / PAGE,
            total: self.total / PAGE,
            ..Now::default()
        };
        self.line.borrow_mut().show(&now);
    }
}
