//! As much of HTTP/1.1 as a runtime's client speaks: requests with a Content-Length on connections that stay open.

use std::io::{self, Read, Write};

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// The longest body: what Lambda lets a function answer, and a little for its wrapping.
const MAX_BODY: usize = (6 << 20) + (64 << 10);
/// The most headers.
const MAX_HEADERS: usize = 64;

/// A request.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// `Lambda-Runtime-Function-Error-Type`, if it is there.
    pub error_type: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Response<'a> {
    /// Status code.
    pub status: u16,
    /// Headers besides those about the body.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, JSON.
    pub body: &'a str,
}

/// Reads requests from a connection.
#[derive(Debug)]
pub struct Requests<R> {
    stream: R,
    /// What was read and belongs to no request yet.
    buffer: Vec<u8>,
}

struct Head {
    request: Request,
    length: usize,
    expects: bool,
    /// Bytes of it.
    size: usize,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: Read + Write> Requests<R> {
    /// Requests that come on `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next request; `None` when the client has closed the connection.
    ///
    /// # Errors
    /// What reading says; it is no HTTP request, or too long, or its body has no length.
    pub fn next(&mut self) -> io::Result<Option<Request>> {
        let head = loop {
            if let Some(head) = parse(&self.buffer)? {
                break head;
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(bad("the head of the request is too long"));
            }
            if !self.fill()? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(bad("the request ends in the middle"))
                };
            }
        };
        if head.expects {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let end = head.size + head.length;
        while self.buffer.len() < end {
            if !self.fill()? {
                return Err(bad("the request ends in the middle"));
            }
        }
        let rest = self.buffer.split_off(end);
        let body = std::mem::replace(&mut self.buffer, rest).split_off(head.size);
        Ok(Some(Request { body, ..head.request }))
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        let n = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    /// Answers the last request.
    ///
    /// # Errors
    /// What writing says.
    pub fn answer(&mut self, response: &Response<'_>) -> io::Result<()> {
        let reason = match response.status {
            200 => "OK",
            202 => "Accepted",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            410 => "Gone",
            _ => "Error",
        };
        let mut text = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            response.status,
            response.body.len()
        );
        for (name, value) in response.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        text += response.body;
        self.stream.write_all(text.as_bytes())?;
        self.stream.flush()
    }
}

/// Reads the head of a request; `None` when more bytes are needed.
fn parse(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(size) = request.parse(bytes).map_err(|e| bad(&e.to_string()))? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let found = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    if header("Transfer-Encoding").is_some() {
        return Err(bad("a body in chunks is not understood: send a Content-Length"));
    }
    let length = header("Content-Length").unwrap_or("0").parse().map_err(|_| bad("bad Content-Length"))?;
    if length > MAX_BODY {
        return Err(bad("the body is too long"));
    }
    Ok(Some(Head {
        length,
        expects: header("Expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")),
        request: Request {
            method: request.method.unwrap_or_default().to_owned(),
            path: request.path.unwrap_or_default().to_owned(),
            error_type: header("Lambda-Runtime-Function-Error-Type").map(str::to_owned),
            body: Vec::new(),
        },
        size,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// What a client sends, so many bytes at a time, and what it is sent.
    struct Client(Cursor<Vec<u8>>, Vec<u8>, usize);

    impl Read for Client {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..self.2])
        }
    }

    impl Write for Client {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn requests(text: &str) -> Requests<Client> {
        let step = if text.len() > 1000 { 1000 } else { 1 };
        Requests::new(Client(Cursor::new(text.into()), Vec::new(), step))
    }

    #[test]
    fn requests_follow_one_another() {
        let mut requests = requests(
            "POST /a HTTP/1.1\r\ncontent-length: 3\r\nExpect: 100-continue\r\n\
             lambda-runtime-function-error-type: T\r\n\r\n{ }GET /b HTTP/1.1\r\n\r\n",
        );
        let first = requests.next().unwrap().unwrap();
        assert_eq!(
            (first.method.as_str(), first.path.as_str(), first.body.as_slice()),
            ("POST", "/a", &b"{ }"[..])
        );
        assert_eq!(first.error_type.as_deref(), Some("T"));
        assert!(requests.stream.1.starts_with(b"HTTP/1.1 100 "));
        let second = requests.next().unwrap().unwrap();
        assert_eq!((second.method.as_str(), second.body.len(), second.error_type), ("GET", 0, None));
        assert_eq!(requests.next().unwrap(), None);
        requests.answer(&Response { status: 202, headers: &[("A", "b")], body: "{}" }).unwrap();
        assert!(requests.stream.1.ends_with(b"Content-Length: 2\r\nA: b\r\n\r\n{}"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (text, why) in [
            ("GET", "ends in the middle"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", "ends in the middle"),
            ("POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", "bad Content-Length"),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "too long"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "chunks"),
            ("\u{1}\u{2}\r\n\r\n", ""),
        ] {
            let error = requests(text).next().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let long = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(MAX_HEAD));
        assert!(requests(&long).next().unwrap_err().to_string().contains("head"));
    }
}
