//! The provider under load: what it answers says the request's `x-load`, and the request's body is compared, too.
//! [`crate::provider`] can do much more and takes its time for that; this one must cost less than any proxy.

use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::BoxError;
use crate::load::content::Document;
use crate::load::content::DocumentCheck;
use crate::load::content::EVENT_BYTES;
use crate::load::content::Fault;
use crate::load::content::Sink;
use crate::load::content::push_event;
use crate::load::content::push_tail;
use crate::load::wire::LAST_CHUNK;
use crate::load::wire::Message;
use crate::load::wire::push_chunk;
use crate::load::wire::read;
use crate::monotonic_ns;

/// What a request asks for, as its field `x-load` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Events, until the run is stopped.
    Events {
        /// Which one; numbers grow.
        run: u64,
        /// Between two writes, in microseconds. 0: as fast as they are taken, each event in a TLS record of its own.
        period_us: u64,
        /// Events in each write, which is one TLS record. Each event is a chunk of its own.
        group: u32,
        /// Of the request's document.
        number: u32,
    },
    /// A document.
    Document {
        /// Bytes of the answer.
        len: usize,
        /// Of both documents.
        number: u32,
    },
}

impl Script {
    /// The request's body, given its length.
    pub fn request(self, len: usize) -> Document {
        match self {
            Script::Events { number, .. } => Document::request(len, number, true),
            Script::Document { number, .. } => Document::request(len, number, false),
        }
    }
}

impl std::fmt::Display for Script {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Script::Events { run, period_us, group, number } => {
                write!(out, "events {run} {period_us} {group} {number}")
            }
            Script::Document { len, number } => write!(out, "document {len} {number}"),
        }
    }
}

impl FromStr for Script {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Script, Fault> {
        let bad = || Fault("an x-load that says nothing".into());
        let words: Vec<&str> = text.split(' ').collect();
        let at = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or_else(bad);
        match words[0] {
            "events" => {
                Ok(Script::Events { run: at(1)?, period_us: at(2)?, group: at(3)? as u32, number: at(4)? as u32 })
            }
            "document" => Ok(Script::Document { len: at(1)? as usize, number: at(2)? as u32 }),
            _ => Err(bad()),
        }
    }
}

/// A running provider.
pub struct Provider {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    acceptor: TlsAcceptor,
    h2: bool,
    /// Runs up to this one have ended.
    stopped: watch::Sender<u64>,
    /// The same, cheaper to look at.
    stopped_number: AtomicU64,
    /// The length that request bodies have; the wire may leave it open.
    fault: Mutex<Option<Fault>>,
    connections: AtomicU64,
}

