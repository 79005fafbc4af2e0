//! Response bodies: a source of bytes, cut, paced and broken as the script says.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::Sleep;

use super::journal::BodyReader;
use super::journal::Exchange;
use super::script::Cuts;
use super::script::FaultKind;
use crate::BoxError;
use crate::io::Control;
use crate::io::Ending;
use crate::pattern::pattern_bytes;
use crate::words::words_bytes;

/// Where the bytes come from.
pub(crate) enum Source {
    /// Ready-made.
    Pieces(VecDeque<Bytes>),
    /// The deterministic sequence from `offset` up to `len`.
    Pattern { offset: u64, len: u64 },
    /// The words of `seed`, in pieces of `piece_bytes`.
    Words { seed: u32, offset: u64, len: u64, piece_bytes: u64 },
    /// Made one event at a time.
    Sse(Sse),
    /// The request body.
    Echo(BodyReader),
}

impl Source {
    pub(crate) fn bytes(bytes: impl Into<Bytes>) -> Source {
        Source::Pieces(VecDeque::from([bytes.into()]))
    }

    /// The whole length, asked before the first poll.
    fn len(&self) -> Option<u64> {
        match self {
            Source::Pieces(pieces) => Some(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Source::Pattern { len, .. } | Source::Words { len, .. } => Some(*len),
            Source::Sse(sse) => sse.len,
            Source::Echo(reader) => reader.len(),
        }
    }

    /// Everything at once, whatever its pace; None for an echo.
    pub(crate) fn all(&mut self) -> Option<Vec<u8>> {
        match self {
            Source::Echo(_) => return None,
            Source::Sse(sse) => sse.period = Duration::ZERO,
            _ => {}
        }
        let mut all = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = self.poll_frame(&mut cx) {
            all.extend_from_slice(frame.data_ref().expect("made bodies have no trailers"));
        }
        Some(all)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Source::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Source::Pattern { offset, len } => {
                let piece = pattern_bytes(*offset, *len - *offset);
                *offset += piece.len() as u64;
                Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
            }
            Source::Words { seed, offset, len, piece_bytes } => {
                let piece = words_bytes(*seed, *offset, (*len - *offset).min(*piece_bytes));
                *offset += piece.len() as u64;
                Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
            }
            Source::Sse(sse) => sse.poll_event(cx).map(|event| event.map(|event| Ok(Frame::data(event)))),
            Source::Echo(reader) => reader.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        }
    }
}

/// Some events, many similar ones at a pace, some events.
pub(crate) struct Sse {
    prologue: VecDeque<Bytes>,
    next: u64,
    count: u64,
    period: Duration,
    make: Box<dyn FnMut(u64) -> Bytes + Send>,
    epilogue: VecDeque<Bytes>,
    /// Set by the first event; all others are due relative to it, so that late timers do not add up.
    start: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    len: Option<u64>,
}

impl Sse {
    pub(crate) fn new(
        prologue: Vec<Bytes>,
        count: u64,
        period: Duration,
        make: Box<dyn FnMut(u64) -> Bytes + Send>,
        epilogue: Vec<Bytes>,
    ) -> Sse {
        let (prologue, epilogue) = (prologue.into(), epilogue.into());
        Sse { prologue, next: 0, count, period, make, epilogue, start: None, sleep: None, len: None }
    }

    /// `events=N`: equally long chat chunks.
    pub(crate) fn load(count: u64, event_bytes: usize, period: Duration, stamp: bool, usage: bool) -> Sse {
        let template = Template::new(event_bytes, stamp);
        let mut epilogue = Vec::new();
        if usage {
            epilogue.push(Bytes::from(format!(
                "data: {{\"id\":\"chatcmpl-LOAD\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
                 \"model\":\"gpt-fake-1\",\"choices\":[],\
                 \"usage\":{{\"prompt_tokens\":57,\"completion_tokens\":{count},\"total_tokens\":{}}}}}\n\n",
                count + 57
            )));
        }
        epilogue.push(Bytes::from_static(super::answers::DONE));
        let after: usize = epilogue.iter().map(Bytes::len).sum();
        let len = count * template.text.len() as u64 + after as u64;
        let mut sse = Sse::new(Vec::new(), count, period, Box::new(move |index| template.event(index)), epilogue);
        sse.len = Some(len);
        sse
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(event) = self.prologue.pop_front() {
            return Poll::Ready(Some(event));
        }
        if self.next == self.count {
            return Poll::Ready(self.epilogue.pop_front());
        }
        if !self.period.is_zero() {
            // tokio's timer counts milliseconds: shorter periods come in small bursts with the right average.
            let start = *self.start.get_or_insert_with(Instant::now);
            let due = start + self.period.mul_f64(self.next as f64);
            if due > Instant::now() {
                let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
                if sleep.deadline() != due {
                    sleep.as_mut().reset(due);
                }
                ready!(sleep.as_mut().poll(cx));
            }
        }
        self.next += 1;
        Poll::Ready(Some((self.make)(self.next - 1)))
    }
}

