//! Accepting: one socket a worker and address, caps before any work, PROXY header, TLS, then `server`.

use std::any::Any;
use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use socket2::Domain;
use socket2::Socket as RawSocket;
use socket2::Type;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use crate::config::Limits;
use crate::drain::DrainWatcher;
use crate::drain::Phase;
use crate::proxy_protocol;
use crate::proxy_protocol::TrustedNetworks;
use crate::server::Accepted;
use crate::server::Server;
use crate::socket::Socket;
use crate::socket::Transport;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::HandshakeResult;
use crate::telemetry::labels::IoFault;
use crate::telemetry::labels::ListenerId;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::labels::Protocol;
use crate::telemetry::labels::RefusedReason;
use crate::telemetry::log;
use crate::telemetry::metrics::GaugeGuard;
use crate::telemetry::metrics::Handles;
use crate::tls;
use crate::tls::handshake::HandshakeFault;
use crate::tls::server::ServerTls;

/// The kernel's queue of connections that nobody has accepted yet.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory; trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections accepted in a row before others get their turn.
const ACCEPT_ROUND: usize = 32;

/// What one listener does with its connections. Replaced as a whole by a reload.
pub(crate) struct Plan {
    pub(crate) id: ListenerId,
    /// Of the configuration that `id` belongs to.
    pub(crate) handles: Arc<Handles>,
    /// `None`: HTTP without TLS.
    pub(crate) tls: Option<Arc<ServerTls>>,
    /// Not empty: connections come from these networks, each with a PROXY header.
    pub(crate) proxies: TrustedNetworks,
    pub(crate) limits: Limits,
}

/// Open connections of the whole process, and of each address.
pub(crate) struct Places {
    open: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place; freed on drop.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), by_address: Mutex::new(HashMap::new()) })
    }

    /// Open connections.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    fn take(self: &Arc<Self>, peer: IpAddr, limits: &Limits) -> Result<Place, Guard> {
        if self.open.fetch_add(1, Relaxed) >= limits.connections {
            self.open.fetch_sub(1, Relaxed);
            return Err(Guard::ConnectionsTotal);
        }
        let address = network_of(peer);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_insert(0);
        if *count >= limits.connections_per_address {
            drop(by_address);
            self.open.fetch_sub(1, Relaxed);
            return Err(Guard::ConnectionsPerAddress);
        }
        *count += 1;
        Ok(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.places.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
        self.places.open.fetch_sub(1, Relaxed);
    }
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which is what one customer gets.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        v4 => v4,
    }
}

