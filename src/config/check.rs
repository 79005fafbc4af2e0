//! [`RawConfig`] to [`Config`]: the checks that look at more than one key, and the files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use super::parse::{Block, RawConfig, SecretSource, Value};
use super::report::{Cause, Fault, Span};
use super::table::{SECTIONS, Section};
use super::value;
use super::*;
use crate::retention::Models;
use crate::retention::RuleSet;
use crate::retention::Usage;
use crate::retention::Vendor;
use crate::telemetry::models::PATTERNS_MAX;

/// What a check may look at outside the file.
pub(super) struct Surroundings<'s> {
    /// Relative paths begin here.
    pub base_dir: &'s Path,
    /// The process environment, or a test's.
    pub variable: &'s dyn Fn(&str) -> Option<OsString>,
}

/// Faults go to `faults`, what works but should be otherwise to `doubts`. The configuration comes
/// back only if there are no faults, earlier ones included.
pub(super) fn check(
    raw: &mut RawConfig,
    surroundings: &Surroundings<'_>,
    faults: &mut Vec<Fault>,
    doubts: &mut Vec<Fault>,
) -> Option<Config> {
    raw.fill_in();
    let mut checker = Checker {
        surroundings,
        faults,
        doubts,
        addresses: HashMap::new(),
        hosts: HashMap::new(),
        readable: Vec::new(),
    };
    // All of them run before the first `?`, so that every problem is found at once.
    let listeners = checker.listeners(raw);
    let metrics = checker.metrics(raw.one("metrics"));
    let models = checker.models(raw.one("metrics"));
    let admin = checker.admin(raw.one("admin"));
    let certificates = checker.certificates(raw);
    let tls = checker.tls(raw.one("tls"));
    let server = raw.one("server");
    let hosts = checker.hosts(server);
    let drain = checker.drain(raw.one("drain"));
    let upstreams = checker.upstreams(raw);
    if !checker.faults.is_empty() {
        return None;
    }

    let readable = checker.readable;
    let workers = match raw.one("runtime").number("workers") {
        // As many as the machine (or its cgroup) has; 1 if it does not say.
        0 => thread::available_parallelism().map_or(1, |n| n.get().min(256)),
        n => n as usize,
    };
    Some(Config {
        node: Node { pop: raw.one("node").text("pop").map(str::to_owned) },
        runtime: Runtime { workers },
        listeners,
        certificates,
        tls: tls?,
        hosts,
        public_url: server.text("public_url").map(str::to_owned),
        limits: limits(raw.one("limits")),
        drain,
        metrics,
        models,
        admin,
        log: log(raw.one("log")),
        memory: memory(raw.one("memory")),
        upstreams,
        keys: None,
        admission: Admission {
            time_zone: jiff::tz::TimeZone::UTC,
            reserve_input_tokens: 2048,
            reserve_output_tokens: 4096,
            wrong_keys_per_minute: 10,
            streams: 20_000,
            lag_max: Duration::from_millis(250),
        },
        plans: Vec::new(),
        accounts: Vec::new(),
        prices: Vec::new(),
        journal: None,
        readable,
        fingerprint: fingerprint(raw),
    })
}

/// The checked configuration as TOML: defaults filled in, secrets masked.
pub(super) fn show(raw: &RawConfig) -> String {
    let mut out = String::new();
    for block in &raw.blocks {
        show_block(block, &mut out);
    }
    out
}

fn show_block(block: &Block, out: &mut String) {
    let lines: Vec<_> = block
        .section
        .keys
        .iter()
        .filter_map(|key| Some(format!("{} = {}\n", key.name, block.get(key.name)?.to_toml())))
        .collect();
    if lines.is_empty() && block.children.is_empty() {
        return;
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&block.section.header());
    out.push('\n');
    out.extend(lines);
    for child in &block.children {
        show_block(child, out);
    }
}

/// 48 bits, so that a float holds them. FNV-1a: not secret, the same on every machine. What differs
/// between nodes by design is left out: `node`, and `workers = 0` counts as 0, not as the cores.
fn fingerprint(raw: &RawConfig) -> u64 {
    let mut out = String::new();
    for block in raw.blocks.iter().filter(|block| block.section.path != "node") {
        show_block(block, &mut out);
    }
    let hash = out
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 48)) & 0xffff_ffff_ffff
}

