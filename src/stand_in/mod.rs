//! Stand-ins: what h2 gets instead of a head's values.
//!
//! h2 keeps what passes through it: the decoder's table and its scratch buffer, the encoder's table
//! and its scratch buffer hold targets and header values of exchanges long gone, out of anybody's
//! reach, for as long as the connection lives. So they never get there. Between the transport and h2,
//! [`Rewriter`] takes header blocks apart: on the way in each value and the target is put away here
//! and a short stand-in goes on in its place; on the way out the stand-ins that h2 has encoded are
//! replaced by the values again. h2 sees every name, and the few values that it acts upon itself.
//!
//! [`StandIns`] is the place where the values wait between the two, a few microseconds long.

mod hpack;
mod huffman;
mod incoming;
mod outgoing;
mod pad;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Uri;
use http::uri::PathAndQuery;

use crate::hygiene::io::Plan;
use crate::hygiene::io::Rewrite;
use incoming::Incoming;
use outgoing::Outgoing;
pub(crate) use pad::Pad;

/// Which end of the connection we are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Heads that arrive are requests.
    Server,
    /// Heads that arrive are answers.
    Client,
}

/// A head that nobody has asked for in this time belongs to a stream that is no more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);

/// Heads that wait at once, in each direction. More than the streams that a connection may have.
const WAITING_MAX: usize = 1024;

/// Their bytes, together. A hundred streams that come at once with heads of 40 KiB; a peer whose streams are
/// refused cannot make us hold more.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// RFC 9113 section 4.1.
const FRAME_HEAD: usize = 9;

/// What every peer takes and h2 takes by default (RFC 9113 section 4.2).
const FRAME_BYTES_MAX: usize = 16_384;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const CONTINUATION: u8 = 0x9;

/// The head of a frame.
#[derive(Clone, Copy)]
struct FrameHead {
    len: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    fn parse(bytes: &[u8; FRAME_HEAD]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        Self { len, kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff }
    }

    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
    }

    fn is_of_a_head(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }
}

/// Appends a header block as a HEADERS frame and as many CONTINUATIONs as it takes. `priority` goes
/// before the block if `flags` says so.
fn put_head(out: &mut Vec<u8>, stream: u32, flags: u8, priority: &[u8], block: &[u8]) {
    let (mut kind, mut flags, mut priority, mut rest) = (HEADERS, flags & !(END_HEADERS | PADDED), priority, block);
    loop {
        let piece = rest.len().min(FRAME_BYTES_MAX - priority.len());
        let last = piece == rest.len();
        let flags_now = if last { flags | END_HEADERS } else { flags };
        FrameHead { len: priority.len() + piece, kind, flags: flags_now, stream }.put(out);
        out.extend_from_slice(priority);
        out.extend_from_slice(&rest[..piece]);
        if last {
            return;
        }
        (kind, flags, priority, rest) = (CONTINUATION, 0, &[], &rest[piece..]);
    }
}

/// Values that h2 and hyper act upon; none of them is content.
fn h2_reads(name: &[u8]) -> bool {
    matches!(name, b"content-length" | b"te" | b"host" | b"transfer-encoding" | b"connection")
}

/// The values of one head, in the order of its fields.
struct Entry {
    id: u32,
    since: Instant,
    keep_for: Duration,
    path: Option<PathAndQuery>,
    values: Vec<HeaderValue>,
    /// If it asks for a tunnel.
    pad: Option<Pad>,
}

impl Entry {
    /// What it holds, about.
    fn bytes(&self) -> usize {
        let path = self.path.as_ref().map_or(0, |path| path.as_str().len());
        path + self.values.iter().map(|value| value.len() + size_of::<HeaderValue>()).sum::<usize>()
    }
}

/// Heads that wait in one direction.
#[derive(Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    /// Of all entries.
    bytes: usize,
    next: u32,
}

impl Waiting {
    fn open(&mut self) -> Entry {
        self.next = self.next.wrapping_add(1);
        Entry {
            id: self.next,
            since: Instant::now(),
            keep_for: FORGOTTEN_AFTER,
            path: None,
            values: Vec::new(),
            pad: None,
        }
    }

