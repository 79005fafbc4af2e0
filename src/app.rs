//! Wires everything once: sockets, workers, the control side (metrics, admin, signals, reloads).
//!
//! One thread a worker, each with its own runtime, accept sockets and upstream pools; a request
//! stays where it was accepted. The control side runs on the thread that calls [`Bound::run`].

mod books;

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::net::TcpListener;
use tokio::runtime::LocalRuntime;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use self::books::Books;
use crate::admin;
use crate::admission;
use crate::admission::Admission;
use crate::admission::Clock;
use crate::admission::Keys;
use crate::admission::KeysFault;
use crate::admission::Shared;
use crate::config;
use crate::config::Config;
use crate::drain;
use crate::drain::DrainTrigger;
use crate::drain::DrainWatcher;
use crate::drain::Phase;
use crate::hygiene;
use crate::hygiene::crypto_heap;
use crate::hygiene::environment::Environment;
use crate::hygiene::heap;
use crate::hygiene::lockdown;
use crate::hygiene::lockdown::LockedDown;
use crate::hygiene::lockdown::Needs;
use crate::hygiene::lockdown::NotLocked;
use crate::hygiene::process::Hardened;
use crate::journal::Journal;
use crate::listener;
use crate::listener::Places;
use crate::listener::Plan;
use crate::proxy_protocol::TrustedNetworks;
use crate::relay::RecordNames;
use crate::relay::Recorder;
use crate::retention::Rule;
use crate::route::Routes;
use crate::server::Server;
use crate::server::Snapshot;
use crate::systemd;
use crate::telemetry::exporter;
use crate::telemetry::exporter::BearerToken;
use crate::telemetry::labels::CertificateId;
use crate::telemetry::labels::HeapKind;
use crate::telemetry::labels::ListenerId;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::labels::ProcessGuard;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::log;
use crate::telemetry::log::Event;
use crate::telemetry::log::RetentionWarning;
use crate::telemetry::metrics;
use crate::telemetry::metrics::Handles;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::Names;
use crate::telemetry::metrics::ProcessMetrics;
use crate::telemetry::models::ModelTable;
use crate::tls::Part;
use crate::tls::TlsFault;
use crate::tls::certificate::KeySource;
use crate::tls::client::ClientAlpn;
use crate::tls::client::ClientSettings;
use crate::tls::client::ClientTls;
use crate::tls::client::Roots;
use crate::tls::server::CertificateKind;
use crate::tls::server::CertificateSource;
use crate::tls::server::ClientAuth;
use crate::tls::server::ServerSettings;
use crate::tls::server::ServerTls;
use crate::tls::server::SessionKeys;
use crate::upstream::TlsConfigs;
use crate::upstream::Upstream;

/// The name of the self-signed certificate in metrics and log lines.
const SELF_SIGNED: &str = "self-signed";

/// A certificate that expires within this is worth a line, once a day.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// How long workers get to drop what they hold.
const LAST_WORKERS: Duration = Duration::from_secs(2);

/// How long cut connections get to leave the kernel.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why it does not start, or does not take a new configuration.
#[derive(Debug)]
pub(crate) enum StartFault {
    Bind {
        kind: ListenerKind,
        address: SocketAddr,
        error: io::ErrorKind,
    },
    /// A variable that nullhop does not run with.
    Environment {
        variable: &'static str,
    },
    /// The file of keys.
    Keys(KeysFault),
    /// Usage events cannot be written there.
    Journal {
        folder: PathBuf,
        error: io::ErrorKind,
    },
    /// `[memory] lock = "required"`, and it cannot be had.
    Memory(NotLocked),
    Names,
    Networks {
        listener: String,
    },
    /// The supervisor passed a socket that no listener wants. Left alone, its clients would wait for ever.
    PassedSocket(SocketAddr),
    Runtime(io::ErrorKind),
    Tls(TlsFault),
    /// An upstream's host cannot be a TLS server name.
    UpstreamHost {
        upstream: String,
    },
    UpstreamTls {
        upstream: String,
        fault: TlsFault,
    },
}

impl fmt::Display for StartFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { kind, address, error } => {
                use crate::telemetry::labels::Label;
                write!(f, "cannot listen on {address} ({} listener): {error}", kind.as_str())?;
                match error {
                    io::ErrorKind::AddrInUse => {
                        f.write_str("; another process has it, choose another port or stop that one")
                    }
                    io::ErrorKind::PermissionDenied => f.write_str("; ports below 1024 need CAP_NET_BIND_SERVICE"),
                    _ => Ok(()),
                }
            }
            Self::Environment { variable } => write!(
                f,
                "the environment variable {variable} is set: it brings in code or writes files that nullhop does not answer \
                 for; unset it"
            ),
            Self::Keys(fault) => write!(f, "the file of keys is not taken: {fault}"),
            Self::Journal { folder, error } => write!(
                f,
                "cannot use {} for usage events: {error}; the user that nullhop runs as must be able to make files there \
                 (StateDirectory= in a systemd unit, a volume for a container), or switch them off: [journal] enabled = \
                 false",
                folder.display()
            ),
            Self::Memory(NotLocked { limit }) => {
                f.write_str("[memory] lock is \"required\", and memory cannot be locked")?;
                if let Some(bytes) = limit {
                    write!(f, ": the limit is {bytes} bytes (RLIMIT_MEMLOCK)")?;
                }
                f.write_str(
                    "; set LimitMEMLOCK=infinity in the systemd unit, --ulimit memlock=-1:-1 for a container, or grant \
                     CAP_IPC_LOCK",
                )
            }
            Self::Names => f.write_str("a listener, certificate or upstream has a reserved or malformed name"),
            Self::Networks { listener } => {
                write!(f, "listener {listener}: proxy_protocol_from holds something that is no network")
            }
            Self::PassedSocket(address) => {
                write!(f, "a socket at {address} was passed by the supervisor, but no listener has this address")
            }
            Self::Runtime(error) => write!(f, "cannot start a runtime thread: {error}"),
            Self::Tls(fault) => write!(f, "{fault}"),
            Self::UpstreamHost { upstream } => {
                write!(f, "upstream {upstream}: a host is neither a DNS name nor an address")
            }
            Self::UpstreamTls { upstream, fault } => write!(f, "upstream {upstream}: {fault}"),
        }
    }
}