impl Provider {
    /// Starts one on a free port of loopback. `core`: on a thread of its own there; else on the current `LocalSet`.
    pub fn start(tls: Arc<rustls::ServerConfig>, h2: bool, core: Option<usize>) -> Result<Provider, BoxError> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener: std::net::TcpListener = socket.into();
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(tls),
            h2,
            stopped: watch::Sender::new(0),
            stopped_number: AtomicU64::new(0),
            fault: Mutex::new(None),
            connections: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        match core {
            None => drop(tokio::task::spawn_local(accept(TcpListener::from_std(listener)?, accepting))),
            Some(core) => {
                std::thread::Builder::new().name("provider".into()).spawn(move || {
                    let _ = crate::load::machine::pin(core);
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, async { accept(TcpListener::from_std(listener)?, accepting).await })
                })?;
            }
        }
        Ok(Provider { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the streams of all runs up to `run`.
    pub fn stop(&self, run: u64) {
        self.shared.stopped_number.fetch_max(run, Relaxed);
        self.shared.stopped.send_modify(|stopped| *stopped = run.max(*stopped));
    }

    /// What was wrong with a request, if something was; asked once.
    pub fn fault(&self) -> Option<Fault> {
        self.shared.fault.lock().expect("no panics under this lock").take()
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    loop {
        // Out of descriptors, say: the tool sees what does not come.
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let number = shared.connections.fetch_add(1, Relaxed);
        tokio::task::spawn_local(connection(tcp, shared.clone(), number));
    }
}

async fn connection(tcp: TcpStream, shared: Arc<Shared>, number: u64) {
    let _ = tcp.set_nodelay(true);
    let Ok(tls) = shared.acceptor.accept(tcp).await else { return };
    let ended = if shared.h2 { serve_h2(tls, &shared, number).await } else { serve_h1(tls, &shared, number).await };
    // A connection that breaks shows on the client's side. What was asked wrongly shows here alone.
    if let Err(error) = ended
        && let Ok(fault) = error.downcast::<Fault>()
    {
        shared.fault.lock().expect("no panics under this lock").get_or_insert(*fault);
    }
}

/// Where within a period a stream's writes fall: spread evenly, by the golden ratio.
fn phase(period: Duration, number: u64) -> Duration {
    period.mul_f64((number as f64 * 0.618_033_988_75).fract())
}

async fn serve_h1(mut tls: TlsStream<TcpStream>, shared: &Arc<Shared>, number: u64) -> Result<(), BoxError> {
    let mut buffer = Vec::new();
    let mut out = Vec::new();
    loop {
        let mut message = Message::new(buffer);
        let mut asked: Option<(Script, DocumentCheck)> = None;
        loop {
            let step = read(&mut tls, |data| {
                if data.is_empty() {
                    return Ok(None);
                }
                let rest = message.feed_head(data)?;
                if let (None, Some(head)) = (&asked, message.head()) {
                    let text = head.value("x-load").and_then(|text| str::from_utf8(text).ok());
                    let script: Script = text.unwrap_or_default().parse()?;
                    let len = head.value("x-length").and_then(|text| str::from_utf8(text).ok());
                    let len = len.and_then(|text| text.parse().ok()).unwrap_or(0);
                    asked = Some((script, DocumentCheck::new(script.request(len))));
                }
                match &mut asked {
                    Some((_, check)) => message.feed_body(rest, check).map(Some),
                    None => Ok(Some(false)),
                }
            });
            match step.await? {
                Ok(None) => return Ok(()),
                Ok(Some(true)) => break,
                Ok(Some(false)) => {}
                Err(fault) => return Err(Box::<Fault>::new(fault)),
            }
        }
        buffer = message.into_buffer();
        let Some((script, mut check)) = asked else { return Ok(()) };
        check.end()?;
        match script {
            Script::Document { len, number } => {
                let document = Document::answer(len, number);
                out.clear();
                write!(
                    out,
                    "{ANSWER_HEAD}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    document.len()
                )?;
                let mut at = 0;
                while at < document.len() {
                    let piece = document.piece(at);
                    at += piece.len();
                    out.extend_from_slice(piece);
                    if out.len() >= 64 * 1024 || at == document.len() {
                        tls.write_all(&out).await?;
                        out.clear();
                    }
                }
                tls.flush().await?;
            }
            Script::Events { run, period_us, group, .. } => {
                let mut events = H1Events { tls: &mut tls, out: &mut out };
                events.out.clear();
                events.out.extend_from_slice(ANSWER_HEAD.as_bytes());
                events.out.extend_from_slice(b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
                stream(&mut events, shared, run, period_us, group, number).await?;
            }
        }
    }
}

/// Where events go.
trait Events {
    /// The next event, of the record that is being made.
    fn push(&mut self, event: &[u8]);
    /// The record is complete.
    fn record(&mut self) -> io::Result<()>;
    /// The stream is complete.
    fn last(&mut self);
    /// Sends what is there.
    async fn send(&mut self, end: bool) -> Result<(), BoxError>;
}

struct H1Events<'c> {
    tls: &'c mut TlsStream<TcpStream>,
    out: &'c mut Vec<u8>,
}

impl Events for H1Events<'_> {
    fn push(&mut self, event: &[u8]) {
        push_chunk(self.out, event);
    }

    fn record(&mut self) -> io::Result<()> {
        self.tls.get_mut().1.writer().write_all(self.out)?;
        self.out.clear();
        Ok(())
    }

    fn last(&mut self) {
        self.out.extend_from_slice(LAST_CHUNK);
    }

    async fn send(&mut self, _: bool) -> Result<(), BoxError> {
        Ok(self.tls.flush().await?)
    }
}

/// Events until the run is over.
async fn stream(
    to: &mut impl Events,
    shared: &Shared,
    run: u64,
    period_us: u64,
    group: u32,
    number: u64,
) -> Result<(), BoxError> {
    let mut event = Vec::with_capacity(2 * EVENT_BYTES);
    let mut count = 0;
    let mut push = |to: &mut _, count: &mut u32| {
        event.clear();
        push_event(&mut event, *count, monotonic_ns());
        Events::push(to, &event);
        *count += 1;
    };
    // The first one comes with the head, so that the client knows that the stream is there.
    push(to, &mut count);
    to.record()?;
    to.send(false).await?;
    let mut stopped = shared.stopped.subscribe();
    let period = Duration::from_micros(period_us);
    let mut next = Instant::now() + phase(period, number);
    let mut sleep = std::pin::pin!(tokio::time::sleep_until(next));
    while shared.stopped_number.load(Relaxed) < run {
        if period_us == 0 {
            for _ in 0..BATCH {
                push(to, &mut count);
                to.record()?;
            }
        } else {
            if period < LONG {
                sleep.as_mut().await;
            } else {
                // Waking up for the end costs a little, so only those who wait long do.
                tokio::select! {
                    () = sleep.as_mut() => {}
                    _ = stopped.wait_for(|stopped| *stopped >= run) => break,
                }
            }
            for _ in 0..group {
                push(to, &mut count);
            }
            to.record()?;
            // Who is late does not catch up with a burst.
            next = Instant::now().max(next + period);
            sleep.as_mut().reset(next);
        }
        to.send(false).await?;
    }
    let mut tail = Vec::new();
    push_tail(&mut tail, count);
    to.push(&tail);
    to.last();
    to.record()?;
    to.send(true).await
}

async fn serve_h2(tls: TlsStream<TcpStream>, shared: &Arc<Shared>, number: u64) -> Result<(), BoxError> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1024 * 1024)
        .initial_connection_window_size(64 * 1024 * 1024)
        .max_concurrent_streams(10_000)
        .handshake(tls)
        .await?;
    let mut streams = 0;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let shared = shared.clone();
        streams += 1;
        let number = number + streams;
        tokio::task::spawn_local(async move {
            if let Err(error) = answer_h2(request, respond, &shared, number).await
                && let Ok(fault) = error.downcast::<Fault>()
            {
                shared.fault.lock().expect("no panics under this lock").get_or_insert(*fault);
            }
        });
    }
    Ok(())
}

