//! What the provider saw: one record a request, written while it happens.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::Instant;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Version;
use http_body::Body;
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::pattern::digest_array;

/// One request as the provider saw it, at the moment of asking.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Counts requests from 0.
    pub id: u64,
    /// Counts connections from 0.
    pub connection: u64,
    /// The server name of the TLS handshake.
    pub sni: Option<String>,
    /// When the head was complete.
    pub arrived: Instant,
    /// From the head.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// From the head.
    pub version: Version,
    /// All of them; for h2's `:authority` see `authority`.
    pub headers: HeaderMap,
    /// h2's `:authority`, or that of an absolute h1 target.
    pub authority: Option<String>,
    /// Request body bytes received so far; for a WebSocket the payload bytes of its data messages.
    pub body_len: u64,
    /// Of what was received, once reading has ended. None before, or if hashing is off.
    pub body_sha256: Option<[u8; 32]>,
    /// The first `keep_body_bytes` of the body.
    pub body: Bytes,
    /// How the request body ended.
    pub body_end: BodyEnd,
    /// Request trailers.
    pub trailers: Option<HeaderMap>,
    /// The status that was answered.
    pub status: Option<u16>,
    /// Response body bytes handed to the HTTP stack.
    pub response_bytes: u64,
    /// How the exchange ended.
    pub outcome: Outcome,
    /// Whether the other side broke it off: a reset, a lost connection, a request body cut short.
    pub aborted: bool,
    /// When it ended, in whatever way. Subtract the instant of the client's own abort to see how fast it got here.
    pub ended_at: Option<Instant>,
}

impl Seen {
    /// A header's value as text, or "".
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// How a request body ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyEnd {
    /// Not yet.
    #[default]
    Open,
    /// With its last chunk, its full content-length or END_STREAM.
    Clean,
    /// With an error.
    Broken,
    /// The provider stopped reading: by script, or because the exchange was aborted.
    Unread,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet.
    #[default]
    Open,
    /// The last byte of the answer was handed to the HTTP stack.
    Complete,
    /// By script.
    Broken,
    /// By the other side.
    Aborted,
}

/// The sums, and the door to the records.
pub struct State<'a> {
    /// TCP connections open now, WebSockets included.
    pub open_connections: u64,
    /// Requests without an outcome.
    pub open_streams: u64,
    /// TCP connections accepted so far.
    pub connects: u64,
    /// TLS handshakes that failed.
    pub handshake_failures: u64,
    /// Requests so far.
    pub requests: u64,
    /// Of these, with [`Outcome::Complete`].
    pub complete: u64,
    /// With [`Outcome::Broken`].
    pub broken: u64,
    /// With [`Outcome::Aborted`].
    pub aborted: u64,
    /// Request body bytes of exchanges whose reading has ended.
    pub request_bytes: u64,
    /// Response body bytes of exchanges that ended.
    pub response_bytes: u64,
    pub(crate) journal: &'a Journal,
}

impl State<'_> {
    /// Every request in the order of arrival; the oldest are forgotten beyond `journal_max`.
    pub fn seen(&self) -> Vec<Seen> {
        self.journal.records().iter().map(|record| record.seen()).collect()
    }

    /// The latest request.
    pub fn last(&self) -> Option<Seen> {
        self.journal.records().back().map(|record| record.seen())
    }
}

/// Counters and records of one provider.
#[derive(Default)]
pub(crate) struct Journal {
    records_max: usize,
    keep_body_bytes: usize,
    hash_bodies: bool,
    pub(crate) open_connections: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) handshake_failures: AtomicU64,
    open_streams: AtomicU64,
    requests: AtomicU64,
    complete: AtomicU64,
    broken: AtomicU64,
    aborted: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    records: Mutex<VecDeque<Arc<Record>>>,
}

impl Journal {
    pub(crate) fn new(records_max: usize, keep_body_bytes: usize, hash_bodies: bool) -> Journal {
        Journal { records_max, keep_body_bytes, hash_bodies, ..Journal::default() }
    }