/// Reads the configuration again, for SIGHUP. `Err` holds the number of problems.
pub(crate) type Reload = Box<dyn Fn() -> Result<Arc<Config>, usize>>;

/// Everything of a configuration that workers share.
struct Prepared {
    config: Arc<Config>,
    admission: Arc<Admission>,
    /// As the file of keys was when the configuration was loaded.
    keys: Option<Arc<Keys>>,
    routes: Arc<Routes>,
    handles: Arc<Handles>,
    server_tls: Option<Arc<ServerTls>>,
    plans: Vec<Arc<PlanParts>>,
    client_tls: Vec<Arc<ClientConfigs>>,
    /// By upstream: how many workers see it down.
    down: Vec<Arc<AtomicUsize>>,
    journal: Option<Journal>,
}

struct PlanParts {
    id: ListenerId,
    key: DoorKey,
    tls: Option<Arc<ServerTls>>,
    networks: Vec<String>,
}

struct ClientConfigs {
    auto: Arc<ClientTls>,
    h1: Arc<ClientTls>,
    h2: Arc<ClientTls>,
}

/// A listening address of the configuration and its number among equal ones: several may ask for any free port.
type DoorKey = (SocketAddr, usize);

fn door_keys(config: &Config) -> Vec<DoorKey> {
    let addresses: Vec<SocketAddr> = config.listeners.iter().map(|listener| listener.address).collect();
    let number = |place: usize| addresses[..place].iter().filter(|address| **address == addresses[place]).count();
    addresses.iter().enumerate().map(|(place, address)| (*address, number(place))).collect()
}

/// A worker's sockets of addresses that it does not listen on yet.
type DoorSockets = Vec<(DoorKey, std::net::TcpListener)>;

/// What a worker gets at the start and with each reload.
struct Update {
    prepared: Arc<Prepared>,
    sockets: DoorSockets,
}

/// What a worker may be told.
enum Message {
    /// Another configuration is in force.
    Update(Update),
    /// The file of keys has changed; the configuration has not.
    Keys(Option<Arc<Keys>>),
}

struct WorkerHandle {
    updates: mpsc::Sender<Message>,
    thread: std::thread::JoinHandle<()>,
}

/// A running nullhop.
pub(crate) struct Bound {
    /// In the configuration's order, with the ports that the system chose for 0.
    pub(crate) listeners: Vec<SocketAddr>,
    pub(crate) metrics: Option<SocketAddr>,
    runtime: LocalRuntime,
    control: Control,
    signals: Signals,
    reload: Reload,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

struct Control {
    prepared: Arc<Prepared>,
    workers: Vec<WorkerHandle>,
    registry: Arc<Metrics>,
    /// What limits count, over all configurations.
    shared: Arc<Shared>,
    /// The file of keys as it is in force.
    keys: Option<Arc<Keys>>,
    keys_seen: Option<FileState>,
    shedding: Shedding,
    places: Arc<Places>,
    trigger: DrainTrigger,
    watcher: DrainWatcher,
    session_keys: SessionKeys,
    /// Addresses that workers listen on, as configured.
    doors: Vec<DoorKey>,
    metrics: Option<Side>,
    admin: Option<Side>,
    drain_wanted: Rc<Notify>,
    books: Option<Books>,
}

/// The metrics or the admin listener.
struct Side {
    /// As configured.
    address: SocketAddr,
    /// Kept so that a reload can serve the same socket with another token.
    socket: std::net::TcpListener,
    task: Option<JoinHandle<()>>,
}

impl Side {
    fn bind(kind: ListenerKind, address: SocketAddr) -> Result<Self, StartFault> {
        let fault = |error: io::Error| StartFault::Bind { kind, address, error: error.kind() };
        Self::over(kind, address, std::net::TcpListener::bind(address).map_err(fault)?)
    }

    fn over(kind: ListenerKind, address: SocketAddr, socket: std::net::TcpListener) -> Result<Self, StartFault> {
        let fault = |error: io::Error| StartFault::Bind { kind, address, error: error.kind() };
        socket.set_nonblocking(true).map_err(fault)?;
        log::emit(Event::Listening { kind, address: socket.local_addr().unwrap_or(address) });
        Ok(Self { address, socket, task: None })
    }

