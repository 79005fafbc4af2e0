//! WebSockets: an upgrade relayed, then two directions of frames, byte for byte.
//!
//! The upstream's side is always an h1 upgrade on a connection of its own. The client's side is an
//! h1 upgrade (RFC 6455) or an extended CONNECT on h2 (RFC 8441). Frames are walked, not changed,
//! so that a close of ours can stand between two of them; the meter will look at payloads here.

use std::any::Any;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use aws_lc_rs::digest;
use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;
use base64::Engine;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use hyper::body::Incoming;
use hyper::rt::Read;
use hyper::rt::ReadBuf;
use hyper::rt::Write;
use hyper::upgrade::Upgraded;

use super::AnswerBody;
use super::Refused;
use super::Tally;
use super::Way;
use super::head;
use crate::admission::Refusal;
use crate::drain::DrainWatcher;
use crate::drain::Phase;
use crate::hygiene::WipedIncoming;
use crate::hygiene::io::HyperIo;
use crate::hygiene::wipe::wipe;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::stand_in::Pad;
use crate::telemetry::labels::FailureReason;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Source;
use crate::upstream::RequestHead;
use crate::upstream::SendFault;
use crate::upstream::Switched;
use crate::upstream::Upload;

/// One direction's buffer: all that a WebSocket holds of a message.
const BUFFER_BYTES: usize = 16 << 10;

/// While draining, a socket is closed between two messages once it has been quiet for this long.
const QUIET: Duration = Duration::from_secs(1);

/// How long the client gets to answer our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long both sides may take to accept the end.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Close, code 1012 "service restart" (IANA WebSocket close code registry), unmasked: server to client.
const CLOSE_1012: [u8; 4] = [0x88, 0x02, 0x03, 0xf4];

/// Close, code 1001 "going away", masked with zeros: client to server.
const CLOSE_1001_MASKED: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// The client's side of a WebSocket, beside its bytes.
pub(crate) struct Peer {
    /// The client's socket, for h1; an h2 stream is guarded with its connection.
    pub(crate) watch: Option<SocketWatch>,
    /// Resets the client's stream, for h2.
    pub(crate) cut: StreamCut,
    pub(crate) drain: DrainWatcher,
    pub(crate) write_stall: Duration,
    /// The connection's places and gauges, which must be held as long.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) hold: Rc<dyn Any>,
}

/// Says how the client's h2 stream ends: hyper ends the stream in order when its upgraded half is
/// dropped, which a client would take for the whole. Seen by whoever polls hyper's sending task.
#[derive(Clone, Default)]
pub(crate) struct StreamCut(Rc<Cell<bool>>);

impl StreamCut {
    /// The stream shall be reset instead of ended.
    pub(crate) fn is_set(&self) -> bool {
        self.0.get()
    }
}

/// Whether a request asks for a WebSocket; by either of the two ways.
pub(crate) fn is_upgrade(request: &Request<Incoming>) -> bool {
    is_extended_connect(request)
        || (request.method() == Method::GET
            && request.version() == http::Version::HTTP_11
            && has_token(request.headers(), header::CONNECTION, "upgrade")
            && has_token(request.headers(), header::UPGRADE, "websocket"))
}