    pub(crate) fn state(&self) -> State<'_> {
        State {
            open_connections: self.open_connections.load(SeqCst),
            open_streams: self.open_streams.load(SeqCst),
            connects: self.connects.load(SeqCst),
            handshake_failures: self.handshake_failures.load(SeqCst),
            requests: self.requests.load(SeqCst),
            complete: self.complete.load(SeqCst),
            broken: self.broken.load(SeqCst),
            aborted: self.aborted.load(SeqCst),
            request_bytes: self.request_bytes.load(SeqCst),
            response_bytes: self.response_bytes.load(SeqCst),
            journal: self,
        }
    }

    pub(crate) fn records(&self) -> MutexGuard<'_, VecDeque<Arc<Record>>> {
        self.records.lock().expect("no panics under this lock")
    }

    /// Opens the record of a request.
    pub(crate) fn open(
        self: &Arc<Self>,
        parts: &http::request::Parts,
        connection: u64,
        sni: Option<String>,
    ) -> Exchange {
        self.open_streams.fetch_add(1, SeqCst);
        let record = Arc::new(Record {
            id: self.requests.fetch_add(1, SeqCst),
            connection,
            sni,
            arrived: Instant::now(),
            method: parts.method.clone(),
            path: parts.uri.path_and_query().map_or_else(|| "/".to_owned(), |path| path.as_str().to_owned()),
            authority: parts.uri.authority().map(|authority| authority.to_string()),
            version: parts.version,
            headers: parts.headers.clone(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            live: Mutex::default(),
        });
        let mut records = self.records();
        if records.len() >= self.records_max {
            records.pop_front();
        }
        if self.records_max > 0 {
            records.push_back(record.clone());
        }
        drop(records);
        Exchange { journal: self.clone(), record, settled: false }
    }
}

/// One request's record, shared by those who write to it and the journal.
pub(crate) struct Record {
    id: u64,
    connection: u64,
    sni: Option<String>,
    arrived: Instant,
    method: Method,
    path: String,
    authority: Option<String>,
    version: Version,
    headers: HeaderMap,
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) live: Mutex<Live>,
}

#[derive(Default)]
pub(crate) struct Live {
    pub(crate) status: Option<u16>,
    pub(crate) body: Vec<u8>,
    body_sha256: Option<[u8; 32]>,
    body_end: BodyEnd,
    trailers: Option<HeaderMap>,
    outcome: Outcome,
    ended_at: Option<Instant>,
}

impl Record {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("no panics under this lock")
    }

    /// Adds to the kept part of the body.
    pub(crate) fn keep(&self, journal: &Journal, data: &[u8]) {
        if journal.keep_body_bytes > 0 {
            let mut live = self.live();
            let room = journal.keep_body_bytes.saturating_sub(live.body.len());
            live.body.extend_from_slice(&data[..room.min(data.len())]);
        }
    }

    fn seen(&self) -> Seen {
        let live = self.live();
        Seen {
            id: self.id,
            connection: self.connection,
            sni: self.sni.clone(),
            arrived: self.arrived,
            method: self.method.clone(),
            path: self.path.clone(),
            version: self.version,
            headers: self.headers.clone(),
            authority: self.authority.clone(),
            body_len: self.received.load(SeqCst),
            body_sha256: live.body_sha256,
            body: Bytes::copy_from_slice(&live.body),
            body_end: live.body_end,
            trailers: live.trailers.clone(),
            status: live.status,
            response_bytes: self.sent.load(SeqCst),
            outcome: live.outcome,
            aborted: live.outcome == Outcome::Aborted
                || (live.body_end == BodyEnd::Broken && live.outcome != Outcome::Broken),
            ended_at: live.ended_at,
        }
    }
}

/// Settles a record exactly once; dropped unsettled it means that the other side went away.
pub(crate) struct Exchange {
    pub(crate) journal: Arc<Journal>,
    pub(crate) record: Arc<Record>,
    settled: bool,
}

