//! The configuration in use, for the child of `nullhop prove`: the same, except for what it listens on
//! and what stands behind it.

use std::path::Path;
use std::time::Duration;

use super::check;
use super::check::{Checked, Surroundings};
use super::parse;
use super::parse::{Block, RawConfig, SecretSource, Value, quoted};
use super::report::{Lines, Report};
use super::table::Kind;
use super::table::SECTIONS;
use super::{BUILT_IN, Config, Endpoint};
use crate::provider::Provider;
use crate::retention::EVERY_RULE;

/// What replaces the providers.
pub(crate) struct Substitute<'s> {
    /// PEM: whom the substitute's certificate comes from.
    pub(crate) ca_file: &'s Path,
    /// On 127.0.0.1, with TLS: stands behind every configured upstream.
    pub(crate) port: u16,
    /// Further upstreams, cut after the first configured one: name (also the prefix, after a slash) and port.
    pub(crate) further: &'s [(&'static str, u16)],
}

/// A configuration for a child.
pub(crate) struct Derived {
    /// TOML. Holds no secret, only where secrets are; all paths are absolute.
    pub(crate) text: String,
    /// The configuration that it was made of.
    pub(crate) original: Config,
    /// `memory.heap` as configured, if this version has it.
    heap: Option<String>,
}

const PLAIN: &str = "heap = \"plain\"";

impl Derived {
    /// The same text with `memory.heap` as it was configured; `None` if that is `plain`, or if there is no such key.
    pub(crate) fn with_configured_heap(&self) -> Option<String> {
        let heap = self.heap.as_deref().filter(|heap| *heap != "plain")?;
        // A line of its own: a quoted value cannot hold these quotes.
        Some(self.text.replacen(PLAIN, &format!("heap = \"{heap}\""), 1))
    }

    /// Whether the configuration demands that not even root can read the heap.
    pub(crate) fn demands_secret_heap(&self) -> bool {
        self.heap.as_deref() == Some("secret")
    }
}

/// An answer that stalls, a body of 8 MiB: long enough and large enough for all that is driven through.
const TIME_MIN: Duration = Duration::from_secs(60);
const BODY_MIN: u64 = 16 << 20;

/// Reads the configuration at `path` (`None`: the built-in one) and derives the child's.
///
/// Kept are TLS, certificates, hosts, limits, privacy, routes and everything else that is not named
/// here. Changed are: addresses (127.0.0.1, any free port), `proxy_protocol_from` (empty), client
/// certificates (not asked for), the metrics token (none), the log's level (`info`), the drain's times, retention rules (none),
/// the upstreams' addresses, their access (pass-through, no key of the operator's), keys, accounts, plans, prices and the journal
/// (none), `memory.heap` (`plain`, so that everything can be searched), and limits that
/// would end the run's own connections (raised to a minimum).
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn derive(path: Option<&Path>, substitute: &Substitute<'_>) -> Result<Derived, Report> {
    let (text, base_dir, source_name) = match path {
        Some(path) => {
            let folder = path.parent().unwrap_or(Path::new(""));
            // An empty path is the folder that we are in.
            let folder = std::path::absolute(Path::new(".").join(folder)).unwrap_or_else(|_| folder.to_owned());
            (Config::read(path)?, folder, path.display().to_string())
        }
        None => (BUILT_IN.to_owned(), Path::new("/").to_owned(), "built-in configuration".to_owned()),
    };
    let surroundings = Surroundings { base_dir: &base_dir, variable: &|name| std::env::var_os(name) };
    let mut faults = Vec::new();
    let mut raw = parse::parse(&text, &mut faults)
        .map_err(|fault| Report::new(&source_name, &Lines::unparsed(&text), vec![fault]))?;
    let original = check::check(&mut raw, &surroundings, &mut faults, &mut Vec::new());
    let Some(Checked { config: original, .. }) = original else {
        return Err(Report::new(&source_name, &Lines::parsed(&text, raw.showable), faults));
    };
    let heap = raw.all("memory").next().filter(|block| has(block, "heap")).and_then(|block| block.text("heap"));
    let heap = heap.map(str::to_owned);
    change(&mut raw, substitute);
    let mut text = String::new();
    for block in &raw.blocks {
        write(block, &base_dir, &mut text);
    }
    if let Some(first) = raw.blocks.iter_mut().find(|block| block.section.path == "upstream") {
        for (name, port) in substitute.further {
            further(first, name, *port);
            write(first, &base_dir, &mut text);
            read(first, name, *port);
            write(first, &base_dir, &mut text);
            relax(first);
        }
    }
    Ok(Derived { text, original, heap })
}

