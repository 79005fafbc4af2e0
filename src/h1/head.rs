//! Heads of messages: read with `httparse`, written by hand (RFC 9112 sections 3 to 5).
//!
//! What is read is copied, into blocks that are cleared with the last of their values; a credential into one of its own.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use http::HeaderMap;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::Version;

use super::body::Framing;
use super::body::Malformed;

use crate::message::Fields;
use crate::message::Value;
use crate::message::name;

/// Fields of one head, whatever the configuration says; its maximum is not above.
const FIELDS_MAX: usize = 1_000;

/// Fields that are read without a block from the heap.
const FIELDS_ON_STACK: usize = 128;

/// Why a head cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeadFault {
    Malformed,
    /// More bytes or fields than are taken.
    TooLarge,
}

/// A request's head as it came.
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) target: Uri,
    /// 1.0 or 1.1.
    pub(crate) version: Version,
    pub(crate) headers: Fields,
}

/// An answer's head as it came.
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    /// 1.0 or 1.1.
    pub(crate) version: Version,
    pub(crate) headers: Fields,
}

/// A head that is read from the beginning of what has arrived.
pub(crate) trait Head: Sized {
    /// The head, and its length in bytes; `None` if it is not whole yet.
    ///
    /// # Errors
    /// It is none, or has more than `fields_max` fields.
    fn parse(bytes: &[u8], fields_max: usize) -> Result<Option<(Self, usize)>, HeadFault>;
}

impl Head for RequestHead {
    fn parse(bytes: &[u8], fields_max: usize) -> Result<Option<(Self, usize)>, HeadFault> {
        with_room(fields_max, |room| {
            let mut request = httparse::Request::new(&mut []);
            let status = httparse::ParserConfig::default()
                .parse_request_with_uninit_headers(&mut request, bytes, room)
                .map_err(fault_of)?;
            let httparse::Status::Complete(len) = status else { return Ok(None) };
            let method = request.method.unwrap_or_default();
            let target = request.path.unwrap_or_default();
            let head = Self {
                method: Method::from_bytes(method.as_bytes()).map_err(|_| HeadFault::Malformed)?,
                target: target.parse().map_err(|_| HeadFault::Malformed)?,
                version: version_of(request.version)?,
                headers: copied(request.headers)?,
            };
            Ok(Some((head, len)))
        })
    }
}

impl Head for ResponseHead {
    fn parse(bytes: &[u8], fields_max: usize) -> Result<Option<(Self, usize)>, HeadFault> {
        with_room(fields_max, |room| {
            let mut response = httparse::Response::new(&mut []);
            let status = httparse::ParserConfig::default()
                .parse_response_with_uninit_headers(&mut response, bytes, room)
                .map_err(fault_of)?;
            let httparse::Status::Complete(len) = status else { return Ok(None) };
            let head = Self {
                status: StatusCode::from_u16(response.code.unwrap_or_default()).map_err(|_| HeadFault::Malformed)?,
                version: version_of(response.version)?,
                headers: copied(response.headers)?,
            };
            Ok(Some((head, len)))
        })
    }
}

/// The fields of a trailer section, which ends with an empty line.
///
/// # Errors
/// They cannot be read.
pub(super) fn parse_trailers(bytes: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS_ON_STACK];
    match httparse::parse_headers(bytes, &mut room) {
        Ok(httparse::Status::Complete((len, fields))) if len == bytes.len() => {
            copied(fields).map(HeaderMap::from).map_err(|_| Malformed)
        }
        _ => Err(Malformed),
    }
}

fn with_room<'b, T>(fields_max: usize, parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> T) -> T {
    let fields_max = fields_max.min(FIELDS_MAX);
    if fields_max <= FIELDS_ON_STACK {
        parse(&mut [const { MaybeUninit::uninit() }; FIELDS_ON_STACK][..fields_max])
    } else {
        parse(&mut vec![MaybeUninit::uninit(); fields_max])
    }
}

fn fault_of(error: httparse::Error) -> HeadFault {
    if error == httparse::Error::TooManyHeaders { HeadFault::TooLarge } else { HeadFault::Malformed }
}

fn version_of(minor: Option<u8>) -> Result<Version, HeadFault> {
    match minor {
        Some(0) => Ok(Version::HTTP_10),
        Some(1) => Ok(Version::HTTP_11),
        _ => Err(HeadFault::Malformed),
    }
}