impl RawConfig {
    /// The defaults that depend on other keys, and the listener when there is none.
    fn fill_in(&mut self) {
        if self.all("listener").next().is_none() {
            let section = SECTIONS.iter().find(|s| s.path == "listener");
            let mut block = Block::defaults(section.expect("it is in the table"), None);
            block.set("address", Value::Address(([127, 0, 0, 1], 8443).into()));
            let before = self.blocks.iter().position(|b| b.section.path == "tls");
            self.blocks.insert(before.unwrap_or(0), block);
        }
        for block in self.blocks.iter_mut().filter(|b| b.section.path == "upstream") {
            if !block.is_written("prefix")
                && let Some(name) = block.text("name")
            {
                let prefix = format!("/{name}");
                block.set("prefix", Value::Text(prefix));
            }
            let Some(provider) = provider(block) else {
                continue;
            };
            if !block.is_written("websocket") {
                let on = matches!(provider, Provider::Openai | Provider::Gemini | Provider::Vertex | Provider::Azure);
                block.set("websocket", Value::Bool(on));
            }
            if !block.is_written("url")
                && block.endpoints().next().is_none()
                && let Some(url) = known_url(provider)
            {
                let endpoint = value::endpoint(url).expect("the URLs below are valid");
                block.set("url", Value::Endpoint(endpoint));
            }
        }
    }
}

fn provider(block: &Block) -> Option<Provider> {
    let word = block.text("provider")?;
    Provider::ALL.iter().copied().find(|provider| provider.as_str() == word)
}

fn known_url(provider: Provider) -> Option<&'static str> {
    match provider {
        Provider::Openai => Some("https://api.openai.com"),
        Provider::Anthropic => Some("https://api.anthropic.com"),
        Provider::Gemini => Some("https://generativelanguage.googleapis.com"),
        // These differ by region or by account.
        Provider::Vertex | Provider::Bedrock | Provider::Azure | Provider::Compatible => None,
    }
}

/// The API whose well-known paths an upstream of this provider serves.
fn api(provider: Provider) -> &'static str {
    match provider {
        Provider::Openai | Provider::Azure | Provider::Compatible => "openai",
        Provider::Anthropic => "anthropic",
        Provider::Gemini | Provider::Vertex => "gemini",
        Provider::Bedrock => "bedrock",
    }
}

struct Checker<'c> {
    surroundings: &'c Surroundings<'c>,
    faults: &'c mut Vec<Fault>,
    doubts: &'c mut Vec<Fault>,
    /// Where each address and each host was first seen.
    addresses: HashMap<SocketAddr, Option<Span>>,
    hosts: HashMap<String, Option<Span>>,
    /// Folders of the files that are named.
    readable: Vec<PathBuf>,
}