    fn actual(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// Serves it from now on, instead of what served it before.
    fn serve<F: Future<Output = ()> + 'static>(&mut self, serve: impl FnOnce(TcpListener) -> F) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        if let Ok(socket) = self.socket.try_clone().and_then(TcpListener::from_std) {
            self.task = Some(tokio::task::spawn_local(serve(socket)));
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Binds every socket, locks the process down and starts the workers.
///
/// From then on this process cannot do what [`lockdown`] takes from it, so no thread of its own may run before, and what
/// a reload needs later has to be among what is left.
///
/// # Errors
/// What is in the way; nothing is left running.
pub(crate) fn start(
    config: Arc<Config>,
    hardened: Hardened,
    heap: heap::Kind,
    reload: Reload,
) -> Result<Bound, StartFault> {
    if let Environment::Refused(variable) = hardened.environment {
        return Err(StartFault::Environment { variable });
    }
    raise_descriptor_limit();
    let registry = Arc::new(Metrics::new(config.node.pop.as_deref()));
    let session_keys = SessionKeys::new().map_err(StartFault::Tls)?;
    let shared = Arc::new(Shared::default());
    let keys_seen = FileState::of(&config);
    let books = books::Closed::open(config.journal.as_ref())?;
    let journal = books.as_ref().map(|books| books.journal().clone());
    let prepared = Arc::new(Prepared::new(config.clone(), &registry, &session_keys, &shared, journal)?);
    let (trigger, watcher) = drain::channel();
    let places = Places::new();

    let workers_wanted = config.runtime.workers;
    let mut passed = systemd::passed_sockets();
    let mut side = |kind, address: Option<SocketAddr>| -> Result<Option<Side>, StartFault> {
        let Some(address) = address else { return Ok(None) };
        match passed.iter().position(|(actual, _)| *actual == address) {
            Some(place) => Side::over(kind, address, passed.swap_remove(place).1).map(Some),
            None => Side::bind(kind, address).map(Some),
        }
    };
    let metrics = side(ListenerKind::Metrics, config.metrics.as_ref().map(|metrics| metrics.address))?;
    let admin = side(ListenerKind::Admin, config.admin.as_ref().map(|admin| admin.address))?;
    warn_of_open_metrics(&config);
    let mut sockets: Vec<DoorSockets> = (0..workers_wanted).map(|_| Vec::new()).collect();
    let mut listeners = Vec::new();
    for (listener, key) in config.listeners.iter().zip(door_keys(&config)) {
        let activated = passed
            .iter()
            .position(|(address, _)| *address == listener.address)
            .or_else(|| (!passed.is_empty() && config.listeners.len() == 1).then_some(0))
            .map(|place| passed.swap_remove(place));
        let actual = open_sockets(key, activated, &mut sockets).map_err(|error| StartFault::Bind {
            kind: ListenerKind::Traffic,
            address: listener.address,
            error: error.kind(),
        })?;
        listeners.push(actual);
        log::emit(Event::Listening { kind: ListenerKind::Traffic, address: actual });
    }
    if let Some((address, _)) = passed.first() {
        return Err(StartFault::PassedSocket(*address));
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(|error| StartFault::Runtime(error.kind()))?;
    // Before anybody is told that it runs: a signal that comes earlier would end the process.
    let signals = {
        let _guard = runtime.enter();
        Signals::new().map_err(|error| StartFault::Runtime(error.kind()))?
    };

    if let Some(journal) = &config.journal {
        restore_budgets(&config, &shared, &journal.folder)?;
    }
    let writable = books.as_ref().map(|books| books.folder().clone());
    let needs = Needs { memory: config.memory.lock, readable: &config.readable, writable: writable.as_slice() };
    let locked_down = lockdown::lock_down(&needs).map_err(StartFault::Memory)?;
    let books = books.map(books::Closed::start).transpose()?;

    let mut workers = Vec::new();
    for (number, sockets) in sockets.into_iter().enumerate() {
        let (updates, inbox) = mpsc::channel(4);
        let update = Update { prepared: prepared.clone(), sockets };
        let (watcher, places) = (watcher.clone(), places.clone());
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                heap::enter_worker(number);
                worker(update, inbox, watcher, places);
                heap::leave_worker();
            })
            .map_err(|error| StartFault::Runtime(error.kind()))?;
        workers.push(WorkerHandle { updates, thread });
    }

    log::emit(Event::HeapChosen {
        heap: match heap {
            heap::Kind::Secret => HeapKind::Secret,
            heap::Kind::Locked => HeapKind::Locked,
            heap::Kind::Plain => HeapKind::Plain,
        },
    });
    tell_guards(&prepared, hardened, locked_down);
    let secret = heap == heap::Kind::Secret && crypto_heap::installed() && !heap::overflowed();
    tell_guard(&prepared, ProcessGuard::SecretHeap, secret);
    prepared.handles.process().runtime_workers.set(i64::try_from(workers_wanted).unwrap_or(i64::MAX));
    prepared.handles.process().config_loaded(prepared.config.fingerprint, SystemTime::now());
    log::emit(Event::Started { workers: workers_wanted });
    Ok(Bound {
        listeners,
        metrics: metrics.as_ref().and_then(Side::actual),
        runtime,
        control: Control {
            doors: door_keys(&config),
            metrics,
            admin,
            drain_wanted: Rc::new(Notify::new()),
            keys: prepared.keys.clone(),
            keys_seen,
            shedding: Shedding::default(),
            shared,
            books,
            prepared,
            workers,
            registry,
            places,
            trigger,
            watcher,
            session_keys,
        },
        signals,
        reload,
    })
}

/// Reads back what was used in the day and the month that run, where there are budgets that need it.
fn restore_budgets(config: &Config, shared: &Shared, folder: &Path) -> Result<(), StartFault> {
    if config.plans.iter().all(|plan| plan.limits.budgets.is_empty()) {
        return Ok(());
    }
    let (began, now) = (Instant::now(), admission::clock::nanos(Instant::now()));
    let zone = &config.admission.time_zone;
    let (read, done) = admission::restore(&shared.ledger, folder, zone, jiff::Timestamp::now(), now);
    done.map_err(|error| StartFault::Journal { folder: folder.to_owned(), error: error.kind() })?;
    log::emit(Event::BudgetsRestored { events: read.events, took: began.elapsed() });
    Ok(())
}

/// Shows which guards hold; each one that does not gets a line.
fn tell_guards(prepared: &Prepared, hardened: Hardened, locked_down: LockedDown) {
    let guards = [
        (ProcessGuard::CapabilitiesDropped, locked_down.capabilities_dropped),
        (ProcessGuard::CoreDumpsOff, hardened.core_dumps_off),
        (ProcessGuard::CoreFilterEmpty, hardened.core_filter_empty),
        (ProcessGuard::EnvironmentClean, hardened.environment == Environment::Clean),
        (ProcessGuard::Landlock, locked_down.landlock),
        (ProcessGuard::MemoryLocked, locked_down.memory_locked),
        (ProcessGuard::NoNewPrivileges, hardened.no_new_privileges),
        (ProcessGuard::NotDumpable, hardened.not_dumpable),
        (ProcessGuard::Seccomp, locked_down.seccomp),
    ];
    for (guard, active) in guards {
        tell_guard(prepared, guard, active);
    }
    tell_guard(prepared, ProcessGuard::SecretsLocked, lockdown::secrets_locked());
}

fn tell_guard(prepared: &Prepared, guard: ProcessGuard, active: bool) {
    prepared.handles.process().set_process_guard(guard, active);
    if !active {
        log::emit(Event::ProcessGuardMissing { guard });
    }
}

impl Bound {
    /// Serves until a signal (or `POST /drain`) and the drain after it.
    pub(crate) fn run(self) {
        self.run_until(std::future::pending());
    }

