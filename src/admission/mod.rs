//! Who may: turns a request's head into a [`Permit`] or a [`Refusal`].
//!
//! Today every request is pass-through: the caller's own provider credential goes on untouched, and
//! all that is derived from it is a number that keeps tenants apart on pooled connections.

#[expect(dead_code, reason = "taken into use with keys")]
mod ledger;

use std::sync::Arc;

use http::HeaderMap;
use http::HeaderName;

use crate::provider::Dialect;
use crate::retention::Denied;
use crate::telemetry::labels::Mode;
use crate::upstream::Tenant;

/// The headers in which SDKs send keys. Marked sensitive, so that HPACK does not index them and
/// `Debug` does not print them.
const CREDENTIAL_HEADERS: [HeaderName; 6] = [
    http::header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("api-key"),
    http::header::PROXY_AUTHORIZATION,
    http::header::COOKIE,
];

/// What an admitted request may use. Lives as long as its answer's body.
pub(crate) struct Permit {
    pub(crate) mode: Mode,
    pub(crate) tenant: Tenant,
}

/// Why a request is not served. What it says on the wire is one table, `server::answer`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The request body is longer than the route allows.
    BodyTooLarge,
    /// The request body came too slowly.
    BodyTooSlow,
    /// The request body broke off; nobody reads the answer.
    ClientGone,
    /// An expectation other than `100-continue`.
    Expectation,
    /// The head has more bytes or fields than allowed.
    HeadTooLarge,
    /// A fault of ours.
    Internal,
    /// The head is ambiguous or malformed.
    Malformed,
    /// CONNECT, TRACE or a method that no provider knows.
    Method,
    /// `Host` names something that is not served here.
    Misdirected,
    /// No route at this path.
    NoRoute,
    /// Too many connections or streams.
    Overloaded,
    /// What the request asks of the provider is not allowed here.
    Policy(Denied),
    /// The upstream gave no head in time.
    UpstreamTimeout,
    /// The upstream could not be reached, or broke off before its head.
    UpstreamUnreachable,
    /// The upstream's answer is not one.
    UpstreamProtocol,
    /// This upstream has no WebSocket.
    WebSocketNotServed,
    /// The path shows a base URL set wrongly; the text names the right one.
    WrongBase(Arc<str>),
}

/// Marks the credentials of `headers` as sensitive.
pub(crate) fn protect_credentials(headers: &mut HeaderMap) {
    for name in &CREDENTIAL_HEADERS {
        if let http::header::Entry::Occupied(mut entry) = headers.entry(name) {
            for value in entry.iter_mut() {
                value.set_sensitive(true);
            }
        }
    }
}

/// Admits a pass-through request. `query` may carry Google's `key=`.
pub(crate) fn admit(headers: &HeaderMap, query: Option<&str>) -> Permit {
    let tenant = CREDENTIAL_HEADERS[..4]
        .iter()
        .find_map(|name| headers.get(name))
        .map(|value| Tenant::of(value.as_bytes()))
        .or_else(|| {
            let pairs = query?.split('&');
            let key = pairs.into_iter().find_map(|pair| pair.strip_prefix("key="))?;
            Some(Tenant::of(key.as_bytes()))
        });
    Permit { mode: Mode::Byok, tenant: tenant.unwrap_or(Tenant::Nobody) }
}

/// The dialect of an answer, for a request that got no further than its head.
pub(crate) fn guess_dialect(path: &str, headers: &HeaderMap) -> Dialect {
    Dialect::guess(path, headers.contains_key("anthropic-version"), headers.contains_key("x-goog-api-key"))
}
