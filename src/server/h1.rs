//! One client's h1 connection: heads in, answers out, one request after the other.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use http::Extensions;
use http::Method;
use http::StatusCode;
use http::Version;
use http_body::Body;

use super::Ended;
use crate::config::Limits;
use crate::h1;
use crate::h1::Framing;
use crate::h1::HeadFault;
use crate::h1::Out;
use crate::h1::ReadFault;
use crate::hygiene::Chunk;
use crate::incoming::Incoming;
use crate::message::Fields;
use crate::message::Request;
use crate::message::RequestParts;
use crate::message::Response;
use crate::message::ResponseParts;
use crate::message::Value;
use crate::message::name;
use crate::socket::Transport;

/// A client on h1.
pub(super) struct Client {
    served: Rc<h1::Served>,
    /// No more requests are taken.
    closing: Cell<bool>,
    /// The connection was ended by us, whatever the client still sends.
    ended: Cell<bool>,
    head_bytes_max: usize,
    fields_max: usize,
}

/// How the end of an answer's body is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nothing follows the head.
    Nothing,
    /// So many bytes are still to come.
    Length(u64),
    Chunks {
        trailers: bool,
    },
    Close,
}

/// Why a connection cannot go on.
struct Gone;

impl Drop for Client {
    fn drop(&mut self) {
        // Whoever still holds a request's body would keep the socket open.
        self.served.give_up();
    }
}

impl Client {
    pub(super) fn new(transport: Transport, limits: &Limits) -> Self {
        Self {
            served: h1::Served::new(transport),
            closing: Cell::new(false),
            ended: Cell::new(false),
            head_bytes_max: limits.head_bytes,
            fields_max: limits.head_fields,
        }
    }

    /// Takes no more requests. To be polled afterwards.
    pub(super) fn close(&self) {
        self.closing.set(true);
    }

    /// Serves the connection to its end. `service` gets each request, and whether its body's length can be read in one way.
    pub(super) async fn serve<F, B>(&self, service: impl Fn(Request<Incoming>, bool) -> F) -> Ended
    where
        F: Future<Output = Response<B>>,
        B: Body<Data = Chunk> + Unpin,
    {
        loop {
            let head = match std::future::poll_fn(|cx| self.poll_head(cx)).await {
                None => break,
                Some(Ok(head)) => head,
                Some(Err(ReadFault::Head(fault))) => {
                    self.refuse(fault).await;
                    return match fault {
                        HeadFault::TooLarge => Ended::HeadTooLarge,
                        HeadFault::Malformed => Ended::BadFraming,
                    };
                }
                // In order, or within a head: nobody is there who could be told.
                Some(Err(ReadFault::Closed { within: false })) => break,
                Some(Err(ReadFault::Closed { within: true } | ReadFault::Io)) => return Ended::Fine,
            };
            match self.exchange(head, &service).await {
                Ok(true) => {}
                Ok(false) => {
                    self.ended.set(self.served.body_is_read());
                    break;
                }
                Err(Gone) => return Ended::Fine,
            }
        }
        let _ = std::future::poll_fn(|cx| self.wire(|wire| wire.poll_shutdown(cx))).await;
        Ended::Fine
    }

    /// Reads away for a moment what a client sends behind the end that we have said: with bytes unread, a socket's closing
    /// resets the connection, and takes the answer from a client that has not read it yet (RFC 9112 section 9.6).
    pub(super) async fn linger(&self) {
        if !self.ended.get() {
            return;
        }
        let mut left = LINGER_BYTES;
        let away = std::future::poll_fn(|cx| {
            while left > 0 {
                match self.served.with_wire(|wire| wire.poll_away(cx)) {
                    Some(Poll::Ready(Ok(read @ 1..))) => left = left.saturating_sub(read),
                    Some(Poll::Pending) => return Poll::Pending,
                    Some(Poll::Ready(_)) | None => break,
                }
            }
            Poll::Ready(())
        });
        let _ = tokio::time::timeout(LINGER_TIME, away).await;
    }

