//! Finds the end of a JSON object in a stream.

use super::MAX_DEPTH;

/// JSON's white space, which may stand between messages.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// An object is nested too deeply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooDeep;

/// Follows strings and brackets from an object's first byte to its last. Every byte is looked at once, however the
/// object arrives. Whether the object is well-formed is the parser's business: brackets are only counted.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Looks at the next bytes. `Some(n)` means that the object ended with the first `n` of them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, TooDeep> {
        for (i, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(TooDeep);
                    }
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Ok(Some(i + 1));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_where_the_object_ends_however_it_is_cut() {
        let object = br#"{"a":"}\"]\\","b":[{}, {"c":[]}], "d": "\\\""}"#;
        let mut stream = object.to_vec();
        stream.extend_from_slice(b"\n{\"next\":1}");
        for cut in 0..object.len() {
            let mut scan = Scan::default();
            assert_eq!(scan.feed(&stream[..cut]), Ok(None), "cut at {cut}");
            assert_eq!(scan.feed(&stream[cut..]), Ok(Some(object.len() - cut)), "cut at {cut}");
        }
    }

    #[test]
    fn nesting_is_limited() {
        let deep = |n: usize| b"{\"a\":".repeat(n);
        assert_eq!(Scan::default().feed(&deep(MAX_DEPTH)), Ok(None));
        assert_eq!(Scan::default().feed(&deep(MAX_DEPTH + 1)), Err(TooDeep));
    }
}
