//! One client connection: `h1` or hyper's h2, the guards beside it, and a request's
//! first steps: head policy, route, admission. Then it is `relay`'s.

mod answer;
#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
mod connection;
mod h1;
#[cfg(test)]
mod h1_tests;
mod policy;

#[cfg(fuzzing)]
pub(crate) use policy::path_is_plain;

use std::any::Any;
use std::cell::Cell;
use std::cell::RefCell;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use http_body::Body;
use hyper::server::conn::http2;
use hyper::service::service_fn;

use crate::admission;
use crate::admission::Admission;
use crate::admission::Asked;
use crate::admission::Keys;
use crate::admission::Refusal;
use crate::clock::TokioTimer;
use crate::config::Config;
use crate::drain::DrainWatcher;
use crate::drain::Phase;
use crate::hygiene::io::HyperIo;
use crate::incoming::Incoming;
use crate::incoming::h2_error as h2_fault;
use crate::message::Request;
use crate::message::Response;
use crate::message::Value;
use crate::message::name;
use crate::relay;
use crate::relay::AnswerBody;
use crate::relay::Peer;
use crate::relay::Recorder;
use crate::relay::Refused;
use crate::relay::StallMark;
use crate::relay::StreamCut;
use crate::relay::Tally;
use crate::relay::Way;
use crate::route::NoRoute;
use crate::route::Routes;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::stand_in::Role;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Protocol;
use crate::telemetry::metrics::Handles;
use crate::upstream::Upstream;

use connection::Connection;
use connection::Served;
use connection::StallGuarded;
use connection::Verdict;

/// One read of a client's h2 connection: a TLS record, with the room that its opening takes.
const READ_BYTES_MAX: usize = (16 << 10) + 256;

/// Per stream and per connection, for uploads; the memory bound of an upload that the upstream does
/// not take.
const H2_STREAM_WINDOW: u32 = 128 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;

/// hyper answers a longer head itself and tells nobody, so ours is the lower limit of the two. It
/// gives up on the whole connection at four times this.
const H2_HEAD_SLACK: usize = 2;

/// What each h2 stream may hold of an answer that its client does not take.
const H2_SEND_BUFFER: usize = 32 << 10;

/// Everything that a request is served by: one configuration's worth, one worker's own. A request
/// keeps the one it began with.
pub(crate) struct Snapshot {
    pub(crate) config: Arc<Config>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) upstreams: Vec<Rc<Upstream>>,
    pub(crate) admission: Arc<Admission>,
    /// Replaced when the file of keys changes. `None`: there is none.
    pub(crate) keys: RefCell<Option<Arc<Keys>>>,
    pub(crate) worker: admission::Worker,
    /// Where records of exchanges go; `None` without a journal.
    pub(crate) recorder: Option<Rc<Recorder>>,
}

impl Snapshot {
    /// Once a second: closes idle upstream connections.
    pub(crate) fn sweep(&self) {
        for upstream in &self.upstreams {
            upstream.sweep();
        }
    }

    /// Another one is in force. What still runs on this one ends in its own time; idle lines close now, because
    /// nobody will sweep them again.
    pub(crate) fn retire(&self) {
        for upstream in &self.upstreams {
            upstream.retire();
        }
    }
}

/// A worker's connections' common ground.
pub(crate) struct Server {
    /// Replaced by a reload.
    pub(crate) snapshot: RefCell<Rc<Snapshot>>,
    pub(crate) drain: DrainWatcher,
    /// Spreads ages and request counts.
    jitter: Cell<u32>,
}

/// A connection that is ready for HTTP.
pub(crate) struct Accepted {
    pub(crate) transport: Transport,
    pub(crate) watch: SocketWatch,
    /// The client's address, by the PROXY header where there is one.
    pub(crate) client: IpAddr,
    pub(crate) protocol: Protocol,
    /// Counts if its first head does not come in time.
    pub(crate) slow_head: prometheus::IntCounter,
    /// Held until the connection is closed.
    pub(crate) hold: Rc<dyn Any>,
}

