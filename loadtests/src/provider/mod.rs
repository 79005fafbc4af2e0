//! The scripted provider. [`script`] lists what a request may ask for, [`answers`] what comes without asking.

pub mod script;

mod body;
mod exchange;

pub mod answers;
mod journal;
mod vectors;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use std::time::Instant;

use hyper::service::service_fn;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

pub use self::body::parse_event;
pub use self::journal::BodyEnd;
pub use self::journal::Outcome;
pub use self::journal::Seen;
pub use self::journal::State;
pub use self::script::Script;
pub use self::script::ScriptError;
pub use self::vectors::Vector;
pub use self::vectors::Vectors;

use self::exchange::Connection;
use self::journal::Journal;
use crate::BoxError;
use crate::io::Background;
use crate::io::Control;
use crate::io::Io;
use crate::io::Spawner;
use crate::io::Transport;
use crate::io::listen;
use crate::tls::Alpn;
use crate::tls::Ca;
use crate::tls::Leaf;
use crate::tls::Versions;

/// How a provider is set up.
pub struct ProviderOptions {
    /// 0 picks a free one. The address is always 127.0.0.1.
    pub port: u16,
    /// TLS or not, and which protocols.
    pub alpn: Alpn,
    /// Which versions of TLS are spoken.
    pub versions: Versions,
    /// Signs the certificate; a fresh one if not given.
    pub ca: Option<Arc<Ca>>,
    /// Shown instead of a certificate for `names`: expired, wrong, self-signed.
    pub leaf: Option<Leaf>,
    /// Names and addresses in the certificate.
    pub names: Vec<String>,
    /// The directory behind `file=`.
    pub vectors: Option<PathBuf>,
    /// How much of each request body the journal keeps.
    pub keep_body_bytes: usize,
    /// Whether request bodies are hashed.
    pub hash_bodies: bool,
    /// Records kept; the oldest go first. The counters know no limit.
    pub journal_max: usize,
    /// Threads, each with a runtime of its own.
    pub workers: usize,
    /// h2 receive window of a stream.
    pub h2_stream_window: u32,
    /// h2 receive window of a connection.
    pub h2_connection_window: u32,
    /// h2 streams at once.
    pub h2_streams_max: u32,
}

impl Default for ProviderOptions {
    fn default() -> ProviderOptions {
        ProviderOptions {
            port: 0,
            alpn: Alpn::Both,
            versions: Versions::Both,
            ca: None,
            leaf: None,
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            vectors: None,
            keep_body_bytes: 0,
            hash_bodies: true,
            journal_max: 100_000,
            workers: 1,
            // A stream that is not read holds a MiB at most; the connection never is the limit before a lot of them.
            h2_stream_window: 1024 * 1024,
            h2_connection_window: 256 * 1024 * 1024,
            h2_streams_max: 10_000,
        }
    }
}

/// A running provider; dropping it closes everything.
pub struct Provider {
    shared: Arc<Shared>,
    address: SocketAddr,
    ca_pem: String,
    _background: Background,
}

impl Provider {
    /// Starts one from async code.
    pub async fn start(options: ProviderOptions) -> Result<Provider, BoxError> {
        Provider::spawn(options)
    }

