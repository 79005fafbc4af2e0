//! The configuration: what the operator wrote, checked once, immutable afterwards.
//!
//! `RawConfig` (private, in `parse`) is the text as written; [`Config`] is what the rest of the
//! program sees. A value of type [`Config`] has passed every check: names are valid and unique,
//! references resolve, numbers are within their bounds. A reload makes a new one. `table` describes
//! every key once; `report` tells what is wrong without quoting it.

mod check;
pub(crate) mod derive;
pub mod describe;
mod parse;
mod report;
mod table;
mod value;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::hygiene::MemoryLock;
use crate::hygiene::Secret;
pub use crate::hygiene::heap::Wanted as Heap;
use crate::keys::HashKey;
use crate::limits;
use crate::provider::Provider;
use crate::retention::Policy;
use crate::retention::Rule;

use self::check::{Checked, Surroundings};
use self::report::{Cause, Fault, Lines};
pub use self::report::{Report, Warning};

/// The whole checked configuration.
pub struct Config {
    /// This machine among others.
    pub node: Node,
    /// Threads.
    pub runtime: Runtime,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// Empty means: one self-signed certificate made in memory at start.
    pub certificates: Vec<Certificate>,
    /// TLS towards clients.
    pub tls: Tls,
    /// Host names that clients may name besides those of the certificates and of the upstreams.
    /// Lower case, no port.
    pub hosts: Vec<String>,
    /// The URL at which clients reach this node, without a trailing slash, used in hints such as
    /// "the base URL is https://edge.example.com/openai/v1". `None`: hints say `https://HOST`.
    pub public_url: Option<String>,
    /// What clients can make this node hold.
    pub limits: Limits,
    /// Going away.
    pub drain: Drain,
    /// `None`: `enabled = false`.
    pub metrics: Option<MetricsListener>,
    /// `metrics.models`: patterns of model names, each a label. At most 63.
    pub models: Vec<String>,
    /// `None`: `enabled = false`.
    pub admin: Option<AdminListener>,
    /// Events on standard error.
    pub log: Log,
    /// Where the process keeps what it holds.
    pub memory: Memory,
    /// At least one; the index is the `UpstreamId`.
    pub upstreams: Vec<Upstream>,
    /// `None`: no `[keys]` is written, so nobody shows a key of this gateway's.
    pub(crate) keys: Option<Keys>,
    /// How requests are admitted.
    pub(crate) admission: Admission,
    /// Named sets of limits.
    pub(crate) plans: Vec<Plan>,
    /// Who has several keys.
    pub(crate) accounts: Vec<Account>,
    /// What tokens cost; the first that fits holds.
    pub(crate) prices: Vec<Price>,
    /// `None`: no usage events are written.
    pub(crate) journal: Option<Journal>,
    /// Folders that a reload reads: those of the configuration's own file and of every file that it
    /// names, also behind links. A file that stands in `/` is here itself.
    pub readable: Vec<PathBuf>,
    /// 48 bits over the configuration without its secrets (METRICS: `nullhop_config_fingerprint`).
    pub fingerprint: u64,
}

/// `[node]`
pub struct Node {
    /// `^[a-z][a-z0-9-]{0,31}$`; a constant label on every series.
    pub pop: Option<String>,
}

/// `[runtime]`
pub struct Runtime {
    /// Threads that serve traffic, 1 to 256. Written as 0: one per core.
    pub workers: usize,
}

/// `[memory]`: read once, at start.
pub struct Memory {
    /// Default `auto`.
    pub heap: Heap,
    /// Default `auto`.
    pub lock: MemoryLock,
}

/// `[[listener]]`: one address that accepts traffic.
pub struct Listener {
    /// `^[a-z][a-z0-9-]{0,31}$`, unique; default `main`.
    pub name: String,
    /// Port 0: any free one. Unique among all listeners otherwise.
    pub address: SocketAddr,
    /// `false` only for a loopback address (or with `plaintext = "i-know"`): HTTP without TLS.
    pub tls: bool,
    /// Networks (CIDR, always `address/length`, host bits zero) whose connections must begin with a PROXY protocol header; connections from
    /// elsewhere are refused when this is not empty.
    pub proxy_protocol_from: Vec<String>,
}

