//! Heads on their way through: what is taken off, what is set. The table is `docs/headers.md`.

use std::sync::LazyLock;

use http::HeaderName;

use crate::config::Privacy;
use crate::message::Fields;
use crate::message::Known;
use crate::message::Value;
use crate::message::name;

/// What happens to a request header by its name alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Hop by hop, or set anew by us (RFC 9110 section 7.6.1).
    Ours,
    /// Tells where the client or its network is, or ties its requests together.
    Address,
    /// Tells what machine the client runs on.
    Device,
    /// Tells sessions, threads, installations and applications apart.
    Session,
}

fn request_fate(name: &str) -> Fate {
    match name {
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings"
        | "trailer"
        | "te"
        | "expect"
        | "host"
        | "content-length"
        | "accept-encoding" => Fate::Ours,
        "cookie"
        | "x-forwarded-for"
        | "x-forwarded-host"
        | "x-forwarded-proto"
        | "x-forwarded-port"
        | "x-forwarded-server"
        | "forwarded"
        | "x-real-ip"
        | "x-client-ip"
        | "x-cluster-client-ip"
        | "true-client-ip"
        | "fastly-client-ip"
        | "fly-client-ip"
        | "via"
        | "traceparent"
        | "tracestate"
        | "baggage"
        | "x-request-start"
        | "x-amzn-trace-id"
        | "x-cloud-trace-context"
        | "x-b3-traceid"
        | "x-b3-spanid"
        | "x-b3-parentspanid"
        | "x-b3-sampled"
        | "b3"
        | "accept-language"
        | "origin"
        | "referer"
        | "dnt"
        | "x-gemini-api-privileged-user-id" => Fate::Address,
        "x-stainless-os" | "x-stainless-arch" | "x-stainless-runtime" | "x-stainless-runtime-version" => Fate::Device,
        "session-id"
        | "session_id"
        | "thread-id"
        | "conversation-id"
        | "conversation_id"
        | "x-client-request-id"
        | "x-codex-window-id"
        | "x-codex-turn-metadata"
        | "x-codex-installation-id"
        | "http-referer"
        | "x-title"
        | "x-openrouter-title"
        | "x-openrouter-categories"
        | "anthropic-workspace-id"
        | "anthropic-user-profile-id"
        | "user-agent"
        | "x-goog-api-client" => Fate::Session,
        _ if name.starts_with("cf-") || name.starts_with("sec-fetch-") || name.starts_with("sec-ch-") => Fate::Address,
        _ if name.starts_with("sec-websocket-") => Fate::Ours,
        _ if name.starts_with("x-claude-code-") => Fate::Session,
        _ => Fate::Keep,
    }
}

/// Whether a response header reaches the client.
fn response_passes(name: &str) -> bool {
    !matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "set-cookie"
            | "set-cookie2"
            | "alt-svc"
            | "nel"
            | "report-to"
            | "reporting-endpoints"
    ) && !name.starts_with("sec-websocket-")
}

/// Whether a field behind an answer's body reaches the client. What would have had to be known before the body, or speaks to
/// whoever carries the message, is not believed from there (RFC 9110 section 6.5.1): another reader may put trailers to the
/// head's fields.
fn trailer_passes(name: &str) -> bool {
    response_passes(name)
        && !matches!(
            name,
            // Framing and routing.
            "content-length"
                | "trailer"
                | "host"
                | "max-forwards"
                | "forwarded"
                | "via"
                // What asks: controls and conditions.
                | "expect"
                | "range"
                | "pragma"
                | "if-match"
                | "if-none-match"
                | "if-modified-since"
                | "if-unmodified-since"
                | "if-range"
                // Authentication.
                | "authorization"
                | "proxy-authorization"
                | "www-authenticate"
                | "authentication-info"
                | "proxy-authentication-info"
                | "cookie"
                // What an answer is to be done with.
                | "age"
                | "cache-control"
                | "date"
                | "expires"
                | "location"
                | "retry-after"
                | "vary"
                | "warning"
                // How its content is to be read.
                | "content-encoding"
                | "content-range"
                | "content-type"
        )
}