impl Exchange {
    pub(crate) fn complete(&mut self) {
        self.settle(Outcome::Complete);
    }

    pub(crate) fn broken(&mut self) {
        self.settle(Outcome::Broken);
    }

    pub(crate) fn status(&self, status: u16) {
        self.record.live().status = Some(status);
    }

    fn settle(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let mut live = self.record.live();
        live.outcome = outcome;
        // A request body that broke has already said when.
        live.ended_at.get_or_insert_with(Instant::now);
        drop(live);
        let journal = &self.journal;
        journal.response_bytes.fetch_add(self.record.sent.load(SeqCst), SeqCst);
        match outcome {
            Outcome::Complete => &journal.complete,
            Outcome::Broken => &journal.broken,
            Outcome::Open | Outcome::Aborted => &journal.aborted,
        }
        .fetch_add(1, SeqCst);
        journal.open_streams.fetch_sub(1, SeqCst);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.settle(Outcome::Aborted);
    }
}

/// Reads a request body into its record.
pub(crate) struct BodyReader {
    incoming: Incoming,
    journal: Arc<Journal>,
    record: Arc<Record>,
    hash: Option<digest::Context>,
    pace: Option<Pace>,
    ended: bool,
}

struct Pace {
    bytes_per_second: u64,
    sleep: Pin<Box<Sleep>>,
}

impl BodyReader {
    pub(crate) fn new(incoming: Incoming, exchange: &Exchange, bytes_per_second: Option<u64>) -> BodyReader {
        let journal = exchange.journal.clone();
        BodyReader {
            hash: journal.hash_bodies.then(|| digest::Context::new(&digest::SHA256)),
            record: exchange.record.clone(),
            pace: bytes_per_second
                .map(|bytes_per_second| Pace { bytes_per_second, sleep: Box::pin(tokio::time::sleep(Duration::ZERO)) }),
            incoming,
            journal,
            ended: false,
        }
    }

    pub(crate) fn len(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(pace) = &mut self.pace {
            ready!(pace.sleep.as_mut().poll(cx));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.record.live().trailers = Some(trailers.clone());
                }
                // An echo of known length is not polled for the end.
                if self.incoming.is_end_stream() {
                    self.settle(BodyEnd::Clean);
                }
            }
            Some(Err(_)) => self.settle(BodyEnd::Broken),
            None => self.settle(BodyEnd::Clean),
        }
        Poll::Ready(frame)
    }

    fn record(&mut self, data: &Bytes) {
        self.record.received.fetch_add(data.len() as u64, Relaxed);
        if let Some(hash) = &mut self.hash {
            hash.update(data);
        }
        self.record.keep(&self.journal, data);
        if let Some(pace) = &mut self.pace {
            let pause = Duration::from_secs_f64(data.len() as f64 / pace.bytes_per_second as f64);
            pace.sleep.as_mut().reset(tokio::time::Instant::now() + pause);
        }
    }

    /// Reads to the end and hands back the first `keep_bytes`.
    pub(crate) async fn read(&mut self, keep_bytes: usize) -> Result<Vec<u8>, hyper::Error> {
        let mut kept = Vec::new();
        while let Some(frame) = poll_fn(|cx| self.poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                let keep = keep_bytes.saturating_sub(kept.len()).min(data.len());
                kept.extend_from_slice(&data[..keep]);
            }
        }
        Ok(kept)
    }

    fn settle(&mut self, end: BodyEnd) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.journal.request_bytes.fetch_add(self.record.received.load(SeqCst), SeqCst);
        let sha256 = self.hash.take().map(digest_array);
        let mut live = self.record.live();
        live.body_sha256 = sha256;
        live.body_end = end;
        if end == BodyEnd::Broken {
            live.ended_at = Some(Instant::now());
        }
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        self.settle(BodyEnd::Unread);
    }
}