    /// `None`: no more requests are wanted, and none has begun.
    fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Option<Result<h1::RequestHead, ReadFault>>> {
        // What TLS holds back of the last answer.
        let _ = self.wire(|wire| wire.poll_flush(cx));
        match self.served.poll_head(cx, self.head_bytes_max, self.fields_max) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => {
                let begun = self.served.with_wire(|wire| wire.unread() > 0).unwrap_or(false);
                if self.closing.get() && !begun { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    }

    fn wire(&self, act: impl FnOnce(&mut h1::Wire) -> Poll<std::io::Result<()>>) -> Poll<Result<(), Gone>> {
        match self.served.with_wire(act) {
            Some(Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(Err(_))) | None => Poll::Ready(Err(Gone)),
        }
    }

    /// One request and its answer. Whether the connection may be used for another one.
    async fn exchange<F, B>(
        &self,
        head: h1::RequestHead,
        service: &impl Fn(Request<Incoming>, bool) -> F,
    ) -> Result<bool, Gone>
    where
        F: Future<Output = Response<B>>,
        B: Body<Data = Chunk> + Unpin,
    {
        let framing = head.framing();
        let framed = framing.is_ok();
        let (framing, last) = framing.unwrap_or((Framing::Empty, true));
        let mut keep = head.keeps_alive() && !last;
        let version = head.version;
        let is_head = head.method == Method::HEAD;
        let trailers = version == Version::HTTP_11 && wants_trailers(&head.headers);
        let expects = version == Version::HTTP_11
            && framing != Framing::Empty
            && head
                .headers
                .get(name::EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let h1::RequestHead { method, target: uri, headers, .. } = head;
        let parts = RequestParts { method, uri, version, headers, extensions: Extensions::new() };
        let request = Request::new(parts, Incoming::H1(self.served.begin(framing, expects)));

        // On the heap and gone before the answer's body comes, which may take long.
        let mut answering = Box::pin(service(request, framed));
        let response = std::future::poll_fn(|cx| {
            if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                return Poll::Ready(Ok(response));
            }
            if let Poll::Ready(Err(Gone)) = self.wire(|wire| wire.poll_flush(cx)) {
                return Poll::Ready(Err(Gone));
            }
            if self.served.client_left(cx) { Poll::Ready(Err(Gone)) } else { Poll::Pending }
        })
        .await?;
        drop(answering);
        self.served.answers();

        let (parts, body) = response.into_parts();
        let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let closes = |headers: &Fields| headers.get(name::CONNECTION).is_some_and(|value| value == "close");
        keep &= !self.closing.get() && !closes(&parts.headers);
        let ending = ending_of(&parts, &body, is_head, version, trailers);
        keep &= ending != Ending::Close;
        let written = self.served.with_wire(|wire| {
            let out = wire.out().head(h1::head_bytes(&parts.headers));
            write_head(out, &parts, ending, is_head, version, keep || switched);
        });
        written.ok_or(Gone)?;
        drop(parts);
        self.write_body(body, ending).await?;
        if switched {
            self.served.hand_over();
            return Err(Gone);
        }
        // Somebody may still be reading the request's rest away, so that the client gets to read its answer.
        std::future::poll_fn(|cx| self.served.poll_body_left(cx)).await;
        Ok(keep && self.served.body_is_read())
    }

    /// Writes what waits and a body behind it. The body is gone before its last bytes are out: whoever has read those finds
    /// its places given back.
    async fn write_body<B>(&self, body: B, ending: Ending) -> Result<(), Gone>
    where
        B: Body<Data = Chunk> + Unpin,
    {
        let mut ending = ending;
        let mut body = Some(body).filter(|_| ending != Ending::Nothing);
        std::future::poll_fn(|cx| {
            loop {
                let mut waits = false;
                while let Some(frames) = &mut body
                    && self.served.with_wire(|wire| wire.out().has_room()).unwrap_or(false)
                {
                    let frame = match Pin::new(&mut *frames).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => Some(frame),
                        Poll::Ready(None) => None,
                        // What came before it was offered to the socket first. What the client has not made room for goes with the
                        // reset, as what the kernel holds does.
                        Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Gone)),
                        Poll::Pending => {
                            waits = true;
                            break;
                        }
                    };
                    let last = frame.is_none() || frames.is_end_stream();
                    let gathered = self.served.with_wire(|wire| gather(wire.out(), frame, &mut ending, last));
                    if gathered.is_none_or(|gathered| gathered.is_err()) {
                        return Poll::Ready(Err(Gone));
                    }
                    if last {
                        body = None;
                    }
                }
                match self.wire(|wire| wire.poll_write(cx)) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(Gone)) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => return self.poll_client(cx),
                }
                if body.is_none() {
                    return self.wire(|wire| wire.poll_flush(cx));
                }
                if waits {
                    if let Poll::Ready(Err(Gone)) = self.wire(|wire| wire.poll_flush(cx)) {
                        return Poll::Ready(Err(Gone));
                    }
                    return self.poll_client(cx);
                }
            }
        })
        .await
    }

    fn poll_client(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.served.client_left(cx) { Poll::Ready(Err(Gone)) } else { Poll::Pending }
    }

    /// Answers what is no head.
    async fn refuse(&self, fault: HeadFault) {
        let status = match fault {
            HeadFault::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            HeadFault::Malformed => StatusCode::BAD_REQUEST,
        };
        self.served.with_wire(|wire| {
            let out = wire.out().head(160);
            h1::write_status_line(out, Version::HTTP_11, status);
            h1::write_field(out, "connection", b"close");
            h1::write_length(out, 0);
            h1::write_date(out);
            out.extend_from_slice(b"\r\n");
        });
        let _ = std::future::poll_fn(|cx| self.wire(|wire| wire.poll_shutdown(cx))).await;
        self.ended.set(true);
    }
}