/// Of the names that are known, so that they need not be compared.
static REQUEST_FATES: LazyLock<Vec<Fate>> = LazyLock::new(|| Known::each(request_fate));
static RESPONSE_PASSES: LazyLock<Vec<bool>> = LazyLock::new(|| Known::each(response_passes));

/// A `Connection` header may not take these off: without them the request would be another one.
fn protected(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "x-api-key"
            | "x-goog-api-key"
            | "api-key"
            | "host"
            | "content-type"
            | "content-length"
            | "content-encoding"
            | "accept"
            | "anthropic-version"
            | "anthropic-beta"
            | "openai-beta"
            | "openai-organization"
            | "openai-project"
            | "idempotency-key"
            | "cache-control"
    )
}

/// The request headers that go to the upstream. `empty_body`: announce a length of zero where the
/// method makes servers expect a body.
pub(super) fn request_headers(mut headers: Fields, privacy: Privacy, empty_body: bool) -> Fields {
    let listed = listed_in_connection(&headers);
    let trailers_welcome = headers.get_all(name::TE).any(|value| {
        value.text().is_some_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case("trailers")))
    });
    let announced_zero = empty_body && headers.contains_key(name::CONTENT_LENGTH);
    headers.retain(|name, known| {
        let fate = known.of(&REQUEST_FATES).copied().unwrap_or_else(|| request_fate(name));
        match fate {
            Fate::Keep => !lists(&listed, name) || protected(name),
            // Written over below, all of its values at once.
            Fate::Ours if known == name::ACCEPT_ENCODING => true,
            Fate::Ours | Fate::Address => false,
            Fate::Device => privacy < Privacy::Device,
            Fate::Session => privacy < Privacy::Session,
        }
    });
    // Encoded answers stream in bursts, and the meter would have to decode them (WIRE section 9).
    headers.insert(name::ACCEPT_ENCODING, Value::of("identity"));
    if trailers_welcome {
        headers.insert(name::TE, Value::of("trailers"));
    }
    if announced_zero {
        headers.insert(name::CONTENT_LENGTH, Value::of("0"));
    }
    if privacy >= Privacy::Session {
        headers.insert(name::USER_AGENT, Value::of("nullhop"));
    }
    headers
}

/// The answer's headers that go to the client.
pub(super) fn response_headers(mut headers: Fields) -> Fields {
    let listed = listed_in_connection(&headers);
    let coded = headers.contains_key(name::TRANSFER_ENCODING);
    headers.retain(|name, known| {
        known.of(&RESPONSE_PASSES).copied().unwrap_or_else(|| response_passes(name))
            && (!lists(&listed, name) || protected(name))
    });
    if coded {
        // RFC 9112 section 6.3: chunks decide, and a length beside them must not be passed on. Kept,
        // it would cut the answer short for the client, with a clean end.
        headers.remove(name::CONTENT_LENGTH);
    }
    headers
}

/// Leaves of an answer's trailers what may go to the client.
pub(super) fn answer_trailers(trailers: &mut Fields) {
    let listed = listed_in_connection(trailers);
    trailers.retain(|name, _| trailer_passes(name) && !lists(&listed, name));
}

/// Names in `Connection` that are heeded. Each is held against each field; what is honest lists one or two.
const LISTED_MAX: usize = 64;

fn lists(listed: &[HeaderName], name: &str) -> bool {
    listed.iter().any(|listed| listed.as_str() == name)
}