impl Server {
    pub(crate) fn new(snapshot: Rc<Snapshot>, drain: DrainWatcher) -> Rc<Self> {
        Rc::new(Self { snapshot: RefCell::new(snapshot), drain, jitter: Cell::new(std::process::id()) })
    }

    pub(crate) fn snapshot(&self) -> Rc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    fn next_jitter(&self) -> u32 {
        // A linear congruential step (Numerical Recipes); only spread matters here.
        let next = self.jitter.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.jitter.set(next);
        next >> 16
    }

    /// Serves a connection to its end.
    pub(crate) async fn serve(self: Rc<Self>, accepted: Accepted) {
        // Not the snapshot itself: a quiet connection would keep the pools of a configuration long gone.
        let (limits, handles) = {
            let snapshot = self.snapshot();
            (snapshot.config.limits.clone(), snapshot.handles.clone())
        };
        let Accepted { transport, watch, client, protocol, slow_head, hold } = accepted;
        let connection = Connection::new(protocol, watch, client, hold, limits.clone(), self.next_jitter());
        let guards = Guards { connection, handles, drain: self.drain.clone(), slow_head };
        match protocol {
            Protocol::H1 => {
                let connection = guards.connection.clone();
                let service = move |request, framed| {
                    self.clone().respond(connection.clone(), request, framed, StallMark::unseen())
                };
                let client = h1::Client::new(transport, &limits);
                let serving = std::pin::pin!(client.serve(service));
                guards.run(serving, |_| client.close()).await;
                client.linger().await;
            }
            Protocol::H2 => {
                let list_bytes_max = 2 * H2_HEAD_SLACK * limits.head_bytes;
                let rewriter = guards.connection.stand_ins.rewriter(Role::Server, list_bytes_max);
                let io = HyperIo::h2(transport, READ_BYTES_MAX, rewriter);
                let executor = StreamExecutor {
                    connection: guards.connection.clone(),
                    counted: guards.handles.guard(Guard::WriteStall).clone(),
                };
                let connection = guards.connection.clone();
                let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                    let (server, connection) = (self.clone(), connection.clone());
                    let whole = connection.receive(&mut request);
                    let stall = StallMark::new();
                    connection.announce(stall.clone());
                    let request = Request::from(request.map(Incoming::h2));
                    async move {
                        let response = server.respond(connection.clone(), request, whole, stall).await;
                        let mut response = response.into_http();
                        connection.depart(&mut response);
                        Ok::<_, Infallible>(response)
                    }
                });
                let hyper = http2::Builder::new(executor)
                    .timer(TokioTimer)
                    .keep_alive_interval(Duration::from_secs(20))
                    .keep_alive_timeout(Duration::from_secs(10))
                    .max_concurrent_streams(limits.streams_per_connection)
                    .max_header_list_size(u32::try_from(H2_HEAD_SLACK * limits.head_bytes).unwrap_or(u32::MAX))
                    .header_table_size(0)
                    .max_pending_accept_reset_streams(20)
                    .max_local_error_reset_streams(128)
                    .max_send_buf_size(H2_SEND_BUFFER)
                    .initial_stream_window_size(H2_STREAM_WINDOW)
                    .initial_connection_window_size(H2_CONNECTION_WINDOW)
                    .enable_connect_protocol()
                    .serve_connection(io, service);
                // On the heap: it is large, and h1 connections need not have room for it.
                let mut hyper = Box::pin(hyper);
                guards.run(hyper.as_mut(), |hyper| hyper.graceful_shutdown()).await;
            }
        }
    }

    /// A request from its head to its answer's head. A panic in it ends this request alone.
    async fn respond(
        self: Rc<Self>,
        connection: Rc<Connection>,
        request: Request<Incoming>,
        whole: bool,
        stall: StallMark,
    ) -> Response<Served> {
        let place = connection.begin();
        // On the heap at once: in here it would stand twice.
        let answering = Box::pin(self.answer(connection.clone(), request, whole, stall.clone()));
        let mut response = or_if_it_panics(answering, answer::internal).await;
        // A client whose window is shut from the first byte on never lets hyper ask for one.
        stall.start();
        if connection.protocol == Protocol::H1
            && connection.is_last()
            && response.status() != http::StatusCode::SWITCHING_PROTOCOLS
        {
            response.headers_mut().insert(name::CONNECTION, Value::of("close"));
        }
        response.map(|body| Served::new(body, place))
    }

    async fn answer(
        self: Rc<Self>,
        connection: Rc<Connection>,
        mut request: Request<Incoming>,
        whole: bool,
        stall: StallMark,
    ) -> Response<AnswerBody> {
        let snapshot = self.snapshot();
        let came = Instant::now();
        let mut tally = Tally::open(snapshot.handles.clone(), snapshot.recorder.clone(), came);
        let apart = snapshot.config.keys.as_ref().map(|keys| &keys.header);
        admission::protect_credentials(request.headers_mut(), apart);
        let upgrade = relay::is_upgrade(&request);

        let extended = upgrade && request.method() == http::Method::CONNECT;
        let checked = if whole {
            policy::check(&request, extended, &snapshot.routes, connection.local, &snapshot.config.limits)
        } else {
            Err((Guard::BadFraming, Refusal::Malformed))
        };
        if let Err((guard, refusal)) = checked {
            snapshot.handles.guard(guard).inc();
            let dialect = admission::guess_dialect(request.uri().path(), request.headers());
            relay::drain_rest(Some(request.into_body()));
            return answer::refuse(&refusal, dialect, tally);
        }

        let uri = request.uri();
        let route = match snapshot.routes.find(policy::host_of(&request), uri.path(), request.headers()) {
            Ok(route) => route,
            Err(no_route) => {
                relay::drain_rest(Some(request.into_body()));
                return match no_route {
                    NoRoute::Hello => answer::hello(tally),
                    NoRoute::NotFound(dialect) => answer::refuse(&Refusal::NoRoute, dialect, tally),
                    NoRoute::WrongBase(_, dialect, hint) => answer::refuse(&Refusal::WrongBase(hint), dialect, tally),
                };
            }
        };
        let whole = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let path = match &whole[route.prefix_len..] {
            "" => "/".to_owned(),
            rest if rest.starts_with('?') => format!("/{rest}"),
            rest => rest.to_owned(),
        };

        let upstream = snapshot.upstreams[route.upstream].clone();
        tally.routed(upstream.id, route.operation, Mode::None);
        let provider = snapshot.config.upstreams[route.upstream].provider;
        let asked = Asked {
            headers: request.headers(),
            query: uri.query(),
            upstream: route.upstream,
            billed: upgrade || relay::billed_api(provider, request.method(), route.operation, &path).is_some(),
            operation: route.operation,
            body_bytes: request.body().size_hint().exact(),
            upgrade,
            address: Some(connection.client),
            came,
        };
        let keys = snapshot.keys.borrow().clone();
        let permit = match snapshot.admission.admit(keys.as_ref(), &snapshot.worker, &asked) {
            Ok(permit) => Rc::new(permit),
            Err(refusal) => {
                relay::drain_rest(Some(request.into_body()));
                return answer::refuse(&refusal, route.dialect, tally);
            }
        };
        tally.routed(upstream.id, route.operation, permit.mode);
        tally.admitted(permit.clone());
        let path = permit.target(path);
        let way = Way {
            dialect: route.dialect,
            upstream,
            config: snapshot.config.clone(),
            place: route.upstream,
            operation: route.operation,
            path,
            permit,
            tally,
            stall,
        };

        let answered = if upgrade {
            if !snapshot.config.upstreams[route.upstream].websocket {
                return answer::refuse(&Refusal::WebSocketNotServed, route.dialect, way.tally);
            }
            let cut = StreamCut::default();
            let peer = Peer {
                watch: (connection.protocol == Protocol::H1).then(|| connection.watch.clone()),
                cut: cut.clone(),
                drain: self.drain.clone(),
                write_stall: connection.write_stall(),
                hold: connection.hold.clone(),
            };
            let answered = Box::pin(relay::upgrade(request, way, peer)).await;
            if extended && answered.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                // hyper spawns the tunnel's sending half in this same poll.
                connection.announce_tunnel(cut);
            }
            answered
        } else {
            relay::exchange(request, way).await
        };
        match answered {
            Ok(response) => response,
            Err(Refused { refusal, tally }) => answer::refuse(&refusal, route.dialect, tally),
        }
    }
}