/// The most that is read behind the end of a connection, and how long. A client that has read its answer closes at once.
const LINGER_BYTES: usize = 1 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);

fn wants_trailers(headers: &Fields) -> bool {
    let values = headers.get_all(name::TE).filter_map(Value::text);
    values.flat_map(|text| text.split(',')).any(|part| part.trim().eq_ignore_ascii_case("trailers"))
}

fn ending_of<B: Body>(parts: &ResponseParts, body: &B, is_head: bool, version: Version, trailers: bool) -> Ending {
    let status = parts.status;
    if is_head || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ending::Nothing;
    }
    let announced = parts.headers.get(name::CONTENT_LENGTH).and_then(|value| value.text()?.parse().ok());
    match announced.or(body.size_hint().exact()) {
        Some(0) if body.is_end_stream() => Ending::Nothing,
        Some(length) => Ending::Length(length),
        None if version == Version::HTTP_10 => Ending::Close,
        None => Ending::Chunks { trailers },
    }
}

fn write_head(out: &mut Vec<u8>, parts: &ResponseParts, ending: Ending, is_head: bool, version: Version, keep: bool) {
    h1::write_status_line(out, version, parts.status);
    h1::write_fields(out, parts.headers.iter());
    // An answer to HEAD may leave out what only the body would tell (RFC 9110 section 9.3.2).
    let may_have_length = !is_head && !parts.status.is_informational() && parts.status != StatusCode::NO_CONTENT;
    if may_have_length && !parts.headers.contains_key(name::CONTENT_LENGTH) {
        match ending {
            Ending::Length(length) => h1::write_length(out, length),
            Ending::Nothing if parts.status != StatusCode::NOT_MODIFIED => h1::write_length(out, 0),
            Ending::Chunks { .. } => h1::write_field(out, "transfer-encoding", b"chunked"),
            Ending::Nothing | Ending::Close => {}
        }
    }
    if !parts.headers.contains_key(name::CONNECTION) {
        match (keep, version) {
            (true, Version::HTTP_10) => h1::write_field(out, "connection", b"keep-alive"),
            (false, Version::HTTP_11) => h1::write_field(out, "connection", b"close"),
            _ => {}
        }
    }
    if !parts.headers.contains_key(name::DATE) {
        h1::write_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Adds a piece, and the end if it is the last one.
fn gather(out: &mut Out, frame: Option<http_body::Frame<Chunk>>, ending: &mut Ending, last: bool) -> Result<(), Gone> {
    let mut closed = false;
    if let Some(frame) = frame {
        match (frame.into_data(), &mut *ending) {
            (Ok(chunk), Ending::Length(left)) => {
                // More than was announced would be the next answer.
                *left = left.checked_sub(chunk.as_slice().len() as u64).ok_or(Gone)?;
                out.push_plain(chunk);
            }
            (Ok(chunk), Ending::Chunks { .. }) => out.push_chunk(chunk),
            (Ok(chunk), Ending::Close) => out.push_plain(chunk),
            (Err(frame), Ending::Chunks { trailers: true }) => {
                if let Ok(trailers) = frame.into_trailers() {
                    out.push_trailers(&trailers);
                    closed = true;
                }
            }
            (Ok(_), Ending::Nothing) | (Err(_), _) => {}
        }
    }
    match ending {
        // Less than was announced must not look whole.
        Ending::Length(left) if last && *left > 0 => Err(Gone),
        Ending::Chunks { .. } if last && !closed => {
            out.push_end();
            Ok(())
        }
        _ => Ok(()),
    }
}