/// `[[certificate]]`
pub struct Certificate {
    /// `^[a-z][a-z0-9-]{0,31}$`, unique.
    pub name: String,
    /// PEM; could be read when the configuration was checked.
    pub cert_file: PathBuf,
    /// PEM.
    pub key: KeySource,
    /// Served when the client names no host or an unknown one. The first one if none says so.
    pub default: bool,
}

/// Where a private key comes from.
pub enum KeySource {
    /// A file, watched for changes.
    File(PathBuf),
    /// PEM text, from an environment variable or a systemd credential.
    Inline(Secret),
}

/// `tls.min_version`
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// `[tls]`
pub struct Tls {
    /// Default 1.2.
    pub min_version: TlsVersion,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// How often certificate files are looked at, default 2 s, 1 s to 1 h.
    pub reload_interval: Duration,
}

/// `tls.client_auth`
pub enum ClientAuth {
    /// Clients are not asked.
    None,
    /// Clients may show one; it must come from these authorities.
    Optional {
        /// PEM.
        ca_file: PathBuf,
    },
    /// Clients must show one from these authorities.
    Required {
        /// PEM.
        ca_file: PathBuf,
    },
}

/// `[limits]`: what a client can make this node hold, and how long it may take.
#[derive(Clone)]
pub struct Limits {
    /// Open client connections, all listeners together. Default 20000; lowered at start to what
    /// the descriptor limit allows.
    pub connections: usize,
    /// Open connections of one address (IPv6: of one /64). Default 1024.
    pub connections_per_address: usize,
    /// TLS handshakes in flight per worker. Default 256.
    pub handshakes_in_flight: usize,
    /// Default 5 s.
    pub handshake_timeout: Duration,
    /// From the first byte of a head to its last. Default 10 s.
    pub head_timeout: Duration,
    /// From the end of the handshake to the first request. Default 10 s.
    pub first_request_timeout: Duration,
    /// A client connection without a request in flight. Default 60 s.
    pub idle_timeout: Duration,
    /// A connection gets no new requests after this age; spread by up to a tenth. Default 1 h.
    pub connection_age: Duration,
    /// Default 1000; spread by up to a tenth.
    pub requests_per_connection: u32,
    /// HTTP/2 streams open at once on one connection. Default 100.
    pub streams_per_connection: u32,
    /// Requests that a client gave up on one connection within 30 s before it is told to go away. Default 100.
    pub cancels_per_connection: u32,
    /// Bytes of one request head. Default 64 KiB, 8 KiB to 256 KiB.
    pub head_bytes: usize,
    /// Header fields of one request. Default 100.
    pub head_fields: usize,
    /// Bytes per second of a request body, averaged over `body_grace`. Default 1024. 0: no minimum.
    pub body_rate_min: u64,
    /// Default 30 s.
    pub body_grace: Duration,
    /// A client that accepts no byte for this long while bytes wait is dropped. Default 60 s.
    pub write_stall: Duration,
    /// Bytes of a request body on JSON routes. Default 32 MiB.
    pub body_bytes: u64,
    /// Bytes of a request body on upload routes (files, audio, images, batches). Default 512 MiB.
    pub upload_bytes: u64,
}

/// `[drain]`
pub struct Drain {
    /// Between "not ready" and the end of accepting, so that load balancers notice. Default 5 s; 0 allowed.
    pub grace: Duration,
    /// From the signal until open streams are cut. Default 600 s.
    pub deadline: Duration,
}

/// `[metrics]`
pub struct MetricsListener {
    /// Default 127.0.0.1:9464.
    pub address: SocketAddr,
    /// Bearer token that a scrape must carry.
    pub token: Option<Secret>,
    /// Client keys that have series of their own, at most; the rest share `other`. 0: none has.
    pub keys_max: usize,
}

