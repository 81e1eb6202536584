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

/// Lays out rows in aligned columns, as `list` and `ps` print them: the first row is the header, columns are apart by
/// `gap` blanks, and the last column of a row has none after it.
pub fn table(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let pad = widths[column] + gap - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', pad));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["ID", "PID", "OWNER"], vec!["longer-name", "1", "root"], vec!["x", "", ""]]
            .map(|row| row.into_iter().map(str::to_owned).collect());
        assert_eq!(table(&rows, 2), "ID           PID  OWNER\nlonger-name  1    root\nx                 \n");
        assert_eq!(table(&[], 2), "");
    }
}
