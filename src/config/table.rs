//! Every section and every key, once.
//!
//! Parsing, bounds, suggestions, the JSON Schema, the file that `nullhop init` writes and
//! `docs/configuration.md` are all made from this table. The checks that look at more than one key
//! are in `check`.

use std::time::Duration;

use super::value::{duration_text, size_text};
use crate::retention::RULE_WORDS;
use crate::retention::VENDOR_WORDS;

/// A TOML table or array of tables.
pub(super) struct Section {
    /// Dotted from the root: `upstream.endpoint`.
    pub path: &'static str,
    /// Written `[[path]]`, any number of times.
    pub repeated: bool,
    pub doc: &'static str,
    pub keys: &'static [Key],
}

pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML. `None`: absent, or worked out as `doc` says.
    pub default: Option<&'static str>,
    /// As TOML, shown where there is no default.
    pub example: &'static str,
    pub required: bool,
    pub doc: &'static str,
}

/// What may be written for a key.
pub(super) enum Kind {
    /// The name of an account.
    Account,
    Address,
    Bool,
    /// Such as `50M tokens/day`.
    Budget,
    Cidr,
    /// Milliseconds.
    Duration {
        min: u64,
        max: u64,
    },
    Endpoint,
    /// The name of a header.
    Header,
    Host,
    Integer {
        min: u64,
        max: u64,
    },
    List(&'static Kind),
    /// A pattern of the model table.
    Model,
    Name,
    OneOf(&'static [&'static str]),
    Path,
    /// Of names of models, with stars.
    Pattern,
    Prefix,
    /// USD for a million tokens.
    Price,
    PublicUrl,
    /// Such as `600 requests/1m`.
    Rate,
    Secret,
    /// Bytes.
    Size {
        min: u64,
        max: u64,
    },
    TimeZone,
}

/// A list longer than this is a mistake, and would be slow to check.
pub(super) const LIST_MAX: usize = 1024;
/// The same for repeated sections.
pub(super) const BLOCKS_MAX: usize = 1024;

/// Rates of one plan, and budgets: each is looked at for each request.
pub(super) const LIMITS_MAX: usize = 8;

pub(super) const NAME_PATTERN: &str = "^[a-z][a-z0-9-]{0,31}$";

impl Section {
    /// As it is written in a file: `[limits]`, `[[upstream]]`.
    pub(super) fn header(&self) -> String {
        match self.repeated {
            true => format!("[[{}]]", self.path),
            false => format!("[{}]", self.path),
        }
    }

    /// The last part of the path.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// Means something else when it is left out than when it is empty: it has keys without which it cannot be.
    pub(super) fn is_optional(&self) -> bool {
        !self.repeated && self.keys.iter().any(|key| key.required)
    }

    pub(super) fn children(&'static self) -> impl Iterator<Item = &'static Section> {
        SECTIONS.iter().filter(|section| section.path.rsplit_once('.').is_some_and(|(parent, _)| parent == self.path))
    }
}

/// The section at `path`, which is one of the table.
pub(super) fn section(path: &str) -> &'static Section {
    SECTIONS.iter().find(|section| section.path == path).expect("callers name sections of the table")
}

/// The sections that stand at the top of a file.
pub(super) fn top_level() -> impl Iterator<Item = &'static Section> {
    SECTIONS.iter().filter(|section| !section.path.contains('.'))
}

/// Whether `word` is one of our own key or section names, and so cannot be anyone's secret.
pub(super) fn is_known_word(word: &str) -> bool {
    ["file", "env", "credential"].contains(&word)
        || SECTIONS.iter().any(|s| s.name() == word || s.keys.iter().any(|k| k.name == word))
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Some(default), example: default, required: false, doc }
}

const fn optional(name: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: None, example, required: false, doc }
}

const fn required(name: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: None, example, required: true, doc }
}