    fn put(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > WAITING_MAX || self.bytes > WAITING_BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.bytes();
        }
    }

    fn take(&mut self, id: u32) -> Option<Entry> {
        let place = self.entries.iter().rposition(|entry| entry.id == id)?;
        let entry = self.entries.remove(place)?;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    fn forget(&mut self, now: Instant) {
        self.entries.retain(|entry| now.saturating_duration_since(entry.since) < entry.keep_for);
        self.bytes = self.entries.iter().map(Entry::bytes).sum();
    }

    fn get(&self, id: u32) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.id == id)
    }
}

/// A stand-in's text: `~` tells it from a value that h2 reads; the head's number and the value's place follow.
struct Text {
    bytes: [u8; TEXT_BYTES_MAX],
    len: usize,
}

/// Two signs in front, one between, and the digits of both numbers.
const TEXT_BYTES_MAX: usize = 3 + 8 + 16;

impl Text {
    fn new() -> Self {
        Self { bytes: [0; TEXT_BYTES_MAX], len: 0 }
    }

    fn push(mut self, byte: u8) -> Self {
        self.bytes[self.len] = byte;
        self.len += 1;
        self
    }

    fn hex(mut self, number: usize) -> Self {
        let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            self = self.push(b"0123456789abcdef"[number >> (4 * digit) & 0xf]);
        }
        self
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn text_of(id: u32, place: usize) -> Text {
    Text::new().push(b'~').hex(id as usize).push(b'.').hex(place)
}

/// The other way round.
fn parse(text: &[u8]) -> Option<(u32, usize)> {
    let text = text.strip_prefix(b"~")?;
    let dot = text.iter().position(|byte| *byte == b'.')?;
    Some((u32::try_from(number(&text[..dot])?).ok()?, number(&text[dot + 1..])?))
}

fn path_of(id: u32) -> Text {
    Text::new().push(b'/').push(b'~').hex(id as usize)
}

fn parse_path(text: &[u8]) -> Option<u32> {
    u32::try_from(number(text.strip_prefix(b"/~")?)?).ok()
}

/// Of at most eight hexadecimal digits.
fn number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | char::from(*digit).to_digit(16)? as usize))
}

/// One connection's values, between the transport and hyper's messages. Shared by the two; one thread.
#[derive(Clone, Default)]
pub(crate) struct StandIns(Rc<Both>);

#[derive(Default)]
struct Both {
    arrived: RefCell<Waiting>,
    departing: RefCell<Waiting>,
}

impl StandIns {
    /// What must stand between the connection's transport and h2. `list_bytes_max`: the longest
    /// header list that is looked at, as RFC 9113 section 6.5.2 counts; a longer one ends a client's connection,
    /// and an upstream's stream.
    pub(crate) fn rewriter(&self, role: Role, list_bytes_max: usize) -> Rewriter {
        Rewriter {
            incoming: Incoming::new(role, list_bytes_max),
            outgoing: Outgoing::default(),
            stand_ins: self.clone(),
        }
    }

    /// Puts the values back into a request that h2 has just handed out. `false` if they are not there any more.
    pub(crate) fn restore_request<B>(&self, request: &mut Request<B>) -> bool {
        let mut arrived = self.0.arrived.borrow_mut();
        let id = request.uri().path_and_query().and_then(|path| parse_path(path.as_str().as_bytes()));
        let entry = id.and_then(|id| arrived.get(id));
        let mut path = entry.and_then(|entry| entry.path.clone());
        if let Some(pad) = entry.and_then(|entry| entry.pad.clone()) {
            request.extensions_mut().insert(pad);
        }
        let all = restore(&mut arrived, request.headers_mut(), id);
        if id.is_none() {
            // A CONNECT without a path has none to put back.
            return all && request.uri().path_and_query().is_none_or(|path| path.as_str().len() <= 1);
        }
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.path_and_query = path.take();
        let uri = parts.path_and_query.is_some().then(|| Uri::from_parts(parts).ok()).flatten();
        let there = uri.is_some();
        *request.uri_mut() = uri.unwrap_or_default();
        all && there
    }

    /// The same for an answer's headers, or trailers.
    pub(crate) fn restore_headers(&self, headers: &mut HeaderMap) -> bool {
        restore(&mut self.0.arrived.borrow_mut(), headers, None)
    }

    /// Puts stand-ins into a request before h2 gets it. The values are there until the guard goes.
    pub(crate) fn replace_request<B>(&self, request: &mut Request<B>) -> Departure {
        let mut departing = self.0.departing.borrow_mut();
        let mut entry = departing.open();
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        if let Ok(path) = PathAndQuery::try_from(path_of(entry.id).as_bytes()) {
            entry.path = parts.path_and_query.replace(path);
        }
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        replace(&mut entry, request.headers_mut());
        let id = entry.id;
        departing.put(entry);
        Departure { stand_ins: self.clone(), id }
    }

