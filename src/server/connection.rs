//! One client connection as its guards see it: what it has done, what is open, what it owes.

use std::any::Any;
use std::cell::Cell;
use std::cell::RefCell;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use http::Request;
use http::Response;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use tokio::time::Sleep;

use crate::config::Limits;
use crate::hygiene::Chunk;
use crate::relay::AnswerBody;
use crate::relay::BodyFault;
use crate::relay::StallMark;
use crate::relay::StreamCut;
use crate::socket::SocketWatch;
use crate::stand_in::StandIns;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Protocol;

/// The window over which cancelled requests are counted.
const CANCEL_WINDOW: Duration = Duration::from_secs(30);

/// A connection that was told to go away gets this long to do so while it has nothing open.
const GOODBYE: Duration = Duration::from_secs(5);

/// How often a connection is looked at while an upload runs, and else.
const TICK_FAST: Duration = Duration::from_millis(500);
const TICK_SLOW: Duration = Duration::from_secs(5);

/// What the guards know of a connection. Shared by its requests; one thread.
pub(super) struct Connection {
    pub(super) protocol: Protocol,
    pub(super) watch: SocketWatch,
    pub(super) local: Option<SocketAddr>,
    /// The client's, by the PROXY header where there is one.
    pub(super) client: IpAddr,
    /// The values of an h2 connection's heads.
    pub(super) stand_ins: StandIns,
    /// Places and gauges that go with the connection, also into a WebSocket.
    pub(super) hold: Rc<dyn Any>,
    limits: Limits,
    opened: Instant,
    /// `connection_age` and `requests_per_connection`, less up to a tenth, so that many connections
    /// opened together do not end together.
    age_max: Duration,
    requests_max: u32,
    requests: Cell<u32>,
    in_flight: Cell<u32>,
    uploading: Cell<u32>,
    idle_since: Cell<Instant>,
    cancels: Cell<(Instant, u32)>,
    /// When a piece of an h1 answer passed, since the guards last looked.
    passed_at: Cell<Option<Instant>>,
    /// Something else has changed since then.
    changed: Cell<bool>,
    /// Set once it shall take no more requests.
    closing: Cell<Option<Instant>>,
    /// Requests until then.
    requests_at_close: Cell<u32>,
    /// The stall mark of the h2 request that hyper is about to spawn.
    spawning: RefCell<Option<StallMark>>,
    /// The same for the sending half of an h2 tunnel.
    spawning_tunnel: RefCell<Option<StreamCut>>,
}

/// What a guard wants done with the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing; look again after this long.
    Again(Duration),
    /// Close it now.
    Cut(Guard),
    /// No new requests; look again after this long.
    GoAway(Option<Guard>),
    /// Close it now, uncounted: the client has left, or had its time to leave.
    Gone,
}

impl Connection {
    pub(super) fn new(
        protocol: Protocol,
        watch: SocketWatch,
        client: IpAddr,
        hold: Rc<dyn Any>,
        limits: Limits,
        jitter: u32,
    ) -> Rc<Self> {
        let now = Instant::now();
        let spread = |value: u64| value - value * u64::from(jitter % 100) / 1000;
        let local = watch.local_addr();
        Rc::new(Self {
            protocol,
            watch,
            local,
            client,
            stand_ins: StandIns::default(),
            hold,
            opened: now,
            age_max: Duration::from_millis(spread(
                u64::try_from(limits.connection_age.as_millis()).unwrap_or(u64::MAX / 1000),
            )),
            requests_max: u32::try_from(spread(u64::from(limits.requests_per_connection))).unwrap_or(u32::MAX).max(1),
            limits,
            requests: Cell::new(0),
            in_flight: Cell::new(0),
            uploading: Cell::new(0),
            idle_since: Cell::new(now),
            cancels: Cell::new((now, 0)),
            passed_at: Cell::new(None),
            changed: Cell::new(true),
            closing: Cell::new(None),
            requests_at_close: Cell::new(0),
            spawning: RefCell::new(None),
            spawning_tunnel: RefCell::new(None),
        })
    }

