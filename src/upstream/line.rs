//! A connection to a provider with HTTP on it: h1 for one exchange at a time, h2 for many.

use std::cell::Cell;
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper::client::conn::http2;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;

use super::Switched;
use super::upload::RequestBody;
use crate::clock::TokioTimer;
use crate::hygiene::head::HeadMark;
use crate::hygiene::head::lift_response;
use crate::hygiene::io::HyperIo;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::stand_in::Rewriter;
use crate::stand_in::Role;
use crate::stand_in::StandIns;
use crate::telemetry::metrics::GaugeGuard;

/// hyper's read and write buffers of an h1 connection, and so the size of the chunks that a stalled
/// reader makes us hold: one here, one in hand, two or three in the client's connection. With 64 KiB
/// such a stream held 311 KiB, with 32 KiB 255. Also the head of an answer, at most.
const H1_BUFFER_BYTES: usize = 28 << 10;

/// The header list of an h2 answer, at most, and the fields of an h1 answer.
const HEAD_BYTES: usize = 64 << 10;
const HEAD_FIELDS: usize = 128;

/// Interim answers to one request. Providers send none; a chain of gateways may send a few.
const INFORMATIONAL_MAX: u32 = 16;

/// Per stream; the memory bound of an answer that its reader does not take. h2 keeps a record of some
/// 300 bytes for each frame and whole read buffers for their slices: with 200-byte events 64 KiB of
/// window came to 260 KiB of memory a stream (tests/capacity.rs), over the 256 KiB that are promised.
const H2_STREAM_WINDOW: u32 = 48 << 10;

/// Never the bottleneck: unread bytes of stalled streams must not end the connection for the others
/// (h2 charges small unread DATA frames to a budget that is half of this, RUSTSEC-2026-0258).
const H2_CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// What a connection holds while it is open; dropping it counts.
pub(crate) struct Open {
    pub(super) _gauge: GaugeGuard,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// Why an h1 line brought no head.
pub(super) enum LineFault {
    Http(hyper::Error),
    /// Interim answers without end.
    Informational,
}

impl<B> From<TrySendError<B>> for LineFault {
    fn from(fault: TrySendError<B>) -> Self {
        Self::Http(fault.into_error())
    }
}

/// An h1 connection. Whoever holds it drives it: no task of its own, so the relay of a chunk is one
/// wake-up, and dropping it closes the socket.
pub(crate) struct H1Line {
    connection: http1::Connection<HyperIo<Transport>, RequestBody>,
    sender: http1::SendRequest<RequestBody>,
    watch: SocketWatch,
    /// hyper's connection future has ended; it must not be polled again.
    over: bool,
    /// Interim answers to the current request.
    informational: Arc<AtomicU32>,
    /// Tells the transport that a head is about to be written.
    head: HeadMark,
    /// An exchange is under way or ended badly.
    busy: BusyLine,
    /// The last exchange's end, while pooled.
    pub(super) idle_since: Instant,
    open: Open,
}

impl H1Line {
    pub(super) async fn new(transport: Transport, watch: SocketWatch, open: Open) -> Option<Self> {
        let head = HeadMark::default();
        let io = HyperIo::new(transport).announced_by(head.clone());
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(H1_BUFFER_BYTES)
            .max_header_size(H1_BUFFER_BYTES)
            .max_headers(HEAD_FIELDS)
            .handshake(io)
            .await
            .ok()?;
        let busy = BusyLine { watch: watch.clone(), busy: false };
        Some(Self {
            connection,
            sender,
            watch,
            over: false,
            informational: Arc::default(),
            head,
            busy,
            idle_since: Instant::now(),
            open,
        })
    }