    /// The same for an answer's headers, or trailers.
    pub(crate) fn replace_headers(&self, headers: &mut HeaderMap) {
        let mut departing = self.0.departing.borrow_mut();
        let mut entry = departing.open();
        replace(&mut entry, headers);
        if !entry.values.is_empty() {
            departing.put(entry);
        }
    }

    /// Whether nothing waits, in either direction.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.arrived.borrow().entries.is_empty() && self.0.departing.borrow().entries.is_empty()
    }

    /// Now and then: forgets heads that arrived on streams that ended before anybody looked.
    pub(crate) fn forget_arrived(&self, now: Instant) {
        self.0.arrived.borrow_mut().forget(now);
    }

    /// The same for answers that depart. Only while the peer takes what is written: what h2 has not
    /// been able to send is not forgotten but waiting.
    pub(crate) fn forget_departing(&self, now: Instant) {
        self.0.departing.borrow_mut().forget(now);
    }
}

/// A request's values on their way to h2; dropping it forgets what h2 has not sent.
pub(crate) struct Departure {
    stand_ins: StandIns,
    id: u32,
}

impl Drop for Departure {
    fn drop(&mut self) {
        self.stand_ins.0.departing.borrow_mut().take(self.id);
    }
}

fn restore(arrived: &mut Waiting, headers: &mut HeaderMap, mut id: Option<u32>) -> bool {
    let mut all = true;
    for (name, value) in headers.iter_mut() {
        let Some((of, place)) = parse(value.as_bytes()).filter(|_| !h2_reads(name.as_str().as_bytes())) else {
            continue;
        };
        id = id.or(Some(of));
        match arrived.get(of).and_then(|entry| entry.values.get(place)) {
            Some(original) => *value = original.clone(),
            None => all = false,
        }
    }
    if let Some(id) = id {
        arrived.take(id);
    }
    all
}

fn replace(entry: &mut Entry, headers: &mut HeaderMap) {
    let mut texts = BytesMut::with_capacity(headers.len() * TEXT_BYTES);
    for (name, value) in headers.iter_mut() {
        if h2_reads(name.as_str().as_bytes()) {
            continue;
        }
        texts.extend_from_slice(text_of(entry.id, entry.values.len()).as_bytes());
        let Ok(mut stand_in) = HeaderValue::from_maybe_shared(texts.split().freeze()) else { continue };
        // Sensitive ones are in no table (RFC 7541 section 7.1.3).
        stand_in.set_sensitive(true);
        entry.values.push(std::mem::replace(value, stand_in));
    }
}

/// Enough for most stand-ins' texts.
const TEXT_BYTES: usize = 12;

/// Between an h2 connection and its transport.
pub(crate) struct Rewriter {
    incoming: Incoming,
    outgoing: Outgoing,
    stand_ins: StandIns,
}

impl Rewrite for Rewriter {
    fn kept(&self) -> &[u8] {
        self.incoming.kept()
    }

    fn took(&mut self, count: usize) {
        self.incoming.took(count);
    }

    fn received(&mut self, bytes: &mut [u8]) -> usize {
        self.incoming.received(bytes, &mut self.stand_ins.0.arrived.borrow_mut())
    }

