//! One address of an upstream: its open lines, its health, and the way to a line for a request.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use hyper::client::conn::http2;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use super::SendFault;
use super::Tenant;
use super::TlsConfigs;
use super::connect;
use super::connect::Connected;
use super::h1_line::H1Line;
use super::h2_line::H2Line;
use super::h2_line::H2Slot;
use super::resolve::Resolver;
use super::upload::RequestBody;
use crate::config;
use crate::config::UpstreamProtocol;
use crate::telemetry::labels::ConnectResult;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Protocol;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::metrics::GaugeGuard;
use crate::telemetry::metrics::Handles;
use crate::telemetry::metrics::UpstreamMetrics;

/// Idle h1 lines kept, all tenants together. More are closed at once.
const IDLE_MAX: usize = 256;

/// Failed connects in a row after which an endpoint is passed over for a while.
const FAILURES_MAX: u32 = 3;

/// The first and the longest time for which it is passed over; doubled with each further failure.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One address of an upstream, for one worker.
pub(super) struct Endpoint {
    pub(super) config: config::Endpoint,
    id: UpstreamId,
    handles: Arc<Handles>,
    protocol: UpstreamProtocol,
    connect_timeout: Duration,
    idle_timeout: Duration,
    tls: Option<(Rc<TlsConfigs>, ServerName<'static>)>,
    resolver: Rc<Resolver>,
    /// Caps open lines.
    places: Arc<Semaphore>,
    h2: RefCell<Vec<H2Line>>,
    /// Oldest first. A line is used again by the same tenant only: on h1 an answer that comes too
    /// late would be taken for the answer to the next request, whoever sent that.
    idle: RefCell<VecDeque<(Tenant, Box<H1Line>)>>,
    /// Requests wait for a connect that may give an h2 line instead of each starting its own.
    connecting: Cell<usize>,
    waiting: Cell<usize>,
    changed: Rc<Notify>,
    /// The last connect settled on h1.
    speaks_h1: Cell<bool>,
    failures: Cell<u32>,
    paused_until: Cell<Option<Instant>>,
    /// Its configuration has been replaced: lines serve what they serve and are not kept.
    retired: Cell<bool>,
}

/// What a connection holds while it is open; dropping it counts.
pub(crate) struct Open {
    _gauge: GaugeGuard,
    _permit: OwnedSemaphorePermit,
}

/// A line with room for one request.
pub(super) enum Line {
    /// Boxed: large, and moved into the answer's body.
    H1(Box<H1Line>, LineAge),
    H2(H2Slot, http2::SendRequest<RequestBody>),
}

/// Whether a line has carried an exchange before; only then may its death before the first byte of
/// an answer be the idle time's fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LineAge {
    Fresh,
    Pooled,
}

impl Endpoint {
    pub(super) fn new(
        id: UpstreamId,
        upstream: &config::Upstream,
        endpoint: &config::Endpoint,
        tls: &Rc<TlsConfigs>,
        handles: Arc<Handles>,
    ) -> Option<Rc<Self>> {
        let tls = if endpoint.tls {
            let host = endpoint.host.trim_matches(['[', ']']).to_owned();
            Some((tls.clone(), ServerName::try_from(host).ok()?))
        } else {
            None
        };
        Some(Rc::new(Self {
            config: endpoint.clone(),
            id,
            handles,
            protocol: upstream.protocol,
            connect_timeout: upstream.connect_timeout,
            idle_timeout: upstream.idle_timeout,
            tls,
            resolver: Rc::new(Resolver::new(&endpoint.host, endpoint.port)),
            places: Arc::new(Semaphore::new(upstream.connections)),
            h2: RefCell::new(Vec::new()),
            idle: RefCell::new(VecDeque::new()),
            connecting: Cell::new(0),
            waiting: Cell::new(0),
            changed: Rc::new(Notify::new()),
            speaks_h1: Cell::new(false),
            failures: Cell::new(0),
            paused_until: Cell::new(None),
            retired: Cell::new(false),
        }))
    }

    fn metrics(&self) -> &UpstreamMetrics {
        self.handles.upstream(self.id)
    }

    /// Whether it has not failed too often lately.
    pub(super) fn healthy(&self, now: Instant) -> bool {
        self.paused_until.get().is_none_or(|until| until <= now)
    }

    /// Whether it has failed so often in a row that it counts as down.
    pub(super) fn failing(&self) -> bool {
        self.failures.get() >= FAILURES_MAX
    }

    /// A line for one request of `tenant`: pooled, shared or new.
    ///
    /// # Errors
    /// When none can be had within the connect timeout.
    pub(super) async fn line(self: &Rc<Self>, tenant: Tenant) -> Result<Line, SendFault> {
        // What is there already needs no deadline.
        if let Some((slot, sender)) = self.shared_line() {
            return Ok(Line::H2(slot, sender));
        }
        if let Some(line) = self.pooled_line(tenant) {
            return Ok(Line::H1(line, LineAge::Pooled));
        }
        match tokio::time::timeout(self.connect_timeout, self.find_line(tenant)).await {
            Ok(found) => found,
            Err(_) if self.places.available_permits() == 0 => Err(SendFault::Crowded),
            Err(_) => {
                self.failed(ConnectResult::Timeout);
                Err(SendFault::Connect)
            }
        }
    }