/// The names that a `Connection` header declares to be for this hop only.
fn listed_in_connection(headers: &Fields) -> Vec<HeaderName> {
    headers
        .get_all(name::CONNECTION)
        .filter_map(Value::text)
        .flat_map(|text| text.split(','))
        // Is taken off in any case, and nearly always what is listed.
        .filter(|name| !name.trim().eq_ignore_ascii_case("keep-alive"))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .take(LISTED_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> Fields {
        let mut map = Fields::default();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), Value::of(value));
        }
        map
    }

    #[test]
    fn hop_by_hop_and_listed_names_stay_here() {
        let headers = map(&[
            ("connection", "keep-alive, x-hop, authorization"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("authorization", "Bearer k"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip, br"),
            ("x-forwarded-for", "10.0.0.1"),
            ("cookie", "a=b"),
            ("x-stainless-os", "Linux"),
            ("x-stainless-lang", "python"),
            ("user-agent", "sdk"),
            ("x-custom", "a"),
            ("x-custom", "b"),
            ("te", "trailers"),
        ]);
        let kept = request_headers(headers, Privacy::Device, false);
        let mut names: Vec<_> = kept.names().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["accept-encoding", "authorization", "te", "user-agent", "x-custom", "x-custom", "x-stainless-lang"]
        );
        assert_eq!(kept["accept-encoding"], *"identity");
        assert_eq!(kept.get_all("x-custom").count(), 2);
    }

    #[test]
    fn as_many_as_there_are_go() {
        let mut headers = Fields::default();
        for number in 0..100 {
            for name in [format!("cf-{number}"), format!("x-kept-{number}"), format!("x-claude-code-{number}")] {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name.clone(), Value::of("a"));
                headers.append(name, Value::of("b"));
            }
        }
        let kept = request_headers(headers, Privacy::Session, false);
        assert_eq!(kept.len(), 202, "each with both of its values");
        assert!(
            kept.names()
                .all(|(name, _)| { name.starts_with("x-kept-") || name == "accept-encoding" || name == "user-agent" })
        );
        let answer =
            (0..50).map(|number| HeaderName::from_bytes(format!("sec-websocket-{number}").as_bytes()).unwrap());
        let answer = answer.map(|name| (name, HeaderValue::from_static("x"))).collect();
        assert!(response_headers(answer).is_empty());
    }

    #[test]
    fn privacy_levels_include_each_other() {
        let headers =
            || map(&[("x-stainless-os", "Linux"), ("session-id", "s"), ("user-agent", "codex"), ("via", "x")]);
        let names = |privacy| {
            let kept = request_headers(headers(), privacy, false);
            let mut names: Vec<_> = kept.names().map(|(name, _)| name.to_owned()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(Privacy::Address), ["accept-encoding", "session-id", "user-agent", "x-stainless-os"]);
        assert_eq!(names(Privacy::Device), ["accept-encoding", "session-id", "user-agent"]);
        assert_eq!(names(Privacy::Session), ["accept-encoding", "user-agent"]);
        assert_eq!(request_headers(headers(), Privacy::Session, false)["user-agent"], *"nullhop");
    }

    #[test]
    fn answers_keep_what_sdks_read() {
        let kept = response_headers(map(&[
            ("set-cookie", "__cf_bm=1"),
            ("set-cookie", "b=2"),
            ("alt-svc", "h3"),
            ("x-request-id", "r"),
            ("request-id", "r"),
            ("retry-after", "1"),
            ("x-should-retry", "false"),
            ("content-type", "text/event-stream"),
            ("trailer", "x-checksum"),
            ("cf-ray", "1"),
        ]));
        let mut names: Vec<_> = kept.names().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["cf-ray", "content-type", "request-id", "retry-after", "trailer", "x-request-id", "x-should-retry"]
        );
    }

    #[test]
    fn trailers_say_nothing_that_belongs_before_a_body() {
        let mut trailers = map(&[
            ("x-checksum", "a"),
            ("x-checksum", "b"),
            ("grpc-status", "0"),
            ("server-timing", "x"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
        ]);
        for name in [
            "Content-Length",
            "Transfer-Encoding",
            "Trailer",
            "TE",
            "Host",
            "Set-Cookie",
            "Cookie",
            "Authorization",
            "Proxy-Authenticate",
            "WWW-Authenticate",
            "Content-Type",
            "Content-Encoding",
            "Content-Range",
            "Cache-Control",
            "Location",
            "Retry-After",
            "Date",
            "Age",
            "Expires",
            "Vary",
            "Warning",
            "Upgrade",
            "Keep-Alive",
            "Expect",
            "Range",
            "If-Match",
            "If-None-Match",
            "Max-Forwards",
            "Alt-Svc",
            "Sec-WebSocket-Accept",
        ] {
            trailers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), Value::of("1"));
        }
        answer_trailers(&mut trailers);
        let mut names: Vec<_> = trailers.names().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["grpc-status", "server-timing", "x-checksum", "x-checksum"]);
    }
}