/// Opens a listening socket that others may share the address with (`SO_REUSEPORT`).
///
/// # Errors
/// The system's.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Fails if somebody listens at `address` already. [`bind`] would not notice another nullhop, and the two would share
/// the connections between them.
///
/// # Errors
/// The system's.
pub(crate) fn probe(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

/// Accepts until the drain closes the door or the task is ended.
pub(crate) async fn accept(
    socket: TcpListener,
    plan: Rc<RefCell<Rc<Plan>>>,
    server: Rc<Server>,
    places: Arc<Places>,
    drain: DrainWatcher,
) {
    let handshakes = Rc::new(Cell::new(0_usize));
    let mut waiting = drain.clone();
    let mut closing = std::pin::pin!(waiting.reached(Phase::Closing));
    let mut round = 0;
    let mut heirs = Heirs { write_stall: None, all: false };
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closing => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let plan = plan.borrow().clone();
                heirs.prepare(&socket, &stream, plan.limits.write_stall);
                tokio::task::spawn_local(welcome(
                    stream,
                    peer,
                    plan,
                    server.clone(),
                    places.clone(),
                    handshakes.clone(),
                ));
            }
            Err(fault) => {
                let error = IoFault::from(&fault);
                // A peer that gave up while it was queued is no fault of this socket.
                if matches!(error, IoFault::Aborted | IoFault::Reset | IoFault::Interrupted) {
                    continue;
                }
                let address = socket.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
                log::emit(log::Event::AcceptFailed { kind: ListenerKind::Traffic, address, error });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        round += 1;
        if round % ACCEPT_ROUND == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// One connection from its accept to its end.
async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    plan: Rc<Plan>,
    server: Rc<Server>,
    places: Arc<Places>,
    handshakes: Rc<Cell<usize>>,
) {
    let handles = plan.handles.clone();
    let metrics = handles.listener(plan.id);
    metrics.connections.inc();
    let limits = &plan.limits;
    let refuse = |guard: Option<Guard>, reason: RefusedReason| {
        metrics.refused(reason).inc();
        if let Some(guard) = guard {
            handles.guard(guard).inc();
        }
        // A refused peer gets a reset: nothing of ours waits for its acknowledgement.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    };
    let mut address = peer.ip();
    let place;
    if plan.proxies.is_empty() {
        place = places.take(address, limits);
    } else {
        if !plan.proxies.contains(address) {
            return refuse(None, RefusedReason::NotAllowed);
        }
        match proxy_protocol::read(&stream, limits.handshake_timeout).await {
            Ok(header) => address = header.source.map_or(address, |source| source.ip()),
            Err(_) => return refuse(None, RefusedReason::ProxyHeader),
        }
        place = places.take(address, limits);
    }
    let place = match place {
        Ok(place) => place,
        Err(guard) => return refuse(Some(guard), RefusedReason::Limit),
    };
    let (transport, watch, protocol) = match &plan.tls {
        None => {
            let (socket, watch) = Socket::accepted(stream);
            (Transport::Plain(socket), watch, Protocol::H1)
        }
        Some(tls) => {
            if handshakes.get() >= limits.handshakes_in_flight {
                return refuse(Some(Guard::HandshakesInFlight), RefusedReason::Limit);
            }
            let _handshake = Counted::new(&handshakes);
            let started = Instant::now();
            let (socket, watch) = Socket::accepted(stream);
            // On the heap, and gone when it is over: the connection lives on.
            match Box::pin(tls::handshake::accept(tls, socket, limits.handshake_timeout)).await {
                Ok((stream, negotiated)) => {
                    metrics.handshakes(HandshakeResult::Ok).inc();
                    metrics.handshake_seconds.observe(started.elapsed());
                    let protocol = match negotiated.protocol {
                        tls::Protocol::Http1 => Protocol::H1,
                        tls::Protocol::Http2 => Protocol::H2,
                    };
                    (Transport::Tls(stream), watch, protocol)
                }
                Err(fault) => {
                    if fault == HandshakeFault::TimedOut {
                        handles.guard(Guard::HandshakeTimeout).inc();
                    }
                    metrics.handshakes(fault.result()).inc();
                    return;
                }
            }
        }
    };
    let hold: Rc<dyn Any> = Rc::new((place, GaugeGuard::new(metrics.open(protocol))));
    let slow_head = metrics.refused(RefusedReason::SlowHead).clone();
    Box::pin(server.serve(Accepted { transport, watch, client: address, protocol, slow_head, hold })).await;
}

/// Which connections have their options from the listening socket. On Linux they inherit those that it has when their
/// own handshake ends (tcp_create_openreq_child), which saves each of them six system calls; but one that is in the queue
/// already does not see what is set now.
struct Heirs {
    /// What the listening socket was prepared for.
    write_stall: Option<Duration>,
    /// Whatever is accepted from now on has inherited that.
    all: bool,
}

impl Heirs {
    fn prepare(&mut self, listener: &TcpListener, stream: &TcpStream, write_stall: Duration) {
        if self.write_stall != Some(write_stall) {
            prepare(&socket2::SockRef::from(listener), write_stall);
            *self = Self { write_stall: Some(write_stall), all: false };
        }
        if !self.all {
            prepare(&socket2::SockRef::from(stream), write_stall);
            self.all = nobody_waits(listener);
        }
    }
}

/// Socket options of a client connection.
fn prepare(socket: &RawSocket, write_stall: Duration) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)),
    );
    // A peer that acknowledges nothing, or keeps its window shut, is given up by the kernel as well;
    // later than by the guard, which counts it.
    let _ = socket.set_tcp_user_timeout(Some(write_stall * 2));
    Socket::limit_unsent(socket);
}

/// Whether the queue of a listening socket is empty.
fn nobody_waits(listener: &TcpListener) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&zero)), Ok(0))
}

/// Counts up while it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(counter: &'a Cell<usize>) -> Self {
        counter.set(counter.get() + 1);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_connection_has_its_options_whether_it_came_before_or_after_them() {
        let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        let listener = TcpListener::from_std(socket).unwrap();
        let connect = || std::net::TcpStream::connect(address).unwrap();
        let mut heirs = Heirs { write_stall: None, all: false };
        let mut clients = Vec::new();
        for (write_stall, queued) in
            [(Duration::from_secs(30), 3), (Duration::from_secs(40), 2), (Duration::from_secs(5), 0)]
        {
            clients.extend((0..queued).map(|_| connect()));
            for number in 0..5 {
                if number >= queued {
                    clients.push(connect());
                }
                let (stream, _) = listener.accept().await.unwrap();
                heirs.prepare(&listener, &stream, write_stall);
                let options = socket2::SockRef::from(&stream);
                assert!(options.tcp_nodelay().unwrap() && options.keepalive().unwrap());
                assert_eq!(options.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
                assert_eq!(options.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
                assert_eq!(options.tcp_user_timeout().unwrap(), Some(2 * write_stall));
                assert_eq!(options.tcp_notsent_lowat().unwrap(), 64 << 10);
            }
            // The queue was seen empty, so nothing is asked of the kernel any more.
            assert!(heirs.all);
        }
    }

    #[test]
    fn places_are_counted_by_network() {
        let mut limits = crate::config::Config::built_in().limits.clone();
        limits.connections = 3;
        limits.connections_per_address = 2;
        let places = Places::new();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = places.take(address("2001:db8::1"), &limits).ok().unwrap();
        let _second = places.take(address("2001:db8::2"), &limits).ok().unwrap();
        assert_eq!(places.take(address("2001:db8::3"), &limits).err(), Some(Guard::ConnectionsPerAddress));
        let _other = places.take(address("2001:db8:0:1::1"), &limits).ok().unwrap();
        assert_eq!(places.take(address("10.0.0.1"), &limits).err(), Some(Guard::ConnectionsTotal));
        drop(first);
        assert_eq!(places.open(), 2);
        assert!(places.take(address("::ffff:10.0.0.1"), &limits).is_ok());
        assert_eq!(places.open(), 2);
    }
}
