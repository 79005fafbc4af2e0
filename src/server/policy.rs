//! Which heads are served at all: exact rules for framing, host, method and target, because hyper is
//! a good parser and not a policy. Every refusal here is counted as a guard.

use std::net::SocketAddr;

use http::Method;
use http::Version;

use crate::admission::Refusal;
use crate::config::Limits;
use crate::message::Fields;
use crate::message::Known;
use crate::message::Request;
use crate::message::Value;
use crate::message::name;
use crate::route::Routes;
use crate::telemetry::labels::Guard;

/// Header names that must not arrive in a spelling with underscores: some servers behind take
/// `content_length` for `content-length`.
const TWINS: [&str; 10] = [
    "content_length",
    "transfer_encoding",
    "content_encoding",
    "content_type",
    "x_api_key",
    "x_goog_api_key",
    "api_key",
    "proxy_authorization",
    "anthropic_version",
    "x_forwarded_for",
];

/// Checks a head. `extended` says that it is an extended CONNECT for a WebSocket.
///
/// # Errors
/// Which guard refuses it, and what to answer.
pub(super) fn check<B>(
    request: &Request<B>,
    extended: bool,
    routes: &Routes,
    local: Option<SocketAddr>,
    limits: &Limits,
) -> Result<(), (Guard, Refusal)> {
    size(request, limits)?;
    method(request.method(), extended)?;
    target(request)?;
    host(request, routes, local)?;
    framing(request)
}

/// The host that a request names: the target's authority on h2, the `Host` field on h1.
pub(super) fn host_of<B>(request: &Request<B>) -> &str {
    match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(name::HOST).and_then(Value::text).unwrap_or(""),
    }
}

/// On h1 longer heads have been refused already; h2 knows no limit for the number of fields.
fn size<B>(request: &Request<B>, limits: &Limits) -> Result<(), (Guard, Refusal)> {
    let headers = request.headers();
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    // As HTTP/2 counts (RFC 9113 section 6.5.2), without the 32 bytes a field, which have their own limit.
    let bytes = headers.iter().map(|(name, value)| name.len() + value.as_bytes().len()).sum::<usize>() + target;
    if bytes > limits.head_bytes || headers.len() > limits.head_fields {
        return Err((Guard::HeadTooLarge, Refusal::HeadTooLarge));
    }
    Ok(())
}

fn method(method: &Method, extended: bool) -> Result<(), (Guard, Refusal)> {
    let known = matches!(
        *method,
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::OPTIONS
    );
    if known || extended { Ok(()) } else { Err((Guard::BadMethod, Refusal::Method)) }
}

fn target<B>(request: &Request<B>) -> Result<(), (Guard, Refusal)> {
    let uri = request.uri();
    // On h1 only the origin form: no absolute form, no authority, no asterisk (RFC 9112 section 3.2).
    let h1 = request.version() <= Version::HTTP_11;
    let path = uri.path();
    if (h1 && (uri.scheme().is_some() || uri.authority().is_some())) || !path.starts_with('/') || !path_is_plain(path) {
        return Err((Guard::BadTarget, Refusal::Malformed));
    }
    Ok(())
}

/// No empty or dot segments, no escaped dots, line ends, NULs or backslashes: nothing that a server
/// behind could read as another path.
pub(crate) fn path_is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut place = 0;
    while place < bytes.len() {
        match bytes[place] {
            b'\\' | b'#' => return false,
            b'/' if bytes.get(place + 1) == Some(&b'/') => return false,
            b'/' if bytes.get(place + 1) == Some(&b'.') => {
                // `/.` and `/..`, each at the end of its segment.
                let rest = &bytes[place + 2..];
                let rest = rest.strip_prefix(b".").unwrap_or(rest);
                if rest.first().is_none_or(|next| *next == b'/' || *next == b';' || *next == b'%') {
                    return false;
                }
            }
            b'%' => {
                let (Some(high), Some(low)) = (bytes.get(place + 1), bytes.get(place + 2)) else { return false };
                if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() {
                    return false;
                }
                let escaped = [high.to_ascii_lowercase(), low.to_ascii_lowercase()];
                // . \ NUL LF CR
                if matches!(&escaped, b"2e" | b"5c" | b"00" | b"0a" | b"0d") {
                    return false;
                }
            }
            _ => {}
        }
        place += 1;
    }
    true
}

fn host<B>(request: &Request<B>, routes: &Routes, local: Option<SocketAddr>) -> Result<(), (Guard, Refusal)> {
    let malformed = Err((Guard::BadHost, Refusal::Malformed));
    let mut fields = request.headers().get_all(name::HOST);
    let field = fields.next();
    if fields.next().is_some() {
        return malformed;
    }
    let field = match field.map(Value::text) {
        Some(Some(text)) => Some(text),
        Some(None) => return malformed,
        None => None,
    };
    let named = match (request.uri().authority(), field) {
        (Some(authority), None) => authority.as_str(),
        (Some(authority), Some(field)) if authority.as_str().eq_ignore_ascii_case(field) => field,
        (Some(_), Some(_)) => return malformed,
        (None, Some(field)) => field,
        // RFC 9112 section 3.2: HTTP/1.1 requires it; HTTP/1.0 clients may not know it.
        (None, None) if request.version() == Version::HTTP_10 => return Ok(()),
        (None, None) => return malformed,
    };
    // No userinfo, no path, nothing that a lenient reader could cut differently.
    if named.is_empty()
        || named.bytes().any(|byte| matches!(byte, b'@' | b'/' | b'?' | b'#' | b'\\' | b',' | b' ' | b'%'))
    {
        return malformed;
    }
    if routes.serves_host(named, local) { Ok(()) } else { Err((Guard::BadHost, Refusal::Misdirected)) }
}

fn framing<B>(request: &Request<B>) -> Result<(), (Guard, Refusal)> {
    let headers: &Fields = request.headers();
    let malformed = Err((Guard::BadFraming, Refusal::Malformed));
    let mut codings = headers.get_all(name::TRANSFER_ENCODING);
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return malformed;
    }
    let mut lengths = headers.get_all(name::CONTENT_LENGTH);
    if lengths.next().is_some() && lengths.next().is_some() {
        return malformed;
    }
    // None of them is known, and few other names have an underscore.
    let is_twin = |name: &str| name.contains('_') && TWINS.contains(&name);
    if headers.names().any(|(name, known)| known == Known::NOT && is_twin(name)) {
        return malformed;
    }
    if headers.get(name::EXPECT).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err((Guard::BadFraming, Refusal::Expectation));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_twin_is_known() {
        let names = TWINS.map(|name| (http::HeaderName::from_static(name), http::HeaderValue::from_static("")));
        assert!(Fields::from_iter(names).names().all(|(_, known)| known == Known::NOT));
    }

    #[test]
    fn paths() {
        for path in [
            "/v1/chat/completions",
            "/a.b/c..d/.well-known",
            "/model/arn%3Aaws%2Fx/converse",
            "/v1/models/m:generateContent",
            "/",
        ] {
            assert!(path_is_plain(path), "{path}");
        }
        for path in [
            "//v1",
            "/v1//x",
            "/v1/../x",
            "/v1/..",
            "/v1/.",
            "/./v1",
            "/v1/%2e%2e/x",
            "/v1/%2E/x",
            "/v1\\x",
            "/v1/%5cx",
            "/v1/%0d%0a",
            "/v1/%00",
            "/v1/%zz",
            "/v1/%2",
            "/v1/..;/x",
            "/v1/..%2fx",
        ] {
            assert!(!path_is_plain(path), "{path}");
        }
    }
}
