//! What commands print on standard output.

#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use serde::Serialize;
use std::io::Write;

/// Writes text to standard output, at once and entirely.
///
/// # Errors
/// Whatever write(2) says: a result that did not arrive must not look like success.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::from(e).context("write the result to standard output"))
}

/// Writes a value as indented JSON and a newline.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| Error::failure(format!("encode JSON: {e}")))?;
    text.push('\n');
    print(&text)
}

/// Writes a value as one line of JSON.
pub fn print_json_line(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(value).map_err(|e| Error::failure(format!("encode JSON: {e}")))?;
    text.push('\n');
    print(&text)
}

/// How a table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As runc's `list`: columns at least 12 wide, 3 blanks apart.
    List,
    /// As ps(1): one blank apart.
    Ps,
}

/// Lays out rows in aligned columns; the first row is the header.
pub fn table(rows: &[Vec<String>], layout: Layout) -> String {
    let (least, gap) = match layout {
        // The crate counts the gap on top of the width.
        Layout::List => (9, 3),
        Layout::Ps => (0, 1),
    };
    let mut writer = tabwriter::TabWriter::new(Vec::new()).minwidth(least).padding(gap);
    for row in rows {
        // A tab or newline in a cell (a bundle's path may have one) would begin another.
        let cells: Vec<String> = row.iter().map(|cell| cell.replace(['\t', '\n', '\r'], "?")).collect();
        // Writing to memory does not fail.
        let _ = writeln!(writer, "{}", cells.join("\t"));
    }
    let _ = writer.flush();
    writer.into_inner().ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows =
            [vec!["ID", "PID", "OWNER"], vec!["a-much-longer-name", "1", "root"], vec!["x\ty", "", ""]]
                .map(|row| row.into_iter().map(str::to_owned).collect());
        assert_eq!(
            table(&rows, Layout::List),
            "ID                   PID         OWNER\na-much-longer-name   1           root\nx?y                              \n"
        );
        assert_eq!(
            table(&rows, Layout::Ps),
            "ID                 PID OWNER\na-much-longer-name 1   root\nx?y                    \n"
        );
        assert_eq!(table(&[], Layout::Ps), "");
    }
}
