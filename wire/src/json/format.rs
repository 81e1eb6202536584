//! Go's way of writing strings.

use serde_json::ser::Formatter;
use std::io::{self, Write};

/// Compact JSON whose strings are escaped as Go's `json.Marshal` does: `<`, `>`, `&` and the line separators U+2028
/// and U+2029 as `\u` escapes, so that replies are gVisor's byte for byte.
pub(super) struct Go;

impl Formatter for Go {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, special) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = special.chars();
            if let Some(c) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn strings_are_escaped_as_go_does() {
        let mut out = Vec::new();
        super::super::encode("a<b>&\"\\\n\u{2028}\u{2029}\u{1}é", &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), r#""a\u003cb\u003e\u0026\"\\\n\u2028\u2029\u0001é""#);
    }
}