/// The output of `future`, or of `instead` if polling it panics. What the panic says goes nowhere.
async fn or_if_it_panics<T>(future: Pin<Box<impl Future<Output = T>>>, instead: impl FnOnce() -> T) -> T {
    // Dropped at once if it panics: it holds an upstream's line.
    let mut future = Some(future);
    let mut instead = Some(instead);
    std::future::poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| match &mut future {
            Some(future) => future.as_mut().poll(cx),
            None => Poll::Pending,
        }));
        polled.unwrap_or_else(|payload| {
            // A payload may panic again when it is dropped; so may what the future held.
            std::mem::forget(payload);
            let rest = future.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(rest))).map_err(std::mem::forget);
            instead.take().map_or(Poll::Pending, |instead| Poll::Ready(instead()))
        })
    })
    .await
}

/// Runs a connection with the guards beside it.
struct Guards {
    connection: Rc<Connection>,
    handles: Arc<Handles>,
    drain: DrainWatcher,
    slow_head: prometheus::IntCounter,
}

impl Guards {
    async fn run<C: Future<Output: Into<Ended>>>(self, mut serving: Pin<&mut C>, go_away: impl Fn(Pin<&mut C>)) {
        let connection = &self.connection;
        let mut alarm_at = Instant::now() + connection.tick();
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(alarm_at.into()));
        let mut drain = self.drain.clone();
        let mut closing = std::pin::pin!(drain.reached(Phase::Closing));
        let mut drain = self.drain.clone();
        let mut cut = std::pin::pin!(drain.reached(Phase::Cut));
        let drain = self.drain.clone();
        let mut waits_for_drain = false;
        let mut told = false;
        let mut was_fast = false;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(ended) = serving.as_mut().poll(cx) {
                self.ended(ended.into());
                return Poll::Ready(());
            }
            // One task polls this, so who waits need not say so again before something moves.
            let drains = !std::mem::replace(&mut waits_for_drain, true) || drain.has_moved();
            if drains && !told && closing.as_mut().poll(cx).is_ready() {
                told = true;
                connection.close();
                go_away(serving.as_mut());
                if serving.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
            }
            if drains && cut.as_mut().poll(cx).is_ready() {
                connection.watch.reset_on_close();
                return Poll::Ready(());
            }
            // The alarm is set, and not due. Its task is this one.
            if connection.only_passed(alarm_at) {
                return Poll::Pending;
            }
            let mut set = |alarm: Pin<&mut tokio::time::Sleep>, after| {
                alarm_at = Instant::now() + after;
                alarm.reset(alarm_at.into());
            };
            // A tick that was set while there was less to watch comes sooner now.
            let fast = connection.tick() < Duration::from_secs(1);
            if fast && !was_fast {
                set(alarm.as_mut(), connection.tick());
            }
            was_fast = fast;
            // Not by setting the alarm to now: it fires a millisecond later, and a busy connection
            // would set it again and again before that.
            let mut due = connection.urgent();
            while due || alarm.as_mut().poll(cx).is_ready() {
                due = false;
                match connection.check(Instant::now()) {
                    Verdict::Again(after) => set(alarm.as_mut(), after),
                    Verdict::GoAway(guard) => {
                        if let Some(guard) = guard {
                            self.handles.guard(guard).inc();
                        }
                        told = true;
                        go_away(serving.as_mut());
                        set(alarm.as_mut(), connection.tick());
                        if serving.as_mut().poll(cx).is_ready() {
                            return Poll::Ready(());
                        }
                    }
                    Verdict::Gone => return Poll::Ready(()),
                    Verdict::Cut(guard) => {
                        self.handles.guard(guard).inc();
                        if matches!(guard, Guard::FirstRequestTimeout | Guard::HeadTimeout) {
                            self.slow_head.inc();
                        }
                        // Otherwise the FIN would wait behind bytes that nobody reads.
                        connection.watch.reset_on_close();
                        return Poll::Ready(());
                    }
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Some heads are refused before anybody sees them, and end the connection.
    fn ended(&self, ended: Ended) {
        let guard = match ended {
            Ended::Fine => return,
            Ended::HeadTooLarge => Guard::HeadTooLarge,
            Ended::BadFraming => Guard::BadFraming,
            Ended::H2Abuse => Guard::H2Abuse,
        };
        self.handles.guard(guard).inc();
    }
}

/// How a connection has ended by itself.
enum Ended {
    Fine,
    HeadTooLarge,
    BadFraming,
    H2Abuse,
}

impl From<hyper::Result<()>> for Ended {
    fn from(ended: hyper::Result<()>) -> Self {
        match ended {
            Err(fault) if h2_fault(&fault).is_some_and(|h2| h2.is_go_away() && h2.is_library()) => Self::H2Abuse,
            _ => Self::Fine,
        }
    }
}

/// Spawns h2 streams on the worker's own thread, each with its stall guard.
#[derive(Clone)]
struct StreamExecutor {
    connection: Rc<Connection>,
    counted: prometheus::IntCounter,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, stream: F) {
        if let Some(cut) = self.connection.announced_tunnel() {
            let mut stream = Box::pin(stream);
            tokio::task::spawn_local(std::future::poll_fn(move |cx| {
                // Dropping hyper's sending half unfinished resets the stream.
                if cut.is_set() { Poll::Ready(()) } else { stream.as_mut().poll(cx) }
            }));
            return;
        }
        let mark = self.connection.announced();
        let write_stall = self.connection.write_stall();
        tokio::task::spawn_local(StallGuarded::new(stream, mark, write_stall, self.counted.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_answer_and_lets_go_of_everything() {
        struct Held(Rc<Cell<u32>>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped = Rc::new(Cell::new(0));
        let held = Held(dropped.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let status = runtime.block_on(or_if_it_panics(
            Box::pin(async move {
                let _held = held;
                tokio::task::yield_now().await;
                panic!("words of somebody");
            }),
            || answer::internal().status(),
        ));
        assert_eq!(status, 500);
        assert_eq!(dropped.get(), 1);
        assert_eq!(runtime.block_on(or_if_it_panics(Box::pin(async { 1 }), || 2)), 1);
    }

    #[test]
    fn a_panic_is_counted_as_ours() {
        let metrics = crate::telemetry::metrics::Metrics::new(None);
        let names = crate::telemetry::metrics::Names::new(["main"], [], []).unwrap();
        let tally = Tally::open(Arc::new(metrics.bind(&names)), None, Instant::now());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(or_if_it_panics(
            Box::pin(async move {
                let _tally = tally;
                tokio::task::yield_now().await;
                panic!("words of somebody");
            }),
            || (),
        ));
        let page = metrics.render();
        let lines: Vec<_> = page.lines().filter(|line| line.contains("outcome=") && line.ends_with(" 1")).collect();
        assert!(matches!(lines[..], [line] if line.contains("outcome=\"internal\"")), "{lines:?}");
        assert!(page.lines().any(|line| line.starts_with("nullhop_requests_in_flight") && line.ends_with(" 0")));
    }
}