    async fn find_line(self: &Rc<Self>, tenant: Tenant) -> Result<Line, SendFault> {
        loop {
            let changed = self.changed.notified();
            if let Some((slot, sender)) = self.shared_line() {
                return Ok(Line::H2(slot, sender));
            }
            if let Some(line) = self.pooled_line(tenant) {
                return Ok(Line::H1(line, LineAge::Pooled));
            }
            // 100 streams is what nearly every server grants; a connect under way will serve that many.
            let worth_waiting = self.may_be_h2() && self.connecting.get() * 100 > self.waiting.get();
            if worth_waiting {
                let _waiting = Count::new(self, |endpoint| &endpoint.waiting);
                changed.await;
                continue;
            }
            let _connecting = Count::new(self, |endpoint| &endpoint.connecting);
            // On the heap: few requests connect, and a handshake is large.
            let line = Box::pin(self.connect(true)).await;
            // Those who waited look again, also when it failed.
            self.changed.notify_waiters();
            if let Some(line) = line? {
                return Ok(line);
            }
        }
    }

    fn may_be_h2(&self) -> bool {
        self.tls.is_some() && self.protocol != UpstreamProtocol::H1 && !self.speaks_h1.get()
    }

    fn shared_line(&self) -> Option<(H2Slot, http2::SendRequest<RequestBody>)> {
        let mut lines = self.h2.borrow_mut();
        lines.retain(H2Line::alive);
        lines.iter().find_map(H2Line::slot)
    }

    fn pooled_line(&self, tenant: Tenant) -> Option<Box<H1Line>> {
        let mut idle = self.idle.borrow_mut();
        // The youngest is the likeliest to be alive.
        while let Some(place) = idle.iter().rposition(|(owner, _)| *owner == tenant) {
            let (_, mut line) = idle.remove(place)?;
            if !line.still_quiet() || !line.reusable() {
                self.handles.guard(Guard::UpstreamLateBytes).inc();
                continue;
            }
            return Some(line);
        }
        None
    }

    /// A new line of its own, h1 whatever the configuration prefers: for a WebSocket.
    ///
    /// # Errors
    /// When none can be had within the connect timeout.
    pub(super) async fn upgrade_line(self: &Rc<Self>) -> Result<Box<H1Line>, SendFault> {
        match tokio::time::timeout(self.connect_timeout, Box::pin(self.connect(false))).await {
            Ok(Ok(Some(Line::H1(line, _)))) => Ok(line),
            Ok(Ok(_)) => Err(SendFault::Connect),
            Ok(Err(fault)) => Err(fault),
            Err(_) => {
                self.failed(ConnectResult::Timeout);
                Err(SendFault::Connect)
            }
        }
    }

    /// `Ok(None)`: an h2 line was opened and put with the others.
    async fn connect(self: &Rc<Self>, h2_wanted: bool) -> Result<Option<Line>, SendFault> {
        let Ok(permit) = self.places.clone().acquire_owned().await else {
            return Err(SendFault::Crowded);
        };
        let started = Instant::now();
        let addresses = self.resolver.addresses().await;
        let tls = self.tls.as_ref().map(|(configs, name)| (configs.choose(self.protocol, h2_wanted), name.clone()));
        let connected =
            if addresses.is_empty() { Err(ConnectResult::Dns) } else { connect::connect(&addresses, tls).await };
        let Connected { transport, watch, h2 } = connected.map_err(|result| {
            self.resolver.doubt();
            self.failed(result);
            SendFault::Connect
        })?;
        if self.protocol == UpstreamProtocol::H2 && h2_wanted && !h2 {
            self.failed(ConnectResult::Tls);
            return Err(SendFault::Connect);
        }
        self.failures.set(0);
        self.paused_until.set(None);
        let metrics = self.metrics();
        metrics.connects(ConnectResult::Ok).inc();
        metrics.connect_seconds.observe(started.elapsed());
        let protocol = if h2 { Protocol::H2 } else { Protocol::H1 };
        let open = Open { _gauge: GaugeGuard::new(metrics.open(protocol)), _permit: permit };
        if h2 {
            let line = H2Line::new(transport, open, self.changed.clone()).await.ok_or(SendFault::Connect)?;
            self.h2.borrow_mut().push(line);
            return Ok(None);
        }
        if h2_wanted {
            self.speaks_h1.set(true);
        }
        Ok(Some(Line::H1(Box::new(H1Line::new(transport, watch, open)), LineAge::Fresh)))
    }

    fn failed(&self, result: ConnectResult) {
        self.metrics().connects(result).inc();
        // Ask for h2 again next time: another server may answer at this name now.
        self.speaks_h1.set(false);
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        if failures >= FAILURES_MAX {
            let doublings = (failures - FAILURES_MAX).min(5);
            self.paused_until.set(Some(Instant::now() + (PAUSE_MIN * (1 << doublings)).min(PAUSE_MAX)));
        }
    }

    /// Takes a line back after an exchange that ended on both sides. A line that is not ready for
    /// another one is closed.
    pub(super) fn give_back(&self, tenant: Tenant, mut line: Box<H1Line>, now: Instant) {
        if tenant == Tenant::Nobody || self.retired.get() || !line.reusable() {
            return;
        }
        line.idle_since = now;
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back((tenant, line));
    }

    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        // Each ends with its last stream.
        self.h2.borrow_mut().clear();
    }

    /// Closes what has been idle too long or was closed by the peer. Called once a second.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain(|(_, line)| line.idle_since.elapsed() < self.idle_timeout && line.quiet());
        self.h2.borrow().iter().for_each(H2Line::sweep);
        self.h2.borrow_mut().retain(|line| line.alive() && line.idle_for().is_none_or(|idle| idle < self.idle_timeout));
    }
}

/// Counts up while it lives.
struct Count<'a>(&'a Cell<usize>);

impl<'a> Count<'a> {
    fn new(endpoint: &'a Endpoint, counter: fn(&Endpoint) -> &Cell<usize>) -> Self {
        let counter = counter(endpoint);
        counter.set(counter.get() + 1);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
