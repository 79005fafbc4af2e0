//! HTTP/1.1 on a connection, either side of it.
//!
//! A proxy needs little of it, and needs that little cheap: heads are read with `httparse` and become what `http` has for
//! them, bodies go from the block that TLS has opened to the one that TLS seals, several chunks of a read as one. Whoever
//! waits for a message polls the connection itself: there is no task and no channel between its two halves, and a
//! connection on which nothing moves holds no buffer.
//!
//! `upstream` speaks it as a client, `server` as a server. Whatever stands in a block is content; blocks are cleared when
//! they are freed, a body's part of them when it was written.

#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
mod body;
mod head;
mod inbound;
#[cfg(any(test, fuzzing))]
mod twin;

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Buf;
use http::HeaderMap;
use memchr::memmem;
use tokio::io::AsyncWrite;

use crate::hygiene::Chunk;
use crate::hygiene::wipe::wipe;
use crate::socket::Transport;

pub(crate) use body::Decoder;
pub(crate) use body::Framing;
pub(crate) use body::Malformed;
pub(crate) use head::Head;
pub(crate) use head::HeadFault;
pub(crate) use head::RequestHead;
pub(crate) use head::ResponseHead;
pub(crate) use head::head_bytes;
pub(crate) use head::write_date;
pub(crate) use head::write_field;
pub(crate) use head::write_fields;
pub(crate) use head::write_length;
pub(crate) use head::write_request_line;
pub(crate) use head::write_status_line;
pub(crate) use inbound::Inbound;
pub(crate) use inbound::InboundFault;
pub(crate) use inbound::Served;
pub(crate) use inbound::Takeover;
#[cfg(fuzzing)]
pub(crate) use twin::Side;
#[cfg(fuzzing)]
pub(crate) use twin::check as same_at_each_cut;

/// What is gathered for one write while more is ready: two TLS records' worth, and a bound on what a reader that stops
/// makes us hold.
const GATHER_BYTES: usize = 16 << 10;

/// Pieces of one write; each is up to three slices.
const PIECES_MAX: usize = 20;

/// Why no head was read.
#[derive(Debug)]
pub(crate) enum ReadFault {
    Head(HeadFault),
    /// The connection broke.
    Io,
    /// The peer ended its side; `within` a head.
    Closed {
        within: bool,
    },
}

/// A connection with what was read from it and not used, and what is to be written to it.
pub(crate) struct Wire {
    transport: Transport,
    /// Unread from `start` on.
    block: Vec<u8>,
    start: usize,
    /// Of the unread bytes, how many have no end of a head in them.
    scanned: usize,
    out: Out,
}

