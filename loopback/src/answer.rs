//! One answer: that of an honest registry, the effect of faults on it, and the bytes on the wire.

use std::io::{self, Write as _};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::auth::{TICKET_PARAMETER, Verdict, error_document};
use super::catalog::Content;
use super::faults::{Fault, Gate, RedirectTo};
use super::http::{Request, reason};

/// An answer, complete before its first byte is written.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    content: Content,
    /// The part of `content` that is sent; positions past its end start again at the beginning.
    part: Range<u64>,
    /// The value of `Content-Range`, if any.
    claimed: Option<Range<u64>>,
    framing: Framing,
    flips: Vec<(u64, u8)>,
    hangs: Vec<Gate>,
    stalls: Vec<(u64, Gate)>,
    cut: Option<(u64, Cut)>,
    bytes_per_second: Option<u64>,
    close: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Framing {
    Length { wrong_by: i64 },
    UntilClose,
    Chunked,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    Close,
    Reset,
    ResetBeforeHeaders,
}

/// What happens to a connection after an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum After {
    KeepOpen,
    Close,
    Reset,
}

impl Answer {
    /// A document or anything else that has no ranges.
    pub(super) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let content = Content::Memory(body.into());
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), content_type.to_owned())],
            part: 0..content.len(),
            content,
            claimed: None,
            framing: Framing::Length { wrong_by: 0 },
            flips: Vec::new(),
            hangs: Vec::new(),
            stalls: Vec::new(),
            cut: None,
            bytes_per_second: None,
            close: false,
        }
    }

    /// The error document of a status.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(status, "application/json", error_document(code, message))
    }

    /// A blob, or the requested range of it (RFC 9110, section 14).
    pub(super) fn blob(request: &Request, content: Content) -> Self {
        let size = content.len();
        let mut answer = Self::new(200, "application/octet-stream", "").header("Accept-Ranges", "bytes");
        answer.content = content;
        answer.part = 0..size;
        match request.header("range").map(|text| parse_range(text, size)) {
            None | Some(RangeHeader::Invalid) => {}
            Some(RangeHeader::Satisfiable(part)) => {
                answer.status = 206;
                answer.claimed = Some(part.clone());
                answer.part = part;
            }
            Some(RangeHeader::Unsatisfiable) => {
                answer = Self::error(416, "RANGE_INVALID", "the range is beyond the blob")
                    .header("Content-Range", &format!("bytes */{size}"));
            }
        }
        answer
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// Applies a fault to the answer.
    pub(super) fn struck(mut self, fault: Fault, request: &Request) -> Self {
        match fault {
            Fault::Status { status, headers, body } => {
                let body = match body.is_empty() {
                    true => Bytes::from(error_document("UNKNOWN", "this is what the test wanted")),
                    false => body,
                };
                let plain = Self { hangs: self.hangs, ..Self::new(status, "application/json", body) };
                headers.iter().fold(plain, |answer, (name, value)| answer.header(name, value))
            }
            Fault::Header(name, value) => self.header(&name, &value),
            Fault::Truncate { after } => Self { cut: Some((after, Cut::Close)), ..self },
            Fault::Reset { after } => Self { cut: Some((after, Cut::Reset)), ..self },
            Fault::ResetBeforeHeaders => Self { cut: Some((0, Cut::ResetBeforeHeaders)), ..self },
            Fault::IgnoreRange if self.claimed.is_some() => {
                Self { status: 200, claimed: None, part: 0..self.content.len(), ..self }
            }
            Fault::IgnoreRange => self,
            Fault::ShiftContentRange(by) => {
                let shift = |at: u64| at.saturating_add_signed(by);
                self.claimed = self.claimed.map(|range| shift(range.start)..shift(range.end));
                self
            }
            Fault::ShiftBody(by) => {
                self.part = self.part.start.saturating_add(by)..self.part.end.saturating_add(by);
                self
            }
            Fault::NoContentRange => Self { claimed: None, ..self },
            Fault::ContentLength(wrong_by) => Self { framing: Framing::Length { wrong_by }, close: true, ..self },
            Fault::UntilClose => Self { framing: Framing::UntilClose, ..self },
            Fault::Chunked => Self { framing: Framing::Chunked, ..self },
            Fault::OtherBytes(bytes) => {
                let ranged = Self::blob(request, Content::Memory(bytes));
                let claimed = self.claimed.as_ref().and(ranged.claimed);
                let part = if claimed.is_some() { ranged.part } else { 0..ranged.content.len() };
                Self { content: ranged.content, claimed, part, ..self }
            }
            Fault::FlipBit { at, bit } => {
                self.flips.push((at, bit));
                self
            }
            Fault::Stall { after, gate } => {
                self.stalls.push((after, gate));
                self
            }
            Fault::Hang(gate) => {
                self.hangs.push(gate);
                self
            }
            Fault::Pace(bytes_per_second) => Self { bytes_per_second: Some(bytes_per_second), ..self },
            Fault::Redirect { status, to, tickets } => {
                let mut location = match to {
                    RedirectTo::Exactly(location) => location,
                    RedirectTo::SamePathAt(base) if request.query.is_empty() => format!("{base}{}", request.path),
                    RedirectTo::SamePathAt(base) => format!("{base}{}?{}", request.path, request.query),
                };
                if let Some(tickets) = tickets {
                    let mark = if location.contains('?') { '&' } else { '?' };
                    location.push_str(&format!("{mark}{TICKET_PARAMETER}={}", tickets.issue()));
                }
                Self { hangs: self.hangs, ..Self::new(status, "text/html", "moved") }.header("Location", &location)
            }
            Fault::NeedTicket(tickets) if tickets.admit(request) => self,
            Fault::NeedTicket(_) => Self::error(403, "DENIED", "the ticket has expired"),
            Fault::Gzip => match self.compressed() {
                Ok(content) => {
                    let part = 0..content.len();
                    Self { content, part, ..self }.header("Content-Encoding", "gzip")
                }
                Err(_) => Self::error(500, "UNKNOWN", "the blob cannot be read"),
            },
            Fault::Endless => {
                if self.content.len() == 0 {
                    self.content = Content::Memory(Bytes::from_static(b" "));
                }
                if self.framing != Framing::Chunked {
                    self.framing = Framing::UntilClose;
                }
                Self { part: self.part.start..u64::MAX, ..self }
            }
            Fault::Close => Self { close: true, ..self },
        }
    }

    fn compressed(&self) -> io::Result<Content> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut at = self.part.start;
        while at < self.part.end {
            let piece = self.content.read(at, u64::min(self.part.end - at, PIECE) as usize)?;
            encoder.write_all(&piece)?;
            at += piece.len() as u64;
        }
        Ok(Content::Memory(encoder.finish()?.into()))
    }

    /// Writes the answer; calls `sent` with the number of body bytes written.
    ///
    /// # Errors
    /// When the client has left or a file cannot be read.
    pub(super) fn send(
        self,
        mut to: &TcpStream,
        request: &Request,
        waiting: &Waiting,
        sent: impl Fn(u64),
    ) -> io::Result<After> {
        self.hangs.iter().for_each(|gate| waiting.wait(gate));
        if let Some((_, Cut::ResetBeforeHeaders)) = self.cut {
            return Ok(After::Reset);
        }
        let total = self.part.end - self.part.start;
        to.write_all(self.head(total).as_bytes())?;
        if request.method == "HEAD" {
            return Ok(self.fate());
        }

        let mut done = 0;
        loop {
            for (_, gate) in self.stalls.iter().filter(|(after, _)| *after == done) {
                waiting.wait(gate);
            }
            match self.cut {
                Some((after, Cut::Close)) if after == done => return Ok(After::Close),
                Some((after, _)) if after == done => return Ok(After::Reset),
                _ if done == total => break,
                _ => {}
            }
            let marks = self.stalls.iter().map(|(after, _)| *after).chain(self.cut.map(|(after, _)| after));
            let next = marks.filter(|mark| *mark > done).fold(total, u64::min);
            // A slow body is sent evenly, in steps of a hundredth of a second.
            let most = self.bytes_per_second.map_or(PIECE, |speed| (speed / 100).clamp(1, PIECE));
            let piece = self.piece(done, u64::min(next - done, most) as usize)?;
            // Before it is written: a client that has received all of it may look at this figure at once.
            sent(piece.len() as u64);
            match self.framing {
                Framing::Chunked => {
                    let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
                    to.write_all(&chunk)?;
                }
                Framing::Length { .. } | Framing::UntilClose => to.write_all(&piece)?,
            }
            done += piece.len() as u64;
            if let Some(speed) = self.bytes_per_second {
                waiting.pause(Duration::from_secs_f64(piece.len() as f64 / speed.max(1) as f64));
            }
        }
        if self.framing == Framing::Chunked {
            to.write_all(b"0\r\n\r\n")?;
        }
        Ok(self.fate())
    }

    fn head(&self, total: u64) -> String {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(range) = &self.claimed {
            let last = range.end.saturating_sub(1);
            head.push_str(&format!("Content-Range: bytes {}-{last}/{}\r\n", range.start, self.content.len()));
        }
        match self.framing {
            Framing::Length { wrong_by } => {
                head.push_str(&format!("Content-Length: {}\r\n", total.saturating_add_signed(wrong_by)));
            }
            Framing::UntilClose => head.push_str("Connection: close\r\n"),
            Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        head
    }

    /// Body bytes from `done` on, bits flipped.
    fn piece(&self, done: u64, len: usize) -> io::Result<Vec<u8>> {
        let at = self.part.start + done;
        let len = if self.bytes_per_second.is_some() { len.min(PACED_PIECE) } else { len };
        let mut piece = self.content.read(at, len)?;
        // An endless answer continues in the same piece, so that a client also receives bytes after the end.
        while piece.len() < len {
            piece.extend(self.content.read(at + piece.len() as u64, len - piece.len())?);
        }
        for (flip, bit) in &self.flips {
            if let Some(byte) = flip.checked_sub(at).and_then(|index| piece.get_mut(index as usize)) {
                *byte ^= 1 << (bit & 7);
            }
        }
        Ok(piece)
    }

    fn fate(&self) -> After {
        match self.close || self.framing == Framing::UntilClose {
            true => After::Close,
            false => After::KeepOpen,
        }
    }
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        let answer = Self::new(verdict.status, "application/json", verdict.body);
        verdict.headers.iter().fold(answer, |answer, (name, value)| answer.header(name, value))
    }
}

