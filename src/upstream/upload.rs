//! A request body on its way up: counted, capped, cancellable, watched from outside, and edited if policy says so.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use prometheus::IntCounter;

use crate::hygiene::Chunk;
use crate::hygiene::stack::scrub_look;
use crate::incoming::Broken;
use crate::incoming::Incoming;
use crate::retention::Denied;
use crate::retention::Editor;
use crate::retention::Facts;
use crate::telemetry::metrics::Handles;
use crate::telemetry::models::ModelId;

/// Why a request body ended before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UploadFault {
    /// The client's chunks are none.
    BadFraming,
    /// The exchange is over; nobody wants the rest.
    Cancelled,
    /// The client went away.
    ClientGone,
    /// Policy does not let it be completed.
    Denied(Denied),
    /// Limits do not let it be completed.
    Limited,
    /// More bytes than the route allows.
    TooLarge,
    /// Fewer bytes per second than the configured minimum.
    TooSlow,
}

impl fmt::Display for UploadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadFraming => "the request body is malformed",
            Self::Cancelled => "the exchange is over",
            Self::ClientGone => "the client went away",
            Self::Denied(_) => "the request is refused by policy",
            Self::Limited => "the request is refused by a limit",
            Self::TooLarge => "the request body is too large",
            Self::TooSlow => "the request body comes too slowly",
        })
    }
}

/// h2 resets the upstream stream with the reason that it finds in an error's sources.
impl std::error::Error for UploadFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        static CANCEL: std::sync::OnceLock<h2::Error> = std::sync::OnceLock::new();
        Some(CANCEL.get_or_init(|| h2::Reason::CANCEL.into()))
    }
}

/// Asked once a body has said what it wants, before its last piece goes up: what is not complete is not billed.
pub(crate) trait Approve {
    /// Whether it may be completed. `bytes` of the client's have come.
    fn approve(&self, facts: &Facts, model: Option<ModelId>, bytes: u64) -> bool;
}

/// What the exchange keeps of a request body while it is sent.
pub(crate) struct Upload {
    /// `None` once it has ended, failed, or was taken out to be drained.
    body: RefCell<Option<Incoming>>,
    bytes_max: u64,
    bytes: Cell<u64>,
    /// `nullhop_body_bytes_total`, moved at most once a second and at the end.
    counter: IntCounter,
    counted: Cell<u64>,
    counted_at: Cell<Instant>,
    /// The line has asked for a frame, so a retry would lose bytes.
    touched: Cell<bool>,
    ended: Cell<bool>,
    fault: Cell<Option<UploadFault>>,
    /// Whoever polled last, to be woken by `fail`.
    waker: RefCell<Option<Waker>>,
    /// The exchange, to be woken when the body fails in the line's hands.
    watcher: RefCell<Option<Waker>>,
    /// Since when the last poll has been waiting for the client.
    waiting_since: Cell<Option<Instant>>,
    /// Time spent waiting for the client, without the wait that is still going on.
    waited: Cell<Duration>,
    last_byte: Cell<Instant>,
    editing: Option<RefCell<Editing>>,
}

/// A body that is read on its way, and what of it waits for the line.
struct Editing {
    editor: Editor,
    /// What the upstream was told to expect and has not got yet, if the client told its length.
    left: Option<u64>,
    /// The rest of a piece that is fed in parts.
    rest: Option<Chunk>,
    out: Vec<Chunk>,
    ready: VecDeque<Chunk>,
    /// The client's body has ended, and the editor knows.
    finished: bool,
    /// Looks the model up as soon as it has a name, so that nobody keeps the name.
    handles: Arc<Handles>,
    model: Option<ModelId>,
    approve: Rc<dyn Approve>,
}

impl Editing {
    /// Feeds what is there, until something comes out or nothing is left.
    fn feed(&mut self) -> Result<(), UploadFault> {
        while self.ready.is_empty()
            && let Some(mut chunk) = self.rest.take()
        {
            let len = chunk.as_slice().len();
            let piece_max = self.editor.piece_max();
            if len > piece_max {
                let first = chunk.split_to(piece_max);
                self.rest = Some(chunk);
                chunk = first;
            }
            let fed = self.editor.feed(chunk, &mut self.out);
            if let Some(name) = self.editor.model() {
                self.model = Some(self.handles.models().find(name));
                self.editor.forget_model();
            }
            // With h2 to the upstream nothing is sealed in this turn, which would clear what the look has left.
            scrub_look();
            fed.map_err(UploadFault::Denied)?;
            let waiting: usize = self.out.iter().map(|piece| piece.as_slice().len()).sum();
            // What holds the document's end waits for the body's, so that the last frame is not a brace alone: servers
            // take a connection with many frames of a byte for an attack. White space behind it is not collected, neither
            // in bytes nor in pieces, each of which keeps a block of a read buffer.
            let more = self.rest.is_some() || self.editor.is_closed();
            if !more || waiting >= FRAME_BYTES || self.out.len() >= PIECES_MAX {
                self.release();
            }
        }
        Ok(())
    }