    /// The same, with one more reason to stop.
    pub(crate) fn run_until(self, stop: impl Future<Output = ()>) {
        let Self { runtime, control, signals, reload, .. } = self;
        let started = Instant::now();
        runtime.block_on(control.run(signals, reload, stop));
        log::emit(Event::Stopped { uptime: started.elapsed() });
    }

    /// The certificate that clients must trust if it is the self-signed one, as PEM.
    pub(crate) fn self_signed_pem(&self) -> Option<String> {
        self.control.prepared.server_tls.as_ref()?.first_pem()
    }
}

impl Control {
    async fn run(mut self, mut signals: Signals, reload: Reload, stop: impl Future<Output = ()>) {
        self.serve_admin();
        self.serve_metrics();
        let process = self.prepared.handles.process().clone();
        process.set_ready(true);
        systemd::notify(systemd::State::Ready);

        let mut certificates = CertificateWatch::start(&self.prepared);
        let mut stop = std::pin::pin!(stop);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut overflow_told = false;
        let mut keys_tick = tokio::time::interval(KEYS_EVERY);
        keys_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    heap::give_back();
                    ticks = ticks.wrapping_add(1);
                    self.show_admission(ticks.is_multiple_of(60));
                    self.shedding.tell(self.shared.shed(), Instant::now());
                    if let Some(books) = &mut self.books {
                        books.tell(&process);
                    }
                    if heap::overflowed() && !overflow_told {
                        overflow_told = true;
                        process.set_process_guard(ProcessGuard::SecretHeap, false);
                        log::emit(Event::HeapLimitReached);
                    }
                }
                _ = keys_tick.tick() => self.follow_keys().await,
                _ = signals.hangup.recv() => {
                    systemd::notify(systemd::State::Reloading);
                    match reload() {
                        Ok(config) => match self.take(config).await {
                            Ok(()) => {
                                process.config_reloaded(self.prepared.config.fingerprint, SystemTime::now());
                                log::emit(Event::ConfigReloaded);
                                certificates = CertificateWatch::start(&self.prepared);
                            }
                            Err(_) => {
                                process.config_refused();
                                log::emit(Event::ConfigRefused { problems: 1 });
                            }
                        },
                        Err(problems) => {
                            process.config_refused();
                            log::emit(Event::ConfigRefused { problems });
                        }
                    }
                    systemd::notify(systemd::State::Ready);
                }
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                () = self.drain_wanted.notified() => break,
                () = &mut stop => break,
            }
        }