impl Checker<'_> {
    fn fault(&mut self, span: Option<Span>, cause: Cause) {
        self.faults.push(Fault { span, cause });
    }

    fn refuse(&mut self, span: Option<Span>, says: &'static str, help: Option<&'static str>) {
        self.fault(span, Cause::Rule { says, help });
    }

    fn doubt(&mut self, span: Option<Span>, says: &'static str, help: Option<&'static str>) {
        let cause = Cause::Rule { says, help };
        self.doubts.push(Fault { span, cause });
    }

    fn listeners(&mut self, raw: &RawConfig) -> Vec<Listener> {
        self.unique(raw.all("listener"), "name");
        let mut listeners = Vec::new();
        for block in raw.all("listener") {
            let tls = block.bool("tls");
            let (Some(address), Some(name)) = (block.address("address"), block.text("name")) else {
                continue;
            };
            self.claim(block, address);
            let accepted = block.text("plaintext").is_some();
            if !tls && !value::is_loopback(address.ip()) && !accepted {
                self.refuse(
                    block.span_of("tls"),
                    "`tls = false` in [[listener]] is for loopback addresses: keys and content would cross the network readable",
                    Some("if something in front of this node ends TLS and the path is private, add plaintext = \"i-know\""),
                );
            }
            if tls && accepted {
                self.doubt(
                    block.span_of("plaintext"),
                    "`plaintext` in [[listener]] does nothing while `tls` is on",
                    None,
                );
            }
            listeners.push(Listener {
                name: name.to_owned(),
                address,
                tls,
                proxy_protocol_from: texts(block.list("proxy_protocol_from")),
            });
        }
        listeners
    }

    fn metrics(&mut self, block: &Block) -> Option<MetricsListener> {
        if !block.bool("enabled") {
            return None;
        }
        let address = block.address("address")?;
        self.claim(block, address);
        let token = block.secret("token").and_then(|source| {
            let token = self.secret(block, "token", source)?;
            if token.expose().iter().all(u8::is_ascii_graphic) {
                return Some(token);
            }
            self.invalid(block, "token", "must be printable ASCII without spaces: it travels in a header");
            None
        });
        if !value::is_loopback(address.ip()) && !block.is_written("token") {
            self.doubt(
                block.span_of("address"),
                "[metrics] is open to the network without a `token`",
                Some("on a quiet node, two scrapes tell the token count of one request"),
            );
        }
        Some(MetricsListener { address, token, keys_max: 0 })
    }

    fn models(&mut self, block: &Block) -> Vec<String> {
        let models = texts(block.list("models"));
        if models.len() > PATTERNS_MAX {
            self.invalid(block, "models", "has more than 63 patterns: each is a label");
        }
        models
    }

    fn admin(&mut self, block: &Block) -> Option<AdminListener> {
        if !block.bool("enabled") {
            return None;
        }
        let address = block.address("address")?;
        self.claim(block, address);
        if !value::is_loopback(address.ip()) {
            self.invalid(block, "address", "must be a loopback address: it has no authentication");
        }
        Some(AdminListener { address })
    }

    /// An address is listened on once.
    fn claim(&mut self, block: &Block, address: SocketAddr) {
        let span = block.span_of("address");
        if address.port() == 0 {
            return;
        }
        match self.addresses.get(&address).cloned() {
            Some(first) => self.fault(span, Cause::Twice { key: "address", section: block.section, first }),
            None => {
                self.addresses.insert(address, span);
            }
        }
    }

    fn certificates(&mut self, raw: &RawConfig) -> Vec<Certificate> {
        self.unique(raw.all("certificate"), "name");
        let chosen: Vec<_> = raw.all("certificate").filter(|b| b.bool("default")).collect();
        for block in chosen.iter().skip(1) {
            self.refuse(block.span_of("default"), "only one [[certificate]] can be the default", None);
        }
        let mut certificates = Vec::new();
        for (index, block) in raw.all("certificate").enumerate() {
            let cert_file = self.readable(block, "cert_file");
            let key = block.secret("key").and_then(|source| match source {
                SecretSource::File(path) => {
                    let path = self.path(path);
                    self.secret(block, "key", source)?;
                    Some(KeySource::File(path))
                }
                _ => self.secret(block, "key", source).map(KeySource::Inline),
            });
            let (Some(name), Some(cert_file), Some(key)) = (block.text("name"), cert_file, key) else {
                continue;
            };
            certificates.push(Certificate {
                name: name.to_owned(),
                cert_file,
                key,
                default: block.bool("default") || (chosen.is_empty() && index == 0),
            });
        }
        certificates
    }

    fn tls(&mut self, block: &Block) -> Option<Tls> {
        let ca_file = self.readable(block, "ca_file");
        let client_auth = block.text("client_auth")?;
        if client_auth == "none" && block.is_written("ca_file") {
            self.doubt(block.span_of("ca_file"), "`ca_file` in [tls] does nothing while `client_auth` is `none`", None);
        }
        if client_auth != "none" && !block.is_written("ca_file") {
            self.invalid(block, "client_auth", "needs `ca_file`, the authorities of client certificates");
        }
        Some(Tls {
            min_version: match block.text("min_version")? {
                "1.3" => TlsVersion::V1_3,
                _ => TlsVersion::V1_2,
            },
            client_auth: match client_auth {
                "optional" => ClientAuth::Optional { ca_file: ca_file? },
                "required" => ClientAuth::Required { ca_file: ca_file? },
                _ => ClientAuth::None,
            },
            reload_interval: block.duration("reload_interval"),
        })
    }

    /// The hosts of a block; each may be named once in the whole file.
    fn hosts(&mut self, block: &Block) -> Vec<String> {
        for (span, host) in block.list("hosts") {
            match self.hosts.get(host).cloned() {
                Some(first) => {
                    self.fault(Some(span.clone()), Cause::Twice { key: "hosts", section: block.section, first })
                }
                None => {
                    self.hosts.insert(host.clone(), Some(span.clone()));
                }
            }
        }
        texts(block.list("hosts"))
    }

    fn drain(&mut self, block: &Block) -> Drain {
        let (grace, deadline) = (block.duration("grace"), block.duration("deadline"));
        if deadline < grace {
            let key = if block.is_written("deadline") { "deadline" } else { "grace" };
            self.refuse(
                block.span_of(key),
                "`deadline` in [drain] must not be below `grace`: both count from the signal",
                None,
            );
        }
        Drain { grace, deadline }
    }

    fn upstreams(&mut self, raw: &RawConfig) -> Vec<Upstream> {
        let mistyped = |fault: &Fault| match fault.cause {
            Cause::UnknownSection { near, .. } => near.is_some_and(|s| s.path == "upstream"),
            Cause::NotTable(section) | Cause::TooMany(section) => section.path == "upstream",
            _ => false,
        };
        if raw.all("upstream").next().is_none() && !self.faults.iter().any(mistyped) {
            self.refuse(
                None,
                "there is no [[upstream]], so nothing to relay to",
                Some("`nullhop init` writes a file with five of them"),
            );
        }
        self.unique(raw.all("upstream"), "name");
        self.unique(raw.all("upstream"), "prefix");
        let mut bare: HashMap<&'static str, Option<Span>> = HashMap::new();
        let mut upstreams = Vec::new();
        for block in raw.all("upstream") {
            upstreams.extend(self.upstream(block));
            if let (true, Some(provider)) = (block.bool("bare"), provider(block)) {
                let span = block.span_of("bare");
                if bare.insert(api(provider), span.clone()).is_some() {
                    self.refuse(
                        span,
                        "only one [[upstream]] per API can be `bare`: it answers when a path has no prefix",
                        Some("openai, azure and compatible share an API; so do gemini and vertex"),
                    );
                }
            }
        }
        upstreams
    }

    fn upstream(&mut self, block: &Block) -> Option<Upstream> {
        let provider = provider(block);
        let hosts = self.hosts(block);
        let roots = match self.readable(block, "ca_file") {
            Some(path) => Roots::File(path),
            None => Roots::WebPki,
        };
        let endpoints = self.endpoints(block, provider);
        if block.text("name") == Some("none") {
            self.invalid(block, "name", "must not be `none`: the metrics say that when no upstream is chosen");
        }
        let prefix = block.text("prefix");
        if prefix == Some("") && hosts.is_empty() && !block.bool("bare") {
            self.invalid(block, "prefix", "is empty, so the upstream needs `hosts` or `bare`: nothing leads to it");
        }
        let protocol = match block.text("protocol")? {
            "h1" => UpstreamProtocol::H1,
            "h2" => UpstreamProtocol::H2,
            _ => UpstreamProtocol::Auto,
        };
        if protocol == UpstreamProtocol::H2 && endpoints.iter().any(|endpoint| !endpoint.tls) {
            self.invalid(
                block,
                "protocol",
                "cannot be `h2` with an http:// URL: HTTP/2 is agreed on inside TLS, and prior knowledge (h2c) is not spoken",
            );
        }
        let policy = self.policy(block)?;
        Some(Upstream {
            policy,
            name: block.text("name")?.to_owned(),
            provider: provider?,
            prefix: prefix.filter(|prefix| !prefix.is_empty()).map(str::to_owned),
            hosts,
            bare: block.bool("bare"),
            endpoints,
            protocol,
            websocket: block.bool("websocket"),
            roots,
            connections: block.number("connections") as usize,
            connect_timeout: block.duration("connect_timeout"),
            head_timeout: block.duration("head_timeout"),
            silence_timeout: block.duration("silence_timeout"),
            idle_timeout: block.duration("idle_timeout"),
            abort_drain: block.duration("abort_drain"),
            access: Access { managed: false, byok: true },
            keys: Vec::new(),
            key_header: KeyHeader::Auto,
            plan: None,
            caller_plan: None,
            privacy: match block.text("privacy")? {
                "address" => Privacy::Address,
                "session" => Privacy::Session,
                _ => Privacy::Device,
            },
            attempts: block.number("attempts") as u32,
            body_bytes: match block.get("body_bytes") {
                Some(Value::Size(bytes)) => Some(*bytes),
                _ => None,
            },
        })
    }

    fn policy(&mut self, block: &Block) -> Option<Policy> {
        let mut rules = RuleSet::EVERY;
        for child in block.children.iter().filter(|child| child.section.path == "upstream.retention") {
            for (span, word) in child.list("allow") {
                let rule = Rule::ALL.iter().copied().find(|rule| rule.as_str() == word);
                let relaxed: Vec<Rule> = rule.map_or_else(|| Rule::ALL.to_vec(), |rule| vec![rule]);
                rules = relaxed.into_iter().fold(rules, RuleSet::without);
                self.doubts.push(Fault { span: Some(span.clone()), cause: Cause::Relaxed(rule) });
            }
        }
        Some(Policy {
            rules,
            usage: match block.text("usage")? {
                "ask" => Usage::Ask,
                "leave" => Usage::Leave,
                _ => Usage::Auto,
            },
            models: Models::matching(&texts(block.list("models"))),
            vendor: block.text("vendor").and_then(|word| Vendor::ALL.iter().copied().find(|v| v.as_str() == word)),
        })
    }

    fn endpoints(&mut self, block: &Block, provider: Option<Provider>) -> Vec<Endpoint> {
        if block.is_written("url") && block.endpoints().next().is_some() {
            self.invalid(block, "url", "stands beside [[upstream.endpoint]]: write one or the other");
        }
        if !block.is_written("url")
            && block.endpoints().next().is_none()
            && let Some(provider) = provider
            && known_url(provider).is_none()
        {
            let (key, section) = ("url", block.section);
            self.fault(block.span_of("provider"), Cause::Missing { key, section });
        }
        let mut seen: Vec<(&Endpoint, Option<Span>)> = Vec::new();
        let mut endpoints: Vec<Endpoint> = block.endpoint("url").cloned().into_iter().collect();
        for child in block.endpoints() {
            let Some(endpoint) = child.endpoint("url") else {
                continue;
            };
            let span = child.span_of("url");
            match seen.iter().find(|(earlier, _)| *earlier == endpoint) {
                Some((_, first)) => {
                    let first = first.clone();
                    let section = child.section;
                    self.fault(span, Cause::Twice { key: "url", section, first });
                }
                None => seen.push((endpoint, span)),
            }
            endpoints.push(Endpoint { weight: child.number("weight") as u32, ..endpoint.clone() });
        }
        endpoints
    }

    fn unique<'b>(&mut self, blocks: impl Iterator<Item = &'b Block>, key: &'static str) {
        let mut seen: HashMap<&str, &Block> = HashMap::new();
        for block in blocks {
            let Some(text) = block.text(key).filter(|text| !text.is_empty()) else {
                continue;
            };
            let Some(first) = seen.get(text) else {
                seen.insert(text, block);
                continue;
            };
            // Two prefixes that come from one name are no second fault.
            if key != "prefix" || block.is_written(key) || first.is_written(key) {
                let cause = Cause::Twice { key, section: block.section, first: first.span_of(key) };
                self.fault(block.span_of(key), cause);
            }
        }
    }

    fn invalid(&mut self, block: &Block, key: &'static str, why: &'static str) {
        let section = block.section;
        self.fault(block.span_of(key), Cause::Invalid { key, section, why });
    }

    fn path(&mut self, text: &str) -> PathBuf {
        let path = self.surroundings.base_dir.join(text);
        self.readable.extend(folders_of(&path));
        path
    }

    /// The path of `key`, if it is written and its file can be read.
    fn readable(&mut self, block: &Block, key: &'static str) -> Option<PathBuf> {
        let path = self.path(block.text(key)?);
        match regular_file(&path).and_then(|_| fs::File::open(&path).map_err(words)) {
            Ok(_) => Some(path),
            Err(why) => {
                let section = block.section;
                self.fault(block.span_of(key), Cause::File { key, section, why });
                None
            }
        }
    }

    fn secret(&mut self, block: &Block, key: &'static str, source: &SecretSource) -> Option<Secret> {
        let section: &'static Section = block.section;
        let span = block.span_of(key);
        let path = match source {
            SecretSource::Env(name) => {
                let secret = match (self.surroundings.variable)(name) {
                    Some(text) => trimmed(text.into_vec()),
                    None => Err("names an environment variable that is not set"),
                };
                return secret.map_err(|why| self.fault(span, Cause::Invalid { key, section, why })).ok();
            }
            SecretSource::File(path) => self.path(path),
            SecretSource::Credential(name) => match (self.surroundings.variable)("CREDENTIALS_DIRECTORY") {
                Some(folder) => {
                    let path = PathBuf::from(folder).join(name);
                    self.readable.extend(folders_of(&path));
                    path
                }
                None => {
                    let why = "names a credential, and $CREDENTIALS_DIRECTORY is not set: is this started by systemd with LoadCredential=?";
                    self.fault(span, Cause::Invalid { key, section, why });
                    return None;
                }
            },
        };
        match secret_file(&path) {
            Ok((secret, mode)) => {
                if matches!(source, SecretSource::File(_)) && mode & 0o077 != 0 {
                    self.doubt(
                        span,
                        "other users of this machine may be able to open a file that holds a secret",
                        Some("chmod 600"),
                    );
                }
                Some(secret)
            }
            Err(why) => {
                self.fault(span, Cause::File { key, section, why });
                None
            }
        }
    }
}