    fn finish(&mut self, bytes: u64) -> Result<(), UploadFault> {
        if !std::mem::replace(&mut self.finished, true) {
            self.editor.finish(&mut self.out).map_err(UploadFault::Denied)?;
            if !self.approve.approve(&self.editor.facts(), self.model, bytes) {
                return Err(UploadFault::Limited);
            }
            self.release();
        }
        Ok(())
    }

    /// Lets go what the editor has put out, as one piece.
    fn release(&mut self) {
        if self.out.len() > 1 {
            // At most what arrived at once and what was put to it. One copy costs less than a frame for each part.
            let mut whole = Vec::with_capacity(self.out.iter().map(|piece| piece.as_slice().len()).sum());
            for piece in self.out.drain(..) {
                whole.extend_from_slice(piece.as_slice());
            }
            self.ready.push_back(Chunk::taken(whole));
        } else {
            self.ready.extend(self.out.pop());
        }
    }
}

/// So many pieces wait to become one.
const PIECES_MAX: usize = 64;

/// As much of an edited body is sent at once, where it comes in smaller pieces.
const FRAME_BYTES: usize = 16 << 10;

impl Upload {
    /// A body of which at most `bytes_max` bytes pass, through an editor if there is one; its head `came` just now.
    pub(crate) fn new(
        body: Incoming,
        bytes_max: u64,
        counter: IntCounter,
        editor: Option<(Editor, Arc<Handles>, Rc<dyn Approve>)>,
        came: Instant,
    ) -> Rc<Self> {
        let editing = editor.map(|(editor, handles, approve)| {
            let left = body.size_hint().exact().zip(editor.slot()).and_then(|(len, slot)| len.checked_add(slot));
            let (out, ready) = (Vec::new(), VecDeque::new());
            let rest = None;
            RefCell::new(Editing { editor, left, rest, out, ready, finished: false, handles, model: None, approve })
        });
        let ended = body.is_end_stream() && editing.is_none();
        Rc::new(Self {
            body: RefCell::new(Some(body)),
            bytes_max,
            bytes: Cell::new(0),
            counter,
            counted: Cell::new(0),
            counted_at: Cell::new(came),
            touched: Cell::new(false),
            ended: Cell::new(ended),
            fault: Cell::new(None),
            waker: RefCell::new(None),
            watcher: RefCell::new(None),
            waiting_since: Cell::new(None),
            waited: Cell::new(Duration::ZERO),
            last_byte: Cell::new(came),
            editing,
        })
    }

    /// Whether policy has still to say whether the request may be completed.
    pub(crate) fn undecided(&self) -> bool {
        self.editing.is_some() && !self.ended.get() && self.fault.get().is_none()
    }

    /// What the body said of the call so far; nothing if it is not read.
    pub(crate) fn facts(&self) -> Facts {
        self.editing.as_ref().map(|editing| editing.borrow().editor.facts()).unwrap_or_default()
    }

    /// The model that the body names so far, if it is read.
    pub(crate) fn model(&self) -> Option<ModelId> {
        self.editing.as_ref()?.borrow().model
    }

    /// Bytes passed so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the line has asked for any of it. An empty body cannot be touched.
    pub(crate) fn touched(&self) -> bool {
        self.touched.get()
    }

    /// Whether all of it has passed.
    pub(crate) fn ended(&self) -> bool {
        self.ended.get()
    }

    /// What went wrong, if anything did.
    pub(crate) fn fault(&self) -> Option<UploadFault> {
        self.fault.get()
    }

    /// When the last byte passed; at first, when the request came.
    pub(crate) fn last_byte(&self) -> Instant {
        self.last_byte.get()
    }

    /// How long the sender has waited for the client so far, in total.
    pub(crate) fn waited_for_client(&self, now: Instant) -> Duration {
        let current = self.waiting_since.get().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.waited.get() + current
    }

