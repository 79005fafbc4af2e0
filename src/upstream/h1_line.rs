//! An h1 connection to a provider, for one exchange at a time.
//!
//! Whoever holds it drives it: no task of its own, so the relay of a chunk is one wake-up, and dropping it closes the
//! socket.

use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Instant;

use http::StatusCode;
use http::header;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;

use super::RequestHead;
use super::Switched;
use super::endpoint::Open;
use super::upload::RequestBody;
use super::upload::Upload;
use crate::config;
use crate::h1;
use crate::h1::Decoder;
use crate::h1::Framing;
use crate::h1::ReadFault;
use crate::h1::Wire;
use crate::hygiene::Chunk;
use crate::incoming::Broken;
use crate::socket::SocketWatch;
use crate::socket::Transport;

/// The head of an answer, and its fields.
const HEAD_BYTES: usize = 28 << 10;
const HEAD_FIELDS: usize = 128;

/// Interim answers to one request. Providers send none; a chain of gateways may send a few.
const INFORMATIONAL_MAX: u32 = 16;

/// Why a line brought no head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineFault {
    /// What came is no answer's head, or more than we take.
    Malformed,
    /// Interim answers without end.
    Informational,
    /// The connection ended or broke. `heard`: behind a part of an answer.
    Gone { heard: bool },
    /// The request's body failed; the upload knows why.
    Upload,
}

/// An h1 connection.
pub(crate) struct H1Line {
    wire: Wire,
    watch: SocketWatch,
    /// The request's body, until it is sent.
    sending: Option<Sending>,
    /// Reads the answer's body.
    decoder: Decoder,
    /// The last answer lets the line be used again.
    keep: bool,
    /// It has failed and must not be used again.
    broken: bool,
    /// An exchange is under way or ended badly.
    busy: BusyLine,
    /// The last exchange's end, while pooled.
    pub(super) idle_since: Instant,
    open: Open,
}

/// A request's body on its way.
struct Sending {
    body: RequestBody,
    /// What is still to come of a length that was announced; `None`: chunks.
    left: Option<u64>,
}

impl H1Line {
    pub(super) fn new(transport: Transport, watch: SocketWatch, open: Open) -> Self {
        let busy = BusyLine { watch: watch.clone(), busy: false };
        Self {
            wire: Wire::new(transport),
            watch,
            sending: None,
            decoder: Decoder::new(Framing::Empty),
            keep: true,
            broken: false,
            busy,
            idle_since: Instant::now(),
            open,
        }
    }

