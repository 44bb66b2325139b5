//! Just enough HTTP/1.1 to be lied with: requests are parsed, answers are written elsewhere, by hand.
//!
//! Clients under test may be broken too, so heads and bodies are bounded.

use std::io::{self, BufRead, Read};

/// One request as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// The method, upper case as sent.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// What stands after `?`, undecoded; empty if nothing does.
    pub query: String,
    /// Header names as sent and their values, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of this name, whatever its letter case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The decoded value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        form_value(&self.query, name)
    }

    /// Whether the client wants the connection to end after this answer.
    pub(super) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Reads the next request; `None` when the client has left between two requests.
    ///
    /// # Errors
    /// `InvalidData` for what is not HTTP/1.x or is larger than [`HEAD_LIMIT`] or [`BODY_LIMIT`].
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = from.take(HEAD_LIMIT);
        let mut line = || -> io::Result<Option<String>> {
            let mut line = Vec::new();
            if head.read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            if line.pop() != Some(b'\n') {
                return Err(invalid("the head of the request is cut or too long"));
            }
            line.pop_if(|last| *last == b'\r');
            String::from_utf8(line).map(Some).map_err(|_| invalid("the head of the request is not UTF-8"))
        };
        let Some(first) = line()? else { return Ok(None) };
        let mut words = first.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(invalid("the request line is not `METHOD TARGET VERSION`"));
        };
        if !version.starts_with("HTTP/1.") {
            return Err(invalid("only HTTP/1.x is spoken here"));
        }
        // A client that takes this for its proxy names the host too (RFC 9112, 3.2.2).
        let absolute = target.strip_prefix("http://").and_then(|rest| Some(&rest[rest.find('/')?..]));
        let (path, query) = absolute.unwrap_or(target).split_once('?').unwrap_or((absolute.unwrap_or(target), ""));
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let text = line()?.ok_or_else(|| invalid("the head of the request is cut"))?;
            if text.is_empty() {
                break;
            }
            let (name, value) = text.split_once(':').ok_or_else(|| invalid("a header has no colon"))?;
            request.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let length = match request.header("content-length") {
            None => 0,
            Some(text) => text.parse::<u64>().map_err(|_| invalid("content-length is not a number"))?,
        };
        if length > BODY_LIMIT {
            return Err(invalid("the body of the request is too long"));
        }
        from.take(length).read_to_end(&mut request.body)?;
        Ok(Some(request))
    }
}

/// The decoded value of `name` in a form or query (`a=b&c=d`).
pub(super) fn form_value(form: &str, name: &str) -> Option<String> {
    let pairs = form.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| percent_decoded(key) == name).map(|(_, value)| percent_decoded(value))
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(*first),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The reason phrase of a status; clients must not care.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Whatever",
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The longest head of a request, in bytes.
const HEAD_LIMIT: u64 = 256 << 10;
/// The longest body of a request, in bytes.
const BODY_LIMIT: u64 = 256 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requests_on_one_connection_are_read_one_after_the_other() {
        let mut wire: &[u8] =
            b"POST /token?a=1 HTTP/1.1\r\nContent-Length: 3\r\nX-A:  b \r\n\r\nabcGET /v2/ HTTP/1.1\r\n\r\n";
        let first = Request::read(&mut wire).unwrap().unwrap();
        assert_eq!((first.method.as_str(), first.path.as_str(), first.query.as_str()), ("POST", "/token", "a=1"));
        assert_eq!(first.body, b"abc");
        assert_eq!(first.header("x-a"), Some("b"));
        let second = Request::read(&mut wire).unwrap().unwrap();
        assert_eq!(second.path, "/v2/");
        assert_eq!(Request::read(&mut wire).unwrap(), None);
    }

    #[test]
    fn what_is_not_http_is_refused() {
        let table: [&[u8]; 5] = [
            b"\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/2\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1",
        ];
        for mut wire in table {
            assert!(Request::read(&mut wire).is_err());
        }
        let long = vec![b'x'; HEAD_LIMIT as usize + 1];
        assert!(Request::read(&mut long.as_slice()).is_err());
    }

    #[test]
    fn forms_are_decoded() {
        let form = "scope=repository%3Aa%2Fb%3Apull&x=1+2&bad=%zz&flag";
        assert_eq!(form_value(form, "scope").as_deref(), Some("repository:a/b:pull"));
        assert_eq!(form_value(form, "x").as_deref(), Some("1 2"));
        assert_eq!(form_value(form, "bad").as_deref(), Some("%zz"));
        assert_eq!(form_value(form, "flag").as_deref(), Some(""));
        assert_eq!(form_value(form, "none"), None);
    }
}