    /// Wakes the caller's task when the body fails.
    pub(crate) fn watch(&self, cx: &mut Context<'_>) {
        let mut watcher = self.watcher.borrow_mut();
        if !watcher.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *watcher = Some(cx.waker().clone());
        }
    }

    fn failed_inside(&self, fault: UploadFault) {
        self.fault.set(Some(fault));
        if let Some(watcher) = self.watcher.borrow_mut().take() {
            watcher.wake();
        }
    }

    /// Ends the body with `fault`; the upstream's stream is reset by it.
    pub(crate) fn fail(&self, fault: UploadFault) {
        if !self.ended.get() && self.fault.get().is_none() {
            self.fault.set(Some(fault));
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Takes the rest of the body out, for whoever drains it so that the client can finish sending
    /// and read its answer. `None` if there is no rest.
    pub(crate) fn take_rest(&self) -> Option<Incoming> {
        if self.ended.get() || matches!(self.fault.get(), Some(UploadFault::BadFraming | UploadFault::ClientGone)) {
            return None;
        }
        self.fail(UploadFault::Cancelled);
        self.body.borrow_mut().take()
    }

    fn count(&self) {
        self.counter.inc_by(self.bytes.get() - self.counted.replace(self.bytes.get()));
    }

    /// The whole body has passed: wakes whoever waits for that.
    fn completed(&self) {
        self.ended.set(true);
        if self.editing.is_some()
            && let Some(watcher) = self.watcher.borrow_mut().take()
        {
            watcher.wake();
        }
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, UploadFault>>> {
        let Some(editing) = &self.editing else { return self.poll_body(cx) };
        loop {
            // A fault ends an edited body as well, whatever is ready.
            if let Some(fault) = self.fault.get() {
                self.touched.set(true);
                return Poll::Ready(Some(Err(fault)));
            }
            let mut edited = editing.borrow_mut();
            let fed = edited.feed();
            let whole = self.body_ended();
            let fed = fed.and_then(|()| match whole && edited.rest.is_none() {
                true => edited.finish(self.bytes.get()),
                false => Ok(()),
            });
            if let Err(fault) = fed {
                drop(edited);
                self.touched.set(true);
                self.failed_inside(fault);
                continue;
            }
            if let Some(chunk) = edited.ready.pop_front() {
                self.touched.set(true);
                edited.left = edited.left.map(|left| left.saturating_sub(chunk.as_slice().len() as u64));
                if edited.finished && edited.ready.is_empty() {
                    drop(edited);
                    *self.body.borrow_mut() = None;
                    self.completed();
                }
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if edited.finished {
                drop(edited);
                *self.body.borrow_mut() = None;
                self.completed();
                return Poll::Ready(None);
            }
            drop(edited);
            match self.poll_body(cx) {
                Poll::Ready(Some(Ok(frame))) => editing.borrow_mut().rest = frame.into_data().ok(),
                Poll::Ready(None) => {}
                other => return other,
            }
        }
    }

    /// Whether the client's body has been read to its end.
    fn body_ended(&self) -> bool {
        self.body.borrow().as_ref().is_none_or(Body::is_end_stream)
    }

    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, UploadFault>>> {
        self.touched.set(true);
        if let Some(fault) = self.fault.get() {
            return Poll::Ready(Some(Err(fault)));
        }
        let mut slot = self.body.borrow_mut();
        let Some(body) = slot.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        if polled.is_ready()
            && let Some(since) = self.waiting_since.take()
        {
            self.waited.set(self.waited.get() + since.elapsed());
        }
        match polled {
            Poll::Pending => {
                if self.waiting_since.get().is_none() {
                    self.waiting_since.set(Some(Instant::now()));
                }
                let mut waker = self.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    // Request trailers are dropped: no provider reads any, and they have carried
                    // smuggled fields elsewhere (RFC 9110 section 6.5.1 allows a proxy to).
                    self.ended.set(self.editing.is_none());
                    *slot = None;
                    return Poll::Ready(None);
                }
                let passed = self.bytes.get() + frame.data_ref().map_or(0, |data| data.as_slice().len() as u64);
                self.bytes.set(passed);
                let now = Instant::now();
                self.last_byte.set(now);
                if now.saturating_duration_since(self.counted_at.get()) >= COUNT_EVERY {
                    self.counted_at.set(now);
                    self.count();
                }
                if passed > self.bytes_max {
                    self.failed_inside(UploadFault::TooLarge);
                    return Poll::Ready(Some(Err(UploadFault::TooLarge)));
                }
                if body.is_end_stream() {
                    self.ended.set(self.editing.is_none());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let fault = if error == Broken::Malformed { UploadFault::BadFraming } else { UploadFault::ClientGone };
                self.failed_inside(fault);
                *slot = None;
                Poll::Ready(Some(Err(fault)))
            }
            Poll::Ready(None) => {
                self.ended.set(self.editing.is_none());
                *slot = None;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.count();
    }
}

/// How often the bytes of a running upload are added to the shared counter.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// The body as a line sends it.
pub(crate) struct RequestBody(pub(super) Rc<Upload>);

impl Body for RequestBody {
    type Data = Chunk;
    type Error = UploadFault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, UploadFault>>> {
        self.0.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.ended.get() && self.0.fault.get().is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(editing) = &self.0.editing {
            // Without a known length h1 sends chunks; the editor sees to it that a known one is met.
            return editing.borrow().left.map_or_else(SizeHint::default, SizeHint::with_exact);
        }
        match self.0.body.borrow().as_ref() {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