    /// Lets the connection read and write what it can. `Ready` when it has ended.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.over {
            return Poll::Ready(());
        }
        // Not `Future::poll`: that would end the transport in order after an upgrade or a fault.
        match self.connection.poll_without_shutdown(cx) {
            Poll::Ready(_) => {
                self.over = true;
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends a request and drives the connection until the head of the answer is there.
    ///
    /// # Errors
    /// hyper's error, or that of the flood.
    pub(super) async fn send(
        &mut self,
        mut request: http::Request<RequestBody>,
    ) -> Result<http::Response<Incoming>, LineFault> {
        self.busy.busy = true;
        // hyper swallows interim answers, as many as there come.
        self.informational.store(0, Relaxed);
        let informational = self.informational.clone();
        hyper::ext::on_informational(&mut request, move |_| {
            informational.fetch_add(1, Relaxed);
        });
        self.head.announce();
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                    return Poll::Ready(answer.map_err(LineFault::from));
                }
                if self.over {
                    // The sender's half answers as soon as the connection is gone.
                    return Poll::Pending;
                }
                let polled = self.connection.poll_without_shutdown(cx);
                if self.informational.load(Relaxed) > INFORMATIONAL_MAX {
                    self.over = true;
                    return Poll::Ready(Err(LineFault::Informational));
                }
                match polled {
                    Poll::Ready(_) => self.over = true,
                    Poll::Pending => {
                        return answer.as_mut().poll(cx).map(|answer| answer.map_err(LineFault::from));
                    }
                }
            }
        })
        .await;
        answered.map(|mut response| {
            lift_response(&mut response);
            response
        })
    }

    /// Whether another exchange may use it: the last one ended on both sides, and nothing that
    /// nobody asked for has arrived since.
    pub(super) fn reusable(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let idle = self.drive(&mut cx).is_pending() && self.sender.is_ready();
        if idle {
            self.busy.busy = false;
        }
        idle
    }

    /// The same without driving, for whoever just did.
    pub(super) fn reusable_now(&self) -> bool {
        !self.over && self.sender.is_ready()
    }

    /// Whether the socket is silent and open. Bytes on an idle connection are an answer that nobody
    /// asked for, or the end.
    pub(super) fn quiet(&self) -> bool {
        self.watch.quiet()
    }

    /// The connection without HTTP, after a 101.
    pub(super) fn into_switched(mut self) -> Switched {
        self.busy.busy = false;
        let (io, read_ahead) = crate::hygiene::switched(self.connection);
        Switched { transport: io.into_inner(), watch: self.watch, read_ahead, open: self.open }
    }

    /// Drives until the connection's own part of an upgrade is done.
    pub(crate) async fn upgraded(&mut self) {
        std::future::poll_fn(|cx| self.drive(cx)).await;
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

/// An h2 connection, shared. Its task ends when the last sender is gone or the peer says so.
pub(super) struct H2Line {
    sender: http2::SendRequest<RequestBody>,
    state: Rc<H2State>,
}

type H2Connection = http2::Connection<HyperIo<Transport, Rewriter>, RequestBody, LocalExecutor>;

struct H2State {
    /// Polled by its task; also asked for the peer's SETTINGS_MAX_CONCURRENT_STREAMS, which may
    /// change when nothing wakes that task. Lives as long as its last stream.
    connection: RefCell<H2Connection>,
    /// The values of its heads.
    stand_ins: StandIns,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    over: Cell<bool>,
    /// Somebody may want the freed stream.
    freed: Rc<Notify>,
}

/// One stream of an h2 connection; dropping it frees the place.
pub(crate) struct H2Slot(Rc<H2State>);

impl H2Slot {
    /// The values of the connection's heads.
    pub(super) fn stand_ins(&self) -> &StandIns {
        &self.0.stand_ins
    }
}

impl Drop for H2Slot {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
        self.0.freed.notify_waiters();
    }
}

impl H2Line {
    pub(super) async fn new(transport: Transport, open: Open, freed: Rc<Notify>) -> Option<Self> {
        let stand_ins = StandIns::default();
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
            .header_table_size(0)
            .max_send_buf_size(H1_BUFFER_BYTES)
            .max_concurrent_reset_streams(128)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .handshake(HyperIo::h2(transport, usize::MAX, stand_ins.rewriter(Role::Client, HEAD_BYTES)))
            .await
            .ok()?;
        let state = Rc::new(H2State {
            connection: RefCell::new(connection),
            stand_ins,
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            over: Cell::new(false),
            freed,
        });
        let seen = state.clone();
        tokio::task::spawn_local(async move {
            let _open = open;
            let ended = std::future::poll_fn(|cx| Pin::new(&mut *seen.connection.borrow_mut()).poll(cx)).await;
            // Why it ended reaches the streams that were on it.
            drop(ended);
            seen.over.set(true);
            seen.freed.notify_waiters();
        });
        Some(Self { sender, state })
    }

    /// Whether it takes requests at all.
    pub(super) fn alive(&self) -> bool {
        !self.state.over.get() && !self.sender.is_closed()
    }

    /// A place for one more stream, if the peer's limit leaves one.
    pub(super) fn slot(&self) -> Option<(H2Slot, http2::SendRequest<RequestBody>)> {
        let state = &self.state;
        if !self.alive() || state.streams.get() >= state.connection.borrow().current_max_send_streams() {
            return None;
        }
        state.streams.set(state.streams.get() + 1);
        Some((H2Slot(state.clone()), self.sender.clone()))
    }

    /// Once a second: forgets heads of answers that nobody waited for.
    pub(super) fn sweep(&self) {
        self.state.stand_ins.forget_arrived(Instant::now());
    }

    /// How long it has had no stream; `None` while it has one.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        (self.state.streams.get() == 0).then(|| self.state.idle_since.get().elapsed())
    }
}

/// Spawns on the worker's own thread.
#[derive(Clone, Copy)]
pub(super) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