    fn plan(&self, slices: &[IoSlice<'_>]) -> io::Result<Plan> {
        self.outgoing.plan(slices)
    }

    fn passed(&mut self, slices: &[IoSlice<'_>], written: usize) {
        self.outgoing.passed(slices, written);
    }

    fn absorb(&mut self, slices: &[IoSlice<'_>], len: usize) -> io::Result<()> {
        self.outgoing.absorb(slices, len, &mut self.stand_ins.0.departing.borrow_mut())
    }

    fn waiting(&self) -> &[u8] {
        self.outgoing.waiting()
    }

    fn sent(&mut self, count: usize) {
        self.outgoing.sent(count);
    }
}

/// What h2 gets when `pieces` arrive one after the other at a server.
#[cfg(fuzzing)]
pub(crate) fn received(pieces: &[&[u8]]) -> Vec<u8> {
    let mut rewriter = StandIns::default().rewriter(Role::Server, 64 << 10);
    let mut got = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let count = rewriter.received(&mut bytes);
        got.extend_from_slice(&bytes[..count]);
        got.extend_from_slice(rewriter.kept());
        rewriter.took(rewriter.kept().len());
    }
    got
}

/// A buffer whose front is given away piece by piece, and cleared behind.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn advance(&mut self, count: usize) {
        crate::hygiene::wipe::wipe(&mut self.bytes[self.start..self.start + count]);
        self.start += count;
        // Moved to the front now and then, or a queue that is never empty would grow for ever.
        if 2 * self.start >= self.bytes.len() {
            let left = self.bytes.len() - self.start;
            self.bytes.copy_within(self.start.., 0);
            crate::hygiene::wipe::wipe(&mut self.bytes[left..]);
            self.bytes.truncate(left);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stand_in::hpack::Decoder;
    use crate::stand_in::hpack::put_field;
    use crate::stand_in::hpack::put_string;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        FrameHead { len: payload.len(), kind, flags, stream }.put(&mut out);
        out.extend_from_slice(payload);
        out
    }

    /// What h2 gets when the wire brings `wire` in pieces of `piece` bytes, through a room of `room`.
    fn through(stand_ins: &StandIns, role: Role, wire: &[u8], piece: usize, room: usize) -> Vec<u8> {
        let mut rewriter = stand_ins.rewriter(role, 64 << 10);
        let mut got = Vec::new();
        let drain = |rewriter: &mut Rewriter, got: &mut Vec<u8>| {
            while !rewriter.kept().is_empty() {
                let count = rewriter.kept().len().min(room);
                got.extend_from_slice(&rewriter.kept()[..count]);
                rewriter.took(count);
            }
        };
        for bytes in wire.chunks(piece) {
            let mut bytes = bytes.to_vec();
            let count = rewriter.received(&mut bytes);
            got.extend_from_slice(&bytes[..count]);
            assert!(bytes[count..].iter().all(|byte| *byte == 0), "what h2 does not get is cleared");
            drain(&mut rewriter, &mut got);
        }
        got
    }

    /// The fields of the head frames in `wire`, and the other frames' bytes.
    fn heads(wire: &[u8]) -> (Vec<Vec<(String, String)>>, Vec<u8>) {
        let (mut heads, mut others, mut block) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = wire;
        while !rest.is_empty() {
            let head = FrameHead::parse(rest.first_chunk().expect("a head"));
            let payload = &rest[FRAME_HEAD..FRAME_HEAD + head.len];
            if head.is_of_a_head() {
                let skip = if head.flags & PRIORITY != 0 { 5 } else { 0 };
                assert_eq!(head.flags & PADDED, 0);
                block.extend_from_slice(&payload[skip..]);
                if head.flags & END_HEADERS != 0 {
                    let mut fields = Vec::new();
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let each = |name: &[u8], value: &[u8]| fields.push((text(name), text(value)));
                    Decoder::new().decode(&block, each).expect("a block");
                    heads.push(fields);
                    block.clear();
                }
            } else {
                others.extend_from_slice(&rest[..FRAME_HEAD + head.len]);
            }
            rest = &rest[FRAME_HEAD + head.len..];
        }
        (heads, others)
    }

    fn request_of(fields: &[(String, String)]) -> Request<()> {
        let mut request = Request::new(());
        for (name, value) in fields {
            if name == ":path" {
                *request.uri_mut() = value.parse().expect("a path");
            } else if !name.starts_with(':') {
                let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
                request.headers_mut().append(name, value.parse().expect("a value"));
            }
        }
        request
    }

    /// A head with an indexed secret, padding and priority; one that refers to it, cut into
    /// CONTINUATIONs; bodies in between.
    fn wire() -> Vec<u8> {
        let mut first = vec![0x83, 0x87, 0x44];
        let path = huffman::encode(b"/v1/chat?key=secret-query");
        first.extend_from_slice(&[0x80 | path.len() as u8]);
        first.extend_from_slice(&path);
        first.extend_from_slice(&[0x40]);
        put_string(&mut first, b"authorization");
        put_string(&mut first, b"Bearer secret-key");
        put_field(&mut first, b"content-length", b"5");
        let mut padded = vec![3, 0, 0, 0, 0, 15];
        padded.extend_from_slice(&first);
        padded.extend_from_slice(&[0; 3]);
        let mut second = vec![0x82, 0x87];
        put_field(&mut second, b":path", b"/v2");
        // The authorization of before: the first entry after the path, which was indexed before it.
        second.push(0xbe);
        put_field(&mut second, b"x-twice", b"one");
        put_field(&mut second, b"x-twice", b"two");
        [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &padded),
            frame(0, 1, 1, b"hello"),
            frame(HEADERS, END_STREAM, 3, &second[..4]),
            frame(CONTINUATION, 0, 3, &[]),
            frame(CONTINUATION, END_HEADERS, 3, &second[4..]),
            frame(SETTINGS, 1, 0, b""),
        ]
        .concat()
    }