        // Further signals are received and change nothing: a second one does not hurry.
        systemd::notify(systemd::State::Stopping);
        process.set_ready(false);
        process.set_draining(true);
        let began = Instant::now();
        let drain = &self.prepared.config.drain;
        log::emit(Event::DrainStarted { streams: self.streams(), deadline: drain.deadline });
        let places = self.places.clone();
        let empty = async move {
            while places.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // With nobody connected and no way in from outside, nobody has to notice.
        let local = self.prepared.config.listeners.iter().all(|l| l.address.ip().to_canonical().is_loopback());
        let hurry = local && self.places.open() == 0;
        let grace = if hurry { drain.grace.min(Duration::from_millis(500)) } else { drain.grace };
        self.trigger.advance(Phase::Unready);
        tokio::time::sleep(grace).await;
        self.trigger.advance(Phase::Closing);
        let emptied = tokio::time::timeout(drain.deadline.saturating_sub(grace), empty).await.is_ok();
        let mut streams_cut = 0;
        if !emptied {
            // Counted before they notice.
            streams_cut = self.streams();
            process.set_cutting();
            self.trigger.advance(Phase::Cut);
            tokio::time::sleep(LAST_WORDS).await;
        }
        drop(certificates);
        log::emit(Event::DrainFinished { streams_cut, took: began.elapsed() });
        self.finish_books(&process).await;
    }

    /// Ends what workers still hold (answers that are read on without their clients), so that every exchange has its
    /// record, and waits until all of them are on disk.
    async fn finish_books(&mut self, process: &ProcessMetrics) {
        let Some(books) = self.books.take() else { return };
        process.set_cutting();
        let threads: Vec<_> = self.workers.drain(..).map(|worker| worker.thread).collect();
        let ended = async {
            while !threads.iter().all(std::thread::JoinHandle::is_finished) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORKERS, ended).await;
        books.finish(process);
    }

    /// Open streams by the gauges, those to upstreams that a reload has removed among them.
    fn streams(&self) -> usize {
        usize::try_from(self.registry.requests_in_flight()).unwrap_or(0)
    }

    /// What the metrics show of keys and limits; `sweep`: forgets who has been quiet, too.
    fn show_admission(&self, sweep: bool) {
        let now = admission::clock::nanos(Instant::now());
        self.prepared.admission.show(self.keys.as_ref(), now, unix_now());
        if sweep {
            self.shared.sweep(now);
        }
    }

    /// Takes the file of keys over if it has changed. One that is wrong is not taken: the keys that are in force stay.
    async fn follow_keys(&mut self) {
        let state = FileState::of(&self.prepared.config);
        if state == self.keys_seen {
            return;
        }
        self.keys_seen = state;
        let now = admission::clock::nanos(Instant::now());
        let loaded = Keys::load(&self.prepared.config, &self.shared.ledger, &self.registry, now, unix_now());
        let process = self.prepared.handles.process();
        process.keys_loaded(loaded.is_ok());
        match loaded {
            Ok(keys) => {
                let keys = keys.map(Arc::new);
                for worker in &self.workers {
                    let _ = worker.updates.send(Message::Keys(keys.clone())).await;
                }
                self.keys = keys;
                self.shared.close_absent(self.keys.as_ref());
                self.show_admission(false);
                let (active, revoked) = self.keys.as_ref().map_or((0, 0), |keys| keys.count(unix_now()));
                log::emit(Event::KeysReloaded { active, revoked });
            }
            Err(fault) => log::emit(Event::KeysRefused { line: fault.line() }),
        }
    }

    fn serve_admin(&mut self) {
        let (watcher, drain_wanted) = (self.watcher.clone(), self.drain_wanted.clone());
        if let Some(side) = &mut self.admin {
            side.serve(|socket| admin::serve(socket, watcher, drain_wanted));
        }
    }

    fn serve_metrics(&mut self) {
        let token = self.prepared.config.metrics.as_ref().and_then(|metrics| metrics.token.as_ref());
        let token = token.and_then(|token| BearerToken::new(token.expose()));
        let registry = self.registry.clone();
        if let Some(side) = &mut self.metrics {
            side.serve(|socket| exporter::serve(socket, registry, token));
        }
    }

    /// Puts a new configuration in force. On a fault the old one stays.
    async fn take(&mut self, config: Arc<Config>) -> Result<(), StartFault> {
        // Whatever may fail comes first; binding the metrics, in `Prepared`, is the last of it.
        let mut sockets: Vec<DoorSockets> = self.workers.iter().map(|_| Vec::new()).collect();
        let mut opened = Vec::new();
        let doors = door_keys(&config);
        for key in doors.iter().filter(|key| !self.doors.contains(key)) {
            let actual = open_sockets(*key, None, &mut sockets).map_err(|error| StartFault::Bind {
                kind: ListenerKind::Traffic,
                address: key.0,
                error: error.kind(),
            })?;
            opened.push(actual);
        }
        let moved = |kind, side: &Option<Side>, wanted: Option<SocketAddr>| match wanted {
            Some(address) if side.as_ref().map(|side| side.address) != Some(address) => {
                Side::bind(kind, address).map(Some)
            }
            _ => Ok(None),
        };
        let metrics = moved(ListenerKind::Metrics, &self.metrics, config.metrics.as_ref().map(|m| m.address))?;
        let admin = moved(ListenerKind::Admin, &self.admin, config.admin.as_ref().map(|a| a.address))?;
        let keys_seen = FileState::of(&config);
        let journal = self.books.as_ref().map(|books| books.journal().clone());
        let prepared = Prepared::new(config.clone(), &self.registry, &self.session_keys, &self.shared, journal)?;
        let prepared = Arc::new(prepared);
        (self.keys, self.keys_seen) = (prepared.keys.clone(), keys_seen);

        for address in opened {
            log::emit(Event::Listening { kind: ListenerKind::Traffic, address });
        }
        self.doors = doors;
        for (worker, sockets) in self.workers.iter().zip(sockets) {
            let _ = worker.updates.send(Message::Update(Update { prepared: prepared.clone(), sockets })).await;
        }
        let old = std::mem::replace(&mut self.prepared, prepared);
        crate::init_log(&config);
        if config.admin.is_none() || admin.is_some() {
            self.admin = admin;
            self.serve_admin();
        }
        let token = |config: &Config| {
            let token = config.metrics.as_ref().and_then(|metrics| metrics.token.as_ref());
            token.map(|token| Zeroizing::new(token.expose().to_vec()))
        };
        if config.metrics.is_none() || metrics.is_some() {
            self.metrics = metrics;
            self.serve_metrics();
        } else if token(&old.config) != token(&config) {
            self.serve_metrics();
        }
        warn_of_open_metrics(&config);
        Books::reloaded(self.books.as_ref(), config.journal.as_ref());
        // It may have brought secrets.
        tell_guard(&self.prepared, ProcessGuard::SecretsLocked, lockdown::secrets_locked());
        Ok(())
    }
}