fn is_extended_connect(request: &Request<Incoming>) -> bool {
    request.method() == Method::CONNECT
        && request.extensions().get::<hyper::ext::Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

/// Relays an upgrade. After a 101 the frames go on in a task of their own; any other answer is
/// passed on as it is.
///
/// # Errors
/// When there is no head of an answer to pass on.
pub(crate) async fn upgrade(
    mut request: Request<Incoming>,
    mut way: Way,
    peer: Peer,
) -> Result<Response<AnswerBody>, Refused> {
    let extended = is_extended_connect(&request);
    let client_key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let version_13 = request.headers().get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    if !version_13 || (!extended && client_key.is_none()) {
        return Err(Refused { refusal: Refusal::Malformed, tally: way.tally });
    }
    let client_side = hyper::upgrade::on(&mut request);
    let pad = request.extensions_mut().remove::<Pad>();
    let (parts, body) = request.into_parts();
    let upload = Upload::new(WipedIncoming::new(body), 0, way.tally.request_bytes(), None);
    let protocols = parts.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect::<Vec<_>>();
    let mut headers = head::request_headers(parts.headers, way.upstream_config().privacy, false);
    headers.remove(header::ACCEPT_ENCODING);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    // `Sec-WebSocket-Extensions` is not passed on: deflated messages could not be counted.
    for protocol in protocols {
        headers.append(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    // An extended CONNECT carries no key (RFC 8441 section 5); the upstream needs one.
    let key = match client_key {
        Some(key) if !extended => key,
        _ => new_key(),
    };
    headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
    let head = RequestHead { method: Method::GET, path: std::mem::take(&mut way.path), headers };
    let head_timeout = way.upstream_config().head_timeout;
    let sent = Instant::now();
    let answer = match tokio::time::timeout(head_timeout, way.upstream.upgrade(&head, &upload)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(fault)) => {
            let refusal = match fault {
                SendFault::Crowded => Refusal::Overloaded,
                SendFault::Protocol => Refusal::UpstreamProtocol,
                _ => Refusal::UpstreamUnreachable,
            };
            return Err(Refused { refusal, tally: way.tally });
        }
        Err(_) => return Err(Refused { refusal: Refusal::UpstreamTimeout, tally: way.tally }),
    };
    way.tally.handles().upstream(way.upstream.id).response_head_seconds.observe(sent.elapsed());
    if answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(super::pass_on(answer, upload, way));
    }
    let accepted =
        answer.response.headers().get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|value| *value == accept_for(&key));
    // An extension that nobody offered would make frames that nobody can read.
    let unasked = answer.response.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
    if !accepted || unasked {
        way.tally.handles().guard(Guard::UpstreamBadAnswer).inc();
        return Err(Refused { refusal: Refusal::UpstreamProtocol, tally: way.tally });
    }
    let (parts, _) = answer.response.into_parts();
    let mut response = Response::new(());
    *response.headers_mut() = head::response_headers(parts.headers.clone());
    if let Some(protocol) = parts.headers.get(header::SEC_WEBSOCKET_PROTOCOL) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.clone());
    }
    if extended {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::CONTENT_LENGTH);
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept_for(&key));
    }
    let Some(switched) = answer.lease.into_switched().await else {
        return Err(Refused { refusal: Refusal::UpstreamUnreachable, tally: way.tally });
    };
    way.tally.answered(101, Source::Upstream, true);
    let silence_max = way.upstream_config().silence_timeout;
    let tally = way.tally;
    tokio::task::spawn_local(async move {
        let Ok(client) = client_side.await else { return };
        Tunnel::new(client, pad, switched, tally, peer, silence_max).run().await;
    });
    Ok(response.map(|()| AnswerBody::empty()))
}

/// 16 random bytes in base64 (RFC 6455 section 4.1).
fn new_key() -> HeaderValue {
    let mut nonce = [0_u8; 16];
    // A nonce of zeros is as good: it is no secret, it only shows that the server read the request.
    let _ = SystemRandom::new().fill(&mut nonce);
    base64(&nonce)
}

/// RFC 6455 section 4.2.2, item 5.4.
fn accept_for(key: &HeaderValue) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(context.finish().as_ref())
}

fn base64(bytes: &[u8]) -> HeaderValue {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// Where one direction stands between its frames. Knows lengths and kinds, keeps no payload.
#[derive(Default)]
struct FrameWalker {
    header: [u8; 14],
    header_len: usize,
    payload_left: u64,
    /// Inside a message of several frames.
    fragmented: bool,
    /// A close frame has begun.
    closed: bool,
}

impl FrameWalker {
    fn walk(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
                self.payload_left -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            self.header[self.header_len] = bytes[0];
            self.header_len += 1;
            bytes = &bytes[1..];
            if self.header_len >= 2 && self.header_len == self.header_bytes() {
                self.begin_payload();
            }
        }
    }

    /// RFC 6455 section 5.2: two bytes, then the longer length, then the mask.
    fn header_bytes(&self) -> usize {
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 != 0 { 4 } else { 0 };
        2 + length + mask
    }

    fn begin_payload(&mut self) {
        self.payload_left = match self.header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&self.header[2..10]);
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        };
        let last = self.header[0] & 0x80 != 0;
        match self.header[0] & 0x0f {
            0..=2 => self.fragmented = !last,
            8 => self.closed = true,
            _ => {}
        }
        self.header_len = 0;
    }

    /// Between two messages.
    fn at_boundary(&self) -> bool {
        self.payload_left == 0 && self.header_len == 0 && !self.fragmented
    }
}

/// Where a walker stands after these pieces: payload left, header bytes so far, in a message, closed.
#[cfg(fuzzing)]
pub(crate) fn walked(pieces: &[&[u8]]) -> (u64, usize, bool, bool) {
    let mut walker = FrameWalker::default();
    for piece in pieces {
        walker.walk(piece);
    }
    (walker.payload_left, walker.header_len, walker.fragmented, walker.closed)
}

/// One direction.
struct Half {
    walker: FrameWalker,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    read_ended: bool,
    finished: bool,
    bytes: u64,
    /// What its reader has sealed.
    pad: Option<Pad>,
}