impl Wire {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, block: Vec::new(), start: 0, scanned: 0, out: Out::default() }
    }

    /// Bytes that have arrived and were not used.
    pub(crate) fn unread(&self) -> usize {
        self.block.len() - self.start
    }

    /// What is to be written.
    pub(crate) fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    /// The connection and what has arrived on it, for another protocol.
    pub(crate) fn into_parts(mut self) -> (Transport, Chunk) {
        let unread = self.take_unread();
        (self.transport, Chunk::taken(unread))
    }

    /// Whether nothing can have come since a read found nothing. Only for whoever was told to wait then, and waits still.
    fn is_still(&self) -> bool {
        self.transport.is_still()
    }

    /// Reads on. `false`: the peer has ended its side.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let block = ready!(self.transport.poll_block(cx))?;
        if block.is_empty() {
            return Poll::Ready(Ok(false));
        }
        if self.unread() == 0 {
            (self.block, self.start, self.scanned) = (block, 0, 0);
        } else {
            let mut joined = Vec::with_capacity(self.unread() + block.len());
            joined.extend_from_slice(&self.block[self.start..]);
            joined.extend_from_slice(&block);
            (self.block, self.start) = (joined, 0);
        }
        Poll::Ready(Ok(true))
    }

    /// Reads on and keeps nothing; how much that was, zero at the peer's end.
    pub(crate) fn poll_away(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        drop(self.take_unread());
        self.transport.poll_block(cx).map_ok(|block| block.len())
    }

    /// Reads the next head, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn poll_head<H: Head>(
        &mut self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        fields_max: usize,
    ) -> Poll<Result<H, ReadFault>> {
        loop {
            let unread = &self.block[self.start..];
            // A longer head has no end in here.
            let seen = &unread[..unread.len().min(bytes_max)];
            // One that comes byte by byte is looked through once, not once for each. What is no head at all is seen before
            // its end, which may never come.
            if ends_head(seen, self.scanned) || (self.scanned == 0 && seen.len() > FIRST_BYTES) {
                match H::parse(seen, fields_max).map_err(ReadFault::Head) {
                    Ok(Some((head, len))) => {
                        self.consume(len);
                        return Poll::Ready(Ok(head));
                    }
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Err(fault)),
                }
            }
            self.scanned = seen.len();
            if seen.len() >= bytes_max {
                return Poll::Ready(Err(ReadFault::Head(HeadFault::TooLarge)));
            }
            match ready!(self.poll_more(cx)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(Err(ReadFault::Closed { within: self.unread() > 0 })),
                Err(_) => return Poll::Ready(Err(ReadFault::Io)),
            }
        }
    }

    /// The next piece of a body, from what has arrived: `None` if nothing of it has.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn take_body(&mut self, decoder: &mut Decoder) -> Result<Option<Chunk>, Malformed> {
        while self.unread() > 0 && !decoder.is_done() {
            let mut block = self.take_unread();
            let decoded = decoder.decode(&mut block)?;
            if decoded.used < block.len() {
                self.block = block[decoded.used..].to_vec();
            }
            if decoded.content > 0 {
                // What stands behind the content is cleared with the block.
                block.truncate(decoded.content);
                return Ok(Some(Chunk::taken(block)));
            }
        }
        Ok(None)
    }

    fn consume(&mut self, len: usize) {
        wipe(&mut self.block[self.start..self.start + len]);
        self.start += len;
        self.scanned = 0;
        if self.unread() == 0 {
            (self.block, self.start) = (Vec::new(), 0);
        }
    }

    fn take_unread(&mut self) -> Vec<u8> {
        let block = std::mem::take(&mut self.block);
        self.scanned = 0;
        match std::mem::take(&mut self.start) {
            0 => block,
            start => block[start..].to_vec(),
        }
    }

    /// Writes what is gathered. `Ready` when the transport has taken all of it.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let transport = Pin::new(&mut self.transport);
            // Nearly always a single piece.
            let written = if self.out.pieces.len() < 2 {
                let mut slices = [IoSlice::new(&[]); 4];
                let count = self.out.slices(&mut slices);
                ready!(transport.poll_write_vectored(cx, &slices[..count]))?
            } else {
                let mut slices = [IoSlice::new(&[]); 3 * PIECES_MAX + 1];
                let count = self.out.slices(&mut slices);
                ready!(transport.poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is gathered and what the transport holds back.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    /// Ends our side in order.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

/// A head is judged when more than this has come of it at first.
const FIRST_BYTES: usize = 16;

/// Whether an empty line stands in `bytes`, of which the first `scanned` have none.
fn ends_head(bytes: &[u8], scanned: usize) -> bool {
    let from = scanned.saturating_sub(3);
    let bytes = &bytes[from..];
    memmem::find(bytes, b"\n\r\n").is_some() || memmem::find(bytes, b"\n\n").is_some()
}

/// What is to be written: heads, and the pieces of bodies with what stands around them.
#[derive(Default)]
pub(crate) struct Out {
    /// Written before any piece.
    head: Vec<u8>,
    head_written: usize,
    pieces: VecDeque<Piece>,
    /// Bytes of all pieces' content.
    bytes: usize,
}

/// A piece of a body.
struct Piece {
    /// The line before it.
    line: [u8; LINE_BYTES],
    line_start: u8,
    chunk: Chunk,
    /// What follows it.
    tail: &'static [u8],
}

/// A chunk's size in hexadecimal digits, and the end of the line.
const LINE_BYTES: usize = 18;

impl Out {
    /// Whether nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.pieces.is_empty()
    }

    /// Whether another piece may be gathered before the next write.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < GATHER_BYTES && self.pieces.len() < PIECES_MAX - 1
    }

    /// Room for a head, which is written before anything else that waits. To be called when no piece waits.
    pub(crate) fn head(&mut self, bytes: usize) -> &mut Vec<u8> {
        self.head.reserve(bytes);
        &mut self.head
    }

    /// A piece of a body of known length.
    pub(crate) fn push_plain(&mut self, chunk: Chunk) {
        self.push(chunk, false, b"");
    }

    /// A piece of a body in chunks.
    pub(crate) fn push_chunk(&mut self, chunk: Chunk) {
        self.push(chunk, true, b"\r\n");
    }

    /// The end of a body in chunks.
    pub(crate) fn push_end(&mut self) {
        match self.pieces.back_mut() {
            Some(last) if last.tail == b"\r\n" => last.tail = b"\r\n0\r\n\r\n",
            _ => self.push(Chunk::own(String::new()), false, b"0\r\n\r\n"),
        }
    }

    /// The same with trailers.
    pub(crate) fn push_trailers(&mut self, trailers: &HeaderMap) {
        let mut end = b"0\r\n".to_vec();
        for (name, value) in trailers {
            write_field(&mut end, name.as_str(), value.as_bytes());
        }
        end.extend_from_slice(b"\r\n");
        self.push(Chunk::taken(end), false, b"");
    }

    fn push(&mut self, chunk: Chunk, sized: bool, tail: &'static [u8]) {
        let len = chunk.as_slice().len();
        if sized && len == 0 {
            // It would be the body's end.
            return;
        }
        let mut piece = Piece { line: [0; LINE_BYTES], line_start: LINE_BYTES as u8, chunk, tail };
        if sized {
            piece.write_size(len);
        }
        self.bytes += len;
        self.pieces.push_back(piece);
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut add = |bytes: &'a [u8]| {
            if !bytes.is_empty() {
                slices[count] = IoSlice::new(bytes);
                count += 1;
            }
        };
        add(&self.head[self.head_written..]);
        for piece in &self.pieces {
            add(&piece.line[usize::from(piece.line_start)..]);
            add(piece.chunk.as_slice());
            add(piece.tail);
        }
        count
    }

    /// The transport has taken so many bytes.
    fn advance(&mut self, mut written: usize) {
        let head = written.min(self.head.len() - self.head_written);
        self.head_written += head;
        written -= head;
        if self.head_written == self.head.len() {
            (self.head, self.head_written) = (Vec::new(), 0);
        }
        while let Some(piece) = self.pieces.front_mut() {
            let line = written.min(LINE_BYTES - usize::from(piece.line_start));
            piece.line_start += line as u8;
            written -= line;
            let content = written.min(piece.chunk.as_slice().len());
            piece.chunk.advance(content);
            self.bytes -= content;
            written -= content;
            let tail = written.min(piece.tail.len());
            piece.tail = &piece.tail[tail..];
            written -= tail;
            let whole = usize::from(piece.line_start) == LINE_BYTES
                && piece.chunk.as_slice().is_empty()
                && piece.tail.is_empty();
            if !whole {
                return;
            }
            self.pieces.pop_front();
        }
    }
}