    #[test]
    fn requests_arrive_whole_at_any_cut_and_h2_sees_no_value() {
        let wire = wire();
        for (piece, room) in (1..=wire.len()).map(|piece| (piece, 7)).chain([(64, 1), (9, 4096)]) {
            let stand_ins = StandIns::default();
            let got = through(&stand_ins, Role::Server, &wire, piece, room);
            assert!(!got.windows(6).any(|window| window == b"secret"), "pieces of {piece}");
            let got = got.strip_prefix(PREFACE).expect("the preface passes");
            let (heads, others) = heads(got);
            let expected =
                [frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]), frame(0, 1, 1, b"hello"), frame(SETTINGS, 1, 0, b"")];
            assert_eq!(others, expected.concat(), "pieces of {piece}");
            let [first, second] = heads.as_slice() else { panic!("{heads:?}") };
            assert!(first.contains(&("content-length".to_owned(), "5".to_owned())), "h2 reads that");
            assert!(second.contains(&(":method".to_owned(), "GET".to_owned())));
            // In the other order: heads are found whoever asks first.
            let mut request = request_of(second);
            assert!(stand_ins.restore_request(&mut request));
            assert_eq!(request.uri(), "/v2");
            assert_eq!(request.headers()["authorization"], "Bearer secret-key");
            let twice: Vec<_> = request.headers().get_all("x-twice").iter().collect();
            assert_eq!(twice, ["one", "two"]);
            let mut request = request_of(first);
            assert!(stand_ins.restore_request(&mut request));
            assert_eq!(request.uri(), "/v1/chat?key=secret-query");
            assert_eq!(request.headers()["authorization"], "Bearer secret-key");
            assert!(stand_ins.is_empty(), "nothing waits");
            assert!(!stand_ins.restore_request(&mut request_of(first)), "not twice");
        }
    }

    #[test]
    fn a_tunnels_bytes_are_sealed_at_any_cut_and_no_others() {
        let mut block = Vec::new();
        for (name, value) in [(":method", "CONNECT"), (":protocol", "websocket"), (":path", "/v1/realtime")] {
            put_field(&mut block, name.as_bytes(), value.as_bytes());
        }
        let wire = [
            PREFACE.to_vec(),
            frame(HEADERS, END_HEADERS, 1, &block),
            frame(DATA, 0, 1, b"first secret"),
            frame(DATA, 0, 3, b"of another stream"),
            frame(DATA, PADDED, 1, b"\x03second secret\0\0\0"),
            frame(DATA, 0, 1, b""),
            frame(DATA, PADDED | END_STREAM, 1, b"\x00third"),
            frame(SETTINGS, 1, 0, b""),
        ]
        .concat();
        for piece in 1..=wire.len() {
            let stand_ins = StandIns::default();
            // The tunnel asks for its pad when h2 has handed out the head, before any of the bytes.
            let head = wire.len() - wire.windows(5).rev().position(|window| window == b"first").expect("there") - 5;
            let mut rewriter = stand_ins.rewriter(Role::Server, 64 << 10);
            let mut got = Vec::new();
            let mut pad = None;
            let mut place = 0;
            while place < wire.len() {
                let end = if place < head { (place + piece).min(head) } else { (place + piece).min(wire.len()) };
                let mut bytes = wire[place..end].to_vec();
                let count = rewriter.received(&mut bytes);
                got.extend_from_slice(&bytes[..count]);
                got.extend_from_slice(rewriter.kept());
                rewriter.took(rewriter.kept().len());
                place = end;
                if place == head {
                    let mut request = Request::new(());
                    *request.uri_mut() = http::Uri::try_from(path_of(1).as_bytes()).expect("a path");
                    assert!(stand_ins.restore_request(&mut request));
                    pad = request.extensions_mut().remove::<Pad>();
                }
            }
            assert!(!got.windows(6).any(|window| window == b"secret"), "pieces of {piece}");
            let (_, others) = heads(&got[PREFACE.len()..]);
            let mut rest = &others[..];
            let mut payloads = Vec::new();
            while !rest.is_empty() {
                let head = FrameHead::parse(rest.first_chunk().expect("a head"));
                payloads.push(rest[FRAME_HEAD..FRAME_HEAD + head.len].to_vec());
                rest = &rest[FRAME_HEAD + head.len..];
            }
            let pad = pad.expect("a pad");
            pad.open(&mut payloads[0]);
            assert_eq!(payloads[0], b"first secret");
            assert_eq!(payloads[1], b"of another stream");
            let end = payloads[2].len() - 3;
            pad.open(&mut payloads[2][1..end]);
            assert_eq!(payloads[2], b"\x03second secret\0\0\0");
            pad.open(&mut payloads[4][1..]);
            assert_eq!(payloads[4], b"\0third");
        }
    }

    #[test]
    fn what_breaks_the_rules_ends_with_a_frame_that_h2_refuses() {
        let cases: [(&str, Vec<u8>); 8] = [
            ("a CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, b"\x82")),
            ("another frame in a head", [frame(HEADERS, 0, 1, b"\x82"), frame(0, 0, 1, b"x")].concat()),
            ("another stream's", [frame(HEADERS, 0, 1, b"\x82"), frame(CONTINUATION, 4, 3, b"\x82")].concat()),
            ("all padding", frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82])),
            ("no priority", frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0, 0])),
            ("too long a frame", frame(HEADERS, END_HEADERS, 1, &vec![0; FRAME_BYTES_MAX + 1])),
            ("too many pieces", [frame(HEADERS, 0, 1, b"\x82"), frame(CONTINUATION, 0, 1, b"").repeat(100)].concat()),
            ("a list too long", {
                let mut block = vec![0x40];
                put_string(&mut block, b"a");
                put_string(&mut block, &[b'v'; 3000]);
                block.extend_from_slice(&[0xbe; 200]);
                frame(HEADERS, END_HEADERS, 1, &block)
            }),
        ];
        for (what, bytes) in cases {
            let wire = [PREFACE.to_vec(), bytes, frame(0, 0, 1, b"content behind it")].concat();
            for piece in [1, 5, wire.len()] {
                let got = through(&StandIns::default(), Role::Server, &wire, piece, 64);
                let got = &got[PREFACE.len()..];
                let head = FrameHead::parse(got.first_chunk().expect("a frame"));
                assert!(head.is_of_a_head() && got.len() == FRAME_HEAD, "{what}: {got:?}");
            }
        }
        // Not HPACK: a head that h2 cannot read either.
        let wire = [PREFACE.to_vec(), frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")].concat();
        let got = through(&StandIns::default(), Role::Server, &wire, 3, 64);
        assert_eq!(got[PREFACE.len()..], frame(HEADERS, END_HEADERS, 1, b"\x80"));
    }

    #[test]
    fn what_waits_has_a_maximum() {
        let mut waiting = Waiting::default();
        for _ in 0..100 {
            let mut entry = waiting.open();
            entry.values.push(HeaderValue::from_bytes(&[b'v'; 100_000]).expect("a value"));
            waiting.put(entry);
            assert!(waiting.bytes <= WAITING_BYTES_MAX);
        }
        assert!(waiting.get(100).is_some() && waiting.get(1).is_none(), "the oldest went");
        (50..=100).for_each(|id| drop(waiting.take(id)));
        waiting.forget(Instant::now() + FORGOTTEN_AFTER);
        assert_eq!((waiting.entries.len(), waiting.bytes), (0, 0));

        // A queue that is never empty.
        let mut queue = Queue::default();
        for turn in 0..1000_u32 {
            queue.bytes.extend_from_slice(&turn.to_be_bytes());
            if turn > 0 {
                assert_eq!(queue.rest()[..4], (turn - 1).to_be_bytes());
                queue.advance(4);
            }
            assert!(queue.bytes.len() <= 16, "{}", queue.bytes.len());
        }
    }

    #[test]
    fn heads_nobody_asks_for_are_forgotten() {
        let stand_ins = StandIns::default();
        through(&stand_ins, Role::Server, &wire(), 4096, 64);
        assert!(!stand_ins.is_empty());
        stand_ins.forget_arrived(Instant::now());
        assert!(!stand_ins.is_empty(), "they have just come");
        stand_ins.forget_arrived(Instant::now() + FORGOTTEN_AFTER);
        assert!(stand_ins.is_empty());
    }

    /// What goes out when h2 hands in `frames` in any cut that the transport makes of them.
    fn written(stand_ins: &StandIns, frames: &[u8], take: usize) -> Vec<u8> {
        let mut rewriter = stand_ins.rewriter(Role::Client, 64 << 10);
        let (mut out, mut rest) = (Vec::new(), frames);
        loop {
            let waiting = rewriter.waiting();
            let count = waiting.len().min(take);
            out.extend_from_slice(&waiting[..count]);
            rewriter.sent(count);
            if !rewriter.waiting().is_empty() {
                continue;
            }
            if rest.is_empty() {
                return out;
            }
            // h2 hands in its buffer and the payload behind it as two slices.
            let middle = rest.len().min(12);
            let slices = [IoSlice::new(&rest[..middle]), IoSlice::new(&rest[middle..])];
            match rewriter.plan(&slices).expect("frames") {
                Plan::Absorb(len) => {
                    rewriter.absorb(&slices, len).expect("a head");
                    rest = &rest[len..];
                }
                Plan::Pass(len) => {
                    let count = len.min(take);
                    rewriter.passed(&slices, count);
                    out.extend_from_slice(&rest[..count]);
                    rest = &rest[count..];
                }
            }
        }
    }

    #[test]
    fn heads_depart_with_their_values_and_everything_else_as_it_is() {
        for take in [1, 2, 8, 9, 10, 100, 100_000] {
            let stand_ins = StandIns::default();
            let mut request = Request::new(());
            *request.uri_mut() = "https://host/v1/x?key=secret".parse().expect("target");
            let long = "l".repeat(40_000);
            for (name, value) in [("authorization", "Bearer secret"), ("x-long", &long), ("content-length", "3")] {
                request.headers_mut().append(name, value.parse().expect("value"));
            }
            let departure = stand_ins.replace_request(&mut request);
            assert!(!format!("{request:?}").contains("secret"), "h2 sees none of it");
            // As h2 encodes it: coded, the path without an index, values never indexed.
            let mut block = vec![0x83, 0x87, 0x04];
            let coded = |block: &mut Vec<u8>, text: &str| {
                let coded = huffman::encode(text.as_bytes());
                block.push(0x80 | coded.len() as u8);
                block.extend_from_slice(&coded);
            };
            coded(&mut block, request.uri().path());
            for (name, value) in request.headers() {
                block.push(if name == "content-length" { 0x00 } else { 0x10 });
                coded(&mut block, name.as_str());
                coded(&mut block, value.to_str().expect("text"));
            }
            let frames = [
                frame(SETTINGS, 0, 0, &[0; 6]),
                frame(HEADERS, 0, 1, &block[..5]),
                frame(CONTINUATION, END_HEADERS, 1, &block[5..]),
                frame(0, 1, 1, b"abc"),
            ]
            .concat();
            let out = written(&stand_ins, &frames, take);
            let (heads, others) = heads(&out);
            assert_eq!(others, [frame(SETTINGS, 0, 0, &[0; 6]), frame(0, 1, 1, b"abc")].concat());
            let expected = [
                (":method", "POST"),
                (":scheme", "https"),
                (":path", "/v1/x?key=secret"),
                ("authorization", "Bearer secret"),
                ("x-long", &long),
                ("content-length", "3"),
            ];
            let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            assert_eq!(heads, [expected]);
            assert!(stand_ins.is_empty(), "sent");
            drop(departure);
        }
    }

    #[test]
    fn what_was_cancelled_is_sent_without_its_values() {
        let stand_ins = StandIns::default();
        let mut request = Request::new(());
        request.headers_mut().append("authorization", HeaderValue::from_static("Bearer secret"));
        drop(stand_ins.replace_request(&mut request));
        assert!(stand_ins.is_empty());
        let mut block = vec![0x83];
        put_field(&mut block, b":path", request.uri().path().as_bytes());
        put_field(&mut block, b"authorization", request.headers()["authorization"].as_bytes());
        let out = written(&stand_ins, &frame(HEADERS, END_HEADERS, 1, &block), 4096);
        let (heads, _) = heads(&out);
        assert_eq!(heads[0][1..], [(":path".into(), "/".into()), ("authorization".into(), String::new())]);
    }
}