    /// Starts one from anywhere: it runs on its own thread. When this returns, it accepts connections.
    pub fn spawn(options: ProviderOptions) -> Result<Provider, BoxError> {
        let ca = options.ca.clone().unwrap_or_else(|| Arc::new(Ca::new("Scripted Provider Test CA")));
        let names: Vec<&str> = options.names.iter().map(String::as_str).collect();
        let leaf = options.leaf.clone().unwrap_or_else(|| ca.leaf(&names));
        let acceptor = match options.alpn.is_tls() {
            true => Some(TlsAcceptor::from(leaf.server_config_of(options.alpn, options.versions)?)),
            false => None,
        };
        let vectors = match &options.vectors {
            Some(directory) => Vectors::load(directory)?,
            None => Vectors::default(),
        };
        let listener = listen(options.port)?;
        let address = listener.local_addr()?;
        let workers = options.workers;
        let journal = Arc::new(Journal::new(options.journal_max, options.keep_body_bytes, options.hash_bodies));
        let shared = Arc::new(Shared {
            options,
            acceptor,
            vectors,
            journal,
            default_script: Mutex::default(),
            made: Mutex::default(),
            gates: Mutex::default(),
        });
        let background = Background::accept(&listener, workers, {
            let shared = shared.clone();
            move |tcp| serve(shared.clone(), tcp)
        })?;
        Ok(Provider { shared, address, ca_pem: ca.pem(), _background: background })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port alone.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `https://127.0.0.1:PORT`, or `http://`.
    pub fn url(&self) -> String {
        let scheme = if self.shared.options.alpn.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate that clients have to trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The files behind `file=`.
    pub fn vectors(&self) -> &Vectors {
        &self.shared.vectors
    }

    /// The script of requests that bring none; "" for no script.
    ///
    /// # Panics
    /// If it does not parse.
    pub fn default_script(&self, script: &str) {
        let parsed = (!script.is_empty()).then(|| script.parse().expect("a valid script"));
        *self.shared.default_script.lock().expect("no panics under this lock") = parsed;
    }

    /// Makes `vector` the answer of `file=NAME` for as long as the provider runs or until [`Provider::take`]; a vectors file
    /// of that name goes before it.
    pub fn put(&self, name: &str, vector: Vector) {
        self.shared.made.lock().expect("no panics under this lock").insert(name.to_owned(), vector);
    }

    /// Takes back what [`Provider::put`] put there.
    pub fn take(&self, name: &str) -> Option<Vector> {
        self.shared.made.lock().expect("no panics under this lock").remove(name)
    }

    /// Lets the answer of `gate=NAME` go on. False: no such answer waits. One that has sent its `hold_at` bytes does.
    pub fn open(&self, gate: &str) -> bool {
        let waiting = self.shared.gates.lock().expect("no panics under this lock").remove(gate);
        waiting.is_some_and(|waiting| waiting.send(()).is_ok())
    }

    /// The counters, and the records on request.
    pub fn state(&self) -> State<'_> {
        self.shared.journal.state()
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.state().seen()
    }

    /// The latest request.
    ///
    /// # Panics
    /// If there was none.
    pub fn last(&self) -> Seen {
        self.state().last().expect("a request has arrived")
    }

    /// Forgets the records, not the counters.
    pub fn forget(&self) {
        self.shared.journal.records().clear();
    }

    /// TCP connections open now.
    pub fn open_connections(&self) -> u64 {
        self.state().open_connections
    }

    /// Requests without an outcome.
    pub fn open_streams(&self) -> u64 {
        self.state().open_streams
    }

    /// TCP connections so far.
    pub fn connects(&self) -> u64 {
        self.state().connects
    }

    /// Waits until the predicate holds; false if it did not within the timeout.
    pub async fn wait_for(&self, mut predicate: impl FnMut(&State<'_>) -> bool, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if predicate(&self.state()) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The same for tests without a runtime.
    pub fn wait_for_blocking(&self, mut predicate: impl FnMut(&State<'_>) -> bool, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if predicate(&self.state()) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// What connections share.
struct Shared {
    options: ProviderOptions,
    acceptor: Option<TlsAcceptor>,
    vectors: Vectors,
    journal: Arc<Journal>,
    default_script: Mutex<Option<Script>>,
    /// Beside the vectors: see [`Provider::put`].
    made: Mutex<HashMap<String, Vector>>,
    /// Answers that wait for [`Provider::open`].
    gates: Mutex<HashMap<String, oneshot::Sender<()>>>,
}

/// Counts a connection as open.
struct OpenConnection(Arc<Journal>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, SeqCst);
    }
}

/// One connection from accept to close.
async fn serve(shared: Arc<Shared>, tcp: TcpStream) {
    let journal = &shared.journal;
    let number = journal.connects.fetch_add(1, SeqCst);
    journal.open_connections.fetch_add(1, SeqCst);
    let open = OpenConnection(journal.clone());

    let Ok(transport) = handshake(&shared, tcp).await else {
        journal.handshake_failures.fetch_add(1, SeqCst);
        return;
    };
    let sni = match &transport {
        Transport::Tls(tls) => match &**tls {
            tokio_rustls::TlsStream::Server(tls) => tls.get_ref().1.server_name().map(str::to_owned),
            tokio_rustls::TlsStream::Client(_) => None,
        },
        Transport::Plain(_) => None,
    };
    let options = &shared.options;
    let h2 = options.alpn.speaks_h2(transport.alpn());
    let control = Arc::new(Control::default());
    let io = Io::new(transport, control.clone(), Some(Box::new(open)));
    let connection = Arc::new(Connection { shared: shared.clone(), control: control.clone(), number, sni, h2 });
    let service = service_fn(move |request| exchange::exchange(connection.clone(), request));

    if h2 {
        let mut builder = hyper::server::conn::http2::Builder::new(Spawner);
        builder
            .initial_stream_window_size(options.h2_stream_window)
            .initial_connection_window_size(options.h2_connection_window)
            .max_concurrent_streams(options.h2_streams_max)
            .max_header_list_size(1024 * 1024)
            // Thousands of streams cancelled at once are a test here, not an attack.
            .max_pending_accept_reset_streams(options.h2_streams_max as usize)
            .max_local_error_reset_streams(options.h2_streams_max as usize);
        let mut served = pin!(builder.serve_connection(io, service));
        loop {
            tokio::select! {
                _ = served.as_mut() => break,
                () = control.ended() => break,
                () = control.drained() => served.as_mut().graceful_shutdown(),
            }
        }
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.max_buf_size(2 * 1024 * 1024).max_headers(1000);
        let mut served = pin!(builder.serve_connection(io, service).with_upgrades());
        loop {
            tokio::select! {
                _ = served.as_mut() => break,
                () = control.ended() => break,
                () = control.drained() => served.as_mut().graceful_shutdown(),
            }
        }
    }
}

async fn handshake(shared: &Shared, tcp: TcpStream) -> io::Result<Transport> {
    let Some(acceptor) = &shared.acceptor else { return Ok(Transport::Plain(tcp)) };
    let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await??;
    Ok(Transport::Tls(Box::new(tls.into())))
}

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Polling beats a notification on every frame of every stream, and no test feels two milliseconds.
const POLL: Duration = Duration::from_millis(2);