fn warn_of_open_metrics(config: &Config) {
    if let Some(metrics) = &config.metrics
        && !metrics.address.ip().to_canonical().is_loopback()
        && metrics.token.is_none()
    {
        log::emit(Event::RetentionWarning { warning: RetentionWarning::MetricsListenerNotLoopback });
    }
}

/// One socket a worker for an address. A socket from systemd is shared by all; the workers then wake
/// together, which costs a little and balances less well than sockets of their own.
fn open_sockets(
    key: DoorKey,
    activated: Option<(SocketAddr, std::net::TcpListener)>,
    sockets: &mut [DoorSockets],
) -> io::Result<SocketAddr> {
    if let Some((actual, socket)) = activated {
        for worker in sockets {
            worker.push((key, socket.try_clone()?));
        }
        return Ok(actual);
    }
    let mut actual = key.0;
    listener::probe(actual)?;
    for worker in sockets {
        // The first one settles the port if it is 0.
        let socket = listener::bind(actual)?;
        actual = socket.local_addr()?;
        worker.push((key, socket));
    }
    Ok(actual)
}

/// Whether requests are being refused for overload, for the log: a line when it begins and one when it is over.
#[derive(Default)]
struct Shedding {
    seen: u64,
    latest: Option<Instant>,
}

impl Shedding {
    /// Once a second; `refused` so far.
    fn tell(&mut self, refused: u64, now: Instant) {
        if refused != self.seen {
            self.seen = refused;
            if self.latest.replace(now).is_none() {
                log::emit(Event::Shedding { on: true });
            }
        } else if self.latest.is_some_and(|latest| now.saturating_duration_since(latest) >= SHEDDING_OVER) {
            self.latest = None;
            log::emit(Event::Shedding { on: false });
        }
    }
}

/// So long without a refusal, and it is over.
const SHEDDING_OVER: Duration = Duration::from_secs(10);

/// How often the file of keys is looked at. With it and the time that workers need, a change holds within a second.
const KEYS_EVERY: Duration = Duration::from_millis(400);