fn copied(fields: &[httparse::Header<'_>]) -> Result<Fields, HeadFault> {
    let pairs = fields.iter().map(|field| (field.name.as_bytes(), field.value));
    Fields::read(pairs).ok_or(HeadFault::Malformed)
}

impl RequestHead {
    /// How long the body is. `close`: the connection cannot be used for another request, because a server behind might read
    /// the end of this one elsewhere.
    ///
    /// # Errors
    /// Its length can be read in more than one way.
    pub(crate) fn framing(&self) -> Result<(Framing, bool), Malformed> {
        let coding = one_coding(&self.headers)?;
        if coding && self.version == Version::HTTP_10 {
            return Err(Malformed);
        }
        if coding {
            // RFC 9112 section 6.1: the coding decides; whoever sends both may want to be read twice.
            return Ok((Framing::Chunked, self.headers.contains_key(name::CONTENT_LENGTH)));
        }
        Ok((one_length(&self.headers)?.map_or(Framing::Empty, Framing::Length), false))
    }

    /// Whether the client wants to go on with this connection (RFC 9112 section 9.3).
    pub(crate) fn keeps_alive(&self) -> bool {
        keeps_alive(self.version, &self.headers)
    }
}

impl ResponseHead {
    /// How long the body is, of an answer to a request with `method`.
    ///
    /// # Errors
    /// Its length can be read in more than one way. Codings beside chunks are refused, because they would be lost on the
    /// way to the client.
    pub(crate) fn framing(&self, method: &Method) -> Result<Framing, Malformed> {
        let coding = one_coding(&self.headers)?;
        let length = one_length(&self.headers)?;
        if coding && (length.is_some() || self.version == Version::HTTP_10) {
            return Err(Malformed);
        }
        let status = self.status;
        if *method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        {
            return Ok(Framing::Empty);
        }
        Ok(match length {
            _ if coding => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        })
    }

    /// Whether the server lets the connection be used again.
    pub(crate) fn keeps_alive(&self) -> bool {
        keeps_alive(self.version, &self.headers)
    }
}

/// Whether the body comes in chunks.
fn one_coding(headers: &Fields) -> Result<bool, Malformed> {
    let mut codings = headers.get_all(name::TRANSFER_ENCODING);
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(Malformed),
    }
}

fn one_length(headers: &Fields) -> Result<Option<u64>, Malformed> {
    let mut lengths = headers.get_all(name::CONTENT_LENGTH);
    let Some(length) = lengths.next() else { return Ok(None) };
    let digits = length.as_bytes();
    if lengths.next().is_some() || digits.is_empty() {
        return Err(Malformed);
    }
    let mut value: u64 = 0;
    for digit in digits {
        let digit = char::from(*digit).to_digit(10).ok_or(Malformed)?;
        value = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit))).ok_or(Malformed)?;
    }
    Ok(Some(value))
}