impl Half {
    fn new(first: &[u8]) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES.max(first.len())].into_boxed_slice();
        buffer[..first.len()].copy_from_slice(first);
        let mut walker = FrameWalker::default();
        walker.walk(first);
        Self {
            walker,
            buffer,
            start: 0,
            end: first.len(),
            read_ended: false,
            finished: false,
            bytes: first.len() as u64,
            pad: None,
        }
    }

    /// Moves what can be moved. `Err` when a side broke; `Ready` when the end was passed on.
    fn poll_pump(
        &mut self,
        cx: &mut Context<'_>,
        from: Pin<&mut (impl Read + ?Sized)>,
        to: Pin<&mut (impl Write + ?Sized)>,
        last_byte: &mut Instant,
    ) -> Poll<Result<(), Side>> {
        let mut from = from;
        let mut to = to;
        // Enough for a full socket buffer; then others get their turn.
        for _ in 0..16 {
            if self.finished {
                return Poll::Ready(Ok(()));
            }
            if self.start < self.end {
                match to.as_mut().poll_write(cx, &self.buffer[self.start..self.end]) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        wipe(&mut self.buffer[self.start..self.start + written]);
                        self.start += written;
                        continue;
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Side::Writer)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            self.start = 0;
            self.end = 0;
            if to.as_mut().poll_flush(cx).is_pending() {
                // Goes on by itself; reading on is harmless.
            }
            if self.read_ended {
                let _ = to.as_mut().poll_shutdown(cx);
                self.finished = true;
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match from.as_mut().poll_read(cx, buffer.unfilled()) {
                Poll::Ready(Ok(())) => {
                    let read = buffer.filled().len();
                    if let Some(pad) = &self.pad {
                        pad.open(&mut self.buffer[..read]);
                    }
                    self.walker.walk(&self.buffer[..read]);
                    self.end = read;
                    self.bytes += read as u64;
                    self.read_ended = read == 0;
                    *last_byte = Instant::now();
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Reader)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Puts a frame of ours between two messages and reads no more.
    fn inject(&mut self, frame: &[u8]) {
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.start = 0;
        self.end = frame.len();
        self.read_ended = true;
        self.walker.closed = true;
    }

    fn quiet(&self) -> bool {
        self.walker.at_boundary() && self.start == self.end
    }
}

/// Which end of a direction broke.
enum Side {
    Reader,
    Writer,
}

struct Tunnel {
    client: Upgraded,
    upstream: HyperIo<Transport>,
    upstream_watch: SocketWatch,
    up: Half,
    down: Half,
    tally: Tally,
    peer: Peer,
    silence_max: Duration,
    last_byte: Instant,
    closing_since: Option<Instant>,
    _open: crate::upstream::OpenLine,
}

impl Tunnel {
    fn new(
        client: Upgraded,
        pad: Option<Pad>,
        switched: Switched,
        tally: Tally,
        peer: Peer,
        silence_max: Duration,
    ) -> Self {
        Self {
            client,
            upstream: HyperIo::new(switched.transport),
            upstream_watch: switched.watch,
            up: Half { pad, ..Half::new(&[]) },
            down: Half::new(switched.read_ahead.as_slice()),
            tally,
            peer,
            silence_max,
            last_byte: Instant::now(),
            closing_since: None,
            _open: switched.open,
        }
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let outcome = std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = self.poll_directions(cx) {
                return Poll::Ready(outcome);
            }
            while tick.poll_tick(cx).is_ready() {
                if let Some(outcome) = self.guard() {
                    return Poll::Ready(outcome);
                }
                // The guard may have put a frame into a buffer.
                if let Poll::Ready(outcome) = self.poll_directions(cx) {
                    return Poll::Ready(outcome);
                }
            }
            Poll::Pending
        })
        .await;
        if outcome == Outcome::Ok {
            // Without TLS's own goodbye the closing handshake would look cut off.
            let _ = tokio::time::timeout(
                GOODBYE_TIMEOUT,
                std::future::poll_fn(|cx| {
                    let upstream = Pin::new(&mut self.upstream).poll_shutdown(cx);
                    let client = Pin::new(&mut self.client).poll_shutdown(cx);
                    if upstream.is_ready() && client.is_ready() { Poll::Ready(()) } else { Poll::Pending }
                }),
            )
            .await;
        } else {
            if let Some(watch) = &self.peer.watch {
                watch.reset_on_close();
            }
            self.peer.cut.0.set(true);
            self.upstream_watch.reset_on_close();
        }
        if matches!(outcome, Outcome::UpstreamCut | Outcome::UpstreamTimeout)
            && let Some(upstream) = self.tally.upstream()
        {
            let reason =
                if outcome == Outcome::UpstreamCut { FailureReason::Reset } else { FailureReason::IdleTimeout };
            self.tally.handles().upstream(upstream).failures(reason).inc();
        }
        self.tally.websocket_bytes(self.up.bytes, self.down.bytes);
        self.tally.settle(outcome);
    }

    fn poll_directions(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let up = self.up.poll_pump(cx, Pin::new(&mut self.client), Pin::new(&mut self.upstream), &mut self.last_byte);
        if let Poll::Ready(Err(side)) = up {
            return Poll::Ready(self.broken(matches!(side, Side::Reader)));
        }
        let down =
            self.down.poll_pump(cx, Pin::new(&mut self.upstream), Pin::new(&mut self.client), &mut self.last_byte);
        if let Poll::Ready(Err(side)) = down {
            return Poll::Ready(self.broken(matches!(side, Side::Writer)));
        }
        if down.is_ready() && !self.down.walker.closed {
            // The provider's end without a close frame: the client must not take it for one.
            return Poll::Ready(Outcome::UpstreamCut);
        }
        if up.is_ready() && !self.up.walker.closed && !self.down.walker.closed {
            return Poll::Ready(Outcome::ClientAbort);
        }
        if self.closing_since.is_some() && up.is_ready() && down.is_ready() {
            // Our close is out. What the client still sends is read and cleared, so that closing
            // does not reset the connection before it has seen the frame.
            return self.poll_client_end(cx);
        }
        if (up.is_ready() && down.is_ready())
            || (down.is_ready() && self.closing_since.is_none() && self.up.walker.closed)
        {
            return Poll::Ready(Outcome::Ok);
        }
        Poll::Pending
    }

    fn poll_client_end(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.up.buffer);
            let polled = Pin::new(&mut self.client).poll_read(cx, buffer.unfilled());
            let read = buffer.filled().len();
            wipe(&mut self.up.buffer[..read]);
            match polled {
                Poll::Ready(Ok(())) if read > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Outcome::Ok),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn broken(&self, by_client: bool) -> Outcome {
        if self.up.walker.closed && (self.down.walker.closed || by_client) {
            Outcome::Ok
        } else if by_client {
            Outcome::ClientAbort
        } else {
            Outcome::UpstreamCut
        }
    }

    /// Twice a second: silence, stalled writers, peers that left while nobody reads, the drain.
    fn guard(&mut self) -> Option<Outcome> {
        let now = Instant::now();
        if let Some(watch) = &self.peer.watch {
            if watch.write_blocked_for().is_some_and(|blocked| blocked >= self.peer.write_stall) {
                self.tally.handles().guard(Guard::WriteStall).inc();
                return Some(Outcome::ClientAbort);
            }
            let unread = self.up.start < self.up.end || !watch.read_armed();
            if unread && watch.peer_gone() {
                return Some(Outcome::ClientAbort);
            }
        }
        if self.upstream_watch.write_blocked_for().is_some_and(|blocked| blocked >= self.silence_max)
            || now.saturating_duration_since(self.last_byte) >= self.silence_max
        {
            return Some(Outcome::UpstreamTimeout);
        }
        if let Some(since) = self.closing_since {
            return (now.saturating_duration_since(since) >= CLOSE_TIMEOUT).then_some(Outcome::Ok);
        }
        match self.peer.drain.phase() {
            Phase::Cut => Some(Outcome::Unavailable),
            Phase::Closing
                if self.up.quiet() && self.down.quiet() && now.saturating_duration_since(self.last_byte) >= QUIET =>
            {
                self.down.inject(&CLOSE_1012);
                self.up.inject(&CLOSE_1001_MASKED);
                self.closing_since = Some(now);
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_for(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn walks_any_cut() {
        let mut stream = Vec::new();
        stream.extend([0x01, 0x03, 1, 2, 3]); // first fragment
        stream.extend([0x89, 0x00]); // ping in between
        stream.extend([0x80, 0x80, 0, 0, 0, 0]); // last fragment, masked, empty
        stream.extend([0x82, 126, 0x01, 0x00]);
        stream.extend([7; 256]);
        stream.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        stream.extend([9; 65536]);
        stream.extend([0x88, 0x02, 0x03, 0xe8]);
        for cut in 0..300 {
            let mut walker = FrameWalker::default();
            walker.walk(&stream[..cut]);
            walker.walk(&stream[cut..stream.len() - 4]);
            assert!(walker.at_boundary() && !walker.closed, "{cut}");
            walker.walk(&stream[stream.len() - 4..]);
            assert!(walker.at_boundary() && walker.closed, "{cut}");
        }
        let mut walker = FrameWalker::default();
        walker.walk(&stream[..7]);
        assert!(!walker.at_boundary(), "between fragments");
    }
}
