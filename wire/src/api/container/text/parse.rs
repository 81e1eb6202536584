//! From text to fields.

use super::{MAX_DEPTH, MAX_TEXT, Wrong};

/// Fields in the order of the text.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub fields: Vec<Field>,
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: String,
    pub line: usize,
    pub value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Message(Message),
    List(Vec<Value>),
    Positive(u64),
    Negative(i64),
    Word(String),
    Text(String),
}

/// Reads the whole text as the fields of a message.
pub(super) fn message(text: &str) -> Result<Message, Wrong> {
    if text.len() > MAX_TEXT {
        return Err(Wrong(format!("it has {} bytes: at most {MAX_TEXT} are possible", text.len())));
    }
    let mut parser = Parser { text: text.as_bytes(), at: 0 };
    let message = parser.fields(None, 0)?;
    Ok(message)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn wrong<T>(&self, why: impl std::fmt::Display) -> Result<T, Wrong> {
        Err(Wrong(format!("line {}: {why}", self.line())))
    }

    fn line(&self) -> usize {
        1 + self.text[..self.at.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Goes past white space and comments; then what is next.
    fn next(&mut self) -> Option<u8> {
        loop {
            match self.peek()? {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => self.at += 1,
                b'#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                }
                other => return Some(other),
            }
        }
    }

    /// Goes past `byte` if it is next.
    fn take(&mut self, byte: u8) -> bool {
        let found = self.next() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Fields up to `end`, or to the end of the text.
    fn fields(&mut self, end: Option<u8>, depth: usize) -> Result<Message, Wrong> {
        if depth > MAX_DEPTH {
            return self.wrong(format_args!("messages are nested more than {MAX_DEPTH} deep"));
        }
        let mut message = Message::default();
        loop {
            match (self.next(), end) {
                (None, None) => return Ok(message),
                (None, Some(end)) => {
                    return self.wrong(format_args!("'{}' is missing at the end", char::from(end)));
                }
                (found, Some(_)) if found == end => {
                    self.at += 1;
                    return Ok(message);
                }
                (Some(b'['), _) => return self.wrong("extensions do not belong here"),
                (Some(_), _) => {}
            }
            let line = self.line();
            let name = self.word()?;
            let colon = self.take(b':');
            let value = match self.next() {
                Some(b'{' | b'<') => self.value(depth)?,
                Some(b'[') => self.list(depth)?,
                _ if !colon => return self.wrong(format_args!("':' or '{{' is missing after {name}")),
                _ => self.value(depth)?,
            };
            message.fields.push(Field { name, line, value });
            if !self.take(b',') {
                self.take(b';');
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Wrong> {
        self.at += 1;
        let mut list = Vec::new();
        if self.take(b']') {
            return Ok(Value::List(list));
        }
        loop {
            list.push(self.value(depth)?);
            if self.take(b']') {
                return Ok(Value::List(list));
            }
            if !self.take(b',') {
                return self.wrong("',' or ']' is missing in a list");
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Wrong> {
        match self.next() {
            Some(open @ (b'{' | b'<')) => {
                self.at += 1;
                let end = if open == b'{' { b'}' } else { b'>' };
                self.fields(Some(end), depth + 1).map(Value::Message)
            }
            Some(b'"' | b'\'') => self.strings().map(Value::Text),
            Some(b'-') => {
                self.at += 1;
                self.next();
                match self.number()? {
                    0 => Ok(Value::Positive(0)),
                    n if n <= 1 << 63 => Ok(Value::Negative((n as i64).wrapping_neg())),
                    n => self.wrong(format_args!("-{n} is too small")),
                }
            }
            Some(b'0'..=b'9') => self.number().map(Value::Positive),
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'_') => self.word().map(Value::Word),
            Some(other) => self.wrong(format_args!("{:?} begins no value", char::from(other))),
            None => self.wrong("a value is missing at the end"),
        }
    }

    fn run(&mut self, fits: impl Fn(u8) -> bool) -> String {
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|b| !fits(*b)).unwrap_or(rest.len());
        self.at += length;
        String::from_utf8_lossy(&rest[..length]).into_owned()
    }

    fn word(&mut self) -> Result<String, Wrong> {
        match self.peek() {
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'_') => {
                Ok(self.run(|b| b.is_ascii_alphanumeric() || b == b'_'))
            }
            Some(other) => self.wrong(format_args!("{:?} begins no field's name", char::from(other))),
            None => self.wrong("a field's name is missing at the end"),
        }
    }

    fn number(&mut self) -> Result<u64, Wrong> {
        let text = self.run(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
        let (digits, radix) = match text.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&text[2..], 16),
            [b'0', _, ..] => (&text[1..], 8),
            _ => (text.as_str(), 10),
        };
        // from_str_radix would take a sign as well.
        match u64::from_str_radix(digits, radix) {
            Ok(number) if !digits.starts_with('+') => Ok(number),
            _ => self.wrong(format_args!("{text:?} is no whole number from 0 to {}", u64::MAX)),
        }
    }

    /// One or more strings, put together.
    fn strings(&mut self) -> Result<String, Wrong> {
        let mut bytes = Vec::new();
        while let Some(quote @ (b'"' | b'\'')) = self.next() {
            self.at += 1;
            loop {
                match self.peek() {
                    None | Some(b'\n') => return self.wrong("a string does not end on its line"),
                    Some(b'\\') => {
                        self.at += 1;
                        self.escape(&mut bytes)?;
                    }
                    Some(other) => {
                        self.at += 1;
                        if other == quote {
                            break;
                        }
                        bytes.push(other);
                    }
                }
            }
        }
        String::from_utf8(bytes).or_else(|_| self.wrong("a string is not UTF-8"))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), Wrong> {
        let Some(letter) = self.peek() else { return self.wrong("a string does not end") };
        self.at += 1;
        let simple = match letter {
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'?' | b'\\' | b'\'' | b'"' => letter,
            b'0'..=b'7' => {
                self.at -= 1;
                let code = self.digits(8, 1, 3)?;
                return match u8::try_from(code) {
                    Ok(byte) => {
                        bytes.push(byte);
                        Ok(())
                    }
                    Err(_) => self.wrong("an octal escape is more than a byte"),
                };
            }
            b'x' | b'X' => u8::try_from(self.digits(16, 1, 2)?).unwrap_or_default(),
            b'u' | b'U' => {
                let length = if letter == b'u' { 4 } else { 8 };
                let code = self.digits(16, length, length)?;
                let Some(character) = char::from_u32(code) else {
                    return self.wrong(format_args!("{code:#x} is no character"));
                };
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            other => return self.wrong(format_args!("\\{} is no escape", char::from(other))),
        };
        bytes.push(simple);
        Ok(())
    }

    /// `least` to `most` digits as a number.
    fn digits(&mut self, radix: u32, least: usize, most: usize) -> Result<u32, Wrong> {
        let mut code: u32 = 0;
        let mut count = 0;
        while count < most
            && let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(radix))
        {
            code = code.wrapping_mul(radix).wrapping_add(digit);
            self.at += 1;
            count += 1;
        }
        if count < least { self.wrong("an escape lacks digits") } else { Ok(code) }
    }
}