/// In the order in which files, schema and reference show them.
pub(super) const SECTIONS: &[Section] = &[
    Section {
        path: "node",
        repeated: false,
        doc: "This machine among others.",
        keys: &[optional(
            "pop",
            Kind::Name,
            "\"fra-1\"",
            "Point of presence: a constant label on every metric. Not part of the fingerprint, so that nodes compare.",
        )],
    },
    Section {
        path: "runtime",
        repeated: false,
        doc: "Threads.",
        keys: &[key(
            "workers",
            Kind::Integer { min: 0, max: 256 },
            "0",
            "Threads that serve traffic. 0: one per core.",
        )],
    },
    Section {
        path: "memory",
        repeated: false,
        doc: "The process's own memory. Read at start only.",
        keys: &[
            key(
                "heap",
                Kind::OneOf(&["auto", "secret", "locked", "plain"]),
                "\"auto\"",
                "`secret`: memory that nobody outside the process can read, not even root. `locked`: never in swap or a \
                 core file. `plain`: neither. `auto`: the first of these that the machine gives; the others are demands.",
            ),
            key(
                "lock",
                Kind::OneOf(&["auto", "required", "off"]),
                "\"auto\"",
                "The whole process, kept out of swap. `auto`: where the limit on locked memory allows it, else a warning \
                 and the metric. `required`: or nullhop does not start.",
            ),
        ],
    },
    Section {
        path: "listener",
        repeated: true,
        doc: "An address that accepts traffic. Without any: 127.0.0.1:8443 with TLS.",
        keys: &[
            key("name", Kind::Name, "\"main\"", "Unique; a label in the metrics."),
            required("address", Kind::Address, "\"127.0.0.1:8443\"", "IP address and port. Port 0: any free one."),
            key("tls", Kind::Bool, "true", "Off: HTTP without TLS, allowed on loopback addresses."),
            optional(
                "plaintext",
                Kind::OneOf(&["i-know"]),
                "\"i-know\"",
                "Allows `tls = false` on an address that is not loopback: keys and content then cross the network readable.",
            ),
            key(
                "proxy_protocol_from",
                Kind::List(&Kind::Cidr),
                "[]",
                "Networks whose connections must begin with a PROXY protocol header (v1 or v2). When set, all others are refused.",
            ),
        ],
    },
    Section {
        path: "certificate",
        repeated: true,
        doc: "A server certificate. Without any: a self-signed one is made in memory at start.",
        keys: &[
            required("name", Kind::Name, "\"edge\"", "Unique; a label in the metrics."),
            required(
                "cert_file",
                Kind::Path,
                "\"edge.crt\"",
                "PEM file: the certificate, then its chain. Watched for changes.",
            ),
            required(
                "key",
                Kind::Secret,
                "{ file = \"edge.key\" }",
                "PEM private key. A key that comes from a file is watched for changes.",
            ),
            key(
                "default",
                Kind::Bool,
                "false",
                "Served when the client names no host or an unknown one. If none says so, the first is.",
            ),
        ],
    },
    Section {
        path: "tls",
        repeated: false,
        doc: "TLS towards clients.",
        keys: &[
            key("min_version", Kind::OneOf(&["1.2", "1.3"]), "\"1.2\"", "The oldest version that is spoken."),
            key(
                "client_auth",
                Kind::OneOf(&["none", "optional", "required"]),
                "\"none\"",
                "Whether clients show a certificate.",
            ),
            optional(
                "ca_file",
                Kind::Path,
                "\"clients-ca.pem\"",
                "PEM file with the authorities of client certificates; needed when `client_auth` is on.",
            ),
            key(
                "reload_interval",
                Kind::Duration { min: 1_000, max: HOUR },
                "\"2s\"",
                "How often certificate files are looked at.",
            ),
        ],
    },
    Section {
        path: "server",
        repeated: false,
        doc: "How clients name this node.",
        keys: &[
            key(
                "hosts",
                Kind::List(&Kind::Host),
                "[]",
                "Host names that clients may use besides those of the certificates and of the upstreams.",
            ),
            optional(
                "public_url",
                Kind::PublicUrl,
                "\"https://edge.example.com\"",
                "Where clients reach this node; used in hints about base URLs.",
            ),
        ],
    },
    Section {
        path: "limits",
        repeated: false,
        doc: "What clients can make this node hold, and how long they may take.",
        keys: &[
            key(
                "connections",
                Kind::Integer { min: 1, max: 10_000_000 },
                "20000",
                "Open client connections, all listeners together. Lowered at start to what the descriptor limit allows.",
            ),
            key(
                "connections_per_address",
                Kind::Integer { min: 1, max: 10_000_000 },
                "1024",
                "Open connections of one address (IPv6: of one /64).",
            ),
            key(
                "handshakes_in_flight",
                Kind::Integer { min: 1, max: 1_000_000 },
                "256",
                "TLS handshakes in flight per worker.",
            ),
            key("handshake_timeout", Kind::Duration { min: 100, max: MINUTE }, "\"5s\"", "For a TLS handshake."),
            key(
                "head_timeout",
                Kind::Duration { min: 100, max: 5 * MINUTE },
                "\"10s\"",
                "From the first byte of a request head to its last.",
            ),
            key(
                "first_request_timeout",
                Kind::Duration { min: 100, max: 5 * MINUTE },
                "\"10s\"",
                "From the end of the handshake to the first request.",
            ),
            key(
                "idle_timeout",
                Kind::Duration { min: 1_000, max: HOUR },
                "\"60s\"",
                "A client connection without a request in flight.",
            ),
            key(
                "connection_age",
                Kind::Duration { min: 10_000, max: 24 * HOUR },
                "\"1h\"",
                "A connection gets no new requests after this age; spread by up to a tenth.",
            ),
            key(
                "requests_per_connection",
                Kind::Integer { min: 1, max: 10_000_000 },
                "1000",
                "Requests on one connection; spread by up to a tenth.",
            ),
            key(
                "streams_per_connection",
                Kind::Integer { min: 1, max: 10_000 },
                "100",
                "HTTP/2 streams open at once on one connection.",
            ),
            key(
                "cancels_per_connection",
                Kind::Integer { min: 1, max: 1_000_000 },
                "100",
                "Requests that a client gives up on one connection within 30 s before it is told to go away.",
            ),
            key("head_bytes", Kind::Size { min: 8 * KIB, max: 256 * KIB }, "\"64KiB\"", "Size of one request head."),
            key("head_fields", Kind::Integer { min: 16, max: 1_000 }, "100", "Header fields of one request."),
            key(
                "body_rate_min",
                Kind::Size { min: 0, max: GIB },
                "1024",
                "Bytes per second of a request body, averaged over `body_grace`. 0: no minimum.",
            ),
            key(
                "body_grace",
                Kind::Duration { min: 1_000, max: HOUR },
                "\"30s\"",
                "The time over which `body_rate_min` is averaged.",
            ),
            key(
                "write_stall",
                Kind::Duration { min: 1_000, max: HOUR },
                "\"60s\"",
                "A client that accepts no byte for this long while bytes wait is dropped.",
            ),
            key(
                "body_bytes",
                Kind::Size { min: KIB, max: 1024 * GIB },
                "\"32MiB\"",
                "Size of a request body on JSON routes.",
            ),
            key(
                "upload_bytes",
                Kind::Size { min: KIB, max: 1024 * GIB },
                "\"512MiB\"",
                "Size of a request body on upload routes (files, audio, images, batches).",
            ),
        ],
    },
    Section {
        path: "drain",
        repeated: false,
        doc: "Going away: on SIGTERM and SIGINT, open streams may finish.",
        keys: &[
            key(
                "grace",
                Kind::Duration { min: 0, max: 10 * MINUTE },
                "\"5s\"",
                "Between \"not ready\" and the end of accepting, so that load balancers notice.",
            ),
            key(
                "deadline",
                Kind::Duration { min: 0, max: 24 * HOUR },
                "\"10m\"",
                "From the signal until open streams are cut; not below `grace`.",
            ),
        ],
    },
    Section {
        path: "keys",
        repeated: false,
        doc: "Keys that this gateway gives out. Without it nobody has one, and callers bring the provider's.",
        keys: &[
            required(
                "file",
                Kind::Path,
                "\"keys.jsonl\"",
                "Where `nullhop key` writes: one line a key, with its hash, never the key. Watched for changes.",
            ),
            required(
                "secret",
                Kind::Secret,
                "{ file = \"keys.secret\" }",
                "What keys are hashed with: 32 bytes or more, the same on all nodes. `nullhop key new` makes one.",
            ),
            key(
                "header",
                Kind::Header,
                "\"x-nullhop-key\"",
                "A key may come in this header as well as in those of the APIs. Callers who bring the provider's key show \
                 ours here.",
            ),
            key(
                "required",
                Kind::Bool,
                "false",
                "Whether callers who bring the provider's key need one of ours as well.",
            ),
            key(
                "on_revoke",
                Kind::OneOf(&["finish", "cut"]),
                "\"finish\"",
                "What becomes of the open streams of a key that is revoked.",
            ),
            optional("plan", Kind::Name, "\"team\"", "Limits of each key that names no plan. Without: none."),
            optional(
                "account_plan",
                Kind::Name,
                "\"team\"",
                "Limits of each account that no [[account]] names. Without: none of its own.",
            ),
        ],
    },
    Section {
        path: "admission",
        repeated: false,
        doc: "How requests are admitted.",
        keys: &[
            key(
                "time_zone",
                Kind::TimeZone,
                "\"UTC\"",
                "Where days and months of budgets begin: a name such as \"Europe/Berlin\".",
            ),
            key(
                "reserve_input_tokens",
                Kind::Integer { min: 0, max: 100_000_000 },
                "2048",
                "Input tokens that are set aside for a request of unknown length until it is settled.",
            ),
            key(
                "reserve_output_tokens",
                Kind::Integer { min: 0, max: 100_000_000 },
                "4096",
                "Output tokens that are set aside for a request that does not limit them.",
            ),
            key(
                "wrong_keys_per_minute",
                Kind::Integer { min: 1, max: 1_000_000 },
                "10",
                "Wrong keys of one address (IPv6: of one /64) in a minute before it has to wait.",
            ),
            key(
                "streams",
                Kind::Integer { min: 1, max: 10_000_000 },
                "20000",
                "Open streams of the whole process; beyond it new requests are refused.",
            ),
            key(
                "lag_max",
                Kind::Duration { min: 0, max: MINUTE },
                "\"500ms\"",
                "A worker whose timers come this late for half a second refuses new requests; those of low priority at half of it, those of high priority at twice it. `0s`: never.",
            ),
        ],
    },
    Section {
        path: "plan",
        repeated: true,
        doc: "Limits under a name. Every key, account, upstream and caller that has the plan has a count of its own.",
        keys: &[
            required("name", Kind::Name, "\"team\"", "Unique."),
            optional("concurrency", Kind::Integer { min: 1, max: 1_000_000 }, "50", "Streams at once."),
            optional(
                "rates",
                Kind::List(&Kind::Rate),
                "[\"600 requests/1m\", \"2M tokens/1m\"]",
                "So much in any stretch of time, at most 8: requests, tokens, input tokens or output tokens.",
            ),
            optional(
                "budgets",
                Kind::List(&Kind::Budget),
                "[\"50M tokens/day\", \"500 usd/month\"]",
                "So much until the day or the month ends, at most 8: requests, tokens, input tokens, output tokens or usd.",
            ),
            key(
                "soft_percent",
                Kind::Integer { min: 1, max: 100 },
                "80",
                "From this share of a budget on, it signals; it refuses nothing yet. 100: no signal.",
            ),
            key(
                "on_budget",
                Kind::OneOf(&["finish", "cut"]),
                "\"finish\"",
                "What becomes of a stream that uses up a budget. `finish`: what it used too much is owed.",
            ),
            key(
                "priority",
                Kind::OneOf(&["low", "normal", "high"]),
                "\"normal\"",
                "Who is refused first when the machine is at its end: low.",
            ),
        ],
    },
    Section {
        path: "account",
        repeated: true,
        doc: "Limits of all keys of one account together.",
        keys: &[
            required("name", Kind::Account, "\"acme\"", "Unique; what keys call it."),
            required("plan", Kind::Name, "\"team\"", "The name of a [[plan]]."),
        ],
    },
    Section {
        path: "price",
        repeated: true,
        doc: "What tokens cost, for budgets in usd and for usage events. The first that fits a model and an upstream holds.",
        keys: &[
            required(
                "models",
                Kind::List(&Kind::Model),
                "[\"gpt-5-mini*\"]",
                "Patterns of model names. Each is a value of the label `model`, as those of [metrics] are: 63 together.",
            ),
            optional(
                "upstreams",
                Kind::List(&Kind::Name),
                "[\"openai\"]",
                "Names of the upstreams where it holds. Without: all of them.",
            ),
            required("input", Kind::Price, "\"0.25\"", "USD for a million input tokens."),
            optional(
                "cache_read",
                Kind::Price,
                "\"0.025\"",
                "For those that were read from a cache. Default: `input`.",
            ),
            optional(
                "cache_write",
                Kind::Price,
                "\"0.25\"",
                "For those that were written to a cache. Default: `input`.",
            ),
            required("output", Kind::Price, "\"2\"", "USD for a million output tokens."),
            optional("reasoning", Kind::Price, "\"2\"", "For those that the model thought with. Default: `output`."),
        ],
    },
    Section {
        path: "journal",
        repeated: false,
        doc: "Usage events for billing: who used how many tokens of which model; never content (docs/usage.md).",
        keys: &[
            key("enabled", Kind::Bool, "true", "Off: none are written."),
            optional(
                "folder",
                Kind::Path,
                "\"usage\"",
                "A folder of its own, made if it is not there. Default where there is a [keys] section: `usage` in \
                 $STATE_DIRECTORY (systemd) or beside this file. Without [keys]: none, and nothing is written.",
            ),
            key("bytes", Kind::Size { min: 4 * KIB, max: 1024 * GIB }, "\"64MiB\"", "A file of this size is closed."),
            key("age", Kind::Duration { min: MINUTE, max: 31 * DAY }, "\"1d\"", "So is a file of this age."),
        ],
    },
    Section {
        path: "metrics",
        repeated: false,
        doc: "Counts and durations for Prometheus at /metrics; never content.",
        keys: &[
            key("enabled", Kind::Bool, "true", "Off: no such listener."),
            key("address", Kind::Address, "\"127.0.0.1:9464\"", "An address that is not loopback should have a token."),
            optional(
                "token",
                Kind::Secret,
                "{ env = \"NULLHOP_METRICS_TOKEN\" }",
                "Bearer token that a scrape must carry.",
            ),
            key(
                "models",
                Kind::List(&Kind::Model),
                "[]",
                "Patterns of model names, such as \"house-*\", at most 63: each is a value of the label `model`, before the \
                 built-in families.",
            ),
            key("per_key", Kind::Bool, "false", "Whether keys of [keys] have series of their own."),
            key(
                "max_keys",
                Kind::Integer { min: 1, max: 5_000 },
                "500",
                "How many keys have, at most; all others share `other`.",
            ),
        ],
    },
    Section {
        path: "admin",
        repeated: false,
        doc: "Health, readiness and drain, for this machine only.",
        keys: &[
            key("enabled", Kind::Bool, "true", "Off: no such listener."),
            key("address", Kind::Address, "\"127.0.0.1:9465\"", "A loopback address."),
        ],
    },
    Section {
        path: "log",
        repeated: false,
        doc: "Events on standard error: labels and numbers, never content. No level shows more than that.",
        keys: &[
            key("format", Kind::OneOf(&["text", "json"]), "\"text\"", "How a line looks."),
            key(
                "level",
                Kind::OneOf(&["error", "warn", "info"]),
                "\"info\"",
                "The least important level that is written.",
            ),
        ],
    },
    Section {
        path: "upstream",
        repeated: true,
        doc: "A provider's API. At least one; at one address (`url`) or several ([[upstream.endpoint]]).",
        keys: &[
            required("name", Kind::Name, "\"openai\"", "Unique; a label in the metrics. `none` is taken."),
            required(
                "provider",
                Kind::OneOf(&["openai", "anthropic", "gemini", "vertex", "bedrock", "azure", "compatible"]),
                "\"openai\"",
                "Whose API it is. `compatible`: any other service that speaks OpenAI's.",
            ),
            optional(
                "url",
                Kind::Endpoint,
                "\"https://api.openai.com\"",
                "The address, with a path if the API has one. Known for openai, anthropic and gemini; the others need it.",
            ),
            optional(
                "prefix",
                Kind::Prefix,
                "\"/openai\"",
                "Paths below it lead here, without it. Default: `/` and the name. Empty: only `hosts` and bare paths lead here.",
            ),
            key("hosts", Kind::List(&Kind::Host), "[]", "Host names that lead here with the path as it is."),
            key(
                "bare",
                Kind::Bool,
                "false",
                "Serves the well-known paths of its API without a prefix. One upstream per API.",
            ),
            key(
                "protocol",
                Kind::OneOf(&["auto", "h1", "h2"]),
                "\"auto\"",
                "HTTP version. `auto`: what ALPN settles on, h2 first.",
            ),
            optional(
                "websocket",
                Kind::Bool,
                "true",
                "Whether WebSockets are relayed. Default: on for openai, gemini, vertex and azure.",
            ),
            optional(
                "ca_file",
                Kind::Path,
                "\"internal-ca.pem\"",
                "PEM file: only these authorities are trusted. Default: the Mozilla list that is compiled in.",
            ),
            key("connections", Kind::Integer { min: 1, max: 65_535 }, "1024", "Connections per worker and endpoint."),
            key("connect_timeout", Kind::Duration { min: 100, max: MINUTE }, "\"5s\"", "DNS, TCP and TLS together."),
            key(
                "head_timeout",
                Kind::Duration { min: 1_000, max: 24 * HOUR },
                "\"15m\"",
                "From the request's end (or the last byte sent) to the response head.",
            ),
            key(
                "silence_timeout",
                Kind::Duration { min: 1_000, max: 24 * HOUR },
                "\"15m\"",
                "Longest silence within a stream.",
            ),
            key(
                "idle_timeout",
                Kind::Duration { min: 1_000, max: HOUR },
                "\"30s\"",
                "A pooled connection without a request in flight.",
            ),
            key(
                "abort_drain",
                Kind::Duration { min: 0, max: 10 * MINUTE },
                "\"0s\"",
                "After a client left, an answer is read on for this long to learn what it costs. Only for providers that bill \
                 to the end; `0s` cancels at once.",
            ),
            key(
                "privacy",
                Kind::OneOf(&["address", "device", "session"]),
                "\"device\"",
                "What is kept from the provider: client addresses; also device metadata; also session ids.",
            ),
            key(
                "attempts",
                Kind::Integer { min: 1, max: 8 },
                "3",
                "Endpoints that are tried at most before the first byte.",
            ),
            optional(
                "body_bytes",
                Kind::Size { min: KIB, max: 1024 * GIB },
                "\"64MiB\"",
                "Replaces the body sizes of [limits] for this upstream.",
            ),
            optional(
                "vendor",
                Kind::OneOf(VENDOR_WORDS),
                "\"openrouter\"",
                "Which service it is, for rules that differ among services with one API. Default: by the URL's host.",
            ),
            key(
                "models",
                Kind::List(&Kind::Pattern),
                "[]",
                "Models that may be asked; `*` stands for any letters. Empty: all of them.",
            ),
            key(
                "usage",
                Kind::OneOf(&["auto", "ask", "leave"]),
                "\"auto\"",
                "Whether chat streams are asked for usage when the client does not. `auto`: for keys that nullhop manages.",
            ),
            optional(
                "access",
                Kind::OneOf(&["byok", "managed", "both"]),
                "\"managed\"",
                "`byok`: callers bring the provider's key. `managed`: they show a key of [keys], and one of \
                 [[upstream.key]] goes up. Default: managed where there is a [[upstream.key]].",
            ),
            key(
                "key_header",
                Kind::OneOf(&["auto", "authorization", "x-api-key", "x-goog-api-key", "api-key"]),
                "\"auto\"",
                "Where the provider reads a key of [[upstream.key]]. `auto`: where its own SDKs put it.",
            ),
            optional("plan", Kind::Name, "\"whole\"", "Limits of the upstream as a whole: the name of a [[plan]]."),
            optional(
                "caller_plan",
                Kind::Name,
                "\"guest\"",
                "Limits of each caller who brings the provider's key and shows none of ours.",
            ),
        ],
    },
    Section {
        path: "upstream.retention",
        repeated: false,
        doc: "What requests may ask the provider to keep (docs/retention.md). Also `retention = { allow = [...] }` in [[upstream]].",
        keys: &[key(
            "allow",
            Kind::List(&Kind::OneOf(RULE_WORDS)),
            "[]",
            "Rules that are relaxed, by name; `all` of them.",
        )],
    },
    Section {
        path: "upstream.endpoint",
        repeated: true,
        doc: "One address or region of the [[upstream]] above it, instead of `url`.",
        keys: &[
            required(
                "url",
                Kind::Endpoint,
                "\"https://eu.api.openai.com\"",
                "https://host[:port][/path]. http:// only for `localhost`, loopback and private addresses.",
            ),
            key("weight", Kind::Integer { min: 1, max: 1_000 }, "1", "Share of new requests among healthy endpoints."),
        ],
    },
    Section {
        path: "upstream.key",
        repeated: true,
        doc: "A key of yours at the provider of the [[upstream]] above it, for callers with a key of [keys].",
        keys: &[
            optional(
                "name",
                Kind::Name,
                "\"first\"",
                "Unique in its upstream; for log lines. Default: `key-1`, `key-2` and so on.",
            ),
            required("secret", Kind::Secret, "{ file = \"openai.key\" }", "The key alone, without `Bearer`."),
            key("weight", Kind::Integer { min: 1, max: 1_000 }, "1", "Share of new requests among usable keys."),
        ],
    },
];

