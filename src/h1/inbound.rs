//! A client's connection while a request on it is answered: shared by the request's body, which is read from it, and by
//! whoever writes the answer.

use std::cell::Cell;
use std::cell::RefCell;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use http_body::Frame;
use http_body::SizeHint;
use tokio::sync::oneshot;

use super::Decoder;
use super::Framing;
use super::Malformed;
use super::ReadFault;
use super::RequestHead;
use super::Wire;
use crate::hygiene::Chunk;
use crate::socket::Transport;

/// What a client gets before it sends a body that it announced with `Expect` (RFC 9110 section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The connection and what has arrived on it, after a 101.
pub(crate) type Takeover = oneshot::Receiver<(Transport, Chunk)>;

/// A client's connection. One thread.
pub(crate) struct Served {
    /// `None` after a 101.
    wire: RefCell<Option<Wire>>,
    /// Reads the body of the request that is being answered.
    decoder: RefCell<Decoder>,
    /// The client waits for a word before it sends the body.
    expects: Cell<bool>,
    /// The number of the request that is being answered.
    current: Cell<u64>,
    /// Its [`Inbound`] lives.
    held: Cell<bool>,
    /// The task that answers waits for the client to say something, or to leave.
    watching: Cell<bool>,
    /// The task that answers, while the body is somebody else's to read. It alone writes: who reads asks it to.
    waker: RefCell<Option<Waker>>,
    /// Another task that waits for more of the body, to be told when the connection is given up.
    reader: RefCell<Option<Waker>>,
    takeover: RefCell<Option<oneshot::Sender<(Transport, Chunk)>>>,
}

/// Why a body ends before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InboundFault {
    Malformed,
    /// The client has left.
    Gone,
}

impl From<Malformed> for InboundFault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Served {
    /// A connection on which nothing was said.
    pub(crate) fn new(transport: Transport) -> Rc<Self> {
        Rc::new(Self {
            wire: RefCell::new(Some(Wire::new(transport))),
            decoder: RefCell::new(Decoder::new(Framing::Empty)),
            expects: Cell::new(false),
            current: Cell::new(0),
            held: Cell::new(false),
            watching: Cell::new(false),
            waker: RefCell::new(None),
            reader: RefCell::new(None),
            takeover: RefCell::new(None),
        })
    }

    /// The connection itself; `None` after it was handed over. Not to be held while a body is polled.
    pub(crate) fn with_wire<T>(&self, act: impl FnOnce(&mut Wire) -> T) -> Option<T> {
        self.wire.borrow_mut().as_mut().map(act)
    }