impl Piece {
    fn write_size(&mut self, len: usize) {
        let mut start = LINE_BYTES - 2;
        self.line[start..].copy_from_slice(b"\r\n");
        let mut left = len;
        while left > 0 {
            start -= 1;
            self.line[start] = b"0123456789abcdef"[left & 15];
            left >>= 4;
        }
        self.line_start = start as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(out: &mut Out, step: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3 * PIECES_MAX + 1];
            let count = out.slices(&mut slices);
            let waiting = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>();
            let taken = step.min(waiting.len());
            wire.extend_from_slice(&waiting[..taken]);
            out.advance(taken);
        }
        wire
    }

    #[test]
    fn what_goes_out_is_the_same_in_any_steps() {
        for step in 1..60 {
            let mut out = Out::default();
            out.head(10).extend_from_slice(b"HEAD\r\n\r\n");
            out.push_chunk(Chunk::copied(b"hello"));
            out.push_chunk(Chunk::copied(b""));
            out.push_chunk(Chunk::copied(&[b'x'; 27]));
            out.push_end();
            let wire = written(&mut out, step);
            assert_eq!(wire, b"HEAD\r\n\r\n5\r\nhello\r\n1b\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n", "by {step}");
            assert_eq!(out.bytes, 0);
            out.push_plain(Chunk::copied(b"plain"));
            out.push_end();
            assert_eq!(written(&mut out, step), b"plain0\r\n\r\n");
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("7"));
            out.push_trailers(&trailers);
            assert_eq!(written(&mut out, step), b"0\r\nx-sum: 7\r\n\r\n");
        }
    }

    #[test]
    fn gathering_has_an_end() {
        let mut out = Out::default();
        while out.has_room() {
            out.push_chunk(Chunk::copied(b"x"));
        }
        out.push_end();
        out.push_trailers(&HeaderMap::new());
        assert!(out.pieces.len() <= PIECES_MAX);
        let mut slices = [IoSlice::new(&[]); 3 * PIECES_MAX + 1];
        assert!(out.slices(&mut slices) <= slices.len());
        let mut out = Out::default();
        out.push_chunk(Chunk::copied(&[0; GATHER_BYTES]));
        assert!(!out.has_room());
    }

    #[test]
    fn the_end_of_a_head_is_found_across_reads() {
        let head = b"GET / HTTP/1.1\r\na: b\r\n\r\n";
        for scanned in 0..head.len() {
            assert!(!ends_head(&head[..head.len() - 1], scanned.min(head.len() - 1)));
            assert!(ends_head(head, scanned), "{scanned}");
        }
        assert!(ends_head(b"GET / HTTP/1.1\n\n", 15));
    }
}