/// What tells one version of a file from another.
#[derive(PartialEq, Eq)]
struct FileState {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl FileState {
    /// Of the file of keys. `None`: there is none, or it cannot be seen.
    fn of(config: &Config) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(&config.keys.as_ref()?.file).ok()?;
        Some(Self { modified: found.modified().ok(), len: found.len(), inode: found.ino() })
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Prepared {
    fn new(
        config: Arc<Config>,
        registry: &Metrics,
        keys: &SessionKeys,
        shared: &Arc<Shared>,
        journal: Option<Journal>,
    ) -> Result<Self, StartFault> {
        let now = SystemTime::now();
        let server_tls = match config.listeners.iter().any(|listener| listener.tls) {
            true => {
                Some(Arc::new(ServerTls::load(server_settings(&config), keys.clone(), now).map_err(StartFault::Tls)?))
            }
            false => None,
        };
        let certificate_names = server_tls.as_ref().map(|tls| tls.names()).unwrap_or_default();
        let routes = Arc::new(Routes::new(&config, certificate_names));
        let mut plans = Vec::new();
        for (place, (listener, key)) in config.listeners.iter().zip(door_keys(&config)).enumerate() {
            TrustedNetworks::parse(&listener.proxy_protocol_from)
                .map_err(|_| StartFault::Networks { listener: listener.name.clone() })?;
            plans.push(Arc::new(PlanParts {
                id: ListenerId(u16::try_from(place).unwrap_or(u16::MAX)),
                key,
                tls: server_tls.clone().filter(|_| listener.tls),
                networks: listener.proxy_protocol_from.clone(),
            }));
        }
        let mut client_tls = Vec::new();
        for upstream in &config.upstreams {
            let load = |alpn| {
                let roots = match &upstream.roots {
                    config::Roots::WebPki => Roots::WebPki,
                    config::Roots::File(path) => Roots::File(path.clone()),
                };
                let settings = ClientSettings {
                    roots,
                    min_version: crate::tls::MinVersion::Tls12,
                    alpn,
                    client_cert: None,
                    server_name: None,
                };
                ClientTls::load(settings, now)
                    .map(Arc::new)
                    .map_err(|fault| StartFault::UpstreamTls { upstream: upstream.name.clone(), fault })
            };
            client_tls.push(Arc::new(ClientConfigs {
                auto: load(ClientAlpn::Auto)?,
                h1: load(ClientAlpn::Http1)?,
                h2: load(ClientAlpn::Http2)?,
            }));
            for endpoint in &upstream.endpoints {
                let host = endpoint.host.trim_matches(['[', ']']).to_owned();
                if endpoint.tls && rustls::pki_types::ServerName::try_from(host).is_err() {
                    return Err(StartFault::UpstreamHost { upstream: upstream.name.clone() });
                }
            }
        }
        // Last, because it changes what is exported.
        let certificates: Vec<&str> = if config.certificates.is_empty() {
            vec![SELF_SIGNED]
        } else {
            config.certificates.iter().map(|certificate| certificate.name.as_str()).collect()
        };
        let names = Names::new(
            config.listeners.iter().map(|listener| listener.name.as_str()),
            certificates,
            config.upstreams.iter().map(|upstream| (upstream.name.as_str(), upstream.provider)),
        )
        .and_then(|names| {
            let keys = config.upstreams.iter().map(|upstream| upstream.keys.iter().map(|key| key.name.as_str()));
            names.with_provider_keys(keys)
        })
        .map_err(|_| StartFault::Names)?
        // What has a price has a label, and comes first: a wider pattern of the metrics must not swallow it.
        .with_models(ModelTable::new(
            config.prices.iter().flat_map(|price| &price.models).chain(&config.models).map(String::as_str),
        ));
        let limits_now = admission::clock::nanos(Instant::now());
        let keys = Keys::load(&config, &shared.ledger, registry, limits_now, unix_now()).map_err(StartFault::Keys)?;
        let keys = keys.map(Arc::new);
        let handles = Arc::new(registry.bind(&names));
        let admission = Arc::new(Admission::new(&config, shared, &handles, limits_now));
        for (place, upstream) in config.upstreams.iter().enumerate() {
            for rule in Rule::ALL {
                handles.upstream(upstream_id(place)).set_relaxed(*rule, !upstream.policy.rules.has(*rule));
            }
        }
        let down = config.upstreams.iter().map(|_| Arc::new(AtomicUsize::new(0))).collect();
        shared.close_absent(keys.as_ref());
        admission.show(keys.as_ref(), limits_now, unix_now());
        Ok(Self { config, admission, keys, routes, handles, server_tls, plans, client_tls, down, journal })
    }

    /// This configuration for one worker.
    fn snapshot(&self, lag: &Rc<Cell<Duration>>) -> Rc<Snapshot> {
        let upstreams = self.config.upstreams.iter().zip(&self.client_tls).enumerate();
        let upstreams = upstreams.filter_map(|(place, (upstream, tls))| {
            let tls = Rc::new(TlsConfigs { auto: tls.auto.clone(), h1: tls.h1.clone(), h2: tls.h2.clone() });
            Upstream::new(upstream_id(place), upstream, &tls, &self.handles, &self.down[place]).map(Rc::new)
        });
        let recorder = self.journal.clone().map(|journal| {
            let names = RecordNames {
                pop: self.config.node.pop.as_deref().map(Arc::from),
                upstreams: self.config.upstreams.iter().map(|upstream| upstream.name.as_str().into()).collect(),
                models: self.handles.models().clone(),
            };
            Rc::new(Recorder::new(journal, names))
        });
        Rc::new(Snapshot {
            recorder,
            config: self.config.clone(),
            routes: self.routes.clone(),
            handles: self.handles.clone(),
            upstreams: upstreams.collect(),
            admission: self.admission.clone(),
            keys: RefCell::new(self.keys.clone()),
            worker: admission::Worker {
                clock: Rc::new(Clock::new(self.config.admission.time_zone.clone())),
                lag: lag.clone(),
            },
        })
    }
}

fn upstream_id(place: usize) -> UpstreamId {
    UpstreamId(u16::try_from(place).unwrap_or(u16::MAX))
}

fn server_settings(config: &Config) -> ServerSettings {
    let certificates = if config.certificates.is_empty() {
        let names = config.hosts.clone();
        vec![CertificateSource {
            name: SELF_SIGNED.to_owned(),
            kind: CertificateKind::SelfSigned { names },
            default: true,
        }]
    } else {
        let sources = config.certificates.iter().map(|certificate| CertificateSource {
            name: certificate.name.clone(),
            kind: CertificateKind::Files {
                cert: certificate.cert_file.clone(),
                key: match &certificate.key {
                    config::KeySource::File(path) => KeySource::File(path.clone()),
                    config::KeySource::Inline(pem) => KeySource::Pem(Zeroizing::new(pem.expose().to_vec())),
                },
            },
            default: certificate.default,
        });
        sources.collect()
    };
    ServerSettings {
        min_version: match config.tls.min_version {
            config::TlsVersion::V1_2 => crate::tls::MinVersion::Tls12,
            config::TlsVersion::V1_3 => crate::tls::MinVersion::Tls13,
        },
        certificates,
        client_auth: match &config.tls.client_auth {
            config::ClientAuth::None => ClientAuth::None,
            config::ClientAuth::Optional { ca_file } => ClientAuth::Optional { ca_pem_path: ca_file.clone() },
            config::ClientAuth::Required { ca_file } => ClientAuth::Required { ca_pem_path: ca_file.clone() },
        },
        crl: None,
        strict_sni: false,
    }
}

/// Follows the certificate files of one configuration; dropped with it.
struct CertificateWatch(Option<JoinHandle<()>>);

impl CertificateWatch {
    fn start(prepared: &Arc<Prepared>) -> Self {
        let Some(tls) = prepared.server_tls.clone() else { return Self(None) };
        tell_expiries(prepared, &tls, true);
        let prepared = prepared.clone();
        Self(Some(tokio::task::spawn_local(async move {
            let interval = prepared.config.tls.reload_interval;
            crate::tls::server::watch(tls.clone(), interval, |outcome| {
                tell_expiries(&prepared, &tls, false);
                let Part::Certificate(name) = outcome.part else { return };
                let place =
                    prepared.config.certificates.iter().position(|certificate| certificate.name == name).unwrap_or(0);
                let metrics = prepared.handles.certificate(CertificateId(u16::try_from(place).unwrap_or(0)));
                let certificate = metrics.name().clone();
                match outcome.result {
                    Ok(()) => log::emit(Event::CertificateReloaded { certificate, left: left(tls.not_after(&name)) }),
                    Err(_) => log::emit(Event::CertificateRefused { certificate }),
                }
            })
            .await;
        })))
    }
}

impl Drop for CertificateWatch {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn tell_expiries(prepared: &Prepared, tls: &ServerTls, warn: bool) {
    for (place, (_, not_after)) in tls.expiries().into_iter().enumerate() {
        let metrics = prepared.handles.certificate(CertificateId(u16::try_from(place).unwrap_or(0)));
        metrics.set_not_after(UNIX_EPOCH + Duration::from_secs(not_after));
        let left = left(Some(not_after));
        if warn && left < EXPIRES_SOON && !prepared.config.certificates.is_empty() {
            log::emit(Event::CertificateExpiresSoon { certificate: metrics.name().clone(), left });
        }
    }
}

fn left(not_after: Option<u64>) -> Duration {
    let end = UNIX_EPOCH + Duration::from_secs(not_after.unwrap_or(0));
    end.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
}

/// One worker's thread.
fn worker(first: Update, mut inbox: mpsc::Receiver<Message>, drain: DrainWatcher, places: Arc<Places>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(|| {
            hygiene::stack::scrub_turn();
            heap::settle();
        })
        .build_local(tokio::runtime::LocalOptions::default());
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async move {
        let lag = Rc::new(Cell::new(Duration::ZERO));
        let server = Server::new(first.prepared.snapshot(&lag), drain.clone());
        tokio::task::spawn_local(metrics::sample_lag(first.prepared.handles.clone(), lag.clone()));
        let mut doors: HashMap<DoorKey, Door> = HashMap::new();
        let open = |update: Update, doors: &mut HashMap<DoorKey, Door>| {
            let mut sockets: HashMap<_, _> = update.sockets.into_iter().collect();
            let mut kept = HashMap::new();
            for parts in &update.prepared.plans {
                let Ok(proxies) = TrustedNetworks::parse(&parts.networks) else { continue };
                let mut limits = update.prepared.config.limits.clone();
                limits.connections = connections_allowed(limits.connections);
                let plan = Rc::new(Plan {
                    id: parts.id,
                    handles: update.prepared.handles.clone(),
                    tls: parts.tls.clone(),
                    proxies,
                    limits,
                });
                if let Some(door) = doors.remove(&parts.key) {
                    *door.plan.borrow_mut() = plan;
                    kept.insert(parts.key, door);
                } else if let Some(socket) = sockets.remove(&parts.key)
                    && let Ok(socket) = TcpListener::from_std(socket)
                {
                    let plan = Rc::new(RefCell::new(plan));
                    let accepting =
                        listener::accept(socket, plan.clone(), server.clone(), places.clone(), drain.clone());
                    kept.insert(parts.key, Door { plan, task: tokio::task::spawn_local(accepting) });
                }
            }
            // Doors that are no longer configured close with their drop.
            *doors = kept;
        };
        open(first, &mut doors);
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                update = inbox.recv() => match update {
                    Some(Message::Keys(keys)) => *server.snapshot().keys.borrow_mut() = keys,
                    Some(Message::Update(update)) => {
                        let old = server.snapshot.replace(update.prepared.snapshot(&lag));
                        open(update, &mut doors);
                        old.retire();
                    }
                    // The control side is gone: so is the process, in a moment.
                    None => return,
                },
                _ = sweep.tick() => server.snapshot().sweep(),
            }
        }
    });
}

/// One address that a worker accepts at.
struct Door {
    plan: Rc<RefCell<Rc<Plan>>>,
    task: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Descriptors for listeners, runtimes, files and the side listeners' connections.
const DESCRIPTORS_OF_OURS: u64 = 64;

/// As many client connections as there are descriptors for, each with a line to an upstream: beyond that accepting and
/// connecting would fail for everybody.
fn connections_allowed(wanted: usize) -> usize {
    use rustix::process::Resource;
    let Some(limit) = rustix::process::getrlimit(Resource::Nofile).current else { return wanted };
    let affordable = limit.saturating_sub(DESCRIPTORS_OF_OURS) / 2;
    wanted.min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(1)
}

/// Lifts the soft descriptor limit to the hard one: two descriptors a stream go fast.
fn raise_descriptor_limit() {
    use rustix::process::Resource;
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}