/// `[keys]`: keys that this gateway gives out.
pub(crate) struct Keys {
    /// JSON Lines, written by `nullhop key` or by whatever manages accounts; watched for changes.
    pub(crate) file: PathBuf,
    /// What keys are hashed with.
    pub(crate) hash_key: Arc<HashKey>,
    /// Beside the headers of the APIs, a key may come in this one; a caller of pass-through shows it here. Lower case.
    pub(crate) header: http::HeaderName,
    /// Whether pass-through needs a key of ours as well.
    pub(crate) required: bool,
    /// What becomes of the open streams of a key that is revoked.
    pub(crate) on_revoke: OnRevoke,
    /// Place of the plan of accounts that no `[[account]]` names. `None`: they have no limits of their own.
    pub(crate) account_plan: Option<usize>,
    /// Place of the plan of keys that name none. `None`: no limits.
    pub(crate) key_plan: Option<usize>,
    /// Retention rules that keys of the file relax, and how many keys do. As the file was when this was read.
    pub(crate) relaxing: Vec<(Rule, usize)>,
}

/// `keys.on_revoke`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnRevoke {
    /// They may finish.
    Finish,
    /// They are cut.
    Cut,
}

/// `[admission]`
pub(crate) struct Admission {
    /// Where days and months of budgets begin. Default UTC.
    pub(crate) time_zone: jiff::tz::TimeZone,
    /// Input tokens that are reserved for a request of unknown length. Default 2048.
    pub(crate) reserve_input_tokens: u64,
    /// Output tokens that are reserved for a request that does not limit them. Default 4096.
    pub(crate) reserve_output_tokens: u64,
    /// Wrong keys of one address (IPv6: of one /64) in a minute before it has to wait. Default 10.
    pub(crate) wrong_keys_per_minute: u32,
    /// Open streams of the whole process; beyond it new requests are refused. Default 20000.
    pub(crate) streams: u32,
    /// A worker whose timers come this late for half a second refuses new requests, those of low priority at half of it.
    /// Default 500 ms; 0: never.
    pub(crate) lag_max: Duration,
}

/// `[[plan]]`: limits that keys, accounts, upstreams and callers share by name, each with a count of its own.
pub(crate) struct Plan {
    /// `^[a-z][a-z0-9-]{0,31}$`, unique.
    pub(crate) name: String,
    /// What it allows.
    pub(crate) limits: Arc<limits::Limits>,
    /// What becomes of a stream that uses up a budget.
    pub(crate) on_budget: OnBudget,
    /// Who is refused first when the machine is at its end.
    pub(crate) priority: Priority,
}

/// `plan.on_budget`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnBudget {
    /// It is finished, and what it used too much is owed.
    Finish,
    /// It is cut, within a second.
    Cut,
}

/// `plan.priority`; the first is refused first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Priority {
    Low,
    Normal,
    High,
}

/// `[[account]]`
pub(crate) struct Account {
    /// 1 to 64 of `A-Za-z0-9._-`, unique; what keys name.
    pub(crate) name: String,
    /// Place of its plan.
    pub(crate) plan: usize,
}

/// `[[price]]`: what tokens of some models cost.
pub(crate) struct Price {
    /// Patterns, each of which is a label of the model table as well.
    pub(crate) models: Vec<String>,
    /// Places of the upstreams where it holds; empty: at all of them.
    pub(crate) upstreams: Vec<usize>,
    /// Picodollars (10^-12 USD) for one token of each kind. Written as USD for a million tokens.
    pub(crate) per_token: TokenPrices,
}

/// Picodollars for one token, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TokenPrices {
    pub(crate) input: u64,
    /// By default that of input.
    pub(crate) cache_read: u64,
    /// By default that of input.
    pub(crate) cache_write: u64,
    pub(crate) output: u64,
    /// By default that of output.
    pub(crate) reasoning: u64,
}

/// `[journal]`: where usage events go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Journal {
    /// A folder of its own, made if it is not there.
    pub(crate) folder: PathBuf,
    /// A file that has this many bytes is closed. Default 64 MiB.
    pub(crate) bytes: u64,
    /// So is one of this age. Default 1 day.
    pub(crate) age: Duration,
}

/// A key of the operator's at a provider.
pub(crate) struct ProviderKey {
    /// `^[a-z][a-z0-9-]{0,31}$`, unique in its upstream; for log lines.
    pub(crate) name: String,
    /// The key's text, without `Bearer`.
    pub(crate) secret: Arc<Secret>,
    /// 1 to 1000.
    pub(crate) weight: u32,
}

