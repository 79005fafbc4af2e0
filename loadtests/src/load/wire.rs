//! As much of HTTP/1.1 as the load tool needs, on both of its sides, at as little cost: heads are collected, bodies are
//! handed on in place.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::ReadBuf;

use crate::load::content::Fault;
use crate::load::content::Sink;

/// The longest head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// More than a proxy writes at once, most of the time.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// One for all connections of the thread: nothing stays in it between polls.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Reads once, and hands over what has arrived before anything else runs. At the end it is empty.
pub async fn read<T>(stream: &mut (impl AsyncRead + Unpin), mut take: impl FnMut(&[u8]) -> T) -> io::Result<T> {
    std::future::poll_fn(|cx| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(take(buffer.filled())))
        })
    })
    .await
}

/// How a body ends.
enum Framing {
    Length(u64),
    Chunked(Chunked),
}

/// Where in a chunked body we are.
#[derive(Clone, Copy)]
enum Chunked {
    Size(u64),
    Extension(u64),
    Data(u64),
    DataEnd,
    /// Bytes of the present line of the trailers; the body ends with an empty one.
    Trailer(u32),
    End,
}

/// One message: first its head, then its body.
pub struct Message {
    head: Vec<u8>,
    body: Option<Framing>,
}

impl Message {
    /// Nothing has come. `head` is a buffer to use again.
    pub fn new(mut head: Vec<u8>) -> Message {
        head.clear();
        Message { head, body: None }
    }

    /// The bytes of the head, for the next message.
    pub fn into_buffer(self) -> Vec<u8> {
        self.head
    }

    /// The head, once it is complete.
    pub fn head(&self) -> Option<Head<'_>> {
        self.body.is_some().then_some(Head(&self.head))
    }

    /// Takes what is still of the head out of `data` and gives the rest, which is the body's.
    pub fn feed_head<'d>(&mut self, data: &'d [u8]) -> Result<&'d [u8], Fault> {
        if self.body.is_some() {
            return Ok(data);
        }
        let before = self.head.len();
        self.head.extend_from_slice(data);
        let from = before.saturating_sub(3);
        let Some(end) = self.head[from..].windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() > HEAD_BYTES_MAX { Err(Fault("a head without end".into())) } else { Ok(&[]) };
        };
        let end = from + end + 4;
        self.head.truncate(end);
        let head = Head(&self.head);
        let framing = match (head.value("transfer-encoding"), head.value("content-length")) {
            (Some(b"chunked"), None) => Framing::Chunked(Chunked::Size(0)),
            (None, Some(len)) => Framing::Length(number(len).ok_or_else(|| Fault("no content-length".into()))?),
            (None, None) if head.0.starts_with(b"GET ") => Framing::Length(0),
            _ => return Err(Fault("a body of unclear length".into())),
        };
        self.body = Some(framing);
        Ok(&data[end - before..])
    }

    /// Takes the body out of `data`. True: it is complete, and nothing was behind it.
    pub fn feed_body(&mut self, mut data: &[u8], sink: &mut impl Sink) -> Result<bool, Fault> {
        let Some(framing) = &mut self.body else { return Ok(false) };
        let done = match framing {
            Framing::Length(left) => {
                let taken = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                sink.data(&data[..taken])?;
                data = &data[taken..];
                *left -= taken as u64;
                *left == 0
            }
            Framing::Chunked(state) => feed_chunked(state, &mut data, sink)?,
        };
        if !data.is_empty() {
            return Err(Fault("bytes behind the end of a body".into()));
        }
        Ok(done)
    }
}

