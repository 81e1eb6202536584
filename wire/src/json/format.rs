//! Go's way of writing strings.

use serde_json::ser::Formatter;
use std::io::{self, Write};

/// Compact JSON whose strings are escaped as Go's `json.Marshal` does: `<`, `>`, `&` and the line separators U+2028
/// and U+2029 as `\u` escapes, and numbers as it has them, so that replies are gVisor's byte for byte.
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

    /// Without a fraction where there is none, and with an exponent only below 1e-6 and from 1e21 on.
    fn write_f64<W: Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let size = value.abs();
        if size >= 1e21 {
            write!(writer, "{}", format!("{value:e}").replace('e', "e+"))
        } else if size != 0.0 && size < 1e-6 {
            write!(writer, "{value:e}")
        } else {
            write!(writer, "{value}")
        }
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

    #[test]
    fn numbers_are_written_as_go_does() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.5, "0.5"),
            (1e-6, "0.000001"),
            (9.5e-7, "9.5e-7"),
            (-1e21, "-1e+21"),
            (1e20, "100000000000000000000"),
        ] {
            let mut out = Vec::new();
            super::super::encode(&value, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