impl Kind {
    /// Whether the value is a text that `parse` checks and keeps as text.
    pub(super) fn is_text(&self) -> bool {
        matches!(
            self,
            Self::Account
                | Self::Budget
                | Self::Cidr
                | Self::Header
                | Self::Host
                | Self::Model
                | Self::Name
                | Self::Path
                | Self::Pattern
                | Self::Prefix
                | Self::Price
                | Self::PublicUrl
                | Self::Rate
                | Self::TimeZone
        )
    }

    /// "must be ...".
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Account => "the name of an account in quotes".to_owned(),
            Self::Address => "an IP address and a port, such as \"127.0.0.1:8443\"".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Budget => "a budget such as \"50M tokens/day\"".to_owned(),
            Self::Cidr => "a network, such as \"10.0.0.0/8\"".to_owned(),
            Self::Duration { min, max } => format!(
                "a duration from {} to {}, such as \"250ms\", \"5s\", \"15m\" or \"1h\"",
                duration_text(Duration::from_millis(*min)),
                duration_text(Duration::from_millis(*max)),
            ),
            Self::Endpoint | Self::PublicUrl => "a URL in quotes".to_owned(),
            Self::Header => "the name of a header in quotes".to_owned(),
            Self::Host => "a host name in quotes".to_owned(),
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::List(Kind::Budget) => "a list of budgets, such as [\"50M tokens/day\", \"500 usd/month\"]".to_owned(),
            Self::List(Kind::Cidr) => "a list of networks, such as [\"10.0.0.0/8\"]".to_owned(),
            Self::List(Kind::Model) => "a list of patterns, such as [\"house-*\"]".to_owned(),
            Self::List(Kind::Name) => "a list of names, such as [\"openai\"]".to_owned(),
            Self::List(Kind::OneOf(_)) => "a list of rules, such as [\"files\"]".to_owned(),
            Self::List(Kind::Pattern) => "a list of models, such as [\"gpt-*\"]".to_owned(),
            Self::List(Kind::Rate) => "a list of rates, such as [\"600 requests/1m\", \"2M tokens/1m\"]".to_owned(),
            Self::List(_) => "a list of host names, such as [\"edge.example.com\"]".to_owned(),
            Self::Model => "a pattern in quotes".to_owned(),
            Self::Name => "a name in quotes".to_owned(),
            Self::OneOf(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(" or ")
            }
            Self::Path => "a path in quotes".to_owned(),
            Self::Pattern => "a model in quotes, with `*` for any letters".to_owned(),
            Self::Prefix => "a path such as \"/openai\"".to_owned(),
            Self::Price => {
                "USD for a million tokens in quotes, such as \"0.25\", so that nothing is rounded".to_owned()
            }
            Self::Rate => "a rate such as \"600 requests/1m\"".to_owned(),
            Self::Secret => "{ file = \"path\" }, { env = \"NAME\" } or { credential = \"name\" }".to_owned(),
            Self::Size { min, max } => format!(
                "a size from {} to {}: a number of bytes, or such as \"64KiB\" or \"32MiB\"",
                size_text(*min),
                size_text(*max),
            ),
            Self::TimeZone => "the name of a time zone in quotes, such as \"Europe/Berlin\"".to_owned(),
        }
    }
}