/// `upstream.key_header`: where a provider reads its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyHeader {
    /// By provider and path: what the vendor's own SDK does.
    Auto,
    /// `Authorization: Bearer`
    Authorization,
    XApiKey,
    XGoogApiKey,
    ApiKey,
}

/// `upstream.access`: who may use an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    /// Callers with a key of this gateway's; the operator's key goes up.
    pub(crate) managed: bool,
    /// Callers with the provider's key, which goes up untouched.
    pub(crate) byok: bool,
}

/// `[admin]`
pub struct AdminListener {
    /// Loopback only. Default 127.0.0.1:9465.
    pub address: SocketAddr,
}

/// `log.format`
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: one line of `name=value` pairs.
    Text,
    /// For collectors: one object a line.
    Json,
}

/// `log.level`
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something is lost.
    Error,
    /// Something should be otherwise.
    Warn,
    /// Default: also starts, stops and reloads.
    Info,
}

/// `[log]`
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
}

/// Which HTTP version is spoken to an upstream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// What ALPN settles on; h2 is offered first.
    Auto,
    /// HTTP/1.1 only.
    H1,
    /// HTTP/2 only; all endpoints have TLS.
    H2,
}

/// How much of what tells clients apart is kept from the provider (docs/headers.md has the table).
/// Each level includes the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Privacy {
    /// Addresses, tracing ids, browser metadata, cookies: removed always.
    Address,
    /// Default: also operating system, architecture, runtime.
    Device,
    /// Also session, thread and installation ids; the user agent is replaced.
    Session,
}

/// `[[upstream]]`: one provider account's API, at one or more addresses.
pub struct Upstream {
    /// `^[a-z][a-z0-9-]{0,31}$`, unique.
    pub name: String,
    /// Whose API it is.
    pub provider: Provider,
    /// `/name` by default; one or more segments, no trailing slash; unique. `None` if only `hosts` lead here.
    pub prefix: Option<String>,
    /// Host names (lower case) that lead here with the path as it is.
    pub hosts: Vec<String>,
    /// Serves well-known paths of its dialect at a bare base URL. At most one per dialect.
    pub bare: bool,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// HTTP version.
    pub protocol: UpstreamProtocol,
    /// Default by provider: on for openai, gemini, vertex, azure.
    pub websocket: bool,
    /// Whom its certificate may come from.
    pub roots: Roots,
    /// Connections per worker and endpoint. Default 1024 (h1) and shared by all streams (h2).
    pub connections: usize,
    /// DNS, TCP and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// From the request's end (or the last byte sent) to the response head. Default 15 min.
    pub head_timeout: Duration,
    /// Longest silence within a stream. Default 15 min.
    pub silence_timeout: Duration,
    /// A pooled connection without a request in flight. Default 30 s.
    pub idle_timeout: Duration,
    /// For how long an answer is read on after its client left, default 0 (cancel at once), at most 10 min.
    pub abort_drain: Duration,
    /// What is kept from the provider.
    pub privacy: Privacy,
    /// Tries at most this many endpoints before the first byte. Default 3, 1 to 8.
    pub attempts: u32,
    /// Body caps that replace those of `[limits]`.
    pub body_bytes: Option<u64>,
    /// What requests may ask of the provider.
    pub(crate) policy: Policy,
    /// Who may use it. By default managed where there are keys, else pass-through.
    pub(crate) access: Access,
    /// Of the operator's; at least one where `access.managed`.
    pub(crate) keys: Vec<ProviderKey>,
    /// Where the provider reads them.
    pub(crate) key_header: KeyHeader,
    /// Place of the plan that limits the upstream as a whole.
    pub(crate) plan: Option<usize>,
    /// Place of the plan of each caller in pass-through who shows no key of ours.
    pub(crate) caller_plan: Option<usize>,
}

impl Upstream {
    /// Retention rules that are not in force here.
    pub(crate) fn relaxed(&self) -> impl Iterator<Item = Rule> {
        Rule::ALL.iter().copied().filter(|rule| !self.policy.rules.has(*rule))
    }
}