/// True: the end was reached; what is left of `data` is not the body's.
fn feed_chunked(state: &mut Chunked, data: &mut &[u8], sink: &mut impl Sink) -> Result<bool, Fault> {
    while let Some((byte, rest)) = data.split_first() {
        *state = match *state {
            Chunked::End => return Ok(true),
            Chunked::Data(left) => {
                let taken = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let (own, others) = data.split_at(taken);
                sink.data(own)?;
                *data = others;
                *state = match left - taken as u64 {
                    0 => Chunked::DataEnd,
                    left => Chunked::Data(left),
                };
                continue;
            }
            Chunked::Size(size) => match byte {
                b'\r' => Chunked::Size(size),
                b'\n' if size == 0 => Chunked::Trailer(0),
                b'\n' => Chunked::Data(size),
                b';' | b' ' => Chunked::Extension(size),
                digit => {
                    let digit = char::from(*digit).to_digit(16).ok_or_else(|| Fault("a chunk without size".into()))?;
                    Chunked::Size(size << 4 | u64::from(digit))
                }
            },
            Chunked::Extension(size) => match byte {
                b'\n' if size == 0 => Chunked::Trailer(0),
                b'\n' => Chunked::Data(size),
                _ => Chunked::Extension(size),
            },
            Chunked::DataEnd => match byte {
                b'\r' => Chunked::DataEnd,
                b'\n' => Chunked::Size(0),
                _ => return Err(Fault("a chunk longer than its size".into())),
            },
            Chunked::Trailer(len) => match byte {
                b'\r' => Chunked::Trailer(len),
                b'\n' if len == 0 => Chunked::End,
                b'\n' => Chunked::Trailer(0),
                _ => Chunked::Trailer(len + 1),
            },
        };
        *data = rest;
    }
    Ok(matches!(state, Chunked::End))
}

/// The bytes of a complete head.
#[derive(Clone, Copy)]
pub struct Head<'h>(&'h [u8]);

impl<'h> Head<'h> {
    /// The value of a field, by its name in small letters.
    pub fn value(self, name: &str) -> Option<&'h [u8]> {
        self.0.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
            let (own, value) = line.split_at_checked(name.len())?;
            if !own.eq_ignore_ascii_case(name.as_bytes()) {
                return None;
            }
            Some(value.strip_prefix(b":")?.trim_ascii())
        })
    }

    /// The status of an answer; 0 if it has none.
    pub fn status(self) -> u16 {
        self.0.get(9..12).and_then(number).unwrap_or(0) as u16
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// `data` as a chunk.
pub fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    use std::io::Write as _;
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The chunk that ends a body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    struct Collect(Vec<u8>);

    impl Sink for Collect {
        fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
            self.0.extend_from_slice(data);
            Ok(())
        }

        fn end(&mut self) -> Result<(), Fault> {
            Ok(())
        }
    }

    fn parse(bytes: &[u8], cut: usize) -> Result<(u16, Vec<u8>, bool), Fault> {
        let mut message = Message::new(Vec::new());
        let mut body = Collect(Vec::new());
        let mut done = false;
        for piece in bytes.chunks(cut) {
            if done {
                return Err(Fault("more".into()));
            }
            let rest = message.feed_head(piece)?;
            done = message.feed_body(rest, &mut body)?;
        }
        Ok((message.head().map_or(0, Head::status), body.0, done))
    }

    #[test]
    fn messages_in_any_cut() {
        let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx: y\r\n\r\n".to_vec();
        push_chunk(&mut chunked, b"hello");
        chunked.extend_from_slice(b"A;ext=1\r\n, the rest\r\n0\r\nTrailer: 1\r\n\r\n");
        let known = b"HTTP/1.1 201 Created\r\ncontent-length: 15\r\n\r\nhello, the rest".to_vec();
        for (bytes, status) in [(chunked, 200), (known, 201)] {
            for cut in 1..=bytes.len() {
                assert_eq!(parse(&bytes, cut).unwrap(), (status, b"hello, the rest".to_vec(), true), "{cut}");
                assert!(!parse(&bytes[..bytes.len() - 1], cut).unwrap().2);
            }
            assert!(parse(&[&bytes[..], b"x"].concat(), 1000).is_err());
        }
    }

    #[test]
    fn a_message_must_say_where_it_ends() {
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\nbody", 100).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nb", 100).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc", 100).is_err());
    }
}
