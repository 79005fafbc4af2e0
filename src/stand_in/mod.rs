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

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Uri;
use http::uri::PathAndQuery;

use crate::hygiene::io::Plan;
use crate::hygiene::io::Rewrite;
use incoming::Incoming;
use outgoing::Outgoing;

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

/// RFC 9113 section 4.1.
const FRAME_HEAD: usize = 9;

/// What every peer takes and h2 takes by default (RFC 9113 section 4.2).
const FRAME_BYTES_MAX: usize = 16_384;

const DATA_END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const HEADERS: u8 = 0x1;
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
}

/// Heads that wait in one direction.
#[derive(Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    next: u32,
}

impl Waiting {
    fn open(&mut self) -> Entry {
        self.next = self.next.wrapping_add(1);
        Entry { id: self.next, since: Instant::now(), keep_for: FORGOTTEN_AFTER, path: None, values: Vec::new() }
    }

    fn put(&mut self, entry: Entry) {
        if self.entries.len() >= WAITING_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    fn take(&mut self, id: u32) -> Option<Entry> {
        let place = self.entries.iter().rposition(|entry| entry.id == id)?;
        self.entries.remove(place)
    }

    fn forget(&mut self, now: Instant) {
        self.entries.retain(|entry| now.saturating_duration_since(entry.since) < entry.keep_for);
    }

    fn get(&self, id: u32) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.id == id)
    }
}

/// A stand-in's text: what it starts with tells it from a value that h2 reads.
fn text_of(id: u32, place: usize) -> String {
    format!("~{id:x}.{place}")
}

/// The other way round.
fn parse(text: &[u8]) -> Option<(u32, usize)> {
    let text = std::str::from_utf8(text.strip_prefix(b"~")?).ok()?;
    let (id, place) = text.split_once('.')?;
    Some((u32::from_str_radix(id, 16).ok()?, place.parse().ok()?))
}

fn path_of(id: u32) -> String {
    format!("/~{id:x}")
}

fn parse_path(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text.strip_prefix(b"/~")?).ok()?;
    u32::from_str_radix(text, 16).ok()
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
    /// header list that is looked at, as RFC 9113 section 6.5.2 counts; a longer one fails its stream.
    pub(crate) fn rewriter(&self, role: Role, list_bytes_max: usize) -> Rewriter {
        Rewriter { incoming: Incoming::new(role, list_bytes_max), outgoing: Outgoing::default(), stand_ins: self.clone() }
    }

    /// Puts the values back into a request that h2 has just handed out. `false` if they are not there any more.
    pub(crate) fn restore_request<B>(&self, request: &mut Request<B>) -> bool {
        let mut arrived = self.0.arrived.borrow_mut();
        let id = request.uri().path_and_query().and_then(|path| parse_path(path.as_str().as_bytes()));
        let mut path = id.and_then(|id| arrived.get(id)).and_then(|entry| entry.path.clone());
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
        if let Ok(path) = PathAndQuery::try_from(path_of(entry.id)) {
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
    for value in headers.values_mut() {
        let Some((of, place)) = parse(value.as_bytes()) else { continue };
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
    for (name, value) in headers.iter_mut() {
        if h2_reads(name.as_str().as_bytes()) {
            continue;
        }
        let Ok(mut stand_in) = HeaderValue::try_from(text_of(entry.id, entry.values.len())) else { continue };
        // Sensitive ones are in no table (RFC 7541 section 7.1.3).
        stand_in.set_sensitive(true);
        entry.values.push(std::mem::replace(value, stand_in));
    }
}

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
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }
}