    /// Sends a request and waits for the head of its answer; the body goes on being sent as the answer's is polled.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) async fn send(
        &mut self,
        head: &RequestHead,
        endpoint: &config::Endpoint,
        upload: &Rc<Upload>,
    ) -> Result<h1::ResponseHead, LineFault> {
        self.busy.busy = true;
        self.keep = false;
        self.begin(head, endpoint, RequestBody(upload.clone()));
        let mut informational = 0;
        std::future::poll_fn(|cx| {
            // A server that refuses a request early may have closed, and its answer stands in the socket all the same.
            let unsent = match self.poll_send(cx) {
                Poll::Ready(Err(fault @ LineFault::Gone { .. })) => Some(fault),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Ready(Ok(())) | Poll::Pending => None,
            };
            loop {
                let answer = match self.wire.poll_head::<h1::ResponseHead>(cx, HEAD_BYTES, HEAD_FIELDS) {
                    Poll::Ready(Ok(answer)) => answer,
                    Poll::Ready(Err(fault)) => {
                        return Poll::Ready(Err(match fault {
                            ReadFault::Head(_) => LineFault::Malformed,
                            ReadFault::Io => LineFault::Gone { heard: self.wire.unread() > 0 || informational > 0 },
                            ReadFault::Closed { within } => LineFault::Gone { heard: within || informational > 0 },
                        }));
                    }
                    // Whoever has used up its turn has not looked, and is woken for it.
                    Poll::Pending if !tokio::task::coop::has_budget_remaining() => return Poll::Pending,
                    Poll::Pending => return unsent.map_or(Poll::Pending, |fault| Poll::Ready(Err(fault))),
                };
                if answer.status.is_informational() && answer.status != StatusCode::SWITCHING_PROTOCOLS {
                    informational += 1;
                    if informational > INFORMATIONAL_MAX {
                        return Poll::Ready(Err(LineFault::Informational));
                    }
                    continue;
                }
                let framing = answer.framing(&head.method).map_err(|_| LineFault::Malformed)?;
                self.decoder = Decoder::new(framing);
                self.keep = answer.keeps_alive();
                return Poll::Ready(Ok(answer));
            }
        })
        .await
    }

    /// Puts the head out, and the body behind it.
    fn begin(&mut self, head: &RequestHead, endpoint: &config::Endpoint, body: RequestBody) {
        let host = endpoint.authority();
        let room = h1::head_bytes(&head.headers) + endpoint.base_path.len() + head.path.len() + host.len();
        let out = self.wire.out().head(room);
        h1::write_request_line(out, &head.method, [&endpoint.base_path, &head.path], &host);
        h1::write_fields(out, head.headers.iter());
        let length = body.size_hint().exact();
        match length {
            // Where the method makes servers expect a body, the length stands in the head already.
            Some(0) => {}
            Some(length) => h1::write_length(out, length),
            None => h1::write_field(out, header::TRANSFER_ENCODING.as_str(), b"chunked"),
        }
        out.extend_from_slice(b"\r\n");
        let nothing = length == Some(0) && body.is_end_stream();
        self.sending = (!nothing).then_some(Sending { body, left: length });
    }

    /// Sends what the connection takes. `Ready` when all of the request is out.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LineFault>> {
        loop {
            let mut waits = false;
            while let Some(sending) = &mut self.sending
                && self.wire.out().has_room()
            {
                let frame = match Pin::new(&mut sending.body).poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                };
                match frame {
                    Some(Ok(frame)) => {
                        let Ok(chunk) = frame.into_data() else { continue };
                        match &mut sending.left {
                            Some(left) => {
                                // More than was announced would be the next request.
                                let Some(rest) = left.checked_sub(chunk.as_slice().len() as u64) else {
                                    return self.failed(LineFault::Upload);
                                };
                                *left = rest;
                                self.wire.out().push_plain(chunk);
                            }
                            None => self.wire.out().push_chunk(chunk),
                        }
                        if !sending.body.is_end_stream() {
                            continue;
                        }
                    }
                    Some(Err(_)) => return self.failed(LineFault::Upload),
                    None => {}
                }
                match sending.left {
                    Some(0) => {}
                    Some(_) => return self.failed(LineFault::Upload),
                    None => self.wire.out().push_end(),
                }
                self.sending = None;
            }
            match self.wire.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.failed(LineFault::Gone { heard: false }),
                Poll::Pending => return Poll::Pending,
            }
            if waits || self.sending.is_none() {
                return match self.wire.poll_flush(cx) {
                    Poll::Ready(Ok(())) if waits => Poll::Pending,
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                    Poll::Ready(Err(_)) => self.failed(LineFault::Gone { heard: false }),
                    Poll::Pending => Poll::Pending,
                };
            }
        }
    }

    fn failed(&mut self, fault: LineFault) -> Poll<Result<(), LineFault>> {
        self.broken = true;
        self.sending = None;
        Poll::Ready(Err(fault))
    }

    /// Sends on. `Ready` when the line has failed, so that no more of the answer is to be hoped for.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sending.is_some() || !self.wire.out().is_empty() {
            let _ = self.poll_send(cx);
        }
        if self.broken { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The next piece of the answer's body, while the rest of the request goes on being sent.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Broken>>> {
        if self.sending.is_some() || !self.wire.out().is_empty() {
            // An answer may be whole although the provider did not take all of its request. A request that its client did not
            // finish cannot be taken back but by the connection's end, as h2 resets its stream.
            if let Poll::Ready(Err(LineFault::Upload)) = self.poll_send(cx) {
                return self.cut(Broken::Cut);
            }
        }
        loop {
            match self.wire.take_body(&mut self.decoder) {
                Ok(Some(chunk)) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Ok(None) => {}
                Err(_) => return self.cut(Broken::Malformed),
            }
            if self.decoder.is_done() {
                return match self.decoder.take_trailers() {
                    Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Ok(None) => Poll::Ready(None),
                    Err(_) => self.cut(Broken::Malformed),
                };
            }
            match self.wire.poll_more(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) if self.decoder.close() => return Poll::Ready(None),
                Poll::Ready(Ok(false) | Err(_)) => return self.cut(Broken::Cut),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn cut(&mut self, fault: Broken) -> Poll<Option<Result<Frame<Chunk>, Broken>>> {
        self.broken = true;
        Poll::Ready(Some(Err(fault)))
    }

    /// Whether all of the answer has come.
    pub(super) fn is_end_stream(&self) -> bool {
        self.decoder.is_over()
    }

    /// What is still to come of the answer.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.decoder.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// Whether another exchange may use it: the last one ended on both sides, and nothing that nobody asked for has
    /// arrived since.
    pub(super) fn reusable(&mut self) -> bool {
        let idle = self.keep
            && !self.broken
            && self.sending.is_none()
            && self.wire.out().is_empty()
            && self.wire.unread() == 0
            && self.decoder.is_over()
            && self.flushed();
        if idle {
            self.busy.busy = false;
        }
        idle
    }

    /// Whether everything has gone out.
    fn flushed(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        matches!(self.wire.poll_flush(&mut cx), Poll::Ready(Ok(())))
    }

    /// Whether the socket is silent and open. Bytes on an idle connection are an answer that nobody asked for, or the end.
    pub(super) fn quiet(&self) -> bool {
        self.watch.quiet()
    }

    /// The same for a line that is about to be used. What came before the request did is known from the same look at all
    /// sockets that has brought the request, so this asks nobody; it reads what is there, and takes TLS's own messages in.
    pub(super) fn still_quiet(&mut self) -> bool {
        if !tokio::task::coop::has_budget_remaining() {
            // Nothing would be read.
            return self.quiet();
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.wire.unread() == 0 && self.wire.poll_more(&mut cx).is_pending()
    }

    /// The connection without HTTP, after a 101.
    pub(super) fn into_switched(mut self) -> Switched {
        self.busy.busy = false;
        let (transport, read_ahead) = self.wire.into_parts();
        Switched { transport, watch: self.watch, read_ahead, open: self.open }
    }
}

/// Resets the connection if an exchange was under way when its line is dropped. A FIN would wait
/// behind whatever the provider has not read yet, and the provider would go on generating.
/// Its watch keeps the socket open until then, whatever is dropped first.
struct BusyLine {
    watch: SocketWatch,
    busy: bool,
}

impl Drop for BusyLine {
    fn drop(&mut self) {
        if self.busy {
            self.watch.reset_on_close();
        }
    }
}
