//! Messages read at once and in pieces: what is understood of them must not depend on where a peer, the network or TLS cuts
//! them. For a test and a fuzz target.

use std::cell::RefCell;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use http::Method;

use super::Decoder;
use super::Framing;
use super::Head;
use super::ReadFault;
use super::RequestHead;
use super::ResponseHead;
use super::Wire;
use crate::message::Value;
use crate::socket::Socket;
use crate::socket::Transport;

/// Limits of the heads here; small, so that both are met.
const HEAD_BYTES: usize = 1024;
const FIELDS: usize = 8;

/// In two pieces at each of the first places.
const CUTS_MAX: usize = 400;

/// Whose messages are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Requests,
    /// Answers to requests with this method.
    Answers {
        head: bool,
    },
}

impl Side {
    /// One of them for any byte.
    pub(crate) fn of(byte: u8) -> Self {
        match byte % 3 {
            0 => Self::Requests,
            1 => Self::Answers { head: false },
            _ => Self::Answers { head: true },
        }
    }
}

/// What was understood.
#[derive(PartialEq, Eq, Debug)]
enum Part {
    /// What it asks or answers, and its fields.
    Head(String, Vec<(String, Vec<u8>)>),
    /// A head's length can be read in more than one way, or is none.
    Unframed,
    Body(Vec<u8>),
    Trailers(Vec<(String, Vec<u8>)>),
    /// A body that is none. How much of it came before that is known depends on the cut.
    Malformed,
    /// No head: not whole, none, or too long. Which one is known earlier with more bytes at once.
    Nothing,
    /// The body has not come to its end.
    Unfinished,
}

/// Reads `bytes` at once, in two at each place, and byte by byte, and asserts that the same was understood. How many heads
/// were.
pub(crate) fn check(side: Side, bytes: &[u8]) -> usize {
    let whole = read(side, &mut [bytes].into_iter());
    for cut in 1..bytes.len().min(CUTS_MAX) {
        let (first, second) = bytes.split_at(cut);
        assert_eq!(read(side, &mut [first, second].into_iter()), whole, "cut at {cut}");
    }
    assert_eq!(read(side, &mut bytes.chunks(1)), whole, "byte by byte");
    whole.iter().filter(|part| matches!(part, Part::Head(..))).count()
}

thread_local! {
    /// A connection on which nothing ever comes by itself. One for all: each costs two sockets.
    static SILENT: RefCell<Option<Silent>> = const { RefCell::new(None) };
}

struct Silent {
    runtime: tokio::runtime::Runtime,
    transport: Transport,
    _peer: std::net::TcpStream,
}

impl Silent {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
        let (peer, _) = listener.accept().expect("accepts");
        stream.set_nonblocking(true).expect("an option");
        let (socket, _) = {
            let _inside = runtime.enter();
            Socket::new(tokio::net::TcpStream::from_std(stream).expect("a stream"))
        };
        Self { runtime, transport: Transport::Plain(socket), _peer: peer }
    }
}

fn read(side: Side, pieces: &mut dyn Iterator<Item = &[u8]>) -> Vec<Part> {
    let Silent { runtime, transport, _peer } = SILENT.take().unwrap_or_else(Silent::new);
    let mut wire = Wire::new(transport);
    let parts = {
        let _inside = runtime.enter();
        let mut parts = Vec::new();
        while message(side, &mut wire, pieces, &mut parts) {}
        parts
    };
    let (transport, _) = wire.into_parts();
    SILENT.set(Some(Silent { runtime, transport, _peer }));
    parts
}