/// Where a file is found again after it was replaced: its folder, and behind links that of what it leads to. A file that
/// stands in `/` comes back itself, or else everything could be read.
pub(super) fn folders_of(path: &Path) -> Vec<PathBuf> {
    let folder = |path: PathBuf| {
        let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        fs::canonicalize(parent).ok().filter(|folder| folder != Path::new("/")).unwrap_or(path)
    };
    [Some(path.to_owned()), fs::canonicalize(path).ok()].into_iter().flatten().map(folder).collect()
}

fn texts(items: &[(Span, String)]) -> Vec<String> {
    items.iter().map(|(_, text)| text.clone()).collect()
}

/// Longer than any key or token; certificates' keys are a few KiB.
const SECRET_BYTES_MAX: u64 = 64 << 10;

fn secret_file(path: &Path) -> Result<(Secret, u32), &'static str> {
    let metadata = regular_file(path)?;
    if metadata.len() > SECRET_BYTES_MAX {
        return Err("is larger than 64 KiB");
    }
    let file = fs::File::open(path).map_err(words)?;
    // Room for all of it and one byte more, so that the vector never moves and leaves a copy behind.
    let mut bytes = Vec::with_capacity(SECRET_BYTES_MAX as usize + 1);
    let read = file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes);
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        drop(Secret::new(bytes));
        return Err("is larger than 64 KiB");
    }
    let secret = trimmed(bytes);
    read.map_err(words)?;
    Ok((secret?, metadata.permissions().mode()))
}

