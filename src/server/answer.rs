//! What nullhop itself says: one table from [`Refusal`] to status, headers and text, in the dialect of
//! the API that was called. All texts are fixed; none holds a part of a request.

use std::time::Instant;

use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header;

use crate::admission::KeyRefused;
use crate::admission::Limited;
use crate::admission::Refusal;
use crate::admission::Scope;
use crate::limits::Kind;
use crate::limits::Limit;
use crate::limits::Period;
use crate::message::Response;
use crate::message::Value;
use crate::provider::Dialect;
use crate::relay::AnswerBody;
use crate::relay::Tally;
use crate::retention::Denied;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Source;

/// One row of the table. `openai` is `type` and `code`, `google` the `status` word.
struct Row {
    status: u16,
    openai: (&'static str, &'static str),
    anthropic: &'static str,
    google: &'static str,
    text: &'static str,
    /// SDKs and Claude Code ask this header whether trying again makes sense.
    retry: Retry,
    close: bool,
}

#[derive(PartialEq, Eq)]
enum Retry {
    /// Left to the SDK's own rules.
    Unsaid,
    No,
    /// After this many seconds.
    After(&'static str),
    /// The same. SDKs keep to at most a minute; whoever has to wait longer is told not to try.
    In(u64),
}

/// Longer than this no SDK waits; the vendors' then try again much sooner (WIRE section 6.2).
const WAIT_MAX: u64 = 60;

fn row(refusal: &Refusal, dialect: Dialect) -> Row {
    let invalid = "invalid_request_error";
    match refusal {
        Refusal::BodyTooLarge => Row {
            status: 413,
            openai: (invalid, "request_too_large"),
            anthropic: "request_too_large",
            google: "INVALID_ARGUMENT",
            text: "The request body is larger than this endpoint allows.",
            retry: Retry::No,
            close: true,
        },
        Refusal::BodyTooSlow => Row {
            status: 408,
            openai: ("timeout", "timeout"),
            anthropic: "timeout_error",
            google: "DEADLINE_EXCEEDED",
            text: "The request body arrived too slowly.",
            retry: Retry::Unsaid,
            close: true,
        },
        Refusal::ClientGone => Row {
            status: 400,
            openai: (invalid, "incomplete_body"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "The request body ended before its announced end.",
            retry: Retry::No,
            close: true,
        },
        Refusal::Expectation => Row {
            status: 417,
            openai: (invalid, "expectation_failed"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "The only expectation that is met here is 100-continue.",
            retry: Retry::No,
            close: true,
        },
        Refusal::Forbidden => Row {
            status: 403,
            openai: (invalid, "policy_refused"),
            anthropic: "permission_error",
            google: "PERMISSION_DENIED",
            text: "This key is not enabled for this provider.",
            retry: Retry::No,
            close: false,
        },
        Refusal::Key(KeyRefused::WrongAgain(seconds)) => Row {
            status: 429,
            openai: ("rate_limit_error", "rate_limit_exceeded"),
            anthropic: "rate_limit_error",
            google: "RESOURCE_EXHAUSTED",
            text: "Too many wrong keys came from this address.",
            retry: Retry::In(*seconds),
            close: true,
        },
        Refusal::Key(refused) => Row {
            status: 401,
            openai: (invalid, "invalid_api_key"),
            anthropic: "authentication_error",
            google: "UNAUTHENTICATED",
            text: match refused {
                KeyRefused::Missing => {
                    "No API key was sent. This gateway needs one of its own keys, where this API's keys go."
                }
                KeyRefused::Two => "Two different API keys were sent in one request.",
                KeyRefused::Place => {
                    "This API key does not go here: a key for pass-through stands in the gateway's own header beside the \
                     provider's key, a managed one in the place of it."
                }
                KeyRefused::Wrong | KeyRefused::WrongAgain(_) => "Incorrect API key.",
            },
            retry: Retry::No,
            close: false,
        },
        Refusal::Limited(limited) => {
            let spent = matches!(limited.limit, Limit::Budget(..));
            let code = if spent { "insufficient_quota" } else { "rate_limit_exceeded" };
            Row {
                status: 429,
                openai: (if spent { code } else { "rate_limit_error" }, code),
                anthropic: "rate_limit_error",
                google: "RESOURCE_EXHAUSTED",
                text: "",
                retry: match limited.retry_after {
                    _ if spent => Retry::No,
                    Some(seconds) => Retry::In(seconds),
                    // A place is free as soon as another stream ends.
                    None => Retry::In(1),
                },
                close: false,
            }
        }
        Refusal::ProviderKey => Row {
            status: 502,
            openai: ("server_error", "upstream_error"),
            anthropic: "api_error",
            google: "UNAVAILABLE",
            text: "The provider refused the gateway's own key. Whoever runs the gateway has to look at it.",
            retry: Retry::Unsaid,
            close: false,
        },
        Refusal::HeadTooLarge => Row {
            status: 431,
            openai: (invalid, "head_too_large"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "The request head is larger than this endpoint allows.",
            retry: Retry::No,
            close: true,
        },
        Refusal::Internal => Row {
            status: 500,
            openai: ("server_error", "internal_error"),
            anthropic: "api_error",
            google: "INTERNAL",
            text: "The gateway failed on this request.",
            retry: Retry::Unsaid,
            close: false,
        },
        Refusal::Malformed => Row {
            status: 400,
            openai: (invalid, "malformed_request"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "The request head is malformed or ambiguous: target, Host, framing or upgrade fields.",
            retry: Retry::No,
            close: true,
        },
        Refusal::Method => Row {
            status: 405,
            openai: (invalid, "method_not_allowed"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "This method is not served here.",
            retry: Retry::No,
            close: true,
        },
        Refusal::Misdirected => Row {
            status: 421,
            openai: (invalid, "misdirected_request"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "This host name is not served here.",
            retry: Retry::No,
            close: true,
        },
        Refusal::NoRoute => Row {
            status: 404,
            openai: (invalid, "not_found"),
            anthropic: "not_found_error",
            google: "NOT_FOUND",
            text: "No such endpoint here: check the base URL.",
            retry: Retry::No,
            close: false,
        },
        Refusal::Overloaded => Row {
            status: if dialect == Dialect::Anthropic { 529 } else { 503 },
            openai: ("server_error", "overloaded"),
            anthropic: "overloaded_error",
            google: "UNAVAILABLE",
            text: "The gateway has no room for this request right now.",
            retry: Retry::After("1"),
            close: false,
        },
        Refusal::Policy(denied) => policy_row(*denied, dialect),
        Refusal::UpstreamTimeout => Row {
            status: 504,
            openai: ("server_error", "upstream_timeout"),
            anthropic: "timeout_error",
            google: "DEADLINE_EXCEEDED",
            text: "The provider did not answer in time.",
            retry: Retry::Unsaid,
            close: false,
        },
        Refusal::UpstreamUnreachable => Row {
            status: 502,
            openai: ("server_error", "upstream_error"),
            anthropic: "api_error",
            google: "UNAVAILABLE",
            text: "The provider could not be reached or broke off before it answered.",
            retry: Retry::Unsaid,
            close: false,
        },
        Refusal::UpstreamProtocol => Row {
            status: 502,
            openai: ("server_error", "upstream_error"),
            anthropic: "api_error",
            google: "UNAVAILABLE",
            text: "The provider's answer was not valid HTTP.",
            retry: Retry::Unsaid,
            close: false,
        },
        Refusal::WebSocketNotServed => Row {
            status: 426,
            openai: (invalid, "upgrade_required"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "WebSocket is not served here: use HTTP.",
            retry: Retry::No,
            close: false,
        },
        Refusal::WrongBase(_) => Row { text: "", ..row(&Refusal::NoRoute, dialect) },
    }
}

/// Refusals by policy (WIRE 6.3): 403 for what is not allowed, because Claude Code sends a 400 six times.
fn policy_row(denied: Denied, dialect: Dialect) -> Row {
    let invalid = "invalid_request_error";
    let refused = Row {
        status: 403,
        openai: (invalid, "policy_refused"),
        anthropic: "permission_error",
        google: "PERMISSION_DENIED",
        // That of a rule is put together in `render`.
        text: "This gateway's policy does not allow the model that the request names.",
        retry: Retry::No,
        close: false,
    };
    match denied {
        Denied::Rule(_) | Denied::Model => refused,
        Denied::Unreadable => Row {
            status: 400,
            openai: (invalid, "unreadable_body"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "The request body must be read here and is not the strict JSON (or form) that this endpoint takes.",
            ..refused
        },
        Denied::Encoding => Row {
            status: 415,
            openai: (invalid, "unsupported_encoding"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "The request body must be read here and its Content-Encoding is not known: send it plain, or in gzip or zstd.",
            ..refused
        },
        Denied::TooLarge => Row {
            text: "The request body is larger than this endpoint allows when it is decoded.",
            ..row(&Refusal::BodyTooLarge, dialect)
        },
        Denied::Thread => Row {
            status: 400,
            openai: (invalid, "thread_unsupported_request"),
            anthropic: invalid,
            google: "INVALID_ARGUMENT",
            text: "Message threads are not kept here: send the whole history.",
            ..refused
        },
    }
}

/// The answer to a refused request; settles its account.
pub(super) fn refuse(refusal: &Refusal, dialect: Dialect, mut tally: Tally) -> Response<AnswerBody> {
    let row = row(refusal, dialect);
    tally.answered(row.status, Source::Nullhop, false, Instant::now());
    tally.settle(outcome(refusal));
    let (head, text) = render(refusal, dialect, row);
    head.map(|()| AnswerBody::fixed(text, tally))
}

/// The answer to a request whose own handling panicked.
pub(super) fn internal() -> Response<AnswerBody> {
    let row = row(&Refusal::Internal, Dialect::Openai);
    let (head, text) = render(&Refusal::Internal, Dialect::Openai, row);
    head.map(|()| AnswerBody::unaccounted(text))
}

/// An empty 200.
pub(super) fn hello(mut tally: Tally) -> Response<AnswerBody> {
    tally.answered(200, Source::Nullhop, false, Instant::now());
    tally.settle(Outcome::Ok);
    Response::new(AnswerBody::fixed(String::new(), tally))
}

/// Tells SDKs whether to ask again, whatever they think of the status (WIRE section 6.2).
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

fn render(refusal: &Refusal, dialect: Dialect, row: Row) -> (Response<()>, String) {
    let by_rule;
    let text = match refusal {
        Refusal::WrongBase(hint) => hint.as_ref(),
        Refusal::Policy(Denied::Rule(rule)) => {
            let (name, says) = (rule.as_str(), rule.says());
            by_rule = format!(
                "The gateway's retention policy does not allow {says} (rule `{name}`). Whoever runs the gateway can relax \
                 it for this upstream with retention = {{ allow = [\"{name}\"] }}."
            );
            by_rule.as_str()
        }
        Refusal::Limited(limited) => {
            by_rule = says(limited);
            by_rule.as_str()
        }
        _ => row.text,
    };
    let mut body = match dialect {
        Dialect::Openai => serde_json::json!({
            "error": { "message": text, "type": row.openai.0, "param": null, "code": row.openai.1 }
        }),
        Dialect::Anthropic => serde_json::json!({
            "type": "error", "error": { "type": row.anthropic, "message": text }
        }),
        Dialect::Google => serde_json::json!({
            "error": { "code": row.status, "message": text, "status": row.google }
        }),
    };
    if matches!(refusal, Refusal::Policy(Denied::Thread)) && dialect == Dialect::Anthropic {
        // What makes the client send everything (WIRE 5.2).
        body["error"]["details"] = serde_json::json!({ "error_code": "thread_unsupported_request" });
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, Value::of("application/json"));
    match row.retry {
        Retry::Unsaid => {}
        Retry::No => {
            headers.insert(SHOULD_RETRY, Value::of("false"));
        }
        Retry::After(seconds) => {
            headers.insert(header::RETRY_AFTER, Value::of(seconds));
        }
        Retry::In(seconds) => {
            headers.insert(header::RETRY_AFTER, &HeaderValue::from(seconds));
            if seconds > WAIT_MAX {
                headers.insert(SHOULD_RETRY, Value::of("false"));
            }
            if dialect == Dialect::Google {
                body["error"]["details"] = serde_json::json!([{
                    "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": format!("{seconds}s")
                }]);
            }
        }
    }
    if row.close {
        headers.insert(header::CONNECTION, Value::of("close"));
    }
    match refusal {
        // RFC 9110 sections 15.5.6 and 15.5.22 ask for these.
        Refusal::Method => {
            headers.insert(header::ALLOW, Value::of("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        Refusal::Limited(limited) => limited.standing.write(dialect, limited.unix, headers),
        Refusal::WebSocketNotServed => {
            headers.insert(header::UPGRADE, Value::of("HTTP/1.1"));
            headers.insert(header::CONNECTION, Value::of("upgrade"));
        }
        _ => {}
    }
    (response, body.to_string())
}

/// Which limit holds, for whom, and until when.
fn says(limited: &Limited) -> String {
    let whose = match limited.scope {
        Scope::Key => "this key",
        Scope::Account => "this key's account",
        Scope::Upstream => "this provider at this gateway",
    };
    let until = match limited.retry_after {
        None => String::new(),
        Some(1) => " Try again in 1 second.".to_owned(),
        Some(seconds) => format!(" Try again in {seconds} seconds."),
    };
    let kind = |kind| match kind {
        Kind::Requests => "requests",
        Kind::InputTokens => "input tokens",
        Kind::OutputTokens => "output tokens",
        Kind::Tokens => "tokens",
        Kind::Money => "money",
    };
    match limited.limit {
        Limit::Concurrency => {
            format!(
                "Limit reached: open streams of {whose} (limit `concurrency`). Try again when one of them has ended."
            )
        }
        Limit::Rate(of) => {
            let name = kind(of).replace(' ', "_");
            format!("Limit reached: {} in a window of time of {whose} (limit `{name}`).{until}", kind(of))
        }
        Limit::Budget(of, period) => {
            let period = match period {
                Period::Day => "day",
                Period::Month => "month",
            };
            let name = kind(of).replace(' ', "_");
            format!(
                "Budget used up: {} for a {period} of {whose} (limit `{name}_per_{period}`). It begins anew with the next \
                 {period}.",
                kind(of)
            )
        }
    }
}

fn outcome(refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::BodyTooLarge
        | Refusal::BodyTooSlow
        | Refusal::Expectation
        | Refusal::Forbidden
        | Refusal::HeadTooLarge
        | Refusal::Key(_)
        | Refusal::Malformed
        | Refusal::Method
        | Refusal::Misdirected
        | Refusal::NoRoute
        | Refusal::Policy(_)
        | Refusal::WebSocketNotServed
        | Refusal::WrongBase(_) => Outcome::ClientError,
        Refusal::ClientGone => Outcome::ClientAbort,
        Refusal::Internal => Outcome::Internal,
        Refusal::Limited(_) => Outcome::Limited,
        Refusal::Overloaded => Outcome::Unavailable,
        Refusal::UpstreamTimeout => Outcome::UpstreamTimeout,
        Refusal::ProviderKey | Refusal::UpstreamProtocol | Refusal::UpstreamUnreachable => Outcome::UpstreamError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_by_dialect() {
        let shape = |dialect| {
            let refusal = Refusal::WrongBase("set it to https://HOST/openai/v1".into());
            let (head, body) = render(&refusal, dialect, row(&refusal, dialect));
            assert_eq!(head.status(), 404);
            assert_eq!(head.headers()["x-should-retry"], *"false");
            serde_json::from_str::<serde_json::Value>(&body).unwrap()
        };
        assert_eq!(shape(Dialect::Openai)["error"]["code"], "not_found");
        assert_eq!(shape(Dialect::Openai)["error"]["message"], "set it to https://HOST/openai/v1");
        assert_eq!(shape(Dialect::Anthropic)["type"], "error");
        assert_eq!(shape(Dialect::Anthropic)["error"]["type"], "not_found_error");
        assert_eq!(shape(Dialect::Google)["error"]["status"], "NOT_FOUND");
        assert_eq!(shape(Dialect::Google)["error"]["code"], 404);
    }

    #[test]
    fn overload_is_529_for_anthropic() {
        assert_eq!(row(&Refusal::Overloaded, Dialect::Anthropic).status, 529);
        assert_eq!(row(&Refusal::Overloaded, Dialect::Openai).status, 503);
    }
}
