//! [`RawConfig`] to [`Config`]: the checks that look at more than one key, and the files.

use std::collections::HashMap;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use super::parse::closest;
use super::parse::{Block, RawConfig, SecretSource, Value};
use super::report::{Cause, Fault, Near, Span};
use super::table::{self, LIMITS_MAX, Section};
use super::value;
use super::*;
use crate::keys;
use crate::keys::Record;
use crate::limits::Kind;
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

/// A configuration without faults.
pub(super) struct Checked {
    pub config: Config,
    /// Keys in the file that `[keys]` names.
    pub keys: Option<usize>,
}

/// Faults go to `faults`, what works but should be otherwise to `doubts`. The configuration comes
/// back only if there are no faults, earlier ones included.
pub(super) fn check(
    raw: &mut RawConfig,
    surroundings: &Surroundings<'_>,
    faults: &mut Vec<Fault>,
    doubts: &mut Vec<Fault>,
) -> Option<Checked> {
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
    let plan_names = checker.names(raw, "plan");
    let upstream_names = checker.names(raw, "upstream");
    let plans = checker.plans(raw);
    let accounts = checker.accounts(raw, &plan_names);
    let upstreams = checker.upstreams(raw, &plan_names);
    let prices = checker.prices(raw, &upstream_names);
    let (keys, keys_count) = checker.keys(raw, &plan_names, &upstream_names, &upstreams);
    let admission = checker.admission(raw.one("admission"));
    let journal = checker.journal(raw);
    if !checker.faults.is_empty() {
        return None;
    }

    let readable = checker.readable;
    let workers = match raw.one("runtime").number("workers") {
        // As many as the machine (or its cgroup) has; 1 if it does not say.
        0 => thread::available_parallelism().map_or(1, |n| n.get().min(256)),
        n => n as usize,
    };
    let config = Config {
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
        keys,
        admission: admission?,
        plans,
        accounts,
        prices,
        journal,
        readable,
        fingerprint: fingerprint(raw),
    };
    Some(Checked { config, keys: keys_count })
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
            let mut block = Block::defaults(table::section("listener"), None);
            block.set("address", Value::Address(([127, 0, 0, 1], 8443).into()));
            let before = self.blocks.iter().position(|b| b.section.path == "tls");
            self.blocks.insert(before.unwrap_or(0), block);
        }
        for block in self.blocks.iter_mut().filter(|b| b.section.path == "price") {
            for (key, like) in [("cache_read", "input"), ("cache_write", "input"), ("reasoning", "output")] {
                if let (false, Some(price)) = (block.is_written(key), block.text(like)) {
                    let price = price.to_owned();
                    block.set(key, Value::Text(price));
                }
            }
        }
        for block in self.blocks.iter_mut().filter(|b| b.section.path == "upstream") {
            if !block.is_written("access") {
                let access = if block.below("upstream.key").next().is_some() { "managed" } else { "byok" };
                block.set("access", Value::Text(access.to_owned()));
            }
            let keys = block.children.iter_mut().filter(|child| child.section.path == "upstream.key");
            for (place, key) in keys.enumerate().filter(|(_, key)| !key.is_written("name")) {
                key.set("name", Value::Text(format!("key-{}", place + 1)));
            }
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

/// The names of all blocks of a section.
struct Names {
    section: &'static Section,
    /// In file order.
    spans: Vec<(String, Option<Span>)>,
    places: HashMap<String, usize>,
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
        let per_key = block.bool("per_key");
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
        let keys_max = if per_key { block.number("max_keys") as usize } else { 0 };
        Some(MetricsListener { address, token, keys_max })
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

    /// The names of a section's blocks. Those of plans and accounts are unique at last in `plans` and `accounts`.
    fn names(&self, raw: &RawConfig, path: &str) -> Names {
        let mut names = Names { section: table::section(path), spans: Vec::new(), places: HashMap::new() };
        for (place, block) in raw.all(path).enumerate() {
            if let Some(name) = block.text("name") {
                names.spans.push((name.to_owned(), block.span_of("name")));
                names.places.entry(name.to_owned()).or_insert(place);
            }
        }
        names
    }

    /// The place of what a text names.
    fn named(&mut self, at: (&Block, &'static str), span: Option<Span>, text: &str, names: &Names) -> Option<usize> {
        let place = names.places.get(text).copied();
        if place.is_none() {
            let near = match closest(text, names.spans.iter().map(|(name, _)| name.as_str())) {
                _ if names.spans.is_empty() => Near::NothingThere,
                // The last of the same name, if there are several, which is a fault of its own.
                Some(near) => {
                    let (_, span) = names.spans.iter().find(|(name, _)| name == near).expect("it came from there");
                    span.clone().map_or(Near::Nothing, Near::At)
                }
                None => Near::Nothing,
            };
            // A section that is there under a mistyped name is one problem, not two.
            let mistyped = names.spans.is_empty() && self.mistyped(names.section.path);
            if !mistyped {
                let (block, key) = at;
                self.fault(span, Cause::Unknown { key, section: block.section, of: names.section, near });
            }
        }
        place
    }

    /// The place of the plan that `key` names, if it is written.
    fn plan(&mut self, block: &Block, key: &'static str, plans: &Names) -> Option<usize> {
        self.named((block, key), block.span_of(key), block.text(key)?, plans)
    }

    /// Whether a section is there, but under a mistyped name or in a wrong form.
    fn mistyped(&self, path: &str) -> bool {
        self.faults.iter().any(|fault| match fault.cause {
            Cause::UnknownSection { near, .. } => near.is_some_and(|s| s.path == path),
            Cause::UnknownKey { section: Some(section), near: Some(near), .. } => {
                path.split_once('.').is_some_and(|(parent, name)| section.path == parent && name == near)
            }
            Cause::NotTable(section) | Cause::TooMany(section) | Cause::NotSingle(section) => section.path == path,
            _ => false,
        })
    }

    fn plans(&mut self, raw: &RawConfig) -> Vec<Plan> {
        self.unique(raw.all("plan"), "name");
        raw.all("plan").filter_map(|block| self.limits(block)).collect()
    }

    fn limits(&mut self, block: &Block) -> Option<Plan> {
        let mut rates = Vec::new();
        for (span, text) in block.list("rates") {
            let Ok(rate) = value::rate(text) else { continue };
            if rates.iter().any(|known: &limits::Rate| known.kind == rate.kind && known.window == rate.window) {
                self.invalid_at(
                    span,
                    block,
                    "rates",
                    "holds two rates of one kind in one time: one of them never counts",
                );
            }
            rates.push(rate);
        }
        let mut budgets = Vec::new();
        for (span, text) in block.list("budgets") {
            let Ok(budget) = value::budget(text) else { continue };
            if budgets.iter().any(|known: &limits::Budget| known.kind == budget.kind && known.period == budget.period) {
                self.invalid_at(
                    span,
                    block,
                    "budgets",
                    "holds two budgets of one kind and period: one of them never counts",
                );
            }
            budgets.push(limits::Budget { soft_percent: block.number("soft_percent") as u8, ..budget });
        }
        for (key, length) in [("rates", rates.len()), ("budgets", budgets.len())] {
            if length > LIMITS_MAX {
                self.invalid(block, key, "has more than 8 entries");
            }
        }
        let concurrency = match block.get("concurrency") {
            Some(Value::Integer(streams)) => Some(*streams as u32),
            _ => None,
        };
        let limits = limits::Limits { concurrency, rates: rates.into(), budgets: budgets.into() };
        Some(Plan {
            name: block.text("name")?.to_owned(),
            limits: Arc::new(limits),
            on_budget: match block.text("on_budget")? {
                "cut" => OnBudget::Cut,
                _ => OnBudget::Finish,
            },
            priority: match block.text("priority")? {
                "low" => Priority::Low,
                "high" => Priority::High,
                _ => Priority::Normal,
            },
        })
    }

    fn accounts(&mut self, raw: &RawConfig, plans: &Names) -> Vec<Account> {
        self.unique(raw.all("account"), "name");
        let mut accounts = Vec::new();
        for block in raw.all("account") {
            let plan = self.plan(block, "plan", plans);
            if let (Some(name), Some(plan)) = (block.text("name"), plan) {
                accounts.push(Account { name: name.to_owned(), plan });
            }
        }
        accounts
    }

    fn prices(&mut self, raw: &RawConfig, upstreams: &Names) -> Vec<Price> {
        let mut patterns: HashSet<&str> = raw.one("metrics").list("models").iter().map(|(_, text)| &**text).collect();
        let alone = patterns.len();
        let mut seen: HashMap<(&str, Vec<usize>), &Span> = HashMap::new();
        let mut prices = Vec::new();
        for block in raw.all("price") {
            let mut places = Vec::new();
            for (span, name) in block.list("upstreams") {
                let Some(place) = self.named((block, "upstreams"), Some(span.clone()), name, upstreams) else {
                    continue;
                };
                if places.contains(&place) {
                    self.invalid_at(span, block, "upstreams", "names an upstream twice");
                }
                places.push(place);
            }
            for (key, why) in [
                ("models", "is empty: nothing has this price"),
                ("upstreams", "is empty: leave it out for all of them"),
            ] {
                if matches!(block.get(key), Some(Value::List(items)) if items.is_empty()) {
                    self.invalid(block, key, why);
                }
            }
            let mut sorted = places.clone();
            sorted.sort_unstable();
            for (span, pattern) in block.list("models") {
                if let Some(first) = seen.get(&(pattern.as_str(), sorted.clone())) {
                    let first = Some((*first).clone());
                    self.fault(Some(span.clone()), Cause::Twice { key: "models", section: block.section, first });
                    continue;
                }
                seen.insert((pattern, sorted.clone()), span);
                if patterns.insert(pattern) && patterns.len() == alone.max(PATTERNS_MAX) + 1 {
                    self.refuse(
                        Some(span.clone()),
                        "`models` of all [[price]] and of [metrics] are more than 63 patterns: each is a label",
                        None,
                    );
                }
            }
            let price = |key| block.text(key).and_then(|text| value::price(text).ok());
            let per_token = || {
                Some(TokenPrices {
                    input: price("input")?,
                    cache_read: price("cache_read")?,
                    cache_write: price("cache_write")?,
                    output: price("output")?,
                    reasoning: price("reasoning")?,
                })
            };
            if let Some(per_token) = per_token() {
                prices.push(Price { models: texts(block.list("models")), upstreams: places, per_token });
            }
        }
        if raw.all("price").next().is_none() {
            for block in raw.all("plan") {
                let is_money = |(_, text): &&(Span, String)| value::budget(text).is_ok_and(|b| b.kind == Kind::Money);
                if let Some((span, _)) = block.list("budgets").iter().find(is_money) {
                    self.doubt(
                        Some(span.clone()),
                        "a budget in usd never ends while no [[price]] says what tokens cost",
                        None,
                    );
                }
            }
        }
        prices
    }

    /// Also how many keys the file has.
    fn keys(
        &mut self,
        raw: &RawConfig,
        plans: &Names,
        names: &Names,
        upstreams: &[Upstream],
    ) -> (Option<Keys>, Option<usize>) {
        let Some(block) = raw.all("keys").next() else {
            let metrics = raw.one("metrics");
            if metrics.bool("per_key") {
                self.doubt(metrics.span_of("per_key"), "`per_key` in [metrics] does nothing without [keys]", None);
            }
            if raw.all("account").next().is_some() && !self.mistyped("keys") {
                let span = raw.all("account").next().and_then(|block| block.span.clone());
                self.doubt(span, "[[account]] does nothing without [keys]", None);
            }
            return (None, None);
        };
        let byok = upstreams.iter().any(|upstream| upstream.access.byok);
        if block.bool("required") && !byok {
            self.doubt(
                block.span_of("required"),
                "`required` in [keys] does nothing: no [[upstream]] takes callers with the provider's key",
                None,
            );
        }
        if block.bool("required") {
            for upstream in raw.all("upstream").filter(|upstream| upstream.is_written("caller_plan")) {
                self.doubt(
                    upstream.span_of("caller_plan"),
                    "`caller_plan` in [[upstream]] does nothing while `required` in [keys] is on: every caller has a key",
                    None,
                );
            }
        }
        let hash_key = block.secret("secret").and_then(|source| {
            let hash_key = HashKey::new(&self.secret(block, "secret", source)?);
            if hash_key.is_none() {
                self.invalid(block, "secret", "must have 32 bytes or more, so that nobody guesses it");
            }
            hash_key
        });
        let file = self.readable(block, "file");
        let count = file.as_deref().and_then(|file| self.key_file(block, file, plans, names));
        let key_plan = self.plan(block, "plan", plans);
        let account_plan = self.plan(block, "account_plan", plans);
        let keys = || {
            Some(Keys {
                file: file?,
                hash_key: Arc::new(hash_key?),
                header: value::header(block.text("header")?).ok()?,
                required: block.bool("required"),
                on_revoke: match block.text("on_revoke")? {
                    "cut" => OnRevoke::Cut,
                    _ => OnRevoke::Finish,
                },
                account_plan,
                key_plan,
            })
        };
        (keys(), count)
    }

    /// How many keys are in the file, all of which name what is there.
    fn key_file(&mut self, block: &Block, file: &Path, plans: &Names, upstreams: &Names) -> Option<usize> {
        let span = block.span_of("file");
        let mode = fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o022 != 0 {
            self.doubt(
                span.clone(),
                "other users of this machine may be able to write the file of keys, and so give themselves one",
                Some("chmod go-w"),
            );
        } else if mode & 0o004 != 0 {
            self.doubt(span.clone(), "other users of this machine may be able to read who has keys", Some("chmod o-r"));
        }
        let records = match keys::read_lines(file) {
            Ok(records) => records,
            Err(fault) => {
                self.fault(span, Cause::KeyFile(fault));
                return None;
            }
        };
        // What is there under a mistyped name is one problem, not one for each key.
        let whole = [plans, upstreams].map(|names| !names.spans.is_empty() || !self.mistyped(names.section.path));
        let unknown = |record: &Record| {
            let is_there = |names: &Names, name: &String| {
                names.places.contains_key(name) || !whole[usize::from(std::ptr::eq(names, upstreams))]
            };
            let plan = record.plan.iter().find(|name| !is_there(plans, name)).map(|_| ("plan", plans.section));
            let upstream = record.upstreams.iter().find(|name| !is_there(upstreams, name));
            plan.or(upstream.map(|_| ("upstream", upstreams.section)))
        };
        let wrong = records.iter().filter_map(|(line, record)| Some((*line, record, unknown(record)?)));
        for (line, record, (what, of)) in wrong.take(KEY_FAULTS_MAX) {
            self.fault(span.clone(), Cause::KeyNames { line, id: record.id.clone(), what, of });
        }
        Some(records.len())
    }

    fn admission(&mut self, block: &Block) -> Option<Admission> {
        Some(Admission {
            time_zone: value::time_zone(block.text("time_zone")?).ok()?,
            reserve_input_tokens: block.number("reserve_input_tokens"),
            reserve_output_tokens: block.number("reserve_output_tokens"),
            wrong_keys_per_minute: block.number("wrong_keys_per_minute") as u32,
            streams: block.number("streams") as u32,
            lag_max: block.duration("lag_max"),
        })
    }

    fn journal(&mut self, raw: &RawConfig) -> Option<Journal> {
        let block = raw.one("journal");
        if !block.bool("enabled") {
            return None;
        }
        let folder = match block.text("folder") {
            Some(text) => self.surroundings.base_dir.join(text),
            None if raw.all("keys").next().is_some() => self.state_folder().join("usage"),
            None => return None,
        };
        if fs::metadata(&folder).is_ok_and(|metadata| !metadata.is_dir()) {
            self.invalid(block, "folder", "is there and is not a folder");
        }
        Some(Journal { folder, bytes: block.number("bytes"), age: block.duration("age") })
    }

    /// Where a service keeps its state: as systemd says, or beside the configuration.
    fn state_folder(&self) -> PathBuf {
        let folders = (self.surroundings.variable)("STATE_DIRECTORY").map(OsStringExt::into_vec).unwrap_or_default();
        // Several are separated by colons.
        match folders.split(|byte| *byte == b':').next() {
            Some(first) if !first.is_empty() => PathBuf::from(OsString::from_vec(first.to_vec())),
            _ => self.surroundings.base_dir.to_owned(),
        }
    }

    fn upstreams(&mut self, raw: &RawConfig, plans: &Names) -> Vec<Upstream> {
        if raw.all("upstream").next().is_none() && !self.mistyped("upstream") {
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
            upstreams.extend(self.upstream(block, plans));
            let managed = block.text("access").is_some_and(|access| access != "byok");
            if managed && raw.all("keys").next().is_none() && !self.mistyped("keys") {
                self.refuse(
                    block.span_of("access"),
                    "a managed [[upstream]] needs [keys]: without, anybody who reaches this node could spend your money",
                    Some(
                        "write [keys] with `file` and `secret`; \
                         `nullhop key new --keys FILE --secret FILE --label NAME` makes both, and the first key",
                    ),
                );
            }
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

    fn upstream(&mut self, block: &Block, plans: &Names) -> Option<Upstream> {
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
        let access = match block.text("access") {
            Some("managed") => Access { managed: true, byok: false },
            Some("both") => Access { managed: true, byok: true },
            _ => Access { managed: false, byok: true },
        };
        let keys = self.provider_keys(block, access);
        let plan = self.plan(block, "plan", plans);
        let caller_plan = self.plan(block, "caller_plan", plans);
        if block.is_written("caller_plan") && !access.byok {
            self.doubt(
                block.span_of("caller_plan"),
                "`caller_plan` in [[upstream]] does nothing: nobody comes here with the provider's key",
                None,
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
            access,
            keys,
            key_header: match block.text("key_header")? {
                "authorization" => KeyHeader::Authorization,
                "x-api-key" => KeyHeader::XApiKey,
                "x-goog-api-key" => KeyHeader::XGoogApiKey,
                "api-key" => KeyHeader::ApiKey,
                _ => KeyHeader::Auto,
            },
            plan,
            caller_plan,
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

    /// The operator's keys at a provider.
    fn provider_keys(&mut self, block: &Block, access: Access) -> Vec<ProviderKey> {
        let blocks = || block.below("upstream.key");
        // A key in a wrong form is a fault already.
        if access.managed && blocks().next().is_none() && !self.mistyped("upstream.key") {
            self.invalid(
                block,
                "access",
                "is for callers with a key of [keys], and there is no [[upstream.key]] that could go up",
            );
        }
        if let (false, Some(first)) = (access.managed, blocks().next()) {
            let span =
                block.is_written("access").then(|| block.span_of("access")).unwrap_or_else(|| first.span.clone());
            self.refuse(
                span,
                "nobody uses a [[upstream.key]] where `access` is `byok`",
                Some("take the key away, or write access = \"managed\" or \"both\""),
            );
        }
        if block.text("key_header") != Some("auto") && blocks().next().is_none() {
            self.doubt(
                block.span_of("key_header"),
                "`key_header` in [[upstream]] does nothing without a [[upstream.key]]",
                None,
            );
        }
        self.unique(blocks(), "name");
        let mut keys = Vec::new();
        for block in blocks() {
            let Some(source) = block.secret("secret") else { continue };
            let Some(secret) = self.secret(block, "secret", source) else { continue };
            let text = secret.expose();
            if text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"bearer")) && text.get(6) == Some(&b' ') {
                self.invalid(block, "secret", "begins with `Bearer`: it must be the key alone");
            } else if !text.iter().all(u8::is_ascii_graphic) {
                self.invalid(block, "secret", "must be printable ASCII without spaces: it travels in a header");
            } else if let Some(name) = block.text("name") {
                let weight = block.number("weight") as u32;
                keys.push(ProviderKey { name: name.to_owned(), secret: Arc::new(secret), weight });
            }
        }
        keys
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

    /// The same for one entry of a list.
    fn invalid_at(&mut self, span: &Span, block: &Block, key: &'static str, why: &'static str) {
        let section = block.section;
        self.fault(Some(span.clone()), Cause::Invalid { key, section, why });
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

/// Of one file of keys. More than anyone reads.
const KEY_FAULTS_MAX: usize = 100;

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
