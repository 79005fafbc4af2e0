//! Which upstream a request's host and path lead to. Built once per configuration, read-only.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::Config;
use crate::message::Fields;
use crate::message::name;
use crate::provider;
use crate::provider::Dialect;
use crate::provider::Operation;
use crate::provider::Provider;
use crate::tls::certificate::Names;

/// All routes of one configuration.
pub(crate) struct Routes {
    /// Host names that lead to one upstream with the path as it is.
    by_host: HashMap<String, usize>,
    /// With the longest first.
    prefixes: Vec<(String, usize)>,
    /// The upstream that serves a dialect's well-known paths: OpenAI, Anthropic, Google.
    bare: [Option<usize>; 3],
    /// Other host names that clients may use.
    hosts: HashSet<String>,
    certificate_names: Names,
    targets: Vec<Target>,
}

struct Target {
    provider: Provider,
    /// "... set the base URL to ...": the 404 for a base URL set wrongly.
    hint: Arc<str>,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Place of the upstream in the configuration.
    pub(crate) upstream: usize,
    /// How many bytes of the path are the route's prefix.
    pub(crate) prefix_len: usize,
    pub(crate) operation: Operation,
    pub(crate) dialect: Dialect,
}

/// Why a request goes nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// `HEAD {base}/api/hello`: Claude Code asks whether the gateway is there. An empty 200.
    Hello,
    NotFound(Dialect),
    WrongBase(usize, Dialect, Arc<str>),
}

impl Routes {
    /// The routes of `config`; clients may use the names in its certificates as well.
    pub(crate) fn new(config: &Config, certificate_names: Names) -> Self {
        let mut routes = Self {
            by_host: HashMap::new(),
            prefixes: Vec::new(),
            bare: [None; 3],
            hosts: config.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            certificate_names,
            targets: Vec::new(),
        };
        routes.hosts.insert("localhost".to_owned());
        if let Some(url) = &config.public_url {
            let authority = url.split("://").nth(1).unwrap_or("").split('/').next().unwrap_or("");
            let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
            routes.hosts.insert(host.to_ascii_lowercase());
        }
        let node = config.public_url.as_deref().unwrap_or("https://HOST");
        for (place, upstream) in config.upstreams.iter().enumerate() {
            for host in &upstream.hosts {
                routes.by_host.insert(host.clone(), place);
            }
            if let Some(prefix) = &upstream.prefix {
                routes.prefixes.push((prefix.clone(), place));
            }
            if upstream.bare {
                routes.bare[upstream.provider.dialect("/") as usize] = Some(place);
            }
            let base = match (&upstream.prefix, upstream.hosts.first()) {
                (Some(prefix), _) => format!("{node}{prefix}"),
                (None, Some(host)) => format!("https://{host}"),
                (None, None) => node.to_owned(),
            };
            let hint = format!(
                "No such endpoint here: the base URL looks wrong. For this API set it to {base}{}",
                upstream.provider.base_url_suffix(),
            );
            routes.targets.push(Target { provider: upstream.provider, hint: hint.into() });
        }
        routes.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        routes
    }

    /// Whether a request for `host` (as written, with or without a port) is meant for this node.
    /// `local` is the address that the client connected to.
    pub(crate) fn serves_host(&self, host: &str, local: Option<SocketAddr>) -> bool {
        let name = without_port(host);
        // One dot at the end is a name's absolute form; two are no name.
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.ends_with('.') {
            return false;
        }
        if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            // An address cannot be bent to another target: it is ours or the client was misled.
            return address.is_loopback()
                || local.is_some_and(|local| local.ip().to_canonical() == address.to_canonical())
                || self.hosts.contains(name)
                || self.certificate_names.contains(name);
        }
        let name = &*lower(name);
        self.hosts.contains(name) || self.by_host.contains_key(name) || self.certificate_names.contains(name)
    }

    /// The upstream for `path` at `host`.
    ///
    /// # Errors
    /// What to answer instead.
    pub(crate) fn find(&self, host: &str, path: &str, headers: &Fields) -> Result<Route, NoRoute> {
        let (upstream, prefix_len) = if let Some(place) = self.by_host.get(&*lower(without_port(host))) {
            (*place, 0)
        } else if let Some((prefix, place)) = self.prefixes.iter().find(|(prefix, _)| is_below(path, prefix)) {
            (*place, prefix.len())
        } else {
            // Headers of the vendors' own, which settle the paths that two of them share.
            let anthropic = headers.contains_key(name::ANTHROPIC_VERSION);
            let google = headers.contains_key(name::X_GOOG_API_KEY);
            let dialect = provider::well_known(path, anthropic, google);
            match dialect.and_then(|dialect| self.bare[dialect as usize]) {
                Some(place) => (place, 0),
                None => return Err(NoRoute::NotFound(Dialect::guess(path, anthropic, google))),
            }
        };
        let target = &self.targets[upstream];
        let rest = &path[prefix_len..];
        let dialect = target.provider.dialect(rest);
        if rest == "/api/hello" && dialect == Dialect::Anthropic {
            return Err(NoRoute::Hello);
        }
        if target.provider.base_url_mistake(rest) {
            return Err(NoRoute::WrongBase(upstream, dialect, target.hint.clone()));
        }
        Ok(Route { upstream, prefix_len, operation: Operation::of(rest), dialect })
    }
}

/// `name` in lower case; most are.
fn lower(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}

/// `host` without `:port`; brackets of an IPv6 literal stay.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// Whether `path` is `prefix` or continues it with a slash.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