/// A chat chunk with two fields of fixed width, so that making one is a copy and some digits.
struct Template {
    text: Vec<u8>,
    sequence_at: usize,
    stamp_at: Option<usize>,
}

impl Template {
    fn new(event_bytes: usize, stamp: bool) -> Template {
        let mut text = b"data: {\"id\":\"chatcmpl-LOAD\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
            \"model\":\"gpt-fake-1\",\"system_fingerprint\":\"fp_"
            .to_vec();
        let sequence_at = text.len();
        text.extend_from_slice(&[b'0'; SEQUENCE_DIGITS]);
        text.push(b'"');
        let stamp_at = stamp.then(|| {
            text.extend_from_slice(STAMP_FIELD);
            text.extend_from_slice(&[b'0'; STAMP_DIGITS]);
            text.push(b'"');
            text.len() - 1 - STAMP_DIGITS
        });
        text.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"");
        let end = b"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
        let padding = event_bytes.saturating_sub(text.len() + end.len()).max(1);
        text.extend(b"fake words ".iter().cycle().take(padding));
        text.extend_from_slice(end);
        Template { text, sequence_at, stamp_at }
    }

    fn event(&self, index: u64) -> Bytes {
        let mut event = BytesMut::from(&self.text[..]);
        write_digits(&mut event[self.sequence_at..][..SEQUENCE_DIGITS], index);
        if let Some(at) = self.stamp_at {
            write_digits(&mut event[at..][..STAMP_DIGITS], crate::monotonic_ns());
        }
        event.freeze()
    }
}

fn write_digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Sequence number and stamp (0 without `stamp=1`) of an event made by `events=N`; None for any other event.
pub fn parse_event(event: &[u8]) -> Option<(u64, u64)> {
    let number = |field: &[u8], digits: usize| {
        let at = event.windows(field.len()).position(|window| window == field)? + field.len();
        std::str::from_utf8(event.get(at..at + digits)?).ok()?.parse().ok()
    };
    let sequence = number(b"\"fp_", SEQUENCE_DIGITS)?;
    Some((sequence, number(STAMP_FIELD, STAMP_DIGITS).unwrap_or(0)))
}

/// What the script does to the body.
pub(crate) struct Bends {
    pub(crate) cuts: Cuts,
    pub(crate) delay: Duration,
    /// Body bytes before the fault, and the fault.
    pub(crate) fault: Option<(u64, FaultKind)>,
    pub(crate) reset_code: u32,
    /// Body bytes before a pause that ends with the request body.
    pub(crate) hold: Option<(u64, oneshot::Receiver<()>)>,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) hide_len: bool,
    pub(crate) h2: bool,
}

impl Bends {
    /// A body as it is.
    pub(crate) fn none(h2: bool) -> Bends {
        Bends {
            cuts: Cuts::None,
            delay: Duration::ZERO,
            fault: None,
            reset_code: 0,
            hold: None,
            trailers: None,
            hide_len: false,
            h2,
        }
    }
}

/// The body that hyper polls.
pub(crate) struct ScriptBody {
    source: Source,
    /// The rest of the source's last piece.
    piece: Bytes,
    offset: u64,
    len: Option<u64>,
    bends: Bends,
    pause: Option<Pin<Box<Sleep>>>,
    /// A cut without a delay: one Pending makes hyper flush.
    flush: bool,
    state: State,
    /// None behind a 101: the exchange goes on in the WebSocket.
    exchange: Option<Exchange>,
    control: Arc<Control>,
    /// Dropped with the body: whoever waits for the answer's end may start reading the request.
    _done: Option<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    /// The pause before the fault is over next.
    Breaking,
    /// Nothing more comes, and no end either.
    Hanging,
    Ended,
}