    /// A request has come. The guard is the request's place on the connection.
    pub(super) fn begin(self: &Rc<Self>) -> RequestPlace {
        self.changed.set(true);
        self.requests.set(self.requests.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
        self.uploading.set(self.uploading.get() + 1);
        self.watch.forget_first_read();
        RequestPlace { connection: self.clone(), uploading: true, ended: false }
    }

    /// Takes an h2 request's values out of hyper's hands. To be called while hyper still polls this
    /// connection, before anything else looks at the head. `false` if some of it is missing.
    pub(super) fn receive<B>(&self, request: &mut Request<B>) -> bool {
        self.stand_ins.restore_request(request)
    }

    /// Prepares an answer's head for hyper, which writes it next.
    pub(super) fn depart<B>(&self, response: &mut Response<B>) {
        self.stand_ins.replace_headers(response.headers_mut());
    }

    /// Whether this request is the last one that the connection takes.
    pub(super) fn is_last(&self) -> bool {
        self.closing.get().is_some() || self.requests.get() >= self.requests_max
    }

    /// No more requests from now on.
    pub(super) fn close(&self) {
        if self.closing.get().is_none() {
            self.changed.set(true);
            self.closing.set(Some(Instant::now()));
            self.requests_at_close.set(self.requests.get());
        }
    }

    pub(super) fn write_stall(&self) -> Duration {
        self.limits.write_stall
    }

    /// Remembers the mark of the request whose stream hyper spawns next.
    pub(super) fn announce(&self, stall: StallMark) {
        *self.spawning.borrow_mut() = Some(stall);
    }

    /// Remembers how to cut the tunnel whose sending half hyper spawns next.
    pub(super) fn announce_tunnel(&self, cut: StreamCut) {
        *self.spawning_tunnel.borrow_mut() = Some(cut);
    }

    /// The cut of the tunnel that is being spawned.
    pub(super) fn announced_tunnel(&self) -> Option<StreamCut> {
        self.spawning_tunnel.borrow_mut().take()
    }

    /// The mark of the stream that is being spawned.
    pub(super) fn announced(&self) -> Option<StallMark> {
        self.spawning.borrow_mut().take()
    }

    fn cancelled(&self) {
        self.changed.set(true);
        let (since, count) = self.cancels.get();
        let now = Instant::now();
        let window_over = now.saturating_duration_since(since) >= CANCEL_WINDOW;
        self.cancels.set(if window_over { (now, 1) } else { (since, count + 1) });
    }

    /// Whether a piece of an answer has passed and nothing else has happened that the guards, who look at `next`, must know
    /// of before. Most turns of a connection are so, and what the guards look at is in no cache by then.
    pub(super) fn only_passed(&self, next: Instant) -> bool {
        let passed = self.passed_at.take().is_some_and(|at| at < next);
        // Where nothing is read, they ask the socket.
        passed && self.watch.read_armed() && !self.changed.replace(false)
    }

    /// How soon the guards want to look.
    pub(super) fn tick(&self) -> Duration {
        if !self.stand_ins.is_empty() {
            return TICK_FAST;
        }
        if self.in_flight.get() == 0 {
            let idle =
                if self.requests.get() == 0 { self.limits.first_request_timeout } else { self.limits.idle_timeout };
            return idle.min(self.limits.head_timeout).min(TICK_SLOW);
        }
        // Nothing is read while an upload is held up, and nothing of an h1 connection that has
        // sent its next request early: then only asking the socket tells that the client left.
        let blind = self.protocol == Protocol::H1 && (self.uploading.get() > 0 || !self.watch.read_armed());
        if blind { TICK_FAST } else { TICK_SLOW.min(self.limits.write_stall) }
    }

    /// Looks at everything.
    pub(super) fn check(&self, now: Instant) -> Verdict {
        if self.deaf() {
            return Verdict::Cut(Guard::RequestsPerConnection);
        }
        let blocked = self.watch.write_blocked_for();
        self.stand_ins.forget_arrived(now);
        if blocked.is_none() {
            self.stand_ins.forget_departing(now);
        }
        if blocked.is_some_and(|blocked| blocked >= self.limits.write_stall) {
            return Verdict::Cut(Guard::WriteStall);
        }
        if self.in_flight.get() == 0 {
            let idle = now.saturating_duration_since(self.idle_since.get());
            if let Some(since) = self.closing.get() {
                let waited = now.saturating_duration_since(since).min(idle);
                if waited >= GOODBYE {
                    // Counted when it was told to go.
                    return Verdict::Gone;
                }
                return Verdict::Again(GOODBYE - waited);
            }
            if self.requests.get() == 0 {
                if idle >= self.limits.first_request_timeout {
                    return Verdict::Cut(Guard::FirstRequestTimeout);
                }
            } else if idle >= self.limits.idle_timeout {
                self.close();
                return Verdict::GoAway(Some(Guard::IdleTimeout));
            }
            let head_open = self.protocol == Protocol::H1 && self.requests.get() > 0;
            if head_open && self.watch.first_read_ago().is_some_and(|ago| ago >= self.limits.head_timeout) {
                return Verdict::Cut(Guard::HeadTimeout);
            }
        } else if self.protocol == Protocol::H1 && self.watch.peer_gone() {
            // Asked of the socket itself: an armed read says nothing once its waker has fired and
            // whoever waits for the upstream to take what it has did not read.
            return Verdict::Gone;
        }
        if self.closing.get().is_none() {
            let (since, cancels) = self.cancels.get();
            let guard = if cancels >= self.limits.cancels_per_connection
                && now.saturating_duration_since(since) < CANCEL_WINDOW
            {
                Some(Guard::CancelsPerConnection)
            } else if now.saturating_duration_since(self.opened) >= self.age_max {
                Some(Guard::ConnectionAge)
            } else if self.requests.get() >= self.requests_max {
                Some(Guard::RequestsPerConnection)
            } else {
                None
            };
            if guard.is_some() {
                self.close();
                return Verdict::GoAway(guard);
            }
        }
        let left = blocked.map(|blocked| self.limits.write_stall - blocked + Duration::from_millis(1));
        Verdict::Again(self.tick().min(left.unwrap_or(Duration::MAX)))
    }

    /// Whether the client goes on as if it had not been told to go away. A last GOAWAY needs the
    /// answer to a PING, and a client may keep that back for ever. An honest one had no more requests
    /// on the way than it may have open, since the next ones need the answers that the news precede.
    fn deaf(&self) -> bool {
        self.closing.get().is_some()
            && self.requests.get() - self.requests_at_close.get() > self.limits.streams_per_connection.saturating_mul(2)
    }

    /// Whether something has come up that cannot wait for the next tick.
    pub(super) fn urgent(&self) -> bool {
        if self.closing.get().is_some() {
            return self.deaf();
        }
        self.requests.get() >= self.requests_max || self.cancels.get().1 >= self.limits.cancels_per_connection
    }
}

/// One request's place on its connection; freed with the answer's body.
pub(super) struct RequestPlace {
    connection: Rc<Connection>,
    uploading: bool,
    ended: bool,
}

impl RequestPlace {
    fn upload_over(&mut self) {
        if std::mem::take(&mut self.uploading) {
            self.connection.uploading.set(self.connection.uploading.get() - 1);
        }
    }

