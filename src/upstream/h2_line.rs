//! An h2 connection to a provider, for many exchanges at once.

use std::cell::Cell;
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use hyper::client::conn::http2;
use tokio::sync::Notify;

use super::endpoint::Open;
use super::upload::RequestBody;
use crate::clock::TokioTimer;
use crate::hygiene::io::HyperIo;
use crate::socket::Transport;
use crate::stand_in::Rewriter;
use crate::stand_in::Role;
use crate::stand_in::StandIns;

/// The header list of an answer, at most.
const HEAD_BYTES: usize = 64 << 10;

/// What hyper holds of a stream that its server does not take.
const SEND_BUFFER_BYTES: usize = 28 << 10;

/// Per stream; the memory bound of an answer that its reader does not take. h2 keeps a record of some
/// 300 bytes for each frame and whole read buffers for their slices: with 200-byte events 64 KiB of
/// window came to 260 KiB of memory a stream (tests/capacity.rs), over the 256 KiB that are promised.
const H2_STREAM_WINDOW: u32 = 48 << 10;

/// Never the bottleneck: unread bytes of stalled streams must not end the connection for the others
/// (h2 charges small unread DATA frames to a budget that is half of this, RUSTSEC-2026-0258).
const H2_CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// An h2 connection, shared. Its task ends when the last sender is gone or the peer says so.
pub(super) struct H2Line {
    sender: http2::SendRequest<RequestBody>,
    state: Rc<H2State>,
}

type H2Connection = http2::Connection<HyperIo<Transport, Rewriter>, RequestBody, LocalExecutor>;

struct H2State {
    /// Polled by its task; also asked for the peer's SETTINGS_MAX_CONCURRENT_STREAMS, which may
    /// change when nothing wakes that task. `None` when it has ended: what waits in its queue is handed back only when it
    /// is dropped.
    connection: RefCell<Option<H2Connection>>,
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
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_concurrent_reset_streams(128)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .handshake(HyperIo::h2(transport, usize::MAX, stand_ins.rewriter(Role::Client, HEAD_BYTES)))
            .await
            .ok()?;
        let state = Rc::new(H2State {
            connection: RefCell::new(Some(connection)),
            stand_ins,
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            over: Cell::new(false),
            freed,
        });
        let seen = state.clone();
        tokio::task::spawn_local(async move {
            let _open = open;
            let ended = std::future::poll_fn(|cx| match &mut *seen.connection.borrow_mut() {
                Some(connection) => Pin::new(connection).poll(cx),
                None => Poll::Ready(Ok(())),
            })
            .await;
            // Why it ended reaches the streams that were on it.
            drop(ended);
            seen.over.set(true);
            // A request that came when the peer had said that it goes away waits in there, and its stream's place would keep
            // it for ever.
            let connection = seen.connection.borrow_mut().take();
            drop(connection);
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
        let streams_max =
            state.connection.borrow().as_ref().map_or(0, |connection| connection.current_max_send_streams());
        if !self.alive() || state.streams.get() >= streams_max {
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