/// Reads one message. Whether another one may follow.
fn message(side: Side, wire: &mut Wire, pieces: &mut dyn Iterator<Item = &[u8]>, parts: &mut Vec<Part>) -> bool {
    let framing = match side {
        Side::Requests => next_head::<RequestHead>(wire, pieces).map(|head| {
            let line = format!("{} {} {:?} {}", head.method, head.target, head.version, head.keeps_alive());
            parts.push(Part::Head(line, fields(head.headers.iter())));
            head.framing().map(|(framing, _)| framing)
        }),
        Side::Answers { head } => next_head::<ResponseHead>(wire, pieces).map(|answer| {
            let line = format!("{} {:?} {}", answer.status, answer.version, answer.keeps_alive());
            parts.push(Part::Head(line, fields(answer.headers.iter())));
            answer.framing(if head { &Method::HEAD } else { &Method::GET })
        }),
    };
    let framing = match framing {
        None => {
            parts.push(Part::Nothing);
            return false;
        }
        Some(Err(_)) => {
            parts.push(Part::Unframed);
            return false;
        }
        Some(Ok(framing)) => framing,
    };
    let mut decoder = Decoder::new(framing);
    let mut content = Vec::new();
    loop {
        match wire.take_body(&mut decoder) {
            Ok(Some(chunk)) => {
                assert!(!chunk.as_slice().is_empty());
                content.extend_from_slice(chunk.as_slice());
            }
            Ok(None) if decoder.is_done() => break,
            Ok(None) => match pieces.next() {
                Some(piece) => feed(wire, piece),
                None if decoder.close() => break,
                None => {
                    parts.extend([Part::Body(content), Part::Unfinished]);
                    return false;
                }
            },
            Err(_) => {
                parts.push(Part::Malformed);
                return false;
            }
        }
    }
    if let Framing::Length(length) = framing {
        assert_eq!(content.len() as u64, length);
    }
    parts.push(Part::Body(content));
    match decoder.take_trailers() {
        Ok(Some(trailers)) => parts.push(Part::Trailers(fields(crate::message::Fields::from(trailers).iter()))),
        Ok(None) => {}
        Err(_) => {
            parts.push(Part::Malformed);
            return false;
        }
    }
    framing != Framing::UntilClose
}

fn next_head<H: Head>(wire: &mut Wire, pieces: &mut dyn Iterator<Item = &[u8]>) -> Option<H> {
    loop {
        match wire.poll_head::<H>(&mut Context::from_waker(Waker::noop()), HEAD_BYTES, FIELDS) {
            Poll::Ready(Ok(head)) => return Some(head),
            Poll::Ready(Err(ReadFault::Head(_))) => return None,
            Poll::Ready(Err(ReadFault::Io | ReadFault::Closed { .. })) => panic!("the silent connection ended"),
            Poll::Pending => feed(wire, pieces.next()?),
        }
    }
}

/// As if it had been read.
fn feed(wire: &mut Wire, piece: &[u8]) {
    if wire.unread() == 0 {
        wire.scanned = 0;
    }
    wire.block = [&wire.block[wire.start..], piece].concat();
    wire.start = 0;
}

fn fields<'f>(fields: impl Iterator<Item = (&'f str, Value<'f>)>) -> Vec<(String, Vec<u8>)> {
    fields.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: &[&str] = &[
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /b?c HTTP/1.0\r\n\r\n",
        "POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloPUT / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n02 \r\nlo\r\n0\r\nx: y\r\nz:\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\n\r\n\r\nGET / HTTP/1.1\nhost: b\n\nDELETE / HTTP/1.1\r\na: b\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ];

    const ANSWERS: &[&str] = &[
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 204 x\r\n\r\nHTTP/1.1 200 \r\n\r\nuntil the end",
        "HTTP/1.1 103 x\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata: \r\n2\r\n\n\n\r\n0\r\n\r\n",
        "HTTP/1.0 304 x\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 101 x\r\nupgrade: y\r\n\r\nHTTP/1.1 413\r\ncontent-length: 1\r\n\r\nx",
    ];

    #[test]
    fn what_is_understood_does_not_depend_on_the_cut() {
        for (side, messages) in [(Side::Requests, REQUESTS), (Side::Answers { head: false }, ANSWERS)] {
            for text in messages {
                assert!(check(side, text.as_bytes()) >= 2, "{text:?}");
            }
        }
        for text in ANSWERS {
            check(Side::Answers { head: true }, text.as_bytes());
        }
        let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(HEAD_BYTES));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        for text in [long, many] {
            assert_eq!(check(Side::Requests, text.as_bytes()), 0);
        }
    }

    #[test]
    fn nor_does_it_where_bytes_are_wrong() {
        const BYTES: &[u8] = b"\r\n\0 \t:;,0129afx-\x7f\x80\xff/H";
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for _ in 0..300 {
            let side = Side::of(random(3) as u8);
            let messages = if side == Side::Requests { REQUESTS } else { ANSWERS };
            let mut bytes = messages[random(messages.len())].as_bytes().to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = BYTES[random(BYTES.len())],
                    1 => bytes.insert(at, BYTES[random(BYTES.len())]),
                    _ => drop(bytes.remove(at)),
                }
            }
            check(side, &bytes);
        }
    }
}