fn change(raw: &mut RawConfig, substitute: &Substitute<'_>) {
    let free = || Value::Address(([127, 0, 0, 1], 0).into());
    // Keys would be asked for, limits would refuse, and the journal is the original's.
    raw.blocks.retain(|block| !["keys", "plan", "account", "price"].contains(&block.section.path));
    for block in &mut raw.blocks {
        match block.section.path {
            "admission" => *block = Block::defaults(block.section, None),
            "journal" => block.set("enabled", Value::Bool(false)),
            "listener" => {
                block.set("address", free());
                block.set("proxy_protocol_from", Value::List(Vec::new()));
            }
            "tls" => {
                block.set("client_auth", Value::Text("none".to_owned()));
                block.unset("ca_file");
            }
            "metrics" => {
                block.set("enabled", Value::Bool(true));
                block.set("address", free());
                block.unset("token");
                block.set("per_key", Value::Bool(false));
            }
            "admin" => {
                block.set("enabled", Value::Bool(true));
                block.set("address", free());
            }
            "log" => block.set("level", Value::Text("info".to_owned())),
            "drain" => {
                block.set("grace", Value::Duration(Duration::ZERO));
                block.set("deadline", Value::Duration(TIME_MIN));
            }
            "limits" => {
                for key in ["first_request_timeout", "idle_timeout", "connection_age", "write_stall", "body_grace"] {
                    at_least(block, key, TIME_MIN);
                }
                for key in ["body_bytes", "upload_bytes"] {
                    block.set(key, Value::Size(block.number(key).max(BODY_MIN)));
                }
                for key in ["connections", "connections_per_address", "handshakes_in_flight", "requests_per_connection"]
                {
                    block.set(key, Value::Integer(block.number(key).max(256)));
                }
            }
            "memory" if has(block, "heap") => block.set("heap", Value::Text("plain".to_owned())),
            "upstream" => {
                let base_path = block
                    .endpoint("url")
                    .or_else(|| block.endpoints().next().and_then(|child| child.endpoint("url")))
                    .map_or(String::new(), |endpoint| endpoint.base_path.clone());
                // Several endpoints would be several times the same one.
                block.children.clear();
                relax(block);
                block.set("models", Value::List(Vec::new()));
                block.set("access", Value::Text("byok".to_owned()));
                block.set("key_header", Value::Text("auto".to_owned()));
                block.unset("plan");
                block.unset("caller_plan");
                block.set("usage", Value::Text("leave".to_owned()));
                stand_in(block, substitute.port, base_path);
                let ca_file = substitute.ca_file.to_string_lossy().into_owned();
                block.set("ca_file", Value::Text(ca_file));
            }
            _ => {}
        }
    }
}

fn stand_in(block: &mut Block, port: u16, base_path: String) {
    let endpoint = Endpoint { tls: true, host: "127.0.0.1".to_owned(), port, base_path, weight: 1 };
    block.set("url", Value::Endpoint(endpoint));
    for key in ["head_timeout", "silence_timeout", "idle_timeout"] {
        at_least(block, key, TIME_MIN);
    }
    if block.get("body_bytes").is_some() {
        block.set("body_bytes", Value::Size(block.number("body_bytes").max(BODY_MIN)));
    }
}

/// Makes an upstream that is reached by its own prefix and speaks whatever its port offers.
fn further(block: &mut Block, name: &str, port: u16) {
    stand_in(block, port, String::new());
    block.set("name", Value::Text(name.to_owned()));
    block.set("prefix", Value::Text(format!("/{name}")));
    block.set("hosts", Value::List(Vec::new()));
    block.set("bare", Value::Bool(false));
    block.set("protocol", Value::Text("auto".to_owned()));
    block.set("websocket", Value::Bool(true));
}

/// What is appended to the name of an upstream whose requests are read.
pub(crate) const READ: &str = "-read";