impl ScriptBody {
    pub(crate) fn new(
        source: Source,
        bends: Bends,
        exchange: Option<Exchange>,
        control: Arc<Control>,
        done: Option<oneshot::Sender<()>>,
    ) -> ScriptBody {
        let mut body = ScriptBody {
            len: source.len(),
            source,
            piece: Bytes::new(),
            offset: 0,
            bends,
            pause: None,
            flush: false,
            state: State::Sending,
            exchange,
            control,
            _done: done,
        };
        body.end_if_full();
        body
    }

    /// hyper does not poll a body for which the head says that nothing comes.
    pub(crate) fn bodyless(mut self) -> ScriptBody {
        self.source = Source::Pieces(VecDeque::new());
        self.len = Some(0);
        self.end();
        self
    }

    /// Behind the last byte of a known length hyper may not poll again.
    fn end_if_full(&mut self) {
        let faulty = self.bends.fault.is_some_and(|(at, _)| self.bends.hide_len || Some(at) < self.len);
        if self.len == Some(self.offset) && !faulty && self.bends.trailers.is_none() {
            self.end();
        }
    }

    fn end(&mut self) {
        self.state = State::Ended;
        if let Some(exchange) = &mut self.exchange {
            exchange.complete();
        }
    }

    fn broken(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.broken();
        }
    }

    /// One step of the fault; Ready only for what reaches hyper as an error.
    fn poll_fault(&mut self, cx: &mut Context<'_>, kind: FaultKind) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.state == State::Sending && kind != FaultKind::Stall {
            // The bytes before the fault are on their way first: a RST would overtake them.
            self.pause = Some(Box::pin(tokio::time::sleep(BREAK_PAUSE)));
            self.state = State::Breaking;
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        self.state = State::Hanging;
        match kind {
            FaultKind::Stall => return Poll::Pending,
            FaultKind::ResetStream if self.bends.h2 => {
                self.broken();
                self.state = State::Ended;
                let reason = h2::Reason::from(self.bends.reset_code);
                return Poll::Ready(Some(Err(h2::Error::from(reason).into())));
            }
            FaultKind::ResetStream => self.control.end(Ending::Reset),
            FaultKind::Connection(ending) => self.control.end(ending),
        }
        self.broken();
        Poll::Pending
    }
}

impl Body for ScriptBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match this.state {
            State::Ended => return Poll::Ready(None),
            State::Hanging => return Poll::Pending,
            State::Sending | State::Breaking => {}
        }
        if let Some((at, ended)) = &mut this.bends.hold
            && this.offset >= *at
        {
            // A reader that is gone counts as an end, too.
            let _ = ready!(Pin::new(ended).poll(cx));
            this.bends.hold = None;
        }
        if let Some((at, kind)) = this.bends.fault
            && this.offset >= at
        {
            return this.poll_fault(cx, kind);
        }
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        if std::mem::take(&mut this.flush) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while this.piece.is_empty() {
            match ready!(this.source.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.piece = data,
                    Err(trailers) => {
                        // Nothing is polled behind trailers.
                        this.end();
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.end();
                    return Poll::Ready(this.bends.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
        let cut = this.bends.cuts.next(this.offset);
        let fault = this.bends.fault.map(|(at, _)| at);
        let hold = this.bends.hold.as_ref().map(|(at, _)| *at);
        let until = [cut, fault, hold].into_iter().flatten().map(|at| at - this.offset).min().unwrap_or(u64::MAX);
        let data = this.piece.split_to(usize::try_from(until).unwrap_or(usize::MAX).min(this.piece.len()));
        this.offset += data.len() as u64;
        if let Some(exchange) = &this.exchange {
            exchange.record.sent.store(this.offset, Relaxed);
        }
        if cut == Some(this.offset) {
            if this.bends.delay.is_zero() {
                this.flush = true;
            } else {
                this.pause = Some(Box::pin(tokio::time::sleep(this.bends.delay)));
            }
        }
        this.end_if_full();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended && self.bends.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.len {
            Some(len) if !self.bends.hide_len => SizeHint::with_exact(len - self.offset),
            _ => SizeHint::default(),
        }
    }
}

const SEQUENCE_DIGITS: usize = 10;
const STAMP_DIGITS: usize = 20;
const STAMP_FIELD: &[u8] = b",\"stamp_ns\":\"";

/// Picked by feel: enough for a flush and a loopback round trip on a busy machine.
const BREAK_PAUSE: Duration = Duration::from_millis(20);