impl After {
    /// Ends the connection if it is to end; dropping the stream does the rest.
    pub(super) fn carry_out(self, stream: &TcpStream) {
        // A failure means that the connection has ended already.
        let _ = match self {
            Self::KeepOpen => Ok(()),
            Self::Close => stream.shutdown(Shutdown::Both),
            Self::Reset => rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).map_err(Into::into),
        };
    }
}

/// Where threads wait, and how they are woken when the registry stops.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    stopping: AtomicBool,
    gates: Mutex<Vec<Gate>>,
    pause: (Mutex<()>, Condvar),
}

impl Waiting {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Wakes all waiting threads, now and later.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for gate in self.gates.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            gate.wake();
        }
        let _held = self.pause.0.lock();
        self.pause.1.notify_all();
    }

    /// The gate is listed before the flag is read, so a stop either sees the gate or is seen.
    fn wait(&self, gate: &Gate) {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).push(gate.clone());
        gate.wait(&self.stopping);
    }

    fn pause(&self, time: Duration) {
        let held = self.pause.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.pause.1.wait_timeout_while(held, time, |()| !self.is_stopping());
    }
}

enum RangeHeader {
    Satisfiable(Range<u64>),
    Unsatisfiable,
    Invalid,
}

/// Parses a `Range` header for `size` bytes; several ranges are ignored, as RFC 9110 allows.
fn parse_range(text: &str, size: u64) -> RangeHeader {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return RangeHeader::Invalid;
    };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.is_empty() => (first, size),
        (Err(_), Ok(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
        _ => return RangeHeader::Invalid,
    };
    if start < end { RangeHeader::Satisfiable(start..end) } else { RangeHeader::Unsatisfiable }
}

/// The most bytes written at once.
const PIECE: u64 = 64 << 10;
/// The most bytes written between two pauses.
const PACED_PIECE: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let table = [
            ("bytes=0-0", Some(0..1)),
            ("bytes=2-", Some(2..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-30", Some(0..10)),
            ("bytes=5-99", Some(5..10)),
            ("bytes=0-18446744073709551615", Some(0..10)),
        ];
        for (text, wanted) in table {
            assert!(
                matches!(parse_range(text, 10), RangeHeader::Satisfiable(part) if Some(&part) == wanted.as_ref()),
                "{text}"
            );
        }
        for text in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
            assert!(matches!(parse_range(text, 10), RangeHeader::Unsatisfiable), "{text}");
        }
        for text in ["bytes=", "bytes=-", "bytes=3-2", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"] {
            assert!(matches!(parse_range(text, 10), RangeHeader::Invalid), "{text}");
        }
    }
}
