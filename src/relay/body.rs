//! An answer's body on its way to the client.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tokio::time::Sleep;

use super::drain_rest;
use super::head;
use super::hide::Filter;
use super::tally::Tally;
use crate::hygiene::Chunk;
use crate::incoming::Broken;
use crate::message::Fields;
use crate::telemetry::labels::FailureReason;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Phase;
use crate::upstream::Inflow;
use crate::upstream::Upload;
use crate::upstream::UploadFault;

/// One chunk in this many is timed.
const CHUNKS_PER_SAMPLE: u32 = 64;

/// When a stream handed out its last chunk and has not been asked for another since. Seen by
/// whoever guards the client's side of the stream.
#[derive(Clone)]
pub(crate) struct StallMark(Option<Rc<Cell<Option<Instant>>>>);

impl StallMark {
    /// Of a stream that somebody guards by it.
    pub(crate) fn new() -> Self {
        Self(Some(Rc::default()))
    }

    /// Of one that is guarded at its socket.
    pub(crate) fn unseen() -> Self {
        Self(None)
    }

    /// Something waits for the client from now on.
    pub(crate) fn start(&self) {
        if self.0.is_some() {
            self.set(Some(Instant::now()));
        }
    }

    fn set(&self, since: Option<Instant>) {
        if let Some(mark) = &self.0 {
            mark.set(since);
        }
    }

    /// Since when the client has not taken what waits for it.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|mark| mark.get())
    }
}

/// Why an answer's body was cut. The client's stream is reset by it, never ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BodyFault {
    /// The upstream broke off.
    Cut,
    /// A budget is used up, or the key is revoked.
    Limited,
    /// Nothing came for longer than the silence that is allowed.
    Silent,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "the upstream broke off",
            Self::Limited => "a limit is reached",
            Self::Silent => "the upstream fell silent",
        })
    }
}

impl std::error::Error for BodyFault {}