async fn answer_h2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    shared: &Shared,
    number: u64,
) -> Result<(), BoxError> {
    let (head, mut body) = request.into_parts();
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let script: Script = text("x-load").parse()?;
    let mut check = DocumentCheck::new(script.request(text("x-length").parse().unwrap_or(0)));
    while let Some(data) = body.data().await {
        let data = data?;
        check.data(&data)?;
        body.flow_control().release_capacity(data.len())?;
    }
    check.end()?;
    let mut answer = Response::builder();
    for line in ANSWER_HEAD.lines().skip(1) {
        if let Some((name, value)) = line.split_once(": ") {
            answer = answer.header(name, value);
        }
    }
    match script {
        Script::Document { len, number } => {
            let document = Document::answer(len, number);
            let answer = answer.header("content-type", "application/json").header("content-length", document.len());
            let mut stream = respond.send_response(answer.body(())?, false)?;
            let mut at = 0;
            while at < document.len() {
                let piece = Bytes::copy_from_slice(document.piece(at));
                at += piece.len();
                send_h2(&mut stream, piece, at == document.len()).await?;
            }
            Ok(())
        }
        Script::Events { run, period_us, group, .. } => {
            let answer = answer.header("content-type", "text/event-stream");
            let mut events = H2Events { stream: respond.send_response(answer.body(())?, false)?, out: Vec::new() };
            self::stream(&mut events, shared, run, period_us, group, number).await
        }
    }
}

/// On h2 a record is what is sent at once, in one frame; unpaced events share frames.
struct H2Events {
    stream: h2::SendStream<Bytes>,
    out: Vec<u8>,
}

impl Events for H2Events {
    fn push(&mut self, event: &[u8]) {
        self.out.extend_from_slice(event);
    }

    fn record(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn last(&mut self) {}

    async fn send(&mut self, end: bool) -> Result<(), BoxError> {
        send_h2(&mut self.stream, std::mem::take(&mut self.out).into(), end).await
    }
}

async fn send_h2(stream: &mut h2::SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), BoxError> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        // `poll_capacity` tells of capacity that is new, and of none that is there already.
        let room = match stream.capacity() {
            0 => std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or("the stream is gone")??,
            room => room,
        };
        let piece = data.split_to(room.min(data.len()));
        let last = end && data.is_empty();
        stream.send_data(piece, last)?;
    }
    Ok(())
}

/// The head of every answer: what a provider sends beside the content.
const ANSWER_HEAD: &str = "HTTP/1.1 200 OK\r\n\
     date: Thu, 20 Nov 2025 12:00:00 GMT\r\n\
     server: load\r\n\
     x-request-id: req_0123456789abcdef0123456789abcdef\r\n\
     openai-organization: org-load\r\n\
     openai-processing-ms: 212\r\n\
     openai-version: 2020-10-01\r\n\
     x-ratelimit-limit-requests: 10000\r\n\
     x-ratelimit-limit-tokens: 2000000\r\n\
     x-ratelimit-remaining-requests: 9999\r\n\
     x-ratelimit-remaining-tokens: 1999000\r\n\
     x-ratelimit-reset-requests: 6ms\r\n\
     x-ratelimit-reset-tokens: 30ms\r\n\
     strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n";

/// Unpaced events between two writes to the socket: rustls keeps up to 64 KiB.
const BATCH: u32 = 32;
/// From this period on a stream is woken up for the end.
const LONG: Duration = Duration::from_millis(300);
/// Thousands of connections arrive at once.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_say_what_they_mean() {
        for script in [
            Script::Events { run: 3, period_us: 20_000, group: 8, number: 77 },
            Script::Document { len: 50_000_000, number: u32::MAX },
        ] {
            assert_eq!(script.to_string().parse(), Ok(script));
        }
        assert!("".parse::<Script>().is_err());
        assert!("events 1 2".parse::<Script>().is_err());
    }
}