    /// The answer is complete; what follows is no cancel.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        self.upload_over();
        let connection = &self.connection;
        connection.in_flight.set(connection.in_flight.get() - 1);
        connection.idle_since.set(Instant::now());
        connection.watch.forget_first_read();
        if !self.ended {
            connection.cancelled();
        }
    }
}

/// An answer's body with its request's place on the connection.
pub(super) struct Served {
    body: AnswerBody,
    place: RequestPlace,
    /// A fault that waits until what came before it is written.
    fault: Option<BodyFault>,
}

impl Served {
    pub(super) fn new(body: AnswerBody, mut place: RequestPlace) -> Self {
        if body.upload_over() {
            place.upload_over();
        }
        if body.is_end_stream() {
            place.ended();
        }
        Self { body, place, fault: None }
    }
}

impl Body for Served {
    type Data = Chunk;
    type Error = BodyFault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyFault>>> {
        let this = &mut *self;
        if let Some(fault) = this.fault.take() {
            // An h1 connection is closed now. In order would look like a whole answer to a client
            // that waits for the end of the connection.
            if this.place.connection.protocol == Protocol::H1 {
                this.place.connection.watch.reset_on_close();
            }
            return Poll::Ready(Some(Err(fault)));
        }
        let mut polled = Pin::new(&mut this.body).poll_frame(cx);
        if this.place.connection.protocol == Protocol::H2
            && let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            this.place.connection.stand_ins.replace_headers(trailers);
        }
        if this.place.uploading && this.body.upload_over() {
            this.place.upload_over();
        }
        match &polled {
            Poll::Ready(Some(Err(fault))) => {
                this.place.ended();
                // A fault overtakes what has not been written yet, which may be the head and all of
                // the body so far. h1 writes while it waits for a frame; on h2 the connection's task
                // is woken already and comes before this one.
                this.fault = Some(*fault);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(None) => this.place.ended(),
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => this.place.ended(),
            Poll::Ready(Some(Ok(_))) if this.place.connection.protocol == Protocol::H1 => {
                this.place.connection.passed_at.set(this.body.passed_at());
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.fault.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs an h2 stream and ends it when its client does not take what waits for it. hyper answers
/// PINGs and window updates of such a client for ever.
pub(super) struct StallGuarded<F> {
    stream: Pin<Box<F>>,
    mark: Option<StallMark>,
    write_stall: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    counted: prometheus::IntCounter,
}

impl<F> StallGuarded<F> {
    pub(super) fn new(
        stream: F,
        mark: Option<StallMark>,
        write_stall: Duration,
        counted: prometheus::IntCounter,
    ) -> Self {
        Self { stream: Box::pin(stream), mark, write_stall, alarm: None, counted }
    }
}

impl<F: Future<Output = ()>> Future for StallGuarded<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(since) = this.mark.as_ref().and_then(StallMark::stalled_since) else { return Poll::Pending };
        let write_stall = this.write_stall;
        let alarm = this.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_stall)));
        while alarm.as_mut().poll(cx).is_ready() {
            if since.elapsed() >= write_stall {
                this.counted.inc();
                return Poll::Ready(());
            }
            alarm.as_mut().reset((since + write_stall).into());
        }
        Poll::Pending
    }
}