/// An answer's body: the upstream's, or a fixed text of ours.
pub(crate) enum AnswerBody {
    Relayed(Relayed),
    /// The account is that of the exchange, closed when the text is out; `None` if it went elsewhere.
    Fixed(Option<String>, #[expect(dead_code, reason = "held for its drop")] Option<Box<Tally>>),
}

/// The upstream's body on loan to a client.
pub(crate) struct Relayed {
    /// `None` only while it is dropped: what a client left may be read on without it.
    stream: Option<Box<Stream>>,
    /// What takes out of the answer what the client did not ask for.
    hide: Option<Box<Hide>>,
}

/// A filter and what has come out of it.
struct Hide {
    filter: Filter,
    ready: VecDeque<Chunk>,
}

/// The upstream's body, with everything that must live as long.
pub(super) struct Stream {
    /// `None` once the end was reached or the line was given up.
    inflow: Option<Inflow>,
    upload: Rc<Upload>,
    tally: Tally,
    stall: StallMark,
    silence_max: Duration,
    /// Fires when the silence may have lasted too long; set anew then, not with each chunk. Made when there is something to
    /// wait for.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Its time; what has passed where there is none.
    alarm_at: Instant,
    /// A chunk has passed since this was last told to wait.
    fed: bool,
    /// What the outcome is if the end is reached.
    outcome: Outcome,
    ended: bool,
    /// For how long it is read on when its client leaves.
    abort_drain: Duration,
    /// When it is looked at next whether it must be cut. `None`: it never must.
    look_at: Option<Instant>,
}

impl Relayed {
    /// `hide`: the answer has events that the client did not ask for.
    pub(super) fn new(stream: Stream, hide: bool) -> Self {
        let hide = hide.then(|| Box::new(Hide { filter: Filter::new(), ready: VecDeque::new() }));
        Self { stream: Some(Box::new(stream)), hide }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyFault>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let Some(hide) = &mut self.hide else { return stream.poll_frame(cx) };
        loop {
            if let Some(chunk) = hide.ready.pop_front() {
                stream.stall.start();
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            match std::task::ready!(stream.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        hide.filter.push(chunk, &mut hide.ready);
                        if stream.ended {
                            hide.filter.finish(&mut hide.ready);
                        } else if hide.ready.is_empty() {
                            // Nothing waits for the client.
                            stream.stall.set(None);
                        }
                    }
                    // An event stream has no use for trailers, and what is held must come first.
                    Err(_trailers) => hide.filter.finish(&mut hide.ready),
                },
                Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                None => {
                    hide.filter.finish(&mut hide.ready);
                    if hide.ready.is_empty() {
                        return Poll::Ready(None);
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing_waits = self.hide.as_ref().is_none_or(|hide| hide.ready.is_empty());
        nothing_waits && self.stream.as_ref().is_none_or(|stream| stream.ended)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.stream, &self.hide) {
            (Some(stream), None) => stream.inflow.as_ref().map_or(SizeHint::with_exact(0), Inflow::size_hint),
            _ => SizeHint::default(),
        }
    }
}

impl Stream {
    pub(super) fn new(
        inflow: Inflow,
        upload: Rc<Upload>,
        tally: Tally,
        stall: StallMark,
        silence_max: Duration,
        outcome: Outcome,
        abort_drain: Duration,
    ) -> Self {
        let look_at = tally.may_be_cut().then(|| tally.last_byte() + LOOK_EVERY);
        let alarm_at = tally.started();
        let mut this = Self {
            inflow: Some(inflow),
            upload,
            tally,
            stall,
            silence_max,
            alarm: None,
            alarm_at,
            fed: false,
            outcome,
            ended: false,
            abort_drain,
            look_at,
        };
        if this.inflow_is_over() {
            this.end(this.tally.last_byte());
        }
        this
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyFault>>> {
        self.stall.set(None);
        if self.ended {
            return Poll::Ready(None);
        }
        // The line is driven here and not in a task of its own: a chunk's way is one wake-up, and chunks that arrived
        // together leave together.
        let polled = self.inflow.as_mut().map_or(Poll::Ready(None), |inflow| inflow.poll_frame(cx));
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                let now = Instant::now();
                if self.over(now) {
                    return Poll::Ready(Some(Err(BodyFault::Limited)));
                }
                if let Some(trailers) = frame.trailers_mut() {
                    let mut fields = Fields::from(std::mem::take(trailers));
                    head::answer_trailers(&mut fields);
                    self.tally.rewrite_trailers(&mut fields);
                    if fields.is_empty() {
                        self.end(now);
                        return Poll::Ready(None);
                    }
                    *trailers = fields.into();
                }
                self.tally.passed(frame.data_ref().map_or(&[][..], Chunk::as_slice), now);
                self.stall.set(Some(now));
                self.fed = true;
                if frame.is_trailers() || self.inflow_is_over() {
                    self.end(now);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let reason = if error == Broken::Reset { FailureReason::Reset } else { FailureReason::Truncated };
                match self.upload.fault().and_then(of_client) {
                    // The rest of the request was not sent, and the upstream broke off for that.
                    Some((outcome, guard)) => {
                        if let Some(guard) = guard {
                            self.tally.handles().guard(guard).inc();
                        }
                        self.gave_up(outcome);
                    }
                    None => self.failed(reason, Outcome::UpstreamCut),
                }
                Poll::Ready(Some(Err(BodyFault::Cut)))
            }
            Poll::Ready(None) => {
                self.end(Instant::now());
                Poll::Ready(None)
            }
            // A chunk has just passed, and the alarm has been set and was not due then.
            Poll::Pending if std::mem::take(&mut self.fed) && self.tally.last_byte() < self.alarm_at => Poll::Pending,
            Poll::Pending => self.poll_silence(cx),
        }
    }

    fn inflow_is_over(&self) -> bool {
        self.inflow.as_ref().is_none_or(Inflow::is_end_stream)
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyFault>>> {
        loop {
            let alarm = self.alarm.get_or_insert_with(|| {
                let first = self.tally.last_byte() + self.silence_max;
                self.alarm_at = self.look_at.map_or(first, |look_at| first.min(look_at));
                Box::pin(tokio::time::sleep_until(self.alarm_at.into()))
            });
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.over(Instant::now()) {
                return Poll::Ready(Some(Err(BodyFault::Limited)));
            }
            let last = self.tally.last_byte().max(self.upload.last_byte());
            if last.elapsed() >= self.silence_max {
                self.failed(FailureReason::IdleTimeout, Outcome::UpstreamTimeout);
                return Poll::Ready(Some(Err(BodyFault::Silent)));
            }
            let next = last + self.silence_max;
            self.alarm_at = self.look_at.map_or(next, |look_at| next.min(look_at));
            if let Some(alarm) = &mut self.alarm {
                alarm.as_mut().reset(self.alarm_at.into());
            }
        }
    }

    /// Looks, once in a while, whether the stream must be cut for a limit, and does.
    fn over(&mut self, now: Instant) -> bool {
        let Some(at) = self.look_at.filter(|at| *at <= now) else { return false };
        self.look_at = Some(at.max(now) + LOOK_EVERY);
        let over = self.tally.must_be_cut();
        if over {
            self.ended = true;
            self.inflow = None;
            self.tally.settle(Outcome::Limited);
            self.upload.fail(UploadFault::Cancelled);
        }
        over
    }

    fn failed(&mut self, reason: FailureReason, outcome: Outcome) {
        if let Some(upstream) = self.tally.upstream() {
            self.tally.handles().upstream(upstream).failures(reason).inc();
        }
        self.gave_up(outcome);
    }

    fn gave_up(&mut self, outcome: Outcome) {
        self.ended = true;
        self.inflow = None;
        self.tally.settle(outcome);
        self.upload.fail(UploadFault::Cancelled);
    }

    fn end(&mut self, now: Instant) {
        self.ended = true;
        self.tally.ended(self.outcome);
        let Some(inflow) = self.inflow.take() else { return };
        if self.upload.ended() {
            inflow.give_back(now);
        } else {
            // The upstream answered before it had read everything. The line cannot be used again;
            // the client may go on sending, so that it gets to read its answer.
            drop(inflow);
            drain_rest(self.upload.take_rest());
        }
    }
}

/// How an exchange ends whose request stopped in the answer's midst for this, and the guard that stopped it. `None`: the
/// client has nothing to do with it.
fn of_client(fault: UploadFault) -> Option<(Outcome, Option<Guard>)> {
    Some(match fault {
        UploadFault::BadFraming => (Outcome::ClientError, Some(Guard::BadFraming)),
        UploadFault::TooLarge => (Outcome::ClientError, Some(Guard::BodyTooLarge)),
        UploadFault::TooSlow => (Outcome::ClientError, Some(Guard::BodyTooSlow)),
        UploadFault::Denied(_) => (Outcome::ClientError, None),
        UploadFault::Limited => (Outcome::Limited, None),
        UploadFault::ClientGone => (Outcome::ClientAbort, None),
        UploadFault::Cancelled => return None,
    })
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.abandoned();
        }
    }
}

/// How often a stream that may be cut for a limit is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How many answers a worker reads on at once without their clients. One more is cancelled at once.
const DRAINS_MAX: u32 = 64;

/// An answer is read on for so many bytes.
const DRAIN_BYTES_MAX: u64 = 16 << 20;

thread_local! {
    /// Chunks of this thread so far, for sampling what one costs.
    static CHUNKS: Cell<u32> = const { Cell::new(0) };
    static DRAINS: Cell<u32> = const { Cell::new(0) };
}

/// A worker's place for an answer without its client.
struct DrainPlace;

impl DrainPlace {
    fn take() -> Option<Self> {
        let taken = DRAINS.get();
        (taken < DRAINS_MAX).then(|| {
            DRAINS.set(taken + 1);
            Self
        })
    }
}

impl Drop for DrainPlace {
    fn drop(&mut self) {
        DRAINS.set(DRAINS.get() - 1);
    }
}

impl Stream {
    /// The client does not read it any more: it left, or it has everything.
    fn abandoned(mut self: Box<Self>) {
        // First, so that an upload that still runs ends. Its provider does not bill for half a request.
        self.upload.fail(UploadFault::Cancelled);
        let worth = !self.ended && !self.abort_drain.is_zero() && self.upload.ended() && self.tally.looks();
        let may = !std::thread::panicking() && !self.tally.handles().process().cutting();
        if !worth || !may {
            return;
        }
        let Some(place) = DrainPlace::take() else { return };
        self.tally.client_left(Instant::now());
        // The next task that polls this is to be woken by it.
        self.alarm = None;
        self.fed = false;
        let time = self.abort_drain;
        tokio::task::spawn_local(async move {
            let _place = place;
            let mut left = DRAIN_BYTES_MAX;
            // Each chunk is cleared as it is dropped; a fault, the silence's too, ends it.
            let _ = tokio::time::timeout(time, async {
                while let Some(Ok(frame)) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {
                    let bytes = frame.data_ref().map_or(0, |data| data.as_slice().len() as u64);
                    let Some(rest) = left.checked_sub(bytes) else { return };
                    left = rest;
                }
            })
            .await;
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // An upload of an h2 exchange runs in a task of hyper's; this ends it.
        self.upload.fail(UploadFault::Cancelled);
    }
}

impl AnswerBody {
    /// A text of ours.
    pub(crate) fn fixed(text: String, tally: Tally) -> Self {
        Self::Fixed(Some(text).filter(|text| !text.is_empty()), Some(Box::new(tally)))
    }

    /// Whether the request body needs no more watching.
    pub(crate) fn upload_over(&self) -> bool {
        match self {
            Self::Relayed(relayed) => {
                relayed.stream.as_ref().is_none_or(|stream| stream.ended || stream.upload.ended())
            }
            Self::Fixed(..) => true,
        }
    }

    /// When the last piece of it passed; `None` if it is ours.
    pub(crate) fn passed_at(&self) -> Option<Instant> {
        match self {
            Self::Relayed(relayed) => relayed.stream.as_ref().map(|stream| stream.tally.last_byte()),
            Self::Fixed(..) => None,
        }
    }

    /// A text of ours whose account is closed already.
    pub(crate) fn unaccounted(text: String) -> Self {
        Self::Fixed(Some(text), None)
    }

    /// Nothing, on behalf of nobody.
    pub(crate) fn empty() -> Self {
        Self::Fixed(None, None)
    }
}

impl Body for AnswerBody {
    type Data = Chunk;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyFault>>> {
        match self.get_mut() {
            Self::Relayed(relayed) => {
                let chunk = CHUNKS.get();
                let began = chunk.is_multiple_of(CHUNKS_PER_SAMPLE).then(Instant::now);
                let polled = relayed.poll_frame(cx);
                if let Poll::Ready(Some(Ok(_))) = &polled {
                    CHUNKS.set(chunk.wrapping_add(1));
                    if let Some(began) = began
                        && let Some(stream) = &relayed.stream
                    {
                        stream.tally.handles().overhead(Phase::Chunk).observe(began.elapsed());
                    }
                }
                polled
            }
            Self::Fixed(text, _) => Poll::Ready(text.take().map(|text| Ok(Frame::data(Chunk::own(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relayed(relayed) => relayed.is_end_stream(),
            Self::Fixed(text, _) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relayed(relayed) => relayed.size_hint(),
            Self::Fixed(text, _) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