/// Makes the same upstream once more, with every retention rule in force, and with usage asked for.
fn read(block: &mut Block, name: &str, port: u16) {
    further(block, &format!("{name}{READ}"), port);
    block.children.clear();
    block.set("provider", Value::Text(Provider::Openai.as_str().to_owned()));
    block.unset("vendor");
    block.set("usage", Value::Text("ask".to_owned()));
}

/// What is driven through most upstreams is no request to a model, and shall arrive byte by byte. The report has lines of its
/// own for the rules.
fn relax(block: &mut Block) {
    block.children.clear();
    block.set("usage", Value::Text("leave".to_owned()));
    if let Some(section) = SECTIONS.iter().find(|section| section.path == "upstream.retention") {
        let mut retention = Block::defaults(section, None);
        retention.set("allow", Value::List(vec![(0..0, EVERY_RULE.to_owned())]));
        block.children.push(retention);
    }
}

fn at_least(block: &mut Block, key: &str, time: Duration) {
    block.set(key, Value::Duration(block.duration(key).max(time)));
}

fn has(block: &Block, key: &str) -> bool {
    block.section.keys.iter().any(|of_table| of_table.name == key)
}

/// As `check::show` does, but with secrets' places instead of masks, and with absolute paths.
fn write(block: &Block, base_dir: &Path, out: &mut String) {
    let absolute = |path: &str| quoted(&base_dir.join(path).to_string_lossy());
    out.push_str(&format!("\n{}\n", block.section.header()));
    for key in block.section.keys {
        let Some(value) = block.get(key.name) else { continue };
        let value = match (&key.kind, value) {
            (Kind::Path, Value::Text(path)) => absolute(path),
            (_, Value::Secret(SecretSource::File(path))) => format!("{{ file = {} }}", absolute(path)),
            (_, Value::Secret(SecretSource::Env(name))) => format!("{{ env = {} }}", quoted(name)),
            (_, Value::Secret(SecretSource::Credential(name))) => format!("{{ credential = {} }}", quoted(name)),
            (_, value) => value.to_toml(),
        };
        out.push_str(&format!("{} = {value}\n", key.name));
    }
    for child in &block.children {
        write(child, base_dir, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn substitute() -> Substitute<'static> {
        Substitute { ca_file: Path::new("/proc/self/exe"), port: 4, further: &[("prove-h1", 5), ("prove-h2", 6)] }
    }

    #[test]
    fn the_built_in_configuration_keeps_its_upstreams_and_loses_their_addresses() {
        let derived = derive(None, &substitute()).unwrap_or_else(|report| panic!("{report}"));
        let read = Config::from_toml(&derived.text, Path::new(""), "derived").unwrap_or_else(|e| panic!("{e}"));
        let config = read.config;
        assert_eq!(config.upstreams.len(), derived.original.upstreams.len() + 4);
        for (before, after) in derived.original.upstreams.iter().zip(&config.upstreams) {
            assert_eq!((&before.name, &before.prefix, before.bare), (&after.name, &after.prefix, after.bare));
            assert_eq!((after.endpoints[0].host.as_str(), after.endpoints[0].port), ("127.0.0.1", 4));
            assert_eq!(before.endpoints[0].base_path, after.endpoints[0].base_path);
        }
        let added: Vec<_> = config.upstreams.iter().rev().take(4).rev().collect();
        let prefixes: Vec<_> = added.iter().map(|upstream| upstream.prefix.as_deref().unwrap_or("")).collect();
        assert_eq!(prefixes, ["/prove-h1", "/prove-h1-read", "/prove-h2", "/prove-h2-read"]);
        let relaxed: Vec<_> = added.iter().map(|upstream| upstream.relaxed().count() > 0).collect();
        assert_eq!(relaxed, [true, false, true, false]);
        assert!(config.listeners.iter().all(|listener| listener.address.to_string() == "127.0.0.1:0"));
    }

    #[test]
    fn keys_limits_and_the_journal_stay_outside() {
        let folder = std::env::temp_dir().join(format!("nullhop-{}-derive-keys", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("keys.jsonl"), "").unwrap();
        std::fs::write(folder.join("keys.secret"), "x".repeat(32)).unwrap();
        let file = folder.join("nullhop.toml");
        let text = "[keys]\nfile = \"keys.jsonl\"\nsecret = { file = \"keys.secret\" }\nrequired = true\nplan = \"tight\"\n\
                    [admission]\nstreams = 1\n[[plan]]\nname = \"tight\"\nconcurrency = 1\n\
                    [[account]]\nname = \"a\"\nplan = \"tight\"\n\
                    [[price]]\nmodels = [\"m\"]\nupstreams = [\"own\"]\ninput = \"1\"\noutput = \"1\"\n\
                    [journal]\nfolder = \"usage\"\n[metrics]\nper_key = true\n\
                    [[upstream]]\nname = \"own\"\nprovider = \"openai\"\nplan = \"tight\"\nkey_header = \"api-key\"\n\
                    [[upstream.key]]\nsecret = { file = \"keys.secret\" }\n\
                    [[upstream]]\nname = \"pass\"\nprovider = \"anthropic\"\ncaller_plan = \"tight\"\n";
        std::fs::write(&file, text).unwrap();
        let derived = derive(Some(&file), &substitute()).unwrap_or_else(|report| panic!("{report}"));
        assert!(derived.original.keys.is_some() && derived.original.upstreams[0].access.managed);
        let read = Config::from_toml(&derived.text, Path::new("/nowhere"), "derived").unwrap_or_else(|e| panic!("{e}"));
        let config = read.config;
        assert!(config.keys.is_none() && config.journal.is_none() && config.plans.is_empty());
        assert!(config.accounts.is_empty() && config.prices.is_empty());
        assert_eq!(config.admission.streams, 20_000);
        for upstream in &config.upstreams {
            assert!(upstream.access.byok && !upstream.access.managed && upstream.keys.is_empty());
            assert!(upstream.plan.is_none() && upstream.caller_plan.is_none());
        }
        assert!(read.warnings.iter().all(|warning| !warning.to_string().contains("does nothing")));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn everything_else_stays_and_paths_become_absolute() {
        let folder = std::env::temp_dir().join(format!("nullhop-{}-derive", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["c.pem", "k.pem"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        let file = folder.join("nullhop.toml");
        let text = "[[listener]]\naddress = \"0.0.0.0:443\"\nproxy_protocol_from = [\"10.0.0.0/8\"]\n\
                    [[certificate]]\nname = \"c\"\ncert_file = \"c.pem\"\nkey = { file = \"k.pem\" }\n\
                    [tls]\nmin_version = \"1.3\"\nclient_auth = \"required\"\nca_file = \"c.pem\"\n\
                    [limits]\nhead_fields = 17\nidle_timeout = \"1s\"\nconnection_age = \"2h\"\nbody_bytes = \"1KiB\"\n\
                    [metrics]\nenabled = false\n[log]\nformat = \"json\"\nlevel = \"error\"\n\
                    [[upstream]]\nname = \"own\"\nprovider = \"compatible\"\nprivacy = \"session\"\nprotocol = \"h2\"\n\
                    [[upstream.endpoint]]\nurl = \"https://a.example/x\"\n\
                    [[upstream.endpoint]]\nurl = \"https://b.example/x\"\n";
        std::fs::write(&file, text).unwrap();
        let derived = derive(Some(&file), &substitute()).unwrap_or_else(|report| panic!("{report}"));
        let read = Config::from_toml(&derived.text, Path::new("/nowhere"), "derived").unwrap_or_else(|e| panic!("{e}"));
        let config = read.config;
        assert!(config.certificates[0].cert_file.is_absolute());
        assert!(config.tls.min_version == crate::config::TlsVersion::V1_3);
        assert!(matches!(config.tls.client_auth, crate::config::ClientAuth::None));
        assert_eq!(config.limits.head_fields, 17);
        assert_eq!(config.limits.idle_timeout, TIME_MIN);
        assert_eq!(config.limits.connection_age, Duration::from_secs(7200));
        assert_eq!(config.limits.body_bytes, BODY_MIN);
        assert!(config.metrics.is_some() && config.log.format == crate::config::LogFormat::Json);
        let own = &config.upstreams[0];
        assert_eq!((own.endpoints.len(), own.endpoints[0].base_path.as_str()), (1, "/x"));
        assert!(own.privacy == crate::config::Privacy::Session && own.protocol == crate::config::UpstreamProtocol::H2);
        assert!(!derived.text.contains("example"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