fn keeps_alive(version: Version, headers: &Fields) -> bool {
    let says = |token: &str| {
        let values = headers.get_all(name::CONNECTION).filter_map(|value| value.text());
        values.flat_map(|text| text.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if version == Version::HTTP_10 { says("keep-alive") && !says("close") } else { !says("close") }
}

/// Adds a request's first line and its `host`.
pub(crate) fn write_request_line(out: &mut Vec<u8>, method: &Method, target: [&str; 2], host: &str) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target[0].as_bytes());
    out.extend_from_slice(target[1].as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Adds an answer's first line.
pub(crate) fn write_status_line(out: &mut Vec<u8>, version: Version, status: StatusCode) {
    out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Adds all `fields`.
pub(crate) fn write_fields<'f>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'f str, Value<'f>)>) {
    for (name, value) in fields {
        write_field(out, name, value.as_bytes());
    }
}

/// Adds one field.
pub(crate) fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Adds the length of a body.
pub(crate) fn write_length(out: &mut Vec<u8>, length: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut left = length;
    loop {
        start -= 1;
        digits[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    write_field(out, "content-length", &digits[start..]);
}

/// Adds the date, which an answer has (RFC 9110 section 6.6.1).
pub(crate) fn write_date(out: &mut Vec<u8>) {
    thread_local! {
        /// The second that the text is of.
        static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(known, text)| {
        if *known != second || text.is_empty() {
            *known = second;
            *text = httpdate::fmt_http_date(now);
        }
        write_field(out, "date", text.as_bytes());
    });
}

/// Room that a head of `headers` takes, about.
pub(crate) fn head_bytes(headers: &Fields) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.as_bytes().len() + 4).sum::<usize>() + 160
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Option<(RequestHead, usize)>, HeadFault> {
        RequestHead::parse(text.as_bytes(), 16)
    }

    fn response(text: &str) -> ResponseHead {
        ResponseHead::parse(text.as_bytes(), 16).ok().flatten().expect("a head").0
    }

    #[test]
    fn a_request_is_read_when_it_is_whole() {
        let text = "POST /v1/x?a=b HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\n\r\n";
        for len in 0..text.len() {
            assert!(request(&text[..len]).expect("not wrong so far").is_none(), "{len}");
        }
        let (head, len) = request(&format!("{text}body")).expect("readable").expect("whole");
        assert_eq!((head.method, head.version, len), (Method::POST, Version::HTTP_11, text.len()));
        assert_eq!(head.target, "/v1/x?a=b");
        assert_eq!(head.headers.get_all("x-a").filter_map(Value::text).collect::<Vec<_>>(), ["1", "2"]);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(17));
        assert_eq!(request(&many).err(), Some(HeadFault::TooLarge));
        for text in ["GET / HTTP/2.0\r\n\r\n", "GET /\r\n\r\n", "G@T / HTTP/1.1\r\nhost : x\r\n\r\n", "\0"] {
            assert_eq!(request(text).err(), Some(HeadFault::Malformed), "{text:?}");
        }
        let most = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(900));
        assert_eq!(RequestHead::parse(most.as_bytes(), 1_000).ok().flatten().expect("a head").0.headers.len(), 900);
    }

    #[test]
    fn the_length_of_a_request_can_be_read_in_one_way_or_not_at_all() {
        let framing = |version: &str, fields: &str| {
            let text = format!("POST / HTTP/{version}\r\n{fields}\r\n");
            request(&text).expect("readable").expect("whole").0.framing()
        };
        assert_eq!(framing("1.1", ""), Ok((Framing::Empty, false)));
        assert_eq!(framing("1.1", "content-length: 007\r\n"), Ok((Framing::Length(7), false)));
        assert_eq!(framing("1.0", "content-length: 7\r\n"), Ok((Framing::Length(7), false)));
        assert_eq!(framing("1.1", "Transfer-Encoding: Chunked\r\n"), Ok((Framing::Chunked, false)));
        assert_eq!(framing("1.1", "transfer-encoding: chunked\r\ncontent-length: 7\r\n"), Ok((Framing::Chunked, true)));
        for fields in [
            "content-length: 7\r\ncontent-length: 7\r\n",
            "content-length: +7\r\n",
            "content-length: 7, 7\r\n",
            "content-length:\r\n",
            "content-length: 18446744073709551616\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding:\r\n",
        ] {
            assert_eq!(framing("1.1", fields), Err(Malformed), "{fields:?}");
        }
        assert_eq!(framing("1.0", "transfer-encoding: chunked\r\n"), Err(Malformed));
    }

    #[test]
    fn the_length_of_an_answer_depends_on_what_was_asked() {
        let framing = |head: &str, method: Method| response(&format!("HTTP/1.1 {head}\r\n\r\n")).framing(&method);
        assert_eq!(framing("200 OK", Method::GET), Ok(Framing::UntilClose));
        assert_eq!(framing("200 \r\ncontent-length: 3", Method::POST), Ok(Framing::Length(3)));
        assert_eq!(framing("200 OK\r\ncontent-length: 3", Method::HEAD), Ok(Framing::Empty));
        assert_eq!(framing("304 x\r\ncontent-length: 3", Method::GET), Ok(Framing::Empty));
        assert_eq!(framing("204 x", Method::GET), Ok(Framing::Empty));
        assert_eq!(framing("200 OK\r\ntransfer-encoding: chunked", Method::GET), Ok(Framing::Chunked));
        for fields in [
            "transfer-encoding: chunked\r\ncontent-length: 3",
            "transfer-encoding: gzip",
            "content-length: 3\r\ncontent-length: 3",
            "content-length: 3x",
        ] {
            assert_eq!(framing(&format!("200 OK\r\n{fields}"), Method::GET), Err(Malformed), "{fields:?}");
        }
        let old = response("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(old.framing(&Method::GET), Err(Malformed));
    }

    #[test]
    fn who_keeps_the_connection() {
        for (head, kept) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nconnection: x, Close\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive, close\r\n\r\n", false),
        ] {
            assert_eq!(response(head).keeps_alive(), kept, "{head:?}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut headers = Fields::default();
        headers.append(http::HeaderName::from_static("x-a"), Value::of("1"));
        headers.append(http::HeaderName::from_static("x-a"), Value::of("2"));
        let mut out = Vec::new();
        write_request_line(&mut out, &Method::POST, ["/base", "/v1?x=y"], "host:1");
        write_fields(&mut out, headers.iter());
        write_length(&mut out, u64::MAX);
        out.extend_from_slice(b"\r\n");
        let (head, len) = RequestHead::parse(&out, 16).ok().flatten().expect("a head");
        assert_eq!((len, head.target.to_string()), (out.len(), "/base/v1?x=y".to_owned()));
        assert_eq!(head.headers["host"], *"host:1");
        assert_eq!(head.framing(), Ok((Framing::Length(u64::MAX), false)));
        assert!(out.len() < head_bytes(&headers));

        let mut out = Vec::new();
        write_status_line(&mut out, Version::HTTP_11, StatusCode::from_u16(529).expect("a status"));
        write_date(&mut out);
        write_length(&mut out, 0);
        out.extend_from_slice(b"\r\n");
        let (head, _) = ResponseHead::parse(&out, 16).ok().flatten().expect("a head");
        assert_eq!(head.status, 529);
        assert!(httpdate::parse_http_date(&head.headers["date"]).is_ok());
        assert_eq!(head.framing(&Method::GET), Ok(Framing::Length(0)));
    }
}