    /// Reads the next request's head.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn poll_head(
        &self,
        cx: &mut Context<'_>,
        bytes_max: usize,
        fields_max: usize,
    ) -> Poll<Result<RequestHead, ReadFault>> {
        self.watching.set(false);
        self.with_wire(|wire| wire.poll_head(cx, bytes_max, fields_max)).unwrap_or(Poll::Ready(Err(ReadFault::Io)))
    }

    /// A request's body begins here. `expects`: the client waits for a word before it sends it.
    pub(crate) fn begin(self: &Rc<Self>, framing: Framing, expects: bool) -> Inbound {
        *self.decoder.borrow_mut() = Decoder::new(framing);
        self.expects.set(expects);
        self.held.set(true);
        self.watching.set(false);
        self.current.set(self.current.get() + 1);
        Inbound { served: self.clone(), number: self.current.get() }
    }

    /// The answer begins: who reads the body from now on, or reads it away, must not ask for it in the answer's midst.
    pub(crate) fn answers(&self) {
        self.expects.set(false);
    }

    /// Whether the body was read to its end.
    pub(crate) fn body_is_read(&self) -> bool {
        self.decoder.borrow().is_done()
    }

    /// Waits until nobody reads the body any more.
    pub(crate) fn poll_body_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.held.get() || self.body_is_read() {
            return Poll::Ready(());
        }
        self.waits(cx);
        Poll::Pending
    }

    /// The task that answers is to be woken when the body's reader has something for it.
    fn waits(&self, cx: &Context<'_>) {
        keep(&self.waker, cx);
    }

    /// Wakes the task that answers, unless it is the one that is running.
    fn tell(&self, cx: &Context<'_>) {
        if let Some(waker) = self.waker.borrow_mut().take_if(|waker| !waker.will_wake(cx.waker())) {
            waker.wake();
        }
    }

    /// Looks whether the client has left, once its request is read. What it sends early is kept, and then it is not looked
    /// at until that is used. To be called by one task for each request.
    pub(crate) fn client_left(&self, cx: &mut Context<'_>) -> bool {
        if !self.body_is_read() {
            // Whoever reads the body sees it, and says when it has been read.
            self.waits(cx);
            return false;
        }
        self.with_wire(|wire| {
            if wire.unread() > 0 || (self.watching.get() && wire.is_still()) {
                return false;
            }
            let polled = wire.poll_more(cx);
            // Who has used up its turn is told to wait as well, and waits for nothing.
            self.watching.set(polled.is_pending() && tokio::task::coop::has_budget_remaining());
            matches!(polled, Poll::Ready(Ok(false) | Err(_)))
        })
        .unwrap_or(false)
    }

    /// The connection is over: its socket is closed, whoever still holds a body.
    pub(crate) fn give_up(&self) {
        let wire = self.wire.borrow_mut().take();
        drop(wire);
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }

    /// Hands the connection over, if somebody wants it for another protocol.
    pub(crate) fn hand_over(&self) {
        if let Some(sender) = self.takeover.borrow_mut().take()
            && let Some(wire) = self.wire.borrow_mut().take()
        {
            let _ = sender.send(wire.into_parts());
        }
    }
}

/// Keeps who waits.
fn keep(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    match &mut *place.borrow_mut() {
        Some(known) => known.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// A request's body as its client sends it.
pub(crate) struct Inbound {
    served: Rc<Served>,
    /// Of its request. Whoever holds one that was read to its end must not read the next one's.
    number: u64,
}

impl Inbound {
    /// The next piece.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, InboundFault>>> {
        if !self.is_current() {
            return Poll::Ready(None);
        }
        let served = &*self.served;
        let mut wire = served.wire.borrow_mut();
        let Some(wire) = wire.as_mut() else { return Poll::Ready(Some(Err(InboundFault::Gone))) };
        let mut decoder = served.decoder.borrow_mut();
        loop {
            let taken = wire.take_body(&mut decoder);
            if decoder.is_done() {
                // From now on somebody else looks whether the client leaves.
                served.tell(cx);
            }
            match taken {
                Ok(Some(chunk)) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
            }
            if decoder.is_done() {
                return Poll::Ready(match decoder.take_trailers() {
                    Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
                    Ok(None) => None,
                    Err(fault) => Some(Err(fault.into())),
                });
            }
            if served.expects.take() {
                wire.out().head(CONTINUE.len()).extend_from_slice(CONTINUE);
                served.tell(cx);
            }
            match wire.poll_more(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(Some(Err(InboundFault::Gone))),
                Poll::Pending => {
                    keep(&served.reader, cx);
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_current(&self) -> bool {
        self.served.current.get() == self.number
    }

    /// Whether everything has come.
    pub(crate) fn is_end_stream(&self) -> bool {
        !self.is_current() || self.served.decoder.borrow().is_over()
    }

    /// What is still to come.
    pub(crate) fn size_hint(&self) -> SizeHint {
        let left = if self.is_current() { self.served.decoder.borrow().left() } else { Some(0) };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// Asks for the connection itself, which comes when the answer's head is out, if that is a 101.
    pub(crate) fn take_over(&self) -> Takeover {
        let (sender, receiver) = oneshot::channel();
        *self.served.takeover.borrow_mut() = Some(sender);
        receiver
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if !self.is_current() {
            return;
        }
        self.served.held.set(false);
        if let Some(waker) = self.served.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}