/// One address or region of an upstream.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https` or, for loopback and private addresses only, `http`.
    pub tls: bool,
    /// Host name (lower case) or address literal (IPv6 without brackets); also the TLS server name and
    /// the `Host` that the provider sees.
    pub host: String,
    /// 443 or 80 if the URL names none.
    pub port: u16,
    /// Path put before the client's (after the prefix was taken off), no trailing slash; often empty.
    pub base_path: String,
    /// 1 to 1000; share of new requests among healthy endpoints. Default 1.
    pub weight: u32,
}

/// Which certificate authorities an upstream's certificate may come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// The Mozilla list that is compiled in.
    WebPki,
    /// Only those in this PEM file.
    File(PathBuf),
}

/// A checked configuration and what came up on the way.
pub struct Loaded {
    /// The only handle to it, until it is cloned.
    pub config: Arc<Config>,
    /// In file order.
    pub warnings: Vec<Warning>,
    /// The configuration as TOML with all defaults filled in and secrets masked.
    pub shown: String,
    /// How many keys are in the file that `[keys]` names; `None` without that section.
    pub keys: Option<usize>,
}

impl Config {
    /// The configuration of `nullhop run` without a file: the five providers, pass-through, a
    /// self-signed certificate, loopback port 8443.
    #[cfg(test)]
    pub(crate) fn built_in() -> Arc<Self> {
        Self::load_built_in().config
    }

    /// The configuration of `nullhop run` without a file, with its rendering.
    pub fn load_built_in() -> Loaded {
        let loaded = Self::from_toml(BUILT_IN, Path::new(""), "built-in configuration");
        loaded.expect("a test reads it")
    }

    /// Reads and checks a file, and the files and variables that it names.
    pub fn load(path: &Path) -> Result<Loaded, Report> {
        let text = Self::read(path)?;
        let base_dir = path.parent().unwrap_or(Path::new(""));
        let mut loaded = Self::from_toml(&text, base_dir, &path.display().to_string())?;
        let config = Arc::get_mut(&mut loaded.config).expect("nobody else has it yet");
        config.readable.extend(check::folders_of(path));
        Ok(loaded)
    }

    fn read(path: &Path) -> Result<String, Report> {
        let source_name = path.display().to_string();
        let refused = |says| {
            let cause = Cause::Rule { says, help: None };
            Report::new(&source_name, &Lines::unparsed(""), vec![Fault { span: None, cause }])
        };
        let file = File::open(path).map_err(|error| {
            refused(match check::words(error) {
                "does not exist" => "this file does not exist",
                "may not be read by this user" => "this file may not be read by this user",
                _ => "this file cannot be read",
            })
        })?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|_| refused("this file cannot be read"))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(refused("this file is larger than 1 MiB"));
        }
        String::from_utf8(bytes).map_err(|_| refused("this file is not UTF-8"))
    }

    /// Checks `text`; relative paths in it begin at `base_dir`, and reports call it `source_name`.
    pub fn from_toml(text: &str, base_dir: &Path, source_name: &str) -> Result<Loaded, Report> {
        let surroundings = Surroundings { base_dir, variable: &|name| std::env::var_os(name) };
        Self::from_surroundings(text, source_name, &surroundings)
    }

    fn from_surroundings(text: &str, source_name: &str, surroundings: &Surroundings<'_>) -> Result<Loaded, Report> {
        let mut faults = Vec::new();
        let mut doubts = Vec::new();
        let mut raw = match parse::parse(text, &mut faults) {
            Ok(raw) => raw,
            Err(fault) => {
                return Err(Report::new(source_name, &Lines::unparsed(text), vec![fault]));
            }
        };
        let checked = check::check(&mut raw, surroundings, &mut faults, &mut doubts);
        let shown = check::show(&raw);
        let lines = Lines::parsed(text, raw.showable);
        let Some(Checked { config, keys }) = checked else {
            return Err(Report::new(source_name, &lines, faults));
        };
        doubts.sort_by_key(|doubt| doubt.span.as_ref().map_or(usize::MAX, |span| span.start));
        let warning = |doubt: &Fault| Warning::new(source_name, &lines, doubt);
        Ok(Loaded { config: Arc::new(config), warnings: doubts.iter().map(warning).collect(), shown, keys })
    }
}

/// What [`Config::built_in`] reads.
pub(crate) const BUILT_IN: &str = include_str!("built_in.toml");

/// A thousand upstreams fit; a wrong file does not take the machine's memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests;