/// Without the newline that editors and `echo` put at the end.
fn trimmed(mut bytes: Vec<u8>) -> Result<Secret, &'static str> {
    while let Some(b'\n' | b'\r') = bytes.last() {
        bytes.pop();
    }
    match bytes.is_empty() {
        true => Err("is empty"),
        false => Ok(Secret::new(bytes)),
    }
}

/// Opening a pipe would wait for its writer.
fn regular_file(path: &Path) -> Result<fs::Metadata, &'static str> {
    let metadata = fs::metadata(path).map_err(words)?;
    metadata.is_file().then_some(metadata).ok_or("is not a regular file")
}

/// The operating system's own text can hold a path.
pub(super) fn words(error: io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist",
        io::ErrorKind::PermissionDenied => "may not be read by this user",
        io::ErrorKind::IsADirectory => "is a folder",
        _ => "cannot be read",
    }
}

fn limits(block: &Block) -> Limits {
    let count = |key| block.number(key) as usize;
    Limits {
        connections: count("connections"),
        connections_per_address: count("connections_per_address"),
        handshakes_in_flight: count("handshakes_in_flight"),
        handshake_timeout: block.duration("handshake_timeout"),
        head_timeout: block.duration("head_timeout"),
        first_request_timeout: block.duration("first_request_timeout"),
        idle_timeout: block.duration("idle_timeout"),
        connection_age: block.duration("connection_age"),
        requests_per_connection: block.number("requests_per_connection") as u32,
        streams_per_connection: block.number("streams_per_connection") as u32,
        cancels_per_connection: block.number("cancels_per_connection") as u32,
        head_bytes: count("head_bytes"),
        head_fields: count("head_fields"),
        body_rate_min: block.number("body_rate_min"),
        body_grace: block.duration("body_grace"),
        write_stall: block.duration("write_stall"),
        body_bytes: block.number("body_bytes"),
        upload_bytes: block.number("upload_bytes"),
    }
}

fn memory(block: &Block) -> Memory {
    Memory {
        lock: match block.text("lock") {
            Some("required") => MemoryLock::Required,
            Some("off") => MemoryLock::Off,
            _ => MemoryLock::Auto,
        },
        heap: match block.text("heap") {
            Some("secret") => Heap::Secret,
            Some("locked") => Heap::Locked,
            Some("plain") => Heap::Plain,
            _ => Heap::Auto,
        },
    }
}

fn log(block: &Block) -> Log {
    Log {
        format: match block.text("format") {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
        level: match block.text("level") {
            Some("error") => LogLevel::Error,
            Some("warn") => LogLevel::Warn,
            _ => LogLevel::Info,
        },
    }
}
